//! A connection's socket. While a request is being answered, this module watches for the end of what the client sends
//! (R15).
//!
//! On HTTP/1, hyper notices that a client has disconnected when it reads the end of what the client sends. But hyper
//! does not read while it has bytes that belong to no request yet: a pipelined request, or one line end too many. In
//! that case this module reads from the socket itself, to see the end, and hyper gets the bytes later.
//!
//! A client that closes its sending direction (`shutdown`) counts as disconnected, as it does for hyper when nothing
//! follows the request. While a view gets its body as it arrives, the end may lie behind bytes that the view does not
//! read. Then this module asks the kernel from time to time; the kernel knows the end once all bytes before it have
//! arrived. There is a limit on the bytes that this module keeps for hyper. A client that sends more than that after a
//! complete request, before the response, can no longer be watched, and its connection is ended. On HTTP/2, hyper always
//! reads, and nothing is done here.
//!
//! hyper begins with the next request when request and response have both ended, though it may still have bytes of the
//! response if the request ended last. What it then says to the next request by itself, such as `100 Continue`, would go
//! before these bytes. So no response ends before its request here: hyper gets its last piece when the request's body
//! has been read, or has been given up, or the connection will take no further request.
//!
//! A response is written when the loop has run what else is ready. Writing wakes the reader; a reader on the same machine,
//! such as a proxy, then takes the place of the loop on its CPU, or another CPU has to be woken, and both cost as much as
//! a small view. This way, the reader is woken once and finds many responses.

use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::{Request, Version};
use hyper::body::{Body, Frame, SizeHint};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_io_timeout::TimeoutStream;

use crate::budget::{Account, Room};
use crate::guest::run;

/// The most bytes that a client may send after a request that is not answered yet.
const AHEAD_MAX: usize = 256 << 10;
/// How often the kernel is asked whether the client is there, while a body arrives that nobody reads.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The most bytes that are read ahead in one read.
const AHEAD_STEP: usize = 16 << 10;
/// How many bytes a client may have sent that are not a request yet, without memory being drawn from the budget. If
/// there are more, all of them are drawn.
const FREE: usize = 8 << 10;

/// The most bytes of a list of parts that are copied into one part to be written: the kernel takes longer for such a list
/// than the copy does.
const COPIED: usize = 1 << 10;

/// The socket as hyper uses it.
pub(super) struct Socket {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    watch: Arc<Watch>,
    /// Bytes that were read ahead and that hyper does not have yet.
    ahead: BytesMut,
    /// Whether the end of what the client sends was read.
    ended: bool,
    /// Whether hyper waits for the socket to become readable, and so sees the end itself.
    hyper_waits: bool,
    /// What the next write waits for.
    write: Write,
    /// When the kernel is to be asked next whether the client is there.
    ask: Option<Pin<Box<Sleep>>>,
    /// The number of bytes read of the head of the next request. `known` is the number of requests before it.
    head: usize,
    known: u32,
    /// The memory that is drawn for the head and for the bytes that were read ahead.
    room: Room,
}

/// What the next write waits for. Whatever is read meanwhile, it waits once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// Nothing: it goes on with a response, or its turn has come.
    AtOnce,
    /// What else is ready on the loop: something was read since the last write.
    AfterOthers,
    /// Its turn, for which it waits.
    Waits,
}

/// The stage of an HTTP/1 connection's current request.
#[derive(Default)]
pub(super) struct Watch {
    stage: AtomicU8,
    /// The number of requests that have begun to be answered.
    requests: AtomicU32,
    /// Whether the connection is to take no further request.
    last: AtomicBool,
}

/// Between two requests, or within the head of one.
const HEAD: u8 = 0;
/// A request is being answered, and its body has not arrived completely.
const BODY: u8 = 1;
/// As `BODY`, but nobody will read the rest of the body.
const GIVEN_UP: u8 = 2;
/// A request is being answered, and all of it has arrived.
const WHOLE: u8 = 3;
/// HTTP/2: there is nothing to watch.
const HTTP2: u8 = 4;

impl Watch {
    /// Notes that this is an HTTP/2 connection.
    fn is_http2(&self) {
        self.stage.store(HTTP2, Relaxed);
    }

    /// Notes that a request begins to be answered. `whole`: it has no body.
    fn begins(&self, whole: bool) {
        self.requests.fetch_add(1, Relaxed);
        let stage = if whole { WHOLE } else { BODY };
        self.stage.store(stage, Relaxed);
    }

    /// Notes that the request's body has arrived completely.
    fn received(&self) {
        let _ = (self.stage).compare_exchange(BODY, WHOLE, Relaxed, Relaxed);
    }

    /// Notes that nobody will read the rest of the request's body.
    fn given_up(&self) {
        let _ = (self.stage).compare_exchange(BODY, GIVEN_UP, Relaxed, Relaxed);
    }

    /// Whether the connection is to take no further request. True once.
    pub(super) fn is_last(&self) -> bool {
        self.last.load(Relaxed) && self.last.swap(false, Relaxed)
    }

    /// Notes that the request is answered.
    fn ends(&self) {
        if self.stage() != HTTP2 {
            self.stage.store(HEAD, Relaxed);
        }
    }

