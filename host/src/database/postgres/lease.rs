//! A leased connection, and how a statement runs on it.
//!
//! A statement may run until the request's deadline ends. Then the server is asked to cancel the statement, and the
//! host still waits for the outcome, so that the connection is known to be idle afterwards. Statements of the host that
//! must go before a statement (`begin`, savepoints) are sent together with it, in one round trip.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_postgres::SimpleQueryMessage;

use super::super::error::{Error, ErrorKind};
use super::super::face::unwound;
use super::super::statement::{Failed, Outcome, Row, STATEMENT_BYTES_MAX, Statement, Stream};
use super::execute::{
    Cancel, Execution, FORGOTTEN, HEAVY_BYTES, Head, STALE, STALE_WITHIN, size, too_long,
};
use super::guard::{Verdict, judge};
use super::plain::{Check, Checked, Watch};
use super::session::{CLOSING_TIMEOUT, Session};
use super::{Holds, Postgres, error};
use crate::threads::deadline::Deadline;

/// The time limit of the host's own transaction statements: a commit may wait for a disk or for a replica. When this
/// time is over, the connection is closed.
const HOST_TIMEOUT: Duration = Duration::from_secs(60);
/// How many transactions are looked at to find one that was committed since a snapshot.
const BEGUN_MAX: usize = 1_000;
/// A leased connection. Dropping the lease rolls back what is open on the connection, and gives the connection back
/// clean (R11).
pub struct Lease {
    session: Option<Session>,
    database: Arc<Postgres>,
    deadline: Arc<Deadline>,
    read_only: bool,
    in_transaction: bool,
    pinned: bool,
    /// Whether the connection was ever pinned, or may not be used again for another reason. Then it is closed after the
    /// lease.
    tainted: bool,
    /// Whether a statement has run that may have left something in the session. Then the session must be cleaned.
    used: bool,
    /// Whether it is unknown what the server does on the connection.
    broken: bool,
    /// Set from the first statement that may change definitions until the connection is clean.
    changing: Option<Changing>,
    holds: Option<Holds>,
}

/// The statement that ends the savepoint of [`Lease::run_reading`].
pub(in super::super) const END_OF_READING: &str = "release savepoint amphi_reading";

const QUERY_CANCELED: &str = "57014";

/// What is known, before a statement is sent, about what the statement will leave in the session.
enum Read {
    /// It leaves nothing, unless definitions change meanwhile.
    Plain(Watch),
    /// It may leave nothing or something. The server is asked in the round trip that sends the statement.
    Unknown(Watch, Check),
    /// It may leave something.
    Other,
}

/// Registers a connection as one that may change definitions, until this value is dropped (see `plain`).
struct Changing {
    database: Arc<Postgres>,
    /// Whether the server is asked first whether the statement is a plain read.
    asks: bool,
    changed: bool,
}

