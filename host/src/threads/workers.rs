//! The pool of sync workers: OS threads that run sync guests (R2–R4).
//!
//! A job runs on one worker from beginning to end. A scope that has both sync and async functions leases a worker
//! ([`Lease`]) and runs all its sync functions there, each as a job. While a job waits, a later job of the scope may
//! run on top of it. So everything that a scope does synchronously happens on one thread, and no other scope's work
//! gets between.
//!
//! At most `workers` workers compute at the same time. The pool starts more threads than that, up to `workers_max`,
//! only while workers wait in host calls ([`blocking`] counts these workers): a view that waits must not keep another
//! one from computing, and a view that computes gains nothing from more threads. Jobs that do not run yet wait in a
//! bounded queue, in order, and are refused with an error when they have waited too long. One task looks for such jobs
//! (`Pool::refuse_late`), because a timer for each job would take several locks for each request.
//!
//! This file knows nothing of WebAssembly or HTTP.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use parking_lot::{Condvar, Mutex, MutexGuard};
use prometheus::IntGauge;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::telemetry::metrics::METRICS;
use crate::threads::deadline::{Deadline, Ended};
use crate::threads::gate::Refused;
use crate::threads::handoff::{Handoff, Next};
use crate::threads::wakeups::batched_wakeup;

/// The most guest functions of one request that can be active at the same time, each called by the one before:
/// middleware, view, sub-requests. All of them may be on the stack of one worker.
pub const CALL_SLOTS_MAX: usize = 16;

/// How many workers there are, and how many jobs wait for one.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// How many workers compute at the same time at most.
    pub workers: usize,
    /// How many workers there are at most, including those that wait in host calls.
    pub workers_max: usize,
    /// How many jobs wait for a worker at most.
    pub queue_max: usize,
    /// How long a job waits at most, in milliseconds.
    pub queue_timeout_ms: u64,
}

/// A worker beyond the number [`PoolLimits::workers`] ends after this long without work.
const IDLE: Duration = Duration::from_secs(10);
const QUEUE: &str = "sync workers";
/// How often waiting jobs are looked through for those that have waited too long.
const LOOK: Duration = Duration::from_millis(5);
/// The size of a worker's stack. Guests of one scope run on top of each other. Each needs room for the guest's own
/// stack (`guest/run/engine.rs`) and for the frames of the host, SQLite's among them. Only touched pages take memory.
const STACK_BYTES: usize = CALL_SLOTS_MAX * (768 << 10) + (4 << 20);

type Job = Box<dyn FnOnce() + Send>;

/// The pool of sync workers. Clones share the same pool.
#[derive(Clone)]
pub struct Workers(Arc<Pool>);

struct Pool {
    limits: PoolLimits,
    runtime: Handle,
    state: Mutex<State>,
    /// The length of the queue. `blocked` is the number of workers that wait in host calls. Both can be read without
    /// the lock. A caller adds to `queued` and then reads `blocked`; a worker that starts to wait adds to `blocked` and
    /// then reads `queued`. So at least one of the two sees that another worker is wanted.
    queued: AtomicUsize,
    blocked: AtomicUsize,
    queued_gauge: IntGauge,
}

/// A job that waits for a worker.
struct Queued {
    ticket: u64,
    /// When the job has waited too long.
    late: Instant,
    job: Job,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Whether the task that looks for late jobs runs.
    is_watched: bool,
    last_ticket: u64,
    threads: usize,
    /// Workers without a job, including those that are starting.
    idle: usize,
    /// The workers that sleep until there is work, and are woken from the last one on: what that one has used is in the
    /// core's caches.
    asleep: Vec<Thread>,
    /// Workers that were woken and have not looked at the queue yet.
    waking: usize,
    last_number: usize,
    closed: bool,
}

thread_local! {
    /// The number of this worker; 0 on other threads.
    static NUMBER: Cell<usize> = const { Cell::new(0) };
    /// The inbox of the scope that has leased this worker.
    static LEASED_BY: RefCell<Option<Arc<Desk>>> = const { RefCell::new(None) };
    /// The pool of this worker, unset while the worker waits in a host call.
    static OWN_POOL: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };
}

