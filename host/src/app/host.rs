//! What exists once in the process: the current app, the engines, the workers, the queue of events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use crate::app::App;
use crate::app::events::Bus;
use crate::app::rollout::Rollout;
use crate::app::rollout::shadow::Shadow;
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
    /// The candidate beside it, if there is one. [`Host::roll_out`] and [`Host::swap`] replace it.
    pub rollout: ArcSwapOption<Rollout>,
    /// Tells that the app or the candidate has been replaced.
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
            rollout: ArcSwapOption::empty(),
            swaps: watch::Sender::new(()),
            development,
            broken: ArcSwapOption::empty(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Has new requests get this app, and ends the rollout, if there is one. What is in flight goes on with the app
    /// before; conversations of web sockets for `drain_timeout_ms`.
    pub fn swap(&self, app: Arc<App>) {
        // In this order: at no moment does a request of the candidate's clients get the app before.
        self.app.store(app);
        self.roll_out(None);
    }

    /// Has some clients get a candidate, or none any more.
    pub fn roll_out(&self, rollout: Option<Rollout>) {
        self.rollout.store(rollout.map(Arc::new));
        self.swaps.send_replace(());
    }

    /// The rollout in shadow mode, if there is one.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        let rollout = self.rollout.load();
        rollout.as_ref().and_then(|rollout| rollout.shadow.clone())
    }

    /// The app of what belongs to a rollout's candidate (its number), or to the served app: the candidate as long as that
    /// rollout goes on, and otherwise the served app.
    pub fn app_of(&self, candidate: Option<u64>) -> Arc<App> {
        if let Some(number) = candidate
            && let Some(rollout) = &*self.rollout.load()
            && rollout.is(number)
        {
            return Arc::clone(&rollout.app);
        }
        self.app.load_full()
    }

    /// Why a request that is dropped now has ended: because of the shutdown, or because its client has gone.
    pub fn why_dropped(&self) -> Ended {
        match self.stopping.load(Relaxed) {
            true => Ended::Shutdown,
            false => Ended::Disconnected,
        }
    }
}
