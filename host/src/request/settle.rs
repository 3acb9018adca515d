//! The end of a chain: its response is checked, the transaction ends, and the effects that the transaction held are
//! released (R9, R10).

use std::io;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{Either, Full, StreamBody as Frames};

use super::dispatch::LinkResult;
use super::streaming::Streaming;
use crate::contract::types;
use crate::database::Face;
use crate::guest::run::{Reply, ReplyBody};
use crate::guest::stop::Stop;
use crate::http::message::{HEADER_BYTES, HOP_BY_HOP, HeadSize, ResponseBody, is_bodiless};
use crate::http::stream::{StreamBody, stream as new_stream};
use crate::scope::Scope;
use crate::scope::transaction::{Fate, not_kept};
use crate::telemetry::error::{Failure, Fault, shown};
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Ended;

/// What the client gets.
pub type CheckedResponse = Result<Response<CheckedBody>, Failure>;

/// A response and what has become of the transaction.
pub(super) struct Settled {
    pub(super) response: CheckedResponse,
    pub(super) fate: Fate,
    /// The rest of the work, if the body is produced while it is sent. The request goes on until it has ended.
    pub(super) streaming: Option<Streaming>,
}

/// The body of a checked response.
pub enum CheckedBody {
    /// All of it, with the trailers that follow it, if any.
    Whole(Bytes, Option<HeaderMap>),
    /// A body that is produced while it is sent.
    Stream(StreamBody),
    /// What is sent to a group from now on.
    Subscription(types::Subscription),
}

impl Default for CheckedBody {
    fn default() -> CheckedBody {
        CheckedBody::Whole(Bytes::new(), None)
    }
}

impl CheckedBody {
    /// Its length in bytes, if it is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            CheckedBody::Whole(bytes, _) => Some(bytes.len() as u64),
            CheckedBody::Stream(_) | CheckedBody::Subscription(_) => None,
        }
    }
}

impl From<CheckedBody> for ResponseBody {
    fn from(body: CheckedBody) -> ResponseBody {
        match body {
            CheckedBody::Whole(bytes, None) => Either::Left(Full::new(bytes)),
            CheckedBody::Whole(bytes, Some(trailers)) => {
                let frames = [Frame::data(bytes), Frame::trailers(trailers)];
                let frames = frames.map(io::Result::Ok);
                Either::Right(BoxBody::new(Frames::new(stream::iter(frames))))
            }
            CheckedBody::Stream(body) => Either::Right(BoxBody::new(body)),
            // Only `request/subscription.rs` answers with one.
            CheckedBody::Subscription(_) => Either::Left(Full::default()),
        }
    }
}

/// Checks the response, then commits or rolls back the transaction. When the commit fails, so does the request: a
/// client never sees a success whose changes were not kept (R9).
pub(super) async fn settle(scope: &Scope, face: Face, outcome: LinkResult) -> Settled {
    let mut streaming = None;
    let mut response = outcome
        .and_then(|reply| checked(reply, scope))
        .map(|(response, rest)| {
            streaming = rest;
            response
        });
    if let (Ok(_), Some(why)) = (&response, scope.deadline.ended()) {
        response = Err((&Stop::from(why)).into());
    }
    if let Err(failure) = &mut response {
        blame_database(failure, scope);
        name_wait(failure, scope);
        // Cancels what the view left running, so that the rollback need not wait for it.
        scope.deadline.cancel(Ended::Failed);
    }
    let goes_on = response.is_ok() && streaming.as_ref().is_some_and(Streaming::is_rest);
    if goes_on && !scope.view.transaction.atomic {
        // Nothing of the function waits for a commit. What it leaves open is rolled back when it has ended.
        scope.begin_stream();
        return Settled {
            response,
            fate: Fate::None,
            streaming,
        };
    }
    let success = matches!(&response, Ok(response) if !response.status().is_server_error());
    let fate = match scope
        .transaction
        .finish(face, success && !scope.transaction.has_failed())
        .await
    {
        Ok(fate) => fate,
        Err(error) => {
            if success {
                response = Err(not_kept(&error));
            }
            Fate::RolledBack
        }
    };
    if goes_on && response.is_ok() {
        scope.begin_stream();
    }
    Settled {
        streaming: streaming.filter(|_| response.is_ok()),
        response,
        fate,
    }
}

/// Makes a failure of the view a failure of the host (503) if a database could not be reached: that is taken for the
/// reason.
fn blame_database(failure: &mut Failure, scope: &Scope) {
    if failure.fault == Fault::View && scope.transaction.unavailable() {
        *failure = Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            call_path: std::mem::take(&mut failure.call_path),
            ..Failure::host(format!(
                "a database could not be reached: {}",
                failure.detail
            ))
        };
    }
}

