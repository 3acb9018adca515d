//! `[databases.NAME]`: a SQLite file or a PostgreSQL server, as written and as checked.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::config::SslMode;
use toml::Spanned;

use super::check::{Checker, TIME_MS, TIME_MS_OR_NONE};
use super::error::ConfigError;
use super::{postgres_url, raw};

/// The range of `value_max_bytes`: SQLite stores no larger value.
const VALUE_BYTES: std::ops::RangeInclusive<u64> = 65_536..=1_000_000_000;

/// The range of `transaction_max_bytes`, up to a tebibyte.
const TRANSACTION_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 40;

/// A database that modules can be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// The database's name in the configuration, which grants refer to.
    pub name: String,
    /// The file or server.
    pub storage: Storage,
    /// The folder of migrations: `V1__name.sql`, …, applied in order.
    pub migrations: Option<PathBuf>,
    /// The most statements that may wait for a connection; on SQLite, the limit counts for the reading connections and
    /// for the writing one separately.
    pub queue_max: usize,
    /// How long a statement waits for a free connection.
    pub acquire_timeout: Duration,
    /// The most bytes of one text or blob, in a statement or a result. A larger one is an error to the view.
    pub value_max_bytes: u64,
}

impl Database {
    /// Whether a database that was opened with this configuration can serve for the other one. The migrations do not matter:
    /// each version of an app has a folder of its own.
    pub fn opens_as(&self, other: &Database) -> bool {
        let Database {
            name,
            storage,
            migrations: _,
            queue_max,
            acquire_timeout,
            value_max_bytes,
        } = self;
        (name, storage) == (&other.name, &other.storage)
            && *queue_max == other.queue_max
            && *acquire_timeout == other.acquire_timeout
            && *value_max_bytes == other.value_max_bytes
    }
}

/// The file or server of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// An embedded SQLite database.
    Sqlite(SqliteFile),
    /// A PostgreSQL server.
    Postgres(Box<PostgresServer>),
}

/// An embedded SQLite database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteFile {
    /// The database file.
    pub file: PathBuf,
    /// Connections that only read, beside the one that writes.
    pub readers: usize,
    /// How long a statement waits for a lock of the file that another process holds.
    pub busy_timeout: Duration,
    /// When a commit is on the disk.
    pub synchronous: Synchronous,
    /// The most bytes that one transaction may write. There is no other bound: no time limit ends a commit.
    pub transaction_max_bytes: u64,
}

/// When a commit of SQLite is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Synchronous {
    /// Before the view learns of the commit.
    #[default]
    Full,
    /// Later: a power failure can undo the last commits.
    Normal,
}

/// A database on a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresServer {
    /// Host, database, user and further parameters. `Debug` hides the password.
    pub url: tokio_postgres::Config,
    /// The most connections at the same time.
    pub connections: usize,
    /// How long a connection may take to open, from the first packet until the server is ready.
    pub connect_timeout: Duration,
    /// The file with the certificate authorities that are trusted. None: those of the system.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Sqlite(sqlite) => sqlite.file.display().fmt(f),
            Storage::Postgres(server) => server.fmt(f),
        }
    }
}

impl fmt::Display for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use tokio_postgres::config::Host;
        let host = match self.url.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(folder)) => folder.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.url.get_ports().first().unwrap_or(&5432);
        let name = self.url.get_dbname().or(self.url.get_user());
        write!(
            f,
            "PostgreSQL at {host}:{port}/{}",
            name.unwrap_or_default()
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDatabase {
    sqlite: Option<PathBuf>,
    postgres: Option<Spanned<Address>>,
    migrations: Option<Spanned<PathBuf>>,
    readers: Option<Spanned<usize>>,
    busy_timeout_ms: Option<Spanned<u64>>,
    synchronous: Option<Spanned<Synchronous>>,
    transaction_max_bytes: Option<Spanned<u64>>,
    connections: Option<Spanned<usize>>,
    connect_timeout_ms: Option<Spanned<u64>>,
    ca_file: Option<Spanned<PathBuf>>,
    #[serde(default = "queue_max")]
    queue_max: Spanned<usize>,
    #[serde(default = "five_seconds")]
    acquire_timeout_ms: Spanned<u64>,
    /// The most bytes of one text or blob, in a statement or a result. A larger one is an error to the view. Default 16
    /// MiB.
    #[serde(default = "value_max_bytes")]
    value_max_bytes: Spanned<u64>,
}

/// The address of a server: as it is, or where it is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Address {
    Url(String),
    Elsewhere(raw::Secret),
}

fn queue_max() -> Spanned<usize> {
    Spanned::new(0..0, 10_000)
}

fn value_max_bytes() -> Spanned<u64> {
    Spanned::new(0..0, 16 << 20)
}

fn five_seconds() -> Spanned<u64> {
    Spanned::new(0..0, 5_000)
}

