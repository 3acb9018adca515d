//! The memory of the resources that a component of `wasi:http` holds: header fields, and requests and responses that it
//! makes. wasmtime limits each list of fields, and the table limits the number of resources, but both together, or texts
//! of a request such as its authority, would be far more than `memory_mb`.
//!
//! What the resources take is counted after every few calls, and drawn from the memory of the request. Between two
//! counts, a call adds no more than what a guest can hand over at once.

use std::any::Any;
use std::sync::Arc;

use http::HeaderMap;
use wasmtime::component::ResourceTable;
use wasmtime_wasi_http::p2::bindings::http::types::{Method, Scheme};
use wasmtime_wasi_http::p2::types::{
    HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{FieldMap, p3};

use crate::budget::{Account, Room};
use crate::http::message::head_size;

/// Number of calls from one count to the next. A count of the few resources that most components hold takes less than a
/// microsecond.
const CALLS: u32 = 4;
/// The most bytes of a body that a component hands over at once. Two such pieces of each body wait at most.
pub const PIECE_BYTES: usize = 64 << 10;
/// The most bytes of the texts of all resources. A count looks at each header, so this is a limit on its time, too.
const TEXTS_MAX: u64 = 8 << 20;

/// What the resources of a component take.
#[derive(Default)]
pub struct Held {
    /// Number of calls since the last count.
    calls: u32,
    room: Option<Room>,
    /// Why the component is ended: it holds too much.
    over: Option<String>,
}

impl Held {
    /// Notes a call, and counts what the resources in `table` take if that is due. False: they take too much.
    pub fn allows_call(&mut self, table: &mut ResourceTable, account: &Arc<Account>) -> bool {
        self.calls = (self.calls + 1) % CALLS;
        if self.calls == 0 && self.over.is_none() {
            self.over = self.count(table, account).err();
        }
        self.over.is_none()
    }

    fn count(&mut self, table: &mut ResourceTable, account: &Arc<Account>) -> Result<(), String> {
        let (mut texts, mut bodies) = (0, 0);
        for resource in table.iter_mut() {
            let (text, has_body) = size(resource);
            texts += text;
            bodies += u64::from(has_body);
        }
        if texts > TEXTS_MAX {
            return Err(format!(
                "the component holds header fields and requests of more than {} MB in all: it has to drop some before it makes the next",
                TEXTS_MAX >> 20
            ));
        }
        let bytes = texts + bodies * 2 * PIECE_BYTES as u64;
        if bytes == 0 {
            self.room = None;
            return Ok(());
        }
        let room = self.room.take().unwrap_or_else(|| Room::empty(account));
        let mut room = room.cut_to(bytes);
        let grown = room.grow_to(bytes);
        self.room = Some(room);
        grown.map_err(|why| why.to_string())
    }

    /// Why the component is ended, if it held too much.
    pub fn over(&self) -> Option<&str> {
        self.over.as_deref()
    }
}

/// The bytes of the texts of a resource, and whether it has a body, of which two pieces may wait.
fn size(resource: &dyn Any) -> (u64, bool) {
    if let Some(fields) = resource.downcast_ref::<FieldMap>() {
        return (of(fields), false);
    }
    if let Some(request) = resource.downcast_ref::<HostOutgoingRequest>() {
        let method = match &request.method {
            Method::Other(method) => method.len(),
            _ => 0,
        };
        let scheme = match &request.scheme {
            Some(Scheme::Other(scheme)) => scheme.len(),
            _ => 0,
        };
        let texts = [&request.authority, &request.path_with_query];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        let texts = (method + scheme + texts) as u64;
        return (texts + of(&request.headers), request.body.is_some());
    }
    if let Some(response) = resource.downcast_ref::<HostOutgoingResponse>() {
        return (of(&response.headers), response.body.is_some());
    }
    if let Some(request) = resource.downcast_ref::<p3::Request>() {
        let scheme = request.scheme.as_ref().map_or(0, |it| it.as_str().len());
        let authority = request.authority.as_ref().map_or(0, |it| it.as_str().len());
        let path = (request.path_with_query.as_ref()).map_or(0, |it| it.as_str().len());
        let texts = request.method.as_str().len() + scheme + authority + path;
        return (texts as u64 + of(&request.headers), false);
    }
    if let Some(response) = resource.downcast_ref::<p3::Response>() {
        return (of(&response.headers), false);
    }
    if let Some(response) = resource.downcast_ref::<HostIncomingResponse>() {
        return (of(&response.headers), false);
    }
    (0, false)
}

fn of(headers: &HeaderMap) -> u64 {
    head_size(headers).bytes
}
