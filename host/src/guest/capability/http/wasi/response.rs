//! The response that a component of WASI 0.3 makes.
//!
//! wasmtime takes nothing of a body before the component has handed its response over. So a component that writes its
//! body at once has to wait, and is entered again when the body has been taken, and again for the trailers. Here, what
//! it writes is taken as it is written, and most components end with the call that has made the response.
//!
//! That holds for one response of a call, so one piece at most waits in a call. And it holds only while the component has
//! got no body that it could pass on: wasmtime takes such a body out of its stream again, and reads it without the
//! component.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::channel::{mpsc, oneshot};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Access, FutureConsumer, FutureProducer, FutureReader, Linker, Resource, Source, StreamConsumer,
    StreamReader, StreamResult,
};
use wasmtime_wasi_http::p3::Response;
use wasmtime_wasi_http::p3::bindings::http::types::{ErrorCode, HostResponseWithStore};
use wasmtime_wasi_http::{Error, FieldMap, WasiHttp, WasiHttpView as _};

use crate::guest::held::PIECE_BYTES;
use crate::guest::store::Guest;

/// The headers, the body and the trailers that a component makes a response of.
type Parts = (
    Resource<FieldMap>,
    Option<StreamReader<u8>>,
    FutureReader<Trailers>,
);
type Trailers = Result<Option<Resource<FieldMap>>, ErrorCode>;
/// A response, and what the component learns of its sending.
type Made = (Resource<Response>, FutureReader<Sent>);
type Sent = Result<(), ErrorCode>;

/// Replaces the function of `linker` that makes a response.
///
/// # Errors
/// When another interface has the name of the one that the function is in.
pub(crate) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance("wasi:http/types@0.3.0")?;
    types.func_wrap("[static]response.new", |store, parts| {
        Ok((new(store, parts)?,))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

fn new(
    mut store: StoreContextMut<'_, Guest>,
    (headers, body, trailers): Parts,
) -> wasmtime::Result<Made> {
    let outbound = &mut store.data_mut().wasi().outbound;
    if !std::mem::take(&mut outbound.takes_body_at_once) {
        let store = Access::<_, WasiHttp>::new(store, Guest::http);
        return <WasiHttp as HostResponseWithStore<Guest>>::new(store, headers, body, trailers);
    }
    let (sender, end) = oneshot::channel();
    trailers.pipe(&mut store, TakesTrailers(Some(sender)))?;
    // Room for one piece: that of the only sender.
    let (sender, pieces) = mpsc::channel(0);
    if let Some(body) = body {
        body.pipe(&mut store, TakesBody(sender))?;
    }
    let written = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))));
    let written = written.with_trailers(end.map(|trailers| match trailers {
        Ok(Ok(trailers)) => trailers.map(Ok),
        Ok(Err(code)) => Some(Err(Error::from(code))),
        // The component has dropped them, or is gone. Whoever reads the body knows whether it has failed.
        Err(oneshot::Canceled) => None,
    }));
    // Without this, whoever asks for more after the end would poll the trailers again, which panics.
    let written = written.fuse();
    let http = store.data_mut().http();
    let mut headers = http.table.delete(headers)?;
    headers.set_immutable();
    let (mut response, sent) = Response::from_http(http.hooks, http::Response::new(written));
    response.headers = headers;
    let response = http.table.push(response)?;
    let sent = FutureReader::new(&mut store, TellsSent(sent.boxed()))?;
    Ok((response, sent))
}

/// Takes the pieces of a body as the component writes them.
struct TakesBody(mpsc::Sender<Bytes>);

impl StreamConsumer<Guest> for TakesBody {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        store: StoreContextMut<'_, Guest>,
        source: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let result = match self.0.poll_ready(context) {
            Poll::Pending if finish => StreamResult::Cancelled,
            Poll::Pending => return Poll::Pending,
            // Nobody wants the response.
            Poll::Ready(Err(_)) => StreamResult::Dropped,
            Poll::Ready(Ok(())) => {
                let mut source = source.as_direct(store);
                let bytes = source.remaining();
                let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE_BYTES)]);
                source.mark_read(piece.len());
                match piece.is_empty() || self.0.start_send(piece).is_ok() {
                    true => StreamResult::Completed,
                    false => StreamResult::Dropped,
                }
            }
        };
        Poll::Ready(Ok(result))
    }
}

/// Takes the trailers when the component writes them.
struct TakesTrailers(Option<oneshot::Sender<Result<Option<HeaderMap>, ErrorCode>>>);

impl FutureConsumer<Guest> for TakesTrailers {
    type Item = Trailers;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<'_, Guest>,
        mut source: Source<'_, Trailers>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut trailers = None;
        source.read(&mut store, &mut trailers)?;
        if let (Some(trailers), Some(sender)) = (trailers, self.0.take()) {
            let table = store.data_mut().http().table;
            let trailers = match trailers {
                Ok(Some(trailers)) => Ok(Some(table.delete(trailers)?.into())),
                Ok(None) => Ok(None),
                Err(code) => Err(code),
            };
            // Fails when nobody wants the response.
            let _ = sender.send(trailers);
        }
        Poll::Ready(Ok(()))
    }
}

/// Tells the component what has become of its response.
struct TellsSent(BoxFuture<'static, Result<(), Error>>);

impl FutureProducer<Guest> for TellsSent {
    type Item = Sent;

    fn poll_produce(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        _: StoreContextMut<'_, Guest>,
        finish: bool,
    ) -> Poll<wasmtime::Result<Option<Sent>>> {
        let sent = match self.0.poll_unpin(context) {
            Poll::Pending if finish => return Poll::Ready(Ok(None)),
            sent => ready!(sent),
        };
        let sent = sent.map_err(|error| match error {
            Error::HttpResponseBodySize(bytes) => ErrorCode::HttpResponseBodySize(bytes),
            other => ErrorCode::InternalError(Some(other.to_string())),
        });
        Poll::Ready(Ok(Some(sent)))
    }
}
