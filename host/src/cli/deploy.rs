//! `amphi deploy`: has a place serve another version.

use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use clap::Args;

use super::block_on::block_on;
use super::package;
use super::place::{Connected, Remote};
use super::source::is_artifact;
use crate::admin::api::{Deploying, IfOneFails, Source};
use crate::app::rollout::Audience;
use crate::artifact::registry::SCHEME;
use crate::artifact::{Artifact, Digest};
use crate::config::Health;
use crate::deploy::{Judge, Trial};
use crate::telemetry::log::escaped;
use crate::telemetry::stderr;

/// How often the place is asked what has become of a candidate.
const ASKING: Duration = Duration::from_secs(1);
/// How long it may take from the end of a candidate until the place says why: until all hosts of a fleet have followed.
const SAYING: Duration = Duration::from_secs(90);

#[derive(Args)]
pub(super) struct Arguments {
    /// What is deployed: an artifact (FILE.amphi), the folder of an app that has been built, an artifact in a registry
    /// (oci://HOST/NAME:TAG), which the place fetches, or a version that the place has (sha256:…).
    #[arg(value_name = "FOLDER|FILE.amphi|oci://REF|DIGEST")]
    source: String,
    #[command(flatten)]
    remote: Remote,
    /// Apply the migrations that the databases lack. Without it, a version that needs any is refused.
    #[arg(long)]
    migrate: bool,
    /// What the hosts of a fleet do when one of them cannot serve it: none of them switches, or those switch that can.
    #[arg(long, value_name = "WHAT", value_enum, default_value = "keep")]
    if_one_fails: IfOneFails,
    /// A path that the new version has to answer before anybody gets it.
    #[arg(long, value_name = "PATH")]
    health: Option<String>,
    /// The status that it has to answer with.
    #[arg(
        long,
        value_name = "STATUS",
        default_value_t = 200,
        requires = "health"
    )]
    health_status: u16,
    /// Give it to some first: a share of the clients (5%), or requests with a header (header:x-canary=1).
    #[arg(long, value_name = "AUDIENCE", conflicts_with = "shadow")]
    canary: Option<String>,
    /// Know clients again by their addresses, and not by a cookie.
    #[arg(long, requires = "canary")]
    by_address: bool,
    /// Give it copies of requests, whose answers nobody gets, and report where they differ.
    #[arg(long)]
    shadow: bool,
    /// With --shadow: a header that may differ. May be given more than once.
    #[arg(long, value_name = "NAME", requires = "shadow")]
    ignore_header: Vec<String>,
    /// With --shadow: a field of JSON that may differ. May be given more than once.
    #[arg(long, value_name = "NAME", requires = "shadow")]
    ignore_field: Vec<String>,
    /// With --shadow: statements that write may differ, e.g. because they have the time among their parameters.
    #[arg(long, requires = "shadow")]
    ignore_writes: bool,
    /// With --shadow: for how many milliseconds a request may wait for its copy; 2000 without it.
    #[arg(long, value_name = "MS", requires = "shadow")]
    shadow_timeout: Option<u64>,
    /// With --shadow: how many requests are copied at once; 4 without it. Further ones are not copied.
    #[arg(long, value_name = "NUMBER", requires = "shadow")]
    shadow_at_once: Option<usize>,
    /// Promote it, or roll it back, by its errors and latencies; waits for that.
    #[arg(long, requires = "canary")]
    auto: bool,
    /// With --auto: for how many seconds it is watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "auto")]
    window: u64,
    /// With --auto: how many requests it has to answer.
    #[arg(long, value_name = "NUMBER", default_value_t = 100, requires = "auto")]
    requests_min: u64,
    /// With --auto: the most failing requests, in percent, beyond those of the active version.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, requires = "auto")]
    errors_max: f64,
    /// With --auto: the greatest 99th percentile of its latencies, in percent of the active version's.
    #[arg(long, value_name = "PERCENT", default_value_t = 150, requires = "auto")]
    p99_max: u32,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    let trial = arguments.trial()?;
    block_on(async {
        let before = place.status().await?;
        let generation = before.generation;
        let source = arguments.source(&place, generation).await?;
        let wanted = Deploying {
            source,
            from: arguments.source.clone(),
            migrate: arguments.migrate,
            health: arguments.health.as_ref().map(|path| Health {
                path: path.clone(),
                status: arguments.health_status,
            }),
            trial,
            if_one_fails: arguments.if_one_fails,
        };
        place.deploy(&wanted, generation).await?;
        match arguments.auto {
            true => judged(&place, before.active.version.digest).await,
            false => Ok(()),
        }
    })
}

