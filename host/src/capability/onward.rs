//! `middleware` and `subrequest`: other guest functions of the same request.

use std::sync::Arc;

use futures::future::BoxFuture;
use wasmtime::component::{Accessor, HasSelf};

use super::Guest;
use crate::bindings::types::{Error, Request, Response};
use crate::bindings::{middleware, middleware_async, subrequest, subrequest_async};
use crate::events::NotPublished;

/// Where a guest wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whither {
    /// To the rest of its chain.
    Next,
    /// To another view of the app.
    Subrequest,
}

/// What an instance can call for: its place in a chain, which is the business of `chain.rs`, above.
pub trait Onward: Send + Sync {
    /// Goes on from the scope's worker; waits there.
    fn go(&self, to: Whither, request: Request) -> Result<Response, Error>;

    /// Goes on from a loop.
    fn go_async(
        self: Arc<Self>,
        to: Whither,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, Error>>;

    /// Publishes an event.
    fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), NotPublished>;
}

fn nowhere() -> Error {
    Error {
        status: 500,
        message: "there is no request to go on with while a module is being checked".to_owned(),
        detail: None,
    }
}

impl Guest {
    fn go(&self, to: Whither, request: Request) -> Result<Response, Error> {
        let onward = self.work().onward.as_ref().ok_or_else(nowhere)?;
        // What runs meanwhile has a CPU budget of its own.
        self.work().cpu.pause(|| onward.go(to, request))
    }
}

impl middleware::Host for Guest {
    fn next(&mut self, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(self.go(Whither::Next, request))
    }
}

impl subrequest::Host for Guest {
    fn send(&mut self, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(self.go(Whither::Subrequest, request))
    }
}

type Async = Accessor<Guest, HasSelf<Guest>>;

async fn go(accessor: &Async, to: Whither, request: Request) -> Result<Response, Error> {
    let onward = accessor.with(|mut store| store.get().work().onward.clone());
    onward.ok_or_else(nowhere)?.go_async(to, request).await
}

impl middleware_async::Host for Guest {}

impl middleware_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn next(accessor: &Async, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(go(accessor, Whither::Next, request).await)
    }
}

impl subrequest_async::Host for Guest {}

impl subrequest_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn send(accessor: &Async, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(go(accessor, Whither::Subrequest, request).await)
    }
}
