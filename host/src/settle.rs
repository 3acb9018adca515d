//! From a request to a settled answer: the chain runs, its response is checked, the transaction ends and what it
//! held is released (R9, R10). Requests and events go through here.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::app::App;
use crate::bindings::types;
use crate::chain::{Chain, Course, Flow, Outcome, Position, busy, conduct};
use crate::database::{Error as DatabaseError, ErrorKind, Face, Journal};
use crate::deadline::{Deadline, Ended};
use crate::error::{Failure, Fault, shown};
use crate::host::Host;
use crate::metrics::METRICS;
use crate::request::body::Spooled;
use crate::request::{HOP_BY_HOP, check_head, header_bytes};
use crate::run::Stop;
use crate::scope::{Origin, Scope, Setup, Sticky};
use crate::transaction::Fate;
use crate::workers;

/// The longest wait before a request is run again for the first time; it doubles each time.
const RETRY_WAIT: Duration = Duration::from_millis(8);

/// A request that is ready for its chain.
pub struct Ready<'a> {
    /// The process.
    pub host: &'a Arc<Host>,
    /// The app it was routed in.
    pub app: &'a Arc<App>,
    /// Whose it is.
    pub origin: &'a Arc<Origin>,
    /// Where it goes.
    pub chain: &'a Arc<Chain>,
    /// The path parameters.
    pub params: Arc<[(String, String)]>,
    /// The body, when the host keeps it.
    pub body: Option<Arc<Spooled>>,
}

/// How a request ended.
pub struct Settled {
    /// What the client gets.
    pub response: Result<Response<Bytes>, Failure>,
    /// What became of the transaction.
    pub fate: Fate,
    /// What is known about it.
    pub scope: Arc<Scope>,
    /// How often it was run again.
    pub retries: u32,
}

impl Ready<'_> {
    /// Runs the chain, again after a conflict if the view allows it, and ends the transaction. Dropping the future
    /// cancels everything (R15).
    pub async fn run(self, request: types::Request) -> Settled {
        let arrived = Instant::now();
        let again = self.chain.view().view.retries;
        let mut request = Some(request);
        let mut retries = 0;
        loop {
            let this = match retries < again {
                true => request.clone(),
                false => request.take(),
            };
            let this = this.expect("it is taken for the last time only");
            let mut settled = self.attempt(arrived, this).await;
            settled.retries = retries;
            if retries == again || !settled.may_run_again() {
                return settled;
            }
            let longest = RETRY_WAIT * 2_u32.saturating_pow(retries);
            let wait = longest.mul_f64(fastrand::f64());
            let left = (self.chain.view().view.timeout).saturating_sub(arrived.elapsed());
            if wait >= left {
                return settled;
            }
            retries += 1;
            METRICS.retries.inc();
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, arrived: Instant, request: types::Request) -> Settled {
        let (host, chain) = (self.host, self.chain);
        let worker = match chain.course() {
            Course::Parts if chain.needs_worker() => Sticky::leased_from(&host.workers),
            _ => Sticky::none(),
        };
        let link = chain.view();
        let limits = &link.module.grants.limits;
        let journal = match host.development {
            true => Journal::recording(),
            false => Journal::off(),
        };
        let setup = Setup {
            arrived,
            worker,
            journal,
        };
        let scope = Scope::open(self.origin, &link.view, limits, setup);
        let (on, body) = ((host, self.app), self.body.clone());
        let params = Arc::clone(&self.params);
        let work = match chain.course() {
            Course::Worker => {
                let start = Flow::in_one(on, &scope, body).start(chain, params);
                on_worker(host, &scope, start, request).boxed()
            }
            Course::Loop => {
                let start = Flow::in_one(on, &scope, body).start(chain, params);
                let outcome = || start.on_loop(request);
                on_loop(host, &scope, chain, outcome).boxed()
            }
            Course::Parts => {
                let (flow, errands) = Flow::in_parts(on, &scope, body);
                let start = flow.start(chain, params);
                let outcome = || conduct(start, request, errands);
                on_loop(host, &scope, chain, outcome).boxed()
            }
        };
        let deadline = Arc::clone(&scope.deadline);
        let cancelling = Cancelling {
            host,
            deadline,
            work: Some(work),
        };
        let (response, fate) = cancelling.await;
        // What the view left running cannot belong to its transaction any more.
        scope.deadline.cancel(Ended::Answered);
        Settled {
            response,
            fate,
            scope,
            retries: 0,
        }
    }
}

impl Settled {
    /// Whether running the request again may bring it further, and nobody could notice that it ran before.
    fn may_run_again(&self) -> bool {
        self.scope.transaction.conflict()
            && self.fate != Fate::Committed
            && !self.scope.sent.load(SeqCst)
            && matches!(
                self.scope.deadline.ended(),
                None | Some(Ended::Failed | Ended::Answered)
            )
    }
}

/// Runs a chain, and the end of its transaction, on one worker: one hop there and one back.
async fn on_worker(
    host: &Host,
    scope: &Arc<Scope>,
    position: Position,
    request: types::Request,
) -> (Answered, Fate) {
    scope.hop();
    let settling = Arc::clone(scope);
    let job = move || {
        settling.worker.runs_on(workers::number());
        let outcome = position.on_worker(request);
        workers::block_on(settle(&settling, Face::Sync, outcome))
    };
    let done = host.workers.run(&scope.deadline, job).await;
    done.unwrap_or_else(|refused| (Err(busy(refused)), Fate::None))
}

