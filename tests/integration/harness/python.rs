//! Packages of Python, which the tests install into virtual environments of their own; and the guests in Python, under
//! `tests/guests/python`, which one of the packages, componentize-py, builds once.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::built::{once, text_of};
use super::command::{install, run, succeed};
use super::wasi_http::{self, Version};
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
    let wit = guests::folder().join("../../guest-sdk/wit");
    let world = format!("{mode}-views");
    component(&mode.to_string(), &wit, &text_of(&wit), &world)
}

/// The component of this version of `wasi:http`.
///
/// # Errors
/// As [`built`].
///
/// # Panics
/// As [`built`].
pub fn http(version: Version) -> Result<PathBuf, String> {
    let wit = wasi_http::wit(version);
    let world = match version {
        Version::P2 => "wasi:http/proxy",
        Version::P3 => "wasi:http/service",
    };
    // The folder's name has the version, which is all that its texts depend on.
    let texts = wit.display().to_string();
    component(&format!("http_{version}"), &wit, &texts, world)
}

/// The component of the module `{name}_app`, for this world of the WIT in a folder.
fn component(name: &str, wit: &Path, texts: &str, world: &str) -> Result<PathBuf, String> {
    let target = guests::folder().join("target/python");
    let sources = guests::folder().join("python");
    let component = target.join(format!("{name}.wasm"));
    let built_from = [COMPONENTIZE, world, &text_of(&sources), texts].concat();
    once(&target, name, &built_from, || {
        let componentize = installed(&target)?;
        // With the least priority, because other tests that measure time run beside it.
        let mut command = Command::new("nice");
        command.arg("-n19").arg(&componentize).arg("-d").arg(wit);
        command.args(["-w", world, "componentize", &format!("{name}_app"), "-o"]);
        succeed(command.arg(&component).current_dir(&sources));
        Ok(())
    })?;
    Ok(component)
}

/// The program `python` with these packages, each pinned to a version.
///
/// # Errors
/// A sentence, when Python or the packages cannot be installed here.
///
/// # Panics
/// When there is no room for the environment.
pub fn with(packages: &[&str]) -> Result<PathBuf, String> {
    let target = guests::folder().join("target/python");
    let name = packages.join("+");
    once(&target, &name, &name, || {
        environment(&target.join(&name), packages)
    })?;
    Ok(target.join(name).join("bin/python"))
}

/// The program componentize-py, in a virtual environment below `target`.
fn installed(target: &Path) -> Result<PathBuf, String> {
    let folder = target.join(COMPONENTIZE);
    let program = folder.join("bin/componentize-py");
    if !program.is_file() {
        environment(&folder, &[COMPONENTIZE])?;
    }
    Ok(program)
}

/// Makes a virtual environment with these packages.
fn environment(folder: &Path, packages: &[&str]) -> Result<(), String> {
    let make = || {
        let mut python = Command::new("python3");
        run(python.args(["-m", "venv", "--clear"]).arg(folder))
    };
    if make().is_err() {
        eprintln!("installing Python's virtual environments for the tests");
        (install(INSTALL).and_then(|()| make())).map_err(|said| {
            format!(
                "`python3 -m venv` does not work here, and apt-get could not install it: {said}"
            )
        })?;
    }
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet"]);
    pip.arg("--disable-pip-version-check");
    run(pip.args(packages))
        .map_err(|said| format!("pip could not install {}: {said}", packages.join(" ")))
}
