//! The conversation of a web socket whose function runs as long as the connection: the events that wait for the function,
//! and the limits of a function without a time limit.
//!
//! A request has one time limit and one budget. A conversation has neither end nor size, so its limits count anew: the CPU
//! time and the log with each event and each `timeout_ms`, messages and events that it sends with each event and each
//! second. And what others may wait for, a transaction or a connection of a database, it may hold for `timeout_ms` at a
//! time: only then the deadline of its scope is near.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::http::websocket::Message;
use crate::threads::deadline::Deadline;

/// As good as no time limit.
const UNLIMITED: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How often the number of messages and events that a conversation sends counts anew.
const SENT_WINDOW: Duration = Duration::from_secs(1);

/// What happens on a web socket.
pub enum Event {
    /// A message of the client.
    Message(Message),
    /// What others told the view.
    Notice(Notice),
    /// The connection has ended. It is the last event.
    Closed {
        /// The code of the close.
        code: u16,
        /// Its text.
        reason: String,
    },
}

/// What others tell a connection's view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The group that they told.
    pub group: String,
    /// What they told.
    pub payload: Bytes,
}

impl Event {
    /// Its content: the message, the payload, or the reason.
    pub fn body(&self) -> &[u8] {
        match self {
            Event::Message(Message::Text(bytes) | Message::Binary(bytes)) => bytes,
            Event::Notice(Notice { payload, .. }) => payload,
            Event::Closed { reason, .. } => reason.as_bytes(),
        }
    }

    /// About how many bytes it takes while it waits.
    pub fn bytes(&self) -> usize {
        size_of::<Event>() + self.body().len()
    }
}

/// A conversation. The connection's task puts events in, and the function takes them.
pub struct Conversation {
    state: Mutex<State>,
    /// Wakes the function.
    came: Notify,
    /// Wakes the connection's task.
    taken: Notify,
    deadline: Arc<Deadline>,
    timeout: Duration,
}

struct State {
    events: VecDeque<Event>,
    bytes: usize,
    life: Life,
    /// Whether the function was told by an error that its connection has ended, or is being closed.
    told: bool,
    /// Number of events that the function has taken.
    received: u64,
    cpu: Budget,
    /// The CPU time that was used when the budget last began.
    cpu_before: Duration,
    log: Budget,
    sent: Budget,
    /// When what is open that others may wait for was begun, the oldest first, each with a number.
    works: VecDeque<(u64, Instant)>,
    last_work: u64,
    /// How much of that lasts from one call to another.
    holds: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The connection has ended, and the function has not.
    Closed,
    /// The function has ended.
    Over,
}

/// When a limit last began to count.
struct Budget {
    received: u64,
    since: Instant,
}

impl Budget {
    fn begin() -> Budget {
        Budget {
            received: 0,
            since: Instant::now(),
        }
    }

    /// Whether the limit counts anew: `received` events were taken by now, and it counts anew after `window` in any case.
    fn renewed(&mut self, received: u64, window: Duration) -> bool {
        let renewed = self.received != received || self.since.elapsed() >= window;
        if renewed {
            *self = Budget {
                received,
                since: Instant::now(),
            };
        }
        renewed
    }
}

/// What the function receives.
pub enum Taken {
    /// The next event.
    Event(Event),
    /// Nothing: the last event was taken before.
    Ended,
    /// Nothing, as long as the function holds a transaction or a pinned connection.
    Refused,
}

impl Conversation {
    /// A conversation that begins. `deadline`: that of its scope. `timeout`: the time limit of the view.
    pub fn begin(deadline: &Arc<Deadline>, timeout: Duration) -> Arc<Conversation> {
        deadline.restart(UNLIMITED);
        Arc::new(Conversation {
            state: Mutex::new(State {
                events: VecDeque::new(),
                bytes: 0,
                life: Life::Open,
                told: false,
                received: 0,
                cpu: Budget::begin(),
                cpu_before: Duration::ZERO,
                log: Budget::begin(),
                sent: Budget::begin(),
                works: VecDeque::new(),
                last_work: 0,
                holds: 0,
            }),
            came: Notify::new(),
            taken: Notify::new(),
            deadline: Arc::clone(deadline),
            timeout,
        })
    }

