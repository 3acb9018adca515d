//! Shadow mode: the candidate of a rollout gets a copy of a request, and what it makes of that is compared with what the
//! served version makes of the request. The client notices nothing of it but the time.
//!
//! **Where a copy runs.** If the served view is atomic, the candidate runs first, in the request's own transaction: in a
//! savepoint, which is rolled back before the served view runs (`scope/transaction.rs`). So both see the same state of
//! the database, whatever others do, and the transaction keeps the isolation that the served view declares. When that
//! is PostgreSQL's `read committed`, each statement sees what others have committed before it; the server is asked
//! whether there was such a commit between the two (in any of its databases, which it does not tell apart), and a
//! difference is then counted as unclear. If the served view is
//! not atomic, only requests with the methods GET and HEAD are copied. The candidate runs before the view, in a
//! transaction of its own. When the answers differ, the candidate runs once more after the view: only what it answers in
//! the same way again differs for sure; for the rest, somebody may have changed the database meanwhile, or it is random.
//!
//! **What a copy may cost.** A copy waits for no memory and for no place among the async requests, and in the request's
//! transaction it runs on the worker that the request has already: so copies never stand in the way of R4. It has a time
//! limit of its own, which is added to the request's, and a memory account of its own.
//!
//! **What a copy may do.** Nothing that others notice: no commit, no effects, no outbound requests, no pinned connection,
//! no files. What PostgreSQL itself does not undo stays: numbers taken from sequences, and what functions of the
//! database do outside of it.
//!
//! **When the copy spoils the request.** If the attempt with the copy fails in the transaction that the copy has begun,
//! the request runs once more, alone, unless others may know of the attempt already: so a client does not get a failure
//! that the copy may have caused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Method, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;

use super::dispatch::{ChainContext, Received, conduct};
use super::settle::{CheckedBody, CheckedResponse, settle};
use crate::app::chain::Chain;
use crate::app::host::Host;
use crate::app::rollout::Rollout;
use crate::app::rollout::shadow::{ComparedRequest, NotCompared, Seen, SeenBody, Shadow, Verdict};
use crate::app::router::Route;
use crate::app::{App, Routed, Target};
use crate::contract::types;
use crate::database::{Face, Journal};
use crate::http::body::RequestBody;
use crate::http::message::BinaryHeaders;
use crate::scope::transaction::{Compared, Fate, Parked, Transaction, Withheld};
use crate::scope::worker_lease::WorkerLease;
use crate::scope::{Origin, Scope, Setup};
use crate::telemetry::error::{Failure, Fault, cut};
use crate::threads::deadline::{Deadline, Ended, Need};
use crate::view::Options;

/// The most bytes of a path that the report shows.
const PATH_MAX: usize = 500;

/// A copy of a request for the candidate of a rollout in shadow mode.
pub(super) struct ShadowCopy {
    rollout: Arc<Rollout>,
    shadow: Arc<Shadow>,
    chain: Arc<Chain>,
    params: Arc<[(String, String)]>,
    request: types::Request,
    binary: BinaryHeaders,
    origin: Arc<Origin>,
    streams: bool,
    /// The options of the served view's transaction.
    served: Options,
    named: ComparedRequest,
    ran: Option<Ran>,
    took: Duration,
    _permit: OwnedSemaphorePermit,
}

/// What has become of a copy.
struct Ran {
    seen: Result<Seen, NotCompared>,
    /// What would have become of its transaction.
    fate: Fate,
    /// Whether its time ended in the database, where it may have waited for others.
    waited: bool,
}

impl Ran {
    fn not_compared(why: NotCompared) -> Ran {
        Ran {
            seen: Err(why),
            fate: Fate::None,
            waited: false,
        }
    }
}

