//! Calls of other views within a request.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Response, Result};
use std::fmt;
use std::marker::PhantomData;

/// A call of another view of this app, within this request: it shares the context and the time limit. The module needs
/// `subrequests = true`.
///
/// Called within a transaction of the caller's (an atomic view, or [`atomic`](crate::database::Database::atomic)), the view is part
/// of it: if the view fails, all of it is rolled back, and the caller has to wait for the answer before the transaction
/// ends. Called outside of any, an atomic view has a transaction of its own, which has committed when its answer is there.
/// Views that are called at once never see or decide over each other's transactions, nor do pins reach into them.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/")]
/// async fn page(cx: &Context) -> Result<Html> {
///     let (cart, news) = try_join!(
///         cx.subrequest("GET", "/fragments/cart").send(),
///         cx.subrequest("GET", "/fragments/news?latest=3").send(),
///     )?;
///     Ok(Html(String::from_utf8([cart.body, news.body].concat())?))
/// }
/// ```
pub struct Subrequest<'a, M: Mode> {
    host: &'a Host,
    request: Request,
    mode: PhantomData<M>,
}

impl<'a, M: Mode> Subrequest<'a, M> {
    pub(crate) fn new(host: &'a Host, method: &str, path: String) -> Self {
        Self {
            host,
            request: Request::new(method, path),
            mode: PhantomData,
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.headers.append(name, value);
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.request.set_body(body);
        self
    }
}

impl Subrequest<'_, Sync> {
    /// Calls the view.
    ///
    /// # Errors
    /// What the view returned, how it failed, or that there is none.
    pub fn send(self) -> Result<Response> {
        host::sync::subrequest(self.host, self.request.into())
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl Subrequest<'_, Async> {
    /// Calls the view.
    ///
    /// # Errors
    /// What the view returned, how it failed, or that there is none.
    pub async fn send(self) -> Result<Response> {
        host::asynch::subrequest(self.host, self.request.into())
            .await
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl<M: Mode> fmt::Debug for Subrequest<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subrequest").field(&self.request).finish()
    }
}
