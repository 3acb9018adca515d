//! The lock and the condition variable of [`handoff`](crate::threads::handoff), in a file of their own so that a model
//! checker can replace them.

pub use parking_lot::{Condvar, Mutex};
