//! Amphi: a server for sandboxed web views, sync and async, compiled to WebAssembly components.
//!
//! The library exists for the binary, the tests and the benchmarks; it makes no promise of stability.
//! `request` tells the life of a request and is the place to start reading; ARCHITECTURE.md has the map.

use tikv_jemallocator::Jemalloc;

// What a loop allocates, a worker often frees: measured to be a good deal cheaper than with the system's allocator.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

pub mod app;
pub mod budget;
pub mod cli;
pub mod config;
pub mod contract;
pub mod database;
#[doc(hidden)]
pub mod fuzz;
pub mod guest;
pub mod http;
pub mod request;
pub mod scope;
pub mod server;
pub mod telemetry;
pub mod threads;
pub mod view;
