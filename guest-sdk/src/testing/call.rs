//! The state of one request in a test. It stands in for the state that the host keeps for a request.

use super::conversation::Conversation;
use super::database::{TestDatabase, refused};
use super::effects::{Effect, Effects};
use super::grants::{Grants, USER, is_topic};
use super::request::{normalized, params};
use super::{Inner, Record, World};
use crate::channels::Message;
use crate::database::{ErrorKind, Value};
use crate::host::{
    BodyError, Capabilities, ChannelChange, ChannelError, ConversationError, DatabaseError,
    EventError, Happened, HttpError, InboundResponse, MemberList, OutboundRequest, Part,
    RawRequest, Table, ViewError,
};
use crate::log::Level;
use crate::socket::Closed;
use crate::stream::{Producer, Streamed};
use crate::view::{Kind, View};
use crate::{Error, Event, Response, Result};
use ::http::{HeaderName, HeaderValue};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

/// A call of a view.
pub(super) struct Call {
    world: Rc<World>,
    route: &'static str,
    body: Vec<u8>,
    /// How much of the body has been read, if it arrives while the view runs.
    arrived: Option<Cell<usize>>,
    values: RefCell<HashMap<String, String>>,
    deadline: Instant,
    /// Whether the view runs in a transaction. No longer when the transaction has ended.
    atomic: Cell<bool>,
    /// The databases in which the transaction has begun. In each database, it begins at the first statement.
    begun: RefCell<BTreeSet<String>>,
    /// How many transactions and savepoints are open.
    level: Cell<u32>,
    /// Events and messages that are held until the commit.
    held: Effects,
    /// The web socket whose event the view handles.
    connection: Option<String>,
    /// Whether the view asked for a rollback, or a part of the request has failed.
    set_rollback: Rc<Cell<bool>>,
    /// Whether statements that write are refused.
    read_only: bool,
    /// The functions that calls of `Next` have yet to run, the innermost first.
    within: RefCell<Vec<Inner>>,
    /// Whether the module's grants apply: not for queries that the test itself makes.
    of_view: bool,
    /// How many events and messages this call has sent, with those that are still held.
    effects_count: Cell<usize>,
    /// The functions that write the bodies of responses, each at the number of its stream less 1.
    streams: RefCell<Vec<Option<Producer>>>,
    /// The body that such a function is writing.
    written: RefCell<Option<Vec<u8>>>,
    trailers: RefCell<Vec<(String, String)>>,
    /// Number of pinned connections.
    pins: Cell<usize>,
    /// The conversation that the call keeps.
    pub(super) conversation: RefCell<Option<Conversation>>,
}

impl Call {
    pub(super) fn of<V: View>(world: Rc<World>, body: &[u8]) -> Self {
        let own = super::is_atomic::<V>(&world);
        let around = world.inner.borrow().filter(|_| V::KIND == Kind::Middleware);
        let atomic = around.map_or(own, |inner| inner.atomic);
        let most = world.grants.borrow().limits.timeout_ms;
        let timeout = Duration::from_millis(V::TIMEOUT_MS.map_or(most, |own| most.min(own.into())));
        let read_only = around.map_or(V::READ_ONLY, |inner| inner.read_only);
        Self {
            read_only,
            route: world.routed::<V>().pattern(),
            body: body.to_vec(),
            arrived: world.arrives::<V>().then(Cell::default),
            atomic: Cell::new(atomic),
            level: Cell::new(atomic.into()),
            ..Self::new(world, timeout)
        }
    }

    /// The call for an event of this web socket.
    pub(super) fn on_connection(self, id: &str) -> Self {
        let values = self.world.connections.borrow_mut().of(id).values.clone();
        Self {
            values: RefCell::new(values),
            connection: Some(id.into()),
            ..self
        }
    }

    /// A call without a view, for tests of helper functions.
    pub(super) fn alone(world: Rc<World>) -> Self {
        Self::new(world, Duration::from_secs(30))
    }

