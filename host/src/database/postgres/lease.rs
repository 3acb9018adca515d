//! A connection on loan, and how a statement is run on it.
//!
//! A statement is watched by the request's deadline: when that ends, the server is asked to cancel it, and its
//! outcome is still waited for, so that the connection is known to be idle afterwards. Whatever a statement needs
//! before it (`begin`, savepoints) travels with it in one round trip.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::super::{
    Error, ErrorKind, Failed, Outcome, Row, STATEMENT_BYTES_MAX, Statement, Stream,
};
use super::guard::{Verdict, judge};
use super::order::{Cancel, Order, size, too_long};
use super::session::{CLOSING_TIMEOUT, Session};
use super::{Holds, Postgres, error};
use crate::deadline::Deadline;

/// How long a transaction statement of the host's own may take: a commit may wait for a disk, or for a replica.
const HOST_TIMEOUT: Duration = Duration::from_secs(60);
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
    /// Whether anything was run on it.
    used: bool,
    /// Whether it is unknown what the server does on it.
    broken: bool,
    holds: Option<Holds>,
}

/// Ends what [`Lease::run_reading`] has begun.
pub(in super::super) const END_OF_READING: &str = "release savepoint amphi_reading";

const QUERY_CANCELED: &str = "57014";
const STALE_PLAN: &str = "0A000";

impl Lease {
    pub(super) fn new(
        database: &Arc<Postgres>,
        session: Session,
        deadline: &Arc<Deadline>,
        read_only: bool,
        holds: Holds,
    ) -> Lease {
        Lease {
            session: Some(session),
            database: Arc::clone(database),
            deadline: Arc::clone(deadline),
            read_only,
            in_transaction: false,
            pinned: false,
            tainted: false,
            used: false,
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
        let was_used = self.used;
        let verdict = self.admit(statement).map_err(Failed::Refused)?;
        let alone = !self.in_transaction;
        let mut ran = self.run_once(before, statement, &verdict).await;
        // A table was altered since the statement was prepared: it has not run. In a transaction it is too late.
        if alone && matches!(&ran, Err((_, code)) if code == STALE_PLAN) {
            ran = self.run_once(&[], statement, &verdict).await;
        }
        let (outcome, left_nothing) = ran.map_err(|(failed, _)| failed)?;
        self.used = was_used || !left_nothing;
        Ok(outcome)
    }

    /// The same for a statement that may only read, on a connection that may write. Within a transaction that takes a
    /// savepoint, because its end is what makes the transaction one that writes again ([`END_OF_READING`]).
    pub(in super::super) async fn run_reading(
        &mut self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        let mut before = before.to_vec();
        if self.in_transaction {
            before.push("savepoint amphi_reading; set transaction read only".to_owned());
        }
        let may_write = !std::mem::replace(&mut self.read_only, true);
        let ran = self.run(&before, statement).await;
        self.read_only = !may_write;
        ran
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
        if sql.contains('\0') {
            return Err(Error::new(
                ErrorKind::Statement,
                "the statement has the NUL character (`\\0`) in it, which PostgreSQL takes in no text: leave it out, or give bytes as a parameter of the type `bytea`",
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
        self.used = true;
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
    ) -> Result<(Outcome, bool), (Failed, String)> {
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
            alone: !self.in_transaction && !self.pinned,
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
        // It was done before the server heard that it should stop. Nothing can follow: the request has ended.
        let ran = match (ran, self.deadline.ended()) {
            (Ok(_), Some(why)) if cancel.is_sent() => {
                Err((Failed::Statement(why.into()), String::new()))
            }
            (ran, _) => ran,
        };
        ran.map_err(|(mut failed, code)| {
            if let Failed::Before(error) | Failed::Statement(error) = &mut failed {
                self.broken |= error.kind == ErrorKind::Unavailable;
                if let (ErrorKind::Aborted, Some(why)) = (error.kind, self.deadline.ended()) {
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
            alone: false,
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

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let (database, holds) = (Arc::clone(&self.database), self.holds.take());
        let closes = self.broken || self.tainted || session.is_closed();
        if !closes && !self.used {
            database.free.lock().push(session);
            return;
        }
        let (runtime, in_transaction) = (database.runtime.clone(), self.in_transaction);
        // Its place is taken until the server has nothing open any more. In the background, because whoever ran the
        // statement need not wait for it: one round trip, and about as much work for the server as two small reads.
        let mut session = session;
        runtime.spawn(async move {
            if closes {
                session.close().await;
            } else if session.clean(in_transaction).await {
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
