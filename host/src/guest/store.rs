//! The data of a store: everything that one instance of a guest can reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use futures::future::BoxFuture;
use http::HeaderName;
use parking_lot::Mutex;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi_http::WasiHttpCtx;

use crate::channels::Hub;
use crate::config::Module as Grants;
use crate::contract::types::{Error, Request, Response};
use crate::database::Databases;
use crate::guest::capability::http::client::Client;
use crate::guest::capability::stdio::Output;
use crate::guest::cpu::CpuTime;
use crate::guest::held::Held;
use crate::guest::stop::Stop;
use crate::http::body::{BodyLimits, RequestBody};
use crate::http::message::BinaryHeaders;
use crate::http::stream::{BodyWriter, StreamBody};
use crate::scope::Scope;
use crate::scope::transaction::Member;
use crate::telemetry::error::Failure;
use crate::threads::deadline::Ended;
use crate::threads::workers;
use crate::view::View;

/// The most elements that one table of a guest can have.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;
/// The most handles that an instance can have to resources of the host; WASI's resources have a table of their own,
/// with the same limit.
pub const HANDLES_MAX: usize = 1024;
/// The most random bytes that a guest gets in one call.
pub const RANDOM_BYTES_MAX: u64 = 256 << 10;

/// A table of host resources that the guest holds handles to. It is dropped with the guest's store.
pub(super) fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    table
}

/// A table that nothing can be put into.
pub(super) fn no_table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(0);
    table
}

/// What all requests of an app share.
pub struct Services {
    /// The app's databases.
    pub databases: Databases,
    /// The client for outbound requests.
    pub http: Arc<Client>,
    /// The groups of connections.
    pub hub: Arc<Hub>,
    /// Whether the app is served for development.
    pub development: bool,
    /// The origins of `allowed_origins`, separated by spaces: pages of these origins may send forms to the app.
    pub allowed_origins: String,
    /// How the bodies of requests are received.
    pub body_limits: BodyLimits,
    /// Headers that the app believes when a trusted proxy sends them. Guests cannot set them on outbound requests.
    pub trusted_headers: Vec<HeaderName>,
}

/// What all instances of a module share. It is one object, because each request takes a share of it: counting one share is
/// cheaper than counting three, when several cores do it at the same time.
pub struct Shared {
    /// The configuration of the module: name, grants and limits.
    pub grants: Arc<Grants>,
    /// The services that all requests of the app share.
    pub services: Arc<Services>,
    /// The memory that instances of the module usually have.
    pub usual_memory: UsualMemory,
}

/// The data of a store: everything that one instance can reach.
pub struct Guest {
    /// The call that the instance serves. None while the instance is kept for a later request.
    work: Option<Work>,
    /// What it shares with the other instances of its module.
    pub shared: Arc<Shared>,
    /// The log of the instance: standard output, standard error and records, and the number of bytes that may still be
    /// logged.
    pub output: Output,
    /// The limit on the linear memory of the instance.
    pub memory: MemoryLimit,
    /// Host resources that the guest holds handles to in this request.
    pub(super) table: ResourceTable,
    /// Whether the guest has a folder that it may write to.
    pub(super) writes_files: bool,
    /// Whether its work on files blocks the thread that it runs on.
    pub(super) blocks: bool,
    /// WASI. It is built when the guest first uses it, because most views never do.
    pub(super) wasi: Option<Wasi>,
}

/// One call of a guest function: what an instance works on.
pub struct Work {
    /// The scope of the request.
    pub scope: Arc<Scope>,
    /// The function that runs.
    pub view: Arc<View>,
    /// The function's membership in a transaction.
    pub member: Arc<Member>,
    /// Calls other functions and publishes events for the function. None while its module is being checked.
    pub call_chain: Option<Arc<dyn CallChain>>,
    /// The request's body, when the host keeps it for reading in pieces.
    pub body: Option<RequestBody>,
    /// The request's headers whose values are not UTF-8.
    pub binary: BinaryHeaders,
    /// The body of the response, while the function produces it.
    pub writer: Option<Arc<BodyWriter>>,
    /// What middleware of `wasi:http` has got from the rest of its chain.
    pub next: Option<Arc<Next>>,
    /// The CPU time that the call has used.
    pub cpu: Arc<CpuTime>,
}