    /// A call for queries of the test itself, which may use every database.
    pub(super) fn of_test(world: Rc<World>) -> Self {
        Self {
            of_view: false,
            ..Self::alone(world)
        }
    }

    fn new(world: Rc<World>, timeout: Duration) -> Self {
        let values = world.values.clone();
        Self {
            world,
            route: "/",
            body: Vec::new(),
            arrived: None,
            values,
            deadline: Instant::now() + timeout,
            atomic: Cell::new(false),
            begun: RefCell::default(),
            level: Cell::new(0),
            held: Effects::default(),
            connection: None,
            set_rollback: Rc::default(),
            read_only: false,
            of_view: true,
            within: RefCell::default(),
            effects_count: Cell::new(0),
            streams: RefCell::default(),
            written: RefCell::default(),
            trailers: RefCell::default(),
            pins: Cell::new(0),
            conversation: RefCell::default(),
        }
    }

    /// Commits or rolls back, as the host does. When the commit fails, the view fails.
    pub(super) fn finish(&self, outcome: Result<Response>) -> Result<Response> {
        let outcome =
            outcome.and_then(
                |response| match unsendable(&response, &self.world.grants.borrow()) {
                    None => Ok(response),
                    Some(why) => Err(Error::internal(why)),
                },
            );
        let succeeded = matches!(&outcome, Ok(response) if !response.status.is_server_error())
            && !self.set_rollback.get();
        self.atomic.set(false);
        self.level.set(0);
        for name in self.begun.take() {
            let mut databases = self.world.databases.borrow_mut();
            let database = databases.get_mut(&name).expect("it has begun there");
            database.end(1, succeeded).map_err(Error::from_database)?;
        }
        match succeeded {
            true => self.release(),
            false => drop(self.held.take()),
        }
        let is_handled = matches!(&outcome, Ok(response) if response.status.is_success());
        if let Some(id) = self.connection.as_ref().filter(|_| is_handled) {
            let mut connections = self.world.connections.borrow_mut();
            connections.of(id).values = self.values.borrow().clone();
        }
        outcome
    }

    /// Writes the body of a response that streams, as the host has it done when the transaction has ended.
    ///
    /// # Errors
    /// When the body breaks off. The response has what was written before.
    pub(super) fn produce(&self, response: &mut Response) -> Result<()> {
        let Some(producer) = self.producer(response)? else {
            return Ok(());
        };
        self.written.replace(Some(Vec::new()));
        let ended = match producer {
            Producer::Sync(work) => work(),
            Producer::Async(work) => super::run(work()),
        };
        response.body = self.written.take().unwrap_or_default();
        ended?;
        let (announced, bytes) = (response.headers.get("content-length"), response.body.len());
        match announced {
            Some(announced) if announced != bytes.to_string() => Err(Error::internal(format!(
                "the body has {bytes} bytes, and its header `content-length` says {announced}"
            ))),
            _ => Ok(()),
        }
    }

    /// Takes out the function that writes the body of a response that streams, or that keeps the conversation.
    pub(super) fn producer(&self, response: &mut Response) -> Result<Option<Producer>> {
        let producer = match response.take_stream() {
            None | Some(Streamed::Subscription(_)) => return Ok(None),
            Some(Streamed::Own(producer)) => producer.take(),
            Some(Streamed::PassedOn(number)) => {
                let index = (number as usize).wrapping_sub(1);
                let mut streams = self.streams.borrow_mut();
                streams.get_mut(index).and_then(Option::take)
            }
        };
        let producer = producer.ok_or_else(|| {
            Error::internal("the stream of this response has been passed on already")
        })?;
        Ok(Some(producer))
    }

    /// Drops what the call still keeps. Returns the trailers that were set.
    pub(super) fn end(&self) -> Vec<(String, String)> {
        // The functions of streams have contexts, which keep this call.
        drop(self.streams.take());
        self.trailers.take()
    }

