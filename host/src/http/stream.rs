//! Bodies that are produced while they are sent: a pipe from a guest to a connection. The body is a response to a client,
//! or an upload to another server (`guest/capability/http/streaming.rs`), which is then the client of this page.
//!
//! The guest's end ([`StreamWriter`]) waits while the client is slow. The client's end ([`StreamBody`]) is what the
//! connection sends. A body is complete only if its writer says so ([`StreamWriter::finish`]): in every other case the
//! client's connection, or its HTTP/2 stream, ends with an error, so that no client takes a part for the whole.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::{Account, Exhausted, Room};
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::GaugeGuard;

/// The most bytes that wait for the client. A writer waits while there are that many.
const WAITING_BYTES: usize = 64 << 10;
/// Pieces up to this size are joined, so that a guest can write a line at a time.
const SMALL_BYTES: usize = 4 << 10;

/// Makes the two ends of a body. `max`: the most bytes of the body. `length`: the length that its head declares. `counted`:
/// the gauge that counts the body while one of its ends is there.
///
/// # Errors
/// When there is no memory for the bytes that wait for the client.
pub fn stream(
    account: &Arc<Account>,
    max: u64,
    length: Option<u64>,
    counted: Option<GaugeGuard>,
) -> Result<(StreamWriter, StreamBody), Exhausted> {
    let pipe = Arc::new(Pipe {
        state: Mutex::default(),
        changed: Notify::new(),
        _room: account.draw(2 * WAITING_BYTES as u64)?,
        _counted: counted,
    });
    let writer = StreamWriter {
        pipe: Arc::clone(&pipe),
        written: 0,
        max,
        length,
        last: None,
        is_torn: false,
    };
    Ok((writer, StreamBody { pipe }))
}

struct Pipe {
    state: Mutex<State>,
    /// Notified when the client's end has taken something, or is dropped.
    changed: Notify,
    _room: Room,
    _counted: Option<GaugeGuard>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    /// Small pieces, joined. They come after `pieces`.
    small: BytesMut,
    /// Bytes in `pieces` and `small`.
    waiting: usize,
    trailers: Option<HeaderMap>,
    end: End,
    reader: Option<Waker>,
    /// Whether the client's end is dropped.
    gone: bool,
    /// Called once, when the client's end is dropped.
    watcher: Option<Watcher>,
    /// Called once, when the client's end is dropped before the body is finished.
    abandoned: Option<Box<dyn FnOnce() + Send>>,
}

/// What is told of the end of a stream: see [`StreamWatch::when_over`].
type Watcher = Box<dyn FnOnce(StreamEnd) + Send + Sync>;

#[derive(Default)]
enum End {
    /// The writer goes on.
    #[default]
    Open,
    /// The writer has finished the body.
    Finished,
    /// All of the finished body, and the news of its end, have been handed to the connection.
    Sent,
    /// The body is not complete.
    Failed(Option<Failure>),
}

/// How a stream has ended.
#[derive(Debug)]
pub enum StreamEnd {
    /// All of the body was handed to the connection.
    Complete,
    /// The body could not be completed.
    Failed(Failure),
    /// The connection did not take all of the body: the client has gone, or does not want a body.
    NotWanted,
}

impl State {
    fn push(&mut self, piece: Bytes) {
        self.waiting += piece.len();
        if piece.len() <= SMALL_BYTES {
            self.small.extend_from_slice(&piece);
        } else {
            self.join_small();
            self.pieces.push_back(piece);
        }
        self.wake();
    }