impl Workers {
    /// A pool whose workers can wait for futures on `runtime`. Threads start when there is work.
    pub fn new(limits: PoolLimits, runtime: Handle) -> Workers {
        Workers(Arc::new(Pool {
            limits,
            runtime,
            state: Mutex::default(),
            queued: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            queued_gauge: METRICS.queued.with_label_values(&[QUEUE]),
        }))
    }

    /// Runs `job` on a worker. The job is queued at once. Dropping the future takes a waiting job out of the queue; a
    /// running job goes on.
    ///
    /// # Errors
    /// [`Refused`] when the queue is full or no worker came free in time. The job has not run then.
    ///
    /// # Panics
    /// When the job panics: its panic is passed on to the caller.
    pub fn run<T: Send + 'static>(
        &self,
        deadline: &Deadline,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, Refused>> {
        let answering = |answer: oneshot::Sender<_>| {
            // The receiver is gone when the request was cancelled: the answer is not wanted then.
            let _ = answer.send(catch_unwind(AssertUnwindSafe(job)));
        };
        self.start(deadline, answering).map(unwound)
    }

    /// Runs `job` on a worker, as [`Workers::run`] does, and passes it the way to answer: the caller goes on as soon as
    /// the job has answered, and the job goes on, too.
    ///
    /// # Errors
    /// As [`Workers::run`].
    ///
    /// # Panics
    /// When the job panics before it has answered: its panic is passed on to the caller.
    pub fn run_on<T: Send + 'static>(
        &self,
        deadline: &Deadline,
        job: impl FnOnce(&mut Answer<T>) + Send + 'static,
    ) -> impl Future<Output = Result<T, Refused>> {
        let answering = |answer: oneshot::Sender<_>| {
            let mut answer = Answer(Some(answer));
            let running = AssertUnwindSafe(|| job(&mut answer));
            if let Err(panic) = catch_unwind(running) {
                answer.send(Err(panic));
            }
        };
        self.start(deadline, answering).map(unwound)
    }

    /// Leases a worker to one scope, until the lease is dropped and the scope's jobs on the worker have ended.
    ///
    /// # Errors
    /// [`Refused`] when the queue is full or no worker came free in time.
    pub async fn lease(&self, deadline: &Deadline) -> Result<Lease, Refused> {
        let serving = |answer: oneshot::Sender<_>| {
            let desk = Arc::new(Desk {
                handoff: Handoff::new(),
                changed: Notify::new(),
            });
            let lease = Lease {
                desk: Arc::clone(&desk),
                worker: number(),
            };
            LEASED_BY.set(Some(Arc::clone(&desk)));
            // When the request was cancelled, the receiver is gone and the lease is dropped here.
            let _ = answer.send(Ok(lease));
            serve(&desk, None);
            LEASED_BY.set(None);
        };
        // What else runs in the scope may end the request meanwhile.
        let started = deadline.bound(self.start(deadline, serving)).await;
        unwound(started.map_err(Refused::Ended)?)
    }

    /// Queues `work` for a worker, until the request's deadline at most, and then waits for its answer. It is queued
    /// outside of the future, so that the future has no room for it.
    fn start<T: Send + 'static>(
        &self,
        deadline: &Deadline,
        work: impl FnOnce(oneshot::Sender<T>) + Send + 'static,
    ) -> impl Future<Output = Result<T, Refused>> {
        let (sender, answer) = oneshot::channel();
        let since = Instant::now();
        let limit = Duration::from_millis(self.0.limits.queue_timeout_ms);
        let late = since + limit.min(deadline.remaining());
        let queued = self.0.push(late, Box::new(move || work(sender)));
        let queued = queued.map(|ticket| Waiting {
            pool: &self.0,
            ticket: Some(ticket),
        });
        async move {
            let mut waiting = queued?;
            let answered = batched_wakeup(answer).await;
            waiting.ticket = None;
            // A job that was taken from the queue by a worker answers. From then on, the code that it runs watches the
            // deadline.
            answered.map_err(|_| self.too_late(since, deadline))
        }
    }

    /// Why a job that was queued at `since` has waited too long.
    fn too_late(&self, since: Instant, deadline: &Deadline) -> Refused {
        if let Some(why) = deadline.ended() {
            return Refused::Ended(why);
        }
        METRICS.refused.with_label_values(&[QUEUE]).inc();
        METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
        let limits = &self.0.limits;
        Refused::Busy(format!(
            "{QUEUE}: none of {} came free within {} ms",
            limits.workers_max, limits.queue_timeout_ms
        ))
    }

    /// Lets workers end as soon as they are idle. Jobs that run or wait in the queue are still finished.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.waking += state.asleep.len();
        state.asleep.drain(..).for_each(|worker| worker.unpark());
    }
}

