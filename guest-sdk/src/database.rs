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
use futures::stream::{Stream, try_unfold};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

/// How many rows [`Rows`] fetches at once.
const BATCH: u32 = 256;

/// A database. The statements of an atomic view all run in its transaction.
///
/// A statement that fails in a transaction poisons it: everything after it is refused
/// ([`ErrorKind::Poisoned`]) until what failed is rolled back, and a view that answers as if nothing had happened
/// ends with 500. Wrap what may fail in [`atomic`](Database::atomic), which is a savepoint then, and go on after its
/// error:
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
/// Where a table has several such constraints, [`Error::violation`](crate::Error::violation) tells which it was.
///
/// Truth values are read from the integers 0 and 1. Columns of JSON and arrays are [`Json`](crate::Json), as a
/// parameter and in a row; numerics, UUIDs, dates and times are texts. With the features `time` and `uuid` of this crate
/// (`amphi-sdk = { version = "…", features = ["time", "uuid"] }`), `time::Date`, `Time`, `PrimitiveDateTime` and
/// `OffsetDateTime`, and `uuid::Uuid`, are both, too, on either kind of database:
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
pub struct Database<'a, M: Mode> {
    host: &'a Host,
    name: &'a str,
    mode: PhantomData<M>,
}

impl ErrorKind {
    /// Whether a constraint has refused a change.
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

    /// Runs a statement and gives the number of rows it changed.
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

    /// Has all statements of this view (and of its middleware) on this database go to one connection until the result
    /// is dropped: for statements that change the session, such as `set` or temporary tables. Nothing of them is left
    /// afterwards. Views that are called meanwhile do not see the session; on SQLite, which has one connection that
    /// writes, they cannot write either.
    pub fn pin(self) -> Result<Pinned<'a, Sync>> {
        let handle = host::sync::pin(self.host, self.name).map_err(Error::from_database)?;
        Ok(Pinned {
            database: self,
            _handle: handle,
        })
    }

    /// Runs `work` in a transaction: committed when it gives `Ok`, rolled back when it gives an error.
    /// Within a transaction this is a savepoint of it.
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
            // The work's own error is the one to report.
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

    /// Runs a statement and gives the number of rows it changed.
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

    /// Has all statements of this view (and of its middleware) on this database go to one connection until the result
    /// is dropped: for statements that change the session, such as `set` or temporary tables. Nothing of them is left
    /// afterwards. Views that are called meanwhile do not see the session; on SQLite, which has one connection that
    /// writes, they cannot write either.
    pub async fn pin(self) -> Result<Pinned<'a, Async>> {
        let handle = host::asynch::pin(self.host, self.name)
            .await
            .map_err(Error::from_database)?;
        Ok(Pinned {
            database: self,
            _handle: handle,
        })
    }

    /// Runs `work` in a transaction: committed when it gives `Ok`, rolled back when it gives an error or
    /// is dropped. Within a transaction this is a savepoint of it.
    ///
    /// Every statement that this view issues meanwhile belongs to the block, and so does every view that it calls. So do
    /// not join atomic blocks of one view with each other: the host rolls back what overlaps. Blocks of views that are
    /// called at once do not overlap, each has a transaction of its own.
    ///
    /// `cx.atomic(async |tx| { tx.execute(…).await?; … }).await` — write `async |tx|`, since the future of
    /// `|tx| async move` could not borrow `tx`.
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
            // The work's own error is the one to report.
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

/// A [`Database`] within [`Database::atomic`].
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

/// A [`Database`] with one connection for the request alone, until dropped.
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

/// A result that is read batch by batch: an iterator in a sync view, `next().await?` or a stream in an
/// async view.
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

    /// Takes a fetched batch; an empty one is the end, and lets go of the host's side.
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
    /// The next row; none at the end. It reads as in an async view, for functions of [`both`](macro@crate::both) modes.
    pub fn try_next(&mut self) -> Result<Option<T>> {
        self.next().transpose()
    }
}

impl<T: FromRow> Rows<T, Async> {
    /// The same as [`next`](Self::next), by the name that a sync view has for it.
    pub async fn try_next(&mut self) -> Result<Option<T>> {
        self.next().await
    }

    /// The next row; none at the end.
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
