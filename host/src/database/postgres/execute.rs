//! The execution of one statement: the statements ahead of it, its rows, and its cancellation.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures::{FutureExt as _, TryStreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{CancelToken, Client, Row as PostgresRow, RowStream, Statement as Known};

use super::super::error::{Error, ErrorKind};
use super::super::face::unwound;
use super::super::statement::{
    Failed, Outcome, PIECE_BYTES, PIECE_ROWS, ROW_BYTES, Row, Statement, Table, VALUE_BYTES, Value,
    short,
};
use super::guard::Verdict;
use super::params::{Param, array, params};
use super::plain::{Check, Checked};
use super::session::{CLOSING_TIMEOUT, Prepared, Session};
use super::tokens::{Token, tokens};
use super::values::{self, Raw};
use super::wire::Limits;
use super::{Postgres, error, types, wire};

/// The server's codes for two errors: a statement writes in a read-only transaction, or a prepared statement is
/// unknown.
const WRITES: &str = "25006";
pub(super) const FORGOTTEN: &str = "26000";

/// When a result is over its limit, up to this many further bytes are read and dropped. Then the statement is
/// cancelled.
const DISCARD_BYTES: u64 = 4 << 20;

/// Rows and values above this size are not converted on the thread of an event loop, but on another thread. An event
/// loop converts smaller rows itself, and yields each time it has converted this many bytes (R5).
pub(super) const HEAVY_BYTES: usize = 64 << 10;

/// A code of the host, used in place of the server's code: the statement was prepared before definitions changed. The
/// statement has not run, or the server has undone all that it did.
pub(super) const STALE: &str = "stale";
/// Like [`STALE`], for a statement inside another one such as `call`, which may have committed before the error.
pub(super) const STALE_WITHIN: &str = "stale within";

/// The first message of [`Execution::feed`], before any rows: the columns, or None if the statement writes.
pub(super) type Head = Result<Option<Vec<String>>, Error>;

/// The error of a statement, and the server's code of the error. The code is empty if the error comes from the host.
struct Wrong {
    error: Error,
    code: String,
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Wrong {
        Wrong {
            error,
            code: String::new(),
        }
    }
}

/// The cancellation of what the server runs on a connection.
///
/// The server ends whatever runs when the cancellation arrives. If nothing runs, the server ignores the cancellation.
/// The host may have sent statements of its own, such as `begin`, ahead of the guest's. If the server ended one of
/// those, the guest's statement would run all the same. So the cancellation is held back until the server has answered
/// the host's statements.
pub(super) struct Cancel {
    token: CancelToken,
    database: Arc<Postgres>,
    held: AtomicBool,
    wanted: AtomicBool,
    sent: AtomicBool,
}

impl Cancel {
    pub(super) fn new(database: &Arc<Postgres>, token: CancelToken) -> Cancel {
        Cancel {
            token,
            database: Arc::clone(database),
            held: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            sent: AtomicBool::new(false),
        }
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    /// Holds a cancellation back until [`Cancel::release`].
    fn hold(&self) {
        self.held.store(true, Relaxed);
    }

    fn release(&self) {
        self.held.store(false, Relaxed);
        if self.is_wanted() {
            self.send();
        }
    }

    /// Whether the statement is to stop.
    fn is_wanted(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    /// Sends the cancellation at most once. A cancellation that is held back is sent by [`Cancel::release`]. The server
    /// sends no answer to a cancellation, except that the statement ends.
    pub(super) fn send(&self) {
        self.wanted.store(true, Relaxed);
        if self.held.load(Relaxed) || self.sent.swap(true, Relaxed) {
            return;
        }
        let (token, database) = (self.token.clone(), Arc::clone(&self.database));
        self.database.runtime.spawn(async move {
            let asked = database.connector.cancel(&token);
            match tokio::time::timeout(CLOSING_TIMEOUT, asked).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a statement could not be cancelled"),
                Err(_) => tracing::debug!("a statement could not be cancelled in time"),
            }
        });
    }
}

/// What is sent with a statement, and the columns of its result.
struct Given<'a> {
    params: Vec<Param<'a>>,
    columns: Vec<String>,
}

