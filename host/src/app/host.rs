//! What the whole process has one of: the app it serves and where guests run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;

use crate::app::App;
use crate::app::events::Bus;
use crate::budget;
use crate::guest::run::Engines;
use crate::threads::deadline::Ended;
use crate::threads::gate::Gate;
use crate::threads::workers::Workers;

/// What all requests of the process share.
pub struct Host {
    /// The app that new requests get.
    pub app: ArcSwap<App>,
    /// Where guests run.
    pub engines: Engines,
    /// Where sync views run.
    pub workers: Workers,
    /// PoolSizes for requests with async parts.
    pub instances: Gate,
    /// Events on their way to subscribers.
    pub events: Arc<Bus>,
    /// Whether errors are shown in detail to whoever asks.
    pub development: bool,
    /// In development: why the app is not the one that its sources say. Pages tell it, since nobody looks at the log.
    pub broken: ArcSwapOption<String>,
    /// Set when the host has waited long enough for the requests in flight.
    pub stopping: AtomicBool,
}

impl Host {
    /// A host that serves `app` on the runtime that calls this.
    pub fn new(app: App, engines: Engines, development: bool) -> Host {
        budget::process().set_max(app.config.server.memory_budget_mb << 20);
        let views = &app.config.async_views;
        let wait = Duration::from_millis(views.queue_timeout_ms);
        Host {
            engines,
            workers: Workers::new(app.config.sync_views.pool(), Handle::current()),
            instances: Gate::new(
                "async instances",
                views.in_flight_max,
                views.queue_max,
                wait,
            ),
            events: Bus::new(app.config.events.clone()),
            app: ArcSwap::from_pointee(app),
            development,
            broken: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Why a request that is dropped now is dropped.
    pub fn why_dropped(&self) -> Ended {
        match self.stopping.load(Relaxed) {
            true => Ended::Shutdown,
            false => Ended::Disconnected,
        }
    }
}
