//! Web sockets: functions that the host calls for each event of a connection.
//!
//! Between two events, a connection has nothing of the guest's: no instance, no transaction. What one event leaves for the
//! next one is in a database or in the context values of the connection.

use crate::channels::Message;
use crate::extract::{BodyUse, query_value};
use crate::host::Host;
use crate::mode::Mode;
use crate::{Context, Error, FromRequest, Headers, Request, Result};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::rc::Rc;

/// The header by which a client offers subprotocols, and by which the response names the one that was chosen.
pub(crate) const SUBPROTOCOL: &str = "sec-websocket-protocol";

/// An event of a web socket: the last parameter of a function with [`socket`](macro@crate::socket).
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[socket("/chat/{room}")]
/// fn chat(cx: &Context, Path(room): Path<String>, event: SocketEvent) -> Result<()> {
///     let group = format!("room.{room}");
///     match event {
///         SocketEvent::Opened(opening) => {
///             let name = opening.query("name").ok_or_else(|| Error::bad_request("who are you?"))?;
///             cx.set("name", &name)?;
///             cx.socket().join(&group)?;
///         }
///         SocketEvent::Message(message) => {
///             let name = cx.get("name").unwrap_or_default();
///             let text = message.as_text().ok_or_else(|| Error::bad_request("write text"))?;
///             cx.db().execute("insert into messages (room, text) values ($1, $2)", (&room, text))?;
///             cx.channels().send(&group, format!("{name}: {text}"))?;
///         }
///         SocketEvent::Notice(notice) => cx.socket().send(notice.json::<String>()?)?,
///         SocketEvent::Closed(closed) => log::info!("gone", code = closed.code),
///     }
///     Ok(())
/// }
///
/// views![chat];
///
/// # #[cfg(not(test))] fn main() {
/// use amphi_sdk::testing::App;
///
/// let app = App::new().execute_batch("create table messages (room text, text text)");
/// let (mut ann, mut bob) = (app.socket::<chat>("/chat/7?name=Ann"), app.socket::<chat>("/chat/7?name=Bob"));
/// ann.send("Hi");
/// bob.notice("room.7", "the room closes soon");
/// assert_eq!(bob.received(), [Message::text("Ann: Hi"), Message::text("the room closes soon")]);
/// assert_eq!(app.query::<String>("select text from messages", ()), ["Hi"]);
/// # assert_eq!(app.sent_to("room.7"), [Message::text("Ann: Hi")]);
/// # assert_eq!(app.socket::<chat>("/chat/7").response().status().as_u16(), 400);
/// # ann.closed(1001, "");
/// # assert_eq!(app.logs()[0].message, "gone");
/// # }
/// ```
///
/// The events of one connection come one at a time, in order, each as a request of its own, in a transaction of its own
/// (unless the attribute says `atomic = false`). When an event fails, its transaction is rolled back, and what it has sent,
/// joined, left or closed is discarded. The log has the error, and the connection goes on: tell the client with a message,
/// or close the connection, where it has to know.
///
/// # What other extractors see
///
/// | | when it opens | later |
/// |---|---|---|
/// | `Path` | the parameters of the path | the same |
/// | `cx.get("name")` | what middleware has set | also what earlier events have set, if they succeeded |
/// | `Query`, `Headers`, `Cookies` | those of the client's request | nothing: take `Option<Query<T>>` |
/// | `Session` | the session; changes go to the browser with the handshake | an empty one. A change is an error, since no response carries the cookie |
///
/// An extractor that asks who the user is therefore belongs in an `Option`, and the opening keeps what later events need
/// with `cx.set(…)`.
#[derive(Clone, Debug)]
pub enum SocketEvent {
    /// A client wants to open the socket. An error refuses the handshake with the error's status, as does a response with
    /// a status that is not 200 to 299.
    Opened(Opening),
    /// The client has sent a message.
    Message(Message),
    /// Another view has called [`Channels::notify`](crate::channels::Channels::notify) for a group of this connection.
    Notice(Notice),
    /// The connection has ended, by whichever side. This is the last event, and comes once if the opening succeeded. The
    /// connection is in no group any more, and nothing can be sent to its client.
    Closed(Closed),
}

impl FromRequest for SocketEvent {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        let header = |name: &str| {
            let value = request.headers.get(name).map(str::to_owned);
            value.ok_or_else(|| Error::internal(format!("a socket's event has no `{name}`")))
        };
        Ok(match request.method.as_str() {
            "GET" => Self::Opened(Opening {
                query: std::mem::take(&mut request.query),
                headers: std::mem::take(&mut request.headers),
                chosen: cx.subprotocol.clone(),
            }),
            "TEXT" => Self::Message(Message::Text(String::from_utf8(request.take_body())?)),
            "BINARY" => Self::Message(Message::Binary(request.take_body())),
            "NOTICE" => Self::Notice(Notice {
                group: header("group")?,
                payload: request.take_body(),
            }),
            "CLOSED" => Self::Closed(Closed {
                code: header("code")?.parse()?,
                reason: String::from_utf8(request.take_body())?,
            }),
            other => {
                return Err(Error::internal(format!(
                    "`{other}` is not the method of a socket's event: `SocketEvent` is for functions with `#[socket]`"
                )));
            }
        })
    }
}

/// The request by which a client opens a web socket.
#[derive(Clone, Debug)]
pub struct Opening {
    query: String,
    /// The headers.
    pub headers: Headers,
    chosen: Chosen,
}

impl Opening {
    /// The first value of this name in the query, decoded. `None` when there is none, or when it is not UTF-8. To read the
    /// whole query into a type, take `Option<Query<T>>` as a parameter.
    pub fn query(&self, name: &str) -> Option<String> {
        query_value(&self.query, name)
    }