    /// Has an event wait for the function.
    pub fn put(&self, event: Event) {
        let mut state = self.state.lock();
        if state.life != Life::Open {
            return;
        }
        if let Event::Closed { .. } = event {
            state.life = Life::Closed;
            self.deadline.restart(self.timeout);
        }
        state.bytes += event.bytes();
        state.events.push_back(event);
        drop(state);
        // For all: with the last event, also those that will get none have waited long enough.
        self.came.notify_waiters();
    }

    /// How many events wait, and about how many bytes they take.
    pub fn waiting(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.events.len(), state.bytes)
    }

    /// Waits until the function has taken an event.
    pub async fn taken(&self) {
        self.taken.notified().await;
    }

    /// Takes the next event. `cpu`: the CPU time that the function has used so far.
    pub async fn take(&self, cpu: impl Fn() -> Duration) -> Taken {
        loop {
            let came = self.came.notified();
            {
                let mut state = self.state.lock();
                if state.holds > 0 {
                    return Taken::Refused;
                }
                if let Some(event) = state.events.pop_front() {
                    state.bytes -= event.bytes();
                    state.received += 1;
                    let received = state.received;
                    state.cpu.renewed(received, self.timeout);
                    state.cpu_before = cpu();
                    drop(state);
                    self.taken.notify_one();
                    return Taken::Event(event);
                }
                if state.life != Life::Open {
                    state.told = true;
                    return Taken::Ended;
                }
            }
            came.await;
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.state.lock().life != Life::Open
    }

    /// Notes that the function is told by an error that nothing can be sent any more.
    pub fn tell(&self) {
        self.state.lock().told = true;
    }

    /// Whether the function was told by an error that its connection has ended, or is being closed.
    pub fn was_told(&self) -> bool {
        self.state.lock().told
    }

    /// Notes that the function has ended: what waits for it is dropped.
    pub fn over(&self) {
        let mut state = self.state.lock();
        state.life = Life::Over;
        state.events = VecDeque::new();
        state.bytes = 0;
    }

    /// Whether CPU time is left, if `used` is used so far and `limit` is the budget.
    pub fn has_cpu(&self, used: Duration, limit: Duration) -> bool {
        let mut state = self.state.lock();
        if used.saturating_sub(state.cpu_before) < limit {
            return true;
        }
        let received = state.received;
        // After the end there is no other budget than the last one.
        let renewed = state.life == Life::Open && state.cpu.renewed(received, self.timeout);
        if renewed {
            state.cpu_before = used;
        }
        renewed
    }

    /// Whether what the function logs counts anew.
    pub fn renews_log(&self) -> bool {
        let mut state = self.state.lock();
        let received = state.received;
        state.log.renewed(received, self.timeout)
    }

    /// Whether what the function sends counts anew.
    pub fn renews_sent(&self) -> bool {
        let mut state = self.state.lock();
        let received = state.received;
        state.sent.renewed(received, SENT_WINDOW)
    }

    /// Notes that the function has something open that others may wait for, until the result is dropped. `holds`: whether it
    /// lasts from one call to another, as a transaction.
    pub fn works(self: &Arc<Self>, holds: bool) -> Works {
        let mut state = self.state.lock();
        state.last_work += 1;
        let number = state.last_work;
        state.works.push_back((number, Instant::now()));
        state.holds += usize::from(holds);
        if state.works.len() == 1 {
            self.set_deadline(&state);
        }
        Works {
            conversation: Arc::clone(self),
            number,
            holds,
        }
    }

    /// While the conversation goes on, the deadline is that of the oldest thing that is open.
    fn set_deadline(&self, state: &State) {
        if state.life == Life::Open {
            let oldest = state.works.front();
            let left = oldest.map(|(_, since)| self.timeout.saturating_sub(since.elapsed()));
            self.deadline.restart(left.unwrap_or(UNLIMITED));
        }
    }
}

/// Something that others may wait for, open until dropped.
pub struct Works {
    conversation: Arc<Conversation>,
    number: u64,
    holds: bool,
}

