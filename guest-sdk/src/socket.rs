//! Web sockets, in two forms: functions that the host calls for each event of a connection, and async functions that keep
//! the conversation and run as long as their connection.
//!
//! In the first form ([`SocketEvent`]), a connection has nothing of the guest's between two events: no instance, no
//! transaction. What one event leaves for the next one is in a database or in the context values of the connection. In the
//! second form ([`Socket`]), it is in the variables of the function.

use crate::channels::Message;
use crate::extract::{BodyUse, query_value};
use crate::host::{self, ConversationError, Host};
use crate::mode::{Async, Mode};
use crate::{Context, Error, FromRequest, Headers, Request, Result};
use futures_util::future::{Either, select};
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::fmt;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

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

/// A parameter for functions and [extractors](macro@crate::extractor) that run when the socket is opened. A function that
/// keeps the conversation chooses the subprotocol in an extractor: it begins when the handshake is complete.
impl FromRequest for Opening {
    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self {
            query: request.query.clone(),
            headers: request.headers.clone(),
            chosen: cx.subprotocol.clone(),
        })
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

/// What [`Context::socket`](crate::Context::socket) returns: the web socket whose event a view handles, or whose
/// conversation it keeps.
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
pub struct SocketHandle<'a> {
    host: &'a Host,
}

impl<'a> SocketHandle<'a> {
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

/// A web socket whose conversation the function keeps: the last parameter of an `async fn` with
/// [`socket`](macro@crate::socket). The function runs as long as its connection.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// /// A client guesses a number. What is known of the game is in variables.
/// #[socket("/guess/{secret}")]
/// async fn guess(cx: &Context, Path(secret): Path<u32>, mut socket: Socket) -> Result<()> {
///     socket.send("guess!").await?;
///     let mut tries = 0;
///     while let Some(event) = socket.receive().await? {
///         let Received::Message(message) = event else { continue };
///         tries += 1;
///         match message.as_text().and_then(|text| text.parse::<u32>().ok()) {
///             Some(number) if number == secret => {
///                 cx.atomic(async |tx| {
///                     tx.execute("insert into games (tries) values ($1)", (tries,)).await?;
///                     socket.send(format!("yes, after {tries}")).await
///                 })
///                 .await?;
///                 return Ok(());
///             }
///             Some(number) if number < secret => socket.send("more").await?,
///             Some(_) => socket.send("less").await?,
///             None => socket.send("a number, please").await?,
///         }
///     }
///     log::info!("gave up", tries = tries, code = socket.closed().map_or(0, |closed| closed.code));
///     Ok(())
/// }
///
/// views![guess];
///
/// # #[cfg(not(test))] fn main() {
/// use amphi_sdk::testing::App;
///
/// let app = App::new().execute_batch("create table games (tries integer)");
/// let mut ann = app.socket::<guess>("/guess/7");
/// ann.send("9");
/// ann.send("7");
/// assert_eq!(ann.received(), ["guess!", "less", "yes, after 2"].map(Message::text));
/// assert_eq!(ann.closed_by_view().map(|closed| closed.code), Some(1000));
/// assert_eq!(app.query::<i64>("select tries from games", ()), [2]);
/// # let mut bob = app.socket::<guess>("/guess/7");
/// # bob.closed(1001, "");
/// # assert_eq!(app.logs()[0].message, "gave up");
/// # }
/// ```
///
/// Extractors run when the client opens the socket, in the transaction of that request if the view is atomic; their errors
/// refuse the handshake. The function itself begins when the handshake is complete, outside of any transaction: what has to
/// be whole goes into [`cx.atomic`](crate::Context::atomic), and what is sent there leaves with the commit. Within such a
/// block, `receive` is an error.
///
/// | the function | the connection |
/// |---|---|
/// | returns `Ok(())` or `()` | is closed with 1000, unless it has ended already |
/// | returns an error, or panics | is closed with 1011; the log has the error |
/// | returns the error of a call after the connection has ended | it has ended: this is no failure |
///
/// Each such function has an instance of its own for as long as it runs, of which an app has at most
/// `async_views.sockets_max`. The other form, with [`SocketEvent`], has none between two events.
pub struct Socket {
    host: Host,
    /// The call that waits for the next event. It goes on when a future of [`receive`](Self::receive) is dropped, so that no
    /// event is lost.
    pending: Option<Receiving>,
    closed: Option<Closed>,
}

/// A call that waits for the next event.
type Receiving = Pin<Box<dyn Future<Output = Result<Happened, ConversationError>>>>;

/// What a function that keeps the conversation receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The client has sent a message.
    Message(Message),
    /// Another view has called [`Channels::notify`](crate::channels::Channels::notify) for a group of this connection.
    Notice(Notice),
}

/// What the host has for the function.
#[cfg_attr(
    not(any(target_arch = "wasm32", feature = "testing")),
    expect(dead_code, reason = "a native build without tests runs no views")
)]
pub(crate) enum Happened {
    Received(Received),
    Closed(Closed),
}

impl Socket {
    pub(crate) fn new(host: &Host) -> Self {
        Self {
            host: host.clone(),
            pending: None,
            closed: None,
        }
    }