impl ShadowCopy {
    /// A copy of a request to `routed`. None: there is no rollout in shadow mode, or the request cannot be copied, which
    /// is counted. It is boxed to keep the futures of requests small: hardly any has a copy.
    pub(super) fn of(
        (host, app): (&Host, &Arc<App>),
        routed: &Routed,
        parts: &Parts,
        origin: &Arc<Origin>,
        (request, kept, binary): (&types::Request, Option<&RequestBody>, &BinaryHeaders),
    ) -> Option<Box<ShadowCopy>> {
        let rollout = host.rollout.load();
        let rollout = rollout.as_ref()?;
        let shadow = Arc::clone(rollout.shadow.as_ref()?);
        if !Arc::ptr_eq(app, &host.app.load()) {
            // A version that is checked before it is served, or one that was served until now.
            return None;
        }
        let link = routed.chain.view();
        let served = link.view.transaction;
        let mut named = ComparedRequest {
            request: origin.id.clone(),
            method: parts.method.to_string(),
            path: cut(parts.uri.path().to_owned(), PATH_MAX),
            view: link.to_string(),
            candidate: None,
        };
        let is_safe = [Method::GET, Method::HEAD].contains(&parts.method);
        let length = match &request.body {
            types::Body::Bytes(bytes) => bytes.len(),
            // It is in a file, because it is too large for memory or there is little memory.
            types::Body::Spooled(_) | types::Body::Arriving(_) => usize::MAX,
        };
        let refused = |why: NotCompared| {
            shadow.not_compared(why);
            None
        };
        if !served.atomic && !is_safe {
            return refused(NotCompared::Unsafe);
        }
        if matches!(kept, Some(RequestBody::Arriving(_))) {
            return refused(NotCompared::StreamedBody);
        }
        if length > shadow.options.body_max_bytes {
            return refused(NotCompared::LargeBody);
        }
        let candidate = &rollout.app;
        let (routed, params) = match candidate.router.route(&parts.method, parts.uri.path()) {
            Route::Found(Target::View(routed), params) => (routed, params),
            other => {
                let sentence = format!(
                    "route: the view {} served, {} candidate",
                    named.view,
                    instead(&other)
                );
                shadow.compared(&named, Verdict::Differing(vec![sentence]));
                return None;
            }
        };
        let link = routed.chain.view();
        named.candidate = Some(link.to_string());
        if link.view.stream_body {
            return refused(NotCompared::StreamedBody);
        }
        if writes_files(candidate, &routed.chain) {
            return refused(NotCompared::Files);
        }
        let (own, others) = (&candidate.services.databases, &app.services.databases);
        let is_another = |name: &String| match (own.get(name), others.get(name)) {
            (Some(own), Some(other)) => !own.is(other),
            _ => false,
        };
        if own.keys().any(is_another) {
            return refused(NotCompared::Databases);
        }
        let Some(permit) = shadow.permit() else {
            return refused(NotCompared::AtOnce);
        };
        Some(Box::new(ShadowCopy {
            chain: Arc::clone(&routed.chain),
            params: params.into(),
            request: request.clone(),
            binary: binary.clone(),
            origin: Arc::new(Origin {
                account: shadow.account(),
                ..Origin::clone(origin)
            }),
            streams: true,
            served,
            named,
            ran: None,
            took: Duration::ZERO,
            rollout: Arc::clone(rollout),
            shadow,
            _permit: permit,
        }))
    }

    /// Whether the copy runs in the request's transaction.
    pub(super) fn is_within(&self) -> bool {
        self.served.atomic
    }

    /// How long the request has waited for the copy.
    pub(super) fn took(&self) -> Duration {
        self.took
    }

    /// Runs the copy before a request whose view is not atomic. The request holds nothing yet.
    pub(super) async fn run_before(&mut self, host: &Arc<Host>) {
        self.ran = Some(self.run_apart(host).await);
    }

    async fn run_apart(&self, host: &Arc<Host>) -> Ran {
        let options = self.chain.view().view.transaction;
        let transaction = Transaction::copy(options, options.read_only);
        let worker = self.own_worker(host);
        let (ran, _) = self.run(host, transaction, worker).await;
        ran
    }

