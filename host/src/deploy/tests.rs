//! Crashes, other hosts, and folders that were changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::artifact::signature::{self, Trust};
use crate::artifact::{self, Artifact, Digest};
use crate::config::TrustedKey;

/// A folder with an artifact in it, and the folder of a state.
fn artifact(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a.css");
    fs::write(&file, content).expect("there is room");
    let files = BTreeMap::from([("static/a.css".to_owned(), file)]);
    let path = folder.path().join("app.amphi");
    artifact::pack("[app]\nname = \"a\"\n", &files, &path).expect("it is packed");
    (folder, path)
}

fn open(path: &Path) -> Artifact {
    Artifact::open(path).expect("it is right")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_version_is_there_whole_and_found_again() {
    let (folder, path) = artifact("body {}");
    let place = folder.path().join("new/state");
    let state = State::open(&place).expect("it is made");
    assert_eq!(state.record().expect("it can be read"), None);
    let version = state
        .add(&open(&path), &Trust::Anyone)
        .expect("it is added");
    let css = version.app.join("static/a.css");
    assert_eq!(fs::read_to_string(&css).expect("it is there"), "body {}");
    let active = Active::now(version.digest, "app.amphi");
    let record = state.activate(active, 8).expect("it is written");
    let again = State::open(&place).expect("it is there");
    assert_eq!(again.record().expect("it can be read"), Some(record));
    let found = again
        .version(version.digest, &Trust::Anyone)
        .expect("it is there");
    assert_eq!(found.app, version.app);
    assert_eq!(names(&place), ["active", "lock", "versions"]);
    let unknown = again.version(Digest::of(b"x"), &Trust::Anyone);
    assert!(unknown.is_err());
}

/// A host that is killed leaves what it was doing; the next one removes it, but not what another host is doing.
#[test]
fn what_a_crash_has_left_is_removed() {
    let (folder, path) = artifact("body {}");
    let place = folder.path().join("state");
    let state = State::open(&place).expect("it is made");
    let owned = state.incoming().expect("it is made");
    let left = place.join("incoming-left");
    fs::create_dir_all(left.join("new/app")).expect("it is made");
    File::create(left.join("lock")).expect("it is made");
    fs::create_dir(place.join("incoming-early")).expect("it is made");
    State::open(&place).expect("it is there");
    let name = owned
        .path()
        .file_name()
        .expect("it has one")
        .to_string_lossy();
    assert_eq!(names(&place), [&*name, "lock", "versions"]);
    state
        .add(&open(&path), &Trust::Anyone)
        .expect("it is added");
    drop(owned);
    assert_eq!(names(&place), ["lock", "versions"]);
}

#[test]
fn hosts_that_unpack_at_the_same_time_do_not_disturb_each_other() {
    let (folder, path) = artifact(&"body {}".repeat(10_000));
    let place = folder.path().join("state");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let state = State::open(&place).expect("it is made");
                let version = state
                    .add(&open(&path), &Trust::Anyone)
                    .expect("it is added");
                let record = Record::first(Active::now(version.digest, "app.amphi"));
                state.set_record(&record).expect("it is written");
                let read = state.record().expect("it is whole").expect("it is there");
                assert_eq!(read.active.digest, version.digest);
            });
        }
    });
    assert_eq!(names(&place), ["active", "lock", "versions"]);
    assert_eq!(names(&place.join("versions")).len(), 1);
}

#[test]
fn what_was_changed_in_the_folder_is_refused() {
    let (folder, path) = artifact("body {}");
    let (_other_folder, other) = artifact("other {}");
    let place = folder.path().join("state");
    let state = State::open(&place).expect("it is made");
    let one = state
        .add(&open(&path), &Trust::Anyone)
        .expect("it is added");
    let two = state
        .add(&open(&other), &Trust::Anyone)
        .expect("it is added");
    let of = |version: &Version| version.app.parent().expect("it has one").to_owned();
    let refused = |part: &str| {
        let error = state
            .version(one.digest, &Trust::Anyone)
            .expect_err("it was changed");
        assert!(error.to_string().contains(part), "{error}");
    };
    let manifest = of(&one).join("manifest.json");
    let right = fs::read(&manifest).expect("it is there");
    fs::copy(of(&two).join("manifest.json"), &manifest).expect("it is there");
    refused("it was changed");
    fs::write(&manifest, vec![b' '; (4 << 20) + 1]).expect("there is room");
    refused("has over 4194304 bytes");
    fs::write(&manifest, right).expect("there is room");
    state
        .version(one.digest, &Trust::Anyone)
        .expect("it is right again");
    let css = one.app.join("static/a.css");
    fs::remove_file(&css).expect("it is there");
    refused("a.css");
    // A link to a file that is the same would be another file later; its content counts, as it is when it is checked.
    fs::write(&css, "Body {}").expect("there is room");
    refused("it is damaged, or was changed");
    state
        .add(&open(&path), &Trust::Anyone)
        .expect("the artifact makes it whole");
    assert_eq!(fs::read_to_string(&css).expect("it is there"), "body {}");
    fs::write(place.join("active"), "{").expect("there is room");
    assert!(state.record().is_err());
}