/// The execution of one statement.
pub(super) struct Execution<'a> {
    pub(super) name: &'a str,
    pub(super) value_max: u64,
    pub(super) limits: Limits,
    pub(super) cancel: &'a Cancel,
    pub(super) statement: &'a Statement,
    pub(super) verdict: &'a Arc<Verdict>,
    /// The question that the server is asked ahead of the statement.
    pub(super) check: Option<&'a Check>,
}

impl Execution<'_> {
    /// Runs the statement after the statements in `ahead`, then `behind`. Returns the outcome, and the server's answer
    /// to `check`.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        ahead: &[String],
        behind: Option<&str>,
    ) -> Result<(Outcome, Option<Checked>), (Failed, String)> {
        let sql = &self.statement.sql;
        let mut known = session.statements.get(sql).map(|p| p.statement.clone());
        let (client, first) = (&session.client, known.is_none());
        // `behind` must be sent after the statement. A statement that is not prepared yet would be sent after `behind`,
        // so it is prepared here.
        if known.is_none() && behind.is_some() {
            known = Some(
                self.prepare(client)
                    .await
                    .map_err(|wrong| (Failed::Statement(wrong.error), wrong.code))?,
            );
        }
        session
            .limits
            .set_row_max(self.statement.rows_max.unwrap_or(0));
        // The parameters are converted first: once the statements ahead are sent, the statement must follow them.
        let given = match &known {
            Some(known) => Some(self.given(known).await),
            None => None,
        };
        let given = (given.transpose()).map_err(|error| (Failed::Refused(error), String::new()))?;
        let asks = self.check.is_some();
        if asks || !ahead.is_empty() {
            self.cancel.hold();
        }
        let check = async {
            match &self.check {
                Some(check) => session.check(check).await,
                None => None,
            }
        };
        let begin = async {
            match ahead {
                [] => Ok(()),
                ahead => client.batch_execute(&wire::ahead(ahead)).await,
            }
        };
        let before = async {
            let before = futures::future::join(check, begin).await;
            self.cancel.release();
            before
        };
        let statement = async {
            let (known, given) = match (known, given) {
                (Some(known), Some(given)) => (known, given),
                _ => {
                    let known = self.prepare(client).await?;
                    let given = self.given(&known).await?;
                    (known, given)
                }
            };
            let outcome = self.outcome(client, &known, given).await?;
            Ok::<_, Wrong>((known, outcome))
        };
        let after = async {
            match behind {
                None => Ok(()),
                Some(behind) => client.batch_execute(behind).await,
            }
        };
        // The futures are polled in this order, so their messages are sent in this order, without waiting for each
        // other's answers.
        let ((checked, before), ran, after) =
            futures::future::join3(before, statement, after).await;
        if let Err(error) = before {
            let wrong = self.wrong(&error);
            return Err((Failed::Before(wrong.error), wrong.code));
        }
        match ran {
            Ok((known, outcome)) => {
                if let Err(error) = after {
                    let wrong = self.wrong(&error);
                    return Err((Failed::Statement(wrong.error), wrong.code));
                }
                let prepared = Prepared {
                    statement: known,
                    verdict: Arc::clone(self.verdict),
                    plain: None,
                };
                match self.verdict.forgets {
                    true => session.statements.clear(),
                    false if first => drop(session.statements.insert(sql.clone(), prepared)),
                    false => {}
                }
                Ok((outcome, checked))
            }
            Err(wrong) => {
                session.statements.remove(sql);
                Err((Failed::Statement(wrong.error), wrong.code))
            }
        }
    }

    async fn prepare(&self, client: &Client) -> Result<Known, Wrong> {
        let prepared = match types::bounded(client.prepare(&self.statement.sql)).await {
            Some(prepared) => prepared.map_err(|error| self.wrong(&error))?,
            None => return Err(types::too_deep(client, &self.statement.sql).into()),
        };
        if !types::are_shallow(&prepared) {
            return Err(types::too_deep(client, &self.statement.sql).into());
        }
        // The statement was cancelled while it was prepared. The server may have ignored the cancellation, and then
        // would not stop the statement, so the statement is not sent.
        if self.cancel.is_wanted() {
            let stopped = "the statement was stopped before it ran";
            return Err(Error::new(ErrorKind::Aborted, stopped).into());
        }
        Ok(prepared)
    }

    /// About how many bytes a row takes. A row that arrived without its values counts as more than any limit.
    fn sent(&self, row: &PostgresRow) -> u64 {
        match self.limits.is_cut(row) {
            true => u64::MAX / 4,
            false => row_bytes(row),
        }
    }

    /// Converts a row, on another thread if that may take long.
    async fn read(&self, row: PostgresRow, room: u64) -> Result<Option<Row>, Error> {
        let value_max = self.value_max;
        match is_heavy(&row) {
            false => read(&row, value_max, room),
            true => self.elsewhere(move || read(&row, value_max, room)).await,
        }
    }

    /// Runs work that takes long on another thread than the loop's.
    async fn elsewhere<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let runtime = &self.cancel.database.runtime;
        unwound(runtime.spawn_blocking(work).await)
    }

    /// What is sent with a statement, and the columns of its result. It is an error if the host cannot read the type of
    /// a column.
    async fn given(&self, known: &Known) -> Result<Given<'_>, Error> {
        let columns = match self.statement.rows_max {
            Some(_) => columns(known)?,
            None => Vec::new(),
        };
        let params = self.params(known).await?;
        Ok(Given { params, columns })
    }

    async fn outcome(
        &self,
        client: &Client,
        known: &Known,
        given: Given<'_>,
    ) -> Result<Outcome, Wrong> {
        let Given { params, columns } = given;
        let Some(max) = self.statement.rows_max else {
            let changed = client.execute_raw(known, params).await;
            let changed = changed.map_err(|error| self.wrong(&error))?;
            return Ok(Outcome {
                table: Table {
                    columns: Vec::new(),
                    rows: Vec::new(),
                },
                changed: if self.verdict.counts { changed } else { 0 },
            });
        };
        let stream = client.query_raw(known, params).await;
        let mut stream = pin!(stream.map_err(|error| self.wrong(&error))?);
        let (mut rows, mut bytes, mut unbroken) = (Vec::new(), 0, 0);
        let mut over: Option<Error> = None;
        loop {
            match (stream.try_next().await, over.is_some()) {
                (Ok(None), false) => break,
                (Ok(None), true) => {}
                (Ok(Some(row)), true) => {
                    bytes += match self.limits.is_cut(&row) {
                        true => max,
                        false => row.raw_size_bytes() as u64,
                    };
                    if bytes > max + DISCARD_BYTES {
                        self.cancel.send();
                    }
                    continue;
                }
                (Ok(Some(row)), false) => {
                    let (sent, before) = (self.sent(&row), bytes);
                    bytes += sent;
                    if bytes <= max {
                        unbroken += row.raw_size_bytes();
                        if unbroken > HEAVY_BYTES {
                            unbroken = 0;
                            tokio::task::yield_now().await;
                        }
                        match self.read(row, max - before).await {
                            Ok(Some(row)) => {
                                bytes += printed(&row).saturating_sub(sent);
                                rows.push(row);
                            }
                            Ok(None) => bytes = max + 1,
                            Err(error) => over = Some(error),
                        }
                    }
                    if bytes > max && over.is_none() {
                        over = Some(Error::too_large(max, &self.statement.sql));
                    }
                    if over.is_some() {
                        rows.clear();
                    }
                    continue;
                }
                (Err(error), _) => {
                    let wrong = self.wrong(&error);
                    return Err(match over {
                        Some(error) => Wrong { error, ..wrong },
                        None => wrong,
                    });
                }
            }
            return Err(over.take().expect("it is over the limit").into());
        }
        let changed = stream.rows_affected().unwrap_or(0);
        Ok(Outcome {
            table: Table { columns, rows },
            changed: if self.verdict.counts { changed } else { 0 },
        })
    }

    /// Runs the statement in a read-only transaction and sends its result in pieces. Returns the server's error code;
    /// the code is empty if the statement succeeded. `read_only`: a statement that writes is an error. `open` is set
    /// while the transaction is open.
    pub(super) async fn feed(
        &self,
        session: &mut Session,
        (read_only, open): (bool, &AtomicBool),
        head: oneshot::Sender<Head>,
        pieces: &mpsc::Sender<Result<Vec<Row>, Error>>,
    ) -> String {
        let sql = &self.statement.sql;
        let known = (session.statements.peek(sql)).map(|prepared| prepared.statement.clone());
        let client = &session.client;
        session
            .limits
            .set_row_max(self.statement.rows_max.unwrap_or(u64::MAX));
        let mut started = self.start(client, known, open).await;
        if let Err(Wrong { code, .. }) = &started
            && (code == STALE || code == FORGOTTEN)
        {
            if code == STALE {
                self.cancel.database.forget_plans();
            }
            started = match client.batch_execute("rollback").await {
                Ok(()) => self.start(client, None, open).await,
                Err(error) => Err(self.wrong(&error)),
            };
        }
        let (columns, stream) = match started {
            Ok(started) => started,
            Err(Wrong { error, code }) => {
                let _ = head.send(match error.kind {
                    ErrorKind::Denied if code == WRITES && read_only => Err(Error::read_only(sql)),
                    ErrorKind::Denied if code == WRITES => Ok(None),
                    _ => Err(error),
                });
                return code;
            }
        };
        let mut stream = pin!(stream);
        // A statement that only reads can have effects that the commit publishes, such as `pg_notify`. The commit is
        // sent right after the statement, and has no effect if the statement fails or is cancelled.
        let commit = async {
            match read_only {
                true => Ok(()),
                false => client.batch_execute("commit").await,
            }
        };
        let mut commit = pin!(futures::future::maybe_done(commit));
        let _ = commit.as_mut().now_or_never();
        open.store(read_only, Relaxed);
        // The server notices that a statement writes only while the statement runs. A first row shows that the
        // statement has not written so far.
        let first = stream.try_next().await;
        let writes = |error: &tokio_postgres::Error| {
            error.code().is_some_and(|state| state.code() == WRITES)
        };
        if !read_only && first.as_ref().is_err_and(writes) {
            let _ = head.send(Ok(None));
            return WRITES.to_owned();
        }
        // Sending fails when nobody reads the result any more. That is no error.
        let _ = head.send(Ok(Some(columns)));
        let mut first = Some(first);
        let max = self.statement.rows_max.unwrap_or(u64::MAX);
        let (mut piece, mut bytes) = (Vec::new(), 0);
        loop {
            let next = match first.take() {
                Some(first) => first,
                None => stream.try_next().await,
            };
            let row = match next {
                Ok(Some(_)) if self.cancel.is_sent() => continue,
                Ok(Some(row)) => row,
                Ok(None) => {
                    commit.as_mut().await;
                    let committed = commit.take_output().unwrap_or(Ok(()));
                    if !piece.is_empty() {
                        let _ = pieces.send(Ok(piece)).await;
                    }
                    let Err(error) = committed else {
                        return String::new();
                    };
                    let Wrong { error, code } = self.wrong(&error);
                    let _ = pieces.send(Err(error)).await;
                    return code;
                }
                Err(error) => {
                    let Wrong { mut error, code } = self.wrong(&error);
                    if code == WRITES {
                        error = match read_only {
                            true => Error::read_only(sql),
                            false => late_write(sql),
                        };
                    }
                    if !self.cancel.is_sent() {
                        let _ = pieces.send(Ok(piece)).await;
                        let _ = pieces.send(Err(error)).await;
                    }
                    return code;
                }
            };
            let size = self.sent(&row);
            // This runs in a task of the database's runtime and not on an event loop, so rows of any size are converted
            // here.
            let read = match size <= max {
                true => read(&row, self.value_max, max),
                false => Ok(None),
            };
            let read = read.and_then(|row| {
                let row = row.filter(|row| printed(row) <= max);
                row.ok_or_else(|| Error::too_large(max, &self.statement.sql))
            });
            let size = match &read {
                Ok(row) => size.max(printed(row)),
                Err(_) => size,
            };
            match read {
                Ok(row) => piece.push(row),
                Err(error) => {
                    let _ = pieces.send(Ok(std::mem::take(&mut piece))).await;
                    let _ = pieces.send(Err(error)).await;
                    self.cancel.send();
                    continue;
                }
            }
            bytes += size;
            if piece.len() >= PIECE_ROWS || bytes >= PIECE_BYTES {
                bytes = 0;
                if pieces.send(Ok(std::mem::take(&mut piece))).await.is_err() {
                    self.cancel.send();
                }
            }
        }
    }

    /// Begins a read-only transaction and starts the statement in it, in one round trip if the statement is prepared
    /// already.
    async fn start(
        &self,
        client: &Client,
        known: Option<Known>,
        open: &AtomicBool,
    ) -> Result<(Vec<String>, RowStream), Wrong> {
        // Convert the parameters first: after `begin` is sent ahead, a statement must follow, so nothing may fail in
        // between.
        let given = match &known {
            Some(known) => Some((self.params(known).await?, columns(known)?)),
            None => None,
        };
        self.cancel.hold();
        open.store(true, Relaxed);
        let begin = async {
            let ahead = wire::ahead(&["begin read only".to_owned()]);
            let begun = client.batch_execute(&ahead).await;
            self.cancel.release();
            begun
        };
        let statement = async {
            let (known, (params, columns)) = match (known, given) {
                (Some(known), Some(given)) => (known, given),
                _ => {
                    let known = self.prepare(client).await?;
                    let given = (self.params(&known).await?, columns(&known)?);
                    (known, given)
                }
            };
            let stream = client.query_raw(&known, params).await;
            let stream = stream.map_err(|error| self.wrong(&error))?;
            Ok((columns, stream))
        };
        // `join` polls in this order, so the messages are sent in this order.
        let (begun, started) = futures::future::join(begin, statement).await;
        begun.map_err(|error| self.wrong(&error))?;
        started
    }

    async fn params(&self, known: &Known) -> Result<Vec<Param<'_>>, Error> {
        let (expected, given) = (known.params(), &self.statement.params);
        if expected.len() != given.len() {
            let sql = &self.statement.sql;
            return Err(Error::parameters(expected.len(), given.len(), sql));
        }
        let mut long = BTreeMap::new();
        for (index, (value, ty)) in given.iter().zip(expected).enumerate() {
            if let (Value::Text(text), Some(element)) = (value, values::element(ty))
                && text.len() > HEAVY_BYTES
            {
                let (text, element) = (text.clone(), element.clone());
                let literal = self.elsewhere(move || array(&text, &element)).await;
                long.insert(index, literal);
            }
        }
        params(given, expected, long)
    }

    fn wrong(&self, error: &tokio_postgres::Error) -> Wrong {
        // A statement that only changes rows cannot run anything that commits, so an error inside of it has undone all
        // of it.
        let within = !self.verdict.changes_rows_only && error::is_within(error);
        let code = match error.code() {
            Some(_) if error::is_stale(error) && within => STALE_WITHIN,
            Some(_) if error::is_stale(error) => STALE,
            Some(state) if state.code() == FORGOTTEN && within => "",
            Some(state) => state.code(),
            None => "",
        };
        let code = code.to_owned();
        let mut error = error::of_statement(self.name, error);
        // syntax_error, undefined_function (also reported for an unknown operator), ambiguous_function
        if matches!(&*code, "42601" | "42883" | "42725") && has_question_mark(&self.statement.sql) {
            error.message.push_str(
                "; the statement has a `?`, which is an operator for PostgreSQL: write parameters as `$1`, `$2` … (SQLite takes them, too)",
            );
        }
        Wrong { error, code }
    }
}

