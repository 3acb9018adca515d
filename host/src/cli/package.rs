//! `amphi package`: makes an artifact of an app that has been built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tempfile::TempDir;

use super::routes::{self, print};
use super::sign;
use crate::app::{App, module};
use crate::artifact::{self, Artifact, CONFIG_FILE, Digest};
use crate::config::{self, Config, Portable};
use crate::guest::run::Engines;
use crate::telemetry::stderr;

#[derive(Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    folder: super::Folder,
    /// The file of the artifact. Without it: NAME.amphi in the current folder, by the app's name.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Sign it with this secret key (minisign). The variable AMPHI_KEY_PASSWORD has the key's password, if it has one.
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let folder = &arguments.folder.folder;
    let config = Config::load_for(folder, config::Purpose::Check)?;
    let output = match &arguments.output {
        Some(output) => output.clone(),
        None => PathBuf::from(format!("{}.amphi", file_name(&config.name))),
    };
    // Beside the final path, so that a rename is enough, and nothing is left of an artifact that is refused.
    let beside = output.parent().filter(|parent| *parent != Path::new(""));
    let beside = tempfile::tempdir_in(beside.unwrap_or(Path::new(".")))
        .with_context(|| format!("a folder beside {}", output.display()))?;
    let new = beside.path().join("app.amphi");
    let (digest, left) = pack(folder, &new)?;
    if let Some(key) = &arguments.sign {
        sign::add(&new, key)?;
    }
    fs::rename(&new, &output).with_context(|| format!("writing {}", output.display()))?;
    if !left.is_empty() {
        stderr::say(&format!(
            "Left to the place that runs it: {}",
            left.join(", ")
        ));
    }
    stderr::say(&format!("Packaged {}", output.display()));
    print(&format!("{digest}\n"))
}

/// Packs the app in `folder` into the file `out`, and loads what was packed as a host would. Returns also the keys that
/// are left to places.
///
/// # Errors
/// When the app is not built or not valid, or cannot be an artifact.
pub(super) fn pack(folder: &Path, out: &Path) -> anyhow::Result<(Digest, Vec<String>)> {
    let config = Config::load_for(folder, config::Purpose::Check)?;
    let text =
        fs::read_to_string(&config.file).with_context(|| config.file.display().to_string())?;
    let (portable, left) = Portable::of(&config, &text)?;
    let engines = Engines::for_looking()?;
    let mut components = Vec::new();
    for module in &config.modules {
        for file in module::files(module, &config.artifacts())? {
            let inspection = module::inspect(&engines, &file);
            let inspection = inspection
                .with_context(|| format!("module `{}` ({})", module.name, file.display()))?;
            let path = config::component(Path::new("components"), &module.name, inspection.mode);
            components.push((path.display().to_string(), file));
        }
    }
    let files = artifact::files(&config, components)?;
    let digest = artifact::pack(&portable.text(), &files, out)?;
    look(&Artifact::open(out)?)?;
    Ok((digest, left))
}

/// An artifact that is loaded as the host would, without a place, in a temporary folder.
pub(super) struct Looked {
    pub(super) portable: Portable,
    pub(super) app: App,
    pub(super) folder: TempDir,
}

/// Unpacks an artifact, and loads it as the host would.
pub(super) fn look(artifact: &Artifact) -> anyhow::Result<Looked> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let unpacked = folder.path().join("app");
    artifact.unpack(&unpacked)?;
    let shown = artifact.path.join(CONFIG_FILE);
    let portable = Portable::parse(&shown, &artifact.config)?;
    let app = routes::check(portable.alone(&unpacked)?)?;
    Ok(Looked {
        portable,
        app,
        folder,
    })
}

/// The name of the app, if it can be the name of a file.
fn file_name(name: &str) -> &str {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    match !name.starts_with('.') && !name.is_empty() && name.chars().all(plain) {
        true => name,
        false => "app",
    }
}