    /// Publishes the events, and sends the messages, that are held.
    fn release(&self) {
        for effect in self.held.take() {
            match effect {
                Effect::Event(event) => self.world.published.borrow_mut().push(event),
                Effect::Change(change) => {
                    let own = self.connection.as_deref();
                    self.world.connections.borrow_mut().apply(own, change);
                }
            }
        }
    }

    /// Holds the effect until the commit. Outside of a transaction, it happens at once.
    fn hold(&self, effect: Effect) {
        self.held.hold(self.level.get(), effect);
        if self.level.get() == 0 {
            self.release();
        }
    }

    /// Counts an event or message. Returns how many there may be, when there are more.
    fn count_effect(&self) -> Result<(), usize> {
        let (sent, most) = (
            self.effects_count.get() + 1,
            self.world.grants.borrow().limits.events_max,
        );
        self.effects_count.set(sent);
        if sent > most { Err(most) } else { Ok(()) }
    }

    /// Checks that the host would allow this.
    fn check(&self, change: &ChannelChange) -> Result<(), ChannelError> {
        let grants = self.world.grants.borrow();
        let bytes = match change {
            ChannelChange::SendToGroup(_, message)
            | ChannelChange::SendToConnection(_, message)
            | ChannelChange::SendToClient(message) => message.as_bytes().len(),
            ChannelChange::Notify(notice) => notice.payload.len(),
            ChannelChange::Close(_) | ChannelChange::Join(_) | ChannelChange::Leave(_) => 0,
        };
        match change {
            ChannelChange::SendToGroup(group, _) => grants.channel(group),
            ChannelChange::Notify(notice) => grants.channel(&notice.group),
            ChannelChange::SendToConnection(..) => grants.connections(),
            ChannelChange::Close(closed) if !is_close(closed) => Err(format!(
                "a view closes with a code of 1000 or 3000 to 4999 and at most {REASON_MAX_BYTES} bytes of reason, not with {} and {} bytes",
                closed.code,
                closed.reason.len()
            )),
            _ if self.connection.is_none() => {
                Err("there is no web socket: this request is not an event of one".into())
            }
            ChannelChange::Join(group) => grants.channel(group),
            ChannelChange::SendToClient(_) | ChannelChange::Close(_) | ChannelChange::Leave(_) => {
                Ok(())
            }
        }
        .map_err(ChannelError::Denied)?;
        let max = grants.limits.message_max_bytes;
        if bytes > max {
            return Err(ChannelError::TooLarge(format!(
                "the message has {bytes} bytes; `payload_max_bytes` of `[channels]` is {max}"
            )));
        }
        Ok(())
    }

    /// Runs `work` on the database, in the view's transaction if it has one.
    fn database<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut TestDatabase) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let granted = match self.of_view {
            true => self.world.grants.borrow().database(name),
            false => Ok(()),
        };
        granted.map_err(|message| refused(ErrorKind::Denied, message))?;
        let mut databases = self.world.databases.borrow_mut();
        let database = databases.get_mut(name).ok_or_else(|| {
            refused(
                ErrorKind::Denied,
                format!(
                    "the test has no database `{name}`; add `.execute_batch_on(\"{name}\", …)`"
                ),
            )
        })?;
        if self.atomic.get() && self.begun.borrow_mut().insert(name.to_owned()) {
            database.begin()?;
        }
        work(database)
    }

    fn run(
        &self,
        name: &str,
        sql: &str,
        values: &[Value],
        max_bytes: Option<usize>,
    ) -> Result<(Table, u64), DatabaseError> {
        let read_only = self.read_only;
        self.database(name, |database| {
            database.run(sql, values, read_only, max_bytes)
        })
    }
}

/// Whether a view may close a connection like this.
fn is_close(closed: &Closed) -> bool {
    let is_code = closed.code == 1000 || (3000..5000).contains(&closed.code);
    is_code && closed.reason.len() <= REASON_MAX_BYTES
}

