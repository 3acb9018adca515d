//! Threads and waiting: the pool of sync workers, limits on what is in flight, deadlines, wake-ups between threads.

pub mod deadline;
pub mod gate;
pub mod handoff;
pub mod sync;
pub mod wakeups;
pub mod workers;
