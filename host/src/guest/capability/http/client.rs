//! The client for outbound requests: the check of their destination, and the pool of connections.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use reqwest::{Method, Url, redirect};
use tower::util::MapFutureLayer;

use super::destination::{Allowed, NotAllowed, Resolver, is_localhost, literal};
use crate::config::{HttpGrant, Module};
use crate::contract::http_types::Error;
use crate::telemetry::error::shown;

/// How many bytes of one response an origin may send over HTTP/2 before the host has read them.
const HTTP2_STREAM_WINDOW: u32 = 256 << 10;
/// Likewise for all responses of a connection.
const HTTP2_WINDOW: u32 = 1 << 20;
/// The most bytes of a response's headers over HTTP/2.
const HTTP2_HEADERS: u32 = 64 << 10;
/// The most idle connections that are kept to one origin.
const IDLE_MAX: usize = 64;
/// How long an idle connection is kept. Many servers close a connection that has been idle for five seconds, even while
/// a request is on its way. So the host closes idle connections earlier.
const IDLE_TIME: Duration = Duration::from_secs(4);

tokio::task_local! {
    /// How long the connection of a request may take to be made: see [`connecting_within`].
    static CONNECT_TIME: Duration;
}

/// The client that all views share: connections are kept and reused across requests.
pub struct Client {
    /// Connections by the networks that they may lead to. There are as many entries as `amphi.toml` has different
    /// lists.
    connections: Mutex<HashMap<Allowed, Connections>>,
    /// Whether the system has certificates of authorities. Without them, no https server can be checked.
    certificates: bool,
    own: OnceLock<SocketAddr>,
    /// The address for requests to `/…`, that is to this app, while the server stops and its other addresses are
    /// closed.
    own_while_stopping: OnceLock<SocketAddr>,
}

#[derive(Clone)]
pub(super) struct Connections {
    kept: reqwest::Client,
    /// Keeps no idle connections: for a request that is sent again because a kept connection was closed.
    fresh: reqwest::Client,
}

impl Connections {
    /// Connections to allowed addresses only. Returns also whether the system has certificates.
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
                .connector_layer(MapFutureLayer::new(connect))
                .user_agent(concat!("amphi/", env!("CARGO_PKG_VERSION")))
        };
        let build = |idle_max| match builder(idle_max).build() {
            Ok(client) => Ok((client, true)),
            // The client is built again without certificates. If that fails, too, missing certificates were not the
            // reason.
            Err(_) => Ok((builder(idle_max).tls_certs_only([]).build()?, false)),
        };
        let ((kept, certificates), (fresh, _)) = (build(IDLE_MAX)?, build(0)?);
        Ok((Connections { kept, fresh }, certificates))
    }

    /// Sends the request, and sends it once more when the connection broke before an answer began: a server may close a
    /// kept connection at any moment (RFC 9112, 9.3.1). A request that the server may have acted on is sent again only
    /// if its method is idempotent (RFC 9110, 9.2.2). hyper itself repeats a request of which nothing was sent.
    pub(super) async fn execute(
        self,
        request: reqwest::Request,
    ) -> reqwest::Result<reqwest::Response> {
        let until = request.timeout().map(|timeout| Instant::now() + *timeout);
        let again = match is_idempotent(request.method()) {
            true => request.try_clone(),
            false => None,
        };
        let error = match self.kept.execute(request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        match again {
            Some(mut again) if broke_off(&error) => {
                let left = |until: Instant| until.saturating_duration_since(Instant::now());
                *again.timeout_mut() = until.map(left);
                self.fresh.execute(again).await
            }
            _ => Err(error),
        }
    }
}

/// Polls `sending`, whose connection may take `time` to be made, with the look-up of the name and TLS. A connection that is
/// kept already takes none.
pub(super) async fn connecting_within<T>(time: Duration, sending: impl Future<Output = T>) -> T {
    CONNECT_TIME.scope(time, sending).await
}

type ConnectError = Box<dyn StdError + Send + Sync>;

/// Makes a connection in the time that its request has for it. The client calls this while it polls the request.
fn connect<C, F>(connecting: F) -> impl Future<Output = Result<C, ConnectError>> + Send + 'static
where
    F: Future<Output = Result<C, ConnectError>> + Send + 'static,
{
    let time = CONNECT_TIME.try_with(|time| *time).ok();
    async move {
        match time {
            Some(time) => tokio::time::timeout(time, connecting)
                .await
                .map_err(|_| ConnectTimeout)?,
            None => connecting.await,
        }
    }
}

