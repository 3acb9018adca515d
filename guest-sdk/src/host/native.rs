//! The host in native builds. The feature `testing` implements [`Capabilities`]. Without that feature there is no way to make
//! a context, so views are type-checked but cannot run.

use super::{
    BodyError, ChannelError, ConversationError, DatabaseError, EventError, HttpError,
    InboundResponse, MemberList, OutboundRequest, OutboundUpload, RawRequest, RawResponse, Table,
    Values, ViewError,
};
use crate::Result;
use crate::bindings::amphi::view::log::Level;
use crate::channels::Message;
use crate::database::Value;
use crate::socket::{Closed, Happened, Notice};
#[cfg(feature = "testing")]
use crate::stream::Producer;
#[cfg(feature = "testing")]
use crate::{Request, Response};
use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Waker;

/// The calls to the host. None of them waits in a test, so one trait serves both modes.
pub(crate) trait Capabilities {
    fn config(&self, name: &str) -> Option<String>;
    fn request_id(&self) -> String;
    fn route(&self) -> String;
    fn peer(&self) -> String;
    fn traceparent(&self) -> String;
    fn remaining_ms(&self) -> u64;
    fn get(&self, name: &str) -> Option<String>;
    fn set(&self, name: &str, value: &str) -> Result<(), String>;
    /// The folder on this machine that is granted under the path `name`.
    fn directory(&self, name: &str) -> Result<PathBuf, String>;
    fn read_body(&self, offset: u64, max: u32) -> Result<Vec<u8>, BodyError>;
    fn write(&self, data: &[u8]) -> Result<(), BodyError>;
    fn set_trailers(&self, trailers: &[(String, String)]) -> Result<(), BodyError>;
    /// Keeps the function that writes the body of a response. Returns the number of the stream.
    #[cfg(feature = "testing")]
    fn keep(&self, producer: Producer) -> u32;
    fn query(&self, name: &str, sql: &str, values: &[Value]) -> Result<Table, DatabaseError>;
    /// Runs a query whose result is read in pieces.
    fn open(&self, name: &str, sql: &str, values: &[Value]) -> Result<Table, DatabaseError>;
    fn execute(&self, name: &str, sql: &str, values: &[Value]) -> Result<u64, DatabaseError>;
    /// Begins a transaction, or a savepoint when a transaction is open. Returns the depth: 1 for a transaction, more
    /// for a savepoint.
    fn begin(&self, name: &str) -> Result<u32, DatabaseError>;
    /// Ends the transaction or savepoint of this depth, and all savepoints within it.
    fn end(&self, name: &str, depth: u32, commit: bool) -> Result<(), DatabaseError>;
    /// Sends all statements for this database to one connection until [`Capabilities::unpin`].
    fn pin(&self, name: &str) -> Result<(), DatabaseError>;
    fn unpin(&self, name: &str);
    fn set_rollback(&self);
    /// Whether a request may go to this URL.
    fn may_send(&self, url: &str) -> Result<(), HttpError>;
    /// The response to a request, and the error that its body ends with, if it breaks off.
    fn send(
        &self,
        request: OutboundRequest,
    ) -> Result<(InboundResponse, Option<HttpError>), HttpError>;
    fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), EventError>;
    /// The id of the connection whose event the view handles.
    fn connection(&self) -> Option<String>;
    fn members(&self, group: &str) -> Result<MemberList, ChannelError>;
    /// Holds the change until the commit.
    fn change(&self, change: ChannelChange) -> Result<(), ChannelError>;
    /// The next event of the conversation that the call keeps. `None`: none has come, and the waker will be woken.
    fn receive(&self, waker: &Waker) -> Option<Result<Happened, ConversationError>>;
    /// Sends a message within a conversation.
    fn send_message(&self, message: Message) -> Result<(), ConversationError>;
    /// Begins a sleep of a conversation, and returns when it is over. `None`: the call keeps none, and sleeps take no time.
    fn begin_sleep(&self, ms: u32) -> Option<u64>;
    /// Whether a sleep is over. If not, the waker will be woken.
    fn is_over(&self, sleep: u64, waker: &Waker) -> bool;
    fn end_sleep(&self, sleep: u64);
    /// The rest of the chain, which `Next` runs.
    fn rest(&self) -> Part;
    /// Adds a function to the rest of the chain. The function that was added last runs first.
    #[cfg(feature = "testing")]
    fn put_within(&self, run: fn(&Host, Request) -> Result<Response>);
    /// The view that a sub-request goes to.
    fn other(&self, request: &RawRequest) -> Result<Part, ViewError>;
    fn log(&self, level: Level, message: &str, fields: &[(String, String)]);
}

