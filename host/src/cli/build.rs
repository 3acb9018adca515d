//! `amphi build`: compiles each guest crate once for each mode that has views, and checks the components as the host
//! would.
//!
//! Cargo does the work. The crate itself is compiled with `--cfg amphi_mode="sync"` or `"async"`, for which the SDK's
//! `views!` exports the views of that mode alone. Its dependencies do not see the mode, so they are compiled only once,
//! for both components. Both modes are compiled at the same time (`rustc.rs`). The SDK writes a section into each
//! component that says which modes have views, and which views are listed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;

use super::rustc;
use crate::config::{self, Config, Source};
use crate::telemetry::stderr;
use crate::view::Mode;

const TARGET: &str = "wasm32-wasip2";
/// Settings for `amphi up`, in place of those of the crate's profile: components keep the lines of their source, for the
/// error page, and are built as quickly as possible.
const QUICKLY: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "true"),
];
/// Guests start with 4 MiB of memory, enough for most views, because growing memory later costs more.
const LINK_ARGUMENT: &str = "link-arg=--initial-memory=4194304";

/// What components are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Built quickly, with the lines of their source for the error page.
    Development,
    /// Built with the settings of the crate's own profile.
    Production,
}

/// An instance with this much memory has an interpreter in it: guests in Rust begin with one or two megabytes.
const INTERPRETER_KB: usize = 8 << 10;

/// Builds the guests of the app in `folder`, and checks that they can be served. The previous components are replaced
/// only when all checks have passed.
///
/// # Errors
/// When a guest cannot be built or served. The compiler's messages are printed.
pub fn run(folder: &Path) -> anyhow::Result<()> {
    let mut config = Config::load_for(folder, config::Purpose::Check)?;
    run_commands(&config)?;
    let built = build(&mut config, Purpose::Production)?;
    let app = super::routes::check(config)?;
    built.place()?;
    for (module, kb) in app.fresh_with(INTERPRETER_KB) {
        stderr::say(&format!(
            "module `{module}`: an instance has {} MB of memory, as with an interpreter in it. A fresh one for each request may cost milliseconds (Python was measured with 2.2 ms, and 0.1 ms for an instance that is kept): consider `instances = \"reuse\"`, if globals may keep their values from one request to the next",
            kb >> 10
        ));
    }
    let count = app.views.len();
    stderr::say(&format!(
        "Checked {count} views; `amphi serve` will take them"
    ));
    Ok(())
}

/// Runs the command `build` of each module that has one, in the folder of the app.
///
/// # Errors
/// When a command cannot be run, or fails.
pub(super) fn run_commands(config: &Config) -> anyhow::Result<()> {
    for module in &config.modules {
        let Some(command) = &module.build else {
            continue;
        };
        let place = || format!("module `{}`: its `build`, `{command}`", module.name);
        stderr::say(&format!("Building {}: {command}", module.name));
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).current_dir(config.folder());
        let status = shell.status().with_context(place)?;
        if !status.success() {
            return Err(anyhow!("it ended with {status}")).with_context(place);
        }
    }
    Ok(())
}

