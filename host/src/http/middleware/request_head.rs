//! What built-in middleware sees of a request, and what it makes of one that goes no further.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::budget::Account;
use crate::telemetry::error::Failure;

/// The context value with the user's name, which no guest can set (R14).
pub const USER: &str = "user";

/// What built-in middleware sees of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// Its head.
    pub request: &'a Parts,
    /// What it is called.
    pub id: &'a str,
    /// Who is connected: the client, or a proxy.
    pub peer: SocketAddr,
    /// The client, as trusted proxies tell.
    pub client: IpAddr,
    /// The user, when middleware around this list has found out.
    pub user: Option<&'a str>,
    /// What the response takes is drawn from here.
    pub account: &'a Arc<Account>,
}

/// A request that goes no further.
#[derive(Debug)]
pub struct Refused {
    /// What the client and the log are told.
    pub failure: Failure,
    /// What the response says beside that, to be put over the failure's own headers.
    pub headers: HeaderMap,
}

impl Refused {
    /// Nobody may see the page without saying who they are.
    pub(super) fn unauthorized(text: &'static str) -> Box<Refused> {
        Refused::with(StatusCode::UNAUTHORIZED, text)
    }

    pub(super) fn with(status: StatusCode, text: &'static str) -> Box<Refused> {
        let no_store = HeaderValue::from_static("no-store");
        Box::new(Refused {
            failure: Failure::client(status, text),
            headers: HeaderMap::from_iter([(header::CACHE_CONTROL, no_store)]),
        })
    }
}

/// Says that the answer depends on a header of the request.
pub(super) fn vary(headers: &mut HeaderMap, name: &HeaderName) {
    let known = headers.get_all(header::VARY).iter().any(|value| {
        let names = value.to_str().unwrap_or_default().split(',').map(str::trim);
        names
            .into_iter()
            .any(|known| known == "*" || known.eq_ignore_ascii_case(name.as_str()))
    });
    if !known {
        headers.append(header::VARY, name.clone().into());
    }
}
