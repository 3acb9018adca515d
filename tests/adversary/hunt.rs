//! Runs the programs of many seeds, and makes those that fail small.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use futures::FutureExt as _;

use super::oracle::{Fault, Violation, judge};
use super::program::Program;
use super::{generate, run, shrink};
use crate::harness::{Kind, Server};

/// How often a smaller program is tried before it is said not to fail.
const TRIES: usize = 3;

/// What to do.
#[derive(Debug, Clone)]
pub struct Hunt {
    pub kind: Kind,
    pub seed: u64,
    /// Programs at most.
    pub programs: u64,
    pub time: Duration,
    /// Servers beside each other.
    pub lanes: u64,
    /// It is over after that many failures.
    pub failures_max: usize,
    /// How long one failure may be made smaller.
    pub shrink_time: Duration,
    /// Kinds of faults to look for; none for all.
    pub only: Vec<Fault>,
    /// Kinds of steps to leave out.
    pub without: Vec<String>,
}

/// How it went.
#[derive(Debug)]
pub struct Hunted {
    pub programs: u64,
    pub requests: u64,
    /// Faults of time that were not seen again.
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
    pub violations: Vec<Violation>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            kind,
            seed,
            without,
            program,
            violations,
        } = self;
        writeln!(f, "seed {seed} on {kind}:")?;
        for Violation { fault, text } in violations {
            writeln!(f, "  {fault:?}: {text}")?;
        }
        write!(f, "{program}")?;
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

/// Runs programs until there is no time left, or there are enough failures.
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

/// Runs one program, several times if need be; what is wrong with it.
pub fn replay(kind: Kind, program: &Program, times: usize) -> Vec<Violation> {
    on_this_thread(async {
        let mut lane = Lane::new(kind);
        for _ in 0..times {
            let violations = lane.run(program).await;
            if !violations.is_empty() {
                return violations;
            }
        }
        Vec::new()
    })
}

fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
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

    /// Takes one block of seeds after the other: they share a server.
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
                let violations = self.wanted(lane.run(&program).await);
                if !violations.is_empty() {
                    self.failed(&mut lane, program, violations).await;
                }
            }
        }
    }

    fn wanted(&self, mut violations: Vec<Violation>) -> Vec<Violation> {
        let only = &self.hunt.only;
        violations.retain(|violation| only.is_empty() || only.contains(&violation.fault));
        violations
    }

    async fn failed(&self, lane: &mut Lane, program: Program, violations: Vec<Violation>) {
        let seed = program.seed;
        let faults: Vec<Fault> = violations.iter().map(|violation| violation.fault).collect();
        eprintln!("seed {seed}: {}; making it smaller …", violations[0].text);
        let (program, again) = self.shrink(lane, program, &faults).await;
        let seen_again = !again.is_empty();
        if !seen_again && faults.iter().all(|fault| fault.is_about_time()) {
            eprintln!("seed {seed}: not seen again");
            self.once.fetch_add(1, SeqCst);
            return;
        }
        let failure = Failure {
            kind: self.hunt.kind,
            seed,
            without: self.hunt.without.clone(),
            program,
            violations: if seen_again { again } else { violations },
        };
        eprintln!("{failure}");
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(failure);
        }
    }

    /// Tries programs that are smaller, as long as one of them fails in the same way. No violations: not even this one
    /// fails again.
    async fn shrink(
        &self,
        lane: &mut Lane,
        program: Program,
        faults: &[Fault],
    ) -> (Program, Vec<Violation>) {
        let since = Instant::now();
        let same = |violations: &[Violation]| {
            violations
                .iter()
                .any(|violation| faults.contains(&violation.fault))
        };
        let mut best = (program, Vec::new());
        for _ in 0..TRIES {
            let violations = self.wanted(lane.run(&best.0).await);
            if same(&violations) {
                best.1 = violations;
                break;
            }
        }
        if best.1.is_empty() {
            return best;
        }
        'smaller: loop {
            for less in shrink::smaller(&best.0) {
                for _ in 0..TRIES {
                    if since.elapsed() > self.hunt.shrink_time {
                        return best;
                    }
                    let violations = self.wanted(lane.run(&less).await);
                    if same(&violations) {
                        best = (less, violations);
                        continue 'smaller;
                    }
                }
            }
            return best;
        }
    }
}

/// Runs programs, one after the other.
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

    /// Runs a program on a server of its shape. After a failure, the next one has a new server.
    async fn run(&mut self, program: &Program) -> Vec<Violation> {
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
            violations
        };
        // The harness panics when it is not answered.
        let violations = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(violations) => violations,
            Err(panic) => vec![Violation {
                fault: Fault::Host,
                text: words(&*panic),
            }],
        };
        if violations.is_empty() {
            self.server = Some((shape, server));
        }
        violations
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the harness panicked: {}", text.unwrap_or("without words"))
}
