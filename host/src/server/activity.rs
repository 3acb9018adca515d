//! Tracks what happens on a connection, so that an idle or stalled connection can be closed.
//!
//! HTTP/1 needs little of this: hyper limits the time for headers, and a client that does not read its response stalls
//! the socket, whose writes have a time limit. On HTTP/2, the socket stays active while a client answers pings, and
//! hyper has no limit for idle connections. So requests without a response are counted here, and bodies are handed to
//! hyper in pieces. hyper asks for the next piece only when the client has made room in its window, which shows that
//! the client reads.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, Version};
use http_body_util::Either;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::config::Server as Limits;
use crate::http::message::ResponseBody;

/// The size of a piece: HTTP/2's default for the largest frame.
const PIECE: usize = 16 << 10;

/// The body of a response as hyper gets it: unchanged, or in pieces.
pub(super) type SentBody = Either<ResponseBody, Pieces>;

/// The activity of one connection.
pub(super) struct Activity {
    header_timeout: Duration,
    write_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    protocol: Protocol,
    /// Requests that have no response yet.
    answering: usize,
    /// Bodies that are being sent, each with the time when hyper took its last piece: since then, the client could have
    /// taken more. None: the host has no more data ready.
    sending: HashMap<u64, Option<Instant>>,
    next_body: u64,
    /// The time since which no request waits for its response and no body is being sent.
    idle_since: Instant,
}

