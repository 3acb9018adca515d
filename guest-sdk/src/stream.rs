//! Response bodies that stream: the view returns the head, and a function of the view writes the body afterwards.
//!
//! The function stays in the guest's instance. The host calls the export `produce` of that instance, which runs the
//! function, when the response has gone through all middleware and its transaction has been committed. A response that
//! comes from another instance has the number by which the host knows its stream.

use crate::bindings::amphi::view::types::Subscription;
use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::response::Response;
use crate::{Context, Error, IntoResponse, Result};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;

/// How many bytes one call passes to the host. What a view passes in one call is limited (`call_max_bytes`).
const PIECE: usize = 256 * 1024;

/// A body that is written while the client receives it, from [`Context::stream`](Context::<Sync>::stream). As a
/// response, it has the status 200 and the type `application/octet-stream`.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/entries.csv")]
/// fn export(cx: &Context) -> impl IntoResponse {
///     let stream = cx.stream(move |cx, out| {
///         for row in cx.db().rows::<(i64, String)>("select id, name from entries", ())? {
///             let (id, name) = row?;
///             out.write(format!("{id},{name}\n"))?;
///         }
///         Ok(())
///     });
///     stream.with_header("content-type", "text/csv")
/// }
///
/// #[view(get, "/ticks/{count}")]
/// async fn ticks(cx: &Context, Path(count): Path<u32>) -> Stream {
///     cx.stream(async move |cx, out| {
///         for tick in 1..=count {
///             out.write(format!("tick {tick}\n")).await?;
///             cx.sleep(Duration::from_secs(1)).await;
///         }
///         Ok(())
///     })
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let app = App::new().execute_batch("create table entries (id integer, name text); insert into entries values (7, 'Ann')");
/// # let response = app.call::<export>(get("/entries.csv"));
/// # assert_eq!((response.text(), response.header("content-type")), ("7,Ann\n", Some("text/csv")));
/// # assert_eq!(app.call::<ticks>(get("/ticks/2")).text(), "tick 1\ntick 2\n");
/// ```
///
/// The function runs after the transaction of the request has been committed, so its statements are outside of that
/// transaction, and it cannot change status, headers, cookies or the session any more. When it fails, the client sees a
/// body that breaks off, and the log has the error. A header `content-length` is kept: then the host checks that the
/// body has this length.
///
/// The client gets nothing when middleware replaces the body, or when the request fails: then the function does not run.
#[must_use = "a stream does nothing until a view returns it"]
pub struct Stream(Producer);

/// The function that writes a body, with the context that it gets.
#[cfg_attr(
    not(any(target_arch = "wasm32", feature = "testing")),
    expect(dead_code, reason = "a native build without tests runs no views")
)]
pub(crate) enum Producer {
    Sync(Box<dyn FnOnce() -> Result<()>>),
    Async(Box<dyn FnOnce() -> Producing>),
}

/// The future of a function that writes a body.
pub(crate) type Producing = Pin<Box<dyn Future<Output = Result<()>>>>;

impl Context<Sync> {
    /// A response body that `work` writes while the client receives it; see [`Stream`].
    ///
    /// `work` runs after this view has returned, so it gets a context of its own, and the closure is a `move` closure that
    /// takes along what else it needs: `cx.stream(move |cx, out| { out.write(…)?; Ok(()) })`.
    pub fn stream(
        &self,
        work: impl FnOnce(&Context<Sync>, &mut BodyWriter<Sync>) -> Result<()> + 'static,
    ) -> Stream {
        let cx = self.clone();
        Stream(Producer::Sync(Box::new(move || {
            work(&cx, &mut BodyWriter::new(&cx.host))
        })))
    }
}

