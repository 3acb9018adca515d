//! Running guests: engines, instances, limits, preemption, and what went wrong.

mod r#async;
pub mod backtrace;
mod cpu;
mod engine;
mod kept;
mod sync;

use std::fmt;

use http::StatusCode;
use wasmtime::{Trap, WasmBacktrace};

use crate::bindings::types;
use crate::capability::Guest;
use crate::deadline::Ended;
use crate::error::Failure;

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
                "SynchronousOnlyOperation: {call} blocks, so an async view may not call it: use the async capability (`timer`, `http-async`, …), make it a sync view, or set `blocking_wasi = true` for the module"
            ),
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

/// What a failed call means, in a sentence (R17).
fn explain(error: &wasmtime::Error, guest: &Guest) -> Failure {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return stop.into();
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
