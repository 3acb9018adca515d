//! The real server, started as its users start it and spoken to over HTTP.
//!
//! One file per subject. Tests that hold for both modes of views are written once, with [`both_modes!`]; names
//! that begin with `r` and a number are about a rule of the design.

#[macro_use]
mod harness;

mod bodies;
mod configuration;
mod context;
mod deploy;
mod directories;
mod examples;
mod failures;
mod isolation;
mod outbound;
mod protocol;
mod rules;
mod static_files;
mod swap;
mod transactions;
