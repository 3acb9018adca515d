//! Tests of the real server: each starts the server as users do, and speaks HTTP to it.
//!
//! There is one file per subject. Tests for both modes of views are written once, with [`both_modes!`]. A test whose
//! name begins with `r9_` is about rule R9: see `tests/RULES.md`.

#[macro_use]
extern crate amphi_tests;

use amphi_tests::harness;

mod adversary;
mod artifacts;
mod atomicity;
mod bindings;
mod bodies;
mod budget;
mod builtin;
mod channels;
mod chat;
mod configuration;
mod conflicts;
mod conformance;
mod context;
mod conversations;
mod databases;
mod dependencies;
mod deploy;
mod deploying;
mod deploying_attacked;
mod directories;
mod disconnects;
mod documentation;
mod ecosystem;
mod edge;
mod effects;
mod examples;
mod failures;
mod fleet;
mod floors;
mod host_calls;
mod hostile_sql;
mod interleaved;
mod isolation;
mod kills;
mod levels;
mod links;
mod log;
mod middleware;
mod migrations;
mod outbound;
mod outbound_bodies;
mod ownership;
mod pinned;
mod pipelines;
mod polls;
mod pooler;
mod postgres;
mod protocol;
mod python;
mod restart;
mod reuse;
mod rules;
#[macro_use]
mod shadow;
mod shadow_attacked;
mod sockets;
mod sockets_http2;
mod static_files;
mod sticky;
mod storm;
mod streams;
mod subscribers;
mod swap;
mod todo;
mod transactions;
mod wasi_http;
mod wasi_middleware;