fn late_write(sql: &str) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!(
            "the statement began to write after its first rows were handed over, so it was stopped and nothing of it is kept: run it with `query`: {}",
            short(sql)
        ),
    )
}

/// Whether a statement has a `?` outside of strings and comments.
fn has_question_mark(sql: &str) -> bool {
    let operator = |token: &Token<'_>| matches!(token, Token::Operator(name) if name.contains('?'));
    tokens(sql).is_ok_and(|tokens| tokens.iter().any(operator))
}

fn columns(known: &Known) -> Result<Vec<String>, Error> {
    known
        .columns()
        .iter()
        .map(|column| {
            values::check(column.name(), column.type_())?;
            Ok(column.name().to_owned())
        })
        .collect()
}

/// Reads a row. It is an error if one value has more than `value_max` bytes. None: the row has more than `room` bytes
/// in all.
fn read(row: &PostgresRow, value_max: u64, room: u64) -> Result<Option<Row>, Error> {
    let mut values = Vec::with_capacity(row.len());
    let mut left = room;
    for (index, column) in row.columns().iter().enumerate() {
        let raw = row.try_get::<_, Option<Raw<'_>>>(index);
        let raw = raw.map_err(|error| Error::new(ErrorKind::Other, error.to_string()))?;
        let Some(Raw(raw)) = raw else {
            values.push(Value::Null);
            continue;
        };
        let what = || format!("a value of the column `{}`", column.name());
        too_long(raw.len() as u64, value_max, what)?;
        let value = match values::read(column.type_(), raw, value_max.min(left))? {
            Some(value) => value,
            None if left < value_max => return Ok(None),
            None => return Err(longer(value_max, what())),
        };
        left = left.saturating_sub(size(&value));
        values.push(value);
    }
    Ok(Some(values))
}

