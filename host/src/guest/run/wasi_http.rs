//! Plain components of `wasi:http`. One that exports `incoming-handler` of version 0.2 runs on a sync worker, and one
//! that exports `handler` of version 0.3 on an event loop.
//!
//! Such a component sets the head of its response in the middle of its call, and writes the body while it goes on. So a
//! call is a future that is polled until the response is whole ([`answer`]): by the worker's thread
//! ([`workers::drive`]), or as part of the loop's work. If it may stream, and waits for anything after its head, it is
//! left there: the rest of the call becomes the [`Producer`] of the body.
//!
//! A body is complete when the component has finished it. A component that traps, or ends before, has failed.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt as _};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _, p3};

use super::r#async::preempt;
use super::engine::Engines;
use super::failure::explain;
use super::instance_pool::{Instance, InstancePool};
use super::limits::{in_time, limited, within};
use super::reply::{GuestResult, MayStream, Producer, Reply, ReplyBody, failed, in_stream_time};
use super::sync::{TICKS_BETWEEN_LOOKS, look_and_yield};
use crate::budget::Room;
use crate::config::Reuse;
use crate::contract::types;
use crate::guest::cpu::CpuTime;
use crate::guest::store::{Guest, Next, Work};
use crate::http::message::{HeadSize, check_trailers, is_bodiless};
use crate::http::stream::{NotWritten, StreamWriter};
use crate::scope::Scope;
use crate::scope::transaction::Member;
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::workers;
use crate::view::{Kind, Mode};

/// The most bytes of a body that are collected before it is streamed.
const FIRST_BYTES: usize = 64 << 10;
/// How long a body may stay as it is when nobody is left who could write it: what was written before passes through
/// wasmtime's own tasks.
const LEFT: Duration = Duration::from_secs(1);

/// A request as the component gets it.
pub type Incoming = http::Request<WasiBody>;

/// A component that exports `wasi:http/incoming-handler` 0.2.
pub struct IncomingHandler {
    proxy: ProxyPre<Guest>,
    pool: InstancePool<Exports<Proxy>>,
}

/// A component that exports `wasi:http/handler` 0.3.
pub struct Handler {
    service: ServicePre<Guest>,
    pool: InstancePool<Exports<Service>>,
}

/// The exports of an instance.
struct Exports<T> {
    handler: T,
    /// Number of WASI's handles, and of tasks, calls and streams in the store's table, while the instance is idle.
    idle: (usize, usize),
}

impl<T> Exports<T> {
    fn new(handler: T, store: &mut Store<Guest>) -> Exports<T> {
        let idle = open(store);
        Exports { handler, idle }
    }

    /// Whether nothing of a request is left in the store.
    fn is_idle(&self, store: &mut Store<Guest>) -> bool {
        let (handles, concurrent) = open(store);
        handles <= self.idle.0 && concurrent == self.idle.1
    }
}

/// Number of WASI's handles, and of tasks, calls and streams, that a store has.
fn open(store: &mut Store<Guest>) -> (usize, usize) {
    let concurrent = match store.concurrent_resource_table() {
        Some(_) => store.concurrent_state_table_size(),
        // The sync engine has no such table.
        None => 0,
    };
    (store.data_mut().wasi_handles(), concurrent)
}

impl IncomingHandler {
    /// `reuse` has the limits on the instances that are kept for further requests. None: each call has a fresh
    /// instance.
    pub fn new(
        engines: &Engines,
        proxy: ProxyPre<Guest>,
        reuse: Option<Reuse>,
    ) -> Arc<IncomingHandler> {
        let pool = InstancePool::new(reuse, &engines.sync_kept, METRICS.sync_kept.clone());
        Arc::new(IncomingHandler { proxy, pool })
    }

    /// Answers a request on this thread, which has to be that of a sync worker.
    ///
    /// # Errors
    /// A failure that explains the trap, the limit that was reached, why the request has ended, or what is wrong with
    /// the answer.
    pub fn call(
        self: &Arc<Self>,
        work: Work,
        guest: impl FnOnce(Work) -> Guest,
        request: Incoming,
        may_stream: MayStream,
    ) -> Result<GuestResult, Failure> {
        let (scope, cpu) = (Arc::clone(&work.scope), Arc::clone(&work.cpu));
        let streams = Streams::new(&work, may_stream);
        let head = Arc::new(Head::of(&request));
        let kept = self.pool.take(work);
        let kept = kept.map_err(|work| limited(self.proxy.engine(), guest(work)));
        let running = Arc::clone(self).run(kept, request, Arc::clone(&head));
        let running = Running::new(running, &cpu, head, None, &METRICS.sync_instances);
        let answer = pin!(answer(running, &scope, streams, Mode::Sync));
        workers::drive(within(&scope, answer))
    }

