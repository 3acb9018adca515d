//! `http`: outbound requests, to origins the module is granted, within the time the request has left.

mod destination;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url, redirect};
use tokio::sync::Semaphore;
use wasmtime::component::{Accessor, HasSelf};

use super::Guest;
use crate::bindings::http_types::{Error, InboundResponse, OutboundRequest};
use crate::bindings::{http, http_async};
use crate::budget::{Exhausted, Room};
use crate::call_depth::{self, CALL_DEPTH};
use crate::config::{HttpGrant, Module};
use crate::deadline::Ended;
use crate::error::shown;
use crate::metrics::{Held, METRICS};
use crate::proxies::REQUEST_ID;
use crate::request::{HEADER_BYTES, check_head, header_bytes};
use crate::scope::{CallBytes, Scope};
use crate::trace::{TRACEPARENT, TRACESTATE};
use destination::{Allowed, NotAllowed, Resolver, is_localhost, literal};

/// What an origin that speaks HTTP/2 may send ahead of the reading, for one response and for all of a connection.
const HTTP2_STREAM_WINDOW: u32 = 256 << 10;
const HTTP2_WINDOW: u32 = 1 << 20;
const HTTP2_HEADERS: u32 = 64 << 10;
/// Connections that are kept to one origin.
const IDLE_MAX: usize = 64;
/// For how long: less than the five seconds after which many servers close theirs, at any moment, also while a request is
/// on its way.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// The longest URL.
const URL_BYTES_MAX: usize = 64 << 10;
/// What an outbound request takes beside its texts, with the connection that it may need.
const CLIENT_BYTES: u64 = 32 << 10;

/// The client that all views share: connections are kept and reused across requests.
pub struct Client {
    /// Those of modules that may reach the same networks. There are as many as `amphi.toml` has different ones.
    connections: Mutex<HashMap<Allowed, Connections>>,
    /// Whether the system has certificates of authorities: without them, no server can be trusted.
    certificates: bool,
    own: OnceLock<SocketAddr>,
}

#[derive(Clone)]
struct Connections {
    kept: reqwest::Client,
    /// Keeps none: for a request that is sent again because a kept connection had been closed.
    fresh: reqwest::Client,
}

impl Connections {
    /// With connections to allowed addresses only, and whether the system has certificates.
    fn new(allowed: &Allowed) -> reqwest::Result<(Connections, bool)> {
        let builder = |idle_max| {
            reqwest::Client::builder()
                .redirect(redirect::Policy::none())
                .no_proxy()
                .dns_resolver(Resolver(allowed.clone()))
                .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
                .http2_initial_connection_window_size(HTTP2_WINDOW)
                .http2_max_header_list_size(HTTP2_HEADERS)
                .pool_max_idle_per_host(idle_max)
                .pool_idle_timeout(IDLE_TIME)
                .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")))
        };
        let build = |idle_max| match builder(idle_max).build() {
            Ok(client) => Ok((client, true)),
            // That needs no certificates: if it cannot be built either, they were not the reason.
            Err(_) => Ok((builder(idle_max).tls_certs_only([]).build()?, false)),
        };
        let ((kept, certificates), (fresh, _)) = (build(IDLE_MAX)?, build(0)?);
        Ok((Connections { kept, fresh }, certificates))
    }
}

impl Client {
    /// A client that follows no redirects (a redirect could lead out of the granted origins) and uses no proxy.
    ///
    /// # Errors
    /// When TLS cannot be set up. A machine without certificates is no error: only https requests fail then.
    pub fn new() -> anyhow::Result<Client> {
        // A second app in the same process finds the provider installed: that is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let public = Allowed::default();
        let (connections, certificates) = Connections::new(&public)?;
        Ok(Client {
            connections: Mutex::new(HashMap::from([(public, connections)])),
            certificates,
            own: OnceLock::new(),
        })
    }

