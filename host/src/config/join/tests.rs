//! What an artifact asks for, and what places give.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::{PortableError, Storage};

/// A folder that is that of an app and that of an unpacked artifact.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["static", "migrations/main", "components", "files"] {
        fs::create_dir_all(folder.path().join(name)).expect("it is made");
    }
    for name in [
        "Cargo.toml",
        "components/shop.sync.wasm",
        "users",
        "places.htpasswd",
    ] {
        fs::write(folder.path().join(name), "").expect("there is room");
    }
    fs::write(
        folder.path().join("places.htpasswd"),
        format!("ann:{NOBODY}\n"),
    )
    .expect("there is room");
    folder
}

const APP: &str = r#"
[app]
name = "shop"
middleware = ["request-id", "members", "proxy"]
[server]
listen = ["0.0.0.0:80"]
body_max_bytes = 9000000
memory_budget_mb = 100
[sync_views]
workers = 2
[databases.main]
sqlite = "data/main.db"
readers = 2
value_max_bytes = 100000
migrations = "migrations/main"
[static]
dir = "static"
[middleware.members]
use = "basic-auth"
realm = "Members"
users = { ann = "HASH" }
[middleware.proxy]
use = "header-auth"
from = ["10.0.0.1"]
[modules.shop]
path = "."
databases = ["main"]
http = ["self", "https://api.example.com"]
publish = ["orders.*"]
directories = [{ host = "files", guest = "/files" }, { host = "files", guest = "/out", write = true }]
settings = { title = "Shop" }
[modules.shop.secrets]
session_key = { file = "key", generate = true }
token = { env = "AMPHI_TEST_TOKEN_THAT_IS_NOT_SET" }
"#;

fn portable_of(folder: &Path, text: &str) -> Result<(Portable, Vec<String>), PortableError> {
    let text = text.replace("HASH", NOBODY);
    let config = Config::parse_for(&folder.join("amphi.toml"), &text, Purpose::Check);
    Portable::of(&config.expect("it is right"), &text)
}

fn portable(folder: &Path) -> Portable {
    portable_of(folder, APP).expect("it can be packaged").0
}

#[test]
fn each_key_is_in_one_of_the_two_files() {
    let folder = folder();
    let (portable, left) = portable_of(folder.path(), APP).expect("it can be packaged");
    assert_eq!(
        left,
        [
            "middleware.members.users",
            "middleware.proxy.from",
            "databases.main.readers",
            "databases.main.sqlite",
            "server.listen",
            "server.memory_budget_mb",
            "sync_views.workers",
        ]
    );
    let text = portable.text();
    for gone in [
        "0.0.0.0",
        "data/main.db",
        NOBODY,
        "10.0.0.1",
        "AMPHI_TEST",
        "sync_views",
    ] {
        assert!(!text.contains(gone), "{gone} is in {text}");
    }
    let again = Portable::parse(Path::new("artifact"), &text).expect("it is its own form");
    assert_eq!((again.text(), &again.needs), (text, &portable.needs));
    assert_eq!(again.name, "shop");
    let config = again
        .alone(folder.path())
        .expect("it is right without a place");
    assert_eq!(config.server.body_max_bytes, 9_000_000);
    assert!(
        config.modules[0].directories.is_empty(),
        "nothing of this machine is shown"
    );
    assert_eq!(config.modules[0].settings["title"], "Shop");
}

fn joined(folder: &Path, place: &str) -> Result<Config, String> {
    let place = Place::parse(&folder.join("amphi-host.toml"), place, Purpose::Serve);
    let place = place.map_err(|error| error.to_string())?;
    let config = portable(folder).at(&place, folder, Purpose::Serve);
    config.map_err(|error| error.to_string())
}

