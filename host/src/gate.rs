//! A bounded number of places, with a bounded queue in front: what limits async instances and connections of
//! every kind. Whoever does not get a place in time is told so; nobody is dropped silently.

use std::fmt;
use std::sync::Arc;
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
    queued: IntGauge,
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
        let queued = METRICS.queued.with_label_values(&[&name]);
        Gate {
            places: Arc::new(Semaphore::new(size)),
            size,
            queue_max,
            timeout,
            queued,
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
        if self.queued.get() >= i64::try_from(self.queue_max).unwrap_or(i64::MAX) {
            return Err(self.busy(format!(
                "{}: all {} are in use and {} requests wait already",
                self.name, self.size, self.queue_max
            )));
        }
        let _queued = Held::new(&self.queued);
        let since = Instant::now();
        let place = deadline
            .bound(tokio::time::timeout(
                self.timeout,
                self.places.clone().acquire_owned(),
            ))
            .await;
        METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
        match place {
            Ok(Ok(place)) => Ok(place.expect("the semaphore is never closed")),
            Ok(Err(_)) => Err(self.busy(format!(
                "{}: none of {} came free within {} ms",
                self.name,
                self.size,
                self.timeout.as_millis()
            ))),
            Err(why) => Err(Refused::Ended(why)),
        }
    }

    fn busy(&self, sentence: String) -> Refused {
        METRICS.refused.with_label_values(&[&self.name]).inc();
        Refused::Busy(sentence)
    }
}
