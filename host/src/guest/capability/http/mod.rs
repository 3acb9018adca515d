//! `http`: outbound requests to granted origins, within the time that the request has left.

pub mod client;
mod destination;
pub mod streaming;
pub mod wasi;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Accessor, HasSelf, Resource};

use super::handed;
use crate::budget::Room;
use crate::config::Module;
use crate::contract::http_types::{Error, InboundResponse, OutboundRequest, OutboundUpload};
use crate::guest::bindings::{http, http_async};
use crate::guest::store::Guest;
use crate::http::call_depth::{self, CALL_DEPTH};
use crate::http::message::{HOP_BY_HOP, HeadSize, header_bytes};
use crate::http::proxies::REQUEST_ID;
use crate::http::stream::stream;
use crate::http::trace_context::{TRACEPARENT, TRACESTATE};
use crate::scope::transaction::Withheld;
use crate::scope::{CallBytes, Origin, Scope};
use crate::telemetry::error::shown;
use crate::threads::deadline::Ended;
use client::{Connections, not_sent};
use streaming::{
    Answer, Body, Head, InFlight, ResponseStream, State, Upload, Uploading, exhausted, head,
};

/// The most bytes of a URL.
const URL_BYTES_MAX: usize = 64 << 10;
/// The bytes that an outbound request counts for in addition to its texts and its body. They include a connection.
pub(super) const CLIENT_BYTES: u64 = 32 << 10;