    /// Sets up what this module's requests need, so that none has to wait for it.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn prepare(&self, module: &Module) -> anyhow::Result<()> {
        let allowed = Allowed::new(&module.http_private);
        let local = module.http.iter().any(|grant| match grant {
            HttpGrant::Origin(origin) => Url::parse(origin).is_ok_and(|url| is_localhost(&url)),
            HttpGrant::Own | HttpGrant::Any => false,
        });
        if local {
            self.connections(allowed.clone().with_loopback())?;
        }
        self.connections(allowed)?;
        Ok(())
    }

    fn connections(&self, allowed: Allowed) -> reqwest::Result<Connections> {
        let mut all = self.connections.lock();
        if let Some(known) = all.get(&allowed) {
            return Ok(known.clone());
        }
        let (new, _) = Connections::new(&allowed)?;
        all.insert(allowed, new.clone());
        Ok(new)
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

    /// Where a request goes, and the addresses that its name may lead to.
    fn destination(&self, text: &str, module: &Module) -> Result<(Url, Allowed), Error> {
        let allowed = Allowed::new(&module.http_private);
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
            return Ok((parse(&format!("http://{own}{text}"))?, allowed));
        }
        let url = parse(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Invalid(format!(
                "`{}`: only http and https URLs can be requested",
                shown(text)
            )));
        }
        let origin = url.origin().ascii_serialization();
        let by_name = module.http.contains(&HttpGrant::Origin(origin.clone()));
        if !by_name && !module.http.contains(&HttpGrant::Any) {
            return denied(origin);
        }
        let allowed = match is_localhost(&url) && by_name {
            true => allowed.with_loopback(),
            false => allowed,
        };
        if let Some(address) = literal(&url)
            && !by_name
            && !allowed.has(address)
        {
            let name = String::new();
            let why = NotAllowed { name, address };
            return Err(Error::Denied(why.sentence(&module.name)));
        }
        match self.without_https() {
            Some(why) if url.scheme() == "https" => Err(Error::Connection(why.to_owned())),
            _ => Ok((url, allowed)),
        }
    }
}

/// One outbound request, with all it needs: what both faces start from.
struct Call {
    connections: Connections,
    request: reqwest::Request,
    module: Arc<Module>,
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
        let client = &self.services.http;
        let (url, allowed) = client.destination(&wanted.url, &self.grants)?;
        let (depth, most) = (scope.origin.depth, scope.limits.outbound_depth_max);
        if depth >= most {
            return Err(Error::Denied(format!(
                "this request is within {depth} others that the app has sent to itself, as many as `outbound_depth_max` of `[limits]` allows: views call each other in a circle, or the limit is too low"
            )));
        }
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
            connections: client.connections(allowed)?,
            module: Arc::clone(&self.grants),
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
        headers.insert(
            CALL_DEPTH,
            call_depth::sealed(self.work().scope.origin.depth + 1),
        );
    }
}

/// Headers about the connection, the length, the origin and the context: with a `host` of its own, a request could
/// reach another site behind a granted address; with a trace of its own, pass for another request's; with the headers
/// of proxies, for another client's where this app trusts its neighbours.
fn set_by_host(name: &HeaderName) -> bool {
    crate::request::HOP_BY_HOP.contains(name)
        || *name == header::CONTENT_LENGTH
        || [
            header::HOST,
            TRACEPARENT,
            TRACESTATE,
            REQUEST_ID,
            CALL_DEPTH,
        ]
        .contains(name)
        || *name == header::FORWARDED
        || name.as_str().starts_with("x-forwarded-")
}

