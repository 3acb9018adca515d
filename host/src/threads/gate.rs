//! A limit on how many of something are in use at the same time (async instances, database connections of each kind),
//! with a bounded queue of callers that wait. A caller that gets no permit in time gets an error; no caller is dropped
//! silently.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::runtime::Handle;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::{Deadline, Ended};
use crate::threads::wakeups::batched_wakeup;

/// A number of permits, and the queue of callers that wait for one.
#[derive(Debug)]
pub struct Gate {
    name: String,
    permits: Arc<Semaphore>,
    size: usize,
    queue_max: usize,
    timeout: Duration,
    /// The number of callers that wait at this gate. Gates with the same name (of an app and of the app that replaces
    /// it) share only the gauge.
    queued: Arc<AtomicUsize>,
    gauge: IntGauge,
}

/// The permission to run, until dropped.
pub type Permit = OwnedSemaphorePermit;

/// Why no permit was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full, or the wait was too long; the sentence says which.
    Busy(String),
    /// The request ended while it waited.
    Ended(Ended),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Busy(sentence) => f.write_str(sentence),
            Refused::Ended(why) => write!(f, "the request ended while it waited ({why:?})"),
        }
    }
}

impl Gate {
    /// A gate with `size` permits; at most `queue_max` callers wait, each at most `timeout`. `name` is used in error
    /// messages and metrics.
    pub fn new(name: impl Into<String>, size: usize, queue_max: usize, timeout: Duration) -> Gate {
        let name = name.into();
        let gauge = METRICS.queued.with_label_values(&[&name]);
        Gate {
            permits: Arc::new(Semaphore::new(size)),
            size,
            queue_max,
            timeout,
            queued: Arc::default(),
            gauge,
            name,
        }
    }

    /// Takes a permit, first come first served.
    ///
    /// # Errors
    /// [`Refused`] when the queue is full, the wait is too long or the request ends.
    pub async fn enter(&self, deadline: &Deadline) -> Result<Permit, Refused> {
        self.enter_with(1, deadline).await
    }

