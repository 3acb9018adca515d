//! The last messages of a group, for event streams and polls whose clients come back.
//!
//! Each message that a host delivers gets a number, from one counter for all groups of the host. A cursor is the host's
//! id and such a number. A history has all messages of its group with a number above its `floor`, and nothing is known
//! of messages up to the floor. So a cursor below the floor, or one of another host, is answered with a gap: hosts get
//! the messages of different senders in different orders, and a number of one host says nothing about another host's
//! order.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::group::{Group, State};
use super::limits::{Refused, add, add_below, get, sub};
use super::{Hub, Payload};

/// About how many bytes a message in a history takes beside its payload.
const ENTRY_BYTES: usize = 160;

/// A position among the messages that a host has delivered. Its text is what clients keep (`Last-Event-ID`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub(super) host: u64,
    pub(super) sequence: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.host, self.sequence)
    }
}

/// A text that is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Cursor, NoCursor> {
        let (host, sequence) = text.split_once('-').ok_or(NoCursor)?;
        Ok(Cursor {
            host: hexadecimal(host)?,
            sequence: hexadecimal(sequence)?,
        })
    }
}

/// A number without the sign that `from_str_radix` would take.
fn hexadecimal(text: &str) -> Result<u64, NoCursor> {
    match text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => u64::from_str_radix(text, 16).map_err(|_| NoCursor),
        false => Err(NoCursor),
    }
}

/// The last messages of one group, the oldest first.
pub(super) struct History {
    entries: VecDeque<Arc<Payload>>,
    entries_max: usize,
    bytes: usize,
    /// All messages with a greater number are in `entries`.
    floor: u64,
    /// The number of the newest message at the time of the last use.
    pub(super) used: u64,
}

impl History {
    /// An empty history. `newest`: the number of the newest message of the host.
    pub(super) fn new(entries_max: usize, newest: u64) -> History {
        History {
            entries: VecDeque::new(),
            entries_max,
            bytes: 0,
            floor: newest,
            used: newest,
        }
    }

    /// The memory that the history takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a message and drops the oldest messages that are too many.
    pub(super) fn push(&mut self, payload: &Arc<Payload>, bytes_max: usize) {
        self.used = payload.cursor.sequence;
        self.bytes += cost(payload);
        self.entries.push_back(Arc::clone(payload));
        while self.entries.len() > self.entries_max || self.bytes > bytes_max {
            let Some(oldest) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= cost(&oldest);
            self.floor = oldest.cursor.sequence;
        }
    }

    /// Drops all messages.
    pub(super) fn clear(&mut self) {
        if let Some(newest) = self.entries.back() {
            self.floor = newest.cursor.sequence;
        }
        self.entries = VecDeque::new();
        self.bytes = 0;
    }

    /// The messages after the number, and whether others that followed the number are no longer there.
    pub(super) fn after(&self, sequence: u64) -> (VecDeque<Arc<Payload>>, bool) {
        let first = (self.entries).partition_point(|entry| entry.cursor.sequence <= sequence);
        let entries = self.entries.range(first..).cloned().collect();
        (entries, sequence < self.floor)
    }
}

impl Hub {
    /// Subscribes an event stream or a poll to a group. `after`: where its client has been before, by the cursor of the
    /// last message that it got. None: only messages that follow are wanted.
    ///
    /// # Errors
    /// When a limit is hit.
    pub fn subscribe(
        self: &Arc<Self>,
        group: &str,
        after: Option<Cursor>,
    ) -> Result<Subscription, Refused> {
        self.check(group, 0)?;
        let max = self.limits.subscribers_max;
        if add_below(&self.counters.subscribers, max).is_none() {
            return Err(self.refused(Refused::Full("subscribers_max", max)));
        }
        let subscription = self.with_group(group, |group, state| self.begin(group, state, after));
        subscription.inspect_err(|_| sub(&self.counters.subscribers, 1))
    }

    /// Begins a subscription. The state stays locked, so no message comes between the history and what follows.
    fn begin(
        self: &Arc<Self>,
        group: &Arc<Group>,
        state: &mut State,
        after: Option<Cursor>,
    ) -> Subscription {
        let newest = self.sequence.load(Ordering::Relaxed);
        if state.history.is_none() {
            let pattern = (self.histories.iter()).find(|(pattern, _)| pattern.matches(&group.name));
            state.history = pattern.map(|(_, messages)| History::new(*messages, newest));
        }
        state.idle_since = None;
        self.want(group, state);
        let here = |cursor: &Cursor| cursor.host == self.host && cursor.sequence <= newest;
        let (backlog, gap) = match (after, &mut state.history) {
            (None, _) => Default::default(),
            (Some(cursor), Some(history)) if here(&cursor) => {
                history.used = newest;
                history.after(cursor.sequence)
            }
            (Some(_), _) => (Default::default(), true),
        };
        let first = match after.filter(here) {
            Some(cursor) if !gap => cursor.sequence,
            _ if !backlog.is_empty() => backlog[0].cursor.sequence - 1,
            _ => newest,
        };
        let capacity = self.limits.subscription_queue_max.max(1);
        let channel = (state.channel).get_or_insert_with(|| broadcast::Sender::new(capacity));
        Subscription {
            gap,
            is_kept: state.history.is_some(),
            backlog,
            cursor: Cursor {
                host: self.host,
                sequence: first,
            },
            receiver: channel.subscribe(),
            place: Place {
                hub: Arc::clone(self),
                group: Arc::clone(group),
            },
        }
    }

