//! A small executor for native tests.

use std::pin::pin;
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
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = woken.clone().into();
    let mut future = pin!(future);
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
    }
    panic!(
        "this future waits for something that is not a call of its context, so nothing in the test will wake it"
    );
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
