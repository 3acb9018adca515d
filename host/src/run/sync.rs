//! Sync guests: a plain call on the worker's thread.

use std::time::Duration;

use wasmtime::{Engine, Store, UpdateDeadline};

use super::{Answer, Stop, TICK, explain};
use crate::bindings::{SyncViewsPre, types};
use crate::capability::Guest;
use crate::error::Failure;
use crate::metrics::{Held, METRICS};
use crate::view::Mode;

/// How many ticks pass between looks at a computing guest: as often as its limits have to be exact.
const TICKS_BETWEEN_LOOKS: u32 = 5;

/// Runs a view in a fresh instance. Blocks; on a sync worker.
///
/// # Errors
/// A trap, a limit or a cancelled request, explained.
pub fn call(
    engine: &Engine,
    views: &SyncViewsPre<Guest>,
    guest: Guest,
    request: &types::Request,
) -> Result<Answer, Failure> {
    let view = guest.scope.view.id;
    let mut store = store(engine, guest);
    let _held = Held::new(&METRICS.instances.with_label_values(&[Mode::Sync.as_str()]));
    let answer = views
        .instantiate(&mut store)
        .and_then(|views| views.call_handle(&mut store, view, request));
    answer.map_err(|error| explain(&error, store.data()))
}

/// Asks a component for its views.
///
/// # Errors
/// As [`call`].
pub fn describe(
    engine: &Engine,
    views: &SyncViewsPre<Guest>,
    guest: Guest,
) -> Result<Vec<types::ViewInfo>, Failure> {
    let mut store = store(engine, guest);
    let views = views
        .instantiate(&mut store)
        .and_then(|views| views.call_describe(&mut store));
    views.map_err(|error| explain(&error, store.data()))
}

fn store(engine: &Engine, guest: Guest) -> Store<Guest> {
    let budget = guest.scope.view.cpu;
    // Read at the first look, so that the many requests that end before it need not ask the kernel.
    let mut start = None;
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_epoch_deadline(TICKS_BETWEEN_LOOKS.into());
    store.epoch_deadline_callback(move |store| {
        if let Some(why) = store.data().scope.deadline.ended() {
            return Err(Stop::from(why).into());
        }
        // Time in host calls does not count, and neither does a busy machine: only what this thread computed.
        let now = thread_cpu_time();
        let start = *start.get_or_insert_with(|| now.saturating_sub(TICKS_BETWEEN_LOOKS * TICK));
        if now.saturating_sub(start) >= budget {
            return Err(Stop::Cpu(budget.as_millis()).into());
        }
        Ok(UpdateDeadline::Continue(TICKS_BETWEEN_LOOKS.into()))
    });
    store
}

/// CPU time that this thread has used.
fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs().try_into().unwrap_or(0),
    )
}
