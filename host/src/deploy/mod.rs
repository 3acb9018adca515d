//! Versions of an app on one host: unpacked artifacts, and which of them is active.

mod state;

pub use state::{Active, Incoming, State, Version};

#[cfg(test)]
mod tests;
