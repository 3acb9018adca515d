//! Sub-requests: calls of other views within a request.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Response, Result};
use std::fmt;
use std::marker::PhantomData;

/// A call of another view of this app within this request. The called view shares the context values and the time limit
/// of its caller. The caller's module needs `subrequests = true`.
///
/// When the caller is in a transaction (it is an atomic view, or the call is in an
/// [`atomic`](crate::database::Database::atomic) block), the called view takes part in this transaction: if the view
/// fails, the whole transaction is rolled back. The transaction cannot end before the view has answered. When the
/// caller is in no transaction, a called atomic view has a transaction of its own, which has committed when the
/// response arrives. Then views that are called at the same time have separate transactions. A called view does not use
/// a connection that its caller has pinned. When the called view answers with a [`Stream`](crate::Stream), the caller can
/// return the response, but not read its body.
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
///     Ok(Html(format!("{}{}", cart.text()?, news.text()?)))
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
    /// Calls the view and waits for its response.
    ///
    /// # Errors
    /// The error that the view returned; a 500, 503 or 504 when the view trapped or exceeded a limit; 404 when no view
    /// has this path.
    pub fn send(self) -> Result<Response> {
        host::sync::subrequest(self.host, self.request.into())
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl Subrequest<'_, Async> {
    /// Calls the view and waits for its response.
    ///
    /// # Errors
    /// The error that the view returned; a 500, 503 or 504 when the view trapped or exceeded a limit; 404 when no view
    /// has this path.
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
