//! Runs views in native tests, against SQLite in memory and scripted replies to outbound requests.
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
mod database;
mod dialect;
mod executor;
mod grants;
mod outbound;
mod request;
mod response;

pub use executor::run;
pub use outbound::{Reply, Sent, failure, reply};
pub use request::{Multipart, TestRequest, delete, get, patch, post, put, request};
pub use response::TestResponse;

use crate::database::{FromRow, Params};
use crate::host::Host;
use crate::log::Level;
use crate::session::Values;
use crate::view::{Kind, View};
use crate::{Error, Event, Request, Response, Result, StatusCode, asynch, sync};
use call::Call;
use database::TestDatabase;
use grants::Grants;
use outbound::Outbound;
use serde::Serialize;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What surrounds a view in a test. It keeps its data from call to call.
#[derive(Clone, Debug, Default)]
pub struct App(Rc<World>);

/// What all calls of an app share.
#[derive(Debug, Default)]
struct World {
    databases: RefCell<HashMap<String, TestDatabase>>,
    settings: RefCell<HashMap<String, String>>,
    values: RefCell<HashMap<String, String>>,
    outbound: Outbound,
    logs: RefCell<Vec<Record>>,
    published: RefCell<Vec<Event>>,
    views: RefCell<Vec<Known>>,
    inner: RefCell<Option<Around>>,
    spool_over: RefCell<Option<usize>>,
    grants: RefCell<Grants>,
}

/// Runs a view for another guest function, on that one's host.
type Inner = fn(&Host, Request) -> Result<Response>;

/// A view that middleware is around.
#[derive(Clone, Copy, Debug)]
struct Around {
    kind: Kind,
    run: Inner,
    atomic: bool,
    read_only: bool,
}

impl World {
    /// What a call of `V` is for: in the case of middleware, the view it is around.
    fn routed<V: View>(&self) -> Kind {
        match (V::KIND, *self.inner.borrow()) {
            (Kind::Middleware, Some(around)) => around.kind,
            (kind, _) => kind,
        }
    }
}

/// A view that sub-requests can reach.
#[derive(Debug)]
struct Known {
    kind: Kind,
    run: Inner,
}

/// Whether a view runs in a transaction.
fn is_atomic<V: View>(world: &World) -> bool {
    let by_default = world.grants.borrow().atomic;
    V::ATOMIC.unwrap_or_else(|| by_default.applies_to(V::KIND.method()))
}

/// Runs `V` on this host, within the middleware that it names.
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

/// Runs `V` itself.
pub(crate) fn run_alone<V: View>(host: &Host, request: Request) -> Result<Response> {
    match (V::SYNC, V::ASYNC) {
        (Some(view), _) => view(sync::Context::new(host.clone()), request),
        (None, Some(view)) => run(view(asynch::Context::new(host.clone()), request)),
        (None, None) => unreachable!("`#[view]` gives every view one of both"),
    }
}

/// A log record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// How bad it is.
    pub level: Level,
    /// What happened.
    pub message: String,
    /// The fields, as texts.
    pub fields: Vec<(String, String)>,
}

impl App {
    /// An app with an empty database named `default`, and a key for sessions.
    ///
    /// When the crate has an `amphi.toml`, in its folder or one above, its module's grants, limits and settings are
    /// those of the app, and what the host would refuse is refused here in the same words. Without one, everything is
    /// granted and limits are the defaults.
    pub fn new() -> Self {
        let app = Self::default();
        let grants = Grants::find();
        app.0.settings.borrow_mut().extend(grants.settings());
        app.0.grants.replace(grants);
        app.on_database("default", |_| ());
        app.setting("session_key", "the key of sessions in tests alone")
    }

    /// Grants everything, whatever the crate's `amphi.toml` says. The limits stay.
    pub fn grant_all(self) -> Self {
        self.0.grants.borrow_mut().grant_all();
        self
    }

    /// Puts a folder of this machine where [`Context::directory`](crate::Context::directory) finds it as `guest`.
    pub fn directory(self, guest: impl Into<String>, host: impl Into<PathBuf>) -> Self {
        (self.0.grants.borrow_mut().directories).insert(guest.into(), host.into());
        self
    }

    /// Applies the `V1__name.sql` files of a folder to the default database, in the order of their
    /// numbers. The folder is relative to the crate.
    ///
    /// They may be written for PostgreSQL: what SQLite has in other words (types, `serial`, `now()`, `::text`) is put
    /// into these. What it does not have at all is an error with the statement; keep that in files of its own, or make
    /// the tables by [`execute_batch`](Self::execute_batch).
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

