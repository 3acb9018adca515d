//! The service behind both faces of `database`: it sends statements to the transaction or to a connection of their own,
//! and defines the resources that a guest holds (results, transactions, pins).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::budget::Room;
use crate::database::{
    Database, Error, ErrorKind, Face, Outcome, Row, Statement, Stream, Streamed, Table, Value,
};
use crate::scope::conversation::Works;
use crate::scope::transaction::{Level, Member, Pin, StreamPermit};
use crate::scope::{CallBytes, Scope};
use crate::telemetry::metrics::METRICS;
use crate::threads::deadline::Deadline;
use crate::threads::workers::Exclusion;

/// What a call on a database needs, with the sync or the async face.
pub struct Session {
    pub(super) scope: Arc<Scope>,
    pub(super) member: Arc<Member>,
    pub(super) database: Database,
    pub(super) face: Face,
}

impl Session {
    pub(super) async fn query(&self, sql: String, params: Vec<Value>) -> Result<Table, Error> {
        let outcome = self.run(self.statement(sql, params)).await?;
        Ok(outcome.table)
    }

    pub(super) async fn execute(&self, sql: String, params: Vec<Value>) -> Result<u64, Error> {
        let statement = Statement {
            sql,
            params,
            rows_max: None,
        };
        Ok(self.run(statement).await?.changed)
    }

    /// Opens a result that is read in pieces. Outside a transaction, the result has a connection of its own, which
    /// sends the rows piece by piece. Inside a transaction, the connection must stay free for other statements, so the
    /// host reads the whole result before it returns. The host does the same when as many results as allowed have a
    /// connection already, because the requests that read these results may need further connections (R4).
    pub(super) async fn open(&self, sql: String, params: Vec<Value>) -> Result<Rows, Error> {
        let statement = self.statement(sql, params);
        let _held = self.hold_call(&statement)?;
        let _works = self.scope.works(false);
        let recording = (self.scope.journal).begin(&self.database.config().name, &statement.sql);
        let opened = self.opened(statement).await;
        recording.end(opened.as_ref().map(|_| 0));
        opened
    }

    async fn opened(&self, statement: Statement) -> Result<Rows, Error> {
        let Session {
            scope,
            member,
            database,
            face,
        } = self;
        if let Some(turn) = member.turn(self.on(), self.reserve_worker()).await? {
            return self.hold(turn.run(*face, statement).await?.table);
        }
        self.reserve_worker().await?;
        let Some(permit) = member.keep_stream(database) else {
            METRICS.results_at_once.inc();
            return self.hold(self.outside(statement).await?.table);
        };
        let held = HeldRows {
            scope: Arc::clone(scope),
            bytes: 0,
            _stream: Some(permit),
            _works: scope.works(false),
            room: Room::empty(&scope.origin.account),
        };
        let access = member.access(database);
        member.runs_outside();
        let stream = database.stream(*face, &scope.deadline, access, statement);
        let stream = stream.await;
        member.note_outside(stream.as_ref().map(|_| ()));
        match stream? {
            Streamed::Pieces(stream) => Ok(Rows::streamed(stream, held)),
            Streamed::Whole(table) => {
                drop(held);
                self.hold(table)
            }
        }
    }

    /// Runs a statement to its end: in the function's transaction if there is one, else on a connection of its own.
    async fn run(&self, statement: Statement) -> Result<Outcome, Error> {
        let scope = &self.scope;
        let _held = self.hold_call(&statement)?;
        let _works = scope.works(false);
        let recording = (scope.journal).begin(&self.database.config().name, &statement.sql);
        let turn = self.member.turn(self.on(), self.reserve_worker()).await;
        let ran = match turn {
            Ok(Some(turn)) => turn.run(self.face, statement).await,
            Ok(None) => self.outside(statement).await,
            Err(error) => Err(error),
        };
        recording.end(match &ran {
            Ok(outcome) if outcome.table.rows.is_empty() => Ok(outcome.changed),
            Ok(outcome) => Ok(outcome.table.rows.len() as u64),
            Err(error) => Err(error),
        });
        ran
    }

