//! Built-in middleware: host code that runs around guests, static files and error responses.
//!
//! Middleware sees the head of a request before a guest or a static file answers the request. Afterwards, it may change
//! the head and the body of the response, whatever made the response. So a request is authorized, and its user is
//! known, before any guest runs.

pub mod basic_auth;
pub mod compression;
pub mod cors;
pub mod header_auth;
pub mod rate_limit;
mod request_head;
pub mod security_headers;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Response};

use crate::http::message::ResponseBody;
use crate::http::proxies::REQUEST_ID;
use basic_auth::BasicAuth;
use compression::Compression;
use cors::Cors;
use header_auth::HeaderAuth;
use rate_limit::RateLimit;
use security_headers::SecurityHeaders;

pub use request_head::{Refused, RequestHead, USER};

/// A built-in middleware with its options.
#[derive(Debug, PartialEq, Eq)]
pub enum Builtin {
    /// Sends the request's id in the response.
    RequestId,
    /// Adds headers that restrict what browsers do with the app's pages.
    SecurityHeaders(SecurityHeaders),
    /// Compresses responses.
    Compression(Compression),
    /// Lets pages of other origins use the app.
    Cors(Cors),
    /// Requires a name and a password.
    BasicAuth(Box<BasicAuth>),
    /// Takes the user's name from a header that a proxy sets.
    HeaderAuth(HeaderAuth),
    /// Refuses requests of clients that send too many.
    RateLimit(Box<RateLimit>),
}

impl Builtin {
    /// The header that this middleware believes when a trusted proxy sends it.
    pub fn trusted_header(&self) -> Option<HeaderName> {
        match self {
            Builtin::HeaderAuth(auth) => Some(auth.header.clone()),
            _ => None,
        }
    }

    /// Whether this middleware authenticates users.
    pub fn asks_for_user(&self) -> bool {
        matches!(self, Builtin::BasicAuth(_) | Builtin::HeaderAuth(_))
    }
}

/// The result of running a list of built-in middleware on a request.
#[derive(Debug)]
pub struct RequestOutcome {
    /// How many middleware of the list have seen the request, counted from the first. [`on_response`] gets only these.
    pub seen: usize,
    /// The response or the refusal, if a middleware answered or refused the request. None: the request goes on.
    pub answer: Option<Result<Box<Response<ResponseBody>>, Box<Refused>>>,
    /// The context values that the middleware have set.
    pub values: Vec<(String, String)>,
}

/// Runs the middleware of a list on a request, in order, until one of them answers or refuses the request.
pub async fn on_request(builtins: &[Arc<Builtin>], head: RequestHead<'_>) -> RequestOutcome {
    let (mut values, mut seen) = (Vec::new(), 0);
    for builtin in builtins {
        seen += 1;
        let answer = match &**builtin {
            Builtin::RequestId | Builtin::SecurityHeaders(_) | Builtin::Compression(_) => continue,
            Builtin::Cors(cors) => match cors.before(head.request) {
                Some(answer) => Ok(Box::new(answer)),
                None => continue,
            },
            Builtin::BasicAuth(auth) => match auth.before(head.request, head.client).await {
                Ok(user) => {
                    set(&mut values, USER, user);
                    continue;
                }
                Err(refused) => Err(refused),
            },
            Builtin::HeaderAuth(auth) => match auth.before(head.request, head.peer) {
                Ok(user) => {
                    if let Some(user) = user {
                        set(&mut values, USER, user);
                    }
                    continue;
                }
                Err(refused) => Err(refused),
            },
            Builtin::RateLimit(limit) => {
                let found = values.iter().find(|(name, _)| name == USER);
                let user = found.map(|(_, user)| user.as_str()).or(head.user);
                match limit.before(head.client, user) {
                    Ok(()) => continue,
                    Err(refused) => Err(refused),
                }
            }
        };
        return RequestOutcome {
            seen,
            answer: Some(answer),
            values,
        };
    }
    RequestOutcome {
        seen,
        answer: None,
        values,
    }
}

/// Runs the middleware of a list on a response, in reverse order. `builtins` has only those that have
/// [`RequestOutcome::seen`] the request.
pub fn on_response(
    builtins: &[Arc<Builtin>],
    head: RequestHead<'_>,
    response: &mut Response<ResponseBody>,
) {
    for builtin in builtins.iter().rev() {
        match &**builtin {
            Builtin::RequestId => {
                if let Ok(id) = HeaderValue::from_str(head.id) {
                    response.headers_mut().insert(REQUEST_ID, id);
                }
            }
            Builtin::SecurityHeaders(headers) => headers.after(response.headers_mut()),
            Builtin::Compression(compression) => compression.after(head, response),
            Builtin::Cors(cors) => cors.after(head.request, response.headers_mut()),
            Builtin::BasicAuth(_) | Builtin::HeaderAuth(_) | Builtin::RateLimit(_) => {}
        }
    }
}

fn set(values: &mut Vec<(String, String)>, name: &str, value: String) {
    values.retain(|(known, _)| known != name);
    values.push((name.to_owned(), value));
}

#[cfg(test)]
mod tests;
