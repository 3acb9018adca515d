//! The examples of the README, of the SDK's pages and of the SDK's documentation, copied by `build.rs`. Each example is
//! in a module of its own, and its paths begin with the module's name.
#![allow(
    dead_code,
    private_interfaces,
    unused_imports,
    reason = "they are examples"
)]

use amphi_sdk::prelude::*;

/// Signs a user in, for examples that need a signed-in user.
#[view(get, "/sign-in")]
fn sign_in(session: Session) -> Result<()> {
    session.set("user", "ann")
}

/// The view that the examples of outbound requests call.
#[view(get, "/slow/{n}")]
async fn slow(Path(n): Path<u32>) -> String {
    n.to_string()
}

#[view(get, "/big")]
async fn big() -> &'static str {
    "a long text"
}

/// The view that the examples of uploads call.
#[view(any, "/archive")]
async fn archive(Body(body): Body) -> (StatusCode, Vec<u8>) {
    (StatusCode::ACCEPTED, body)
}

#[view(get, "/fragments/{name}")]
fn fragment(Path(name): Path<String>) -> String {
    name
}

/// Shows the context value `member`, which the middleware of some examples sets.
#[view(get, "/member")]
fn member(cx: &Context) -> String {
    cx.get("member").unwrap_or_default()
}

include!(concat!(env!("OUT_DIR"), "/examples.rs"));
