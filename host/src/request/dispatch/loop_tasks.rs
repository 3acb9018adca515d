//! What the parts of a request want to have run on its loop.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::subrequest_transaction::SubrequestTransaction;
use super::{LinkCall, LinkResult};
use crate::contract::types;
use crate::scope::transaction::Member;
use crate::threads::workers::Call;

/// A part that is to run on the loop, or from there, and who waits for it. Dropped, it is not going to run.
pub(super) struct LoopTask {
    pub(super) link_call: LinkCall,
    pub(super) request: types::Request,
    pub(super) caller: Caller,
}

/// Who waits for a part.
pub(super) enum Caller {
    /// A part on the loop. It may give up waiting: then nobody wants the part any more.
    Loop(oneshot::Sender<LinkResult>),
    /// A part on the worker, which can do nothing else.
    Worker(Call<LinkResult>),
}

/// The loop_queue that wait. There are as many at most as the scope has places for parts.
#[derive(Default)]
pub(super) struct LoopQueue {
    /// None: nobody takes them any more.
    waiting: Mutex<Option<VecDeque<LoopTask>>>,
    came: Notify,
}

impl LoopQueue {
    pub(super) fn open() -> LoopQueue {
        LoopQueue {
            waiting: Mutex::new(Some(VecDeque::new())),
            came: Notify::new(),
        }
    }

    /// Hands it over, or drops it when the request is cancelled: under the same lock as the end, so that none can get
    /// stuck between the two.
    pub(super) fn send(&self, task: LoopTask) {
        let late = match &mut *self.waiting.lock() {
            Some(waiting) => {
                waiting.push_back(task);
                None
            }
            None => Some(task),
        };
        match late {
            None => self.came.notify_one(),
            Some(task) => drop(task),
        }
    }

    async fn next(&self) -> LoopTask {
        loop {
            let task = self.waiting.lock().as_mut().and_then(VecDeque::pop_front);
            if let Some(task) = task {
                return task;
            }
            self.came.notified().await;
        }
    }

    fn close(&self) {
        // Dropped outside of the lock: dropping an task wakes whoever waits for it.
        let left = self.waiting.lock().take();
        drop(left);
    }
}

/// The end of a queue that takes the loop_queue. Dropped, it closes the queue.
pub struct LoopTasks(pub(super) Arc<LoopQueue>);

impl Drop for LoopTasks {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs a chain from its beginning, and whatever its parts want to have run on this loop, until it has its outcome.
pub async fn conduct(
    start: LinkCall,
    request: types::Request,
    loop_queue: LoopTasks,
) -> LinkResult {
    let mut outcome = pin!(start.on_loop(request));
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            outcome = &mut outcome => return outcome,
            task = loop_queue.0.next() => running.push(task.run()),
            Some(()) = running.next() => {}
        }
    }
}

/// Tells a part's transaction, when dropped, that nobody waits for the part any more. That is no news when it has ended.
pub(super) struct GiveUpOnDrop(pub(super) Arc<Member>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl LoopTask {
    async fn run(self) {
        let LoopTask {
            link_call,
            request,
            caller,
        } = self;
        // Dropped with this future, also while a sync part of it goes on on the worker without anyone who waits for it.
        let _given_up = GiveUpOnDrop(Arc::clone(&link_call.member));
        let outcome = async {
            match SubrequestTransaction::begin(&link_call).await? {
                None => link_call.on_loop(request).await,
                Some(own) => own.end(link_call.on_loop(request).await).await,
            }
        };
        match caller {
            Caller::Worker(call) => call.answer(outcome.await),
            // What a part has called for ends with it.
            Caller::Loop(mut sender) => tokio::select! {
                biased;
                outcome = outcome => drop(sender.send(outcome)),
                () = sender.closed() => {}
            },
        }
    }
}
