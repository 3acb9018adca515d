//! Async guests: each call is a future on the event loop. A guest that computes for long is preempted by epoch (R5).
//!
//! Each call in flight has a store of its own. Dropping the store cancels everything that the guest has in flight
//! (R15). The host can preempt a guest in favour of another one only because the two have different stores.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::component::Accessor;
use wasmtime::{Store, UpdateDeadline};

use super::engine::Engines;
use super::failure::explain;
use super::instance_pool::{Instance, InstancePool};
use super::limits::{bounded, in_time, limited, metered};
use super::reply::{GuestResult, Producer, in_stream_time, produced, reply};
use crate::config::Reuse;
use crate::contract::types;
use crate::guest::bindings::{AsyncViews, AsyncViewsPre};
use crate::guest::cpu::CpuTime;
use crate::guest::store::{Guest, Work};
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::view::Mode;

thread_local! {
    /// A semaphore for each loop, with one permit. Of the guests that the loop has preempted, only the one with the
    /// permit goes on. They get the permit in the order of their preemption.
    static PREEMPTED: Arc<Semaphore> = Arc::new(Semaphore::new(1));
    /// One reference, and another one for each preempted guest of this loop that computes.
    static COMPUTING: Arc<()> = Arc::default();
}

/// A guest that has used less CPU time may have been preempted only because it began just before the end of a slice.
const COMPUTES: Duration = Duration::from_millis(2);

/// Whether a guest that computes waits to go on, on the loop of this thread.
pub fn is_computing() -> bool {
    COMPUTING.with(|computing| Arc::strong_count(computing) > 1)
}

/// A component with async views, ready to be called. Its instances may be reused.
pub struct AsyncComponent {
    views: AsyncViewsPre<Guest>,
    pool: InstancePool<Exports>,
}

/// The exports of an instance.
struct Exports {
    views: AsyncViews,
    /// Number of tasks, calls and streams in the store's table while the instance is idle.
    idle: usize,
}

impl AsyncComponent {
    /// `reuse` has the limits on the instances that are kept for further requests. None: each call has a fresh
    /// instance.
    pub fn new(
        engines: &Engines,
        views: AsyncViewsPre<Guest>,
        reuse: Option<Reuse>,
    ) -> Arc<AsyncComponent> {
        let pool = InstancePool::new(reuse, &engines.async_kept, METRICS.async_kept.clone());
        Arc::new(AsyncComponent { views, pool })
    }

    /// Runs a view, until the request's deadline at most. `guest` makes the store data if a fresh instance is needed.
    ///
    /// # Errors
    /// A failure that explains the trap, the limit that was reached, or why the request has ended.
    pub async fn call(
        self: &Arc<Self>,
        work: Work,
        guest: impl FnOnce(Work) -> Guest,
        request: types::Request,
    ) -> Result<GuestResult, Failure> {
        let (scope, cpu) = (Arc::clone(&work.scope), Arc::clone(&work.cpu));
        let _held = GaugeGuard::new(&METRICS.async_instances);
        let handled = pin!(async {
            let view = Arc::clone(&work.view);
            let mut instance = match self.pool.take(work) {
                Ok(kept) => kept,
                Err(work) => {
                    let store = limited(self.views.engine(), guest(work));
                    self.fresh(store).await?
                }
            };
            let Instance { store, exports, .. } = &mut instance;
            store.set_epoch_deadline(1);
            let handle = async |accessor: &_| {
                let answer = exports
                    .views
                    .call_handle(accessor, view.id, request)
                    .await?;
                wasmtime::Result::Ok((answer, runs_nothing(accessor).await))
            };
            let done = store.run_concurrent(handle).await.flatten();
            let (answer, done) = done.map_err(|error| explain(&error, store.data()))?;
            // An instance with an unfinished call is not clean: the call would end during another request.
            let clean = done && store.concurrent_state_table_size() == exports.idle;
            let give_back = |instance| self.pool.give_back(instance, clean);
            Ok(reply(bounded(answer), instance, give_back, |instance| {
                let this = Arc::clone(self);
                let run = |work| this.produce(work, instance);
                Producer::call(Mode::Async, run).of_kind(&view.kind)
            }))
        });
        in_time(&scope, &cpu, handled).await
    }