impl Context<Async> {
    /// A response body that `work` writes while the client receives it; see [`Stream`].
    ///
    /// `work` runs after this view has returned, so it gets a context of its own, and the closure is a `move` closure that
    /// takes along what else it needs: `cx.stream(async move |cx, out| { out.write(…).await?; Ok(()) })`.
    pub fn stream(
        &self,
        work: impl AsyncFnOnce(&Context<Async>, &mut BodyWriter<Async>) -> Result<()> + 'static,
    ) -> Stream {
        let cx = self.clone();
        Stream(Producer::Async(Box::new(move || {
            Box::pin(async move { work(&cx, &mut BodyWriter::new(&cx.host)).await })
        })))
    }
}

impl IntoResponse for Stream {
    fn into_response(self) -> Result<Response> {
        Ok(Response::streaming(self.0))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// Writes the body of a response, within the function of a [`Stream`].
#[derive(Debug)]
pub struct BodyWriter<M: Mode> {
    host: Host,
    trailers: Vec<(String, String)>,
    mode: PhantomData<M>,
}

impl<M: Mode> BodyWriter<M> {
    fn new(host: &Host) -> Self {
        Self {
            host: host.clone(),
            trailers: Vec::new(),
            mode: PhantomData,
        }
    }
}

impl BodyWriter<Sync> {
    /// Sends the next bytes of the body. While the client is slow, this waits. Bytes need not be collected: the host joins
    /// small pieces.
    ///
    /// # Errors
    /// When the client has gone, or a limit has ended the stream.
    pub fn write(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        for piece in data.as_ref().chunks(PIECE) {
            host::sync::write(&self.host, piece).map_err(Error::from_writer)?;
        }
        Ok(())
    }

    /// Adds a field that is sent after the body, where the protocol has such fields.
    ///
    /// # Errors
    /// When the name or the value is not valid.
    pub fn trailer(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let trailers = with(&mut self.trailers, name.into(), value.into());
        host::sync::set_trailers(&self.host, trailers).map_err(Error::from_writer)
    }
}

impl BodyWriter<Async> {
    /// Sends the next bytes of the body. While the client is slow, this waits. Bytes need not be collected: the host joins
    /// small pieces.
    ///
    /// # Errors
    /// When the client has gone, or a limit has ended the stream.
    pub async fn write(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        for piece in data.as_ref().chunks(PIECE) {
            let written = host::asynch::write(&self.host, piece.to_vec()).await;
            written.map_err(Error::from_writer)?;
        }
        Ok(())
    }

    /// Adds a field that is sent after the body, where the protocol has such fields.
    ///
    /// # Errors
    /// When the name or the value is not valid.
    pub fn trailer(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let trailers = with(&mut self.trailers, name.into(), value.into());
        host::asynch::set_trailers(&self.host, trailers).map_err(Error::from_writer)
    }
}

/// For `write!`, and for crates that write formats, such as `csv`.
impl io::Write for BodyWriter<Sync> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = BodyWriter::<Sync>::write(self, data);
        written.map_err(|error| io::Error::other(error.reason().to_owned()))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn with(all: &mut Vec<(String, String)>, mut name: String, value: String) -> &[(String, String)] {
    name.make_ascii_lowercase();
    all.push((name, value));
    all
}

/// The body of a response that streams.
#[derive(Clone)]
pub(crate) enum Streamed {
    /// A stream of this instance. Clones of the response share the function: one of them can be returned.
    Own(Rc<Cell<Option<Producer>>>),
    /// The stream of a response that came from another instance: the number by which the host knows it.
    PassedOn(u32),
    /// The host writes the body: messages to a group.
    Subscription(Subscription),
}

impl Streamed {
    pub(crate) fn own(producer: Producer) -> Self {
        Self::Own(Rc::new(Cell::new(Some(producer))))
    }
}

impl PartialEq for Streamed {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own(one), Self::Own(other)) => Rc::ptr_eq(one, other),
            (Self::PassedOn(one), Self::PassedOn(other)) => one == other,
            (Self::Subscription(one), Self::Subscription(other)) => one == other,
            _ => false,
        }
    }
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(_) => f.write_str("Own"),
            Self::PassedOn(number) => f.debug_tuple("PassedOn").field(number).finish(),
            Self::Subscription(subscription) => subscription.fmt(f),
        }
    }
}
