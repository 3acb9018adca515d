//! The harness and the adversary, as a library for the integration tests and for the adversary's own binary.

#[macro_use]
#[path = "../integration/harness/mod.rs"]
pub mod harness;

#[path = "../adversary/mod.rs"]
pub mod adversary;
