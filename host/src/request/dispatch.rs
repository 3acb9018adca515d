//! Runs the guest functions of a request: a chain of middleware around a view, sync and async in any mix.
//!
//! Every guest function runs in an instance of its own. Middleware calls the rest of its chain with the host call
//! `next`, and a view calls another view with a sub-request. The caller waits for the answer as for that of any other
//! host call. The called function runs where its mode wants it, with as few changes between loop and worker (hops) as
//! possible: sync from sync on the same thread, async from async on the same loop.
//!
//! Everything that runs on the loop is part of one future ([`conduct`]). A function that calls another one sends a
//! `LoopTask` to that future and waits for the answer. So dropping the future cancels all of the request (R15), and no
//! store is worked on from within another store, which wasmtime does not allow. What the loop needs from the scope's
//! worker is sent there as a job. While a sync function waits for a task, the worker runs the jobs that the task needs
//! (R3).

mod loop_tasks;
mod subrequest_transaction;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use futures::future::{BoxFuture, FutureExt as _};
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::app::chain::{Chain, Link};
use crate::app::host::Host;
use crate::app::router::Route;
use crate::app::{App, Target};
use crate::contract::types;
use crate::guest::run::{GuestResult, MayStream, Producer, Reply, ReplyBody};
use crate::guest::stop::Stop;
use crate::guest::store::{CallChain, Callee, NotPublished, Work};
use crate::http::body::RequestBody;
use crate::http::message::BinaryHeaders;
use crate::http::path;
use crate::http::stream::{StreamBody, stream};
use crate::scope::transaction::{Member, not_kept};
use crate::scope::{CallSlot, Scope};
use crate::telemetry::error::{Failure, cut, shown};
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Need;
use crate::threads::gate::Refused;
use crate::threads::workers::{self, CALL_SLOTS_MAX, Call};
use crate::view::{Mode, is_topic};

use super::streaming::Streaming;
use loop_tasks::{Caller, GiveUpOnDrop, LoopQueue, LoopTask};
pub use loop_tasks::{LoopTasks, conduct};

/// What all calls of one request share.
pub struct ChainContext {
    /// The app that the request was routed in.
    pub app: Arc<App>,
    host: Arc<Host>,
    /// The request's scope.
    pub scope: Arc<Scope>,
    received: Received,
    /// The queue of calls that the loop has to run. None: no function of the chain can make such a call.
    loop_queue: Option<Arc<LoopQueue>>,
    /// Whether the body of a plain component's response may be produced while it is sent.
    may_stream: bool,
    streams: Mutex<Streams>,
    /// The last failure in the chain, and the error that its caller was shown for it.
    failure: Mutex<Option<(types::Error, Failure)>>,
}

/// What has been received of a request, beside what its contract has.
pub struct Received {
    /// The body, if the host keeps it and guests read it piece by piece.
    pub body: Option<RequestBody>,
    /// The headers whose values are not UTF-8.
    pub binary: BinaryHeaders,
}

/// The bodies that wait to be produced. The call slots of the scope limit how many there are.
enum Streams {
    /// While the chain runs.
    Open {
        /// Those of the responses that functions have got from others and not passed on, by their numbers.
        kept: BTreeMap<u32, Producer>,
        last: u32,
        /// Those that plain components read, as part of their own.
        inner: Vec<Streaming>,
    },
    Closed,
}

/// The streams of a chain. They are dropped with this value: a stream may hold its call, and the call holds the chain.
pub struct KeptStreams(Arc<ChainContext>);

impl KeptStreams {
    /// The bodies that plain components read, to be produced now. All other streams are dropped.
    pub fn inner(self) -> Vec<Streaming> {
        match self.close() {
            Streams::Open { inner, .. } => inner,
            Streams::Closed => Vec::new(),
        }
    }

    /// Drops the streams. None can be kept any more.
    pub fn end(&self) {
        drop(self.close());
    }

    /// The host that the chain runs on.
    pub fn host(&self) -> Arc<Host> {
        Arc::clone(&self.0.host)
    }

    fn close(&self) -> Streams {
        std::mem::replace(&mut *self.0.streams.lock(), Streams::Closed)
    }
}

