//! The context: everything a view can ask of the host.

use crate::body::{BodyReader, Chunks};
use crate::channels::Channels;
use crate::database::{Database, Transaction};
use crate::host::{self, Host};
use crate::http::Http;
use crate::mode::{Async, Mode, Sync};
use crate::multipart::{Multipart, Parts};
use crate::session::Place;
use crate::socket::{Chosen, SocketHandle};
use crate::subrequest::Subrequest;
use crate::{Error, Request, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

/// The database that [`Context::db`] returns.
const DEFAULT_DATABASE: &str = "default";

/// What a view can ask of the host: the request's id, values and time limit, the databases, the settings, outbound
/// HTTP. In a view, write `cx: &Context`: this means [`sync::Context`](crate::sync::Context) in a `fn` and
/// [`asynch::Context`](crate::asynch::Context) in an `async fn`. Both have the same methods.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/hello")]
/// fn hello(cx: &Context) -> String {
///     greeting(cx)
/// }
///
/// #[view(get, "/hello/slowly")]
/// async fn hello_slowly(cx: &Context) -> String {
///     cx.sleep(Duration::from_millis(10)).await;
///     greeting(cx)
/// }
///
/// /// A function that never waits can take the context of either mode.
/// fn greeting<M: Mode>(cx: &Context<M>) -> String {
///     format!("{} {}", cx.config("greeting").unwrap_or_default(), cx.peer())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Context<M: Mode> {
    pub(crate) host: Host,
    pub(crate) session: Place,
    pub(crate) subprotocol: Chosen,
    mode: PhantomData<M>,
}

impl<M: Mode> Context<M> {
    #[cfg(any(target_arch = "wasm32", feature = "testing"))]
    pub(crate) fn new(host: Host) -> Self {
        Self {
            host,
            session: Place::default(),
            subprotocol: Chosen::default(),
            mode: PhantomData,
        }
    }

    /// The database named `default` in the app's configuration.
    pub fn db(&self) -> Database<'_, M> {
        self.database(DEFAULT_DATABASE)
    }

    /// The database of this name. The module needs a grant for the database: `databases` in the module's table in
    /// `amphi.toml`.
    pub fn database<'a>(&'a self, name: &'a str) -> Database<'a, M> {
        Database::new(&self.host, name)
    }

    /// Outbound HTTP requests.
    pub fn http(&self) -> Http<'_, M> {
        Http::new(&self.host)
    }

    /// A setting or a secret of the module, by name.
    pub fn config(&self, name: &str) -> Option<String> {
        self.host.config(name)
    }

    /// The folder that `directories` of the module's table in `amphi.toml` grants under the path `guest`.
    ///
    /// Only for sync views: file access blocks. A view can also use the path directly. But only this method fails with
    /// an error that says which grant is missing, and in tests it returns the folder given to
    /// `testing::App::directory`.
    ///
    /// ```
    /// use amphi_sdk::prelude::*;
    ///
    /// #[view(get, "/notes/{name}")]
    /// fn note(cx: &Context, Path(name): Path<String>) -> Result<String> {
    ///     if !name.chars().all(char::is_alphanumeric) {
    ///         return Err(Error::bad_request("a name has letters and digits"));
    ///     }
    ///     Ok(std::fs::read_to_string(cx.directory("/notes")?.join(name))?)
    /// }
    /// ```
    ///
    /// # Errors
    /// When the module has no such folder.
    pub fn directory(&self, guest: &str) -> Result<PathBuf> {
        self.host
            .directory(guest, !M::WAITS)
            .map_err(Error::internal)
    }

    /// The id of this request, as it appears in the log.
    pub fn request_id(&self) -> String {
        self.host.request_id()
    }

    /// The pattern that matched, with the module's mount, e.g. `/shop/items/{id}`.
    pub fn route(&self) -> String {
        self.host.route()
    }

    /// The client's address, e.g. `127.0.0.1:51000`.
    pub fn peer(&self) -> String {
        self.host.peer()
    }

    /// The W3C trace context (`traceparent`) of this request. The host adds it to outbound requests.
    pub fn traceparent(&self) -> String {
        self.host.traceparent()
    }

    /// The time left until the host ends this request.
    ///
    /// A conversation (`mut socket: Socket`) has no such end. In one, this is the time that the next call of the host may
    /// take: `timeout_ms`, or what is left of it for a transaction or a pinned connection that is open, or after the end of
    /// the connection.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.host.remaining_ms())
    }

    /// A value of this request that middleware, or other code before this call, has [`set`](Self::set).
    pub fn get(&self, name: &str) -> Option<String> {
        self.host.get(name)
    }

    /// Sets a value of this request. Everything that runs later for the request can [`get`](Self::get) the value:
    /// middleware, the view, its sub-requests, and the subscribers of its events. Other requests cannot. A value that an
    /// event of a web socket sets stays with the connection, for its later events, if the event succeeds.
    ///
    /// # Errors
    /// When there are too many values, when this one is too large, or when `name` is reserved for the host: `user`,
    /// which built-in middleware sets, and the name of any value that the host has set for this request.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.host
            .set(name, value)
            .map_err(|text| Error::internal(format!("context value `{name}`: {text}")))
    }

    /// A value that [`set_json`](Self::set_json) has set.
    pub fn get_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::internal(format!("context value `{name}`: {error}")))
    }

    /// Like [`set`](Self::set), for a value of any serializable type. It is stored as JSON.
    pub fn set_json<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        self.set(name, &serde_json::to_string(value)?)
    }

    /// Publishes an event with this payload as JSON; see [`Event`](crate::Event).
    pub fn publish<T: Serialize + ?Sized>(&self, topic: &str, payload: &T) -> Result<()> {
        self.publish_bytes(topic, &serde_json::to_vec(payload)?)
    }

    /// Publishes an event with these bytes as its payload; see [`Event`](crate::Event).
    pub fn publish_bytes(&self, topic: &str, payload: &[u8]) -> Result<()> {
        self.host.publish(topic, payload).map_err(Error::from_event)
    }

    /// Messages to the clients of the app's web sockets, event streams and polls; see [`Channels`].
    pub fn channels(&self) -> Channels<'_> {
        Channels::new(&self.host)
    }

    /// The web socket whose event this view handles; see [`SocketHandle`].
    pub fn socket(&self) -> SocketHandle<'_> {
        SocketHandle::new(&self.host)
    }

    /// Calls another view of this app within this request; see [`Subrequest`].
    pub fn subrequest(&self, method: &str, path: impl Into<String>) -> Subrequest<'_, M> {
        Subrequest::new(&self.host, method, path.into())
    }

    /// Reads a form with files, part by part; see [`Multipart`].
    pub fn parts(&self, form: Multipart) -> Parts<'_, M> {
        Parts::new(self, form)
    }

    /// Reads a large body, piece by piece; see [`BodyReader`].
    pub fn chunks(&self, body: BodyReader) -> Chunks<'_, M> {
        Chunks::new(&self.host, body)
    }
}

