//! What the SDK promises to views, tried natively.

mod body;
mod chain;
mod database;
mod extract;
mod http;
mod response;
mod session;
mod transaction;
