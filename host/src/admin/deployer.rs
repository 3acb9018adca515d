//! Changes what a place serves, one change at a time.
//!
//! A change has three parts. First the new version is fetched, compared with its digests and signatures, joined with the
//! place, loaded beside the running one, and asked for its health: whatever fails there leaves everything as it was. Then
//! the record of what is served is replaced on the disk: that is the change. Then the app in memory is replaced, which
//! cannot fail. A host that is killed before the second part begins with the former version, and with the new one after it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Refusal, Who};
use super::api::{Deploying, GoingBack, Last, Line, Listed, Served, Status, Traffic, Tried};
use super::audit::{Audit, Entry};
use super::judge::{Verdict, judge};
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

/// How often a candidate is judged.
const JUDGING: Duration = Duration::from_millis(500);
/// How long the answer to the request for the health may take.
const HEALTH_TIME: Duration = Duration::from_secs(30);
/// How much of a wrong answer is shown.
const HEALTH_SHOWN: usize = 300;
/// The most bytes of what a version is said to be from.
const FROM_BYTES: usize = 1 << 10;
/// The lines about a change that wait for whoever has asked for it.
const LINES: usize = 64;
/// Who makes the changes that a `Judge` decides on.
const JUDGE: &str = "judge";

/// What a place serves, and the way to change it.
pub struct Deployer {
    host: Arc<Host>,
    pub(super) place: Place,
    state: State,
    trust: Trust,
    /// The configuration that the sockets and pools of the process were made for.
    started: Config,
    started_at: u64,
    pub(super) audit: Audit,
    changing: Arc<tokio::sync::Mutex<()>>,
    now: Mutex<Now>,
}

/// What is served now.
struct Now {
    record: Record,
    /// Since when the active version is watched, and its counts then.
    since: (Instant, Counts),
    /// The candidate, and its counts when it began to be tried: its health was asked for before.
    trying: Option<(Arc<App>, Counts)>,
    /// The change under way.
    under_way: Option<String>,
    last: Option<Last>,
}

/// The right to make a change.
pub(super) struct Change {
    who: Who,
    action: &'static str,
    _only: OwnedMutexGuard<()>,
}

/// Takes the lines about a change. Whoever asked for it may have gone; the change goes on.
#[derive(Clone)]
pub(super) struct Progress(Option<mpsc::Sender<Line>>);

impl Progress {
    pub(super) fn new() -> (Progress, mpsc::Receiver<Line>) {
        let (sender, receiver) = mpsc::channel(LINES);
        (Progress(Some(sender)), receiver)
    }