impl Call {
    /// Sends the request, and once again when the connection broke before an answer began: a server may close a kept
    /// connection at any moment (RFC 9112, 9.3.1). What it may have acted on is sent again only when doing so twice is
    /// the same as once (RFC 9110, 9.2.2); hyper itself repeats what it has not begun to send.
    async fn execute(
        connections: Connections,
        request: reqwest::Request,
    ) -> reqwest::Result<reqwest::Response> {
        let until = request.timeout().map(|timeout| Instant::now() + *timeout);
        let again = match is_idempotent(request.method()) {
            true => request.try_clone(),
            false => None,
        };
        let error = match connections.kept.execute(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        match again {
            Some(mut again) if broke_off(&error) => {
                let left = |until: Instant| until.saturating_duration_since(Instant::now());
                *again.timeout_mut() = until.map(left);
                connections.fresh.execute(again).await
            }
            _ => Err(error),
        }
    }

    async fn send(self) -> Result<InboundResponse, Error> {
        let _place = self
            .places
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let _held = Held::new(&METRICS.outbound);
        self.scope.sent.store(true, SeqCst);
        let module = Arc::clone(&self.module);
        let sent = Call::execute(self.connections, self.request).await;
        let mut response = sent.map_err(|error| not_sent(error, &module))?;
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

fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || [Method::PUT, Method::DELETE].contains(method)
}

/// What an error comes from, the outermost first.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
}

/// Whether the connection was there, and ended before any answer.
fn broke_off(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if error.is_timeout() || error.is_connect() {
        return false;
    }
    causes(error).any(|cause| {
        let hyper = cause.downcast_ref::<hyper::Error>();
        let io = cause.downcast_ref::<std::io::Error>();
        hyper.is_some_and(|error| error.is_incomplete_message() || error.is_canceled())
            || io.is_some_and(|error| {
                [
                    BrokenPipe,
                    ConnectionAborted,
                    ConnectionReset,
                    UnexpectedEof,
                ]
                .contains(&error.kind())
            })
    })
}

/// Why a module's request was not answered.
fn not_sent(error: reqwest::Error, module: &Module) -> Error {
    let not_allowed = causes(&error).find_map(|cause| cause.downcast_ref::<NotAllowed>());
    match not_allowed {
        Some(why) => Error::Denied(why.sentence(&module.name)),
        None => error.into(),
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Error {
        if error.is_timeout() {
            return Error::Timeout;
        }
        // The causes say what happened ("connection refused"); the outermost text only that something did.
        let text = causes(&error)
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
            .destination("http://example.com/", &module)
            .expect("http needs none");
        let error = client
            .destination("https://example.com/", &module)
            .expect_err("nobody can be trusted");
        assert!(
            matches!(&error, Error::Connection(why) if why.contains("`ca-certificates`")),
            "{error:?}"
        );
        let nothing = granted(&[HttpGrant::Own]);
        let error = client
            .destination("https://example.com/", &nothing)
            .expect_err("it is not granted");
        assert!(matches!(error, Error::Denied(_)), "{error:?}");
    }

    /// As far as it can be told without asking DNS.
    #[test]
    fn addresses_that_are_not_public_have_grants_of_their_own() {
        let client = Client::new().expect("a client");
        let origin = |origin: &str| HttpGrant::Origin(origin.to_owned());
        let mut module = granted(&[
            HttpGrant::Any,
            origin("http://127.0.0.1:8080"),
            origin("http://localhost:8080"),
        ]);
        module.http_private = vec!["10.0.0.0/8".parse().expect("a network")];
        for good in [
            "http://127.0.0.1:8080/",
            "http://127.1:8080/",
            "http://10.1.2.3/",
            "http://[::ffff:10.1.2.3]/",
            "http://1.1.1.1/",
            "http://localhost:8080/",
        ] {
            client.destination(good, &module).expect(good);
        }
        for bad in [
            "http://127.0.0.1:8081/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest/",
            "http://[::1]:8080/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fd00:ec2::254]/",
            "http://2852039166/",
        ] {
            let error = client.destination(bad, &module).expect_err(bad);
            assert!(
                matches!(&error, Error::Denied(why) if why.contains("`http_private`")),
                "{bad}: {error:?}"
            );
        }
        let loopback = |url| {
            let (_, allowed) = client.destination(url, &module).expect(url);
            allowed.has(std::net::Ipv4Addr::LOCALHOST.into())
        };
        assert!(loopback("http://localhost:8080/"));
        assert!(!loopback("http://localhost:8081/"));
    }

    #[test]
    fn the_host_sets_what_routes_and_frames_a_request() {
        for name in ["host", "Host", "content-length", "te", "amphi-call-depth"] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            assert!(set_by_host(&name), "{name}");
        }
        assert!(!set_by_host(&header::AUTHORIZATION));
    }
}
