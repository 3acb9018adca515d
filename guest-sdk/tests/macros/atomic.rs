//! Calls of `atomic` that do not compile: each passes the wrong kind of closure.
use amphi_sdk::prelude::*;

#[view(post, "/move")]
async fn an_async_block(cx: &Context) -> Result<()> {
    cx.atomic(|tx| async move { tx.execute("delete from a", ()).await }).await?;
    Ok(())
}

#[view(post, "/plain")]
async fn a_plain_closure(cx: &Context) -> Result<()> {
    cx.atomic(|tx| tx.execute("delete from a", ())).await?;
    Ok(())
}

#[view(post, "/sync")]
fn an_async_closure_in_sync(cx: &Context) -> Result<()> {
    cx.atomic(async |tx| tx.execute("delete from a", ()))?;
    Ok(())
}

fn main() {}
