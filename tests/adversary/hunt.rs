//! Runs the programs of many seeds, and makes failing programs smaller.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures::FutureExt as _;

use super::oracle::{Fault, Violation, judge};
use super::program::Program;
use super::run::Seen;
use super::show::Shown;
use super::{generate, run, shrink};
use crate::harness::{Kind, Server};

/// How often a smaller program is run before it counts as not failing.
const TRIES: usize = 3;

/// What to run.
#[derive(Debug, Clone)]
pub struct Hunt {
    pub kind: Kind,
    pub seed: u64,
    /// How many programs to run at most.
    pub programs: u64,
    pub time: Duration,
    /// How many servers run programs at the same time.
    pub lanes: u64,
    /// The hunt ends after this many failures.
    pub failures_max: usize,
    /// How long to look for a smaller program for one failure.
    pub shrink_time: Duration,
    /// Kinds of faults to look for; all if empty.
    pub only: Vec<Fault>,
    /// Kinds of steps to leave out.
    pub without: Vec<String>,
}

/// The result of [`hunt`].
#[derive(Debug)]
pub struct Hunted {
    pub programs: u64,
    pub requests: u64,
    /// How many programs had only faults that a busy machine can cause, and had none when they were run again.
    pub once: u64,
    pub failures: Vec<Failure>,
}

/// A program that breaks a rule, made small.
#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub seed: u64,
    /// Kinds of steps that were left out.
    pub without: Vec<String>,
    pub program: Program,
    pub ran: Ran,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            kind,
            seed,
            without,
            program,
            ran: Ran { violations, seen },
        } = self;
        writeln!(f, "seed {seed} on {kind}:")?;
        for Violation { fault, text } in violations {
            writeln!(f, "  {fault:?}: {text}")?;
        }
        let seen = seen.as_ref();
        write!(f, "{}", Shown { program, seen })?;
        let without = match without.is_empty() {
            true => String::new(),
            false => format!(" --without {}", without.join(",")),
        };
        writeln!(
            f,
            "again: cargo run -p amphi-tests --bin adversary -- --seed {seed} --programs 1 --database {kind}{without}"
        )?;
        let json = serde_json::to_string(program).map_err(|_| fmt::Error)?;
        writeln!(
            f,
            "as small as it is: the same with --replay and a file of this line:\n{json}"
        )
    }
}

struct Shared {
    hunt: Hunt,
    since: Instant,
    next_block: AtomicU64,
    programs: AtomicU64,
    requests: AtomicU64,
    once: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

/// Runs programs until all have run, the time is over, or there are enough failures.
pub fn hunt(hunt: Hunt) -> Hunted {
    let shared = Shared {
        since: Instant::now(),
        next_block: AtomicU64::new(0),
        programs: AtomicU64::new(0),
        requests: AtomicU64::new(0),
        once: AtomicU64::new(0),
        failures: Mutex::default(),
        hunt,
    };
    std::thread::scope(|scope| {
        for _ in 0..shared.hunt.lanes {
            scope.spawn(|| on_this_thread(shared.lane()));
        }
    });
    Hunted {
        programs: shared.programs.into_inner(),
        requests: shared.requests.into_inner(),
        once: shared.once.into_inner(),
        failures: shared.failures.into_inner().unwrap_or_default(),
    }
}

/// Runs one program until it fails, at most `times` times. Returns the last run.
pub fn replay(kind: Kind, program: &Program, times: usize) -> Ran {
    on_this_thread(async {
        let mut lane = Lane::new(kind);
        let mut ran = lane.run(program).await;
        for _ in 1..times {
            if !ran.violations.is_empty() {
                break;
            }
            ran = lane.run(program).await;
        }
        ran
    })
}

pub(super) fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime can be made").block_on(work)
}

impl Shared {
    fn is_over(&self) -> bool {
        self.since.elapsed() > self.hunt.time
            || self
                .failures
                .lock()
                .is_ok_and(|all| all.len() >= self.hunt.failures_max)
    }

    /// Takes one block of seeds after the other, and runs its programs. The programs of a block share a server.
    async fn lane(&self) {
        let Hunt {
            kind,
            seed,
            programs,
            ..
        } = self.hunt;
        let mut lane = Lane::new(kind);
        let first_block = seed / generate::PER_SHAPE;
        while !self.is_over() {
            let block = first_block + self.next_block.fetch_add(1, SeqCst);
            let seeds = block * generate::PER_SHAPE..(block + 1) * generate::PER_SHAPE;
            let seeds: Vec<u64> = seeds
                .filter(|of_block| (seed..seed + programs).contains(of_block))
                .collect();
            if seeds.is_empty() {
                return;
            }
            for seed in seeds {
                if self.is_over() {
                    return;
                }
                let program = generate::program(seed, &self.hunt.without);
                self.programs.fetch_add(1, SeqCst);
                self.requests
                    .fetch_add(program.requests.len() as u64, SeqCst);
                let ran = self.wanted(lane.run(&program).await);
                if !ran.violations.is_empty() {
                    self.failed(&mut lane, program, ran).await;
                }
            }
        }
    }

