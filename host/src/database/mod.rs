//! Databases: connections, statements and limits. Transactions are in `scope/transaction.rs`, above this folder.
//!
//! There are two kinds of database, SQLite and PostgreSQL. The code above sees one interface: it passes a statement and
//! gets an outcome. Values, rows and errors are the plain records of the contract. The work of SQLite blocks, so it
//! runs on a thread that may block. The work of PostgreSQL waits for the network, so it is a future. When its caller is
//! dropped, a task finishes the work. Either way, a statement that has begun runs to its end.

mod error;
mod face;
mod journal;
pub mod migration;
mod open_ended;
pub mod postgres;
pub mod sqlite;
mod statement;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;

use crate::config::{self, Config, Storage};
use crate::threads::deadline::Deadline;
use face::Surviving;
use open_ended::OpenEnded;

pub use crate::contract::types::Isolation;
pub use error::{Error, ErrorKind, Violation};
pub use face::Face;
pub use journal::Journal;
pub use open_ended::Permit;
pub use postgres::Postgres;
pub use sqlite::{STACK_BYTES, Sqlite};
pub(crate) use statement::short;
pub use statement::{Access, Failed, Outcome, Row, Statement, Stream, Streamed, Table, Value};

/// The app's databases, by name.
pub type Databases = BTreeMap<String, Database>;

/// An open database.
#[derive(Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite(Arc<Sqlite>),
    /// A PostgreSQL server.
    Postgres(Arc<Postgres>),
}

/// Opens every database of the configuration, and takes over those of `previous` whose configuration has not changed.
/// Blocks. Must run on a thread of the runtime that connections are to live on.
///
/// # Errors
/// When a file cannot be opened or a server cannot be reached. The text names the database.
pub fn open_all(config: &Config, previous: &Databases) -> anyhow::Result<Databases> {
    let mut databases = Databases::new();
    for (name, wanted) in &config.databases {
        let database = match previous
            .get(name)
            .filter(|database| database.config().opens_as(wanted))
        {
            Some(same) => same.clone(),
            None => Database::open(wanted)
                .with_context(|| format!("database `{name}` ({})", wanted.storage))?,
        };
        databases.insert(name.clone(), database);
    }
    Ok(databases)
}

impl Database {
    /// Opens a database. Blocks.
    ///
    /// # Errors
    /// When the file cannot be opened or the server cannot be reached.
    pub fn open(config: &config::Database) -> anyhow::Result<Database> {
        match &config.storage {
            Storage::Sqlite(file) => Sqlite::open(config, file).map(Database::Sqlite),
            Storage::Postgres(server) => Postgres::open(config, server).map(Database::Postgres),
        }
    }

    /// The configuration that the database was opened with.
    pub fn config(&self) -> &config::Database {
        match self {
            Database::Sqlite(sqlite) => sqlite.config(),
            Database::Postgres(postgres) => postgres.config(),
        }
    }

    /// Whether this is the same open database: the connections of one are the connections of the other.
    pub fn is(&self, other: &Database) -> bool {
        match (self, other) {
            (Database::Sqlite(one), Database::Sqlite(other)) => Arc::ptr_eq(one, other),
            (Database::Postgres(one), Database::Postgres(other)) => Arc::ptr_eq(one, other),
            (Database::Sqlite(_) | Database::Postgres(_), _) => false,
        }
    }

    /// A permit for one more result that is read in pieces, on a connection of its own. None: pins and results in
    /// pieces have as many connections already as they may.
    pub fn stream_permit(&self) -> Option<Permit> {
        self.open_ended(true).try_enter()
    }

    /// Waits for a permit for one more pinned connection. None: pins of this kind need no permit. With `at_once`, this
    /// does not wait and is an error when there is no permit. A request that has a pin already needs that, because
    /// requests with pins must not wait for each other.
    ///
    /// # Errors
    /// When no permit comes free in time, or the request ends.
    pub async fn pin_permit(
        &self,
        deadline: &Deadline,
        read_only: bool,
        at_once: bool,
    ) -> Result<Option<Permit>, Error> {
        match self {
            _ if at_once => self.try_pin_permit(read_only),
            // The only writing connection of a SQLite file needs no permit. While it is pinned, nothing that the
            // pinning view calls waits for it: a called view that writes is refused (`Database::connections`).
            Database::Sqlite(_) if !read_only => Ok(None),
            _ => Ok(Some(self.open_ended(read_only).gate.enter(deadline).await?)),
        }
    }

    /// A permit for one more pinned connection, without waiting.
    ///
    /// # Errors
    /// When there is none.
    pub fn try_pin_permit(&self, read_only: bool) -> Result<Option<Permit>, Error> {
        match self {
            Database::Sqlite(_) if !read_only => Ok(None),
            _ => Ok(Some(self.open_ended(read_only).gate.try_enter()?)),
        }
    }

