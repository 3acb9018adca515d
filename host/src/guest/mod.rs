//! Guests: how they are run, and what they can call.

pub mod bindings;
pub mod capability;
pub mod cpu;
pub mod run;
pub mod stop;
pub mod store;
