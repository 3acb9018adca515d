//! What the admin API and the commands say to each other: JSON.
//!
//! ```text
//! GET  /v1/status            Status                         scope read
//! GET  /v1/versions          a list of Listed               scope read
//! GET  /v1/logs?follow       lines of the log               scope read
//! POST /v1/artifacts         the file; answers Uploaded     scope deploy
//! POST /v1/deploy            Deploying; answers Lines       scope deploy
//! POST /v1/promote           answers Lines                  scope switch
//! POST /v1/rollback          GoingBack; answers Lines       scope switch
//! ```
//!
//! What changes something names the generation that it was decided on, as `if-match: "17"`. The generation grows with every
//! attempt, so nobody undoes unawares what somebody else has just done, and a request that is sent again is refused.

use serde::{Deserialize, Serialize};

use crate::app::rollout::shadow::{ShadowNumbers, ShadowReport};
use crate::artifact::Digest;
use crate::config::Health;
use crate::deploy::{Active, Trial};

/// What runs at a place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The app's name.
    pub app: String,
    /// See [`crate::deploy::Record::generation`].
    pub generation: u64,
    /// The version that is served.
    pub active: Served,
    /// The version that is tried beside it.
    pub candidate: Option<Tried>,
    /// What the last change has come to.
    pub last: Option<Last>,
    /// The version of the host.
    pub host: String,
    /// When the host was started, in seconds since 1970.
    pub started: u64,
    /// The hosts that serve the same, if the place belongs to a fleet.
    #[serde(default)]
    pub fleet: Option<FleetStatus>,
}

/// Hosts that serve the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Their name.
    pub name: String,
    /// Why nothing is known of it now.
    pub problem: Option<String>,
    /// The change under way.
    pub change: Option<String>,
    /// The hosts, by name: those of the last two hours.
    pub hosts: Vec<HostStatus>,
    /// The most that are listed.
    pub hosts_max: usize,
}

/// A host of a fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its name.
    pub id: String,
    /// Whether it is the host that says all this.
    pub own: bool,
    /// The version of the program.
    pub version: String,
    /// The generation of what it serves.
    pub generation: u64,
    /// The version that it serves.
    pub active: Digest,
    /// `serves`, `fails: …`, `stopped`, or `not heard`.
    pub state: String,
    /// What it has counted of the candidate, if it tries one.
    #[serde(default)]
    pub tried: Option<TriedThere>,
    /// For how many seconds nothing was heard of it.
    pub silent_s: u64,
}

/// What a host of a fleet has counted of a candidate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TriedThere {
    /// The number of responses.
    pub requests: u64,
    /// Those with a status of 5xx.
    pub errors: u64,
    /// In shadow mode: the numbers of its comparisons.
    pub shadow: Option<ShadowNumbers>,
}

/// What hosts do when another one cannot serve a version that was deployed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IfOneFails {
    /// None of them switches.
    #[default]
    Keep,
    /// Those switch that can. The other one goes on trying.
    Switch,
}

/// A version that is served, and what has become of its requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Served {
    /// The version.
    #[serde(flatten)]
    pub version: Active,
    /// The counts: beside a candidate those since it is there, otherwise those since the version is served.
    pub traffic: Traffic,
}

/// A candidate, and what has become of its requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tried {
    /// The version.
    #[serde(flatten)]
    pub version: Active,
    /// How it is tried.
    pub trial: Trial,
    /// Its counts.
    pub traffic: Traffic,
    /// In shadow mode: what the comparisons have found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowReport>,
}

/// Counts of requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// For how long it was counted, in seconds.
    pub seconds: f64,
    /// The number of responses.
    pub requests: u64,
    /// Those with a status of 5xx.
    pub errors: u64,
    /// The median of the latencies, in milliseconds; none without requests. Up to an eighth too high, as the other one.
    pub p50_ms: Option<f64>,
    /// Their 99th percentile.
    pub p99_ms: Option<f64>,
}

/// What a change has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// What was done, by whom: `deploy by ci`.
    pub what: String,
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// What has come of it: a sentence.
    pub outcome: String,
}

/// A version that the place has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    /// The version.
    #[serde(flatten)]
    pub version: Active,
    /// `active`, `candidate`, `earlier`, or `rolled back`.
    pub state: String,
}

/// An artifact that has arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Uploaded {
    /// Its version.
    pub digest: Digest,
}

/// A version to deploy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploying {
    /// Where the host gets it.
    pub source: Source,
    /// What people are told that it is from.
    pub from: String,
    /// Whether missing migrations are applied.
    #[serde(default)]
    pub migrate: bool,
    /// What it has to answer; none: what the place says.
    #[serde(default)]
    pub health: Option<Health>,
    /// How it is tried. None: it becomes active at once.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// What the hosts of a fleet do when one of them cannot serve it.
    #[serde(default)]
    pub if_one_fails: IfOneFails,
}

/// Where the host gets a version.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// It has it already.
    Digest(Digest),
    /// From a registry.
    Reference(String),
}

/// A version to go back to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoingBack {
    /// The version. None: without a candidate the one before, and with one the active one.
    #[serde(default)]
    pub to: Option<Digest>,
}

/// One line about a change while it is made. The last one is `done`, `partly` or `failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// A step has begun.
    Step(String),
    /// It is worth knowing, and no failure.
    Warning(String),
    /// The change was made: what it is.
    Done(String),
    /// The change was made, but not on all hosts of the fleet, or it is not known whether it was: which, and why.
    Partly(String),
    /// Nothing was changed, and why.
    Failed(String),
}
