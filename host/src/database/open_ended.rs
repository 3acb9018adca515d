//! The part of a pool that pins and results in pieces may take.

use tokio::sync::OwnedSemaphorePermit;

use crate::config;
use crate::threads::gate::Gate;

/// Room for what keeps a connection while its request may need further ones: results that are read in pieces, and pins.
///
/// If these could take all connections of a pool, requests would wait for each other in a circle (R4). So they
/// take half of them at most. What else takes a connection, a statement or a transaction, needs no further one until
/// it has ended.
pub(super) struct OpenEnded {
    pub(super) gate: Gate,
    /// The pool has one connection only: for a pin, but not for a result.
    single: bool,
}

/// Such room, until dropped.
pub type Permit = OwnedSemaphorePermit;

impl OpenEnded {
    /// For a pool of so many connections.
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