/// What a view sends to connections, or does with its own.
#[cfg_attr(
    not(feature = "testing"),
    expect(dead_code, reason = "only tests look into it")
)]
pub(crate) enum ChannelChange {
    SendToGroup(String, Message),
    SendToConnection(String, Message),
    Notify(Notice),
    SendToClient(Message),
    Close(Closed),
    Join(String),
    Leave(String),
}

/// A guest function that another guest function calls, with the same host.
pub(crate) type Part = Box<dyn Fn(&Host, RawRequest) -> Result<RawResponse, ViewError>>;

thread_local! {
    /// The host of the view that runs on this thread. Stored here because views write log records without a context.
    static RUNNING: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// A handle to the implementation of [`Capabilities`].
#[derive(Clone)]
pub(crate) struct Host(Rc<dyn Capabilities>);

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl Host {
    #[cfg(feature = "testing")]
    pub(crate) fn new(capabilities: Rc<dyn Capabilities>) -> Self {
        Self(capabilities)
    }

    /// Runs `work`. While `work` runs, the log records of this thread go to this host.
    #[cfg(feature = "testing")]
    pub(crate) fn while_running<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Host>);
        impl Drop for Restore {
            fn drop(&mut self) {
                RUNNING.set(self.0.take());
            }
        }
        let _restore = Restore(RUNNING.replace(Some(self.clone())));
        work()
    }

    #[cfg(feature = "testing")]
    pub(crate) fn put_within(&self, run: fn(&Host, Request) -> Result<Response>) {
        self.0.put_within(run);
    }

    #[cfg(feature = "testing")]
    pub(crate) fn keep(&self, producer: Producer) -> u32 {
        self.0.keep(producer)
    }

    pub(crate) fn config(&self, name: &str) -> Option<String> {
        self.0.config(name)
    }

    pub(crate) fn request_id(&self) -> String {
        self.0.request_id()
    }

    pub(crate) fn route(&self) -> String {
        self.0.route()
    }

    pub(crate) fn peer(&self) -> String {
        self.0.peer()
    }

    pub(crate) fn traceparent(&self) -> String {
        self.0.traceparent()
    }

    pub(crate) fn remaining_ms(&self) -> u64 {
        self.0.remaining_ms()
    }

    pub(crate) fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), EventError> {
        self.0.publish(topic, payload)
    }

    pub(crate) fn send_to_group(&self, group: &str, message: Message) -> Result<(), ChannelError> {
        let group = group.to_owned();
        self.0.change(ChannelChange::SendToGroup(group, message))
    }

    pub(crate) fn send_to_connection(
        &self,
        connection: &str,
        message: Message,
    ) -> Result<(), ChannelError> {
        let connection = connection.to_owned();
        let change = ChannelChange::SendToConnection(connection, message);
        self.0.change(change)
    }

    pub(crate) fn notify(&self, group: &str, payload: &[u8]) -> Result<(), ChannelError> {
        self.0.change(ChannelChange::Notify(Notice {
            group: group.to_owned(),
            payload: payload.to_vec(),
        }))
    }

    pub(crate) fn members(&self, group: &str) -> Result<MemberList, ChannelError> {
        self.0.members(group)
    }

    pub(crate) fn connection(&self) -> Option<String> {
        self.0.connection()
    }

    pub(crate) fn send_to_client(&self, message: Message) -> Result<(), ChannelError> {
        self.0.change(ChannelChange::SendToClient(message))
    }

    pub(crate) fn close(&self, code: u16, reason: &str) -> Result<(), ChannelError> {
        let reason = reason.to_owned();
        self.0.change(ChannelChange::Close(Closed { code, reason }))
    }

    pub(crate) fn join(&self, group: &str) -> Result<(), ChannelError> {
        self.0.change(ChannelChange::Join(group.to_owned()))
    }

    pub(crate) fn leave(&self, group: &str) -> Result<(), ChannelError> {
        self.0.change(ChannelChange::Leave(group.to_owned()))
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.0.get(name)
    }

    pub(crate) fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.0.set(name, value)
    }

    pub(crate) fn directory(&self, name: &str, _may_block: bool) -> Result<PathBuf, String> {
        self.0.directory(name)
    }
}

