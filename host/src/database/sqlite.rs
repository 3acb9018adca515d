//! One SQLite database: a connection that writes, several that read, all on one file in WAL mode.
//!
//! SQLite lets one connection write at a time. Here writers queue for the one writing connection, in order and
//! with a time limit, instead of colliding inside SQLite; readers see the last commit and never wait for it.
//!
//! What loops write is written on a thread of the database's own ([`Sqlite::write`]): when it has ended a transaction,
//! it goes on with the next one, and no other thread has to be woken between the two.
//!
//! Views may not run statements that change the connection they happen to get (`BEGIN`, `PRAGMA`, `ATTACH`,
//! temporary tables …): the next statement may go to another one, so the change would be lost, and `ATTACH`
//! would reach other files. SQLite's authorizer refuses them by name (R11).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus::IntGauge;
use rusqlite::config::DbConfig;
use rusqlite::hooks::AuthContext;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Access, Error, ErrorKind, Face, Failed, Outcome, PIECE_BYTES, PIECE_ROWS, ROW_BYTES, Row,
    STATEMENT_BYTES_MAX, STATEMENTS_KEPT, Statement, Stream, Streamed, Table, VALUE_BYTES, Value,
    unwound,
};
use crate::config::{Database as Config, SqliteFile};
use crate::deadline::Deadline;
use crate::gate::{Gate, Place};
use crate::metrics::{Held, METRICS};
use crate::wakeups::together;
use crate::workers;

mod guard;

use guard::Guard;

/// SQLite asks whether to go on after about this many steps of its virtual machine (some tens of microseconds).
const STEPS_BETWEEN_CHECKS: i32 = 10_000;
/// An open database.
pub struct Sqlite {
    config: Config,
    file: SqliteFile,
    writer: Pool,
    readers: Pool,
    in_use: IntGauge,
    /// Room for results that are read in pieces.
    streams: Arc<Semaphore>,
    thread: Thread,
}

/// The thread that writes for loops; it ends with this value.
struct Thread {
    runtime: runtime::Handle,
    _end: oneshot::Sender<()>,
}

/// Connections of one kind and the queue for them.
struct Pool {
    gate: Gate,
    free: Mutex<Vec<Handle>>,
}

/// A connection, with what its callbacks share with it.
struct Handle {
    connection: Connection,
    guard: Arc<Guard>,
}

/// A connection on loan. Dropping it ends whatever is open on it and gives it back clean (R11).
pub struct Lease {
    handle: Option<Handle>,
    database: Arc<Sqlite>,
    writes: bool,
    /// Whether statements that write are refused for now.
    only_reads: bool,
    /// Whether it was ever pinned: nobody else gets it then.
    tainted: bool,
    place: Option<Place>,
    held: Option<Held>,
}

/// Whether a statement can run where it was tried.
pub enum Tried<T> {
    /// It ran.
    Done(T),
    /// It writes, and this connection only reads.
    Writes,
}

