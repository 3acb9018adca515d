//! A request body that a sync guest reads while it arrives. The connection's loop receives, and the guest reads on the
//! thread of a worker. Without anything in between, each piece would wake the worker, and then the loop for the next
//! piece, while the other one waits. So a task of the loop receives ahead, up to [`AHEAD_BYTES`], and the guest takes all
//! that waits at once.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::budget::Room;

/// The most bytes that wait for the guest. The piece that comes next may wait beside them, in the buffer that it has
/// arrived in.
const AHEAD_BYTES: usize = 128 << 10;
/// The memory of a [`ReadAhead`]: for what waits and for what the guest has taken last, each in a buffer that may have
/// grown to twice as much.
pub(super) const BYTES: u64 = 4 * AHEAD_BYTES as u64;

/// A body that a task receives. The task ends with this value.
pub(super) struct ReadAhead {
    pipe: Arc<Pipe>,
    _receiving: AbortOnDropHandle<()>,
    _room: Room,
}

#[derive(Default)]
struct Pipe {
    state: Mutex<Waiting>,
    /// Notified when the guest has taken what waited.
    taken: Notify,
}

#[derive(Default)]
struct Waiting {
    /// A copy: a small piece would keep the whole buffer that it has arrived in.
    bytes: Vec<u8>,
    /// What comes after `bytes`: trailers, an error or, if there is nothing in it, the end.
    last: Option<Option<io::Result<Frame<Bytes>>>>,
    reader: Option<Waker>,
}

impl ReadAhead {
    /// Has `body` received on `runtime`, which is that of its connection. `room`: [`BYTES`] of memory.
    pub(super) fn new<B>(body: B, runtime: &Handle, room: Room) -> ReadAhead
    where
        B: Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let pipe = Arc::<Pipe>::default();
        let receiving = runtime.spawn(receive(body, Arc::clone(&pipe)));
        ReadAhead {
            pipe,
            _receiving: AbortOnDropHandle::new(receiving),
            _room: room,
        }
    }
}

async fn receive(body: impl Body<Data = Bytes, Error = io::Error>, to: Arc<Pipe>) {
    let mut body = pin!(body);
    loop {
        match body.frame().await {
            Some(Ok(frame)) if frame.is_data() => {
                let mut data = frame.into_data().unwrap_or_default();
                while !to.put(&mut data) {
                    to.taken.notified().await;
                }
            }
            last => return to.end(last),
        }
    }
}

impl Pipe {
    /// Takes what there is room for. Returns whether that is all of `data`.
    fn put(&self, data: &mut Bytes) -> bool {
        let mut state = self.state.lock();
        let room = AHEAD_BYTES - state.bytes.len();
        let part = data.split_to(data.len().min(room));
        state.bytes.extend_from_slice(&part);
        state.wake();
        data.is_empty()
    }

    fn end(&self, last: Option<io::Result<Frame<Bytes>>>) {
        let mut state = self.state.lock();
        state.last = Some(last);
        state.wake();
    }
}

impl Waiting {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Body for ReadAhead {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut state = self.pipe.state.lock();
        if !state.bytes.is_empty() {
            let bytes = std::mem::take(&mut state.bytes);
            drop(state);
            if bytes.len() >= AHEAD_BYTES {
                self.pipe.taken.notify_one();
            }
            return Poll::Ready(Some(Ok(Frame::data(bytes.into()))));
        }
        match &mut state.last {
            Some(last) => Poll::Ready(last.take()),
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
