//! Middleware: guest functions around views.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Response, Result};
use std::fmt;
use std::marker::PhantomData;

/// The rest of the chain: the middleware that comes next, and the view. [`middleware`](macro@crate::middleware) takes
/// `Next` as its last parameter. The middleware runs the rest of the chain with `run`, at most once, or returns a
/// response of its own.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[middleware]
/// fn signed_in(cx: &Context, request: Request, next: Next) -> Result<Response> {
///     let Some(user) = request.headers.get("x-user") else {
///         return Err(Error::unauthorized("who are you?"));
///     };
///     cx.set("member", user)?;
///     let mut response = next.run(request)?;
///     response.headers.set("cache-control", "private");
///     Ok(response)
/// }
///
/// #[middleware]
/// async fn timed(_cx: &Context, request: Request, next: Next) -> Result<Response> {
///     let path = request.path.clone();
///     let response = next.run(request).await?;
///     log::info!("answered", path = path, status = response.status);
///     Ok(response)
/// }
///
/// views![signed_in, timed];
/// # fn main() {}
/// ```
///
/// The app's configuration says which views middleware runs around: `middleware = ["auth::signed_in", "auth::timed"]`
/// in `[app]`, for all views, or in the table of a module, for the views of the module. A view can also name middleware
/// of its own crate: `#[view(get, "/admin", middleware = [signed_in])]`. Middleware can set every context value except
/// `user`, which only the host sets.
///
/// Middleware can pass on an error of the rest with `?`. When any part of the chain has failed, the request's
/// transaction is rolled back, even if middleware turns the error into a response.
pub struct Next<M: Mode> {
    host: Host,
    mode: PhantomData<M>,
}

impl<M: Mode> Next<M> {
    #[doc(hidden)]
    pub fn of(cx: &crate::Context<M>) -> Self {
        Self {
            host: cx.host.clone(),
            mode: PhantomData,
        }
    }
}

impl Next<Sync> {
    /// Runs the rest of the chain with this request.
    ///
    /// # Errors
    /// The error that the rest returned, or a 500, 503 or 504 when the rest trapped or exceeded a limit.
    pub fn run(self, request: Request) -> Result<Response> {
        host::sync::go_on(&self.host, request.into())
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl Next<Async> {
    /// Runs the rest of the chain with this request.
    ///
    /// # Errors
    /// The error that the rest returned, or a 500, 503 or 504 when the rest trapped or exceeded a limit.
    pub async fn run(self, request: Request) -> Result<Response> {
        host::asynch::go_on(&self.host, request.into())
            .await
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl<M: Mode> fmt::Debug for Next<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Next")
    }
}
