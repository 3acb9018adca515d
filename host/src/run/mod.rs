//! Running guests: engines, instances, limits, preemption, and what went wrong.

mod r#async;
pub mod backtrace;
mod cpu;
mod engine;
mod kept;
mod sync;

use std::fmt;

use http::StatusCode;
use wasmtime::component::ResourceTableError;
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::bindings::types;
use crate::capability::Guest;
use crate::deadline::Ended;
use crate::error::{Failure, cut};

use backtrace::{frames, way};

pub use r#async::AsyncComponent;
pub use cpu::CpuTime;
use engine::FRAMES_MAX;
pub use engine::{Engines, Room, TABLE_ELEMENTS_MAX};
pub use sync::SyncComponent;

/// What a guest made of a request: its response, or the error it returned.
pub type Answer = Result<types::Response, types::Error>;

/// Why the host ended a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It used its CPU budget, in milliseconds.
    Cpu(u128),
    /// Its request ended.
    Ended(Ended),
    /// An async guest made this blocking call.
    SynchronousOnlyOperation(String),
}

impl From<Ended> for Stop {
    fn from(why: Ended) -> Stop {
        Stop::Ended(why)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Cpu(ms) => write!(f, "the view used up its CPU time of {ms} ms (`cpu_ms`)"),
            Stop::Ended(Ended::TimedOut) => {
                f.write_str("the view took longer than its time limit (`timeout_ms`)")
            }
            Stop::Ended(Ended::Disconnected) => f.write_str("the client has gone"),
            Stop::Ended(Ended::Shutdown) => f.write_str("the host is shutting down"),
            Stop::Ended(Ended::Failed) => f.write_str("the view has failed"),
            Stop::Ended(Ended::Answered) => f.write_str("the request is answered already"),
            Stop::SynchronousOnlyOperation(call) => write!(
                f,
                "SynchronousOnlyOperation: {call} blocks, so an async view may not call it: {}, make it a sync view, or set `blocking_wasi = true` for the module",
                instead_of(call)
            ),
        }
    }
}

/// What an async view does instead of this blocking call.
fn instead_of(call: &str) -> &'static str {
    match call.starts_with("wasi:io/poll") {
        true => {
            "instead of `std::thread::sleep` write `cx.sleep(…).await` (the capability `timer`)"
        }
        false => {
            "files are for sync views (`std::fs`): keep what it needs in a database, or call a sync view by `cx.subrequest`"
        }
    }
}

impl std::error::Error for Stop {}

impl From<&Stop> for Failure {
    fn from(stop: &Stop) -> Failure {
        match stop {
            Stop::Cpu(_) | Stop::Ended(Ended::TimedOut) => {
                Failure::limit(StatusCode::GATEWAY_TIMEOUT, stop.to_string())
            }
            Stop::Ended(_) => Failure::limit(StatusCode::SERVICE_UNAVAILABLE, stop.to_string()),
            Stop::SynchronousOnlyOperation(_) => Failure::view(stop.to_string()),
        }
    }
}

/// The most handles that an instance can have: of components' own resources, and, in an async one, of tasks, calls in
/// flight and streams.
const HANDLES_MAX: usize = 10_000;
/// The most bytes of each text of an error that a view returns.
const ERROR_TEXT_MAX: usize = 16 << 10;

/// What the guest can hand over in one call, and how much of it the host has to drop with the store: both are work that
/// no epoch interrupts (R5).
fn limit(store: &mut Store<Guest>) {
    store.limiter(|guest| &mut guest.memory);
    let call_max = store.data().grants.limits.handed_over_max();
    store.set_hostcall_fuel(usize::try_from(call_max).unwrap_or(usize::MAX));
    store.set_max_component_handles(HANDLES_MAX);
    if let Some(table) = store.concurrent_resource_table() {
        table.set_max_capacity(HANDLES_MAX);
    }
}

/// An answer whose error is no longer than anybody will read.
fn bounded(answer: Answer) -> Answer {
    answer.map_err(|error| types::Error {
        message: cut(error.message, ERROR_TEXT_MAX),
        detail: error.detail.map(|detail| cut(detail, ERROR_TEXT_MAX)),
        ..error
    })
}

/// What a failed call means, in a sentence (R17).
fn explain(error: &wasmtime::Error, guest: &Guest) -> Failure {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let mut failure = Failure::from(stop);
        // Where in the view's code that was.
        if let (Stop::SynchronousOnlyOperation(_), Some(stack)) =
            (stop, error.downcast_ref::<WasmBacktrace>())
        {
            failure.frames = frames(stack);
        }
        return failure;
    }
    if error
        .downcast_ref::<wasmtime::PoolConcurrencyLimitError>()
        .is_some()
    {
        return Failure::limit(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no room for another instance: {error}"),
        );
    }
    let stack = error.downcast_ref::<WasmBacktrace>();
    let frames = stack.map(frames).unwrap_or_default();
    Failure {
        frames: frames.clone(),
        ..trapped(error, guest, &way(&frames))
    }
}

/// The limit of a host call that the guest was over, if that is why it trapped.
fn over_limit(error: &wasmtime::Error, guest: &Guest) -> Option<String> {
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return Some(format!(
            "the view holds more handles than it may have ({} of the host's, {HANDLES_MAX} in all): drop some before the next",
            crate::capability::HANDLES_MAX
        ));
    }
    let cause = error.root_cause().to_string();
    // wasmtime has no type for these.
    if cause.contains("fuel allocated for hostcalls") {
        return Some(format!(
            "the view handed over more than {} bytes in one call to the host, or in its answer (`call_max_bytes`)",
            guest.grants.limits.handed_over_max()
        ));
    }
    let random = cause.starts_with("requested len ").then(|| {
        format!(
            "the view asked for more than {} random bytes at once",
            crate::capability::RANDOM_BYTES_MAX
        )
    });
    random.or_else(|| {
        cause
            .contains("handle limit exceeded")
            .then(|| format!("the view holds more than {HANDLES_MAX} handles"))
    })
}

/// What a trap means, with the innermost functions in parentheses.
fn trapped(error: &wasmtime::Error, guest: &Guest, frames: &str) -> Failure {
    if let Some(panic) = guest.output.panic() {
        return Failure::view(format!("the view {panic}{frames}"));
    }
    if guest.memory.reached {
        return Failure {
            fault: crate::error::Fault::Limit,
            ..Failure::view(format!(
                "the view wanted more than its {} MB of memory (`memory_mb`)",
                guest.grants.limits.memory_mb
            ))
        };
    }
    if let Some(sentence) = over_limit(error, guest) {
        return Failure {
            fault: crate::error::Fault::Limit,
            ..Failure::view(format!("{sentence}{frames}"))
        };
    }
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return Failure::view(format!(
            "the view ended its own process with code {}{frames}",
            exit.0
        ));
    }
    // Rust guests keep part of their stack in linear memory, and usually run out of that part first.
    let depth = error
        .downcast_ref::<WasmBacktrace>()
        .map_or(0, |backtrace| backtrace.frames().len());
    let what = match error.downcast_ref::<Trap>() {
        Some(Trap::MemoryOutOfBounds) if depth >= FRAMES_MAX => {
            "out of bounds memory access, with its calls nested very deep for its stack (endless recursion?)".to_owned()
        }
        Some(Trap::StackOverflow) => {
            "its calls are nested too deep for its stack (endless recursion?)".to_owned()
        }
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    Failure::view(format!("the view trapped: {what}{frames}"))
}
