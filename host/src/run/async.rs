//! Async guests: a future on the loop, preempted by epoch (R5).
//!
//! Each request has a store of its own: dropping it is what cancels everything the guest has in flight (R15),
//! and only between stores can one guest be preempted for another.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use wasmtime::{Engine, Store, UpdateDeadline};

use super::{Answer, CpuTime, Stop, explain};
use crate::bindings::{AsyncViewsPre, types};
use crate::capability::Guest;
use crate::error::Failure;
use crate::metrics::{Held, METRICS};
use crate::view::Mode;

/// Runs a view in a fresh instance, no longer than its request may.
///
/// # Errors
/// A trap or a limit, explained.
pub async fn call(
    engine: &Engine,
    views: &AsyncViewsPre<Guest>,
    guest: Guest,
    request: types::Request,
) -> Result<Answer, Failure> {
    let view = guest.view.id;
    run(engine, guest, async |store| {
        let views = views.instantiate_async(&mut *store).await?;
        let handle = async |accessor: &_| views.call_handle(accessor, view, request).await;
        store.run_concurrent(handle).await?
    })
    .await
}

/// Counts the CPU time of this thread while it works for the guest, and not while the guest waits.
async fn metered<T>(cpu: &CpuTime, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _counting = cpu.count();
        work.as_mut().poll(context)
    })
    .await
}

/// Asks a component for its views.
///
/// # Errors
/// As [`call`].
pub async fn describe(
    engine: &Engine,
    views: &AsyncViewsPre<Guest>,
    guest: Guest,
) -> Result<Vec<types::ViewInfo>, Failure> {
    run(engine, guest, async |store| {
        let views = views.instantiate_async(&mut *store).await?;
        views.call_describe(store).await
    })
    .await
}

/// Works with a fresh store, under all its limits.
async fn run<T>(
    engine: &Engine,
    guest: Guest,
    work: impl AsyncFnOnce(&mut Store<Guest>) -> wasmtime::Result<T>,
) -> Result<T, Failure> {
    let (scope, cpu) = (Arc::clone(&guest.scope), Arc::clone(&guest.cpu));
    let mut store = store(engine, guest);
    let _held = Held::new(&METRICS.instances.with_label_values(&[Mode::Async.as_str()]));
    // Outside the store: a time limit inside would wait for the guest to yield.
    match scope.deadline.bound(metered(&cpu, work(&mut store))).await {
        Ok(done) => done.map_err(|error| explain(&error, store.data())),
        Err(why) => Err((&Stop::from(why)).into()),
    }
}

fn store(engine: &Engine, guest: Guest) -> Store<Guest> {
    let budget = guest.view.cpu;
    let cpu = Arc::clone(&guest.cpu);
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |_| {
        if cpu.used() >= budget {
            return Err(Stop::Cpu(budget.as_millis()).into());
        }
        // tokio's own yield lets the loop look at its sockets before the guest goes on.
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(tokio::task::yield_now()),
        ))
    });
    store
}