impl Context<Sync> {
    /// Marks the request's transaction for rollback: it does not commit, whatever the view returns.
    pub fn set_rollback(&self) {
        host::sync::set_rollback(&self.host);
    }

    /// Reads the whole body of the request into memory. Middleware needs this: the host keeps a large body, and
    /// [`Request::body`] is empty before this call. Of a body that arrives (`body = "stream"`), this waits for the end.
    pub fn load(&self, request: &mut Request) -> Result<()> {
        crate::body::load(&self.host, request)
    }

    /// Runs `work` in a transaction of the default database; see [`Database::atomic`].
    pub fn atomic<'a, T>(
        &'a self,
        work: impl FnOnce(&Transaction<'a, Sync>) -> Result<T>,
    ) -> Result<T> {
        self.db().atomic(work)
    }
}

impl Context<Async> {
    /// Marks the request's transaction for rollback: it does not commit, whatever the view returns.
    pub fn set_rollback(&self) {
        host::asynch::set_rollback(&self.host);
    }

    /// Reads the whole body of the request into memory. Middleware needs this: the host keeps a large body, and
    /// [`Request::body`] is empty before this call. Of a body that arrives (`body = "stream"`), this waits for the end.
    pub async fn load(&self, request: &mut Request) -> Result<()> {
        crate::body::load_async(&self.host, request).await
    }

    /// Runs `work` in a transaction of the default database; see [`Database::atomic`].
    pub async fn atomic<'a, T>(
        &'a self,
        work: impl AsyncFnOnce(&Transaction<'a, Async>) -> Result<T>,
    ) -> Result<T> {
        self.db().atomic(work).await
    }

    /// Waits without blocking the event loop. The duration is rounded up to whole milliseconds.
    pub async fn sleep(&self, duration: Duration) {
        host::asynch::sleep(&self.host, milliseconds(duration)).await;
    }
}

/// The duration, rounded up to whole milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u32 {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    u32::try_from(ms).unwrap_or(u32::MAX)
}
