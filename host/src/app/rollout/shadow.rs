//! Shadow mode: the candidate gets copies of requests, and what it makes of them is compared with what the served
//! version makes of them. `request/shadow.rs` runs the copies; here is what they need beside the app, and the report.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::{self, Account};
use crate::telemetry::metrics::METRICS;

pub use super::comparison::{Seen, SeenBody, ShadowOptions};

/// Why a request was not copied, or its copy not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotCompared {
    /// The method is neither GET nor HEAD, and the view not atomic.
    Unsafe,
    /// The body is read while it arrives.
    StreamedBody,
    /// The body has more bytes than a copy's may have.
    LargeBody,
    /// As many copies run already as may.
    AtOnce,
    /// There was no memory, place, worker or connection for the copy.
    NoCapacity,
    /// The candidate may write files.
    Files,
    /// A database of the candidate has another configuration.
    Databases,
    /// The candidate wants to send an outbound request.
    Outbound,
    /// The candidate wants to pin a connection.
    Pin,
    /// The transaction of a version conflicted with another one.
    Conflict,
    /// The request has failed in the copy's transaction, and not when it was run again without the copy.
    Spoilt,
    /// A database could not be reached.
    Unavailable,
    /// A statement outside of transactions failed, which the copy's transaction does not survive.
    Poisoned,
    /// The answer is an event stream or a poll, and nothing else of it differs.
    Subscription,
    /// The body of an answer is produced while it is sent, and nothing else of it differs.
    StreamedAnswer,
    /// The served version did not run.
    NotServed,
}

impl fmt::Display for NotCompared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotCompared::Unsafe => "the method is neither GET nor HEAD, and the view is not atomic",
            NotCompared::StreamedBody => "the view reads the request's body while it arrives",
            NotCompared::LargeBody => "the request's body is too large for a copy",
            NotCompared::AtOnce => "as many copies as may run at once were running",
            NotCompared::NoCapacity => "the host had no capacity for a copy",
            NotCompared::Files => "the candidate may write files in its `directories`",
            NotCompared::Databases => "a database of the candidate has another configuration",
            NotCompared::Outbound => "the candidate makes outbound requests",
            NotCompared::Pin => "the candidate pins a connection",
            NotCompared::Conflict => "a transaction conflicted with another one",
            NotCompared::Spoilt => "the request failed after its copy, and not without it",
            NotCompared::Unavailable => "a database could not be reached",
            NotCompared::Poisoned => {
                "a statement of the candidate's view failed, and the view is not atomic"
            }
            NotCompared::Subscription => {
                "the answer is an event stream or a poll, and its head is equal"
            }
            NotCompared::StreamedAnswer => {
                "the answer's body is produced while it is sent, and its head is equal"
            }
            NotCompared::NotServed => "the served version had no capacity for the request",
        })
    }
}

/// A request that was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparedRequest {
    /// Its id.
    pub request: String,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The view of the served version, with its mode.
    pub view: String,
    /// The view of the candidate, if it has one there.
    pub candidate: Option<String>,
}

/// A request that the versions answer differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The request.
    #[serde(flatten)]
    pub request: ComparedRequest,
    /// What differs, a sentence each.
    pub differences: Vec<String>,
}

/// What a comparison says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Both versions made the same of the request.
    Equal,
    /// They did not, in the same state of the database.
    Differing(Vec<String>),
    /// They did not, but others have changed the database between them, which may be the reason.
    Unclear(Vec<String>),
}

/// What the comparisons have found so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowReport {
    /// How many requests were compared: the sum of the next three.
    pub compared: u64,
    /// How many both versions answered equally.
    pub equal: u64,
    /// How many they answered differently.
    pub differing: u64,
    /// How many they answered differently while others changed the database, which may be the reason.
    pub unclear: u64,
    /// How many requests were not compared, by reason.
    pub not_compared: BTreeMap<String, u64>,
    /// The first differences.
    pub differences: Vec<Difference>,
    /// The first of the unclear ones.
    pub unclear_differences: Vec<Difference>,
}

