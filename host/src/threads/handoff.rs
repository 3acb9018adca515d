//! How the sync functions of one scope share one thread (R2, R3).
//!
//! The thread runs jobs. A job may make calls that are answered elsewhere. While a job waits for an answer, the thread
//! runs further jobs on top of the waiting one. So when the answer needs this thread, it gets it, and a scope never
//! needs a second thread. Jobs end in the opposite order of their beginning, like calls on a stack.
//!
//! So a job must not wait for something that a job below it on the stack holds, because the lower job cannot continue
//! before the upper one ends. Functions of a scope wait for each other because of transactions and pinned connections
//! only. So a function that holds one excludes others from the thread, but for what it calls
//! ([`Handoff::try_exclude`]): other jobs begin when the exclusion has ended, and the exclusion begins only when the
//! job on top of the stack is one that the function was called from, which waits for it anyway.
//!
//! Jobs and exclusions have ids. What is called from a job or an exclusion has the id of that in its list of ids.
//!
//! This file uses nothing but a lock and a condition variable, so that a model checker can go through all its
//! interleavings.

use std::collections::{HashSet, VecDeque};

use super::sync::{Condvar, Mutex};

/// The thread's inbox: jobs for the thread, and the ends of the calls that its jobs wait for.
pub struct Handoff<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// Jobs that have not begun: their ids, the ids that they are called from, and the jobs.
    jobs: VecDeque<(u64, Vec<u64>, J)>,
    /// Jobs that have begun, the innermost last.
    running: Vec<u64>,
    /// Exclusions, the innermost last. Each was called from the one before.
    exclusions: Vec<u64>,
    /// Calls that are settled: answered, or dropped without an answer.
    settled: HashSet<u64>,
    last_id: u64,
    closed: bool,
}

/// What the thread does next.
pub enum Next<J> {
    /// Run this, and say when it has ended.
    Job(u64, J),
    /// Go on: the call is settled, or, for a thread that waits for none, nothing will come any more.
    Done,
}

impl<J> Handoff<J> {
    /// There is nothing to do yet.
    #[allow(
        clippy::new_without_default,
        reason = "a letter box is made on purpose, with a thread that looks after it"
    )]
    pub fn new() -> Handoff<J> {
        Handoff {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                running: Vec::new(),
                exclusions: Vec::new(),
                settled: HashSet::new(),
                last_id: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// An id for a job, an exclusion or a call.
    pub fn id(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_id += 1;
        state.last_id
    }

    /// Gives the thread a job that is called from these ids. Returns the job when the thread takes none any more.
    pub fn submit(&self, id: u64, from: Vec<u64>, job: J) -> Result<(), J> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back((id, from, job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Says, on the thread, that a job has ended.
    pub fn ended(&self, id: u64) {
        self.state.lock().running.retain(|running| *running != id);
    }

    /// Begins an exclusion: until [`Handoff::admit`], only jobs begin that are called from it. Refused while another
    /// exclusion is the innermost, or another job on top of the stack, that the caller was not called from. On the
    /// thread itself (`here`), the caller is the job on top.
    pub fn try_exclude(&self, id: u64, from: &[u64], here: bool) -> bool {
        let mut state = self.state.lock();
        let top = state.running.last().filter(|_| !here);
        let excluded = state.exclusions.iter().chain(top);
        let free = excluded.clone().all(|id| from.contains(id));
        if free {
            state.exclusions.push(id);
        }
        free
    }

    /// Ends an exclusion.
    pub fn admit(&self, id: u64) {
        self.state
            .lock()
            .exclusions
            .retain(|exclusion| *exclusion != id);
        self.changed.notify_all();
    }

    /// Says that a call is settled: answered, or dropped without an answer.
    pub fn settle(&self, call: u64) {
        self.state.lock().settled.insert(call);
        self.changed.notify_all();
    }

    /// Closes the inbox to further jobs. Returns the jobs that have not begun.
    pub fn close(&self) -> Vec<J> {
        let mut state = self.state.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.jobs);
        drop(state);
        self.changed.notify_all();
        left.into_iter().map(|(_, _, job)| job).collect()
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
            let may_begin = |(_, from, _): &(u64, Vec<u64>, J)| {
                state.exclusions.iter().all(|id| from.contains(id))
            };
            if let Some(first) = state.jobs.iter().position(may_begin)
                && let Some((id, _, job)) = state.jobs.remove(first)
            {
                state.running.push(id);
                return Next::Job(id, job);
            }
            if waiting_for.is_none() && state.closed {
                return Next::Done;
            }
            self.changed.wait(&mut state);
        }
    }
}
