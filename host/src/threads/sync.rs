//! The lock and the condition variable of [`handoff`](crate::threads::handoff), in one place so that a model checker
//! can put its own in their stead.

pub use parking_lot::{Condvar, Mutex};