    /// Takes several permits at once, as [`Gate::enter`] takes one. More than there are count as all.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    pub async fn enter_with(&self, permits: usize, deadline: &Deadline) -> Result<Permit, Refused> {
        let permits = u32::try_from(permits.min(self.size)).unwrap_or(u32::MAX);
        if let Ok(permit) = self.permits.clone().try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        let _queued = self.queue()?;
        let since = Instant::now();
        let permit = tokio::select! {
            biased;
            permit = self.permits.clone().acquire_many_owned(permits) => Ok(permit),
            why = deadline.wait_until(since + self.timeout) => Err(why),
        };
        METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
        match permit {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(why) => Err(self.too_long(why)),
        }
    }

    /// Takes a permit that is free now.
    ///
    /// # Errors
    /// [`Refused`] when there is none.
    pub fn try_enter(&self) -> Result<Permit, Refused> {
        self.try_enter_with(1)
    }

    /// Takes several permits that are free now. More than there are count as all.
    ///
    /// # Errors
    /// As [`Gate::try_enter`].
    pub fn try_enter_with(&self, permits: usize) -> Result<Permit, Refused> {
        let permits = u32::try_from(permits.min(self.size)).unwrap_or(u32::MAX);
        let permit = self.permits.clone().try_acquire_many_owned(permits);
        permit.map_err(|_| self.busy(format!("{}: all {} are in use", self.name, self.size)))
    }

    /// Runs `work` on another runtime as soon as it has a permit, first come first served. A thread of that runtime
    /// that gives a permit back continues with the next work immediately; it does not wait until the caller of that
    /// work is woken. Work that has not begun when its caller is dropped never begins.
    ///
    /// # Errors
    /// As [`Gate::enter`].
    ///
    /// # Panics
    /// When the work panics: its panic is passed on to the caller.
    pub async fn enter_on<T: Send + 'static>(
        &self,
        runtime: &Handle,
        deadline: &Deadline,
        work: impl FnOnce(Permit) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let since = Instant::now();
        let queued = match self.permits.available_permits() {
            0 => Some(self.queue()?),
            _ => None,
        };
        let wanted = Arc::new(Mutex::new(Some((work, queued))));
        let (sender, mut done) = oneshot::channel();
        let taking = Arc::clone(&wanted);
        let begin = move |permit| {
            let Some((work, queued)) = taking.lock().take() else {
                return;
            };
            if queued.is_some() {
                METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
            }
            drop(queued);
            // The receiver is gone when the caller was dropped.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(|| work(permit))));
        };
        let turn = Turn::wait(runtime, Arc::clone(&self.permits).acquire_owned(), begin);
        let waiting = Waiting { wanted, turn };
        let done = tokio::select! {
            biased;
            done = batched_wakeup(&mut done) => done,
            why = deadline.wait_until(since + self.timeout) => match waiting.give_up() {
                true => return Err(self.too_long(why)),
                // The work has begun, so its result is waited for.
                false => batched_wakeup(done).await,
            },
        };
        match done.expect("only the caller withdraws it") {
            Ok(done) => Ok(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn too_long(&self, why: Option<Ended>) -> Refused {
        match why {
            Some(why) => Refused::Ended(why),
            None => self.busy(format!(
                "{}: none of {} came free within {} ms",
                self.name,
                self.size,
                self.timeout.as_millis()
            )),
        }
    }

    /// Joins the queue.
    fn queue(&self) -> Result<Queued, Refused> {
        let taken = self.queued.fetch_update(Relaxed, Relaxed, |queued| {
            Some(queued + 1).filter(|queued| *queued <= self.queue_max)
        });
        match taken {
            Ok(_) => Ok(Queued {
                queued: Arc::clone(&self.queued),
                _gauge: GaugeGuard::new(&self.gauge),
            }),
            Err(_) => Err(self.busy(format!(
                "{}: all {} are in use and {} requests wait already",
                self.name, self.size, self.queue_max
            ))),
        }
    }

    fn busy(&self, sentence: String) -> Refused {
        METRICS.refused.with_label_values(&[&self.name]).inc();
        Refused::Busy(sentence)
    }
}

/// A caller in the queue, counted until dropped.
struct Queued {
    queued: Arc<AtomicUsize>,
    _gauge: GaugeGuard,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.queued.fetch_sub(1, Relaxed);
    }
}

/// A wait for a permit that needs no task: the work is spawned on `runtime` only when the permit is there.
struct Turn {
    runtime: Handle,
    work: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Turn {
    /// Runs `work` on the runtime when the permit is there.
    fn wait(
        runtime: &Handle,
        permit: impl Future<Output = Result<Permit, AcquireError>> + Send + 'static,
        work: impl FnOnce(Permit) + Send + 'static,
    ) -> Arc<Turn> {
        // `unconstrained`, because tokio would otherwise call `wake` within the first poll when the task's cooperative
        // budget is used up. `wake` would then wait for the lock that this thread holds below.
        let mut permit = Box::pin(tokio::task::unconstrained(permit));
        let turn = Arc::new(Turn {
            runtime: runtime.clone(),
            work: Mutex::new(None),
        });
        // Hold the lock, so that a wake during the first poll waits until the work is stored.
        let mut slot = turn.work.lock();
        let waker = Waker::from(Arc::clone(&turn));
        let first = permit.as_mut().poll(&mut Context::from_waker(&waker));
        let ready = first.is_ready();
        let working = async move {
            let permit = match first {
                Poll::Ready(permit) => permit,
                Poll::Pending => permit.await,
            };
            work(permit.expect("the semaphore is never closed"));
        };
        match ready {
            true => drop(runtime.spawn(working)),
            false => *slot = Some(working.boxed()),
        }
        drop(slot);
        turn
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        let work = self.work.lock().take();
        work.map(|work| self.runtime.spawn(work));
    }
}

/// Work that waits for a permit. Whichever comes first takes it: the permit, or the end of the wait.
struct Waiting<W> {
    wanted: Arc<Mutex<Option<W>>>,
    turn: Arc<Turn>,
}

impl<W> Waiting<W> {
    /// Withdraws the work. False: it has begun already.
    fn give_up(&self) -> bool {
        let wanted = self.wanted.lock().take();
        let queueing = self.turn.work.lock().take();
        drop(queueing);
        wanted.is_some()
    }
}

impl<W> Drop for Waiting<W> {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn gate(name: &str, queue_max: usize) -> Gate {
        Gate::new(name, 1, queue_max, LONG)
    }