/// New components, which have not replaced the previous ones yet.
pub(super) struct Built {
    /// The folders of the local packages that the components were built from.
    pub(super) packages: Vec<PathBuf>,
    /// For each module and mode: the final path, and the path of the new component. None: the mode has no views.
    components: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Built {
    /// Replaces the previous components. A server may read a component at any time, so each one is replaced as a whole,
    /// by a rename. All files are written before the first rename: an error such as a full disk occurs before anything
    /// is replaced.
    pub(super) fn place(&self) -> anyhow::Result<()> {
        let mut written = Vec::new();
        for (artifact, component) in &self.components {
            if let Some(component) = component {
                let bytes = std::fs::read(component)
                    .with_context(|| format!("reading {}", component.display()))?;
                written.push((artifact, written_beside(&bytes, artifact)?));
            }
        }
        for (artifact, new) in written {
            persist(new, artifact)?;
        }
        for (artifact, component) in &self.components {
            if component.is_none() {
                remove(artifact)?;
            }
        }
        Ok(())
    }
}

/// Builds all crates of the app into a folder for new components, and makes `config` load them from there. Components
/// for development stay there: `amphi serve` serves those that `amphi build` has put in their final place.
pub(super) fn build(config: &mut Config, purpose: Purpose) -> anyhow::Result<Built> {
    let final_place = config.artifacts();
    let waiting = final_place.join(match purpose {
        Purpose::Development => "development",
        Purpose::Production => "built",
    });
    config.artifacts_in = Some(waiting.clone());
    let mut built = Built {
        packages: Vec::new(),
        components: Vec::new(),
    };
    let mut known: Vec<Metadata> = Vec::new();
    for module in &config.modules {
        let Source::Crate(folder) = &module.source else {
            continue;
        };
        // Cargo reports canonical paths, and this path is compared with them.
        let folder = folder
            .canonicalize()
            .with_context(|| folder.display().to_string())?;
        add_target(&folder)?;
        // The metadata of one crate covers all crates of its workspace, so it is read once for them.
        let at = match known.iter().position(|metadata| metadata.has(&folder)) {
            Some(at) => at,
            None => {
                known.push(Metadata::of(&folder)?);
                known.len() - 1
            }
        };
        let metadata = &known[at];
        built.packages.extend(metadata.folders());
        let modes = build_crate(&folder, metadata, &module.name, &waiting, purpose)?;
        for mode in [Mode::Sync, Mode::Async] {
            let [to, from] =
                [&final_place, &waiting].map(|place| config::component(place, &module.name, mode));
            let from = modes.contains(&mode).then_some(from);
            built.components.push((to, from));
        }
    }
    built.packages.sort();
    built.packages.dedup();
    Ok(built)
}

/// The folders of the app's crates and of the local packages that they depend on. The packages need not compile.
pub(super) fn packages(config: &Config) -> anyhow::Result<Vec<PathBuf>> {
    let mut packages = BTreeSet::new();
    for module in &config.modules {
        if let Source::Crate(folder) = &module.source {
            packages.extend(Metadata::of(folder)?.folders());
        }
    }
    Ok(packages.into_iter().collect())
}

/// Builds a crate for each mode that it has views of, and returns these modes. The component that is built first says
/// whether the other mode has views, too.
fn build_crate(
    folder: &Path,
    metadata: &Metadata,
    module: &str,
    waiting: &Path,
    purpose: Purpose,
) -> anyhow::Result<Vec<Mode>> {
    let since = Instant::now();
    let [sync, asynch] =
        [Mode::Sync, Mode::Async].map(|mode| config::component(waiting, module, mode));
    let (has_sync, has_async) = (sync.is_file(), asynch.is_file());
    // If the last build found views of only one mode, the same is likely now: that mode is compiled first, without the
    // other one.
    let (mode, other) = match has_async && !has_sync {
        true => (Mode::Async, Mode::Sync),
        false => (Mode::Sync, Mode::Async),
    };
    let compile = |mode, together| {
        compile(folder, metadata, mode, purpose, together)
            .with_context(|| format!("module `{module}` ({mode})"))
    };
    let first = compile(mode, has_sync == has_async)?;
    let listing = Listing::of(&first.bytes);
    let second = match listing.has(other) {
        true => Some(match first.other(metadata, purpose)? {
            Some(second) => second,
            None => compile(other, false)?,
        }),
        false => None,
    };
    let first = listing.has(mode).then_some(first);
    let built = match mode {
        Mode::Sync => [(Mode::Sync, sync, first), (Mode::Async, asynch, second)],
        Mode::Async => [(Mode::Sync, sync, second), (Mode::Async, asynch, first)],
    };
    let mut modes = Vec::new();
    for (mode, artifact, component) in built {
        let Some(component) = component else {
            remove(&artifact)?;
            continue;
        };
        persist(written_beside(&component.bytes, &artifact)?, &artifact)?;
        modes.push(mode);
        if !component.fresh {
            let (size, took) = (component.bytes.len().div_ceil(1024), since.elapsed());
            stderr::say(&format!(
                "Built {module} ({mode}): {size} KiB in {took:.1?}"
            ));
        }
    }
    for view in listing.unlisted {
        stderr::say(&format!(
            "warning: {view} is in no `views![…]`, so the host does not know it: list it, or take its attribute away"
        ));
    }
    if modes.is_empty() {
        bail!(
            "module `{module}`: {} has no views: list them with `views![…]`",
            folder.display()
        );
    }
    Ok(modes)
}

/// A component that has been compiled.
struct Compiled {
    /// The name of its crate.
    name: String,
    /// Its content. It is read early, because cargo gives the components of both modes the same path, and the other one
    /// may replace the file.
    bytes: Vec<u8>,
    /// Whether cargo had compiled the component in an earlier run.
    fresh: bool,
}

impl Compiled {
    fn read(name: String, file: PathBuf, fresh: bool) -> anyhow::Result<Self> {
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(Self { name, bytes, fresh })
    }

