//! What the host reports about itself: failures, the log, metrics.

pub mod error;
pub mod log;
pub mod metrics;
pub mod recent;
pub mod report;
pub mod stderr;
