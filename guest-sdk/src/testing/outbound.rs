//! Scripted responses to outbound requests.

use crate::Headers;
use crate::StatusCode;
use crate::host::{HttpError, InboundResponse, OutboundRequest};
use crate::http::ErrorKind;
use serde::Serialize;
use std::cell::RefCell;

/// A scripted response to an outbound request; see [`reply`], [`Reply::json`] and [`failure`].
#[derive(Clone, Debug)]
pub struct Reply {
    response: Result<InboundResponse, ErrorKind>,
    breaks_off: bool,
}

/// A response with status 200 and this body.
pub fn reply(body: impl Into<Vec<u8>>) -> Reply {
    Reply::of(Ok(InboundResponse {
        status: 200,
        headers: Vec::new(),
        body: body.into(),
    }))
}

/// The failure of an outbound request, instead of a response.
pub fn failure(kind: ErrorKind) -> Reply {
    Reply::of(Err(kind))
}

impl Reply {
    fn of(response: Result<InboundResponse, ErrorKind>) -> Self {
        Self {
            response,
            breaks_off: false,
        }
    }

    /// A response with status 200 and the value as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Self {
        let body = serde_json::to_vec(value).expect("a reply of a test can be written as JSON");
        reply(body).header("content-type", "application/json")
    }

    /// Sets the status.
    pub fn status(mut self, status: StatusCode) -> Self {
        if let Ok(response) = &mut self.response {
            response.status = status.as_u16();
        }
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Ok(response) = &mut self.response {
            response.headers.push((name.into(), value.into()));
        }
        self
    }

    /// Breaks off after the body: a view that reads the body in pieces gets all of it, and then an error of the kind
    /// [`Connection`](ErrorKind::Connection). One that waits for the whole response gets the error.
    pub fn breaks_off(mut self) -> Self {
        self.breaks_off = true;
        self
    }
}

/// An outbound request that a view has sent. An upload is sent when it is finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The method, in upper case.
    pub method: String,
    /// The URL, as the view wrote it.
    pub url: String,
    /// The headers that the view set.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

/// The scripted responses, and the requests that were sent.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    script: RefCell<Vec<(String, String, Reply)>>,
    sent: RefCell<Vec<Sent>>,
}

impl Outbound {
    pub(super) fn script(&self, method: String, url: String, reply: Reply) {
        self.script.borrow_mut().push((method, url, reply));
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        self.sent.borrow().clone()
    }

    /// The scripted response, and the error that its body ends with, if it breaks off.
    pub(super) fn send(
        &self,
        request: OutboundRequest,
    ) -> Result<(InboundResponse, Option<HttpError>), HttpError> {
        let OutboundRequest {
            method,
            url,
            headers,
            body,
            ..
        } = request;
        let script = self.script.borrow();
        let reply = script
            .iter()
            .find(|(known, pattern, _)| *known == method && matches(pattern, &url));
        let outcome = match reply {
            Some((_, _, reply)) => match &reply.response {
                Ok(response) => {
                    let broken = reply.breaks_off.then(|| error(ErrorKind::Connection));
                    Ok((response.clone(), broken))
                }
                Err(kind) => Err(error(*kind)),
            },
            None => Err(HttpError::Denied(format!(
                "the test has no reply to {method} {url}; add one with `App::on`"
            ))),
        };
        self.sent.borrow_mut().push(Sent {
            method,
            url,
            headers: headers.into(),
            body,
        });
        outcome
    }
}

fn matches(pattern: &str, url: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => url.starts_with(start),
        None => pattern == url,
    }
}

fn error(kind: ErrorKind) -> HttpError {
    let text = || "as the test wants it".to_owned();
    match kind {
        ErrorKind::Denied => HttpError::Denied(text()),
        ErrorKind::Invalid => HttpError::Invalid(text()),
        ErrorKind::Timeout => HttpError::Timeout,
        ErrorKind::Connection => HttpError::Connection(text()),
        ErrorKind::TooLarge => HttpError::TooLarge(text()),
        ErrorKind::Unavailable => HttpError::Unavailable(text()),
        ErrorKind::Aborted => HttpError::Aborted,
    }
}