    fn open_ended(&self, read_only: bool) -> &OpenEnded {
        match self {
            Database::Sqlite(sqlite) => {
                debug_assert!(read_only, "only reading connections are several");
                sqlite.open_ended()
            }
            Database::Postgres(postgres) => postgres.open_ended(),
        }
    }

    /// Whether there are separate connections for statements that only read.
    pub fn has_readers(&self) -> bool {
        matches!(self, Database::Sqlite(_))
    }

    /// The number of connections for statements that only read (`read_only`), or for those that write.
    pub fn connections(&self, read_only: bool) -> usize {
        match &self.config().storage {
            Storage::Sqlite(file) if read_only => sqlite::reading_connections(file),
            Storage::Sqlite(_) => 1,
            Storage::Postgres(server) => server.connections,
        }
    }

    /// Leases a connection for a transaction or a pin.
    ///
    /// # Errors
    /// When no connection comes free in time, or the request ends.
    pub async fn lease(&self, deadline: &Arc<Deadline>, read_only: bool) -> Result<Lease, Error> {
        Ok(match self {
            Database::Sqlite(sqlite) if read_only => {
                Lease::Sqlite(Box::new(sqlite.reader(deadline).await?))
            }
            Database::Sqlite(sqlite) => Lease::Sqlite(Box::new(sqlite.writer(deadline).await?)),
            Database::Postgres(postgres) => {
                Lease::Postgres(Box::new(postgres.lease(deadline, read_only).await?))
            }
        })
    }

    /// Runs a statement outside of any transaction, on any free connection.
    ///
    /// # Errors
    /// The error of the database; `denied` when the statement writes and `read_only` is set.
    pub async fn run(
        &self,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Outcome, Error> {
        match self {
            Database::Sqlite(sqlite) => sqlite.run(face, deadline, access, statement).await,
            Database::Postgres(postgres) => {
                self.is_not_pinned(access)?;
                let read_only = access.read_only;
                let mut lease = postgres.lease(deadline, read_only).await?;
                let running = async move { lease.run_alone(&statement).await };
                let ran = self.carry(face, !read_only, running);
                ran.await
            }
        }
    }

    /// Runs a statement outside of any transaction, and sends its result in pieces. `rows_max` of the statement limits
    /// the bytes of each row.
    ///
    /// # Errors
    /// As [`Database::run`]. An error that comes later is the last item of the stream.
    pub async fn stream(
        &self,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Streamed, Error> {
        match self {
            Database::Sqlite(sqlite) => sqlite.stream(face, deadline, access, statement).await,
            Database::Postgres(postgres) => {
                self.is_not_pinned(access)?;
                let statement = Arc::new(statement);
                let stream = postgres.stream(deadline, access.read_only, &statement);
                if let Some(stream) = stream.await? {
                    return Ok(Streamed::Pieces(stream));
                }
                let statement = Arc::unwrap_or_clone(statement);
                let ran = self.run(face, deadline, access, statement).await?;
                Ok(Streamed::Whole(ran.table))
            }
        }
    }

    /// Refuses a statement whose only possible connection is pinned by the caller of its view.
    fn is_not_pinned(&self, access: Access) -> Result<(), Error> {
        match access.no_reader || access.no_writer {
            true => Err(Error::pinned_by_caller(&self.config().name)),
            false => Ok(()),
        }
    }

    /// Runs the work of a statement where it may wait: on SQLite on a thread that may block, on PostgreSQL as a future.
    /// The work runs to its end, even if its caller is dropped. `writes`: the work uses a connection that writes.
    pub async fn carry<T: Send + 'static>(
        &self,
        face: Face,
        writes: bool,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match self {
            Database::Sqlite(sqlite) => {
                let work = Box::pin(work);
                let work = || work.now_or_never().expect("SQLite blocks, it never yields");
                match face {
                    Face::Async if writes => sqlite.go_on(work).await,
                    _ => face.run(work).await,
                }
            }
            Database::Postgres(postgres) => Surviving::new(postgres.runtime(), work).await,
        }
    }
}

/// A leased connection. Dropping it rolls back what is open on it, and gives it back clean (R11).
pub enum Lease {
    /// To a SQLite file.
    Sqlite(Box<sqlite::Lease>),
    /// To a PostgreSQL server.
    Postgres(Box<postgres::Lease>),
}

impl Lease {
    /// Runs the statements of the host in `before`, then the statement. `only_reads`: the statement is refused if it
    /// writes, although the connection may write.
    ///
    /// # Errors
    /// The stage that failed, with its error.
    pub async fn run(
        &mut self,
        before: &[String],
        statement: &Statement,
        only_reads: bool,
    ) -> Result<Outcome, Failed> {
        match self {
            Lease::Sqlite(lease) => {
                lease.set_only_reads(only_reads);
                lease.run_in_order(before, statement)
            }
            Lease::Postgres(lease) if only_reads => lease.run_reading(before, statement).await,
            Lease::Postgres(lease) => lease.run(before, statement).await,
        }
    }

