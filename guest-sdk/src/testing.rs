//! Runs views in native tests, with SQLite in memory and scripted responses to outbound requests.
//!
//! ```
//! use amphi_sdk::prelude::*;
//! use amphi_sdk::testing::{App, get, post};
//!
//! #[view(post, "/entries")]
//! fn sign(cx: &Context, Form(new): Form<Vec<(String, String)>>) -> Result<Redirect> {
//!     for (_, value) in new {
//!         cx.db().execute("insert into entries (message) values ($1)", (value,))?;
//!     }
//!     log::info!("signed");
//!     Ok(Redirect::see_other("/"))
//! }
//!
//! #[view(get, "/entries/count")]
//! async fn count(cx: &Context) -> Result<String> {
//!     let count: Option<i64> = cx.db().query_one("select count(*) from entries", ()).await?;
//!     Ok(count.unwrap_or(0).to_string())
//! }
//!
//! let app = App::new().execute_batch("create table entries (message text not null)");
//! let response = app.call::<sign>(post("/entries").form(&[("message", "Hi")]));
//! assert_eq!(response.status(), StatusCode::SEE_OTHER);
//! assert_eq!(app.logs()[0].message, "signed");
//! assert_eq!(app.call::<count>(get("/entries/count")).text(), "1");
//! ```
//!
//! In your `Cargo.toml`: `[dev-dependencies] amphi-sdk = { …, features = ["testing"] }`.

mod call;
mod connections;
mod conversation;
mod database;
mod dialect;
mod effects;
mod executor;
mod grants;
mod outbound;
mod request;
mod response;
mod socket;

pub use executor::run;
pub use outbound::{Reply, Sent, failure, reply};
pub use request::{Multipart, TestRequest, delete, get, patch, post, put, request};
pub use response::{Subscription, TestResponse};
pub use socket::TestSocket;

use crate::database::{FromRow, Params};
use crate::host::Host;
use crate::log::Level;
use crate::session::Values;
use crate::socket::Notice;
use crate::view::{Kind, View};
use crate::{Error, Event, Message, Request, Response, Result, StatusCode, asynch, sync};
use call::Call;
use connections::Connections;
use database::TestDatabase;
use grants::Grants;
use outbound::Outbound;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The app that the views of a test run in: databases, settings, scripted responses, and a record of what views did.
/// Its data is kept from one call to the next.
#[derive(Clone, Debug, Default)]
pub struct App(Rc<World>);

/// The state that all calls of an app share.
#[derive(Debug, Default)]
struct World {
    databases: RefCell<HashMap<String, TestDatabase>>,
    settings: RefCell<HashMap<String, String>>,
    values: RefCell<HashMap<String, String>>,
    outbound: Outbound,
    logs: RefCell<Vec<Record>>,
    published: RefCell<Vec<Event>>,
    connections: RefCell<Connections>,
    views: RefCell<Vec<Known>>,
    inner: RefCell<Option<Around>>,
    spool_over: RefCell<Option<usize>>,
    grants: RefCell<Grants>,
}

/// Runs a guest function that another guest function calls, with the same host.
type Inner = fn(&Host, Request) -> Result<Response>;

/// The view that a test has passed to [`App::around`]. `Next` runs it.
#[derive(Clone, Copy, Debug)]
struct Around {
    kind: Kind,
    run: Inner,
    /// Like `run`, without the middleware that the view names.
    alone: Inner,
    atomic: bool,
    read_only: bool,
    stream_body: bool,
}

impl World {
    /// The route of a call of `V`. For middleware, this is the route of the view that it runs around.
    fn routed<V: View>(&self) -> Kind {
        match (V::KIND, *self.inner.borrow()) {
            (Kind::Middleware, Some(around)) => around.kind,
            (kind, _) => kind,
        }
    }

