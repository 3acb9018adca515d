//! A connection on loan, and how a statement is run on it.
//!
//! A statement is watched by the request's deadline: when that ends, the server is asked to cancel it, and its
//! outcome is still waited for, so that the connection is known to be idle afterwards. Whatever a statement needs
//! before it (`begin`, savepoints) travels with it in one round trip.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures::TryStreamExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::{CancelToken, Client, Row as PostgresRow, Statement as Known};

use super::super::{
    Error, ErrorKind, Failed, Outcome, PIECE_BYTES, PIECE_ROWS, ROW_BYTES, Row,
    STATEMENT_BYTES_MAX, Statement, Stream, Table, VALUE_BYTES, Value,
};
use super::guard::{Verdict, judge};
use super::params::params;
use super::session::{CLOSING_TIMEOUT, Prepared, Session};
use super::values::{self, Raw};
use super::{Postgres, error};
use crate::deadline::Deadline;
use crate::gate::Place;
use crate::metrics::Held;

/// How long a transaction statement of the host's own may take: a commit may wait for a disk, or for a replica.
const HOST_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a result that is too large is read and thrown away before its statement is cancelled instead.
const DISCARD_BYTES: u64 = 4 << 20;

/// A connection on loan. Dropping it ends whatever is open on it and gives it back clean (R11).
pub struct Lease {
    session: Option<Session>,
    database: Arc<Postgres>,
    deadline: Arc<Deadline>,
    read_only: bool,
    in_transaction: bool,
    pinned: bool,
    /// Whether it was ever pinned: nobody else gets it then.
    tainted: bool,
    /// Whether what was run may have left something.
    leaves: bool,
    /// Whether it is unknown what the server does on it.
    broken: bool,
    holds: Option<(Place, Held)>,
}

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

const QUERY_CANCELED: &str = "57014";
const STALE_PLAN: &str = "0A000";

impl Lease {
    pub(super) fn new(
        database: &Arc<Postgres>,
        session: Session,
        deadline: &Arc<Deadline>,
        read_only: bool,
        holds: (Place, Held),
    ) -> Lease {
        Lease {
            session: Some(session),
            database: Arc::clone(database),
            deadline: Arc::clone(deadline),
            read_only,
            in_transaction: false,
            pinned: false,
            tainted: false,
            leaves: false,
            broken: false,
            holds: Some(holds),
        }
    }

    pub(in super::super) fn set_in_transaction(&mut self, within: bool) {
        self.in_transaction = within;
    }

    pub(in super::super) fn set_pinned(&mut self, pinned: bool) {
        self.pinned = pinned;
        self.tainted = true;
    }

    pub(in super::super) fn is_usable(&self) -> bool {
        !self.broken && !self.session.as_ref().is_none_or(Session::is_closed)
    }

    /// Runs a statement that belongs to no transaction.
    pub(in super::super) async fn run_alone(
        &mut self,
        statement: &Statement,
    ) -> Result<Outcome, Error> {
        self.run(&[], statement).await.map_err(Failed::into_error)
    }

    /// Runs what has to go before the statement, and the statement.
    pub(in super::super) async fn run(
        &mut self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        let verdict = self.admit(statement).map_err(Failed::Refused)?;
        let alone = !self.in_transaction;
        let mut ran = self.run_once(before, statement, &verdict).await;
        // A table was altered since the statement was prepared: it has not run. In a transaction it is too late.
        if alone && matches!(&ran, Err((_, code)) if code == STALE_PLAN) {
            ran = self.run_once(&[], statement, &verdict).await;
        }
        ran.map_err(|(failed, _)| failed)
    }

