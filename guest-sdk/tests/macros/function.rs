//! Items that cannot be views: structs, methods, and functions with parameters that views cannot have.
use amphi_sdk::prelude::*;

#[view(get, "/path")]
struct NoFunction;

struct Site;

impl Site {
    #[view(get, "/path")]
    fn method(&self) {}
}

#[view(get, "/path")]
fn generic<T: FromRequest>(_: T) {}

#[view(get, "/path")]
fn hidden_generic(_: impl FromRequest) {}

#[view(get, "/path")]
fn owned_context(_: Context) {}

#[view(get, "/path")]
fn late_context(_: Headers, _: &Context) {}

fn main() {}