    /// Whether the body arrives while a call of `V` runs.
    fn arrives<V: View>(&self) -> bool {
        match (V::KIND, *self.inner.borrow()) {
            (Kind::Middleware, Some(around)) => around.stream_body,
            _ => V::STREAM_BODY,
        }
    }
}

/// A view that sub-requests can call.
#[derive(Debug)]
struct Known {
    kind: Kind,
    run: Inner,
}

/// Whether the view `V` runs in a transaction.
fn is_atomic<V: View>(world: &World) -> bool {
    let by_default = world.grants.borrow().atomic;
    V::ATOMIC.unwrap_or_else(|| by_default.applies_to(V::KIND.method()))
}

/// Runs `V` on this host, inside the middleware that its attribute names.
fn run_view<V: View>(host: &Host, request: Request) -> Result<Response> {
    let Some((outermost, within)) = V::MIDDLEWARE.split_first() else {
        return run_alone::<V>(host, request);
    };
    host.put_within(run_alone::<V>);
    for layer in within.iter().rev() {
        host.put_within(layer.run);
    }
    (outermost.run)(host, request)
}

/// Runs `V` without middleware.
pub(crate) fn run_alone<V: View>(host: &Host, request: Request) -> Result<Response> {
    match (V::SYNC, V::ASYNC) {
        (Some(view), _) => view(sync::Context::new(host.clone()), request),
        (None, Some(view)) => run(view(asynch::Context::new(host.clone()), request)),
        (None, None) => unreachable!("`#[view]` sets one of the two"),
    }
}

/// A log record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The severity.
    pub level: Level,
    /// The message.
    pub message: String,
    /// The fields: name and value as text.
    pub fields: Vec<(String, String)>,
}

impl App {
    /// An app with an empty database named `default`, and a key for sessions.
    ///
    /// When there is an `amphi.toml` in the crate's folder or in one above, the app has the grants, limits and settings of
    /// the module whose `path` is this crate. A call that the host would refuse fails here with the same message. Without an
    /// `amphi.toml`, everything is granted, and the limits are the host's defaults.
    pub fn new() -> Self {
        let app = Self::default();
        let grants = Grants::find();
        app.0.settings.borrow_mut().extend(grants.settings());
        app.0.grants.replace(grants);
        app.on_database("default", |_| ());
        app.setting("session_key", "the key of sessions in tests alone")
    }

    /// Grants everything, whatever the crate's `amphi.toml` says. The limits of that file still apply.
    pub fn grant_all(self) -> Self {
        self.0.grants.borrow_mut().grant_all();
        self
    }

    /// Grants a folder of this machine: [`Context::directory`](crate::Context::directory) returns it for the path `guest`.
    pub fn directory(self, guest: impl Into<String>, host: impl Into<PathBuf>) -> Self {
        (self.0.grants.borrow_mut().directories).insert(guest.into(), host.into());
        self
    }

    /// Applies the `V1__name.sql` files of a folder to the default database, in the order of their
    /// numbers. The folder is relative to the crate.
    ///
    /// The files may be written for PostgreSQL: types, `serial`, `now()`, casts such as `::text` and a few other things
    /// are translated to SQLite. If SQLite does not accept a translated statement, the test panics and shows the
    /// statement. Then make the tables of the test with [`execute_batch`](Self::execute_batch) instead.
    pub fn migrations(self, folder: impl AsRef<Path>) -> Self {
        for (path, sql) in database::migrations(folder.as_ref()) {
            self.on_database("default", |database| {
                database.migrate(&sql, &path.display().to_string())
            });
        }
        self
    }

    /// Runs statements on the default database.
    pub fn execute_batch(self, sql: &str) -> Self {
        self.execute_batch_on("default", sql)
    }

    /// Runs statements on the database of this name, and creates this database first if it does not exist.
    pub fn execute_batch_on(self, name: &str, sql: &str) -> Self {
        self.on_database(name, |database| {
            database.execute_batch(sql, "execute_batch")
        });
        self
    }

