//! One PostgreSQL database: a pool of connections to its server.
//!
//! The task of a connection runs on the runtime that opened the database, never on a request's loop. Statements use the
//! extended protocol; they are prepared, and kept for each connection. `lease` runs a statement to its end. `guard`
//! refuses statements that would leave something in a connection for its next user (R11).

mod connector;
mod error;
mod execute;
mod guard;
mod lease;
mod numeric;
mod params;
mod plain;
mod session;
mod tls;
mod tokens;
mod types;
mod values;
mod wire;

#[doc(hidden)]
pub mod fuzz;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::{Error, ErrorKind};
use super::open_ended::OpenEnded;
use super::statement::{Statement, Stream};
use crate::config::{Database as Config, PostgresServer};
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::{Deadline, Need};
use crate::threads::gate::{Gate, Permit};

use connector::Connector;
pub(super) use error::sentence;
pub(super) use lease::END_OF_READING;
pub use lease::Lease;
use plain::Definitions;
use session::Session;
pub(super) use session::{Alone, RESET, connect_alone, forgetting};
pub(super) use tokens::{SqlStatement, statements};

/// An open database.
pub struct Postgres {
    config: Config,
    server: PostgresServer,
    connector: Connector,
    gate: Gate,
    in_use: IntGauge,
    open_ended: OpenEnded,
    free: Mutex<Vec<Session>>,
    definitions: Definitions,
    /// Counts how often a prepared statement turned out to be older than a change of definitions. When the count has
    /// changed, a connection that is leased drops its prepared statements. So a change of definitions makes one
    /// statement fail, and not one for each connection.
    plans: AtomicU64,
    runtime: Handle,
}

/// A connection's permit of the pool, and its count in the metrics.
type Holds = (Permit, GaugeGuard);

impl Postgres {
    /// Opens the database and connects once, so that a wrong address or password is reported immediately. Blocks. Must
    /// run on a thread of the runtime that the connections are to live on.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses the user.
    pub fn open(config: &Config, server: &PostgresServer) -> anyhow::Result<Arc<Postgres>> {
        let runtime = Handle::current();
        let connector = Connector::new(server)?;
        let first = runtime.block_on(Session::connect(&connector, true))?;
        let name = format!("database `{}`, connections", config.name);
        let gate = Gate::new(
            name,
            server.connections,
            config.queue_max,
            config.acquire_timeout,
        );
        Ok(Arc::new(Postgres {
            config: config.clone(),
            open_ended: OpenEnded::of(config, server.connections),
            server: server.clone(),
            connector,
            gate,
            in_use: (METRICS.database_connections).with_label_values(&[&config.name]),
            free: Mutex::new(vec![first]),
            definitions: Definitions::default(),
            plans: AtomicU64::new(0),
            runtime,
        }))
    }

    /// The configuration that the database was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The runtime that the connections' tasks run on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The permits for pins and for results that are read in pieces.
    pub(super) fn open_ended(&self) -> &OpenEnded {
        &self.open_ended
    }

    /// Leases a connection: a free one, or a new one while there are fewer than `connections`.
    ///
    /// # Errors
    /// When none comes free in time, the server cannot be reached, or the request ends.
    pub async fn lease(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        read_only: bool,
    ) -> Result<Lease, Error> {
        let waits = deadline.waits_for(Need::Connection);
        let place = self.gate.enter(deadline).await?;
        drop(waits);
        let held = GaugeGuard::new(&self.in_use);
        let (mut session, holds) = match self.take_free() {
            Some(session) => (session, (place, held)),
            None => self.connect(deadline, (place, held)).await?,
        };
        session.refresh(self);
        Ok(Lease::new(self, session, deadline, read_only, holds))
    }

    /// The free connection that was used last. Those that the server has closed meanwhile are dropped.
    fn take_free(&self) -> Option<Session> {
        let mut free = self.free.lock();
        loop {
            match free.pop() {
                Some(session) if session.is_closed() => {}
                session => return session,
            }
        }
    }

    /// Opens a connection. If the caller is dropped meanwhile, the connection is opened nevertheless and becomes a free
    /// one of the pool. Its permit is held until then.
    async fn connect(
        self: &Arc<Self>,
        deadline: &Deadline,
        holds: Holds,
    ) -> Result<(Session, Holds), Error> {
        let database = Arc::clone(self);
        let (sender, connected) = oneshot::channel();
        self.runtime.spawn(async move {
            let (limit, name) = (database.server.connect_timeout, &database.config.name);
            let connect = Session::connect(&database.connector, false);
            let connected = match tokio::time::timeout(limit, connect).await {
                Ok(connected) => connected.map_err(|error| format!("{error:#}")),
                Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
            };
            let connected = connected.map(|session| (session, holds));
            match sender.send(connected) {
                Ok(()) => {}
                Err(Ok((session, holds))) => {
                    database.free.lock().push(session);
                    drop(holds);
                }
                Err(Err(why)) => tracing::debug!(database = name, why, "it cannot be reached"),
            }
        });
        let why = match deadline.bound(connected).await? {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(why)) => why,
            Err(_) => "the task that connects ended early".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "database `{}` ({}) cannot be reached: {why}",
                self.config.name, self.server
            ),
        ))
    }

    /// Makes every connection drop its prepared statements when it is leased the next time.
    fn forget_plans(&self) {
        self.plans.fetch_add(1, Relaxed);
    }

    fn plans(&self) -> u64 {
        self.plans.load(Relaxed)
    }

    /// Closes a connection. If the server's process of this connection does not end, another connection asks the server
    /// to end it.
    async fn close(&self, session: Session) {
        const END: &str = "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
            where pid::pg_catalog.oid = $1 and datname = current_database() and usename = current_user";
        let Some(process) = session.close().await else {
            return;
        };
        let database = &self.config.name;
        tracing::warn!(
            database,
            process,
            "a statement that does not stop is ended with its connection"
        );
        let ended = async {
            let alone = connect_alone(&self.server).await?;
            alone.query(END, &[&process]).await?;
            anyhow::Ok(())
        };
        match tokio::time::timeout(session::CLOSING_TIMEOUT, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(database, process, %error, "it cannot be ended"),
            Err(_) => tracing::warn!(database, process, "it cannot be ended in time"),
        }
    }

    /// Runs a statement outside of any transaction of the request, and sends its result in pieces. None: the statement
    /// writes, and has changed nothing. It is not run like this because its rows would arrive before its commit, and a
    /// guest that does not read all rows would undo the statement (R9).
    pub(super) async fn stream(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        read_only: bool,
        statement: &Arc<Statement>,
    ) -> Result<Option<Stream>, Error> {
        let lease = self.lease(deadline, read_only).await?;
        lease.stream(Arc::clone(statement)).await
    }
}
