//! The bytes of a web socket: a TCP connection that was one of HTTP/1.1, or one stream of an HTTP/2 connection (RFC 8441).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The most bytes that are handed to hyper at once.
const PIECE: usize = 4 << 10;
/// The memory of a stream of HTTP/2, which is drawn from the budget: hyper keeps up to three pieces for a client that does
/// not read, and h2 one.
pub(super) const HTTP2_BYTES: u64 = 4 * PIECE as u64;

/// The bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

thread_local! {
    /// What web sockets read into.
    pub(super) static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What a web socket reads from and writes to.
pub enum Stream {
    /// A connection of its own.
    Tcp(TcpStream),
    /// A stream of a connection that hyper goes on to serve.
    Http2(Http2Stream),
}

impl Stream {
    /// A stream of an HTTP/2 connection.
    pub fn http2(upgraded: Upgraded) -> Stream {
        Stream::Http2(Http2Stream {
            io: Box::new(TokioIo::new(upgraded)),
            ahead: BytesMut::new(),
            ended: false,
        })
    }

    /// Reads what there is. 0 bytes: the client has ended its direction.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_read(buffer),
            Stream::Http2(stream) => stream.try_read(buffer),
        }
    }

    /// Writes as much as there is room for.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Http2(stream) => stream.try_write(bytes),
        }
    }

    /// Waits until there may be something to read, if `reads`, or room to write, if `writes`.
    pub(super) async fn ready(&mut self, reads: bool, writes: bool) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                let interest = match (reads, writes) {
                    (true, true) => Interest::READABLE | Interest::WRITABLE,
                    (true, false) => Interest::READABLE,
                    (false, _) => Interest::WRITABLE,
                };
                stream.ready(interest).await.map(drop)
            }
            Stream::Http2(stream) => {
                poll_fn(|cx| {
                    // Both, so that either wakes the task.
                    let readable = reads && stream.poll_readable(cx);
                    let writable = writes && stream.poll_writable(cx);
                    match readable || writable {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
                Ok(())
            }
        }
    }

    /// Ends the host's direction, and reads until the client ends its own. A connection that is closed with bytes that
    /// nobody has read is reset, and the client may lose the close frame.
    pub(super) async fn hang_up(&mut self) {
        if self.end().await.is_err() {
            return;
        }
        while self.ready(true, false).await.is_ok() {
            let read = BUFFER.with_borrow_mut(|buffer| self.try_read(buffer));
            match read {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    async fn end(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                socket2::SockRef::from(&*stream).shutdown(std::net::Shutdown::Write)
            }
            Stream::Http2(stream) => poll_fn(|cx| Pin::new(&mut stream.io).poll_shutdown(cx)).await,
        }
    }
}

/// A stream of an HTTP/2 connection. hyper's type can only be polled. What is tried is polled for nobody: the task that
/// waits in [`Stream::ready`] then takes the place of nobody as the one to be woken.
pub struct Http2Stream {
    io: Box<TokioIo<Upgraded>>,
    /// What was read to find out whether there is something to read. It is taken at once.
    ahead: BytesMut,
    /// Whether the end, or an error, was read to find that out.
    ended: bool,
}

impl Http2Stream {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.ahead.is_empty() {
            let bytes = self.ahead.len().min(buffer.len());
            self.ahead.copy_to_slice(&mut buffer[..bytes]);
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new();
            }
            return Ok(bytes);
        }
        if self.ended {
            return Ok(0);
        }
        let nobody = &mut Context::from_waker(Waker::noop());
        match self.poll_read(nobody, buffer) {
            Poll::Ready(read) => read,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let nobody = &mut Context::from_waker(Waker::noop());
        let piece = &bytes[..bytes.len().min(PIECE)];
        match Pin::new(&mut self.io).poll_write(nobody, piece) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
        read.map_ok(|()| buffer.filled().len())
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ended || !self.ahead.is_empty() {
            return true;
        }
        BUFFER.with_borrow_mut(|buffer| match self.poll_read(cx, buffer) {
            Poll::Ready(Ok(bytes @ 1..)) => {
                self.ahead.extend_from_slice(&buffer[..bytes]);
                true
            }
            Poll::Ready(Ok(0) | Err(_)) => {
                self.ended = true;
                true
            }
            Poll::Pending => false,
        })
    }

    /// hyper has nothing to flush: its `poll_flush` waits until another piece can be written.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut self.io).poll_flush(cx).is_ready()
    }
}