/// The numbers of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowNumbers {
    /// See [`ShadowReport::equal`].
    pub equal: u64,
    /// See [`ShadowReport::differing`].
    pub differing: u64,
    /// See [`ShadowReport::unclear`].
    pub unclear: u64,
    /// How many were not compared.
    pub not_compared: u64,
}

#[derive(Default)]
struct Counts {
    report: ShadowReport,
    not_compared: BTreeMap<NotCompared, u64>,
}

/// A rollout in shadow mode.
pub struct Shadow {
    /// What is compared, and what it may cost.
    pub options: ShadowOptions,
    permits: Arc<Semaphore>,
    /// The memory account of all copies, beside those of clients.
    account: Arc<Account>,
    counts: Mutex<Counts>,
}

impl Shadow {
    /// A rollout with nothing compared yet.
    pub fn new(options: ShadowOptions) -> Shadow {
        Shadow {
            permits: Arc::new(Semaphore::new(options.at_once.min(Semaphore::MAX_PERMITS))),
            account: budget::process().connection(),
            counts: Mutex::default(),
            options,
        }
    }

    /// A permit for one more copy. None: as many run as may.
    pub fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// The memory account of one copy: a client's requests never lack memory because of their copies.
    pub fn account(&self) -> Arc<Account> {
        self.account.unpaid()
    }

    /// Counts a request that was not compared.
    pub fn not_compared(&self, why: NotCompared) {
        METRICS.shadowed.with_label_values(&["not compared"]).inc();
        let mut counts = self.counts.lock();
        *counts.not_compared.entry(why).or_default() += 1;
    }

    /// Counts a request that was compared. The first difference is logged.
    pub fn compared(&self, request: &ComparedRequest, verdict: Verdict) {
        let outcome = match &verdict {
            Verdict::Equal => "equal",
            Verdict::Differing(_) => "differing",
            Verdict::Unclear(_) => "unclear",
        };
        METRICS.shadowed.with_label_values(&[outcome]).inc();
        let mut counts = self.counts.lock();
        let report = &mut counts.report;
        report.compared += 1;
        let (named, differences) = match verdict {
            Verdict::Equal => {
                report.equal += 1;
                return;
            }
            Verdict::Differing(differences) => {
                report.differing += 1;
                if report.differing == 1 {
                    let ComparedRequest {
                        request,
                        method,
                        path,
                        view,
                        ..
                    } = request;
                    let differences = differences.join("; ");
                    tracing::warn!(
                        request,
                        method,
                        path,
                        view,
                        differences,
                        "the version in shadow mode answers differently"
                    );
                }
                (&mut report.differences, differences)
            }
            Verdict::Unclear(differences) => {
                report.unclear += 1;
                (&mut report.unclear_differences, differences)
            }
        };
        if named.len() < self.options.named_max {
            named.push(Difference {
                request: request.clone(),
                differences,
            });
        }
    }

    /// What has been found so far.
    pub fn report(&self) -> ShadowReport {
        let counts = self.counts.lock();
        let named = |(why, number): (&NotCompared, &u64)| (why.to_string(), *number);
        ShadowReport {
            not_compared: counts.not_compared.iter().map(named).collect(),
            ..counts.report.clone()
        }
    }

    /// The numbers of the report.
    pub fn numbers(&self) -> ShadowNumbers {
        let counts = self.counts.lock();
        let ShadowReport {
            equal,
            differing,
            unclear,
            ..
        } = counts.report;
        ShadowNumbers {
            equal,
            differing,
            unclear,
            not_compared: counts.not_compared.values().sum(),
        }
    }

    /// What differs between what the versions made of a request, a sentence each; nothing if they are equal.
    pub fn differences(&self, served: &Seen, candidate: &Seen) -> Vec<String> {
        served.differences(candidate, &self.options)
    }
}