    /// `kept`: a kept instance, or else the store of a fresh one.
    async fn run(
        self: Arc<Self>,
        kept: Result<Instance<Exports<Proxy>>, Store<Guest>>,
        request: Incoming,
        head: Arc<Head>,
    ) -> Ended {
        let taken = match kept {
            Ok(kept) => Ok(kept),
            Err(store) => self.fresh(store).await,
        };
        let mut instance = match taken {
            Ok(instance) => instance,
            Err(failure) => return Ended::without_instance(failure),
        };
        let Instance { store, exports, .. } = &mut instance;
        store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
        let scheme = match request.uri().scheme_str() {
            Some("https") => Scheme::Https,
            _ => Scheme::Http,
        };
        let set = move |answer: Result<http::Response<WasiBody>, _>| {
            head.set(answer.map_err(|code| refused(&format!("{code:?}"))));
        };
        let answered = async {
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(scheme, request)?;
            let answer = http.new_response_outparam_from_callback(set)?;
            let handler = exports.handler.wasi_http_incoming_handler();
            handler.call_handle(&mut *store, request, answer).await
        };
        let failure = answered.await.err();
        let failure = failure.map(|error| explain(&error, store.data()));
        Ended::new(failure, move || {
            let clean = instance.exports.is_idle(&mut instance.store);
            self.pool.give_back(instance, clean);
        })
    }

    /// Instantiates the component once, to see that it can be.
    ///
    /// # Errors
    /// A failure that explains the trap, or the limit that was reached.
    pub async fn try_out(&self, guest: Guest) -> Result<(), Failure> {
        let Work { scope, cpu, .. } = guest.work();
        let (scope, cpu) = (Arc::clone(scope), Arc::clone(cpu));
        let fresh = pin!(self.fresh(limited(self.proxy.engine(), guest)));
        in_time(&scope, &cpu, fresh).await.map(drop)
    }

    async fn fresh(&self, mut store: Store<Guest>) -> Result<Instance<Exports<Proxy>>, Failure> {
        store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
        store.epoch_deadline_callback(|store| look_and_yield(store.data()));
        match self.proxy.instantiate_async(&mut store).await {
            Ok(proxy) => {
                let exports = Exports::new(proxy, &mut store);
                Ok(Instance::fresh(store, exports))
            }
            Err(error) => Err(explain(&error, store.data())),
        }
    }

    /// Drops the kept instances that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
    }
}

impl Handler {
    /// `reuse`: as for [`IncomingHandler::new`].
    pub fn new(
        engines: &Engines,
        service: ServicePre<Guest>,
        reuse: Option<Reuse>,
    ) -> Arc<Handler> {
        let pool = InstancePool::new(reuse, &engines.async_kept, METRICS.async_kept.clone());
        Arc::new(Handler { service, pool })
    }

    /// Answers a request on this loop.
    ///
    /// # Errors
    /// As [`IncomingHandler::call`].
    pub async fn call(
        self: &Arc<Self>,
        mut work: Work,
        guest: impl FnOnce(Work) -> Guest,
        request: Incoming,
        may_stream: MayStream,
    ) -> Result<GuestResult, Failure> {
        let (scope, cpu) = (Arc::clone(&work.scope), Arc::clone(&work.cpu));
        let is_middleware = work.view.kind == Kind::Middleware;
        if is_middleware {
            work.next = Some(Arc::default());
        }
        let streams = Streams::new(&work, may_stream);
        let head = Arc::new(Head::of(&request));
        let (over, is_over) = oneshot::channel();
        let kept = self.pool.take(work);
        let kept = kept.map_err(|work| limited(self.service.engine(), guest(work)));
        let with = (Arc::clone(&head), is_over);
        let running = Arc::clone(self).run(kept, is_middleware, request, with);
        let running = Running::new(running, &cpu, head, Some(over), &METRICS.async_instances);
        let answer = pin!(answer(running, &scope, streams, Mode::Async));
        within(&scope, answer).await
    }

