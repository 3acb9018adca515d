//! What a hub may use at most, what it has used so far, and what it answers when a limit is hit.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a hub may use at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Groups that this host has members or subscribers of, or has sent to in the last seconds.
    pub groups_max: usize,
    /// Groups that one connection is a member of.
    pub groups_per_connection_max: usize,
    /// Bytes of a group's name.
    pub group_name_max_bytes: usize,
    /// Bytes of a message or of the payload of a notice.
    pub payload_max_bytes: usize,
    /// Members that [`Hub::members`](super::Hub::members) lists for each host, 2,000 at most. They are
    /// counted without a limit.
    pub members_listed_max: usize,
    /// Event streams and polls that are subscribed, of all groups.
    pub subscribers_max: usize,
    /// Messages that wait for one subscriber. A slower subscriber goes on from the history, and is told how many it missed
    /// of which the history has none any more.
    pub subscription_queue_max: usize,
    /// Memory of one group's history.
    pub history_group_max_bytes: usize,
    /// Memory of all histories.
    pub history_max_bytes: usize,
    /// How long a history is kept after its group's last member and subscriber are gone.
    pub history_idle: Duration,
    /// Messages that wait to be sent to other hosts.
    pub outgoing_max: usize,
    /// Bytes of such messages.
    pub outgoing_max_bytes: usize,
    /// Messages of one group that have come from other hosts and wait to be delivered.
    pub incoming_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            groups_max: 100_000,
            groups_per_connection_max: 100,
            group_name_max_bytes: 200,
            payload_max_bytes: 64 << 10,
            members_listed_max: 1_000,
            subscribers_max: 100_000,
            subscription_queue_max: 64,
            history_group_max_bytes: 1 << 20,
            history_max_bytes: 64 << 20,
            history_idle: Duration::from_secs(60),
            outgoing_max: 10_000,
            outgoing_max_bytes: 32 << 20,
            incoming_max: 4_096,
        }
    }
}

/// Why the hub refused a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The connection has ended, or is not one of this host's.
    Ended,
    /// The group's name is empty or has more bytes than `group_name_max_bytes`.
    Name(usize),
    /// The payload has more bytes than `payload_max_bytes`: how many it has, and the limit.
    TooLarge(usize, usize),
    /// As many as a limit allows are there: the limit's name and its value.
    Full(&'static str, usize),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Ended => write!(f, "the connection has ended"),
            Refused::Name(max) => {
                write!(f, "the name of a group has between 1 and {max} bytes")
            }
            Refused::TooLarge(bytes, max) => {
                write!(f, "the message has {bytes} bytes: {max} are allowed")
            }
            Refused::Full(limit, max) => write!(f, "`{limit}` allows {max}, which are there"),
        }
    }
}

impl std::error::Error for Refused {}

/// What the hub has done since it began. The host exports these numbers as metrics.
#[derive(Debug, Default)]
pub struct Counters {
    /// Gauge: groups with a record on this host.
    pub groups: AtomicU64,
    /// Gauge: connections.
    pub connections: AtomicU64,
    /// Gauge: memberships of connections in groups.
    pub memberships: AtomicU64,
    /// Gauge: subscribed event streams and polls.
    pub subscribers: AtomicU64,
    /// Gauge: memory of all histories.
    pub history_bytes: AtomicU64,
    /// Gauge: other hosts that are heard.
    pub hosts: AtomicU64,
    /// Calls that a limit refused.
    pub refused: AtomicU64,
    /// Histories that were emptied because all histories together took too much memory.
    pub histories_dropped: AtomicU64,
    /// Messages that subscribers missed because they were too slow.
    pub missed_by_subscribers: AtomicU64,
    /// Messages that were handed to NATS.
    pub sent: AtomicU64,
    /// Messages that came from other hosts.
    pub received: AtomicU64,
    /// Messages that were not sent to other hosts because too many waited.
    pub lost_queue_full: AtomicU64,
    /// Messages that were not sent to other hosts because there was no connection to NATS.
    pub lost_disconnected: AtomicU64,
    /// Messages that the NATS client did not take in time, or refused.
    pub lost_failed: AtomicU64,
    /// Messages that were handed to NATS shortly before the connection broke: they may have been lost.
    pub unsure: AtomicU64,
    /// Messages and announcements of other hosts that did not arrive here, by their numbers.
    pub gaps: AtomicU64,
    /// Messages that came for a connection that had ended.
    pub undeliverable: AtomicU64,
    /// Messages of other hosts that this host could not read.
    pub malformed: AtomicU64,
    /// How often the NATS client dropped a message because a group's messages were not read fast enough.
    pub slow_consumer: AtomicU64,
    /// How often the connection to NATS was made again.
    pub reconnects: AtomicU64,
}

impl Counters {
    /// All numbers, by name.
    pub fn all(&self) -> [(&'static str, u64); 20] {
        [
            ("groups", get(&self.groups)),
            ("connections", get(&self.connections)),
            ("memberships", get(&self.memberships)),
            ("subscribers", get(&self.subscribers)),
            ("history_bytes", get(&self.history_bytes)),
            ("hosts", get(&self.hosts)),
            ("refused", get(&self.refused)),
            ("histories_dropped", get(&self.histories_dropped)),
            ("missed_by_subscribers", get(&self.missed_by_subscribers)),
            ("sent", get(&self.sent)),
            ("received", get(&self.received)),
            ("lost_queue_full", get(&self.lost_queue_full)),
            ("lost_disconnected", get(&self.lost_disconnected)),
            ("lost_failed", get(&self.lost_failed)),
            ("unsure", get(&self.unsure)),
            ("gaps", get(&self.gaps)),
            ("undeliverable", get(&self.undeliverable)),
            ("malformed", get(&self.malformed)),
            ("slow_consumer", get(&self.slow_consumer)),
            ("reconnects", get(&self.reconnects)),
        ]
    }
}

/// Adds to a counter or a gauge.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Subtracts from a gauge.
pub(super) fn sub(gauge: &AtomicU64, n: u64) {
    gauge.fetch_sub(n, Ordering::Relaxed);
}

/// The value of a counter or a gauge.
pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Adds one to a gauge that stays at or below `max`.
pub(super) fn add_below(gauge: &AtomicU64, max: usize) -> Option<()> {
    let more = |value| (value < max as u64).then_some(value + 1);
    let added = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    added.ok().map(drop)
}

/// The name of a group, or all groups whose names begin alike: `room.7`, `room.*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern. Every text is one: a text that is neither `*` nor ends with `.*` is the name of one group.
    pub fn new(text: &str) -> Pattern {
        Pattern(text.to_owned())
    }

    /// Whether the pattern means `group`.
    pub fn matches(&self, group: &str) -> bool {
        matches(&self.0, group)
    }
}

/// Whether `pattern` means `group`, as the topics of a subscriber mean an event's topic: `room.*` means `room.7` and
/// `room.7.staff`, but not `room`.
pub fn matches(pattern: &str, group: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) if beginning.is_empty() || beginning.ends_with('.') => {
            group.starts_with(beginning) && group.len() > beginning.len()
        }
        _ => pattern == group,
    }
}
