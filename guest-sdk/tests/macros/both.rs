//! A function with `#[both]` that forgets `.await`, and a view that names middleware in quotes.
use amphi_sdk::prelude::*;

#[both]
async fn names(cx: &Context) -> Result<Vec<String>> {
    cx.db().query("select name from users", ())
}

#[view(get, "/", middleware = ["rate-limit"])]
fn limited() {}

fn main() {}
