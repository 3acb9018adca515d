//! Sync views that use async code, and async views that use blocking code.
use amphi_sdk::prelude::*;

#[view(post, "/sync")]
fn awaits_in_sync(cx: &Context) -> Result<()> {
    cx.db().execute("delete from a", ()).await?;
    Ok(())
}

#[view(post, "/sync/sleep")]
fn sleeps_in_sync(cx: &Context) {
    cx.sleep(Duration::from_millis(1));
}

#[view(post, "/async")]
async fn blocks_in_async(cx: &Context) -> Result<()> {
    let count = cx.db().execute("delete from a", ())?;
    log::info!("{count}");
    Ok(())
}

#[view(post, "/async/for")]
async fn iterates_in_async(cx: &Context) -> Result<()> {
    for row in cx.db().rows::<i64>("select 1", ()).await? {
        drop(row);
    }
    Ok(())
}

#[view(post, "/async/helper")]
async fn calls_a_sync_helper(cx: &Context) -> Result<()> {
    helper(cx)
}

fn helper(cx: &sync::Context) -> Result<()> {
    cx.db().execute("delete from a", ())?;
    Ok(())
}

fn main() {}
