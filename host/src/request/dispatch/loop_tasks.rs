//! Calls that guest functions of a request send to the event loop of the request.

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

/// A call that the loop runs, or sends to the worker, and its caller. Dropping the task means that the call never runs.
pub(super) struct LoopTask {
    pub(super) link_call: LinkCall,
    pub(super) request: types::Request,
    pub(super) caller: Caller,
}

/// Where the result of a call goes.
pub(super) enum Caller {
    /// To a function on the loop. That function may stop waiting; then the call is cancelled.
    Loop(oneshot::Sender<LinkResult>),
    /// To a function on the worker, which cannot stop waiting.
    Worker(Call<LinkResult>),
}

/// The tasks that wait for the loop. The call slots of the scope limit their number.
#[derive(Default)]
pub(super) struct LoopQueue {
    /// None: the queue is closed.
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

    /// Queues a task, or drops it when the queue is closed. Sending and closing take the same lock, so that no task is
    /// queued after the close.
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
        // Dropped outside of the lock: dropping a task wakes its caller.
        let left = self.waiting.lock().take();
        drop(left);
    }
}

/// The receiving end of a queue. Dropping it closes the queue.
pub struct LoopTasks(pub(super) Arc<LoopQueue>);

impl Drop for LoopTasks {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs a chain from its first link, and the tasks that its links send, until the chain has its result.
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

/// Gives a member up when dropped, because nobody waits for its function any more. Does nothing if the function has
/// ended.
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
        // Gives the member up when this future is dropped. A sync function of the call may then still run on the
        // worker, although nobody waits for it any more.
        let _given_up = GiveUpOnDrop(Arc::clone(&link_call.member));
        let outcome = async {
            match SubrequestTransaction::begin(&link_call).await? {
                None => link_call.on_loop(request).await,
                Some(own) => own.end(link_call.on_loop(request).await).await,
            }
        };
        match caller {
            Caller::Worker(call) => call.answer(outcome.await),
            // The call is cancelled when its caller stops waiting.
            Caller::Loop(mut sender) => tokio::select! {
                biased;
                outcome = outcome => drop(sender.send(outcome)),
                () = sender.closed() => {}
            },
        }
    }
}