impl Drop for KeptStreams {
    fn drop(&mut self) {
        self.end();
    }
}

/// Result of one link of the chain, including everything nested in it.
pub type LinkResult = Result<Reply, Failure>;

impl ChainContext {
    /// The context of a chain that is one job of a worker, or one async view; and its streams. `may_stream`: whether the
    /// body of a plain component's response may be produced while it is sent.
    pub fn whole(
        on: (&Arc<Host>, &Arc<App>),
        scope: &Arc<Scope>,
        received: Received,
        may_stream: bool,
    ) -> (Arc<ChainContext>, KeptStreams) {
        ChainContext::new(on, scope, received, (may_stream, None))
    }

    fn new(
        (host, app): (&Arc<Host>, &Arc<App>),
        scope: &Arc<Scope>,
        received: Received,
        (may_stream, loop_queue): (bool, Option<Arc<LoopQueue>>),
    ) -> (Arc<ChainContext>, KeptStreams) {
        let context = Arc::new(ChainContext {
            app: Arc::clone(app),
            host: Arc::clone(host),
            scope: Arc::clone(scope),
            received,
            loop_queue,
            may_stream,
            streams: Mutex::new(Streams::Open {
                kept: BTreeMap::new(),
                last: 0,
                inner: Vec::new(),
            }),
            failure: Mutex::default(),
        });
        let kept = KeptStreams(Arc::clone(&context));
        (context, kept)
    }

    /// The context of any chain, whose links run one by one, its streams, and the tasks of its links, which
    /// [`conduct`] runs.
    pub fn per_link(
        on: (&Arc<Host>, &Arc<App>),
        scope: &Arc<Scope>,
        received: Received,
        may_stream: bool,
    ) -> (Arc<ChainContext>, KeptStreams, LoopTasks) {
        let queue = Arc::new(LoopQueue::open());
        let loop_queue = Some(Arc::clone(&queue));
        let (context, kept) = ChainContext::new(on, scope, received, (may_stream, loop_queue));
        (context, kept, LoopTasks(queue))
    }

    /// The call of the first link of `chain`.
    pub fn start(
        self: &Arc<Self>,
        chain: &Arc<Chain>,
        params: Arc<[(String, String)]>,
    ) -> LinkCall {
        LinkCall {
            context: Arc::clone(self),
            chain: Arc::clone(chain),
            index: 0,
            params,
            body: self.received.body.clone(),
            call_path: Vec::new(),
            gone_on: AtomicBool::new(false),
            slot: None,
            member: Arc::new(self.scope.transaction.first_member()),
        }
    }

    /// Keeps the producer of a response that a function gets from another one, and numbers it. When the chain has
    /// ended, the producer is dropped.
    fn keep(&self, producer: Producer) -> u32 {
        match &mut *self.streams.lock() {
            Streams::Open { kept, last, .. } => {
                *last += 1;
                kept.insert(*last, producer);
                *last
            }
            Streams::Closed => u32::MAX,
        }
    }

    /// Takes the producer with this number, if there is one.
    fn take(&self, number: u32) -> Option<Producer> {
        match &mut *self.streams.lock() {
            Streams::Open { kept, .. } => kept.remove(&number),
            Streams::Closed => None,
        }
    }

    /// The error that a caller is shown for a failure. When the failure passes through several callers, all of them see
    /// the same error.
    fn shown(&self, failure: Failure) -> types::Error {
        if let Some((shown, last)) = &*self.failure.lock()
            && last.detail == failure.detail
        {
            return shown.clone();
        }
        let shown = types::Error {
            status: failure.status.as_u16(),
            message: failure.client_text.to_string(),
            detail: Some(failure.detail.clone()),
        };
        *self.failure.lock() = Some((shown.clone(), failure));
        shown
    }
}

/// The call of one link of a chain: a guest function that is to run, or runs.
pub struct LinkCall {
    context: Arc<ChainContext>,
    chain: Arc<Chain>,
    index: usize,
    /// The path parameters of the route.
    params: Arc<[(String, String)]>,
    /// The client's body, if the host keeps it and this function may read it: a function may read at most what its
    /// caller may.
    body: Option<RequestBody>,
    /// The links that the call is nested in, the outermost first.
    call_path: Vec<Link>,
    /// Whether the function has called `next`.
    gone_on: AtomicBool,
    /// The slot of the call in its scope, if it was taken already.
    slot: Option<CallSlot>,
    /// The function's membership in a transaction.
    member: Arc<Member>,
}

