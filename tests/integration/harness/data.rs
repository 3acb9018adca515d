//! The database of an app, as a test sees it: through connections of the test's own, independent of the server's
//! connections.

use std::fmt;
use std::path::PathBuf;

use rusqlite::Connection;

use super::postgres::{Database, Postgres};
use super::{SOON, eventually};

/// The kinds of databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// Writes the kind as paths and names of folders do: `sqlite`, `postgres`.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Sqlite => "sqlite",
            Kind::Postgres => "postgres",
        })
    }
}

/// A database.
pub enum Data {
    Sqlite(PathBuf),
    Postgres(Database),
}

impl Data {
    /// A new database. `file` is the path of a SQLite database.
    pub async fn new(kind: Kind, file: PathBuf) -> Data {
        match kind {
            Kind::Sqlite => Data::Sqlite(file),
            Kind::Postgres => Data::Postgres(Postgres::shared().database().await),
        }
    }

    /// The keys of `[databases.default]` for this database.
    pub fn config(&self) -> String {
        match self {
            Data::Sqlite(file) => {
                let file = file.display().to_string();
                format!("sqlite = {file:?}\nsynchronous = \"normal\"")
            }
            Data::Postgres(database) => format!("postgres = {:?}", database.url()),
        }
    }

    /// The PostgreSQL database, if it is one.
    pub fn postgres(&self) -> Option<&Database> {
        match self {
            Data::Sqlite(_) => None,
            Data::Postgres(database) => Some(database),
        }
    }

    /// Runs statements.
    pub async fn execute(&self, sql: &str) {
        match self {
            Data::Sqlite(_) => {
                let done = self.open().execute_batch(sql);
                done.unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            Data::Postgres(database) => database.execute(sql).await,
        }
    }

    /// The number that a query returns.
    pub async fn count(&self, sql: &str) -> i64 {
        match self {
            Data::Sqlite(_) => self
                .open()
                .query_row(sql, (), |row| row.get(0))
                .unwrap_or_else(|error| panic!("{sql}: {error}")),
            Data::Postgres(database) => database.count(sql).await,
        }
    }

    /// The texts that a query returns, one per row.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        match self {
            Data::Sqlite(_) => {
                let connection = self.open();
                let read = |connection: &Connection| {
                    let mut statement = connection.prepare(sql)?;
                    statement.query_map((), |row| row.get(0))?.collect()
                };
                let texts: rusqlite::Result<_> = read(&connection);
                texts.unwrap_or_else(|error| panic!("{sql}: {error}"))
            }
            Data::Postgres(database) => database.texts(sql).await,
        }
    }

    /// How many rows the table `rows` has.
    pub async fn rows(&self) -> i64 {
        self.count("select count(*) from rows").await
    }

    /// The tags of all rows, in the order of their ids.
    pub async fn tags(&self) -> Vec<String> {
        self.texts("select tag from rows order by id").await
    }

    /// Waits until no other connection has a transaction or a lock.
    pub async fn assert_quiet(&self) {
        match self {
            Data::Sqlite(_) => {
                let connection = self.open();
                let all = "begin exclusive; rollback";
                eventually("the file to be free", async || {
                    connection.execute_batch(all)
                })
                .await;
            }
            Data::Postgres(database) => database.assert_quiet().await,
        }
    }

    fn open(&self) -> Connection {
        let Data::Sqlite(file) = self else {
            panic!("it is no file");
        };
        let connection = Connection::open(file).expect("the database is there");
        connection
            .busy_timeout(SOON)
            .expect("the timeout can be set");
        connection
    }
}