    /// The component of the other mode, if it was compiled together with this one.
    fn other(&self, metadata: &Metadata, purpose: Purpose) -> anyhow::Result<Option<Self>> {
        let folder = metadata.other_components(purpose);
        let file = rustc::other_component(&folder, &self.name, &self.bytes);
        let read = |file| Self::read(self.name.clone(), file, self.fresh);
        file.map(read).transpose()
    }
}

fn remove(artifact: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(artifact) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", artifact.display()))
        }
        _ => Ok(()),
    }
}

/// The section that the SDK writes into a component.
struct Listing {
    /// The modes that the crate has listed views of.
    modes: Vec<Mode>,
    /// Functions with an attribute such as `#[view]` that no `views![…]` lists, with their places in the source.
    unlisted: Vec<String>,
}

impl Listing {
    fn has(&self, mode: Mode) -> bool {
        self.modes.contains(&mode)
    }

    /// Reads the section of a component. A component without the section comes from another toolchain, and counts as
    /// having views of both modes.
    fn of(component: &[u8]) -> Listing {
        /// The section's name, after a byte with its length.
        const SECTION: &[u8] = b"\x0bamphi-views";
        let (mut declared, mut listed) = (Vec::new(), BTreeSet::new());
        let mut modes = vec![Mode::Sync, Mode::Async];
        let found = component
            .windows(SECTION.len())
            .position(|part| part == SECTION);
        let text = found.map_or(&[][..], |at| &component[at + SECTION.len()..]);
        for line in text.split(|byte| *byte == b'\n') {
            match std::str::from_utf8(line)
                .ok()
                .map(|line| (line, line.split_once(' ')))
            {
                Some((_, Some(("modes", names)))) => {
                    modes.retain(|mode| names.split(' ').any(|name| name == mode.as_str()));
                }
                Some((_, Some(("view", rest)))) => {
                    if let Some((path, place)) = rest.split_once(' ') {
                        let name = path.split_once("::").map_or(path, |(_, name)| name);
                        declared.push((name.to_owned(), place.to_owned()));
                    }
                }
                Some((_, Some(("listed", name)))) => {
                    listed.insert(name.to_owned());
                }
                // Any other line is beyond the end of the section.
                _ => break,
            }
        }
        let missing = declared
            .into_iter()
            .filter(|(name, _)| !listed.contains(name));
        Listing {
            modes,
            unlisted: missing
                .map(|(name, place)| format!("`{name}` ({place})"))
                .collect(),
        }
    }
}

/// The crate does not compile. The text has the compiler's messages.
#[derive(Debug)]
pub(super) struct NotCompiled(String);

impl NotCompiled {
    /// The messages without colours, for the error page.
    pub(super) fn plain(&self) -> String {
        let mut plain = String::new();
        let mut rest = self.0.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            plain.push_str(before);
            rest = after.split_once('m').map_or("", |(_, rest)| rest);
        }
        plain + rest
    }
}

impl fmt::Display for NotCompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the crate does not compile")
    }
}

impl std::error::Error for NotCompiled {}

/// Replaces the artifact by the new component in one step, a rename. None: the artifact stays as it is.
fn persist(new: Option<tempfile::NamedTempFile>, artifact: &Path) -> anyhow::Result<()> {
    if let Some(new) = new {
        new.persist(artifact)
            .with_context(|| format!("writing {}", artifact.display()))?;
    }
    Ok(())
}

