//! What the parts of a request want to have run on its loop.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::subrequest_transaction::OwnTransaction;
use super::{Outcome, Position};
use crate::contract::types;
use crate::scope::transaction::Member;
use crate::threads::workers::Call;

/// A part that is to run on the loop, or from there, and who waits for it. Dropped, it is not going to run.
pub(super) struct Errand {
    pub(super) position: Position,
    pub(super) request: types::Request,
    pub(super) asker: Asker,
}

/// Who waits for a part.
pub(super) enum Asker {
    /// A part on the loop. It may give up waiting: then nobody wants the part any more.
    Loop(oneshot::Sender<Outcome>),
    /// A part on the worker, which can do nothing else.
    Worker(Call<Outcome>),
}

/// The errands that wait. There are as many at most as the scope has places for parts.
#[derive(Default)]
pub(super) struct Queue {
    /// None: nobody takes them any more.
    waiting: Mutex<Option<VecDeque<Errand>>>,
    came: Notify,
}

impl Queue {
    pub(super) fn open() -> Queue {
        Queue {
            waiting: Mutex::new(Some(VecDeque::new())),
            came: Notify::new(),
        }
    }

    /// Hands it over, or drops it when the request is cancelled: under the same lock as the end, so that none can get
    /// stuck between the two.
    pub(super) fn send(&self, errand: Errand) {
        let late = match &mut *self.waiting.lock() {
            Some(waiting) => {
                waiting.push_back(errand);
                None
            }
            None => Some(errand),
        };
        match late {
            None => self.came.notify_one(),
            Some(errand) => drop(errand),
        }
    }

    async fn next(&self) -> Errand {
        loop {
            let errand = self.waiting.lock().as_mut().and_then(VecDeque::pop_front);
            if let Some(errand) = errand {
                return errand;
            }
            self.came.notified().await;
        }
    }

    fn close(&self) {
        // Dropped outside of the lock: dropping an errand wakes whoever waits for it.
        let left = self.waiting.lock().take();
        drop(left);
    }
}

/// The end of a queue that takes the errands. Dropped, it closes the queue.
pub struct Errands(pub(super) Arc<Queue>);

impl Drop for Errands {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs a chain from its beginning, and whatever its parts want to have run on this loop, until it has its outcome.
pub async fn conduct(start: Position, request: types::Request, errands: Errands) -> Outcome {
    let mut outcome = pin!(start.on_loop(request));
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            outcome = &mut outcome => return outcome,
            errand = errands.0.next() => running.push(errand.run()),
            Some(()) = running.next() => {}
        }
    }
}

/// Tells a part's transaction, when dropped, that nobody waits for the part any more. That is no news when it has ended.
pub(super) struct GivenUp(pub(super) Arc<Member>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl Errand {
    async fn run(self) {
        let Errand {
            position,
            request,
            asker,
        } = self;
        // Dropped with this future, also while a sync part of it goes on on the worker without anyone who waits for it.
        let _given_up = GivenUp(Arc::clone(&position.member));
        let outcome = async {
            match OwnTransaction::begin(&position).await? {
                None => position.on_loop(request).await,
                Some(own) => own.end(position.on_loop(request).await).await,
            }
        };
        match asker {
            Asker::Worker(call) => call.answer(outcome.await),
            // What a part has called for ends with it.
            Asker::Loop(mut sender) => tokio::select! {
                biased;
                outcome = outcome => drop(sender.send(outcome)),
                () = sender.closed() => {}
            },
        }
    }
}
