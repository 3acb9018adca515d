//! What exists once in the process: the current app, the engines, the workers, the queue of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;

use crate::app::App;
use crate::app::events::Bus;
use crate::budget;
use crate::channels::Hub;
use crate::guest::run::Engines;
use crate::threads::deadline::Ended;
use crate::threads::gate::Gate;
use crate::threads::workers::Workers;

/// What all requests of the process share.
pub struct Host {
    /// The app that new requests get.
    pub app: ArcSwap<App>,
    /// The WebAssembly engines that run guests, one for each mode.
    pub engines: Engines,
    /// The sync workers, which run sync guest functions.
    pub workers: Workers,
    /// The limit on the memory of guests, in kB. A request takes what the functions of its chain usually have, before it
    /// takes anything else.
    pub guest_memory: Gate,
    /// The limit on requests that have async functions.
    pub instances: Gate,
    /// The queue of events.
    pub events: Arc<Bus>,
    /// The groups of connections.
    pub hub: Arc<Hub>,
    /// Whether error pages show details (`amphi up`).
    pub development: bool,
    /// In development: why the app could not be built from its current sources. It is shown in place of every page,
    /// because developers look there.
    pub broken: ArcSwapOption<String>,
    /// Set when the drain timeout is over. From then on, [`Host::why_dropped`] names the shutdown as the reason.
    pub stopping: AtomicBool,
}

impl Host {
    /// A host that serves `app`. Must be called on the main runtime, which its workers use.
    pub fn new(app: App, engines: Engines, development: bool) -> Host {
        budget::process().set_max(app.config.server.memory_budget_mb << 20);
        let views = &app.config.async_views;
        let wait = Duration::from_millis(views.queue_timeout_ms);
        Host {
            engines,
            workers: Workers::new(app.config.sync_views.pool(), Handle::current()),
            guest_memory: Gate::new(
                "kB of guest memory",
                usize::try_from(app.config.server.guest_memory_mb << 10).unwrap_or(usize::MAX),
                views.queue_max,
                wait,
            ),
            instances: Gate::new(
                "async instances",
                views.in_flight_max,
                views.queue_max,
                wait,
            ),
            events: Bus::new(app.config.events.clone()),
            hub: Arc::clone(&app.services.hub),
            app: ArcSwap::from_pointee(app),
            development,
            broken: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Why a request that is dropped now has ended: because of the shutdown, or because its client has gone.
    pub fn why_dropped(&self) -> Ended {
        match self.stopping.load(Relaxed) {
            true => Ended::Shutdown,
            false => Ended::Disconnected,
        }
    }
}
