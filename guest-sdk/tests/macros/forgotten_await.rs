//! A future that nobody awaits causes a warning. This test turns the warning into an error.
#![deny(unused_must_use)]
use amphi_sdk::prelude::*;

#[view(post, "/execute")]
async fn execute(cx: &Context) {
    cx.db().execute("delete from a", ());
}

#[view(post, "/send")]
async fn send(cx: &Context) {
    cx.http().get("/a");
    cx.http().get("/a").send();
}

#[view(post, "/sleep")]
async fn sleep(cx: &Context) {
    cx.sleep(Duration::from_millis(1));
}

#[view(post, "/atomic")]
async fn atomic(cx: &Context) {
    cx.atomic(async |tx| tx.execute("delete from a", ()).await);
}

fn main() {}