    fn own_worker(&self, host: &Host) -> WorkerLease {
        match self.chain.needs_worker() {
            true => WorkerLease::leased_from(&host.workers),
            false => WorkerLease::none(),
        }
    }

    /// Runs the copy within a request whose view is atomic: before the view, in the same transaction. `scope`: the
    /// request's; it has its memory and its place already. `own`: the request's chain.
    pub(super) async fn run_within(&mut self, host: &Arc<Host>, scope: &Scope, own: &Chain) {
        let worker = match (own.needs_worker(), self.chain.needs_worker()) {
            // Leased now, and before the copy has a connection: who has a connection never waits for a worker (R4).
            (true, _) => scope.worker.lent(&scope.deadline).await,
            (false, _) => Ok(self.own_worker(host)),
        };
        let Ok(worker) = worker else {
            self.ran = Some(Ran::not_compared(NotCompared::NoCapacity));
            return;
        };
        let (left, began) = (scope.deadline.remaining(), Instant::now());
        // The copy has a time limit of its own. The request's goes on when the copy has ended.
        scope
            .deadline
            .restart(left + self.shadow.options.timeout * 2);
        let read_only = self.chain.view().view.transaction.read_only;
        let transaction = Transaction::copy(self.served, read_only);
        let (ran, parked) = self.run(host, transaction, worker).await;
        scope.deadline.restart(left);
        if let Some(parked) = parked {
            scope.transaction.share(parked, &scope.deadline).await;
        }
        (self.ran, self.took) = (Some(ran), began.elapsed());
    }

    /// Runs the copy. Returns also the transaction that the request may go on in.
    async fn run(
        &self,
        host: &Arc<Host>,
        transaction: Arc<Transaction>,
        worker: WorkerLease,
    ) -> (Ran, Option<Parked>) {
        let chain = &self.chain;
        // Without waiting: the request may hold what the holders of these wait for.
        let memory = host.guest_memory.try_enter_with(chain.usual_memory_kb());
        let place = match chain.needs_permit() {
            true => host.instances.try_enter().map(Some),
            false => Ok(None),
        };
        let (Ok(_memory), Ok(_place)) = (memory, place) else {
            return (Ran::not_compared(NotCompared::NoCapacity), None);
        };
        let link = chain.view();
        let setup = Setup {
            arrived: Instant::now(),
            worker,
            journal: Journal::off(),
            transaction: Some(transaction),
        };
        let scope = Scope::open(
            &self.origin,
            &link.view,
            &link.module.shared.grants.limits,
            setup,
        );
        let time = self.shadow.options.timeout.min(link.view.timeout);
        scope.deadline.restart(time);
        let _ends = EndOnDrop(Arc::clone(&scope.deadline));
        let body = Received {
            body: None,
            binary: self.binary.clone(),
        };
        let on = (host, &self.rollout.app);
        let (context, kept, tasks) = ChainContext::per_link(on, &scope, body, self.streams);
        let start = context.start(chain, Arc::clone(&self.params));
        let outcome = conduct(start, self.request.clone(), tasks).await;
        // Bodies that would be produced while they are sent are not: only the head is compared.
        drop(kept);
        scope.worker.release().await;
        // Asked before the end, which forgets it.
        let poisoned = scope.transaction.is_poisoned().await;
        let settled = settle(&scope, Face::Async, outcome).await;
        drop(settled.streaming);
        let parked = scope.transaction.parked().await;
        scope.transaction.give_up();
        let timed_out = scope.deadline.ended() == Some(Ended::TimedOut);
        let seen = self.seen_of(&scope, &settled.response, (poisoned, timed_out));
        let waited = timed_out && scope.transaction.cut_off();
        let parked = parked.filter(|_| seen.is_ok() && !waited);
        let ran = Ran {
            fate: settled.fate,
            waited,
            seen,
        };
        (ran, parked)
    }

