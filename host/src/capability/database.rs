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
use crate::database::sqlite::{Stream, Tried};
use crate::database::{Error, ErrorKind, Face, Row, Sqlite, Table, Value};
use crate::scope::Scope;
use crate::transaction::{Level, Turn};

/// Where a statement goes: what both faces start from.
struct Session {
    scope: Arc<Scope>,
    database: Arc<Sqlite>,
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
        let database = Arc::clone(database);
        Ok(Session {
            scope: Arc::clone(&self.scope),
            database,
            face,
        })
    }
}

impl Session {
    async fn query(&self, sql: String, params: Vec<Value>) -> Result<Table, Error> {
        match self.turn().await? {
            Some(turn) => turn.query(self.face, sql, params, self.max_bytes()).await,
            None => self.query_outside(sql, params).await,
        }
    }

    async fn execute(&self, sql: String, params: Vec<Value>) -> Result<u64, Error> {
        if let Some(turn) = self.turn().await? {
            return turn.execute(self.face, sql, params).await;
        }
        let lease = self.database.writer(&self.scope.deadline).await?;
        self.face.run(move || lease.execute(&sql, &params)).await
    }

    /// Outside a transaction, a connection of its own feeds the result piece by piece. Inside, the one connection
    /// has to stay free for other statements, so the result is read at once; likewise when the request has taken
    /// its share of the connections already, lest it wait for itself.
    async fn open(&self, sql: String, params: Vec<Value>) -> Result<Rows, Error> {
        if let Some(turn) = self.turn().await? {
            let table = turn.query(self.face, sql, params, self.max_bytes()).await?;
            return self.hold(table);
        }
        let share = (self.database.config().readers / 2).max(1);
        if !self.scope.results.open_stream(share) {
            return self.hold(self.query_outside(sql, params).await?);
        }
        let held = HeldRows {
            scope: Arc::clone(&self.scope),
            bytes: 0,
            stream: true,
        };
        let (deadline, max) = (&self.scope.deadline, self.max_bytes());
        let stream = self
            .database
            .stream(deadline, sql.clone(), params.clone(), max)
            .await?;
        match stream {
            Tried::Done(stream) => Ok(Rows::streamed(stream, held)),
            Tried::Writes => {
                drop(held);
                self.hold(self.query_outside(sql, params).await?)
            }
        }
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
        let held = HeldRows {
            scope: Arc::clone(&self.scope),
            bytes,
            stream: false,
        };
        Ok(Rows::read(table, held))
    }

    async fn query_outside(&self, sql: String, params: Vec<Value>) -> Result<Table, Error> {
        let Session {
            scope,
            database,
            face,
        } = self;
        let max = self.max_bytes();
        let lease = database.reader(&scope.deadline).await?;
        let tried = face
            .run(move || {
                lease
                    .query(&sql, &params, max)
                    .map(|tried| (tried, sql, params))
            })
            .await?;
        match tried {
            (Tried::Done(table), ..) => Ok(table),
            (Tried::Writes, sql, params) => {
                let lease = database.writer(&scope.deadline).await?;
                match face.run(move || lease.query(&sql, &params, max)).await? {
                    Tried::Done(table) => Ok(table),
                    Tried::Writes => unreachable!("this connection writes"),
                }
            }
        }
    }

    /// The turn of a statement that is issued now, when it belongs to the request's transaction.
    async fn turn(&self) -> Result<Option<Turn>, Error> {
        let Session {
            scope,
            database,
            face,
        } = self;
        (scope.transaction.turn(*face, (database, &scope.deadline))).await
    }

    fn max_bytes(&self) -> u64 {
        self.scope.limits.rows_max_bytes
    }

    async fn begin(&self) -> Result<Begun, Error> {
        let Session {
            scope,
            database,
            face,
        } = self;
        let level = scope
            .transaction
            .begin(*face, (database, &scope.deadline))
            .await?;
        Ok(Begun {
            scope: Arc::clone(scope),
            level: Some(level),
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
    stream: bool,
}

impl Drop for HeldRows {
    fn drop(&mut self) {
        let results = &self.scope.results;
        results.release(self.bytes);
        if self.stream {
            results.close_stream();
        }
    }
}

/// About how many bytes a result takes; an open one takes some even without rows.
fn size(table: &Table) -> u64 {
    let value = |value: &Value| {
        32 + match value {
            Value::Text(text) => text.len() as u64,
            Value::Blob(blob) => blob.len() as u64,
            _ => 0,
        }
    };
    1024 + table.rows.iter().flatten().map(value).sum::<u64>()
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
    scope: Arc<Scope>,
    level: Option<Level>,
}

impl Begun {
    async fn end(mut self, face: Face, commit: bool) -> Result<(), Error> {
        let level = self.level.take().expect("a level ends once");
        match commit {
            true => self.scope.transaction.commit(face, level).await,
            false => self.scope.transaction.rollback(face, level).await,
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(level) = self.level {
            self.scope.transaction.abandon(level);
        }
    }
}

fn kept(
    table: &mut ResourceTable,
    rows: Result<Rows, Error>,
) -> wasmtime::Result<Result<Resource<Rows>, Error>> {
    Ok(match rows {
        Ok(rows) => Ok(table.push(rows)?),
        Err(error) => Err(error),
    })
}

fn begun(
    table: &mut ResourceTable,
    begun: Result<Begun, Error>,
) -> wasmtime::Result<Result<Resource<Begun>, Error>> {
    Ok(match begun {
        Ok(begun) => Ok(table.push(begun)?),
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
        kept(&mut self.table, rows)
    }

    fn begin(&mut self, name: String) -> wasmtime::Result<Result<Resource<Begun>, Error>> {
        let level = self.now(&name, async |session| session.begin().await);
        begun(&mut self.table, level)
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
    Ok(begun.end(Face::Async, commit).await)
}

impl database_async::Host for Guest {}

impl database_async::HostWithStore<Guest> for HasSelf<Guest> {
    async fn query(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Table, Error>> {
        Ok(async { session(accessor, &name)?.query(sql, params).await }.await)
    }

    async fn execute(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(async { session(accessor, &name)?.execute(sql, params).await }.await)
    }

    async fn open(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Resource<Rows>, Error>> {
        let rows = async { session(accessor, &name)?.open(sql, params).await }.await;
        accessor.with(|mut store| kept(&mut store.get().table, rows))
    }

    async fn begin(
        accessor: &Async,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Begun>, Error>> {
        let level = async { session(accessor, &name)?.begin().await }.await;
        accessor.with(|mut store| begun(&mut store.get().table, level))
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