    /// Empties the histories that were not used for longest, until a tenth of the limit is free: the work of sorting
    /// them pays for many messages.
    pub(super) fn empty_histories(&self) {
        let mut histories = Vec::new();
        for group in self.all_groups() {
            let used = group.state.lock().history.as_ref().map(|kept| kept.used);
            histories.extend(used.map(|used| (used, group)));
        }
        histories.sort_unstable_by_key(|(used, _)| *used);
        let enough = (self.limits.history_max_bytes / 10 * 9) as u64;
        for (_, group) in histories {
            if get(&self.counters.history_bytes) <= enough {
                return;
            }
            if let Some(history) = &mut group.state.lock().history
                && history.bytes() > 0
            {
                sub(&self.counters.history_bytes, history.bytes() as u64);
                history.clear();
                add(&self.counters.histories_dropped, 1);
            }
        }
    }
}

/// The memory of a message. A receiver may keep an encoded frame with it, which takes as much as the payload again.
fn cost(payload: &Payload) -> usize {
    2 * payload.bytes.len() + ENTRY_BYTES
}

/// What comes next in a subscription.
#[derive(Debug, Clone)]
pub enum Next {
    /// A message.
    Message(Arc<Payload>),
    /// So many messages were not delivered: the subscriber was too slow.
    Missed(u64),
    /// The hub has shut down.
    Ended,
}

/// The messages of a group, for an event stream or a poll. Dropping the subscription ends it.
pub struct Subscription {
    gap: bool,
    is_kept: bool,
    backlog: VecDeque<Arc<Payload>>,
    cursor: Cursor,
    // The fields are dropped in this order: `place` looks whether its group still has receivers.
    receiver: broadcast::Receiver<Arc<Payload>>,
    place: Place,
}

impl Subscription {
    /// Whether messages that followed the given cursor will not come: the history does not reach back so far, or the
    /// cursor is another host's.
    pub fn gap(&self) -> bool {
        self.gap
    }

    /// Whether the group has a history. Without one every cursor has a gap.
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Where to continue after the message that was returned last, or from the beginning of this subscription.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Waits for the next message. Dropping the future loses no message.
    pub async fn next(&mut self) -> Next {
        loop {
            if let Some(payload) = self.backlog.pop_front() {
                return self.message(payload);
            }
            let lagged = match self.receiver.recv().await {
                Ok(payload) => return self.message(payload),
                Err(RecvError::Lagged(missed)) => self.catch_up(missed),
                Err(RecvError::Closed) => return Next::Ended,
            };
            if let Some(missed) = lagged {
                return missed;
            }
        }
    }

    /// The next message, if there is one already.
    pub fn try_next(&mut self) -> Option<Next> {
        loop {
            if let Some(payload) = self.backlog.pop_front() {
                return Some(self.message(payload));
            }
            let lagged = match self.receiver.try_recv() {
                Ok(payload) => return Some(self.message(payload)),
                Err(TryRecvError::Lagged(missed)) => self.catch_up(missed),
                Err(TryRecvError::Closed) => return Some(Next::Ended),
                Err(TryRecvError::Empty) => return None,
            };
            if lagged.is_some() {
                return lagged;
            }
        }
    }

    fn message(&mut self, payload: Arc<Payload>) -> Next {
        self.cursor = payload.cursor;
        Next::Message(payload)
    }

    /// Goes on from the history when the queue has dropped `missed` messages: the history may reach further back. Returns
    /// what is missing all the same.
    fn catch_up(&mut self, mut missed: u64) -> Option<Next> {
        let state = self.place.group.state.lock();
        if let (Some(history), Some(channel)) = (&state.history, &state.channel) {
            // No message is sent while the state is locked, so queue and history end with the same one.
            let (kept, _) = history.after(self.cursor.sequence);
            let queued = self.receiver.len();
            if kept.len() > queued {
                missed = (missed + queued as u64).saturating_sub(kept.len() as u64);
                self.backlog = kept;
                self.receiver = channel.subscribe();
            }
        }
        drop(state);
        add(&self.place.hub.counters.missed_by_subscribers, missed);
        (missed > 0).then_some(Next::Missed(missed))
    }
}

/// One subscriber's place in a group. Dropping the place gives it back.
struct Place {
    hub: Arc<Hub>,
    group: Arc<Group>,
}

impl Drop for Place {
    fn drop(&mut self) {
        sub(&self.hub.counters.subscribers, 1);
        self.hub.release(&self.group);
    }
}
