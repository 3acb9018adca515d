//! Bodies of outbound requests in pieces: the resources of `http` and `http-async`.
//!
//! A response is read while it arrives: reqwest's connection waits until the guest asks for more. An upload goes through
//! the same pipe as the body of a response to a client (`http/stream.rs`), whose other end the connection sends, in a
//! task of its own: so the bytes of an upload are on their way also while its guest does something else. What the guest
//! holds is dropped with its store. Then the pipe ends as a body that is not complete, and the connection ends with it.
//!
//! A server may answer before it has the whole upload. If it still reads (a status below 300, and the connection is
//! open), the upload goes on. Otherwise nothing of it is sent any more. It must not end either: the connection would
//! break off, and the rest of the response would be lost. So the open end of the upload is kept with the response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::budget::{Exhausted, Room};
use crate::contract::http_types::Error;
use crate::http::message::{head_size, text};
use crate::http::stream::{NotWritten, StreamWriter};
use crate::scope::outbound::OutboundPermit;
use crate::scope::{CallBytes, Scope};

/// The most bytes that one call of `read` returns.
const PIECE_MAX: u32 = 1 << 20;

/// What belongs to a request in flight until its body has ended: its permit, and the memory for it.
pub(super) struct InFlight {
    pub(super) permit: OutboundPermit,
    pub(super) scope: Arc<Scope>,
    pub(super) _held: CallBytes,
}

/// The head of a response: its status and headers, and the memory for these.
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) _room: Room,
}

/// The head of a response, if it is within the limits.
pub(super) fn head(response: &reqwest::Response, scope: &Scope) -> Result<Head, Error> {
    let size = head_size(response.headers());
    let checked = size.check("response", scope.limits.head_max());
    checked.map_err(Error::TooLarge)?;
    let room = scope.origin.account.draw(size.bytes * 2);
    let headers = response.headers().iter();
    Ok(Head {
        status: response.status().as_u16(),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
            .collect(),
        _room: room.map_err(exhausted)?,
    })
}

/// The error for a response that there is no memory for.
pub(super) fn exhausted(why: Exhausted) -> Error {
    Error::TooLarge(why.to_string())
}

/// A response whose body the guest reads.
pub struct ResponseStream {
    pub(super) head: Head,
    pub(super) body: Arc<Mutex<Body>>,
}

/// The body of a [`ResponseStream`].
pub(super) enum Body {
    Arriving(Box<Arriving>),
    Ended,
    /// Kept, so that a guest that goes on after the error does not take the body for one that has ended.
    Failed(Error),
}

/// A body that arrives.
pub(super) struct Arriving {
    response: reqwest::Response,
    /// What has arrived and was not read yet.
    rest: Bytes,
    room: Room,
    received: u64,
    in_flight: InFlight,
    /// The open end of an upload that the server does not want.
    _unwanted: Option<Unwanted>,
}

/// Keeps an upload from ending.
type Unwanted = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl ResponseStream {
    /// The response whose head is there. `unwanted`: the end of its upload, if the server does not want the upload.
    pub(super) fn new(
        response: reqwest::Response,
        mut in_flight: InFlight,
        unwanted: Option<Unwanted>,
    ) -> Result<ResponseStream, Error> {
        let head = head(&response, &in_flight.scope)?;
        in_flight.permit.opened();
        let arriving = Arriving {
            room: Room::empty(&in_flight.scope.origin.account),
            response,
            rest: Bytes::new(),
            received: 0,
            in_flight,
            _unwanted: unwanted,
        };
        Ok(ResponseStream {
            head,
            body: Arc::new(Mutex::new(Body::Arriving(Box::new(arriving)))),
        })
    }
}

impl Body {
    /// The next piece of the body; no bytes are its end. `scope`: the scope of the function that reads.
    pub(super) async fn read(
        body: Arc<Mutex<Body>>,
        max: u32,
        scope: Arc<Scope>,
    ) -> Result<Vec<u8>, Error> {
        let max = max.clamp(1, PIECE_MAX);
        let held = scope.hold_call(max.into());
        let _held = held.map_err(Error::Unavailable)?;
        let mut body = body.lock().await;
        let piece = match &mut *body {
            Body::Arriving(arriving) => arriving.next(max as usize).await,
            Body::Ended => return Ok(Vec::new()),
            Body::Failed(error) => return Err(error.clone()),
        };
        match &piece {
            Ok(piece) if piece.is_empty() => *body = Body::Ended,
            Ok(_) => {}
            Err(error) => *body = Body::Failed(error.clone()),
        }
        piece
    }
}

impl Arriving {
    async fn next(&mut self, max: usize) -> Result<Vec<u8>, Error> {
        let _in_use = self.in_flight.permit.in_use();
        while self.rest.is_empty() {
            let Some(piece) = self.response.chunk().await? else {
                return Ok(Vec::new());
            };
            self.received += piece.len() as u64;
            let max = self.in_flight.scope.limits.stream_max_bytes;
            if self.received > max {
                return Err(Error::TooLarge(format!(
                    "the response has more than {max} bytes (`stream_max_bytes`)"
                )));
            }
            self.room.grow_to(piece.len() as u64).map_err(exhausted)?;
            self.rest = piece;
        }
        let piece = self.rest.split_to(self.rest.len().min(max));
        Ok(piece.to_vec())
    }
}

/// A request whose body the guest writes. When it is dropped, the request breaks off.
pub struct Upload(Arc<Mutex<State>>);

