//! Failures of requests. Each has two texts: a short one for the client, and a sentence for the log.
//!
//! A failure says whose fault it was, because that decides who has to act: the client (wrong request), the view (an
//! error, a trap, an invalid response), a limit (too busy, too slow, too large) or the host.

use std::borrow::Cow;
use std::{fmt, io};

use http::StatusCode;
use rustix::io::Errno;

use crate::telemetry::report::Frame;

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong.
    Client,
    /// The guest code is wrong.
    View,
    /// A limit was hit.
    Limit,
    /// Amphi or its surroundings (disk, database) failed.
    Host,
}

impl Fault {
    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Client => "client",
            Fault::View => "view",
            Fault::Limit => "limit",
            Fault::Host => "host",
        }
    }
}

/// Why a request did not get the view's own response.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Who has to act.
    pub fault: Fault,
    /// The status of the response.
    pub status: StatusCode,
    /// The text for the client.
    pub client_text: Cow<'static, str>,
    /// The sentence for the log.
    pub detail: String,
    /// The guest functions that had called each other down to the failure, the outermost first, each with its mode
    /// (R17).
    pub call_path: Vec<String>,
    /// The guest's backtrace, the innermost function first, if the guest trapped.
    pub frames: Vec<Frame>,
}

impl Failure {
    /// The failure of a request that is wrong. The text is for the client and for the log.
    pub fn client(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Failure {
        let client_text = text.into();
        Failure {
            fault: Fault::Client,
            status,
            detail: client_text.to_string(),
            client_text,
            call_path: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// A failure of the guest code. `detail` is only for the log.
    pub fn view(detail: impl Into<String>) -> Failure {
        Failure {
            fault: Fault::View,
            status: StatusCode::INTERNAL_SERVER_ERROR,
            client_text: "The server could not answer this request.".into(),
            detail: detail.into(),
            call_path: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// The failure when a limit was hit. `detail` names the limit, and is only for the log.
    pub fn limit(status: StatusCode, detail: impl Into<String>) -> Failure {
        let client_text = match status {
            StatusCode::GATEWAY_TIMEOUT => "The server took too long to answer this request.",
            StatusCode::SERVICE_UNAVAILABLE => "The server is busy. Try again in a moment.",
            _ => "The server could not answer this request.",
        };
        Failure {
            fault: Fault::Limit,
            status,
            client_text: client_text.into(),
            detail: detail.into(),
            call_path: Vec::new(),
            frames: Vec::new(),
        }
    }

    /// A failure of Amphi or its surroundings. `detail` is only for the log.
    pub fn host(detail: impl Into<String>) -> Failure {
        Failure {
            fault: Fault::Host,
            ..Failure::view(detail)
        }
    }
}

/// The most bytes of a guest's or client's text that a sentence quotes.
const SHOWN_MAX: usize = 200;

/// The beginning of a text from a guest or a client, for a sentence that quotes it.
pub fn shown(text: &str) -> Cow<'_, str> {
    match text.len() <= SHOWN_MAX {
        true => text.into(),
        false => format!("{} …", &text[..text.floor_char_boundary(SHOWN_MAX)]).into(),
    }
}

/// Shortens a text to `max` bytes, followed by a mark that it was cut.
pub fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push_str(" …");
    }
    text
}

impl Failure {
    /// The failure when a file could not be made, written or read. The status is 503 if the process or the system had
    /// no file descriptor left, because a later request may succeed.
    pub fn disk(what: &str, error: &io::Error) -> Failure {
        let failure = Failure::host(format!("{what}: {error}"));
        let none_left = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        match none_left.contains(&error.raw_os_error()) {
            true => Failure {
                status: StatusCode::SERVICE_UNAVAILABLE,
                ..failure
            },
            false => failure,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for Failure {}
