//! SQLite in memory, with transactions that behave like those of the host.

use super::dialect;
use crate::bindings::amphi::view::database_types::{Error, ErrorKind, Table, Violation};
use crate::database::Value;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, ffi};
use std::fs;
use std::path::{Path, PathBuf};

/// A database and its open transactions.
#[derive(Debug)]
pub(super) struct TestDatabase {
    connection: Connection,
    depth: u32,
    /// The depth at which a statement failed, and its error.
    poisoned: Option<(u32, String)>,
    pinned: bool,
}

impl Default for TestDatabase {
    fn default() -> Self {
        let connection = Connection::open_in_memory().expect("SQLite opens a database in memory");
        connection
            .execute_batch("pragma foreign_keys = on")
            .expect("SQLite checks foreign keys");
        add_functions(&connection).expect("SQLite takes functions");
        Self {
            connection,
            depth: 0,
            poisoned: None,
            pinned: false,
        }
    }
}

/// Adds the functions that SQL written for PostgreSQL often calls.
fn add_functions(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8;
    let (now, uuid) = (
        "select strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
        "with r(h) as (select lower(hex(randomblob(16)))) select substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' \
         || substr(h, 14, 3) || '-a' || substr(h, 18, 3) || '-' || substr(h, 21) from r",
    );
    for (name, sql) in [("now", now), ("gen_random_uuid", uuid)] {
        connection.create_scalar_function(name, 0, flags, move |_| {
            // SQLite itself provides the time and the random numbers.
            let connection = Connection::open_in_memory()?;
            connection.query_row(sql, (), |row| row.get::<_, String>(0))
        })?;
    }
    Ok(())
}

impl TestDatabase {
    /// Runs statements of the test itself. A failure is a panic.
    pub(super) fn execute_batch(&self, sql: &str, place: &str) {
        self.connection
            .execute_batch(sql)
            .unwrap_or_else(|error| panic!("{place}: {error}"));
    }

    /// Applies a migration that is written for SQLite or PostgreSQL.
    pub(super) fn migrate(&self, sql: &str, place: &str) {
        for statement in dialect::statements(sql) {
            if let Err(error) = self.connection.execute_batch(&statement) {
                panic!(
                    "{place}: {error}: {statement}\nTests run on SQLite. Put statements that only PostgreSQL accepts into migrations of their own, and make the tables of the tests with `App::execute_batch`"
                );
            }
        }
    }

    /// Sets whether the connection is pinned. While it is, statements that change the session (`pragma`) are allowed.
    pub(super) fn pin(&mut self, pinned: bool) {
        self.pinned = pinned;
    }

    /// Runs one statement. Returns its result and how many rows it changed. When the statement fails within a
    /// transaction, all further statements are refused until the level of the failed statement is rolled back.
    pub(super) fn run(
        &mut self,
        sql: &str,
        values: &[Value],
        read_only: bool,
        max_bytes: Option<usize>,
    ) -> Result<(Table, u64), Error> {
        self.check_sound()?;
        let result = self.try_run(sql, values, read_only, max_bytes);
        if let Err(error) = &result
            && self.depth > 0
        {
            self.poisoned = Some((self.depth, error.message.clone()));
        }
        result
    }

    fn check_sound(&self) -> Result<(), Error> {
        match &self.poisoned {
            None => Ok(()),
            Some((_, why)) => Err(refused(
                ErrorKind::Poisoned,
                format!(
                    "a statement of this transaction failed before, so it takes no more until that is rolled back: {why}"
                ),
            )),
        }
    }

