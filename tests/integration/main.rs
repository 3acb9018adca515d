//! The real server, started as its users start it and spoken to over HTTP.
//!
//! One file per subject. Tests that hold for both modes of views are written once, with [`both_modes!`]; names
//! that begin with `r` and a number are about a rule of the design.

#[macro_use]
extern crate amphi_tests;

use amphi_tests::harness;

mod adversary;
mod atomicity;
mod bodies;
mod budget;
mod builtin;
mod configuration;
mod conflicts;
mod context;
mod databases;
mod deploy;
mod directories;
mod disconnects;
mod documentation;
mod edge;
mod effects;
mod examples;
mod failures;
mod host_calls;
mod hostile_sql;
mod interleaved;
mod isolation;
mod levels;
mod middleware;
mod migrations;
mod outbound;
mod ownership;
mod pinned;
mod polls;
mod pooler;
mod postgres;
mod protocol;
mod restart;
mod reuse;
mod rules;
mod static_files;
mod sticky;
mod storm;
mod swap;
mod todo;
mod transactions;
