//! The capabilities: one thin adapter per WIT interface, sync and async faces over one service.
//!
//! A sync face waits on the worker's thread (and says so to the pool, R4); an async face is a future on the
//! loop. Either way the service is the same, and the scope decides what may be done.

mod body;
pub mod config;
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
use crate::transaction::Member;
use crate::view::View;
use crate::workers;

pub use onward::{Onward, Whither};
pub use stdio::Output;

/// The most handles of the host's that an instance can have, and likewise of WASI's.
pub const HANDLES_MAX: usize = 1024;
/// The most random bytes that a guest gets in one call.
pub const RANDOM_BYTES_MAX: u64 = 256 << 10;

/// What the host holds for a guest. It is dropped with the guest's store, on the loop.
fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    table
}

/// What every request of an app shares.
pub struct Services {
    /// The app's databases.
    pub databases: Databases,
    /// The client for outbound requests.
    pub http: Arc<http::Client>,
    /// Whether the app is served for development.
    pub development: bool,
    /// Origins whose pages may send the app forms, with spaces between.
    pub allowed_origins: String,
    /// Headers that this app believes when proxies send them: guests cannot send them.
    pub trusted_headers: Vec<HeaderName>,
}

/// What one instance of a guest can reach: the data of its store.
pub struct Guest {
    /// What it works on; none while it is kept for another request.
    work: Option<Work>,
    /// What its module is granted.
    pub grants: Arc<Grants>,
    /// What the app's requests share.
    pub services: Arc<Services>,
    /// What it writes to standard output and error, and how much it may still log.
    pub output: Output,
    /// Its linear memory.
    pub memory: MemoryLimit,
    /// What the host holds for it in this request.
    table: ResourceTable,
    /// Built when first used: most views never touch it.
    wasi: Option<Wasi>,
}

/// One part of one request: what an instance works on.
pub struct Work {
    /// The request it works for.
    pub scope: Arc<Scope>,
    /// The function that runs.
    pub view: Arc<View>,
    /// Its part in a transaction.
    pub member: Arc<Member>,
    /// What it can call for; none while its module is being checked.
    pub onward: Option<Arc<dyn Onward>>,
    /// The request's body, when the host keeps it.
    pub body: Option<Arc<Spooled>>,
    /// The CPU time it has used.
    pub cpu: Arc<CpuTime>,
}

/// WASI as an instance sees it, as long as it exists: guests keep handles of it, such as that of their standard output.
struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
}

impl Work {
    /// Work for a function that is given nothing else.
    pub fn new(scope: Arc<Scope>, view: Arc<View>, member: Arc<Member>) -> Work {
        Work {
            scope,
            view,
            member,
            onward: None,
            body: None,
            cpu: Arc::default(),
        }
    }

    /// Why the function is to end now, if it is: its request is over, or its caller waits for it no longer.
    pub fn ended(&self) -> Option<Ended> {
        let given_up = || self.member.is_over().then_some(Ended::Answered);
        self.scope.deadline.ended().or_else(given_up)
    }
}

impl Guest {
    /// The store data of a new instance.
    pub fn new(work: Work, grants: &Arc<Grants>, services: &Arc<Services>) -> Guest {
        Guest {
            output: Output::new(&work, grants.limits.log_max_bytes),
            memory: MemoryLimit {
                max: grants.limits.memory_mb << 20,
                size: 0,
                reached: false,
            },
            work: Some(work),
            grants: Arc::clone(grants),
            services: Arc::clone(services),
            table: table(),
            wasi: None,
        }
    }

    /// What the instance works on.
    ///
    /// # Panics
    /// While it is kept for another request: no guest code runs then.
    pub fn work(&self) -> &Work {
        self.work.as_ref().expect("a guest runs for a request")
    }

    /// Lets go of the request that is done. Whether nothing of it is left: no limit was reached, and the guest has
    /// dropped all that the host held for it.
    pub fn finish(&mut self) -> bool {
        let ended = (self.work.take()).is_none_or(|work| work.scope.deadline.ended().is_some());
        let limited = self.output.finish() || self.memory.reached;
        !ended && !limited && self.table.is_empty()
    }

    /// Takes up another request.
    pub fn begin(&mut self, work: Work) {
        self.output.begin(&work);
        self.work = Some(work);
    }

    /// Waits for a service on the thread of a sync worker, no longer than the request may run.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let work_on = self.work();
        if let Some(why) = work_on.ended() {
            return Err(why);
        }
        let Work { scope, cpu, .. } = work_on;
        cpu.pause(|| workers::block_on(scope.deadline.bound(work)))
    }
}

/// How much linear memory an instance may have, in all its memories together, and whether it wanted more.
pub struct MemoryLimit {
    max: u64,
    /// How much it has, in bytes, all memories together.
    pub size: u64,
    /// Set when the guest was refused memory: most then trap, and this says why.
    pub reached: bool,
}

impl wasmtime::ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let size = self.size + (desired - current) as u64;
        let allowed = size <= self.max;
        self.reached |= !allowed;
        if allowed {
            self.size = size;
        }
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

#[cfg(test)]
mod tests {
    use wasmtime::ResourceLimiter as _;

    use super::*;

    #[test]
    fn all_memories_of_an_instance_share_its_limit() {
        let mut limit = MemoryLimit {
            max: 10 << 16,
            size: 0,
            reached: false,
        };
        let mut grows = |from: usize, to: usize| {
            let allowed = limit.memory_growing(from << 16, to << 16, None);
            (
                allowed.expect("it does not fail"),
                limit.size >> 16,
                limit.reached,
            )
        };
        assert_eq!(grows(0, 4), (true, 4, false));
        assert_eq!(grows(0, 5), (true, 9, false), "another memory");
        assert_eq!(grows(4, 6), (false, 9, true), "11 together");
        assert_eq!(grows(5, 6), (true, 10, true));
    }
}
