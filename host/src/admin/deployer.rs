//! Changes what a place serves, one change at a time.
//!
//! A change has three parts. First the new version is fetched, compared with its digests and signatures, joined with the
//! place, loaded beside the running one, and asked for its health: whatever fails there leaves everything as it was. Then
//! the record of what is served is replaced on the disk: that is the change. Then the app in memory is replaced, which
//! cannot fail. A host that is killed before the second part begins with the former version, and with the new one after it.
//!
//! In a fleet, the second part is a change of the record that all hosts share, and comes after all have done the first one
//! (`commit`, `converge.rs`); then each host does the second and third part for itself (`apply`).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Refusal, Who};
use super::api::{
    Deploying, GoingBack, IfOneFails, Last, Line, Listed, Served, Status, Traffic, Tried,
};
use super::audit::{Audit, Entry};
use super::fleet::shared::{Proposed, Tally};
use super::fleet::{Claim, Fleet};
use super::judge::{Verdict, judge};
use super::progress::{Partly, Progress};
use crate::app::App;
use crate::app::host::Host;
use crate::app::load::{Migrations, load};
use crate::app::rollout::shadow::ShadowOptions;
use crate::app::rollout::{Audience, Rollout};
use crate::app::stats::Counts;
use crate::artifact::registry::{self, Reference};
use crate::artifact::signature::Trust;
use crate::artifact::{Artifact, Digest};
use crate::budget;
use crate::config::{Config, Health, Place, Purpose};
use crate::deploy::{Active, Candidate, Record, State, Trial, Version, seconds};
use crate::request::socket::Upgrades;
use crate::request::{self, Client};
use crate::telemetry::error::cut;
use crate::telemetry::log::escaped_line;

/// How often a candidate is judged by what this host has counted.
const JUDGED_EVERY: Duration = Duration::from_millis(500);
/// How often a candidate is judged by what all hosts of a fleet have counted: they tell it as often.
const JUDGED_IN_FLEET_EVERY: Duration = Duration::from_secs(2);
/// How long the answer to the request for the health may take.
const HEALTH_TIME: Duration = Duration::from_secs(30);
/// How much of a wrong answer is shown.
const HEALTH_SHOWN: usize = 300;
/// The most bytes of what a version is said to be from.
const FROM_BYTES: usize = 1 << 10;
/// Who makes the changes that a `Judge` decides on.
const JUDGE: &str = "judge";

/// What a place serves, and the way to change it.
pub struct Deployer {
    host: Arc<Host>,
    pub(super) place: Place,
    pub(super) state: State,
    pub(super) trust: Trust,
    pub(super) fleet: Option<Arc<Fleet>>,
    /// The configuration that the sockets and pools of the process were made for.
    started: Config,
    started_at: u64,
    pub(super) audit: Audit,
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
    pub(super) now: Mutex<Now>,
}

/// What is served now.
pub(super) struct Now {
    pub(super) record: Record,
    /// Since when the active version is watched, and its counts then.
    since: (Instant, Counts),
    /// The candidate, and its counts when it began to be tried: its health was asked for before.
    pub(super) trying: Option<(Arc<App>, Counts)>,
    /// The change under way.
    pub(super) under_way: Option<String>,
    pub(super) last: Option<Last>,
}

/// The right to make a change.
pub(super) struct Change {
    who: Who,
    action: &'static str,
    /// In a fleet: the right to make it on all hosts, until it is made.
    pub(super) claim: Option<Claim>,
    _only: OwnedMutexGuard<()>,
}

/// How a change is made on the other hosts of a fleet.
pub(super) struct Sharing {
    pub(super) if_one_fails: IfOneFails,
    /// The version that they prepare first. None: they have it in memory.
    pub(super) proposed: Option<Proposed>,
}

impl Sharing {
    fn ready() -> Sharing {
        Sharing {
            if_one_fails: IfOneFails::Switch,
            proposed: None,
        }
    }
}

