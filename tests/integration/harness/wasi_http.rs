//! The guests under `tests/guests/wasi-http`, which know `wasi:http` and nothing of Amphi, built once per run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use super::command::succeed;
use super::guests;

/// The versions of `wasi:http`: 0.2, whose components run on workers, and 0.3, whose components run on loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    P2,
    P3,
}

/// Writes the version as the names of files and crates do: `p2`, `p3`.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::P2 => "p2",
            Version::P3 => "p3",
        })
    }
}

/// The component of a guest: `middleware`, `p2`, `p3`, `spin` or `wstd`.
pub fn built(guest: &str) -> PathBuf {
    LazyLock::force(&BUILT);
    guests::folder().join(format!(
        "target/amphi/wasm32-wasip2/release/wasi_http_{guest}.wasm"
    ))
}

static BUILT: LazyLock<()> = LazyLock::new(|| {
    // With the least priority, because other tests that measure time run beside it.
    let mut cargo = Command::new("nice");
    cargo.current_dir(folder());
    // The same variable and target folder as `amphi build`, so that shared dependencies are compiled once.
    cargo.env("__CARGO_DEFAULT_LIB_METADATA", "amphi");
    cargo.args([
        "-n19",
        "cargo",
        "build",
        "--release",
        "--target",
        "wasm32-wasip2",
        "--target-dir",
        "../target/amphi",
    ]);
    succeed(&mut cargo);
});

/// The folder of the WIT of this version: that of the crate which the version's guest has its bindings from.
pub fn wit(version: Version) -> PathBuf {
    let metadata = metadata();
    let found = |list: &str, key: &str, value: &str| {
        let entries = metadata.pointer(list).and_then(Value::as_array);
        let mut entries = entries.expect("cargo's metadata have it").iter();
        let entry = entries.find(|entry| entry[key] == value);
        entry.expect("the package is there")
    };
    let guest = found("/packages", "name", &format!("wasi-http-{version}"));
    let id = |of: &Value| of.as_str().expect("an id is a text").to_owned();
    let node = found("/resolve/nodes", "id", &id(&guest["id"]));
    let mut deps = node["deps"].as_array().expect("it is a list").iter();
    let bindings = deps.find(|dep| dep["name"] == format!("wasi{version}"));
    let bindings = id(&bindings.expect("the guest depends on it")["pkg"]);
    let manifest = &found("/packages", "id", &bindings)["manifest_path"];
    Path::new(manifest.as_str().expect("a path is a text")).with_file_name("wit")
}

/// What cargo knows of the guests' packages.
fn metadata() -> Value {
    let mut cargo = Command::new("cargo");
    cargo.args(["metadata", "--format-version", "1", "--locked", "--quiet"]);
    let output = cargo.current_dir(folder()).output();
    let output = output.expect("cargo can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata failed:\n{said}");
    serde_json::from_slice(&output.stdout).expect("cargo's metadata are JSON")
}

fn folder() -> PathBuf {
    guests::folder().join("wasi-http")
}