    /// `kept`: a kept instance, or else the store of a fresh one.
    async fn run(
        self: Arc<Self>,
        kept: Result<Instance<Exports<Service>>, Store<Guest>>,
        is_middleware: bool,
        request: Incoming,
        (head, is_over): (Arc<Head>, oneshot::Receiver<()>),
    ) -> Ended {
        let taken = match kept {
            Ok(kept) => Ok(kept),
            Err(store) => self.fresh(store).await,
        };
        let mut instance = match taken {
            Ok(instance) => instance,
            Err(failure) => return Ended::without_instance(failure),
        };
        let Instance { store, exports, .. } = &mut instance;
        store.set_epoch_deadline(1);
        // The host reads files for the component also when it has ended.
        let has_files = !store.data().shared.grants.directories.is_empty();
        let has_body = !request.body().is_end_stream();
        (store.data_mut()).takes_body_at_once(!has_body && !is_middleware);
        let (request, _taken) = p3::Request::from_http(store.data_mut().http().hooks, request);
        let handled = store.run_concurrent(async |accessor| {
            match exports.handler.handle(accessor, request).await? {
                Ok(response) => {
                    let response = accessor
                        .with(|mut store| response.into_http(&mut store, async { Ok(()) }))?;
                    head.set(Ok(response));
                    // The component's writes are passed on only while this future exists.
                    let mut is_over = pin!(is_over);
                    poll_fn(|context| {
                        let has_ended = accessor.poll_no_interesting_tasks(context).is_ready();
                        head.has_ended.store(has_ended && !has_files, SeqCst);
                        is_over.as_mut().poll(context).map(drop)
                    })
                    .await;
                }
                Err(code) => {
                    // The component has passed the error of the rest of its chain on.
                    let next = accessor.with(|mut store| store.get().work().next.clone());
                    let error = next.and_then(|next| next.error.lock().take());
                    head.set(Err(match error {
                        Some(error) => Refusal::PassedOn(error),
                        None => refused(&format!("{code:?}")),
                    }));
                }
            }
            poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
            wasmtime::Result::Ok(())
        });
        let failure = handled.await.flatten().err();
        let failure = failure.map(|error| explain(&error, store.data()));
        Ended::new(failure, move || {
            let clean = instance.exports.is_idle(&mut instance.store);
            self.pool.give_back(instance, clean);
        })
    }

    /// Instantiates the component once, to see that it can be.
    ///
    /// # Errors
    /// A failure that explains the trap, or the limit that was reached.
    pub async fn try_out(&self, guest: Guest) -> Result<(), Failure> {
        let Work { scope, cpu, .. } = guest.work();
        let (scope, cpu) = (Arc::clone(scope), Arc::clone(cpu));
        let fresh = pin!(self.fresh(limited(self.service.engine(), guest)));
        in_time(&scope, &cpu, fresh).await.map(drop)
    }

    async fn fresh(&self, mut store: Store<Guest>) -> Result<Instance<Exports<Service>>, Failure> {
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| preempt(store.data()));
        match self.service.instantiate_async(&mut store).await {
            Ok(service) => {
                let exports = Exports::new(service, &mut store);
                Ok(Instance::fresh(store, exports))
            }
            Err(error) => Err(explain(&error, store.data())),
        }
    }

    /// Drops the kept instances that are too old.
    pub fn sweep(&self) {
        self.pool.sweep();
    }
}

/// The answer of a component, once it has been set.
struct Head {
    answer: Mutex<Option<Answer>>,
    /// Whether the component has no task any more, so that it writes nothing more. Only a body that it has handed on goes
    /// on.
    has_ended: AtomicBool,
    /// Whether the request is one for the head alone.
    is_all: bool,
}

type Answer = Result<http::Response<WasiBody>, Refusal>;

/// What a component answers in place of a response.
enum Refusal {
    /// An error code of its own.
    Own(Failure),
    /// The error that it got from the rest of its chain.
    PassedOn(types::Error),
}

fn refused(code: &str) -> Refusal {
    let sentence = format!("the component answered with the error {code}");
    Refusal::Own(Failure::view(sentence))
}

