//! Compiles the components of both modes at the same time.
//!
//! One run of cargo compiles a crate for one mode. To use the other cores meanwhile, `amphi build` makes cargo run this
//! program in place of rustc for the app's own crates (`RUSTC_WORKSPACE_WRAPPER`). For the crate with the views, [`run`]
//! starts two compilers: the one that cargo has asked for, and one with the same arguments for the other mode. All other
//! commands are passed on unchanged.
//!
//! Cargo does not know the component of the second compiler. Its file is named after a digest of the first component, so
//! [`other_component`] finds it exactly when it was built together with the component that cargo reports. When there is no
//! such file (the second compiler failed, or the file was removed), `amphi build` has cargo compile that mode as well, and
//! cargo reports the errors.

use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::view::Mode;

/// The environment variable with the folder for the components of second compilers. It is set for cargo, which passes
/// it on to the compilers that it starts. It is empty when only one mode is to be compiled.
const FOLDER: &str = "AMPHI_OTHER_COMPONENTS";

/// The option of rustc that chooses the mode; `views!` of the SDK reads it.
pub(super) fn mode_option(mode: Mode) -> String {
    format!("amphi_mode=\"{mode}\"")
}

/// Makes cargo start this program in place of rustc. The component of the second compiler goes into `folder`; without a
/// folder, there is no second compiler. The wrapper is set in both cases, because cargo compiles a crate anew whenever
/// a wrapper is added or taken away.
pub(super) fn wrap(cargo: &mut Command, folder: Option<&Path>) -> std::io::Result<()> {
    cargo
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?)
        .env(FOLDER, folder.unwrap_or(Path::new("")));
    Ok(())
}

/// The component of the other mode that was compiled together with `component`, a component of the crate `name`.
pub(super) fn other_component(folder: &Path, name: &str, component: &[u8]) -> Option<PathBuf> {
    Some(folder.join(file_name(name, component))).filter(|file| file.is_file())
}

fn file_name(name: &str, component: &[u8]) -> String {
    let mut digest = DefaultHasher::new();
    digest.write(component);
    format!("{name}-{:016x}.wasm", digest.finish())
}

/// When cargo has started this program in place of rustc, as `amphi build` asks it to: compiles, and returns the exit
/// code. Otherwise `None`. A program that calls [`run_with`](super::run_with) calls this first.
pub fn run() -> Option<ExitCode> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let mut first = Command::new(&rustc);
    first.args(&arguments).env_remove(FOLDER);
    let Some(second) = Second::of(&arguments, folder) else {
        let error = first.exec();
        eprintln!("error: {} could not be started: {error}", rustc.display());
        return Some(ExitCode::FAILURE);
    };
    Some(match second.compile_with(first, &rustc) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {} could not be started: {error}", rustc.display());
            ExitCode::FAILURE
        }
    })
}

/// The second compiler.
#[derive(Debug, PartialEq)]
struct Second {
    arguments: Vec<OsString>,
    name: String,
    /// The file of the first component.
    first: PathBuf,
    /// The folder that the second compiler writes into. It needs its own, because both compilers give their temporary
    /// files the same names.
    work: PathBuf,
    /// The folder that [`Second::keep`] moves the component to.
    folder: PathBuf,
}

impl Second {
    /// The second compiler for a command line of cargo. None if cargo does not ask for a component, or only one mode is
    /// to be compiled.
    fn of(arguments: &[OsString], folder: PathBuf) -> Option<Self> {
        let after = |option: &str| {
            let at = arguments.iter().position(|argument| argument == option)?;
            arguments.get(at + 1)?.to_str()
        };
        let [sync, asynch] =
            [Mode::Sync, Mode::Async].map(|mode| OsString::from(mode_option(mode)));
        let is_mode = |argument: &OsString| *argument == sync || *argument == asynch;
        let is_component = arguments.iter().any(is_mode) && after("--crate-type")? == "cdylib";
        if folder.as_os_str().is_empty() || !is_component {
            return None;
        }
        let name = after("--crate-name")?.to_owned();
        let suffix = arguments
            .iter()
            .find_map(|argument| argument.to_str()?.strip_prefix("extra-filename="));
        let file = format!("{name}{}.wasm", suffix.unwrap_or_default());
        let first = Path::new(after("--out-dir")?).join(&file);
        let work = folder.join(&name);
        let mut is_folder = false;
        let arguments = arguments.iter().map(|argument| {
            let text = argument.to_str().unwrap_or_default();
            if std::mem::replace(&mut is_folder, text == "--out-dir") {
                work.clone().into_os_string()
            } else if *argument == sync {
                asynch.clone()
            } else if *argument == asynch {
                sync.clone()
            } else if text.starts_with("--emit=") {
                "--emit=link".into()
            } else if text.starts_with("incremental=") {
                // Each mode has its own incremental cache, because the compiler discards a cache that was made with
                // other options.
                format!("{text}-other").into()
            } else {
                argument.clone()
            }
        });
        Some(Self {
            arguments: arguments.collect(),
            name,
            first,
            work: work.clone(),
            folder,
        })
    }

