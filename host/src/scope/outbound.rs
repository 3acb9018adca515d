//! The outbound requests that one request has in flight: each has a permit, of which there are `outbound_max`.
//!
//! A guest that has a body of an outbound request open keeps its permit until it has read the body, or drops it. So a
//! guest could have all permits itself and wait for another one until its time limit. The host cannot see what a guest
//! is about to do, but it sees the calls on open bodies: while there are none, no permit comes free.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// How long a request waits for a permit while all permits belong to open bodies that nobody reads or writes.
const UNUSED: Duration = Duration::from_millis(if cfg!(test) { 40 } else { 1_000 });

/// The permits of one request.
pub struct Outbound {
    max: usize,
    permits: Arc<Semaphore>,
    /// Permits that belong to open bodies.
    open: AtomicUsize,
    /// Calls on open bodies that are in flight, and calls that have begun so far.
    calls: AtomicUsize,
    begun: AtomicUsize,
}

impl Outbound {
    pub(super) fn new(max: usize) -> Arc<Outbound> {
        Arc::new(Outbound {
            max,
            permits: Arc::new(Semaphore::new(max)),
            open: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
        })
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// A sentence: all permits belong to bodies that nobody reads or writes.
    pub async fn permit(self: &Arc<Self>) -> Result<OutboundPermit, String> {
        let mut permit = std::pin::pin!(Arc::clone(&self.permits).acquire_owned());
        loop {
            let begun = self.begun.load(SeqCst);
            if let Ok(permit) = tokio::time::timeout(UNUSED, permit.as_mut()).await {
                return Ok(OutboundPermit {
                    of: Arc::clone(self),
                    is_open: false,
                    _permit: permit.expect("the semaphore is never closed"),
                    _counted: GaugeGuard::new(&METRICS.outbound),
                });
            }
            let all_open = self.open.load(SeqCst) == self.max;
            let unused = self.calls.load(SeqCst) == 0 && self.begun.load(SeqCst) == begun;
            if all_open && unused {
                return Err(format!(
                    "this request has the bodies of {} outbound requests open, as many as `outbound_max` of `[limits]` allows, and reads or writes none of them: read them to the end, finish them or drop them before the next request",
                    self.max
                ));
            }
        }
    }
}

/// The permit of an outbound request, until dropped. The metrics count the request as in flight.
pub struct OutboundPermit {
    of: Arc<Outbound>,
    is_open: bool,
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

impl OutboundPermit {
    /// Notes that the permit belongs to a body from now on: the guest decides when it is given back.
    pub fn opened(&mut self) {
        if !std::mem::replace(&mut self.is_open, true) {
            self.of.begun.fetch_add(1, SeqCst);
            self.of.open.fetch_add(1, SeqCst);
        }
    }

    /// Counts a call on the body, until the result is dropped.
    pub fn in_use(&self) -> InUse {
        self.of.begun.fetch_add(1, SeqCst);
        self.of.calls.fetch_add(1, SeqCst);
        InUse(Arc::clone(&self.of))
    }
}

impl Drop for OutboundPermit {
    fn drop(&mut self) {
        if self.is_open {
            self.of.open.fetch_sub(1, SeqCst);
        }
    }
}

/// A call on an open body.
pub struct InUse(Arc<Outbound>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_permit_that_nobody_can_give_back_is_not_waited_for() {
        let outbound = Outbound::new(1);
        let mut first = outbound.permit().await.expect("it is free");
        let later = tokio::time::timeout(UNUSED * 5, outbound.permit()).await;
        assert!(later.is_err(), "a request in flight ends by itself");
        first.opened();
        let refused = outbound.permit().await.err();
        assert!(
            refused.is_some_and(|why| why.contains("`outbound_max`")),
            "nobody reads the body"
        );
        let reading = first.in_use();
        let later = tokio::time::timeout(UNUSED * 5, outbound.permit()).await;
        assert!(later.is_err(), "the body is being read");
        drop(reading);
        let waiting = tokio::spawn({
            let outbound = Arc::clone(&outbound);
            async move { outbound.permit().await.is_ok() }
        });
        for _ in 0..20 {
            tokio::time::sleep(UNUSED / 2).await;
            drop(first.in_use());
        }
        assert!(!waiting.is_finished(), "the body is read again and again");
        drop(first);
        assert!(waiting.await.expect("no panic"), "the permit is free");
    }
}