impl Head {
    fn of(request: &Incoming) -> Head {
        Head {
            answer: Mutex::default(),
            has_ended: AtomicBool::new(false),
            is_all: request.method() == Method::HEAD,
        }
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock() = Some(answer);
    }
}

/// Whether a call may go on after its head.
struct Streams {
    may: MayStream,
    member: Arc<Member>,
    next: Option<Arc<Next>>,
}

impl Streams {
    fn new(work: &Work, may: MayStream) -> Streams {
        Streams {
            may,
            member: Arc::clone(&work.member),
            next: work.next.clone(),
        }
    }

    /// Whether the call may go on now.
    fn may(&self) -> bool {
        let reads_stream = || {
            let next = self.next.as_ref();
            next.is_some_and(|next| next.streams.load(SeqCst))
        };
        match self.may {
            MayStream::Never => false,
            MayStream::ToReadStream => reads_stream() && !self.member.holds_any(),
            MayStream::HoldingNothing => !self.member.holds_any(),
            MayStream::Always => true,
        }
    }
}

/// A call that has ended. Its instance exists until the body has ended, too: when the store is dropped, what the
/// component has written looks like a finished body.
struct Ended {
    /// Why the call has failed, if it has.
    failure: Option<Failure>,
    /// Gives the instance back. The instance of a call that has failed is dropped with this value.
    give_back: Option<Box<dyn FnOnce() + Send>>,
}

impl Ended {
    fn new(failure: Option<Failure>, give_back: impl FnOnce() + Send + 'static) -> Ended {
        Ended {
            failure,
            give_back: Some(Box::new(give_back)),
        }
    }

    fn without_instance(failure: Failure) -> Ended {
        Ended {
            failure: Some(failure),
            give_back: None,
        }
    }
}

/// A call, and how it has ended.
struct Running {
    guest: Guests,
    head: Arc<Head>,
    /// Tells a component of version 0.3 that its body has ended.
    over: Option<oneshot::Sender<()>>,
    cpu: Arc<CpuTime>,
    _counted: GaugeGuard,
}

enum Guests {
    Runs(BoxFuture<'static, Ended>),
    Ended(Ended),
}

impl Running {
    fn new(
        guest: impl Future<Output = Ended> + Send + 'static,
        cpu: &Arc<CpuTime>,
        head: Arc<Head>,
        over: Option<oneshot::Sender<()>>,
        gauge: &prometheus::IntGauge,
    ) -> Running {
        Running {
            cpu: Arc::clone(cpu),
            guest: Guests::Runs(guest.boxed()),
            head,
            over,
            _counted: GaugeGuard::new(gauge),
        }
    }

    /// Runs the component until it waits, or has ended. Returns whether it has ended.
    fn poll_guest(&mut self, context: &mut Context<'_>) -> bool {
        if let Guests::Runs(guest) = &mut self.guest {
            let counting = self.cpu.count();
            let polled = guest.as_mut().poll(context);
            drop(counting);
            if let Poll::Ready(ended) = polled {
                self.guest = Guests::Ended(ended);
            }
        }
        matches!(self.guest, Guests::Ended(_))
    }

    /// The failure of the call, if it has ended with one. Only the first caller gets it.
    fn failure(&mut self) -> Option<Failure> {
        match &mut self.guest {
            Guests::Ended(ended) => ended.failure.take(),
            Guests::Runs(_) => None,
        }
    }

    /// Notes that the body has ended.
    fn body_over(&mut self) {
        // The receiver is gone when the component does not wait for it.
        let _ = self.over.take().map(|over| over.send(()));
    }

