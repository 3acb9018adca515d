//! The guests in Python, under `tests/guests/python`: built once by componentize-py, which the tests install into a virtual
//! environment of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::command::{install, run, succeed};
use super::{Mode, guests};

const COMPONENTIZE: &str = "componentize-py==0.25.1";

/// Debian's Python cannot make virtual environments without this package.
const INSTALL: &str = "apt-get install --yes --no-install-recommends python3-venv";

/// The component with the views of `mode`.
///
/// # Errors
/// A sentence, when Python or componentize-py cannot be installed here.
///
/// # Panics
/// When a guest cannot be built.
pub fn built(mode: Mode) -> Result<PathBuf, String> {
    /// Builds both components, unless they were built from the same sources before.
    static BUILT: LazyLock<Result<(), String>> = LazyLock::new(build);
    BUILT.clone().map(|()| component(mode))
}

fn component(mode: Mode) -> PathBuf {
    target().join(format!("{mode}.wasm"))
}

/// The folder of the environment and the components.
fn target() -> PathBuf {
    guests::folder().join("target/python")
}

fn build() -> Result<(), String> {
    let target = target();
    fs::create_dir_all(&target).expect("the folder can be made");
    // Another process of the tests may be building them.
    let lock = File::create(target.join("lock")).expect("there is room for a lock");
    lock.lock().expect("the lock comes free");
    let sources = guests::folder().join("python");
    let wit = guests::folder().join("../../guest-sdk/wit");
    let built_from = [COMPONENTIZE.to_owned(), text_of(&sources), text_of(&wit)].concat();
    let stamp = target.join("built-from");
    if fs::read_to_string(&stamp).is_ok_and(|known| known == built_from) {
        return Ok(());
    }
    let componentize = installed(&target)?;
    for mode in [Mode::Sync, Mode::Async] {
        // With the least priority, because other tests that measure time run beside it.
        let mut command = Command::new("nice");
        command.arg("-n19").arg(&componentize).arg("-d").arg(&wit);
        command.args(["-w", &format!("{mode}-views")]);
        command.args(["componentize", &format!("{mode}_app"), "-o"]);
        succeed(command.arg(component(mode)).current_dir(&sources));
    }
    fs::write(stamp, built_from).expect("there is room");
    Ok(())
}

/// The texts of all files in a folder.
fn text_of(folder: &Path) -> String {
    let entries = folder.read_dir().expect("the folder is there");
    let mut files: Vec<PathBuf> = (entries.map(|file| file.expect("it can be listed").path()))
        .filter(|file| file.is_file())
        .collect();
    files.sort();
    let texts = files.iter().map(fs::read_to_string);
    texts.map(|text| text.expect("it is a text")).collect()
}

/// The program componentize-py, in a virtual environment below `target`.
fn installed(target: &Path) -> Result<PathBuf, String> {
    let environment = target.join(COMPONENTIZE);
    let program = environment.join("bin/componentize-py");
    if program.is_file() {
        return Ok(program);
    }
    let make = || {
        let mut python = Command::new("python3");
        run(python.args(["-m", "venv", "--clear"]).arg(&environment))
    };
    if make().is_err() {
        eprintln!("installing Python's virtual environments for the tests");
        (install(INSTALL).and_then(|()| make())).map_err(|said| {
            format!(
                "`python3 -m venv` does not work here, and apt-get could not install it: {said}"
            )
        })?;
    }
    let mut pip = Command::new(environment.join("bin/pip"));
    run(pip.args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        COMPONENTIZE,
    ]))
    .map_err(|said| format!("pip could not install {COMPONENTIZE}: {said}"))?;
    Ok(program)
}
