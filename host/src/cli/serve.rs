//! `amphi serve`: serves an app that has been built, until SIGTERM or Ctrl-C.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::block_on::block_on;
use super::source::Placed;
use crate::admin::{self, Deployer, Fleet, Listener};
use crate::app::host::Host;
use crate::app::load::{Migrations, load};
use crate::channels::NatsConfig;
use crate::config::{Config, Place, Purpose};
use crate::deploy::{Active, Record, State};
use crate::guest::run::{Engines, PoolSizes};
use crate::server::{self, Sockets};
use crate::telemetry::log::LogFormat;
use crate::telemetry::metrics::METRICS;
use crate::telemetry::stderr;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    placed: Placed,
    /// Listen here instead of where the configuration says; may be given more than once.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// How the log on standard error looks. The variable AMPHI_LOG filters it, e.g. `warn` or `debug`.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) log_format: LogFormat,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut resolved = arguments.placed.resolve(Purpose::Serve)?;
    super::listen(&mut resolved.config, &arguments.listen)?;
    let migrations = match resolved.is_own_place {
        // The databases are the artifact's own.
        true => Migrations::Apply,
        false => Migrations::Check,
    };
    let admin = match &resolved.placed {
        Some((place, ..)) => listener(place)?,
        None => None,
    };
    block_on(async {
        let mut running = Running::start(resolved.config, migrations, false).await?;
        // A version that cannot be served is never the active one.
        if let Some((place, state, active)) = resolved.placed {
            let record = state.activate(active, place.deploy.keep)?;
            let Active { digest, from, .. } = &record.active;
            tracing::info!(%digest, from, generation = record.generation, "active");
            running.administer(admin, place, state, record).await?;
        }
        running.serve().await
    })
}

