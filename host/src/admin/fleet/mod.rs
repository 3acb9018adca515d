//! Hosts that serve the same, and find each other by NATS.
//!
//! One value says what all hosts are to serve (`Desired`). It is replaced only by whoever has read the one before, so of
//! two changes one comes first, and the other is refused. The host that is asked for a change coordinates it:
//!
//! 1. It claims the change: the value names the change, with another generation. While it is there, nobody begins another.
//! 2. It prepares the version itself, puts the artifact into NATS, and proposes it. Each other host gets the artifact, checks
//!    and loads it, and reports that it is ready, or why it is not.
//! 3. It replaces the value by one with the new record: that is the change. Each host, this one too, then writes the record
//!    to its own disk, and serves it.
//!
//! A coordinator that ends before the third step leaves everything as it was: when it is not heard any more, or comes back
//! as another run of itself, any host takes the change out of the value. Should it go on after all, its value is refused.
//! A host that missed a change finds the record when it is back. Without NATS all hosts go on with what they have.

pub(super) mod shared;
mod store;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::access::Refusal;
use super::api::{FleetStatus, HostStatus, TriedThere};
use super::progress::{Partly, Progress};
use crate::artifact::Digest;
use crate::config::{FleetConfig, Health};
use crate::deploy::{Record, State};
use crate::telemetry::error::cut;
use crate::telemetry::log::escaped_line;
use crate::telemetry::metrics::METRICS;
use shared::{Change, Desired, Heard, Proposed, Report, Tally};
use store::{HOSTS, Store, Written};

/// How often a host says that it is there.
const BEAT: Duration = Duration::from_secs(2);
/// How often the coordinator looks at the reports of the others.
const LOOK: Duration = Duration::from_millis(200);
/// How long hosts may take to prepare a version.
const PREPARING: Duration = Duration::from_secs(5 * 60);
/// How long the coordinator waits until the others serve what they have prepared.
const FOLLOWING: Duration = Duration::from_secs(60);
/// How long the coordinator goes on without NATS, before it gives a change up.
const LOST: Duration = Duration::from_secs(15);
/// How long an artifact may take to or from NATS.
const TRANSFER: Duration = Duration::from_secs(5 * 60);
/// The most bytes of a sentence in a report.
const SENTENCE_BYTES: usize = 600;
/// The most bytes of a name.
const NAME_BYTES: usize = 100;

/// This host's part of its fleet.
pub struct Fleet {
    store: Store,
    name: String,
    /// The name of this host.
    pub(super) id: String,
    run: String,
    report: Mutex<Report>,
    changed: Notify,
    seen: Mutex<Seen>,
}

/// What was found in NATS last.
#[derive(Default)]
struct Seen {
    generation: Option<u64>,
    coordinator: Option<String>,
    change: Option<String>,
    problem: Option<String>,
}

/// The right to make a change on all hosts.
pub(super) struct Claim {
    revision: u64,
    desired: Desired,
}

impl Claim {
    pub(super) fn generation(&self) -> u64 {
        self.desired.generation
    }

    /// What the candidate had to answer.
    pub(super) fn health(&self) -> Option<Health> {
        self.desired.health.clone()
    }

    /// Whether migrations were ever allowed.
    pub(super) fn migrates(&self) -> bool {
        self.desired.migrate
    }

    /// What all hosts are to serve so far.
    pub(super) fn record(&self) -> &Record {
        &self.desired.record
    }
}

/// What a host makes of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is ready, or serves it.
    Yes,
    /// It cannot: why.
    No(String),
    /// It was not heard, or has not answered in time: what of it.
    None(String),
}

/// What hosts make of a version, by name.
pub(super) type Answers = BTreeMap<String, Answer>;

impl Fleet {
    /// The fleet that a place belongs to. NATS may be away. Blocks on the disk for a moment.
    ///
    /// # Errors
    /// When an address is wrong, or the name of the host cannot be kept.
    pub async fn join(
        config: &FleetConfig,
        state: &State,
        record: &Record,
    ) -> anyhow::Result<Arc<Fleet>> {
        let run = uuid::Uuid::new_v4().simple().to_string();
        let report = Report {
            run: run.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: record.generation,
            active: record.active.digest,
            prepared: None,
            failure: None,
            stopped: false,
            tally: None,
        };
        let shown = i64::try_from(record.generation).unwrap_or(i64::MAX);
        METRICS.fleet_generation.set(shown);
        Ok(Arc::new(Fleet {
            store: Store::connect(config).await?,
            name: config.name.clone(),
            id: state.host_id()?,
            run,
            report: Mutex::new(report),
            changed: Notify::new(),
            seen: Mutex::default(),
        }))
    }