    fn try_run(
        &self,
        sql: &str,
        values: &[Value],
        read_only: bool,
        max_bytes: Option<usize>,
    ) -> Result<(Table, u64), Error> {
        check_allowed(sql, self.pinned)?;
        let mut statement = self.connection.prepare(sql).map_err(error)?;
        if read_only && !statement.readonly() {
            let message = format!("the view is read-only, and this statement writes: {sql}");
            return Err(refused(ErrorKind::Denied, message));
        }
        let slots = slots(&statement)?;
        let wanted = slots.iter().copied().max().unwrap_or(0);
        if wanted != values.len() {
            return Err(refused(
                ErrorKind::Statement,
                format!(
                    "the statement has {wanted} parameters, and {} were given",
                    values.len()
                ),
            ));
        }
        for (index, slot) in slots.into_iter().enumerate() {
            statement
                .raw_bind_parameter(index + 1, to_sql(&values[slot - 1]))
                .map_err(error)?;
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let changes = |connection: &Connection| connection.total_changes();
        let before = changes(&self.connection);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut cursor = statement.raw_query();
        while let Some(row) = cursor.next().map_err(error)? {
            let values = (0..columns.len())
                .map(|index| row.get_ref(index).map_err(error).and_then(from_sql));
            let values: Vec<Value> = values.collect::<Result<_, _>>()?;
            bytes += values.iter().map(size).sum::<usize>();
            rows.push(values);
            if let Some(max) = max_bytes.filter(|max| bytes > *max) {
                let message = format!(
                    "the result has more than {max} bytes (`rows_max_bytes`): narrow it, or read it in pieces with `rows`"
                );
                return Err(refused(ErrorKind::TooLarge, message));
            }
        }
        drop(cursor);
        // A statement that changes the schema changes rows of SQLite's own tables, so its count is not the count of the
        // view's rows.
        let first = sql.trim_start().get(..4).unwrap_or_default();
        let defines = ["crea", "drop", "alte"]
            .iter()
            .any(|word| first.eq_ignore_ascii_case(word));
        let changed = match changes(&self.connection) != before && !defines {
            true => self.connection.changes(),
            false => 0,
        };
        Ok((Table { columns, rows }, changed))
    }

    /// Begins a transaction or savepoint. Returns its depth.
    pub(super) fn begin(&mut self) -> Result<u32, Error> {
        self.check_sound()?;
        let sql = match self.depth {
            0 => "begin".to_owned(),
            depth => format!("savepoint amphi_{}", depth + 1),
        };
        self.connection.execute_batch(&sql).map_err(error)?;
        self.depth += 1;
        Ok(self.depth)
    }

    /// Commits or rolls back the transaction or savepoint of this depth.
    pub(super) fn end(&mut self, depth: u32, commit: bool) -> Result<(), Error> {
        if depth > self.depth {
            return match commit {
                true => Err(refused(
                    ErrorKind::Statement,
                    "the transaction around this one ended before it",
                )),
                false => Ok(()),
            };
        }
        let poisoned = match commit {
            true => self.check_sound(),
            false => Ok(()),
        };
        let commit = commit && poisoned.is_ok();
        self.depth = depth - 1;
        if self.poisoned.as_ref().is_some_and(|(at, _)| *at >= depth) {
            self.poisoned = None;
        }
        let sql = match (depth, commit) {
            (1, true) => "commit".to_owned(),
            (1, false) => "rollback".to_owned(),
            (_, true) => format!("release amphi_{depth}"),
            (_, false) => format!("rollback to amphi_{depth}; release amphi_{depth}"),
        };
        self.connection
            .execute_batch(&sql)
            .map_err(error)
            .inspect_err(|_| {
                if depth == 1 {
                    // A commit that fails on a deferred constraint leaves the transaction open.
                    self.connection
                        .execute_batch("rollback")
                        .expect("an open transaction rolls back");
                }
            })?;
        poisoned
    }
}

/// Reads the `V1__name.sql` files of a folder, in the order of their numbers.
///
/// # Panics
///
/// When there is no such folder, or the name of a SQL file in it has another form.
pub(super) fn migrations(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("migrations in {}: {error}", folder.display()));
    let mut files: Vec<(u64, PathBuf)> = entries
        .map(|entry| entry.expect("a folder can be read to its end").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .map(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let number = name
                .strip_prefix('V')
                .and_then(|rest| rest.split_once("__")?.0.parse().ok());
            (
                number.unwrap_or_else(|| panic!("{}: name it like V1__name.sql", path.display())),
                path,
            )
        })
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|(_, path)| {
            let sql = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, sql)
        })
        .collect()
}

