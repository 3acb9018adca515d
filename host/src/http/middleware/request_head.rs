//! The input of built-in middleware, and the refusal that it may return.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::budget::Account;
use crate::telemetry::error::Failure;

/// The name of the context value with the user's name. No guest can set this value (R14).
pub const USER: &str = "user";

/// The part of a request that built-in middleware sees.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method, target and headers.
    pub request: &'a Parts,
    /// The request's id.
    pub id: &'a str,
    /// The connected address: of the client, or of a proxy.
    pub peer: SocketAddr,
    /// The client's address, as trusted proxies report it.
    pub client: IpAddr,
    /// The user's name, if an earlier list of middleware has found it.
    pub user: Option<&'a str>,
    /// The account that the memory for the response is drawn from.
    pub account: &'a Arc<Account>,
}

/// The refusal of a request.
#[derive(Debug)]
pub struct Refused {
    /// The failure, with its texts for the client and for the log.
    pub failure: Failure,
    /// Further headers of the response. They replace headers of the same names in the response for the failure.
    pub headers: HeaderMap,
}

impl Refused {
    /// 401, for a page that only known users may see.
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

/// Adds the name of a request header to `vary`, unless `vary` has the name or `*` already.
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
