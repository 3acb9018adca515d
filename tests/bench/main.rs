//! Measures Amphi beside other servers, on the same machine in the same minutes.
//!
//! `cargo run --profile dist -p amphi-tests --bin bench` measures every row and prints the table as Markdown;
//! `… --bin bench -- --row PART` measures the rows whose names contain that part. It needs `wrk`. Servers to compare with
//! are installed when they are first needed (by cargo, npm and pip). The rows of a server that cannot be installed are
//! skipped, and the table says why.
//!
//! The program fails when it cannot measure, but not when a target is missed.

#[path = "../integration/harness/command.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod command;
mod cpu;
mod machine;
mod native;
mod page;
mod peers;
#[path = "../integration/harness/postgres/mod.rs"]
#[expect(dead_code, reason = "tests need more of it")]
mod postgres;
mod probes;
mod rows;
mod servers;
mod sockets;
mod statistics;
mod streams;
mod table;
mod wrk;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;

use machine::Run;
use rows::{Bench, ROWS, Row};
use servers::Data;

/// Measures Amphi beside other servers.
#[derive(Parser)]
struct Arguments {
    /// Measures only the rows whose names contain this.
    #[arg(long)]
    row: Option<String>,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// How often each row is measured. Figures of fewer than five rounds are marked as a trial.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each rate is measured.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where other servers are installed [default: `amphi-bench` in the user's cache folder].
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Parser)]
struct NativeArguments {
    #[command(flatten)]
    native: native::Native,
}

fn main() -> ExitCode {
    if let Some(code) = amphi::cli::run_as_rustc() {
        return code;
    }
    let result = match std::env::args().nth(1).as_deref() {
        // The benchmark runs this program also as two of the servers: as Amphi, and as the native server.
        Some("amphi") => return amphi::cli::run_with(std::env::args().skip(1)),
        Some("native") => {
            native::serve(&NativeArguments::parse_from(std::env::args().skip(1)).native)
        }
        _ => run(&Arguments::parse()),
    };
    match result {
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
        "no row's name contains this: see `--list`"
    );
    if arguments.list {
        for row in rows {
            println!("{}", row.name);
        }
        return Ok(());
    }
    wrk::version()?;
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
        page: None,
    };
    let run = Run::begin(arguments.rounds, arguments.seconds)?;
    let outcomes = bench.measure(&rows)?;
    println!("{}\n", run.describe()?);
    let rows: Vec<_> = rows.into_iter().zip(outcomes).collect();
    table::print(&rows);
    if let Some(page) = &bench.page {
        println!("\n{page}");
    }
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
        .context("there is no folder to install servers in: set HOME, or pass `--folder`")
}

/// Waits until `look` succeeds. The module `postgres`, which belongs to the integration tests, expects a function of
/// this name in the module around it.
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