    /// What the guard thinks of a statement, if it may run here at all.
    fn admit(&mut self, statement: &Statement) -> Result<Arc<Verdict>, Error> {
        if let Some(why) = self.deadline.ended() {
            return Err(why.into());
        }
        let Statement { sql, params, .. } = statement;
        if sql.len() > STATEMENT_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the statement has {} bytes; the most is {STATEMENT_BYTES_MAX}: give long values as parameters",
                    sql.len()
                ),
            ));
        }
        for (index, value) in params.iter().enumerate() {
            self.fits(size(value), || format!("parameter {}", index + 1))?;
        }
        let known = (self.session.as_mut()).and_then(|session| session.statements.get(sql));
        let verdict = match known {
            Some(known) => Arc::clone(&known.verdict),
            None => Arc::new(judge(sql)?),
        };
        verdict.allows(self.pinned, self.in_transaction)?;
        self.leaves |= verdict.leaves;
        Ok(verdict)
    }

    fn fits(&self, bytes: u64, what: impl Fn() -> String) -> Result<(), Error> {
        too_long(bytes, self.database.config.value_max_bytes, what)
    }

    async fn run_once(
        &mut self,
        before: &[String],
        statement: &Statement,
        verdict: &Arc<Verdict>,
    ) -> Result<Outcome, (Failed, String)> {
        let mut ahead = before.join("; ");
        let behind = (self.read_only && !self.in_transaction).then_some("commit");
        if behind.is_some() {
            if !ahead.is_empty() {
                ahead.push_str("; ");
            }
            ahead.push_str("begin read only");
        }
        let database = Arc::clone(&self.database);
        let session = self.session.as_mut().expect("it is there until the drop");
        let cancel = Cancel::new(&database, session.cancel_token());
        let order = Order {
            name: &database.config.name,
            value_max: database.config.value_max_bytes,
            cancel: &cancel,
            statement,
            verdict,
        };
        let ran = {
            let mut work = pin!(order.run(session, &ahead, behind));
            tokio::select! {
                biased;
                ran = &mut work => Ok(ran),
                why = self.deadline.wait() => {
                    cancel.send();
                    tokio::time::timeout(CLOSING_TIMEOUT, work).await.map_err(|_| why)
                }
            }
        };
        let ran = match ran {
            Ok(ran) => ran,
            Err(why) => {
                self.broken = true;
                return Err((Failed::Statement(why.into()), String::new()));
            }
        };
        let code = match &ran {
            Ok(_) => "",
            Err((_, code)) => code,
        };
        // Otherwise the server may take the cancellation for whatever is run next.
        self.broken |= cancel.is_sent() && code != QUERY_CANCELED;
        ran.map_err(|(mut failed, code)| {
            if let Failed::Before(error) | Failed::Statement(error) = &mut failed {
                self.broken |= error.kind == ErrorKind::Unavailable;
                if let (QUERY_CANCELED, Some(why)) = (&*code, self.deadline.ended()) {
                    *error = why.into();
                } else if error.kind == ErrorKind::Denied && self.read_only {
                    *error = Error::read_only(&statement.sql);
                }
            }
            (failed, code)
        })
    }

    /// Runs transaction statements of the host's own, also when the request has ended.
    pub(in super::super) async fn host(&mut self, statements: &[String]) -> Result<(), Error> {
        let session = self.session.as_ref().expect("it is there until the drop");
        let name = &self.database.config.name;
        let sql = statements.join("; ");
        let ran = tokio::time::timeout(HOST_TIMEOUT, session.client.batch_execute(&sql)).await;
        let error = match ran {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error::of_statement(name, &error),
            Err(_) => Error::new(
                ErrorKind::Unavailable,
                format!(
                    "the database `{name}` has not answered for {} s",
                    HOST_TIMEOUT.as_secs()
                ),
            ),
        };
        self.broken |= error.kind == ErrorKind::Unavailable;
        Err(error)
    }

    /// Runs a statement that belongs to no transaction and hands its result over in pieces.
    pub(super) async fn stream(mut self, statement: Statement) -> Result<Stream, Error> {
        let verdict = self.admit(&statement)?;
        let (head_sender, head) = oneshot::channel();
        let (sender, pieces) = mpsc::channel(1);
        let runtime = self.database.runtime.clone();
        runtime.spawn(self.feed(statement, verdict, head_sender, sender));
        match head.await {
            Ok(columns) => Ok(Stream {
                columns: columns?,
                pieces,
            }),
            Err(_) => Err(Error::new(
                ErrorKind::Other,
                "the task that reads the rows ended early",
            )),
        }
    }

    async fn feed(
        mut self,
        statement: Statement,
        verdict: Arc<Verdict>,
        head: oneshot::Sender<Result<Vec<String>, Error>>,
        pieces: mpsc::Sender<Result<Vec<Row>, Error>>,
    ) {
        let database = Arc::clone(&self.database);
        let session = self.session.as_mut().expect("it is there until the drop");
        let cancel = Cancel::new(&database, session.cancel_token());
        let order = Order {
            name: &database.config.name,
            value_max: database.config.value_max_bytes,
            cancel: &cancel,
            statement: &statement,
            verdict: &verdict,
        };
        // The lease's end rolls it back.
        let begin = if self.read_only {
            "begin read only"
        } else {
            ""
        };
        self.in_transaction = self.read_only;
        let code = {
            let feeding = order.feed(session, begin, self.read_only, head, &pieces);
            let mut feeding = pin!(feeding);
            let given_up = async {
                tokio::select! {
                    _ = self.deadline.wait() => {}
                    () = pieces.closed() => {}
                }
            };
            tokio::select! {
                biased;
                code = &mut feeding => Some(code),
                () = given_up => {
                    cancel.send();
                    tokio::time::timeout(CLOSING_TIMEOUT, feeding).await.ok()
                }
            }
        };
        self.broken |= match code {
            None => true,
            Some(code) => cancel.is_sent() && code != QUERY_CANCELED,
        };
    }
}

