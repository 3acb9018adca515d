//! What a guest function answers: a whole body, or a head with a producer of its body.

use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, StatusCode};

use super::instance_pool::Instance;
use crate::contract::types;
use crate::guest::stop::Stop;
use crate::guest::store::Work;
use crate::http::message::text;
use crate::http::stream::{StreamHandle, StreamWriter};
use crate::scope::{CallSlot, Scope};
use crate::telemetry::error::Failure;
use crate::threads::deadline::Ended;
use crate::view::{Kind, Mode};

/// The status of the error with which a conversation may end after its connection.
const ENDED: u16 = 499;

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
    /// The length that the head of a response to HEAD declares.
    pub not_sent: Option<u64>,
    /// The trailers of a whole body. The producer of another one has its own.
    pub trailers: Option<HeaderMap>,
}

/// The body of a [`Reply`].
pub enum ReplyBody {
    /// All of it.
    Bytes(Vec<u8>),
    /// A body that is produced while it is sent.
    Stream(Producer),
    /// The stream, by its number, of a response that the function got from another function.
    PassedOn(u32),
    /// What is sent to a group from now on.
    Subscription(types::Subscription),
}

impl Reply {
    /// What produces its body, if the body is produced while it is sent.
    pub fn producer(&self) -> Option<&Producer> {
        match &self.body {
            ReplyBody::Stream(producer) => Some(producer),
            ReplyBody::Bytes(_) | ReplyBody::PassedOn(_) | ReplyBody::Subscription(_) => None,
        }
    }

    /// Takes out what keeps the conversation of a web socket, if the reply to its opening has that.
    pub fn take_conversation(&mut self) -> Option<Producer> {
        if !self.producer().is_some_and(|producer| producer.converses) {
            return None;
        }
        match std::mem::replace(&mut self.body, ReplyBody::Bytes(Vec::new())) {
            ReplyBody::Stream(producer) => Some(producer),
            ReplyBody::Bytes(_) | ReplyBody::PassedOn(_) | ReplyBody::Subscription(_) => None,
        }
    }

    /// The reply in the form of the contract, for the guest that has called the function. `keep` keeps the producer of
    /// a body that is a stream, and returns the stream's number.
    pub fn into_contract(self, keep: impl FnOnce(Producer) -> u32) -> types::Response {
        let headers = self.headers.into_iter();
        types::Response {
            status: self.status,
            headers: headers.map(|(name, value)| (name, text(&value))).collect(),
            body: match self.body {
                ReplyBody::Bytes(bytes) => types::ResponseBody::Bytes(bytes),
                ReplyBody::Stream(producer) => types::ResponseBody::Stream(keep(producer)),
                ReplyBody::PassedOn(number) => types::ResponseBody::Stream(number),
                ReplyBody::Subscription(it) => types::ResponseBody::Subscription(it),
            },
        }
    }
}

/// The reply of a view whose call has ended, with its instance in one of two places: `give_back`, or in the producer of
/// the body.
pub(super) fn reply<V>(
    answer: Result<types::Response, types::Error>,
    mut instance: Instance<V>,
    give_back: impl FnOnce(Instance<V>),
    producer: impl FnOnce(Instance<V>) -> Producer,
) -> GuestResult {
    let response = match answer {
        Ok(response) => response,
        Err(error) => {
            give_back(instance);
            return Err(error);
        }
    };
    let body = match response.body {
        types::ResponseBody::Stream(0) => {
            // What it leaves unclean is noticed at the end of the next call. The instance must not keep its call: the
            // call may keep the instance.
            let _ = instance.store.data_mut().finish();
            ReplyBody::Stream(producer(instance))
        }
        types::ResponseBody::Stream(number) => {
            give_back(instance);
            ReplyBody::PassedOn(number)
        }
        types::ResponseBody::Bytes(bytes) => {
            give_back(instance);
            ReplyBody::Bytes(bytes)
        }
        types::ResponseBody::Subscription(subscription) => {
            give_back(instance);
            ReplyBody::Subscription(subscription)
        }
    };
    let headers = response.headers.into_iter();
    Ok(Reply {
        status: response.status,
        headers: headers
            .map(|(name, value)| (name, value.into_bytes()))
            .collect(),
        body,
        not_sent: None,
        trailers: None,
    })
}

/// What is left of a guest function after its head: it writes the body, and ends.
pub struct Producer {
    /// Where it has to run: on a sync worker, or on the loop.
    pub mode: Mode,
    /// How it runs.
    pub run: Run,
    /// The slot among the functions of its request that it keeps.
    pub slot: Option<CallSlot>,
    /// Whether it keeps the conversation of the web socket that the request opens, and writes no body.
    pub converses: bool,
    /// Whether the head is all of the response, as for HEAD. The call goes on, and writes no body.
    pub head_is_all: bool,
}