impl Sqlite {
    /// Opens the file, making it (and its folder) when missing.
    ///
    /// # Errors
    /// When the file cannot be opened, or is not a database.
    pub fn open(config: &Config, file: &SqliteFile) -> anyhow::Result<Arc<Sqlite>> {
        if let Some(folder) = file.file.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
        }
        let writer = Handle::open(config, file, true)?;
        let readers = (0..file.readers)
            .map(|_| Handle::open(config, file, false))
            .collect::<anyhow::Result<_>>()?;
        let name = |kind| format!("database `{}`, {kind} connections", config.name);
        let pool = |kind, size, handles| Pool {
            gate: Gate::new(name(kind), size, config.queue_max, config.acquire_timeout),
            free: Mutex::new(handles),
        };
        Ok(Arc::new(Sqlite {
            writer: pool("writing", 1, vec![writer]),
            readers: pool("reading", file.readers, readers),
            in_use: (METRICS.database_connections).with_label_values(&[&config.name]),
            streams: Arc::new(Semaphore::new(file.readers / 2)),
            file: file.clone(),
            config: config.clone(),
            thread: Thread::start().context("the thread that writes")?,
        }))
    }

    /// Runs work on the connection that writes, for a loop. It blocks, and goes on if its caller is gone.
    pub(super) async fn go_on<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        unwound(together(self.thread.runtime.spawn(async { work() })).await)
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Room for results that are read in pieces.
    pub(super) fn streams(&self) -> &Arc<Semaphore> {
        &self.streams
    }

    /// Where it is.
    pub fn file(&self) -> &SqliteFile {
        &self.file
    }

    /// A connection that reads.
    ///
    /// # Errors
    /// When none comes free in time, or the request ends.
    pub async fn reader(self: &Arc<Self>, deadline: &Arc<Deadline>) -> Result<Lease, Error> {
        self.lease(deadline, false).await
    }

    /// The connection that writes.
    ///
    /// # Errors
    /// When it does not come free in time, or the request ends.
    pub async fn writer(self: &Arc<Self>, deadline: &Arc<Deadline>) -> Result<Lease, Error> {
        self.lease(deadline, true).await
    }

    async fn lease(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        writes: bool,
    ) -> Result<Lease, Error> {
        let pool = if writes { &self.writer } else { &self.readers };
        let place = pool.gate.enter(deadline).await?;
        let free = pool.free.lock().pop();
        let handle = match free {
            Some(handle) => handle,
            None => {
                let database = Arc::clone(self);
                let opened = tokio::task::spawn_blocking(move || database.reopen(writes));
                unwound(opened.await)?
            }
        };
        self.lend(handle, place, Arc::clone(deadline), writes)
    }

    /// Has `work` done with the connection that writes as soon as it is free, on the thread that writes for loops. It
    /// blocks there, and is given up when the caller goes before it has begun.
    ///
    /// # Errors
    /// When the connection does not come free in time, or the request ends.
    pub async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        work: impl FnOnce(Lease) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (database, watched) = (Arc::clone(self), Arc::clone(deadline));
        let begin = move |place| {
            let free = database.writer.free.lock().pop();
            let handle = free.map_or_else(|| database.reopen(true), Ok)?;
            database.lend(handle, place, watched, true).map(work)
        };
        let gate = &self.writer.gate;
        gate.enter_on(&self.thread.runtime, deadline, begin).await?
    }

    fn lend(
        self: &Arc<Self>,
        mut handle: Handle,
        place: Place,
        deadline: Arc<Deadline>,
        writes: bool,
    ) -> Result<Lease, Error> {
        handle
            .watch(deadline)
            .map_err(|error| handle.error(&error))?;
        let held = Held::new(&self.in_use);
        Ok(Lease {
            handle: Some(handle),
            database: Arc::clone(self),
            writes,
            only_reads: false,
            tainted: false,
            place: Some(place),
            held: Some(held),
        })
    }

    /// Another connection in place of one that could not be cleaned. Blocks.
    fn reopen(&self, writes: bool) -> Result<Handle, Error> {
        Handle::open(&self.config, &self.file, writes).map_err(|error| {
            let name = &self.config.name;
            Error::new(
                ErrorKind::Unavailable,
                format!("database `{name}`: {error:#}"),
            )
        })
    }

    /// Runs a statement outside of any transaction: on a connection that reads if that can be.
    pub(super) async fn run(
        self: &Arc<Self>,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Outcome, Error> {
        // Whoever wants no rows most likely writes.
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
                (Tried::Writes, _) if access.pinned_by_caller => {
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

    /// As [`Sqlite::run`], with the result in pieces if the statement only reads.
    pub(super) async fn stream(
        self: &Arc<Self>,
        face: Face,
        deadline: &Arc<Deadline>,
        access: Access,
        statement: Statement,
    ) -> Result<Streamed, Error> {
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
            // Nothing is sent: it ends when the database is dropped.
            .spawn(move || drop(runtime.block_on(ended)))?;
        Ok(thread)
    }
}

impl Handle {
    fn open(config: &Config, file: &SqliteFile, writes: bool) -> anyhow::Result<Handle> {
        let SqliteFile {
            file, busy_timeout, ..
        } = file;
        let mut connection =
            Connection::open(file).with_context(|| format!("opening {}", file.display()))?;
        connection.busy_timeout(*busy_timeout)?;
        // What SQLite offers against hostile SQL and hostile files.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
        let value_max = i32::try_from(config.value_max_bytes).unwrap_or(i32::MAX);
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, value_max)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX as i32)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let guard = Arc::new(Guard {
            writes,
            ..Guard::default()
        });
        let watching = Arc::clone(&guard);
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            watching.authorize(&context)
        }))?;
        Ok(Handle { connection, guard })
    }

    /// Interrupts statements when the request that has the connection ends.
    fn watch(&mut self, deadline: Arc<Deadline>) -> rusqlite::Result<()> {
        self.connection.progress_handler(
            STEPS_BETWEEN_CHECKS,
            Some(move || deadline.ended().is_some()),
        )
    }

    /// Runs a statement of the host's own. Never from the cache of prepared statements: a view that says the same
    /// would find it there, past the authorizer.
    fn host(&self, sql: &str) -> Result<(), Error> {
        self.guard.host.store(true, Relaxed);
        let result = self
            .connection
            .prepare(sql)
            .and_then(|mut statement| statement.raw_execute());
        self.guard.host.store(false, Relaxed);
        result.map(|_| ()).map_err(|error| self.error(&error))
    }

    fn prepare(&self, sql: &str, params: &[Value]) -> Result<rusqlite::CachedStatement<'_>, Error> {
        let mut statement = self
            .connection
            .prepare_cached(sql)
            .map_err(|error| self.error(&error))?;
        let slots = slots(&statement)?;
        let expected = slots.iter().copied().max().unwrap_or(0);
        if expected != params.len() {
            return Err(Error::parameters(expected, params.len(), sql));
        }
        for (index, slot) in slots.into_iter().enumerate() {
            statement
                .raw_bind_parameter(index + 1, Bound(&params[slot - 1]))
                .map_err(|error| self.error(&error))?;
        }
        Ok(statement)
    }

    fn error(&self, error: &rusqlite::Error) -> Error {
        if let Some(sentence) = self.guard.refused.lock().take() {
            return Error::new(ErrorKind::Denied, sentence);
        }
        let kind = match error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::ConstraintViolation => ErrorKind::Constraint,
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => ErrorKind::Conflict,
                ErrorCode::OperationInterrupted => ErrorKind::Aborted,
                ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::ParameterOutOfRange => {
                    ErrorKind::Statement
                }
                ErrorCode::TooBig => ErrorKind::TooLarge,
                ErrorCode::AuthorizationForStatementDenied => ErrorKind::Denied,
                _ => ErrorKind::Other,
            },
            rusqlite::Error::SqlInputError { .. } | rusqlite::Error::MultipleStatement => {
                ErrorKind::Statement
            }
            _ => ErrorKind::Other,
        };
        match error {
            rusqlite::Error::MultipleStatement => Error::new(
                kind,
                "one call runs one statement: give the others calls of their own",
            ),
            _ if kind == ErrorKind::Aborted => Error::new(
                kind,
                "request-aborted: the statement was interrupted because the request ended",
            ),
            rusqlite::Error::SqliteFailure(failure, _) if failure.code == ErrorCode::ApiMisuse => {
                Error::new(
                    ErrorKind::Statement,
                    "the statement is empty, or only a comment",
                )
            }
            _ => Error::new(kind, error.to_string()),
        }
    }
}