/// WASI of an instance. It lives as long as the instance, because guests keep handles across requests, such as that of
/// their standard output.
pub(super) struct Wasi {
    /// Clocks, random numbers, standard output and files. None until the guest uses them: many components of `wasi:http`
    /// never do.
    pub(super) ctx: Option<WasiCtx>,
    pub(super) table: ResourceTable,
    pub(super) http: WasiHttpCtx,
    /// What the component's resources of `wasi:http` take in this request.
    pub(super) http_held: Held,
    /// The table of a component that holds too much. It has no room.
    pub(super) no_table: ResourceTable,
    pub(super) outbound: OutboundHttp,
}

/// What the outbound requests of a component of `wasi:http` need.
pub(super) struct OutboundHttp {
    pub(super) shared: Arc<Shared>,
    /// The scope of the request that the instance serves. None while it is kept for a later one.
    pub(super) scope: Option<Arc<Scope>>,
    /// Whether the body of the next response that the component makes is taken as soon as it is written.
    pub(super) takes_body_at_once: bool,
}

/// What middleware of `wasi:http` has got from the rest of its chain.
#[derive(Default)]
pub struct Next {
    /// Whether the body of the response is a stream. It begins after the commit, so the middleware has to answer before
    /// it can read the body.
    pub streams: AtomicBool,
    /// The error, if it was one. The middleware sees an error code in its place.
    pub error: Mutex<Option<Error>>,
}

impl Work {
    /// A call without a chain and without a kept body.
    pub fn new(scope: Arc<Scope>, view: Arc<View>, member: Arc<Member>) -> Work {
        Work {
            scope,
            view,
            member,
            call_chain: None,
            body: None,
            binary: None,
            writer: None,
            next: None,
            cpu: Arc::default(),
        }
    }

    /// Checks that CPU time is left. A function that produces a body has time for that, too.
    ///
    /// # Errors
    /// When it is used up.
    pub fn check_cpu(&self) -> Result<(), Stop> {
        let (used, limit) = (self.cpu.used(), self.view.cpu);
        if let Some(conversation) = self.scope.conversation() {
            return match conversation.has_cpu(used, limit) {
                true => Ok(()),
                false => Err(Stop::ConversationCpu(limit.as_millis())),
            };
        }
        if used < limit {
            return Ok(());
        }
        match self.scope.stream_cpu() {
            None => Err(Stop::Cpu(limit.as_millis())),
            Some(limit) if used < limit => Ok(()),
            Some(limit) => Err(Stop::StreamCpu(limit.as_millis())),
        }
    }

    /// Why the function must end now, if it must: the request has ended, or its caller no longer waits for it.
    pub fn ended(&self) -> Option<Ended> {
        let given_up = || self.member.is_over().then_some(Ended::Answered);
        self.scope.deadline.ended().or_else(given_up)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.shared.usual_memory.note(self.memory.size);
    }
}

impl Guest {
    /// The store data of a new instance.
    ///
    /// `blocks`: whether its work on files blocks the thread that it runs on.
    pub fn new(work: Work, blocks: bool, shared: &Arc<Shared>) -> Guest {
        let grants = &shared.grants;
        let output = Output::new(grants.limits.log_max_bytes, &work.scope, &work.view);
        Guest {
            output,
            memory: MemoryLimit {
                max: grants.limits.memory_mb << 20,
                size: 0,
                growth: 0,
                reached: false,
            },
            work: Some(work),
            blocks,
            writes_files: grants.directories.iter().any(|folder| folder.write),
            shared: Arc::clone(shared),
            table: table(),
            wasi: None,
        }
    }

    /// The call that the instance serves.
    ///
    /// # Panics
    /// While the instance is kept for another request: no guest code runs then.
    pub fn work(&self) -> &Work {
        self.work.as_ref().expect("a guest runs for a request")
    }

    /// Drops the request that is done. Returns whether the instance is clean: the request has not ended early, no limit
    /// was reached, and the guest has dropped all handles to host resources.
    pub fn finish(&mut self) -> bool {
        let ended = (self.work.take()).is_none_or(|work| work.scope.deadline.ended().is_some());
        if let Some(wasi) = &mut self.wasi {
            wasi.outbound.scope = None;
            wasi.http_held = Held::default();
        }
        let limited = self.output.finish() || self.memory.reached;
        !ended && !limited && self.table.is_empty()
    }

