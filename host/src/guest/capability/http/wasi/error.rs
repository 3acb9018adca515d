//! What a component learns of an outbound request that fails. The error codes of `wasi:http` have no text, so the log has
//! a sentence when there is something to change in `amphi.toml`, or in the component.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use parking_lot::Mutex;
use wasmtime_wasi_http::Error;

use super::super::client::{ConnectTimeout, causes};
use super::super::destination::{NotAllowed, Unresolved};
use crate::config::Module as Grants;
use crate::contract::http_types;
use crate::scope::Scope;

/// Logs the sentence, and returns the code.
pub(super) fn logged(scope: &Scope, code: Error, sentence: &str) -> Error {
    let Scope { view, origin, .. } = scope;
    let request = &origin.id;
    tracing::warn!(%view, request, why = sentence, "an outbound request failed");
    code
}

/// The code for an error of the capability `http`, which is logged.
pub(super) fn told(scope: &Scope, why: http_types::Error) -> Error {
    use http_types::Error as From;
    let (code, sentence) = match why {
        From::Denied(text) => (Error::HttpRequestDenied, text),
        From::Invalid(text) => (Error::HttpRequestUriInvalid, text),
        From::Timeout => (Error::HttpResponseTimeout, "time-out".to_owned()),
        From::TooLarge(text) => (Error::HttpResponseHeaderSectionSize(None), text),
        From::Connection(text) => (Error::DestinationUnavailable, text),
        From::Unavailable(text) => (Error::ConnectionLimitReached, text),
        From::Aborted => (
            Error::ConnectionTerminated,
            "the request has ended".to_owned(),
        ),
    };
    logged(scope, code, &sentence)
}

/// The code for a request that was not answered.
pub(super) fn not_answered(failed: &reqwest::Error, scope: &Scope, grants: &Grants) -> Error {
    if let Some(why) = cause::<NotAllowed>(failed) {
        let sentence = why.sentence(&grants.name);
        return logged(scope, Error::HttpRequestDenied, &sentence);
    }
    code(failed)
}

/// The code for an error of the client.
fn code(failed: &reqwest::Error) -> Error {
    // First, because hyper has an error for a body that breaks off, too.
    if let Some(error) = cause::<BodyBroke>(failed).and_then(BodyBroke::take) {
        return error;
    }
    if cause::<ConnectTimeout>(failed).is_some() {
        return Error::ConnectionTimeout;
    }
    if cause::<Unresolved>(failed).is_some() {
        return Error::DnsError {
            rcode: Some("address not available".to_owned()),
            info_code: None,
        };
    }
    if let Some(error) = cause::<rustls::Error>(failed) {
        return of_tls(error);
    }
    // The connection was made; the server has closed it, or does not speak HTTP.
    if cause::<hyper::Error>(failed).is_some() {
        return Error::HttpProtocolError;
    }
    let io = causes(failed).filter_map(|cause| cause.downcast_ref::<io::Error>());
    match io.last().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => Error::ConnectionRefused,
        Some(io::ErrorKind::TimedOut) => Error::ConnectionTimeout,
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            Error::DestinationIpUnroutable
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
            Error::ConnectionTerminated
        }
        _ => Error::DestinationUnavailable,
    }
}

fn of_tls(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Error::TlsCertificateError
        }
        rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    }
}

fn cause<T: StdError + 'static>(failed: &reqwest::Error) -> Option<&T> {
    causes(failed).find_map(|cause| cause.downcast_ref())
}

/// The component's body of a request broke off. The client wraps this error.
#[derive(Debug)]
pub(super) struct BodyBroke(Mutex<Option<Error>>);

impl BodyBroke {
    pub(super) fn new(error: Error) -> BodyBroke {
        BodyBroke(Mutex::new(Some(error)))
    }

    fn take(&self) -> Option<Error> {
        self.0.lock().take()
    }
}

impl fmt::Display for BodyBroke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body of the request broke off")
    }
}

impl StdError for BodyBroke {}
