//! One SQLite database: one connection that writes and several that read, all on one file in WAL mode.
//!
//! SQLite lets one connection write at a time. Here writers queue for the one writing connection, in order and with a
//! time limit, so that they do not collide inside of SQLite. Readers see the last commit and never wait for the writer.
//!
//! For event loops, a thread of the database's own writes ([`Sqlite::write`]). When this thread has ended a
//! transaction, it goes on with the next one, and no other thread has to be woken between the two.
//!
//! Views must not run statements that change the connection (`BEGIN`, `PRAGMA`, `ATTACH`, temporary tables …). The next
//! statement may go to another connection, so the change would be lost, and `ATTACH` would reach other files. SQLite's
//! authorizer refuses such statements by name (R11).

use std::sync::Arc;

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use super::error::{Error, ErrorKind};
use super::face::{Face, unwound};
use super::open_ended::OpenEnded;
use super::statement::{Access, Outcome, Statement, Stream, Streamed};
use crate::config::{Database as Config, SqliteFile};
use crate::telemetry::metrics::METRICS;
use crate::threads::deadline::{Deadline, Need};
use crate::threads::gate::Gate;
use crate::threads::wakeups::batched_wakeup;
use crate::threads::workers;

mod connection;
mod functions;
mod guard;
mod lease;
mod limits;
mod search;
mod values;
mod watch;

use connection::Handle;
use guard::Shared;
pub use lease::{Lease, Tried};
pub use limits::STACK_BYTES;

/// An open database.
pub struct Sqlite {
    config: Config,
    file: SqliteFile,
    writer: Pool,
    readers: Pool,
    in_use: IntGauge,
    open_ended: OpenEnded,
    shared: Shared,
    thread: Thread,
}

/// The thread that writes for event loops. The thread ends when this value is dropped.
struct Thread {
    runtime: runtime::Handle,
    _end: oneshot::Sender<()>,
}

/// The connections of one kind, and the queue for them.
struct Pool {
    gate: Gate,
    free: Mutex<Vec<Handle>>,
}

/// The number of reading connections: one more than configured, so that a result that is read in pieces leaves a
/// connection for other statements.
pub(super) fn reading_connections(file: &SqliteFile) -> usize {
    file.readers + 1
}

