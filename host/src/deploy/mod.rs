//! Versions of an app on one host: unpacked artifacts, and which of them are served.

mod record;
mod state;

pub use record::{Active, Candidate, Earlier, Judge, Record, Trial, seconds};
pub use state::{Incoming, State, Version};

#[cfg(test)]
mod tests;