/// Adds to the failure of a time-out what functions of the request waited for when the time was over.
fn name_wait(failure: &mut Failure, scope: &Scope) {
    if failure.status == StatusCode::GATEWAY_TIMEOUT
        && scope.deadline.ended() == Some(Ended::TimedOut)
        && let Some(wanted) = scope.deadline.wanted()
    {
        failure.detail = format!("{}, and {wanted}", failure.detail);
    }
}

/// The response that the view made, if it can be sent, and the rest of the work if its body is produced while it is
/// sent.
///
/// # Errors
/// When its body is too large, or its status or a header is not valid.
pub fn checked(
    reply: Reply,
    scope: &Scope,
) -> Result<(Response<CheckedBody>, Option<Streaming>), Failure> {
    let max = scope.limits.response_max_bytes;
    if let ReplyBody::Bytes(body) = &reply.body
        && body.len() as u64 > max
    {
        return Err(Failure::view(format!(
            "the response has {} bytes; `response_max_bytes` is {max}",
            body.len()
        )));
    }
    let size = |(name, value): &(String, Vec<u8>)| (name.len() + value.len()) as u64 + HEADER_BYTES;
    let head = HeadSize {
        headers: reply.headers.len(),
        bytes: reply.headers.iter().map(size).sum(),
    };
    let checked = head.check("response", scope.limits.head_max());
    checked.map_err(Failure::view)?;
    let status = StatusCode::from_u16(reply.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| {
        Failure::view(format!(
            "the response has the status {}: a view answers with 200 to 599",
            reply.status
        ))
    })?;
    let bodiless = is_bodiless(status);
    let account = &scope.origin.account;
    let has_trailers = reply.trailers.is_some() || matches!(reply.body, ReplyBody::Stream(_));
    let mut length = None;
    let mut checked = Response::new(());
    *checked.status_mut() = status;
    for (name, value) in reply.headers {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response has a header whose name is not valid: {:?}",
                shown(&name)
            ))
        })?;
        // Over HTTP/1, only the trailers that this header announces are sent.
        let announces = key == header::TRAILER && has_trailers;
        if HOP_BY_HOP.contains(&key) && !announces {
            return Err(Failure::view(format!(
                "the response has the header `{key}`, which only the host can set"
            )));
        }
        // The host sets the length itself, because a wrong length would break the connection for the next response. The
        // length that the head of a stream declares is checked while the stream is sent.
        if key == header::CONTENT_LENGTH {
            length = std::str::from_utf8(&value)
                .ok()
                .and_then(|text| text.parse().ok());
            continue;
        }
        let value = HeaderValue::from_bytes(&value).map_err(|_| {
            Failure::view(format!(
                "the response header `{key}` has a value that is not valid: {:?}",
                shown(&String::from_utf8_lossy(&value))
            ))
        })?;
        if checked.headers_mut().try_append(key, value).is_err() {
            return Err(Failure::view(
                "the response has more headers than can be kept",
            ));
        }
    }
    if let Some(length) = reply.not_sent {
        let headers = checked.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    // The memory for the body is drawn before the transaction is committed: when there is none, the request fails, and
    // the transaction must roll back (R9).
    let (body, streaming) = match reply.body {
        ReplyBody::Bytes(body) => {
            let body = if bodiless { Vec::new() } else { body };
            let body = CheckedBody::Whole(account.keep(body)?, reply.trailers);
            (body, None)
        }
        ReplyBody::PassedOn(number) => {
            return Err(Failure::view(format!(
                "the response is the stream {number}, which there is not"
            )));
        }
        ReplyBody::Subscription(subscription) => (CheckedBody::Subscription(subscription), None),
        ReplyBody::Stream(producer) => {
            let counted = GaugeGuard::new(&METRICS.streams);
            let max = scope.limits.stream_max_bytes;
            let (writer, body) = new_stream(account, max, length, Some(counted))?;
            // Not a length of 0: the client would take the head alone for a complete response, before the body is
            // finished.
            if let Some(length @ 1..) = length {
                checked
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, length.into());
            }
            // A call that goes on does so also after a head without a body. What only writes the body is not wanted then.
            let body = if producer.head_is_all {
                body.skip();
                CheckedBody::default()
            } else if bodiless {
                CheckedBody::default()
            } else {
                CheckedBody::Stream(body)
            };
            (body, Some(Streaming { producer, writer }))
        }
    };
    Ok((checked.map(|()| body), streaming))
}

#[cfg(test)]
mod tests;