    /// Sets the value that `cx.config(name)` returns.
    pub fn setting(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0
            .settings
            .borrow_mut()
            .insert(name.into(), value.into());
        self
    }

    /// Sets the value that `cx.get(name)` returns, as if middleware had set it in each request.
    pub fn value(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.values.borrow_mut().insert(name.into(), value.into());
        self
    }

    /// Like [`value`](Self::value), for `cx.get_json(name)`.
    pub fn value_json<T: Serialize + ?Sized>(self, name: impl Into<String>, value: &T) -> Self {
        let value = serde_json::to_string(value).expect("a value of a test can be written as JSON");
        self.value(name, value)
    }

    /// Scripts the response to outbound GET requests to this URL. A `*` at the end of `url` stands for any text.
    pub fn on_get(self, url: impl Into<String>, reply: Reply) -> Self {
        self.on("GET", url, reply)
    }

    /// Scripts the response to outbound requests with this method and URL. A `*` at the end of `url` stands for any
    /// text. When several scripts match, the first one is used.
    pub fn on(self, method: impl Into<String>, url: impl Into<String>, reply: Reply) -> Self {
        self.0.outbound.script(method.into(), url.into(), reply);
        self
    }

    /// Keeps request bodies of more than this many bytes with the host, so that views read them in pieces.
    pub fn spool_over(self, bytes: usize) -> Self {
        self.0.spool_over.replace(Some(bytes));
        self
    }

    /// Sets the view that middleware runs around: `app.around::<page>().call::<signed_in>(get("/"))`. As under the host, the
    /// view decides whether the call runs in a transaction.
    pub fn around<V: View>(self) -> Self {
        self.0.inner.replace(Some(Around {
            kind: V::KIND,
            run: run_view::<V>,
            alone: run_alone::<V>,
            atomic: is_atomic::<V>(&self.0),
            read_only: V::READ_ONLY,
            stream_body: V::STREAM_BODY,
        }));
        self
    }

    /// Adds a view that sub-requests can call.
    pub fn view<V: View>(self) -> Self {
        let (kind, run) = (V::KIND, run_view::<V> as Inner);
        self.0.views.borrow_mut().push(Known { kind, run });
        self
    }

    /// Calls a subscriber with an event that has this payload as JSON.
    ///
    /// # Panics
    ///
    /// When the payload cannot be serialized, or the module has no grant for the subscriber's topic.
    pub fn deliver<V: View>(
        &self,
        topic: &str,
        payload: &(impl Serialize + ?Sized),
    ) -> TestResponse {
        let payload =
            serde_json::to_vec(payload).expect("a payload of a test can be written as JSON");
        if let Kind::Subscriber(topics) = V::KIND
            && let Err(sentence) = self.0.grants.borrow().subscribe(topics)
        {
            panic!("`{}`: {sentence}", V::NAME);
        }
        let mut request = Request::new(V::KIND.method(), topic);
        request.set_body(payload);
        let call = Call::of::<V>(self.0.clone(), &[]);
        self.run_request((V::NAME, run_view::<V>), call, request, Values::new())
    }

    /// The events that views have published, without those whose transactions were rolled back.
    pub fn published(&self) -> Vec<Event> {
        self.0.published.borrow().clone()
    }

    /// Adds a connection with this id to a group, so that views find it in
    /// [`Channels::members`](crate::channels::Channels::members). `user` is its context value `user`. Web sockets that the
    /// test [opens](Self::socket) are members of the groups that they join.
    pub fn member(self, group: &str, connection: &str, user: Option<&str>) -> Self {
        {
            let mut connections = self.0.connections.borrow_mut();
            let member = connections.of(connection);
            member.groups.insert(group.into());
            let user = user.map(|user| (grants::USER.to_owned(), user.to_owned()));
            member.values.extend(user);
        }
        self
    }

