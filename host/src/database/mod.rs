//! Databases: connections, statements, limits. Transactions are one level up.
//!
//! Values, rows and errors are the plain records of the contract.

pub mod sqlite;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;

pub use crate::bindings::database_types::{Error, ErrorKind, Row, Table, Value};
use crate::config::Config;
use crate::deadline::Ended;
use crate::gate::Refused;
use crate::workers;

pub use sqlite::Sqlite;

/// The app's databases by name.
pub type Databases = BTreeMap<String, Arc<Sqlite>>;

/// Opens every database of the configuration, reusing those of `previous` that have not changed.
///
/// # Errors
/// When a file cannot be opened; the text names the database.
pub fn open_all(config: &Config, previous: &Databases) -> anyhow::Result<Databases> {
    let mut databases = Databases::new();
    for (name, wanted) in &config.databases {
        let database = match previous
            .get(name)
            .filter(|database| database.config() == wanted)
        {
            Some(same) => Arc::clone(same),
            None => Sqlite::open(wanted)
                .with_context(|| format!("database `{name}` ({})", wanted.sqlite.display()))?,
        };
        databases.insert(name.clone(), database);
    }
    Ok(databases)
}

/// Applies the migrations that are new. There is no way back: do it last, when nothing else can fail.
///
/// # Errors
/// When a migration fails; the text names the database.
pub fn migrate_all(databases: &Databases) -> anyhow::Result<()> {
    for (name, database) in databases {
        database
            .migrate()
            .with_context(|| format!("database `{name}`: migrations"))?;
    }
    Ok(())
}

/// Where a statement may block: on the sync worker that asks for it, or on a thread of the runtime's so that
/// the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// The caller is a sync worker: run here.
    Sync,
    /// The caller is a loop: run elsewhere. Work that was started is finished even if nobody waits any more.
    Async,
}

impl Face {
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            Face::Sync => workers::blocking(work),
            Face::Async => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            },
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
        }
    }
}

impl From<Ended> for Error {
    fn from(why: Ended) -> Error {
        Error::new(
            ErrorKind::Aborted,
            match why {
                Ended::Disconnected => "request-aborted: the client has gone",
                Ended::TimedOut => "request-aborted: the request's time is over",
                Ended::Shutdown => "request-aborted: the host is shutting down",
                Ended::Failed => "request-aborted: the view has failed",
            },
        )
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Busy(sentence) => Error::new(ErrorKind::Unavailable, sentence),
            Refused::Ended(why) => why.into(),
        }
    }
}