    /// Gives the instance back. The call has ended without a failure, and so has the body.
    fn give_back(self) {
        if let Guests::Ended(ended) = self.guest
            && let Some(give_back) = ended.give_back
        {
            give_back();
        }
    }
}

/// The part of an answer that has come.
struct Collected {
    parts: Parts,
    /// None: it has ended, or nobody wants it.
    body: Option<WasiBody>,
    /// The length that the head of a response to HEAD declares.
    not_sent: Option<u64>,
    /// Whether the request is one for the head alone, or the status is one without a body. For HEAD, the body is collected
    /// as for any other request: the component need not see a difference, and the length of a short one becomes known.
    head_is_all: bool,
    bytes: BytesMut,
    trailers: Option<HeaderMap>,
    room: Room,
}

impl Collected {
    fn new(answer: http::Response<WasiBody>, scope: &Scope, is_head: bool) -> Collected {
        let (mut parts, body) = answer.into_parts();
        let bodiless = is_bodiless(parts.status);
        let head_is_all = is_head || bodiless;
        // A head of 204 has none (RFC 9110, 8.6), and hyper leaves it out of a 304 that answers another method.
        let has_length = is_head && parts.status != StatusCode::NO_CONTENT;
        let declared = head_is_all.then(|| parts.headers.remove(header::CONTENT_LENGTH));
        let length = |value: HeaderValue| value.to_str().ok()?.parse().ok();
        Collected {
            body: (!bodiless).then_some(body),
            not_sent: declared.flatten().filter(|_| has_length).and_then(length),
            parts,
            head_is_all,
            bytes: BytesMut::new(),
            trailers: None,
            room: Room::empty(&scope.origin.account),
        }
    }

