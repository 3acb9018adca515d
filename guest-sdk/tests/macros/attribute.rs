//! Mistakes in the arguments of `#[view(…)]`.
use amphi_sdk::prelude::*;

#[view]
fn nothing() {}

#[view("/path")]
fn no_method() {}

#[view(fetch, "/path")]
fn no_such_method() {}

#[view(get)]
fn no_path() {}

#[view(get, path)]
fn unquoted_path() {}

#[view(get, "entries")]
fn no_slash() {}

#[view(get, "/entries/{id")]
fn open_brace() {}

#[view(get, "/entries/{id}/{id}")]
fn twice() {}

#[view(get, "/entries?page=1")]
fn query() {}

#[view(get, "/path", atomically)]
fn no_such_option() {}

#[view(get, "/path", atomic, atomic = false)]
fn said_twice() {}

#[view(get, "/path", cpu_ms = 0)]
fn no_time() {}

#[view(post, "/path", body = "streams")]
fn no_such_body() {}

#[view(post, "/path", body = stream)]
fn unquoted_body() {}

#[view(post, "/path", body)]
fn no_body() {}

#[middleware(body = "stream")]
fn body_of_middleware(request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[subscriber("orders.*", body = "stream")]
fn body_of_an_event(_: Event) {}

fn main() {}