/// Refuses the statements that the host refuses: those that begin or end a transaction, and those that change the
/// session. On a pinned connection, `pragma` is allowed.
fn check_allowed(sql: &str, pinned: bool) -> Result<(), Error> {
    const REFUSED: [&str; 10] = [
        "begin",
        "commit",
        "end",
        "rollback",
        "savepoint",
        "release",
        "pragma",
        "attach",
        "detach",
        "vacuum",
    ];
    let word: String = sql
        .trim_start()
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect();
    let word = word.to_ascii_lowercase();
    if !REFUSED.contains(&word.as_str()) || (pinned && word == "pragma") {
        return Ok(());
    }
    Err(refused(
        ErrorKind::Denied,
        format!(
            "views may not run `{}`; for transactions use `cx.atomic`",
            word.to_uppercase()
        ),
    ))
}

/// The number of the value that each parameter takes, counted from 1: `?` takes the next value, `?N` and `$N` the N-th.
/// The rule is the same in the host.
fn slots(statement: &rusqlite::Statement<'_>) -> Result<Vec<usize>, Error> {
    let slot = |index: usize| match statement.parameter_name(index) {
        None => Ok(index),
        Some(name) => {
            let number = name.strip_prefix(['?', '$']).map(str::parse);
            match number {
                Some(Ok(number @ 1..=32_766)) => Ok(number),
                _ => Err(refused(
                    ErrorKind::Statement,
                    format!("the parameter `{name}` has a name: number them (`$1`, `$2` …)"),
                )),
            }
        }
    };
    (1..=statement.parameter_count()).map(slot).collect()
}

/// About how many bytes a value takes in a result.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Integer(_) | Value::Real(_) => 8,
        Value::Text(text) => text.len(),
        Value::Blob(bytes) => bytes.len(),
    }
}

fn to_sql(value: &Value) -> rusqlite::types::ToSqlOutput<'_> {
    rusqlite::types::ToSqlOutput::Borrowed(match value {
        Value::Null => ValueRef::Null,
        Value::Integer(number) => ValueRef::Integer(*number),
        Value::Real(number) => ValueRef::Real(*number),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    })
}

fn from_sql(value: ValueRef<'_>) -> Result<Value, Error> {
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(bytes) => {
            Value::Text(String::from_utf8(bytes.to_vec()).map_err(|_| {
                refused(ErrorKind::Other, "a text in the result is not valid UTF-8")
            })?)
        }
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    })
}

/// An error that comes from the host, not from the database.
pub(super) fn refused(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error {
        kind,
        message: message.into(),
        violation: None,
    }
}

fn error(error: rusqlite::Error) -> Error {
    let code = error.sqlite_error();
    let kind = match code.map(|ffi::Error { code, .. }| code) {
        Some(ErrorCode::ConstraintViolation) => {
            constraint(code.map_or(0, |code| code.extended_code))
        }
        Some(ErrorCode::TypeMismatch) => ErrorKind::DataType,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Conflict,
        Some(ErrorCode::TooBig) => ErrorKind::TooLarge,
        _ => ErrorKind::Statement,
    };
    let message = error.to_string();
    Error {
        kind,
        violation: kind.is_constraint().then(|| violation(&message)),
        message,
    }
}

/// The kind of a constraint, from SQLite's extended error code. The host uses the same mapping.
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

/// The constraint and the columns that are named in SQLite's message. The host reads the message in the same way.
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
        None => (rest.split(", "))
            .filter_map(|column| Some(column.split_once('.')?.1.to_owned()))
            .collect(),
    };
    Violation {
        constraint: name.map(str::to_owned),
        columns,
    }
}