impl Checker<'_> {
    pub(super) fn database(
        &self,
        name: String,
        raw: Spanned<RawDatabase>,
    ) -> Result<Database, ConfigError> {
        let at = raw.span().start;
        let raw = raw.into_inner();
        let storage = match (&raw.sqlite, &raw.postgres) {
            (Some(file), None) if file.to_string_lossy().contains("://") => {
                return Err(self.error_at(at, format!(
                    "`sqlite` of the database `{name}` is a file, and this is a URL: write `postgres = …` for a server"
                )));
            }
            (Some(file), None) => Storage::Sqlite(self.sqlite(self.folder.join(file), &raw)?),
            (None, Some(url)) => Storage::Postgres(Box::new(self.postgres(url, &raw)?)),
            _ => {
                return Err(self.error_at(at, format!(
                    "the database `{name}` is in one place: write either `sqlite = \"data/{name}.db\"` or `postgres = \"postgres://user@host/{name}\"`"
                )));
            }
        };
        let migrations = raw
            .migrations
            .map(|folder| self.folder(&folder, "migrations"))
            .transpose()?;
        Ok(Database {
            name,
            storage,
            migrations,
            queue_max: self.bounded("queue_max", &raw.queue_max, 0..=1_000_000)?,
            acquire_timeout: self.time("acquire_timeout_ms", &raw.acquire_timeout_ms, TIME_MS)?,
            value_max_bytes: self.bounded("value_max_bytes", &raw.value_max_bytes, VALUE_BYTES)?,
        })
    }

    fn sqlite(&self, file: PathBuf, raw: &RawDatabase) -> Result<SqliteFile, ConfigError> {
        let other = [
            ("connections", raw.connections.as_ref().map(Spanned::span)),
            (
                "connect_timeout_ms",
                raw.connect_timeout_ms.as_ref().map(Spanned::span),
            ),
            ("ca_file", raw.ca_file.as_ref().map(Spanned::span)),
        ];
        self.none_of(&other, "PostgreSQL")?;
        let busy = raw.busy_timeout_ms.clone().unwrap_or_else(five_seconds);
        let transaction = raw.transaction_max_bytes.clone();
        let transaction = transaction.unwrap_or(Spanned::new(0..0, 128 << 20));
        let readers = raw.readers.clone().unwrap_or(Spanned::new(0..0, 4));
        Ok(SqliteFile {
            file,
            readers: self.bounded("readers", &readers, 1..=1000)?,
            busy_timeout: self.time("busy_timeout_ms", &busy, TIME_MS_OR_NONE)?,
            transaction_max_bytes: self.bounded(
                "transaction_max_bytes",
                &transaction,
                TRANSACTION_BYTES,
            )?,
            synchronous: raw
                .synchronous
                .as_ref()
                .map(|raw| *raw.get_ref())
                .unwrap_or_default(),
        })
    }

    fn postgres(
        &self,
        address: &Spanned<Address>,
        raw: &RawDatabase,
    ) -> Result<PostgresServer, ConfigError> {
        let other = [
            ("readers", raw.readers.as_ref().map(Spanned::span)),
            (
                "busy_timeout_ms",
                raw.busy_timeout_ms.as_ref().map(Spanned::span),
            ),
            ("synchronous", raw.synchronous.as_ref().map(Spanned::span)),
            (
                "transaction_max_bytes",
                raw.transaction_max_bytes.as_ref().map(Spanned::span),
            ),
        ];
        self.none_of(&other, "SQLite")?;
        let text = match address.get_ref() {
            Address::Url(url) => url.clone(),
            Address::Elsewhere(secret) => self.secret_url(address, secret)?,
        };
        let parsed = postgres_url::parse(&text);
        let mut url = parsed.map_err(|sentence| self.error(address, sentence))?;
        let ca_file = match &raw.ca_file {
            Some(file) if url.get_ssl_mode() == SslMode::Disable => {
                return Err(self.error(file, "`ca_file` is for connections with TLS, and the URL says `sslmode=disable`: take one of them out".into()));
            }
            Some(file) => {
                url.ssl_mode(SslMode::Require);
                Some(self.folder.join(file.get_ref()))
            }
            None => None,
        };
        if url.get_application_name().is_none() {
            url.application_name("amphi");
        }
        let connections = raw.connections.clone().unwrap_or(Spanned::new(0..0, 10));
        let timeout = raw.connect_timeout_ms.clone().unwrap_or_else(five_seconds);
        let connect_timeout = self.time("connect_timeout_ms", &timeout, TIME_MS)?;
        url.connect_timeout(connect_timeout);
        Ok(PostgresServer {
            url,
            connections: self.bounded("connections", &connections, 1..=10_000)?,
            connect_timeout,
            ca_file,
        })
    }

    /// Refuses any of the `keys` that is set, because these keys are only for databases on `kind`.
    fn none_of(
        &self,
        keys: &[(&str, Option<std::ops::Range<usize>>)],
        kind: &str,
    ) -> Result<(), ConfigError> {
        match keys
            .iter()
            .find_map(|(key, span)| Some((key, span.clone()?)))
        {
            Some((key, span)) => Err(self.error_at(
                span.start,
                format!("`{key}` is for databases on {kind}, which this one is not: take it out"),
            )),
            None => Ok(()),
        }
    }

    fn bounded<T: TryInto<u64> + Copy>(
        &self,
        name: &str,
        value: &Spanned<T>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<T, ConfigError> {
        self.within(value.span().start, name, *value.get_ref(), range)?;
        Ok(*value.get_ref())
    }

    fn time(
        &self,
        name: &str,
        value: &Spanned<u64>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        self.bounded(name, value, range).map(Duration::from_millis)
    }
}
