//! One run of a request's chain, and its repetition after a conflict. Requests, events and the view for errors go
//! through here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt as _};
use http::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use super::dispatch::{ChainContext, KeptStreams, LinkCall, LinkResult, Received, busy, conduct};
use super::settle::{CheckedBody, CheckedResponse, settle};
use super::shadow::ShadowCopy;
use super::streaming::Streams;
use crate::app::App;
use crate::app::chain::{Chain, Placement};
use crate::app::host::Host;
use crate::contract::types;
use crate::database::{Face, Journal};
use crate::guest::run::{Producer, Reply};
use crate::http::body::RequestBody;
use crate::http::message::BinaryHeaders;
use crate::http::stream::StreamWatch;
use crate::scope::transaction::{Compared, Fate, Transaction};
use crate::scope::worker_lease::WorkerLease;
use crate::scope::{Origin, Scope, Setup};
use crate::telemetry::error::{Failure, Fault};
use crate::telemetry::metrics::METRICS;
use crate::threads::deadline::{Deadline, Ended};
use crate::threads::gate::{Permit, Refused};
use crate::threads::workers::{self, Answer};
use crate::view::Mode;

/// The longest wait between the first attempt and the second. It doubles for each further attempt.
const RETRY_WAIT: Duration = Duration::from_millis(8);

/// A request whose body has arrived, and the chain that it is for.
pub struct Attempt<'a> {
    /// What all requests of the process share.
    pub host: &'a Arc<Host>,
    /// The app in which the request was routed.
    pub app: &'a Arc<App>,
    /// The origin of the request: its id, its trace, its client and the first values of its context.
    pub origin: &'a Arc<Origin>,
    /// The chain.
    pub chain: &'a Arc<Chain>,
    /// The path parameters.
    pub params: Arc<[(String, String)]>,
    /// The body, when the host keeps it.
    pub body: Option<RequestBody>,
    /// The headers whose values are not UTF-8.
    pub binary: BinaryHeaders,
    /// Whether the body of the response may be produced while it is sent.
    pub streams: bool,
}

/// How a request ended. It is boxed when it is made, since it is passed through many futures.
pub struct AttemptOutcome {
    /// What the client gets.
    pub response: CheckedResponse,
    /// The way to learn how the body ends, if it is produced while it is sent.
    pub stream: Option<StreamWatch>,
    /// What became of the transaction.
    pub fate: Fate,
    /// The scope of the last attempt.
    pub scope: Arc<Scope>,
    /// The number of attempts before the last one.
    pub retries: u32,
    /// What keeps the conversation of the web socket that the request opens, if its view does. The lock makes it shareable.
    pub conversing: Mutex<Option<Conversing>>,
}

/// A function that keeps the conversation of a web socket when the handshake is complete, with what it holds meanwhile.
pub struct Conversing {
    pub(super) producer: Producer,
    /// The memory of its instance.
    pub(super) memory: Permit,
    /// One of `sockets_max`.
    pub(super) place: OwnedSemaphorePermit,
}

/// What has become of the work of an attempt.
struct Done {
    response: CheckedResponse,
    fate: Fate,
    conversing: Option<Conversing>,
}

impl Done {
    fn new(response: CheckedResponse, fate: Fate) -> Done {
        Done {
            response,
            fate,
            conversing: None,
        }
    }
}

