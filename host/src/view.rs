//! What the host knows about a view: plain facts, read from its module when that is loaded.

use std::fmt;
use std::time::Duration;

/// Where a view's code runs and how its host calls wait (R1: read from the component's types).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// On a sync worker; host calls block it.
    Sync,
    /// On an event loop; host calls yield to it.
    Async,
}

impl Mode {
    /// `sync` or `async`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One guest function that serves a route.
#[derive(Debug, Clone)]
pub struct View {
    /// The module's name in the configuration.
    pub module: String,
    /// The guest function.
    pub name: String,
    /// What the component calls it.
    pub id: u32,
    /// `GET`, `POST`, …
    pub method: http::Method,
    /// The path pattern with the module's mount.
    pub pattern: String,
    /// Sync or async.
    pub mode: Mode,
    /// Whether it runs in a transaction.
    pub atomic: bool,
    /// CPU budget.
    pub cpu: Duration,
    /// Time from accepting the request to its response.
    pub timeout: Duration,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.module, self.name)
    }
}