    fn tell(&self, line: Line) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(line);
        }
    }

    fn step(&self, text: impl Into<String>) {
        self.tell(Line::Step(text.into()));
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
        }))
    }

    /// Goes on with a candidate that was tried when the host ended.
    pub async fn resume(self: Arc<Self>) {
        let Some(candidate) = self.now.lock().record.candidate.clone() else {
            return;
        };
        let only = Arc::clone(&self.changing).lock_owned().await;
        self.now.lock().under_way =
            Some("the candidate from before the restart is loaded".to_owned());
        let nobody = Progress(None);
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
    pub(super) fn status(&self) -> Status {
        let now = self.now.lock();
        let app = self.host.app.load();
        let (since, before) = &now.since;
        let passed = since.elapsed();
        let candidate = (now.record.candidate.as_ref()).zip(now.trying.as_ref());
        Status {
            app: app.config.name.clone(),
            generation: now.record.generation,
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
        let now = self.now.lock().record.generation;
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

    /// Begins a change: to this version, from there, as far as that is known. That it was begun is on the disk when this returns: its line in the audit log, and the generation,
    /// so that a request is not taken a second time after a restart.
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
        self.is_current(generation)?;
        let (this, writer) = (Arc::clone(self), who.clone());
        let from = from.map(str::to_owned);
        let record = self.now.lock().record.counted();
        let writing = move || {
            let begun = Entry {
                who: None,
                peer: "",
                action,
                digest,
                from: from.as_deref(),
                outcome: "begun",
                sentence: "",
            };
            let noted = this.audit.of(&writer, begun);
            noted.context("the audit log cannot be written")?;
            this.write_record(record)
        };
        let written = spawn_blocking(writing).await;
        let written = written.map_err(anyhow::Error::from).flatten();
        written.map_err(|error| {
            Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("nothing is changed: {error:#}"),
            )
        })?;
        self.now.lock().under_way = Some(format!("{action} by {}", who.name));
        Ok(Change {
            who: who.clone(),
            action,
            _only: only,
        })
    }

    /// Notes what has come of a change.
    fn ended(
        &self,
        change: Change,
        digest: Option<Digest>,
        from: Option<&str>,
        result: anyhow::Result<String>,
    ) -> Line {
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
        let (outcome, sentence) = match &result {
            Ok(sentence) => ("done", sentence.clone()),
            Err(error) => ("failed", format!("{error:#}")),
        };
        let entry = Entry {
            who: None,
            peer: "",
            action,
            digest,
            from,
            outcome,
            sentence: &sentence,
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
        change: Change,
        (digest, wanted): (Digest, Deploying),
        progress: &Progress,
    ) {
        let result = self.deploying(digest, &wanted, progress).await;
        let line = self.ended(change, Some(digest), Some(&wanted.from), result);
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
        digest: Digest,
        wanted: &Deploying,
        progress: &Progress,
    ) -> anyhow::Result<String> {
        let trial = wanted.trial.as_ref();
        let audience = trial
            .map(|trial| trial.audience.parse::<Audience>())
            .transpose()
            .map_err(anyhow::Error::msg)?;
        if let Some(Trial {
            ignored_headers,
            ignored_fields,
            ..
        }) = trial
        {
            let options = ShadowOptions::ignoring(ignored_headers, ignored_fields);
            options.map_err(anyhow::Error::msg)?;
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
        let app = self.prepare(digest, &wanted.from, health, migrations, progress);
        let app = app.await?;
        // People read it in lines of a terminal.
        let from = cut(escaped_line(&wanted.from), FROM_BYTES);
        let version = Active::now(digest, from);
        match audience.zip(wanted.trial.clone()) {
            Some((audience, trial)) => {
                let candidate = Candidate {
                    version,
                    trial: trial.clone(),
                };
                let record = self.now.lock().record.trying(Some(candidate));
                self.replace(record).await?;
                let text = audience.to_string();
                self.try_out(app, audience, &trial);
                Ok(format!("{digest} is tried beside {active}: {text}"))
            }
            None => {
                let keep = self.place.deploy.keep;
                let record = self.now.lock().record.activated(version, false, keep);
                self.activate(record, app).await?;
                Ok(format!("{digest} is active"))
            }
        }
    }

    /// Makes the candidate the active version.
    pub(super) async fn promote(self: &Arc<Self>, change: Change, progress: &Progress) {
        let (digest, result) = self.promoting().await;
        let line = self.ended(change, digest, None, result);
        progress.tell(line);
    }

    async fn promoting(self: &Arc<Self>) -> (Option<Digest>, anyhow::Result<String>) {
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
        let activated = self.activate(record, app).await;
        (
            Some(digest),
            activated.map(|()| format!("{digest} is active")),
        )
    }

    /// Gives the candidate up, or goes back to a version before.
    pub(super) async fn roll_back(
        self: &Arc<Self>,
        change: Change,
        to: GoingBack,
        progress: &Progress,
    ) {
        let mut digest = to.to;
        let result = self.rolling_back(to.to, progress, &mut digest).await;
        let line = self.ended(change, digest, None, result);
        progress.tell(line);
    }

    async fn rolling_back(
        self: &Arc<Self>,
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
            self.give_up(&record).await?;
            return Ok(format!("{digest} is given up; {active} is served"));
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
        let version = Active::now(digest, from);
        self.activate(record.activated(version, true, self.place.deploy.keep), app)
            .await?;
        Ok(format!("{digest} is active again"))
    }

    async fn give_up(self: &Arc<Self>, record: &Record) -> anyhow::Result<()> {
        self.replace(record.trying(None)).await?;
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
    async fn prepare(
        &self,
        digest: Digest,
        from: &str,
        health: Option<Health>,
        migrations: Migrations,
        progress: &Progress,
    ) -> anyhow::Result<Arc<App>> {
        progress.step(format!("checking {digest}"));
        let (state, trust, place) = (self.state.clone(), self.trust.clone(), self.place.clone());
        let version = spawn_blocking(move || state.version(digest, &trust)).await??;
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
                    let mut config = configure(&version, &place, &from)?;
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

    /// Sends a request through the whole chain of an app, as a client of this machine.
    async fn ask(&self, app: &Arc<App>, health: &Health) -> anyhow::Result<()> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(&health.path)
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, "amphi-health")
            .body(Empty::new());
        let (parts, body) = request
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
            let answer = request::answer_in(&self.host, (app, None), &client, parts, body);
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
        let options = ShadowOptions::ignoring(&trial.ignored_headers, &trial.ignored_fields);
        let rollout = match (&audience, options) {
            (Audience::Shadow, Ok(options)) => Rollout::in_shadow(Arc::clone(&app), options),
            _ => Rollout::new(Arc::clone(&app), audience),
        };
        self.host.roll_out(Some(rollout));
        if trial.judge.is_some() {
            let since = self.now.lock().since.0;
            tokio::spawn(Arc::clone(self).judging(app, since));
        }
    }

    /// Judges a candidate that is tried since this moment, until it is promoted, given up or tried anew, by this or by
    /// somebody.
    async fn judging(self: Arc<Self>, app: Arc<App>, begun: Instant) {
        loop {
            tokio::time::sleep(JUDGING).await;
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
                let active = self.host.app.load().stats.now().since(before);
                let tried = app.stats.now().since(tried_before);
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
            let generation = self.now.lock().record.generation;
            // Somebody changes something just now: that comes first.
            let about = (self.candidate(), None);
            let Ok(change) = self.begin(&who, action, about, Some(generation)).await else {
                continue;
            };
            let record = self.now.lock().record.clone();
            let is_there = self.now.lock().since.0 == begun;
            let (digest, result) = match (is_there, action) {
                (false, _) => (None, Err(anyhow!("the candidate has changed meanwhile"))),
                (true, "promote") => self.promoting().await,
                (true, _) => {
                    let digest = record.candidate.as_ref().map(|it| it.version.digest);
                    let given_up = self.give_up(&record).await;
                    let name = digest.map(|digest| digest.to_string()).unwrap_or_default();
                    (digest, given_up.map(|()| format!("{name} is given up")))
                }
            };
            let result = result.map(|sentence| format!("{sentence}: {why}"));
            if let Line::Failed(why) = self.ended(change, digest, None, result) {
                tracing::error!(target: "amphi::admin", "a verdict could not be carried out: {why}");
            }
        }
    }
}

/// The configuration of a version in a place.
fn configure(version: &Version, place: &Place, from: &str) -> anyhow::Result<Config> {
    let config = version.config(place, Purpose::Serve);
    let mut config = config.with_context(|| format!("{from} ({})", version.digest))?;
    let file = place.file.iter();
    let named = file.map(|file| format!("--place {} ", file.display()));
    config.named = named.chain([from.to_owned()]).collect();
    Ok(config)
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