    /// Runs both compilers, and returns the exit code of the first.
    fn compile_with(&self, mut first: Command, rustc: &OsStr) -> std::io::Result<ExitCode> {
        std::fs::create_dir_all(&self.work)?;
        let mut first = first.spawn()?;
        // The messages of the second compiler are dropped, because they would repeat those of the first one.
        let mut second = Command::new(rustc)
            .args(&self.arguments)
            .env_remove(FOLDER)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let status = first.wait()?;
        if !status.success() {
            second.kill()?;
            second.wait()?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        let succeeded = second.wait()?.success();
        // An error here costs only time: without the second component, cargo compiles that mode later.
        let _ = self.keep(succeeded);
        Ok(ExitCode::SUCCESS)
    }

    /// Removes the crate's earlier second components. If the compiler has `succeeded`, moves the new one to where
    /// [`other_component`] finds it.
    fn keep(&self, succeeded: bool) -> std::io::Result<()> {
        let prefix = format!("{}-", self.name);
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                std::fs::remove_file(entry.path())?;
            }
        }
        if succeeded {
            let component = std::fs::read(&self.first)?;
            let file = self.first.file_name().unwrap_or_default();
            std::fs::rename(
                self.work.join(file),
                self.folder.join(file_name(&self.name, &component)),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_second_compiler_has_the_other_mode_and_a_folder_of_its_own() {
        let of = |text: &str| Second::of(&arguments(text), "/other".into());
        let command = "--crate-name shop src/lib.rs --emit=dep-info,link --crate-type cdylib -C extra-filename=-1a \
             --out-dir /target/deps -C incremental=/target/incremental --cfg amphi_mode=\"sync\"";
        let second = Second {
            arguments: arguments(
                "--crate-name shop src/lib.rs --emit=link --crate-type cdylib -C extra-filename=-1a \
                 --out-dir /other/shop -C incremental=/target/incremental-other --cfg amphi_mode=\"async\"",
            ),
            name: "shop".into(),
            first: "/target/deps/shop-1a.wasm".into(),
            work: "/other/shop".into(),
            folder: "/other".into(),
        };
        assert_eq!(of(command), Some(second));
        for other in [
            "-vV",
            &command.replace("cdylib", "lib"),
            &command.replace("amphi_mode", "other"),
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_component_is_found_by_the_one_it_was_built_with() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let second = Second {
            arguments: Vec::new(),
            name: "shop".into(),
            first: folder.path().join("shop-1a.wasm"),
            work: folder.path().join("work"),
            folder: folder.path().join("kept"),
        };
        for folder in [&second.work, &second.folder] {
            std::fs::create_dir(folder).expect("making a folder");
        }
        let found = |component: &[u8]| other_component(&second.folder, "shop", component);
        for (first, other) in [("sync 1", "async 1"), ("sync 2", "async 2")] {
            std::fs::write(&second.first, first).expect("writing a file");
            std::fs::write(second.work.join("shop-1a.wasm"), other).expect("writing a file");
            second.keep(true).expect("both files are there");
            let file = found(first.as_bytes()).expect("it was kept");
            assert_eq!(std::fs::read_to_string(file).expect("it is a text"), other);
        }
        assert_eq!(found(b"sync 1"), None, "an earlier component is removed");
        second.keep(false).expect("files can be removed");
        assert_eq!(found(b"sync 2"), None, "the second compiler failed");
    }
}