    /// The messages that views have sent to this group, or to the connection with this id, without those whose
    /// transactions were rolled back. What a socket sends to its own client is in [`TestSocket::received`].
    pub fn sent_to(&self, group: &str) -> Vec<Message> {
        self.0.connections.borrow().sent_to(group)
    }

    /// The notices that views have sent to groups, without those whose transactions were rolled back.
    pub fn notices(&self) -> Vec<Notice> {
        self.0.connections.borrow().notices().to_vec()
    }

    /// Runs a view with its extractors, in a transaction if the view is atomic: `app.call::<entry>(get("/entries/7"))`.
    /// The body of a [`Stream`](crate::Stream) is written, after the transaction has ended, before this returns.
    ///
    /// # Panics
    ///
    /// When the host would not route this request to this view.
    pub fn call<V: View>(&self, request: TestRequest) -> TestResponse {
        let (bytes, max) = (
            request.body().len(),
            self.0.grants.borrow().limits.body_max_bytes,
        );
        let kind = self.0.routed::<V>();
        assert!(
            !matches!(kind, Kind::Socket { .. }),
            "`{}` is for a socket: write `app.socket::<…>(…)`",
            V::NAME
        );
        let call = Call::of::<V>(self.0.clone(), request.body());
        let session = request.session_values().clone();
        let spool_over = *self.0.spool_over.borrow();
        let request = request.into_request(
            (V::NAME, kind),
            self.0.arrives::<V>(),
            spool_over,
            &self.0.settings.borrow(),
        );
        if bytes > max {
            // The host refuses such a request before the view runs.
            let refused = Error::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The request body has more than {max} bytes."),
            );
            return TestResponse::new(Err(refused), V::NAME, session, &self.0.settings.borrow());
        }
        self.run_request((V::NAME, run_view::<V>), call, request, session)
    }

    fn run_request(
        &self,
        (name, run): (&str, Inner),
        call: Call,
        request: Request,
        session: Values,
    ) -> TestResponse {
        let call = Rc::new(call);
        let host = Host::new(call.clone());
        let outcome = host.while_running(|| run(&host, request));
        let mut outcome = call.finish(outcome);
        let subscription = outcome.as_ref().ok().and_then(Response::subscribes_to);
        let subscription = subscription.cloned().map(Subscription::from);
        let ended = match &mut outcome {
            Ok(response) => host.while_running(|| call.produce(response)),
            Err(_) => Ok(()),
        };
        let trailers = call.end();
        TestResponse::new(outcome, name, session, &self.0.settings.borrow())
            .after(name, ended, trailers)
            .with_subscription(subscription)
    }

    /// A context for calling helper functions that take the context of a sync view.
    pub fn context(&self) -> sync::Context {
        sync::Context::new(Host::new(Rc::new(Call::alone(self.0.clone()))))
    }

    /// A context for calling helper functions that take the context of an async view. Run their futures with [`run`].
    pub fn async_context(&self) -> asynch::Context {
        asynch::Context::new(Host::new(Rc::new(Call::alone(self.0.clone()))))
    }

    /// Queries the default database, to check what a view wrote.
    ///
    /// # Panics
    ///
    /// When the statement fails.
    pub fn query<T: FromRow>(&self, sql: &str, params: impl Params) -> Vec<T> {
        sync::Context::new(Host::new(Rc::new(Call::of_test(self.0.clone()))))
            .db()
            .query(sql, params)
            .unwrap_or_else(|error| panic!("`{sql}`: {error}"))
    }

    /// The log records that views have written.
    pub fn logs(&self) -> Vec<Record> {
        self.0.logs.borrow().clone()
    }

    /// The outbound requests that views have sent.
    pub fn sent(&self) -> Vec<Sent> {
        self.0.outbound.sent()
    }

    fn on_database<T>(&self, name: &str, work: impl FnOnce(&mut TestDatabase) -> T) -> T {
        work(
            self.0
                .databases
                .borrow_mut()
                .entry(name.to_owned())
                .or_default(),
        )
    }
}