impl Attempt<'_> {
    /// Runs the chain and ends its transaction. After a conflict, the chain is run again in a new scope, as often as
    /// the view allows. Dropping the future cancels everything (R15).
    pub async fn run(self, request: types::Request) -> Box<AttemptOutcome> {
        self.attempts(request, false).await
    }

    /// As [`Attempt::run`], and compares the outcome with that of a copy of the request.
    pub(super) async fn run_beside(
        self,
        request: types::Request,
        copy: Option<Box<ShadowCopy>>,
    ) -> Box<AttemptOutcome> {
        match copy {
            None => self.attempts(request, false).await,
            // Boxed, as it would make the futures of requests without a copy as large as its own.
            Some(copy) if copy.is_within() => Box::pin(self.run_after(copy, request)).await,
            Some(copy) => Box::pin(self.run_apart_from(copy, request)).await,
        }
    }

    /// Runs a copy of the request in a transaction of its own, then the request.
    async fn run_apart_from(
        &self,
        mut copy: Box<ShadowCopy>,
        request: types::Request,
    ) -> Box<AttemptOutcome> {
        copy.run_before(self.host).await;
        let outcome = self.attempts(request, true).await;
        copy.compare(self.host, outcome.seen()).await;
        outcome
    }

    /// Runs a copy of the request in the request's transaction, before the request. An attempt that may have failed
    /// because of the copy is made again without it.
    async fn run_after(
        &self,
        mut copy: Box<ShadowCopy>,
        request: types::Request,
    ) -> Box<AttemptOutcome> {
        let arrived = Instant::now();
        let first = self
            .attempt(arrived, request.clone(), Some(&mut copy), false)
            .await;
        if first.may_be_spoilt().await {
            first.scope.is_done();
            let outcome = self.attempts(request, false).await;
            let is_same = outcome.status() == first.status();
            copy.compare_failed(self.host, first.seen(), is_same).await;
            return outcome;
        }
        copy.compare(self.host, first.seen()).await;
        // The copy's time is not the request's.
        let arrived = arrived + copy.took();
        self.after_conflicts(arrived, first, &request, false).await
    }

    /// Runs the chain, again after each conflict.
    async fn attempts(&self, request: types::Request, is_compared: bool) -> Box<AttemptOutcome> {
        let arrived = Instant::now();
        let again = (self.retries() > 0).then(|| request.clone());
        let first = self.attempt(arrived, request, None, is_compared).await;
        match again {
            Some(request) if first.may_run_again() => {
                Box::pin(self.after_conflicts(arrived, first, &request, is_compared)).await
            }
            _ => first,
        }
    }

    /// How often the chain may be run again. A body that has been read while it arrived is not there for another attempt.
    fn retries(&self) -> u32 {
        match self.body {
            Some(RequestBody::Arriving(_)) => 0,
            _ => self.chain.view().view.retries,
        }
    }

    /// Runs the chain again as long as the last attempt, `settled`, has failed because of a conflict, and the view
    /// allows another one.
    async fn after_conflicts(
        &self,
        arrived: Instant,
        mut settled: Box<AttemptOutcome>,
        request: &types::Request,
        is_compared: bool,
    ) -> Box<AttemptOutcome> {
        for retries in 1..=self.retries() {
            if !settled.may_run_again() {
                break;
            }
            let longest = RETRY_WAIT * 2_u32.saturating_pow(retries - 1);
            let wait = longest.mul_f64(fastrand::f64());
            let left = (self.chain.view().view.timeout).saturating_sub(arrived.elapsed());
            if wait >= left {
                break;
            }
            METRICS.retries.inc();
            tokio::time::sleep(wait).await;
            // One scope at a time.
            drop(settled);
            settled = self
                .attempt(arrived, request.clone(), None, is_compared)
                .await;
            settled.retries = retries;
        }
        settled
    }

    /// One attempt. `copy`: a copy of the request that runs in the same transaction, before it. `is_compared`: whether
    /// it is compared with a copy that has run elsewhere.
    async fn attempt(
        &self,
        arrived: Instant,
        request: types::Request,
        copy: Option<&mut ShadowCopy>,
        is_compared: bool,
    ) -> Box<AttemptOutcome> {
        let (host, chain) = (self.host, self.chain);
        // A copy and the request run one after the other in one future.
        let placement = match copy.is_some() {
            true => Placement::PerLink,
            false => chain.placement(),
        };
        let worker = match placement {
            Placement::PerLink if chain.needs_worker() => WorkerLease::leased_from(&host.workers),
            _ => WorkerLease::none(),
        };
        let link = chain.view();
        let compared =
            (copy.is_some() || is_compared).then(|| Transaction::compared(link.view.transaction));
        let limits = &link.module.shared.grants.limits;
        let journal = match host.development {
            true => Journal::recording(),
            false => Journal::off(),
        };
        let setup = Setup {
            arrived,
            worker,
            journal,
            transaction: compared,
        };
        let scope = Scope::open(self.origin, &link.view, limits, setup);
        if let Some(socket) = &self.origin.socket {
            socket.opened_in(&scope);
        }
        let on = (host, self.app);
        let body = Received {
            body: self.body.clone(),
            binary: self.binary.clone(),
        };
        let params = Arc::clone(&self.params);
        let work = match placement {
            Placement::Worker => {
                let (context, kept) = ChainContext::whole(on, &scope, body, self.streams);
                let start = context.start(chain, params);
                on_worker(host, &scope, chain, (start, kept), request).boxed()
            }
            Placement::Loop => {
                let (context, kept) = ChainContext::whole(on, &scope, body, self.streams);
                let start = context.start(chain, params);
                let outcome = || start.on_loop(request);
                on_loop(host, &scope, (chain, kept), outcome).boxed()
            }
            Placement::PerLink => {
                let streams = self.streams;
                let (context, kept, tasks) = ChainContext::per_link(on, &scope, body, streams);
                let start = context.start(chain, params);
                let outcome = async || {
                    if let Some(copy) = copy {
                        copy.run_within(host, &scope, chain).boxed().await;
                    }
                    conduct(start, request, tasks).await
                };
                on_loop(host, &scope, (chain, kept), outcome).boxed()
            }
        };
        let deadline = Arc::clone(&scope.deadline);
        let cancelling = Cancelling {
            host,
            deadline,
            work: Some(work),
        };
        let Done {
            response,
            fate,
            conversing,
        } = cancelling.await;
        let stream = match &response {
            Ok(response) => match response.body() {
                CheckedBody::Stream(body) => Some(body.watch()),
                CheckedBody::Whole(..) | CheckedBody::Subscription(_) => None,
            },
            Err(_) => None,
        };
        // The transaction has ended, so work that the view left running cannot belong to it any more and is cancelled.
        // What produces the body of the response goes on.
        if scope.stream_cpu().is_none() {
            scope.deadline.cancel(Ended::Answered);
        }
        Box::new(AttemptOutcome {
            response,
            stream,
            fate,
            scope,
            retries: 0,
            conversing: Mutex::new(conversing),
        })
    }
}

