//! The one place where calls leave the guest: the imports of a component, or a stand-in in native tests.
//!
//! Both have the same shape: a `Host` with the calls that never wait, and the modules `sync` and `asynch`
//! with the two faces of those that do.

#[cfg(target_arch = "wasm32")]
mod wasm;
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::*;

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use native::*;

pub(crate) use crate::bindings::amphi::view::{
    body_types::Error as BodyError,
    database_types::{Error as DatabaseError, Row as Values, Table},
    events::Error as EventError,
    http_types::{Error as HttpError, InboundResponse, OutboundRequest},
    types::{Error as ViewError, Request as RawRequest, Response as RawResponse},
};
