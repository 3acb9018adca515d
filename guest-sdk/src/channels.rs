//! Groups of connections: what any view can send to the clients of the app.

use crate::bindings::amphi::view::channel_types as raw;
use crate::host::Host;
use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

/// What [`Context::channels`](crate::Context::channels) returns: messages to the app's connections. With `nats` in
/// `[channels]` of `amphi.toml`, these are the connections of all hosts of the app. A web socket joins groups with
/// [`cx.socket().join(…)`](crate::socket::SocketHandle::join); an [`EventStream`](crate::EventStream) or
/// [`Poll`](crate::Poll) listens to one group.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/rooms/{room}/messages")]
/// fn say(cx: &Context, Path(room): Path<String>, Body(text): Body) -> Result<String> {
///     let group = format!("room.{room}");
///     cx.channels().send(&group, String::from_utf8(text)?)?;
///     Ok(format!("{} are here", cx.channels().members(&group)?.count))
/// }
/// # use amphi_sdk::testing::{App, post};
/// # let app = App::new().member("room.7", "c1", Some("ann"));
/// # assert_eq!(app.call::<say>(post("/rooms/7/messages").with_body("Hi")).text(), "1 are here");
/// # assert_eq!(app.sent_to("room.7"), [Message::text("Hi")]);
/// ```
///
/// What is sent in a transaction leaves with the commit. A rollback discards it. No call waits, so both modes have the same
/// calls, without `.await`. A group has a name of words of letters, digits, `-` and `_`, with dots between them:
/// `room.7`. The module needs a grant for the groups that it uses: `channels = ["room.*"]` in its table in `amphi.toml`.
/// `payload_max_bytes` of `[channels]` limits a message (64 KiB), and `events_max` how many a request sends.
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    host: &'a Host,
}

impl<'a> Channels<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host }
    }

    /// Sends a message to the clients of all members of a group. No view is called.
    ///
    /// # Errors
    /// When the module has no grant for the group, the name is not valid, the message is too large, or a limit on messages
    /// is reached.
    pub fn send(self, group: impl AsRef<str>, message: impl Into<Message>) -> Result<()> {
        (self.host)
            .send_to_group(group.as_ref(), message.into())
            .map_err(Error::from_channel)
    }

    /// Sends a message to the client of one connection, whose id [`SocketHandle::id`](crate::socket::SocketHandle::id) or a [`Member`]
    /// has given. It is no error when the connection has ended.
    ///
    /// # Errors
    /// When the message is too large, or a limit on messages is reached.
    pub fn send_to(self, connection: impl AsRef<str>, message: impl Into<Message>) -> Result<()> {
        (self.host)
            .send_to_connection(connection.as_ref(), message.into())
            .map_err(Error::from_channel)
    }

    /// Calls the view of each web socket in the group with [`SocketEvent::Notice`](crate::SocketEvent::Notice). The notice
    /// has this payload as JSON. Use this when each client gets something else; when all get the same,
    /// [`send`](Self::send) costs less.
    ///
    /// # Errors
    /// When the payload cannot be serialized, and as [`send`](Self::send).
    pub fn notify<T: Serialize + ?Sized>(self, group: impl AsRef<str>, payload: &T) -> Result<()> {
        self.notify_bytes(group, &serde_json::to_vec(payload)?)
    }

    /// Like [`notify`](Self::notify), with these bytes as the payload.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn notify_bytes(self, group: impl AsRef<str>, payload: &[u8]) -> Result<()> {
        (self.host)
            .notify(group.as_ref(), payload)
            .map_err(Error::from_channel)
    }

    /// The connections in a group. Those of other hosts are listed as this host has last heard of them.
    ///
    /// # Errors
    /// When the module has no grant for the group, or the name is not valid.
    pub fn members(self, group: impl AsRef<str>) -> Result<Members> {
        let members = (self.host).members(group.as_ref());
        members.map(Members::from).map_err(Error::from_channel)
    }
}

/// The connections in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The members. Of a large group, these are as many as the host lists at most.
    pub list: Vec<Member>,
    /// How many there are.
    pub count: u64,
}

/// A connection in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The id of the connection, for [`Channels::send_to`].
    pub connection: String,
    /// The context value `user` of the connection, which built-in middleware sets, or the one that `member_value` of
    /// `[channels]` in amphi.toml names.
    pub user: Option<String>,
}

impl From<raw::MemberList> for Members {
    fn from(members: raw::MemberList) -> Self {
        let list = members.listed.into_iter();
        Self {
            list: list
                .map(|raw::Member { connection, user }| Member { connection, user })
                .collect(),
            count: members.count,
        }
    }
}

/// A message to a client, or from the client of a web socket.
///
/// ```
/// use amphi_sdk::Message;
///
/// # fn main() -> amphi_sdk::Result<()> {
/// let message = Message::of_json(&[1, 2])?;
/// assert_eq!(message, Message::text("[1,2]"));
/// assert_eq!(message.json::<Vec<u8>>()?, [1, 2]);
/// assert_eq!(Message::from(vec![0]).as_text(), None);
/// # Ok(())
/// # }
/// ```
///
/// An event stream and a poll carry text alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Message {
    /// A message of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A message of bytes.
    pub fn binary(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Binary(bytes.into())
    }

    /// The value as JSON, in a message of text.
    ///
    /// # Errors
    /// When the value cannot be serialized.
    pub fn of_json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::Text(serde_json::to_string(value)?))
    }

    /// The text. `None` when the message is of bytes.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(_) => None,
        }
    }

    /// The bytes of the message, or of its text.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The message, read as JSON.
    ///
    /// # Errors
    /// 400 when the message is not valid JSON, and 422 when it does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.as_bytes()).map_err(|error| match error.classify() {
            Category::Data => Error::unprocessable(format!("the message does not fit: {error}")),
            Category::Syntax | Category::Eof | Category::Io => {
                Error::bad_request(format!("the message is not valid JSON: {error}"))
            }
        })
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Vec<u8>> for Message {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Binary(bytes)
    }
}

#[cfg(target_arch = "wasm32")]
impl From<raw::Message> for Message {
    fn from(message: raw::Message) -> Self {
        match message {
            raw::Message::Text(text) => Self::Text(text),
            raw::Message::Binary(bytes) => Self::Binary(bytes),
        }
    }
}

impl From<Message> for raw::Message {
    fn from(message: Message) -> Self {
        match message {
            Message::Text(text) => Self::Text(text),
            Message::Binary(bytes) => Self::Binary(bytes),
        }
    }
}