/// Writes the component to a temporary file in the artifact's folder, and waits until it is on the disk. None: the
/// artifact has the same content already.
fn written_beside(
    component: &[u8],
    artifact: &Path,
) -> anyhow::Result<Option<tempfile::NamedTempFile>> {
    if std::fs::read(artifact).is_ok_and(|present| present == component) {
        return Ok(None);
    }
    let folder = artifact.parent().expect("an artifact is in a folder");
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Other users may read the component as far as the umask allows. Without this, temporary files are readable for
    // their owner only.
    let readable = std::fs::Permissions::from_mode(0o666);
    let new = tempfile::Builder::new()
        .permissions(readable)
        .tempfile_in(folder)?;
    std::fs::write(new.path(), component)
        .with_context(|| format!("writing {}", artifact.display()))?;
    new.as_file().sync_all()?;
    Ok(Some(new))
}

/// Compiles a crate for one mode. `together`: the other mode is compiled at the same time, for [`Compiled::other`].
fn compile(
    folder: &Path,
    metadata: &Metadata,
    mode: Mode,
    purpose: Purpose,
    together: bool,
) -> anyhow::Result<Compiled> {
    let colour = if std::io::stderr().is_terminal() {
        "always"
    } else {
        "never"
    };
    let mut cargo = Command::new("cargo");
    // With this variable, cargo puts a hash into the names of its files. Without it, the components of both modes, and
    // those for development, would overwrite each other in cargo's folder, and each of them would be compiled again and
    // again. If cargo ignores the variable one day, builds take longer, and nothing else changes.
    cargo.env("__CARGO_DEFAULT_LIB_METADATA", "amphi");
    if purpose == Purpose::Development {
        cargo.envs(QUICKLY);
    }
    let other = together.then(|| metadata.other_components(purpose));
    rustc::wrap(&mut cargo, other.as_deref())?;
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
        .args(["--color", colour])
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
        .args(["--cfg", &rustc::mode_option(mode)])
        .args([
            "--check-cfg",
            "cfg(amphi_mode, values(\"sync\", \"async\"))",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cargo could not be started: install Rust with rustup")?;
    let progress = BufReader::new(cargo.stderr.take().expect("it is piped"));
    let progress = std::thread::spawn(move || show_progress(progress));
    let (mut component, mut diagnostics) = (None, String::new());
    for line in BufReader::new(cargo.stdout.take().expect("it is piped")).lines() {
        match serde_json::from_str(&line?) {
            Ok(Message::CompilerArtifact {
                filenames,
                manifest_path,
                target,
                fresh,
            }) if manifest_path == folder.join("Cargo.toml") => {
                let mut files = filenames.into_iter();
                let file = files.find(|file| file.extension() == Some("wasm".as_ref()));
                component = file.map(|file| (target.name.replace('-', "_"), file, fresh));
            }
            Ok(Message::CompilerMessage { message }) => {
                diagnostics.push_str(&message.rendered.unwrap_or_default());
            }
            _ => {}
        }
    }
    let status = cargo.wait()?;
    let summary = progress.join().unwrap_or_default();
    stderr::say(&diagnostics);
    if status.success() {
        return match component {
            Some((name, file, fresh)) => Compiled::read(name, file, fresh),
            None => bail!("cargo said nothing of a component"),
        };
    }
    if diagnostics.is_empty() {
        bail!("the crate does not compile:\n{summary}");
    }
    if diagnostics.contains("expected type, found function") && diagnostics.contains("views!") {
        stderr::say(
            "`views!` lists functions with `#[view(…)]`, `#[middleware]` or `#[subscriber(…)]`; a plain function is called by them and not listed",
        );
    }
    Err(NotCompiled(diagnostics).into())
}

/// Prints cargo's progress. Returns the other lines, which are errors.
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
            stderr::say(&line);
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
        target: CargoTarget,
        fresh: bool,
    },
    CompilerMessage {
        message: Diagnostic,
    },
}

#[derive(Deserialize)]
struct CargoTarget {
    name: String,
}