    /// Counts the bytes of a statement, which the host keeps until the statement has ended. All calls of the request
    /// that are in flight share one limit.
    fn hold_call(&self, statement: &Statement) -> Result<CallBytes, Error> {
        let values = statement.params.iter().map(value_bytes).sum::<u64>();
        let held = (self.scope).hold_call(statement.sql.len() as u64 + values);
        held.map_err(|sentence| Error::new(ErrorKind::TooLarge, sentence))
    }

    async fn outside(&self, statement: Statement) -> Result<Outcome, Error> {
        let Session {
            scope,
            member,
            database,
            face,
        } = self;
        let access = member.access(database);
        member.runs_outside();
        let ran = database.run(*face, &scope.deadline, access, statement);
        let ran = ran.await;
        member.note_outside(ran.as_ref().map(|_| ()));
        ran
    }

    fn statement(&self, sql: String, params: Vec<Value>) -> Statement {
        Statement {
            sql,
            params,
            rows_max: Some(self.max_bytes()),
        }
    }

    fn on(&self) -> (&Database, &Arc<Deadline>) {
        (&self.database, &self.scope.deadline)
    }

    /// Counts the bytes of a result that the host has read as a whole, until the guest has read all of it.
    fn hold(&self, table: Table) -> Result<Rows, Error> {
        let bytes = size(&table);
        if !self.scope.results.hold(bytes, self.max_bytes()) {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the results that this request has open would have more than {} bytes (`rows_max_bytes`): read or drop the others first",
                    self.max_bytes()
                ),
            ));
        }
        let mut held = HeldRows {
            scope: Arc::clone(&self.scope),
            bytes,
            _stream: None,
            _works: None,
            room: Room::empty(&self.scope.origin.account),
        };
        let drawn = held.room.grow_to(bytes);
        drawn.map_err(|why| Error::new(ErrorKind::TooLarge, why.to_string()))?;
        Ok(Rows::read(table, held))
    }

    fn max_bytes(&self) -> u64 {
        self.scope.limits.rows_max_bytes
    }

    pub(super) async fn begin(&self) -> Result<TransactionHandle, Error> {
        let works = self.scope.works(true);
        let (level, worker) = self.member.begin(self.on(), self.own_worker()).await?;
        Ok(TransactionHandle {
            level: Some(level),
            member: Arc::clone(&self.member),
            _worker: worker,
            _works: works,
        })
    }

    /// Keeps the scope's worker for this function and for the functions that it calls, and excludes all others. This
    /// function is about to hold a transaction or a pin, and the others may come to wait for that (R3). The exclusion
    /// comes first, because a function that holds a connection must never wait for a worker (R4).
    async fn own_worker(&self) -> Result<OwnWorker, Error> {
        let Session { scope, member, .. } = self;
        let exclusion = scope.worker.exclude(&scope.deadline, &member.from()).await;
        let exclusion = exclusion.map_err(Error::from);
        if let Err(error) = &exclusion {
            member.note_outside(Err(error));
        }
        let exclusion = exclusion?;
        member.called_from(exclusion.as_ref().map(|exclusion| exclusion.id));
        Ok(OwnWorker {
            exclusion,
            member: Arc::clone(member),
        })
    }

    /// For an async function that is about to hold a connection: leases the scope's worker first, since later functions
    /// may need one. A function that holds a connection must never wait for a worker (R4).
    async fn reserve_worker(&self) -> Result<(), Error> {
        match self.face {
            Face::Sync => Ok(()),
            Face::Async => {
                let reserved = self.scope.worker.reserve(&self.scope.deadline).await;
                let reserved = reserved.map_err(Error::from);
                if let Err(error) = &reserved {
                    self.member.note_outside(Err(error));
                }
                reserved
            }
        }
    }

    pub(super) async fn pin(&self) -> Result<Pinned, Error> {
        let works = self.scope.works(true);
        let (pin, worker) = self.member.pin(self.on(), self.own_worker()).await?;
        Ok(Pinned {
            pin: Some(pin),
            member: Arc::clone(&self.member),
            _worker: worker,
            _works: works,
        })
    }
}

