//! Mistakes in middleware, in subscribers, and in the options of views.
use amphi_sdk::prelude::*;

#[middleware]
fn without_next(_: Request) -> Result<Response> {
    "".into_response()
}

#[middleware]
fn other_way_round(next: Next, request: Request) -> Result<Response> {
    next.run(request)
}

#[middleware]
fn without_anything() {}

#[middleware(atomic)]
fn in_no_transaction_of_its_own(request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[middleware]
fn takes_the_body(_: Body, request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[middleware]
fn runs_twice(request: Request, next: Next) -> Result<Response> {
    next.run(request.clone())?;
    next.run(request)
}

#[middleware]
async fn does_not_wait(request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[view(get, "/")]
fn nothing_after(request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[subscriber]
fn no_topic(_: Event) {}

#[subscriber("orders paid")]
fn no_such_topic(_: Event) {}

#[subscriber("*.paid")]
fn star_at_the_front(_: Event) {}

#[view(get, "/", isolation = "chaos")]
fn no_such_isolation() {}

#[view(get, "/", retries = 1000)]
fn too_many_retries() {}

fn main() {}
