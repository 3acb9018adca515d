//! `database`: SQL for both kinds of guest, over one service.
//!
//! Each face turns a call into the same future: a sync guest waits for it on its worker, an async guest on the
//! loop. Which connection a statement goes to is the transaction's business (R8), not the guest's.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;
use wasmtime::component::{Accessor, HasSelf, Resource, ResourceTable};

use super::Guest;
use crate::bindings::{database, database_async};
use crate::budget::Room;
use crate::database::{
    Database, Error, ErrorKind, Face, Outcome, Row, Statement, Stream, Streamed, Table, Value,
};
use crate::deadline::Deadline;
use crate::metrics::METRICS;
use crate::scope::{CallBytes, Scope};
use crate::transaction::{Kept, Level, Member, Pin};
use crate::workers::Exclusion;

/// Where a statement goes: what both faces start from.
struct Session {
    scope: Arc<Scope>,
    member: Arc<Member>,
    database: Database,
    face: Face,
}

impl Guest {
    fn session(&self, name: &str, face: Face) -> Result<Session, Error> {
        if !self.grants.databases.iter().any(|granted| granted == name) {
            let granted = match self.grants.databases.join(", ") {
                none if none.is_empty() => "none".to_owned(),
                names => names,
            };
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "module `{}` is not granted the database `{name}` (granted: {granted}): add it to `databases` of `[modules.{0}]`",
                    self.grants.name
                ),
            ));
        }
        let database = self.services.databases.get(name).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the database `{name}` is not open while a module is being checked"),
            )
        })?;
        Ok(Session {
            scope: Arc::clone(&self.work().scope),
            member: Arc::clone(&self.work().member),
            database: database.clone(),
            face,
        })
    }
}

impl Session {
    async fn query(&self, sql: String, params: Vec<Value>) -> Result<Table, Error> {
        let outcome = self.run(self.statement(sql, params)).await?;
        Ok(outcome.table)
    }

    async fn execute(&self, sql: String, params: Vec<Value>) -> Result<u64, Error> {
        let statement = Statement {
            sql,
            params,
            rows_max: None,
        };
        Ok(self.run(statement).await?.changed)
    }

    /// Outside a transaction, a connection of its own feeds the result piece by piece. Inside, the one connection
    /// has to stay free for other statements, so the result is read at once; likewise when results feed on as many
    /// connections as they may, because requests that read them may need further ones.
    async fn open(&self, sql: String, params: Vec<Value>) -> Result<Rows, Error> {
        let statement = self.statement(sql, params);
        let _held = self.hold_call(&statement)?;
        let recording = (self.scope.journal).begin(&self.database.config().name, &statement.sql);
        let opened = self.opened(statement).await;
        recording.end(opened.as_ref().map(|_| 0));
        opened
    }

