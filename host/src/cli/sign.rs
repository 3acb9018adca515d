//! `amphi sign`: signs an artifact, or makes the keys for it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;

use super::routes::print;
use crate::artifact::{self, Artifact, signature};
use crate::telemetry::stderr;

/// The variable with the password of a secret key.
const PASSWORD: &str = "AMPHI_KEY_PASSWORD";

#[derive(Args)]
pub(super) struct Arguments {
    /// The artifact.
    #[arg(required_unless_present = "new_key")]
    file: Option<PathBuf>,
    /// A secret key of minisign. The variable AMPHI_KEY_PASSWORD has its password, if it has one.
    #[arg(long, required_unless_present = "new_key")]
    key: Option<PathBuf>,
    /// Make a pair of keys: NAME.key, which is secret and has no password, and NAME.pub.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "key"])]
    new_key: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(name) = &arguments.new_key {
        return new_key(name);
    }
    let (Some(file), Some(key)) = (&arguments.file, &arguments.key) else {
        bail!("an artifact and a key are needed");
    };
    let digest = add(file, key)?;
    print(&format!("{digest}\n"))
}

/// Adds a signature to the artifact in a file.
pub(super) fn add(file: &Path, key: &Path) -> anyhow::Result<artifact::Digest> {
    let artifact = Artifact::open(file)?;
    // What is signed is whole.
    artifact.verify()?;
    let text = fs::read_to_string(key).with_context(|| key.display().to_string())?;
    let password = std::env::var(PASSWORD).ok();
    let signed = signature::sign(&artifact.manifest, &text, password);
    let signed = signed.map_err(|sentence| anyhow!("{}: {sentence}", key.display()))?;
    artifact::sign(&artifact, signed)?;
    Ok(artifact.digest())
}

fn new_key(name: &Path) -> anyhow::Result<()> {
    let (secret, public) = signature::generate().map_err(|sentence| anyhow!(sentence))?;
    for (extension, text, mode) in [("key", &secret, 0o600), ("pub", &public, 0o644)] {
        let mut path = name.as_os_str().to_owned();
        path.push(".");
        path.push(extension);
        let path = PathBuf::from(path);
        // A key that is there already is never written over.
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.with_context(|| format!("making {}", path.display()))?;
    }
    let name = name.display();
    stderr::say(&format!(
        "Made {name}.key, which signs (keep it secret), and {name}.pub, for `trusted_keys` of an amphi-host.toml"
    ));
    let line = public.lines().nth(1).unwrap_or_default();
    print(&format!("{line}\n"))
}