    fn wanted(&self, mut ran: Ran) -> Ran {
        let only = &self.hunt.only;
        ran.violations
            .retain(|violation| only.is_empty() || only.contains(&violation.fault));
        ran
    }

    async fn failed(&self, lane: &mut Lane, program: Program, ran: Ran) {
        let seed = program.seed;
        eprintln!(
            "seed {seed}: {}; making it smaller …",
            ran.violations[0].text
        );
        let faults = ran.faults();
        let (program, ran) = match self.again(lane, &program, &faults).await {
            Some(again) => self.shrink(lane, program, again).await,
            None if faults.iter().all(|fault| fault.is_about_time()) => {
                let seen = ran.seen.as_ref();
                let program = &program;
                eprintln!(
                    "seed {seed}: not seen again; this is how it went:\n{}",
                    Shown { program, seen }
                );
                self.once.fetch_add(1, SeqCst);
                return;
            }
            None => (program, ran),
        };
        let failure = Failure {
            kind: self.hunt.kind,
            seed,
            without: self.hunt.without.clone(),
            program,
            ran,
        };
        eprintln!("{failure}");
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(failure);
        }
    }

    /// Runs a program up to [`TRIES`] times, until it fails with one of these kinds of faults.
    async fn again(&self, lane: &mut Lane, program: &Program, faults: &[Fault]) -> Option<Ran> {
        for _ in 0..TRIES {
            let ran = self.wanted(lane.run(program).await);
            if ran.faults().iter().any(|fault| faults.contains(fault)) {
                return Some(ran);
            }
        }
        None
    }

    /// Tries smaller programs, as long as one of them fails in the same way.
    async fn shrink(&self, lane: &mut Lane, program: Program, ran: Ran) -> (Program, Ran) {
        let (since, faults) = (Instant::now(), ran.faults());
        let mut best = (program, ran);
        'smaller: loop {
            for less in shrink::smaller(&best.0) {
                if since.elapsed() > self.hunt.shrink_time {
                    return best;
                }
                if let Some(ran) = self.again(lane, &less, &faults).await {
                    best = (less, ran);
                    continue 'smaller;
                }
            }
            return best;
        }
    }
}

/// The result of one run of a program.
#[derive(Debug)]
pub struct Ran {
    pub violations: Vec<Violation>,
    /// None if the harness panicked, as it does when the server is gone.
    pub seen: Option<Seen>,
}

impl Ran {
    fn faults(&self) -> Vec<Fault> {
        self.violations
            .iter()
            .map(|violation| violation.fault)
            .collect()
    }
}

/// Runs programs one after the other, and keeps the server for programs that need the same one.
struct Lane {
    kind: Kind,
    server: Option<(super::program::Shape, Server)>,
    runs: u64,
}

impl Lane {
    fn new(kind: Kind) -> Lane {
        Lane {
            kind,
            server: None,
            runs: 0,
        }
    }

    /// Runs a program on a server of the shape that it asks for. After a failure, the next program gets a new server.
    async fn run(&mut self, program: &Program) -> Ran {
        let (shape, server) = match self.server.take() {
            Some((shape, server)) if shape == program.shape => (shape, server),
            _ => (
                program.shape.clone(),
                run::start(self.kind, &program.shape).await,
            ),
        };
        self.runs += 1;
        let name = format!("p{}", self.runs);
        let work = async {
            let seen = run::run(&server, program, &name).await;
            let mut violations = judge(program, &seen);
            if let Err(text) = run::probe(&server).await {
                violations.push(Violation {
                    fault: Fault::Host,
                    text,
                });
            }
            Ran {
                violations,
                seen: Some(seen),
            }
        };
        // The harness panics when a request gets no response.
        let ran = AssertUnwindSafe(work)
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| {
                let (fault, text) = (Fault::Host, words(&*panic));
                Ran {
                    violations: vec![Violation { fault, text }],
                    seen: None,
                }
            });
        if ran.violations.is_empty() {
            self.server = Some((shape, server));
        }
        ran
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the harness panicked: {}", text.unwrap_or("without words"))
}