impl Deployer {
    /// Takes over a place whose active version the host serves.
    ///
    /// # Errors
    /// When the audit log cannot be opened.
    pub fn new(
        host: Arc<Host>,
        place: Place,
        state: State,
        record: Record,
        fleet: Option<Arc<Fleet>>,
    ) -> anyhow::Result<Arc<Deployer>> {
        let audit = Audit::open(&place.state).context("the audit log, audit.log in `state`")?;
        let app = host.app.load();
        Ok(Arc::new(Deployer {
            trust: Trust::of(&place),
            started: app.config.clone(),
            started_at: seconds(),
            audit,
            changing: Arc::default(),
            now: Mutex::new(Now {
                record,
                since: (Instant::now(), app.stats.now()),
                trying: None,
                under_way: None,
                last: None,
            }),
            host: Arc::clone(&host),
            place,
            state,
            fleet,
        }))
    }

    /// Goes on with a candidate that was tried when the host ended.
    pub async fn resume(self: Arc<Self>) {
        let Some(candidate) = self.now.lock().record.candidate.clone() else {
            return;
        };
        if self.now.lock().trying.is_some() {
            return;
        }
        let only = Arc::clone(&self.changing).lock_owned().await;
        self.now.lock().under_way =
            Some("the candidate from before the restart is loaded".to_owned());
        let nobody = Progress::nobody();
        let begun = async {
            let audience = candidate
                .trial
                .audience
                .parse()
                .map_err(anyhow::Error::msg)?;
            let digest = candidate.version.digest;
            let app = self.prepare(
                digest,
                &candidate.version.from,
                None,
                Migrations::Check,
                &nobody,
            );
            let app = app.await?;
            self.try_out(app, audience, &candidate.trial);
            anyhow::Ok(())
        };
        if let Err(error) = begun.await {
            tracing::error!(target: "amphi::admin", digest = %candidate.version.digest, "the candidate cannot be tried any more, and is given up: {error:#}");
            let record = self.now.lock().record.counted().trying(None);
            if let Err(error) = self.replace(record).await {
                tracing::error!(target: "amphi::admin", "{error:#}");
            }
        }
        self.now.lock().under_way = None;
        drop(only);
    }

    /// What runs.
    pub(super) async fn status(&self) -> Status {
        self.refresh().await;
        let fleet = match &self.fleet {
            Some(fleet) => Some(fleet.status().await),
            None => None,
        };
        let generation = self.generation();
        let now = self.now.lock();
        let app = self.host.app.load();
        let (since, before) = &now.since;
        let passed = since.elapsed();
        let candidate = (now.record.candidate.as_ref()).zip(now.trying.as_ref());
        Status {
            app: app.config.name.clone(),
            generation,
            active: Served {
                version: now.record.active.clone(),
                traffic: traffic(&app.stats.now().since(before), passed),
            },
            candidate: candidate.map(|(candidate, (app, before))| Tried {
                version: candidate.version.clone(),
                trial: candidate.trial.clone(),
                traffic: traffic(&app.stats.now().since(before), passed),
                shadow: self.host.shadow().map(|shadow| shadow.report()),
            }),
            last: now.last.clone(),
            host: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started_at,
            fleet,
        }
    }

    /// What this host has counted since it tries a candidate.
    pub(super) fn tally(&self) -> Option<Tally> {
        let now = self.now.lock();
        let (app, before) = now.trying.as_ref()?;
        Some(Tally {
            generation: now.record.generation,
            active: self.host.app.load().stats.now().since(&now.since.1),
            candidate: app.stats.now().since(before),
            shadow: self.host.shadow().map(|shadow| shadow.numbers()),
        })
    }

    /// The generation that a change is made to: that of the fleet, or that of the record.
    pub(super) fn generation(&self) -> u64 {
        let of_fleet = self.fleet.as_ref().and_then(|fleet| fleet.generation());
        of_fleet.unwrap_or_else(|| self.now.lock().record.generation)
    }

    /// Looks up the generation of the fleet, which another host may have changed just now.
    pub(super) async fn refresh(&self) {
        if let Some(fleet) = &self.fleet {
            // Without NATS it stays the one that was seen last.
            let _ = fleet.look().await;
        }
    }

    /// The version that is tried.
    pub(super) fn candidate(&self) -> Option<Digest> {
        let now = self.now.lock();
        now.record.candidate.as_ref().map(|it| it.version.digest)
    }

    /// The versions that the place has, the active one first.
    pub(super) fn versions(&self) -> Vec<Listed> {
        let now = self.now.lock();
        let listed = |version: &Active, state: &str| Listed {
            version: version.clone(),
            state: state.to_owned(),
        };
        let Record {
            active,
            candidate,
            earlier,
            ..
        } = &now.record;
        let mut versions = vec![listed(active, "active")];
        versions.extend(candidate.iter().map(|it| listed(&it.version, "candidate")));
        versions.extend(earlier.iter().map(|it| {
            let state = match it.rolled_back {
                true => "rolled back",
                false => "earlier",
            };
            listed(&it.version, state)
        }));
        versions
    }

