//! Limits on what an instance can take from the host, and on the texts that it returns.

use std::future::poll_fn;
use std::pin::Pin;

use wasmtime::{Engine, Store};

use crate::contract::types;
use crate::guest::cpu::CpuTime;
use crate::guest::stop::Stop;
use crate::guest::store::Guest;
use crate::scope::Scope;
use crate::telemetry::error::{Failure, cut};

/// The most handles that an instance can have: to resources of its components, and, in an async instance, to tasks,
/// calls in flight and streams.
pub(super) const HANDLES_MAX: usize = 10_000;
/// The most bytes of each text of an error that a view returns.
const ERROR_TEXT_MAX: usize = 16 << 10;

/// A store that limits the guest's memory, the bytes that it can pass in one call (hostcall fuel), and its handles. The
/// host copies the bytes, and drops the handles with the store. No epoch interrupts this work of the host, so it has to be
/// bounded (R5).
pub(super) fn limited(engine: &Engine, guest: Guest) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    let call_max = store.data().shared.grants.limits.handed_over_max();
    store.set_hostcall_fuel(usize::try_from(call_max).unwrap_or(usize::MAX));
    store.set_max_component_handles(HANDLES_MAX);
    if let Some(table) = store.concurrent_resource_table() {
        table.set_max_capacity(HANDLES_MAX);
    }
    store
}

/// The answer of a guest. The texts of an error that it returned are cut.
pub(super) fn bounded<T>(answer: Result<T, types::Error>) -> Result<T, types::Error> {
    answer.map_err(|error| types::Error {
        message: cut(error.message, ERROR_TEXT_MAX),
        detail: error.detail.map(|detail| cut(detail, ERROR_TEXT_MAX)),
        ..error
    })
}

/// Polls `work` until the request's deadline at most, and counts the CPU time of each poll. Time between polls does not
/// count.
pub(super) async fn in_time<T>(
    scope: &Scope,
    cpu: &CpuTime,
    work: Pin<&mut impl Future<Output = Result<T, Failure>>>,
) -> Result<T, Failure> {
    within(scope, metered(cpu, work)).await
}

/// Polls `work` until the request's deadline at most.
pub(super) async fn within<T>(
    scope: &Scope,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // The deadline is checked outside of the store: a check inside would have to wait until the guest yields.
    match scope.deadline.bound(work).await {
        Ok(done) => done,
        Err(why) => Err((&Stop::from(why)).into()),
    }
}

/// Counts the CPU time of each poll of `work`.
pub(super) fn metered<T>(
    cpu: &CpuTime,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = T> {
    poll_fn(move |context| {
        let _counting = cpu.count();
        work.as_mut().poll(context)
    })
}
