//! The host in a component: each function calls an import of the component. The linker leaves out every import that no
//! view calls.

use super::{
    BodyError, ChannelError, ConversationError, DatabaseError, EventError, HttpError,
    InboundResponse, MemberList, OutboundRequest, OutboundUpload, RawRequest, RawResponse, Table,
    Values, ViewError,
};
use crate::bindings::amphi::view::{channels, config, context, events, log, socket};
use crate::channels::Message;
use crate::database::Value;
use crate::socket::{Closed, Happened, Notice, Received};
use crate::stream::Producer;
use std::cell::Cell;
use std::path::PathBuf;

/// The host. A component has exactly one, so nothing is stored.
#[derive(Clone, Debug)]
pub(crate) struct Host;

impl Host {
    pub(crate) fn config(&self, name: &str) -> Option<String> {
        config::get(name)
    }

    pub(crate) fn request_id(&self) -> String {
        context::request_id()
    }

    pub(crate) fn route(&self) -> String {
        context::route()
    }

    pub(crate) fn peer(&self) -> String {
        context::peer()
    }

    pub(crate) fn remaining_ms(&self) -> u64 {
        context::remaining_ms()
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        context::get(name)
    }

    pub(crate) fn set(&self, name: &str, value: &str) -> Result<(), String> {
        context::set(name, value).map_err(|error| match error {
            context::Error::TooLarge(text) | context::Error::Reserved(text) => text,
        })
    }

    /// A component sees a granted folder under the path `guest` of the configuration, so this returns the path
    /// unchanged. The check whether the folder exists may block, so this makes the check only when `may_block` is true.
    pub(crate) fn directory(&self, name: &str, may_block: bool) -> Result<PathBuf, String> {
        let path = PathBuf::from(name);
        if !may_block || path.is_dir() {
            return Ok(path);
        }
        Err(format!(
            "the module has no folder `{name}`: add `{{ host = \"…\", guest = \"{name}\" }}` to `directories` of its table in amphi.toml"
        ))
    }

    pub(crate) fn traceparent(&self) -> String {
        context::traceparent()
    }

    /// Keeps the function that writes the body of this instance's response. Returns the number of the stream.
    pub(crate) fn keep(&self, producer: Producer) -> u32 {
        KEPT.set(Some(producer));
        0
    }

    pub(crate) fn publish(&self, topic: &str, payload: &[u8]) -> Result<(), EventError> {
        events::publish(topic, payload)
    }

    pub(crate) fn send_to_group(&self, group: &str, message: Message) -> Result<(), ChannelError> {
        channels::send(group, &message.into())
    }

    pub(crate) fn send_to_connection(
        &self,
        connection: &str,
        message: Message,
    ) -> Result<(), ChannelError> {
        channels::send_to(connection, &message.into())
    }

    pub(crate) fn notify(&self, group: &str, payload: &[u8]) -> Result<(), ChannelError> {
        channels::notify(group, payload)
    }

    pub(crate) fn members(&self, group: &str) -> Result<MemberList, ChannelError> {
        channels::members(group)
    }

    pub(crate) fn connection(&self) -> Option<String> {
        socket::id()
    }

    pub(crate) fn send_to_client(&self, message: Message) -> Result<(), ChannelError> {
        socket::send(&message.into())
    }

    pub(crate) fn close(&self, code: u16, reason: &str) -> Result<(), ChannelError> {
        socket::close(code, reason)
    }

    pub(crate) fn join(&self, group: &str) -> Result<(), ChannelError> {
        socket::join(group)
    }

    pub(crate) fn leave(&self, group: &str) -> Result<(), ChannelError> {
        socket::leave(group)
    }
}

thread_local! {
    /// The function that [`Host::keep`] keeps.
    static KEPT: Cell<Option<Producer>> = const { Cell::new(None) };
}

/// Takes the function that this instance keeps.
pub(crate) fn kept() -> Option<Producer> {
    KEPT.take()
}

pub(crate) fn log(level: log::Level, message: &str, fields: &[(String, String)]) {
    log::write(level, message, fields);
}

