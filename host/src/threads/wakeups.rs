//! Batches the wake-ups that other threads send to the tasks of an event loop.
//!
//! Waking a task of a loop from another thread costs a system call, even when that loop is awake. Wake-ups that may
//! come in numbers, such as those of workers that finish their jobs, are collected here. The first wake-up wakes only
//! one task of the loop, `pass_on`. This task then wakes all tasks that were collected, from within the loop and so
//! without system calls.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::task::{ArcWake, waker_ref};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

#[derive(Default)]
struct Collected {
    waiting: Mutex<Vec<Waker>>,
    came: Notify,
}

thread_local! {
    /// The runtime of this thread, which is its event loop, and the wake-ups that are collected for it.
    static HERE: RefCell<Option<(tokio::runtime::Id, Arc<Collected>)>> = const { RefCell::new(None) };
}

impl Collected {
    /// The collected wake-ups of this loop. The first call on a loop starts [`Collected::pass_on`] there.
    fn here() -> Arc<Collected> {
        let runtime = Handle::current();
        HERE.with_borrow_mut(|here| match here {
            Some((id, collected)) if *id == runtime.id() => Arc::clone(collected),
            _ => {
                let collected = Arc::new(Collected::default());
                runtime.spawn(Arc::clone(&collected).pass_on());
                *here = Some((runtime.id(), Arc::clone(&collected)));
                collected
            }
        })
    }

    /// Wakes the collected tasks whenever there are new ones. Runs on the loop until the loop ends.
    async fn pass_on(self: Arc<Self>) {
        loop {
            self.came.notified().await;
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    fn add(&self, waker: Waker) {
        let mut waiting = self.waiting.lock();
        waiting.push(waker);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            self.came.notify_one();
        }
    }
}

/// A task of a loop that is woken in a batch with others.
struct Together {
    task: Waker,
    collected: Arc<Collected>,
}

impl ArcWake for Together {
    fn wake_by_ref(this: &Arc<Self>) {
        this.collected.add(this.task.clone());
    }
}

/// Runs `work` within the current task. Wake-ups of the task that come from `work` are batched with those of other
/// tasks.
///
/// # Panics
/// Outside of a runtime.
pub async fn batched_wakeup<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    // The batching waker of the last poll. It is used again as long as `work` is polled by the same task.
    let mut last: Option<Arc<Together>> = None;
    std::future::poll_fn(|context| -> Poll<T> {
        last.take_if(|one| !one.task.will_wake(context.waker()));
        let one = last.get_or_insert_with(|| {
            Arc::new(Together {
                task: context.waker().clone(),
                collected: Collected::here(),
            })
        });
        work.as_mut()
            .poll(&mut Context::from_waker(&waker_ref(one)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_are_woken() {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..100).map(|_| oneshot::channel()).unzip();
        let waiting = receivers
            .into_iter()
            .map(|receiver| tokio::spawn(batched_wakeup(receiver)));
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        let others = std::thread::spawn(move || {
            for (number, sender) in senders.into_iter().enumerate() {
                if number % 10 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                sender.send(number).expect("somebody waits");
            }
        });
        for (number, answer) in join_all(waiting).await.into_iter().enumerate() {
            assert_eq!(answer.expect("it does not panic"), Ok(number));
        }
        others.join().expect("it does not panic");
    }

    #[test]
    fn each_runtime_has_its_own() {
        for _ in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let (sender, receiver) = oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                sender.send(()).expect("somebody waits");
            });
            let runtime = runtime.expect("a runtime can be made");
            runtime
                .block_on(batched_wakeup(receiver))
                .expect("it is sent");
        }
    }
}