impl Lease {
    fn handle(&self) -> &Handle {
        self.handle
            .as_ref()
            .expect("the connection is there until the lease is dropped")
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// What the database says, `too-large` over the limit, `aborted` when the request ends meanwhile.
    pub fn run(&self, statement: &Statement) -> Result<Tried<Outcome>, Error> {
        let Statement {
            sql,
            params,
            rows_max,
        } = statement;
        let handle = self.handle();
        let mut prepared = handle.prepare(sql, params)?;
        let readonly = prepared.readonly();
        if (!self.writes || self.only_reads) && !readonly {
            return Ok(Tried::Writes);
        }
        let columns = columns(&prepared);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        {
            let mut cursor = prepared.raw_query();
            // Rows that are not asked for have to be stepped through, too.
            while let Some(row) = cursor.next().map_err(|error| handle.error(&error))? {
                let Some(max) = rows_max else { continue };
                let left = max.saturating_sub(bytes);
                let (row, size) = read_row(row, columns.len(), left)?
                    .ok_or_else(|| Error::too_large(*max, sql))?;
                bytes += size;
                rows.push(row);
            }
        }
        let changed = match readonly {
            true => 0,
            false => handle.connection.changes(),
        };
        let table = Table { columns, rows };
        Ok(Tried::Done(Outcome { table, changed }))
    }

    /// Runs what has to go before a statement, and the statement.
    pub(super) fn run_in_order(
        &self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        before
            .iter()
            .try_for_each(|sql| self.host(sql))
            .map_err(Failed::Before)?;
        match self.run(statement) {
            Ok(Tried::Done(outcome)) => Ok(outcome),
            Ok(Tried::Writes) => Err(Failed::Statement(Error::read_only(&statement.sql))),
            Err(error) => Err(Failed::Statement(error)),
        }
    }

    /// Refuses statements that write, although the connection may, or no longer.
    pub(super) fn set_only_reads(&mut self, only_reads: bool) {
        self.only_reads = only_reads;
    }

    /// Lets statements pass that change the session, or no more of them.
    pub(super) fn set_pinned(&mut self, pinned: bool) {
        self.tainted = true;
        let handle = self.handle();
        // What was prepared meanwhile has passed the authorizer already.
        handle.connection.flush_prepared_statement_cache();
        handle.guard.pinned.store(pinned, Relaxed);
    }

    /// Runs a transaction statement of the host's own.
    ///
    /// # Errors
    /// What the database says.
    pub fn host(&self, sql: &str) -> Result<(), Error> {
        self.handle().host(sql)
    }

    /// Whether SQLite itself has ended the transaction (it does after some errors, an interrupt among them).
    pub fn in_transaction(&self) -> bool {
        !self.handle().connection.is_autocommit()
    }

    fn feed(
        self,
        statement: &Statement,
        head: oneshot::Sender<Result<Tried<Vec<String>>, Error>>,
        pieces: &mpsc::Sender<Result<Vec<Row>, Error>>,
    ) {
        let sql = &statement.sql;
        let max_bytes = statement.rows_max.unwrap_or(u64::MAX);
        let handle = self.handle();
        let mut statement = match handle.prepare(sql, &statement.params) {
            Ok(statement) => statement,
            Err(error) => return drop(head.send(Err(error))),
        };
        if !statement.readonly() {
            return drop(head.send(Ok(Tried::Writes)));
        }
        let columns = columns(&statement);
        let width = columns.len();
        if head.send(Ok(Tried::Done(columns))).is_err() {
            return;
        }
        let mut cursor = statement.raw_query();
        loop {
            let (mut piece, mut bytes) = (Vec::new(), 0);
            let end = loop {
                let row = match cursor.next() {
                    Ok(Some(row)) => read_row(row, width, max_bytes)
                        .and_then(|row| row.ok_or_else(|| Error::too_large(max_bytes, sql))),
                    Ok(None) => break true,
                    Err(error) => Err(handle.error(&error)),
                };
                match row {
                    Ok((row, size)) => {
                        bytes += size;
                        piece.push(row);
                    }
                    Err(error) => {
                        let _ = pieces.blocking_send(Ok(piece));
                        let _ = pieces.blocking_send(Err(error));
                        return;
                    }
                }
                if piece.len() >= PIECE_ROWS || bytes >= PIECE_BYTES {
                    break false;
                }
            };
            // Nobody reads on when the receiver is gone.
            if (!piece.is_empty() && pieces.blocking_send(Ok(piece)).is_err()) || end {
                return;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(handle) = self.handle.take() else {
            return;
        };
        let used = Used {
            handle,
            database: Arc::clone(&self.database),
            writes: self.writes,
            tainted: self.tainted,
            _place: self.place.take(),
            _held: self.held.take(),
        };
        // A roll-back may wait for the disk, and a scope may end on a loop.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if used.tainted || !used.handle.connection.is_autocommit() => {
                runtime.spawn_blocking(move || used.give_back());
            }
            _ => used.give_back(),
        }
    }
}

/// A connection that comes back from its loan, with the place it still takes.
struct Used {
    handle: Handle,
    database: Arc<Sqlite>,
    writes: bool,
    tainted: bool,
    _place: Option<Place>,
    _held: Option<Held>,
}

impl Used {
    fn give_back(mut self) {
        // Closing it ends whatever is open on it; another one is made when it is needed.
        if self.tainted {
            return;
        }
        let connection = &mut self.handle.connection;
        let cleaned = connection.progress_handler(0, None::<fn() -> bool>).is_ok()
            && (connection.is_autocommit() || self.handle.host("rollback").is_ok());
        if !cleaned {
            let database = &self.database.config.name;
            tracing::error!(database, "a connection could not be cleaned and was closed");
            return;
        }
        let pool = match self.writes {
            true => &self.database.writer,
            false => &self.database.readers,
        };
        pool.free.lock().push(self.handle);
    }
}

fn columns(statement: &rusqlite::Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

/// A row and about how many bytes it takes. None: more than `max_bytes`.
fn read_row(
    row: &rusqlite::Row<'_>,
    width: usize,
    max_bytes: u64,
) -> Result<Option<(Row, u64)>, Error> {
    let mut values = Vec::with_capacity(width);
    let mut bytes = ROW_BYTES + VALUE_BYTES * width as u64;
    for index in 0..width {
        let value = row
            .get_ref(index)
            .map_err(|error| Error::new(ErrorKind::Other, error.to_string()))?;
        // Measured before it is copied.
        if let ValueRef::Text(content) | ValueRef::Blob(content) = value {
            bytes += content.len() as u64;
        }
        if bytes > max_bytes {
            return Ok(None);
        }
        values.push(match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Real(number),
            ValueRef::Text(text) => {
                Value::Text(String::from_utf8(text.to_vec()).map_err(|_| {
                    let sentence = format!(
                        "column {index} holds text that is not UTF-8: read it as `cast(… as blob)`"
                    );
                    Error::new(ErrorKind::Other, sentence)
                })?)
            }
            ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
        });
    }
    Ok(Some((values, bytes)))
}

/// Which value each parameter of a statement takes, counted from 1: `?` the next one, `?N` and `$N` the N-th.
fn slots(statement: &rusqlite::Statement<'_>) -> Result<Vec<usize>, Error> {
    let slot = |index: usize| {
        let Some(name) = statement.parameter_name(index) else {
            return Ok(index);
        };
        let number = name.get(1..).and_then(|number| number.parse().ok());
        match (name.as_bytes()[0], number) {
            (b'?' | b'$', Some(number @ 1..=32_766)) => Ok(number),
            _ => Err(Error::new(
                ErrorKind::Statement,
                format!(
                    "the parameter `{name}` has a name: number them (`$1`, `$2` …), or write `?`"
                ),
            )),
        }
    };
    (1..=statement.parameter_count()).map(slot).collect()
}

struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Real(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}

#[cfg(test)]
mod tests;