/// Passes a log record to the host of the view that runs on this thread. When no view runs, prints the record to
/// stderr.
pub(crate) fn log(level: Level, message: &str, fields: &[(String, String)]) {
    match RUNNING.with_borrow(Clone::clone) {
        Some(host) => host.0.log(level, message, fields),
        None => {
            let fields: String = fields
                .iter()
                .map(|(name, value)| format!(" {name}={value}"))
                .collect();
            eprintln!("{level:?}: {message}{fields}");
        }
    }
}

/// The rows of a query. The test database has already read all of them.
pub struct Rows {
    columns: Vec<String>,
    rest: RefCell<std::vec::IntoIter<Values>>,
}

impl Rows {
    fn new(table: Table) -> Self {
        Self {
            columns: table.columns,
            rest: RefCell::new(table.rows.into_iter()),
        }
    }

    fn next(&self, max: u32) -> Vec<Values> {
        self.rest.borrow_mut().by_ref().take(max as usize).collect()
    }
}

/// A transaction or savepoint. Rolls back when it is dropped before `end` is called.
pub struct Transaction {
    host: Host,
    name: String,
    depth: u32,
    ended: bool,
}

impl Transaction {
    fn begin(host: &Host, name: &str) -> Result<Self, DatabaseError> {
        let depth = host.0.begin(name)?;
        Ok(Self {
            host: host.clone(),
            name: name.to_owned(),
            depth,
            ended: false,
        })
    }

    fn end(mut self, commit: bool) -> Result<(), DatabaseError> {
        self.ended = true;
        self.host.0.end(&self.name, self.depth, commit)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            // `drop` cannot return an error, so the error of a failed rollback is ignored. The host ignores it, too.
            let _ = self.host.0.end(&self.name, self.depth, false);
        }
    }
}

/// A pinned connection. Dropping it returns the connection.
pub struct Pinned {
    host: Host,
    name: String,
}

