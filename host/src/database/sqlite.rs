//! One SQLite database: a connection that writes, several that read, all on one file in WAL mode.
//!
//! SQLite lets one connection write at a time. Here writers queue for the one writing connection, in order and
//! with a time limit, instead of colliding inside SQLite; readers see the last commit and never wait for it.
//!
//! Views may not run statements that change the connection they happen to get (`BEGIN`, `PRAGMA`, `ATTACH`,
//! temporary tables …): the next statement may go to another one, so the change would be lost, and `ATTACH`
//! would reach other files. SQLite's authorizer refuses them by name (R11).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Context as _;
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::hooks::AuthContext;
use rusqlite::limits::Limit;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, Statement, ToSql};
use tokio::sync::mpsc;

use super::{Error, ErrorKind, Row, Table, Value};
use crate::config::Database as Config;
use crate::deadline::Deadline;
use crate::gate::{Gate, Place};
use crate::metrics::{Held, METRICS};

mod guard;

use guard::Guard;

/// SQLite asks whether to go on after about this many steps of its virtual machine (some tens of microseconds).
const STEPS_BETWEEN_CHECKS: i32 = 10_000;
/// A piece of a streamed result ends at whichever comes first.
const PIECE_ROWS: usize = 256;
const PIECE_BYTES: u64 = 64 << 10;
/// Prepared statements kept per connection, and the most bytes that one may have.
const STATEMENTS_KEPT: usize = 64;
const STATEMENT_BYTES_MAX: i32 = 256 << 10;

/// An open database.
pub struct Sqlite {
    config: Config,
    writer: Pool,
    readers: Pool,
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
    pub fn open(config: &Config) -> anyhow::Result<Arc<Sqlite>> {
        if let Some(folder) = config.sqlite.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("making the folder {}", folder.display()))?;
        }
        let writer = Handle::open(config, true)?;
        let readers = (0..config.readers)
            .map(|_| Handle::open(config, false))
            .collect::<anyhow::Result<_>>()?;
        let name = |kind| format!("database `{}`, {kind} connections", config.name);
        let pool = |kind, size, handles| Pool {
            gate: Gate::new(name(kind), size, usize::MAX, config.acquire_timeout),
            free: Mutex::new(handles),
        };
        Ok(Arc::new(Sqlite {
            writer: pool("writing", 1, vec![writer]),
            readers: pool("reading", config.readers, readers),
            config: config.clone(),
        }))
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Applies the migrations that have not been applied yet, each in a transaction.
    ///
    /// # Errors
    /// When a file's name or SQL is wrong, or differs from what was applied under that name before.
    pub fn migrate(&self) -> anyhow::Result<()> {
        let Some(folder) = &self.config.migrations else {
            return Ok(());
        };
        let files = refinery::load_sql_migrations(folder)
            .with_context(|| format!("reading {}", folder.display()))?;
        let mut connection = Connection::open(&self.config.sqlite)?;
        connection.busy_timeout(self.config.busy_timeout)?;
        let report = refinery::Runner::new(&files).run(&mut connection)?;
        for applied in report.applied_migrations() {
            tracing::info!(database = self.config.name, migration = %applied, "migration applied");
        }
        Ok(())
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
        let mut handle = match free {
            Some(handle) => handle,
            // Only after one that could not be cleaned.
            None => self.reopen(writes).await?,
        };
        handle
            .watch(Arc::clone(deadline))
            .map_err(|error| handle.error(&error))?;
        let held = Held::new(
            &METRICS
                .database_connections
                .with_label_values(&[&self.config.name]),
        );
        Ok(Lease {
            handle: Some(handle),
            database: Arc::clone(self),
            writes,
            place: Some(place),
            held: Some(held),
        })
    }

    async fn reopen(self: &Arc<Self>, writes: bool) -> Result<Handle, Error> {
        let database = Arc::clone(self);
        let opened = tokio::task::spawn_blocking(move || Handle::open(&database.config, writes));
        opened
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .map_err(|error| {
                let name = &self.config.name;
                Error::new(
                    ErrorKind::Unavailable,
                    format!("database `{name}`: {error:#}"),
                )
            })
    }

    /// Runs a statement outside a transaction and hands its result over in pieces, each row at most `max_bytes`.
    ///
    /// # Errors
    /// As [`Lease::query`]; errors that come later are the last thing in the stream.
    pub async fn stream(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        sql: String,
        params: Vec<Value>,
        max_bytes: u64,
    ) -> Result<Tried<Stream>, Error> {
        let lease = self.reader(deadline).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (head_sender, head) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || {
            lease.feed((&sql, &params, max_bytes), head_sender, &sender)
        });
        match head.await {
            Ok(Ok(Tried::Done(columns))) => Ok(Tried::Done(Stream {
                columns,
                pieces: receiver,
            })),
            Ok(Ok(Tried::Writes)) => Ok(Tried::Writes),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::new(
                ErrorKind::Other,
                "the thread that reads the rows ended early",
            )),
        }
    }
}

