//! Tests of what the SDK promises to views. The views run natively, without WebAssembly.

mod body;
mod both;
mod chain;
mod conversation;
mod database;
mod extract;
mod forms;
mod grants;
mod http;
mod response;
mod session;
mod socket;
mod stream;
mod transaction;