/// Listens for the admin API, before anything is loaded: an address that is taken is known at once, and whoever asks early
/// waits for the answer. A place that has no file goes on without one.
fn listener(place: &Place) -> anyhow::Result<Option<Listener>> {
    let Some(address) = &place.deploy.listen else {
        return Ok(None);
    };
    match Listener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if place.file.is_none() => {
            tracing::warn!("there is no admin API: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The most slots for the instances of one mode. If more requests than that may run at the same time, each has one
/// slot.
const INSTANCE_SLOTS: usize = 8_000;
/// How long a host of a fleet waits at its start for what the fleet is to serve.
const FIRST: Duration = Duration::from_secs(60);
/// How long it takes at most at its end to tell the fleet.
const LAST: Duration = Duration::from_secs(2);
/// How often the kept instances are searched for old ones.
const SWEEP: Duration = Duration::from_secs(1);
/// An app that is loaded, with sockets that listen.
pub(super) struct Running {
    pub(super) host: Arc<Host>,
    sockets: Sockets,
    /// The admin API, if the place has one.
    admin: Option<(Arc<Deployer>, Listener)>,
    /// Ends the host. What runs beside the requests of a fleet's host until its end.
    stop: CancellationToken,
    converging: Option<JoinHandle<()>>,
}

impl Running {
    /// Binds the sockets, opens the databases and compiles the modules. Connections wait in the kernel meanwhile.
    pub(super) async fn start(
        config: Config,
        migrations: Migrations,
        development: bool,
    ) -> anyhow::Result<Running> {
        stderr::set_queue_bytes(config.server.log_queue_bytes);
        let sockets = Sockets::bind(&config)?;
        let parts = config.calls_at_once();
        // Every slot takes address space, so `INSTANCE_SLOTS` limits their number. A request that runs several
        // functions at the same time may then find no free slot, and gets 503.
        let slots = |scopes: usize| (scopes * parts).min(INSTANCE_SLOTS).max(scopes);
        let (sync, r#async) = (&config.sync_views, &config.async_views);
        let sync = PoolSizes {
            at_once: slots(sync.workers_max),
            kept: sync.instances_kept_max,
        };
        let r#async = PoolSizes {
            at_once: slots(r#async.in_flight_max) + r#async.sockets_max,
            kept: r#async.instances_kept_max,
        };
        let engines = match development {
            true => Engines::for_development(sync, r#async)?,
            false => Engines::new(sync, r#async)?,
        };
        let app = {
            let engines = engines.clone();
            let loading = move || load(config, &engines, None, migrations, development);
            tokio::task::spawn_blocking(loading).await??
        };
        if let Some(urls) = app.config.channels.nats.clone() {
            let nats = NatsConfig {
                urls: urls.split(',').map(|url| url.trim().to_owned()).collect(),
                prefix: format!("amphi.{}", app.config.name),
                root_certificates: None,
            };
            let connected = app.services.hub.connect(nats).await;
            connected.context("`nats` of `[channels]`")?;
        }
        let addresses = sockets.addresses()?;
        app.services.http.set_own(addresses[0]);
        let views = app.count();
        for address in &addresses {
            let admin = sockets.admin_address()?.map(tracing::field::display);
            tracing::info!(%address, admin, app = app.config.name, sync_views = views.get("sync"), async_views = views.get("async"), "listening");
        }
        Ok(Running {
            host: Arc::new(Host::new(app, engines, development)),
            sockets,
            admin: None,
            stop: CancellationToken::new(),
            converging: None,
        })
    }

    /// Has the place's admin API, and the fleet that the place belongs to, change what is served. In a fleet, what that
    /// is to serve is served before anybody is: connections wait in the kernel meanwhile, for a minute at most.
    async fn administer(
        &mut self,
        listener: Option<Listener>,
        place: Place,
        state: State,
        record: Record,
    ) -> anyhow::Result<()> {
        let fleet = match &place.deploy.fleet {
            Some(config) => Some(Fleet::join(config, &state, &record).await?),
            None => None,
        };
        if listener.is_none() && fleet.is_none() {
            return Ok(());
        }
        let is_member = fleet.is_some();
        let deployer = Deployer::new(Arc::clone(&self.host), place, state, record, fleet)?;
        if is_member {
            let first = CancellationToken::new();
            let converging = Arc::clone(&deployer).converge(first.clone(), self.stop.clone());
            self.converging = Some(tokio::spawn(converging));
            if timeout(FIRST, first.cancelled()).await.is_err() {
                tracing::warn!(
                    "what the fleet is to serve is not there yet: the host begins with what it has"
                );
            }
        } else {
            tokio::spawn(Arc::clone(&deployer).resume());
        }
        if let Some(listener) = listener {
            tracing::info!(address = %listener.address()?, "the admin API listens");
            self.admin = Some((deployer, listener));
        }
        Ok(())
    }

    /// Serves until a signal, then lets requests in flight finish.
    pub(super) async fn serve(self) -> anyhow::Result<()> {
        let stop = self.stop;
        tokio::spawn(stop_on_signal(stop.clone()));
        tokio::spawn(sweep(Arc::clone(&self.host)));
        if let Some((deployer, listener)) = self.admin {
            tokio::spawn(administer(deployer, listener, stop.clone()));
        }
        let hub = Arc::clone(&self.host.hub);
        let served = server::serve(self.host, self.sockets, stop).await;
        // Other hosts then know at once that the members of this one are gone.
        hub.shutdown().await;
        // And the other hosts of the fleet, that this one has ended in order.
        if let Some(converging) = self.converging {
            let _ = timeout(LAST, converging).await;
        }
        served
    }
}

/// Serves the admin API. If it ends, the host goes on with what it serves.
async fn administer(deployer: Arc<Deployer>, listener: Listener, stop: CancellationToken) {
    if let Err(error) = admin::serve(deployer, listener, stop).await {
        tracing::error!(%error, "the admin API has ended");
    }
}

/// Ends instances that have been kept too long, whether or not there are requests.
async fn sweep(host: Arc<Host>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        host.app.load().sweep();
        if let Some(rollout) = &*host.rollout.load() {
            rollout.app.sweep();
        }
        host.hub.sweep();
        for (name, number) in host.hub.counters().all() {
            let gauge = METRICS.channels.with_label_values(&[name]);
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }
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
            // A second signal ends the process without waiting for requests.
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