impl Pinned {
    fn new(host: &Host, name: &str) -> Result<Self, DatabaseError> {
        host.0.pin(name)?;
        Ok(Self {
            host: host.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.host.0.unpin(&self.name);
    }
}

/// The response to an outbound request. The test has all of it.
pub struct ResponseStream {
    status: u16,
    headers: Vec<(String, String)>,
    rest: RefCell<Vec<u8>>,
    /// The error that the body ends with.
    broken: Option<HttpError>,
}

impl ResponseStream {
    fn open(host: &Host, request: OutboundRequest) -> Result<Self, HttpError> {
        let (response, broken) = host.0.send(request)?;
        Ok(Self {
            status: response.status,
            headers: response.headers,
            rest: RefCell::new(response.body),
            broken,
        })
    }

    fn read(&self, max: u32) -> Result<Vec<u8>, HttpError> {
        let mut rest = self.rest.borrow_mut();
        match &self.broken {
            Some(error) if rest.is_empty() => Err(error.clone()),
            _ => {
                let length = rest.len().min(max as usize);
                Ok(rest.drain(..length).collect())
            }
        }
    }
}

/// A request whose body is written. It is sent when it is finished.
pub struct Upload {
    host: Host,
    head: OutboundUpload,
    body: RefCell<Vec<u8>>,
}

impl Upload {
    fn begin(host: &Host, head: OutboundUpload) -> Result<Self, HttpError> {
        host.0.may_send(&head.url)?;
        Ok(Self {
            host: host.clone(),
            head,
            body: RefCell::default(),
        })
    }

    fn write(&self, data: &[u8]) -> Result<(), HttpError> {
        let mut body = self.body.borrow_mut();
        body.extend_from_slice(data);
        match self.head.length {
            Some(length) if body.len() as u64 > length => Err(HttpError::Invalid(format!(
                "the body has more bytes than the {length} that `content-length` declares"
            ))),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<ResponseStream, HttpError> {
        let body = self.body.into_inner();
        if let Some(length) = self.head.length
            && body.len() as u64 != length
        {
            return Err(HttpError::Invalid(format!(
                "the body has {} bytes, and not the {length} that `content-length` declares",
                body.len()
            )));
        }
        let OutboundUpload {
            method,
            url,
            headers,
            timeout_ms,
            ..
        } = self.head;
        let request = OutboundRequest {
            method,
            url,
            headers,
            body,
            timeout_ms,
        };
        ResponseStream::open(&self.host, request)
    }
}

fn send(host: &Host, request: OutboundRequest) -> Result<InboundResponse, HttpError> {
    match host.0.send(request)? {
        (response, None) => Ok(response),
        (_, Some(error)) => Err(error),
    }
}

pub(crate) mod sync {
    use super::*;
    pub(crate) use super::{Pinned, ResponseStream, Rows, Transaction, Upload};

    pub(crate) fn pin(host: &Host, name: &str) -> Result<Pinned, DatabaseError> {
        Pinned::new(host, name)
    }

    pub(crate) fn set_rollback(host: &Host) {
        host.0.set_rollback();
    }

    pub(crate) fn go_on(host: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        (host.0.rest())(host, request)
    }

    pub(crate) fn subrequest(host: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        (host.0.other(&request)?)(host, request)
    }

    pub(crate) fn read_body(host: &Host, offset: u64, max: u32) -> Result<Vec<u8>, BodyError> {
        host.0.read_body(offset, max)
    }

    pub(crate) fn write(host: &Host, data: &[u8]) -> Result<(), BodyError> {
        host.0.write(data)
    }

    pub(crate) fn set_trailers(
        host: &Host,
        trailers: &[(String, String)],
    ) -> Result<(), BodyError> {
        host.0.set_trailers(trailers)
    }

    pub(crate) fn query(
        host: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<Table, DatabaseError> {
        host.0.query(name, sql, values)
    }

    pub(crate) fn execute(
        host: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<u64, DatabaseError> {
        host.0.execute(name, sql, values)
    }

    pub(crate) fn open(
        host: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<Rows, DatabaseError> {
        host.0.open(name, sql, values).map(Rows::new)
    }

    pub(crate) fn columns(rows: &Rows) -> Vec<String> {
        rows.columns.clone()
    }

    pub(crate) fn next(rows: &Rows, max: u32) -> Result<Vec<Values>, DatabaseError> {
        Ok(rows.next(max))
    }

    pub(crate) fn begin(host: &Host, name: &str) -> Result<Transaction, DatabaseError> {
        Transaction::begin(host, name)
    }

    pub(crate) fn commit(transaction: Transaction) -> Result<(), DatabaseError> {
        transaction.end(true)
    }

    pub(crate) fn rollback(transaction: Transaction) -> Result<(), DatabaseError> {
        transaction.end(false)
    }

    pub(crate) fn send(
        host: &Host,
        request: OutboundRequest,
    ) -> Result<InboundResponse, HttpError> {
        super::send(host, request)
    }

    pub(crate) fn open_request(
        host: &Host,
        request: OutboundRequest,
    ) -> Result<ResponseStream, HttpError> {
        ResponseStream::open(host, request)
    }

    pub(crate) fn response_status(response: &ResponseStream) -> u16 {
        response.status
    }

    pub(crate) fn response_headers(response: &ResponseStream) -> Vec<(String, String)> {
        response.headers.clone()
    }

    pub(crate) fn read_response(response: &ResponseStream, max: u32) -> Result<Vec<u8>, HttpError> {
        response.read(max)
    }

    pub(crate) fn begin_upload(host: &Host, head: OutboundUpload) -> Result<Upload, HttpError> {
        Upload::begin(host, head)
    }

    pub(crate) fn write_upload(upload: &Upload, data: &[u8]) -> Result<(), HttpError> {
        upload.write(data)
    }

    pub(crate) fn finish_upload(upload: Upload) -> Result<ResponseStream, HttpError> {
        upload.finish()
    }
}

/// Every async function here yields once before it returns, so that joined calls interleave as they do under the host.
pub(crate) mod asynch {
    use super::*;
    pub(crate) use super::{Pinned, ResponseStream, Rows, Transaction, Upload};
    use std::task::Poll;

    pub(crate) async fn pin(host: &Host, name: &str) -> Result<Pinned, DatabaseError> {
        give_way().await;
        Pinned::new(host, name)
    }

    pub(crate) fn set_rollback(host: &Host) {
        host.0.set_rollback();
    }

    pub(crate) async fn go_on(host: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        give_way().await;
        (host.0.rest())(host, request)
    }

    pub(crate) async fn subrequest(
        host: &Host,
        request: RawRequest,
    ) -> Result<RawResponse, ViewError> {
        give_way().await;
        (host.0.other(&request)?)(host, request)
    }

    pub(crate) async fn read_body(
        host: &Host,
        offset: u64,
        max: u32,
    ) -> Result<Vec<u8>, BodyError> {
        give_way().await;
        host.0.read_body(offset, max)
    }

    pub(crate) async fn write(host: &Host, data: Vec<u8>) -> Result<(), BodyError> {
        give_way().await;
        host.0.write(&data)
    }

    pub(crate) fn set_trailers(
        host: &Host,
        trailers: &[(String, String)],
    ) -> Result<(), BodyError> {
        host.0.set_trailers(trailers)
    }

    pub(crate) async fn query(
        host: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Table, DatabaseError> {
        give_way().await;
        host.0.query(name, sql, &values)
    }

    pub(crate) async fn execute(
        host: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<u64, DatabaseError> {
        give_way().await;
        host.0.execute(name, sql, &values)
    }

    pub(crate) async fn open(
        host: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Rows, DatabaseError> {
        give_way().await;
        host.0.open(name, sql, &values).map(Rows::new)
    }

    pub(crate) fn columns(rows: &Rows) -> Vec<String> {
        rows.columns.clone()
    }

    pub(crate) async fn next(rows: &Rows, max: u32) -> Result<Vec<Values>, DatabaseError> {
        give_way().await;
        Ok(rows.next(max))
    }

    pub(crate) async fn begin(host: &Host, name: &str) -> Result<Transaction, DatabaseError> {
        give_way().await;
        Transaction::begin(host, name)
    }

    pub(crate) async fn commit(transaction: Transaction) -> Result<(), DatabaseError> {
        give_way().await;
        transaction.end(true)
    }

    pub(crate) async fn rollback(transaction: Transaction) -> Result<(), DatabaseError> {
        give_way().await;
        transaction.end(false)
    }

    pub(crate) async fn send(
        host: &Host,
        request: OutboundRequest,
    ) -> Result<InboundResponse, HttpError> {
        give_way().await;
        super::send(host, request)
    }

    pub(crate) async fn open_request(
        host: &Host,
        request: OutboundRequest,
    ) -> Result<ResponseStream, HttpError> {
        give_way().await;
        ResponseStream::open(host, request)
    }

    pub(crate) fn response_status(response: &ResponseStream) -> u16 {
        response.status
    }

    pub(crate) fn response_headers(response: &ResponseStream) -> Vec<(String, String)> {
        response.headers.clone()
    }

    pub(crate) async fn read_response(
        response: &ResponseStream,
        max: u32,
    ) -> Result<Vec<u8>, HttpError> {
        give_way().await;
        response.read(max)
    }

    pub(crate) async fn begin_upload(
        host: &Host,
        head: OutboundUpload,
    ) -> Result<Upload, HttpError> {
        give_way().await;
        Upload::begin(host, head)
    }

    pub(crate) async fn write_upload(upload: &Upload, data: Vec<u8>) -> Result<(), HttpError> {
        give_way().await;
        upload.write(&data)
    }

    pub(crate) async fn finish_upload(upload: Upload) -> Result<ResponseStream, HttpError> {
        give_way().await;
        upload.finish()
    }

    pub(crate) async fn receive(host: &Host) -> Result<Happened, ConversationError> {
        give_way().await;
        std::future::poll_fn(|task| match host.0.receive(task.waker()) {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        })
        .await
    }

    pub(crate) async fn send_message(
        host: &Host,
        message: Message,
    ) -> Result<(), ConversationError> {
        give_way().await;
        host.0.send_message(message)
    }

    /// Does not wait for the given time, so that tests are fast. A conversation waits until its test lets time pass.
    pub(crate) async fn sleep(host: &Host, ms: u32) {
        give_way().await;
        let Some(over) = host.0.begin_sleep(ms) else {
            return;
        };
        let sleep = Sleep { host, over };
        std::future::poll_fn(|task| match host.0.is_over(sleep.over, task.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// A sleep of a conversation, until dropped.
    struct Sleep<'a> {
        host: &'a Host,
        over: u64,
    }

    impl Drop for Sleep<'_> {
        fn drop(&mut self) {
            self.host.0.end_sleep(self.over);
        }
    }

    async fn give_way() {
        let mut gave = false;
        std::future::poll_fn(|task| {
            if std::mem::replace(&mut gave, true) {
                return Poll::Ready(());
            }
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}
