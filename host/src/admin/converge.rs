//! Has a host serve what its fleet is to serve: what the other hosts do while one of them makes a change, and what that one
//! does to make it on all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::access::Who;
use super::api::{IfOneFails, Last};
use super::audit::Entry;
use super::deployer::{Change, Deployer, Sharing};
use super::fleet::shared::{Desired, Failure, Prepared, Proposed};
use super::fleet::{Answer, Answers, Fleet, safe};
use super::progress::{Partly, Progress};
use crate::app::App;
use crate::app::load::Migrations;
use crate::artifact::Digest;
use crate::deploy::{Active, Record, seconds};
use crate::telemetry::metrics::METRICS;

/// How often a host looks at what it is to serve.
const TURN: Duration = Duration::from_millis(400);
/// The pauses between attempts to serve it: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a host waits for others that know what is to be served, before it says so itself.
const FOUNDING: Duration = Duration::from_secs(5);
/// How long a version is kept in memory that was prepared for a change, when nothing is heard of the change.
const KEPT: Duration = Duration::from_secs(60);
/// Who makes the changes that come by NATS, in the audit log.
const NATS: &str = "nats";
/// The most bytes of a name that another host has written.
const NAME_BYTES: usize = 100;
/// The most bytes of where another host has a version from.
const FROM_BYTES: usize = 1 << 10;

/// What a host remembers from one turn to the next.
#[derive(Default)]
struct Follower {
    /// A version that was prepared for the change of this generation.
    prepared: Option<(u64, Digest, Arc<App>)>,
    /// Since when nothing is heard from NATS.
    alone: Option<Instant>,
    /// Since when nobody has said what is to be served.
    unsaid: Option<Instant>,
    /// The record that could not be served, and when the next attempt is made after which pause.
    failed: Option<(Record, Instant, Duration)>,
}

impl Deployer {
    /// What the fleet is to serve when nobody has said so yet: what this host serves.
    pub(super) fn first_desired(&self, fleet: &Fleet) -> Desired {
        let record = self.now.lock().record.clone();
        Desired {
            generation: self.generation().max(record.generation),
            record,
            by: "the first host".to_owned(),
            coordinator: fleet.id.clone(),
            health: None,
            migrate: false,
            change: None,
        }
    }

    /// Has this host serve what its fleet is to serve, until `stop`. `first` is cancelled after the first attempt.
    pub async fn converge(self: Arc<Self>, first: CancellationToken, stop: CancellationToken) {
        let Some(fleet) = self.fleet.clone() else {
            return;
        };
        tracing::info!(target: "amphi::admin", host = fleet.id, "joins its fleet");
        let beating = {
            let (fleet, stop) = (Arc::clone(&fleet), stop.clone());
            tokio::spawn(async move { fleet.beat_until(stop).await })
        };
        let turns = async {
            fleet.connected().await;
            let mut follower = Follower::default();
            loop {
                fleet.counted(self.tally());
                self.turn(&fleet, &mut follower).await;
                if !first.is_cancelled() {
                    first.cancel();
                    Arc::clone(&self).resume().await;
                }
                tokio::time::sleep(TURN).await;
            }
        };
        tokio::select! {
            () = turns => {}
            () = stop.cancelled() => {}
        }
        let _ = beating.await;
    }

    async fn turn(self: &Arc<Self>, fleet: &Fleet, follower: &mut Follower) {
        let Ok((_, desired)) = fleet.look().await else {
            let since = *follower.alone.get_or_insert_with(Instant::now);
            if since.elapsed() > KEPT {
                follower.prepared = None;
            }
            return;
        };
        follower.alone = None;
        if let Some(desired) = &desired
            && desired.change.is_none()
            && desired.record == self.now.lock().record
        {
            (follower.prepared, follower.failed, follower.unsaid) = (None, None, None);
            return;
        }
        // A change of this host's own has it.
        let Ok(only) = Arc::clone(&self.changing).try_lock_owned() else {
            return;
        };
        // What was read before may be from before that change.
        let Ok((revision, desired)) = fleet.look().await else {
            return;
        };
        match desired {
            None => self.found(fleet, revision, follower).await,
            Some(desired) => {
                follower.unsaid = None;
                self.now.lock().under_way = Some(format!(
                    "following the fleet: {}",
                    safe(&desired.by, NAME_BYTES)
                ));
                self.follow(fleet, revision, &desired, follower).await;
                self.now.lock().under_way = None;
            }
        }
        drop(only);
    }

