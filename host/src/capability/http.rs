//! `http`: outbound requests, to origins the module is granted, within the time the request has left.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url, redirect};
use tokio::sync::Semaphore;
use wasmtime::component::{Accessor, HasSelf};

use super::Guest;
use crate::bindings::http_types::{Error, InboundResponse, OutboundRequest};
use crate::bindings::{http, http_async};
use crate::budget::{Exhausted, Room};
use crate::config::{HttpGrant, Module};
use crate::deadline::Ended;
use crate::error::shown;
use crate::metrics::{Held, METRICS};
use crate::proxies::REQUEST_ID;
use crate::request::{HEADER_BYTES, check_head, header_bytes};
use crate::scope::{CallBytes, Scope};
use crate::trace::{TRACEPARENT, TRACESTATE};

/// What an origin that speaks HTTP/2 may send ahead of the reading, for one response and for all of a connection.
const HTTP2_STREAM_WINDOW: u32 = 256 << 10;
const HTTP2_WINDOW: u32 = 1 << 20;
const HTTP2_HEADERS: u32 = 64 << 10;
/// Connections that are kept to one origin.
const IDLE_MAX: usize = 64;
/// The longest URL.
const URL_BYTES_MAX: usize = 64 << 10;
/// What an outbound request takes beside its texts, with the connection that it may need.
const CLIENT_BYTES: u64 = 32 << 10;

/// The client that all views share: connections are kept and reused across requests.
pub struct Client {
    client: reqwest::Client,
    /// Whether the system has certificates of authorities: without them, no server can be trusted.
    certificates: bool,
    own: OnceLock<SocketAddr>,
}

impl Client {
    /// A client that follows no redirects (a redirect could lead out of the granted origins) and uses no proxy.
    ///
    /// # Errors
    /// When TLS cannot be set up. A machine without certificates is no error: only https requests fail then.
    pub fn new() -> anyhow::Result<Client> {
        // A second app in the same process finds the provider installed: that is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .redirect(redirect::Policy::none())
                .no_proxy()
                .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
                .http2_initial_connection_window_size(HTTP2_WINDOW)
                .http2_max_header_list_size(HTTP2_HEADERS)
                .pool_max_idle_per_host(IDLE_MAX)
                .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")))
        };
        let (client, certificates) = match builder().build() {
            Ok(client) => (client, true),
            // That needs no certificates: if it cannot be built either, they were not the reason.
            Err(_) => (builder().tls_certs_only([]).build()?, false),
        };
        Ok(Client {
            client,
            certificates,
            own: OnceLock::new(),
        })
    }

    /// Why requests over https cannot be sent, if so.
    pub fn without_https(&self) -> Option<&'static str> {
        let why = "the machine has no certificates of authorities to check https servers with: install the package `ca-certificates` (or name a file in SSL_CERT_FILE), then restart";
        (!self.certificates).then_some(why)
    }

    /// Says where this app itself listens, for requests to `/…`.
    pub fn set_own(&self, mut address: SocketAddr) {
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        // Set once per app; a reload keeps the sockets.
        let _ = self.own.set(address);
    }

    fn url(&self, text: &str, module: &Module) -> Result<Url, Error> {
        let parse = |url: &str| {
            Url::parse(url)
                .map_err(|error| Error::Invalid(format!("`{}` is not a URL: {error}", shown(text))))
        };
        let denied = |what: String| {
            Err(Error::Denied(format!(
                "module `{}` may not send requests to {what}: add \"{what}\" to `http` of `[modules.{0}]`",
                module.name
            )))
        };
        if text.starts_with('/') {
            if !module.http.contains(&HttpGrant::Own) {
                return denied("self".into());
            }
            let own = self
                .own
                .get()
                .ok_or_else(|| Error::Connection("the app does not listen yet".into()))?;
            return parse(&format!("http://{own}{text}"));
        }
        let url = parse(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Invalid(format!(
                "`{}`: only http and https URLs can be requested",
                shown(text)
            )));
        }
        let origin = url.origin().ascii_serialization();
        let granted = module.http.iter().any(|grant| match grant {
            HttpGrant::Any => true,
            HttpGrant::Origin(granted) => *granted == origin,
            HttpGrant::Own => false,
        });
        if !granted {
            return denied(origin);
        }
        match self.without_https() {
            Some(why) if url.scheme() == "https" => Err(Error::Connection(why.to_owned())),
            _ => Ok(url),
        }
    }
}

