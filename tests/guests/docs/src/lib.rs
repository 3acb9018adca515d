//! The examples of the README, of the SDK's pages and of its documentation, taken from there by `build.rs`: each in a
//! module of its own, its paths below the module's name.
#![allow(
    dead_code,
    private_interfaces,
    unused_imports,
    reason = "they are examples"
)]

use amphi_sdk::prelude::*;

/// Signs in, for examples that ask for the user.
#[view(get, "/sign-in")]
fn sign_in(session: Session) -> Result<()> {
    session.set("user", "ann")
}

/// Requested by examples of outbound requests.
#[view(get, "/slow/{n}")]
async fn slow(Path(n): Path<u32>) -> String {
    n.to_string()
}

#[view(get, "/fragments/{name}")]
fn fragment(Path(name): Path<String>) -> String {
    name
}

/// Shows the context value that the middleware of examples sets.
#[view(get, "/member")]
fn member(cx: &Context) -> String {
    cx.get("member").unwrap_or_default()
}

include!(concat!(env!("OUT_DIR"), "/examples.rs"));