    /// What a place is to serve that has served nothing yet: gets the record and the artifact from NATS.
    ///
    /// # Errors
    /// When there is none, or it cannot be had.
    pub async fn first(config: &FleetConfig, max: u64, file: &Path) -> anyhow::Result<Record> {
        let store = Store::connect(config).await?;
        store.connected().await;
        let (_, desired) = store.desired().await?;
        let Some(Desired { record, .. }) = desired else {
            bail!(
                "no host of the fleet `{}` has served anything yet",
                config.name
            );
        };
        store.get(record.active.digest, file, max, TRANSFER).await?;
        Ok(record)
    }

    /// Waits for a connection for a moment.
    pub(super) async fn connected(&self) {
        self.store.connected().await;
    }

    /// What all hosts are to serve, and its revision.
    pub(super) async fn look(&self) -> anyhow::Result<(u64, Option<Desired>)> {
        let found = self.store.desired().await;
        let mut seen = self.seen.lock();
        match &found {
            Ok((_, desired)) => {
                if seen.problem.take().is_some() {
                    tracing::info!(target: "amphi::admin", fleet = self.name, "NATS is back");
                }
                let desired = desired.as_ref();
                seen.generation = desired.map(|it| it.generation).or(seen.generation);
                seen.coordinator = desired.map(|it| it.coordinator.clone());
                let change = desired.and_then(|it| it.change.as_ref());
                seen.change = change.map(described);
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if seen.problem.is_none() {
                    tracing::warn!(target: "amphi::admin", fleet = self.name, "what the fleet is to serve cannot be read; this host goes on with what it has: {problem}");
                }
                seen.problem = Some(problem);
            }
        }
        found
    }

    /// The generation of the fleet that was seen last.
    pub(super) fn generation(&self) -> Option<u64> {
        self.seen.lock().generation
    }

    /// Whether this host has made the last change, and so judges the candidate.
    pub(super) fn is_coordinator(&self) -> bool {
        self.seen.lock().coordinator.as_ref() == Some(&self.id)
    }

    /// Whether a change is one of this run of this host.
    pub(super) fn is_own(&self, change: &Change) -> bool {
        change.coordinator == self.id && change.run == self.run
    }

    /// Whether nobody makes a change any more.
    async fn is_over(&self, change: &Change) -> anyhow::Result<bool> {
        if self.is_own(change) {
            return Ok(true);
        }
        let coordinator = self.store.host(&change.coordinator, &self.id).await?;
        let makes_it = |host: Heard| host.is_there() && host.report.run == change.run;
        Ok(!coordinator.is_some_and(makes_it))
    }

    /// Takes a change out that nobody makes any more. A change of this host's own is over when this is called.
    pub(super) async fn clear(&self, revision: u64, desired: &Desired) -> anyhow::Result<()> {
        let Some(change) = &desired.change else {
            return Ok(());
        };
        if !self.is_over(change).await? {
            return Ok(());
        }
        tracing::warn!(target: "amphi::admin", "a change is over that was not finished: {}", described(change));
        let without = Desired {
            change: None,
            ..desired.clone()
        };
        self.store.replace(&without, revision).await?;
        Ok(())
    }

    /// Says what all hosts are to serve, when nobody has said so yet and no other host knows a later record.
    pub(super) async fn found(&self, revision: u64, desired: Desired) -> anyhow::Result<bool> {
        let mine = (desired.record.generation, self.id.clone());
        let hosts = self.store.hosts().await?;
        let mut others = hosts.iter().filter(|host| host.is_there());
        if others.any(|host| (host.report.generation, host.id.clone()) > mine) {
            return Ok(false);
        }
        Ok(self.store.replace(&desired, revision).await? != Written::Overtaken)
    }