impl AttemptOutcome {
    /// What is compared with the outcome of a copy.
    fn seen(&self) -> (&Scope, &CheckedResponse, Fate) {
        (&self.scope, &self.response, self.fate)
    }

    /// Whether the attempt was made in a transaction that a copy of the request had begun, has failed there, and has left
    /// nothing behind: then the request is run again, alone.
    async fn may_be_spoilt(&self) -> bool {
        let transaction = &self.scope.transaction;
        (self.is_server_error() || transaction.conflict())
            && self.left_nothing()
            && self.goes_on()
            && transaction.was_shared().await != Compared::Apart
    }

    /// Whether the answer is a failure of the app (5xx). A host that had no room for the request (503) has none for
    /// another run of it, either.
    pub(super) fn has_failed(&self) -> bool {
        let is_full = self.response.as_ref().is_err_and(|failure| {
            failure.fault == Fault::Limit && failure.status == StatusCode::SERVICE_UNAVAILABLE
        });
        self.is_server_error() && !is_full
    }

    /// Whether the answer is a 5xx.
    fn is_server_error(&self) -> bool {
        self.status().is_server_error()
    }

    fn status(&self) -> StatusCode {
        match &self.response {
            Ok(response) => response.status(),
            Err(failure) => failure.status,
        }
    }

    /// Whether nothing is left of what the request did: all of it was rolled back. A function that still produces the body
    /// of its response may yet do something that lasts.
    pub(super) fn left_nothing(&self) -> bool {
        let scope = &self.scope;
        let goes_on =
            |response: &Response<CheckedBody>| matches!(response.body(), CheckedBody::Stream(_));
        !self.response.as_ref().is_ok_and(goes_on)
            && self.fate != Fate::Committed
            && !scope.transaction.may_last()
            && !scope.sent.load(SeqCst)
            && !scope.files.load(SeqCst)
    }

    /// Whether the request has not ended for another reason than its answer.
    fn goes_on(&self) -> bool {
        matches!(
            self.scope.deadline.ended(),
            None | Some(Ended::Failed | Ended::Answered)
        )
    }

    /// Whether the request can be run again: it failed because of a conflict, and the attempt had no effect that others
    /// can notice.
    fn may_run_again(&self) -> bool {
        let scope = &self.scope;
        let would_help = scope.transaction.conflict()
            && self.fate != Fate::Committed
            && !scope.sent.load(SeqCst)
            && self.goes_on();
        if would_help && scope.files.load(SeqCst) {
            let (view, request) = (&scope.view, &scope.origin.id);
            tracing::warn!(%view, request, "not run again after a conflict: it may have written files in its `directories`, which no roll-back undoes");
            return false;
        }
        would_help
    }
}

/// Runs a chain and the end of its transaction on one worker. The request changes threads only twice: from the loop to
/// the worker and back.
async fn on_worker(
    host: &Arc<Host>,
    scope: &Arc<Scope>,
    chain: &Chain,
    (link_call, kept): (LinkCall, KeptStreams),
    request: types::Request,
) -> Done {
    let memory = match guest_memory(host, scope, chain).await {
        Ok(memory) => memory,
        Err(refused) => return Done::new(Err(busy(refused)), Fate::None),
    };
    scope.hop();
    let settling = Arc::clone(scope);
    let job = move |answer: &mut Answer<_>| {
        settling.worker.runs_on(workers::number());
        let outcome = link_call.on_worker(request);
        kept.end();
        let settled = workers::block_on(settle(&settling, Face::Sync, outcome));
        let streaming = settled.streaming.map(|streaming| (streaming, kept.host()));
        drop(kept);
        answer.give(Done::new(settled.response, settled.fate));
        if let Some((streaming, host)) = streaming {
            workers::drive(streaming.run(settling, host));
        }
        drop(memory);
    };
    let done = host.workers.run_on(&scope.deadline, job).await;
    done.unwrap_or_else(|refused| Done::new(Err(busy(refused)), Fate::None))
}

