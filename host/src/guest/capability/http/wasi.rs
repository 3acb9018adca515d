//! `wasi:http` for plain components: outbound requests, under the same grants and limits as those of the capability
//! `http`. Their bodies stream both ways.

mod body;
mod error;
pub(crate) mod response;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Body as _;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, RequestOptions, WasiBody, WasiHttpCtxView, WasiHttpHooks,
    WasiHttpView,
};

use super::client::{Connections, connecting_within};
use super::{CLIENT_BYTES, add_context, not_of_a_copy, not_too_deep, set_by_host};
use crate::config::Module as Grants;
use crate::contract::http_types;
use crate::guest::held::PIECE_BYTES;
use crate::guest::store::{Guest, OutboundHttp};
use crate::http::message::head_size;
use crate::scope::Scope;
use crate::telemetry::error::shown;
use body::{READ_AHEAD, Sent, received};
use error::{logged, not_answered, told};

/// The rest of the work on a request whose response has begun. reqwest does it by itself.
type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let wasi = self.wasi();
        let account = &wasi.outbound.scope().origin.account;
        // A component that holds too much finds nothing any more, and traps.
        let table = match wasi.http_held.allows_call(&mut wasi.table, account) {
            true => &mut wasi.table,
            false => &mut wasi.no_table,
        };
        WasiHttpCtxView {
            hooks: &mut wasi.outbound,
            table,
            ctx: &mut wasi.http,
        }
    }
}

/// The headers that no component sets.
static FORBIDDEN: [HeaderName; 9] = DEFAULT_FORBIDDEN_HEADERS;

impl WasiHttpHooks for OutboundHttp {
    // What the default does, too. But the default makes a closure on the heap for each header.
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        FORBIDDEN.contains(name)
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE_BYTES
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Io), Error>> + Send> {
        // The component may pass the body of this response on.
        self.takes_body_at_once = false;
        let outbound = self.outbound(request, options.unwrap_or_default());
        Box::new(async move {
            let response = outbound?.send().await?;
            Ok((response, Box::new(async { Ok(()) }) as Io))
        })
    }
}

/// An outbound request, and what is needed to send it.
struct Outbound {
    connections: Connections,
    request: reqwest::Request,
    options: RequestOptions,
    grants: Arc<Grants>,
    scope: Arc<Scope>,
}

impl OutboundHttp {
    fn scope(&self) -> &Arc<Scope> {
        self.scope.as_ref().expect("a guest runs for a request")
    }

    fn outbound(
        &self,
        request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Outbound, Error> {
        let scope = self.scope();
        let (parts, body) = request.into_parts();
        let checked = head_size(&parts.headers).check("request", scope.limits.head_max());
        checked.map_err(|why| logged(scope, Error::HttpRequestHeaderSectionSize(None), &why))?;
        let client = &self.shared.services.http;
        let to = keeps_meaning(parts.uri.path())
            .and_then(|()| client.destination(&parts.uri.to_string(), &self.shared.grants));
        let (url, allowed) = to.map_err(|why| told(scope, why))?;
        not_too_deep(scope).map_err(|why| told(scope, why))?;
        let mut request = reqwest::Request::new(parts.method, url);
        // What only the host may set is replaced or left out: a component's libraries may set such headers by
        // themselves.
        let trusted = &self.shared.services.trusted_headers;
        for (name, value) in &parts.headers {
            let kept = [header::CONTENT_LENGTH, header::TRAILER].contains(name)
                || !(set_by_host(name) || trusted.contains(name));
            if kept {
                request.headers_mut().append(name.clone(), value.clone());
            }
        }
        if takes_trailers(&parts.headers) {
            let trailers = HeaderValue::from_static("trailers");
            request.headers_mut().insert(header::TE, trailers);
        }
        if let Some(host) = client.host(request.url()) {
            request.headers_mut().insert(header::HOST, host);
        }
        add_context(&scope.origin, request.headers_mut());
        if !body.is_end_stream() && body.size_hint().upper() != Some(0) {
            let length = parts.headers.get(header::CONTENT_LENGTH);
            let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            *request.body_mut() = Some(reqwest::Body::wrap(Sent::new(body, length)));
        }
        Ok(Outbound {
            connections: (client.connections(allowed))
                .map_err(|error| Error::InternalError(Some(error.to_string())))?,
            request,
            options,
            grants: Arc::clone(&self.shared.grants),
            scope: Arc::clone(scope),
        })
    }
}

/// Checks that the parser of URLs keeps the meaning of a path. Like a browser, it takes `\` for `/`, and resolves the
/// segments `.` and `..`.
fn keeps_meaning(path: &str) -> Result<(), http_types::Error> {
    let is_dots = |segment: &str| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == "." || segment == ".."
    };
    let why = match path {
        _ if path.contains('\\') => "a backslash, which would be sent as `/`: write `%5C`",
        _ if path.split('/').any(is_dots) => {
            "a segment `.` or `..`, which would be resolved: resolve it"
        }
        _ => return Ok(()),
    };
    Err(http_types::Error::Invalid(format!(
        "the path `{}` has {why}",
        shown(path)
    )))
}