    /// Runs statements on a database of this name, which is there from then on.
    pub fn execute_batch_on(self, name: &str, sql: &str) -> Self {
        self.on_database(name, |database| {
            database.execute_batch(sql, "execute_batch")
        });
        self
    }

    /// Sets what `cx.config(name)` gives.
    pub fn setting(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0
            .settings
            .borrow_mut()
            .insert(name.into(), value.into());
        self
    }

    /// Sets what `cx.get(name)` gives, as if an earlier part of each request had set it.
    pub fn value(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.values.borrow_mut().insert(name.into(), value.into());
        self
    }

    /// Like [`value`](Self::value), for `cx.get_json(name)`.
    pub fn value_json<T: Serialize + ?Sized>(self, name: impl Into<String>, value: &T) -> Self {
        let value = serde_json::to_string(value).expect("a value of a test can be written as JSON");
        self.value(name, value)
    }

    /// Scripts the reply to outbound GET requests of this URL; a `*` at its end stands for any rest.
    pub fn on_get(self, url: impl Into<String>, reply: Reply) -> Self {
        self.on("GET", url, reply)
    }

    /// Scripts the reply to outbound requests of this method and URL; of several that match, the first
    /// answers.
    pub fn on(self, method: impl Into<String>, url: impl Into<String>, reply: Reply) -> Self {
        self.0.outbound.script(method.into(), url.into(), reply);
        self
    }

    /// Keeps request bodies over this size with the host, as it does with large ones.
    pub fn spool_over(self, bytes: usize) -> Self {
        self.0.spool_over.replace(Some(bytes));
        self
    }

    /// What middleware is around when it is called: `app.around::<page>().call::<signed_in>(get("/"))`. Whether that
    /// happens in a transaction is the view's to say.
    pub fn around<V: View>(self) -> Self {
        self.0.inner.replace(Some(Around {
            kind: V::KIND,
            run: run_view::<V>,
            atomic: is_atomic::<V>(&self.0),
            read_only: V::READ_ONLY,
        }));
        self
    }

    /// A view that sub-requests can reach.
    pub fn view<V: View>(self) -> Self {
        let (kind, run) = (V::KIND, run_view::<V> as Inner);
        self.0.views.borrow_mut().push(Known { kind, run });
        self
    }

    /// Calls a subscriber with an event that has this payload, written as JSON.
    ///
    /// # Panics
    ///
    /// When the payload cannot be written as JSON, or the module is not granted the subscriber's topic.
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
        self.run_request::<V>(call, request, Values::new())
    }

    /// The events that views have published, without those whose transaction was rolled back.
    pub fn published(&self) -> Vec<Event> {
        self.0.published.borrow().clone()
    }

    /// Runs a view, with its extractors and in its transaction: `app.call::<entry>(get("/entries/7"))`.
    ///
    /// # Panics
    ///
    /// When the request is not one the host would give to this view.
    pub fn call<V: View>(&self, request: TestRequest) -> TestResponse {
        let (bytes, max) = (
            request.body().len(),
            self.0.grants.borrow().limits.body_max_bytes,
        );
        let call = Call::of::<V>(self.0.clone(), request.body());
        let session = request.session_values().clone();
        let spool_over = *self.0.spool_over.borrow();
        let request = request.into_request(
            (V::NAME, self.0.routed::<V>()),
            spool_over,
            &self.0.settings.borrow(),
        );
        if bytes > max {
            // The host answers this before the view runs.
            let refused = Error::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("The request body has more than {max} bytes."),
            );
            return TestResponse::new(Err(refused), V::NAME, session, &self.0.settings.borrow());
        }
        self.run_request::<V>(call, request, session)
    }

    fn run_request<V: View>(&self, call: Call, request: Request, session: Values) -> TestResponse {
        let call = Rc::new(call);
        let host = Host::new(call.clone());
        let outcome = host.while_running(|| run_view::<V>(&host, request));
        let outcome = call.finish(outcome);
        TestResponse::new(outcome, V::NAME, session, &self.0.settings.borrow())
    }

    /// A context to call sync code with.
    pub fn context(&self) -> sync::Context {
        sync::Context::new(Host::new(Rc::new(Call::alone(self.0.clone()))))
    }

    /// A context to call async code with, by [`run`].
    pub fn async_context(&self) -> asynch::Context {
        asynch::Context::new(Host::new(Rc::new(Call::alone(self.0.clone()))))
    }

    /// Reads from the default database, to see what a view did.
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
