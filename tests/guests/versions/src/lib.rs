//! Views that answer with a version. The tests copy this crate, edit the version, and look when the new one is served.

use amphi_sdk::prelude::*;

const VERSION: &str = "1";

#[view(get, "/sync")]
fn version() -> &'static str {
    VERSION
}

#[view(get, "/async")]
async fn version_async() -> &'static str {
    VERSION
}

#[view(get, "/slow")]
async fn slow(cx: &Context) -> &'static str {
    cx.sleep(Duration::from_secs(10)).await;
    VERSION
}

#[view(get, "/setting")]
fn setting(cx: &Context) -> String {
    cx.config("word").unwrap_or_default()
}

views![version, version_async, slow, setting];
