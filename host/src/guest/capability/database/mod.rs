//! `database`: SQL for both kinds of guest, over one service.
//!
//! Both faces, the interfaces `database` and `database-async`, turn a call into the same future. A sync guest waits for
//! this future on its worker, an async guest on the event loop. Not the guest but the transaction decides which
//! connection a statement runs on (R8).

pub mod session;

use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf, Resource};

use super::handed;
use crate::database::{Error, ErrorKind, Face, Row, Table, Value};
use crate::guest::bindings::{database, database_async};
use crate::guest::store::Guest;
use session::{Pinned, Rows, Session, TransactionHandle, next};

impl Guest {
    fn session(&self, name: &str, face: Face) -> Result<Session, Error> {
        if !self
            .shared
            .grants
            .databases
            .iter()
            .any(|granted| granted == name)
        {
            let granted = match self.shared.grants.databases.join(", ") {
                none if none.is_empty() => "none".to_owned(),
                names => names,
            };
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "module `{}` is not granted the database `{name}` (granted: {granted}): add it to `databases` of `[modules.{0}]`",
                    self.shared.grants.name
                ),
            ));
        }
        let database = self.shared.services.databases.get(name).ok_or_else(|| {
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

impl Guest {
    /// Runs one call of the sync face on this thread, until the request's deadline at most.
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

    fn begin(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<TransactionHandle>, Error>> {
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
    fn commit(
        &mut self,
        transaction: Resource<TransactionHandle>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let begun = self.table.delete(transaction)?;
        Ok(self
            .wait(begun.end(Face::Sync, true))
            .unwrap_or_else(|why| Err(why.into())))
    }

    fn rollback(
        &mut self,
        transaction: Resource<TransactionHandle>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let begun = self.table.delete(transaction)?;
        Ok(self
            .wait(begun.end(Face::Sync, false))
            .unwrap_or_else(|why| Err(why.into())))
    }

    fn drop(&mut self, transaction: Resource<TransactionHandle>) -> wasmtime::Result<()> {
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

/// The session for a call of the async face.
fn session(accessor: &Async, name: &str) -> Result<Session, Error> {
    accessor.with(|mut store| store.get().session(name, Face::Async))
}

async fn end(
    accessor: &Async,
    transaction: Resource<TransactionHandle>,
    commit: bool,
) -> wasmtime::Result<Result<(), Error>> {
    let begun = accessor.with(|mut store| store.get().table.delete(transaction))?;
    Ok(in_turn(accessor, begun.end(Face::Async, commit)).await)
}

/// Runs a call outside of tokio's cooperative budget. A call takes its place in the order of the guest's calls (R8)
/// when it is first polled. With a used-up budget, tokio would make that poll wait, and calls that came later could
/// overtake it.
async fn in_turn<T>(accessor: &Async, call: impl Future<Output = T>) -> T {
    let member = accessor.with(|mut store| Arc::clone(&store.get().work().member));
    let _in_flight = member.in_flight();
    tokio::task::unconstrained(call).await
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
        Ok(in_turn(accessor, async {
            session(accessor, &name)?.query(sql, params).await
        })
        .await)
    }

    async fn execute(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        Ok(in_turn(accessor, async {
            session(accessor, &name)?.execute(sql, params).await
        })
        .await)
    }

    async fn open(
        accessor: &Async,
        name: String,
        sql: String,
        params: Vec<Value>,
    ) -> wasmtime::Result<Result<Resource<Rows>, Error>> {
        let rows = in_turn(accessor, async {
            session(accessor, &name)?.open(sql, params).await
        })
        .await;
        accessor.with(|mut store| handed(&mut store.get().table, rows))
    }

    async fn begin(
        accessor: &Async,
        name: String,
    ) -> wasmtime::Result<Result<Resource<TransactionHandle>, Error>> {
        let level = in_turn(accessor, async { session(accessor, &name)?.begin().await }).await;
        accessor.with(|mut store| handed(&mut store.get().table, level))
    }

    async fn pin(
        accessor: &Async,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Pinned>, Error>> {
        let pinned = in_turn(accessor, async { session(accessor, &name)?.pin().await }).await;
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
    fn drop(&mut self, transaction: Resource<TransactionHandle>) -> wasmtime::Result<()> {
        database::HostTransaction::drop(self, transaction)
    }
}

impl database_async::HostTransactionWithStore<Guest> for HasSelf<Guest> {
    async fn commit(
        accessor: &Async,
        transaction: Resource<TransactionHandle>,
    ) -> wasmtime::Result<Result<(), Error>> {
        end(accessor, transaction, true).await
    }

    async fn rollback(
        accessor: &Async,
        transaction: Resource<TransactionHandle>,
    ) -> wasmtime::Result<Result<(), Error>> {
        end(accessor, transaction, false).await
    }
}
