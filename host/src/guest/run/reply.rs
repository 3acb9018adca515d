//! What a guest function answers: a whole body, or a head with a producer of its body.

use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, StatusCode};

use crate::contract::types;
use crate::guest::stop::Stop;
use crate::http::message::text;
use crate::http::stream::{StreamHandle, StreamWriter};
use crate::scope::Scope;
use crate::telemetry::error::Failure;
use crate::threads::deadline::Ended;
use crate::view::Mode;

/// What a guest answers to a request: its response, or the error that it returned.
pub type GuestResult = Result<Reply, types::Error>;

/// A response of a guest.
pub struct Reply {
    /// The status, not checked yet.
    pub status: u16,
    /// The headers, not checked yet. Their values are bytes, because a component's need not be text.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: ReplyBody,
    /// The trailers of a whole body. The producer of another one has its own.
    pub trailers: Option<HeaderMap>,
}

/// The body of a [`Reply`].
pub enum ReplyBody {
    /// All of it.
    Bytes(Vec<u8>),
    /// A body that is produced while it is sent.
    Stream(Producer),
}

impl From<types::Response> for Reply {
    fn from(response: types::Response) -> Reply {
        let headers = response.headers.into_iter();
        Reply {
            status: response.status,
            headers: headers
                .map(|(name, value)| (name, value.into_bytes()))
                .collect(),
            body: ReplyBody::Bytes(response.body),
            trailers: None,
        }
    }
}

impl Reply {
    /// The response in the form of the contract, for a guest that has called the function that answered. It has no
    /// trailers.
    ///
    /// # Panics
    /// When the body is a stream: a function that another one has called answers with a whole body.
    pub fn into_contract(self) -> types::Response {
        let ReplyBody::Bytes(body) = self.body else {
            unreachable!("only the one function of a chain may stream")
        };
        let headers = self.headers.into_iter();
        types::Response {
            status: self.status,
            headers: headers.map(|(name, value)| (name, text(&value))).collect(),
            body,
        }
    }
}

/// What is left of a guest function after its head: it writes the body, and ends.
pub struct Producer {
    /// Where it has to run: on a sync worker, or on the loop.
    pub mode: Mode,
    run: Box<dyn FnOnce(StreamWriter) -> BoxFuture<'static, Result<(), Failure>> + Send>,
}

impl Producer {
    /// A producer that runs `run`, the rest of the call that has made the head. When `run` returns a failure, it has
    /// failed the body itself.
    pub(super) fn new<F>(
        mode: Mode,
        run: impl FnOnce(StreamWriter) -> F + Send + 'static,
    ) -> Producer
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Producer {
            mode,
            run: Box::new(|writer| run(writer).boxed()),
        }
    }

    /// Writes the body. The future has to be polled where [`Producer::mode`] says.
    pub fn run(self, writer: StreamWriter) -> BoxFuture<'static, Result<(), Failure>> {
        (self.run)(writer)
    }
}

/// Runs what produces a body, until the time limit of streams at most.
pub(super) async fn in_stream_time<T>(
    scope: &Scope,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match scope.deadline.bound(work).await {
        Ok(done) => done,
        Err(Ended::TimedOut) => Err(Failure::limit(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the body of the response took longer than {} ms (`stream_timeout_ms`)",
                scope.limits.stream_timeout_ms
            ),
        )),
        Err(why) => Err((&Stop::from(why)).into()),
    }
}

/// Ends the body with this failure.
pub(super) fn failed(handle: &StreamHandle, failure: Failure) -> Failure {
    handle.fail(&failure);
    failure
}