    /// Compares the generation that a request for a change names.
    pub(super) fn is_current(&self, generation: Option<u64>) -> Result<(), Refusal> {
        let now = self.generation();
        match generation {
            Some(given) if given == now => Ok(()),
            Some(given) => Err(Refusal::new(
                StatusCode::PRECONDITION_FAILED,
                format!(
                    "the request is for generation {given}, and the place is at {now}: somebody has changed it since, or the request was sent before; look at `amphi status`, then try again"
                ),
            )),
            None => Err(Refusal::new(
                StatusCode::PRECONDITION_REQUIRED,
                format!(
                    "a change names the generation that it is made to: `if-match: \"{now}\"`, from `amphi status`"
                ),
            )),
        }
    }

    /// Begins a change: to this version, from there, as far as that is known. When this returns, the line in the audit log and
    /// the new generation are on the disk, so that a request is not taken a second time after a restart.
    pub(super) async fn begin(
        self: &Arc<Self>,
        who: &Who,
        action: &'static str,
        (digest, from): (Option<Digest>, Option<&str>),
        generation: Option<u64>,
    ) -> Result<Change, Refusal> {
        let Ok(only) = Arc::clone(&self.changing).try_lock_owned() else {
            let under_way = self.now.lock().under_way.clone().unwrap_or_default();
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                format!("another change is under way ({under_way}): wait until it has ended"),
            ));
        };
        let claim = match &self.fleet {
            None => {
                self.is_current(generation)?;
                None
            }
            Some(fleet) => {
                let what = format!("{action} by {}", who.name);
                let check = || self.is_current(generation);
                let claim = fleet.claim(&what, self.first_desired(fleet), check).await?;
                if *claim.record() != self.now.lock().record {
                    fleet.release(claim).await;
                    let sentence = "this host does not serve yet what the fleet is to serve: wait until it does (`amphi status`), or ask another host";
                    return Err(Refusal::new(StatusCode::CONFLICT, sentence));
                }
                Some(claim)
            }
        };
        let (this, writer) = (Arc::clone(self), who.clone());
        let from = from.map(str::to_owned);
        // A fleet's attempts are counted by the claim.
        let record = match &claim {
            None => Some(self.now.lock().record.counted()),
            Some(_) => None,
        };
        let writing = move || {
            let begun = Entry {
                digest,
                from: from.as_deref(),
                ..Entry::new(action, "begun")
            };
            let noted = this.audit.of(&writer, begun);
            noted.context("the audit log cannot be written")?;
            record.map_or(Ok(()), |record| this.write_record(record))
        };
        let written = spawn_blocking(writing).await;
        let written = written.map_err(anyhow::Error::from).flatten();
        if let Err(error) = written {
            if let Some((fleet, claim)) = self.fleet.as_ref().zip(claim) {
                fleet.release(claim).await;
            }
            return Err(Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("nothing is changed: {error:#}"),
            ));
        }
        self.now.lock().under_way = Some(format!("{action} by {}", who.name));
        Ok(Change {
            who: who.clone(),
            action,
            claim,
            _only: only,
        })
    }

    /// Notes what has come of a change.
    async fn ended(
        &self,
        mut change: Change,
        digest: Option<Digest>,
        from: Option<&str>,
        result: anyhow::Result<String>,
    ) -> Line {
        if let Some((fleet, claim)) = self.fleet.as_ref().zip(change.claim.take()) {
            fleet.release(claim).await;
        }
        let line = self.noted((&change.who, change.action), digest, from, result);
        self.now.lock().under_way = None;
        line
    }

    /// Notes what has come of what somebody does.
    fn noted(
        &self,
        (who, action): (&Who, &'static str),
        digest: Option<Digest>,
        from: Option<&str>,
        result: anyhow::Result<String>,
    ) -> Line {
        let is_partly = (result.as_ref()).is_err_and(|error| error.is::<Partly>());
        let (outcome, sentence) = match &result {
            Ok(sentence) => ("done", sentence.clone()),
            Err(error) if is_partly => ("partly", format!("{error:#}")),
            Err(error) => ("failed", format!("{error:#}")),
        };
        let entry = Entry {
            digest,
            from,
            sentence: &sentence,
            ..Entry::new(action, outcome)
        };
        if let Err(error) = self.audit.of(who, entry) {
            tracing::error!(target: "amphi::admin", "the audit log cannot be written: {error}");
        }
        self.now.lock().last = Some(Last {
            what: format!("{action} by {}", who.name),
            at: seconds(),
            outcome: sentence.clone(),
        });
        match result {
            Ok(_) => Line::Done(sentence),
            Err(_) if is_partly => Line::Partly(sentence),
            Err(_) => Line::Failed(sentence),
        }
    }

    /// Takes an artifact into the folder of versions. `file`: where it is.
    pub(super) async fn add(self: &Arc<Self>, file: &Path) -> anyhow::Result<Digest> {
        let (this, file) = (Arc::clone(self), file.to_owned());
        let adding = move || {
            let artifact = Artifact::open(&file)?;
            anyhow::Ok(this.state.add(&artifact, &this.trust)?.digest)
        };
        spawn_blocking(adding).await?
    }

    /// Takes an artifact that was uploaded, and makes room for the next one. A change that goes on makes room at its end:
    /// its version may be one that nothing names yet.
    pub(super) async fn add_uploaded(self: &Arc<Self>, file: &Path) -> anyhow::Result<Digest> {
        let digest = self.add(file).await?;
        if let Ok(only) = Arc::clone(&self.changing).try_lock_owned() {
            let this = Arc::clone(self);
            self.now.lock().under_way = Some("old versions are removed".to_owned());
            spawn_blocking(move || this.prune()).await?;
            self.now.lock().under_way = None;
            drop(only);
        }
        Ok(digest)
    }

    /// A folder for an artifact that arrives.
    pub(super) async fn incoming(&self) -> anyhow::Result<crate::deploy::Incoming> {
        let state = self.state.clone();
        Ok(spawn_blocking(move || state.incoming()).await??)
    }

    /// Deploys a version.
    pub(super) async fn deploy(
        self: &Arc<Self>,
        mut change: Change,
        (digest, wanted): (Digest, Deploying),
        progress: &Progress,
    ) {
        let result = self.deploying(&mut change, digest, &wanted, progress);
        let result = result.await;
        let ended = self.ended(change, Some(digest), Some(&wanted.from), result);
        let line = ended.await;
        progress.tell(line);
    }

    /// Deploys a version of a registry. It is fetched before the change begins: a registry that is slow keeps nobody from
    /// going back to another version.
    pub(super) async fn pull_and_deploy(
        self: &Arc<Self>,
        who: &Who,
        (text, wanted): (String, Deploying),
        generation: Option<u64>,
        progress: &Progress,
    ) {
        let (action, from) = ("deploy", Some(&*wanted.from));
        let digest = match self.fetch(&text, progress).await {
            Ok(digest) => digest,
            Err(error) => {
                return progress.tell(self.noted((who, action), None, from, Err(error)));
            }
        };
        let about = (Some(digest), from);
        match self.begin(who, action, about, generation).await {
            Ok(change) => self.deploy(change, (digest, wanted), progress).await,
            Err(refusal) => {
                let why = Err(anyhow!(refusal.sentence));
                progress.tell(self.noted((who, action), Some(digest), from, why));
            }
        }
    }

    async fn deploying(
        self: &Arc<Self>,
        change: &mut Change,
        digest: Digest,
        wanted: &Deploying,
        progress: &Progress,
    ) -> anyhow::Result<String> {
        let trial = wanted.trial.as_ref();
        let audience = trial
            .map(|trial| trial.audience.parse::<Audience>())
            .transpose()
            .map_err(anyhow::Error::msg)?;
        if let Some(trial) = trial {
            ShadowOptions::of(trial).map_err(anyhow::Error::msg)?;
        }
        if let Some(health) = &wanted.health
            && !health.path.starts_with('/')
        {
            bail!(
                "the path of the health check, `{}`, does not begin with `/`",
                health.path
            );
        }
        let active = self.now.lock().record.active.digest;
        if digest == active {
            bail!("{digest} is the active version already");
        }
        // A place without a file has its databases for itself.
        let migrations = match wanted.migrate || self.place.file.is_none() {
            true => Migrations::Apply,
            false => Migrations::Check,
        };
        let health = wanted.health.clone();
        let app = self.prepare(digest, &wanted.from, health.clone(), migrations, progress);
        let app = app.await?;
        // People read it in lines of a terminal.
        let from = cut(escaped_line(&wanted.from), FROM_BYTES);
        let version = Active::now(digest, from);
        let sharing = Sharing {
            if_one_fails: wanted.if_one_fails,
            proposed: Some(Proposed {
                digest,
                from: version.from.clone(),
                health,
                migrate: wanted.migrate,
            }),
        };
        let (record, outcome) = match audience.zip(wanted.trial.clone()) {
            Some((audience, trial)) => {
                let candidate = Candidate { version, trial };
                let record = self.now.lock().record.trying(Some(candidate));
                let outcome = format!("{digest} is tried beside {active}: {audience}");
                (record, outcome)
            }
            None => {
                let keep = self.place.deploy.keep;
                let record = self.now.lock().record.activated(version, false, keep);
                (record, format!("{digest} is active"))
            }
        };
        let committed = self.commit(change, record, Some(app), sharing, outcome, progress);
        committed.await
    }

    /// Makes a record what is served, here or on all hosts of the fleet. `app`: the version that is new in it. `outcome`:
    /// what it means, which is returned with what is to be said of other hosts.
    async fn commit(
        self: &Arc<Self>,
        change: &mut Change,
        record: Record,
        app: Option<Arc<App>>,
        sharing: Sharing,
        outcome: String,
        progress: &Progress,
    ) -> anyhow::Result<String> {
        if let Some(fleet) = &self.fleet {
            let committed = self.commit_all(fleet, change, record, app, sharing, outcome, progress);
            return committed.await;
        }
        self.apply(record, app).await?;
        Ok(outcome)
    }

    /// Serves what a record says. `app`: the version that is new in it.
    pub(super) async fn apply(
        self: &Arc<Self>,
        record: Record,
        app: Option<Arc<App>>,
    ) -> anyhow::Result<()> {
        let (generation, active) = (record.generation, record.active.digest);
        let is_new = active != self.now.lock().record.active.digest;
        match (record.candidate.clone(), app) {
            (None, Some(app)) if is_new => self.activate(record, app).await?,
            (Some(candidate), Some(app)) => {
                let audience = candidate
                    .trial
                    .audience
                    .parse()
                    .map_err(anyhow::Error::msg)?;
                self.replace(record).await?;
                self.try_out(app, audience, &candidate.trial);
            }
            (None, _) if self.now.lock().trying.is_some() => self.give_up(record).await?,
            (_, None) | (None, Some(_)) => self.replace(record).await?,
        }
        if let Some(fleet) = &self.fleet {
            fleet.serves(generation, active);
        }
        Ok(())
    }

    /// Makes the candidate the active version.
    pub(super) async fn promote(self: &Arc<Self>, mut change: Change, progress: &Progress) {
        let (digest, result) = self.promoting(&mut change, progress).await;
        let line = self.ended(change, digest, None, result).await;
        progress.tell(line);
    }

    async fn promoting(
        self: &Arc<Self>,
        change: &mut Change,
        progress: &Progress,
    ) -> (Option<Digest>, anyhow::Result<String>) {
        let (record, app, digest) = {
            let now = self.now.lock();
            let Some((candidate, (app, _))) =
                now.record.candidate.as_ref().zip(now.trying.as_ref())
            else {
                return (
                    None,
                    Err(anyhow!(
                        "there is no candidate to promote: `amphi deploy --canary` makes one"
                    )),
                );
            };
            let Active { digest, from, .. } = candidate.version.clone();
            let version = Active::now(digest, from);
            let keep = self.place.deploy.keep;
            let record = now.record.activated(version, false, keep);
            (record, Arc::clone(app), digest)
        };
        let outcome = format!("{digest} is active");
        let committed = self.commit(
            change,
            record,
            Some(app),
            Sharing::ready(),
            outcome,
            progress,
        );
        (Some(digest), committed.await)
    }

    /// Gives the candidate up, or goes back to a version before.
    pub(super) async fn roll_back(
        self: &Arc<Self>,
        mut change: Change,
        to: GoingBack,
        progress: &Progress,
    ) {
        let mut digest = to.to;
        let result = self.rolling_back(&mut change, to.to, progress, &mut digest);
        let result = result.await;
        let line = self.ended(change, digest, None, result).await;
        progress.tell(line);
    }

    async fn rolling_back(
        self: &Arc<Self>,
        change: &mut Change,
        to: Option<Digest>,
        progress: &Progress,
        found: &mut Option<Digest>,
    ) -> anyhow::Result<String> {
        let record = self.now.lock().record.clone();
        let active = record.active.digest;
        if let Some(candidate) = &record.candidate
            && to.is_none_or(|to| to == active)
        {
            let digest = candidate.version.digest;
            *found = Some(digest);
            let outcome = format!("{digest} is given up; {active} is served");
            let record = record.trying(None);
            let committed = self.commit(change, record, None, Sharing::ready(), outcome, progress);
            return committed.await;
        }
        let target = match to {
            Some(to) if to == active => bail!("{active} is the active version already"),
            Some(to) => record.versions().find(|version| version.digest == to),
            None => record.before(),
        };
        let Some(target) = target else {
            match to {
                Some(to) => bail!("the place has no version {to}: `amphi versions` lists them"),
                None => bail!(
                    "there is no earlier version to go back to: `amphi versions` lists what there is, and `amphi rollback DIGEST` goes to one of them"
                ),
            }
        };
        let Active { digest, from, .. } = target.clone();
        *found = Some(digest);
        let app = self.prepare(digest, &from, None, Migrations::Check, progress);
        let app = app.await?;
        // Whoever goes back wants to be rid of the version: a host that cannot keeps none of the others. One that was away
        // may lack migrations that the others have.
        let sharing = Sharing {
            if_one_fails: IfOneFails::Switch,
            proposed: Some(Proposed {
                digest,
                from: from.clone(),
                health: None,
                migrate: change.claim.as_ref().is_some_and(Claim::migrates),
            }),
        };
        let version = Active::now(digest, from);
        let record = record.activated(version, true, self.place.deploy.keep);
        let outcome = format!("{digest} is active again");
        let committed = self.commit(change, record, Some(app), sharing, outcome, progress);
        committed.await
    }

    async fn give_up(self: &Arc<Self>, record: Record) -> anyhow::Result<()> {
        self.replace(record).await?;
        self.watch(None);
        self.host.roll_out(None);
        Ok(())
    }

    /// Gets a version into the folder of versions.
    async fn fetch(self: &Arc<Self>, text: &str, progress: &Progress) -> anyhow::Result<Digest> {
        let reference: Reference = text.parse().map_err(|why: String| anyhow!(why))?;
        progress.step(format!("pulling {reference}"));
        let incoming = self.incoming().await?;
        let file = incoming.path().join("app.amphi");
        let (trust, out) = (self.trust.clone(), file.clone());
        // It writes to the disk between its waits.
        let pulling = move || {
            let check = |manifest: &_, signatures: &[String]| trust.check(manifest, signatures);
            Handle::current().block_on(registry::pull(&reference, &out, check))
        };
        spawn_blocking(pulling).await??;
        self.add(&file).await
    }

    /// Makes an app of a version, beside what is served, and asks it for its health.
    pub(super) async fn prepare(
        self: &Arc<Self>,
        digest: Digest,
        from: &str,
        health: Option<Health>,
        migrations: Migrations,
        progress: &Progress,
    ) -> anyhow::Result<Arc<App>> {
        progress.step(format!("checking {digest}"));
        let place = self.place.clone();
        let version = self.version(digest, progress).await?;
        let known = {
            let now = self.now.lock();
            let candidate = now.record.candidate.as_ref().zip(now.trying.as_ref());
            let same = candidate.filter(|(candidate, _)| candidate.version.digest == digest);
            same.map(|(_, (app, _))| Arc::clone(app))
        };
        let app = match known {
            Some(app) => app,
            None => {
                let host = Arc::clone(&self.host);
                let tell = progress.clone();
                let started = self.started.clone();
                let from = from.to_owned();
                let loading = move || {
                    let mut config = version.config(&place, &from, Purpose::Serve)?;
                    // The command line may have named others.
                    config.listen.clone_from(&started.listen);
                    for setting in config.needing_restart(&started) {
                        tell.tell(Line::Warning(format!(
                            "`{setting}` differs: that takes effect when the host is started anew"
                        )));
                    }
                    tell.step("loading");
                    let served = host.app.load_full();
                    load(config, &host.engines, Some(&served), migrations, false)
                };
                let loaded = spawn_blocking(loading).await?;
                Arc::new(loaded.map_err(|error| match migrations {
                    Migrations::Check if format!("{error:#}").contains("of its migrations") => {
                        error.context("a deploy applies them with `--migrate`")
                    }
                    _ => error,
                })?)
            }
        };
        if let Some(health) = health.or_else(|| self.place.deploy.health.clone()) {
            progress.step(format!("asking for {}", health.path));
            self.ask(&app, &health).await?;
        }
        Ok(app)
    }

    /// A version of the place, checked. A host of a fleet gets from NATS what it lacks.
    async fn version(
        self: &Arc<Self>,
        digest: Digest,
        progress: &Progress,
    ) -> anyhow::Result<Version> {
        let check = || {
            let (state, trust) = (self.state.clone(), self.trust.clone());
            spawn_blocking(move || state.version(digest, &trust))
        };
        let error = match (check().await?, &self.fleet) {
            (Ok(version), _) => return Ok(version),
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(_)) if self.state.has(digest) => Some(error),
            (Err(_), Some(_)) => None,
        };
        progress.step(format!("getting {digest}"));
        let got = self.obtain(digest).await;
        match error {
            Some(error) => got.with_context(|| error.to_string())?,
            None => got?,
        }
        Ok(check().await??)
    }

    /// Sends a request through the whole chain of an app, as a client of this machine.
    async fn ask(&self, app: &Arc<App>, health: &Health) -> anyhow::Result<()> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(&health.path)
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, "amphi-health")
            .body(Empty::new());
        let (mut parts, body) = request
            .with_context(|| format!("`{}` is not a path", health.path))?
            .into_parts();
        let client = Client {
            peer: ([127, 0, 0, 1], 0).into(),
            account: budget::process().connection(),
            upgrades: Upgrades {
                open: TaskTracker::new(),
                stop: CancellationToken::new(),
                held: Arc::new(()),
                into_stream: |_| None,
            },
        };
        let asking = async {
            let answer = request::answer_in(&self.host, (app, None), &client, &mut parts, body);
            let response = answer.await;
            let status = response.status();
            let mut body = response.into_body();
            let (mut shown, mut broken) = (Vec::new(), false);
            while shown.len() < HEALTH_SHOWN
                && let Some(frame) = body.frame().await
            {
                match frame {
                    Ok(frame) => shown.extend(frame.into_data().unwrap_or_default()),
                    Err(_) => {
                        broken = true;
                        break;
                    }
                }
            }
            (status, shown, broken)
        };
        let (path, wanted) = (&health.path, health.status);
        let Ok((status, shown, broken)) = tokio::time::timeout(HEALTH_TIME, asking).await else {
            bail!("the health check failed: {path} was not answered within {HEALTH_TIME:?}");
        };
        if broken {
            bail!("the health check failed: the body of {path} broke off; the host's log says why");
        }
        if status.as_u16() != wanted {
            let shown = cut(String::from_utf8_lossy(&shown).into_owned(), HEALTH_SHOWN);
            bail!(
                "the health check failed: {path} answered {status} where {wanted} is wanted: {shown}"
            );
        }
        Ok(())
    }

    /// Replaces the record. Nothing has changed when it fails.
    async fn replace(self: &Arc<Self>, record: Record) -> anyhow::Result<()> {
        let this = Arc::clone(self);
        let writing = move || {
            this.write_record(record)?;
            this.prune();
            anyhow::Ok(())
        };
        spawn_blocking(writing).await?
    }

    /// Replaces the record on the disk, then the one in memory. Only one change at a time gets here. Blocks.
    fn write_record(&self, record: Record) -> anyhow::Result<()> {
        let last = self.now.lock().record.clone();
        self.state.replace_record(&last, &record)?;
        self.now.lock().record = record;
        Ok(())
    }

    /// Removes versions that nothing names. Blocks.
    fn prune(&self) {
        let record = self.now.lock().record.clone();
        if let Err(error) = self.state.prune(&record, self.place.deploy.keep) {
            tracing::warn!(target: "amphi::admin", "old versions could not be removed: {error}");
        }
    }

    async fn activate(self: &Arc<Self>, record: Record, app: Arc<App>) -> anyhow::Result<()> {
        self.replace(record).await?;
        self.host.swap(app);
        self.watch(None);
        Ok(())
    }

    /// Begins to count anew.
    fn watch(&self, trying: Option<Arc<App>>) {
        let counts = self.host.app.load().stats.now();
        let trying = trying.map(|app| (Arc::clone(&app), app.stats.now()));
        let mut now = self.now.lock();
        now.since = (Instant::now(), counts);
        now.trying = trying;
    }

    fn try_out(self: &Arc<Self>, app: Arc<App>, audience: Audience, trial: &Trial) {
        self.watch(Some(Arc::clone(&app)));
        let options = ShadowOptions::of(trial);
        let rollout = match (&audience, options) {
            (Audience::Shadow, Ok(options)) => Rollout::in_shadow(Arc::clone(&app), options),
            _ => Rollout::new(Arc::clone(&app), audience),
        };
        self.host.roll_out(Some(rollout));
        // In a fleet, the host that the candidate was deployed through judges.
        let judges = self
            .fleet
            .as_ref()
            .is_none_or(|fleet| fleet.is_coordinator());
        if trial.judge.is_some() && judges {
            let since = self.now.lock().since.0;
            tokio::spawn(Arc::clone(self).judging(app, since));
        }
    }

    /// Judges a candidate that is tried since this moment, until it is promoted, given up or tried anew, by this or by
    /// somebody.
    async fn judging(self: Arc<Self>, app: Arc<App>, begun: Instant) {
        loop {
            tokio::time::sleep(match self.fleet {
                Some(_) => JUDGED_IN_FLEET_EVERY,
                None => JUDGED_EVERY,
            })
            .await;
            let others = match &self.fleet {
                Some(fleet) => fleet.tallies().await,
                None => Ok(Vec::new()),
            };
            // Without NATS no verdict could be carried out.
            let Ok(others) = others else {
                continue;
            };
            let verdict = {
                let now = self.now.lock();
                let candidate = now.record.candidate.as_ref();
                let rules = candidate.and_then(|candidate| candidate.trial.judge.as_ref());
                let (Some((_, tried_before)), Some(rules)) = (now.trying.as_ref(), rules) else {
                    return;
                };
                if now.since.0 != begun {
                    return;
                }
                let (since, before) = &now.since;
                let mut active = self.host.app.load().stats.now().since(before);
                let mut tried = app.stats.now().since(tried_before);
                let is_same = |tally: &&Tally| tally.generation == now.record.generation;
                for tally in others.iter().filter(is_same) {
                    active.add(&tally.active);
                    tried.add(&tally.candidate);
                }
                judge(rules, since.elapsed(), &active, &tried)
            };
            let (action, why) = match verdict {
                Verdict::Wait => continue,
                Verdict::Promote(why) => ("promote", why),
                Verdict::GiveUp(why) => ("rollback", why),
            };
            let who = Who {
                name: JUDGE.to_owned(),
                peer: String::new(),
            };
            let generation = self.generation();
            // Somebody changes something just now: that comes first.
            let about = (self.candidate(), None);
            let Ok(mut change) = self.begin(&who, action, about, Some(generation)).await else {
                continue;
            };
            let is_there = self.now.lock().since.0 == begun;
            let (digest, result) = match (is_there, action) {
                (false, _) => (None, Err(anyhow!("the candidate has changed meanwhile"))),
                (true, "promote") => self.promoting(&mut change, &Progress::nobody()).await,
                (true, _) => {
                    let mut digest = None;
                    let nobody = Progress::nobody();
                    let rolling_back = self.rolling_back(&mut change, None, &nobody, &mut digest);
                    let result = rolling_back.await;
                    (digest, result)
                }
            };
            let result = result.map(|sentence| format!("{sentence}; about the candidate: {why}"));
            if let Line::Failed(why) = self.ended(change, digest, None, result).await {
                tracing::error!(target: "amphi::admin", "a verdict could not be carried out: {why}");
            }
        }
    }
}

fn traffic(counts: &Counts, passed: Duration) -> Traffic {
    let millis = |part| {
        let found = counts.quantile(part)?;
        Some(found.as_secs_f64() * 1_000.0)
    };
    Traffic {
        seconds: passed.as_secs_f64(),
        requests: counts.requests(),
        errors: counts.errors,
        p50_ms: millis(0.5),
        p99_ms: millis(0.99),
    }
}
