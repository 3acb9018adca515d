//! One connection to the file: its setup, the compilation and check of statements, and the meaning of errors.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Context as _;
use rusqlite::config::DbConfig;
use rusqlite::hooks::AuthContext;
use rusqlite::limits::Limit;
use rusqlite::{CachedStatement, Connection, ErrorCode, Statement, StatementStatus, ffi};

use super::super::error::{Error, ErrorKind, Violation};
use super::super::statement::{STATEMENT_BYTES_MAX, STATEMENTS_KEPT, Value};
use super::guard::{Found, Guard, Shared};
use super::limits::{self, Weight};
use super::values::{Bound, slots};
use super::watch::Watched;
use super::{functions, search};
use crate::config::{Database as Config, SqliteFile, Synchronous};
use crate::telemetry::error::cut;
use crate::threads::deadline::Deadline;

/// The most memory that SQLite may allocate for all databases of the process together, its caches included. A
/// connection can lower this limit, but not raise it.
const HEAP_BYTES_MAX: i64 = 512 << 20;
/// The WAL file is cut to this size when its content has been written to the database file.
const LOG_BYTES_KEPT: i64 = 16 << 20;
/// The most memory of one compiled statement.
const PROGRAM_BYTES_MAX: u64 = 32 << 20;
/// The most bytes of an error's text that are passed on. The text may contain the view's own SQL and values.
const ERROR_BYTES_MAX: usize = 2_000;

/// A connection, with the state that it shares with its callbacks and with the watching thread.
pub(super) struct Handle {
    pub(super) connection: Connection,
    pub(super) guard: Arc<Guard>,
    pub(super) watched: Arc<Watched>,
    /// The configured limit on one value.
    values_max: u64,
    busy_timeout: Duration,
    /// The most bytes of temporary tables that a session may have.
    temporary_max: u64,
    /// The value of the schema counter when the kept statements were compiled.
    schema: Cell<u64>,
    writes: bool,
    /// The state of the connection when it was lent, to tell what this borrower does from what earlier borrowers did.
    before: Cell<Before>,
    /// Whether this borrower has run a statement that may insert.
    inserts: Cell<bool>,
}

/// `last_insert_rowid()` and `total_changes()` when the connection was lent.
#[derive(Clone, Copy, Default)]
struct Before {
    rowid: i64,
    changes: u64,
    /// Whether both were reset since then, so that nothing of earlier borrowers can be seen.
    is_reset: bool,
}

/// A statement that was compiled for this call, or was kept from an earlier one.
pub(super) struct Prepared<'a> {
    statement: Option<CachedStatement<'a>>,
    /// Whether the statement may be kept. A statement that has to be checked again at its next call is not kept.
    keeps: bool,
    pub(super) changes_schema: bool,
    /// The value that the statement sets `pragma case_sensitive_like` to.
    pub(super) like_case: Option<bool>,
}

impl<'a> Deref for Prepared<'a> {
    type Target = Statement<'a>;

    fn deref(&self) -> &Statement<'a> {
        self.statement.as_ref().expect("it is there until dropped")
    }
}

impl DerefMut for Prepared<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.statement.as_mut().expect("it is there until dropped")
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Some(statement) = self.statement.take().filter(|_| !self.keeps) {
            statement.discard();
        }
    }
}

