//! The sync views.

use amphi_sdk::prelude::*;

use crate::deeds::{self, headers, publish};

/// Asks the host for `what`, `times` times, in pieces of `bytes` bytes: see `deeds::ask`.
#[view(post, "/sync/ask/{what}/{times}/{bytes}", atomic = false)]
pub fn ask(
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
#[view(post, "/sync/hold/{times}/{bytes}/{ms}", atomic)]
pub fn hold(cx: &Context, Path((times, bytes, ms)): Path<(usize, usize, u64)>) -> Result<String> {
    let set = |value: &str| cx.set("value", value);
    let got = publish(
        set,
        |payload| cx.publish_bytes("greed.held", payload),
        times,
        bytes,
    )?;
    std::thread::sleep(Duration::from_millis(ms));
    Ok(got)
}

/// Sends `times` requests with headers of `bytes` bytes, one after the other. Answers with the result of the last one.
#[view(get, "/sync/fetch/{times}/{bytes}")]
pub fn fetch(cx: &Context, Path((times, bytes)): Path<(usize, usize)>) -> String {
    let mut last = String::new();
    for _ in 0..times {
        let request = headers(bytes, cx.http().get("/nowhere"), |request, name, value| {
            request.header(name, value)
        });
        last = deeds::told(request.send().map(|response| response.status.as_u16()));
    }
    last
}

#[subscriber("greed.*")]
pub fn heard(event: Event) -> Result<()> {
    deeds::heard(&event.payload)
}