    /// The subprotocols that the client offers, in the order of its preference.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        let lists = self.headers.get_all(SUBPROTOCOL);
        let names = lists.flat_map(|list| list.split(',')).map(str::trim);
        names.filter(|name| !name.is_empty())
    }

    /// Chooses the first of these subprotocols that the client offers, and tells the client with the handshake. `None`
    /// when the client offers none of them: then the socket opens without one, unless the view refuses.
    ///
    /// ```
    /// use amphi_sdk::prelude::*;
    ///
    /// #[socket("/feed")]
    /// async fn feed(cx: &Context, event: SocketEvent) -> Result<()> {
    ///     if let SocketEvent::Opened(opening) = event {
    ///         let chosen = opening.choose_subprotocol(&["feed.v2", "feed.v1"]);
    ///         cx.set("version", chosen.ok_or_else(|| Error::bad_request("speak feed.v1 or feed.v2"))?)?;
    ///     }
    ///     Ok(())
    /// }
    /// # use amphi_sdk::testing::{App, get};
    /// # let socket = App::new().socket::<feed>(get("/feed").header("sec-websocket-protocol", "feed.v0, feed.v1"));
    /// # assert_eq!(socket.response().header("sec-websocket-protocol"), Some("feed.v1"));
    /// # assert_eq!(socket.value("version").as_deref(), Some("feed.v1"));
    /// # assert!(!App::new().socket::<feed>("/feed").is_open());
    /// ```
    pub fn choose_subprotocol<'n>(&self, known: &[&'n str]) -> Option<&'n str> {
        let offered: Vec<&str> = self.subprotocols().collect();
        let chosen = known.iter().copied().find(|name| offered.contains(name));
        self.chosen.replace(chosen.map(str::to_owned));
        chosen
    }
}

/// The subprotocol that the view has chosen in this call.
pub(crate) type Chosen = Rc<RefCell<Option<String>>>;

/// What another view has told the web sockets of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The group.
    pub group: String,
    /// The payload, as it was given to [`Channels::notify`](crate::channels::Channels::notify).
    pub payload: Vec<u8>,
}

impl Notice {
    /// The payload, read as JSON.
    ///
    /// # Errors
    /// When the payload is not valid JSON, or does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Error::internal(format!("the notice to `{}`: {error}", self.group)))
    }
}

/// How a web socket has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The code of RFC 6455: 1000 when it was closed normally, 1001 when the client has left the page, 1006 when the
    /// connection broke.
    pub code: u16,
    /// The reason that was given, or an empty text.
    pub reason: String,
}

/// What [`Context::socket`](crate::Context::socket) returns: the web socket whose event a view handles.
///
/// All calls except `id` take effect with the commit of the event, and are discarded when the event fails. No call waits,
/// so both modes have the same calls, without `.await`. In a request that is not an event of a web socket, each call is an
/// error.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[socket("/echo", origins = ["https://app.example.com"])]
/// async fn echo(cx: &Context, event: SocketEvent) -> Result<()> {
///     if let SocketEvent::Message(message) = event {
///         match message.as_text() {
///             Some("bye") => cx.socket().close(1000, "bye")?,
///             _ => cx.socket().send(message)?,
///         }
///     }
///     Ok(())
/// }
/// # use amphi_sdk::testing::App;
/// # let app = App::new();
/// # let mut socket = app.socket::<echo>("/echo");
/// # socket.send(vec![1, 2]);
/// # assert_eq!(socket.received(), [Message::binary([1, 2])]);
/// # socket.send("bye");
/// # assert_eq!(socket.closed_by_view().map(|closed| closed.code), Some(1000));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Socket<'a> {
    host: &'a Host,
}

impl<'a> Socket<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host }
    }

    /// The id of the connection, for [`Channels::send_to`](crate::channels::Channels::send_to).
    ///
    /// # Errors
    /// When the request is not an event of a web socket.
    pub fn id(self) -> Result<String> {
        self.host.connection().ok_or_else(|| {
            Error::internal(
                "this request is not an event of a web socket: `cx.socket()` is for functions with `#[socket]`",
            )
        })
    }

    /// Sends a message to the client.
    ///
    /// # Errors
    /// When the message is too large, or a limit on messages is reached.
    pub fn send(self, message: impl Into<Message>) -> Result<()> {
        let sent = self.host.send_to_client(message.into());
        sent.map_err(Error::from_channel)
    }

    /// Closes the connection. The code is 1000 (it is done) or one of the app's own, from 3000 to 4999; the reason has at
    /// most 123 bytes.
    ///
    /// # Errors
    /// When the code or the reason is not valid.
    pub fn close(self, code: u16, reason: &str) -> Result<()> {
        let closed = self.host.close(code, reason);
        closed.map_err(Error::from_channel)
    }

    /// Makes the connection a member of a group, until it [leaves](Self::leave) the group or ends.
    /// When a limit on groups is reached, the connection is closed with 1013.
    ///
    /// # Errors
    /// When the module has no grant for the group, or the name is not valid.
    pub fn join(self, group: impl AsRef<str>) -> Result<()> {
        let joined = self.host.join(group.as_ref());
        joined.map_err(Error::from_channel)
    }

    /// Ends the membership of a group. It is no error when the connection is not a member.
    ///
    /// # Errors
    /// When the request is not an event of a web socket.
    pub fn leave(self, group: impl AsRef<str>) -> Result<()> {
        let left = self.host.leave(group.as_ref());
        left.map_err(Error::from_channel)
    }
}