    /// Claims a change. `first`: what all hosts are to serve if nobody has said so yet. `check`: whether the change was
    /// decided on at this generation.
    pub(super) async fn claim(
        &self,
        what: &str,
        first: Desired,
        check: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<Claim, Refusal> {
        let away = |error: anyhow::Error| {
            let sentence = format!(
                "nothing is changed, because the other hosts of the fleet `{}` would not learn of it: {error:#}",
                self.name
            );
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
        };
        // The others give a change up whose coordinator they do not hear.
        self.beat().await.map_err(away)?;
        let (revision, found) = self.look().await.map_err(away)?;
        let mut desired = found.unwrap_or(first);
        self.seen.lock().generation = Some(desired.generation);
        check()?;
        if let Some(change) = &desired.change
            && !self.is_over(change).await.map_err(away)?
        {
            let sentence = format!(
                "another change is under way ({}): wait until it has ended",
                described(change)
            );
            return Err(Refusal::new(StatusCode::CONFLICT, sentence));
        }
        desired.generation += 1;
        desired.change = Some(Change {
            coordinator: self.id.clone(),
            run: self.run.clone(),
            what: what.to_owned(),
            proposed: None,
        });
        match self.store.replace(&desired, revision).await.map_err(away)? {
            Written::Done(revision) => {
                self.seen.lock().generation = Some(desired.generation);
                Ok(Claim { revision, desired })
            }
            Written::Overtaken => Err(Refusal::new(
                StatusCode::CONFLICT,
                "another change has just begun through another host: look at `amphi status`, then try again",
            )),
        }
    }

    /// Gives a claim back. What cannot be given back now is over as soon as any host notices.
    pub(super) async fn release(&self, claim: Claim) {
        let without = Desired {
            change: None,
            ..claim.desired
        };
        if let Err(error) = self.store.replace(&without, claim.revision).await {
            tracing::warn!(target: "amphi::admin", "the end of a change could not be told to the fleet yet: {error:#}");
        }
    }

    /// Whether the artifact is in NATS, with these signatures at least.
    pub(super) async fn has(&self, digest: Digest, signatures: &[Digest]) -> anyhow::Result<bool> {
        self.store.has(digest, signatures).await
    }

    /// Puts an artifact with these signatures into NATS.
    pub(super) async fn put(
        &self,
        digest: Digest,
        signatures: &[Digest],
        file: &Path,
    ) -> anyhow::Result<()> {
        self.store.put(digest, signatures, file, TRANSFER).await
    }

    /// Gets an artifact from NATS.
    pub(super) async fn get(&self, digest: Digest, out: &Path, max: u64) -> anyhow::Result<()> {
        self.store.get(digest, out, max, TRANSFER).await
    }

    /// Removes old artifacts that no record names.
    pub(super) async fn prune(&self, record: &Record) {
        let named: Vec<Digest> = record.versions().map(|it| it.digest).collect();
        if let Err(error) = self.store.prune(&named).await {
            tracing::warn!(target: "amphi::admin", "old artifacts could not be removed from NATS: {error:#}");
        }
    }

    /// The other hosts that are there.
    pub(super) async fn others(&self) -> anyhow::Result<Vec<String>> {
        let hosts = self.store.hosts().await?;
        let others = hosts
            .into_iter()
            .filter(|it| it.is_there() && it.id != self.id);
        Ok(others.map(|host| host.id).collect())
    }

    /// Has the other hosts prepare a version.
    pub(super) async fn propose(
        &self,
        claim: &mut Claim,
        proposed: Proposed,
    ) -> anyhow::Result<()> {
        let mut desired = claim.desired.clone();
        if let Some(change) = &mut desired.change {
            change.proposed = Some(proposed);
        }
        match self.store.replace(&desired, claim.revision).await? {
            Written::Done(revision) => {
                *claim = Claim { revision, desired };
                Ok(())
            }
            Written::Overtaken => bail!(TAKEN),
        }
    }

    /// Waits until these hosts have prepared the version that was proposed.
    pub(super) async fn prepared(
        &self,
        claim: &Claim,
        hosts: &[String],
        progress: &Progress,
    ) -> anyhow::Result<Answers> {
        let generation = claim.generation();
        let answers = self.ask(
            hosts,
            Some(claim),
            PREPARING,
            progress,
            "is ready",
            |report| {
                let prepared = report.prepared.as_ref();
                let prepared =
                    prepared.filter(|it| it.generation == generation && it.run == self.run)?;
                Some(match &prepared.failure {
                    None => Answer::Yes,
                    Some(why) => Answer::No(why.clone()),
                })
            },
        );
        answers.await
    }

    /// Waits until these hosts serve the record of this generation.
    pub(super) async fn followed(
        &self,
        generation: u64,
        hosts: &[String],
        progress: &Progress,
    ) -> anyhow::Result<Answers> {
        let answers = self.ask(hosts, None, FOLLOWING, progress, "has switched", |report| {
            if report.generation >= generation {
                return Some(Answer::Yes);
            }
            let failure = report.failure.as_ref();
            let failure = failure.filter(|it| it.generation >= generation)?;
            Some(Answer::No(failure.why.clone()))
        });
        answers.await
    }

    /// Waits for the answers of hosts, as long as the claim holds.
    async fn ask(
        &self,
        hosts: &[String],
        claim: Option<&Claim>,
        time: Duration,
        progress: &Progress,
        done: &str,
        answer: impl Fn(&Report) -> Option<Answer>,
    ) -> anyhow::Result<Answers> {
        let (begun, mut heard_at) = (Instant::now(), Instant::now());
        let mut answers = Answers::new();
        while answers.len() < hosts.len() {
            let found = async {
                // Whoever was halted for long may wait for answers that others have meanwhile had forgotten.
                let holds = match claim {
                    Some(claim) => self.store.desired().await?.0 == claim.revision,
                    None => true,
                };
                anyhow::Ok((holds, self.store.hosts().await?))
            };
            match found.await {
                Ok((false, _)) => bail!(TAKEN),
                Ok((true, found)) => {
                    heard_at = Instant::now();
                    let open = hosts.iter().filter(|id| !answers.contains_key(*id));
                    for id in open.collect::<Vec<_>>() {
                        let heard = found.iter().find(|host| host.id == *id);
                        let Some(answer) = answered(heard, &answer) else {
                            continue;
                        };
                        progress.step(match &answer {
                            Answer::Yes => format!("{id} {done}"),
                            Answer::No(why) => format!("{id} cannot: {why}"),
                            Answer::None(why) => format!("{id} is not there: {why}"),
                        });
                        answers.insert(id.clone(), answer);
                    }
                }
                Err(error) if heard_at.elapsed() > LOST => return Err(error),
                Err(_) => {}
            }
            if begun.elapsed() > time {
                for id in hosts {
                    let late = || Answer::None(format!("it has not answered within {time:?}"));
                    answers.entry(id.clone()).or_insert_with(late);
                }
            }
            if answers.len() < hosts.len() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(answers)
    }

    /// Makes a record what all hosts are to serve. Nothing has changed when it fails, but for a failure that is `Partly`.
    pub(super) async fn commit(
        &self,
        claim: &mut Option<Claim>,
        record: &Record,
        health: Option<Health>,
        migrate: bool,
    ) -> anyhow::Result<()> {
        let Some(Claim { revision, desired }) = claim.take() else {
            bail!(TAKEN);
        };
        let by = desired.change.as_ref().map(|change| change.what.clone());
        let new = Desired {
            generation: desired.generation,
            record: record.clone(),
            by: by.unwrap_or_default(),
            coordinator: self.id.clone(),
            health,
            migrate: desired.migrate || migrate,
            change: None,
        };
        let begun = Instant::now();
        loop {
            let problem = match self.store.replace(&new, revision).await {
                Ok(Written::Done(_)) => break,
                // An attempt before may have done it, whose answer was lost.
                Ok(Written::Overtaken) => match self.store.desired().await {
                    Ok((_, Some(found))) if found.record.generation == new.record.generation => {
                        break;
                    }
                    Ok(_) => bail!(TAKEN),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if begun.elapsed() > LOST {
                return Err(Partly(format!(
                    "it is not known whether anything was changed, because NATS was lost in the moment of the change: `amphi status` says so when it is back ({problem:#})"
                )).into());
            }
            tokio::time::sleep(LOOK).await;
        }
        self.seen.lock().coordinator = Some(self.id.clone());
        Ok(())
    }

    /// Changes what this host says of itself.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock();
        change(&mut report);
        let cut_to = |text: &mut String| *text = cut(std::mem::take(text), SENTENCE_BYTES);
        if let Some(failure) = &mut report.failure {
            cut_to(&mut failure.why);
        }
        if let Some(why) = report.prepared.as_mut().and_then(|it| it.failure.as_mut()) {
            cut_to(why);
        }
        drop(report);
        self.changed.notify_one();
    }

    /// Says what this host serves.
    pub(super) fn serves(&self, generation: u64, active: Digest) {
        let shown = i64::try_from(generation).unwrap_or(i64::MAX);
        METRICS.fleet_generation.set(shown);
        self.tell(|report| {
            (report.generation, report.active) = (generation, active);
            report.failure = None;
        });
    }

    /// Says with the next report what this host has counted of a candidate.
    pub(super) fn counted(&self, tally: Option<Tally>) {
        self.report.lock().tally = tally;
    }

    /// What the other hosts that are there have counted of a candidate.
    pub(super) async fn tallies(&self) -> anyhow::Result<Vec<Tally>> {
        let hosts = self.store.hosts().await?;
        let others = hosts
            .into_iter()
            .filter(|it| it.is_there() && it.id != self.id);
        Ok(others.filter_map(|host| host.report.tally).collect())
    }

    /// Whether this host has prepared what a change has proposed, or has failed to.
    pub(super) fn has_prepared(&self, generation: u64, run: &str) -> bool {
        let report = self.report.lock();
        let prepared = report.prepared.as_ref();
        prepared.is_some_and(|it| it.generation == generation && it.run == run)
    }

    async fn beat(&self) -> anyhow::Result<()> {
        let report = self.report.lock().clone();
        self.store.report(&self.id, &report).await
    }

    /// Says that this host is there, and how it is, until `stop`.
    pub(super) async fn beat_until(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.beat().await {
                tracing::debug!(target: "amphi::admin", "the fleet was not told how this host is: {error:#}");
            }
            tokio::select! {
                () = tokio::time::sleep(BEAT) => {}
                () = self.changed.notified() => {}
                () = stop.cancelled() => {}
            }
        }
        self.report.lock().stopped = true;
        if let Err(error) = self.beat().await {
            tracing::debug!(target: "amphi::admin", "the fleet was not told that this host ends: {error:#}");
        }
    }

    /// The fleet, for people.
    pub(super) async fn status(&self) -> FleetStatus {
        let found = self.store.hosts().await;
        let (hosts, mut problem) = match found {
            Ok(hosts) => (hosts, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let seen = self.seen.lock();
        problem = problem.or_else(|| seen.problem.clone());
        FleetStatus {
            name: self.name.clone(),
            problem,
            change: seen.change.clone(),
            hosts: hosts.iter().map(|host| self.shown(host)).collect(),
            hosts_max: HOSTS,
        }
    }

    fn shown(&self, host: &Heard) -> HostStatus {
        let report = &host.report;
        let state = match &report.failure {
            _ if report.stopped => "stopped".to_owned(),
            _ if !host.is_there() => "not heard".to_owned(),
            Some(failure) => format!("fails: {}", safe(&failure.why, SENTENCE_BYTES)),
            None => "serves".to_owned(),
        };
        HostStatus {
            id: safe(&host.id, NAME_BYTES),
            own: host.id == self.id,
            version: safe(&report.version, NAME_BYTES),
            generation: report.generation,
            active: report.active,
            state,
            tried: report.tally.as_ref().map(|tally| TriedThere {
                requests: tally.candidate.requests(),
                errors: tally.candidate.errors,
                shadow: tally.shadow,
            }),
            silent_s: host.silent.as_secs(),
        }
    }
}

/// Why a change cannot go on.
const TAKEN: &str = "the change was taken from this host, because the others have not heard of it for a while, or somebody has changed the fleet meanwhile: look at `amphi status`, then try again";

/// What a host makes of a version, if it has said so or is not there.
fn answered(heard: Option<&Heard>, answer: impl Fn(&Report) -> Option<Answer>) -> Option<Answer> {
    let Some(host) = heard else {
        return Some(Answer::None("it is not known any more".to_owned()));
    };
    if host.report.stopped {
        return Some(Answer::None("it was stopped".to_owned()));
    }
    if !host.is_there() {
        let seconds = host.silent.as_secs();
        return Some(Answer::None(format!("it was not heard of for {seconds} s")));
    }
    Some(match answer(&host.report)? {
        Answer::No(why) => Answer::No(safe(&why, SENTENCE_BYTES)),
        other => other,
    })
}

fn described(change: &Change) -> String {
    format!(
        "{} through {}",
        safe(&change.what, NAME_BYTES),
        safe(&change.coordinator, NAME_BYTES)
    )
}

/// A text that another host, or whoever may write to NATS, has written.
pub(super) fn safe(text: &str, max: usize) -> String {
    escaped_line(&cut(text.to_owned(), max)).to_string()
}
