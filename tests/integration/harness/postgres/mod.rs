//! PostgreSQL for the tests: installed when it is missing, run in a temporary folder, gone when the tests end.
//!
//! All tests share one server and have databases of their own in it. A test that stops its server starts a server of
//! its own.

mod install;
pub mod pooler;
mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::eventually;
use process::Process;

/// The database user of apps and tests.
const USER: &str = "amphi";

/// The `application_name` of the tests' own connections, so that they can be told from those of the host.
const TESTS: &str = "tests";

/// A server.
pub struct Postgres {
    /// Data, log and certificate. Removed when the server is dropped.
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

/// A database of its own in a server. `drop database` runs when this is dropped.
pub struct Database {
    name: String,
    port: u16,
    log: PathBuf,
}

/// A statement in the server's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// The session that ran the statement.
    pub session: String,
    /// The statement's text.
    pub sql: String,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// Open transactions are rolled back, and sessions get an error.
    Fast,
    /// As in a crash: the server recovers when it is started again.
    Crash,
}

impl Postgres {
    /// The server that all tests share.
    pub fn shared() -> &'static Postgres {
        static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
        &SHARED
    }

    /// A server for one test alone.
    pub fn start() -> Postgres {
        let folder = process::initialised();
        let (process, port) = Process::start_somewhere(folder.path());
        Postgres {
            folder,
            port,
            process: Some(process),
        }
    }

    /// Stops the server.
    pub fn stop(&mut self, how: Stop) {
        self.process.take().expect("it runs").stop(how);
    }

    /// Starts the server again, on the same port.
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let started = Process::start(self.folder.path(), self.port);
        self.process = Some(started.unwrap_or_else(|log| panic!("{log}")));
    }

    /// The certificate by which clients know the server as `localhost`.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join(process::CERTIFICATE)
    }

    /// A new database.
    pub async fn database(&self) -> Database {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Relaxed));
        connect(self.port, "postgres")
            .await
            .batch_execute(&format!("create database {name}"))
            .await
            .expect("a database can be made");
        Database {
            port: self.port,
            log: self.folder.path().join(process::LOG),
            name,
        }
    }
}

impl Database {
    /// The URL for `amphi.toml`.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{}", self.port, self.name)
    }

    /// The URL with `localhost` as its host, because the server's certificate is for this name.
    pub fn url_by_name(&self) -> String {
        format!("postgres://{USER}@localhost:{}/{}", self.port, self.name)
    }

    /// Runs statements.
    pub async fn execute(&self, sql: &str) {
        let done = self.client().await.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The number that a query returns.
    pub async fn count(&self, sql: &str) -> i64 {
        let row = self.client().await.query_one(sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .get(0)
    }

    /// The texts that a query returns, one per row.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.client().await.query(sql, &[]).await;
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// How many sessions other connections have in this database.
    pub async fn sessions(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity \
             where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'",
        )
        .await
    }

    /// How many transactions other connections have open in this database.
    pub async fn transactions(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity where datname = current_database() \
             and pid <> pg_backend_pid() and backend_type = 'client backend' \
             and (xact_start is not null or state like 'idle in transaction%')",
        )
        .await
    }

    /// Waits until no other connection has a transaction or a lock in this database.
    pub async fn assert_quiet(&self) {
        eventually("no transaction on the server", async || {
            match self.transactions().await {
                0 => Ok(()),
                open => Err(open),
            }
        })
        .await;
        // The server's own processes, such as one that vacuums, have locks, too.
        let locks = "select count(*) from pg_locks join pg_stat_activity using (pid) \
                     where pid <> pg_backend_pid() and backend_type = 'client backend' \
                     and database = (select oid from pg_database where datname = current_database())";
        assert_eq!(self.count(locks).await, 0, "a lock is held");
    }

    /// Has the server log the statements of sessions that begin from now on.
    pub async fn log_statements(&self) {
        let sql = format!("alter database {} set log_statement = 'all'", self.name);
        self.execute(&sql).await;
    }

    /// The present end of the server's log.
    pub fn mark(&self) -> u64 {
        fs::metadata(&self.log).expect("there is a log").len()
    }

    /// The statements that the host has run in this database since a mark, oldest first. Needs
    /// [`Database::log_statements`].
    pub fn logged(&self, mark: u64) -> Vec<Logged> {
        let text = fs::read(&self.log).expect("there is a log");
        let since = &text[usize::try_from(mark).expect("it fits")..];
        String::from_utf8_lossy(since)
            .lines()
            .filter_map(|line| self.parse(line))
            .collect()
    }

    /// A new connection of the test's own. It is not kept, since the server may be restarted.
    async fn client(&self) -> Client {
        connect(self.port, &self.name).await
    }

    /// A line as the settings in [`process`] format it: `<session database application> LOG:  execute s1: select 1`.
    fn parse(&self, line: &str) -> Option<Logged> {
        let (head, text) = line.strip_prefix('<')?.split_once("> LOG:  ")?;
        let mut words = head.splitn(3, ' ');
        let (session, database, application) = (words.next()?, words.next()?, words.next()?);
        let (what, sql) = text.split_once(": ")?;
        let ran = what == "statement" || what.starts_with("execute ");
        (ran && database == self.name && application != TESTS).then(|| Logged {
            session: session.to_owned(),
            sql: sql.to_owned(),
        })
    }
}

impl Drop for Database {
    /// `drop database` runs in a thread of its own, because the test's runtime cannot be blocked on here.
    fn drop(&mut self) {
        let (port, sql) = (
            self.port,
            format!("drop database {} with (force)", self.name),
        );
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async {
                let client = connection(port, "postgres").await?;
                client.batch_execute(&sql).await
            })
        })
        .join();
        // An error is ignored: a server that was stopped is removed with its databases.
        drop(dropped);
    }
}

async fn connect(port: u16, database: &str) -> Client {
    connection(port, database)
        .await
        .unwrap_or_else(|error| panic!("connecting to PostgreSQL: {error:?}"))
}

async fn connection(port: u16, database: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host("127.0.0.1")
        .port(port)
        .user(USER)
        .dbname(database)
        .application_name(TESTS)
        .connect(NoTls)
        .await?;
    // The task ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

/// The folder of PostgreSQL's programs.
fn programs() -> &'static Path {
    static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(install::programs);
    &PROGRAMS
}