/// The way to have the server stop what it does on a connection.
struct Cancel {
    token: CancelToken,
    database: Arc<Postgres>,
    sent: AtomicBool,
}

impl Cancel {
    fn new(database: &Arc<Postgres>, token: CancelToken) -> Cancel {
        Cancel {
            token,
            database: Arc::clone(database),
            sent: AtomicBool::new(false),
        }
    }

    fn is_sent(&self) -> bool {
        self.sent.load(Relaxed)
    }

    /// Asks, once. The answer is that the statement ends.
    fn send(&self) {
        if self.sent.swap(true, Relaxed) {
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
struct Order<'a> {
    name: &'a str,
    value_max: u64,
    cancel: &'a Cancel,
    statement: &'a Statement,
    verdict: &'a Arc<Verdict>,
}

impl Order<'_> {
    async fn run(
        &self,
        session: &mut Session,
        ahead: &str,
        behind: Option<&str>,
    ) -> Result<Outcome, (Failed, String)> {
        let sql = &self.statement.sql;
        let mut known = session.statements.get(sql).map(|p| p.statement.clone());
        let client = &session.client;
        // What goes behind must not be sent before the statement itself is.
        if known.is_none() && behind.is_some() {
            known = Some(
                self.prepare(client)
                    .await
                    .map_err(|wrong| (Failed::Statement(wrong.error), wrong.code))?,
            );
        }
        let before = async {
            match ahead {
                "" => Ok(()),
                ahead => client.batch_execute(ahead).await,
            }
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
        let (before, ran, after) = futures::future::join3(before, statement, after).await;
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
                };
                match self.verdict.forgets {
                    true => session.statements.clear(),
                    false => drop(session.statements.insert(sql.clone(), prepared)),
                }
                Ok(outcome)
            }
            Err(wrong) => {
                session.statements.remove(sql);
                Err((Failed::Statement(wrong.error), wrong.code))
            }
        }
    }

    async fn prepare(&self, client: &Client) -> Result<Known, Wrong> {
        let prepared = client.prepare(&self.statement.sql).await;
        prepared.map_err(|error| self.wrong(&error))
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
                    bytes += row_bytes(&row);
                    match (bytes <= max).then(|| self.read(&row)) {
                        Some(Ok(row)) => rows.push(row),
                        Some(Err(error)) => over = Some(error),
                        None => over = Some(Error::too_large(max, &self.statement.sql)),
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
    async fn feed(
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

    fn params<'v>(&'v self, known: &Known) -> Result<Vec<super::params::Param<'v>>, Error> {
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
                    too_long(raw.len() as u64, self.value_max, || {
                        format!("a value of the column `{}`", column.name())
                    })?;
                    values::read(column.type_(), raw)
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

fn size(value: &Value) -> u64 {
    match value {
        Value::Text(text) => text.len() as u64,
        Value::Blob(bytes) => bytes.len() as u64,
        Value::Null | Value::Integer(_) | Value::Real(_) => 0,
    }
}

fn too_long(bytes: u64, max: u64, what: impl Fn() -> String) -> Result<(), Error> {
    match bytes <= max {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::TooLarge,
            format!("{} has {bytes} bytes; `value_max_bytes` is {max}", what()),
        )),
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let (database, holds) = (Arc::clone(&self.database), self.holds.take());
        let closes = self.broken || self.tainted || session.is_closed();
        if !closes && !self.in_transaction && !self.leaves {
            database.free.lock().push(session);
            return;
        }
        let runtime = database.runtime.clone();
        // Its place is taken until the server has nothing open any more.
        runtime.spawn(async move {
            if closes {
                session.close().await;
            } else if session.clean().await {
                database.free.lock().push(session);
            } else {
                let database = &database.config.name;
                tracing::warn!(database, "a connection could not be cleaned and is closed");
                session.close().await;
            }
            drop(holds);
        });
    }
}
