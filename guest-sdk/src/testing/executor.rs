//! A small executor for native tests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};

/// Runs a future to completion, such as the future of an async function that was called with
/// [`App::async_context`](super::App::async_context).
///
/// # Panics
///
/// When the future waits for something other than a call of its context. Nothing in a test would wake such a future.
pub fn run<F: Future>(future: F) -> F::Output {
    Task::new(Box::pin(future)).poll().unwrap_or_else(|| {
        panic!(
            "this future waits for something that is not a call of its context, so nothing in the test will wake it"
        )
    })
}

/// A future, and whether it was woken since it was last polled.
pub(super) struct Task<T, F: ?Sized = dyn Future<Output = T>>
where
    F: Future<Output = T>,
{
    woken: Arc<Woken>,
    future: Pin<Box<F>>,
}

impl<T, F: Future<Output = T> + ?Sized> Task<T, F> {
    pub(super) fn new(future: Pin<Box<F>>) -> Self {
        Self {
            woken: Arc::new(Woken(AtomicBool::new(true))),
            future,
        }
    }

    /// Runs the future until it waits. `None`: it waits. It is not to be polled again after its end.
    pub(super) fn poll(&mut self) -> Option<T> {
        let waker = self.woken.clone().into();
        while self.woken.0.swap(false, Ordering::Relaxed) {
            let polled = self.future.as_mut().poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(output) = polled {
                return Some(output);
            }
        }
        None
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
