//! Guests: how they run, and what they can import.

pub mod bindings;
pub mod capability;
pub mod cpu;
pub mod held;
pub mod run;
pub mod stop;
pub mod store;
