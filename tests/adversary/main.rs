//! The adversary as a program: `cargo run -p amphi-tests --bin adversary -- --seed 1 --minutes 5 --database both`.
//!
//! The same binary is also the host (`adversary serve …`), so that no second binary has to be built.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amphi_tests::adversary::edge::edge;
use amphi_tests::adversary::hunt::{Hunt, hunt, replay};
use amphi_tests::adversary::oracle::Fault;
use amphi_tests::adversary::program::Program;
use amphi_tests::adversary::show::Shown;
use amphi_tests::adversary::siege::{Report, siege};
use amphi_tests::harness::Kind;
use anyhow::Context as _;
use clap::{Parser, ValueEnum};

/// Runs random programs against the real server, and makes those smaller that break a rule.
#[derive(Debug, Parser)]
struct Options {
    /// The first seed. Default: from the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// How long to run, on each database.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The most programs, on each database.
    #[arg(long, default_value_t = u64::from(u32::MAX))]
    programs: u64,
    #[arg(long, value_enum, default_value_t = Databases::Both)]
    database: Databases,
    /// How many servers run programs at the same time.
    #[arg(long, default_value_t = 3)]
    lanes: u64,
    /// Ends after this many failures.
    #[arg(long, default_value_t = 5)]
    failures: usize,
    /// How long to look for a smaller program for each failure.
    #[arg(long, default_value_t = 120)]
    shrink_seconds: u64,
    /// Looks for these kinds of faults only: `rows`, `time` …
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leaves out these kinds of steps: `stream`, `pin` …
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Prints the program of the seed, and runs nothing.
    #[arg(long)]
    print: bool,
    /// Runs attacks on the host by hostile guests and clients, all at once, and measures a small view meanwhile.
    #[arg(long)]
    siege: bool,
    /// Runs attacks on the HTTP edge of the guestbook, all at once.
    #[arg(long)]
    edge: bool,
    /// With `--siege`: how many clients attack.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Runs the program in this file, up to ten times, until it fails.
    #[arg(long)]
    replay: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Databases {
    Sqlite,
    Postgres,
    Both,
}

const FAULTS: [Fault; 9] = [
    Fault::Rows,
    Fault::Events,
    Fault::Context,
    Fault::Answer,
    Fault::Capacity,
    Fault::Time,
    Fault::Disconnect,
    Fault::Worker,
    Fault::Host,
];

fn main() -> ExitCode {
    let is_host = std::env::args()
        .nth(1)
        .is_some_and(|first| !first.starts_with('-'));
    if is_host {
        return amphi::cli::run();
    }
    match adversary(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the options ask for. Returns whether no fault was found.
fn adversary(options: &Options) -> anyhow::Result<bool> {
    let kinds: &[Kind] = match options.database {
        Databases::Sqlite => &[Kind::Sqlite],
        Databases::Postgres => &[Kind::Postgres],
        Databases::Both => &[Kind::Sqlite, Kind::Postgres],
    };
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_secs() * 1000)
    };
    let seed = options.seed.unwrap_or_else(clock);
    if options.print {
        let program = &amphi_tests::adversary::generate::program(seed, &options.without);
        print!(
            "{}",
            Shown {
                program,
                seen: None
            }
        );
        return Ok(true);
    }
    let only = options.only.iter().map(|word| {
        let mut all = FAULTS.into_iter();
        all.find(|fault| format!("{fault:?}").eq_ignore_ascii_case(word))
            .with_context(|| format!("{word} is no kind of fault: {FAULTS:?}"))
    });
    let only: Vec<Fault> = only.collect::<Result<_, _>>()?;
    if options.edge {
        let time = Duration::from_secs_f64(options.minutes * 60.0);
        let report = runtime()?.block_on(edge(time));
        println!("{report}");
        return Ok(report.wrong.is_empty());
    }
    let mut well = true;
    for &kind in kinds {
        if let Some(file) = &options.replay {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let program: Program =
                serde_json::from_str(&text).context("the file has no program")?;
            let ran = replay(kind, &program, 10);
            let seen = ran.seen.as_ref();
            println!(
                "{kind}: {:#?}\n{}",
                ran.violations,
                Shown {
                    program: &program,
                    seen
                }
            );
            well &= ran.violations.is_empty();
            continue;
        }
        if options.siege {
            let report = siege_of(kind, options)?;
            println!("{report}");
            well &= report.wrong.is_empty();
            continue;
        }
        let hunted = hunt(Hunt {
            kind,
            seed,
            programs: options.programs,
            time: Duration::from_secs_f64(options.minutes * 60.0),
            lanes: options.lanes,
            failures_max: options.failures,
            shrink_time: Duration::from_secs(options.shrink_seconds),
            only: only.clone(),
            without: options.without.clone(),
        });
        println!(
            "{kind}: {} programs with {} requests from seed {seed} on, {} failures, {} faults of time not seen again",
            hunted.programs,
            hunted.requests,
            hunted.failures.len(),
            hunted.once
        );
        well &= hunted.failures.is_empty();
    }
    Ok(well)
}

fn siege_of(kind: Kind, options: &Options) -> anyhow::Result<Report> {
    let time = Duration::from_secs_f64(options.minutes * 60.0);
    Ok(runtime()?.block_on(siege(kind, time, options.clients)))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