    /// Has the instance produce the body of its response, or keep its conversation.
    async fn produce(
        self: Arc<Self>,
        work: Work,
        mut instance: Instance<Exports>,
    ) -> Result<(), Failure> {
        let (scope, cpu) = (Arc::clone(&work.scope), Arc::clone(&work.cpu));
        let _held = GaugeGuard::new(&METRICS.async_instances);
        let producing = pin!(async {
            let Instance { store, exports, .. } = &mut instance;
            store.data_mut().begin(work);
            store.set_epoch_deadline(1);
            let produce = async |accessor: &_| {
                let produced = exports.views.call_produce(accessor).await?;
                wasmtime::Result::Ok((produced, runs_nothing(accessor).await))
            };
            let done = store.run_concurrent(produce).await.flatten();
            let (answer, done) = done.map_err(|error| explain(&error, store.data()))?;
            let clean = done && store.concurrent_state_table_size() == exports.idle;
            self.pool.give_back(instance, clean);
            produced(&scope, bounded(answer))
        });
        in_stream_time(&scope, metered(&cpu, producing)).await
    }

    /// Asks the component for its views.
    ///
    /// # Errors
    /// As [`AsyncComponent::call`].
    pub async fn describe(&self, guest: Guest) -> Result<Vec<types::ViewInfo>, Failure> {
        let Work { scope, cpu, .. } = guest.work();
        let (scope, cpu) = (Arc::clone(scope), Arc::clone(cpu));
        let described = pin!(async {
            let Instance {
                mut store, exports, ..
            } = self.fresh(limited(self.views.engine(), guest)).await?;
            let described = exports.views.call_describe(&mut store).await;
            described.map_err(|error| explain(&error, store.data()))
        });
        in_time(&scope, &cpu, described).await
    }

    /// Drops the kept instances that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// A fresh instance in `store`, which has its limits ([`limited`]).
    async fn fresh(&self, mut store: Store<Guest>) -> Result<Instance<Exports>, Failure> {
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| preempt(store.data()));
        match self.views.instantiate_async(&mut store).await {
            Ok(views) => {
                let idle = store.concurrent_state_table_size();
                Ok(Instance::fresh(store, Exports { views, idle }))
            }
            Err(error) => Err(explain(&error, store.data())),
        }
    }
}

/// Ends a guest that has used up its CPU time, or makes way for what else its loop has to do.
pub(super) fn preempt(guest: &Guest) -> wasmtime::Result<UpdateDeadline> {
    let work = guest.work();
    work.check_cpu()?;
    let (turns, cpu) = (PREEMPTED.with(Arc::clone), Arc::clone(&work.cpu));
    Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn(turns, cpu))))
}

/// Waits until a preempted guest may go on. The guests that its loop preempted earlier go first. Then the loop polls
/// its sockets and runs the tasks that are ready. So a guest that has not been preempted yet waits for one slice of one
/// preempted guest, however many guests compute on its loop (R5).
async fn turn(turns: Arc<Semaphore>, cpu: Arc<CpuTime>) {
    let _wants = cpu.wants_turn();
    let _computes = (cpu.used() >= COMPUTES).then(|| COMPUTING.with(Arc::clone));
    let _turn = turns.acquire().await;
    // tokio polls the sockets of the loop when a task yields this way.
    tokio::task::yield_now().await;
}

/// Whether the guest has no tasks left after its answer. If it has some, they end when the store is dropped.
async fn runs_nothing(accessor: &Accessor<Guest>) -> bool {
    poll_fn(|context| Poll::Ready(accessor.poll_no_interesting_tasks(context).is_ready())).await
}