/// The reason why the host would refuse to send this response. `None` if the host would send it.
fn unsendable(response: &Response, grants: &Grants) -> Option<String> {
    let limits = &grants.limits;
    if let Some(subscription) = response.subscribes_to()
        && let Err(denied) = grants.channel(&subscription.group)
    {
        return Some(denied);
    }
    let (bytes, max) = (response.body.len(), limits.response_max_bytes);
    if bytes > max {
        return Some(format!(
            "the response has {bytes} bytes; `response_max_bytes` is {max}"
        ));
    }
    let of_header = |(name, value): (&str, &str)| name.len() + value.len() + HEADER_BYTES;
    let (bytes, max) = (
        response.headers.iter().map(of_header).sum::<usize>(),
        limits.headers_max_bytes,
    );
    if bytes > max {
        return Some(format!(
            "the headers of the response have {bytes} bytes; `headers_max_bytes` of `[limits]` is {max}"
        ));
    }
    if !(200..600).contains(&response.status.as_u16()) {
        return Some(format!(
            "the response has the status {}: a view answers with 200 to 599",
            response.status.as_u16()
        ));
    }
    response.headers.iter().find_map(|(name, value)| {
        let Ok(key) = HeaderName::from_bytes(name.as_bytes()) else {
            return Some(format!(
                "the response has a header whose name is not valid: {name:?}"
            ));
        };
        if HOP_BY_HOP.contains(&key.as_str()) {
            return Some(format!(
                "the response has the header `{key}`, which only the host can set"
            ));
        }
        HeaderValue::from_bytes(value.as_bytes()).err().map(|_| {
            format!("the response header `{key}` has a value that is not valid: {value:?}")
        })
    })
}

