//! Parameters that are not extractors or read the body too early, and results that are not responses.
use amphi_sdk::prelude::*;

#[derive(Deserialize)]
struct New {
    name: String,
}

#[view(post, "/path/{id}")]
fn takes_a_number(_: u32) {}

#[view(post, "/path/{id}")]
async fn takes_plain_data(_: New) {}

#[view(post, "/path")]
fn returns_a_number() -> Result<u32> {
    Ok(1)
}

#[view(post, "/path")]
async fn returns_plain_data() -> New {
    New { name: String::new() }
}

#[view(post, "/path")]
fn takes_the_body_early(_: Form<New>, _: Headers) {}

#[view(post, "/path")]
fn takes_the_body_twice(_: Body, _: Json<New>) {}

fn main() {}
