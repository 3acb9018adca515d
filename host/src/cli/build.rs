//! `amphi build`: each guest crate once for each mode that has views, checked as the host would.
//!
//! Cargo does the work. A crate is compiled with the SDK's feature `sync` or `async`, which keeps the other
//! mode's views out of the component; when no view is left, the SDK stops the compiler early with a sentence
//! that is recognised here.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::config::{Config, Source};
use crate::module;
use crate::view::Mode;

const TARGET: &str = "wasm32-wasip2";
/// What keeps the lines of the source in a component, whatever the crate's own profile says.
const LINES: [(&str, &str); 2] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
];
/// Growing memory costs more than having it: guests start with what most views need.
const LINK_ARGUMENT: &str = "link-arg=--initial-memory=4194304";

/// What components are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// With the lines of their source, for the error page.
    Development,
    /// As small as the crate's own profile makes them.
    Production,
}

/// Builds the guests of the app in `folder`, and checks that they can be served.
///
/// # Errors
/// When one cannot be built or served; the compiler has said why.
pub fn run(folder: &Path) -> anyhow::Result<()> {
    let config = Config::load(folder)?;
    build(&config, Purpose::Production)?;
    let app = super::routes::check(config)?;
    eprintln!(
        "Checked {} views; `amphi serve` will take them",
        app.views.len()
    );
    Ok(())
}

/// Builds all crates of the app; returns the folders of the local packages that went into them.
pub(super) fn build(config: &Config, purpose: Purpose) -> anyhow::Result<Vec<PathBuf>> {
    let mut packages = Vec::new();
    for module in &config.modules {
        if let Source::Crate(folder) = &module.source {
            if packages.is_empty() {
                add_target()?;
            }
            // As cargo names it.
            let folder = folder
                .canonicalize()
                .with_context(|| folder.display().to_string())?;
            let metadata = Metadata::of(&folder)?;
            packages.extend(metadata.folders());
            let artifacts = config.artifacts();
            build_crate(&folder, &metadata, &module.name, &artifacts, purpose)?;
        }
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn build_crate(
    folder: &Path,
    metadata: &Metadata,
    module: &str,
    artifacts: &Path,
    purpose: Purpose,
) -> anyhow::Result<()> {
    let mut modes = Vec::new();
    for mode in [Mode::Sync, Mode::Async] {
        let since = Instant::now();
        let artifact = module::artifact(artifacts, module, mode);
        match compile(folder, metadata, mode, purpose)
            .with_context(|| format!("module `{module}` ({mode})"))?
        {
            Some(component) => {
                place(&component, &artifact)?;
                modes.push(mode);
                let size = std::fs::metadata(&artifact).map_or(0, |metadata| metadata.len());
                eprintln!(
                    "Built {module} ({mode}): {} KiB in {:.1?}",
                    size.div_ceil(1024),
                    since.elapsed()
                );
            }
            None if artifact.exists() => std::fs::remove_file(&artifact)
                .with_context(|| format!("removing {}", artifact.display()))?,
            None => {}
        }
    }
    if modes.is_empty() {
        bail!(
            "module `{module}`: {} has no views: list them with `views![…]`",
            folder.display()
        );
    }
    Ok(())
}

/// Puts a component in place whole, for a server that may read it at any time.
fn place(component: &Path, artifact: &Path) -> anyhow::Result<()> {
    let same = |a: &Path, b: &Path| Some(std::fs::read(a).ok()? == std::fs::read(b).ok()?);
    if same(component, artifact) == Some(true) {
        return Ok(());
    }
    let folder = artifact.parent().expect("an artifact is in a folder");
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let new = tempfile::NamedTempFile::new_in(folder)?;
    std::fs::copy(component, new.path())
        .with_context(|| format!("copying {}", component.display()))?;
    new.persist(artifact)
        .with_context(|| format!("writing {}", artifact.display()))?;
    Ok(())
}

/// Compiles a crate for one mode. None: it has no views of that mode.
fn compile(
    folder: &Path,
    metadata: &Metadata,
    mode: Mode,
    purpose: Purpose,
) -> anyhow::Result<Option<PathBuf>> {
    let colour = if std::io::stderr().is_terminal() {
        "always"
    } else {
        "never"
    };
    let mut cargo = Command::new("cargo");
    if purpose == Purpose::Development {
        cargo.envs(LINES);
    }
    let mut cargo = cargo
        .current_dir(folder)
        .args([
            "rustc",
            "--release",
            "--lib",
            "--crate-type",
            "cdylib",
            "--target",
            TARGET,
        ])
        .args([
            "--features",
            &format!("amphi-sdk/{mode}"),
            "--color",
            colour,
        ])
        .args([
            "--message-format",
            if colour == "always" {
                "json-diagnostic-rendered-ansi"
            } else {
                "json"
            },
        ])
        .arg("--target-dir")
        .arg(metadata.target_directory.join("amphi"))
        .args(["--", "-C", LINK_ARGUMENT])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo could not be started: install Rust with rustup")?;
    let progress = BufReader::new(cargo.stderr.take().expect("it is piped"));
    let progress = std::thread::spawn(move || show_progress(progress));
    let no_views = format!("amphi: this crate has no {mode} views");
    let (mut component, mut diagnostics, mut without_views) = (None, String::new(), false);
    for line in BufReader::new(cargo.stdout.take().expect("it is piped")).lines() {
        match serde_json::from_str(&line?) {
            Ok(Message::CompilerArtifact {
                filenames,
                manifest_path,
            }) if manifest_path == folder.join("Cargo.toml") => {
                component = filenames.into_iter().find(|file| {
                    file.extension()
                        .is_some_and(|extension| extension == "wasm")
                });
            }
            Ok(Message::CompilerMessage { message }) => {
                let rendered = message.rendered.unwrap_or_default();
                without_views |= rendered.contains(&no_views);
                diagnostics.push_str(&rendered);
            }
            _ => {}
        }
    }
    let status = cargo.wait()?;
    let summary = progress.join().unwrap_or_default();
    if status.success() {
        eprint!("{diagnostics}");
        return match component {
            Some(component) => Ok(Some(component)),
            None => bail!("cargo said nothing of a component"),
        };
    }
    if without_views {
        return Ok(None);
    }
    eprint!("{diagnostics}");
    bail!(
        "the crate does not compile{}",
        if diagnostics.is_empty() {
            format!(":\n{summary}")
        } else {
            String::new()
        }
    );
}

/// Passes cargo's progress on; errors are kept, because a mode without views is none.
fn show_progress(lines: impl std::io::BufRead) -> String {
    let mut errors = String::new();
    for line in lines.lines().map_while(Result::ok) {
        let bare = line.trim_start();
        if [
            "Compiling",
            "Downloaded",
            "Downloading",
            "Updating",
            "Locking",
            "Blocking",
            "Adding",
        ]
        .iter()
        .any(|word| bare.contains(word))
        {
            eprintln!("{line}");
        } else if !bare.contains("Finished") {
            errors.push_str(&line);
            errors.push('\n');
        }
    }
    errors
}

#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        filenames: Vec<PathBuf>,
        manifest_path: PathBuf,
    },
    CompilerMessage {
        message: Diagnostic,
    },
}