const PLACE: &str = r#"
state = "state"
[server]
listen = ["127.0.0.1:8080"]
body_max_bytes = 10000000
[databases.main]
sqlite = "main.db"
[databases.other]
sqlite = "other.db"
[middleware.members]
file = "places.htpasswd"
[middleware.proxy]
from = ["10.0.0.2"]
[middleware.unknown]
file = "users"
[modules.shop]
directories = [
    { host = "files", guest = "/files", write = true },
    { host = "files", guest = "/out", write = true },
    { host = ".", guest = "/not-asked-for" },
]
settings = { title = "The shop here" }
[modules.shop.secrets]
session_key = { file = "key", generate = true }
token = { file = "Cargo.toml" }
unused = { file = "Cargo.toml" }
[modules.other.secrets]
key = { file = "Cargo.toml" }
[grants]
http = ["*"]
publish = ["*"]
"#;

#[test]
fn a_place_gives_what_is_asked_for_and_nothing_else() {
    let folder = folder();
    let config = joined(folder.path(), PLACE).expect("all is there");
    assert_eq!(
        config.listen,
        ["127.0.0.1:8080".parse().expect("an address")]
    );
    assert_eq!(
        config.server.body_max_bytes, 9_000_000,
        "what the app asked for"
    );
    assert_eq!(
        config.server.memory_budget_mb, 512,
        "the place does not say"
    );
    assert_eq!(config.databases.len(), 1);
    let Storage::Sqlite(file) = &config.databases["main"].storage else {
        panic!("it is a file");
    };
    assert_eq!(file.file, folder.path().join("main.db"));
    let [shop] = &config.modules[..] else {
        panic!("there is one module");
    };
    assert_eq!(shop.settings["title"], "The shop here");
    assert_eq!(shop.settings["session_key"].len(), 64);
    assert!(!shop.settings.contains_key("unused"));
    let folders = shop
        .directories
        .iter()
        .map(|dir| (dir.guest.as_str(), dir.write));
    let folders: Vec<_> = folders.collect();
    assert_eq!(
        folders,
        [("/files", false), ("/out", true)],
        "read stays read"
    );
    assert_eq!(config.builtins.len(), 3);
}

#[test]
fn each_thing_that_is_missing_is_named() {
    let folder = folder();
    let without = |line: &str| {
        assert!(PLACE.contains(line), "{line}");
        joined(folder.path(), &PLACE.replacen(line, "", 1)).expect_err("it is missing")
    };
    for (line, words) in [
        ("sqlite = \"main.db\"", "the database `main`"),
        (
            "token = { file = \"Cargo.toml\" }",
            "the secret `token` of module `shop`",
        ),
        (
            "[middleware.members]\nfile = \"places.htpasswd\"",
            "users for `members`",
        ),
        (
            "http = [\"*\"]",
            "`http = [\"https://api.example.com\"]` in `[grants]`",
        ),
        (
            "publish = [\"*\"]",
            "`publish = [\"orders.*\"]` in `[grants]`",
        ),
        (
            "body_max_bytes = 10000000",
            "`body_max_bytes = 9000000` in `[server]`",
        ),
        (
            "{ host = \"files\", guest = \"/out\", write = true },",
            "a folder for `/out` of module `shop`, to write in",
        ),
    ] {
        let error = match line {
            "sqlite = \"main.db\"" => without("[databases.main]\nsqlite = \"main.db\""),
            line => without(line),
        };
        assert!(error.contains(words), "no {words:?} in: {error}");
        assert_eq!(error.lines().count(), 2, "{error}");
    }
    let read_only = PLACE.replace("guest = \"/out\", write = true", "guest = \"/out\"");
    let error = joined(folder.path(), &read_only).expect_err("it may not write");
    assert!(error.contains("to write in"), "{error}");
    let server = PLACE.replacen(
        "sqlite = \"main.db\"",
        "postgres = \"postgres://localhost/x\"",
        1,
    );
    let error = joined(folder.path(), &server).expect_err("it is of another kind");
    assert!(error.contains("the database `main`, SQLite"), "{error}");
}

