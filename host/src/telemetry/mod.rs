//! What the host says about itself: failures, log lines, metrics.

pub mod error;
pub mod log;
pub mod metrics;
pub mod report;
pub mod stderr;