#[derive(Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
}

/// What cargo knows about a crate.
#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    /// Where it comes from; none for what is on this machine.
    source: Option<String>,
    #[expect(dead_code, reason = "the rest of a package is not of interest")]
    #[serde(flatten)]
    rest: BTreeMap<String, serde::de::IgnoredAny>,
}

impl Metadata {
    fn of(folder: &Path) -> anyhow::Result<Metadata> {
        let output = Command::new("cargo")
            .current_dir(folder)
            .args(["metadata", "--format-version", "1"])
            .stderr(Stdio::piped())
            .output()
            .context("cargo could not be started: install Rust with rustup")?;
        if !output.status.success() {
            bail!(
                "{}: {}",
                folder.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout)
            .context("what cargo says about the crate could not be read")
    }

    /// The folders of the packages on this machine.
    fn folders(&self) -> Vec<PathBuf> {
        let local = self
            .packages
            .iter()
            .filter(|package| package.source.is_none());
        local
            .filter_map(|package| package.manifest_path.parent().map(Path::to_owned))
            .collect()
    }
}

/// Installs the compiler's target for guests when it is missing.
fn add_target() -> anyhow::Result<()> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .context("rustc could not be started: install Rust with rustup")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    eprintln!("Installing the compilation target {TARGET}");
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .status();
    match added {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(
            "the compilation target {TARGET} is missing and could not be installed: run `rustup target add {TARGET}`"
        ),
    }
}