/// The way for a job to answer its caller before the job has ended.
pub struct Answer<T>(Option<oneshot::Sender<std::thread::Result<T>>>);

impl<T> Answer<T> {
    /// Answers. Only the first answer counts.
    pub fn give(&mut self, answer: T) {
        self.send(Ok(answer));
    }

    fn send(&mut self, answer: std::thread::Result<T>) {
        if let Some(sender) = self.0.take() {
            // The receiver is gone when the request was cancelled: the answer is not wanted then.
            let _ = sender.send(answer);
        }
    }
}

/// Passes the panic of a job on to the caller that waits for the job.
fn unwound<T>(answer: Result<std::thread::Result<T>, Refused>) -> Result<T, Refused> {
    match answer? {
        Ok(value) => Ok(value),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The number of the sync worker that this thread is; 0 when it is none.
pub fn number() -> usize {
    NUMBER.get()
}

/// The inbox of a leased worker, and a notification for loops that wait for the worker.
struct Desk {
    handoff: Handoff<Job>,
    /// Notified when a job or an exclusion has ended.
    changed: Notify,
}

/// A worker that one scope has for itself (R4).
pub struct Lease {
    desk: Arc<Desk>,
    /// The worker's number.
    pub worker: usize,
}

impl Lease {
    /// Runs `job` on the worker: after the jobs before it, or on top of a job that waits for an answer
    /// ([`await_call`]). `from`: the ids of the jobs and exclusions that `job` is called from. `job` is passed its own
    /// id. When the future is dropped, the job still runs, and its result is dropped.
    ///
    /// # Errors
    /// When the lease has ended.
    ///
    /// # Panics
    /// When the job panics: its panic is passed on to the caller.
    pub async fn run<T: Send + 'static>(
        &self,
        from: Vec<u64>,
        job: impl FnOnce(u64) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (sender, answer) = oneshot::channel();
        let id = self.desk.handoff.id();
        let job: Job = Box::new(move || {
            let _ = sender.send(catch_unwind(AssertUnwindSafe(|| job(id))));
        });
        let gone = || Refused::Ended(Ended::Failed);
        let submitted = self.desk.handoff.submit(id, from, job);
        submitted.map_err(|_| gone())?;
        unwound(batched_wakeup(answer).await.map_err(|_| gone()))
    }

    /// Excludes other jobs of the scope from the worker, until the returned [`Exclusion`] is dropped. Only jobs that
    /// the caller calls can begin in the meantime. A caller needs this before it takes something that other jobs of the
    /// scope may wait for, such as a level or a pin. `from`: the ids of the jobs and exclusions that the caller is
    /// called from. Waits while the job on top of the worker's stack, or another exclusion, is not one of them.
    ///
    /// # Errors
    /// When the request ends before the exclusion begins.
    pub async fn exclude(&self, deadline: &Deadline, from: &[u64]) -> Result<Exclusion, Ended> {
        let id = self.desk.handoff.id();
        let here = LEASED_BY.with_borrow(|desk| {
            let desk = desk.as_ref();
            desk.is_some_and(|desk| Arc::ptr_eq(desk, &self.desk))
        });
        loop {
            // Registered before the attempt, so that a change after the attempt is not missed.
            let changed = self.desk.changed.notified();
            if self.desk.handoff.try_exclude(id, from, here) {
                break;
            }
            deadline.bound(changed).await?;
        }
        Ok(Exclusion {
            desk: Arc::clone(&self.desk),
            id,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.desk.handoff.close());
    }
}

/// The exclusive use of a scope's worker by one function and by the functions that it calls, until dropped.
pub struct Exclusion {
    desk: Arc<Desk>,
    /// Jobs and exclusions that are called from the function have this id in their `from`.
    pub id: u64,
}

impl Drop for Exclusion {
    fn drop(&mut self) {
        self.desk.handoff.admit(self.id);
        self.desk.changed.notify_waiters();
    }
}

/// A call that a job on a leased worker waits for. The call is answered, or dropped without an answer.
pub struct Call<T> {
    answer: Option<oneshot::Sender<T>>,
    desk: Arc<Desk>,
    id: u64,
}

impl<T> Call<T> {
    /// Answers the call. The job that waits for the call goes on.
    pub fn answer(mut self, answer: T) {
        // Sending fails only when the calling job is gone. Then nobody needs the answer.
        let _ = self.answer.take().map(|waiting| waiting.send(answer));
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.answer = None;
        self.desk.handoff.settle(self.id);
    }
}

/// Makes a call from a leased worker: hands the call to `ask`, then waits for its answer and runs further jobs of the
/// scope meanwhile (R3). None: the call was dropped without an answer.
///
/// # Panics
/// On a thread that is not a leased worker.
pub fn await_call<T>(ask: impl FnOnce(Call<T>)) -> Option<T> {
    let desk = LEASED_BY.with_borrow(Clone::clone);
    let desk = desk.expect("calls are made on leased workers only");
    let (sender, mut answer) = oneshot::channel();
    let id = desk.handoff.id();
    ask(Call {
        answer: Some(sender),
        desk: Arc::clone(&desk),
        id,
    });
    serve(&desk, Some(id));
    answer.try_recv().ok()
}

/// Runs the scope's jobs until the call `waiting_for` is settled, or, if there is no such call, until the lease ends.
fn serve(desk: &Desk, waiting_for: Option<u64>) {
    while let Next::Job(id, job) = blocking(|| desk.handoff.next(waiting_for)) {
        job();
        desk.handoff.ended(id);
        desk.changed.notify_waiters();
    }
}

/// A request that waits for its job. Dropping it takes the job out of the queue.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    ticket: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.pool.withdraw(ticket);
        }
    }
}