/// The columns of a result, and its rows as they are read.
pub struct Stream {
    /// Column names.
    pub columns: Vec<String>,
    /// Pieces of the result; an error is the last one.
    pub pieces: mpsc::Receiver<Result<Vec<Row>, Error>>,
}

impl Handle {
    fn open(config: &Config, writes: bool) -> anyhow::Result<Handle> {
        let file = &config.sqlite;
        let mut connection =
            Connection::open(file).with_context(|| format!("opening {}", file.display()))?;
        connection.busy_timeout(config.busy_timeout)?;
        // What SQLite offers against hostile SQL and hostile files.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
        let value_max = i32::try_from(config.value_max_bytes).unwrap_or(i32::MAX);
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, value_max)?;
        connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX)?;
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
        let expected = statement.parameter_count();
        if expected != params.len() {
            return Err(Error::new(
                ErrorKind::Statement,
                format!(
                    "the statement has {expected} parameters, and {} were given: {}",
                    params.len(),
                    short(sql)
                ),
            ));
        }
        for (index, value) in params.iter().enumerate() {
            statement
                .raw_bind_parameter(index + 1, Bound(value))
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

    /// Runs a statement and returns all its rows, at most `max_bytes` of them.
    ///
    /// # Errors
    /// What the database says, `too-large` over the limit, `aborted` when the request ends meanwhile.
    pub fn query(
        &self,
        sql: &str,
        params: &[Value],
        max_bytes: u64,
    ) -> Result<Tried<Table>, Error> {
        let handle = self.handle();
        let mut statement = handle.prepare(sql, params)?;
        if !self.writes && !statement.readonly() {
            return Ok(Tried::Writes);
        }
        let columns = columns(&statement);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut cursor = statement.raw_query();
        while let Some(row) = cursor.next().map_err(|error| handle.error(&error))? {
            let left = max_bytes.saturating_sub(bytes);
            let (row, size) =
                read_row(row, columns.len(), left)?.ok_or_else(|| too_large(max_bytes, sql))?;
            bytes += size;
            rows.push(row);
        }
        Ok(Tried::Done(Table { columns, rows }))
    }

    /// Runs a statement and returns how many rows it changed.
    ///
    /// # Errors
    /// As [`Lease::query`].
    pub fn execute(&self, sql: &str, params: &[Value]) -> Result<u64, Error> {
        let handle = self.handle();
        let mut statement = handle.prepare(sql, params)?;
        let readonly = statement.readonly();
        {
            // Rows of a `returning` clause or a `select` are not asked for, but have to be stepped through.
            let mut cursor = statement.raw_query();
            while cursor
                .next()
                .map_err(|error| handle.error(&error))?
                .is_some()
            {}
        }
        Ok(if readonly {
            0
        } else {
            handle.connection.changes()
        })
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
        (sql, params, max_bytes): (&str, &[Value], u64),
        head: tokio::sync::oneshot::Sender<Result<Tried<Vec<String>>, Error>>,
        pieces: &mpsc::Sender<Result<Vec<Row>, Error>>,
    ) {
        let handle = self.handle();
        let mut statement = match handle.prepare(sql, params) {
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
                        .and_then(|row| row.ok_or_else(|| too_large(max_bytes, sql))),
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
            _place: self.place.take(),
            _held: self.held.take(),
        };
        // A roll-back may wait for the disk, and a scope may end on a loop.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !used.handle.connection.is_autocommit() => {
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
    _place: Option<Place>,
    _held: Option<Held>,
}

impl Used {
    fn give_back(mut self) {
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

fn columns(statement: &Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

/// About how many bytes a row takes beside its texts and blobs: for itself, and for each value.
const ROW_BYTES: u64 = 24;
const VALUE_BYTES: u64 = 32;

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

fn too_large(max_bytes: u64, sql: &str) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the result has more than {max_bytes} bytes (`rows_max_bytes`): narrow it, or read it in pieces with `open` outside a transaction: {}",
            short(sql)
        ),
    )
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

/// Enough of a statement to recognise it by.
pub(crate) fn short(sql: &str) -> String {
    let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(120) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
