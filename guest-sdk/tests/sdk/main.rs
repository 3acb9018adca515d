//! What the SDK promises to views, tried natively.

mod body;
mod both;
mod chain;
mod database;
mod extract;
mod forms;
mod grants;
mod http;
mod response;
mod session;
mod transaction;