    fn stage(&self) -> u8 {
        self.stage.load(Relaxed)
    }
}

/// Marks a request as being answered, until dropped.
pub(super) struct Watched(Arc<Watch>);

impl Watched {
    pub(super) fn new<B: Body>(watch: &Arc<Watch>, request: &Request<B>) -> Watched {
        match request.version() {
            Version::HTTP_2 => watch.is_http2(),
            _ => watch.begins(request.body().is_end_stream()),
        }
        Watched(Arc::clone(watch))
    }

    /// Whether hyper has to be polled once more before the response may end: it then drops what is left of a body that was
    /// given up. Of a body that may still be read, the rest is not waited for: the connection ends after it.
    pub(super) fn outlasts_response(&self) -> bool {
        match self.0.stage() {
            BODY => self.0.last.store(true, Relaxed),
            GIVEN_UP => {}
            _ => return false,
        }
        true
    }

    /// The request's body, watched for its end.
    pub(super) fn body<B>(&self, body: B) -> WatchedBody<B> {
        WatchedBody {
            body,
            watch: Some(Arc::clone(&self.0)),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.ends();
    }
}

/// The body of a response that takes time to send. Its request counts as being answered until the body is dropped: the
/// client may leave while it waits for more.
pub(super) struct AnsweringBody<B: Body> {
    body: B,
    watched: Watched,
    /// How many bytes hyper has not got yet, if their number is known.
    left: Option<u64>,
    /// The last piece, while the request outlasts it.
    last: Option<Piece<B>>,
}

/// What a body gives when it is polled.
type Piece<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

impl<B: Body> AnsweringBody<B> {
    /// `left`: how many bytes hyper gets from this body, if their number is known.
    pub(super) fn new(body: B, watched: Watched, left: Option<u64>) -> AnsweringBody<B> {
        AnsweringBody {
            body,
            watched,
            left,
            last: None,
        }
    }

    /// Whether hyper takes the response for ended with this piece.
    fn ends_with(&mut self, piece: &Piece<B>) -> bool {
        let Some(Ok(frame)) = piece else { return true };
        let Some(data) = frame.data_ref() else {
            return true;
        };
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(data.remaining() as u64);
        }
        self.left == Some(0) || self.body.is_end_stream()
    }
}

impl<B: Body<Data: Unpin, Error: Unpin> + Unpin> Body for AnsweringBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Some(last) = self.last.take() {
            return Poll::Ready(last);
        }
        let piece = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.ends_with(&piece) && self.watched.outlasts_response() {
            self.last = Some(piece);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(piece)
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that notes when it has arrived completely, or is given up before.
pub(super) struct WatchedBody<B> {
    body: B,
    /// None: that was noted. The watch may be at a later request by now.
    watch: Option<Arc<Watch>>,
}

impl<B> Drop for WatchedBody<B> {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.given_up();
        }
    }
}

