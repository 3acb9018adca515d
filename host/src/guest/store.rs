//! The data of a guest's store: what one instance can reach.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::HeaderName;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::WasiCtx;

use crate::config::Module as Grants;
use crate::contract::types::{Error, Request, Response};
use crate::database::Databases;
use crate::guest::capability::http::client::Client;
use crate::guest::capability::stdio::Output;
use crate::guest::cpu::CpuTime;
use crate::http::body::Spooled;
use crate::scope::Scope;
use crate::scope::transaction::Member;
use crate::threads::deadline::Ended;
use crate::threads::workers;
use crate::view::View;

/// The most elements one table of a guest can have.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;
/// The most handles of the host's that an instance can have, and likewise of WASI's.
pub const HANDLES_MAX: usize = 1024;
/// The most random bytes that a guest gets in one call.
pub const RANDOM_BYTES_MAX: u64 = 256 << 10;

/// What the host holds for a guest. It is dropped with the guest's store, on the loop.
pub(super) fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    table
}

/// What every request of an app shares.
pub struct Services {
    /// The app's databases.
    pub databases: Databases,
    /// The client for outbound requests.
    pub http: Arc<Client>,
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
    pub(super) table: ResourceTable,
    /// Whether it has a folder in which it may write.
    pub(super) writes_files: bool,
    /// Built when first used: most views never touch it.
    pub(super) wasi: Option<Wasi>,
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
    pub call_chain: Option<Arc<dyn CallChain>>,
    /// The request's body, when the host keeps it.
    pub body: Option<Arc<Spooled>>,
    /// The CPU time it has used.
    pub cpu: Arc<CpuTime>,
}

/// WASI as an instance sees it, as long as it exists: guests keep handles of it, such as that of their standard output.
pub(super) struct Wasi {
    pub(super) ctx: WasiCtx,
    pub(super) table: ResourceTable,
}

impl Work {
    /// Work for a function that is given nothing else.
    pub fn new(scope: Arc<Scope>, view: Arc<View>, member: Arc<Member>) -> Work {
        Work {
            scope,
            view,
            member,
            call_chain: None,
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
        let output = Output::new(grants.limits.log_max_bytes);
        output.begin(&work.scope, &work.view);
        Guest {
            output,
            memory: MemoryLimit {
                max: grants.limits.memory_mb << 20,
                size: 0,
                growth: 0,
                reached: false,
            },
            work: Some(work),
            writes_files: grants.directories.iter().any(|folder| folder.write),
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
        self.output.begin(&work.scope, &work.view);
        self.work = Some(work);
    }

    /// Waits for a service on the thread of a sync worker, no longer than the request may run.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
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
    /// By how much a memory was allowed to grow last.
    growth: u64,
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
        let growth = (desired - current) as u64;
        let size = self.size + growth;
        let allowed = size <= self.max;
        self.reached |= !allowed;
        if allowed {
            (self.size, self.growth) = (size, growth);
        }
        Ok(allowed)
    }

    /// What was allowed has not happened: the memory's own maximum was in the way, or the system has no more.
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.size -= std::mem::take(&mut self.growth);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

/// Where a guest wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee {
    /// To the rest of its chain.
    Next,
    /// To another view of the app.
    Subrequest,
}

/// What an instance can call for: its place in a chain, which is the business of `chain.rs`, above.
pub trait CallChain: Send + Sync {
    /// Goes on from the scope's worker; waits there.
    fn go(&self, to: Callee, request: Request) -> Result<Response, Error>;

    /// Goes on from a loop.
    fn go_async(
        self: Arc<Self>,
        to: Callee,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, Error>>;

    /// Publishes an event.
    fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), NotPublished>;
}

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPublished {
    /// It has no topic that can be.
    NoTopic(String),
    /// Its payload is too large.
    TooLarge(String),
    /// Nobody waits for what publishes it any more.
    Over(String),
    /// Too many events wait.
    Full(String),
}

#[cfg(test)]
mod tests {
    use wasmtime::ResourceLimiter as _;

    use super::*;

    #[test]
    fn all_memories_of_an_instance_share_its_limit() {
        let mut limit = MemoryLimit {
            max: 10 << 16,
            size: 0,
            growth: 0,
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

    #[test]
    fn memory_that_could_not_grow_is_not_counted() {
        let engine = wasmtime::Engine::default();
        let limit = MemoryLimit {
            max: 100 << 16,
            size: 0,
            growth: 0,
            reached: false,
        };
        let mut store = wasmtime::Store::new(&engine, limit);
        store.limiter(|limit| limit);
        let memory = wasmtime::Memory::new(&mut store, wasmtime::MemoryType::new(1, Some(2)));
        let memory = memory.expect("there is room for it");
        for _ in 0..3 {
            // Beyond its own maximum.
            memory.grow(&mut store, 50).expect_err("it may not");
            assert_eq!(store.data().size, 1 << 16);
        }
        memory.grow(&mut store, 1).expect("it may");
        assert_eq!(store.data().size, 2 << 16);
    }
}
