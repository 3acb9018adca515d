//! HTTP without the app: messages, headers, request bodies, static files, error pages, built-in middleware.

pub mod accept;
pub mod authority;
pub mod body;
pub mod call_depth;
pub mod conditional;
pub mod error_page;
pub mod forwarded;
pub mod message;
pub mod middleware;
pub mod path;
pub mod proxies;
pub mod static_files;
pub mod stream;
pub mod trace_context;
pub mod websocket;