    /// Takes what there is of the body, up to `max` bytes. Returns whether there was anything.
    fn poll_body(
        &mut self,
        context: &mut Context<'_>,
        max: usize,
        held: u64,
    ) -> Result<bool, Failure> {
        let mut any = false;
        while self.bytes.len() < max
            && let Some(body) = &mut self.body
        {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(context) else {
                break;
            };
            any = true;
            match frame {
                None => self.body = None,
                // Its length need not be the declared one: many components write no body for HEAD.
                Some(Err(_)) if self.head_is_all => self.cut(),
                Some(frame) => match frame.map_err(broke_off)?.into_data() {
                    Ok(data) => self.keep(&data, held)?,
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
        Ok(any)
    }

    /// Drops the body, of which not all has come.
    fn cut(&mut self) {
        self.body = None;
        self.bytes.clear();
    }

    fn keep(&mut self, data: &[u8], held: u64) -> Result<(), Failure> {
        let length = self.bytes.len() + data.len();
        if length as u64 > held {
            return Err(Failure::view(format!(
                "the response has more than {held} bytes (`response_max_bytes`)"
            )));
        }
        if length > self.bytes.capacity() {
            let capacity = length.max(self.bytes.capacity() * 2);
            self.room.grow_to(capacity as u64)?;
            self.bytes.reserve(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }
}

fn broke_off(error: Error) -> Failure {
    Failure::view(format!(
        "the component's response broke off: {error:?} (a body has to be finished, with as many bytes as `content-length` declares)"
    ))
}

fn unfinished() -> Failure {
    Failure::view("the component has ended without finishing the body of its response")
}

const NO_ANSWER: &str =
    "the component has ended without an answer (it never set its `response-outparam`)";

/// How far an answer has come.
#[derive(PartialEq)]
enum Answered {
    /// It is whole, and the call has ended.
    Whole,
    /// It is whole, but the call has failed after it.
    WithoutInstance,
    /// The rest of its body is to be streamed.
    Begun,
    /// It is the error of the rest of the chain.
    WithError(types::Error),
}

/// Logs the failure of a function that was still running when its answer was whole.
pub fn after_answer(scope: &Scope, failure: &Failure) {
    let (view, request) = (&scope.view, &scope.origin.id);
    tracing::warn!(%view, request, why = failure.detail, "the view went on after its answer, and failed");
}

/// Runs a call until its answer is whole, or, if it may stream, until it waits for something after its head.
async fn answer(
    running: Running,
    scope: &Arc<Scope>,
    streams: Streams,
    mode: Mode,
) -> Result<GuestResult, Failure> {
    let mut running = Some(running);
    let mut collected: Option<Collected> = None;
    let answered = poll_fn(|context| {
        let running = running.as_mut().expect("it is there until it is done");
        loop {
            let over = running.poll_guest(context);
            if collected.is_none()
                && let Some(answer) = running.head.answer.lock().take()
            {
                match answer {
                    Ok(answer) => {
                        collected = Some(Collected::new(answer, scope, running.head.is_all));
                    }
                    Err(Refusal::Own(failure)) => return Poll::Ready(Err(failure)),
                    Err(Refusal::PassedOn(error)) => {
                        return Poll::Ready(Ok(Answered::WithError(error)));
                    }
                }
            }
            let streams = streams.may();
            // Without streaming, the whole body is kept until the call has ended.
            let (most, held) = match streams {
                true => (FIRST_BYTES, u64::MAX),
                false => (usize::MAX, scope.limits.response_max_bytes),
            };
            let Some(collected) = &mut collected else {
                let silent = || Failure::view(NO_ANSWER);
                return match over {
                    true => Poll::Ready(Err(running.failure().unwrap_or_else(silent))),
                    false => Poll::Pending,
                };
            };
            let any = collected.poll_body(context, most, held)?;
            let ended = collected.body.is_none();
            if ended {
                running.body_over();
            }
            if over {
                let failure = running.failure();
                return match (ended, failure) {
                    // What has not waited for a commit may be sent, as it would have been if it had begun earlier.
                    (true, Some(failure)) if streams => {
                        after_answer(scope, &failure);
                        Poll::Ready(Ok(Answered::WithoutInstance))
                    }
                    (true, None) => Poll::Ready(Ok(Answered::Whole)),
                    (_, Some(failure)) => Poll::Ready(Err(failure)),
                    (false, None) if any => continue,
                    (false, None) if collected.head_is_all => {
                        collected.cut();
                        Poll::Ready(Ok(Answered::Whole))
                    }
                    (false, None) if collected.bytes.len() >= most => {
                        Poll::Ready(Ok(Answered::Begun))
                    }
                    (false, None) => Poll::Ready(Err(unfinished())),
                };
            }
            // Whoever is left while it waits for its turn to compute holds up all others on its loop (R5).
            let may_be_left = streams && !running.cpu.is_preempted();
            match any {
                _ if collected.bytes.len() >= most && may_be_left => {
                    return Poll::Ready(Ok(Answered::Begun));
                }
                // The component may have waited for room in its body.
                true => {}
                false if may_be_left => return Poll::Ready(Ok(Answered::Begun)),
                false => return Poll::Pending,
            }
        }
    });
    let answered = match answered.await? {
        Answered::WithError(error) => return Ok(Err(error)),
        answered => answered,
    };
    let running = running.expect("it is not taken elsewhere");
    let mut collected = collected.expect("there is a head when there is an answer");
    if collected.head_is_all {
        collected.trailers = None;
        if answered == Answered::Begun {
            let length = collected.bytes.len() as u64;
            let known = (collected.body.is_none() && length > 0).then_some(length);
            collected.not_sent = collected.not_sent.or(known);
            collected.cut();
        }
    }
    if let Some(trailers) = &collected.trailers {
        check_trailers(trailers, scope.limits.head_max()).map_err(Failure::view)?;
    }
    Ok(Ok(reply(running, collected, answered, scope, mode)))
}

/// The answer of a component, with the rest of its call as the producer of the body if it is not whole.
fn reply(
    running: Running,
    collected: Collected,
    answered: Answered,
    scope: &Arc<Scope>,
    mode: Mode,
) -> Reply {
    let whole = answered != Answered::Begun;
    let Collected {
        parts,
        body,
        bytes,
        trailers,
        room,
        not_sent,
        head_is_all,
    } = collected;
    let headers = parts.headers.iter();
    let headers = headers
        .filter(|(name, _)| !is_dropped(name, whole && trailers.is_none()))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    let headers = headers.collect();
    let running = match answered {
        Answered::Begun => Some(running),
        Answered::Whole => {
            running.give_back();
            None
        }
        Answered::WithoutInstance | Answered::WithError(_) => None,
    };
    let (body, trailers) = match running {
        None => (ReplyBody::Bytes(bytes.into()), trailers),
        Some(running) => {
            let rest = Rest {
                running,
                first: room.hold(bytes.freeze()),
                body,
                trailers,
                scope: Arc::clone(scope),
            };
            let produce = |writer, to_client| rest.produce(writer, to_client);
            let producer = Producer::rest(mode, head_is_all, produce);
            (ReplyBody::Stream(producer), None)
        }
    };
    Reply {
        status: parts.status.as_u16(),
        headers,
        body,
        not_sent,
        trailers,
    }
}

/// Whether a header of the component is dropped: it is about a connection, or about the end of a body that has none.
fn is_dropped(name: &http::HeaderName, without_trailers: bool) -> bool {
    *name == header::TE || (*name == header::TRAILER && without_trailers)
}

/// The rest of a call that streams.
struct Rest {
    running: Running,
    /// What has come of the body before the head went out.
    first: Bytes,
    /// None: the body has ended.
    body: Option<WasiBody>,
    trailers: Option<HeaderMap>,
    scope: Arc<Scope>,
}

impl Rest {
    /// Passes the body on while the component goes on, until both have ended.
    async fn produce(self, writer: StreamWriter, to_client: bool) -> Result<(), Failure> {
        let Rest {
            mut running,
            first,
            body,
            trailers,
            scope,
        } = self;
        let cpu = Arc::clone(&running.cpu);
        let handle = writer.handle();
        let steps = AtomicU64::new(0);
        // Dropped only when a failure has been told.
        let mut writer = Some(writer);
        let head_max = scope.limits.head_max();
        let mut passing = pin!(pass_on(
            &mut writer,
            first,
            (body, trailers),
            head_max,
            &steps
        ));
        let mut passed = false;
        let mut patience = None;
        let produced = poll_fn(|context| {
            loop {
                let over = running.poll_guest(context);
                if passed && over {
                    return Poll::Ready(running.failure().map_or(Ok(()), Err));
                }
                if passed {
                    return Poll::Pending;
                }
                match passing.as_mut().poll(context) {
                    Poll::Ready(done) => {
                        done?;
                        passed = true;
                        running.body_over();
                        // A function that reads this body may still write its own.
                        if to_client {
                            scope.end_stream(cpu.used());
                        }
                    }
                    Poll::Pending if over && waits_for_component(&steps) => {
                        let failure = running.failure();
                        return Poll::Ready(Err(failure.unwrap_or_else(unfinished)));
                    }
                    Poll::Pending => {
                        let is_left = waits_for_component(&steps)
                            && running.head.has_ended.load(SeqCst)
                            && !scope.has_body_sources();
                        if !is_left {
                            return Poll::Pending;
                        }
                        let now = steps.load(SeqCst);
                        let patience = match &mut patience {
                            Some((since, patience)) if *since == now => patience,
                            patience => {
                                let sleep = Box::pin(tokio::time::sleep(LEFT));
                                &mut patience.insert((now, sleep)).1
                            }
                        };
                        return patience.as_mut().poll(context).map(|()| Err(unfinished()));
                    }
                }
            }
        });
        let produced = in_stream_time(&scope, produced).await;
        // The failure is told before the end of the body can be taken for its finish.
        produced.map_err(|failure| failed(&handle, failure))?;
        running.give_back();
        Ok(())
    }
}

/// Whether [`pass_on`] waits for the component.
fn waits_for_component(steps: &AtomicU64) -> bool {
    steps.load(SeqCst) % 2 == 1
}

/// Passes a body on to the client. `steps` counts the waits for the component, at their beginning and at their end.
async fn pass_on(
    to: &mut Option<StreamWriter>,
    first: Bytes,
    (body, mut trailers): (Option<WasiBody>, Option<HeaderMap>),
    head_max: HeadSize,
    steps: &AtomicU64,
) -> Result<(), Failure> {
    let written = |why: NotWritten| match why {
        NotWritten::Gone => Failure::client(
            http::StatusCode::BAD_REQUEST,
            "The client took no more of the response.",
        ),
        NotWritten::TooLong(why) | NotWritten::Undeclared(why) => Failure::view(why),
        NotWritten::Finished => unreachable!("only this future writes to it"),
    };
    let writer = to.as_mut().expect("it is there until it is finished");
    writer.write(first).await.map_err(written)?;
    if let Some(mut body) = body {
        loop {
            steps.fetch_add(1, SeqCst);
            let frame = body.frame().await;
            steps.fetch_add(1, SeqCst);
            let Some(frame) = frame else { break };
            match frame.map_err(broke_off)?.into_data() {
                Ok(data) => writer.write(data).await.map_err(written)?,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
    }
    if let Some(trailers) = &trailers {
        check_trailers(trailers, head_max).map_err(Failure::view)?;
    }
    let writer = to.take().expect("it was just written to");
    writer.finish(trailers).await
}