impl LinkCall {
    fn link(&self) -> &Link {
        &self.chain.links[self.index]
    }

    /// Whether no sync function can run after this call and the calls nested in it: all links around this call are
    /// async, and may make no call but `next`, which each of them has made already.
    fn is_last_sync(&self) -> bool {
        let done =
            |link: &Link| link.view.mode == Mode::Async && !link.module.shared.grants.subrequests;
        self.call_path.iter().all(done)
    }

    fn scope(&self) -> &Arc<Scope> {
        &self.context.scope
    }

    /// A call nested in this one: of the next link of this chain, or of the first link of another chain.
    fn within(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        params: Arc<[(String, String)]>,
        member: Member,
    ) -> LinkCall {
        LinkCall {
            context: Arc::clone(&self.context),
            chain: Arc::clone(chain),
            index,
            params,
            body: self.body.clone(),
            call_path: self
                .call_path
                .iter()
                .chain([self.link()])
                .cloned()
                .collect(),
            gone_on: AtomicBool::new(false),
            slot: None,
            member: Arc::new(member),
        }
    }

    /// Whether this is a sub-request to an atomic view by a caller that is in no level: the view then needs a
    /// transaction of its own.
    fn needs_own_transaction(&self) -> bool {
        !self.call_path.is_empty()
            && self.member.owns_transaction()
            && self.chain.view().view.transaction.atomic
    }

    /// Runs the function, from the loop.
    pub async fn on_loop(self, request: types::Request) -> LinkResult {
        match self.link().view.mode {
            Mode::Async => self.run_async(request).await,
            Mode::Sync => {
                self.scope().hop();
                self.run_on_worker(request).await
            }
        }
    }

    /// Runs the function, from the scope's worker.
    pub fn on_worker(self, request: types::Request) -> LinkResult {
        if self.link().view.mode == Mode::Sync && !self.needs_own_transaction() {
            return self.run_sync(request);
        }
        let scope = Arc::clone(self.scope());
        scope.hop();
        let ask = |call: Call<LinkResult>| self.send(request, Caller::Worker(call));
        workers::await_call(ask).unwrap_or_else(|| Err(cancelled(&scope)))
    }

    /// Sends the call to the loop. When the request is cancelled, the task is dropped, and `caller` gets no answer.
    fn send(self, request: types::Request, caller: Caller) {
        let loop_queue = self.context.loop_queue.clone();
        let loop_queue = loop_queue.expect("a chain that may call for others runs link by link");
        loop_queue.send(LoopTask {
            link_call: self,
            request,
            caller,
        });
    }

    async fn run_on_worker(self, request: types::Request) -> LinkResult {
        let scope = Arc::clone(self.scope());
        let last = self.is_last_sync();
        let lease = scope.worker.get(&scope.deadline).await.map_err(busy)?;
        let from = self.member.from();
        let waits = scope.deadline.waits_for(Need::Worker);
        let job = move |id| {
            drop(waits);
            self.member.called_from([id]);
            self.run_sync(request)
        };
        let outcome = lease.run(from, job).await;
        // What produces the body of the response runs on the same worker.
        let streams = |reply: &Reply| reply.producer().is_some();
        if last && !matches!(&outcome, Ok(Ok(reply)) if streams(reply)) {
            scope.worker.release().await;
        }
        outcome.map_err(busy)?
    }

    fn run_sync(mut self, request: types::Request) -> LinkResult {
        if let Some(why) = self.scope().deadline.ended() {
            return Err((&Stop::from(why)).into());
        }
        let slot = self.take_slot()?;
        self.begin()?;
        let request = self.received(request);
        let here = Arc::new(self);
        let module = &here.link().module;
        let streams = here.may_stream();
        let answer = module.call_sync(here.work(), request, streams);
        here.finished(with_slot(answer, slot))
    }

