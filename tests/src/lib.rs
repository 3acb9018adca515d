//! What the tests of the real server and the adversary share: the harness, and the adversary itself.

#[macro_use]
#[path = "../integration/harness/mod.rs"]
pub mod harness;

#[path = "../adversary/mod.rs"]
pub mod adversary;
