//! SQL databases.

mod params;
mod row;
#[cfg(feature = "time")]
mod time;
#[cfg(feature = "uuid")]
mod uuid;
mod value;

pub use crate::bindings::amphi::view::database_types::{ErrorKind, Value, Violation};
pub use params::Params;
pub use row::{FromRow, Row};
pub use value::{FromValue, ToValue};

use crate::host::{self, Host, Table, Values};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Result};
use futures_util::stream::{Stream, try_unfold};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

/// How many rows [`Rows`] fetches per call of the host.
const BATCH: u32 = 256;

/// A SQL database, from [`Context::db`](crate::Context::db) or [`Context::database`](crate::Context::database).
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(FromRow, Serialize)]
/// struct Entry {
///     id: i64,
///     name: String,
///     email: Option<String>,
/// }
///
/// #[view(get, "/entries/{id}")]
/// fn entry(cx: &Context, Path(id): Path<i64>) -> Result<Json<Entry>> {
///     cx.db()
///         .query_one("select id, name, email from entries where id = $1", (id,))?
///         .map(Json)
///         .ok_or_else(|| Error::not_found("no such entry"))
/// }
///
/// #[view(get, "/export")]
/// async fn export(cx: &Context) -> Result<String> {
///     let mut text = String::new();
///     let mut rows = cx.db().rows::<(i64, String)>("select id, name from entries", ()).await?;
///     while let Some((id, name)) = rows.next().await? {
///         text += &format!("{id};{name}\n");
///     }
///     Ok(text)
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let app = App::new().execute_batch("create table entries (id integer, name text, email text); insert into entries values (7, 'Ann', null)");
/// # assert_eq!(app.call::<entry>(get("/entries/7")).text(), r#"{"id":7,"name":"Ann","email":null}"#);
/// # assert_eq!(app.call::<export>(get("/export")).text(), "7;Ann\n");
/// ```
///
/// # Transactions
///
/// All statements of an atomic view run in one transaction. When one of them fails, the transaction takes no more
/// statements ([`ErrorKind::Poisoned`]) until the savepoint of the failed statement is rolled back. Without such a
/// savepoint, the client gets a 500, even if the view returns a success. Put a statement that may fail into
/// [`atomic`](Database::atomic). Within a transaction, `atomic` is a savepoint, so the view can go on after the error:
///
/// ```
/// use amphi_sdk::database::ErrorKind;
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/names/{name}", atomic)]
/// fn take(cx: &Context, Path(name): Path<String>) -> Result<&'static str> {
///     let taken = cx.atomic(|tx| tx.execute("insert into names values ($1)", (&name,)));
///     match taken {
///         Err(error) if error.database_kind() == Some(ErrorKind::Unique) => Ok("somebody has it"),
///         other => other.map(|_| "it is yours"),
///     }
/// }
/// # use amphi_sdk::testing::{App, post};
/// # let app = App::new().execute_batch("create table names (name text unique)");
/// # assert_eq!(app.call::<take>(post("/names/ann")).text(), "it is yours");
/// # assert_eq!(app.call::<take>(post("/names/ann")).text(), "somebody has it");
/// ```
///
/// When a table has several constraints, [`Error::violation`](crate::Error::violation) tells which one refused the change.
///
/// # Types
///
/// | column | Rust type, as a parameter and in a row |
/// |---|---|
/// | integers, floats, text, bytes | `i64` and the other integers, `f64`, `&str` or `String`, `&[u8]` or `Vec<u8>` |
/// | truth values | `bool`; SQLite stores the integers 0 and 1 |
/// | JSON, arrays | [`Json`](crate::Json) |
/// | columns that may be null | `Option` of these |
/// | decimal numbers, UUIDs, dates, times | `String` |
/// | the same with the features `time` and `uuid` of this crate | `time::Date`, `Time`, `PrimitiveDateTime`, `OffsetDateTime`; `uuid::Uuid` |
///
/// To use the last row, write `amphi-sdk = { version = "…", features = ["time", "uuid"] }`. These types work on SQLite and
/// PostgreSQL alike:
///
/// ```
/// # #[cfg(all(feature = "time", feature = "uuid"))] {
/// use amphi_sdk::prelude::*;
/// use time::OffsetDateTime;
/// use uuid::Uuid;
///
/// #[view(post, "/tickets/{id}")]
/// fn ticket(cx: &Context, Path(id): Path<String>) -> Result<String> {
///     let id = Uuid::parse_str(&id).map_err(|_| Error::bad_request("no UUID"))?;
///     let now = OffsetDateTime::UNIX_EPOCH;
///     cx.db().execute("insert into tickets values ($1, $2)", (id, now))?;
///     let row = cx.db().query_one("select id, at from tickets where id = $1", (id,))?;
///     let (id, at): (Uuid, OffsetDateTime) = row.ok_or_else(|| Error::not_found("no such ticket"))?;
///     Ok(format!("{id} {}", at.year()))
/// }
/// # use amphi_sdk::testing::{App, post};
/// # let app = App::new().execute_batch("create table tickets (id text, at text)");
/// # let told = app.call::<ticket>(post("/tickets/0191a0f2-7c3e-7f00-8000-0123456789ab"));
/// # assert_eq!(told.text(), "0191a0f2-7c3e-7f00-8000-0123456789ab 1970");
/// # }
/// ```
pub struct Database<'a, M: Mode> {
    host: &'a Host,
    name: &'a str,
    mode: PhantomData<M>,
}

