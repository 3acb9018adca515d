//! The context: what a view can ask of its host.

use crate::body::{BodyReader, Chunks};
use crate::database::{Database, Transaction};
use crate::host::{self, Host};
use crate::http::Http;
use crate::mode::{Async, Mode, Sync};
use crate::multipart::{Multipart, Parts};
use crate::session::Place;
use crate::subrequest::Subrequest;
use crate::{Error, Request, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

/// The name of the database that [`Context::db`] gives.
const DEFAULT_DATABASE: &str = "default";

/// This request, its databases, settings and the way out. In a view, write `cx: &Context`: the view's
/// mode chooses between [`sync::Context`](crate::sync::Context) and
/// [`asynch::Context`](crate::asynch::Context), which have the same methods.
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
/// /// What never waits can serve both modes.
/// fn greeting<M: Mode>(cx: &Context<M>) -> String {
///     format!("{} {}", cx.config("greeting").unwrap_or_default(), cx.peer())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Context<M: Mode> {
    pub(crate) host: Host,
    pub(crate) session: Place,
    mode: PhantomData<M>,
}

impl<M: Mode> Context<M> {
    #[cfg(any(target_arch = "wasm32", feature = "testing"))]
    pub(crate) fn new(host: Host) -> Self {
        Self {
            host,
            session: Place::default(),
            mode: PhantomData,
        }
    }

    /// The database named `default` in the app's configuration.
    pub fn db(&self) -> Database<'_, M> {
        self.database(DEFAULT_DATABASE)
    }

    /// Another database that the module has a grant for.
    pub fn database<'a>(&'a self, name: &'a str) -> Database<'a, M> {
        Database::new(&self.host, name)
    }

    /// Outbound requests.
    pub fn http(&self) -> Http<'_, M> {
        Http::new(&self.host)
    }

    /// A setting or secret of the module.
    pub fn config(&self, name: &str) -> Option<String> {
        self.host.config(name)
    }

    /// A folder that the module is granted by `directories`, by the path that this gives it as `guest`.
    ///
    /// It is for sync views, since files block. A view can as well use the path as it is; this says what is missing
    /// when there is no such grant, and gives the folder of `testing::App::directory` in tests.
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

    /// The id under which the log knows this request.
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

    /// The W3C trace context of this request. Outbound requests carry it on by themselves.
    pub fn traceparent(&self) -> String {
        self.host.traceparent()
    }

    /// The time left until the host ends this request.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.host.remaining_ms())
    }

    /// A value that an earlier part of this request has [`set`](Self::set).
    pub fn get(&self, name: &str) -> Option<String> {
        self.host.get(name)
    }

    /// Sets a value for every later part of this request.
    ///
    /// # Errors
    /// When there are too many values, this one is too large, or it is one of the host's: `user`, which built-in
    /// middleware sets.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.host
            .set(name, value)
            .map_err(|text| Error::internal(format!("context value `{name}`: {text}")))
    }

    /// A value that was set by [`set_json`](Self::set_json).
    pub fn get_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::internal(format!("context value `{name}`: {error}")))
    }

    /// Sets a value of any serializable type, as JSON.
    pub fn set_json<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        self.set(name, &serde_json::to_string(value)?)
    }

    /// Publishes an event, with a payload written as JSON: see [`Event`](crate::Event).
    pub fn publish<T: Serialize + ?Sized>(&self, topic: &str, payload: &T) -> Result<()> {
        self.publish_bytes(topic, &serde_json::to_vec(payload)?)
    }

    /// Publishes an event with any payload.
    pub fn publish_bytes(&self, topic: &str, payload: &[u8]) -> Result<()> {
        self.host.publish(topic, payload).map_err(Error::from_event)
    }

    /// A call of another view of this app, within this request.
    pub fn subrequest(&self, method: &str, path: impl Into<String>) -> Subrequest<'_, M> {
        Subrequest::new(&self.host, method, path.into())
    }

    /// Reads a form with files part by part; see [`Multipart`].
    pub fn parts(&self, form: Multipart) -> Parts<'_, M> {
        Parts::new(self, form)
    }

    /// Reads a large body piece by piece; see [`BodyReader`].
    pub fn chunks(&self, body: BodyReader) -> Chunks<'_, M> {
        Chunks::new(&self.host, body)
    }
}

impl Context<Sync> {
    /// Has the request's transaction rolled back at its end, whatever the view answers.
    pub fn set_rollback(&self) {
        host::sync::set_rollback(&self.host);
    }

    /// Reads the body of a request that is still with the host, for middleware that looks at bodies.
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
    /// Has the request's transaction rolled back at its end, whatever the view answers.
    pub fn set_rollback(&self) {
        host::asynch::set_rollback(&self.host);
    }

    /// Reads the body of a request that is still with the host, for middleware that looks at bodies.
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

    /// Waits, while others run. Parts of a millisecond count as a whole one.
    pub async fn sleep(&self, duration: Duration) {
        let ms = duration.as_nanos().div_ceil(1_000_000);
        host::asynch::sleep(&self.host, u32::try_from(ms).unwrap_or(u32::MAX)).await;
    }
}
