//! One statement on its way to the server: what goes ahead of it, its rows, and how it is stopped.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures::TryStreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{CancelToken, Client, Row as PostgresRow, Statement as Known};

use super::super::{
    Error, ErrorKind, Failed, Outcome, PIECE_BYTES, PIECE_ROWS, ROW_BYTES, Row, Statement, Table,
    VALUE_BYTES, Value,
};
use super::guard::Verdict;
use super::params::{Param, params};
use super::plain::{Check, Checked};
use super::session::{CLOSING_TIMEOUT, Prepared, Session};
use super::values::{self, Raw};
use super::{Postgres, error};

/// How much of a result that is too large is read and thrown away before its statement is cancelled instead.
const DISCARD_BYTES: u64 = 4 << 20;

/// What went wrong with a statement, and the server's code for it if it was the server.
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

/// The way to have the server stop what it does on a connection.
///
/// It stops whatever runs there when it hears of it. If that were the `begin` ahead of a statement, the statement
/// would be committed by itself: so nothing is asked before the server has answered what goes ahead.
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

    /// Keeps what is to be sent until [`Cancel::release`].
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

    /// Asks, once. The answer is that the statement ends.
    pub(super) fn send(&self) {
        self.wanted.store(true, Relaxed);
        if self.held.load(Relaxed) || self.sent.swap(true, Relaxed) {
            return;
        }
        let (token, database) = (self.token.clone(), Arc::clone(&self.database));
        self.database.runtime.spawn(async move {
            let asked = token.cancel_query(database.tls.clone());
            match tokio::time::timeout(CLOSING_TIMEOUT, asked).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a statement could not be cancelled"),
                Err(_) => tracing::debug!("a statement could not be cancelled in time"),
            }
        });
    }
}

/// One statement on its way.
pub(super) struct Order<'a> {
    pub(super) name: &'a str,
    pub(super) value_max: u64,
    pub(super) cancel: &'a Cancel,
    pub(super) statement: &'a Statement,
    pub(super) verdict: &'a Arc<Verdict>,
    /// What the server is asked ahead of it.
    pub(super) check: Option<&'a Check>,
}

