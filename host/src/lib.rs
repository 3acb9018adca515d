//! Amphi: a server for sandboxed web views, sync and async, compiled to WebAssembly components.
//!
//! The library exists for the binary, the tests and the benchmarks; it makes no promise of stability.
//! `request` tells the life of a request and is the place to start reading; ARCHITECTURE.md has the map.

use tikv_jemallocator::Jemalloc;

// What a loop allocates, a worker often frees: measured to be a good deal cheaper than with the system's allocator.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

pub mod app;
pub mod bindings;
pub mod budget;
pub mod call_depth;
pub mod capability;
pub mod chain;
pub mod cli;
pub mod completion;
pub mod conditional;
pub mod config;
pub mod database;
pub mod deadline;
pub mod error;
pub mod events;
pub mod forwarded;
#[doc(hidden)]
pub mod fuzz;
pub mod gate;
pub mod handoff;
pub mod host;
pub mod log;
pub mod metrics;
pub mod middleware;
pub mod module;
pub mod negotiation;
pub mod proxies;
pub mod report;
pub mod request;
pub mod router;
pub mod run;
pub mod scope;
pub mod server;
pub mod settle;
pub mod static_files;
pub mod sync;
pub mod trace;
pub mod transaction;
pub mod view;
pub mod wakeups;
pub mod workers;
