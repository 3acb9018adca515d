//! `middleware` and `subrequest`: calls of other guest functions of the same request.

pub(super) mod wasi;

use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf};

use crate::contract::types::{Body, Error, Request, Response};
use crate::guest::bindings::{middleware, middleware_async, subrequest, subrequest_async};
use crate::guest::store::{Callee, Guest};
use crate::http::message::header_bytes;
use crate::scope::{CallBytes, Scope};

fn nowhere() -> Error {
    let sentence = "there is no request to go on with while a module is being checked";
    refused(500, sentence.to_owned())
}

/// Counts the bytes of the called function's request, which the host keeps until the call returns.
fn held(scope: &Arc<Scope>, request: &Request) -> Result<CallBytes, Error> {
    let headers = header_bytes(&request.headers);
    let texts = (request.method.len() + request.path.len() + request.query.len()) as u64;
    let body = match &request.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::Spooled(_) | Body::Arriving(_) => 0,
    };
    let held = scope.hold_call(headers + texts + body);
    held.map_err(|sentence| refused(503, sentence))
}

fn refused(status: u16, message: String) -> Error {
    Error {
        status,
        message,
        detail: None,
    }
}

impl Guest {
    fn go(&self, to: Callee, request: Request) -> Result<Response, Error> {
        let call_chain = self.work().call_chain.as_ref().ok_or_else(nowhere)?;
        let _held = held(&self.work().scope, &request)?;
        // The called functions have CPU budgets of their own, so the caller's budget is not used meanwhile.
        self.work().cpu.pause(|| call_chain.go(to, request))
    }
}

impl middleware::Host for Guest {
    fn next(&mut self, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(self.go(Callee::Next, request))
    }
}

impl subrequest::Host for Guest {
    fn send(&mut self, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(self.go(Callee::Subrequest, request))
    }
}

type Async = Accessor<Guest, HasSelf<Guest>>;

async fn go(accessor: &Async, to: Callee, request: Request) -> Result<Response, Error> {
    let (call_chain, scope) = accessor.with(|mut store| {
        let work = store.get().work();
        (work.call_chain.clone(), Arc::clone(&work.scope))
    });
    let call_chain = call_chain.ok_or_else(nowhere)?;
    let _held = held(&scope, &request)?;
    call_chain.go_async(to, request, None).await
}

impl middleware_async::Host for Guest {}

impl middleware_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn next(accessor: &Async, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(go(accessor, Callee::Next, request).await)
    }
}

impl subrequest_async::Host for Guest {}

impl subrequest_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn send(accessor: &Async, request: Request) -> wasmtime::Result<Result<Response, Error>> {
        Ok(go(accessor, Callee::Subrequest, request).await)
    }
}