/// Runs a chain from this loop, each part where its mode wants it.
async fn on_loop<F: Future<Output = Outcome>>(
    host: &Host,
    scope: &Arc<Scope>,
    chain: &Chain,
    outcome: impl FnOnce() -> F,
) -> (Answered, Fate) {
    let place = match chain.needs_place() {
        true => host.instances.enter(&scope.deadline).await.map(Some),
        false => Ok(None),
    };
    let outcome = match place {
        Ok(_place) => outcome().await,
        Err(refused) => Err(busy(refused)),
    };
    settle(scope, Face::Async, outcome).await
}

/// Work that, dropped before it is done, ends its request's life first: what is dropped with it finds it ended.
struct Cancelling<'a> {
    host: &'a Host,
    deadline: Arc<Deadline>,
    work: Option<BoxFuture<'a, (Answered, Fate)>>,
}

impl Future for Cancelling<'_> {
    type Output = (Answered, Fate);

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

/// What the client gets.
pub type Answered = Result<Response<Bytes>, Failure>;

/// Decides the response head, then ends the transaction (R9): a client never sees a success that was not kept.
async fn settle(scope: &Scope, face: Face, outcome: Outcome) -> (Answered, Fate) {
    let mut response = outcome.and_then(|response| checked(response, scope));
    if let (Ok(_), Some(why)) = (&response, scope.deadline.ended()) {
        response = Err((&Stop::from(why)).into());
    }
    if let Err(failure) = &mut response {
        blame_database(failure, scope);
        name_wait(failure, scope);
        // Nobody waits for what the view left running.
        scope.deadline.cancel(Ended::Failed);
    }
    let success = matches!(&response, Ok(response) if !response.status().is_server_error());
    let fate = match scope
        .transaction
        .finish(face, success && !scope.transaction.has_failed())
        .await
    {
        Ok(fate) => fate,
        Err(error) => {
            if success {
                response = Err(not_kept(&error));
            }
            Fate::RolledBack
        }
    };
    (response, fate)
}

/// A view that failed after its database could not be reached did not fail by itself.
fn blame_database(failure: &mut Failure, scope: &Scope) {
    if failure.fault == Fault::View && scope.transaction.unavailable() {
        *failure = Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            way: std::mem::take(&mut failure.way),
            ..Failure::host(format!(
                "a database could not be reached: {}",
                failure.detail
            ))
        };
    }
}

/// When the time is over, what parts of the request waited for is as good a reason as any.
fn name_wait(failure: &mut Failure, scope: &Scope) {
    if failure.status == StatusCode::GATEWAY_TIMEOUT
        && scope.deadline.ended() == Some(Ended::TimedOut)
        && let Some(wanted) = scope.deadline.wanted()
    {
        failure.detail = format!("{}, and {wanted}", failure.detail);
    }
}

/// A view answered with a success, and its transaction could not be kept.
pub fn not_kept(error: &DatabaseError) -> Failure {
    let sentence = format!(
        "the transaction could not be committed and was rolled back: {}",
        error.message
    );
    match error.kind {
        ErrorKind::Conflict | ErrorKind::Unavailable => Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Failure::host(sentence)
        },
        ErrorKind::Other | ErrorKind::Aborted => Failure::host(sentence),
        ErrorKind::Denied
        | ErrorKind::Poisoned
        | ErrorKind::Statement
        | ErrorKind::Unique
        | ErrorKind::ForeignKey
        | ErrorKind::Constraint
        | ErrorKind::NotNull
        | ErrorKind::Check
        | ErrorKind::DataType
        | ErrorKind::TooLarge => Failure::view(sentence),
    }
}

/// The response that the view made, if it can be sent.
///
/// # Errors
/// When its body is too large, or its status or a header is not valid.
pub fn checked(response: types::Response, scope: &Scope) -> Answered {
    let max = scope.limits.response_max_bytes;
    if response.body.len() as u64 > max {
        return Err(Failure::view(format!(
            "the response has {} bytes; `response_max_bytes` is {max}",
            response.body.len()
        )));
    }
    let (count, bytes) = (response.headers.len(), header_bytes(&response.headers));
    check_head("response", count, bytes, &scope.limits).map_err(Failure::view)?;
    let status = StatusCode::from_u16(response.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| {
        Failure::view(format!(
            "the response has the status {}: a view answers with 200 to 599",
            response.status
        ))
    })?;
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if bodiless { Vec::new() } else { response.body };
    // Before the transaction is committed: a response that cannot be kept is a failure (R9).
    let body = scope.origin.account.keep(body)?;
    let mut checked = Response::new(body);
    *checked.status_mut() = status;
    for (name, value) in response.headers {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response has a header whose name is not valid: {:?}",
                shown(&name)
            ))
        })?;
        if HOP_BY_HOP.contains(&key) {
            return Err(Failure::view(format!(
                "the response has the header `{key}`, which only the host can set"
            )));
        }
        // The host knows the length, and a wrong one would damage the connection.
        if key == header::CONTENT_LENGTH {
            continue;
        }
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response header `{key}` has a value that is not valid: {:?}",
                shown(&value)
            ))
        })?;
        if checked.headers_mut().try_append(key, value).is_err() {
            return Err(Failure::view(
                "the response has more headers than can be kept",
            ));
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests;
