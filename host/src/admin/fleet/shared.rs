//! The values that hosts of a fleet read and write: JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::rollout::shadow::ShadowNumbers;
use crate::app::stats::Counts;
use crate::artifact::Digest;
use crate::config::Health;
use crate::deploy::Record;

/// A host that was not heard for so long does not count as there.
const SILENT: Duration = Duration::from_secs(10);

/// What all hosts are to serve, and the change under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Desired {
    /// Grows with every attempt to change something. That of the record is the attempt that has made it.
    pub(in crate::admin) generation: u64,
    /// What all hosts are to serve.
    pub(in crate::admin) record: Record,
    /// Who has made the record: `deploy by ci`.
    pub(in crate::admin) by: String,
    /// The host that has made it. It judges the candidate.
    pub(in crate::admin) coordinator: String,
    /// What the active version, or the candidate, had to answer.
    #[serde(default)]
    pub(in crate::admin) health: Option<Health>,
    /// Whether migrations were ever allowed: a host with databases of its own applies those that it has missed.
    #[serde(default)]
    pub(in crate::admin) migrate: bool,
    /// The change under way.
    #[serde(default)]
    pub(in crate::admin) change: Option<Change>,
}

/// A change under way. It ends when the value is replaced: by one with another record, or by one without the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Change {
    /// The host that makes it.
    pub(in crate::admin) coordinator: String,
    /// Which run of that host: when it was started anew, the change is over.
    pub(in crate::admin) run: String,
    /// What it is: `deploy by ci`.
    pub(in crate::admin) what: String,
    /// The version that all hosts prepare now, if they do.
    #[serde(default)]
    pub(in crate::admin) proposed: Option<Proposed>,
}

/// A version that hosts prepare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Proposed {
    pub(in crate::admin) digest: Digest,
    pub(in crate::admin) from: String,
    #[serde(default)]
    pub(in crate::admin) health: Option<Health>,
    pub(in crate::admin) migrate: bool,
}

/// What a host has counted since it tries a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Tally {
    /// The generation of the record that the candidate is in.
    pub(in crate::admin) generation: u64,
    pub(in crate::admin) active: Counts,
    pub(in crate::admin) candidate: Counts,
    #[serde(default)]
    pub(in crate::admin) shadow: Option<ShadowNumbers>,
}

/// How a host is, by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Report {
    /// Which run of the host.
    pub(in crate::admin) run: String,
    /// The version of the program.
    pub(in crate::admin) version: String,
    /// The generation of the record that it serves.
    pub(in crate::admin) generation: u64,
    /// The version that it serves.
    pub(in crate::admin) active: Digest,
    /// What it has prepared last.
    #[serde(default)]
    pub(in crate::admin) prepared: Option<Prepared>,
    /// Why it does not serve what it is to serve.
    #[serde(default)]
    pub(in crate::admin) failure: Option<Failure>,
    /// Whether it has ended in order.
    #[serde(default)]
    pub(in crate::admin) stopped: bool,
    /// What it has counted, if it tries a candidate.
    #[serde(default)]
    pub(in crate::admin) tally: Option<Tally>,
}

/// What has come of a proposed version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Prepared {
    /// The generation of the change that has proposed it, and the run of its coordinator.
    pub(in crate::admin) generation: u64,
    pub(in crate::admin) run: String,
    /// Why it cannot be served here.
    #[serde(default)]
    pub(in crate::admin) failure: Option<String>,
}

/// Why a host does not serve what it is to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Failure {
    /// The generation of the record that it is to serve.
    pub(in crate::admin) generation: u64,
    pub(in crate::admin) why: String,
}

/// A host, as the fleet knows it.
#[derive(Debug, Clone)]
pub(in crate::admin) struct Heard {
    pub(in crate::admin) id: String,
    pub(in crate::admin) report: Report,
    /// For how long nothing was heard of it.
    pub(in crate::admin) silent: Duration,
}

impl Heard {
    /// Whether it counts as there.
    pub(in crate::admin) fn is_there(&self) -> bool {
        !self.report.stopped && self.silent < SILENT
    }
}
