//! `amphi pull`: fetches an artifact from a registry.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;

use super::block_on::block_on;
use super::routes::print;
use crate::artifact::registry::{self, Reference};
use crate::telemetry::stderr;

#[derive(Args)]
pub(super) struct Arguments {
    /// What to fetch: HOST[:PORT]/NAME[:TAG][@DIGEST].
    #[arg(value_name = "REF")]
    reference: String,
    /// The file that it is written to. Without it: NAME.amphi in the current folder.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let reference = arguments.reference.parse();
    let reference: Reference = reference.map_err(|sentence: String| anyhow!(sentence))?;
    let own = || PathBuf::from(format!("{}.amphi", reference.short_name()));
    let output = arguments.output.clone().unwrap_or_else(own);
    // Whoever fetches a file wants to look at it; a place checks signatures when it serves it.
    let anyone = |_: &_, _: &[String]| Ok(());
    let digest = block_on(async { Ok(registry::pull(&reference, &output, anyone).await?) })?;
    stderr::say(&format!("Pulled {reference} to {}", output.display()));
    print(&format!("{digest}\n"))
}