    fn join_small(&mut self) {
        if !self.small.is_empty() {
            let small = self.small.split().freeze();
            self.pieces.push_back(small);
        }
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Why nothing more can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWritten {
    /// The client has gone.
    Gone,
    /// The body has more bytes than it may have. The text is a sentence.
    TooLong(String),
    /// The body has more bytes than its head declares. The text is a sentence.
    Undeclared(String),
    /// The body is finished already.
    Finished,
}

/// The guest's end of a body. When it is dropped before [`StreamWriter::finish`], the body is not complete.
pub struct StreamWriter {
    pipe: Arc<Pipe>,
    written: u64,
    max: u64,
    length: Option<u64>,
    /// The last bytes of a declared length. The client gets them when the body has been finished: before, it could take a
    /// body for complete whose producer fails, or writes more.
    last: Option<Bytes>,
    /// Whether a piece was not written as a whole.
    is_torn: bool,
}

impl StreamWriter {
    /// Writes `data`. Waits while the client is slow. When the future is dropped before it is done, a part of `data` is
    /// missing, and the body can no longer be finished.
    ///
    /// # Errors
    /// When the client has gone, or the body is too long. A body that is too long can no longer be finished.
    pub async fn write(&mut self, data: Bytes) -> Result<(), NotWritten> {
        let is_torn = std::mem::replace(&mut self.is_torn, true);
        let written = self.write_all(data).await;
        if matches!(written, Ok(()) | Err(NotWritten::Gone)) {
            self.is_torn = is_torn;
        }
        written
    }

    async fn write_all(&mut self, mut data: Bytes) -> Result<(), NotWritten> {
        if data.is_empty() {
            return Ok(());
        }
        self.written += data.len() as u64;
        let (written, max) = (self.written, self.max);
        if written > max {
            return Err(NotWritten::TooLong(format!(
                "the body has more than {max} bytes (`stream_max_bytes`)"
            )));
        }
        let last = match self.length {
            Some(length) if written > length => {
                return Err(NotWritten::Undeclared(format!(
                    "the body has more bytes than the {length} that `content-length` declares"
                )));
            }
            Some(length) if written == length => {
                let last = data.split_off(data.len().saturating_sub(SMALL_BYTES));
                Some(Bytes::copy_from_slice(&last))
            }
            _ => None,
        };
        let is_large = data.len() > WAITING_BYTES;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(WAITING_BYTES));
            // Copied: a piece that waits would otherwise keep all of `data`.
            let piece = match is_large {
                true => Bytes::copy_from_slice(&piece),
                false => piece,
            };
            self.push(piece).await?;
        }
        self.last = last;
        Ok(())
    }

