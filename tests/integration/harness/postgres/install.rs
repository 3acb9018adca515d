//! Finds PostgreSQL's programs, or installs them.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::command;

/// Where Debian and its relatives keep the programs: a folder per version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// Debian's package `postgresql` creates and starts a server of its own, unless the configuration of
/// `postgresql-common` says otherwise. So that configuration is changed first, and restored afterwards.
const INSTALL: &str = r#"
apt-get install --yes --no-install-recommends postgresql-common
config=/etc/postgresql-common/createcluster.conf
cp -p "$config" "$config.before-tests"
trap 'mv "$config.before-tests" "$config"' EXIT
pg_conftool "$config" set create_main_cluster off
apt-get install --yes --no-install-recommends postgresql
"#;

/// The folder of `initdb` and `postgres`.
///
/// # Panics
/// When PostgreSQL is missing and cannot be installed.
pub(super) fn programs() -> PathBuf {
    if let Some(found) = find() {
        return found;
    }
    // Another process of the tests may be installing PostgreSQL.
    let lock = File::create(env::temp_dir().join("amphi-tests-postgresql.lock"))
        .expect("there is room for a lock");
    lock.lock().expect("the lock comes free");
    if let Some(found) = find() {
        return found;
    }
    install();
    find().expect("the package has the programs")
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres"]
            .iter()
            .all(|name| folder.join(name).is_file())
    };
    env::split_paths(&path).find(complete).or_else(|| {
        let versions = Path::new(DEBIAN).read_dir().ok()?;
        let folders = versions.filter_map(|version| {
            let version = version.ok()?;
            let number: u32 = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin")))
        });
        let complete = folders.filter(|(_, folder)| complete(folder));
        complete.max().map(|(_, folder)| folder)
    })
}

fn install() {
    eprintln!("installing PostgreSQL for the tests");
    if let Err(said) = command::install(INSTALL) {
        panic!(
            "the tests need PostgreSQL's `initdb` and `postgres`, in the PATH or below {DEBIAN}, and could not install them: \
             install PostgreSQL (with apt-get: the package `postgresql`), or run the tests as a user who may, by sudo \
             without a password.\n{said}"
        );
    }
}

/// A program in `PATH`.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    (env::split_paths(&path).map(|folder| folder.join(name))).find(|program| program.is_file())
}