impl Pool {
    /// `late`: when the job has waited too long.
    fn push(self: &Arc<Self>, late: Instant, job: Job) -> Result<u64, Refused> {
        let mut state = self.state.lock();
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        state.queue.push_back(Queued { ticket, late, job });
        self.queue_changed(&state);
        self.grow(&mut state);
        if state.queue.len() > self.limits.queue_max + state.idle {
            let refused = state.queue.pop_back();
            self.queue_changed(&state);
            let threads = state.threads;
            drop(state);
            drop(refused);
            METRICS.refused.with_label_values(&[QUEUE]).inc();
            return Err(Refused::Busy(format!(
                "{QUEUE}: all {} are busy and {} requests wait already",
                threads, self.limits.queue_max
            )));
        }
        self.wake(&mut state);
        if !std::mem::replace(&mut state.is_watched, true) {
            self.runtime.spawn(Arc::clone(self).refuse_late());
        }
        Ok(ticket)
    }

    /// Takes a job out of the queue, if it is still there.
    fn withdraw(&self, ticket: u64) {
        if self.queued.load(SeqCst) > 0 {
            self.remove(|job| job.ticket == ticket);
        }
    }

    /// Takes the jobs that have waited too long out of the queue, as long as any job waits. A request learns of it by the
    /// end of the channel that its job would have answered on.
    async fn refuse_late(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                state.is_watched = false;
                return;
            }
            drop(state);
            self.remove(|job| job.late <= now);
        }
    }

    /// Takes these jobs out of the queue, and drops them when the lock is given back.
    fn remove(&self, which: impl Fn(&Queued) -> bool) {
        let mut state = self.state.lock();
        if !state.queue.iter().any(&which) {
            return;
        }
        let all = std::mem::take(&mut state.queue);
        let (removed, rest): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(which);
        state.queue = rest;
        self.queue_changed(&state);
        drop(state);
        drop(removed);
    }

    fn queue_changed(&self, state: &State) {
        self.queued.store(state.queue.len(), SeqCst);
        self.queued_gauge
            .set(i64::try_from(state.queue.len()).unwrap_or(i64::MAX));
    }

    /// Whether one more worker may compute. Workers without a job and workers that wait in host calls do not count.
    fn may_compute(&self, state: &State) -> bool {
        let waiting = state.idle + self.blocked.load(SeqCst);
        state.threads.saturating_sub(waiting) < self.limits.workers
    }

    /// Starts a worker if one is wanted and allowed.
    fn grow(self: &Arc<Self>, state: &mut State) {
        // Idle workers count as busy: they are about to take jobs.
        let busy = state.threads.saturating_sub(self.blocked.load(SeqCst));
        let wanted = state.queue.len() > state.idle;
        if !wanted || busy >= self.limits.workers || state.threads >= self.limits.workers_max {
            return;
        }
        let pool = Arc::clone(self);
        let number = state.last_number + 1;
        let started = std::thread::Builder::new()
            .name(format!("amphi-sync-{number}"))
            .stack_size(STACK_BYTES)
            .spawn(move || pool.work(number));
        match started {
            Ok(_) => {
                state.last_number = number;
                state.threads += 1;
                state.idle += 1;
                METRICS.workers.inc();
            }
            // The waiting jobs are run by the other workers, or refused when they have waited too long.
            Err(error) => tracing::error!(%error, "no further sync worker could be started"),
        }
    }

    /// Wakes one sleeping worker. When that worker takes a job and more are left, it wakes the next one.
    fn wake(&self, state: &mut State) {
        if state.waking == 0
            && let Some(last) = state.asleep.pop()
        {
            state.waking += 1;
            last.unpark();
        }
    }

    fn work(self: Arc<Self>, number: usize) {
        let _runtime = self.runtime.enter();
        NUMBER.set(number);
        OWN_POOL.set(Some(Arc::clone(&self)));
        let mut state = self.state.lock();
        loop {
            if self.may_compute(&state)
                && let Some(Queued { job, .. }) = state.queue.pop_front()
            {
                self.queue_changed(&state);
                state.idle -= 1;
                if !state.queue.is_empty() {
                    self.wake(&mut state);
                }
                MutexGuard::unlocked(&mut state, job);
                state.idle += 1;
                continue;
            }
            let slept_enough = sleep(&mut state);
            let spare = slept_enough && state.threads > self.limits.workers;
            if state.queue.is_empty() && (spare || state.closed) {
                state.idle -= 1;
                state.threads -= 1;
                METRICS.workers.dec();
                return;
            }
        }
    }
}