/// A connection was not made in the time that its request has for it.
#[derive(Debug)]
pub(super) struct ConnectTimeout;

impl fmt::Display for ConnectTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection took too long")
    }
}

impl StdError for ConnectTimeout {}

impl Client {
    /// A client without redirects (a redirect could lead out of the granted origins) and without a proxy.
    ///
    /// # Errors
    /// When TLS cannot be set up. Missing certificates are no error: then only https requests fail.
    pub fn new() -> anyhow::Result<Client> {
        // Fails when another app of the process has installed the provider. That is no error: the provider is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let public = Allowed::default();
        let (connections, certificates) = Connections::new(&public)?;
        Ok(Client {
            connections: Mutex::new(HashMap::from([(public, connections)])),
            certificates,
            own: OnceLock::new(),
            own_while_stopping: OnceLock::new(),
        })
    }

    /// Builds the connections that this module's requests need, so that no request has to wait for them.
    ///
    /// # Errors
    /// When TLS cannot be set up.
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

    pub(super) fn connections(&self, allowed: Allowed) -> reqwest::Result<Connections> {
        let mut all = self.connections.lock();
        if let Some(known) = all.get(&allowed) {
            return Ok(known.clone());
        }
        let (new, _) = Connections::new(&allowed)?;
        all.insert(allowed, new.clone());
        Ok(new)
    }

    /// The reason why https requests cannot be sent. None: they can be sent.
    pub fn without_https(&self) -> Option<&'static str> {
        let why = "the machine has no certificates of authorities to check https servers with: install the package `ca-certificates` (or name a file in SSL_CERT_FILE), then restart";
        (!self.certificates).then_some(why)
    }

    /// Sets the address that this app listens on, for requests to `/…`.
    pub fn set_own(&self, mut address: SocketAddr) {
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        // Fails when the address is set already. That is right: a reload keeps the sockets.
        let _ = self.own.set(address);
    }

    /// A loopback address of the IP version that the app listens on. The system chooses the port.
    pub fn own_while_stopping(&self) -> SocketAddr {
        match self.own.get() {
            Some(SocketAddr::V6(_)) => (Ipv6Addr::LOCALHOST, 0).into(),
            Some(SocketAddr::V4(_)) | None => (Ipv4Addr::LOCALHOST, 0).into(),
        }
    }

    /// Sets the address that requests to `/…` go to from now on: the server stops, and its other addresses are closed.
    pub fn set_own_while_stopping(&self, address: SocketAddr) {
        // Fails when the address is set already. That cannot happen: a server stops once.
        let _ = self.own_while_stopping.set(address);
    }

    /// The `host` header for a request to the app itself while the app stops. Then the address in the URL is not the
    /// address that clients use.
    pub(super) fn host(&self, url: &Url) -> Option<HeaderValue> {
        let stopping = self.own_while_stopping.get()?;
        let is_own = url.authority() == stopping.to_string();
        let own = self.own.get().filter(|_| is_own)?;
        HeaderValue::try_from(own.to_string()).ok()
    }

    /// The URL that a request goes to, and the addresses that its name may resolve to.
    pub(super) fn destination(&self, text: &str, module: &Module) -> Result<(Url, Allowed), Error> {
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
                .own_while_stopping
                .get()
                .or_else(|| self.own.get())
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

fn is_idempotent(method: &Method) -> bool {
    method.is_safe() || [Method::PUT, Method::DELETE].contains(method)
}

/// The causes of an error, the outermost first.
pub(super) fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(StdError::source(error), |&error| {
        // The `source` of an `io::Error` is that of the error inside it, which would be passed over.
        let io = error.downcast_ref::<io::Error>();
        let inside = io.and_then(io::Error::get_ref);
        match inside {
            Some(inside) => Some(inside as _),
            None => error.source(),
        }
    })
}

/// Whether an established connection ended before any answer.
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

/// The error that a view gets when its request was not answered.
pub(super) fn not_sent(error: reqwest::Error, module: &Module) -> Error {
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
        // The innermost cause says what happened ("connection refused"); the outermost text says only that something
        // went wrong.
        let text = causes(&error)
            .map(ToString::to_string)
            .last()
            .unwrap_or_else(|| error.to_string());
        Error::Connection(text)
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

    /// Tests the checks that need no DNS.
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
}
