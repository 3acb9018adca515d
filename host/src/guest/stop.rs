//! Why the host ends a guest that runs.

use std::fmt;

use http::StatusCode;

use crate::telemetry::error::Failure;
use crate::threads::deadline::Ended;

/// Why the host ended a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest used up its CPU budget, in milliseconds.
    Cpu(u128),
    /// The guest used up its CPU budget while it produced a body, in milliseconds.
    StreamCpu(u128),
    /// The guest used up its CPU budget, in milliseconds, before its conversation went on.
    ConversationCpu(u128),
    /// The request ended.
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
            Stop::StreamCpu(ms) => write!(
                f,
                "the view used up its CPU time of {ms} ms: it produced the body of its response (`stream_cpu_ms`), or went on after it (`cpu_ms`)"
            ),
            Stop::ConversationCpu(ms) => write!(
                f,
                "the view used up its CPU time of {ms} ms (`cpu_ms`), which counts anew with each event of its conversation and after `timeout_ms`"
            ),
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

/// The advice in the error: what an async view uses instead of this blocking call.
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
            Stop::Cpu(_)
            | Stop::StreamCpu(_)
            | Stop::ConversationCpu(_)
            | Stop::Ended(Ended::TimedOut) => {
                Failure::limit(StatusCode::GATEWAY_TIMEOUT, stop.to_string())
            }
            Stop::Ended(_) => Failure::limit(StatusCode::SERVICE_UNAVAILABLE, stop.to_string()),
            Stop::SynchronousOnlyOperation(_) => Failure::view(stop.to_string()),
        }
    }
}
