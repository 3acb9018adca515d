//! The guest in JavaScript, under `tests/guests/javascript`: built once by componentize-js, which the tests install beside it by
//! npm, in the versions of its lock file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::built::{once, text_of};
use super::command::{install, run, succeed};
use super::guests;
use super::wasi_http::{self, Version};

const INSTALL: &str = "apt-get install --yes --no-install-recommends nodejs npm";

/// The version of WASI that componentize-js's engine has. It makes components of no other one.
const ENGINE_WASI: &str = "0.2.10";

/// The component.
///
/// # Errors
/// A sentence, when Node, npm or componentize-js cannot be installed here.
///
/// # Panics
/// When the guest cannot be built.
pub fn built() -> Result<PathBuf, String> {
    let sources = guests::folder().join("javascript");
    let target = guests::folder().join("target/javascript");
    let lock = fs::read_to_string(sources.join("package-lock.json")).expect("it is there");
    once(&target, "tools", &lock, || installed(&sources, &target))?;
    let wit = wasi_http::wit(Version::P2);
    let component = target.join("app.wasm");
    // The folder's name has the version, which is all that its texts depend on.
    let built_from = [text_of(&sources), wit.display().to_string()].concat();
    once(&target, "app", &built_from, || {
        // Node looks for packages beside the script.
        let script = target.join("build.mjs");
        fs::copy(sources.join("build.mjs"), &script).expect("there is room");
        let wit = wit_of_engine(&wit, &target);
        // With the least priority, because other tests that measure time run beside it.
        let mut command = Command::new("nice");
        command.args(["-n19", "node"]).arg(script).arg(wit);
        succeed(command.arg(sources.join("app.js")).arg(&component));
        Ok(())
    })?;
    Ok(component)
}

/// Installs componentize-js in `target`.
fn installed(sources: &Path, target: &Path) -> Result<(), String> {
    let there = |program: &str| run(Command::new(program).arg("--version")).is_ok();
    if !(there("node") && there("npm")) {
        eprintln!("installing Node and npm for the tests");
        install(INSTALL).map_err(|said| {
            format!("there is no Node or npm here, and apt-get could not install them: {said}")
        })?;
    }
    for file in ["package.json", "package-lock.json"] {
        fs::copy(sources.join(file), target.join(file)).expect("there is room");
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    run(npm.current_dir(target)).map_err(|said| format!("npm could not install the tools: {said}"))
}

/// A copy, below `target`, of the WIT in a folder, as that of the engine's version. What was added to WASI since then is in the copy,
/// and nobody uses it.
fn wit_of_engine(wit: &Path, target: &Path) -> PathBuf {
    let copy = target.join("wit");
    for folder in ["", "deps"] {
        let to = copy.join(folder);
        fs::create_dir_all(&to).expect("the folder can be made");
        for file in wit.join(folder).read_dir().expect("the folder is there") {
            let file = file.expect("it can be listed");
            if file.path().is_file() {
                let text = fs::read_to_string(file.path()).expect("it is a text");
                let text = text.replace(&version(wit), ENGINE_WASI);
                fs::write(to.join(file.file_name()), text).expect("there is room");
            }
        }
    }
    copy
}

/// The version of WASI in a folder of WIT.
fn version(wit: &Path) -> String {
    let text = fs::read_to_string(wit.join("deps/http.wit")).expect("WASI has it");
    let version = text
        .split_once("package wasi:http@")
        .and_then(|(_, rest)| rest.split_once(';'));
    version.expect("a package has a version").0.to_owned()
}
