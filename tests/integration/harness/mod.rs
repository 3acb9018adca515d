//! What all tests use: guests, apps, servers, their logs and metrics, databases, clients.

pub mod app;
pub mod attack;
pub mod browser;
pub mod built;
pub mod command;
pub mod data;
pub mod frames;
pub mod guests;
pub mod http2;
pub mod javascript;
pub mod log;
pub mod metrics;
pub mod mirror;
pub mod nats;
pub mod origin;
pub mod postgres;
pub mod python;
pub mod raw;
pub mod registry;
pub mod server;
pub mod socket;
pub mod steps;
pub mod wasi_http;
mod watched;

use std::fmt;
use std::time::{Duration, Instant};

pub use app::App;
pub use browser::Browser;
pub use data::Kind;
pub use server::{Reply, Server};

/// How long tests wait for something that should happen soon.
pub const SOON: Duration = Duration::from_secs(15);

/// The two kinds of views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Sync,
    Async,
}

/// Writes the mode as paths, file names and the log do: `sync`, `async`.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
        })
    }
}

impl Mode {
    /// The name of a guest function of `rules`, as the configuration and the log write it.
    pub fn part(self, name: &str) -> String {
        format!("rules::{}::{name}", self.file())
    }

    /// The header that carries the steps of a middleware of `rules` in the request, and what the steps told in the
    /// response.
    pub fn header(self, name: &str) -> String {
        format!("x-{self}-{name}")
    }

    /// The name of a view of `behaviour`, as the log writes it.
    pub fn view(self, name: &str) -> String {
        format!("behaviour::{}::{name}", self.file())
    }

    /// The guests' module (and file) with the functions of this mode.
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

/// Calls `look` again and again until it succeeds.
///
/// # Panics
/// After [`SOON`], with `what` and the last error of `look`.
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

/// Measures up to three times, until one measurement is below the limit: a busy machine can spoil a single measurement.
///
/// # Panics
/// When no measurement is below the limit.
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
