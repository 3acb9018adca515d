//! The worker hand-off (R2, R3, R15), model-checked: the real `handoff.rs` of the host, with a lock and a condition
//! variable that try every interleaving of its threads, up to a bound on pre-emptions.
//!
//! loom reports a model that gets stuck as a deadlock, so every test here also checks that nothing waits for ever.

#[path = "../../host/src/threads/handoff.rs"]
#[allow(unreachable_pub, reason = "it is a module of the host's library")]
mod handoff;

/// The lock and condition variable that `handoff.rs` is given here, with parking_lot's interface.
mod sync {
    use std::ops::{Deref, DerefMut};

    pub struct Mutex<T>(loom::sync::Mutex<T>);
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);
    pub struct Condvar(loom::sync::Condvar);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(
                self.0
                    .lock()
                    .expect("no model panics while it holds a lock"),
            ))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("it is there but while waiting")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("it is there but while waiting")
        }
    }

    impl Condvar {
        pub fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }

        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.0.take().expect("it is there but while waiting");
            guard.0 = Some(
                self.0
                    .wait(held)
                    .expect("no model panics while it holds a lock"),
            );
        }
    }
}

use std::collections::VecDeque;

use handoff::{Handoff, Next};
use loom::sync::Arc;
use loom::thread;

type Job = Box<dyn FnOnce(&Shared) + Send>;

/// What the worker and the loop share: the hand-off, what the worker wants from the loop, and what has happened.
struct Shared {
    handoff: Handoff<Job>,
    wanted: sync::Mutex<Wanted>,
    news: sync::Condvar,
    steps: sync::Mutex<Vec<&'static str>>,
}

#[derive(Default)]
struct Wanted {
    calls: VecDeque<u64>,
    ended: usize,
    /// The request is cancelled: nobody answers calls any more.
    gone: bool,
}

impl Shared {
    fn new() -> Arc<Shared> {
        Arc::new(Shared {
            handoff: Handoff::new(),
            wanted: sync::Mutex::new(Wanted::default()),
            news: sync::Condvar::new(),
            steps: sync::Mutex::new(Vec::new()),
        })
    }

    /// Submits a job while nothing has the worker for itself.
    fn submit(&self, job: Job) -> Result<(), Job> {
        self.handoff.submit(self.handoff.id(), Vec::new(), job)
    }

    fn step(&self, what: &'static str) {
        self.steps.lock().push(what);
    }

    /// Runs jobs like `serve` in `host/src/threads/workers.rs`.
    fn serve(&self, waiting_for: Option<u64>) {
        while let Next::Job(id, job) = self.handoff.next(waiting_for) {
            job(self);
            self.handoff.ended(id);
        }
    }

    /// Waits for a call like `await_call` in `host/src/threads/workers.rs`. The list of calls stands for the channel to
    /// the event loop. The channel is closed when the request ends: then `gone` is set.
    fn call(&self) {
        let call = self.handoff.id();
        let mut wanted = self.wanted.lock();
        let gone = wanted.gone;
        if !gone {
            wanted.calls.push_back(call);
        }
        drop(wanted);
        match gone {
            true => self.handoff.settle(call),
            false => self.news.notify_all(),
        }
        self.serve(Some(call));
    }

    fn end(&self) {
        self.wanted.lock().ended += 1;
        self.news.notify_all();
    }

    /// On the loop: waits for a call of the worker, or until `ended` jobs have ended. Returns `None` in the second
    /// case.
    fn wanted(&self, ended: usize) -> Option<u64> {
        let mut wanted = self.wanted.lock();
        loop {
            if wanted.ended >= ended {
                return None;
            }
            if let Some(call) = wanted.calls.pop_front() {
                return Some(call);
            }
            self.news.wait(&mut wanted);
        }
    }

    /// What dropping the request's future does: open calls are settled without an answer, and the lease is dropped.
    fn cancel(&self) {
        let mut wanted = self.wanted.lock();
        wanted.gone = true;
        let calls = std::mem::take(&mut wanted.calls);
        drop(wanted);
        for call in calls {
            self.handoff.settle(call);
        }
        drop(self.handoff.close());
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    // LOOM_MAX_PREEMPTIONS changes the bound. Without a bound, the tests take some minutes.
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(4));
    builder.check(model);
}

fn job(work: impl FnOnce(&Shared) + Send + 'static) -> Job {
    Box::new(work)
}

fn worker(shared: &Arc<Shared>) -> thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || shared.serve(None))
}

/// sync → async → sync: the inner sync part runs on the worker while the outer one waits.
#[test]
fn r3_a_waiting_worker_runs_what_comes_back_to_it() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let outer = job(|shared| {
            shared.step("outer begins");
            shared.call();
            shared.step("outer ends");
            shared.end();
        });
        assert!(shared.submit(outer).is_ok());
        let call = shared
            .wanted(1)
            .expect("the outer part calls before it ends");
        let inner = job(|shared| {
            shared.step("inner");
            shared.end();
        });
        assert!(shared.submit(inner).is_ok());
        assert_eq!(shared.wanted(1), None);
        shared.handoff.settle(call);
        assert_eq!(shared.wanted(2), None);
        drop(shared.handoff.close());
        worker.join().expect("the worker ends");
        assert_eq!(
            *shared.steps.lock(),
            ["outer begins", "inner", "outer ends"]
        );
    });
}