    async fn run_async(mut self, request: types::Request) -> LinkResult {
        let slot = self.take_slot()?;
        self.begin()?;
        let request = self.received(request);
        let here = Arc::new(self);
        let module = &here.link().module;
        let streams = here.may_stream();
        let answer = module.call_async(here.work(), request, streams).await;
        here.finished(with_slot(answer, slot))
    }

    /// The request as the called function gets it. The path parameters are those of the function's own route. The
    /// function can read the client's body only if the caller passed it on in the request and may read it itself.
    fn received(&mut self, request: types::Request) -> types::Request {
        let body = match request.body {
            types::Body::Bytes(bytes) => {
                self.body = None;
                types::Body::Bytes(bytes)
            }
            types::Body::Spooled(_) | types::Body::Arriving(_) => match &self.body {
                Some(body) => body.contract(),
                None => types::Body::Bytes(Vec::new()),
            },
        };
        types::Request {
            params: self.params.to_vec(),
            body,
            ..request
        }
    }

    fn work(self: &Arc<Self>) -> Work {
        Work {
            call_chain: Some(Arc::clone(self) as Arc<dyn CallChain>),
            body: self.body.clone(),
            binary: self.context.received.binary.clone(),
            ..Work::new(
                Arc::clone(self.scope()),
                Arc::clone(&self.link().view),
                Arc::clone(&self.member),
            )
        }
    }

    /// Whether the call of a plain component may go on after its head, to produce the body while it is sent.
    fn may_stream(&self) -> MayStream {
        // What belongs to a transaction waits for the commit (R9), which the configuration can move to the head.
        let commits = !self.member.is_in_level() || self.link().module.shared.grants.commit_at_head;
        let is_alone = self.call_path.is_empty() && !self.member.is_in_level();
        match self.context.may_stream {
            false => MayStream::Never,
            true if !commits => MayStream::ToReadStream,
            true if !is_alone => MayStream::HoldingNothing,
            true => MayStream::Always,
        }
    }

    /// The result of the link. When the link has failed, its transaction rolls back, whatever the callers make of the
    /// failure (R9).
    fn finished(&self, answer: Result<GuestResult, Failure>) -> LinkResult {
        let goes_on = |reply: &Reply| reply.producer().is_some_and(Producer::is_rest);
        let goes_on = matches!(&answer, Ok(Ok(reply)) if goes_on(reply));
        let outcome = match answer {
            Ok(Ok(reply)) => self.with_stream(reply),
            Ok(Err(error)) => Err(self.returned(error)),
            Err(failure) => Err(self.own(failure)),
        };
        let failed = outcome.as_ref().map_or(500, |response| response.status) >= 500;
        let ended = match goes_on {
            true => self.member.goes_on(failed),
            false => self.member.end(failed),
        };
        match ended {
            Err(error) if !failed => Err(Failure {
                call_path: self.call_path_here(),
                ..not_kept(&error)
            }),
            _ => outcome,
        }
    }

    /// The reply, with the stream that it passes on, if it passes one on. The module needs a grant for a group that it
    /// answers from.
    fn with_stream(&self, reply: Reply) -> LinkResult {
        if let ReplyBody::Subscription(subscription) = &reply.body {
            let (group, grants) = (&subscription.group, &self.link().module.shared.grants);
            // What middleware passes on is the view's, and was checked.
            let is_view = self.index + 1 == self.chain.links.len();
            let granted = is_topic(group) && grants.channels.iter().any(|it| it.contain(group));
            if is_view && !granted {
                return Err(self.own(Failure::view(format!(
                    "module `{}` may not answer from the group `{}`: add it to `channels` of `[modules.{0}]`",
                    grants.name,
                    shown(group)
                ))));
            }
        }
        let ReplyBody::PassedOn(number) = reply.body else {
            return Ok(reply);
        };
        let producer = self.context.take(number).ok_or_else(|| {
            self.own(Failure::view(format!(
                "the view passes on the stream {number}, which it did not get, or has passed on already"
            )))
        })?;
        Ok(Reply {
            body: ReplyBody::Stream(producer),
            ..reply
        })
    }

