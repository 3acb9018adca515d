//! `amphi status`, `amphi versions`, `amphi logs`: what runs at a place. `amphi promote`, `amphi rollback`: changes of it.

use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::block_on::block_on;
use super::place::Remote;
use super::routes::print;
use crate::admin::api::{FleetStatus, GoingBack, Status, Traffic, TriedThere};
use crate::app::rollout::shadow::{ShadowNumbers, ShadowReport};
use crate::artifact::Digest;
use crate::telemetry::log::escaped;

#[derive(Args)]
pub(super) struct Showing {
    #[command(flatten)]
    remote: Remote,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct Logs {
    #[command(flatten)]
    remote: Remote,
    /// Go on with the lines that come.
    #[arg(short, long)]
    follow: bool,
}

#[derive(Args)]
pub(super) struct Promoting {
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args)]
pub(super) struct RollingBack {
    #[command(flatten)]
    remote: Remote,
    /// The version to go back to. Without it: a candidate is given up; if there is none, the version before is served.
    #[arg(value_name = "DIGEST")]
    digest: Option<Digest>,
}

pub(super) fn status(arguments: &Showing) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    let status = block_on(place.status())?;
    match arguments.json {
        true => print(&format!("{}\n", serde_json::to_string_pretty(&status)?)),
        false => print(&escaped(&shown(&status))),
    }
}

pub(super) fn versions(arguments: &Showing) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    let versions = block_on(place.versions())?;
    if arguments.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&versions)?));
    }
    let lines = versions.iter().map(|listed| {
        let version = &listed.version;
        let (digest, since) = (version.digest, date(version.since));
        format!(
            "{digest}  {:<11}  {since}  {}\n",
            listed.state, version.from
        )
    });
    print(&escaped(&lines.collect::<String>()))
}

pub(super) fn logs(arguments: &Logs) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    block_on(place.logs(arguments.follow))
}

pub(super) fn promote(arguments: &Promoting) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    block_on(place.promote())
}

pub(super) fn roll_back(arguments: &RollingBack) -> anyhow::Result<()> {
    let place = arguments.remote.connect()?;
    block_on(place.roll_back(&GoingBack {
        to: arguments.digest,
    }))
}

fn shown(status: &Status) -> String {
    let Status {
        app,
        generation,
        active,
        candidate,
        last,
        host,
        started,
        fleet,
    } = status;
    let mut text = format!(
        "{app}, generation {generation}, on amphi {host}, started {}\n\nactive     {}\n           from {}, since {}\n",
        date(*started),
        active.version.digest,
        active.version.from,
        date(active.version.since),
    );
    if let Some(candidate) = candidate {
        text += &format!(
            "candidate  {}\n           from {}, since {}, for {}{}\n",
            candidate.version.digest,
            candidate.version.from,
            date(candidate.version.since),
            candidate.trial.audience,
            match &candidate.trial.judge {
                Some(judge) => format!(", judged after {} s", judge.window_s),
                None => String::new(),
            },
        );
    }
    let whose = if fleet.is_some() { "this host" } else { "" };
    text += &format!(
        "\n{whose:<9}  requests    per second    errors    error rate    median       p99\n"
    );
    text += &row("active", &active.traffic);
    if let Some(candidate) = candidate {
        text += &row("candidate", &candidate.traffic);
    }
    if let Some(report) = candidate.as_ref().and_then(|it| it.shadow.as_ref()) {
        text += &compared(report);
    }
    if let Some(fleet) = fleet {
        text += &shown_fleet(fleet);
    }
    if let Some(last) = last {
        text += &format!("\n{}, {}: {}\n", last.what, date(last.at), last.outcome);
    }
    text
}

/// What copies of requests have shown.
fn compared(report: &ShadowReport) -> String {
    let ShadowReport {
        compared,
        equal,
        differing,
        unclear,
        not_compared,
        differences,
        unclear_differences,
    } = report;
    let mut text = format!(
        "\nshadow     {compared} requests compared: {equal} equal, {differing} differing, {unclear} unclear (others changed the database meanwhile, or a value is random)\n"
    );
    for (why, number) in not_compared {
        text += &format!("           {number} not compared: {why}\n");
    }
    for (what, differences) in [("differing", differences), ("unclear", unclear_differences)] {
        for difference in differences {
            let request = &difference.request;
            let candidate = request.candidate.as_deref().unwrap_or("nothing");
            text += &format!(
                "\n{what}: {} {} (request {}), the view {}, candidate {candidate}\n",
                request.method, request.path, request.request, request.view
            );
            for sentence in &difference.differences {
                text += &format!("    {sentence}\n");
            }
        }
    }
    text
}

fn shown_fleet(fleet: &FleetStatus) -> String {
    let mut text = format!("\nfleet {}\n", fleet.name);
    if let Some(change) = &fleet.change {
        text += &format!("under way: {change}\n");
    }
    if let Some(problem) = &fleet.problem {
        text += &format!("nothing is known of the other hosts: {problem}\n");
    }
    let width = fleet.hosts.iter().map(|host| host.id.len()).max();
    let width = width.unwrap_or_default() + 2;
    for host in &fleet.hosts {
        text += &format!(
            "{} {:<width$}  generation {:>4}  {}  {} s ago  {}{}\n",
            if host.own { "*" } else { " " },
            host.id,
            host.generation,
            host.active,
            host.silent_s,
            host.state,
            host.tried.as_ref().map_or_else(String::new, tried),
        );
    }
    if fleet.hosts.len() >= fleet.hosts_max {
        text += &format!("the first {} hosts are listed\n", fleet.hosts_max);
    }
    text
}

/// What a host has counted of a candidate.
fn tried(there: &TriedThere) -> String {
    match there.shadow {
        Some(ShadowNumbers {
            equal,
            differing,
            unclear,
            not_compared,
        }) => format!(
            ", shadow: {equal} equal, {differing} differing, {unclear} unclear, {not_compared} not compared"
        ),
        None => format!(
            ", candidate: {} requests, {} errors",
            there.requests, there.errors
        ),
    }
}

fn row(name: &str, traffic: &Traffic) -> String {
    let rate = traffic.requests as f64 / traffic.seconds.max(0.001);
    let errors = 100.0 * traffic.errors as f64 / (traffic.requests.max(1)) as f64;
    let millis = |latency: Option<f64>| match latency {
        Some(millis) => format!("{millis:.2} ms"),
        None => "–".to_owned(),
    };
    format!(
        "{name:<9}  {:>8}  {rate:>12.1}  {:>8}  {errors:>10.2} %  {:>9}  {:>9}\n",
        traffic.requests,
        traffic.errors,
        millis(traffic.p50_ms),
        millis(traffic.p99_ms),
    )
}

/// A time, in seconds since 1970.
fn date(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds);
    time.ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "?".to_owned())
}
