//! The async views.

use amphi_sdk::prelude::*;

use crate::deeds::{self, headers, publish};

/// Asks the host for `what`, `times` times, in pieces of `bytes` bytes: see `deeds::ask`.
#[view(post, "/async/ask/{what}/{times}/{bytes}", atomic = false)]
pub async fn ask(
    cx: &Context,
    Path((what, times, bytes)): Path<(String, usize, usize)>,
) -> Result<Response> {
    let values = (
        |name: &str| cx.get(name),
        |name: &str, value: &str| cx.set(name, value),
        |name: &str| cx.config(name),
        |topic: &str, payload: &[u8]| cx.publish_bytes(topic, payload),
    );
    deeds::ask(values, &what, times, bytes)
}

/// Publishes up to `times` events of `bytes` bytes within its transaction, then waits. Answers with how many it could
/// publish, and with the error that stopped it, if one did.
#[view(post, "/async/hold/{times}/{bytes}/{ms}", atomic)]
pub async fn hold(
    cx: &Context,
    Path((times, bytes, ms)): Path<(usize, usize, u64)>,
) -> Result<String> {
    let set = |value: &str| cx.set("value", value);
    let got = publish(
        set,
        |payload| cx.publish_bytes("greed.held", payload),
        times,
        bytes,
    )?;
    cx.sleep(Duration::from_millis(ms)).await;
    Ok(got)
}

/// Sends `times` requests with headers of `bytes` bytes, all at the same time. Answers with the result of the last one.
#[view(get, "/async/fetch/{times}/{bytes}")]
pub async fn fetch(cx: &Context, Path((times, bytes)): Path<(usize, usize)>) -> String {
    let sent = (0..times).map(async |_| {
        let request = headers(bytes, cx.http().get("/nowhere"), |request, name, value| {
            request.header(name, value)
        });
        deeds::told(
            request
                .send()
                .await
                .map(|response| response.status.as_u16()),
        )
    });
    join_all(sent).await.pop().unwrap_or_default()
}

/// Sleeps `times` times, all at the same time.
#[view(get, "/async/sleep/{times}/{ms}")]
pub async fn sleep(cx: &Context, Path((times, ms)): Path<(usize, u64)>) -> String {
    join_all((0..times).map(async |_| cx.sleep(Duration::from_millis(ms)).await)).await;
    format!("slept {times} times")
}

#[subscriber("greed.*")]
pub async fn heard(event: Event) -> Result<()> {
    deeds::heard(&event.payload)
}
