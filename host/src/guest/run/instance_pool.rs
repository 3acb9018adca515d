//! Instances that are kept for further requests, for modules with `instances = "reuse"` (R16).
//!
//! An instance serves one request at a time. It is kept only when nothing of the request is left in it: no limit was
//! reached, the request has not ended early, and the guest has dropped all handles to host resources. The guest's own
//! memory is kept as it is: that is the meaning of `instances = "reuse"`. After a trap the instance is dropped.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::Store;

use crate::config::Reuse;
use crate::guest::store::{Guest, Work};
use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// An instance in its store.
pub(super) struct Instance<V> {
    pub(super) store: Store<Guest>,
    pub(super) exports: V,
    since: Instant,
    requests: u32,
    /// The permit for a kept instance and its count in the metrics; none while the instance serves a request.
    permit: Option<(OwnedSemaphorePermit, GaugeGuard)>,
}

impl<V> Instance<V> {
    pub(super) fn fresh(store: Store<Guest>, exports: V) -> Instance<V> {
        Instance {
            store,
            exports,
            since: Instant::now(),
            requests: 0,
            permit: None,
        }
    }
}

/// The kept instances of one component.
pub(super) struct InstancePool<V> {
    /// The limits on kept instances; none: each request has a fresh instance.
    reuse: Option<Reuse>,
    /// The instances that were used last are at the end, and are taken first.
    idle: Mutex<Vec<Instance<V>>>,
    /// Permits, one for each kept instance. All modules of a mode share them.
    permits: Arc<Semaphore>,
    gauge: IntGauge,
}

impl<V> InstancePool<V> {
    pub(super) fn new(
        reuse: Option<Reuse>,
        permits: &Arc<Semaphore>,
        gauge: IntGauge,
    ) -> InstancePool<V> {
        InstancePool {
            reuse,
            idle: Mutex::default(),
            permits: Arc::clone(permits),
            gauge,
        }
    }

    /// Takes a kept instance for `work`. Returns `work` if no instance is kept, or if the one that was taken is too
    /// old.
    pub(super) fn take(&self, work: Work) -> Result<Instance<V>, Work> {
        let Some(reuse) = &self.reuse else {
            return Err(work);
        };
        let kept = self.idle.lock().pop();
        match kept {
            Some(mut instance) if instance.since.elapsed() < reuse.age_max => {
                instance.permit = None;
                instance.store.data_mut().begin(work);
                Ok(instance)
            }
            Some(_) => {
                recycled("age");
                Err(work)
            }
            None => Err(work),
        }
    }

    /// Keeps the instance for further requests if it is clean and within the limits; else drops it. `clean`: no task of
    /// the guest runs any more.
    pub(super) fn give_back(&self, mut instance: Instance<V>, clean: bool) {
        let guest = instance.store.data_mut();
        let unclean = !guest.finish() || !clean;
        let Some(reuse) = &self.reuse else { return };
        instance.requests += 1;
        let too_large = guest.memory.size > reuse.memory_max_bytes;
        if unclean {
            recycled("unclean");
        } else if too_large {
            recycled("memory");
        } else if instance.requests >= reuse.requests_max {
            recycled("requests");
        } else if instance.since.elapsed() >= reuse.age_max {
            recycled("age");
        } else if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            instance.permit = Some((permit, GaugeGuard::new(&self.gauge)));
            self.idle.lock().push(instance);
        } else {
            recycled("full");
        }
    }

    /// Drops the instances that are too old.
    pub(super) fn sweep(&self) {
        let Some(reuse) = &self.reuse else { return };
        let old = |instance: &mut Instance<V>| instance.since.elapsed() >= reuse.age_max;
        let mut idle = self.idle.lock();
        let ended: Vec<_> = idle.extract_if(.., old).collect();
        drop(idle);
        for _ in ended {
            recycled("age");
        }
    }
}

fn recycled(why: &str) {
    METRICS.recycled.with_label_values(&[why]).inc();
}
