//! One request's life in a test: what the host would keep for it.

use super::database::{TestDatabase, refused};
use super::request::params;
use super::{Inner, Record, World};
use crate::database::{ErrorKind, Value};
use crate::host::{
    BodyError, Capabilities, DatabaseError, EventError, HttpError, InboundResponse,
    OutboundRequest, Part, RawRequest, Table, ViewError,
};
use crate::log::Level;
use crate::view::{Kind, View};
use crate::{Error, Event, Response, Result, StatusCode};
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
    /// How many transactions and savepoints are around what runs.
    level: Cell<u32>,
    /// Events that leave with the commit, and the level they were published in.
    held: RefCell<Vec<(u32, Event)>>,
    /// Whether the view asked for a rollback, or a part of the request has failed.
    set_rollback: Rc<Cell<bool>>,
}

impl Call {
    pub(super) fn of<V: View>(world: Rc<World>, body: &[u8]) -> Self {
        let own = super::is_atomic::<V>();
        let around = world.inner.borrow().filter(|_| V::KIND == Kind::Middleware);
        let atomic = around.map_or(own, |inner| inner.atomic);
        let timeout = Duration::from_millis(V::TIMEOUT_MS.unwrap_or(30_000).into());
        Self {
            route: world.routed::<V>().pattern(),
            body: body.to_vec(),
            atomic,
            level: Cell::new(atomic.into()),
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
            level: Cell::new(0),
            held: RefCell::default(),
            set_rollback: Rc::default(),
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
            self.release();
        }
        outcome
    }

    /// Lets go of all events that are held.
    fn release(&self) {
        let held = self.held.take().into_iter().map(|(_, event)| event);
        self.world.published.borrow_mut().extend(held);
    }

    /// The database, within the view's transaction if it has one.
    fn database<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut TestDatabase) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let mut databases = self.world.databases.borrow_mut();
        let database = databases.get_mut(name).ok_or_else(|| {
            refused(
                ErrorKind::Denied,
                format!(
                    "the test has no database `{name}`; add `.execute_batch_on(\"{name}\", …)`"
                ),
            )
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
        let depth = self.database(name, TestDatabase::begin)?;
        self.level.set(depth);
        Ok(depth)
    }

    fn end(&self, name: &str, depth: u32, commit: bool) -> Result<(), DatabaseError> {
        let result = self.database(name, |database| database.end(depth, commit));
        let mut held = self.held.borrow_mut();
        match commit && result.is_ok() {
            true => held
                .iter_mut()
                .for_each(|(level, _)| *level = (*level).min(depth - 1)),
            false => held.retain(|(level, _)| *level < depth),
        }
        drop(held);
        self.level.set(depth - 1);
        if depth == 1 {
            self.release();
        }
        result
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
        self.held.borrow_mut().push((self.level.get(), event));
        if self.level.get() == 0 {
            self.release();
        }
        Ok(())
    }

    fn rest(&self) -> Part {
        let inner = *self.world.inner.borrow();
        let inner = inner.expect("the test says what the middleware is around: `App::around`");
        part(inner.run, self.set_rollback.clone())
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
        let run = part(run, self.set_rollback.clone());
        Ok(Box::new(move |host, request| {
            let params = params.clone();
            run(host, RawRequest { params, ..request })
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

/// A view as another guest function gets to see it. When it fails, nothing of the request is kept.
fn part(run: Inner, set_rollback: Rc<Cell<bool>>) -> Part {
    Box::new(move |host, request| match run(host, request.into()) {
        Ok(response) => {
            if response.status.is_server_error() {
                set_rollback.set(true);
            }
            Ok(response.into())
        }
        Err(error) => {
            set_rollback.set(true);
            Err(ViewError {
                status: error.status().as_u16(),
                message: error.message().into(),
                detail: error.detail().map(str::to_owned),
            })
        }
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
