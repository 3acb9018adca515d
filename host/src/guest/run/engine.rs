//! The two engines, one for each mode. Component-model concurrency makes a whole linker async-only, so sync and async
//! guests need an engine each. Both allocate instances from a pool of slots, with settings that were measured to make
//! reuse of a slot cheap.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Semaphore;
use wasmtime::{
    Cache, CacheConfig, Config, Enabled, Engine, InstanceAllocationStrategy,
    PoolingAllocationConfig, WasmBacktraceDetails,
};

use crate::config;
use crate::guest::store::TABLE_ELEMENTS_MAX;

/// The interval of the epoch: a guest computes at most this long before the host can stop or preempt it (R5).
const TICK: Duration = Duration::from_millis(1);

/// The most frames of a trap's stack that are collected, from the innermost. A panic alone has a dozen.
pub(super) const FRAMES_MAX: usize = 40;

/// The most core instances of one component. Guests in Python or JavaScript have up to fourteen.
const CORE_INSTANCES_PER_COMPONENT: u32 = 20;
/// The most stack of a guest, in bytes. Sync guests run on the stack of their worker. Each async guest has a stack of
/// `ASYNC_STACK_BYTES`, and the host functions that it calls run on that stack, too.
const WASM_STACK_BYTES: usize = 512 << 10;
const ASYNC_STACK_BYTES: usize = 1 << 20;
/// The bytes of memory, table and stack that a slot keeps when its instance ends. The next instance in the slot need
/// not fault them in again.
const KEPT_MEMORY_BYTES: usize = 2 << 20;
const KEPT_TABLE_BYTES: usize = 64 << 10;
const KEPT_STACK_BYTES: usize = 64 << 10;

/// One engine for each mode, and the thread that advances their epochs.
#[derive(Clone)]
pub struct Engines {
    /// For sync components.
    pub sync: Engine,
    /// For async components.
    pub r#async: Engine,
    /// Permits for instances that are kept for further requests, one for each kept instance.
    pub(super) sync_kept: Arc<Semaphore>,
    pub(super) async_kept: Arc<Semaphore>,
}

/// The number of instances of one mode that the pool has slots for.
#[derive(Debug, Clone, Copy)]
pub struct PoolSizes {
    /// Instances that run at the same time.
    pub at_once: usize,
    /// Instances that are kept for further requests.
    pub kept: usize,
}

impl Engines {
    /// Engines with slots for this many instances of each mode.
    ///
    /// # Errors
    /// When the address space for the slots cannot be reserved.
    pub fn new(sync: PoolSizes, r#async: PoolSizes) -> anyhow::Result<Engines> {
        Engines::with(sync, r#async, false)
    }

    /// Engines for development: backtraces of traps have the lines of the guest's source. Collecting a backtrace takes
    /// milliseconds.
    ///
    /// # Errors
    /// As [`Engines::new`].
    pub fn for_development(sync: PoolSizes, r#async: PoolSizes) -> anyhow::Result<Engines> {
        Engines::with(sync, r#async, true)
    }

    /// Engines for inspecting components, with a single slot each.
    ///
    /// # Errors
    /// As [`Engines::new`].
    pub fn for_looking() -> anyhow::Result<Engines> {
        let one = PoolSizes {
            at_once: 1,
            kept: 0,
        };
        Engines::new(one, one)
    }

    fn with(sync: PoolSizes, r#async: PoolSizes, lines: bool) -> anyhow::Result<Engines> {
        let cache = compile_cache();
        let engines = Engines {
            sync: engine(sync, false, lines, cache.clone())?,
            r#async: engine(r#async, true, lines, cache)?,
            sync_kept: Arc::new(Semaphore::new(sync.kept)),
            async_kept: Arc::new(Semaphore::new(r#async.kept)),
        };
        engines.tick().context("starting the epoch thread")?;
        Ok(engines)
    }

    fn tick(&self) -> std::io::Result<()> {
        let (sync, r#async) = (self.sync.weak(), self.r#async.weak());
        let tick = move || {
            while let (Some(sync), Some(r#async)) = (sync.upgrade(), r#async.upgrade()) {
                sync.increment_epoch();
                r#async.increment_epoch();
                std::thread::sleep(TICK);
            }
        };
        std::thread::Builder::new()
            .name("amphi-epoch".into())
            .spawn(tick)
            .map(drop)
    }
}

/// The cache of compiled modules on disk. Without it, each start compiles the modules again.
fn compile_cache() -> Option<Cache> {
    match Cache::new(CacheConfig::new()) {
        Ok(cache) => Some(cache),
        Err(error) => {
            let why = format!("{error:#}");
            tracing::warn!(
                why,
                "compiled modules cannot be kept, so each start compiles them anew: set HOME or XDG_CACHE_HOME to a folder that can be written"
            );
            None
        }
    }
}

fn engine(
    room: PoolSizes,
    concurrent: bool,
    lines: bool,
    cache: Option<Cache>,
) -> anyhow::Result<Engine> {
    // One more slot, so that a new module can be asked for its views while all other slots are in use.
    let instances = u32::try_from(room.at_once + room.kept + 1).context("too many instances")?;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_PER_COMPONENT))
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .total_memories(instances.saturating_mul(2))
        .max_memories_per_component(2)
        .total_tables(instances.saturating_mul(4))
        .max_tables_per_component(CORE_INSTANCES_PER_COMPONENT)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_core_instance_size(1 << 20)
        .max_component_instance_size(2 << 20)
        .max_memory_size(config::MEMORY_BYTES_MAX)
        .linear_memory_keep_resident(KEPT_MEMORY_BYTES)
        .table_keep_resident(KEPT_TABLE_BYTES)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    // Set explicitly, so that the environment variable `WASMTIME_BACKTRACE_DETAILS` does not decide.
    let details = match lines {
        true => WasmBacktraceDetails::Enable,
        false => WasmBacktraceDetails::Disable,
    };
    config
        .cache(cache)
        .wasm_backtrace_details(details)
        .wasm_backtrace_max_frames(NonZeroUsize::new(FRAMES_MAX))
        .concurrency_support(concurrent)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .memory_init_cow(true);
    // In the sync engine, only components of `wasi:http` 0.2 have stacks of their own.
    pool.total_stacks(instances)
        .async_stack_keep_resident(KEPT_STACK_BYTES);
    config.async_stack_size(ASYNC_STACK_BYTES);
    if concurrent {
        config.wasm_component_model_async(true);
    }
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).map_err(anyhow::Error::from).with_context(|| {
        format!("an engine with room for {instances} instances (fewer workers, and a smaller `in_flight_max` and `sockets_max`, need less address space)")
    })
}