#[test]
fn nothing_is_unpacked_that_nobody_trusted_has_signed() {
    let (folder, path) = artifact("body {}");
    let state = State::open(&folder.path().join("state")).expect("it is made");
    let (secret, public) = signature::generate().expect("there are random numbers");
    let key = TrustedKey::parse(&public).expect("it is a key");
    let trust = Trust::Keys(vec![key]);
    assert!(state.add(&open(&path), &trust).is_err());
    assert!(names(&folder.path().join("state/versions")).is_empty());
    // Unpacked while everybody was trusted, it does not run later.
    let version = state
        .add(&open(&path), &Trust::Anyone)
        .expect("it is added");
    assert!(state.version(version.digest, &trust).is_err());
    let signed = signature::sign(&open(&path).manifest, &secret, None).expect("it is signed");
    artifact::sign(&open(&path), signed).expect("it is written");
    // The signature comes to the version that is there.
    state.add(&open(&path), &trust).expect("it is signed");
    state.version(version.digest, &trust).expect("it is signed");
}

/// What nothing names is removed when it is old or too many; what the record names stays.
#[test]
fn versions_that_nothing_names_are_removed() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let state = State::open(place.path()).expect("it is made");
    let mut added = Vec::new();
    for number in 0..6 {
        let (_folder, path) = artifact(&format!("{number}"));
        let version = state.add(&open(&path), &Trust::Anyone);
        added.push(version.expect("it is added").digest);
    }
    let mut record = Record::first(Active::now(added[0], "a"));
    for digest in &added[1..3] {
        record = record.activated(Active::now(*digest, "b"), false, 1);
    }
    let there = || {
        let is_there = |digest: &&Digest| state.version(**digest, &Trust::Anyone).is_ok();
        let found = added.iter().filter(is_there);
        found.copied().collect::<Vec<_>>()
    };
    state.prune(&record, 8).expect("it is pruned");
    assert_eq!(there(), added);
    state.prune(&record, 2).expect("it is pruned");
    let left = there();
    assert!(
        left.contains(&added[1]) && left.contains(&added[2]),
        "{left:?}"
    );
    assert_eq!(left.len(), 4, "two more");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 60 * 60);
    for name in names(&place.path().join("versions")) {
        let folder = File::open(place.path().join("versions").join(name)).expect("it is there");
        folder.set_modified(long_ago).expect("it is ours");
    }
    state.prune(&record, 8).expect("it is pruned");
    assert_eq!(there(), added[1..3]);
    assert_eq!(names(place.path()), ["lock", "versions"]);
}

/// What a host gives to others of its fleet is the file that it was given, also its signatures.
#[test]
fn a_version_is_packed_again_as_it_was() {
    let (folder, path) = artifact("body {}");
    let (secret, _) = signature::generate().expect("a key is made");
    let file = open(&path);
    let signed = signature::sign(&file.manifest, &secret, None).expect("it is signed");
    artifact::sign(&file, signed).expect("it is written");
    let state = State::open(&folder.path().join("state")).expect("it is made");
    let version = state
        .add(&open(&path), &Trust::Anyone)
        .expect("it is added");
    let again = folder.path().join("again.amphi");
    let packed = state.pack(version.digest, &Trust::Anyone, &again);
    packed.expect("it is written");
    let bytes = |path: &Path| fs::read(path).expect("it is there");
    assert!(bytes(&again) == bytes(&path), "the files differ");
    let signatures = state.signatures(version.digest).expect("they are there");
    assert_eq!(signatures.len(), 1);
    // What was changed on the disk is not given to anybody.
    fs::write(version.app.join("static/a.css"), "body {!").expect("it can be written");
    let packed = state.pack(version.digest, &Trust::Anyone, &again);
    assert!(packed.is_err());
}

#[test]
fn a_host_keeps_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = State::open(&folder.path().join("a")).expect("it is made");
    let id = state.host_id().expect("it is made");
    assert_eq!(state.host_id().expect("it is there"), id);
    let other = State::open(&folder.path().join("b")).expect("it is made");
    assert_ne!(other.host_id().expect("it is made"), id);
    let file = folder.path().join("a/host-id");
    for wrong in ["", "a b", "a.>", "*", &"a".repeat(200)] {
        fs::write(&file, wrong).expect("it can be written");
        assert!(state.host_id().is_err(), "{wrong:?}");
    }
    fs::write(&file, "web-1\n").expect("it can be written");
    assert_eq!(state.host_id().expect("it is there"), "web-1");
}