/// Sleeps until this worker is woken, or for [`IDLE`]. Returns whether nobody has woken it for so long.
fn sleep(state: &mut MutexGuard<'_, State>) -> bool {
    let this = std::thread::current();
    let since = Instant::now();
    state.asleep.push(this.clone());
    MutexGuard::unlocked(state, || std::thread::park_timeout(IDLE));
    let still = state.asleep.iter().position(|one| one.id() == this.id());
    match still {
        Some(place) => drop(state.asleep.remove(place)),
        None => state.waking -= 1,
    }
    still.is_some() && since.elapsed() >= IDLE
}

/// Waits for `work` on this thread. Work that is ready at its first poll does not count as waiting.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match work.as_mut().now_or_never() {
        Some(done) => done,
        None => blocking(|| Handle::current().block_on(work)),
    }
}

/// Polls `work` on this thread until it is done. The thread counts as waiting between two polls, and as computing during
/// a poll: `work` is a guest that runs. During a poll, the guest may wait with [`block_on`].
pub fn drive<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        if !std::mem::take(&mut *woken.is.lock()) {
            blocking(|| woken.wait());
        }
    }
}

/// Whether a future that a thread drives has been woken since its last poll.
#[derive(Default)]
struct Woken {
    is: Mutex<bool>,
    changed: Condvar,
}