/// How many bytes of a body that arrives are there at a time.
const ARRIVING_BYTES: usize = 16 << 10;
/// Bytes that the host counts for each header in addition to its name and value.
const HEADER_BYTES: usize = 32;
/// The room for the reason in a frame that closes a web socket (RFC 6455, 5.5).
const REASON_MAX_BYTES: usize = 123;
/// Headers that concern a single connection. Only the host sets them.
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "trailer",
    "te",
];

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
        let limits = self.world.grants.borrow().limits;
        let (bytes, max) = (name.len() + value.len(), limits.context_value_max_bytes);
        if bytes > max {
            return Err(format!(
                "the context value `{name}` has {bytes} bytes with its name; `context_value_max_bytes` is {max}"
            ));
        }
        if name == USER {
            return Err(format!(
                "the context value `{name}` is the host's, and views cannot set it: choose another name"
            ));
        }
        let mut values = self.values.borrow_mut();
        if !values.contains_key(name) && values.len() >= limits.context_values_max {
            return Err(format!(
                "the request has {} context values already, as many as `context_values_max` allows",
                values.len()
            ));
        }
        values.insert(name.into(), value.into());
        Ok(())
    }

    fn directory(&self, name: &str) -> Result<PathBuf, String> {
        self.world.grants.borrow().directory(name)
    }

    fn read_body(&self, offset: u64, max: u32) -> Result<Vec<u8>, BodyError> {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.body.get(offset..))
            .unwrap_or_default();
        let Some(arrived) = &self.arrived else {
            return Ok(rest[..rest.len().min(max as usize)].to_vec());
        };
        if offset != arrived.get() as u64 {
            return Err(BodyError::Io(format!(
                "this body arrives while the view runs: the next byte to read is {}, not {offset}",
                arrived.get()
            )));
        }
        let piece = rest[..rest.len().min(max as usize).min(ARRIVING_BYTES)].to_vec();
        arrived.set(arrived.get() + piece.len());
        Ok(piece)
    }

    fn write(&self, data: &[u8]) -> Result<(), BodyError> {
        let mut written = self.written.borrow_mut();
        let written = written.as_mut().ok_or_else(not_producing)?;
        written.extend_from_slice(data);
        Ok(())
    }

    fn set_trailers(&self, trailers: &[(String, String)]) -> Result<(), BodyError> {
        if self.written.borrow().is_none() {
            return Err(not_producing());
        }
        self.trailers.replace(trailers.to_vec());
        Ok(())
    }

    fn keep(&self, producer: Producer) -> u32 {
        let mut streams = self.streams.borrow_mut();
        streams.push(Some(producer));
        u32::try_from(streams.len()).expect("a test has few streams")
    }

    fn query(&self, name: &str, sql: &str, values: &[Value]) -> Result<Table, DatabaseError> {
        let max = self.world.grants.borrow().limits.rows_max_bytes;
        self.run(name, sql, values, Some(max))
            .map(|(table, _)| table)
    }

    fn open(&self, name: &str, sql: &str, values: &[Value]) -> Result<Table, DatabaseError> {
        self.run(name, sql, values, None).map(|(table, _)| table)
    }

    fn execute(&self, name: &str, sql: &str, values: &[Value]) -> Result<u64, DatabaseError> {
        self.run(name, sql, values, None)
            .map(|(_, changes)| changes)
    }

    fn begin(&self, name: &str) -> Result<u32, DatabaseError> {
        let depth = self.database(name, TestDatabase::begin)?;
        self.level.set(depth);
        Ok(depth)
    }

    fn end(&self, name: &str, depth: u32, commit: bool) -> Result<(), DatabaseError> {
        let result = self.database(name, |database| database.end(depth, commit));
        self.held.end(depth, commit && result.is_ok());
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
        })?;
        self.pins.set(self.pins.get() + 1);
        Ok(())
    }

    fn unpin(&self, name: &str) {
        self.pins.set(self.pins.get() - 1);
        if let Some(database) = self.world.databases.borrow_mut().get_mut(name) {
            database.pin(false);
        }
    }

    fn set_rollback(&self) {
        self.set_rollback.set(true);
    }

    fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), EventError> {
        let grants = self.world.grants.borrow();
        grants.publish(topic).map_err(EventError::Denied)?;
        if !is_topic(topic) {
            return Err(EventError::Denied(format!(
                "`{topic}` is not a topic: write words of letters, digits, `-` and `_` with dots between, such as `orders.paid`"
            )));
        }
        let max = grants.limits.payload_max_bytes;
        if payload.len() > max {
            return Err(EventError::TooLarge(format!(
                "the event on `{topic}` has {} bytes; `payload_max_bytes` of `[events]` is {max}",
                payload.len()
            )));
        }
        drop(grants);
        self.count_effect().map_err(|most| {
            EventError::Full(format!(
                "the request has published {most} events already, as many as `events_max` allows: the event on `{topic}` was not published"
            ))
        })?;
        let event = Event {
            topic: topic.into(),
            payload: payload.into(),
        };
        self.hold(Effect::Event(event));
        Ok(())
    }

    fn connection(&self) -> Option<String> {
        self.connection.clone()
    }

    fn members(&self, group: &str) -> Result<MemberList, ChannelError> {
        let granted = self.world.grants.borrow().channel(group);
        granted.map_err(ChannelError::Denied)?;
        Ok(self.world.connections.borrow().members(group))
    }

    fn change(&self, change: ChannelChange) -> Result<(), ChannelError> {
        self.check(&change)?;
        self.count_effect().map_err(|most| {
            ChannelError::Full(format!(
                "the request has sent {most} messages and events already, as many as `events_max` allows"
            ))
        })?;
        self.hold(Effect::Change(change));
        Ok(())
    }

    fn receive(&self, waker: &Waker) -> Option<Result<Happened, ConversationError>> {
        if self.level.get() > 0 || self.pins.get() > 0 {
            return Some(Err(ConversationError::Refused(
                "nothing is received within a transaction or with a pinned connection, because others wait for these: end it first".into(),
            )));
        }
        let received = self.conversation(|it| it.receive(waker));
        let received = received.unwrap_or_else(|| Some(Err(no_conversation())));
        if let Some(Ok(_)) = received {
            self.effects_count.set(0);
        }
        received
    }

    fn send_message(&self, message: Message) -> Result<(), ConversationError> {
        let is_closed = self.conversation(|it| it.is_closed);
        let is_closed = is_closed.ok_or_else(no_conversation)?;
        let id = self.connection.as_deref().unwrap_or_default();
        if is_closed || self.world.connections.borrow_mut().of(id).closed.is_some() {
            return Err(ConversationError::Ended);
        }
        let change = ChannelChange::SendToClient(message);
        let checked = self.check(&change);
        checked.map_err(|error| match error {
            ChannelError::Denied(text)
            | ChannelError::TooLarge(text)
            | ChannelError::Full(text) => ConversationError::Refused(text),
        })?;
        self.hold(Effect::Change(change));
        Ok(())
    }

    fn begin_sleep(&self, ms: u32) -> Option<u64> {
        self.conversation(|it| it.begin_sleep(ms))
    }

    fn is_over(&self, sleep: u64, waker: &Waker) -> bool {
        self.conversation(|it| it.is_over(sleep, waker))
            .unwrap_or(true)
    }

    fn end_sleep(&self, sleep: u64) {
        self.conversation(|it| it.end_sleep(sleep));
    }

    fn put_within(&self, run: Inner) {
        self.within.borrow_mut().push(run);
    }

    fn rest(&self) -> Part {
        if let Some(run) = self.within.borrow_mut().pop() {
            return part(run, self.set_rollback.clone());
        }
        let inner = *self.world.inner.borrow();
        let inner = inner.expect("the test says what the middleware is around: `App::around`");
        part(inner.run, self.set_rollback.clone())
    }

    fn other(&self, request: &RawRequest) -> Result<Part, ViewError> {
        let granted = self.world.grants.borrow().subrequest();
        granted.map_err(|detail| ViewError {
            status: 500,
            message: "internal server error".into(),
            detail: Some(detail),
        })?;
        let views = self.world.views.borrow();
        let known = views.iter().find_map(|known| {
            if matches!(known.kind, Kind::Socket { .. }) {
                return None;
            }
            let found = params(known.kind.pattern(), &request.path)?;
            known
                .kind
                .answers(&request.method)
                .then_some((known.run, found))
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
            let path = normalized(&request.path);
            run(
                host,
                RawRequest {
                    path,
                    params,
                    ..request
                },
            )
        }))
    }

    fn may_send(&self, url: &str) -> Result<(), HttpError> {
        let granted = self.world.grants.borrow().http(url);
        granted.map_err(HttpError::Denied)
    }

    fn send(
        &self,
        request: OutboundRequest,
    ) -> Result<(InboundResponse, Option<HttpError>), HttpError> {
        self.may_send(&request.url)?;
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

/// Makes `run` callable by another guest function. When `run` fails, the request's transaction is rolled back.
fn part(run: Inner, set_rollback: Rc<Cell<bool>>) -> Part {
    Box::new(move |host, request| match run(host, request.into()) {
        Ok(response) => {
            if response.status.is_server_error() {
                set_rollback.set(true);
            }
            Ok(response.into_raw(host))
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

fn no_conversation() -> ConversationError {
    ConversationError::Refused(
        "there is no conversation: only the function of a web socket that keeps its conversation has one, after the opening".into(),
    )
}

fn not_producing() -> BodyError {
    BodyError::Io(
        "a body is written by the function of a `Stream`, when the view has returned".into(),
    )
}

/// The response that the client would get for this error.
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
    let mut response = Response::new(error.status());
    response.set_body(text);
    response
}
