//! One connection, from its first byte to its last. It speaks HTTP/1.1 or HTTP/2, as the client chooses.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::Either;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as _, Incoming};
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::Kind;
use super::activity::{Activity, IdleCheck};
use super::socket::{AnsweringBody, Socket, Watched};
use crate::app::host::Host;
use crate::budget;
use crate::config::Server as Limits;
use crate::http::call_depth;
use crate::http::message::{ResponseBody, empty, is_bodiless};
use crate::request::socket::{KeptOpen, Stream, Upgrades};
use crate::request::{self, Client};

/// Takes the stream out of a connection that has become a web socket. What is not a connection of its own is a stream of
/// an HTTP/2 connection.
pub(super) fn into_stream(upgraded: Upgraded) -> Option<(Stream, Bytes)> {
    let parts = match auto::upgrade::downcast::<TokioIo<Socket>>(upgraded) {
        Ok(parts) => parts,
        Err(stream) => return Some((Stream::http2(stream), Bytes::new())),
    };
    let (stream, ahead) = parts.io.into_inner().into_parts().ok()?;
    let read = match ahead.is_empty() {
        true => parts.read_buf,
        false => [&parts.read_buf[..], &ahead].concat().into(),
    };
    Some((Stream::Tcp(stream), read))
}

/// How often the host sends a ping on an HTTP/2 connection, and how long the client may take to answer it.
const HTTP2_PING: Duration = Duration::from_secs(20);
const HTTP2_PONG: Duration = Duration::from_secs(10);

/// The windows of HTTP/2: how many bytes a client may send before the host has read them, on one stream and on the
/// whole connection. A new connection draws the larger window from the memory budget, with 64 kB more for heads and
/// frames.
const HTTP2_STREAM_WINDOW: u32 = 128 << 10;
const HTTP2_WINDOW: u32 = 256 << 10;
const HTTP2_BYTES: u64 = HTTP2_WINDOW as u64 + (64 << 10);
/// How many bytes of a response hyper keeps for a stream until the client reads. One piece of a body may exceed the
/// limit.
const HTTP2_SEND_BYTES: usize = 64 << 10;

/// The most streams that a client may reset before the host has accepted them.
const HTTP2_RESETS: usize = 20;

/// The first bytes of an HTTP/2 connection (RFC 9113, 3.4). No request of HTTP/1 begins with them.
const HTTP2: &[u8] = b"PRI ";

/// hyper's settings for each protocol, with the limits that hyper enforces.
pub(super) struct Protocols {
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    /// For connections whose first bytes do not decide the protocol.
    either: auto::Builder<TokioExecutor>,
}

impl Protocols {
    pub(super) fn new(limits: &Limits) -> Protocols {
        let either = protocol(limits);
        Protocols {
            http1: either.clone().http1_only(),
            http2: either.clone().http2_only(),
            either,
        }
    }

    /// The settings for a connection that begins with these bytes. If they decide the protocol, hyper needs no buffer
    /// of its own to find it out.
    fn of(&self, first: &[u8]) -> &auto::Builder<TokioExecutor> {
        match first {
            HTTP2 => &self.http2,
            some if HTTP2.starts_with(some) => &self.either,
            _ => &self.http1,
        }
    }
}

fn protocol(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut protocol = auto::Builder::new(TokioExecutor::new());
    protocol
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_timeout_ms))
        .max_buf_size(limits.headers_max_bytes)
        .max_headers(limits.headers_max);
    protocol
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams_max)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .max_pending_accept_reset_streams(HTTP2_RESETS)
        .max_header_list_size(u32::try_from(limits.headers_max_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PONG)
        .enable_connect_protocol();
    protocol
}

