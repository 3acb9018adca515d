//! Groups of connections that live in the host, on this host and across hosts.
//!
//! The hub knows connections by their [`Receiver`], and which groups each is a member of. A message to a group goes to
//! the receivers of this host's members, to this host's subscribers (event streams and polls), and by NATS to the other
//! hosts that have members or subscribers of the group.
//!
//! What is promised: messages of one sender to one group come in order. Between hosts a message comes at most once. A
//! message that another host may not have got is counted and logged, by the sender if it knows, and by the receiving
//! host when it finds a number missing. A membership ends with its connection; when a host dies, the others forget its
//! members within 10 seconds.
//!
//! What is not promised: a member who leaves while another thread sends may still get that message. Members of
//! different hosts may get the messages of different senders in different orders.
//!
//! - `group.rs`: a group on this host. `history.rs`: its last messages, cursors and subscriptions.
//! - `remote.rs`: what a group knows of other hosts, without any network. `wire.rs`: messages between hosts as bytes.
//! - `presence.rs`: the members of all hosts. `exchange.rs`: what a host says to others. `hearing.rs`: what a host does
//!   with what others say. `report.rs`: what is logged of losses.
//! - `nats.rs`: the connection to NATS and the queue of what is to be sent. Callers never wait for the network.

mod exchange;
mod group;
mod hearing;
mod history;
mod limits;
mod nats;
mod presence;
mod remote;
mod report;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::group::{ById, Connection, Group, Membership, Snapshot, State};
pub use self::history::{Cursor, Next, NoCursor, Subscription};
pub use self::limits::{Counters, Limits, Pattern, Refused, matches};
use self::limits::{add, get, sub};
use self::nats::Network;
pub use self::nats::{NatsConfig, options};
pub use self::presence::{Member, Members};
use self::wire::{Change, Kind};
use crate::http::websocket::Encoded;

/// Bytes of a member's user that are told. So the listed members of a group fit into one message of NATS.
const USER_MAX_BYTES: usize = 256;
/// The greatest `members_listed_max`, for the same reason.
const LISTED_MAX: usize = 2_000;

/// A connection as the hub sees it. Its methods must not panic: a panic would end the delivery to its group.
pub trait Receiver: Send + Sync {
    /// The connection's id, from [`Hub::new_id`]. Always the same. Called while the hub holds locks: the method must
    /// not call the hub.
    fn id(&self) -> &str;
    /// What [`Hub::members`] tells of the connection's user. More than 256 bytes are cut. Called while the hub holds
    /// locks: the method must not call the hub.
    fn user(&self) -> Option<String>;
    /// Takes a message for the client. Must not block: the receiver bounds its own queue. May call the hub.
    fn message(&self, message: &Arc<Payload>);
    /// Takes an event for the connection's view, as above.
    fn notice(&self, group: &str, payload: &Bytes);
}

/// A message, which all its receivers share.
#[derive(Debug)]
pub struct Payload {
    /// Text, which is then UTF-8, or binary.
    pub text: bool,
    /// The message itself.
    pub bytes: Bytes,
    /// Where the message stands among those that this host has delivered.
    pub cursor: Cursor,
    /// The message as receivers send it to their clients. The first receiver that encodes it leaves the result here for
    /// all others.
    pub frame: OnceLock<Encoded>,
}

/// All connections of a host, and their groups.
pub struct Hub {
    /// Made anew at each start of a host.
    host: u64,
    started: Instant,
    limits: Limits,
    histories: Vec<(Pattern, usize)>,
    counters: Counters,
    connections: RwLock<HashSet<ById>>,
    groups: RwLock<HashMap<Arc<str>, Arc<Group>>>,
    /// The number of the newest message.
    sequence: AtomicU64,
    network: OnceLock<Arc<Network>>,
    /// What the NATS server has complained of since the last report.
    server_error: Mutex<Option<String>>,
    /// When unused histories were last dropped to make room for another group.
    made_room: Mutex<Option<Instant>>,
}

/// A connection that the hub knows. Dropping this ends all its memberships.
pub struct Attachment {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
}

impl Attachment {
    /// Makes the connection a member of a group. It may be one already.
    ///
    /// # Errors
    /// When a limit is hit.
    pub fn join(&self, group: &str) -> Result<(), Refused> {
        self.hub.join_connection(&self.connection, group)
    }

    /// Ends the connection's membership in a group.
    pub fn leave(&self, group: &str) {
        self.hub.leave_connection(&self.connection, group);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.hub.detach(&self.connection);
    }
}

