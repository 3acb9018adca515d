//! `http`: outbound requests to granted origins, within the time that the request has left.

pub mod client;
mod destination;
pub mod wasi;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use wasmtime::component::{Accessor, HasSelf};

use crate::budget::{Exhausted, Room};
use crate::config::Module;
use crate::contract::http_types::{Error, InboundResponse, OutboundRequest};
use crate::guest::bindings::{http, http_async};
use crate::guest::store::Guest;
use crate::http::call_depth::{self, CALL_DEPTH};
use crate::http::message::{HEADER_BYTES, HOP_BY_HOP, HeadSize, header_bytes, text};
use crate::http::proxies::REQUEST_ID;
use crate::http::trace_context::{TRACEPARENT, TRACESTATE};
use crate::scope::{CallBytes, Origin, Scope};
use crate::telemetry::error::shown;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Ended;
use client::{Connections, not_sent};

/// The most bytes of a URL.
const URL_BYTES_MAX: usize = 64 << 10;
/// The bytes that an outbound request counts for in addition to its texts and its body. They include a connection.
const CLIENT_BYTES: u64 = 32 << 10;

/// An outbound request and everything that is needed to send it. The sync and the async interface both use it.
struct Call {
    connections: Connections,
    request: reqwest::Request,
    module: Arc<Module>,
    scope: Arc<Scope>,
    permits: Arc<Semaphore>,
    _held: CallBytes,
}

impl Guest {
    fn call(&self, wanted: OutboundRequest) -> Result<Call, Error> {
        let scope = &self.work().scope;
        let headers = header_bytes(&wanted.headers);
        let head = HeadSize {
            headers: wanted.headers.len(),
            bytes: headers,
        };
        let checked = head.check("request", scope.limits.head_max());
        checked.map_err(Error::Invalid)?;
        if wanted.url.len() > URL_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "the URL has {} bytes; the most is {URL_BYTES_MAX}",
                wanted.url.len()
            )));
        }
        // The client copies the texts, so they count twice.
        let texts = (wanted.url.len() + wanted.method.len()) as u64 + headers;
        let bytes = wanted.body.len() as u64 + texts * 2 + CLIENT_BYTES;
        let held = scope.hold_call(bytes);
        let held = held.map_err(Error::Unavailable)?;
        let client = &self.services.http;
        let (url, allowed) = client.destination(&wanted.url, &self.grants)?;
        not_too_deep(scope)?;
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
        if let Some(host) = client.host(request.url()) {
            request.headers_mut().insert(header::HOST, host);
        }
        add_context(&scope.origin, request.headers_mut());
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
            permits: scope.outbound(),
            _held: held,
        })
    }
}

/// Checks that the app's requests to itself are not nested too deep.
pub(super) fn not_too_deep(scope: &Scope) -> Result<(), Error> {
    let (depth, most) = (scope.origin.depth, scope.limits.outbound_depth_max);
    match depth < most {
        true => Ok(()),
        false => Err(Error::Denied(format!(
            "this request is within {depth} others that the app has sent to itself, as many as `outbound_depth_max` of `[limits]` allows: views call each other in a circle, or the limit is too low"
        ))),
    }
}

/// Adds the headers that tell the called server the id, the trace and the call depth of the request (R14).
pub(super) fn add_context(origin: &Origin, headers: &mut HeaderMap) {
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
    headers.insert(CALL_DEPTH, call_depth::sealed(origin.depth + 1));
}

/// Whether only the host may set this header. This is the case for headers about the connection, the length, the origin
/// and the context. With a `host` header, a guest could reach another site at a granted address. With a trace header,
/// it could pretend to be part of the trace of another request. With the headers of proxies, it could pretend to be
/// another client, if the called server trusts this machine as a proxy.
pub(super) fn set_by_host(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
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
    async fn send(self) -> Result<InboundResponse, Error> {
        let _permit = self
            .permits
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let _held = GaugeGuard::new(&METRICS.outbound);
        self.scope.sent.store(true, SeqCst);
        let module = Arc::clone(&self.module);
        let sent = self.connections.execute(self.request).await;
        let mut response = sent.map_err(|error| not_sent(error, &module))?;
        let account = &self.scope.origin.account;
        let size = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.as_str().len() + value.len()) as u64 + HEADER_BYTES
        };
        let bytes: u64 = response.headers().iter().map(size).sum();
        let count = response.headers().len();
        let head = HeadSize {
            headers: count,
            bytes,
        };
        let checked = head.check("response", self.scope.limits.head_max());
        checked.map_err(Error::TooLarge)?;
        let exhausted = |why: Exhausted| Error::TooLarge(why.to_string());
        let _headers = account.draw(bytes * 2).map_err(exhausted)?;
        let headers = (response.headers().iter())
            .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
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

    #[test]
    fn the_host_sets_what_routes_and_frames_a_request() {
        for name in ["host", "Host", "content-length", "te", "amphi-call-depth"] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            assert!(set_by_host(&name), "{name}");
        }
        assert!(!set_by_host(&header::AUTHORIZATION));
    }
}