/// How many bytes of a response hyper has not got together with its head, if their number is known.
fn left_after_head(response: &Response<ResponseBody>) -> Option<u64> {
    let body = response.body();
    if matches!(body, Either::Left(_)) || is_bodiless(response.status()) || body.is_end_stream() {
        return Some(0);
    }
    let declared = response.headers().get(header::CONTENT_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
    declared.or_else(|| body.size_hint().exact())
}

/// What a connection is looked at for, beside its requests.
enum Event {
    /// It is time to see whether it is idle.
    Look,
    /// The host stops.
    Stop,
}

/// Serves a connection until the client closes it, a limit is reached, or, after `stop`, its requests in flight are
/// answered. A connection from the app itself that is made after `stop` ends with its first request.
pub(super) async fn serve(
    host: Arc<Host>,
    limits: &Limits,
    protocols: &Protocols,
    (stream, peer, kind): (TcpStream, SocketAddr, Kind),
    upgrades: Upgrades,
) {
    let stop = &upgrades.stop.clone();
    let begun = CancellationToken::new();
    let stop = match kind {
        Kind::Any => stop,
        Kind::Own => &begun,
    };
    let _ = stream.set_nodelay(true);
    let first_look = Duration::from_millis(limits.header_timeout_ms);
    let mut first = [0; HTTP2.len()];
    let seen = tokio::select! {
        seen = stream.peek(&mut first) => seen,
        () = tokio::time::sleep(first_look) => {
            return tracing::debug!(%peer, "a connection was ended: nothing arrived within `header_timeout_ms`");
        }
        () = stop.cancelled() => return,
    };
    let Ok(seen) = seen else { return };
    let protocol = protocols.of(&first[..seen]);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(Duration::from_millis(limits.write_timeout_ms)));
    let activity = Activity::new(limits);
    let client = Client {
        peer,
        account: budget::process().connection(),
        upgrades,
    };
    // A connection whose first bytes do not decide the protocol counts as HTTP/2.
    if HTTP2.starts_with(&first[..seen]) && client.account.charge(HTTP2_BYTES).is_err() {
        return tracing::debug!(%peer, "a connection was ended: there is no memory for another one of HTTP/2");
    }
    let client = Arc::new(client);
    let (socket, watch) = Socket::new(stream, &client.account);
    let service = service_fn(|request: Request<Incoming>| {
        let answering = activity.request(request.version());
        let watched = Watched::new(&watch, &request);
        let mut request = request.map(|body| watched.body(body));
        if request.extensions().get::<Protocol>().is_some() {
            let kept = KeptOpen(Arc::new(activity.request(request.version())));
            request.extensions_mut().insert(kept);
        }
        let (host, client) = (Arc::clone(&host), Arc::clone(&client));
        let refused = kind == Kind::Own && call_depth::of(request.headers()) == 0;
        if kind == Kind::Own {
            begun.cancel();
        }
        let (mut parts, body) = request.into_parts();
        async move {
            let response = match refused {
                false => request::answer(&host, &client, &mut parts, body).await,
                true => empty(StatusCode::SERVICE_UNAVAILABLE),
            };
            let left = left_after_head(&response);
            if left == Some(0) && watched.outlasts_response() {
                tokio::task::yield_now().await;
            }
            let response = response.map(|body| match body {
                Either::Left(whole) => Either::Left(whole),
                Either::Right(body) => {
                    Either::Right(BoxBody::new(AnsweringBody::new(body, watched, left)))
                }
            });
            Ok::<_, Infallible>(answering.send(response))
        }
    });
    let mut serving =
        std::pin::pin!(protocol.serve_connection_with_upgrades(TokioIo::new(socket), service));
    let look_at = |then: Instant| async move {
        tokio::time::sleep_until(then.into()).await;
        Event::Look
    };
    // This is polled only when one of the events comes, while the connection is polled twice for each request.
    let mut events = FuturesUnordered::new();
    events.push(look_at(Instant::now() + first_look).boxed());
    events.push(stop.cancelled().map(|()| Event::Stop).boxed());
    let mut closing = false;
    loop {
        let polled = std::future::poll_fn(|cx| {
            if watch.is_last() {
                serving.as_mut().graceful_shutdown();
            }
            serving.as_mut().poll(cx)
        });
        let ended = tokio::select! {
            ended = polled => ended,
            Some(event) = events.next() => {
                let check = match event {
                    Event::Stop => None,
                    Event::Look => Some(activity.look(Instant::now())),
                };
                if matches!(check, None | Some(IdleCheck::Close(_))) && !closing {
                    serving.as_mut().graceful_shutdown();
                    closing = true;
                }
                match check {
                    None | Some(IdleCheck::Never) => {}
                    Some(IdleCheck::Later(then) | IdleCheck::Close(then)) => {
                        events.push(look_at(then).boxed());
                    }
                    Some(IdleCheck::Drop(why)) => {
                        tracing::debug!(%peer, "a connection was ended: {why}");
                        return;
                    }
                }
                continue;
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended with an error");
        }
        return;
    }
}