    async fn opened(&self, statement: Statement) -> Result<Rows, Error> {
        self.reserve_worker().await?;
        let Session {
            scope,
            member,
            database,
            face,
        } = self;
        if let Some(turn) = member.turn(self.on()).await? {
            return self.hold(turn.run(*face, statement).await?.table);
        }
        let Some(permit) = member.keep_stream(database) else {
            METRICS.results_at_once.inc();
            return self.hold(self.outside(statement).await?.table);
        };
        let held = HeldRows {
            scope: Arc::clone(scope),
            bytes: 0,
            _stream: Some(permit),
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

    /// Runs a statement to its end, in the transaction if the request has one.
    async fn run(&self, statement: Statement) -> Result<Outcome, Error> {
        let scope = &self.scope;
        let _held = self.hold_call(&statement)?;
        let recording = (scope.journal).begin(&self.database.config().name, &statement.sql);
        if self.member.is_active() {
            self.reserve_worker().await?;
        }
        let ran = match self.member.turn(self.on()).await {
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

    /// What the host keeps of a statement until it has ended, together with all others in flight.
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

    /// Keeps a result that was read at once until the guest has read it.
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
            room: Room::empty(&self.scope.origin.account),
        };
        let drawn = held.room.grow_to(bytes);
        drawn.map_err(|why| Error::new(ErrorKind::TooLarge, why.to_string()))?;
        Ok(Rows::read(table, held))
    }

    fn max_bytes(&self) -> u64 {
        self.scope.limits.rows_max_bytes
    }

    async fn begin(&self) -> Result<Begun, Error> {
        let (level, worker) = self.member.begin(self.on(), self.own_worker()).await?;
        Ok(Begun {
            level: Some(level),
            member: Arc::clone(&self.member),
            _worker: worker,
        })
    }

    /// Has the scope's worker for this part and for what it calls, while it holds what other parts may come to wait
    /// for (R3); and before it holds that, because whoever holds a connection never waits for a worker (R4).
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

    /// Before it holds a connection, an async part makes sure of the worker that later parts may need: whoever holds
    /// a connection never waits for a worker (R4).
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

    async fn pin(&self) -> Result<Pinned, Error> {
        let (pin, worker) = self.member.pin(self.on(), self.own_worker()).await?;
        Ok(Pinned {
            pin: Some(pin),
            member: Arc::clone(&self.member),
            _worker: worker,
        })
    }
}

/// A result that the guest reads piece by piece.
pub struct Rows {
    columns: Vec<String>,
    rows: Arc<tokio::sync::Mutex<Pending>>,
}

struct Pending {
    ready: VecDeque<Row>,
    more: Option<mpsc::Receiver<Result<Vec<Row>, Error>>>,
    /// Given back when everything is read.
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

/// What a result takes of the host, until dropped.
struct HeldRows {
    scope: Arc<Scope>,
    bytes: u64,
    _stream: Option<Kept>,
    room: Room,
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        self.scope.results.release(self.bytes);
    }
}

/// The scope's worker for one part and for what that calls, until dropped.
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

/// About how many bytes a result takes; an open one takes some even without rows.
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

async fn next(rows: Arc<tokio::sync::Mutex<Pending>>, max: u32) -> Result<Vec<Row>, Error> {
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

/// A transaction or savepoint that the guest holds. Dropped without an end, it is undone.
pub struct Begun {
    member: Arc<Member>,
    level: Option<Level>,
    _worker: OwnWorker,
}

impl Begun {
    async fn end(mut self, face: Face, commit: bool) -> Result<(), Error> {
        let level = self.level.take().expect("a level ends once");
        match commit {
            true => self.member.commit(face, level).await,
            false => self.member.rollback(face, level).await,
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(level) = self.level {
            self.member.abandon(level);
        }
    }
}

/// A connection that the guest keeps for its statements.
pub struct Pinned {
    member: Arc<Member>,
    pin: Option<Pin>,
    _worker: OwnWorker,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.member.transaction().unpin(pin);
        }
    }
}

/// Gives the guest a handle to what was made for it.
fn handed<T: Send + 'static>(
    table: &mut ResourceTable,
    made: Result<T, Error>,
) -> wasmtime::Result<Result<Resource<T>, Error>> {
    Ok(match made {
        Ok(made) => Ok(table.push(made)?),
        Err(error) => Err(error),
    })
}

impl Guest {
    /// Runs one call of the sync face: on this thread, no longer than the request may run.
    fn now<T>(
        &self,
        name: &str,
        call: impl AsyncFnOnce(&Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let session = self.session(name, Face::Sync)?;
        self.wait(call(&session))?
    }
}

impl database::Host for Guest {
    fn query(
        &mut self,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Table, Error>> {
        Ok(self.now(&name, async |session| session.query(sql, params).await))
    }

    fn execute(
        &mut self,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(self.now(&name, async |session| session.execute(sql, params).await))
    }

    fn open(
        &mut self,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Resource<Rows>, Error>> {
        let rows = self.now(&name, async |session| session.open(sql, params).await);
        handed(&mut self.table, rows)
    }

    fn begin(&mut self, name: String) -> wasmtime::Result<Result<Resource<Begun>, Error>> {
        let level = self.now(&name, async |session| session.begin().await);
        handed(&mut self.table, level)
    }

    fn pin(&mut self, name: String) -> wasmtime::Result<Result<Resource<Pinned>, Error>> {
        let pinned = self.now(&name, async |session| session.pin().await);
        handed(&mut self.table, pinned)
    }

    fn set_rollback(&mut self) -> wasmtime::Result<()> {
        self.work().member.set_rollback();
        Ok(())
    }
}

impl database::HostRows for Guest {
    fn columns(&mut self, rows: Resource<Rows>) -> wasmtime::Result<Vec<String>> {
        Ok(self.table.get(&rows)?.columns.clone())
    }

    fn next(
        &mut self,
        rows: Resource<Rows>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<Row>, Error>> {
        let rows = Arc::clone(&self.table.get(&rows)?.rows);
        Ok(self
            .wait(next(rows, max))
            .unwrap_or_else(|why| Err(why.into())))
    }

    fn drop(&mut self, rows: Resource<Rows>) -> wasmtime::Result<()> {
        self.table.delete(rows)?;
        Ok(())
    }
}

impl database::HostTransaction for Guest {
    fn commit(&mut self, transaction: Resource<Begun>) -> wasmtime::Result<Result<(), Error>> {
        let begun = self.table.delete(transaction)?;
        Ok(self
            .wait(begun.end(Face::Sync, true))
            .unwrap_or_else(|why| Err(why.into())))
    }

    fn rollback(&mut self, transaction: Resource<Begun>) -> wasmtime::Result<Result<(), Error>> {
        let begun = self.table.delete(transaction)?;
        Ok(self
            .wait(begun.end(Face::Sync, false))
            .unwrap_or_else(|why| Err(why.into())))
    }

    fn drop(&mut self, transaction: Resource<Begun>) -> wasmtime::Result<()> {
        self.table.delete(transaction)?;
        Ok(())
    }
}

impl database::HostPinned for Guest {
    fn drop(&mut self, pinned: Resource<Pinned>) -> wasmtime::Result<()> {
        self.table.delete(pinned)?;
        Ok(())
    }
}

type Async = Accessor<Guest, HasSelf<Guest>>;

/// Where a call of the async face goes.
fn session(accessor: &Async, name: &str) -> Result<Session, Error> {
    accessor.with(|mut store| store.get().session(name, Face::Async))
}

async fn end(
    accessor: &Async,
    transaction: Resource<Begun>,
    commit: bool,
) -> wasmtime::Result<Result<(), Error>> {
    let begun = accessor.with(|mut store| store.get().table.delete(transaction))?;
    Ok(in_turn(begun.end(Face::Async, commit)).await)
}

/// A call takes its place in the order of the guest's calls (R8) when it is first polled. tokio would let it wait
/// before that when many calls came at once, and go on with those that came last.
fn in_turn<T>(call: impl Future<Output = T>) -> impl Future<Output = T> {
    tokio::task::unconstrained(call)
}

impl database_async::Host for Guest {
    fn set_rollback(&mut self) -> wasmtime::Result<()> {
        database::Host::set_rollback(self)
    }
}

impl database_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn query(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Table, Error>> {
        Ok(in_turn(async { session(accessor, &name)?.query(sql, params).await }).await)
    }

    async fn execute(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(in_turn(async { session(accessor, &name)?.execute(sql, params).await }).await)
    }

    async fn open(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Resource<Rows>, Error>> {
        let rows = in_turn(async { session(accessor, &name)?.open(sql, params).await }).await;
        accessor.with(|mut store| handed(&mut store.get().table, rows))
    }

    async fn begin(
        accessor: &Async,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Begun>, Error>> {
        let level = in_turn(async { session(accessor, &name)?.begin().await }).await;
        accessor.with(|mut store| handed(&mut store.get().table, level))
    }

    async fn pin(
        accessor: &Async,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Pinned>, Error>> {
        let pinned = in_turn(async { session(accessor, &name)?.pin().await }).await;
        accessor.with(|mut store| handed(&mut store.get().table, pinned))
    }
}

impl database_async::HostPinned for Guest {
    fn drop(&mut self, pinned: Resource<Pinned>) -> wasmtime::Result<()> {
        database::HostPinned::drop(self, pinned)
    }
}

impl database_async::HostRows for Guest {
    fn columns(&mut self, rows: Resource<Rows>) -> wasmtime::Result<Vec<String>> {
        database::HostRows::columns(self, rows)
    }

    fn drop(&mut self, rows: Resource<Rows>) -> wasmtime::Result<()> {
        database::HostRows::drop(self, rows)
    }
}

impl database_async::HostRowsWithStore<Guest> for HasSelf<Guest> {
    async fn next(
        accessor: &Async,
        rows: Resource<Rows>,
        max: u32,
    ) -> wasmtime::Result<Result<Vec<Row>, Error>> {
        let rows = accessor.with(|mut store| {
            store
                .get()
                .table
                .get(&rows)
                .map(|rows| Arc::clone(&rows.rows))
        })?;
        Ok(next(rows, max).await)
    }
}

impl database_async::HostTransaction for Guest {
    fn drop(&mut self, transaction: Resource<Begun>) -> wasmtime::Result<()> {
        database::HostTransaction::drop(self, transaction)
    }
}

impl database_async::HostTransactionWithStore<Guest> for HasSelf<Guest> {
    async fn commit(
        accessor: &Async,
        transaction: Resource<Begun>,
    ) -> wasmtime::Result<Result<(), Error>> {
        end(accessor, transaction, true).await
    }

    async fn rollback(
        accessor: &Async,
        transaction: Resource<Begun>,
    ) -> wasmtime::Result<Result<(), Error>> {
        end(accessor, transaction, false).await
    }
}
