//! Functions of tests that keep the conversation of a web socket.

use super::call::Call;
use super::executor::Task;
use super::{App, TestResponse};
use crate::host::{ConversationError, Happened, Host};
use crate::session::Values;
use crate::socket::Closed;
use crate::stream::Producer;
use crate::{Error, Response, Result, StatusCode};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

/// What a conversation waits for: events, and a clock that goes on when the test says so.
#[derive(Default)]
pub(super) struct Conversation {
    events: VecDeque<Happened>,
    /// Whether the last event has come.
    pub(super) is_closed: bool,
    now_ms: u64,
    /// When the sleeps that wait are over.
    sleeps: Vec<u64>,
    wakers: Vec<Waker>,
}

impl Conversation {
    /// The next event. `None`: none has come.
    pub(super) fn receive(&mut self, waker: &Waker) -> Option<Result<Happened, ConversationError>> {
        match self.events.pop_front() {
            Some(event) => Some(Ok(event)),
            None if self.is_closed => Some(Err(ConversationError::Ended)),
            None => {
                self.wakers.push(waker.clone());
                None
            }
        }
    }

    /// Begins a sleep. Returns when it is over.
    pub(super) fn begin_sleep(&mut self, ms: u32) -> u64 {
        let over = self.now_ms + u64::from(ms);
        self.sleeps.push(over);
        over
    }

    /// Whether a sleep is over.
    pub(super) fn is_over(&mut self, sleep: u64, waker: &Waker) -> bool {
        let over = self.now_ms >= sleep;
        if !over {
            self.wakers.push(waker.clone());
        }
        over
    }

    /// Ends a sleep, over or not.
    pub(super) fn end_sleep(&mut self, sleep: u64) {
        if let Some(at) = self.sleeps.iter().position(|known| *known == sleep) {
            self.sleeps.swap_remove(at);
        }
    }

    pub(super) fn put(&mut self, event: Happened) {
        self.is_closed |= matches!(event, Happened::Closed(_));
        self.events.push_back(event);
        self.wake();
    }

    /// Lets time go on to the end of the next sleep, but not beyond this time. Whether a sleep is over then.
    fn go_on(&mut self, until_ms: u64) -> bool {
        let next = self.sleeps.iter().copied().filter(|over| *over <= until_ms);
        let next = next.min();
        self.now_ms = self.now_ms.max(next.unwrap_or(until_ms));
        self.wake();
        next.is_some()
    }

    fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

/// A function that keeps a conversation, under way.
pub(super) struct Talk {
    app: App,
    name: &'static str,
    host: Host,
    call: Rc<Call>,
    id: String,
    task: Option<Task<Result<()>>>,
}

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Talk")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Talk {
    pub(super) fn begin(
        (app, name, id): (&App, &'static str, &str),
        (host, call): (Host, Rc<Call>),
        producer: Producer,
    ) -> Self {
        let Producer::Async(work) = producer else {
            unreachable!("only an async function keeps a conversation")
        };
        call.begin_conversation();
        Self {
            app: app.clone(),
            name,
            host,
            call,
            id: id.into(),
            task: Some(Task::new(work())),
        }
    }

    /// Runs the function until it waits. The response has its error, if it has ended with one.
    pub(super) fn go_on(&mut self) -> TestResponse {
        let Some(task) = &mut self.task else {
            return self.response(Ok(()));
        };
        let Some(ended) = self.host.while_running(|| task.poll()) else {
            return self.response(Ok(()));
        };
        // What the function has left open is rolled back when its future is dropped.
        self.task = None;
        let mut connections = self.app.0.connections.borrow_mut();
        let is_closing = connections.of(&self.id).closed.is_some() || self.call.is_closed();
        let ended = match ended {
            Err(error) if is_closing && error.is_end() => Ok(()),
            ended => ended,
        };
        let code = if ended.is_ok() { 1000 } else { 1011 };
        let reason = String::new();
        connections
            .of(&self.id)
            .closed
            .get_or_insert(Closed { code, reason });
        drop(connections);
        self.call.end();
        self.response(ended)
    }

    /// Has the function receive an event.
    pub(super) fn event(&mut self, event: Happened) -> TestResponse {
        self.call.put(event);
        self.go_on()
    }

    /// Lets time pass for the function.
    pub(super) fn pass(&mut self, time: Duration) -> TestResponse {
        let mut response = self.response(Ok(()));
        let until = self.call.now_ms() + u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        while self.task.is_some() {
            let goes_on = self
                .call
                .conversation(|it| it.go_on(until))
                .unwrap_or(false);
            response = self.go_on();
            if !goes_on {
                break;
            }
        }
        response
    }

    pub(super) fn is_running(&self) -> bool {
        self.task.is_some()
    }

    fn response(&self, ended: Result<()>) -> TestResponse {
        let outcome = ended.map(|()| Response::new(StatusCode::OK));
        let settings = self.app.0.settings.borrow();
        TestResponse::new(outcome, self.name, Values::new(), &settings)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // The future has contexts, which keep the call.
        self.task = None;
        self.call.end();
    }
}

impl Call {
    pub(super) fn begin_conversation(&self) {
        self.conversation.replace(Some(Conversation::default()));
    }

    pub(super) fn conversation<T>(&self, with: impl FnOnce(&mut Conversation) -> T) -> Option<T> {
        self.conversation.borrow_mut().as_mut().map(with)
    }

    fn put(&self, event: Happened) {
        self.conversation(|it| it.put(event));
    }

    fn is_closed(&self) -> bool {
        self.conversation(|it| it.is_closed).unwrap_or(false)
    }

    fn now_ms(&self) -> u64 {
        self.conversation(|it| it.now_ms).unwrap_or(0)
    }
}

impl Error {
    /// Whether it says that the connection of a conversation has ended.
    fn is_end(&self) -> bool {
        self.status().as_u16() == 499
    }
}
