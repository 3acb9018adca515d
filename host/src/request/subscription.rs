//! Event streams and polls: answers from what is sent to a group, without any guest (R18).

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::budget::Account;
use crate::channels::{Hub, Next, Payload, Subscription};
use crate::contract::types::{self, SubscriptionForm};
use crate::http::message::ResponseBody;
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// How often an event stream without messages sends a comment, so that nobody on the way takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a browser waits before it comes back.
const RETRY: &str = "retry: 2000\n";
/// The longest wait of a poll.
const POLL_MAX: Duration = Duration::from_secs(60);
/// The bytes of messages after which no further one is added to the answer to a poll.
const POLL_BYTES: usize = 256 << 10;
/// The header of an answer to a poll that says where the next one goes on.
const CURSOR: HeaderName = HeaderName::from_static("last-event-id");

/// Answers with what is sent to a group.
///
/// # Errors
/// When there are too many subscribers.
pub(super) async fn answer(
    hub: &Arc<Hub>,
    response: Response<types::Subscription>,
    account: &Arc<Account>,
    stop: &CancellationToken,
) -> Result<Response<ResponseBody>, Failure> {
    let (mut parts, wanted) = response.into_parts();
    // A text that is no cursor is one that the history does not know.
    let after = wanted.after.as_deref();
    let known = after.map(str::parse);
    let lost = matches!(known, Some(Err(_)));
    let subscription = hub.subscribe(&wanted.group, known.and_then(Result::ok));
    let mut subscription = subscription.map_err(|why| {
        let sentence = format!(
            "no room for another subscriber of `{}`: {why}",
            wanted.group
        );
        Failure::limit(StatusCode::SERVICE_UNAVAILABLE, sentence)
    })?;
    let gap = lost || subscription.gap();
    let body = match wanted.form {
        SubscriptionForm::EventStream => {
            set(
                &mut parts.headers,
                header::CONTENT_TYPE,
                "text/event-stream",
            );
            set(&mut parts.headers, header::CACHE_CONTROL, "no-store");
            event_stream(subscription, gap, stop.clone())
        }
        SubscriptionForm::Poll(ms) => {
            let wait = Duration::from_millis(ms.into()).min(POLL_MAX);
            let _waits = GaugeGuard::new(&METRICS.polls);
            // A group without a history may always have sent something between two polls: an answer at once would
            // have its clients ask again and again.
            let messages = match gap && subscription.is_kept() {
                true => Vec::new(),
                false => poll(&mut subscription, wait, stop).await,
            };
            let cursor = subscription.cursor().to_string();
            set(&mut parts.headers, header::CACHE_CONTROL, "no-store");
            set(&mut parts.headers, CURSOR, &cursor);
            if messages.is_empty() && !gap {
                parts.status = StatusCode::NO_CONTENT;
                parts.headers.remove(header::CONTENT_TYPE);
                return Ok(Response::from_parts(parts, Either::Left(Full::default())));
            }
            set(&mut parts.headers, header::CONTENT_TYPE, "application/json");
            let told = json!({ "cursor": cursor, "gap": gap, "messages": messages });
            Either::Left(Full::new(account.keep(told.to_string().into_bytes())?))
        }
    };
    Ok(Response::from_parts(parts, body))
}

fn set(headers: &mut http::HeaderMap, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("it is ASCII");
    headers.insert(name, value);
}

/// Waits for the next message, and takes those that are there with it.
async fn poll(
    subscription: &mut Subscription,
    wait: Duration,
    stop: &CancellationToken,
) -> Vec<serde_json::Value> {
    let first = tokio::select! {
        next = subscription.next() => next,
        () = tokio::time::sleep(wait) => return Vec::new(),
        () = stop.cancelled() => return Vec::new(),
    };
    let (mut messages, mut bytes) = (Vec::new(), 0);
    let mut next = Some(first);
    while let Some(Next::Message(payload)) = next {
        bytes += payload.bytes.len();
        messages.push(as_json(&payload));
        // The next poll gets the rest.
        next = match bytes < POLL_BYTES {
            true => subscription.try_next(),
            false => None,
        };
    }
    messages
}

fn as_json(payload: &Payload) -> serde_json::Value {
    match payload.text {
        true => json!({ "text": String::from_utf8_lossy(&payload.bytes) }),
        false => json!({ "binary": BASE64.encode(&payload.bytes) }),
    }
}

/// The state of an event stream: what it says first, and where it comes from.
struct Events {
    subscription: Subscription,
    first: Option<String>,
    stop: CancellationToken,
    _open: GaugeGuard,
}

fn event_stream(subscription: Subscription, gap: bool, stop: CancellationToken) -> ResponseBody {
    let mut first = format!("{RETRY}id: {}\n\n", subscription.cursor());
    if gap {
        first += &missed("unknown");
    }
    let events = Events {
        subscription,
        first: Some(first),
        stop,
        _open: GaugeGuard::new(&METRICS.event_streams),
    };
    let frames = stream::unfold(events, async |mut events| {
        let text = events.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(text))), events))
    });
    let body = StreamBody::new(frames).map_err(|never| match never {});
    Either::Right(BoxBody::new(body))
}

impl Events {
    /// The next piece. None: the server stops.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        tokio::select! {
            next = self.subscription.next() => match next {
                Next::Message(payload) => Some(event(&payload)),
                Next::Missed(count) => Some(missed(&count.to_string())),
                Next::Ended => None,
            },
            () = tokio::time::sleep(KEEP_ALIVE) => Some(":\n\n".to_owned()),
            () = self.stop.cancelled() => None,
        }
    }
}

/// A message as a Server-Sent Event. One that is binary is written in base64, and called so.
fn event(payload: &Payload) -> String {
    let mut event = format!("id: {}\n", payload.cursor);
    let text = match payload.text {
        true => String::from_utf8_lossy(&payload.bytes),
        false => {
            event += "event: binary\n";
            BASE64.encode(&payload.bytes).into()
        }
    };
    // Each line end that the format knows begins another line of data.
    let text = text.replace("\r\n", "\n");
    for line in text.split(['\n', '\r']) {
        let _ = writeln!(event, "data: {line}");
    }
    event + "\n"
}

/// What tells a client that messages are lost to it.
fn missed(count: &str) -> String {
    format!("event: gap\ndata: {count}\n\n")
}