impl Order<'_> {
    /// Runs it; the outcome, and what the server has said when it was asked.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        ahead: &str,
        behind: Option<&str>,
    ) -> Result<(Outcome, Option<Checked>), (Failed, String)> {
        let sql = &self.statement.sql;
        let mut known = session.statements.get(sql).map(|p| p.statement.clone());
        let (client, first) = (&session.client, known.is_none());
        // What goes behind must not be sent before the statement itself is.
        if known.is_none() && behind.is_some() {
            known = Some(
                self.prepare(client)
                    .await
                    .map_err(|wrong| (Failed::Statement(wrong.error), wrong.code))?,
            );
        }
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
                "" => Ok(()),
                ahead => client.batch_execute(ahead).await,
            }
        };
        let before = async {
            let before = futures::future::join(check, begin).await;
            self.cancel.release();
            before
        };
        let statement = async {
            let known = match known {
                Some(known) => known,
                None => self.prepare(client).await?,
            };
            let outcome = self.outcome(client, &known).await?;
            Ok::<_, Wrong>((known, outcome))
        };
        let after = async {
            match behind {
                None => Ok(()),
                Some(behind) => client.batch_execute(behind).await,
            }
        };
        // Polled in this order, so sent in this order, without waiting for each other's answers.
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
        let prepared = client.prepare(&self.statement.sql).await;
        let prepared = prepared.map_err(|error| self.wrong(&error))?;
        // The cancellation came too late for this; it must not come too early for what would be next.
        if self.cancel.is_wanted() {
            let stopped = "the statement was stopped before it ran";
            return Err(Error::new(ErrorKind::Aborted, stopped).into());
        }
        Ok(prepared)
    }

    async fn outcome(&self, client: &Client, known: &Known) -> Result<Outcome, Wrong> {
        let params = self.params(known)?;
        let Some(max) = self.statement.rows_max else {
            let changed = client.execute_raw(known, params).await;
            let changed = changed.map_err(|error| self.wrong(&error))?;
            return Ok(Outcome {
                table: Table {
                    columns: Vec::new(),
                    rows: Vec::new(),
                },
                changed: if self.verdict.reads { 0 } else { changed },
            });
        };
        let columns = columns(known)?;
        let stream = client.query_raw(known, params).await;
        let mut stream = pin!(stream.map_err(|error| self.wrong(&error))?);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mut over: Option<Error> = None;
        loop {
            match (stream.try_next().await, over.is_some()) {
                (Ok(None), false) => break,
                (Ok(None), true) => {}
                (Ok(Some(row)), true) => {
                    bytes += row.raw_size_bytes() as u64;
                    if bytes > max + DISCARD_BYTES {
                        self.cancel.send();
                    }
                    continue;
                }
                (Ok(Some(row)), false) => {
                    let sent = row_bytes(&row);
                    bytes += sent;
                    match (bytes <= max).then(|| self.read(&row)) {
                        Some(Ok(row)) => {
                            bytes += printed(&row).saturating_sub(sent);
                            rows.push(row);
                        }
                        Some(Err(error)) => over = Some(error),
                        None => {}
                    }
                    if bytes > max && over.is_none() {
                        over = Some(Error::too_large(max, &self.statement.sql));
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
            changed: if self.verdict.reads { 0 } else { changed },
        })
    }

    /// Hands a result over in pieces; returns the server's code if it failed.
    pub(super) async fn feed(
        &self,
        session: &mut Session,
        begin: &str,
        begins: bool,
        head: oneshot::Sender<Result<Vec<String>, Error>>,
        pieces: &mpsc::Sender<Result<Vec<Row>, Error>>,
    ) -> String {
        let client = &session.client;
        let started = async {
            if begins {
                let begun = client.batch_execute(begin).await;
                begun.map_err(|error| self.wrong(&error))?;
            }
            let sql = &self.statement.sql;
            let known = match session.statements.peek(sql) {
                Some(prepared) => prepared.statement.clone(),
                None => self.prepare(client).await?,
            };
            let params = self.params(&known)?;
            let columns = columns(&known)?;
            let stream = client.query_raw(&known, params).await;
            let stream = stream.map_err(|error| self.wrong(&error))?;
            Ok::<_, Wrong>((columns, stream))
        };
        let stream = match started.await {
            Ok((columns, stream)) => {
                // Nobody reads on when the receiver is gone.
                let _ = head.send(Ok(columns));
                stream
            }
            Err(Wrong { mut error, code }) => {
                if error.kind == ErrorKind::Denied && begins {
                    error = Error::read_only(&self.statement.sql);
                }
                let _ = head.send(Err(error));
                return code;
            }
        };
        let mut stream = pin!(stream);
        let max = self.statement.rows_max.unwrap_or(u64::MAX);
        let (mut piece, mut bytes) = (Vec::new(), 0);
        loop {
            let row = match stream.try_next().await {
                Ok(Some(_)) if self.cancel.is_sent() => continue,
                Ok(Some(row)) => row,
                Ok(None) => {
                    if !piece.is_empty() {
                        let _ = pieces.send(Ok(piece)).await;
                    }
                    return String::new();
                }
                Err(error) => {
                    let Wrong { error, code } = self.wrong(&error);
                    if !self.cancel.is_sent() {
                        let _ = pieces.send(Ok(piece)).await;
                        let _ = pieces.send(Err(error)).await;
                    }
                    return code;
                }
            };
            let size = row_bytes(&row);
            let read = match size <= max {
                true => self.read(&row),
                false => Err(Error::too_large(max, &self.statement.sql)),
            };
            let read = match read {
                Ok(row) if printed(&row) > max => Err(Error::too_large(max, &self.statement.sql)),
                read => read,
            };
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

    fn params<'v>(&'v self, known: &Known) -> Result<Vec<Param<'v>>, Error> {
        let (expected, given) = (known.params(), &self.statement.params);
        if expected.len() != given.len() {
            let sql = &self.statement.sql;
            return Err(Error::parameters(expected.len(), given.len(), sql));
        }
        params(given, expected)
    }

    fn read(&self, row: &PostgresRow) -> Result<Row, Error> {
        let read = |(index, column): (usize, &tokio_postgres::Column)| {
            let raw = row.try_get::<_, Option<Raw<'_>>>(index);
            match raw.map_err(|error| Error::new(ErrorKind::Other, error.to_string()))? {
                None => Ok(Value::Null),
                Some(Raw(raw)) => {
                    let what = || format!("a value of the column `{}`", column.name());
                    too_long(raw.len() as u64, self.value_max, what)?;
                    let value = values::read(column.type_(), raw, self.value_max)?;
                    value.ok_or_else(|| longer(self.value_max, what()))
                }
            }
        };
        row.columns().iter().enumerate().map(read).collect()
    }

    fn wrong(&self, error: &tokio_postgres::Error) -> Wrong {
        let code = error.code().map(|state| state.code().to_owned());
        Wrong {
            error: error::of_statement(self.name, error),
            code: code.unwrap_or_default(),
        }
    }
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

/// About how many bytes a row takes, before it is read.
fn row_bytes(row: &PostgresRow) -> u64 {
    ROW_BYTES + VALUE_BYTES * row.len() as u64 + row.raw_size_bytes() as u64
}

/// About how many bytes a row takes as it was read.
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