    /// The failure behind an error that the guest returned. If the guest passed on the error that it was shown for a
    /// call, this is the failure of that call. Any other error is a failure of the guest itself.
    fn returned(&self, error: types::Error) -> Failure {
        let mut last = self.context.failure.lock();
        if let Some((shown, failure)) = &*last
            && *shown == error
        {
            return failure.clone();
        }
        let failure = self.own(returned(&error));
        *last = Some((error, failure.clone()));
        failure
    }

    /// Adds to a failure of this call's guest the call path and, if there is one, a hint at the setting that the
    /// failure is about.
    fn own(&self, failure: Failure) -> Failure {
        let mut detail = failure.detail;
        if let Some(hint) = file_hint(&detail, &self.link().module.shared.grants) {
            detail.push_str(&hint);
        }
        Failure {
            call_path: self.call_path_here(),
            detail,
            ..failure
        }
    }

    fn call_path_here(&self) -> Vec<String> {
        let call_path = self.call_path.iter().chain([self.link()]);
        call_path.map(ToString::to_string).collect()
    }

    /// Begins the guest function. An error if the caller gave the call up while the call waited for the worker.
    fn begin(&self) -> Result<(), Failure> {
        match self.member.begins() {
            true => Ok(()),
            false => Err(cancelled(self.scope())),
        }
    }

    fn take_slot(&mut self) -> Result<CallSlot, Failure> {
        let slot = self.slot.take().or_else(|| self.scope().take_call_slot());
        slot.ok_or_else(|| self.too_deep())
    }

    fn too_deep(&self) -> Failure {
        Failure::view(format!(
            "{}: more than {} guest functions would run within each other or at once in this request: it has too much middleware, or its views call each other",
            self.link(),
            CALL_SLOTS_MAX
        ))
    }

    /// The call that this call's guest asks for: of the next link, or of another view.
    fn call_chain(
        &self,
        to: Callee,
        request: &mut types::Request,
    ) -> Result<LinkCall, types::Error> {
        match to {
            Callee::Next => self.next(),
            // The slot is taken now, and not when the function begins: a waiting call takes memory, too.
            Callee::Subrequest => {
                // The path is normalized, as the path of a client's request is.
                if let Cow::Owned(path) = path::normalized(&request.path) {
                    request.path = path;
                }
                let mut link_call = self.other(request)?;
                let slot = self.scope().take_call_slot();
                let slot = slot.ok_or_else(|| self.context.shown(link_call.too_deep()))?;
                link_call.slot = Some(slot);
                Ok(link_call)
            }
        }
    }

    fn next(&self) -> Result<LinkCall, types::Error> {
        let refused = |why: &str| Err(refused(StatusCode::INTERNAL_SERVER_ERROR, why.to_owned()));
        if self.index + 1 >= self.chain.links.len() {
            return refused("there is nothing after this view: `next` is for middleware");
        }
        if self.gone_on.swap(true, SeqCst) {
            return refused("`next` was called a second time: the rest of a chain runs once");
        }
        let params = Arc::clone(&self.params);
        let member = self.member.next();
        Ok(self.within(&self.chain, self.index + 1, params, member))
    }

    fn other(&self, request: &types::Request) -> Result<LinkCall, types::Error> {
        let Link { view, module } = self.link();
        if !module.shared.grants.subrequests {
            return Err(refused(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "`{view}` may not call other views: add `subrequests = true` to `[modules.{}]`",
                    view.module
                ),
            ));
        }
        let target = format!("{} {}", request.method, request.path);
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| {
            refused(
                StatusCode::BAD_REQUEST,
                format!("`{target}`: there is no such method"),
            )
        })?;
        match self.context.app.router.route(&method, &request.path) {
            Route::Found(Target::View(routed), params) => {
                if routed
                    .builtins()
                    .iter()
                    .any(|builtin| builtin.asks_for_user())
                {
                    return Err(refused(
                        StatusCode::FORBIDDEN,
                        format!(
                            "`{target}`: module `{}` asks clients who they are, and a sub-request is no client; use `http` with the grant \"self\"",
                            routed.chain.view().module.shared.grants.name
                        ),
                    ));
                }
                let view = routed.inner.view().view.transaction;
                let member = self.member.call(view);
                let member = member.map_err(|why| self.context.shown((&Stop::from(why)).into()))?;
                Ok(self.within(&routed.inner, 0, params.into(), member))
            }
            Route::NotText => Err(refused(
                StatusCode::BAD_REQUEST,
                format!("`{target}`: the path is not UTF-8 when decoded"),
            )),
            Route::MethodNotAllowed(allow) | Route::Options(allow) => Err(refused(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("`{target}` is not possible; {allow} are"),
            )),
            Route::Found(Target::Static(_) | Target::Socket(_), _) | Route::NotFound => {
                Err(refused(
                    StatusCode::NOT_FOUND,
                    format!("`{target}`: the app has no such view"),
                ))
            }
        }
    }
}