impl Sqlite {
    /// Opens the file. Makes the file and its folder when they are missing.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not a database.
    pub fn open(config: &Config, file: &SqliteFile) -> anyhow::Result<Arc<Sqlite>> {
        if let Some(folder) = file.file.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
        }
        let shared = Shared::default();
        let writer = Handle::open(config, file, &shared, true)?;
        let reading = reading_connections(file);
        let readers = (0..reading)
            .map(|_| Handle::open(config, file, &shared, false))
            .collect::<anyhow::Result<_>>()?;
        let name = |kind| format!("database `{}`, {kind} connections", config.name);
        let pool = |kind, size, handles| Pool {
            gate: Gate::new(name(kind), size, config.queue_max, config.acquire_timeout),
            free: Mutex::new(handles),
        };
        Ok(Arc::new(Sqlite {
            writer: pool("writing", 1, vec![writer]),
            readers: pool("reading", reading, readers),
            in_use: (METRICS.database_connections).with_label_values(&[&config.name]),
            open_ended: OpenEnded::of(config, reading),
            file: file.clone(),
            config: config.clone(),
            shared,
            thread: Thread::start().context("the thread that writes")?,
        }))
    }

    /// Runs blocking work for an event loop, on the thread that writes for event loops. The work is finished even if
    /// its caller is dropped.
    pub(super) async fn go_on<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        unwound(batched_wakeup(self.thread.runtime.spawn(async { work() })).await)
    }

    /// The configuration that the database was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The permits for pins and for results that are read in pieces.
    pub(super) fn open_ended(&self) -> &OpenEnded {
        &self.open_ended
    }

    /// The file and its options.
    pub fn file(&self) -> &SqliteFile {
        &self.file
    }

    /// Leases a reading connection.
    ///
    /// # Errors
    /// When none comes free in time, or the request ends.
    pub async fn reader(self: &Arc<Self>, deadline: &Arc<Deadline>) -> Result<Lease, Error> {
        self.lease(deadline, false).await
    }

    /// Leases the writing connection.
    ///
    /// # Errors
    /// When this connection does not come free in time, or the request ends.
    pub async fn writer(self: &Arc<Self>, deadline: &Arc<Deadline>) -> Result<Lease, Error> {
        self.lease(deadline, true).await
    }

    async fn lease(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        writes: bool,
    ) -> Result<Lease, Error> {
        let pool = if writes { &self.writer } else { &self.readers };
        let waits = deadline.waits_for(Need::Connection);
        let place = pool.gate.enter(deadline).await?;
        drop(waits);
        let free = pool.free.lock().pop();
        let handle = match free {
            Some(handle) => handle,
            None => {
                let database = Arc::clone(self);
                let opened = tokio::task::spawn_blocking(move || database.reopen(writes));
                unwound(opened.await)?
            }
        };
        Lease::new(handle, self, place, Arc::clone(deadline), writes)
    }

    /// Runs `work` with the writing connection as soon as this connection is free, on the thread that writes for event
    /// loops. `work` may block. If the caller is dropped before `work` has begun, `work` does not run.
    ///
    /// # Errors
    /// When the connection does not come free in time, or the request ends.
    pub async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        work: impl FnOnce(Lease) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (database, watched) = (Arc::clone(self), Arc::clone(deadline));
        let waits = deadline.waits_for(Need::Connection);
        let begin = move |place| {
            drop(waits);
            let free = database.writer.free.lock().pop();
            let handle = free.map_or_else(|| database.reopen(true), Ok)?;
            Lease::new(handle, &database, place, watched, true).map(work)
        };
        let gate = &self.writer.gate;
        gate.enter_on(&self.thread.runtime, deadline, begin).await?
    }

    /// Opens a connection to replace one that was closed after its lease. Blocks.
    fn reopen(&self, writes: bool) -> Result<Handle, Error> {
        Handle::open(&self.config, &self.file, &self.shared, writes).map_err(|error| {
            let name = &self.config.name;
            Error::new(
                ErrorKind::Unavailable,
                format!("database `{name}`: {error:#}"),
            )
        })
    }

    /// Runs a statement outside of any transaction: on a reading connection if possible.
    pub(super) async fn run(
        self: &Arc<Self>,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Outcome, Error> {
        if access.no_reader {
            return Err(Error::pinned_by_caller(&self.config.name));
        }
        // A statement whose rows are not wanted most likely writes, so it is not tried on a reading connection first.
        let statement = if statement.rows_max.is_some() || access != Access::default() {
            let lease = self.reader(deadline).await?;
            let tried = face.run(move || {
                let tried = lease.run(&statement)?;
                Ok::<_, Error>((tried, statement))
            });
            match tried.await? {
                (Tried::Done(outcome), _) => return Ok(outcome),
                (Tried::Writes, statement) if access.read_only => {
                    return Err(Error::read_only(&statement.sql));
                }
                (Tried::Writes, _) if access.no_writer => {
                    return Err(Error::pinned_by_caller(&self.config.name));
                }
                (Tried::Writes, statement) => statement,
            }
        } else {
            statement
        };
        let write = move |lease: Lease| match lease.run(&statement)? {
            Tried::Done(outcome) => Ok(outcome),
            Tried::Writes => unreachable!("this connection writes"),
        };
        match face {
            Face::Sync => {
                let lease = self.writer(deadline).await?;
                workers::blocking(|| write(lease))
            }
            Face::Async => self.write(deadline, write).await?,
        }
    }

    /// Does what [`Sqlite::run`] does, but returns the result in pieces if the statement only reads.
    pub(super) async fn stream(
        self: &Arc<Self>,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Streamed, Error> {
        if access.no_reader {
            return Err(Error::pinned_by_caller(&self.config.name));
        }
        let lease = self.reader(deadline).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (head_sender, head) = oneshot::channel();
        let feeding = statement.clone();
        tokio::task::spawn_blocking(move || lease.feed(&feeding, head_sender, &sender));
        match head.await {
            Ok(Ok(Tried::Done(columns))) => Ok(Streamed::Pieces(Stream {
                columns,
                pieces: receiver,
            })),
            Ok(Ok(Tried::Writes)) => {
                let outcome = self.run(face, deadline, access, statement).await?;
                Ok(Streamed::Whole(outcome.table))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Other,
                "the thread that reads the rows ended early",
            )),
        }
    }
}

impl Thread {
    fn start() -> std::io::Result<Thread> {
        let runtime = runtime::Builder::new_current_thread().build()?;
        let (end, ended) = oneshot::channel();
        let thread = Thread {
            runtime: runtime.handle().clone(),
            _end: end,
        };
        std::thread::Builder::new()
            .name("amphi-sqlite".into())
            .stack_size(STACK_BYTES)
            // Nothing is sent on `ended`: the thread ends when the database drops the sender.
            .spawn(move || drop(runtime.block_on(ended)))?;
        Ok(thread)
    }
}

#[cfg(test)]
mod tests;
