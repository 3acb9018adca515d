//! All calls to the host. In a component, they are calls of imports (`wasm`). In native tests, a substitute answers
//! them (`native`).
//!
//! Both modules have the same items: `Host` with the calls that never wait, and the modules `sync` and `asynch` with
//! the calls that wait, one module for each mode.

#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::*;

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;

#[cfg_attr(
    not(feature = "testing"),
    allow(unused_imports, reason = "tests alone look into it")
)]
pub(crate) use crate::socket::Happened;

pub(crate) use crate::bindings::amphi::view::{
    body_types::Error as BodyError,
    channel_types::{Error as ChannelError, MemberList},
    conversation::Error as ConversationError,
    database_types::{Error as DatabaseError, Row as Values, Table},
    events::Error as EventError,
    http_types::{Error as HttpError, InboundResponse, OutboundRequest, OutboundUpload},
    types::{Error as ViewError, Request as RawRequest, Response as RawResponse},
};