/// The caller's side of a call.
struct Called {
    to: Callee,
    context: Arc<ChainContext>,
    member: Arc<Member>,
}

impl Called {
    fn new(to: Callee, link_call: &LinkCall) -> Called {
        Called {
            to,
            context: Arc::clone(&link_call.context),
            member: Arc::clone(&link_call.member),
        }
    }

    /// The result that the caller is shown. When `next` has failed, even because the next link could not begin, the
    /// transaction of the caller and the next link rolls back, whatever the caller makes of the failure (R9).
    fn shown(self, outcome: LinkResult) -> Result<types::Response, types::Error> {
        let context = Arc::clone(&self.context);
        let outcome = outcome.map(|reply| reply.into_contract(|stream| context.keep(stream)));
        outcome.map_err(|failure| {
            if self.to == Callee::Next {
                // An error says that the level ended before the call did. The level was rolled back then, so nothing is
                // left to do.
                let _ = self.member.end(true);
            }
            self.context.shown(failure)
        })
    }
}

impl CallChain for LinkCall {
    fn go(&self, to: Callee, mut request: types::Request) -> Result<types::Response, types::Error> {
        let link_call = self.call_chain(to, &mut request)?;
        let called = Called::new(to, &link_call);
        called.shown(link_call.on_worker(request))
    }

    fn go_async(
        self: Arc<Self>,
        to: Callee,
        mut request: types::Request,
        body: Option<RequestBody>,
    ) -> BoxFuture<'static, Result<types::Response, types::Error>> {
        async move {
            let mut link_call = self.call_chain(to, &mut request)?;
            if body.is_some() {
                link_call.body = body;
            }
            let called = Called::new(to, &link_call);
            // Gives the member up as soon as the guest drops its call, and this future with it. Later would be too
            // late: the transaction may be committed before the loop gets to the task.
            let _given_up = GiveUpOnDrop(Arc::clone(&link_call.member));
            let (sender, answer) = oneshot::channel();
            link_call.send(request, Caller::Loop(sender));
            let outcome = answer.await;
            called.shown(outcome.unwrap_or_else(|_| Err(cancelled(self.scope()))))
        }
        .boxed()
    }

    fn read_stream(&self, number: u32, length: Option<u64>) -> Result<StreamBody, Failure> {
        let ChainContext { scope, streams, .. } = &*self.context;
        let gone = || Failure::view("the request is answered already");
        let producer = self.context.take(number).ok_or_else(gone)?;
        if producer.converses {
            return Err(Failure::view(
                "middleware of `wasi:http` cannot be around a view that keeps the conversation of a web socket: it would read the conversation as a body",
            ));
        }
        let (account, max) = (&scope.origin.account, scope.limits.stream_max_bytes);
        let counted = GaugeGuard::new(&METRICS.streams);
        let (writer, body) = stream(account, max, length, Some(counted))?;
        match &mut *streams.lock() {
            Streams::Open { inner, .. } => inner.push(Streaming { producer, writer }),
            Streams::Closed => return Err(gone()),
        }
        Ok(body)
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), NotPublished> {
        let ChainContext {
            host, app, scope, ..
        } = &*self.context;
        host.events
            .publish((app, scope, &self.member), topic, payload)
    }
}

/// Leaves the slot of a call to what produces the body of its response; gives the slot back if nothing does.
fn with_slot(answer: Result<GuestResult, Failure>, slot: CallSlot) -> Result<GuestResult, Failure> {
    let mut answer = answer?;
    if let Ok(Reply {
        body: ReplyBody::Stream(producer),
        ..
    }) = &mut answer
    {
        producer.slot = Some(slot);
    }
    Ok(answer)
}