/// The state of an [`Upload`].
pub(super) enum State {
    Open(Box<Uploading>),
    Failed(Error),
}

pub(super) struct Uploading {
    /// The guest's end of the body.
    pub(super) writer: StreamWriter,
    pub(super) answer: Answer,
    pub(super) in_flight: InFlight,
    /// How long the response may take when the upload has ended.
    pub(super) timeout: Option<Duration>,
}

/// The response to an upload.
pub(super) enum Answer {
    /// The task that sends the request.
    Awaited(AbortOnDropHandle<Result<reqwest::Response, Error>>),
    Here(reqwest::Response),
}

impl Answer {
    /// Waits for the head of the response. The future may be dropped and made again, but not after an error.
    async fn arrives(&mut self) -> Result<(), Error> {
        if let Answer::Awaited(sending) = self {
            let sent = sending.await;
            let response = sent.map_err(|ended| Error::Connection(ended.to_string()))??;
            *self = Answer::Here(response);
        }
        Ok(())
    }

    fn is_here(&self) -> bool {
        matches!(self, Answer::Here(_))
    }

    /// Whether the server has answered that it does not want the rest of the upload.
    fn is_refusal(&self) -> bool {
        match self {
            Answer::Here(response) => response.status().as_u16() >= 300,
            Answer::Awaited(_) => false,
        }
    }

    /// The response.
    async fn response(mut self) -> Result<reqwest::Response, Error> {
        self.arrives().await?;
        match self {
            Answer::Here(response) => Ok(response),
            Answer::Awaited(_) => unreachable!("the response has arrived"),
        }
    }

    /// Waits for `work`, which sends a part of the upload, or for the server's refusal. None: the server does not want
    /// the rest.
    async fn or_refusal<T>(
        &mut self,
        mut work: impl Future<Output = T> + Unpin,
    ) -> Result<Option<T>, Error> {
        while !self.is_refusal() {
            tokio::select! {
                biased;
                arrived = self.arrives(), if !self.is_here() => arrived?,
                done = &mut work => return Ok(Some(done)),
            }
        }
        Ok(None)
    }
}

impl Upload {
    pub(super) fn new(mut uploading: Uploading) -> Upload {
        uploading.in_flight.permit.opened();
        Upload(Arc::new(Mutex::new(State::Open(Box::new(uploading)))))
    }

    pub(super) fn state(&self) -> Arc<Mutex<State>> {
        Arc::clone(&self.0)
    }

    /// Ends the body, and waits for the head of the response.
    pub(super) async fn finish(self) -> Result<ResponseStream, Error> {
        // Only calls that are still in flight have the state as well, and no call can be when the handle is given away.
        let given_away = State::Failed(Error::Aborted);
        let state = std::mem::replace(&mut *self.0.lock().await, given_away);
        match state {
            State::Open(uploading) => uploading.finish().await,
            State::Failed(error) => Err(error),
        }
    }
}

impl State {
    /// Writes the next piece of the body. `scope`: the scope of the function that writes.
    pub(super) async fn write(
        state: Arc<Mutex<State>>,
        data: Vec<u8>,
        scope: Arc<Scope>,
    ) -> Result<(), Error> {
        let held = scope.hold_call(data.len() as u64);
        let mut state = state.lock().await;
        // Without memory for a piece, too, the upload fails: a guest that goes on would leave the piece out.
        let written = match (&mut *state, held) {
            (State::Failed(error), _) => return Err(error.clone()),
            (_, Err(sentence)) => Err(Error::Unavailable(sentence)),
            (State::Open(uploading), Ok(_held)) => uploading.write(data.into()).await,
        };
        if let Err(error) = &written {
            *state = State::Failed(error.clone());
        }
        written
    }
}

impl Uploading {
    async fn write(&mut self, data: Bytes) -> Result<(), Error> {
        let _in_use = self.in_flight.permit.in_use();
        let writing = std::pin::pin!(self.writer.write(data));
        match self.answer.or_refusal(writing).await? {
            None | Some(Ok(())) => Ok(()),
            // The connection has dropped the body: it has broken, or the server has answered and closed it.
            Some(Err(NotWritten::Gone)) => self.answer.arrives().await,
            Some(Err(NotWritten::TooLong(sentence))) => Err(Error::TooLarge(sentence)),
            Some(Err(NotWritten::Undeclared(sentence))) => Err(Error::Invalid(sentence)),
            Some(Err(NotWritten::Finished)) => unreachable!("`finish` takes the writer"),
        }
    }

    async fn finish(self) -> Result<ResponseStream, Error> {
        let Uploading {
            writer,
            mut answer,
            in_flight,
            timeout,
        } = self;
        let _in_use = in_flight.permit.in_use();
        let mut finishing = Box::pin(writer.finish(None));
        let finished = answer.or_refusal(&mut finishing).await?;
        let is_unwanted = finished.is_none();
        if let Some(Err(failure)) = finished {
            return Err(Error::Invalid(failure.detail));
        }
        let response = match timeout {
            None => answer.response().await?,
            Some(timeout) => tokio::time::timeout(timeout, answer.response())
                .await
                .map_err(|_| Error::Timeout)??,
        };
        let unwanted: Option<Unwanted> = match is_unwanted {
            true => Some(Box::pin(async { drop(finishing.await) })),
            false => None,
        };
        ResponseStream::new(response, in_flight, unwanted)
    }
}