/// A result that the guest reads piece by piece.
pub struct Rows {
    pub(super) columns: Vec<String>,
    pub(super) rows: Arc<tokio::sync::Mutex<Pending>>,
}

pub(super) struct Pending {
    ready: VecDeque<Row>,
    more: Option<mpsc::Receiver<Result<Vec<Row>, Error>>>,
    /// The result's bytes and its connection's permit, given back when everything is read.
    held: Option<HeldRows>,
}

impl Rows {
    fn streamed(stream: Stream, held: HeldRows) -> Rows {
        let pending = Pending {
            ready: VecDeque::new(),
            more: Some(stream.pieces),
            held: Some(held),
        };
        Rows {
            columns: stream.columns,
            rows: Arc::new(pending.into()),
        }
    }

    fn read(table: Table, held: HeldRows) -> Rows {
        let pending = Pending {
            ready: table.rows.into(),
            more: None,
            held: Some(held),
        };
        Rows {
            columns: table.columns,
            rows: Arc::new(pending.into()),
        }
    }
}

/// The bytes of a result and the permit of its connection, held until dropped.
struct HeldRows {
    scope: Arc<Scope>,
    bytes: u64,
    _stream: Option<StreamPermit>,
    _works: Option<Works>,
    room: Room,
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        self.scope.results.release(self.bytes);
    }
}

/// The exclusive use of the scope's worker, for one function and for the functions that it calls, until dropped.
struct OwnWorker {
    member: Arc<Member>,
    exclusion: Option<Exclusion>,
}

impl Drop for OwnWorker {
    fn drop(&mut self) {
        if let Some(exclusion) = &self.exclusion {
            self.member.not_called_from(exclusion.id);
        }
    }
}

/// About how many bytes a result takes. A result without rows takes some, too.
fn size(table: &Table) -> u64 {
    1024 + table.rows.iter().flatten().map(value_bytes).sum::<u64>()
}

fn value_bytes(value: &Value) -> u64 {
    32 + match value {
        Value::Text(text) => text.len() as u64,
        Value::Blob(blob) => blob.len() as u64,
        _ => 0,
    }
}

pub(super) async fn next(
    rows: Arc<tokio::sync::Mutex<Pending>>,
    max: u32,
) -> Result<Vec<Row>, Error> {
    let mut pending = rows.lock().await;
    if pending.ready.is_empty()
        && let Some(more) = &mut pending.more
    {
        match more.recv().await {
            Some(piece) => pending.ready.extend(piece?),
            None => pending.more = None,
        }
    }
    let count = pending.ready.len().min(max.max(1) as usize);
    let rows = pending.ready.drain(..count).collect();
    if pending.ready.is_empty() && pending.more.is_none() {
        pending.held = None;
    }
    Ok(rows)
}

/// A level (a transaction or savepoint) that the guest holds. Dropping the handle before the level has ended rolls the
/// level back.
pub struct TransactionHandle {
    member: Arc<Member>,
    level: Option<Level>,
    _worker: OwnWorker,
    _works: Option<Works>,
}

impl TransactionHandle {
    pub(super) async fn end(mut self, face: Face, commit: bool) -> Result<(), Error> {
        let level = self.level.take().expect("a level ends once");
        match commit {
            true => self.member.commit(face, level).await,
            false => self.member.rollback(face, level).await,
        }
    }
}

impl Drop for TransactionHandle {
    fn drop(&mut self) {
        if let Some(level) = self.level {
            self.member.abandon(level);
        }
    }
}

/// A pin that the guest holds. Until the pin is dropped, all statements of the guest function on the database run on
/// one connection.
pub struct Pinned {
    member: Arc<Member>,
    pin: Option<Pin>,
    _worker: OwnWorker,
    _works: Option<Works>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.member.transaction().unpin(pin);
        }
    }
}
