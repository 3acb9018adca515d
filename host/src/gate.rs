//! A bounded number of places, with a bounded queue in front: what limits async instances and connections of
//! every kind. Whoever does not get a place in time is told so; nobody is dropped silently.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::deadline::{Deadline, Ended};
use crate::metrics::{Held, METRICS};

/// Places, and a queue of those who wait for one.
#[derive(Debug)]
pub struct Gate {
    name: String,
    places: Arc<Semaphore>,
    size: usize,
    queue_max: usize,
    timeout: Duration,
    /// Those who wait here. Gates of one name (an app and the one that replaces it) share the gauge only.
    queued: AtomicUsize,
    gauge: IntGauge,
}

/// A place, until dropped.
pub type Place = OwnedSemaphorePermit;

/// Why no place was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full, or the wait was too long; the sentence says which.
    Busy(String),
    /// The request ended while it waited.
    Ended(Ended),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Busy(sentence) => f.write_str(sentence),
            Refused::Ended(why) => write!(f, "the request ended while it waited ({why:?})"),
        }
    }
}

impl Gate {
    /// `size` places; at most `queue_max` wait, each at most `timeout`. `name` is used in sentences and metrics.
    pub fn new(name: impl Into<String>, size: usize, queue_max: usize, timeout: Duration) -> Gate {
        let name = name.into();
        let gauge = METRICS.queued.with_label_values(&[&name]);
        Gate {
            places: Arc::new(Semaphore::new(size)),
            size,
            queue_max,
            timeout,
            queued: AtomicUsize::new(0),
            gauge,
            name,
        }
    }

    /// Takes a place, first come first served.
    ///
    /// # Errors
    /// [`Refused`] when the queue is full, the wait is too long or the request ends.
    pub async fn enter(&self, deadline: &Deadline) -> Result<Place, Refused> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let Some(_queued) = self.queue() else {
            return Err(self.busy(format!(
                "{}: all {} are in use and {} requests wait already",
                self.name, self.size, self.queue_max
            )));
        };
        let since = Instant::now();
        let place = tokio::select! {
            biased;
            place = self.places.clone().acquire_owned() => Ok(place),
            why = deadline.wait_until(since + self.timeout) => Err(why),
        };
        METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
        match place {
            Ok(place) => Ok(place.expect("the semaphore is never closed")),
            Err(Some(why)) => Err(Refused::Ended(why)),
            Err(None) => Err(self.busy(format!(
                "{}: none of {} came free within {} ms",
                self.name,
                self.size,
                self.timeout.as_millis()
            ))),
        }
    }

    /// A place in the queue, if there is one.
    fn queue(&self) -> Option<Queued<'_>> {
        let mut queued = self.queued.load(Relaxed);
        while queued < self.queue_max {
            let taken = (self.queued).compare_exchange_weak(queued, queued + 1, Relaxed, Relaxed);
            match taken {
                Ok(_) => {
                    return Some(Queued {
                        queued: &self.queued,
                        _gauge: Held::new(&self.gauge),
                    });
                }
                Err(now) => queued = now,
            }
        }
        None
    }

    fn busy(&self, sentence: String) -> Refused {
        METRICS.refused.with_label_values(&[&self.name]).inc();
        Refused::Busy(sentence)
    }
}

/// One who waits, until dropped.
struct Queued<'a> {
    queued: &'a AtomicUsize,
    _gauge: Held,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.queued.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn gate(name: &str, queue_max: usize) -> Gate {
        Gate::new(name, 1, queue_max, LONG)
    }

    fn deadline() -> Deadline {
        Deadline::new(Instant::now() + LONG)
    }

    #[tokio::test]
    async fn gates_of_one_name_have_queues_of_their_own() {
        let (one, other) = (gate("test: of one name", 1), gate("test: of one name", 1));
        let deadline = deadline();
        let (in_one, in_other) = (
            one.enter(&deadline).await.expect("it is free"),
            other.enter(&deadline).await.expect("it is free"),
        );
        let mut waits_at_one = Box::pin(one.enter(&deadline));
        assert!((&mut waits_at_one).now_or_never().is_none());
        let mut waits_at_other = Box::pin(other.enter(&deadline));
        assert!((&mut waits_at_other).now_or_never().is_none());
        assert_eq!(one.gauge.get(), 2);
        drop((in_one, in_other));
        drop(waits_at_one.await.expect("it came free"));
        drop(waits_at_other.await.expect("it came free"));
        assert_eq!(one.gauge.get(), 0);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_one_who_gives_up_makes_room() {
        let gate = gate("test: full", 1);
        let deadline = deadline();
        let _inside = gate.enter(&deadline).await.expect("it is free");
        let mut waits = Box::pin(gate.enter(&deadline));
        assert!((&mut waits).now_or_never().is_none());
        let refused = gate.enter(&deadline).await.expect_err("the queue is full");
        assert!(
            refused.to_string().contains("1 requests wait already"),
            "{refused}"
        );
        drop(waits);
        let mut waits = Box::pin(gate.enter(&deadline));
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(gate.gauge.get(), 1);
    }

    #[tokio::test]
    async fn without_a_queue_nobody_waits() {
        let gate = gate("test: none", 0);
        let deadline = deadline();
        let _inside = gate.enter(&deadline).await.expect("it is free");
        gate.enter(&deadline).await.expect_err("nobody may wait");
    }
}
