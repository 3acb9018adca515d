//! Running guests: engines, instances, limits, preemption and failures.

mod r#async;
pub mod backtrace;
mod engine;
mod failure;
mod instance_pool;
mod limits;
mod reply;
mod sync;
mod wasi_http;

pub use r#async::{AsyncComponent, is_computing};
pub use engine::{Engines, PoolSizes};
pub use reply::{GuestResult, MayStream, Producer, Reply, ReplyBody, Run};
pub use sync::SyncComponent;
pub use wasi_http::{Handler, Incoming, IncomingHandler, after_answer};