fn refused(status: StatusCode, message: String) -> types::Error {
    types::Error {
        status: status.as_u16(),
        message,
        detail: None,
    }
}

fn cancelled(scope: &Scope) -> Failure {
    let why = scope
        .deadline
        .ended()
        .unwrap_or(crate::threads::deadline::Ended::Failed);
    (&Stop::from(why)).into()
}

/// The failure of a request that was refused a permit.
pub fn busy(refused: Refused) -> Failure {
    match refused {
        Refused::Busy(sentence) => Failure::limit(StatusCode::SERVICE_UNAVAILABLE, sentence),
        Refused::Ended(why) => (&Stop::from(why)).into(),
    }
}

/// The most bytes of a view's error message that a client is sent.
const CLIENT_TEXT_MAX: usize = 2 << 10;

/// The hint to add to a failure with `os error 44` (no such file). The guest's own libc returns this error, without a
/// call of the host, for every path outside of the granted folders.
fn file_hint(detail: &str, module: &crate::config::Module) -> Option<String> {
    if !detail.contains("(os error 44)") {
        return None;
    }
    let folders = module.directories.iter().map(|dir| &*dir.guest);
    let folders: Vec<&str> = folders.collect();
    let granted = match folders[..] {
        [] => "none".to_owned(),
        _ => folders.join(", "),
    };
    Some(format!(
        "; a view sees the folders that `directories` in [modules.{}] grants, which are: {granted}",
        module.name
    ))
}

/// The failure for an error that a view returned on purpose. With a status of 400 to 499 it is the client's fault, and
/// the client is sent the message.
fn returned(error: &types::Error) -> Failure {
    let types::Error {
        status,
        message,
        detail,
    } = error.clone();
    let detail = match detail {
        Some(detail) => format!("{message}: {detail}"),
        None => message.clone(),
    };
    let sentence = format!("the view returned an error: {detail}");
    match StatusCode::from_u16(status) {
        Ok(status) if status.is_client_error() => Failure {
            detail: sentence,
            ..Failure::client(status, cut(message, CLIENT_TEXT_MAX))
        },
        Ok(status) if status.is_server_error() => Failure {
            status,
            ..Failure::view(sentence)
        },
        _ => Failure::view(format!(
            "the view returned an error with the status {status}, which is none: {detail}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::error::Fault;

    #[test]
    fn a_file_outside_of_the_granted_folders_is_told_with_what_grants_it() {
        let mut module =
            crate::config::Module::without_grants("shop", std::path::Path::new("shop.wasm"));
        let detail = "the view panicked at a.rs:1:1: No such file or directory (os error 44)";
        let hint = file_hint(detail, &module).expect("it is about a file");
        assert!(
            hint.contains("[modules.shop] grants, which are: none"),
            "{hint}"
        );
        module.directories.push(crate::config::Directory {
            host: "/srv/open".into(),
            guest: "/open".into(),
            write: false,
        });
        let hint = file_hint(detail, &module).expect("it is about a file");
        assert!(hint.ends_with("which are: /open"), "{hint}");
        assert_eq!(file_hint("no such entry", &module), None);
    }

    #[test]
    fn an_error_of_a_view_is_told_to_the_client_only_below_500() {
        let error = |status| types::Error {
            status,
            message: "no such entry".into(),
            detail: Some("id 7".into()),
        };
        let failure = returned(&error(404));
        assert_eq!(
            (failure.status, failure.fault),
            (StatusCode::NOT_FOUND, Fault::Client)
        );
        assert!(
            failure.detail.contains("no such entry: id 7")
                && failure.client_text == "no such entry"
        );
        let failure = returned(&error(503));
        assert_eq!(
            (failure.status, failure.fault),
            (StatusCode::SERVICE_UNAVAILABLE, Fault::View)
        );
        assert!(
            failure.detail.contains("no such entry: id 7")
                && !failure.client_text.contains("entry")
        );
        let nonsense = returned(&error(200));
        assert_eq!(nonsense.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