pub(crate) mod sync {
    use super::*;
    use crate::bindings::amphi::view::{body, body_writer, database, http, middleware, subrequest};
    pub(crate) use database::{Pinned, Rows, Transaction};
    pub(crate) use http::{ResponseStream, Upload};

    pub(crate) fn read_body(_: &Host, offset: u64, max: u32) -> Result<Vec<u8>, BodyError> {
        body::read(offset, max)
    }

    pub(crate) fn write(_: &Host, data: &[u8]) -> Result<(), BodyError> {
        body_writer::write(data)
    }

    pub(crate) fn set_trailers(_: &Host, trailers: &[(String, String)]) -> Result<(), BodyError> {
        body_writer::set_trailers(trailers)
    }

    pub(crate) fn query(
        _: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<Table, DatabaseError> {
        database::query(name, sql, values)
    }

    pub(crate) fn execute(
        _: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<u64, DatabaseError> {
        database::execute(name, sql, values)
    }

    pub(crate) fn open(
        _: &Host,
        name: &str,
        sql: &str,
        values: &[Value],
    ) -> Result<Rows, DatabaseError> {
        database::open(name, sql, values)
    }

    pub(crate) fn columns(rows: &Rows) -> Vec<String> {
        rows.columns()
    }

    pub(crate) fn next(rows: &Rows, max: u32) -> Result<Vec<Values>, DatabaseError> {
        rows.next(max)
    }

    pub(crate) fn begin(_: &Host, name: &str) -> Result<Transaction, DatabaseError> {
        database::begin(name)
    }

    pub(crate) fn commit(transaction: Transaction) -> Result<(), DatabaseError> {
        Transaction::commit(transaction)
    }

    pub(crate) fn rollback(transaction: Transaction) -> Result<(), DatabaseError> {
        Transaction::rollback(transaction)
    }

    pub(crate) fn pin(_: &Host, name: &str) -> Result<Pinned, DatabaseError> {
        database::pin(name)
    }

    pub(crate) fn set_rollback(_: &Host) {
        database::set_rollback();
    }

    pub(crate) fn send(_: &Host, request: OutboundRequest) -> Result<InboundResponse, HttpError> {
        http::send(&request)
    }

    pub(crate) fn open_request(
        _: &Host,
        request: OutboundRequest,
    ) -> Result<ResponseStream, HttpError> {
        http::open(&request)
    }

    pub(crate) fn response_status(response: &ResponseStream) -> u16 {
        response.status()
    }

    pub(crate) fn response_headers(response: &ResponseStream) -> Vec<(String, String)> {
        response.headers()
    }

    pub(crate) fn read_response(response: &ResponseStream, max: u32) -> Result<Vec<u8>, HttpError> {
        response.read(max)
    }

    pub(crate) fn begin_upload(_: &Host, head: OutboundUpload) -> Result<Upload, HttpError> {
        http::begin_upload(&head)
    }

    pub(crate) fn write_upload(upload: &Upload, data: &[u8]) -> Result<(), HttpError> {
        upload.write(data)
    }

    pub(crate) fn finish_upload(upload: Upload) -> Result<ResponseStream, HttpError> {
        Upload::finish(upload)
    }

    pub(crate) fn go_on(_: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        middleware::next(&request)
    }

    pub(crate) fn subrequest(_: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        subrequest::send(&request)
    }
}

pub(crate) mod asynch {
    use super::*;
    use crate::bindings::amphi::view::{
        body_async, body_writer_async, conversation, database_async, http_async, middleware_async,
        subrequest_async, timer,
    };
    pub(crate) use database_async::{Pinned, Rows, Transaction};
    pub(crate) use http_async::{ResponseStream, Upload};

    pub(crate) async fn read_body(_: &Host, offset: u64, max: u32) -> Result<Vec<u8>, BodyError> {
        body_async::read(offset, max).await
    }

    pub(crate) async fn write(_: &Host, data: Vec<u8>) -> Result<(), BodyError> {
        body_writer_async::write(data).await
    }

    pub(crate) fn set_trailers(_: &Host, trailers: &[(String, String)]) -> Result<(), BodyError> {
        body_writer_async::set_trailers(trailers)
    }

    pub(crate) async fn query(
        _: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Table, DatabaseError> {
        database_async::query(name.to_owned(), sql.to_owned(), values).await
    }

    pub(crate) async fn execute(
        _: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<u64, DatabaseError> {
        database_async::execute(name.to_owned(), sql.to_owned(), values).await
    }

    pub(crate) async fn open(
        _: &Host,
        name: &str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Rows, DatabaseError> {
        database_async::open(name.to_owned(), sql.to_owned(), values).await
    }

    pub(crate) fn columns(rows: &Rows) -> Vec<String> {
        rows.columns()
    }

    pub(crate) async fn next(rows: &Rows, max: u32) -> Result<Vec<Values>, DatabaseError> {
        rows.next(max).await
    }

    pub(crate) async fn begin(_: &Host, name: &str) -> Result<Transaction, DatabaseError> {
        database_async::begin(name.to_owned()).await
    }

    pub(crate) async fn commit(transaction: Transaction) -> Result<(), DatabaseError> {
        Transaction::commit(transaction).await
    }

    pub(crate) async fn rollback(transaction: Transaction) -> Result<(), DatabaseError> {
        Transaction::rollback(transaction).await
    }

    pub(crate) async fn send(
        _: &Host,
        request: OutboundRequest,
    ) -> Result<InboundResponse, HttpError> {
        http_async::send(request).await
    }

    pub(crate) async fn open_request(
        _: &Host,
        request: OutboundRequest,
    ) -> Result<ResponseStream, HttpError> {
        http_async::open(request).await
    }

    pub(crate) fn response_status(response: &ResponseStream) -> u16 {
        response.status()
    }

    pub(crate) fn response_headers(response: &ResponseStream) -> Vec<(String, String)> {
        response.headers()
    }

    pub(crate) async fn read_response(
        response: &ResponseStream,
        max: u32,
    ) -> Result<Vec<u8>, HttpError> {
        response.read(max).await
    }

    pub(crate) async fn begin_upload(_: &Host, head: OutboundUpload) -> Result<Upload, HttpError> {
        http_async::begin_upload(head).await
    }

    pub(crate) async fn write_upload(upload: &Upload, data: Vec<u8>) -> Result<(), HttpError> {
        upload.write(data).await
    }

    pub(crate) async fn finish_upload(upload: Upload) -> Result<ResponseStream, HttpError> {
        Upload::finish(upload).await
    }

    pub(crate) async fn pin(_: &Host, name: &str) -> Result<Pinned, DatabaseError> {
        database_async::pin(name.to_owned()).await
    }

    pub(crate) fn set_rollback(_: &Host) {
        database_async::set_rollback();
    }

    pub(crate) async fn go_on(_: &Host, request: RawRequest) -> Result<RawResponse, ViewError> {
        middleware_async::next(request).await
    }

    pub(crate) async fn subrequest(
        _: &Host,
        request: RawRequest,
    ) -> Result<RawResponse, ViewError> {
        subrequest_async::send(request).await
    }

    pub(crate) async fn receive(_: &Host) -> Result<Happened, ConversationError> {
        Ok(match conversation::receive().await? {
            conversation::Event::Message(message) => {
                Happened::Received(Received::Message(message.into()))
            }
            conversation::Event::Notice(conversation::Notice { group, payload }) => {
                Happened::Received(Received::Notice(Notice { group, payload }))
            }
            conversation::Event::Closed(conversation::Closed { code, reason }) => {
                Happened::Closed(Closed { code, reason })
            }
        })
    }

    pub(crate) async fn send_message(_: &Host, message: Message) -> Result<(), ConversationError> {
        conversation::send(message.into()).await
    }

    pub(crate) async fn sleep(_: &Host, ms: u32) {
        timer::sleep(ms).await;
    }
}