/// The protocol of the connection, known from its first request on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Nothing,
    Http1,
    Http2,
}

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IdleCheck {
    /// Check again at this time.
    Later(Instant),
    /// No further check is needed.
    Never,
    /// Accept no more requests, and check again at this time.
    Close(Instant),
    /// End the connection, for this reason.
    Drop(&'static str),
}

impl Activity {
    pub(super) fn new(limits: &Limits) -> Arc<Activity> {
        Arc::new(Activity {
            header_timeout: Duration::from_millis(limits.header_timeout_ms),
            write_timeout: Duration::from_millis(limits.write_timeout_ms),
            state: Mutex::new(State {
                protocol: Protocol::Nothing,
                answering: 0,
                sending: HashMap::new(),
                next_body: 0,
                idle_since: Instant::now(),
            }),
        })
    }

    /// Notes that a request has arrived. The request counts as unanswered until the returned value is dropped or sends
    /// the response.
    pub(super) fn request(self: &Arc<Self>, version: Version) -> Answering {
        let mut state = self.state.lock();
        let http2 = version == Version::HTTP_2;
        state.protocol = if http2 {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        state.answering += 1;
        Answering {
            activity: Arc::clone(self),
            http2,
        }
    }

    /// Decides what to do with the connection at the time `now`.
    pub(super) fn look(&self, now: Instant) -> IdleCheck {
        let state = self.state.lock();
        match state.protocol {
            Protocol::Http1 => IdleCheck::Never,
            Protocol::Nothing => {
                let end = state.idle_since + self.header_timeout;
                if now < end {
                    IdleCheck::Later(end)
                } else {
                    IdleCheck::Drop("no request arrived within `header_timeout_ms`")
                }
            }
            Protocol::Http2 if state.is_idle() => self.look_idle(&state, now),
            Protocol::Http2 => self.look_busy(&state, now),
        }
    }

    /// An idle connection is closed after `header_timeout_ms`. The last piece of a body may still be unsent then, so
    /// the client has `write_timeout_ms` to take it, as for any other piece.
    fn look_idle(&self, state: &State, now: Instant) -> IdleCheck {
        let close = state.idle_since + self.header_timeout;
        let end = close + self.write_timeout;
        if now < close {
            IdleCheck::Later(close)
        } else if now < end {
            IdleCheck::Close(end)
        } else {
            IdleCheck::Drop("it was idle, and did not close when it was told to")
        }
    }

    /// A body that stalls for `write_timeout_ms` closes the connection for further requests. The other requests then
    /// have another `write_timeout_ms` before the connection ends. When only stalled bodies are left, the connection
    /// ends immediately.
    fn look_busy(&self, state: &State, now: Instant) -> IdleCheck {
        // Whatever begins now has time until `later` at least, so an earlier check for it is of no use.
        let later = now + self.header_timeout.min(self.write_timeout);
        let Some(longest) = state.sending.values().flatten().min() else {
            return IdleCheck::Later(later);
        };
        let (stall, end) = (
            *longest + self.write_timeout,
            *longest + self.write_timeout * 2,
        );
        let stalls =
            |since: &Option<Instant>| since.is_some_and(|since| now >= since + self.write_timeout);
        if now < stall {
            IdleCheck::Later(stall.min(later))
        } else if now >= end || (state.answering == 0 && state.sending.values().all(stalls)) {
            IdleCheck::Drop("a response was left unread for `write_timeout_ms`")
        } else {
            IdleCheck::Close(end.min(later))
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.answering == 0 && self.sending.is_empty()
    }
}

/// Counts a request as unanswered until dropped.
pub(super) struct Answering {
    activity: Arc<Activity>,
    http2: bool,
}

impl Answering {
    /// The response as hyper gets it. On HTTP/2, a body of more than one piece is handed out in pieces. Other bodies
    /// are unchanged.
    pub(super) fn send(self, response: Response<ResponseBody>) -> Response<SentBody> {
        response.map(|body| {
            let small = body
                .size_hint()
                .upper()
                .is_some_and(|size| size <= PIECE as u64);
            if !self.http2 || small {
                return Either::Left(body);
            }
            let mut state = self.activity.state.lock();
            let number = state.next_body;
            state.next_body += 1;
            state.sending.insert(number, Some(Instant::now()));
            Either::Right(Pieces {
                body,
                rest: Bytes::new(),
                number,
                activity: Arc::clone(&self.activity),
            })
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.answering -= 1;
        if state.is_idle() {
            state.idle_since = Instant::now();
        }
    }
}

/// A body that hyper gets piece by piece.
pub(super) struct Pieces {
    body: ResponseBody,
    /// The part of the body's last frame that hyper does not have yet.
    rest: Bytes,
    number: u64,
    activity: Arc<Activity>,
}

impl Pieces {
    fn note(&self, since: Option<Instant>) {
        self.activity
            .state
            .lock()
            .sending
            .insert(self.number, since);
    }

    fn piece(&mut self) -> Frame<Bytes> {
        self.note(Some(Instant::now()));
        Frame::data(self.rest.split_to(self.rest.len().min(PIECE)))
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if !this.rest.is_empty() {
            return Poll::Ready(Some(Ok(this.piece())));
        }
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                this.note(None);
                return Poll::Pending;
            }
        };
        Poll::Ready(frame.map(|frame| {
            Ok(match frame?.into_data() {
                Ok(data) => {
                    this.rest = data;
                    this.piece()
                }
                Err(trailers) => trailers,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        let mut state = self.activity.state.lock();
        state.sending.remove(&self.number);
        if state.is_idle() {
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    const HEADERS: Duration = Duration::from_secs(10);
    const WRITES: Duration = Duration::from_secs(30);
    const MOMENT: Duration = Duration::from_secs(1);

    fn activity() -> Arc<Activity> {
        Activity::new(&Limits::default())
    }

    fn body(size: usize) -> Response<ResponseBody> {
        let bytes: Vec<u8> = (0..size).map(|number| (number % 251) as u8).collect();
        Response::new(Either::Left(Full::new(bytes.into())))
    }

    fn piece(body: &mut SentBody) -> usize {
        let frame = body.frame().now_or_never().expect("it is there");
        let frame = frame.expect("there is more").expect("it is whole");
        frame.into_data().expect("it is data").len()
    }

    #[test]
    fn a_client_that_says_nothing_is_left() {
        let (activity, now) = (activity(), Instant::now());
        assert!(matches!(activity.look(now), IdleCheck::Later(then) if then <= now + HEADERS));
        assert!(matches!(activity.look(now + HEADERS), IdleCheck::Drop(_)));
    }

    #[test]
    fn http1_is_left_to_hyper() {
        let activity = activity();
        let response = activity.request(Version::HTTP_11).send(body(PIECE * 9));
        assert!(matches!(response.body(), Either::Left(_)));
        assert_eq!(activity.look(Instant::now() + WRITES * 9), IdleCheck::Never);
    }

    #[test]
    fn an_idle_connection_is_closed_and_then_dropped() {
        let activity = activity();
        let answering = activity.request(Version::HTTP_2);
        let long = Instant::now() + WRITES * 9;
        assert!(matches!(activity.look(long), IdleCheck::Later(_)));
        let small = answering.send(body(PIECE));
        assert!(matches!(small.body(), Either::Left(_)));
        let now = Instant::now();
        assert!(matches!(activity.look(now), IdleCheck::Later(then) if then <= now + HEADERS));
        assert!(matches!(activity.look(now + HEADERS), IdleCheck::Close(_)));
        assert!(matches!(
            activity.look(now + HEADERS + WRITES),
            IdleCheck::Drop(_)
        ));
        // Another request keeps the connection open.
        let _answering = activity.request(Version::HTTP_2);
        assert!(matches!(activity.look(now + HEADERS), IdleCheck::Later(_)));
    }

    #[test]
    fn a_body_that_is_taken_is_progress_and_one_that_is_left_is_not() {
        let activity = activity();
        let large = activity.request(Version::HTTP_2).send(body(PIECE * 2 + 7));
        let mut large = large.into_body();
        let now = Instant::now();
        assert!(matches!(
            activity.look(now + WRITES - MOMENT),
            IdleCheck::Later(_)
        ));
        assert!(matches!(activity.look(now + WRITES), IdleCheck::Drop(_)));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(piece(&mut large), PIECE);
        assert!(matches!(activity.look(now + WRITES), IdleCheck::Later(_)));
        assert_eq!((piece(&mut large), large.is_end_stream()), (PIECE, false));
        assert_eq!((piece(&mut large), large.is_end_stream()), (7, true));
        // The client still has to take the last piece.
        assert!(matches!(
            activity.look(Instant::now() + WRITES),
            IdleCheck::Drop(_)
        ));
        drop(large);
        assert!(matches!(activity.look(Instant::now()), IdleCheck::Later(_)));
    }

    #[test]
    fn one_body_that_is_left_does_not_end_the_others_at_once() {
        let activity = activity();
        let _left = activity.request(Version::HTTP_2).send(body(PIECE * 2));
        let answering = activity.request(Version::HTTP_2);
        let now = Instant::now();
        assert!(matches!(activity.look(now + WRITES), IdleCheck::Close(_)));
        assert!(matches!(
            activity.look(now + WRITES * 2),
            IdleCheck::Drop(_)
        ));
        drop(answering);
        assert!(matches!(activity.look(now + WRITES), IdleCheck::Drop(_)));
    }

    #[test]
    fn what_the_host_has_not_yet_is_not_held_against_the_client() {
        let activity = activity();
        let stream = http_body_util::StreamBody::new(futures::stream::pending());
        let response = Response::new(Either::Right(stream.boxed()));
        let mut waiting = activity.request(Version::HTTP_2).send(response).into_body();
        assert!(waiting.frame().now_or_never().is_none());
        let long = Instant::now() + WRITES * 9;
        assert!(matches!(activity.look(long), IdleCheck::Later(_)));
    }

    #[test]
    fn pieces_make_the_whole() {
        let size = PIECE * 3 + 1;
        let response = activity().request(Version::HTTP_2).send(body(size));
        let sent = response.into_body();
        assert_eq!(sent.size_hint().exact(), Some(size as u64));
        let collected = sent.collect().now_or_never().expect("it is there");
        let expected = body(size).into_body().collect().now_or_never();
        assert_eq!(
            collected.expect("it is whole").to_bytes(),
            expected
                .expect("it is there")
                .expect("it is whole")
                .to_bytes()
        );
    }
}