impl Arguments {
    fn trial(&self) -> anyhow::Result<Option<Trial>> {
        let audience = match (&self.canary, self.shadow) {
            (None, false) => return Ok(None),
            (None, true) => "shadow".to_owned(),
            (Some(audience), _) if self.by_address => format!("{audience} by address"),
            (Some(audience), _) => audience.clone(),
        };
        if !(0.0..=100.0).contains(&self.errors_max) {
            bail!("`--errors-max` is a number of percent: 0 to 100");
        }
        audience.parse::<Audience>().map_err(anyhow::Error::msg)?;
        let judge = self.auto.then(|| Judge {
            window_s: self.window,
            requests_min: self.requests_min,
            errors_max: (self.errors_max * 100.0).round() as u32,
            p99_max_percent: self.p99_max,
        });
        Ok(Some(Trial {
            audience,
            judge,
            ignored_headers: self.ignore_header.clone(),
            ignored_fields: self.ignore_field.clone(),
            ignored_writes: self.ignore_writes,
            shadow_timeout_ms: self.shadow_timeout,
            shadow_at_once: self.shadow_at_once,
        }))
    }

    /// Where the place gets the version. What this machine has is sent to it.
    async fn source(&self, place: &Connected, generation: u64) -> anyhow::Result<Source> {
        if self.source.starts_with(SCHEME) {
            return Ok(Source::Reference(self.source.clone()));
        }
        if self.source.starts_with("sha256:") {
            let digest = self.source.parse::<Digest>();
            let digest = digest.map_err(|why| anyhow!("`{}`: {why}", self.source))?;
            return Ok(Source::Digest(digest));
        }
        let path = std::path::PathBuf::from(&self.source);
        let folder = tempfile::tempdir()?;
        let file = match is_artifact(&path) {
            true => path,
            false => {
                let file = folder.path().join("app.amphi");
                let out = file.clone();
                tokio::task::spawn_blocking(move || package::pack(&path, &out)).await??;
                file
            }
        };
        let artifact = Artifact::open(&file)?;
        stderr::say(&format!("… sending {}", artifact.digest()));
        Ok(Source::Digest(place.upload(&file, generation).await?))
    }
}

/// Waits until the candidate is promoted or given up. `before`: the active version from before. That it is active still
/// means that the candidate was given up, however early.
async fn judged(place: &Connected, before: Digest) -> anyhow::Result<()> {
    stderr::say("… watching it");
    let mut candidate = None;
    let (mut tried, mut over) = (None, None);
    loop {
        let status = place.status().await?;
        let now = status.candidate.map(|it| it.version.digest);
        candidate = candidate.or(now);
        if now.is_some() && now == candidate {
            tried = status.last;
            tokio::time::sleep(ASKING).await;
            continue;
        }
        // What the last change has come to is known when it has ended, and that may be after it is seen.
        let over = *over.get_or_insert_with(Instant::now);
        if tried.is_some() && status.last == tried && over.elapsed() < SAYING {
            tokio::time::sleep(ASKING).await;
            continue;
        }
        let outcome = status.last.map(|last| last.outcome).unwrap_or_default();
        let outcome = escaped(&outcome);
        let active = status.active.version.digest;
        match candidate.map_or(active != before, |candidate| candidate == active) {
            true => return super::routes::print(&format!("{outcome}\n")),
            false => bail!("{outcome}"),
        }
    }
}
