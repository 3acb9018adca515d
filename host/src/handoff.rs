//! How one thread is shared by the parts of one scope (R2, R3).
//!
//! The thread takes jobs. A job may make calls that are answered elsewhere; while it waits for an answer, the
//! thread takes further jobs, on top of the waiting one. So whatever the answer needs from this thread, it gets,
//! and a scope never needs a second one. Jobs end in the opposite order of their beginning, as calls do on a
//! stack.
//!
//! This file uses nothing but a lock and a condition variable, so that a model checker can go through all its
//! interleavings.

use std::collections::{HashSet, VecDeque};

use crate::sync::{Condvar, Mutex};

/// The thread's letter box: jobs for it, and news about the calls that its jobs wait for.
pub struct Handoff<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    /// Calls that nobody will work on any more: they have their answer, or never get one.
    settled: HashSet<u64>,
    last_call: u64,
    closed: bool,
}

/// What the thread does next.
pub enum Next<J> {
    /// Run this.
    Job(J),
    /// Go on: the call is settled, or, for a thread that waits for none, nothing will come any more.
    Done,
}

impl<J> Handoff<J> {
    /// Nothing to do yet.
    #[allow(
        clippy::new_without_default,
        reason = "a letter box is made on purpose, with a thread that looks after it"
    )]
    pub fn new() -> Handoff<J> {
        Handoff {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                settled: HashSet::new(),
                last_call: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Gives the thread a job; gives it back when the thread takes none any more.
    pub fn submit(&self, job: J) -> Result<(), J> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Announces a call: on the thread, before whoever answers it hears of it.
    pub fn call(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_call += 1;
        state.last_call
    }

    /// Says that a call has its answer, or will have none.
    pub fn settle(&self, call: u64) {
        self.state.lock().settled.insert(call);
        self.changed.notify_all();
    }

    /// No further jobs. Those that have not begun are given back.
    pub fn close(&self) -> VecDeque<J> {
        let mut state = self.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.jobs);
        drop(state);
        self.changed.notify_all();
        left
    }

    /// Waits, on the thread, for a job or for the end of a call (none: for the end of everything).
    pub fn next(&self, waiting_for: Option<u64>) -> Next<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(call) = waiting_for
                && state.settled.remove(&call)
            {
                return Next::Done;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Next::Job(job);
            }
            if waiting_for.is_none() && state.closed {
                return Next::Done;
            }
            self.changed.wait(&mut state);
        }
    }
}
