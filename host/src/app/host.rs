//! What exists once in the process: the current app, the engines, the workers, the queue of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

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
    /// The app that new requests get. [`Host::swap`] replaces it.
    pub app: ArcSwap<App>,
    /// Tells that the app has been replaced.
    pub swaps: watch::Sender<()>,
    /// The WebAssembly engines that run guests, one for each mode.
    pub engines: Engines,
    /// The sync workers, which run sync guest functions.
    pub workers: Workers,
    /// The limit on the memory of guests, in kB. A request takes what the functions of its chain usually have, before it
    /// takes anything else.
    pub guest_memory: Gate,
    /// The limit on requests that have async functions.
    pub instances: Gate,
    /// Permits for web sockets whose functions keep the conversation, and how many there are.
    pub conversations: (Arc<Semaphore>, usize),
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
            conversations: (
                Arc::new(Semaphore::new(views.sockets_max)),
                views.sockets_max,
            ),
            events: Bus::new(app.config.events.clone()),
            hub: Arc::clone(&app.services.hub),
            app: ArcSwap::from_pointee(app),
            swaps: watch::Sender::new(()),
            development,
            broken: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Has new requests get this app. What is in flight goes on with the one before; conversations of web sockets for
    /// `drain_timeout_ms`.
    pub fn swap(&self, app: App) {
        self.app.store(Arc::new(app));
        self.swaps.send_replace(());
    }

    /// Why a request that is dropped now has ended: because of the shutdown, or because its client has gone.
    pub fn why_dropped(&self) -> Ended {
        match self.stopping.load(Relaxed) {
            true => Ended::Shutdown,
            false => Ended::Disconnected,
        }
    }
}
