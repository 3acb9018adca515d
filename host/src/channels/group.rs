//! A group on this host: its members, its subscribers and its history.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::history::History;
use super::limits::{Refused, add, sub};
use super::nats::LINGER;
use super::remote::Link;
use super::{Hub, Payload, Receiver};

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

/// The records of groups.
impl Hub {
    /// Drops what is no longer needed: histories and, across hosts, subscriptions of groups without members. The host
    /// calls this about once a second; a hub that is connected to NATS does it itself.
    pub fn sweep(&self) {
        self.sweep_idle(self.limits.history_idle);
    }

    fn sweep_idle(&self, history_idle: Duration) {
        for group in self.all_groups() {
            self.sweep_group(&group, history_idle);
            self.release(&group);
        }
    }

    /// Drops the histories that nobody uses, when there is no room for another group: those whom one client has made must
    /// not keep others out. At most once in a second, as it looks at all groups.
    fn make_room(&self) {
        let mut made_room = self.made_room.lock();
        if made_room.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        *made_room = Some(Instant::now());
        drop(made_room);
        self.sweep_idle(Duration::ZERO);
    }

    fn sweep_group(&self, group: &Group, history_idle: Duration) {
        let mut state = group.state.lock();
        let state = &mut *state;
        if state.roster.count > 0 || state.subscribers() > 0 {
            state.idle_since = None;
            return;
        }
        state.channel = None;
        let idle = state.idle_since.get_or_insert_with(Instant::now).elapsed();
        if idle >= history_idle
            && let Some(history) = state.history.take()
        {
            sub(&self.counters.history_bytes, history.bytes() as u64);
        }
        if let Some(link) = &mut state.link
            && state.history.is_none()
            && link.wanted
            && !link.is_dirty()
            && idle >= LINGER
        {
            link.unsubscribe();
        }
    }

    pub(super) fn all_groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    /// Removes a group's record if nothing needs it any more.
    pub(super) fn release(&self, group: &Arc<Group>) {
        let needed = |state: &State| {
            let link = state.link.as_ref();
            state.gone || state.interested() || link.is_some_and(|link| link.is_needed())
        };
        if needed(&group.state.lock()) {
            return;
        }
        let mut groups = self.groups.write();
        let mut state = group.state.lock();
        if !needed(&state) {
            state.gone = true;
            groups.remove(&group.name);
            sub(&self.counters.groups, 1);
        }
    }

    /// Works on a group's state, with a new record if there is none.
    pub(super) fn with_group<R>(
        &self,
        name: &str,
        work: impl FnOnce(&Arc<Group>, &mut State) -> R,
    ) -> Result<R, Refused> {
        loop {
            let group = self.group(name)?;
            let mut state = group.state.lock();
            // The record was removed between finding and locking it.
            if !state.gone {
                return Ok(work(&group, &mut state));
            }
        }
    }

    /// As above, but a hub without NATS makes no record: without one, nobody here wants what is sent.
    pub(super) fn with_wanted<R>(
        &self,
        name: &str,
        work: impl FnOnce(&Arc<Group>, &mut State) -> R,
    ) -> Result<Option<R>, Refused> {
        if self.network.get().is_some() {
            return self.with_group(name, work).map(Some);
        }
        let group = self.groups.read().get(name).cloned();
        let Some(group) = group else {
            return Ok(None);
        };
        let mut state = group.state.lock();
        Ok((!state.gone).then(|| work(&group, &mut state)))
    }

    fn group(&self, name: &str) -> Result<Arc<Group>, Refused> {
        if let Some(group) = self.groups.read().get(name) {
            return Ok(Arc::clone(group));
        }
        let max = self.limits.groups_max;
        if self.groups.read().len() >= max {
            self.make_room();
        }
        let mut groups = self.groups.write();
        if let Some(group) = groups.get(name) {
            return Ok(Arc::clone(group));
        }
        if groups.len() >= max {
            return Err(self.refused(Refused::Full("groups_max", max)));
        }
        let name: Arc<str> = name.into();
        let group = Arc::new(Group {
            name: Arc::clone(&name),
            state: Mutex::default(),
        });
        groups.insert(name, Arc::clone(&group));
        add(&self.counters.groups, 1);
        Ok(group)
    }
}