impl Hub {
    /// A hub without connections. `histories`: for the groups of each pattern, how many messages their histories keep;
    /// the first pattern that matches counts.
    pub fn new(mut limits: Limits, histories: Vec<(Pattern, usize)>) -> Arc<Hub> {
        limits.members_listed_max = limits.members_listed_max.min(LISTED_MAX);
        Arc::new(Hub {
            host: random(),
            started: Instant::now(),
            limits,
            histories,
            counters: Counters::default(),
            connections: RwLock::default(),
            groups: RwLock::default(),
            sequence: AtomicU64::new(0),
            network: OnceLock::new(),
            server_error: Mutex::default(),
            made_room: Mutex::default(),
        })
    }

    /// The id of this host: 16 hexadecimal digits, others at each start.
    pub fn host(&self) -> String {
        shown(self.host)
    }

    /// A new id for a connection. It names the host, so that every host knows where to send a message for the
    /// connection.
    pub fn new_id(&self) -> String {
        format!("{:016x}-{:016x}", self.host, random())
    }

    /// The most bytes of a message or notice.
    pub fn payload_max_bytes(&self) -> usize {
        self.limits.payload_max_bytes
    }

    /// What the hub has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Makes a connection known. Its membership ends when the attachment is dropped.
    ///
    /// # Errors
    /// When there is a connection with the same id.
    pub fn attach(self: &Arc<Self>, receiver: Arc<dyn Receiver>) -> Result<Attachment, Refused> {
        let connection = Arc::new(Connection {
            receiver,
            groups: Mutex::new(Some(Vec::new())),
        });
        if !(self.connections.write()).insert(ById(Arc::clone(&connection))) {
            return Err(self.refused(Refused::Full("connections with this id", 1)));
        }
        add(&self.counters.connections, 1);
        Ok(Attachment {
            hub: Arc::clone(self),
            connection,
        })
    }

    fn detach(&self, connection: &Arc<Connection>) {
        // From here on nobody finds the connection, and `join_connection` refuses it.
        self.connections.write().remove(connection.receiver.id());
        let joined = connection.groups.lock().take();
        for membership in joined.into_iter().flatten() {
            self.end(&membership, connection);
        }
        sub(&self.counters.connections, 1);
    }

    /// Makes a connection of this host a member of a group. It may be one already.
    ///
    /// # Errors
    /// When the connection has ended, or a limit is hit.
    pub fn join(&self, group: &str, id: &str) -> Result<(), Refused> {
        let connection = self.connection(id).ok_or(Refused::Ended)?;
        self.join_connection(&connection, group)
    }

    /// Ends the membership of a connection of this host in a group.
    pub fn leave(&self, group: &str, id: &str) {
        if let Some(connection) = self.connection(id) {
            self.leave_connection(&connection, group);
        }
    }

    fn connection(&self, id: &str) -> Option<Arc<Connection>> {
        let connections = self.connections.read();
        connections.get(id).map(|found| Arc::clone(&found.0))
    }

    fn join_connection(&self, connection: &Arc<Connection>, name: &str) -> Result<(), Refused> {
        self.check(name, 0)?;
        // The list is locked until the membership stands in it, so that `detach` misses none.
        let mut joined = connection.groups.lock();
        let joined = joined.as_mut().ok_or(Refused::Ended)?;
        if joined.iter().any(|other| *other.group.name == *name) {
            return Ok(());
        }
        let max = self.limits.groups_per_connection_max;
        if joined.len() >= max {
            return Err(self.refused(Refused::Full("groups_per_connection_max", max)));
        }
        let membership = self.with_group(name, |group, state| {
            let slot = state.roster.add(connection);
            state.idle_since = None;
            self.member_changed(group, state, || joined_change(connection));
            Membership {
                group: Arc::clone(group),
                slot,
            }
        })?;
        if joined.len() < 4 {
            // Most connections are in one group or two: their lists take no more than they need.
            joined.reserve_exact(1);
        }
        joined.push(membership);
        add(&self.counters.memberships, 1);
        Ok(())
    }

    fn leave_connection(&self, connection: &Arc<Connection>, name: &str) {
        let mut joined = connection.groups.lock();
        let Some(joined) = joined.as_mut() else {
            return;
        };
        if let Some(at) = joined.iter().position(|other| *other.group.name == *name) {
            let membership = joined.swap_remove(at);
            self.end(&membership, connection);
        }
    }

    fn end(&self, membership: &Membership, connection: &Arc<Connection>) {
        let mut state = membership.group.state.lock();
        state.roster.remove(membership.slot);
        let left = || Change::Left(connection.receiver.id().into());
        self.member_changed(&membership.group, &mut state, left);
        drop(state);
        sub(&self.counters.memberships, 1);
        self.release(&membership.group);
    }