impl Handle {
    pub(super) fn open(
        config: &Config,
        file: &SqliteFile,
        shared: &Shared,
        writes: bool,
    ) -> anyhow::Result<Handle> {
        let SqliteFile {
            file,
            busy_timeout,
            synchronous,
            transaction_max_bytes,
            ..
        } = file;
        let mut connection =
            Connection::open(file).with_context(|| format!("opening {}", file.display()))?;
        connection.busy_timeout(*busy_timeout)?;
        // SQLite's own defences against hostile SQL and hostile files.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
        limits::set(&connection)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        connection.pragma_update(None, "hard_heap_limit", HEAP_BYTES_MAX)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(
            None,
            "synchronous",
            match synchronous {
                Synchronous::Full => "full",
                Synchronous::Normal => "normal",
            },
        )?;
        // The WAL file is cut to a fixed size, so its growth beyond that size shows how much was written (`watch`).
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let guard = Arc::new(Guard {
            shared: shared.clone(),
            ..Guard::default()
        });
        functions::register(&connection, &guard)?;
        let watching = Arc::clone(&guard);
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            watching.authorize(&context)
        }))?;
        let log = writes.then(|| {
            let mut log = file.as_os_str().to_owned();
            log.push("-wal");
            (log.into(), *transaction_max_bytes)
        });
        let watched = Watched::new(connection.get_interrupt_handle(), &guard, log);
        let handle = Handle {
            connection,
            guard,
            watched,
            values_max: config.value_max_bytes,
            busy_timeout: *busy_timeout,
            temporary_max: *transaction_max_bytes,
            schema: Cell::new(shared.schema.load(Relaxed)),
            writes,
            before: Cell::default(),
            inserts: Cell::new(false),
        };
        handle.set_values_max(config.value_max_bytes)?;
        Ok(handle)
    }

    /// Lends the connection: its counters start anew for the borrower, and its statements end with `deadline`.
    pub(super) fn lend(&self, deadline: Arc<Deadline>) -> Result<(), Error> {
        self.before.set(Before {
            rowid: self.connection.last_insert_rowid(),
            changes: self.connection.total_changes(),
            is_reset: false,
        });
        self.inserts.set(false);
        if self.writes {
            // Another process may hold the file's lock. The wait for this lock ends with the request, too.
            let busy = self.busy_timeout.min(deadline.remaining());
            (self.connection.busy_timeout(busy)).map_err(|error| self.error(&error))?;
        }
        self.watched.lend(deadline);
        Ok(())
    }

    /// Runs a statement of the host. The statement is never put into the cache of prepared statements: a view with the
    /// same SQL would find it there and run it without the authorizer.
    pub(super) fn host(&self, sql: &str) -> Result<(), Error> {
        let ran = self.as_host(|connection| connection.prepare(sql)?.raw_execute());
        ran.map(drop).map_err(|error| self.error(&error))
    }

    /// Runs `work` without the authorizer and without a deadline.
    fn as_host<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.watched.set_host(true);
        self.guard.host.store(true, Relaxed);
        let done = work(&self.connection);
        self.guard.host.store(false, Relaxed);
        self.watched.set_host(false);
        done
    }

    /// Limits the size of the temporary tables that a pinned session may make. They are in a file of their own, which
    /// the limit of a transaction does not cover.
    pub(super) fn bound_temporary(&self) -> Result<(), Error> {
        let bounded = self.as_host(|connection| {
            let page: u32 = connection.query_row("pragma temp.page_size", (), |row| row.get(0))?;
            let pages = (self.temporary_max / u64::from(page.max(1))).max(1);
            connection.execute_batch(&format!("pragma temp.max_page_count = {pages}"))
        });
        bounded.map_err(|error| self.error(&error))
    }

    pub(super) fn prepare(&self, sql: &str, params: &[Value]) -> Result<Prepared<'_>, Error> {
        if sql.len() > STATEMENT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the statement has {} bytes, and may have {STATEMENT_BYTES_MAX}: give long values as parameters, or split it",
                    sql.len()
                ),
            ));
        }
        if self.watched.is_over() {
            return Err(self.interrupted());
        }
        let schema = self.guard.shared.schema.load(Relaxed);
        if self.schema.replace(schema) != schema {
            self.connection.flush_prepared_statement_cache();
        }
        if self.guard.shared.asked.load(Relaxed) && !self.before.get().is_reset {
            self.reset()?;
        }
        if self.guard.values_max.load(Relaxed) != self.values_max {
            self.set_values_max(self.values_max)
                .map_err(|error| self.error(&error))?;
        }
        self.guard.compiled.store(false, Relaxed);
        let statement = self.connection.prepare_cached(sql);
        let mut prepared = Prepared {
            statement: Some(statement.map_err(|error| self.error(&error))?),
            keeps: true,
            changes_schema: false,
            like_case: None,
        };
        if self.guard.compiled.load(Relaxed) {
            prepared.keeps = false;
            self.weigh(&mut prepared, sql, params)?;
        }
        let slots = slots(&prepared)?;
        let expected = slots.iter().copied().max().unwrap_or(0);
        if expected != params.len() {
            return Err(Error::parameters(expected, params.len(), sql));
        }
        for (index, slot) in slots.into_iter().enumerate() {
            prepared
                .raw_bind_parameter(index + 1, Bound(&params[slot - 1]))
                .map_err(|error| self.error(&error))?;
        }
        Ok(prepared)
    }

    /// Checks a statement that was just compiled: whether it may run, how large its values may be, and whether it may
    /// be kept and run again without this check.
    fn weigh(&self, prepared: &mut Prepared<'_>, sql: &str, params: &[Value]) -> Result<(), Error> {
        let Found {
            weight,
            written,
            searches,
            searched,
            session,
            rowid,
            changes_schema,
            like_case,
        } = std::mem::take(&mut *self.guard.found.lock());
        let program_bytes = prepared.get_status(StatementStatus::MemUsed);
        let program_bytes = u64::try_from(program_bytes).unwrap_or(u64::MAX);
        if program_bytes > PROGRAM_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the statement takes {program_bytes} bytes once it is compiled, and may take {PROGRAM_BYTES_MAX}: split it, or give its columns shorter names"
                ),
            ));
        }
        let looks_at_index = searches || self.defined(&searched)?.0;
        if looks_at_index && !searches {
            return Err(Error::new(
                ErrorKind::Denied,
                "a full-text search was refused: write it as `TABLE match $1`, so that its length is known",
            ));
        }
        if searches {
            search::check(sql, params)?;
        }
        if session {
            self.ask(rowid)?;
        }
        if changes_schema {
            self.schema_changes();
        }
        prepared.changes_schema = changes_schema;
        prepared.like_case = like_case;
        let (indexes_text, calls) = self.defined(&written)?;
        let weight = Weight {
            calls: weight.calls + calls,
            program_bytes,
            indexes_text,
            ..weight
        };
        let max = limits::values_max(self.values_max, weight);
        if max < self.values_max {
            self.set_values_max(max)
                .map_err(|error| self.error(&error))?;
        }
        prepared.keeps = max == self.values_max && !searches && !session;
        Ok(())
    }

    /// Makes all connections compile and check their kept statements again: the tables and views that they use may have
    /// changed.
    pub(super) fn schema_changes(&self) {
        self.guard.shared.schema.fetch_add(1, Relaxed);
    }

    /// Whether any of these tables is virtual, and the number of calls of functions in their definitions.
    fn defined<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a String>,
    ) -> Result<(bool, u32), Error> {
        let mut tables = (tables.into_iter())
            .filter(|table| !table.starts_with("sqlite_"))
            .peekable();
        if tables.peek().is_none() {
            return Ok((false, 0));
        }
        let look = |connection: &Connection| {
            let mut statement = connection.prepare(
                "select type = 'table' and rootpage = 0, sql from sqlite_schema where tbl_name = ? collate nocase and type in ('table', 'index') and sql is not null",
            )?;
            let (mut is_virtual, mut calls) = (false, 0);
            for table in tables {
                let mut rows = statement.query([table])?;
                while let Some(row) = rows.next()? {
                    is_virtual |= row.get::<_, bool>(0)?;
                    calls += limits::calls(row.get_ref(1)?.as_str().unwrap_or_default());
                }
            }
            Ok((is_virtual, calls))
        };
        self.as_host(look).map_err(|error| self.error(&error))
    }

    fn set_values_max(&self, max: u64) -> rusqlite::Result<()> {
        let length = i32::try_from(max).unwrap_or(i32::MAX);
        self.connection
            .set_limit(Limit::SQLITE_LIMIT_LENGTH, length)?;
        self.guard.values_max.store(max, Relaxed);
        Ok(())
    }

    /// Notes that a statement has written.
    pub(super) fn wrote(&self, sql: &str) {
        let first = sql.trim_ascii_start().as_bytes().first();
        // Statements that begin with these letters (`update`, `delete`, `create`, `alter` …) insert no rows.
        let inserts = !matches!(
            first,
            Some(b'u' | b'U' | b'd' | b'D' | b'c' | b'C' | b'a' | b'A')
        );
        self.inserts.set(self.inserts.get() | inserts);
    }

    /// Prepares the connection for a statement that asks what the last statements on the connection did, such as
    /// `select changes()`. Once any view has asked, each borrower's connection is reset before its first statement
    /// ([`Handle::reset`]).
    fn ask(&self, rowid: bool) -> Result<(), Error> {
        self.guard.shared.asked.store(true, Relaxed);
        let before = self.before.get();
        let wrote = self.connection.total_changes() != before.changes;
        if !before.is_reset && !wrote {
            self.reset()?;
        } else if !before.is_reset && rowid && self.connection.last_insert_rowid() == before.rowid {
            // The borrower's own row may have the same id as the row of an earlier borrower. The two cannot be told
            // apart.
            if self.inserts.get() {
                return Err(Error::new(
                    ErrorKind::Denied,
                    "`last_insert_rowid()` was refused this once: it cannot be told from what an earlier request inserted. Use `returning`",
                ));
            }
            self.reset()?;
        }
        let own = self.connection.total_changes() - self.before.get().changes;
        let own = i64::try_from(own).unwrap_or(i64::MAX);
        self.guard.total_changes.store(own, Relaxed);
        Ok(())
    }

    /// Makes `last_insert_rowid()` and `changes()` forget earlier borrowers. SQLite has no function for that, so a row
    /// is written to a temporary table that only the host sees. On a reading connection nothing has to be forgotten.
    fn reset(&self) -> Result<(), Error> {
        let changes = self.connection.total_changes();
        if self.writes {
            for sql in [
                "create temp table if not exists amphi_session (id integer primary key)",
                "replace into temp.amphi_session values (0)",
                "update temp.amphi_session set id = id where false",
            ] {
                self.host(sql)?;
            }
        }
        let own = changes - self.before.get().changes;
        self.before.set(Before {
            rowid: 0,
            changes: self.connection.total_changes() - own,
            is_reset: true,
        });
        Ok(())
    }

    pub(super) fn error(&self, error: &rusqlite::Error) -> Error {
        if let Some(refused) = self.guard.refused.lock().take() {
            return refused;
        }
        let kind = match error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::ConstraintViolation => constraint(failure.extended_code),
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => ErrorKind::Conflict,
                ErrorCode::OperationInterrupted => ErrorKind::Aborted,
                ErrorCode::TypeMismatch => ErrorKind::DataType,
                ErrorCode::Unknown | ErrorCode::ParameterOutOfRange => ErrorKind::Statement,
                ErrorCode::TooBig | ErrorCode::OutOfMemory => ErrorKind::TooLarge,
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
            _ if kind == ErrorKind::Aborted => self.interrupted(),
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::ApiMisuse => Error::new(
                    ErrorKind::Statement,
                    "the statement is empty, or only a comment",
                ),
                ErrorCode::TooBig => self.too_big(),
                ErrorCode::DiskFull if self.guard.pinned.load(Relaxed) => Error::new(
                    ErrorKind::TooLarge,
                    "the temporary tables of the session would have more than `transaction_max_bytes` of the database, or the disk is full",
                ),
                ErrorCode::OutOfMemory => Error::new(
                    kind,
                    "the statement needs more memory, or more instructions, than SQLite may use here: split it, or work on fewer and smaller values at once",
                ),
                _ => {
                    let message = cut(error.to_string(), ERROR_BYTES_MAX);
                    Error {
                        violation: kind.is_constraint().then(|| violation(&message)),
                        ..Error::new(kind, message)
                    }
                }
            },
            rusqlite::Error::SqlInputError { msg, .. }
                if msg.contains("Recursion limit") || msg.contains("stack overflow") =>
            {
                Error::new(
                    kind,
                    "the statement is nested too deeply: take it apart, with `with` or into several statements",
                )
            }
            _ => Error::new(kind, cut(error.to_string(), ERROR_BYTES_MAX)),
        }
    }

    fn too_big(&self) -> Error {
        let max = self.guard.values_max.load(Relaxed);
        Error::new(
            ErrorKind::TooLarge,
            match max < self.values_max {
                false => format!(
                    "a text or blob is larger than {max} bytes (`value_max_bytes`): store it in pieces, or as a file"
                ),
                true => format!(
                    "a text or blob is larger than {max} bytes, and values in a statement as large as this one, with as many functions, or that fills a full-text index, may not be larger: split the statement, or leave such values out"
                ),
            },
        )
    }

    fn interrupted(&self) -> Error {
        match self.guard.writes_too_much.load(Relaxed) {
            true => Error::new(
                ErrorKind::TooLarge,
                "the transaction, or the statement, has written more than `transaction_max_bytes` of the database: divide it into several",
            ),
            false => Error::new(
                ErrorKind::Aborted,
                "request-aborted: the statement was interrupted because the request ended",
            ),
        }
    }
}

