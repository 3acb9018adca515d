//! Where the work of a statement runs: on the caller's thread, on a thread that may block, or, after its caller is
//! dropped, in the background.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinError;

use crate::threads::wakeups::batched_wakeup;
use crate::threads::workers;

/// The kind of caller, which decides where a statement may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// The caller is on a sync worker: the work runs on its thread.
    Sync,
    /// The caller is on a loop: the work runs on another thread. Work that has started is finished, even if the caller
    /// is dropped.
    Async,
}

impl Face {
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            Face::Sync => workers::blocking(work),
            Face::Async => unwound(batched_wakeup(tokio::task::spawn_blocking(work)).await),
        }
    }
}

/// The result of a task. A panic of the task is passed on.
pub(super) fn unwound<T>(done: Result<T, JoinError>) -> T {
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// A future that is not lost when it is dropped: if it was polled before, a background task finishes its work.
pub(super) struct Surviving<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    started: bool,
    runtime: tokio::runtime::Handle,
}

impl<T: Send + 'static> Surviving<T> {
    pub(super) fn new(
        runtime: &tokio::runtime::Handle,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Surviving<T> {
        Surviving {
            work: Some(Box::pin(work)),
            started: false,
            runtime: runtime.clone(),
        }
    }
}

impl<T: Send + 'static> Future for Surviving<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.started = true;
        let work = self.work.as_mut().expect("it is not polled after its end");
        let done = work.as_mut().poll(context);
        if done.is_ready() {
            self.work = None;
        }
        done
    }
}

impl<T: Send + 'static> Drop for Surviving<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take().filter(|_| self.started) {
            self.runtime.spawn(async move {
                drop(work.await);
            });
        }
    }
}
