//! The limit on connections for pins and for results that are read in pieces.

use tokio::sync::OwnedSemaphorePermit;

use crate::config;
use crate::threads::gate::Gate;

/// Permits for whatever keeps a connection while its request may need further ones: results that are read in pieces,
/// and pins.
///
/// If these could take all connections of a pool, requests would wait for each other in a circle (R4). So they take at
/// most half of the connections, or the only one ([`OpenEnded::single`]). A statement or a transaction needs no permit,
/// because it needs no further connection before it ends.
pub(super) struct OpenEnded {
    pub(super) gate: Gate,
    /// Whether the pool has one connection only. A pin may take this connection. A result that is read in pieces may
    /// not.
    single: bool,
}

/// A permit, held until dropped.
pub type Permit = OwnedSemaphorePermit;

impl OpenEnded {
    /// Permits for a pool that has so many `connections`.
    pub(super) fn of(config: &config::Database, connections: usize) -> OpenEnded {
        let name = format!(
            "database `{}`, connections for pins and results",
            config.name
        );
        let size = (connections / 2).max(1);
        OpenEnded {
            gate: Gate::new(name, size, config.queue_max, config.acquire_timeout),
            single: connections == 1,
        }
    }

    pub(super) fn try_enter(&self) -> Option<Permit> {
        match self.single {
            true => None,
            false => self.gate.try_enter().ok(),
        }
    }
}
