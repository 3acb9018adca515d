//! One request's life in a test: what the host would keep for it.

use super::database::TestDatabase;
use super::request::params;
use super::{Record, World};
use crate::database::{ErrorKind, Value};
use crate::host::{
    BodyError, Capabilities, DatabaseError, EventError, Host, HttpError, InboundResponse,
    OutboundRequest, Part, RawRequest, Table, ViewError,
};
use crate::log::Level;
use crate::view::View;
use crate::{Error, Event, Request, Response, Result, StatusCode};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A call of a view.
pub(super) struct Call {
    world: Rc<World>,
    route: &'static str,
    body: Vec<u8>,
    values: RefCell<HashMap<String, String>>,
    deadline: Instant,
    /// Whether the view runs in a transaction.
    atomic: bool,
    /// The databases in which that has begun, which is at the first statement.
    begun: RefCell<BTreeSet<String>>,
    /// Events that leave with the commit.
    held: RefCell<Vec<Event>>,
    set_rollback: Cell<bool>,
}

impl Call {
    pub(super) fn of<V: View>(world: Rc<World>, body: &[u8]) -> Self {
        // The default of an app's `atomic = "unsafe-methods"`.
        let atomic = V::ATOMIC.unwrap_or(!matches!(
            V::KIND.method(),
            "GET" | "HEAD" | "OPTIONS" | "TRACE"
        ));
        let timeout = Duration::from_millis(V::TIMEOUT_MS.unwrap_or(30_000).into());
        Self {
            route: V::KIND.pattern(),
            body: body.to_vec(),
            atomic,
            ..Self::new(world, timeout)
        }
    }

    /// A call of no view, for tests of other code.
    pub(super) fn alone(world: Rc<World>) -> Self {
        Self::new(world, Duration::from_secs(30))
    }

    fn new(world: Rc<World>, timeout: Duration) -> Self {
        let values = world.values.clone();
        Self {
            world,
            route: "/",
            body: Vec::new(),
            values,
            deadline: Instant::now() + timeout,
            atomic: false,
            begun: RefCell::default(),
            held: RefCell::default(),
            set_rollback: Cell::new(false),
        }
    }

    /// Commits or rolls back, as the host does: a failed commit is a failed view.
    pub(super) fn finish(&self, outcome: Result<Response>) -> Result<Response> {
        let succeeded = matches!(&outcome, Ok(response) if !response.status.is_server_error())
            && !self.set_rollback.get();
        for name in self.begun.take() {
            let mut databases = self.world.databases.borrow_mut();
            let database = databases.get_mut(&name).expect("it has begun there");
            database.end(1, succeeded).map_err(Error::from_database)?;
        }
        if succeeded {
            self.world.published.borrow_mut().extend(self.held.take());
        }
        outcome
    }

    /// The database, within the view's transaction if it has one.
    fn database<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut TestDatabase) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let mut databases = self.world.databases.borrow_mut();
        let database = databases.get_mut(name).ok_or_else(|| DatabaseError {
            kind: ErrorKind::Denied,
            message: format!(
                "the test has no database `{name}`; add `.execute_batch_on(\"{name}\", …)`"
            ),
        })?;
        if self.atomic && self.begun.borrow_mut().insert(name.to_owned()) {
            database.begin()?;
        }
        work(database)
    }
}

impl Capabilities for Call {
    fn config(&self, name: &str) -> Option<String> {
        self.world.settings.borrow().get(name).cloned()
    }

    fn request_id(&self) -> String {
        "test".into()
    }

    fn route(&self) -> String {
        self.route.into()
    }

    fn peer(&self) -> String {
        "127.0.0.1:50000".into()
    }

    fn remaining_ms(&self) -> u64 {
        let left = self.deadline.saturating_duration_since(Instant::now());
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    fn get(&self, name: &str) -> Option<String> {
        self.values.borrow().get(name).cloned()
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.values.borrow_mut().insert(name.into(), value.into());
        Ok(())
    }

    fn read_body(&self, offset: u64, max: u32) -> Result<Vec<u8>, BodyError> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.body.get(offset..))
            .unwrap_or_default();
        Ok(rest[..rest.len().min(max as usize)].to_vec())
    }

    fn query(&self, name: &str, sql: &str, values: &[Value]) -> Result<Table, DatabaseError> {
        self.database(name, |database| database.run(sql, values))
            .map(|(table, _)| table)
    }

    fn execute(&self, name: &str, sql: &str, values: &[Value]) -> Result<u64, DatabaseError> {
        self.database(name, |database| database.run(sql, values))
            .map(|(_, changes)| changes)
    }

    fn begin(&self, name: &str) -> Result<u32, DatabaseError> {
        self.database(name, TestDatabase::begin)
    }

    fn end(&self, name: &str, depth: u32, commit: bool) -> Result<(), DatabaseError> {
        self.database(name, |database| database.end(depth, commit))
    }

    fn traceparent(&self) -> String {
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()
    }

    fn pin(&self, name: &str) -> Result<(), DatabaseError> {
        self.database(name, |database| {
            database.pin(true);
            Ok(())
        })
    }

    fn unpin(&self, name: &str) {
        if let Some(database) = self.world.databases.borrow_mut().get_mut(name) {
            database.pin(false);
        }
    }

    fn set_rollback(&self) {
        self.set_rollback.set(true);
    }

    fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), EventError> {
        let event = Event {
            topic: topic.into(),
            payload: payload.into(),
        };
        match self.atomic {
            true => self.held.borrow_mut().push(event),
            false => self.world.published.borrow_mut().push(event),
        }
        Ok(())
    }

    fn rest(&self) -> Part {
        let inner = *self.world.inner.borrow();
        let inner = inner.expect("the test says what the middleware is around: `App::around`");
        part(inner)
    }

    fn other(&self, request: &RawRequest) -> Result<Part, ViewError> {
        let views = self.world.views.borrow();
        let known = views.iter().find_map(|known| {
            let found = params(known.kind.pattern(), &request.path)?;
            (known.kind.method() == request.method).then_some((known.run, found))
        });
        let (run, params) = known.ok_or_else(|| ViewError {
            status: 404,
            message: format!(
                "the test has no view for {} {}: add `.view::<…>()`",
                request.method, request.path
            ),
            detail: None,
        })?;
        Ok(Box::new(move |host, request| {
            let params = params.clone();
            part(run)(host, RawRequest { params, ..request })
        }))
    }

    fn send(&self, request: OutboundRequest) -> Result<InboundResponse, HttpError> {
        self.world.outbound.send(request)
    }

    fn log(&self, level: Level, message: &str, fields: &[(String, String)]) {
        let record = Record {
            level,
            message: message.into(),
            fields: fields.to_vec(),
        };
        self.world.logs.borrow_mut().push(record);
    }
}

/// A view as another guest function gets to see it.
fn part(run: fn(&Host, Request) -> Result<Response>) -> Part {
    Box::new(move |host, request| match run(host, request.into()) {
        Ok(response) => Ok(response.into()),
        Err(error) => Err(ViewError {
            status: error.status().as_u16(),
            message: error.message().into(),
            detail: error.detail().map(str::to_owned),
        }),
    })
}

/// What the client would get for this error.
pub(super) fn error_response(error: &Error) -> Response {
    let text = if error.status().is_server_error() {
        error
            .status()
            .canonical_reason()
            .unwrap_or("error")
            .to_owned()
    } else {
        error.message().to_owned()
    };
    let status: StatusCode = error.status();
    Response {
        body: text.into_bytes(),
        ..Response::new(status)
    }
}