impl ErrorKind {
    /// Whether a constraint, or the data type of a column, refused the change.
    pub fn is_constraint(self) -> bool {
        matches!(
            self,
            ErrorKind::Unique
                | ErrorKind::ForeignKey
                | ErrorKind::NotNull
                | ErrorKind::Check
                | ErrorKind::DataType
                | ErrorKind::Constraint
        )
    }
}

impl<'a, M: Mode> Database<'a, M> {
    pub(crate) fn new(host: &'a Host, name: &'a str) -> Self {
        Self {
            host,
            name,
            mode: PhantomData,
        }
    }
}

impl<'a> Database<'a, Sync> {
    /// Runs a statement and reads its whole result.
    pub fn query<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Vec<T>> {
        host::sync::query(self.host, self.name, sql, &params.into_values()?)
            .map_err(Error::from_database)
            .and_then(read_all)
    }

    /// Runs a statement and reads the first row of its result, if there is one.
    pub fn query_one<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Option<T>> {
        host::sync::query(self.host, self.name, sql, &params.into_values()?)
            .map_err(Error::from_database)
            .and_then(read_first)
    }

    /// Runs a statement and returns the number of rows that it changed.
    pub fn execute(self, sql: &str, params: impl Params) -> Result<u64> {
        host::sync::execute(self.host, self.name, sql, &params.into_values()?)
            .map_err(Error::from_database)
    }

    /// Runs a statement whose result may be large, and reads it batch by batch:
    /// `for row in cx.db().rows::<Entry>(…)? { let row = row?; … }`.
    pub fn rows<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Rows<T, Sync>> {
        let rows = host::sync::open(self.host, self.name, sql, &params.into_values()?)
            .map_err(Error::from_database)?;
        Ok(Rows::new(host::sync::columns(&rows), rows))
    }

    /// Reserves one connection for this view and its middleware. Until the returned value is dropped, all their
    /// statements on this database run on this connection, so statements that change the session of the connection are
    /// allowed: `set`, temporary tables. When the value is dropped, the session is reset. Views that are called in the
    /// meantime (sub-requests) use other connections, so these changes do not affect them. A SQLite database has only
    /// one connection that writes, so these views cannot write to the database.
    pub fn pin(self) -> Result<Pinned<'a, Sync>> {
        let handle = host::sync::pin(self.host, self.name).map_err(Error::from_database)?;
        Ok(Pinned {
            database: self,
            _handle: handle,
        })
    }

    /// Runs `work` in a transaction. The transaction commits when `work` returns `Ok` and rolls back when it returns an
    /// error. Within a transaction, this is a savepoint.
    ///
    /// `cx.atomic(|tx| { tx.execute(…)?; … })`
    pub fn atomic<T>(self, work: impl FnOnce(&Transaction<'a, Sync>) -> Result<T>) -> Result<T> {
        let handle = host::sync::begin(self.host, self.name).map_err(Error::from_database)?;
        let transaction = Transaction {
            database: self,
            handle,
        };
        let result = work(&transaction);
        match &result {
            Ok(_) => host::sync::commit(transaction.handle).map_err(Error::from_database)?,
            // Report the error of `work`, whatever the rollback returns.
            Err(_) => drop(host::sync::rollback(transaction.handle)),
        }
        result
    }
}

