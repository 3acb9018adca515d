//! Turns the error of a failed call of a guest into a [`Failure`] with one sentence (R17).

use http::StatusCode;
use wasmtime::component::ResourceTableError;
use wasmtime::{Trap, WasmBacktrace};

use super::backtrace::{frames, way};
use super::engine::FRAMES_MAX;
use super::limits::HANDLES_MAX;
use crate::guest::stop::Stop;
use crate::guest::store::{self, Guest, RANDOM_BYTES_MAX};
use crate::telemetry::error::{Failure, Fault};

/// The failure that explains the error of a call.
pub(super) fn explain(error: &wasmtime::Error, guest: &Guest) -> Failure {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        let mut failure = Failure::from(stop);
        // The stack says where the view made the blocking call.
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

/// The sentence about the limit, if the guest trapped because it exceeded a limit of host calls. None: the trap has
/// another reason.
fn over_limit(error: &wasmtime::Error, guest: &Guest) -> Option<String> {
    if let Some(why) = guest.holds_too_much() {
        return Some(why.to_owned());
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return Some(format!(
            "the view holds more handles than it may have ({} of the host's, {HANDLES_MAX} in all): drop some before the next",
            store::HANDLES_MAX
        ));
    }
    let cause = error.root_cause().to_string();
    // wasmtime has no error types for these, so their texts are compared.
    if cause.contains("fuel allocated for hostcalls") {
        return Some(format!(
            "the view handed over more than {} bytes in one call to the host, or in its answer (`call_max_bytes`)",
            guest.shared.grants.limits.handed_over_max()
        ));
    }
    if cause.contains("total size of fields exceeds limit") {
        return Some(format!(
            "the component's header fields have more than {} bytes (`headers_max_bytes` of `[limits]`)",
            guest.shared.grants.limits.headers_max_bytes
        ));
    }
    let random = cause.starts_with("requested len ").then(|| {
        format!(
            "the view asked for more than {} random bytes at once",
            RANDOM_BYTES_MAX
        )
    });
    random.or_else(|| {
        cause
            .contains("handle limit exceeded")
            .then(|| format!("the view holds more than {HANDLES_MAX} handles"))
    })
}

/// The failure of a trap. `frames`: the innermost functions in parentheses, or nothing.
fn trapped(error: &wasmtime::Error, guest: &Guest, frames: &str) -> Failure {
    if let Some(panic) = guest.output.panic() {
        return Failure::view(format!("the view {panic}{frames}"));
    }
    if guest.memory.reached {
        return Failure {
            fault: Fault::Limit,
            ..Failure::view(format!(
                "the view wanted more than its {} MB of memory (`memory_mb`)",
                guest.shared.grants.limits.memory_mb
            ))
        };
    }
    if let Some(sentence) = over_limit(error, guest) {
        return Failure {
            fault: Fault::Limit,
            ..Failure::view(format!("{sentence}{frames}"))
        };
    }
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return Failure::view(format!(
            "the view ended its own process with code {}{frames}",
            exit.0
        ));
    }
    // Rust guests keep part of their stack in linear memory, and usually run out of that part first. Then they trap
    // with an access that is out of bounds.
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