impl Woken {
    fn wait(&self) {
        let mut is = self.is.lock();
        while !*is {
            self.changed.wait(&mut is);
        }
        *is = false;
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.is.lock() = true;
        self.changed.notify_one();
    }
}

/// Runs `wait`, which blocks this thread. If the thread is a sync worker, the pool may start another worker meanwhile.
pub fn blocking<T>(wait: impl FnOnce() -> T) -> T {
    // This thread is no sync worker, or it is within another wait and so counts as waiting already.
    let Some(pool) = OWN_POOL.take() else {
        return wait();
    };
    let _blocked = Blocked::new(pool);
    wait()
}

/// While this value exists, the worker that made it counts as waiting, not as computing.
struct Blocked(Arc<Pool>);

impl Blocked {
    fn new(pool: Arc<Pool>) -> Blocked {
        pool.blocked.fetch_add(1, SeqCst);
        METRICS.workers_blocked.inc();
        if pool.queued.load(SeqCst) > 0 {
            let mut state = pool.state.lock();
            pool.grow(&mut state);
            pool.wake(&mut state);
        }
        Blocked(pool)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, SeqCst);
        METRICS.workers_blocked.dec();
        OWN_POOL.set(Some(Arc::clone(&self.0)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use futures::future::{Either, select};

    use super::*;

    fn pool(
        workers: usize,
        workers_max: usize,
        queue_max: usize,
        queue_timeout_ms: u64,
    ) -> Workers {
        let limits = PoolLimits {
            workers,
            workers_max,
            queue_max,
            queue_timeout_ms,
        };
        Workers::new(limits, Handle::current())
    }

    fn soon() -> Deadline {
        Deadline::new(Instant::now() + Duration::from_secs(20))
    }

    #[tokio::test]
    async fn r4_grows_only_while_workers_wait_in_host_calls() {
        let workers = pool(1, 3, 10, 5_000);
        // Three jobs that all wait for each other: they can only meet if the pool grows to three workers.
        let meeting = Arc::new(Barrier::new(3));
        let (a, b, c) = (soon(), soon(), soon());
        let job = |meeting: Arc<Barrier>| move || blocking(|| meeting.wait().is_leader());
        let (a, b, c) = tokio::join!(
            workers.run(&a, job(Arc::clone(&meeting))),
            workers.run(&b, job(Arc::clone(&meeting))),
            workers.run(&c, job(meeting)),
        );
        assert_eq!(
            [a, b, c]
                .into_iter()
                .filter(|leader| leader == &Ok(true))
                .count(),
            1
        );
        assert_eq!(workers.0.state.lock().threads, 3);
    }

    #[tokio::test]
    async fn r4_a_driven_future_waits_between_its_polls() {
        let workers = pool(1, 2, 10, 5_000);
        let (sender, receiver) = oneshot::channel();
        let (a, b) = (soon(), soon());
        // The first job ends only when the second one has run: the pool has to grow.
        let (received, sent) = tokio::join!(
            workers.run(&a, move || drive(receiver)),
            workers.run(&b, move || sender.send(7)),
        );
        assert_eq!((received, sent), (Ok(Ok(7)), Ok(Ok(()))));
    }

    #[tokio::test]
    async fn a_job_can_answer_before_it_has_ended() {
        let workers = pool(1, 1, 10, 5_000);
        let (sender, receiver) = oneshot::channel::<()>();
        let deadline = soon();
        let job = |answer: &mut Answer<u32>| {
            answer.give(7);
            answer.give(8);
            let _ = block_on(receiver);
        };
        assert_eq!(workers.run_on(&deadline, job).await, Ok(7));
        assert_eq!(workers.0.state.lock().idle, 0);
        drop(sender);
        assert_eq!(workers.run(&soon(), || 1).await, Ok(1));
    }

    #[tokio::test]
    async fn r4_computing_jobs_do_not_make_the_pool_grow() {
        let workers = pool(1, 8, 10, 5_000);
        let deadlines: Vec<Deadline> = (0..6).map(|_| soon()).collect();
        let jobs = deadlines.iter().map(|deadline| {
            workers.run(deadline, || std::thread::sleep(Duration::from_millis(20)))
        });
        for done in futures::future::join_all(jobs).await {
            assert_eq!(done, Ok(()));
        }
        assert_eq!(workers.0.state.lock().threads, 1);
    }

    #[tokio::test]
    async fn r4_a_pool_that_has_grown_computes_no_more_than_before() {
        let workers = pool(1, 8, 100, 20_000);
        let deadlines: Vec<Deadline> = (0..8).map(|_| soon()).collect();
        let meeting = Arc::new(Barrier::new(8));
        let grown = deadlines.iter().map(|deadline| {
            let meeting = Arc::clone(&meeting);
            workers.run(deadline, move || blocking(|| meeting.wait().is_leader()))
        });
        futures::future::join_all(grown).await;
        assert_eq!(workers.0.state.lock().threads, 8);
        let (computing, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let jobs = deadlines.iter().map(|deadline| {
            let (computing, most) = (Arc::clone(&computing), Arc::clone(&most));
            workers.run(deadline, move || {
                most.fetch_max(computing.fetch_add(1, SeqCst) + 1, SeqCst);
                std::thread::sleep(Duration::from_millis(5));
                computing.fetch_sub(1, SeqCst);
            })
        });
        for done in futures::future::join_all(jobs).await {
            assert_eq!(done, Ok(()));
        }
        assert_eq!(most.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn r4_a_job_that_waits_too_long_is_refused_and_never_runs() {
        let workers = pool(1, 1, 10, 50);
        // The second time, the task that looks for late jobs has ended and begins again.
        for _ in 0..2 {
            let (long, short) = (soon(), soon());
            let busy = workers.run(&long, || std::thread::sleep(Duration::from_millis(200)));
            let late = workers.run(&short, || unreachable!("it was refused"));
            let (busy, late) = tokio::join!(busy, late);
            assert_eq!(busy, Ok(()));
            assert!(matches!(late, Err(Refused::Busy(text)) if text.contains("within 50 ms")));
            assert_eq!(workers.run(&soon(), || 7).await, Ok(7), "the pool goes on");
            while workers.0.state.lock().is_watched {
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    #[tokio::test]
    async fn r4_a_job_whose_request_ends_in_the_queue_never_runs() {
        let workers = pool(1, 1, 10, 5_000);
        let (long, short) = (soon(), Deadline::new(Instant::now() + 2 * LOOK));
        let busy = pin!(workers.run(&long, || std::thread::sleep(Duration::from_millis(500))));
        let ended = pin!(workers.run(&short, || unreachable!("it has ended")));
        let Either::Right((ended, busy)) = select(busy, ended).await else {
            panic!("it waited for the other job");
        };
        assert_eq!(ended, Err(Refused::Ended(Ended::TimedOut)));
        assert_eq!(busy.await, Ok(()));
    }

    #[tokio::test]
    async fn r4_a_full_queue_refuses_at_once() {
        let workers = pool(1, 1, 1, 5_000);
        let (a, b, c) = (soon(), soon(), soon());
        let sleep = || std::thread::sleep(Duration::from_millis(100));
        let (first, second, third) = tokio::join!(
            workers.run(&a, sleep),
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                workers.run(&b, sleep).await
            },
            async {
                tokio::time::sleep(Duration::from_millis(40)).await;
                workers.run(&c, sleep).await
            },
        );
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert!(
            matches!(third, Err(Refused::Busy(sentence)) if sentence.contains("1 requests wait already"))
        );
    }

    #[tokio::test]
    async fn a_dropped_request_leaves_the_queue() {
        let workers = pool(1, 1, 10, 5_000);
        let (a, b) = (soon(), soon());
        let busy = workers.run(&a, || std::thread::sleep(Duration::from_millis(100)));
        let dropped = tokio::time::timeout(
            Duration::from_millis(20),
            workers.run(&b, || unreachable!("it was withdrawn")),
        );
        let (busy, dropped) = tokio::join!(busy, dropped);
        assert_eq!(busy, Ok(()));
        assert!(dropped.is_err());
        assert_eq!(workers.0.queued.load(SeqCst), 0);
        assert_eq!(workers.run(&soon(), || 1).await, Ok(1));
    }
}
