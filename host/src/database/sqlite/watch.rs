//! Ends statements whose request has ended: one thread looks at the deadline of every connection on loan, a few dozen
//! times a second, and sets SQLite's interrupt flag.
//!
//! SQLite looks at the flag wherever its virtual machine jumps, and so do the functions of our own. A progress
//! handler would be asked only every so many instructions, between which any number of slow functions can run.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::InterruptHandle;

use super::guard::Guard;
use crate::threads::deadline::Deadline;

/// How often it looks.
const TICK: Duration = Duration::from_millis(10);
/// After so many looks at connections none of which was on loan, it sleeps until one is.
const IDLE_TICKS: u32 = 100;

/// One connection, as the watching thread sees it.
pub(super) struct Watched {
    interrupt: InterruptHandle,
    guard: Arc<Guard>,
    /// What the connection writes goes there first, and may be so much for one borrower.
    log: Option<(PathBuf, u64)>,
    loan: Mutex<Loan>,
}

#[derive(Default)]
struct Loan {
    /// Of the request that has the connection.
    deadline: Option<Arc<Deadline>>,
    /// While the host itself speaks: its commits and rollbacks are finished.
    host: bool,
    /// The size of the log when it was looked at first.
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

    /// From now on, statements end with this.
    pub(super) fn lend(&self, deadline: Arc<Deadline>) {
        self.guard.over.store(false, SeqCst);
        self.guard.writes_too_much.store(false, SeqCst);
        *self.loan.lock() = Loan {
            deadline: Some(deadline),
            ..Loan::default()
        };
        if WATCH.sleeps.swap(false, SeqCst) {
            WATCH.thread.unpark();
        }
    }

    /// Nothing is interrupted any more. What was, is forgotten by SQLite when the next statement begins.
    pub(super) fn give_back(&self) {
        self.loan.lock().deadline = None;
        self.guard.over.store(false, SeqCst);
    }

    /// Whether the request has ended: a statement that begins now would not be told at once.
    pub(super) fn is_over(&self) -> bool {
        self.guard.over.load(SeqCst)
    }

    /// Holds interrupts back, or no more.
    pub(super) fn set_host(&self, host: bool) {
        self.loan.lock().host = host;
    }

    /// Returns whether the connection is on loan.
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
            // Under the lock: the connection cannot change hands meanwhile, nor the host begin to speak.
            if !loan.host {
                self.interrupt.interrupt();
            }
        }
        true
    }

    /// Nothing ends a commit, and it takes the longer the more was written.
    fn writes_too_much(&self, loan: &mut Loan) -> bool {
        let Some((log, max)) = &self.log else {
            return false;
        };
        // It is there as soon as anything was written.
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
        // Who lends from here on wakes it: either this sees the loan, or the lender sees that it sleeps.
        match WATCH.sleeps.swap(true, SeqCst) {
            false => {}
            true => std::thread::park(),
        }
    }
}
