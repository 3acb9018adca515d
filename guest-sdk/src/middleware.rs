//! Middleware: guest functions around views.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Response, Result};
use std::fmt;
use std::marker::PhantomData;

/// The rest of the chain, down to the view. Middleware takes it as its last parameter and runs it once, or answers
/// by itself.
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
/// The app says what they are around: `middleware = ["auth::signed_in", "auth::timed"]` in `[app]` or in the
/// table of a module. A view names middleware of its crate itself, as in
/// `#[view(get, "/admin", middleware = [signed_in])]`. The context value `user` is the host's: middleware sets others.
///
/// An error of the rest can be returned as it is, with `?`. Once any part has failed, the request's transaction is
/// rolled back, whatever middleware makes of the answer.
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
    /// Runs the rest with this request.
    ///
    /// # Errors
    /// What the rest returned, or how it failed.
    pub fn run(self, request: Request) -> Result<Response> {
        host::sync::go_on(&self.host, request.into())
            .map(Response::from)
            .map_err(Error::from_view)
    }
}

impl Next<Async> {
    /// Runs the rest with this request.
    ///
    /// # Errors
    /// What the rest returned, or how it failed.
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
