//! Limits on what an instance can take from the host, and on the texts that it returns.

use wasmtime::Store;

use crate::contract::types;
use crate::guest::store::Guest;
use crate::telemetry::error::cut;

/// What a guest answers to a request: its response, or the error that it returned.
pub type GuestResult = Result<types::Response, types::Error>;

/// The most handles that an instance can have: to resources of its components, and, in an async instance, to tasks,
/// calls in flight and streams.
pub(super) const HANDLES_MAX: usize = 10_000;
/// The most bytes of each text of an error that a view returns.
const ERROR_TEXT_MAX: usize = 16 << 10;

/// Limits the guest's memory, the bytes that it can pass in one call (hostcall fuel), and its handles. The host copies
/// the bytes, and drops the handles with the store. No epoch interrupts this work of the host, so it has to be bounded
/// (R5).
pub(super) fn limit(store: &mut Store<Guest>) {
    store.limiter(|guest| &mut guest.memory);
    let call_max = store.data().grants.limits.handed_over_max();
    store.set_hostcall_fuel(usize::try_from(call_max).unwrap_or(usize::MAX));
    store.set_max_component_handles(HANDLES_MAX);
    if let Some(table) = store.concurrent_resource_table() {
        table.set_max_capacity(HANDLES_MAX);
    }
}

/// Cuts the texts of an error that the guest returned.
pub(super) fn bounded(answer: GuestResult) -> GuestResult {
    answer.map_err(|error| types::Error {
        message: cut(error.message, ERROR_TEXT_MAX),
        detail: error.detail.map(|detail| cut(detail, ERROR_TEXT_MAX)),
        ..error
    })
}
