//! One SQLite database: a connection that writes, several that read, all on one file in WAL mode.
//!
//! SQLite lets one connection write at a time. Here writers queue for the one writing connection, in order and
//! with a time limit, instead of colliding inside SQLite; readers see the last commit and never wait for it.
//!
//! Views may not run statements that change the connection they happen to get (`BEGIN`, `PRAGMA`, `ATTACH`,
//! temporary tables …): the next statement may go to another one, so the change would be lost, and `ATTACH`
//! would reach other files. SQLite's authorizer refuses them by name (R11).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, Statement, ToSql};
use tokio::sync::mpsc;

use super::{Error, ErrorKind, Row, Table, Value};
use crate::config::Database as Config;
use crate::deadline::Deadline;
use crate::gate::{Gate, Place};
use crate::metrics::{Held, METRICS};

/// SQLite asks whether to go on after about this many steps of its virtual machine (some tens of microseconds).
const STEPS_BETWEEN_CHECKS: i32 = 10_000;
/// A piece of a streamed result ends at whichever comes first.
const PIECE_ROWS: usize = 256;
const PIECE_BYTES: u64 = 64 << 10;
/// Prepared statements kept per connection.
const STATEMENTS_KEPT: usize = 128;

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

#[derive(Default)]
struct Guard {
    /// Set while the host itself speaks: only then are transaction statements let through.
    host: AtomicBool,
    /// What the authorizer refused last.
    refused: Mutex<Option<String>>,
}

/// A connection on loan. Dropping it ends whatever is open on it and gives it back clean (R11).
pub struct Lease {
    handle: Option<Handle>,
    database: Arc<Sqlite>,
    writes: bool,
    _place: Place,
    _held: Held,
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
        let writer = Handle::open(&config.sqlite, config.busy_timeout)?;
        let name = |kind| format!("database `{}`, {kind} connections", config.name);
        let pool = |kind, size, handles| Pool {
            gate: Gate::new(name(kind), size, usize::MAX, config.acquire_timeout),
            free: Mutex::new(handles),
        };
        Ok(Arc::new(Sqlite {
            writer: pool("writing", 1, vec![writer]),
            readers: pool("reading", config.readers, Vec::new()),
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
            None => {
                Handle::open(&self.config.sqlite, self.config.busy_timeout).map_err(|error| {
                    Error::new(
                        ErrorKind::Unavailable,
                        format!("database `{}`: {error:#}", self.config.name),
                    )
                })?
            }
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
            _place: place,
            _held: held,
        })
    }

    /// Runs a statement outside a transaction and hands its result over in pieces.
    ///
    /// # Errors
    /// As [`Lease::query`]; errors that come later are the last thing in the stream.
    pub async fn stream(
        self: &Arc<Self>,
        deadline: &Arc<Deadline>,
        sql: String,
        params: Vec<Value>,
    ) -> Result<Tried<Stream>, Error> {
        let lease = self.reader(deadline).await?;
        let (sender, receiver) = mpsc::channel(1);
        let (head_sender, head) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || lease.feed(&sql, &params, head_sender, &sender));
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
    fn open(file: &Path, busy_timeout: Duration) -> anyhow::Result<Handle> {
        let mut connection =
            Connection::open(file).with_context(|| format!("opening {}", file.display()))?;
        connection.busy_timeout(busy_timeout)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let guard = Arc::new(Guard::default());
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
            _ => Error::new(kind, error.to_string()),
        }
    }
}

impl Guard {
    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        use AuthAction::{
            Attach, CreateTempIndex, CreateTempTable, CreateTempTrigger, CreateTempView, Detach,
            Pragma, Read, Savepoint, Select, Transaction,
        };
        if self.host.load(Relaxed) {
            return Authorization::Allow;
        }
        let refused = match context.action {
            Transaction { .. } | Savepoint { .. } => {
                "a statement that begins or ends a transaction was refused: mark the view `atomic`, or use `begin` (in the SDK: `cx.atomic(..)`), so that the host knows of the transaction".to_owned()
            }
            Pragma { pragma_name, pragma_value } if !reads_only(pragma_name, pragma_value) => {
                format!("`pragma {pragma_name}` was refused: it would change one connection of the pool and be lost for the next statement")
            }
            Attach { .. } | Detach { .. } => {
                "`attach`, `detach` and `vacuum` were refused: a module uses the databases it is granted in the app's configuration".to_owned()
            }
            Select | Read { .. } => return Authorization::Allow,
            CreateTempTable { .. }
            | CreateTempView { .. }
            | CreateTempTrigger { .. }
            | CreateTempIndex { .. } => TEMPORARY.to_owned(),
            // To the authorizer, `create table temp.name` makes no temporary table.
            _ if context.database_name == Some("temp") => TEMPORARY.to_owned(),
            _ => return Authorization::Allow,
        };
        *self.refused.lock() = Some(refused);
        Authorization::Deny
    }
}

const TEMPORARY: &str = "a temporary table, view, trigger or index was refused: it would exist on one connection of the pool and be lost for the next statement";

/// The pragmas that tell something about the schema and change nothing.
fn reads_only(name: &str, value: Option<&str>) -> bool {
    match name.to_ascii_lowercase().as_str() {
        "table_info" | "table_xinfo" | "table_list" | "index_list" | "index_info"
        | "index_xinfo" | "foreign_key_list" | "foreign_key_check" | "integrity_check"
        | "quick_check" => true,
        "user_version" | "data_version" | "compile_options" | "page_count" | "page_size" => {
            value.is_none()
        }
        _ => false,
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
            let (row, size) = read_row(row, columns.len())?;
            bytes += size;
            if bytes > max_bytes {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!(
                        "the result has more than {max_bytes} bytes (`rows_max_bytes`): narrow it, or read it in pieces with `open`: {}",
                        short(sql)
                    ),
                ));
            }
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
        sql: &str,
        params: &[Value],
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
                    Ok(Some(row)) => read_row(row, width),
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
        let Some(mut handle) = self.handle.take() else {
            return;
        };
        let cleaned = handle
            .connection
            .progress_handler(0, None::<fn() -> bool>)
            .is_ok()
            && (handle.connection.is_autocommit() || handle.host("rollback").is_ok());
        if cleaned {
            let pool = if self.writes {
                &self.database.writer
            } else {
                &self.database.readers
            };
            pool.free.lock().push(handle);
        } else {
            tracing::error!(
                database = self.database.config.name,
                "a connection could not be cleaned and was closed"
            );
        }
    }
}

fn columns(statement: &Statement<'_>) -> Vec<String> {
    statement.column_names().map(str::to_owned).collect()
}

/// A row and about how many bytes it takes in the guest.
fn read_row(row: &rusqlite::Row<'_>, width: usize) -> Result<(Row, u64), Error> {
    let mut values = Vec::with_capacity(width);
    let mut bytes = 0;
    for index in 0..width {
        let value = match row.get_ref(index).map_err(|error| Error::new(ErrorKind::Other, error.to_string()))? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Real(number),
            ValueRef::Text(text) => Value::Text(String::from_utf8(text.to_vec()).map_err(|_| {
                Error::new(ErrorKind::Other, format!("column {index} holds text that is not UTF-8: read it as `cast(… as blob)`"))
            })?),
            ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
        };
        bytes += 16
            + match &value {
                Value::Text(text) => text.len() as u64,
                Value::Blob(blob) => blob.len() as u64,
                _ => 0,
            };
        values.push(value);
    }
    Ok((values, bytes))
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