#[derive(Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
}

/// The metadata that cargo has about a crate.
#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    /// The registry or repository of the package. None: a local package.
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

    /// Whether the crate in this folder is one of these packages.
    fn has(&self, folder: &Path) -> bool {
        let manifest = folder.join("Cargo.toml");
        let mut packages = self.packages.iter();
        packages.any(|package| package.source.is_none() && package.manifest_path == manifest)
    }

    /// The folder for the components of second compilers (`rustc.rs`), which cargo does not know.
    fn other_components(&self, purpose: Purpose) -> PathBuf {
        let other = self.target_directory.join("amphi").join("other-mode");
        other.join(match purpose {
            Purpose::Development => "development",
            Purpose::Production => "production",
        })
    }

    /// The folders of the local packages.
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

/// Installs the target for guests if the compiler of the crate in `folder` does not have it. The compiler depends on
/// the folder: rustup looks for a `rust-toolchain.toml` there and in the folders above.
fn add_target(folder: &Path) -> anyhow::Result<()> {
    let output = Command::new("rustc")
        .current_dir(folder)
        .args(["--print", "sysroot"])
        .output()
        .context("rustc could not be started: install Rust with rustup")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    stderr::say(&format!("Installing the compilation target {TARGET}"));
    // The message has to appear before the output of rustup.
    stderr::flush(stderr::LAST_WAIT);
    let added = Command::new("rustup")
        .current_dir(folder)
        .args(["target", "add", TARGET])
        .status();
    match added {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(
            "the compilation target {TARGET} is missing and could not be installed: run `rustup target add {TARGET}` in {}",
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Listing, Metadata, NotCompiled, packages};
    use crate::config::Config;
    use crate::view::Mode;

    /// A package that does not compile is repaired by a change in its folder, so the folder must be known, and watched,
    /// before the package compiles.
    #[test]
    fn packages_are_known_before_they_compile() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path().canonicalize().expect("it exists");
        for (name, rest) in [
            (
                "app",
                "[dependencies]\nlibrary = { path = \"../library\" }\n",
            ),
            ("library", ""),
        ] {
            let source = folder.join(name).join("src");
            std::fs::create_dir_all(&source).expect("making folders");
            std::fs::write(source.join("lib.rs"), "this does not compile").expect("writing a file");
            let manifest =
                format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n[workspace]\n{rest}");
            std::fs::write(folder.join(name).join("Cargo.toml"), manifest).expect("writing a file");
        }
        let toml = "[app]\nname = \"a\"\n[modules.a]\npath = \".\"\n";
        let config = Config::parse(&folder.join("app/amphi.toml"), toml).expect("it is right");
        let found = packages(&config).expect("cargo knows them");
        assert_eq!(found, ["app", "library"].map(|name| folder.join(name)));
        Metadata::of(&folder).err().expect("there is no package");
    }

    #[test]
    fn what_is_in_no_list_is_found_in_the_component() {
        let of = |lines: &str| {
            let component = [
                b"\0asm..\x0bamphi-views",
                lines.as_bytes(),
                b"\0other\nview a::b c:1\n",
            ]
            .concat();
            let Listing { modes, unlisted } = Listing::of(&component);
            (modes, unlisted)
        };
        let lines =
            "view app::home src/lib.rs:3\nmodes none\nlisted home\nview app::a::b src/a b.rs:7\n";
        assert_eq!(
            of(lines),
            (Vec::new(), vec!["`a::b` (src/a b.rs:7)".to_owned()])
        );
        assert_eq!(
            of("modes sync async\nview app::home src/lib.rs:3\nlisted home\n"),
            (vec![Mode::Sync, Mode::Async], Vec::new())
        );
        assert_eq!(of("modes async\n"), (vec![Mode::Async], Vec::new()));
        let other = Listing::of(b"\0asm of another toolchain");
        assert!(other.modes.len() == 2 && other.unlisted.is_empty());
    }

    #[test]
    fn colours_are_for_terminals() {
        let said = NotCompiled("\x1b[1m\x1b[31merror\x1b[0m: no".to_owned());
        assert_eq!(said.plain(), "error: no");
    }
}
