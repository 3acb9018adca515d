//! Middleware that is built in: host code around guests, files and failures alike.
//!
//! It works on the request's and the response's heads, before and after what is in it, and so sees every answer of
//! the app. What a request is allowed, and who its user is, is decided before any guest runs.

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

/// Middleware of the host's own, with its options.
#[derive(Debug, PartialEq, Eq)]
pub enum Builtin {
    /// Tells the client what its request is called.
    RequestId,
    /// Tells browsers what they must not do with the app's pages.
    SecurityHeaders(SecurityHeaders),
    /// Makes responses smaller on their way.
    Compression(Compression),
    /// Lets pages of other origins use the app.
    Cors(Cors),
    /// Asks for a name and a password.
    BasicAuth(Box<BasicAuth>),
    /// Takes the user's name from a proxy.
    HeaderAuth(HeaderAuth),
    /// Refuses those who send too many requests.
    RateLimit(Box<RateLimit>),
}

impl Builtin {
    /// The header that it believes when a proxy sends it.
    pub fn trusted_header(&self) -> Option<HeaderName> {
        match self {
            Builtin::HeaderAuth(auth) => Some(auth.header.clone()),
            _ => None,
        }
    }

    /// Whether it lets nobody through without knowing who it is.
    pub fn asks_for_user(&self) -> bool {
        matches!(self, Builtin::BasicAuth(_) | Builtin::HeaderAuth(_))
    }
}

/// How a request came through a list of built-in middleware.
#[derive(Debug)]
pub struct RequestOutcome {
    /// How many of them have seen it: those [`on_response`] takes the answer through.
    pub seen: usize,
    /// An answer to it, or why it was refused; none: it goes on.
    pub answer: Option<Result<Response<ResponseBody>, Refused>>,
    /// Context values they have set.
    pub values: Vec<(String, String)>,
}

/// Takes a request through the list, up to the first that answers it.
pub async fn on_request(builtins: &[Arc<Builtin>], head: RequestHead<'_>) -> RequestOutcome {
    let (mut values, mut seen) = (Vec::new(), 0);
    for builtin in builtins {
        seen += 1;
        let answer = match &**builtin {
            Builtin::RequestId | Builtin::SecurityHeaders(_) | Builtin::Compression(_) => continue,
            Builtin::Cors(cors) => match cors.before(head.request) {
                Some(answer) => Ok(answer),
                None => continue,
            },
            Builtin::BasicAuth(auth) => match auth.before(head.request, head.client).await {
                Ok(user) => {
                    set(&mut values, USER, user);
                    continue;
                }
                Err(refused) => Err(*refused),
            },
            Builtin::HeaderAuth(auth) => match auth.before(head.request, head.peer) {
                Ok(user) => {
                    if let Some(user) = user {
                        set(&mut values, USER, user);
                    }
                    continue;
                }
                Err(refused) => Err(*refused),
            },
            Builtin::RateLimit(limit) => {
                let found = values.iter().find(|(name, _)| name == USER);
                let user = found.map(|(_, user)| user.as_str()).or(head.user);
                match limit.before(head.client, user) {
                    Ok(()) => continue,
                    Err(refused) => Err(*refused),
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

/// Takes an answer back through the list, innermost first: those that have [`RequestOutcome::seen`] the request.
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