/// Takes the memory that the functions of the chain usually have. It comes before everything else that a request waits
/// for: whoever has it may wait for a place, a worker or a connection, and nobody who has one of these waits for memory
/// (R4).
async fn guest_memory(host: &Host, scope: &Scope, chain: &Chain) -> Result<Permit, Refused> {
    let kb = chain.usual_memory_kb();
    host.guest_memory.enter_with(kb, &scope.deadline).await
}

/// Runs a chain from this loop: async functions on the loop, sync functions on the scope's worker.
async fn on_loop<F: Future<Output = LinkResult>>(
    host: &Arc<Host>,
    scope: &Arc<Scope>,
    (chain, kept): (&Chain, KeptStreams),
    outcome: impl FnOnce() -> F,
) -> Done {
    let permits = async {
        let memory = guest_memory(host, scope, chain).await?;
        let place = match chain.needs_permit() {
            true => Some(host.instances.enter(&scope.deadline).await?),
            false => None,
        };
        Ok((memory, place))
    };
    let (mut outcome, mut permits) = match permits.await {
        Ok(permits) => (outcome().await, Some(permits)),
        Err(refused) => (Err(busy(refused)), None),
    };
    let mut conversing = None;
    if let (Ok(reply), Some((memory, _))) = (&mut outcome, &mut permits)
        && let Some(producer) = reply.take_conversation()
    {
        // Before the commit: a request that is refused leaves nothing.
        match place_of_conversation(host) {
            // Not the place among the async requests: it will wait for most of the time.
            Ok(place) => {
                let memory = memory.split(memory.num_permits());
                let memory = memory.expect("it has as many as it has");
                conversing = Some(Conversing {
                    producer,
                    memory,
                    place,
                });
            }
            Err(refused) => outcome = Err(refused),
        }
    }
    // A stream keeps its memory, its place among the async requests, and its worker.
    let mut inner = Vec::new();
    let (permits, worker) = match outcome.as_ref().ok().and_then(Reply::producer) {
        Some(producer) => {
            inner = kept.inner();
            let modes = inner.iter().map(|inner| inner.producer.mode);
            let is_sync = modes.chain([producer.mode]).any(|mode| mode == Mode::Sync);
            let worker = match is_sync {
                true => scope.worker.take().await,
                false => None,
            };
            (permits, worker)
        }
        None => {
            drop(kept);
            (None, None)
        }
    };
    // No function of the scope can begin any more, so the worker is released. The scope itself may live on (for the
    // page of its failure, the wait before the request runs again, or the access log). A scope that has ended keeps
    // information, but no worker and no permit (R4).
    scope.worker.release().await;
    let settled = settle(scope, Face::Async, outcome).await;
    if let Some(body) = settled.streaming {
        let streams = Streams {
            body,
            inner,
            worker,
        };
        let running = streams.run(Arc::clone(scope), Arc::clone(host));
        tokio::spawn(async move {
            running.await;
            drop(permits);
        });
    }
    Done {
        conversing: conversing.filter(|_| settled.response.is_ok()),
        response: settled.response,
        fate: settled.fate,
    }
}

/// Takes one of `sockets_max`.
fn place_of_conversation(host: &Host) -> Result<OwnedSemaphorePermit, Failure> {
    let (permits, max) = &host.conversations;
    Arc::clone(permits).try_acquire_owned().map_err(|_| {
        METRICS.refused.with_label_values(&["conversations"]).inc();
        Failure::limit(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{max} web sockets have functions that keep their conversations, as many as `sockets_max` of `[async_views]` allows"),
        )
    })
}

/// The work of an attempt. If it is dropped before the work is done, it first cancels the deadline. So everything that
/// is dropped with the work sees why the request has ended.
struct Cancelling<'a> {
    host: &'a Host,
    deadline: Arc<Deadline>,
    work: Option<BoxFuture<'a, Done>>,
}

impl Future for Cancelling<'_> {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let work = self
            .work
            .as_mut()
            .expect("it is not polled again when it is done");
        let done = std::task::ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(done)
    }
}

impl Drop for Cancelling<'_> {
    fn drop(&mut self) {
        if self.work.is_some() {
            self.deadline.cancel(self.host.why_dropped());
        }
    }
}