/// One outbound request, with all it needs: what both faces start from.
struct Call {
    client: reqwest::Client,
    request: reqwest::Request,
    scope: Arc<Scope>,
    places: Arc<Semaphore>,
    _held: CallBytes,
}

impl Guest {
    fn call(&self, wanted: OutboundRequest) -> Result<Call, Error> {
        let scope = &self.work().scope;
        let headers = header_bytes(&wanted.headers);
        let count = wanted.headers.len();
        check_head("request", count, headers, &scope.limits).map_err(Error::Invalid)?;
        if wanted.url.len() > URL_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the URL has {} bytes; the most is {URL_BYTES_MAX}",
                wanted.url.len()
            )));
        }
        // Of the texts, the client makes copies.
        let texts = (wanted.url.len() + wanted.method.len()) as u64 + headers;
        let bytes = wanted.body.len() as u64 + texts * 2 + CLIENT_BYTES;
        let held = scope.hold_call(bytes);
        let held = held.map_err(Error::Unavailable)?;
        let url = self.services.http.url(&wanted.url, &self.grants)?;
        let invalid = |what: &str, error: &dyn std::fmt::Display| {
            Error::Invalid(format!("{}: {error}", shown(what)))
        };
        let method = Method::from_bytes(wanted.method.as_bytes())
            .map_err(|error| invalid(&wanted.method, &error))?;
        let mut request = reqwest::Request::new(method, url);
        for (name, value) in &wanted.headers {
            let key =
                HeaderName::from_bytes(name.as_bytes()).map_err(|error| invalid(name, &error))?;
            if set_by_host(&key) || self.services.trusted_headers.contains(&key) {
                return Err(Error::Invalid(format!(
                    "{key}: the host sets it, from the URL, the body and the request's context"
                )));
            }
            let value = HeaderValue::from_str(value).map_err(|error| invalid(name, &error))?;
            (request.headers_mut().try_append(key, value))
                .map_err(|error| Error::Invalid(format!("the request's headers: {error}")))?;
        }
        self.add_context(request.headers_mut());
        let left = scope.deadline.remaining();
        let asked = wanted
            .timeout_ms
            .map_or(left, |ms| Duration::from_millis(ms.into()));
        *request.timeout_mut() = Some(asked.min(left));
        if !wanted.body.is_empty() {
            *request.body_mut() = Some(wanted.body.into());
        }
        Ok(Call {
            client: self.services.http.client.clone(),
            request,
            scope: Arc::clone(scope),
            places: scope.outbound(),
            _held: held,
        })
    }
}

