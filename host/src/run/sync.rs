//! Sync guests: a plain call on the worker's thread.

use std::sync::Arc;

use wasmtime::{Engine, Store, UpdateDeadline};

use super::{Answer, Stop, explain};
use crate::bindings::{SyncViewsPre, types};
use crate::capability::Guest;
use crate::error::Failure;
use crate::metrics::{Held, METRICS};
use crate::view::Mode;

/// How many ticks pass between looks at a computing guest: as often as its limits have to be exact.
const TICKS_BETWEEN_LOOKS: u64 = 5;

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
    let view = guest.view.id;
    run(engine, guest, |store| {
        let views = views.instantiate(&mut *store)?;
        views.call_handle(store, view, request)
    })
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
    run(engine, guest, |store| {
        views.instantiate(&mut *store)?.call_describe(store)
    })
}

/// Works with a fresh store, under all its limits.
fn run<T>(
    engine: &Engine,
    guest: Guest,
    work: impl FnOnce(&mut Store<Guest>) -> wasmtime::Result<T>,
) -> Result<T, Failure> {
    let cpu = Arc::clone(&guest.cpu);
    let _counting = cpu.count();
    let mut store = store(engine, guest);
    let _held = Held::new(&METRICS.instances.with_label_values(&[Mode::Sync.as_str()]));
    work(&mut store).map_err(|error| explain(&error, store.data()))
}

fn store(engine: &Engine, guest: Guest) -> Store<Guest> {
    let budget = guest.view.cpu;
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_epoch_deadline(TICKS_BETWEEN_LOOKS);
    store.epoch_deadline_callback(move |store| {
        let guest = store.data();
        if let Some(why) = guest.scope.deadline.ended() {
            return Err(Stop::from(why).into());
        }
        if guest.cpu.used() >= budget {
            return Err(Stop::Cpu(budget.as_millis()).into());
        }
        Ok(UpdateDeadline::Continue(TICKS_BETWEEN_LOOKS))
    });
    store
}