#[test]
fn mistakes_in_a_place_are_told_with_their_line() {
    let folder = folder();
    let wrong = |from: &str, to: &str| {
        assert!(PLACE.contains(from), "{from}");
        joined(folder.path(), &PLACE.replacen(from, to, 1)).expect_err("it is wrong")
    };
    for (from, to, place, words) in [
        ("state = ", "stat = ", ":2:1: ", "did you mean `state`?"),
        ("127.0.0.1:8080", "localhost", ":4:", "is not an address"),
        ("[grants]", "[grant]", ":", "did you mean `grants`?"),
        (
            "publish = [\"*\"]",
            "publish = [\"a b\"]",
            ":",
            "is not a topic",
        ),
        ("http = [\"*\"]", "http = [\"x\"]", ":", "cannot be granted"),
        (
            "sqlite = \"main.db\"",
            "sqlite = \"main.db\"\nmigrations = \"migrations/main\"",
            ":",
            "belong to the app",
        ),
        (
            "file = \"places.htpasswd\"",
            "file = \"users\"\nrealm = \"x\"",
            ":",
            "`realm` of `[middleware.members]` belongs to the app",
        ),
        (
            "token = { file = \"Cargo.toml\" }",
            "token = { env = \"AMPHI_TEST_TOKEN_THAT_IS_NOT_SET\" }",
            ":",
            "is not set",
        ),
        (
            "host = \"files\", guest = \"/out\"",
            "host = \"none\", guest = \"/out\"",
            ":",
            "there is no folder",
        ),
        (
            "[grants]",
            "[deploy]\ntrusted_keys = [\"x\"]\n[grants]",
            ":",
            "neither a public key of minisign nor a file",
        ),
        (
            "[grants]",
            "[limits]\nmemory_mb = 5000\n[grants]",
            ":",
            "the most is 1024",
        ),
        (
            "[grants]",
            "[sync_views]\nworkers = 0\n[grants]",
            ":",
            "the least is 1",
        ),
    ] {
        let error = wrong(from, to);
        let start = format!("{}/amphi-host.toml{place}", folder.path().display());
        assert!(error.starts_with(&start), "{start}: {error}");
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}

#[test]
fn private_addresses_are_granted_one_by_one() {
    assert!(is_named("https://api.example.com"));
    for origin in [
        "http://127.0.0.1:80",
        "http://169.254.169.254",
        "http://[::1]",
        "http://localhost",
        "http://a.localhost:1",
        "http://localhost.",
        "http://2130706433",
        "http://0x7f.1",
    ] {
        assert!(!is_named(origin), "{origin}");
    }
}

#[test]
fn greater_numbers_are_refused_and_0_without_end_is_the_greatest() {
    let table = |text: &str| text.parse::<Table>().expect("it is TOML");
    let count = |asked: &str, greatest: &str| {
        let mut missing = Vec::new();
        over(
            &table(asked),
            &table(greatest),
            &["sockets"],
            &["sockets"],
            &mut missing,
        );
        missing.len()
    };
    assert_eq!(count("a = 2", "a = 2"), 0);
    assert_eq!(count("a = 3", "a = 2"), 1);
    assert_eq!(count("a = 3\nb = 9", "a = 2\nb = 2"), 2);
    assert_eq!(count("idle_timeout_ms = 0", "idle_timeout_ms = 5"), 1);
    assert_eq!(count("idle_timeout_ms = 5", "idle_timeout_ms = 0"), 0);
    assert_eq!(
        count("messages_per_second_max = 0", "messages_per_second_max = 0"),
        0
    );
}

/// Each number that an artifact can ask for has a greatest one, or belongs to the place.
#[test]
fn no_number_is_without_a_bound() {
    let folder = folder();
    let place = Place::parse(
        &folder.path().join("p.toml"),
        "state = \"s\"",
        Purpose::Check,
    );
    let allowed = place.expect("it is right").allowed.expect("it has a file");
    for name in ["server", "events", "sockets", "channels", "limits"] {
        let numbers = allowed.limits[name].as_table().expect("a table");
        assert!(numbers.values().any(Value::is_integer), "{name}");
    }
    assert_eq!(allowed.limits["limits"]["memory_mb"].as_integer(), Some(64));
    assert_eq!(
        allowed.limits["channels"]["history_max_bytes"].as_integer(),
        Some(64 << 20)
    );
}
