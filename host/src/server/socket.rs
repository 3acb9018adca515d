//! A connection's socket, watched for its client while a request is answered (R15).
//!
//! hyper notices on HTTP/1 that a client has gone when it reads the end of what the client sends. It does not read on
//! while it has bytes that belong to no request yet: a pipelined request, or one line end too many. Then the socket is
//! read here, into a buffer that hyper gets later, for nothing but to see the end.
//!
//! A client that ends its own direction (`shutdown`) counts as gone, as it does for hyper when nothing is behind the
//! request. The buffer has a limit. A client that has sent more than that behind a whole request, unanswered, can be
//! watched no longer, and its connection is ended. HTTP/2 always reads on.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use http::{Request, Version};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;

use crate::budget::{Account, Room};

/// What a client may send behind a request that is not answered yet.
const AHEAD_MAX: usize = 256 << 10;
/// How much is read ahead at once.
const AHEAD_STEP: usize = 16 << 10;
/// What every connection may have sent, and no request has yet, before it is drawn from the budget.
const FREE: usize = 8 << 10;

/// The socket, as hyper has it.
pub(super) struct Socket {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    watch: Arc<Watch>,
    /// Read ahead, and not yet given to hyper.
    ahead: BytesMut,
    /// The client sends no more.
    ended: bool,
    /// Whether hyper waits for the socket, and so sees its end.
    hyper_waits: bool,
    /// What has been read of the head of the request that comes after `known` others.
    head: usize,
    known: u32,
    /// What the head and the bytes that were read ahead take.
    room: Room,
}

/// How far a connection of HTTP/1 is with its request.
#[derive(Default)]
pub(super) struct Watch {
    stage: AtomicU8,
    /// Requests that have begun to be answered.
    requests: AtomicU32,
}

/// Between two requests, or within the head of one.
const HEAD: u8 = 0;
/// A request is being answered, and its body arrives.
const BODY: u8 = 1;
/// A request is being answered, and hyper has all of it.
const WHOLE: u8 = 2;
/// HTTP/2: there is nothing to watch.
const HTTP2: u8 = 3;

impl Watch {
    /// The connection turned out to be one of HTTP/2.
    fn is_http2(&self) {
        self.stage.store(HTTP2, Relaxed);
    }

    /// A request is answered from now on; `whole` when it has no body.
    fn begins(&self, whole: bool) {
        self.requests.fetch_add(1, Relaxed);
        let stage = if whole { WHOLE } else { BODY };
        self.stage.store(stage, Relaxed);
    }

    /// All of its body is there.
    fn received(&self) {
        let _ = (self.stage).compare_exchange(BODY, WHOLE, Relaxed, Relaxed);
    }

    /// It is answered.
    fn ends(&self) {
        if self.stage() != HTTP2 {
            self.stage.store(HEAD, Relaxed);
        }
    }

    fn stage(&self) -> u8 {
        self.stage.load(Relaxed)
    }
}

/// A request that is being answered, until dropped.
pub(super) struct Watched(Arc<Watch>);

impl Watched {
    pub(super) fn new<B: Body>(watch: &Arc<Watch>, request: &Request<B>) -> Watched {
        match request.version() {
            Version::HTTP_2 => watch.is_http2(),
            _ => watch.begins(request.body().is_end_stream()),
        }
        Watched(Arc::clone(watch))
    }

    /// The request's body, watched for its end.
    pub(super) fn body<B>(&self, body: B) -> WatchedBody<B> {
        WatchedBody {
            body,
            watch: Arc::clone(&self.0),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.ends();
    }
}

/// A body that says when it is there.
pub(super) struct WatchedBody<B> {
    body: B,
    watch: Arc<Watch>,
}

impl<B: Body + Unpin> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.watch.received();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Socket {
    pub(super) fn new(
        stream: TimeoutStream<TcpStream>,
        account: &Arc<Account>,
    ) -> (Socket, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let socket = Socket {
            stream: Box::pin(stream),
            watch: Arc::clone(&watch),
            ahead: BytesMut::new(),
            ended: false,
            hyper_waits: false,
            head: 0,
            known: 0,
            room: Room::empty(account),
        };
        (socket, watch)
    }

    /// Looks whether the client has gone, where hyper does not.
    ///
    /// # Errors
    /// When it has, or when it cannot be told any more.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.give_back();
        // It may have stopped waiting when it is polled the next time.
        if std::mem::take(&mut self.hyper_waits) {
            return Ok(());
        }
        // Before a request is whole, there is nothing to cancel, and hyper reads.
        if self.watch.stage() != WHOLE {
            return Ok(());
        }
        while !self.ended && self.ahead.len() < AHEAD_MAX {
            let mut piece = [MaybeUninit::uninit(); AHEAD_STEP];
            let mut piece = ReadBuf::uninit(&mut piece);
            match self.stream.as_mut().poll_read(cx, &mut piece) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => self.ended = read.is_err() || piece.filled().is_empty(),
            }
            self.ahead.extend_from_slice(piece.filled());
            self.take_room(self.ahead.len())?;
            // hyper may have waited for these bytes.
            cx.waker().wake_by_ref();
        }
        Err(io::Error::other(match self.ended {
            true => "the client has gone",
            false => {
                "the client has sent more than 256 kB behind a request that is not answered yet"
            }
        }))
    }

    /// Where hyper cannot write on, it does not flush either.
    fn written(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.look(cx)?;
        }
        written
    }

    /// Draws what the client has sent and no request has yet.
    fn take_room(&mut self, bytes: usize) -> io::Result<()> {
        if bytes <= FREE {
            return Ok(());
        }
        let drawn = self.room.grow_to(bytes as u64);
        drawn.map_err(|why| io::Error::new(io::ErrorKind::OutOfMemory, why.to_string()))
    }

    fn count(&mut self, read: usize) -> io::Result<()> {
        self.give_back();
        if self.watch.stage() == HEAD {
            self.head += read;
            return self.take_room(self.head + self.ahead.len());
        }
        Ok(())
    }

    /// Gives back what was drawn for a head that is a request by now: that draws for itself. A client that waits for each
    /// answer sends nothing meanwhile that would tell.
    fn give_back(&mut self) {
        let requests = self.watch.requests.load(Relaxed);
        if std::mem::replace(&mut self.known, requests) == requests && self.watch.stage() == HEAD {
            return;
        }
        self.head = 0;
        if self.ahead.is_empty() && self.room.bytes() > 0 {
            self.room = Room::empty(self.room.account());
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
        } else if !self.ended {
            let read = self.stream.as_mut().poll_read(cx, buffer);
            self.hyper_waits = read.is_pending();
            std::task::ready!(read)?;
        }
        let read = buffer.filled().len() - before;
        Poll::Ready(self.count(read))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write_vectored(cx, bytes);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes whenever it has looked what there is to read.
        self.look(cx)?;
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}
