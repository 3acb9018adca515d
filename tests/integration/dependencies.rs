//! Checks the third-party packages of Amphi, its guests and its examples by `deny.toml`: licences, bans and sources.
//!
//! `cargo deny` checks the same, and known advisories; this test needs nothing but cargo.

use std::collections::BTreeSet;
use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::SplitWhitespace;

use serde::Deserialize;

/// The part of `deny.toml` that is checked here.
#[derive(Deserialize)]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for the packages of this repository.
    source: Option<String>,
}

#[test]
fn dependencies_have_the_licences_and_sources_that_deny_toml_allows() {
    let text = fs::read_to_string(root().join("deny.toml")).expect("it is there");
    let rules: Rules = toml::from_str(&text).expect("it is TOML with these tables");
    let mut wrong = BTreeSet::new();
    let mut count = 0;
    for workspace in workspaces() {
        let packages = packages(&workspace, &rules.graph.targets);
        // Packages without a source are this repository's own.
        for package in packages.iter().filter(|package| package.source.is_some()) {
            count += 1;
            wrong.extend(fault(package, &rules));
        }
    }
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} packages were found");
}

#[test]
fn an_expression_is_allowed_when_one_of_its_choices_is() {
    let allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    let allow = BTreeSet::from(allow);
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("ISC AND MIT", true),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("MIT AND (GPL-3.0 OR BSL-1.0)", false),
        ("GPL-3.0 OR MIT AND BSL-1.0", false),
        ("(GPL-3.0 AND ISC) OR MIT", true),
        ("(MIT", false),
        ("", false),
        ("MIT ISC", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(is_allowed(expression, &allow), expected, "{expression}");
    }
}

/// What is wrong with a package, if anything is.
fn fault(package: &Package, rules: &Rules) -> Option<String> {
    let Package {
        name,
        version,
        license,
        source,
    } = package;
    if let Some(ban) = rules.bans.deny.iter().find(|ban| ban.name == *name) {
        return Some(format!("{name} {version} is banned: {}", ban.reason));
    }
    let license = license.as_deref().unwrap_or_default();
    if !is_allowed(license, &rules.licenses.allow) {
        return Some(format!(
            "{name} {version} has the licence `{license}`, which deny.toml does not allow"
        ));
    }
    let is_known = |source: &String| {
        source.starts_with("registry+") && source.ends_with("/crates.io-index")
            || source.starts_with("sparse+") && source.contains("crates.io")
    };
    match source {
        Some(source) if !is_known(source) => Some(format!(
            "{name} {version} comes from {source}, which is not the public registry"
        )),
        _ => None,
    }
}

/// Whether a licence expression (SPDX; `/` in old ones is an `OR`) can be met with these licences.
fn is_allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any_of(&mut words, allow) && words.next().is_none()
}

type Words<'a> = Peekable<SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    let mut is_met = all_of(words, allow);
    while words.next_if_eq(&"OR").is_some() {
        is_met |= all_of(words, allow);
    }
    is_met
}

/// `AND` binds tighter than `OR`.
fn all_of(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    let mut is_met = one(words, allow);
    while words.next_if_eq(&"AND").is_some() {
        is_met &= one(words, allow);
    }
    is_met
}

fn one(words: &mut Words<'_>, allow: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let is_met = any_of(words, allow);
        let is_closed = words.next_if_eq(&")").is_some();
        return is_met && is_closed;
    }
    let Some(licence) = words.next() else {
        return false;
    };
    match words.next_if_eq(&"WITH").and_then(|_| words.next()) {
        Some(exception) => allow.contains(&format!("{licence} WITH {exception}")),
        None => allow.contains(licence),
    }
}

/// The workspaces of this repository, except those that are compiled for the benchmark alone: the benchmark's peers,
/// and `tests/bench/statements`.
fn workspaces() -> Vec<PathBuf> {
    let examples = root().join("examples").read_dir().expect("it is there");
    let examples = examples.map(|entry| entry.expect("it can be listed").path());
    let examples = examples.filter(|folder| folder.join("Cargo.toml").is_file());
    let others = [
        "",
        "tests/guests",
        "tests/guests/wasi-http",
        "tests/bench/hello",
        "tests/bench/views",
    ];
    others
        .iter()
        .map(|folder| root().join(folder))
        .chain(examples)
        .collect()
}

/// All packages of a workspace that are compiled for one of these targets.
fn packages(workspace: &Path, targets: &[String]) -> Vec<Package> {
    let mut cargo = Command::new("cargo");
    cargo
        .args(["metadata", "--format-version", "1", "--locked", "--quiet"])
        .current_dir(workspace);
    for target in targets {
        cargo.args(["--filter-platform", target]);
    }
    let output = cargo.output().expect("cargo can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", workspace.display());
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).expect("cargo's metadata are JSON");
    metadata.packages
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace")
}