    fn deadline() -> Deadline {
        Deadline::new(Instant::now() + LONG)
    }

    #[tokio::test]
    async fn gates_of_one_name_have_queues_of_their_own() {
        let (one, other) = (gate("test: of one name", 1), gate("test: of one name", 1));
        let deadline = deadline();
        let (in_one, in_other) = (
            one.enter(&deadline).await.expect("it is free"),
            other.enter(&deadline).await.expect("it is free"),
        );
        let mut waits_at_one = Box::pin(one.enter(&deadline));
        assert!((&mut waits_at_one).now_or_never().is_none());
        let mut waits_at_other = Box::pin(other.enter(&deadline));
        assert!((&mut waits_at_other).now_or_never().is_none());
        assert_eq!(one.gauge.get(), 2);
        drop((in_one, in_other));
        drop(waits_at_one.await.expect("it came free"));
        drop(waits_at_other.await.expect("it came free"));
        assert_eq!(one.gauge.get(), 0);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_one_who_gives_up_makes_room() {
        let gate = gate("test: full", 1);
        let deadline = deadline();
        let _inside = gate.enter(&deadline).await.expect("it is free");
        let mut waits = Box::pin(gate.enter(&deadline));
        assert!((&mut waits).now_or_never().is_none());
        let refused = gate.enter(&deadline).await.expect_err("the queue is full");
        assert!(
            refused.to_string().contains("1 requests wait already"),
            "{refused}"
        );
        drop(waits);
        let mut waits = Box::pin(gate.enter(&deadline));
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(gate.gauge.get(), 1);
    }

    #[tokio::test]
    async fn without_a_queue_nobody_waits() {
        let gate = gate("test: none", 0);
        let deadline = deadline();
        let _inside = gate.enter(&deadline).await.expect("it is free");
        gate.enter(&deadline).await.expect_err("nobody may wait");
    }

    #[tokio::test]
    async fn work_begins_elsewhere_when_its_turn_comes() {
        let elsewhere = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime can be made");
        let (gate, deadline) = (gate("elsewhere", 2), deadline());
        let inside = gate.enter(&deadline).await.expect("it is free");
        let thread = |_: Permit| std::thread::current().id();
        let mut first = Box::pin(gate.enter_on(elsewhere.handle(), &deadline, thread));
        let mut second = Box::pin(gate.enter_on(elsewhere.handle(), &deadline, thread));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        let third = gate.enter_on(elsewhere.handle(), &deadline, thread).await;
        assert!(
            matches!(third, Err(Refused::Busy(sentence)) if sentence.contains("2 requests wait"))
        );
        // A caller that gives up leaves the queue.
        drop(first);
        assert_eq!(gate.gauge.get(), 1);
        drop(inside);
        assert_ne!(second.await, Ok(std::thread::current().id()));
        assert_eq!((gate.gauge.get(), gate.permits.available_permits()), (0, 1));
        elsewhere.shutdown_background();
    }

    #[tokio::test]
    async fn work_that_waits_too_long_does_not_begin() {
        let gate = Gate::new("late", 1, 1, Duration::from_millis(10));
        let deadline = deadline();
        let inside = gate.enter(&deadline).await.expect("it is free");
        let never = |_: Permit| unreachable!("it was given up");
        let here = Handle::current();
        let late = gate.enter_on::<()>(&here, &deadline, never).await;
        assert!(matches!(late, Err(Refused::Busy(sentence)) if sentence.contains("within 10 ms")));
        deadline.cancel(Ended::Disconnected);
        let ended = gate.enter_on::<()>(&here, &deadline, never).await;
        assert_eq!(ended, Err(Refused::Ended(Ended::Disconnected)));
        drop(inside);
        tokio::task::yield_now().await;
        assert_eq!(gate.permits.available_permits(), 1);
    }
}