impl Guest {
    /// Where the request belongs, for whoever answers it (R14).
    fn add_context(&self, headers: &mut HeaderMap) {
        let origin = &self.work().scope.origin;
        let trace = origin.trace.child();
        let values = [
            (TRACEPARENT, Some(trace.to_string())),
            (TRACESTATE, trace.state().map(str::to_owned)),
            (REQUEST_ID, Some(origin.id.clone())),
        ];
        for (name, value) in values {
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// Headers about the connection, the length, the origin and the context: with a `host` of its own, a request could
/// reach another site behind a granted address; with a trace of its own, pass for another request's; with the headers
/// of proxies, for another client's where this app trusts its neighbours.
fn set_by_host(name: &HeaderName) -> bool {
    crate::request::HOP_BY_HOP.contains(name)
        || *name == header::CONTENT_LENGTH
        || [header::HOST, TRACEPARENT, TRACESTATE, REQUEST_ID].contains(name)
        || *name == header::FORWARDED
        || name.as_str().starts_with("x-forwarded-")
}

impl Call {
    async fn send(self) -> Result<InboundResponse, Error> {
        let _place = self
            .places
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let _held = Held::new(&METRICS.outbound);
        self.scope.sent.store(true, SeqCst);
        let mut response = self.client.execute(self.request).await?;
        let account = &self.scope.origin.account;
        let size = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.as_str().len() + value.len()) as u64 + HEADER_BYTES
        };
        let bytes: u64 = response.headers().iter().map(size).sum();
        let count = response.headers().len();
        check_head("response", count, bytes, &self.scope.limits).map_err(Error::TooLarge)?;
        let exhausted = |why: Exhausted| Error::TooLarge(why.to_string());
        let _headers = account.draw(bytes * 2).map_err(exhausted)?;
        let headers = (response.headers().iter())
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    crate::request::text(value.as_bytes()),
                )
            })
            .collect();
        let status = response.status().as_u16();
        let max = self.scope.limits.outbound_response_max_bytes;
        let (mut body, mut room) = (Vec::new(), Room::empty(account));
        while let Some(chunk) = response.chunk().await? {
            if (body.len() + chunk.len()) as u64 > max {
                return Err(Error::TooLarge(format!(
                    "the response has more than {max} bytes (`outbound_response_max_bytes`)"
                )));
            }
            let length = body.len() + chunk.len();
            if length > body.capacity() {
                let capacity = length.max(body.capacity() * 2);
                room.grow_to(capacity as u64).map_err(exhausted)?;
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(InboundResponse {
            status,
            headers,
            body,
        })
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Error {
        if error.is_timeout() {
            return Error::Timeout;
        }
        // The causes say what happened ("connection refused"); the outermost text only that something did.
        let causes =
            std::iter::successors(std::error::Error::source(&error), |error| error.source());
        let text = causes
            .map(ToString::to_string)
            .last()
            .unwrap_or_else(|| error.to_string());
        Error::Connection(text)
    }
}

impl From<Ended> for Error {
    fn from(_: Ended) -> Error {
        Error::Aborted
    }
}

impl http::Host for Guest {
    fn send(
        &mut self,
        request: OutboundRequest,
    ) -> wasmtime::Result<Result<InboundResponse, Error>> {
        let call = match self.call(request) {
            Ok(call) => call,
            Err(error) => return Ok(Err(error)),
        };
        Ok(self.wait(call.send()).unwrap_or_else(|why| Err(why.into())))
    }
}

impl http_async::Host for Guest {}

impl http_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn send(
        accessor: &Accessor<Guest, Self>,
        request: OutboundRequest,
    ) -> wasmtime::Result<Result<InboundResponse, Error>> {
        match accessor.with(|mut store| store.get().call(request)) {
            Ok(call) => Ok(call.send().await),
            Err(error) => Ok(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(grants: &[HttpGrant]) -> Module {
        let mut module = Module::without_grants("test", std::path::Path::new("test.wasm"));
        module.http = grants.to_vec();
        module
    }

    #[test]
    fn without_certificates_only_https_fails() {
        let client = Client {
            certificates: false,
            ..Client::new().expect("a client")
        };
        let module = granted(&[HttpGrant::Any]);
        client
            .url("http://example.com/", &module)
            .expect("http needs none");
        let error = client
            .url("https://example.com/", &module)
            .expect_err("nobody can be trusted");
        assert!(
            matches!(&error, Error::Connection(why) if why.contains("`ca-certificates`")),
            "{error:?}"
        );
        let nothing = granted(&[HttpGrant::Own]);
        let error = client
            .url("https://example.com/", &nothing)
            .expect_err("it is not granted");
        assert!(matches!(error, Error::Denied(_)), "{error:?}");
    }

    #[test]
    fn the_host_sets_what_routes_and_frames_a_request() {
        for name in ["host", "Host", "content-length", "connection", "te"] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            assert!(set_by_host(&name), "{name}");
        }
        assert!(!set_by_host(&header::AUTHORIZATION));
    }
}