impl Changing {
    fn begin(database: &Arc<Postgres>, asks: bool) -> Changing {
        database.definitions.begin(asks);
        Changing {
            database: Arc::clone(database),
            asks,
            changed: true,
        }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.database.definitions.end(self.asks, self.changed);
    }
}

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
            changing: None,
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

    /// Runs a statement outside of any transaction.
    pub(in super::super) async fn run_alone(
        &mut self,
        statement: &Statement,
    ) -> Result<Outcome, Error> {
        self.run(&[], statement).await.map_err(Failed::into_error)
    }

    /// Runs the statements of the host in `before`, then the statement.
    pub(in super::super) async fn run(
        &mut self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        let was_used = self.used;
        let verdict = self.admit(statement).await.map_err(Failed::Refused)?;
        let read = self.plain_read(was_used, statement, &verdict);
        let mut ran = self.run_once(before, statement, &verdict, &read).await;
        // Definitions have changed since the statement was prepared, or the prepared statement is gone. The statement
        // has not run, or all that it did is undone, so it runs again, prepared anew. The statement does not run again
        // if it may have committed, or if its transaction began with an earlier statement: that transaction has failed
        // and cannot go on.
        let begins = before.first().is_some_and(|sql| sql.starts_with("begin"));
        if let Err((_, code @ (STALE | STALE_WITHIN | FORGOTTEN))) =
            ran.as_ref().map_err(|(f, c)| (f, &**c))
        {
            let is_stale = code != FORGOTTEN;
            let may_have_committed = code == STALE_WITHIN;
            match is_stale {
                true => self.database.forget_plans(),
                false => self.forget_statements(),
            }
            if let Some(session) = self.session.as_mut().filter(|_| is_stale) {
                session.refresh(&self.database);
            }
            let again = match (self.in_transaction, begins) {
                (true, true) => self.host(&["rollback".to_owned()]).await.is_ok(),
                (within, _) => !within && !may_have_committed,
            };
            if again {
                ran = self
                    .run_once(before, statement, &verdict, &Read::Other)
                    .await;
            } else if let Err((Failed::Statement(error), _)) = &mut ran
                && is_stale
                && self.in_transaction
            {
                // The view may run its whole transaction again, with statements that are prepared anew.
                error.kind = ErrorKind::Conflict;
                error.message = format!(
                    "definitions that the statement uses were changed after it was prepared, and the transaction has begun already, so that all of it has to be tried again (`retries` where the view is declared does so): {}",
                    error.message
                );
            }
        }
        let (outcome, checked) = ran.map_err(|(failed, _)| failed)?;
        let left_nothing = self.left_nothing(&read, checked, &statement.sql);
        self.used = was_used || !left_nothing;
        Ok(outcome)
    }

    /// Does what [`Lease::run`] does, for a statement that must only read, on a connection that may write. Within a
    /// transaction, the statement runs inside of a savepoint: `set transaction read only` holds until the savepoint is
    /// released ([`END_OF_READING`]).
    pub(in super::super) async fn run_reading(
        &mut self,
        before: &[String],
        statement: &Statement,
    ) -> Result<Outcome, Failed> {
        let mut before = before.to_vec();
        if self.in_transaction {
            before.extend(
                ["savepoint amphi_reading", "set transaction read only"].map(str::to_owned),
            );
        }
        let may_write = !std::mem::replace(&mut self.read_only, true);
        let ran = self.run(&before, statement).await;
        self.read_only = !may_write;
        ran
    }

    /// What is known of a statement before it is sent. `was_used`: something has run on the connection already. A
    /// statement that may change definitions is registered here, before it is sent.
    fn plain_read(&mut self, was_used: bool, statement: &Statement, verdict: &Verdict) -> Read {
        let definitions = &self.database.definitions;
        let session = self.session.as_ref().expect("it is there until the drop");
        let alone = !was_used && !self.in_transaction && !self.pinned && session.can_check();
        let known = (session.statements.peek(&statement.sql)).filter(|_| alone);
        let watch = definitions.watch(self.changing.is_some());
        let read = match known.and_then(|known| Some((known.plain, known.check()?))) {
            Some((Some(plain), _)) if plain.holds(&watch) => return Read::Plain(watch),
            Some((_, check)) => Some(check),
            None => None,
        };
        if !verdict.changes_rows_only || definitions.may_call() {
            self.changing
                .get_or_insert_with(|| Changing::begin(&self.database, read.is_some()));
        }
        match read {
            Some(check) => Read::Unknown(definitions.watch(self.changing.is_some()), check),
            None => Read::Other,
        }
    }

    /// Whether a statement that has run is known to have left nothing in the session.
    fn left_nothing(&mut self, read: &Read, checked: Option<Checked>, sql: &String) -> bool {
        let definitions = &self.database.definitions;
        let own = self.changing.is_some();
        match (read, checked) {
            (Read::Plain(watch), _) => definitions.is_unchanged(watch, own),
            (Read::Unknown(watch, _), Some(checked)) => {
                let (plain, unchanged) = (
                    definitions.learn(watch, checked),
                    definitions.is_unchanged(watch, own),
                );
                if plain.is_some()
                    && let Some(mut changing) = self.changing.take()
                {
                    changing.changed = false;
                }
                let session = self.session.as_mut().expect("it is there until the drop");
                if let Some(known) = session.statements.get_mut(sql) {
                    known.plain = plain;
                }
                plain.is_some() && unchanged
            }
            _ => false,
        }
    }

    /// Forgets all prepared statements of this connection. The server may have lost the statements with which
    /// tokio-postgres looks up types, too, so the connection is closed after the lease.
    fn forget_statements(&mut self) {
        self.tainted = true;
        if let Some(session) = &mut self.session {
            session.statements.clear();
        }
    }

    /// The guard's verdict on a statement, if the statement may run here.
    async fn admit(&mut self, statement: &Statement) -> Result<Arc<Verdict>, Error> {
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
            None if sql.len() > HEAVY_BYTES => {
                let (runtime, sql) = (&self.database.runtime, sql.clone());
                let judged = runtime.spawn_blocking(move || judge(&sql)).await;
                Arc::new(unwound(judged)?)
            }
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
        read: &Read,
    ) -> Result<(Outcome, Option<Checked>), (Failed, String)> {
        let mut ahead = before.to_vec();
        let behind = (self.read_only && !self.in_transaction).then_some("commit");
        if behind.is_some() {
            ahead.push("begin read only".to_owned());
        }
        let database = Arc::clone(&self.database);
        let session = self.session.as_mut().expect("it is there until the drop");
        let cancel = Cancel::new(&database, session.cancel_token());
        let order = Execution {
            name: &database.config.name,
            value_max: database.config.value_max_bytes,
            limits: session.limits.clone(),
            cancel: &cancel,
            statement,
            verdict,
            check: match read {
                Read::Unknown(_, check) => Some(check),
                Read::Plain(_) | Read::Other => None,
            },
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
        // If the cancellation did not end the statement, the server may apply the cancellation to whatever runs next,
        // so nothing more may run. The code `QUERY_CANCELED` does not prove that this cancellation ended the statement,
        // so the connection is closed after the lease in any case.
        self.broken |= cancel.is_sent() && code != QUERY_CANCELED;
        self.tainted |= cancel.is_sent();
        // If the statement ended before the cancellation arrived, its outcome is an error all the same, because the
        // request has ended.
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

    /// Runs transaction statements of the host, also after the request has ended.
    pub(in super::super) async fn host(&mut self, statements: &[String]) -> Result<(), Error> {
        let session = self.session.as_ref().expect("it is there until the drop");
        let name = &self.database.config.name;
        let sql = statements.join("; ");
        let ran = tokio::time::timeout(HOST_TIMEOUT, session.client.batch_execute(&sql)).await;
        let error = match ran {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error::of_statement(name, &error),
            Err(_) => unanswered(name),
        };
        self.broken |= error.kind == ErrorKind::Unavailable;
        Err(error)
    }

    /// The state of the database that statements see now, as PostgreSQL writes it.
    pub(in super::super) async fn snapshot(&mut self) -> Result<String, Error> {
        let snapshot = self
            .asked("select pg_catalog.txid_current_snapshot()")
            .await?;
        snapshot.ok_or_else(|| Error::new(ErrorKind::Other, "the server names no snapshot"))
    }

    /// Whether another transaction was committed since this snapshot. `snapshot`: the server's own text. The transactions
    /// that can have been committed since are those that ran then, and those that have begun since. So many of the
    /// latter that nobody would look for one count as a change.
    pub(in super::super) async fn changed_since(&mut self, snapshot: &str) -> Result<bool, Error> {
        let is_plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b',');
        if !snapshot.bytes().all(is_plain) {
            return Ok(true);
        }
        let sql = format!(
            "with seen (s) as (select '{snapshot}'::pg_catalog.txid_snapshot), \
             now (s) as (select pg_catalog.txid_current_snapshot()), \
             bounds (a, b) as (select pg_catalog.txid_snapshot_xmax(seen.s), \
             pg_catalog.txid_snapshot_xmax(now.s) from seen, now), \
             later (x) as (select pg_catalog.txid_snapshot_xip(seen.s) from seen union all \
             select pg_catalog.generate_series(a, least(b - 1, a + {BEGUN_MAX})) from bounds) \
             select b - a > {BEGUN_MAX} or exists (select from later, now \
             where pg_catalog.txid_visible_in_snapshot(x, now.s) \
             and pg_catalog.txid_status(x) = 'committed') from bounds"
        );
        let changed = self.asked(&sql).await?;
        Ok(changed.as_deref() != Some("f"))
    }

    /// The one value that the server answers to a question of the host.
    async fn asked(&mut self, sql: &str) -> Result<Option<String>, Error> {
        let session = self.session.as_ref().expect("it is there until the drop");
        let name = &self.database.config.name;
        let asked = tokio::time::timeout(HOST_TIMEOUT, session.client.simple_query(sql)).await;
        let messages = asked.map_err(|_| unanswered(name))?;
        let messages = messages.map_err(|error| error::of_statement(name, &error))?;
        let value = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(value)
    }

    /// Gives the connection with its open transaction to another borrower.
    pub(in super::super) fn hand_on(&mut self, deadline: &Arc<Deadline>) -> Result<(), Error> {
        if self.tainted || !self.in_transaction || !self.is_usable() {
            return Err(Error::new(
                ErrorKind::Other,
                "the transaction has ended already",
            ));
        }
        self.deadline = Arc::clone(deadline);
        Ok(())
    }

    /// Runs a statement outside of any transaction of the request, and sends its result in pieces. None: the statement
    /// writes, and has changed nothing.
    ///
    /// The statement runs in a read-only transaction, so that functions that it calls cannot write either.
    pub(super) async fn stream(
        mut self,
        statement: Arc<Statement>,
    ) -> Result<Option<Stream>, Error> {
        let was_used = self.used;
        let verdict = self.admit(&statement).await?;
        if !verdict.reads && !self.read_only {
            self.used = was_used;
            return Ok(None);
        }
        self.plain_read(true, &statement, &verdict);
        let (head_sender, head) = oneshot::channel();
        let (sender, pieces) = mpsc::channel(1);
        let runtime = self.database.runtime.clone();
        runtime.spawn(self.feed(statement, verdict, head_sender, sender));
        match head.await {
            Ok(head) => Ok(head?.map(|columns| Stream { columns, pieces })),
            Err(_) => Err(Error::new(
                ErrorKind::Other,
                "the task that reads the rows ended early",
            )),
        }
    }

    async fn feed(
        mut self,
        statement: Arc<Statement>,
        verdict: Arc<Verdict>,
        head: oneshot::Sender<Head>,
        pieces: mpsc::Sender<Result<Vec<Row>, Error>>,
    ) {
        let database = Arc::clone(&self.database);
        let session = self.session.as_mut().expect("it is there until the drop");
        let cancel = Cancel::new(&database, session.cancel_token());
        let order = Execution {
            name: &database.config.name,
            value_max: database.config.value_max_bytes,
            limits: session.limits.clone(),
            cancel: &cancel,
            statement: &statement,
            verdict: &verdict,
            check: None,
        };
        let open = AtomicBool::new(false);
        let code = {
            let feeding = order.feed(session, (self.read_only, &open), head, &pieces);
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
        self.in_transaction = open.into_inner();
        self.broken |= code.is_none() || cancel.is_sent();
    }
}

fn unanswered(name: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "the database `{name}` has not answered for {} s",
            HOST_TIMEOUT.as_secs()
        ),
    )
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        let (database, holds) = (Arc::clone(&self.database), self.holds.take());
        let changing = self.changing.take();
        let closes = self.broken || self.tainted || session.is_closed();
        if !closes && !self.used {
            database.free.lock().push(session);
            return;
        }
        let (runtime, in_transaction) = (database.runtime.clone(), self.in_transaction);
        // The connection is cleaned or closed in the background, because nobody needs to wait for that. Then its
        // permits are given back. Cleaning costs one round trip, and the server about as much work as two small reads.
        let mut session = session;
        runtime.spawn(async move {
            if closes {
                database.close(session).await;
            } else if session.clean(in_transaction).await {
                database.free.lock().push(session);
            } else {
                let name = &database.config.name;
                tracing::warn!(
                    database = name,
                    "a connection could not be cleaned and is closed"
                );
                database.close(session).await;
            }
            drop((changing, holds));
        });
    }
}
