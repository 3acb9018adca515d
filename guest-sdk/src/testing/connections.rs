//! The connections of the app in a test, and what views have sent to them.

use crate::bindings::amphi::view::channel_types::Member;
use crate::channels::Message;
use crate::host::{ChannelChange, MemberList};
use crate::socket::{Closed, Notice};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// All connections, by their ids.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// How many web sockets were opened.
    opened: usize,
    known: BTreeMap<String, Connection>,
    /// What was sent to groups and to single connections: the name of the group or the id, and the message.
    sent: Vec<(String, Message)>,
    notices: Vec<Notice>,
}

/// A connection. It stays here when it has ended, so that a test can look at what its client has received.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// The context values that its events have left.
    pub(super) values: HashMap<String, String>,
    pub(super) groups: BTreeSet<String>,
    pub(super) received: Vec<Message>,
    /// How a view has closed it.
    pub(super) closed: Option<Closed>,
    /// Whether it has ended, or the view has refused to open it.
    pub(super) ended: bool,
}

impl Connection {
    fn receive(&mut self, message: &Message) {
        if !self.ended && self.closed.is_none() {
            self.received.push(message.clone());
        }
    }

    /// Does what the connection's own view has asked for.
    fn apply(&mut self, change: ChannelChange) {
        match change {
            ChannelChange::SendToClient(message) => self.receive(&message),
            ChannelChange::Close(closed) => {
                self.closed.get_or_insert(closed);
            }
            ChannelChange::Join(group) => {
                self.groups.insert(group);
            }
            ChannelChange::Leave(group) => {
                self.groups.remove(&group);
            }
            ChannelChange::SendToGroup(..)
            | ChannelChange::SendToConnection(..)
            | ChannelChange::Notify(_) => unreachable!("`Connections::apply` has done this"),
        }
    }
}

impl Connections {
    /// Adds a web socket with these context values. Returns its id.
    pub(super) fn open(&mut self, values: HashMap<String, String>) -> String {
        self.opened += 1;
        let id = format!("connection-{}", self.opened);
        self.of(&id).values = values;
        id
    }

    /// The connection with this id.
    pub(super) fn of(&mut self, id: &str) -> &mut Connection {
        self.known.entry(id.to_owned()).or_default()
    }

    /// Ends a connection, and its memberships with it.
    pub(super) fn end(&mut self, id: &str) {
        let connection = self.of(id);
        connection.ended = true;
        connection.groups.clear();
    }

    /// Ends a connection that its view has refused: its client has received the response, and no message.
    pub(super) fn refuse(&mut self, id: &str) {
        self.end(id);
        self.of(id).received.clear();
    }

    pub(super) fn members(&self, group: &str) -> MemberList {
        let members = (self.known.iter()).filter(|(_, known)| known.groups.contains(group));
        let listed: Vec<Member> = members
            .map(|(id, known)| Member {
                connection: id.clone(),
                user: known.values.get(super::grants::USER).cloned(),
            })
            .collect();
        MemberList {
            count: listed.len() as u64,
            listed,
        }
    }

    /// What was sent to a group, or to the connection with this id.
    pub(super) fn sent_to(&self, name: &str) -> Vec<Message> {
        let sent = self.sent.iter().filter(|(to, _)| to == name);
        sent.map(|(_, message)| message.clone()).collect()
    }

    pub(super) fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Does what a view has asked for. `own` is the connection whose event the view handles.
    pub(super) fn apply(&mut self, own: Option<&str>, change: ChannelChange) {
        match change {
            ChannelChange::SendToGroup(group, message) => {
                for member in self.known.values_mut() {
                    if member.groups.contains(&group) {
                        member.receive(&message);
                    }
                }
                self.sent.push((group, message));
            }
            ChannelChange::SendToConnection(id, message) => {
                if let Some(known) = self.known.get_mut(&id) {
                    known.receive(&message);
                }
                self.sent.push((id, message));
            }
            ChannelChange::Notify(notice) => self.notices.push(notice),
            change => {
                let own = own.expect("only the view of a socket asks for this");
                self.of(own).apply(change);
            }
        }
    }
}
