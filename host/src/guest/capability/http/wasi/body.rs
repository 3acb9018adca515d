//! The bodies of outbound requests and of their responses.
//!
//! A component may hold many responses, and read them later. So a task receives the beginning of each body, up to
//! [`READ_AHEAD`], while the component does something else. When the end of a body has been received, its request is no
//! longer in flight: the permit is given back, and only the bytes that wait are paid for. A longer body keeps its permit
//! until the component has read it or dropped it; the task ends with the body.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi_http::{Error, WasiBody};

use super::error::BodyBroke;
use crate::scope::CallBytes;
use crate::scope::outbound::OutboundPermit;

/// The most bytes of a response that wait for the component. One piece that has been received may wait in addition.
pub(super) const READ_AHEAD: u32 = 64 << 10;
/// A piece counts for at least so many bytes, so that many small ones take no more memory than is paid for.
const PIECE_MIN: u32 = 512;

/// The body of a request, with its trailers.
pub(super) struct Sent {
    /// The mutex is never contended: with it, the body is `Sync`, as the client wants it.
    body: Mutex<WasiBody>,
    /// The length that the head declares.
    declared: Option<u64>,
    bytes: u64,
}

impl Sent {
    pub(super) fn new(body: WasiBody, declared: Option<u64>) -> Sent {
        Sent {
            body: Mutex::new(body),
            declared,
            bytes: 0,
        }
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BodyBroke;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyBroke>>> {
        let frame = ready!(Pin::new(self.body.get_mut()).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.bytes += u64::from(bytes_of(frame));
        }
        let is_short = self.declared.is_some_and(|length| self.bytes < length);
        Poll::Ready(match frame {
            // wasmtime loses its own error when a piece still waits to be sent.
            None if is_short => {
                let error = Error::HttpRequestBodySize(Some(self.bytes));
                Some(Err(BodyBroke::new(error)))
            }
            frame => frame.map(|frame| frame.map_err(BodyBroke::new)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().size_hint()
    }
}

/// The body of a response for the component. `between`: the most time between two pieces. `permit` and `held` are given
/// back when the end of the body has been received, `source` when the component has read it or dropped it.
pub(super) fn received(
    body: reqwest::Body,
    between: Duration,
    (mut permit, held): (OutboundPermit, CallBytes),
    source: Arc<()>,
) -> WasiBody {
    if body.is_end_stream() {
        return Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    permit.opened();
    let (sender, pieces) = mpsc::unbounded_channel();
    let waiting = Arc::new(Waiting {
        room: Semaphore::new(READ_AHEAD as usize),
        held: Mutex::new(held),
    });
    let left = body.size_hint().exact();
    let receiving = receive(body, between, permit, Arc::clone(&waiting), sender);
    let received = Received {
        pieces,
        left,
        waiting,
        _receiving: AbortOnDropHandle::new(tokio::spawn(receiving)),
        _source: source,
    };
    received.boxed_unsync()
}

/// What has been received and not yet read.
struct Waiting {
    /// A permit for each byte that there is room for.
    room: Semaphore,
    /// The memory for it.
    held: Mutex<CallBytes>,
}

/// A piece of a body, and the number of bytes of [`Waiting::room`] that it takes.
type Piece = (Result<Frame<Bytes>, Error>, u32);

async fn receive(
    mut body: reqwest::Body,
    between: Duration,
    permit: OutboundPermit,
    waiting: Arc<Waiting>,
    to: mpsc::UnboundedSender<Piece>,
) {
    loop {
        // Not while the component has to read first: the permit then comes free only if it does.
        let in_use = permit.in_use();
        let next = tokio::time::timeout(between, body.frame()).await;
        drop(in_use);
        let piece = match next {
            Ok(None) => break,
            Ok(Some(frame)) => frame.map_err(|_| Error::HttpResponseIncomplete),
            Err(_) => Err(Error::ConnectionReadTimeout),
        };
        let is_last = piece.is_err();
        let bytes = piece.as_ref().map_or(0, bytes_of);
        let bytes = bytes.clamp(PIECE_MIN, READ_AHEAD);
        let room = waiting.room.acquire_many(bytes).await;
        room.expect("the semaphore is never closed").forget();
        // Fails when the component has dropped the body, which aborts this task.
        let _ = to.send((piece, bytes));
        if is_last {
            break;
        }
    }
    let unread = READ_AHEAD as usize - waiting.room.available_permits();
    waiting.held.lock().cut_to(unread as u64);
}

/// Number of bytes of a piece.
fn bytes_of(frame: &Frame<Bytes>) -> u32 {
    let bytes = frame.data_ref().map_or(0, Bytes::len);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A body that is received by a task.
struct Received {
    pieces: mpsc::UnboundedReceiver<Piece>,
    /// The bytes that the component has not read, if the head declares a length.
    left: Option<u64>,
    waiting: Arc<Waiting>,
    _receiving: AbortOnDropHandle<()>,
    /// See [`crate::scope::Scope::body_source`].
    _source: Arc<()>,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let piece = ready!(self.pieces.poll_recv(context));
        Poll::Ready(piece.map(|(piece, bytes)| {
            self.waiting.room.add_permits(bytes as usize);
            let read = piece.as_ref().map_or(0, bytes_of);
            self.left = self.left.map(|left| left.saturating_sub(read.into()));
            piece
        }))
    }

    fn is_end_stream(&self) -> bool {
        // In this order: nothing is sent any more when the other end is closed.
        self.pieces.is_closed() && self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