/// Whether the call of a plain component may go on after its head, to produce the body while it is sent. Without that,
/// the whole body is kept until the call has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayStream {
    /// Not at all.
    Never,
    /// Only to read the stream of another function, which begins after the commit.
    ToReadStream,
    /// Only while it has no transaction and no pin open, and no call on a database in flight: the end of the request's
    /// transaction, and other functions of the request, would wait for these.
    HoldingNothing,
    /// Whatever it has open.
    Always,
}

/// How a [`Producer`] runs. The future has to be polled where [`Producer::mode`] says; it may block there.
pub enum Run {
    /// As the rest of the call that has made the head. It ends the body with a failure when it returns one. The second
    /// argument: whether the body is the one that the client gets.
    Rest(Box<dyn FnOnce(StreamWriter, bool) -> Producing + Send>),
    /// As another call of the instance, with a scope of its own.
    Call(Box<dyn FnOnce(Work) -> Producing + Send>),
}

/// The future of a producer.
pub(super) type Producing = BoxFuture<'static, Result<(), Failure>>;

impl Producer {
    /// The rest of the call that has made the head. `head_is_all`: see [`Producer::head_is_all`].
    pub(super) fn rest<F>(
        mode: Mode,
        head_is_all: bool,
        run: impl FnOnce(StreamWriter, bool) -> F + Send + 'static,
    ) -> Producer
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Producer {
            mode,
            run: Run::Rest(Box::new(|writer, to_client| run(writer, to_client).boxed())),
            slot: None,
            converses: false,
            head_is_all,
        }
    }

    /// Another call of the instance that has made the head.
    pub(super) fn call<F>(mode: Mode, run: impl FnOnce(Work) -> F + Send + 'static) -> Producer
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Producer {
            mode,
            run: Run::Call(Box::new(|work| run(work).boxed())),
            slot: None,
            converses: false,
            head_is_all: false,
        }
    }

    /// The same producer, for a view of this kind: one of a web socket that is async keeps the conversation.
    pub(super) fn of_kind(self, kind: &Kind) -> Producer {
        let converses = self.mode == Mode::Async && matches!(kind, Kind::Socket { .. });
        Producer { converses, ..self }
    }

    /// Whether the call that has made the head goes on.
    pub fn is_rest(&self) -> bool {
        matches!(self.run, Run::Rest(_))
    }
}

/// The failure of a producer that has returned this error.
pub(super) fn returned(error: &types::Error) -> Failure {
    returned_while("while it produced its body", error)
}

fn returned_while(when: &str, error: &types::Error) -> Failure {
    let types::Error {
        message, detail, ..
    } = error;
    let detail = detail.as_ref().map(|detail| format!(": {detail}"));
    Failure::view(format!(
        "the view returned an error {when}: {message}{}",
        detail.unwrap_or_default()
    ))
}

/// What has become of a call of `produce`.
pub(super) fn produced(scope: &Scope, answer: Result<(), types::Error>) -> Result<(), Failure> {
    match (answer, scope.conversation()) {
        (Ok(()), _) => Ok(()),
        (Err(error), None) => Err(returned(&error)),
        // That of a call that came when the connection had ended, or was being closed.
        (Err(error), Some(conversation)) if error.status == ENDED && conversation.was_told() => {
            Ok(())
        }
        (Err(error), Some(_)) => Err(returned_while("in its conversation", &error)),
    }
}

/// Runs what produces a body, until the time limit of streams at most.
pub(super) async fn in_stream_time<T>(
    scope: &Scope,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match scope.deadline.bound(work).await {
        Ok(done) => done,
        Err(why) => Err(stream_ended(scope, why)),
    }
}

/// The failure of what produces a body when its request has ended.
pub(super) fn stream_ended(scope: &Scope, why: Ended) -> Failure {
    let ms = scope.view.timeout.as_millis();
    match (why, scope.conversation()) {
        (Ended::TimedOut, Some(conversation)) => Failure::limit(
            StatusCode::GATEWAY_TIMEOUT,
            match conversation.is_closed() {
                true => format!(
                    "the view did not end its conversation within {ms} ms after the connection had ended (`timeout_ms`)"
                ),
                false => format!(
                    "the view had a transaction, a pinned connection, a result or a statement of its conversation open for longer than {ms} ms (`timeout_ms`)"
                ),
            },
        ),
        (Ended::TimedOut, None) => Failure::limit(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the body of the response took longer than {} ms (`stream_timeout_ms`), or the view went on for longer than {} ms after it (`timeout_ms`)",
                scope.limits.stream_timeout_ms, ms
            ),
        ),
        (why, _) => (&Stop::from(why)).into(),
    }
}

/// Ends the body with this failure.
pub(super) fn failed(handle: &StreamHandle, failure: Failure) -> Failure {
    handle.fail(&failure);
    failure
}
