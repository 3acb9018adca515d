//! What the tests stand on: guests, apps, servers, logs, metrics.

pub mod app;
pub mod attack;
pub mod browser;
pub mod data;
pub mod guests;
pub mod log;
pub mod metrics;
pub mod postgres;
pub mod raw;
pub mod server;
pub mod steps;

use std::fmt;
use std::time::{Duration, Instant};

pub use app::App;
pub use browser::Browser;
pub use data::Kind;
pub use server::{Reply, Server};

/// How long anything may take that should happen soon.
pub const SOON: Duration = Duration::from_secs(15);

/// The two kinds of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sync,
    Async,
}

/// As in paths, files and the log.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
        })
    }
}

impl Mode {
    /// The part of `rules` with this name, as the configuration and the log have it.
    pub fn part(self, name: &str) -> String {
        format!("rules::{}::{name}", self.file())
    }

    /// The header of the middleware of `rules` with this name.
    pub fn header(self, name: &str) -> String {
        format!("x-{self}-{name}")
    }

    /// The view of `behaviour` with this name, as the log has it.
    pub fn view(self, name: &str) -> String {
        format!("behaviour::{}::{name}", self.file())
    }

    /// The file of a guest with the parts of this mode.
    fn file(self) -> &'static str {
        match self {
            Mode::Sync => "sync_views",
            Mode::Async => "async_views",
        }
    }
}

/// Makes two tests of an `async fn name(mode: Mode)`: `name::sync` and `name::asynch`.
#[macro_export]
macro_rules! both_modes {
    ($name:ident) => {
        mod $name {
            use $crate::harness::Mode;

            #[tokio::test]
            async fn sync() {
                super::$name(Mode::Sync).await;
            }

            #[tokio::test]
            async fn asynch() {
                super::$name(Mode::Async).await;
            }
        }
    };
}

/// Makes two tests of an `async fn name(kind: Kind)`: `name::sqlite` and `name::postgres`.
#[macro_export]
macro_rules! both_databases {
    ($name:ident) => {
        mod $name {
            use $crate::harness::Kind;

            #[tokio::test]
            async fn sqlite() {
                super::$name(Kind::Sqlite).await;
            }

            #[tokio::test]
            async fn postgres() {
                super::$name(Kind::Postgres).await;
            }
        }
    };
}

/// Makes four tests of an `async fn name(mode: Mode, kind: Kind)`: `name::sync_sqlite` and so on.
#[macro_export]
macro_rules! both_modes_and_databases {
    ($name:ident) => {
        mod $name {
            use $crate::harness::{Kind, Mode};

            #[tokio::test]
            async fn sync_sqlite() {
                super::$name(Mode::Sync, Kind::Sqlite).await;
            }

            #[tokio::test]
            async fn asynch_sqlite() {
                super::$name(Mode::Async, Kind::Sqlite).await;
            }

            #[tokio::test]
            async fn sync_postgres() {
                super::$name(Mode::Sync, Kind::Postgres).await;
            }

            #[tokio::test]
            async fn asynch_postgres() {
                super::$name(Mode::Async, Kind::Postgres).await;
            }
        }
    };
}

/// Waits until `look` finds something.
///
/// # Panics
/// When it does not do so soon; with `what` and what was seen last.
pub async fn eventually<T, E: fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let since = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if since.elapsed() > SOON => {
                panic!("{what}: waited {SOON:?} for it, and saw {seen:#?}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// The best of up to three tries at something that a busy machine can spoil.
///
/// # Panics
/// When none is good enough.
pub async fn best_of_three(limit: Duration, mut measure: impl AsyncFnMut() -> Duration) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let took = measure().await;
        if took < limit {
            return;
        }
        seen.push(took);
    }
    panic!("each of three tries took longer than {limit:?}: {seen:?}");
}
