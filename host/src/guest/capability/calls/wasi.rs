//! `wasi:http/handler` as middleware of `wasi:http` 0.3 imports it: the rest of its chain.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3::{Request, Response};
use wasmtime_wasi_http::{Error as WasiError, WasiBody, WasiHttpView as _};

use super::{held, nowhere};
use crate::contract::types;
use crate::guest::store::{CallChain, Callee, Guest};
use crate::http::body::{Received, receive};
use crate::http::message::text;
use crate::http::stream::StreamBody;
use crate::scope::Scope;
use crate::telemetry::error::Failure;
use crate::threads::deadline::{Need, Waits};

/// Adds the import to `linker`.
///
/// # Errors
/// When the linker has it already.
pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut handler = linker.instance("wasi:http/handler@0.3.0")?;
    handler.func_wrap_concurrent("handle", |accessor, (request,): (Resource<Request>,)| {
        Box::pin(async move { Ok((next(accessor, request).await?,)) })
    })
}

type Next = Result<Resource<Response>, ErrorCode>;

async fn next(accessor: &Accessor<Guest>, request: Resource<Request>) -> wasmtime::Result<Next> {
    let taken = accessor.with(|mut store| {
        let request = store.get().http().table.delete(request)?;
        let request = match request.into_http(&mut store, async { Ok(()) }) {
            Ok((request, _)) => request,
            Err(error) => return error.downcast().map(Err),
        };
        let guest = store.get();
        let (work, limits) = (guest.work(), guest.shared.services.body_limits);
        let (scope, chain) = (Arc::clone(&work.scope), work.call_chain.clone());
        wasmtime::Result::Ok(Ok((request, limits, scope, chain, work.next.clone())))
    });
    let (request, limits, scope, chain, next) = match taken? {
        Ok(taken) => taken,
        Err(code) => return Ok(Err(code)),
    };
    let (parts, body) = request.into_parts();
    let answer = async {
        let chain = chain.ok_or_else(nowhere)?;
        let body = body.map_err(|error| format!("{error:?}"));
        let received = receive(body, &limits, &scope.origin.account).await;
        let (body, kept) = match received.map_err(error)? {
            Received::Inline(bytes) => (types::Body::Bytes(bytes), None),
            Received::Kept(body) => (body.contract(), Some(body)),
        };
        let request = contract(parts, body);
        let _held = held(&scope, &request)?;
        let answer = Arc::clone(&chain).go_async(Callee::Next, request, kept);
        response(answer.await?, &*chain, &scope).map_err(error)
    };
    let answer = answer.await;
    if let (Some(next), Err(error)) = (&next, &answer) {
        *next.error.lock() = Some(error.clone());
    }
    let (answer, streams) = match answer {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(ErrorCode::InternalError(Some(error.message)))),
    };
    if let Some(next) = next {
        next.streams.store(streams, SeqCst);
    }
    accessor.with(|mut store| {
        let http = store.get().http();
        // The component need not tell what it makes of the body.
        let (answer, _made) = Response::from_http(http.hooks, answer);
        Ok(Ok(http.table.push(answer)?))
    })
}

/// The error that stands for a failure of the host's.
fn error(failure: Failure) -> types::Error {
    types::Error {
        status: failure.status.as_u16(),
        message: failure.client_text.to_string(),
        detail: Some(failure.detail),
    }
}

/// The request in the form of the contract.
fn contract(mut parts: http::request::Parts, body: types::Body) -> types::Request {
    // The component has the host twice: as a header, and as part of the URI.
    if let Some(authority) = parts.uri.authority()
        && let Ok(host) = authority.as_str().parse()
    {
        parts.headers.insert(HOST, host);
    }
    let headers = parts.headers.iter();
    types::Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_string(), text(value.as_bytes())))
            .collect(),
        params: Vec::new(),
        body,
    }
}

/// The response as the component gets it, and whether its body is a stream.
fn response(
    response: types::Response,
    chain: &dyn CallChain,
    scope: &Scope,
) -> Result<(http::Response<WasiBody>, bool), Failure> {
    let mut built = http::Response::builder().status(response.status);
    let mut length = None;
    for (name, value) in &response.headers {
        match name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str()) {
            true => length = value.parse().ok(),
            false => built = built.header(name, value),
        }
    }
    let (body, streams) = match response.body {
        types::ResponseBody::Bytes(bytes) => {
            let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {});
            (body.boxed_unsync(), false)
        }
        types::ResponseBody::Stream(number) => {
            let body = Waited {
                body: chain.read_stream(number, length)?,
                waits: Some(scope.deadline.waits_for(Need::Stream)),
                _source: scope.body_source(),
            };
            if let Some(length) = length {
                built = built.header(CONTENT_LENGTH, length);
            }
            (body.boxed_unsync(), true)
        }
        types::ResponseBody::Subscription(_) => {
            return Err(Failure::view(
                "middleware of `wasi:http` cannot pass a subscription on: put the view behind none, or behind the SDK's",
            ));
        }
    };
    let built = built.body(body);
    let built = built.map_err(|error| Failure::view(format!("a response is not valid: {error}")));
    Ok((built?, streams))
}

/// The body of another function's response, which begins after the commit.
struct Waited {
    body: StreamBody,
    /// Until something of it has come.
    waits: Option<Waits>,
    /// See [`Scope::body_source`].
    _source: Arc<()>,
}

impl Body for Waited {
    type Data = Bytes;
    type Error = WasiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.waits = None;
        let broken = |_| WasiError::HttpResponseIncomplete;
        Poll::Ready(frame.map(|frame| frame.map_err(broken)))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
