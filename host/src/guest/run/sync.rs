//! Sync guests: each call is a plain function call on the thread of a sync worker.

use std::sync::Arc;

use wasmtime::UpdateDeadline;

use super::engine::Engines;
use super::failure::explain;
use super::instance_pool::{Instance, InstancePool};
use super::limits::{bounded, limited};
use super::reply::{GuestResult, Producer, reply, returned, stream_ended};
use crate::config::Reuse;
use crate::contract::types;
use crate::guest::bindings::{SyncViews, SyncViewsPre};
use crate::guest::stop::Stop;
use crate::guest::store::{Guest, Work};
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::view::Mode;

/// How many ticks of the epoch pass between two checks of a computing guest's limits: the limits are exact to 5 ms.
pub(super) const TICKS_BETWEEN_LOOKS: u64 = 5;

/// A component with sync views, ready to be called. Its instances may be reused.
pub struct SyncComponent {
    views: SyncViewsPre<Guest>,
    pool: InstancePool<SyncViews>,
}

impl SyncComponent {
    /// `reuse` has the limits on the instances that are kept for further requests. None: each call has a fresh
    /// instance.
    pub fn new(
        engines: &Engines,
        views: SyncViewsPre<Guest>,
        reuse: Option<Reuse>,
    ) -> Arc<SyncComponent> {
        let pool = InstancePool::new(reuse, &engines.sync_kept, METRICS.sync_kept.clone());
        Arc::new(SyncComponent { views, pool })
    }

    /// Runs a view on this thread and blocks the thread, which has to be that of a sync worker. `guest` makes the store
    /// data if a fresh instance is needed.
    ///
    /// # Errors
    /// A failure that explains the trap, the limit that was reached, or why the request has ended.
    pub fn call(
        self: &Arc<Self>,
        work: Work,
        guest: impl FnOnce(Work) -> Guest,
        request: &types::Request,
    ) -> Result<GuestResult, Failure> {
        let (view, cpu) = (work.view.id, Arc::clone(&work.cpu));
        let _counting = cpu.count();
        let _held = GaugeGuard::new(&METRICS.sync_instances);
        let mut instance = match self.pool.take(work) {
            Ok(kept) => kept,
            Err(work) => self.fresh(guest(work))?,
        };
        let Instance { store, exports, .. } = &mut instance;
        store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
        let answer = exports.call_handle(&mut *store, view, request);
        let answer = answer.map_err(|error| explain(&error, store.data()))?;
        let give_back = |instance| self.pool.give_back(instance, true);
        Ok(reply(bounded(answer), instance, give_back, |instance| {
            let this = Arc::clone(self);
            Producer::call(Mode::Sync, async move |work| this.produce(work, instance))
        }))
    }

    /// Has the instance produce the body of its response, and blocks the thread, as [`SyncComponent::call`] does.
    fn produce(&self, work: Work, mut instance: Instance<SyncViews>) -> Result<(), Failure> {
        let (scope, cpu) = (Arc::clone(&work.scope), Arc::clone(&work.cpu));
        let _counting = cpu.count();
        let _held = GaugeGuard::new(&METRICS.sync_instances);
        let Instance { store, exports, .. } = &mut instance;
        store.data_mut().begin(work);
        store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
        let produced = exports.call_produce(&mut *store);
        let produced = match (produced, scope.deadline.ended()) {
            (Ok(produced), _) => produced,
            (Err(_), Some(why)) => return Err(stream_ended(&scope, why)),
            (Err(error), None) => return Err(explain(&error, store.data())),
        };
        self.pool.give_back(instance, true);
        bounded(produced).map_err(|error| returned(&error))
    }

    /// Asks the component for its views.
    ///
    /// # Errors
    /// As [`SyncComponent::call`].
    pub fn describe(&self, guest: Guest) -> Result<Vec<types::ViewInfo>, Failure> {
        let cpu = Arc::clone(&guest.work().cpu);
        let _counting = cpu.count();
        let Instance {
            mut store, exports, ..
        } = self.fresh(guest)?;
        let described = exports.call_describe(&mut store);
        described.map_err(|error| explain(&error, store.data()))
    }

    /// Drops the kept instances that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// A fresh instance, with all its limits set.
    fn fresh(&self, guest: Guest) -> Result<Instance<SyncViews>, Failure> {
        let mut store = limited(self.views.engine(), guest);
        store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
        store.epoch_deadline_callback(|store| look(store.data()));
        match self.views.instantiate(&mut store) {
            Ok(views) => Ok(Instance::fresh(store, views)),
            Err(error) => Err(explain(&error, store.data())),
        }
    }
}

/// As [`look`], for a guest that is a future: what polls it looks after the body that the guest writes.
pub(super) fn look_and_yield(guest: &Guest) -> wasmtime::Result<UpdateDeadline> {
    look(guest)?;
    Ok(UpdateDeadline::Yield(TICKS_BETWEEN_LOOKS))
}

/// Ends a guest that computes on a worker although its request has ended, or its CPU time is used up.
fn look(guest: &Guest) -> wasmtime::Result<UpdateDeadline> {
    let work = guest.work();
    if let Some(why) = work.ended() {
        return Err(Stop::from(why).into());
    }
    work.check_cpu()?;
    Ok(UpdateDeadline::Continue(TICKS_BETWEEN_LOOKS))
}