impl<'a> Database<'a, Async> {
    /// Runs a statement and reads its whole result.
    pub async fn query<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Vec<T>> {
        host::asynch::query(self.host, self.name, sql, params.into_values()?)
            .await
            .map_err(Error::from_database)
            .and_then(read_all)
    }

    /// Runs a statement and reads the first row of its result, if there is one.
    pub async fn query_one<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Option<T>> {
        host::asynch::query(self.host, self.name, sql, params.into_values()?)
            .await
            .map_err(Error::from_database)
            .and_then(read_first)
    }

    /// Runs a statement and returns the number of rows that it changed.
    pub async fn execute(self, sql: &str, params: impl Params) -> Result<u64> {
        host::asynch::execute(self.host, self.name, sql, params.into_values()?)
            .await
            .map_err(Error::from_database)
    }

    /// Runs a statement whose result may be large, and reads it batch by batch:
    /// `while let Some(row) = rows.next().await? { … }`.
    pub async fn rows<T: FromRow>(self, sql: &str, params: impl Params) -> Result<Rows<T, Async>> {
        let rows = host::asynch::open(self.host, self.name, sql, params.into_values()?)
            .await
            .map_err(Error::from_database)?;
        Ok(Rows::new(host::asynch::columns(&rows), rows))
    }

    /// Reserves one connection for this view and its middleware. Until the returned value is dropped, all their
    /// statements on this database run on this connection, so statements that change the session of the connection are
    /// allowed: `set`, temporary tables. When the value is dropped, the session is reset. Views that are called in the
    /// meantime (sub-requests) use other connections, so these changes do not affect them. A SQLite database has only
    /// one connection that writes, so these views cannot write to the database.
    pub async fn pin(self) -> Result<Pinned<'a, Async>> {
        let handle = host::asynch::pin(self.host, self.name)
            .await
            .map_err(Error::from_database)?;
        Ok(Pinned {
            database: self,
            _handle: handle,
        })
    }

    /// Runs `work` in a transaction. The transaction commits when `work` returns `Ok`, and rolls back when it returns an
    /// error or when the future is dropped. Within a transaction, this is a savepoint.
    ///
    /// While the block is open, every statement of this view belongs to the block, and so does every view that this
    /// view calls. So do not `join!` two atomic blocks of one view: the host rolls back blocks that overlap. Views that
    /// are called at the same time (sub-requests under `join!`) may each have blocks. If their caller is in no
    /// transaction, each of these views has a transaction of its own. If it is in one, the block of one view begins
    /// when the block of the other has ended.
    ///
    /// `cx.atomic(async |tx| { tx.execute(…).await?; … }).await`: write `async |tx|`, because the future of
    /// `|tx| async move { … }` cannot borrow `tx`.
    pub async fn atomic<T>(
        self,
        work: impl AsyncFnOnce(&Transaction<'a, Async>) -> Result<T>,
    ) -> Result<T> {
        let handle = host::asynch::begin(self.host, self.name)
            .await
            .map_err(Error::from_database)?;
        let transaction = Transaction {
            database: self,
            handle,
        };
        let result = work(&transaction).await;
        match &result {
            Ok(_) => host::asynch::commit(transaction.handle)
                .await
                .map_err(Error::from_database)?,
            // Report the error of `work`, whatever the rollback returns.
            Err(_) => drop(host::asynch::rollback(transaction.handle).await),
        }
        result
    }
}

impl<M: Mode> Clone for Database<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Mode> Copy for Database<'_, M> {}

impl<M: Mode> fmt::Debug for Database<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.name).finish()
    }
}

/// A [`Database`] inside a transaction: the argument of the closure that [`Database::atomic`] runs. It dereferences to
/// `Database`.
pub struct Transaction<'a, M: Mode> {
    database: Database<'a, M>,
    handle: M::Transaction,
}

