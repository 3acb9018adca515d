//! A leased connection: what runs on it, and how it is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::{mpsc, oneshot};

use super::super::error::{Error, ErrorKind};
use super::super::statement::{Failed, Outcome, PIECE_BYTES, PIECE_ROWS, Row, Statement, Table};
use super::Sqlite;
use super::connection::Handle;
use super::functions;
use super::values::{columns, read_row};
use crate::telemetry::metrics::GaugeGuard;
use crate::threads::deadline::Deadline;
use crate::threads::gate::Permit;

/// A leased connection. Dropping the lease rolls back what is open on the connection, and gives the connection back
/// clean (R11).
pub struct Lease {
    handle: Option<Handle>,
    database: Arc<Sqlite>,
    writes: bool,
    /// Whether statements that write are refused for now.
    only_reads: bool,
    /// Whether the connection was ever pinned. Then it is closed after the lease.
    tainted: bool,
    permit: Option<Permit>,
    held: Option<GaugeGuard>,
}

/// Whether a statement can run on the connection that it was tried on.
pub enum Tried<T> {
    /// The statement ran.
    Done(T),
    /// The statement writes, and this connection only reads.
    Writes,
}

impl Lease {
    pub(super) fn new(
        handle: Handle,
        database: &Arc<Sqlite>,
        permit: Permit,
        deadline: Arc<Deadline>,
        writes: bool,
    ) -> Result<Lease, Error> {
        handle.lend(deadline)?;
        Ok(Lease {
            handle: Some(handle),
            database: Arc::clone(database),
            writes,
            only_reads: false,
            tainted: false,
            permit: Some(permit),
            held: Some(GaugeGuard::new(&database.in_use)),
        })
    }

    fn handle(&self) -> &Handle {
        self.handle
            .as_ref()
            .expect("the connection is there until the lease is dropped")
    }

    /// Runs a statement.
    ///
    /// # Errors
    /// The error of the database, `too-large` if the rows exceed the statement's limit, `aborted` if the request ends
    /// meanwhile.
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
        let max = rows_max.unwrap_or(u64::MAX);
        let (columns, mut bytes) = match rows_max {
            Some(_) => columns(&prepared, max).ok_or_else(|| Error::too_large(max, sql))?,
            None => (Vec::new(), 0),
        };
        let width = prepared.column_count();
        let mut rows = Vec::new();
        let changes = handle.connection.total_changes();
        {
            let mut cursor = prepared.raw_query();
            // A statement runs only while its rows are stepped through, so this is done even if the rows are not
            // wanted.
            while let Some(row) = cursor.next().map_err(|error| handle.error(&error))? {
                if rows_max.is_none() {
                    continue;
                }
                let left = max.saturating_sub(bytes);
                let (row, size) =
                    read_row(row, width, left)?.ok_or_else(|| Error::too_large(max, sql))?;
                bytes += size;
                rows.push(row);
            }
        }
        // After a statement that changes no rows, `changes` still has the number of an earlier statement. A statement
        // that changes the schema may write rows of SQLite's own tables, which do not count.
        let changes_rows = handle.connection.total_changes() != changes && !prepared.changes_schema;
        let changed = match changes_rows {
            true => handle.connection.changes(),
            false => 0,
        };
        if !readonly {
            handle.wrote(sql);
        }
        if prepared.changes_schema {
            handle.schema_changes();
        }
        if let Some(case_sensitive) = prepared.like_case {
            functions::register_like(&handle.connection, &handle.guard, case_sensitive)
                .map_err(|error| handle.error(&error))?;
        }
        let table = Table { columns, rows };
        Ok(Tried::Done(Outcome { table, changed }))
    }

    /// Runs the statements of the host in `before`, then the statement.
    pub(in crate::database) fn run_in_order(
        &self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        before
            .iter()
            .try_for_each(|sql| self.host(sql))
            .map_err(Failed::Before)?;
        self.handle().guard.kept.store(true, Relaxed);
        match self.run(statement) {
            Ok(Tried::Done(outcome)) => Ok(outcome),
            Ok(Tried::Writes) => Err(Failed::Statement(Error::read_only(&statement.sql))),
            Err(error) => Err(Failed::Statement(error)),
        }
    }

    /// Forbids statements that write although the connection may write, or allows them again.
    pub(in crate::database) fn set_only_reads(&mut self, only_reads: bool) {
        self.only_reads = only_reads;
    }

    /// Allows statements that change the session, or forbids them again.
    pub(in crate::database) fn set_pinned(&mut self, pinned: bool) {
        self.tainted = true;
        let handle = self.handle();
        // The authorizer would not see statements again that are prepared already, so they are dropped.
        handle.connection.flush_prepared_statement_cache();
        let bounded = match pinned {
            true => handle.bound_temporary(),
            false => Ok(()),
        };
        if let Err(error) = &bounded {
            let (database, why) = (&self.database.config.name, &error.message);
            tracing::error!(
                database,
                why,
                "a session's temporary tables cannot be bounded"
            );
        }
        // If the size of temporary tables cannot be limited, the guard goes on as if there were no pin: it refuses
        // temporary tables, and all other statements that need a pin.
        handle
            .guard
            .pinned
            .store(pinned && bounded.is_ok(), Relaxed);
    }

    /// Runs a transaction statement of the host.
    ///
    /// # Errors
    /// The error of the database.
    pub fn host(&self, sql: &str) -> Result<(), Error> {
        self.handle().host(sql)
    }

    /// Gives the connection with its open transaction to another borrower.
    ///
    /// # Errors
    /// When the connection cannot be used any more.
    pub(in crate::database) fn hand_on(&mut self, deadline: &Arc<Deadline>) -> Result<(), Error> {
        if self.tainted || !self.in_transaction() {
            return Err(Error::new(
                ErrorKind::Other,
                "the transaction has ended already",
            ));
        }
        self.only_reads = false;
        self.handle().watched.give_back();
        self.handle().lend(Arc::clone(deadline))
    }

    /// Whether the transaction still exists. SQLite rolls it back by itself after some errors, such as an interrupt.
    pub fn in_transaction(&self) -> bool {
        !self.handle().connection.is_autocommit()
    }

    pub(super) fn feed(
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
        let Some((columns, _)) = columns(&statement, max_bytes) else {
            return drop(head.send(Err(Error::too_large(max_bytes, sql))));
        };
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
            // Sending fails when nobody reads the result any more.
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
            _permit: self.permit.take(),
            _held: self.held.take(),
        };
        // A rollback may wait for the disk, and the lease may be dropped on a loop: so the rollback runs on another
        // thread.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if used.tainted || !used.handle.connection.is_autocommit() => {
                runtime.spawn_blocking(move || used.give_back());
            }
            _ => used.give_back(),
        }
    }
}

/// A connection after its lease, with its permit.
struct Used {
    handle: Handle,
    database: Arc<Sqlite>,
    writes: bool,
    tainted: bool,
    _permit: Option<Permit>,
    _held: Option<GaugeGuard>,
}

impl Used {
    fn give_back(self) {
        // A pinned connection is closed by dropping its handle, which rolls back what is open. Another connection is
        // opened when one is needed.
        if self.tainted {
            return;
        }
        let Handle {
            connection,
            guard,
            watched,
            ..
        } = &self.handle;
        guard.kept.store(false, Relaxed);
        watched.give_back();
        let cleaned = connection.is_autocommit() || self.handle.host("rollback").is_ok();
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
