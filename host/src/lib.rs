//! Amphi: a server for sandboxed web views, sync and async, compiled to WebAssembly components.
//!
//! The library exists for the binary, the tests and the benchmarks; it makes no promise of stability.
//! `request` shows the life of a request and is the place to start reading; ARCHITECTURE.md has the overview.

use tikv_jemallocator::Jemalloc;

// Workers often free memory that a loop has allocated. In measurements, this is much cheaper with jemalloc than with
// the allocator of the system.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

pub mod admin;
pub mod app;
pub mod artifact;
pub mod budget;
pub mod channels;
pub mod cli;
pub mod config;
pub mod contract;
pub mod database;
pub mod deploy;
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