    fn seen_of(
        &self,
        scope: &Scope,
        response: &CheckedResponse,
        (poisoned, timed_out): (bool, bool),
    ) -> Result<Seen, NotCompared> {
        let transaction = &scope.transaction;
        let waited = |need| scope.deadline.waited_for(need);
        match transaction.withheld() {
            Some(Withheld::Outbound) => return Err(NotCompared::Outbound),
            Some(Withheld::Pin) => return Err(NotCompared::Pin),
            None => {}
        }
        if transaction.conflict() {
            return Err(NotCompared::Conflict);
        }
        if transaction.unavailable() {
            return Err(NotCompared::Unavailable);
        }
        let waits = timed_out && (waited(Need::Connection) || waited(Need::Worker));
        if waits || is_busy(scope, response) {
            return Err(NotCompared::NoCapacity);
        }
        // Outside of a transaction, the statements after it would have run.
        if poisoned && !self.chain.view().view.transaction.atomic && !self.served.atomic {
            return Err(NotCompared::Poisoned);
        }
        Ok(self.seen(scope, response))
    }

    /// What a version has made of the request.
    fn seen(&self, scope: &Scope, response: &CheckedResponse) -> Seen {
        let seen = seen(scope, response);
        match self.is_within() {
            true => Seen {
                writes: scope.transaction.wrote(),
                ..seen
            },
            // Statements outside of transactions are not noted.
            false => seen,
        }
    }

    /// Compares the copy with an attempt that may have failed because of it, when the request has been run again without
    /// it. `is_same`: whether it failed then, too.
    pub(super) async fn compare_failed(
        &mut self,
        host: &Arc<Host>,
        served: (&Scope, &CheckedResponse, Fate),
        is_same: bool,
    ) {
        match is_same || served.0.transaction.conflict() {
            true => self.compare(host, served).await,
            false => self.shadow.not_compared(NotCompared::Spoilt),
        }
    }

    /// Compares the copy with what the served version has made of the request, and counts the result.
    pub(super) async fn compare(
        &mut self,
        host: &Arc<Host>,
        served: (&Scope, &CheckedResponse, Fate),
    ) {
        match self.verdict(host, served).await {
            Ok(verdict) => self.shadow.compared(&self.named, verdict),
            Err(why) => self.shadow.not_compared(why),
        }
    }

    async fn verdict(
        &mut self,
        host: &Arc<Host>,
        (scope, response, fate): (&Scope, &CheckedResponse, Fate),
    ) -> Result<Verdict, NotCompared> {
        let Some(ran) = self.ran.take() else {
            return Err(NotCompared::NotServed);
        };
        let candidate = ran.seen?;
        if is_busy(scope, response) {
            return Err(NotCompared::NotServed);
        }
        // What has become of it then depends on others.
        if scope.transaction.conflict() {
            return Err(NotCompared::Conflict);
        }
        if scope.transaction.unavailable() {
            return Err(NotCompared::Unavailable);
        }
        let served = self.seen(scope, response);
        let mut differences = self.shadow.differences(&served, &candidate);
        let fates = [fate, ran.fate];
        if self.is_within() && fates[0] != fates[1] && !fates.contains(&Fate::None) {
            differences.push(format!(
                "transaction: {} served, {} candidate",
                fates[0], fates[1]
            ));
        }
        let own = self.chain.view().view.transaction;
        if self.served.atomic && !own.atomic {
            let sentence = "transaction: the served view is atomic, the candidate's is not";
            return Ok(Verdict::Differing(
                [vec![sentence.to_owned()], differences].concat(),
            ));
        }
        if differences.is_empty() {
            return equal(&served, &candidate);
        }
        let is_clear = match self.is_within() {
            true => match scope.transaction.was_shared().await {
                Compared::Same => true,
                Compared::Changed => {
                    differences.push("(others changed the database meanwhile)".to_owned());
                    false
                }
                // If one of them has used no database, there is no state that they could have seen differently.
                Compared::Apart => ran.fate == Fate::None || fate == Fate::None,
            },
            false => match self.run_apart(host).await.seen {
                Ok(again) if self.shadow.differences(&served, &again).is_empty() => {
                    return equal(&served, &again);
                }
                Ok(again) => {
                    // What the candidate answers anew each time, such as a random value, says nothing.
                    let noise = self.shadow.differences(&candidate, &again);
                    let noise: Vec<&str> = noise.iter().map(|it| subject(it)).collect();
                    let (clear, rest): (Vec<_>, Vec<_>) = (differences.into_iter())
                        .partition(|sentence| !noise.contains(&subject(sentence)));
                    let is_clear = !clear.is_empty();
                    differences = if is_clear { clear } else { rest };
                    is_clear
                }
                Err(_) => false,
            },
        };
        Ok(match is_clear && !ran.waited {
            true => Verdict::Differing(differences),
            false => Verdict::Unclear(differences),
        })
    }
}

