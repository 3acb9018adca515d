//! Amphi: a server for sandboxed web views, sync and async, compiled to WebAssembly components.
//!
//! `request` tells the life of a request and is the place to start reading; ARCHITECTURE.md has the map.

mod app;
mod bindings;
mod capability;
pub mod cli;
pub mod config;
mod database;
mod deadline;
mod error;
mod gate;
mod log;
mod metrics;
mod module;
mod request;
mod router;
mod run;
mod scope;
mod server;
mod static_files;
mod transaction;
mod view;
mod workers;
