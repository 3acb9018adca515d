//! `amphi push`: sends an artifact to a registry.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Args;

use super::block_on::block_on;
use super::package;
use super::routes::print;
use super::source::is_artifact;
use crate::artifact::Artifact;
use crate::artifact::registry::{self, Reference};
use crate::telemetry::stderr;

#[derive(Args)]
pub(super) struct Arguments {
    /// An artifact (FILE.amphi), or the folder of an app that has been built.
    #[arg(value_name = "FILE|FOLDER", default_value = ".")]
    source: PathBuf,
    /// Where it goes: HOST[:PORT]/NAME[:TAG].
    #[arg(value_name = "REF", required = true)]
    reference: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let reference = arguments.reference.parse();
    let reference: Reference = reference.map_err(|sentence: String| anyhow!(sentence))?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let artifact = match is_artifact(&arguments.source) {
        true => Artifact::open(&arguments.source)?,
        false => {
            let packed = folder.path().join("app.amphi");
            package::pack(&arguments.source, &packed)?;
            Artifact::open(&packed)?
        }
    };
    let artifact = Arc::new(artifact);
    block_on(async { Ok(registry::push(&artifact, &reference).await?) })?;
    stderr::say(&format!("Pushed {reference}"));
    print(&format!("{}\n", artifact.digest()))
}
