//! What `serve` and `migrate` work on: the folder of an app, an artifact in a file or a registry, or the version that a
//! place has served before.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use super::block_on::block_on;
use super::package;
use crate::admin::Fleet;
use crate::artifact::Artifact;
use crate::artifact::registry::{self, Reference};
use crate::artifact::signature::Trust;
use crate::config::{Config, FleetConfig, Place, Purpose};
use crate::deploy::{Active, Record, State, Version};

/// How the file of an artifact is called.
const EXTENSION: &str = "amphi";

#[derive(Args)]
pub(super) struct Placed {
    /// Folder with an amphi.toml, an artifact (FILE.amphi), or one in a registry (oci://HOST/NAME:TAG). Without it: the
    /// current folder, or, with --place, the version that was active before.
    #[arg(value_name = "FOLDER|FILE.amphi|oci://REF")]
    source: Option<String>,
    /// The place to run an artifact in: an amphi-host.toml. Without it, an artifact has a folder of its own, FILE.state.
    #[arg(long, value_name = "FILE")]
    place: Option<PathBuf>,
}

/// What there is to be served.
pub(super) struct Resolved {
    pub(super) config: Config,
    /// Whether the place is a folder that the host has made for this artifact.
    pub(super) is_own_place: bool,
    /// Where it is served, and what becomes the active version then.
    pub(super) placed: Option<(Place, State, Active)>,
}

enum Source {
    Folder(PathBuf),
    File(PathBuf),
    Registry(Reference),
}

impl Source {
    fn parse(text: &str) -> anyhow::Result<Source> {
        if text.starts_with(registry::SCHEME) {
            return Ok(Source::Registry(
                text.parse().map_err(|sentence: String| anyhow!(sentence))?,
            ));
        }
        let path = PathBuf::from(text);
        Ok(match is_artifact(&path) {
            true => Source::File(path),
            false => Source::Folder(path),
        })
    }

    /// The folder for the state of an artifact that has no other place: beside its file, or in the current folder.
    fn own_state(&self) -> PathBuf {
        match self {
            Source::Registry(reference) => format!("{}.state", reference.short_name()).into(),
            Source::File(path) | Source::Folder(path) => path.with_extension("state"),
        }
    }

    /// Unpacks the artifact into the state.
    fn add(&self, state: &State, trust: &Trust) -> anyhow::Result<Version> {
        let incoming = state.incoming()?;
        let fetched = incoming.path().join("app.amphi");
        let artifact = match self {
            Source::File(path) => Artifact::open(path)?,
            Source::Folder(folder) => {
                package::pack(folder, &fetched)?;
                Artifact::open(&fetched)?
            }
            Source::Registry(reference) => {
                block_on(async {
                    let check =
                        |manifest: &_, signatures: &[String]| trust.check(manifest, signatures);
                    Ok(registry::pull(reference, &fetched, check).await?)
                })?;
                Artifact::open(&fetched)?
            }
        };
        Ok(state.add(&artifact, trust)?)
    }
}

/// Whether a path names the file of an artifact.
pub(super) fn is_artifact(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == EXTENSION)
        && !path.is_dir()
}

impl Placed {
    /// Reads the configuration of what is named. Artifacts are fetched and unpacked first.
    pub(super) fn resolve(&self, purpose: Purpose) -> anyhow::Result<Resolved> {
        let source = (self.source.as_deref()).map(Source::parse).transpose()?;
        match (&self.place, source) {
            (None, None) => plain(Path::new("."), purpose),
            (None, Some(Source::Folder(folder))) => plain(&folder, purpose),
            (None, Some(source)) => {
                let place = Place::of_its_own(&source.own_state());
                self.in_place(&place, Some(&source), purpose)
            }
            (Some(file), source) => {
                let place = Place::load(file, purpose)?;
                self.in_place(&place, source.as_ref(), purpose)
            }
        }
    }

    fn in_place(
        &self,
        place: &Place,
        source: Option<&Source>,
        purpose: Purpose,
    ) -> anyhow::Result<Resolved> {
        let trust = Trust::of(place);
        let state = State::open(&place.state)?;
        let (version, from) = match source {
            Some(source) => {
                let from = self.source.clone().unwrap_or_default();
                (source.add(&state, &trust)?, from)
            }
            None => {
                let local = (state.record()?).map(|record| {
                    let Active { digest, from, .. } = record.active;
                    anyhow::Ok((state.version(digest, &trust)?, from))
                });
                match (local, &place.deploy.fleet) {
                    (Some(Ok(local)), _) => local,
                    (Some(Err(error)), None) => return Err(error),
                    (Some(Err(error)), Some(fleet)) => of_fleet(place, fleet, &state, &trust)
                        .with_context(|| format!("{error:#}"))?,
                    (None, Some(fleet)) => of_fleet(place, fleet, &state, &trust).context(
                        "no version has been active here, and none could be had from the fleet: name an artifact, e.g. `amphi serve --place … shop.amphi`",
                    )?,
                    (None, None) => bail!(
                        "no version has been active in {}: name an artifact, e.g. `amphi serve --place … shop.amphi`",
                        place.state.display()
                    ),
                }
            }
        };
        let digest = version.digest;
        Ok(Resolved {
            config: version.config(place, &from, purpose)?,
            is_own_place: place.file.is_none(),
            placed: Some((place.clone(), state, Active::now(digest, from))),
        })
    }
}

/// The active version of a fleet and where it is from, for a host that has none itself. It is unpacked into the state, and
/// recorded there.
fn of_fleet(
    place: &Place,
    fleet: &FleetConfig,
    state: &State,
    trust: &Trust,
) -> anyhow::Result<(Version, String)> {
    let incoming = state.incoming()?;
    let file = incoming.path().join("app.amphi");
    let max = place.deploy.artifact_max_bytes;
    let record = block_on(Fleet::first(fleet, max, &file))?;
    let version = state.add(&Artifact::open(&file)?, trust)?;
    if version.digest != record.active.digest {
        bail!(
            "NATS has {} in the place of {}",
            version.digest,
            record.active.digest
        );
    }
    // The host takes the candidate over when it has joined the fleet.
    let record = Record {
        candidate: None,
        ..record
    };
    state.set_record(&record)?;
    Ok((version, record.active.from))
}

fn plain(folder: &Path, purpose: Purpose) -> anyhow::Result<Resolved> {
    Ok(Resolved {
        config: Config::load_for(folder, purpose)?,
        is_own_place: false,
        placed: None,
    })
}