/// sync → async → sync → async → sync: the inner call is answered before the outer call.
#[test]
fn r3_nesting_twice_ends_in_the_opposite_order() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let calling = |begins, ends| {
            job(move |shared: &Shared| {
                shared.step(begins);
                shared.call();
                shared.step(ends);
                shared.end();
            })
        };
        assert!(shared.submit(calling("1", "1 ends")).is_ok());
        let first = shared.wanted(1).expect("it calls");
        assert!(shared.submit(calling("2", "2 ends")).is_ok());
        let second = shared.wanted(1).expect("it calls");
        shared.handoff.settle(second);
        assert_eq!(shared.wanted(1), None);
        shared.handoff.settle(first);
        assert_eq!(shared.wanted(2), None);
        drop(shared.handoff.close());
        worker.join().expect("the worker ends");
        assert_eq!(*shared.steps.lock(), ["1", "2", "2 ends", "1 ends"]);
    });
}

/// Two sync functions of one scope at the same time, as in joined sub-requests: they run one after the other, in either
/// order.
#[test]
fn r2_parts_at_once_share_the_worker_without_loss() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let one = job(|shared| {
                    shared.step("a");
                    shared.end();
                });
                assert!(shared.submit(one).is_ok());
            })
        };
        let two = job(|shared| {
            shared.step("b");
            shared.end();
        });
        assert!(shared.submit(two).is_ok());
        assert_eq!(shared.wanted(2), None);
        drop(shared.handoff.close());
        other.join().expect("it ends");
        worker.join().expect("the worker ends");
        let mut steps = shared.steps.lock().clone();
        steps.sort_unstable();
        assert_eq!(steps, ["a", "b"]);
    });
}

/// Cancelling at any moment: a job that has begun ends, a job that has not never begins, and the worker comes free.
#[test]
fn r15_cancelling_at_any_moment_frees_the_worker() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let outer = job(|shared| {
            shared.step("begins");
            shared.call();
            shared.step("ends");
        });
        assert!(shared.submit(outer).is_ok());
        shared.cancel();
        worker.join().expect("the worker ends");
        let steps = shared.steps.lock().clone();
        assert!(steps.is_empty() || steps == ["begins", "ends"], "{steps:?}");
    });
}

/// Cancelling while the inner job is submitted: the outer job ends, and the inner job either ends or never begins.
#[test]
fn r15_cancelling_within_a_nested_part_frees_the_worker() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let outer = job(|shared| {
            shared.step("1");
            shared.call();
            shared.step("1 ends");
        });
        assert!(shared.submit(outer).is_ok());
        let call = shared
            .wanted(1)
            .expect("the outer part calls before it ends");
        let inner = job(|shared| {
            shared.step("2");
            shared.call();
            shared.step("2 ends");
        });
        // The loop works on the inner function when the request is dropped. The call that this function was to answer
        // is dropped with the request.
        let submitted = shared.submit(inner).is_ok();
        assert!(submitted, "nothing has closed it yet");
        shared.handoff.settle(call);
        shared.cancel();
        worker.join().expect("the worker ends");
        let steps = shared.steps.lock().clone();
        let begun = |step: &str| steps.contains(&step);
        assert!(begun("1") && begun("1 ends"), "{steps:?}");
        assert_eq!(begun("2"), begun("2 ends"), "{steps:?}");
    });
}

/// A transaction takes the worker for itself while its caller's job waits there, and another job is submitted at any
/// moment. Either the other job is on the worker already and the transaction waits for its end, or the other job begins
/// after the transaction has ended.
#[test]
fn r3_no_job_begins_on_top_of_what_has_the_worker_for_itself() {
    check(|| {
        let shared = Shared::new();
        let worker = worker(&shared);
        let outer = job(|shared| {
            shared.call();
            shared.step("outer ends");
            shared.end();
        });
        let outer_id = shared.handoff.id();
        assert!(shared.handoff.submit(outer_id, Vec::new(), outer).is_ok());
        let call = shared
            .wanted(1)
            .expect("the outer part calls before it ends");
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let other = job(|shared| {
                    shared.step("other");
                    shared.end();
                });
                assert!(shared.submit(other).is_ok());
            })
        };
        let exclusion = shared.handoff.id();
        let from = [outer_id];
        if !shared.handoff.try_exclude(exclusion, &from, false) {
            // The other job is on top of the worker's stack, and ends by itself.
            assert_eq!(shared.wanted(1), None);
            while !shared.handoff.try_exclude(exclusion, &from, false) {
                thread::yield_now();
            }
        }
        let before = shared.steps.lock().len();
        let inner = job(|shared| {
            shared.step("inner");
            shared.end();
        });
        let id = shared.handoff.id();
        let submitted = shared.handoff.submit(id, vec![outer_id, exclusion], inner);
        assert!(submitted.is_ok());
        assert_eq!(shared.wanted(before + 1), None);
        assert_eq!(shared.steps.lock().last(), Some(&"inner"));
        shared.handoff.admit(exclusion);
        assert_eq!(shared.wanted(2), None);
        shared.handoff.settle(call);
        assert_eq!(shared.wanted(3), None);
        drop(shared.handoff.close());
        other.join().expect("it ends");
        worker.join().expect("the worker ends");
        assert_eq!(shared.steps.lock().last(), Some(&"outer ends"));
    });
}
