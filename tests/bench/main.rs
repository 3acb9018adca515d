//! How fast Amphi is, next to others on the same machine in the same minutes.
//!
//! `cargo run --profile dist -p amphi-tests --bin bench` measures every row of the table and prints it as Markdown;
//! `… --bin bench -- --row PART` the rows whose names have that part. It needs `wrk`. Servers to compare with are
//! installed when they are first needed (cargo, npm, Python), and those that cannot be are skipped by name.

mod native;
mod peers;
#[path = "../integration/harness/postgres/mod.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod postgres;
mod probes;
mod rows;
mod servers;
mod table;
mod wrk;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;

use rows::{Bench, ROWS, Row};
use servers::Data;

/// Measures Amphi next to other servers.
#[derive(Parser)]
struct Arguments {
    /// Only rows whose names have this part.
    #[arg(long)]
    row: Option<String>,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a rate is measured.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where other servers are installed. Default: `amphi-bench` in the user's cache folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Parser)]
struct NativeArguments {
    #[command(flatten)]
    native: native::Native,
}

fn main() -> ExitCode {
    let done = match std::env::args().nth(1).as_deref() {
        // The servers are this program, too.
        Some("amphi") => return amphi::cli::run_with(std::env::args().skip(1)),
        Some("native") => {
            native::serve(&NativeArguments::parse_from(std::env::args().skip(1)).native)
        }
        _ => run(&Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |row: &&Row| (arguments.row.as_ref()).is_none_or(|part| row.name.contains(part));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    ensure!(
        !rows.is_empty(),
        "no row has this in its name: see `--list`"
    );
    if arguments.list {
        for row in rows {
            println!("{}", row.name);
        }
        return Ok(());
    }
    let wrk = wrk::version()?;
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => cache()?.join("amphi-bench"),
    };
    let database = database()?;
    let mut bench = Bench {
        data: Data::new(Some(database.url()))?,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        folder: &folder,
        versions: Default::default(),
    };
    let outcomes = bench.measure(&rows)?;
    println!("{}\n", about_this_machine()?);
    println!(
        "{} rounds, {} s each, {wrk} with {} connections on the same cores; medians (min – max).\n",
        bench.rounds,
        bench.seconds,
        wrk::CONNECTIONS
    );
    let rows: Vec<_> = rows.into_iter().zip(outcomes).collect();
    table::print(&rows);
    for (name, version) in &bench.versions {
        println!("\n{name}: {version}");
    }
    Ok(())
}

/// A PostgreSQL database with the same rows as the SQLite files.
fn database() -> anyhow::Result<postgres::Database> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async {
        let database = postgres::Postgres::shared().database().await;
        database
            .execute(
                "create table items (id bigint primary key, name text not null);
                 insert into items select id, 'item ' || id from generate_series(1, 10000) as id;",
            )
            .await;
        database
    }))
}

fn cache() -> anyhow::Result<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    folder
        .or_else(home)
        .context("no folder to install servers in: set HOME, or give `--folder`")
}

fn about_this_machine() -> anyhow::Result<String> {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu
        .map(|name| name.trim_start_matches(['\t', ' ', ':']))
        .unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{}, {cores} cores of {cpu}, Linux {}, {}.",
        said("date", "+%F")?,
        said("uname", "-r")?,
        said("rustc", "--version")?
    ))
}

/// For `postgres`, as the tests have it.
async fn eventually<T, E: fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    for _ in 0..1_000 {
        match look().await {
            Ok(found) => return found,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    panic!("{what}: waited 10 s for it")
}
