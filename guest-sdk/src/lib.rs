//! Write web views for the Amphi server.
//!
//! A view is a function from a request to a response. A `fn` is a sync view: each call that it makes to the host blocks
//! until the result is there. An `async fn` is an async view: it can have many such calls in flight, and does not block
//! while it waits. One crate may have both. `amphi build` makes one WebAssembly component of the sync views and one of
//! the async views.
//!
//! ```
//! use amphi_sdk::prelude::*;
//!
//! #[derive(FromRow, Serialize)]
//! struct Entry {
//!     id: i64,
//!     name: String,
//! }
//!
//! #[view(get, "/entries/{id}")]
//! fn entry(cx: &Context, Path(id): Path<i64>) -> Result<Json<Entry>> {
//!     let entry = cx.db().query_one("select id, name from entries where id = $1", (id,))?;
//!     Ok(Json(entry.ok_or_else(|| Error::not_found("no such entry"))?))
//! }
//!
//! #[view(get, "/dashboard")]
//! async fn dashboard(cx: &Context) -> Result<String> {
//!     let replies = try_join_all((1..=10).map(|n| cx.http().get(format!("/slow/{n}")).send())).await?;
//!     Ok(format!("{} replies", replies.len()))
//! }
//!
//! views![entry, dashboard];
//!
//! # #[cfg(not(test))] fn main() {
//! use amphi_sdk::testing::{App, get, reply};
//!
//! let app = App::new()
//!     .execute_batch("create table entries (id integer, name text); insert into entries values (7, 'Ann')")
//!     .on_get("/slow/*", reply("ok"));
//! assert_eq!(app.call::<entry>(get("/entries/7")).text(), r#"{"id":7,"name":"Ann"}"#);
//! assert_eq!(app.call::<dashboard>(get("/dashboard")).text(), "10 replies");
//! # }
//! ```
//!
//! To make a view async, write `async` before its `fn`, and `.await` where the compiler asks for it. The contexts of
//! both modes have the same methods. In an async view, these methods do not block.
//!
//! Middleware and subscribers of events are also functions of either mode. They are listed with the views:
//!
//! ```
//! use amphi_sdk::prelude::*;
//!
//! /// Runs around the views for which the app's configuration says `middleware = ["shop::signed_in"]`.
//! #[middleware]
//! fn signed_in(cx: &Context, session: Session, request: Request, next: Next) -> Result<Response> {
//!     let Some(user) = session.get::<String>("user") else {
//!         return Redirect::see_other("/sign-in").into_response();
//!     };
//!     cx.set("member", &user)?;
//!     next.run(request)
//! }
//!
//! /// Runs in a transaction. Accepts only forms of this app's own pages (`Protected`). The event is delivered after the
//! /// commit.
//! #[view(post, "/orders/{id}/pay", atomic, retries = 3)]
//! async fn pay(cx: &Context, Path(id): Path<i64>, _: Protected) -> Result<Redirect> {
//!     cx.db().execute("update orders set paid = 1 where id = $1", (id,)).await?;
//!     cx.publish("orders.paid", &id)?;
//!     Ok(Redirect::see_other("/"))
//! }
//!
//! /// Runs in a request of its own, after the commit, so it sees the update. The request id and the trace are those of
//! /// the request that published the event.
//! #[subscriber("orders.*")]
//! fn on_order(cx: &Context, event: Event) -> Result<()> {
//!     let id: i64 = event.json()?;
//!     cx.db().execute("insert into shipments (order_id) values ($1)", (id,))?;
//!     Ok(())
//! }
//!
//! views![signed_in, pay, on_order];
//!
//! # #[cfg(not(test))] fn main() {
//! use amphi_sdk::testing::{App, post};
//!
//! let app = App::new()
//!     .execute_batch("create table orders (id integer, paid integer); create table shipments (order_id integer)")
//!     .around::<pay>();
//! let request = post("/orders/7/pay").session("user", "ann").csrf();
//! assert_eq!(app.call::<signed_in>(request).header("location"), Some("/"));
//! assert_eq!(app.published()[0].topic, "orders.paid");
//! app.deliver::<on_order>("orders.paid", &7);
//! assert_eq!(app.query::<i64>("select order_id from shipments", ()), [7]);
//! # }
//! ```
//!
//! | to | see |
//! |---|---|
//! | declare views | [`view`], [`views!`] |
//! | write a helper once for both modes | [`both`](macro@both), [`extractor`](macro@extractor) |
//! | take forms with files | [`Form`], [`Upload`], [`Multipart`] |
//! | run code around views | [`middleware`], [`Next`] |
//! | use databases, HTTP, settings | [`Context`], [`database`], [`http`] |
//! | call another view within the request | [`Context::subrequest`] |
//! | publish an event after the commit, and react to it | [`Context::publish`], [`subscriber`], [`Event`] |
//! | talk to clients by web sockets | [`socket`](macro@socket), [`SocketEvent`], [`Socket`], [`Context::socket`] |
//! | send messages to clients, also from other views | [`Context::channels`], [`EventStream`], [`Poll`] |
//! | read a request | [`extract`] |
//! | keep a session, and accept only the app's own forms | [`Session`], [`Csrf`], [`Protected`] |
//! | return a response or an error | [`IntoResponse`], [`Error`] |
//! | send a body while it is made, or read one while it arrives | [`Stream`], [`BodyReader`] |
//! | find recipes for what most apps need | [`guide`] |
//! | begin from Django, Spin or axum | [`guide::from_django`], [`guide::from_spin_and_axum`] |
//! | log | [`log`] |
//! | test views natively | the module `testing`, with the feature `testing`; `cargo doc --features amphi-sdk/testing` in the app's folder shows it |

