//! A group on this host: its members, its subscribers and its history.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::history::History;
use super::remote::Link;
use super::{Payload, Receiver};

/// Members in one piece of a roster.
const CHUNK: usize = 128;

/// A group. A record exists while the group has members, subscribers or a history here, and shortly afterwards.
pub(super) struct Group {
    pub(super) name: Arc<str>,
    pub(super) state: Mutex<State>,
}

/// What changes of a group.
#[derive(Default)]
pub(super) struct State {
    /// The record has been removed from the hub's map: whoever still has it looks the group up again.
    pub(super) gone: bool,
    pub(super) roster: Roster,
    pub(super) history: Option<History>,
    /// Where subscribers get messages. None as long as there was no subscriber.
    pub(super) channel: Option<broadcast::Sender<Arc<Payload>>>,
    /// Since when the group has neither members nor subscribers.
    pub(super) idle_since: Option<Instant>,
    /// The group across hosts. None on a host without NATS.
    pub(super) link: Option<Box<Link>>,
}

impl State {
    /// Number of subscribers.
    pub(super) fn subscribers(&self) -> usize {
        (self.channel.as_ref()).map_or(0, broadcast::Sender::receiver_count)
    }

    /// Whether messages for the group are of use on this host.
    pub(super) fn interested(&self) -> bool {
        self.roster.count > 0 || self.subscribers() > 0 || self.history.is_some()
    }
}

/// A connection, with the groups that it is a member of.
///
/// Locks are taken in this order: a connection's groups, the hub's map of groups, a group's state, the queue to other
/// hosts. No lock is held while a receiver takes a message.
pub(super) struct Connection {
    pub(super) receiver: Arc<dyn Receiver>,
    /// None once the connection has ended: it joins no group afterwards.
    pub(super) groups: Mutex<Option<Vec<Membership>>>,
}

/// A connection's place in a group's roster.
pub(super) struct Membership {
    pub(super) group: Arc<Group>,
    pub(super) slot: u32,
}

/// A connection in the hub's set, found by its id.
pub(super) struct ById(pub(super) Arc<Connection>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.receiver.id()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.receiver.id().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.receiver.id() == other.0.receiver.id()
    }
}

impl Eq for ById {}

type Chunk = Arc<Vec<Option<Arc<Connection>>>>;

/// The members of a group that are connected to this host.
///
/// A snapshot shares the chunks. While a snapshot exists, a member who joins or leaves copies one chunk, so neither a
/// broadcast nor a mass of leaving members takes quadratic work. A member keeps one slot, so that it leaves without a
/// search; slots of members who left are filled again.
#[derive(Default)]
pub(super) struct Roster {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    pub(super) count: usize,
}

impl Roster {
    /// Adds a member and returns its slot.
    pub(super) fn add(&mut self, connection: &Arc<Connection>) -> u32 {
        let connection = Some(Arc::clone(connection));
        self.count += 1;
        if let Some(slot) = self.free.pop() {
            let (chunk, at) = position(slot);
            Arc::make_mut(&mut self.chunks[chunk])[at] = connection;
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Chunk::default());
        }
        let chunk = self.chunks.len() - 1;
        let last = Arc::make_mut(&mut self.chunks[chunk]);
        last.push(connection);
        u32::try_from(chunk * CHUNK + last.len() - 1).expect("fewer than 4 billion connections")
    }

    /// Empties the slot of a member.
    pub(super) fn remove(&mut self, slot: u32) {
        let (chunk, at) = position(slot);
        Arc::make_mut(&mut self.chunks[chunk])[at] = None;
        self.free.push(slot);
        self.count -= 1;
        if self.count == 0 {
            *self = Roster::default();
        }
    }

    /// The members as they are now.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot(self.chunks.clone())
    }

    /// The members as they are now.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).flatten()
    }
}

/// The members of a group at one time.
#[derive(Default)]
pub(super) struct Snapshot(Vec<Chunk>);

impl Snapshot {
    /// The receivers of the members.
    pub(super) fn receivers(&self) -> impl Iterator<Item = &Arc<dyn Receiver>> {
        let connections = self.0.iter().flat_map(|chunk| chunk.iter()).flatten();
        connections.map(|connection| &connection.receiver)
    }
}

fn position(slot: u32) -> (usize, usize) {
    let slot = slot as usize;
    (slot / CHUNK, slot % CHUNK)
}
