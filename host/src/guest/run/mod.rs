//! Running guests: engines, instances, limits, preemption and failures.

mod r#async;
pub mod backtrace;
mod engine;
mod failure;
mod instance_pool;
mod limits;
mod sync;

pub use r#async::AsyncComponent;
pub use engine::{Engines, PoolSizes};
pub use limits::GuestResult;
pub use sync::SyncComponent;