/// An outbound request and everything that is needed to send it. The sync and the async interface both use it.
struct Call {
    connections: Connections,
    request: reqwest::Request,
    module: Arc<Module>,
    scope: Arc<Scope>,
    /// How long the request may take, if the guest has said so.
    timeout: Option<Duration>,
    held: CallBytes,
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
        let client = &self.shared.services.http;
        let (url, allowed) = client.destination(&wanted.url, &self.shared.grants)?;
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
            if set_by_host(&key) || self.shared.services.trusted_headers.contains(&key) {
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
        if !wanted.body.is_empty() {
            *request.body_mut() = Some(wanted.body.into());
        }
        Ok(Call {
            connections: client.connections(allowed)?,
            module: Arc::clone(&self.shared.grants),
            request,
            scope: Arc::clone(scope),
            timeout: (wanted.timeout_ms).map(|ms| Duration::from_millis(ms.into())),
            held,
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

/// Checks that the request is not the copy of another one: nobody must notice anything of a copy.
pub(super) fn not_of_a_copy(scope: &Scope) -> Result<(), Error> {
    match scope.transaction.withholds(Withheld::Outbound) {
        true => Err(Error::Denied(
            "this request is a copy, which sends no outbound requests".to_owned(),
        )),
        false => Ok(()),
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
    /// Waits until the request may be sent, and notes that it is. After that, the request cannot be run again.
    async fn begin(self) -> Result<(Connections, reqwest::Request, Arc<Module>, InFlight), Error> {
        not_of_a_copy(&self.scope)?;
        let permit = self.scope.outbound().permit().await;
        let permit = permit.map_err(Error::Unavailable)?;
        self.scope.sent.store(true, SeqCst);
        let in_flight = InFlight {
            permit,
            scope: self.scope,
            _held: self.held,
        };
        Ok((self.connections, self.request, self.module, in_flight))
    }

    /// How long the request may take from now on.
    fn time(&self) -> Duration {
        let left = self.scope.time_for_call();
        self.timeout.map_or(left, |asked| asked.min(left))
    }

    /// Sends the request and receives the whole response.
    async fn send(mut self) -> Result<InboundResponse, Error> {
        *self.request.timeout_mut() = Some(self.time());
        let (connections, request, module, in_flight) = self.begin().await?;
        let sent = connections.execute(request).await;
        let mut response = sent.map_err(|error| not_sent(error, &module))?;
        let scope = &in_flight.scope;
        let Head {
            status,
            headers,
            _room,
        } = head(&response, scope)?;
        let max = scope.limits.outbound_response_max_bytes;
        let (mut body, mut room) = (Vec::new(), Room::empty(&scope.origin.account));
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

    /// Sends the request and waits for the head of the response.
    async fn open(self) -> Result<ResponseStream, Error> {
        let time = self.time();
        let (connections, request, module, in_flight) = self.begin().await?;
        let sent = tokio::time::timeout(time, connections.execute(request)).await;
        let sent = sent.map_err(|_| Error::Timeout)?;
        let response = sent.map_err(|error| not_sent(error, &module))?;
        ResponseStream::new(response, in_flight, None)
    }

    /// Begins the request, whose body follows.
    async fn upload(self, length: Option<u64>) -> Result<Upload, Error> {
        let timeout = self.timeout;
        let (connections, mut request, module, in_flight) = self.begin().await?;
        let scope = &in_flight.scope;
        let max = scope.limits.stream_max_bytes;
        let pipe = stream(&scope.origin.account, max, length, None);
        let (writer, body) = pipe.map_err(|why| Error::Unavailable(why.to_string()))?;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let sending = tokio::spawn(async move {
            let sent = connections.execute(request).await;
            sent.map_err(|error| not_sent(error, &module))
        });
        Ok(Upload::new(Uploading {
            writer,
            answer: Answer::Awaited(AbortOnDropHandle::new(sending)),
            in_flight,
            timeout,
        }))
    }
}

impl Guest {
    /// The call that begins an upload, and the length that the upload declares.
    fn upload_call(&self, wanted: OutboundUpload) -> Result<(Call, Option<u64>), Error> {
        let OutboundUpload {
            method,
            url,
            headers,
            length,
            timeout_ms,
        } = wanted;
        let max = self.work().scope.limits.stream_max_bytes;
        if let Some(length) = length.filter(|length| *length > max) {
            return Err(Error::TooLarge(format!(
                "the upload declares {length} bytes; the most is {max} (`stream_max_bytes`)"
            )));
        }
        let mut call = self.call(OutboundRequest {
            method,
            url,
            headers,
            body: Vec::new(),
            timeout_ms,
        })?;
        // Not a length of 0: the server would take the head alone for a whole request, before the upload is finished.
        if let Some(length @ 1..) = length {
            let headers = call.request.headers_mut();
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        Ok((call, length))
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

    fn open(
        &mut self,
        request: OutboundRequest,
    ) -> wasmtime::Result<Result<Resource<ResponseStream>, Error>> {
        let opened = match self.call(request) {
            Ok(call) => self.wait(call.open()).unwrap_or_else(|why| Err(why.into())),
            Err(error) => Err(error),
        };
        handed(&mut self.table, opened)
    }

    fn begin_upload(
        &mut self,
        request: OutboundUpload,
    ) -> wasmtime::Result<Result<Resource<Upload>, Error>> {
        let begun = match self.upload_call(request) {
            Ok((call, length)) => {
                let begun = self.wait(call.upload(length));
                begun.unwrap_or_else(|why| Err(why.into()))
            }
            Err(error) => Err(error),
        };
        handed(&mut self.table, begun)
    }
}

impl http::HostResponseStream for Guest {
    fn status(&mut self, response: Resource<ResponseStream>) -> wasmtime::Result<u16> {
        Ok(self.table.get(&response)?.head.status)
    }

    fn headers(
        &mut self,
        response: Resource<ResponseStream>,
    ) -> wasmtime::Result<Vec<(String, String)>> {
        Ok(self.table.get(&response)?.head.headers.clone())
    }

    fn read(
        &mut self,
        response: Resource<ResponseStream>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        let body = Arc::clone(&self.table.get(&response)?.body);
        let scope = Arc::clone(&self.work().scope);
        let read = self.wait(Body::read(body, max, scope));
        Ok(read.unwrap_or_else(|why| Err(why.into())))
    }

    fn drop(&mut self, response: Resource<ResponseStream>) -> wasmtime::Result<()> {
        self.table.delete(response)?;
        Ok(())
    }
}

impl http::HostUpload for Guest {
    fn write(
        &mut self,
        upload: Resource<Upload>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let state = self.table.get(&upload)?.state();
        let scope = Arc::clone(&self.work().scope);
        let written = self.wait(State::write(state, data, scope));
        Ok(written.unwrap_or_else(|why| Err(why.into())))
    }

    fn finish(
        &mut self,
        upload: Resource<Upload>,
    ) -> wasmtime::Result<Result<Resource<ResponseStream>, Error>> {
        let upload = self.table.delete(upload)?;
        let finished = self.wait(upload.finish());
        let finished = finished.unwrap_or_else(|why| Err(why.into()));
        handed(&mut self.table, finished)
    }

    fn drop(&mut self, upload: Resource<Upload>) -> wasmtime::Result<()> {
        self.table.delete(upload)?;
        Ok(())
    }
}

type Async = Accessor<Guest, HasSelf<Guest>>;

impl http_async::Host for Guest {}

impl http_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn send(
        accessor: &Async,
        request: OutboundRequest,
    ) -> wasmtime::Result<Result<InboundResponse, Error>> {
        match accessor.with(|mut store| store.get().call(request)) {
            Ok(call) => Ok(call.send().await),
            Err(error) => Ok(Err(error)),
        }
    }

    async fn open(
        accessor: &Async,
        request: OutboundRequest,
    ) -> wasmtime::Result<Result<Resource<ResponseStream>, Error>> {
        let opened = match accessor.with(|mut store| store.get().call(request)) {
            Ok(call) => call.open().await,
            Err(error) => Err(error),
        };
        accessor.with(|mut store| handed(&mut store.get().table, opened))
    }

    async fn begin_upload(
        accessor: &Async,
        request: OutboundUpload,
    ) -> wasmtime::Result<Result<Resource<Upload>, Error>> {
        let begun = match accessor.with(|mut store| store.get().upload_call(request)) {
            Ok((call, length)) => call.upload(length).await,
            Err(error) => Err(error),
        };
        accessor.with(|mut store| handed(&mut store.get().table, begun))
    }
}

impl http_async::HostResponseStream for Guest {
    fn status(&mut self, response: Resource<ResponseStream>) -> wasmtime::Result<u16> {
        http::HostResponseStream::status(self, response)
    }

    fn headers(
        &mut self,
        response: Resource<ResponseStream>,
    ) -> wasmtime::Result<Vec<(String, String)>> {
        http::HostResponseStream::headers(self, response)
    }

    fn drop(&mut self, response: Resource<ResponseStream>) -> wasmtime::Result<()> {
        http::HostResponseStream::drop(self, response)
    }
}

impl http_async::HostResponseStreamWithStore<Guest> for HasSelf<Guest> {
    async fn read(
        accessor: &Async,
        response: Resource<ResponseStream>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        let (body, scope) = accessor.with(|mut store| -> wasmtime::Result<_> {
            let guest = store.get();
            let body = Arc::clone(&guest.table.get(&response)?.body);
            Ok((body, Arc::clone(&guest.work().scope)))
        })?;
        Ok(Body::read(body, max, scope).await)
    }
}

impl http_async::HostUpload for Guest {
    fn drop(&mut self, upload: Resource<Upload>) -> wasmtime::Result<()> {
        http::HostUpload::drop(self, upload)
    }
}

impl http_async::HostUploadWithStore<Guest> for HasSelf<Guest> {
    async fn write(
        accessor: &Async,
        upload: Resource<Upload>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let (state, scope) = accessor.with(|mut store| -> wasmtime::Result<_> {
            let guest = store.get();
            let state = guest.table.get(&upload)?.state();
            Ok((state, Arc::clone(&guest.work().scope)))
        })?;
        Ok(State::write(state, data, scope).await)
    }

    async fn finish(
        accessor: &Async,
        upload: Resource<Upload>,
    ) -> wasmtime::Result<Result<Resource<ResponseStream>, Error>> {
        let upload = accessor.with(|mut store| store.get().table.delete(upload))?;
        let finished = upload.finish().await;
        accessor.with(|mut store| handed(&mut store.get().table, finished))
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
