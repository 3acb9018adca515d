//! How the sync functions of one scope share one thread (R2, R3).
//!
//! The thread runs jobs. A job may make calls that are answered elsewhere. While a job waits for an answer, the thread
//! runs further jobs on top of the waiting one. So the thread is available for what must be done to give that answer,
//! and a scope never needs a second thread. Jobs end in the opposite order of their beginning, like calls on a stack.
//!
//! So a job must not wait for something that a job below it on the stack holds, because the lower job cannot continue
//! before the upper one ends. Functions of a scope wait for each other only because of transactions and pinned
//! connections. So a function that holds a transaction or a pinned connection excludes all jobs from the thread except
//! those that it calls ([`Handoff::try_exclude`]). Other jobs begin when the exclusion has ended. The exclusion begins
//! only when the job on top of the stack is one that the function was called from, because that job waits for the
//! function anyway.
//!
//! Jobs and exclusions have ids. Each comes with a list (`from`) of the ids of all jobs and exclusions that it is
//! called from.
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
    /// Run this job, and call [`Handoff::ended`] with its id when it has ended.
    Job(u64, J),
    /// Stop waiting: the call is settled. For a thread that waits for no call: the inbox is closed, and no job is left.
    Done,
}

impl<J> Handoff<J> {
    /// An inbox without jobs.
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

    /// Notes that a job has ended. Called on the thread.
    pub fn ended(&self, id: u64) {
        self.state.lock().running.retain(|running| *running != id);
    }

    /// Begins an exclusion: until [`Handoff::admit`], only jobs that are called from it begin. Returns false, and
    /// begins none, unless the caller was called from every open exclusion and from the job on top of the stack
    /// (`from`). On the thread itself (`here`), the caller is the job on top, so only the exclusions matter.
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

    /// Notes that a call is settled: answered, or dropped without an answer.
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

    /// Waits, on the thread, for a job that may begin, or until the call `waiting_for` is settled. None: until the
    /// inbox is closed.
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
