//! The capabilities: one thin adapter per WIT interface, sync and async faces over one service.
//!
//! A sync face waits on the worker's thread (and says so to the pool, R4); an async face is a future on the
//! loop. Either way the service is the same, and the scope decides what may be done.

mod body;
mod config;
mod context;
pub mod database;
mod events;
pub mod http;
mod log;
mod onward;
mod stdio;
mod timer;
mod wasi;

use std::sync::Arc;

use ::http::HeaderName;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::WasiCtx;

use crate::bindings;
use crate::config::Module as Grants;
use crate::database::Databases;
use crate::deadline::Ended;
use crate::request::body::Spooled;
use crate::run::CpuTime;
use crate::scope::Scope;
use crate::view::View;
use crate::workers;

pub use onward::{Onward, Whither};
pub use stdio::Output;

/// What every request of an app shares.
pub struct Services {
    /// The app's databases.
    pub databases: Databases,
    /// The client for outbound requests.
    pub http: Arc<http::Client>,
    /// Whether the app is served for development.
    pub development: bool,
    /// Headers that this app believes when proxies send them: guests cannot send them.
    pub trusted_headers: Vec<HeaderName>,
}

/// What one instance of a guest can reach: the data of its store.
pub struct Guest {
    /// The request it works for.
    pub scope: Arc<Scope>,
    /// The function that runs.
    pub view: Arc<View>,
    /// What its module is granted.
    pub grants: Arc<Grants>,
    /// What the app's requests share.
    pub services: Arc<Services>,
    /// What it can call for; none while its module is being checked.
    pub onward: Option<Arc<dyn Onward>>,
    /// The request's body, when the host keeps it.
    pub body: Option<Arc<Spooled>>,
    /// What it writes to standard output and error, and how much it may still log.
    pub output: Output,
    /// Its linear memory.
    pub memory: MemoryLimit,
    /// The CPU time it has used.
    pub cpu: Arc<CpuTime>,
    table: ResourceTable,
    /// Built when first used: most views never touch it.
    wasi: Option<WasiCtx>,
}

impl Guest {
    /// The store data of a new instance.
    pub fn new(
        scope: Arc<Scope>,
        view: Arc<View>,
        grants: Arc<Grants>,
        services: Arc<Services>,
    ) -> Guest {
        Guest {
            output: Output::new(&scope, &view, grants.limits.log_max_bytes),
            memory: MemoryLimit {
                max: grants.limits.memory_mb << 20,
                reached: false,
            },
            cpu: Arc::default(),
            scope,
            view,
            grants,
            services,
            onward: None,
            body: None,
            table: ResourceTable::new(),
            wasi: None,
        }
    }

    /// Waits for a service on the thread of a sync worker, no longer than the request may run.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let deadline = &self.scope.deadline;
        if let Some(why) = deadline.ended() {
            return Err(why);
        }
        let wait = || tokio::runtime::Handle::current().block_on(deadline.bound(work));
        self.cpu.pause(|| workers::blocking(wait))
    }
}

/// How much linear memory an instance may have, and whether it wanted more.
pub struct MemoryLimit {
    max: u64,
    /// Set when the guest was refused memory: most then trap, and this says why.
    pub reached: bool,
}

impl wasmtime::ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = desired as u64 <= self.max;
        self.reached |= !allowed;
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= crate::run::TABLE_ELEMENTS_MAX)
    }
}

/// Adds what sync components may import.
///
/// # Errors
/// Never, unless two interfaces clash.
pub fn link_sync(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    wasi::bound_waits(linker)?;
    link_shared(linker)?;
    bindings::body::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::database::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::http::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::middleware::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::subrequest::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

/// Adds what async components may import. Without `blocking_wasi`, blocking WASI calls trap with their name.
///
/// # Errors
/// Never, unless two interfaces clash.
pub fn link_async(linker: &mut Linker<Guest>, blocking_wasi: bool) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if !blocking_wasi {
        wasi::refuse_waits(linker)?;
    }
    link_shared(linker)?;
    bindings::body_async::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::database_async::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::http_async::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::middleware_async::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::subrequest_async::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::timer::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

/// What never waits has one face for both.
fn link_shared(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    bindings::types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::body_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::database_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::http_types::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::config::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::context::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::events::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)?;
    bindings::log::add_to_linker::<Guest, HasSelf<Guest>>(linker, |guest| guest)
}

impl bindings::types::Host for Guest {}
impl bindings::body_types::Host for Guest {}
impl bindings::database_types::Host for Guest {}
impl bindings::http_types::Host for Guest {}
