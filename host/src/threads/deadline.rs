//! The end of a request: its time limit, and its cancellation. Everything that waits on behalf of a request watches the
//! request's [`Deadline`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Why a request may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// The client has gone.
    Disconnected = 1,
    /// The time limit is over.
    TimedOut = 2,
    /// The host is shutting down and has waited long enough.
    Shutdown = 3,
    /// The view has failed.
    Failed = 4,
    /// The request is answered: what still runs for it is not wanted any more.
    Answered = 5,
}

/// What a function of a request may wait for while another function of the same request has it.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// The end of a transaction or savepoint.
    Level,
    /// The scope's worker.
    Worker,
    /// A connection of a database.
    Connection,
    /// The stream of another function's response.
    Stream,
}

/// The end of one request, by time or by cancellation.
#[derive(Debug)]
pub struct Deadline {
    made: Instant,
    /// When the time is over, in nanoseconds since `made`.
    at_ns: AtomicU64,
    why: AtomicU8,
    cancelled: Notify,
    /// How many functions wait for each [`Need`], or still did when the time was over.
    waiting: [AtomicUsize; 4],
}

/// A function that waits for something, counted until dropped.
pub struct Waits {
    deadline: Arc<Deadline>,
    need: Need,
}

impl Drop for Waits {
    fn drop(&mut self) {
        if self.deadline.ended() != Some(Ended::TimedOut) {
            self.deadline.waiting[self.need as usize].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Deadline {
    /// A deadline at `at`.
    pub fn new(at: Instant) -> Deadline {
        let made = Instant::now();
        Deadline {
            made,
            at_ns: AtomicU64::new(nanoseconds(at.saturating_duration_since(made))),
            why: AtomicU8::new(0),
            cancelled: Notify::new(),
            waiting: Default::default(),
        }
    }

    /// Gives the request this much time from now on, in place of the time that it had left: its response has begun, and
    /// streams and conversations have time limits of their own.
    pub fn restart(&self, time: Duration) {
        let at = nanoseconds(self.made.elapsed() + time);
        if self.at_ns.swap(at, Ordering::SeqCst) > at {
            // Who waits has to wait for less.
            self.cancelled.notify_waiters();
        }
    }

    fn at(&self) -> Instant {
        self.made + Duration::from_nanos(self.at_ns.load(Ordering::SeqCst))
    }

    /// Counts a function of the request that waits, until the result is dropped.
    pub fn waits_for(self: &Arc<Self>, need: Need) -> Waits {
        self.waiting[need as usize].fetch_add(1, Ordering::Relaxed);
        Waits {
            deadline: Arc::clone(self),
            need,
        }
    }

    /// What functions of the request wait for, or waited for when the time was over, as the end of a sentence.
    pub fn wanted(&self) -> Option<&'static str> {
        let wanted = |need| self.waited_for(need);
        if wanted(Need::Level) {
            Some(
                "a statement of it waited for the end of a transaction that another part of the request has open: if that part waits for this one, let it do so before the transaction begins",
            )
        } else if wanted(Need::Worker) {
            Some(
                "a sync view waited for the worker of its request, which another part has for a transaction or a pinned connection: if that part waits for this one, let it do so before these begin",
            )
        } else if wanted(Need::Connection) {
            Some("a statement waited for a connection of its database")
        } else if wanted(Need::Stream) {
            Some(
                "middleware of `wasi:http` waited for a body that is produced while it is sent, after the commit: let it answer before it reads the body",
            )
        } else {
            None
        }
    }

    /// Whether a function of the request waits for this, or did so when the time was over.
    pub fn waited_for(&self, need: Need) -> bool {
        self.waiting[need as usize].load(Ordering::Relaxed) > 0
    }

    /// Time left; zero when over.
    pub fn remaining(&self) -> Duration {
        self.at().saturating_duration_since(Instant::now())
    }

    /// Ends the request now. When it has ended already, the first reason stays.
    pub fn cancel(&self, why: Ended) {
        let _ = self
            .why
            .compare_exchange(0, why as u8, Ordering::SeqCst, Ordering::SeqCst);
        self.cancelled.notify_waiters();
    }

    /// Why the request has ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        match self.why.load(Ordering::SeqCst) {
            1 => Some(Ended::Disconnected),
            2 => Some(Ended::TimedOut),
            3 => Some(Ended::Shutdown),
            4 => Some(Ended::Failed),
            5 => Some(Ended::Answered),
            _ if Instant::now() >= self.at() => Some(Ended::TimedOut),
            _ => None,
        }
    }

    /// Waits until the request has ended.
    pub async fn wait(&self) -> Ended {
        loop {
            // None: the deadline was moved while it was waited for.
            if let Some(why) = self.wait_until(self.at()).await {
                return why;
            }
        }
    }

    /// Waits until the request has ended, but at most until `then`. None: `then` came first.
    pub async fn wait_until(&self, then: Instant) -> Option<Ended> {
        loop {
            // Registered before `ended` is called, so that no later cancellation is missed.
            let changed = self.cancelled.notified();
            if let Some(why) = self.ended() {
                return Some(why);
            }
            if Instant::now() >= then {
                return None;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(then.min(self.at()).into()) => {}
            }
        }
    }

    /// Runs `work` unless the request ends first.
    ///
    /// # Errors
    /// The reason why the request ended. `work` is dropped then.
    pub async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            why = self.wait() => Err(why),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_that_is_moved_is_waited_for_anew() {
        let soon = Duration::from_millis(20);
        let deadline = Arc::new(Deadline::new(Instant::now() + soon));
        let waiting = tokio::spawn({
            let deadline = Arc::clone(&deadline);
            async move { (deadline.wait().await, Instant::now()) }
        });
        tokio::task::yield_now().await;
        let moved = Instant::now();
        deadline.restart(soon * 5);
        let (why, then) = waiting.await.expect("it ends");
        assert_eq!(why, Ended::TimedOut);
        assert!(then >= moved + soon * 5, "{:?}", then - moved);
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_deadline_that_comes_nearer_is_noticed() {
        let soon = Duration::from_millis(20);
        let deadline = Arc::new(Deadline::new(Instant::now() + soon * 1_000_000));
        let waiting = tokio::spawn({
            let deadline = Arc::clone(&deadline);
            async move {
                (
                    deadline.wait_until(Instant::now() + soon * 100_000).await,
                    Instant::now(),
                )
            }
        });
        tokio::task::yield_now().await;
        let moved = Instant::now();
        deadline.restart(soon);
        let (why, then) = waiting.await.expect("it ends");
        assert_eq!(why, Some(Ended::TimedOut));
        assert!(then >= moved + soon && then < moved + soon * 1_000);
    }
}