/// Whether the conversion of a row may take long: the row is large, or has numbers that are short as sent and long as
/// printed.
fn is_heavy(row: &PostgresRow) -> bool {
    let columns = row.columns().iter();
    row.raw_size_bytes() > HEAVY_BYTES
        || columns
            .map(|column| values::weight(column.type_()))
            .sum::<usize>()
            > 8
}

/// About how many bytes a row takes, estimated before its conversion.
fn row_bytes(row: &PostgresRow) -> u64 {
    ROW_BYTES + VALUE_BYTES * row.len() as u64 + row.raw_size_bytes() as u64
}

/// About how many bytes a row takes after its conversion.
fn printed(row: &Row) -> u64 {
    ROW_BYTES
        + row
            .iter()
            .map(|value| VALUE_BYTES + size(value))
            .sum::<u64>()
}

pub(super) fn size(value: &Value) -> u64 {
    match value {
        Value::Text(text) => text.len() as u64,
        Value::Blob(bytes) => bytes.len() as u64,
        Value::Null | Value::Integer(_) | Value::Real(_) => 0,
    }
}

fn longer(max: u64, what: String) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("{what} has more than {max} bytes as text; `value_max_bytes` is {max}"),
    )
}

pub(super) fn too_long(bytes: u64, max: u64, what: impl Fn() -> String) -> Result<(), Error> {
    match bytes <= max {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::TooLarge,
            format!("{} has {bytes} bytes; `value_max_bytes` is {max}", what()),
        )),
    }
}