/// Whether a component reads the trailers of the response. What else `te` may say is about the connection.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter();
    let mut items = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    items.any(|item| item.trim().eq_ignore_ascii_case("trailers"))
}

impl Outbound {
    async fn send(self) -> Result<http::Response<WasiBody>, Error> {
        let Outbound {
            connections,
            request,
            options,
            grants,
            scope,
        } = self;
        let unavailable = |why| told(&scope, http_types::Error::Unavailable(why));
        not_of_a_copy(&scope).map_err(|why| told(&scope, why))?;
        let permit = scope.outbound().permit().await.map_err(unavailable)?;
        let held = scope.hold_call(CLIENT_BYTES + u64::from(READ_AHEAD));
        let held = held.map_err(unavailable)?;
        scope.sent.store(true, SeqCst);
        let left = scope.deadline.remaining();
        let connect = options.connect_timeout.unwrap_or(left);
        let first_byte = options.first_byte_timeout.filter(|limit| *limit < left);
        let sending = connecting_within(connect, connections.execute(request));
        let response = match tokio::time::timeout(first_byte.unwrap_or(left), sending).await {
            // The limit of the component, with the code that wasmtime has for it; then that of the request.
            Err(_) if first_byte.is_some() => return Err(Error::ConnectionReadTimeout),
            Err(_) => return Err(Error::HttpResponseTimeout),
            Ok(Err(failed)) => return Err(not_answered(&failed, &scope, &grants)),
            Ok(Ok(response)) => http::Response::<reqwest::Body>::from(response),
        };
        let size = head_size(response.headers());
        let checked = size.check("response", scope.limits.head_max());
        checked.map_err(|why| told(&scope, http_types::Error::TooLarge(why)))?;
        let between = options.between_bytes_timeout.unwrap_or(left);
        let source = scope.body_source();
        Ok(response.map(|body| received(body, between, (permit, held), source)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_the_parser_would_change_are_refused() {
        for path in [
            "/",
            "/a//b",
            "/a/...",
            "/.a",
            "/a..",
            "/%2e%2e%2e",
            "/{a}",
            "/a'b",
        ] {
            assert!(keeps_meaning(path).is_ok(), "{path}");
        }
        for path in [
            "/a/../b",
            "/./a",
            "/..",
            "/a/.",
            "/%2e%2E/a",
            "/.%2e",
            "/%2E",
            "/a\\b",
        ] {
            assert!(keeps_meaning(path).is_err(), "{path}");
        }
    }

    #[test]
    fn only_trailers_of_te_are_sent_on() {
        let takes = |value: &'static str| {
            let te = HeaderValue::from_static(value);
            takes_trailers(&HeaderMap::from_iter([(header::TE, te)]))
        };
        assert!(takes("trailers") && takes("deflate;q=0.5, Trailers"));
        assert!(!takes("deflate") && !takes_trailers(&HeaderMap::new()));
    }
}