impl Drop for Works {
    fn drop(&mut self) {
        let mut state = self.conversation.state.lock();
        state.holds -= usize::from(self.holds);
        let at = state.works.iter().position(|work| work.0 == self.number);
        if let Some(at) = at {
            state.works.remove(at);
        }
        if at == Some(0) {
            self.conversation.set_deadline(&state);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::threads::deadline::Ended;

    const TIMEOUT: Duration = Duration::from_millis(200);

    fn begun() -> (Arc<Deadline>, Arc<Conversation>) {
        let deadline = Arc::new(Deadline::new(Instant::now() + TIMEOUT));
        let conversation = Conversation::begin(&deadline, TIMEOUT);
        (deadline, conversation)
    }

    fn message(text: &'static str) -> Event {
        Event::Message(Message::Text(Bytes::from_static(text.as_bytes())))
    }

    fn closed() -> Event {
        let reason = "bye".to_owned();
        Event::Closed { code: 1001, reason }
    }

    async fn next(conversation: &Conversation) -> Option<String> {
        match conversation.take(|| Duration::ZERO).await {
            Taken::Event(event) => Some(String::from_utf8_lossy(event.body()).into_owned()),
            Taken::Ended => None,
            Taken::Refused => Some("refused".to_owned()),
        }
    }

    #[tokio::test]
    async fn events_are_taken_in_order_and_the_end_last_and_once() {
        let (_, conversation) = begun();
        let waiting = tokio::spawn({
            let conversation = Arc::clone(&conversation);
            async move {
                tokio::join!(
                    next(&conversation),
                    next(&conversation),
                    next(&conversation)
                )
            }
        });
        tokio::task::yield_now().await;
        for event in [message("one"), closed(), message("after the end")] {
            conversation.put(event);
        }
        // Who is polled first is woken with the first event.
        let (one, other, another) = waiting.await.expect("it ends");
        let mut taken = [one, other, another];
        taken.sort();
        let taken = taken.each_ref().map(Option::as_deref);
        assert_eq!(taken, [None, Some("bye"), Some("one")]);
        assert_eq!(next(&conversation).await, None);
        assert_eq!(conversation.waiting(), (0, 0));
        conversation.over();
        conversation.put(message("nobody takes it"));
        assert_eq!(conversation.waiting(), (0, 0));
    }

    #[tokio::test]
    async fn cpu_time_counts_anew_with_events_and_time_but_not_after_the_end() {
        let (_, conversation) = begun();
        let ms = Duration::from_millis;
        let used = AtomicU64::new(0);
        let has = |now: u64| {
            used.store(now, Relaxed);
            conversation.has_cpu(ms(now), ms(10))
        };
        assert!(has(9) && !has(10) && !has(11));
        conversation.put(message("more"));
        assert!(!has(12), "it was not taken yet");
        conversation.take(|| ms(used.load(Relaxed))).await;
        assert!(has(12) && has(21) && !has(22));
        tokio::time::sleep(TIMEOUT).await;
        assert!(has(22) && has(31) && !has(32));
        conversation.put(closed());
        conversation.take(|| ms(used.load(Relaxed))).await;
        assert!(has(41) && !has(42));
        tokio::time::sleep(TIMEOUT).await;
        assert!(!has(42));
    }

    #[tokio::test]
    async fn what_is_open_is_open_for_the_time_limit_at_most() {
        let (deadline, conversation) = begun();
        assert!(deadline.remaining() > TIMEOUT * 1_000);
        let short = conversation.works(false);
        let long = conversation.works(true);
        assert!(deadline.remaining() <= TIMEOUT);
        assert_eq!(next(&conversation).await.as_deref(), Some("refused"));
        tokio::time::sleep(TIMEOUT / 2).await;
        let later = conversation.works(false);
        drop(short);
        assert!(
            deadline.remaining() <= TIMEOUT / 2,
            "that of the older one counts"
        );
        drop(long);
        assert!(
            deadline.remaining() > TIMEOUT / 2,
            "that of the younger one counts"
        );
        drop(later);
        assert!(deadline.remaining() > TIMEOUT * 1_000);
        let kept = conversation.works(false);
        assert_eq!(deadline.wait().await, Ended::TimedOut);
        drop(kept);
        conversation.put(closed());
        drop(conversation.works(true));
        assert!(
            deadline.remaining() <= TIMEOUT,
            "the end has a time limit, too"
        );
    }

    #[test]
    fn what_is_logged_and_sent_counts_anew_with_each_event() {
        let (_, conversation) = begun();
        assert!(!conversation.renews_log() && !conversation.renews_sent());
        conversation.state.lock().received += 1;
        assert!(conversation.renews_log() && conversation.renews_sent());
        assert!(!conversation.renews_log() && !conversation.renews_sent());
        std::thread::sleep(TIMEOUT);
        assert!(conversation.renews_log() && !conversation.renews_sent());
    }
}