    /// Starts the next call.
    pub fn begin(&mut self, work: Work) {
        self.output.begin(&work.scope, &work.view);
        if let Some(wasi) = &mut self.wasi {
            wasi.outbound.scope = Some(Arc::clone(&work.scope));
        }
        self.work = Some(work);
    }

    /// Why the guest is ended, if it held too much in resources of `wasi:http`.
    pub(super) fn holds_too_much(&self) -> Option<&str> {
        self.wasi.as_ref()?.http_held.over()
    }

    /// Number of handles that the guest holds to resources of WASI.
    pub(super) fn wasi_handles(&mut self) -> usize {
        let wasi = self.wasi.as_mut();
        wasi.map_or(0, |wasi| wasi.table.iter_mut().count())
    }

    /// Waits for `work` on the thread of a sync worker, until the request's deadline at most. The wait does not count
    /// as CPU time.
    pub(super) fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Ended> {
        let work_on = self.work();
        if let Some(why) = work_on.ended() {
            return Err(why);
        }
        let Work { scope, cpu, .. } = work_on;
        cpu.pause(|| workers::block_on(scope.deadline.bound(work)))
    }
}

/// The memory that the instances of a module usually have: as much as the largest of late.
#[derive(Debug, Default)]
pub struct UsualMemory(AtomicU64);

impl UsualMemory {
    /// The usual memory in kB.
    pub fn kb(&self) -> usize {
        usize::try_from(self.0.load(Relaxed) >> 10).unwrap_or(usize::MAX)
    }

    /// Notes the memory of an instance, in bytes. A larger one counts at once, smaller ones little by little. When two
    /// threads do so at once, one of them may be lost.
    fn note(&self, bytes: u64) {
        let usual = self.0.load(Relaxed);
        let next = match bytes >= usual {
            true => bytes,
            false => usual - (usual - bytes) / 64,
        };
        if next != usual {
            self.0.store(next, Relaxed);
        }
    }
}

/// Limit on the linear memory of an instance, all its memories together.
pub struct MemoryLimit {
    max: u64,
    /// The size of all memories together, in bytes.
    pub size: u64,
    /// The last growth that was allowed, in bytes.
    growth: u64,
    /// Set when a growth was refused. Most guests then trap, and the failure names this limit.
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

    /// Takes back an allowed growth that has failed: the memory's own maximum was reached, or the system has no more
    /// memory.
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

/// Which function a guest calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callee {
    /// The rest of its chain.
    Next,
    /// Another view of the app.
    Subrequest,
}

/// The way for a guest to call other guest functions and to publish events. `request/dispatch.rs` implements it, so
/// that this part of the code need not know about chains.
pub trait CallChain: Send + Sync {
    /// For a sync function: calls another function, and blocks the worker's thread until the answer.
    fn go(&self, to: Callee, request: Request) -> Result<Response, Error>;

    /// For an async function: calls another function. `body`: the body that the called function may read, in place of
    /// the client's.
    fn go_async(
        self: Arc<Self>,
        to: Callee,
        request: Request,
        body: Option<RequestBody>,
    ) -> BoxFuture<'static, Result<Response, Error>>;

    /// The body of a response that the function got from another one, by the number of its stream. It is produced when
    /// the head of the function's own response has gone out. `length`: the length that the response declares.
    ///
    /// # Errors
    /// When the function has answered already, or there is no memory.
    fn read_stream(&self, number: u32, length: Option<u64>) -> Result<StreamBody, Failure>;

    /// Publishes an event.
    fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), NotPublished>;
}

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPublished {
    /// The topic is not a valid one.
    NoTopic(String),
    /// The payload is too large.
    TooLarge(String),
    /// The publishing function has been given up: its caller no longer waits for it.
    Over(String),
    /// Too many events wait in the queue.
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
            // The memory may not grow beyond its own maximum.
            memory.grow(&mut store, 50).expect_err("it may not");
            assert_eq!(store.data().size, 1 << 16);
        }
        memory.grow(&mut store, 1).expect("it may");
        assert_eq!(store.data().size, 2 << 16);
    }
}