impl<B: Body + Unpin> Body for WatchedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if (frame.is_none() || self.body.is_end_stream())
            && let Some(watch) = self.watch.take()
        {
            watch.received();
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
            write: Write::AtOnce,
            ask: None,
            head: 0,
            known: 0,
            room: Room::empty(account),
        };
        (socket, watch)
    }

    /// The stream, and the bytes that were read ahead. The stream is another one to the same socket: the first one cannot
    /// be taken out of its pin.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) fn into_parts(self) -> io::Result<(TcpStream, BytesMut)> {
        let other = self.stream.get_ref().as_fd().try_clone_to_owned()?;
        Ok((TcpStream::from_std(other.into())?, self.ahead))
    }

    /// Checks whether the client has disconnected, when hyper does not.
    ///
    /// # Errors
    /// When the client has disconnected, when it has sent too much to be watched any longer, or when there is no memory
    /// for what it has sent.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.give_back();
        // Reset the flag, because hyper may have stopped waiting before the next poll.
        if std::mem::take(&mut self.hyper_waits) {
            return Ok(());
        }
        match self.watch.stage() {
            WHOLE => {}
            BODY | GIVEN_UP => return self.ask(cx),
            // There is no view to cancel, and hyper reads.
            _ => return Ok(()),
        }
        self.ask = None;
        while !self.ended && self.ahead.len() < AHEAD_MAX {
            let mut piece = [MaybeUninit::uninit(); AHEAD_STEP];
            let mut piece = ReadBuf::uninit(&mut piece);
            match self.stream.as_mut().poll_read(cx, &mut piece) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => self.ended = read.is_err() || piece.filled().is_empty(),
            }
            self.ahead.extend_from_slice(piece.filled());
            self.take_room(self.ahead.len())?;
            // Wakes hyper, which may wait for these bytes.
            cx.waker().wake_by_ref();
        }
        Err(io::Error::other(match self.ended {
            true => "the client has gone",
            false => {
                "the client has sent more than 256 kB behind a request that is not answered yet"
            }
        }))
    }

    /// Asks the kernel whether the client has disconnected, if it is time to: hyper does not read, because the view does
    /// not read its body.
    fn ask(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let next = || Box::pin(tokio::time::sleep(ASK_EVERY));
        let ask = self.ask.get_or_insert_with(next);
        while ask.as_mut().poll(cx).is_ready() {
            let socket = self.stream.get_ref();
            let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
            let now = Timespec::default();
            if rustix::event::poll(&mut asked, Some(&now))? > 0 {
                return Err(io::Error::other("the client has gone"));
            }
            ask.set(tokio::time::sleep(ASK_EVERY));
        }
        Ok(())
    }

    /// Checks for the client while a write is pending: hyper does not flush then, so `poll_flush` makes no check.
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

    /// Whether a write waits until the loop has run what else is ready. None waits beside a guest that computes: it would
    /// wait for a slice of that guest (R5).
    fn waits_for_others(&mut self, cx: &Context<'_>) -> bool {
        let waits = self.write == Write::AfterOthers && !run::is_computing();
        self.write = match waits {
            true => Write::Waits,
            false => Write::AtOnce,
        };
        if waits {
            cx.waker().wake_by_ref();
        }
        waits
    }

    /// Draws memory for bytes that the client has sent and that are not a request yet.
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

    /// Gives back the memory that was drawn for a head, once the head is a request: the request draws memory for
    /// itself. This runs at each check, too, because a client that waits for each response sends nothing in between.
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
        if read > 0 && self.write == Write::AtOnce {
            self.write = Write::AfterOthers;
        }
        Poll::Ready(self.count(read))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.waits_for_others(cx) {
            return Poll::Pending;
        }
        let written = self.stream.as_mut().poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.waits_for_others(cx) {
            return Poll::Pending;
        }
        let length: usize = bytes.iter().map(|part| part.len()).sum();
        let written = match length <= COPIED {
            true => {
                let mut whole = [0; COPIED];
                let mut rest = &mut whole[..];
                for part in bytes {
                    rest.write_all(part)?;
                }
                self.stream.as_mut().poll_write(cx, &whole[..length])
            }
            false => self.stream.as_mut().poll_write_vectored(cx, bytes),
        };
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes whenever it has tried to read, so the check runs often enough.
        self.look(cx)?;
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;
    use futures::FutureExt as _;
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Writes a text, and returns how often that was not done at once. `meanwhile` runs each time.
    async fn write(
        socket: &mut Socket,
        text: &[u8],
        mut meanwhile: impl FnMut(&mut Socket),
    ) -> u32 {
        let mut waits = 0;
        let written = poll_fn(|cx| {
            let written = Pin::new(&mut *socket).poll_write(cx, text);
            if written.is_pending() {
                waits += 1;
                meanwhile(socket);
            }
            written
        });
        assert_eq!(written.await.expect("the client is there"), text.len());
        waits
    }

    /// Reads three bytes.
    async fn read(socket: &mut Socket) {
        let all = socket.read_exact(&mut [0; 3]).await;
        assert_eq!(all.expect("they come"), 3);
    }

    /// A response of three pieces and a request whose body is not read: the last piece waits once, and the connection
    /// takes no further request unless the body was given up.
    #[test]
    fn no_response_ends_before_its_request() {
        for (left, given_up) in [(None, false), (Some(3), false), (Some(3), true)] {
            let watch = Arc::<Watch>::default();
            let request = Request::new(Full::new(Bytes::from("a body")));
            let watched = Watched::new(&watch, &request);
            let unread = watched.body(request.into_body());
            let unread = (!given_up).then_some(unread);
            let pieces =
                ["a", "b", "c"].map(|piece| Ok::<_, io::Error>(Frame::data(Bytes::from(piece))));
            let body = StreamBody::new(futures::stream::iter(pieces));
            let mut answering = AnsweringBody::new(body, watched, left);
            let mut waits = Vec::new();
            for place in 0..4 {
                let mut frame = answering.frame().now_or_never();
                if frame.is_none() {
                    waits.push((place, watch.is_last()));
                    assert!(!answering.is_end_stream());
                    frame = answering.frame().now_or_never();
                }
                let frame = frame.expect("it waits once");
                assert_eq!(frame.is_some(), place < 3);
            }
            let last = if left.is_some() { 2 } else { 3 };
            assert_eq!(waits.first(), Some(&(last, !given_up)));
            drop(unread);
        }
    }

    #[tokio::test]
    async fn a_response_waits_once_for_what_else_is_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("it has connected");
        let (mut socket, _) = Socket::new(TimeoutStream::new(stream), &Account::root(u64::MAX));
        for _ in 0..2 {
            client.write_all(b"one").await.expect("it is sent");
            read(&mut socket).await;
            assert_eq!(write(&mut socket, b"the head", |_| {}).await, 1);
            assert_eq!(write(&mut socket, b"the rest", |_| {}).await, 0);
        }
        // A client that sends all the time does not keep its responses waiting.
        client.write_all(b"onetwo").await.expect("it is sent");
        read(&mut socket).await;
        let reads_on = |socket: &mut Socket| {
            read(socket).now_or_never().expect("it has come");
        };
        assert_eq!(write(&mut socket, b"an answer", reads_on).await, 1);
    }
}