/// The kind of a violated constraint, by SQLite's extended code.
fn constraint(extended: i32) -> ErrorKind {
    match extended {
        ffi::SQLITE_CONSTRAINT_UNIQUE
        | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
        | ffi::SQLITE_CONSTRAINT_ROWID => ErrorKind::Unique,
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => ErrorKind::ForeignKey,
        ffi::SQLITE_CONSTRAINT_NOTNULL => ErrorKind::NotNull,
        ffi::SQLITE_CONSTRAINT_CHECK => ErrorKind::Check,
        ffi::SQLITE_CONSTRAINT_DATATYPE => ErrorKind::DataType,
        _ => ErrorKind::Constraint,
    }
}

/// The constraint that refused a change, read from SQLite's text: `UNIQUE constraint failed: t.a, t.b`, `CHECK
/// constraint failed: NAME`, `cannot store TEXT value in INTEGER column t.a`.
fn violation(message: &str) -> Violation {
    let (before, rest) = match message.rsplit_once(" column ") {
        Some((before, column)) if before.starts_with("cannot store ") => (before, column),
        _ => message
            .split_once(" constraint failed: ")
            .unwrap_or_default(),
    };
    let index = (rest.strip_prefix("index '")).and_then(|name| name.strip_suffix('\''));
    let name = index.or((before == "CHECK").then_some(rest));
    let columns = match name {
        Some(_) => Vec::new(),
        None => (rest
            .split(", ")
            .filter_map(|column| Some(column.split_once('.')?.1)))
        .map(str::to_owned)
        .collect(),
    };
    Violation {
        constraint: name.map(str::to_owned),
        columns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_read_from_sqlites_words() {
        for (message, constraint, columns) in [
            ("UNIQUE constraint failed: t.a, t.b", None, &["a", "b"][..]),
            (
                "UNIQUE constraint failed: index 'by_lower'",
                Some("by_lower"),
                &[],
            ),
            ("NOT NULL constraint failed: t.a", None, &["a"]),
            (
                "CHECK constraint failed: a > 0, b. > 1",
                Some("a > 0, b. > 1"),
                &[],
            ),
            ("FOREIGN KEY constraint failed", None, &[]),
            (
                "cannot store TEXT value in INTEGER column t.a",
                None,
                &["a"],
            ),
            ("a trigger says no: column x.y", None, &[]),
        ] {
            let found = violation(message);
            assert_eq!(found.constraint.as_deref(), constraint, "{message}");
            assert_eq!(found.columns, columns, "{message}");
        }
    }
}