    /// Says what the fleet is to serve, if nobody does.
    async fn found(&self, fleet: &Fleet, revision: u64, follower: &mut Follower) {
        let since = *follower.unsaid.get_or_insert_with(Instant::now);
        if since.elapsed() < FOUNDING {
            return;
        }
        let desired = self.first_desired(fleet);
        let founding = async {
            self.keep_all(fleet, desired.record.versions().take(1))
                .await?;
            fleet.found(revision, desired).await
        };
        match founding.await {
            Ok(true) => {
                tracing::info!(target: "amphi::admin", "the fleet is to serve what this host serves, since no other was there");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(target: "amphi::admin", "{error:#}"),
        }
    }

    async fn follow(
        self: &Arc<Self>,
        fleet: &Fleet,
        revision: u64,
        desired: &Desired,
        follower: &mut Follower,
    ) {
        if let Some(change) = &desired.change {
            if let Err(error) = fleet.clear(revision, desired).await {
                tracing::debug!(target: "amphi::admin", "{error:#}");
            }
            if let (Some(proposed), false) = (&change.proposed, fleet.is_own(change))
                && !fleet.has_prepared(desired.generation, &change.run)
            {
                follower.prepared = None;
                let prepared = self.prepare_proposed(proposed).await;
                let failure = prepared.as_ref().err().map(|error| format!("{error:#}"));
                if let Some(why) = &failure {
                    METRICS.fleet_failures.inc();
                    tracing::warn!(target: "amphi::admin", digest = %proposed.digest, "a version that is proposed cannot be served here: {why}");
                }
                follower.prepared =
                    (prepared.ok()).map(|app| (desired.generation, proposed.digest, app));
                fleet.tell(|report| {
                    report.prepared = Some(Prepared {
                        generation: desired.generation,
                        run: change.run.clone(),
                        failure,
                    });
                });
            }
        }
        if desired.record == self.now.lock().record {
            return;
        }
        let known = follower
            .failed
            .as_ref()
            .filter(|(record, ..)| *record == desired.record);
        if known.is_some_and(|(_, next, _)| Instant::now() < *next) {
            return;
        }
        let is_first = known.is_none();
        let pause = known.map_or(PAUSES.0, |(_, _, pause)| (*pause * 2).min(PAUSES.1));
        let prepared = follower.prepared.take();
        let prepared = prepared.filter(|(generation, ..)| *generation == desired.record.generation);
        let digest = desired
            .record
            .candidate
            .as_ref()
            .map(|it| it.version.digest);
        let digest = digest.unwrap_or(desired.record.active.digest);
        let who = Who {
            name: NATS.to_owned(),
            peer: safe(&desired.coordinator, NAME_BYTES),
        };
        let by = safe(&desired.by, NAME_BYTES);
        let note = |outcome, sentence: &str| {
            let entry = Entry {
                digest: Some(digest),
                sentence,
                ..Entry::new("follow", outcome)
            };
            self.audit.of(&who, entry)
        };
        let serving = async {
            if is_first {
                let begun = note("begun", &by);
                begun.context("nothing is changed, because the audit log cannot be written")?;
            }
            self.serve_desired(desired, prepared).await
        };
        match serving.await {
            Ok(()) => {
                follower.failed = None;
                self.now.lock().last = Some(Last {
                    what: format!("{by} through {}", who.peer),
                    at: seconds(),
                    outcome: format!("this host has followed, with {digest}"),
                });
                if let Err(error) = note("done", &by) {
                    tracing::error!(target: "amphi::admin", "the audit log cannot be written: {error}");
                }
            }
            Err(error) => {
                let why = format!("{error:#}");
                METRICS.fleet_failures.inc();
                if is_first && let Err(error) = note("failed", &why) {
                    tracing::error!(target: "amphi::admin", "the audit log cannot be written: {error}");
                }
                if !is_first {
                    tracing::warn!(target: "amphi::admin", %digest, "what the fleet is to serve still cannot be served here; next attempt in {pause:?}: {why}");
                }
                follower.failed = Some((desired.record.clone(), Instant::now() + pause, pause));
                let generation = desired.record.generation;
                fleet.tell(|report| report.failure = Some(Failure { generation, why }));
            }
        }
    }

    async fn prepare_proposed(self: &Arc<Self>, proposed: &Proposed) -> anyhow::Result<Arc<App>> {
        let migrations = match proposed.migrate {
            true => Migrations::Apply,
            false => Migrations::Check,
        };
        let (from, health) = (safe(&proposed.from, FROM_BYTES), proposed.health.clone());
        let nobody = Progress::nobody();
        self.prepare(proposed.digest, &from, health, migrations, &nobody)
            .await
    }

    /// Serves what the fleet is to serve. `prepared`: what was prepared for it.
    async fn serve_desired(
        self: &Arc<Self>,
        desired: &Desired,
        prepared: Option<(u64, Digest, Arc<App>)>,
    ) -> anyhow::Result<()> {
        let Record {
            active, candidate, ..
        } = &desired.record;
        let ready = async |version: &Active| {
            if let Some((_, digest, app)) = &prepared
                && *digest == version.digest
            {
                return Ok(Arc::clone(app));
            }
            self.prepare_proposed(&Proposed {
                digest: version.digest,
                from: version.from.clone(),
                health: desired.health.clone(),
                migrate: desired.migrate,
            })
            .await
        };
        let before = self.now.lock().record.clone();
        if active.digest != before.active.digest {
            let app = ready(active).await?;
            let record = Record {
                candidate: None,
                ..desired.record.clone()
            };
            self.apply(record, Some(app)).await?;
        }
        let is_tried = self.now.lock().trying.is_some() && *candidate == before.candidate;
        let app = match candidate {
            Some(candidate) if !is_tried => Some(ready(&candidate.version).await?),
            _ => None,
        };
        if app.is_some() || self.now.lock().record != desired.record {
            self.apply(desired.record.clone(), app).await?;
        }
        Ok(())
    }

    /// Gets an artifact from NATS, and makes a version of it.
    pub(super) async fn obtain(self: &Arc<Self>, digest: Digest) -> anyhow::Result<()> {
        let Some(fleet) = &self.fleet else {
            bail!("the place belongs to no fleet");
        };
        let incoming = self.incoming().await?;
        let file = incoming.path().join("app.amphi");
        let max = self.place.deploy.artifact_max_bytes;
        fleet.get(digest, &file, max).await?;
        let found = self.add(&file).await?;
        if found != digest {
            bail!("NATS has {found} in the place of {digest}");
        }
        Ok(())
    }

    /// Puts the artifacts of versions into NATS that it lacks.
    async fn keep_all(
        &self,
        fleet: &Fleet,
        versions: impl Iterator<Item = &Active>,
    ) -> anyhow::Result<()> {
        for version in versions {
            let digest = version.digest;
            let state = self.state.clone();
            let signatures = spawn_blocking(move || state.signatures(digest)).await??;
            if fleet.has(digest, &signatures).await? {
                continue;
            }
            let incoming = self.incoming().await?;
            let file = incoming.path().join("app.amphi");
            let (state, trust, out) = (self.state.clone(), self.trust.clone(), file.clone());
            spawn_blocking(move || state.pack(digest, &trust, &out)).await??;
            fleet.put(digest, &signatures, &file).await?;
        }
        Ok(())
    }

    /// Makes a record what all hosts serve. See `Deployer::commit`.
    #[expect(clippy::too_many_arguments, reason = "the parts of one change")]
    pub(super) async fn commit_all(
        self: &Arc<Self>,
        fleet: &Arc<Fleet>,
        change: &mut Change,
        mut record: Record,
        app: Option<Arc<App>>,
        sharing: Sharing,
        outcome: String,
        progress: &Progress,
    ) -> anyhow::Result<String> {
        let Some(claim) = &mut change.claim else {
            bail!("the change was not claimed");
        };
        let generation = claim.generation();
        record.generation = generation;
        let others = fleet.others().await?;
        let mut missing = Answers::new();
        if let Some(proposed) = &sharing.proposed {
            progress.step("putting it into NATS");
            let versions = record.candidate.as_ref().map(|it| &it.version);
            self.keep_all(fleet, versions.into_iter().chain([&record.active]))
                .await?;
            fleet.propose(claim, proposed.clone()).await?;
            if !others.is_empty() {
                progress.step(format!("waiting for {} other hosts", others.len()));
            }
            missing = fleet.prepared(claim, &others, progress).await?;
            missing.retain(|_, answer| *answer != Answer::Yes);
            let fails = missing
                .values()
                .any(|answer| matches!(answer, Answer::No(_)));
            if fails && sharing.if_one_fails == IfOneFails::Keep {
                bail!(
                    "{}. All hosts stay on what they serve; with `--if-one-fails switch`, those switch that can",
                    named(&missing)
                );
            }
        }
        let (health, migrate) = match &sharing.proposed {
            Some(proposed) => (proposed.health.clone(), proposed.migrate),
            None => (claim.health(), false),
        };
        let committing = fleet.commit(&mut change.claim, &record, health, migrate);
        committing.await?;
        let applied = self.apply(record.clone(), app).await;
        let waited: Vec<String> = (others.iter())
            .filter(|id| !matches!(missing.get(*id), Some(Answer::No(_))))
            .cloned()
            .collect();
        let followed = fleet.followed(generation, &waited, progress).await;
        let (fleet, kept) = (Arc::clone(fleet), record);
        tokio::spawn(async move { fleet.prune(&kept).await });
        if let Err(error) = applied {
            return Err(Partly(format!(
                "the fleet is told to: {outcome}; but this host could not yet, and goes on trying: {error:#}"
            ))
            .into());
        }
        let answers = followed.map_err(|error| {
            Partly(format!(
                "{outcome} on this host; it is not known on which others: {error:#}"
            ))
        })?;
        missing.retain(|id, _| !answers.contains_key(id));
        missing.extend(
            answers
                .into_iter()
                .filter(|(_, answer)| *answer != Answer::Yes),
        );
        let all = others.len() + 1;
        if missing.is_empty() {
            return Ok(match all {
                1 => format!("{outcome}, on the only host that is there"),
                _ => format!("{outcome}, on all {all} hosts"),
            });
        }
        Err(Partly(format!(
            "{outcome}, on {} of {all} hosts; {}. What does not serve it yet goes on trying, or does so when it is back",
            all - missing.len(),
            named(&missing)
        ))
        .into())
    }
}

/// The hosts that cannot, and why.
fn named(answers: &Answers) -> String {
    let hosts = answers.iter().map(|(id, answer)| match answer {
        Answer::Yes => format!("{id} is ready"),
        Answer::No(why) => format!("{id} cannot serve it: {why}"),
        Answer::None(why) => format!("{id} is not there: {why}"),
    });
    hosts.collect::<Vec<_>>().join("; ")
}
