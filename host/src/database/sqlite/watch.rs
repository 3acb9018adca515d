//! Interrupts statements whose request has ended. One thread checks the deadline of every leased connection, every 10
//! ms, and sets SQLite's interrupt flag.
//!
//! SQLite checks the flag wherever its virtual machine jumps, and the host's own functions check it, too. A progress
//! handler would not do: SQLite calls it only after a certain number of instructions, and each of these instructions
//! may call a slow function.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::InterruptHandle;

use super::guard::Guard;
use crate::threads::deadline::Deadline;

/// The interval of the checks.
const TICK: Duration = Duration::from_millis(10);
/// The thread sleeps after so many checks in a row without a leased connection. The next lease wakes it.
const IDLE_TICKS: u32 = 100;

/// What the watching thread knows of one connection.
pub(super) struct Watched {
    interrupt: InterruptHandle,
    guard: Arc<Guard>,
    /// The WAL file, which takes the connection's writes first, and the most bytes that it may grow by during one
    /// lease.
    log: Option<(PathBuf, u64)>,
    loan: Mutex<Loan>,
}

#[derive(Default)]
struct Loan {
    /// The deadline of the request that has leased the connection.
    deadline: Option<Arc<Deadline>>,
    /// Set while a statement of the host runs: commits and rollbacks are not interrupted.
    host: bool,
    /// The size of the WAL file at the first check of this lease.
    log_bytes: Option<u64>,
}

impl Watched {
    pub(super) fn new(
        interrupt: InterruptHandle,
        guard: &Arc<Guard>,
        log: Option<(PathBuf, u64)>,
    ) -> Arc<Watched> {
        let watched = Arc::new(Watched {
            interrupt,
            guard: Arc::clone(guard),
            log,
            loan: Mutex::default(),
        });
        WATCH.connections.lock().push(Arc::downgrade(&watched));
        watched
    }

    /// Starts a lease: statements are interrupted when `deadline` ends. If it has ended already, because the connection
    /// came free at that very moment, none begins.
    pub(super) fn lend(&self, deadline: Arc<Deadline>) {
        self.guard.over.store(deadline.ended().is_some(), SeqCst);
        self.guard.writes_too_much.store(false, SeqCst);
        *self.loan.lock() = Loan {
            deadline: Some(deadline),
            ..Loan::default()
        };
        if WATCH.sleeps.swap(false, SeqCst) {
            WATCH.thread.unpark();
        }
    }

    /// Ends a lease: nothing is interrupted any more. SQLite clears its flag when the next statement begins.
    pub(super) fn give_back(&self) {
        self.loan.lock().deadline = None;
        self.guard.over.store(false, SeqCst);
    }

    /// Whether the request has ended. A statement that began now would run until the next check interrupts it.
    pub(super) fn is_over(&self) -> bool {
        self.guard.over.load(SeqCst)
    }

    /// Holds interrupts back while the host runs its own statements, and allows them again.
    pub(super) fn set_host(&self, host: bool) {
        self.loan.lock().host = host;
    }

    /// Checks the connection. Returns whether it is leased.
    fn look(&self) -> bool {
        let mut loan = self.loan.lock();
        let Some(deadline) = &loan.deadline else {
            return false;
        };
        let is_over = deadline.ended().is_some();
        if self.writes_too_much(&mut loan) {
            self.guard.writes_too_much.store(true, SeqCst);
        }
        if is_over || self.guard.writes_too_much.load(SeqCst) {
            self.guard.over.store(true, SeqCst);
            // The interrupt is sent under the lock. So the connection cannot be given back meanwhile, and the host
            // cannot start a statement of its own.
            if !loan.host {
                self.interrupt.interrupt();
            }
        }
        true
    }

    /// Whether the transaction has written more than it may. A commit cannot be interrupted, and the more was written,
    /// the longer it takes.
    fn writes_too_much(&self, loan: &mut Loan) -> bool {
        let Some((log, max)) = &self.log else {
            return false;
        };
        // The file exists as soon as anything was written.
        let bytes = std::fs::metadata(log).map_or(0, |log| log.len());
        let before = *loan.log_bytes.get_or_insert(bytes);
        bytes.saturating_sub(before) > *max
    }
}

struct Watch {
    connections: Mutex<Vec<Weak<Watched>>>,
    sleeps: AtomicBool,
    thread: Thread,
}

static WATCH: LazyLock<Watch> = LazyLock::new(|| {
    let thread = std::thread::Builder::new()
        .name("amphi-sqlite-watch".into())
        .spawn(watch)
        .expect("a thread can be started");
    Watch {
        connections: Mutex::default(),
        sleeps: AtomicBool::new(false),
        thread: thread.thread().clone(),
    }
});

fn watch() {
    let mut idle = 0;
    loop {
        let mut on_loan = false;
        WATCH.connections.lock().retain(|connection| {
            let connection = connection.upgrade();
            on_loan |= connection.as_ref().is_some_and(|watched| watched.look());
            connection.is_some()
        });
        idle = if on_loan { 0 } else { idle + 1 };
        if idle < IDLE_TICKS {
            std::thread::sleep(TICK);
            continue;
        }
        // The first time, only the flag `sleeps` is set, and all connections are checked once more. The thread parks if
        // the flag is still set after that. So a lease that begins meanwhile is seen by this check, or sees the flag
        // and wakes the thread.
        match WATCH.sleeps.swap(true, SeqCst) {
            false => {}
            true => std::thread::park(),
        }
    }
}