    /// Sends a message to the clients of a group's members, on all hosts. The receivers of this host have taken the
    /// message on return.
    ///
    /// # Errors
    /// When the message is too large, or there are too many groups.
    pub fn send(&self, group: &str, text: bool, bytes: Bytes) -> Result<(), Refused> {
        self.check(group, bytes.len())?;
        let delivery = self.with_wanted(group, |group, state| {
            let kind = if text { Kind::Text } else { Kind::Binary };
            self.publish(group, state, kind, &bytes);
            self.record(state, text, bytes.clone())
        })?;
        self.deliver(delivery);
        Ok(())
    }

    /// Sends an event to the views of a group's members, on all hosts, as above.
    ///
    /// # Errors
    /// When the payload is too large, or there are too many groups.
    pub fn notify(&self, group: &str, payload: Bytes) -> Result<(), Refused> {
        self.check(group, payload.len())?;
        let members = self.with_wanted(group, |group, state| {
            self.publish(group, state, Kind::Notice, &payload);
            state.roster.snapshot()
        })?;
        for receiver in members.iter().flat_map(Snapshot::receivers) {
            receiver.notice(group, &payload);
        }
        Ok(())
    }

    /// Sends a message to the client of one connection, on whichever host it is. False: neither this host nor another
    /// one that is heard has the connection. True does not say that the client gets the message.
    ///
    /// # Errors
    /// When the message is too large.
    pub fn send_to(&self, id: &str, text: bool, bytes: Bytes) -> Result<bool, Refused> {
        self.check_size(bytes.len())?;
        if let Some(connection) = self.connection(id) {
            connection.receiver.message(&self.payload(text, bytes));
            return Ok(true);
        }
        let host = id.split_once('-').map(|(host, _)| host);
        let host = host.and_then(|host| u64::from_str_radix(host, 16).ok());
        let elsewhere = host.filter(|host| *host != self.host);
        let reached = elsewhere.is_some_and(|host| self.send_to_host(host, id, text, &bytes));
        if !reached {
            add(&self.counters.undeliverable, 1);
        }
        Ok(reached)
    }

    fn payload(&self, text: bool, bytes: Bytes) -> Arc<Payload> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Payload {
            text,
            bytes,
            cursor: Cursor {
                host: self.host,
                sequence,
            },
            frame: OnceLock::new(),
        })
    }

    /// Puts a message into the group's history and to its subscribers, and returns who else is to get the message. The
    /// message is numbered while the state is locked, so numbers rise in the order of the history.
    fn record(&self, state: &mut State, text: bool, bytes: Bytes) -> (Arc<Payload>, Snapshot) {
        let payload = self.payload(text, bytes);
        if let Some(history) = &mut state.history {
            let before = history.bytes() as u64;
            history.push(&payload, self.limits.history_group_max_bytes);
            add(&self.counters.history_bytes, history.bytes() as u64);
            sub(&self.counters.history_bytes, before);
        }
        if let Some(channel) = &state.channel {
            // Sending fails when all subscribers have gone, who then need nothing.
            let _ = channel.send(Arc::clone(&payload));
        }
        (payload, state.roster.snapshot())
    }

    /// Gives a message to its receivers. No lock is held: a receiver may call the hub.
    fn deliver(&self, delivery: Option<(Arc<Payload>, Snapshot)>) {
        if let Some((payload, members)) = delivery {
            for receiver in members.receivers() {
                receiver.message(&payload);
            }
        }
        if get(&self.counters.history_bytes) > self.limits.history_max_bytes as u64 {
            self.empty_histories();
        }
    }

    fn check(&self, group: &str, bytes: usize) -> Result<(), Refused> {
        let max = self.limits.group_name_max_bytes;
        if group.is_empty() || group.len() > max {
            return Err(self.refused(Refused::Name(max)));
        }
        self.check_size(bytes)
    }

    fn check_size(&self, bytes: usize) -> Result<(), Refused> {
        let max = self.limits.payload_max_bytes;
        if bytes > max {
            return Err(self.refused(Refused::TooLarge(bytes, max)));
        }
        Ok(())
    }

    fn refused(&self, why: Refused) -> Refused {
        add(&self.counters.refused, 1);
        why
    }
}

/// What other hosts are told of a member.
fn joined_change(connection: &Connection) -> Change {
    let user = connection.receiver.user().map(|mut user| {
        user.truncate(user.floor_char_boundary(USER_MAX_BYTES));
        user.into_boxed_str()
    });
    Change::Joined(connection.receiver.id().into(), user)
}

fn shown(host: u64) -> String {
    format!("{host:016x}")
}

/// A random number: a hash with keys that the standard library takes from the system's random numbers, other keys each
/// time.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}
