//! `amphi serve`: an app that has been built, until SIGTERM or Ctrl-C.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Serving;
use crate::app::App;
use crate::app::host::Host;
use crate::config::Config;
use crate::database::{self, Databases, migration};
use crate::guest::run::{Engines, PoolSizes};
use crate::server::{self, Sockets};
use crate::telemetry::stderr;

pub(super) fn run(serving: &Serving) -> anyhow::Result<()> {
    let config = serving.config()?;
    block_on(async {
        let running = Running::start(config, Migrations::Check).await?;
        running.serve().await
    })
}

/// As many instance slots of a mode are made for requests that run several guest functions at once.
const INSTANCE_SLOTS: usize = 8_000;
/// How often instances that are kept for further requests are looked through for old ones.
const SWEEP: Duration = Duration::from_secs(1);
/// How long threads that still wait for a disk may keep the process from ending.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs a command on the runtime for everything but requests: signals, accepting, watching, and what sync
/// workers wait for.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_stack_size(database::STACK_BYTES)
        .build()
        .context("the runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WAIT);
    done
}

/// An app that is loaded and listens.
pub(super) struct Running {
    pub(super) host: Arc<Host>,
    sockets: Sockets,
}

impl Running {
    /// Binds, opens and compiles. Connections wait meanwhile.
    pub(super) async fn start(config: Config, migrations: Migrations) -> anyhow::Result<Running> {
        stderr::set_queue_bytes(config.server.log_queue_bytes);
        let sockets = Sockets::bind(&config)?;
        let parts = config.calls_at_once();
        // Address space is finite: beyond this, requests with many parts may find no slot, and get 503.
        let slots = |scopes: usize| (scopes * parts).min(INSTANCE_SLOTS).max(scopes);
        let (sync, r#async) = (&config.sync_views, &config.async_views);
        let sync = PoolSizes {
            at_once: slots(sync.workers_max),
            kept: sync.instances_kept_max,
        };
        let r#async = PoolSizes {
            at_once: slots(r#async.in_flight_max),
            kept: r#async.instances_kept_max,
        };
        let engines = match migrations {
            Migrations::Apply => Engines::for_development(sync, r#async)?,
            Migrations::Check => Engines::new(sync, r#async)?,
        };
        let app = {
            let engines = engines.clone();
            tokio::task::spawn_blocking(move || load(config, &engines, None, migrations)).await??
        };
        let addresses = sockets.addresses()?;
        app.services.http.set_own(addresses[0]);
        let views = app.count();
        for address in &addresses {
            let admin = sockets.admin_address()?.map(tracing::field::display);
            tracing::info!(%address, admin, app = app.config.name, sync_views = views.get("sync"), async_views = views.get("async"), "listening");
        }
        Ok(Running {
            host: Arc::new(Host::new(app, engines, migrations == Migrations::Apply)),
            sockets,
        })
    }

    /// Serves until a signal, then drains.
    pub(super) async fn serve(self) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        tokio::spawn(sweep(Arc::clone(&self.host)));
        server::serve(self.host, self.sockets, stop).await
    }
}

/// Ends instances that have been kept too long, whether or not there are requests.
async fn sweep(host: Arc<Host>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        host.app.load().sweep();
    }
}

/// Who applies migrations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Migrations {
    /// This command does, in development.
    Apply,
    /// Somebody has to have done so: `amphi migrate`.
    Check,
}

/// Opens the databases, loads the modules and then applies migrations: an app that cannot be served leaves its
/// databases as they were.
pub(super) fn load(
    config: Config,
    engines: &Engines,
    previous: Option<&App>,
    migrations: Migrations,
) -> anyhow::Result<App> {
    if migrations == Migrations::Check {
        migration::check_all(&config)?;
    }
    let development = migrations == Migrations::Apply;
    let none = Databases::new();
    let databases = database::open_all(
        &config,
        previous.map_or(&none, |app| &app.services.databases),
    )?;
    let app = App::load(config, engines, databases, development, previous)?;
    if migrations == Migrations::Apply {
        migration::migrate_all(&app.config, |database, migration| {
            tracing::info!(database, migration, "migration applied");
        })?;
    }
    Ok(app)
}

async fn stop_on_signal(stop: CancellationToken) {
    let (terminate, interrupt) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            // A second one does not wait.
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stderr::flush(stderr::LAST_WAIT);
            std::process::exit(130);
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be watched: the process will not end in order")
        }
    }
}