// The generated bindings and the macros refer to this crate as `amphi_sdk`, also where this crate itself uses them.
extern crate self as amphi_sdk;

#[doc = include_str!("../GUIDE.md")]
pub mod guide {
    #[doc = include_str!("../FROM_DJANGO.md")]
    pub mod from_django {}
    #[doc = include_str!("../FROM_SPIN_AND_AXUM.md")]
    pub mod from_spin_and_axum {}
}
#[doc(hidden)]
pub mod bindings;
mod body;
pub mod channels;
mod context;
mod csrf;
pub mod database;
mod error;
mod event;
pub mod extract;
mod host;
pub mod http;
pub mod log;
mod middleware;
pub mod mode;
mod multipart;
mod request;
mod response;
mod session;
pub mod socket;
mod stream;
mod subrequest;
mod subscription;
#[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
pub mod testing;
mod view;

pub use ::http::StatusCode;
pub use amphi_macros::{FromRow, both, extractor, middleware, socket, subscriber, view};
pub use body::{BodyReader, Chunks};
pub use channels::Message;
pub use context::Context;
pub use cookie;
pub use cookie::Cookie;
pub use csrf::{Csrf, CsrfField, Protected};
pub use database::{FromRow, Row, Value};
pub use error::{Error, Result};
pub use event::Event;
pub use extract::{Body, Cookies, Form, FromRequest, Json, Path, Query, Upload};
pub use futures_util::future::{join_all, try_join_all};
pub use futures_util::{join, try_join};
pub use middleware::Next;
pub use multipart::{Multipart, Part, Parts};
pub use request::{Headers, Request};
pub use response::{Html, IntoResponse, Redirect, Response, Text, With};
pub use session::Session;
pub use socket::{Received, Socket, SocketEvent};
pub use stream::{BodyWriter, Stream};
pub use subrequest::Subrequest;
pub use subscription::{EventStream, LastEventId, Poll};

/// The types of sync views.
pub mod sync {
    use crate::mode::Sync;

    /// The context of a sync view.
    pub type Context = crate::Context<Sync>;
    /// A database, in a sync view.
    pub type Database<'a> = crate::database::Database<'a, Sync>;
    /// A transaction, in a sync view.
    pub type Transaction<'a> = crate::database::Transaction<'a, Sync>;
    /// A reserved connection of a database, in a sync view.
    pub type Pinned<'a> = crate::database::Pinned<'a, Sync>;
    /// The rest of the chain, in sync middleware.
    pub type Next = crate::Next<Sync>;
    /// The rows of a result, in a sync view.
    pub type Rows<T> = crate::database::Rows<T, Sync>;
    /// What a sync view writes the body of a response with.
    pub type BodyWriter = crate::BodyWriter<Sync>;
    /// The response to an outbound request that a sync view reads in pieces.
    pub type ResponseReader = crate::http::ResponseReader<Sync>;
    /// The body of an outbound request that a sync view writes in pieces.
    pub type RequestWriter = crate::http::RequestWriter<Sync>;
}

/// The types of async views.
pub mod asynch {
    use crate::mode::Async;

    /// The context of an async view.
    pub type Context = crate::Context<Async>;
    /// A database, in an async view.
    pub type Database<'a> = crate::database::Database<'a, Async>;
    /// A transaction, in an async view.
    pub type Transaction<'a> = crate::database::Transaction<'a, Async>;
    /// A reserved connection of a database, in an async view.
    pub type Pinned<'a> = crate::database::Pinned<'a, Async>;
    /// The rest of the chain, in async middleware.
    pub type Next = crate::Next<Async>;
    /// The rows of a result, in an async view.
    pub type Rows<T> = crate::database::Rows<T, Async>;
    /// What an async view writes the body of a response with.
    pub type BodyWriter = crate::BodyWriter<Async>;
    /// The response to an outbound request that an async view reads in pieces.
    pub type ResponseReader = crate::http::ResponseReader<Async>;
    /// The body of an outbound request that an async view writes in pieces.
    pub type RequestWriter = crate::http::RequestWriter<Async>;
}

/// The names that most files with views need: `use amphi_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::mode::Mode;
    pub use crate::{
        Body, BodyReader, Context, Cookie, Cookies, Csrf, Error, Event, EventStream, Form,
        FromRequest, FromRow, Headers, Html, IntoResponse, Json, LastEventId, Message, Multipart,
        Next, Path, Poll, Protected, Query, Received, Redirect, Request, Response, Result, Session,
        Socket, SocketEvent, StatusCode, Stream, Text, Upload, asynch, both, extractor, join,
        join_all, log, middleware, subscriber, sync, try_join, try_join_all, view, views,
    };
    pub use amphi_macros::socket;
    pub use serde::{Deserialize, Serialize};
    pub use std::time::Duration;
}

/// Items that the expanded macros use. Not part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::bindings;
    pub use crate::bindings::amphi::view::types;
    pub use crate::view::{
        AsyncView, Entry, Kind, Layer, Loading, Outcome, SettingsCheck, SyncView, View, begin_body,
        begin_body_async, bytes, conversation, describe, listed, load_body, load_body_async, modes,
        of_other_form, respond, respond_to_event, without_crate,
    };
    #[cfg(target_arch = "wasm32")]
    pub use crate::view::{describe_component, handle, handle_async, produce, produce_async};
    pub use wit_bindgen;
}
