//! The simplest view, as a sync and as an async one.

use amphi_sdk::prelude::*;

#[view(get, "/sync")]
fn hello_sync(_: &Context) -> &'static str {
    "Hello, World!"
}

#[view(get, "/async")]
async fn hello_async(_: &Context) -> &'static str {
    "Hello, World!"
}

views![hello_sync, hello_async];