    async fn push(&self, piece: Bytes) -> Result<(), NotWritten> {
        loop {
            let changed = self.pipe.changed.notified();
            {
                let mut state = self.pipe.state.lock();
                if state.gone {
                    return Err(NotWritten::Gone);
                }
                if state.waiting < WAITING_BYTES {
                    state.push(piece);
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Completes the body.
    ///
    /// # Errors
    /// When the body is shorter than its head declares, or a piece of it is missing: it has failed then.
    pub async fn finish(mut self, trailers: Option<HeaderMap>) -> Result<(), Failure> {
        let why = match self.length {
            _ if self.is_torn => Some("a piece of the body was not written as a whole".to_owned()),
            Some(length) if self.written != length => Some(format!(
                "the body has {} bytes, and not the {length} that `content-length` declares",
                self.written
            )),
            _ => None,
        };
        if let Some(why) = why {
            let failure = Failure::view(why);
            self.handle().fail(&failure);
            return Err(failure);
        }
        if let Some(last) = self.last.take()
            && self.push(last).await.is_err()
        {
            // The client has gone: it is told nothing any more.
            return Ok(());
        }
        let mut state = self.pipe.state.lock();
        state.trailers = trailers;
        state.end = End::Finished;
        state.wake();
        Ok(())
    }

    /// A handle to the body, for those that do not write it.
    pub fn handle(&self) -> StreamHandle {
        StreamHandle(Arc::clone(&self.pipe))
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        if matches!(state.end, End::Open) {
            state.end = End::Failed(None);
        }
        state.wake();
    }
}

/// The guest's end of a body, for several callers at once: what they write is sent in the order of their calls.
pub struct BodyWriter {
    /// None: the body is finished.
    writer: tokio::sync::Mutex<Option<StreamWriter>>,
    trailers: Mutex<Option<HeaderMap>>,
}

impl BodyWriter {
    /// The body that `writer` writes.
    pub fn new(writer: StreamWriter) -> Arc<BodyWriter> {
        Arc::new(BodyWriter {
            writer: tokio::sync::Mutex::new(Some(writer)),
            trailers: Mutex::default(),
        })
    }

    /// Writes `data`, as [`StreamWriter::write`] does.
    ///
    /// # Errors
    /// As [`StreamWriter::write`], or when the body is finished.
    pub async fn write(&self, data: Bytes) -> Result<(), NotWritten> {
        match &mut *self.writer.lock().await {
            Some(writer) => writer.write(data).await,
            None => Err(NotWritten::Finished),
        }
    }

    /// Sets the trailers, in place of those that were set before.
    pub fn set_trailers(&self, trailers: HeaderMap) {
        *self.trailers.lock() = Some(trailers);
    }

    /// Completes the body.
    ///
    /// # Errors
    /// As [`StreamWriter::finish`].
    pub async fn finish(&self) -> Result<(), Failure> {
        let trailers = self.trailers.lock().take();
        match self.writer.lock().await.take() {
            Some(writer) => writer.finish(trailers).await,
            None => Ok(()),
        }
    }
}

/// A body, for those that do not write it.
#[derive(Clone)]
pub struct StreamHandle(Arc<Pipe>);

impl StreamHandle {
    /// Ends the body as one that is not complete, unless it has ended already.
    pub fn fail(&self, failure: &Failure) {
        let mut state = self.0.state.lock();
        if matches!(state.end, End::Open) {
            state.end = End::Failed(Some(failure.clone()));
            state.wake();
        }
    }

    /// Whether the writer has finished the body.
    pub fn is_finished(&self) -> bool {
        matches!(self.0.state.lock().end, End::Finished | End::Sent)
    }

    /// Whether nobody reads the body any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.state.lock().gone
    }

    /// Has `then` called when the connection takes no more of a body that is not finished, because the client has gone
    /// or wants no body; now, if that is so already.
    pub fn when_abandoned(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        if !state.gone {
            state.abandoned = Some(Box::new(then));
            return;
        }
        let is_finished = matches!(state.end, End::Finished | End::Sent);
        drop(state);
        if !is_finished {
            then();
        }
    }
}

/// The client's end of a body.
pub struct StreamBody {
    pipe: Arc<Pipe>,
}

impl StreamBody {
    /// The way to learn how the body ends.
    pub fn watch(&self) -> StreamWatch {
        StreamWatch(Arc::clone(&self.pipe))
    }

    /// Drops it as one that has been sent: the response has no body, and its writer has none to write.
    pub fn skip(self) {
        self.pipe.state.lock().end = End::Finished;
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut state = self.pipe.state.lock();
        state.join_small();
        if let Some(piece) = state.pieces.pop_front() {
            state.waiting -= piece.len();
            drop(state);
            self.pipe.changed.notify_waiters();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = state.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match state.end {
            End::Open => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
            End::Finished | End::Sent => {
                state.end = End::Sent;
                Poll::Ready(None)
            }
            End::Failed(_) => {
                let error = io::Error::other("the body could not be completed");
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.gone = true;
        // A connection whose response has a declared length does not ask for the end after the last byte.
        if matches!(state.end, End::Finished) && state.waiting == 0 {
            state.end = End::Sent;
        }
        let is_finished = matches!(state.end, End::Finished | End::Sent);
        // What the writer fails with from now on is only that nobody wants the body.
        if matches!(state.end, End::Open) {
            state.end = End::Failed(None);
        }
        let abandoned = state.abandoned.take().filter(|_| !is_finished);
        let told = state.watcher.take().map(|watcher| (watcher, state.ended()));
        drop(state);
        if let Some(abandoned) = abandoned {
            abandoned();
        }
        self.pipe.changed.notify_waiters();
        if let Some((watcher, end)) = told {
            watcher(end);
        }
    }
}

impl State {
    fn ended(&mut self) -> StreamEnd {
        match &mut self.end {
            End::Sent => StreamEnd::Complete,
            End::Failed(failure) => match failure.take() {
                Some(failure) => StreamEnd::Failed(failure),
                None => StreamEnd::NotWanted,
            },
            End::Open | End::Finished => StreamEnd::NotWanted,
        }
    }
}

/// Learns how a body ends.
pub struct StreamWatch(Arc<Pipe>);

impl StreamWatch {
    /// Has `watcher` called when the connection is done with the body; now, if it is already.
    pub fn when_over(self, watcher: impl FnOnce(StreamEnd) + Send + Sync + 'static) {
        let mut state = self.0.state.lock();
        if !state.gone {
            state.watcher = Some(Box::new(watcher));
            return;
        }
        let end = state.ended();
        drop(state);
        watcher(end);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::budget;

    fn made(max: u64, length: Option<u64>) -> (StreamWriter, StreamBody) {
        stream(&budget::process().unpaid(), max, length, None).expect("there is memory")
    }

    async fn read(body: StreamBody) -> Result<Vec<u8>, io::Error> {
        Ok(body.collect().await?.to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_finished_body_is_complete_and_another_one_is_an_error() {
        for finished in [true, false] {
            let (mut writer, body) = made(100, None);
            for text in ["a", "b", "c"] {
                writer.write(text.into()).await.expect("there is room");
            }
            match finished {
                true => writer.finish(None).await.expect("it has no length"),
                false => drop(writer),
            }
            let read = read(body).await;
            assert_eq!(read.ok(), finished.then(|| b"abc".to_vec()));
        }
    }

    #[tokio::test]
    async fn a_writer_waits_for_a_slow_client_and_learns_that_it_has_gone() {
        let (mut writer, mut body) = made(1 << 30, None);
        let much = Bytes::from(vec![7; 3 * WAITING_BYTES]);
        let mut writing = Box::pin(async {
            let written = writer.write(much).await;
            (written, writer)
        });
        assert!((&mut writing).now_or_never().is_none());
        let piece = body.frame().await.expect("there is one");
        let piece = piece.expect("it is whole").into_data().expect("it is data");
        assert_eq!(piece.len(), WAITING_BYTES);
        assert!((&mut writing).now_or_never().is_none());
        drop(body);
        let (written, writer) = writing.await;
        assert_eq!(written, Err(NotWritten::Gone));
        let told = Arc::new(Mutex::new(false));
        let telling = Arc::clone(&told);
        writer
            .handle()
            .when_abandoned(move || *telling.lock() = true);
        assert!(*told.lock());
    }

    #[tokio::test]
    async fn a_declared_length_is_kept_or_the_body_fails() {
        for (texts, whole) in [
            (&["ab", "cd"][..], true),
            (&["ab"], false),
            (&["ab", "cd", "e"], false),
            (&["abcde"], false),
        ] {
            let (mut writer, mut body) = made(100, Some(4));
            let mut written = Ok(());
            for text in texts {
                written = written.and(writer.write((*text).into()).await);
            }
            if texts.len() > 1 {
                let seen = body
                    .frame()
                    .now_or_never()
                    .expect("the first piece is there");
                let seen = seen.expect("it is").expect("it is whole").into_data();
                assert_eq!(
                    seen.expect("it is data"),
                    "ab",
                    "the last piece is kept back"
                );
            }
            match written {
                Ok(()) => assert_eq!(writer.finish(None).await.is_ok(), whole, "{texts:?}"),
                Err(why) => {
                    assert!(matches!(why, NotWritten::Undeclared(_)), "{why:?}");
                    let finished = writer.finish(None).await;
                    finished.expect_err("a part of it is missing");
                }
            }
            assert_eq!(read(body).await.is_ok(), whole, "{texts:?}");
        }
    }

    /// Whoever writes the body may go on after an error, or give a write up: the client sees that something is missing.
    #[tokio::test]
    async fn a_body_with_a_missing_piece_is_not_complete() {
        let (mut writer, body) = made(10, None);
        let written = writer.write(vec![7; 11].into()).await;
        assert!(
            matches!(written, Err(NotWritten::TooLong(_))),
            "{written:?}"
        );
        writer.write("b".into()).await.expect_err("it is too long");
        writer.finish(None).await.expect_err("a piece is missing");
        read(body).await.expect_err("a piece is missing");

        let (mut writer, body) = made(1 << 30, None);
        let much = Bytes::from(vec![7; 3 * WAITING_BYTES]);
        assert!(writer.write(much).now_or_never().is_none(), "it waits");
        writer.write(Bytes::new()).await.expect("it is nothing");
        writer.finish(None).await.expect_err("a piece is missing");
        read(body).await.expect_err("a piece is missing");
    }

    /// What waits for the client is what is paid for, however much is handed over at once.
    #[tokio::test]
    async fn little_is_kept_of_a_large_piece() {
        let large = Bytes::from(vec![7; 4 * WAITING_BYTES]);
        let (mut writer, mut body) = made(1 << 30, Some(large.len() as u64));
        let mut writing = Box::pin(async {
            let written = writer.write(large).await;
            (written, writer)
        });
        while (&mut writing).now_or_never().is_none() {
            let piece = body.frame().await.expect("there is one");
            piece.expect("it is whole");
        }
        // Nothing else refers to the memory of the pieces that wait.
        let pieces: Vec<Bytes> = body.pipe.state.lock().pieces.drain(..).collect();
        assert!(pieces.iter().map(Bytes::len).sum::<usize>() <= 2 * WAITING_BYTES);
        for piece in pieces {
            assert!(piece.try_into_mut().is_ok());
        }
    }

    #[tokio::test]
    async fn the_end_is_told_once() {
        let ends = |end: fn(StreamWriter), taken: bool| {
            let (writer, mut body) = made(100, None);
            let told = Arc::new(Mutex::new(Vec::new()));
            let telling = Arc::clone(&told);
            body.watch()
                .when_over(move |end| telling.lock().push(format!("{end:?}")));
            end(writer);
            if taken {
                let _ = body.frame().now_or_never();
            }
            drop(body);
            told.lock().clone()
        };
        let finish = |writer: StreamWriter| {
            let finished = writer.finish(None).now_or_never();
            finished.expect("nothing to wait for").expect("no length");
        };
        assert_eq!(ends(finish, true), ["Complete"]);
        assert_eq!(ends(drop, true), ["NotWanted"]);
        let failing = |writer: StreamWriter| writer.handle().fail(&Failure::view("a trap"));
        assert!(ends(failing, false)[0].contains("a trap"));
    }
}