/// The verdict about answers without a difference, as far as they were compared.
fn equal(served: &Seen, candidate: &Seen) -> Result<Verdict, NotCompared> {
    match (&served.body, &candidate.body) {
        (SeenBody::Whole(_), SeenBody::Whole(_)) => Ok(Verdict::Equal),
        (SeenBody::Subscription, _) => Err(NotCompared::Subscription),
        _ => Err(NotCompared::StreamedAnswer),
    }
}

/// What a sentence about a difference is about: the status, a header, the body.
fn subject(sentence: &str) -> &str {
    sentence
        .split_once(": ")
        .map_or(sentence, |(about, _)| about)
}

/// Ends the request of a copy when dropped: what still runs for it is not wanted any more.
struct EndOnDrop(Arc<Deadline>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.cancel(Ended::Answered);
    }
}

/// What there is in place of a view.
fn instead(route: &Route<'_, Target>) -> &'static str {
    match route {
        Route::Found(Target::Socket(_), _) => "a web socket",
        Route::Found(Target::Static(_), _) => "static files",
        Route::Found(Target::View(_), _) => "a view",
        Route::NotFound => "no page (404)",
        Route::NotText => "no page (400)",
        Route::MethodNotAllowed(_) | Route::Options(_) => "no such method (405)",
    }
}

/// Whether any function that the chain may run is of a module that may write files.
fn writes_files(app: &App, chain: &Chain) -> bool {
    let links = chain.links.iter().map(|link| &*link.module.shared.grants);
    let calls_others = links.clone().any(|module| module.subrequests);
    let others = app.config.modules.iter().filter(|_| calls_others);
    let mut folders = links.chain(others).flat_map(|module| &module.directories);
    folders.any(|folder| folder.write)
}

/// Whether no function has begun, because there was no capacity.
fn is_busy(scope: &Scope, response: &CheckedResponse) -> bool {
    let is_limit = |failure: &Failure| {
        failure.fault == Fault::Limit && failure.status == StatusCode::SERVICE_UNAVAILABLE
    };
    !scope.has_begun() && response.as_ref().err().is_some_and(is_limit)
}

/// What a version has made of a request, without its writes.
fn seen(scope: &Scope, response: &CheckedResponse) -> Seen {
    let effects = scope.transaction.described();
    let response: &Response<CheckedBody> = match response {
        Ok(response) => response,
        Err(failure) => {
            return Seen {
                status: failure.status,
                headers: http::HeaderMap::new(),
                body: SeenBody::Whole(failure.client_text.clone().into_owned().into()),
                trailers: http::HeaderMap::new(),
                failure: Some(failure.detail.clone()),
                effects,
                writes: Vec::new(),
            };
        }
    };
    let (body, trailers) = match response.body() {
        CheckedBody::Whole(bytes, trailers) => (SeenBody::Whole(bytes.clone()), trailers.clone()),
        CheckedBody::Stream(_) => (SeenBody::Stream, None),
        CheckedBody::Subscription(_) => (SeenBody::Subscription, None),
    };
    Seen {
        status: response.status(),
        headers: response.headers().clone(),
        body,
        trailers: trailers.unwrap_or_default(),
        failure: None,
        effects,
        writes: Vec::new(),
    }
}
