//! Until when a request may go on, and whether it still may: known to everything that waits on its behalf.

use std::sync::atomic::{AtomicU8, Ordering};
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
    /// The request is answered: what is still running for it is not wanted any more.
    Answered = 5,
}

/// The end of one request's life, by time or by cancellation.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    why: AtomicU8,
    cancelled: Notify,
}

impl Deadline {
    /// Ends at `at` unless cancelled before.
    pub fn new(at: Instant) -> Deadline {
        Deadline {
            at,
            why: AtomicU8::new(0),
            cancelled: Notify::new(),
        }
    }

    /// Time left; zero when over.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Ends it now. The first reason stays.
    pub fn cancel(&self, why: Ended) {
        let _ = self
            .why
            .compare_exchange(0, why as u8, Ordering::SeqCst, Ordering::SeqCst);
        self.cancelled.notify_waiters();
    }

    /// Whether it has ended, and why.
    pub fn ended(&self) -> Option<Ended> {
        match self.why.load(Ordering::SeqCst) {
            1 => Some(Ended::Disconnected),
            2 => Some(Ended::TimedOut),
            3 => Some(Ended::Shutdown),
            4 => Some(Ended::Failed),
            5 => Some(Ended::Answered),
            _ if Instant::now() >= self.at => Some(Ended::TimedOut),
            _ => None,
        }
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Ended {
        match self.wait_until(self.at).await {
            Some(why) => why,
            None => Ended::TimedOut,
        }
    }

    /// Waits until it has ended, or for `then` if that is earlier (none).
    pub async fn wait_until(&self, then: Instant) -> Option<Ended> {
        // What is cancelled from here on is heard of.
        let cancelled = self.cancelled.notified();
        if let Some(why) = self.ended() {
            return Some(why);
        }
        tokio::select! {
            () = cancelled => {}
            () = tokio::time::sleep_until(then.min(self.at).into()) => {}
        }
        self.ended()
    }

    /// Runs `work` unless this ends first.
    ///
    /// # Errors
    /// Why it ended; `work` is dropped then.
    pub async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            why = self.wait() => Err(why),
        }
    }
}