    /// After a statement with `only_reads`: the statement of the host that has to run before the next statement of the
    /// transaction, if one is needed.
    pub fn end_of_reading(&self, in_transaction: bool) -> Option<String> {
        match self {
            Lease::Postgres(_) if in_transaction => Some(postgres::END_OF_READING.to_owned()),
            _ => None,
        }
    }

    /// Runs transaction statements of the host (such as `commit`), also after the request has ended.
    ///
    /// # Errors
    /// The error of the database.
    pub async fn host(&mut self, statements: &[String]) -> Result<(), Error> {
        match self {
            Lease::Sqlite(lease) => statements.iter().try_for_each(|sql| lease.host(sql)),
            Lease::Postgres(lease) => lease.host(statements).await,
        }
    }

    /// The statement that begins a transaction here.
    pub fn begin(&self, read_only: bool, isolation: Option<Isolation>) -> String {
        match self {
            // SQLite's transactions are always serializable, so at least as strict as any isolation that was asked for.
            Lease::Sqlite(_) if read_only => "begin deferred".to_owned(),
            Lease::Sqlite(_) => "begin immediate".to_owned(),
            Lease::Postgres(_) => {
                let level = match isolation {
                    None => "",
                    Some(Isolation::ReadCommitted) => " isolation level read committed",
                    Some(Isolation::RepeatableRead) => " isolation level repeatable read",
                    Some(Isolation::Serializable) => " isolation level serializable",
                };
                let access = if read_only { " read only" } else { "" };
                format!("begin{level}{access}")
            }
        }
    }

    /// Tells the connection whether the next statements are within a transaction.
    pub fn set_in_transaction(&mut self, within: bool) {
        match self {
            // SQLite knows by itself whether there is a transaction.
            Lease::Sqlite(_) => {}
            Lease::Postgres(lease) => lease.set_in_transaction(within),
        }
    }

    /// Allows statements that change the session, or forbids them again. A connection that was ever pinned is closed
    /// after the lease, not used again.
    pub fn set_pinned(&mut self, pinned: bool) {
        match self {
            Lease::Sqlite(lease) => lease.set_pinned(pinned),
            Lease::Postgres(lease) => lease.set_pinned(pinned),
        }
    }

    /// The state of the database that the transaction has begun with, if its later statements may see other states:
    /// each statement of PostgreSQL's `read committed` sees what was committed before it.
    ///
    /// # Errors
    /// The error of the database.
    pub async fn seen(&mut self, isolation: Option<Isolation>) -> Result<Option<String>, Error> {
        match (self, isolation) {
            (Lease::Postgres(lease), None | Some(Isolation::ReadCommitted)) => {
                lease.snapshot().await.map(Some)
            }
            // The transactions of SQLite see one state.
            (Lease::Sqlite(_), _) | (Lease::Postgres(_), Some(_)) => Ok(None),
        }
    }

    /// Whether another transaction was committed since this state was [`Lease::seen`].
    ///
    /// # Errors
    /// The error of the database.
    pub async fn changed_since(&mut self, seen: &str) -> Result<bool, Error> {
        match self {
            Lease::Sqlite(_) => Ok(false),
            Lease::Postgres(lease) => lease.changed_since(seen).await,
        }
    }

    /// Removes what statements have left in the session beside the transaction, within that transaction.
    ///
    /// # Errors
    /// The error of the database.
    pub async fn forget_session(&mut self) -> Result<(), Error> {
        match self {
            // `hand_on` does so.
            Lease::Sqlite(_) => Ok(()),
            Lease::Postgres(lease) => lease.host(&postgres::forgetting()).await,
        }
    }

    /// Gives the connection with its open transaction to another borrower: its statements end with `deadline`.
    ///
    /// # Errors
    /// When the connection cannot be used any more.
    pub fn hand_on(&mut self, deadline: &Arc<Deadline>) -> Result<(), Error> {
        match self {
            Lease::Sqlite(lease) => lease.hand_on(deadline),
            Lease::Postgres(lease) => lease.hand_on(deadline),
        }
    }

    /// Whether the transaction that was begun on the connection still exists. After some errors, the database rolls
    /// back the whole transaction by itself, and a lost connection ends it.
    pub fn in_transaction(&self) -> bool {
        match self {
            Lease::Sqlite(lease) => lease.in_transaction(),
            Lease::Postgres(lease) => lease.is_usable(),
        }
    }

    /// The error for a transaction that the database has ended before a `commit` or `rollback` of the host.
    pub fn why_ended(&self) -> Error {
        match self {
            Lease::Sqlite(_) => Error::new(ErrorKind::Other, "the transaction has ended already"),
            Lease::Postgres(_) => Error::new(
                ErrorKind::Unavailable,
                "the connection to the database was lost, and the transaction with it",
            ),
        }
    }
}