impl<'a, M: Mode> Deref for Transaction<'a, M> {
    type Target = Database<'a, M>;

    fn deref(&self) -> &Self::Target {
        &self.database
    }
}

impl<M: Mode> fmt::Debug for Transaction<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transaction")
            .field(&self.database.name)
            .finish()
    }
}

/// A [`Database`] with a reserved connection, from [`Database::pin`]. Dropping it returns the connection.
pub struct Pinned<'a, M: Mode> {
    database: Database<'a, M>,
    _handle: M::Pinned,
}

impl<'a, M: Mode> Deref for Pinned<'a, M> {
    type Target = Database<'a, M>;

    fn deref(&self) -> &Self::Target {
        &self.database
    }
}

impl<M: Mode> fmt::Debug for Pinned<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pinned").field(&self.database.name).finish()
    }
}

/// A result that is fetched in batches. In a sync view, this is an iterator. In an async view, call `next().await?`, or
/// turn it into a stream with [`into_stream`](Rows::into_stream).
pub struct Rows<T, M: Mode> {
    columns: Vec<String>,
    batch: std::vec::IntoIter<Values>,
    handle: Option<M::Rows>,
    row: PhantomData<fn() -> T>,
}

impl<T: FromRow, M: Mode> Rows<T, M> {
    fn new(columns: Vec<String>, handle: M::Rows) -> Self {
        Self {
            columns,
            batch: Vec::new().into_iter(),
            handle: Some(handle),
            row: PhantomData,
        }
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    fn buffered(&mut self) -> Option<Result<T>> {
        let values = self.batch.next()?;
        Some(read(&self.columns, values))
    }

    /// Stores a fetched batch. An empty batch means the end of the result: the handle is dropped, so the host frees the
    /// result.
    fn refill(&mut self, batch: Vec<Values>) {
        if batch.is_empty() {
            self.handle = None;
        }
        self.batch = batch.into_iter();
    }
}

impl<T: FromRow> Iterator for Rows<T, Sync> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.buffered() {
                return Some(row);
            }
            match host::sync::next(self.handle.as_ref()?, BATCH) {
                Ok(batch) => self.refill(batch),
                Err(error) => {
                    self.handle = None;
                    return Some(Err(Error::from_database(error)));
                }
            }
        }
    }
}

impl<T: FromRow> Rows<T, Sync> {
    /// The next row, `None` at the end. Functions under [`both`](macro@crate::both) call `try_next`, since this method
    /// exists in both modes.
    pub fn try_next(&mut self) -> Result<Option<T>> {
        self.next().transpose()
    }
}

impl<T: FromRow> Rows<T, Async> {
    /// The same as [`next`](Self::next). Functions under [`both`](macro@crate::both) call `try_next`, since this method
    /// exists in both modes.
    pub async fn try_next(&mut self) -> Result<Option<T>> {
        self.next().await
    }

    /// The next row, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(row) = self.buffered() {
                return row.map(Some);
            }
            let Some(handle) = &self.handle else {
                return Ok(None);
            };
            let batch = host::asynch::next(handle, BATCH).await;
            let batch = batch
                .inspect_err(|_| self.handle = None)
                .map_err(Error::from_database)?;
            self.refill(batch);
        }
    }

    /// The rows as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<T>> {
        try_unfold(self, async |mut rows| {
            Ok(rows.next().await?.map(|row| (row, rows)))
        })
    }
}

impl<T, M: Mode> fmt::Debug for Rows<T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rows").field(&self.columns).finish()
    }
}

fn read<T: FromRow>(columns: &[String], values: Values) -> Result<T> {
    T::from_row(&mut Row::new(columns, values))
}

fn read_all<T: FromRow>(table: Table) -> Result<Vec<T>> {
    table
        .rows
        .into_iter()
        .map(|values| read(&table.columns, values))
        .collect()
}

fn read_first<T: FromRow>(table: Table) -> Result<Option<T>> {
    table
        .rows
        .into_iter()
        .next()
        .map(|values| read(&table.columns, values))
        .transpose()
}