    /// Waits for the next message or notice. `None`: the connection has ended; [`closed`](Self::closed) says how.
    ///
    /// When the future is dropped before it is done, as by `select!`, no event is lost: the next call has it.
    ///
    /// # Errors
    /// Within a transaction, or with a pinned connection.
    pub async fn receive(&mut self) -> Result<Option<Received>> {
        if self.closed.is_some() {
            return Ok(None);
        }
        let host = &self.host;
        let pending = self.pending.get_or_insert_with(|| {
            let host = host.clone();
            Box::pin(async move { host::asynch::receive(&host).await })
        });
        let happened = pending.await;
        self.pending = None;
        match happened.map_err(Error::from_conversation)? {
            Happened::Received(received) => Ok(Some(received)),
            Happened::Closed(closed) => {
                self.closed = Some(closed);
                Ok(None)
            }
        }
    }

    /// Like [`receive`](Self::receive), for at most this time. `None`: nothing came in time, or the connection has ended
    /// ([`is_open`](Self::is_open)).
    ///
    /// ```
    /// use amphi_sdk::prelude::*;
    ///
    /// /// Counts ten times in a second, as fast as the client says.
    /// #[socket("/count")]
    /// async fn count(_: &Context, mut socket: Socket) -> Result<()> {
    ///     let (mut number, mut step) = (0, 1);
    ///     while socket.is_open() {
    ///         match socket.receive_within(Duration::from_millis(100)).await? {
    ///             Some(Received::Message(message)) => step = message.json()?,
    ///             Some(Received::Notice(_)) => {}
    ///             None => {
    ///                 number += step;
    ///                 socket.send(number.to_string()).await?;
    ///             }
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// # use amphi_sdk::testing::App;
    /// # let app = App::new();
    /// # let mut socket = app.socket::<count>("/count");
    /// # socket.pass(Duration::from_millis(250));
    /// # socket.send("10");
    /// # socket.pass(Duration::from_millis(100));
    /// # assert_eq!(socket.received(), ["1", "2", "12"].map(Message::text));
    /// # assert_eq!(socket.closed(1001, "").error(), None);
    /// ```
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub async fn receive_within(&mut self, time: Duration) -> Result<Option<Received>> {
        let host = self.host.clone();
        let over = pin!(host::asynch::sleep(
            &host,
            crate::context::milliseconds(time)
        ));
        match select(pin!(self.receive()), over).await {
            Either::Left((received, _)) => received,
            Either::Right(((), _)) => Ok(None),
        }
    }

    /// Sends a message to the client. While the client is slow, and `outbox_max_bytes` wait for it, this waits.
    /// [`cx.socket().send(…)`](SocketHandle::send) does not wait, and such a client is closed. In a transaction, the message
    /// leaves with the commit, without a wait.
    ///
    /// # Errors
    /// When the connection has ended, or the message is too large.
    pub async fn send(&self, message: impl Into<Message>) -> Result<()> {
        let sent = host::asynch::send_message(&self.host, message.into()).await;
        sent.map_err(Error::from_conversation)
    }

    /// Closes the connection, as [`SocketHandle::close`]. The function goes on, and receives the end next.
    ///
    /// # Errors
    /// When the code or the reason is not valid.
    pub fn close(&self, code: u16, reason: &str) -> Result<()> {
        SocketHandle::new(&self.host).close(code, reason)
    }

    /// Makes the connection a member of a group, as [`SocketHandle::join`].
    ///
    /// # Errors
    /// When the module has no grant for the group, or the name is not valid.
    pub fn join(&self, group: impl AsRef<str>) -> Result<()> {
        SocketHandle::new(&self.host).join(group)
    }

    /// Ends the membership of a group. It is no error when the connection is not a member.
    ///
    /// # Errors
    /// When the module has no grant for the group, or the name is not valid.
    pub fn leave(&self, group: impl AsRef<str>) -> Result<()> {
        SocketHandle::new(&self.host).leave(group)
    }

    /// The id of the connection, for [`Channels::send_to`](crate::channels::Channels::send_to).
    ///
    /// # Errors
    /// Never in a function that the host runs.
    pub fn id(&self) -> Result<String> {
        SocketHandle::new(&self.host).id()
    }

    /// Whether the function has not yet [received](Self::receive) the end.
    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    /// How the connection has ended, once [`receive`](Self::receive) has returned `None` for that.
    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Socket");
        shown.field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// What a function that keeps the conversation may return.
#[diagnostic::on_unimplemented(
    message = "a function that keeps the conversation cannot return `{Self}`",
    note = "it returns `Result<()>` or nothing: its connection has no response any more"
)]
pub trait Ending {
    /// The result of the function.
    fn ending(self) -> Result<()>;
}

impl Ending for () {
    fn ending(self) -> Result<()> {
        Ok(())
    }
}

impl Ending for Result<()> {
    fn ending(self) -> Result<()> {
        self
    }
}

/// The future of a function that keeps the conversation, boxed.
pub(crate) async fn converse<R: Ending>(
    cx: &Context<Async>,
    ending: impl Future<Output = R>,
) -> Result<()> {
    ending.await.ending()?;
    cx.session.assert_unchanged()
}
