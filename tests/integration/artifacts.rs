//! Artifacts: packaged, signed, sent to a registry and back, and served in a place that gives them what they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::app::Ran;
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::{App, Server, eventually, guests, origin};

/// A place for the guest `behaviour`, which keeps its state in the folder `state`.
const PLACE: &str = r#"
state = "state"
[server]
admin = "127.0.0.1:0"
[databases.default]
sqlite = "data/placed.db"
"#;

/// The guest `behaviour`, with static files, a secret and a folder for its state.
fn app() -> App {
    let app = App::new("[static]\ndir = \"files\"\n");
    app.write("files/css/style.css", "body {}");
    app.write("files/.hidden", "not served");
    app.write("place.toml", PLACE);
    app
}

/// Runs `amphi`, which has to succeed, and returns the last line of what it prints.
#[track_caller]
fn printed(app: &App, arguments: &[&str]) -> String {
    let ran = app.amphi(arguments, &[]);
    assert!(ran.success, "{arguments:?}: {ran:?}");
    ran.stdout.lines().last().unwrap_or_default().to_owned()
}

/// Runs `amphi`, which has to refuse with these words.
#[track_caller]
fn refused(app: &App, arguments: &[&str], words: &[&str]) -> Ran {
    let ran = app.amphi(arguments, &[]);
    for word in words {
        assert!(
            ran.error().contains(word),
            "no {word:?} in: {}",
            ran.error()
        );
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

/// The names of what is in a folder of the app.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("it can be listed");
        entry.file_name().to_string_lossy().into_owned()
    };
    entries.map(name).collect()
}

/// The digest of the version that a server has made the active one.
async fn active(server: &Server) -> String {
    eventually("the active version", async || {
        let lines = server.log.since(0);
        let mut active = lines.iter().filter(|line| line.text("message") == "active");
        let digest = active.next().map(|line| line.text("digest").to_owned());
        digest.ok_or(lines.len())
    })
    .await
}

#[test]
fn the_same_app_has_the_same_digest() {
    let (one, other) = (app(), app());
    let digest = printed(&one, &["package", ".", "-o", "a.amphi"]);
    assert!(
        digest.starts_with("sha256:") && digest.len() == 71,
        "{digest}"
    );
    assert_eq!(printed(&other, &["package"]), digest);
    let bytes = |app: &App, file: &str| fs::read(app.path(file)).expect("it was written");
    assert_eq!(bytes(&one, "a.amphi"), bytes(&other, "test.amphi"));
    // What belongs to a place is not part of it.
    let placed = App::new(
        "[static]\ndir = \"files\"\n[server]\nlisten = [\"127.0.0.1:1\"]\n[sync_views]\nworkers = 3\n",
    );
    placed.write("files/css/style.css", "body {}");
    let ran = placed.amphi(&["package"], &[]);
    assert_eq!(ran.stdout.trim(), digest, "{ran:?}");
    for left in [
        "server.listen",
        "server.admin",
        "sync_views.workers",
        "databases.default.sqlite",
    ] {
        assert!(ran.stderr.contains(left), "no {left}: {}", ran.stderr);
    }
    placed.write("files/css/style.css", "body { color: red }");
    assert_ne!(printed(&placed, &["package"]), digest);
}

#[test]
fn what_cannot_be_an_artifact_is_refused_by_name() {
    let app = app();
    std::os::unix::fs::symlink("/etc/passwd", app.path("files/link")).expect("a link can be made");
    refused(
        &app,
        &["package"],
        &["files/link", "an artifact has no links"],
    );
    fs::remove_file(app.path("files/link")).expect("it is there");
    let own = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
    let key = "0123456789abcdef0123456789abcdef";
    let with_key = format!("{own}\n[modules.behaviour.settings]\nsession_key = \"{key}\"\n");
    app.write("amphi.toml", &with_key);
    let ran = refused(&app, &["package"], &["session_key", "move it to `secrets`"]);
    assert!(!ran.stderr.contains(key), "{}", ran.stderr);
    app.write("amphi.toml", &own);
    let component = app.path("target/amphi/behaviour.sync.wasm");
    fs::write(&component, "not a component").expect("it is ours");
    refused(
        &app,
        &["package"],
        &["behaviour", "is not a WebAssembly component"],
    );
    fs::remove_file(&component).expect("it is there");
    fs::remove_file(app.path("target/amphi/behaviour.async.wasm")).expect("it is there");
    refused(&app, &["package"], &["behaviour", "amphi build"]);
    let left = names(app.folder());
    assert!(
        !left
            .iter()
            .any(|name| name.ends_with(".amphi") || name.starts_with(".tmp")),
        "{left:?}"
    );
}

#[tokio::test]
async fn an_artifact_without_a_place_has_a_folder_of_its_own() {
    let app = app();
    let digest = printed(&app, &["package"]);
    // Nothing of the app's folder is needed any more.
    fs::remove_dir_all(app.path("target")).expect("it is there");
    fs::remove_file(app.path("amphi.toml")).expect("it is there");
    let server = app.serve_with(&["test.amphi"]).await;
    assert_eq!(active(&server).await, digest);
    server.get("/sync/hello").await.ok();
    server.get("/async/hello").await.ok();
    assert_eq!(server.get("/static/css/style.css").await.ok(), "body {}");
    assert_eq!(
        server.get("/static/.hidden").await.status,
        StatusCode::NOT_FOUND
    );
    let saved = server.post("/sync/rows/kept", "").await;
    assert!(saved.status < 300, "{saved:?}");
    assert!(server.app.path("test.state/data/default.db").is_file());
    assert!(!server.app.path("data").exists());
    let mode = fs::metadata(server.app.path("test.state")).expect("it is there");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o700
    );
}

#[test]
fn what_needs_a_place_is_refused_without_one() {
    let app = app();
    let own = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
    let own = own.replace(
        "http = [\"self\"]",
        "http = [\"self\", \"http://127.0.0.1:9\"]\ndirectories = [{ host = \"files\", guest = \"/files\" }]\nsecrets = { token = { env = \"TOKEN\" } }",
    );
    app.write("amphi.toml", own);
    printed(&app, &["package"]);
    refused(
        &app,
        &["serve", "test.amphi"],
        &[
            "the secret `token` of module `behaviour`",
            "a folder for `/files` of module `behaviour`",
            "requests of module `behaviour` to http://127.0.0.1:9",
            "write an amphi-host.toml",
        ],
    );
}

#[test]
fn what_a_place_does_not_give_is_named_all_at_once() {
    let app = app();
    let own = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
    let own = own.replace(
        "http = [\"self\"]",
        r#"http = ["self", "https://api.example.com", "http://localhost:9"]
        http_private = ["10.0.0.0/8"]
        publish = ["orders.*"]
        subscribe = ["orders.paid"]
        channels = ["room.*"]
        directories = [{ host = "files", guest = "/files", write = true }]
        secrets = { token = { env = "TOKEN" }, session_key = { file = "key", generate = true } }
        limits = { memory_mb = 128, timeout_ms = 60000 }"#,
    ) + "\n[events]\nqueue_max = 20000\n";
    let own = own + "[channels]\nnats = \"nats://127.0.0.1:1\"\nhistory_max_bytes = 100000000\n";
    app.write("amphi.toml", own);
    let ran = app.amphi(&["package"], &[("TOKEN", "x")]);
    assert!(ran.success, "{ran:?}");
    let place = "state = \"state\"\n[deploy]\napp = \"shop\"\n[grants]\nhttp = [\"*\"]\npublish = [\"orders.paid\"]\n[modules.behaviour]\ndirectories = [{ host = \"files\", guest = \"/files\" }]\n";
    app.write("place.toml", place);
    let missing = [
        "`app` of `[deploy]` allows `shop` alone",
        "`sqlite = \"data/default.db\"` in `[databases.default]`",
        "the secret `token`",
        "`session_key = { file = \"session_key\", generate = true }`",
        "a folder for `/files` of module `behaviour`, to write in",
        "a NATS server",
        "`http = [\"http://localhost:9\"]`",
        "`http_private = [\"10.0.0.0/8\"]`",
        "`publish = [\"orders.*\"]`",
        "`subscribe = [\"orders.paid\"]`",
        "`channels = [\"room.*\"]`",
        "`memory_mb = 128` in `[limits]`",
        "`timeout_ms = 60000` in `[limits]`",
        "`queue_max = 20000` in `[events]`",
        "`history_max_bytes = 100000000` in `[channels]`",
    ];
    let ran = refused(
        &app,
        &["serve", "--place", "place.toml", "test.amphi"],
        &missing,
    );
    assert_eq!(
        ran.error().lines().count(),
        1 + missing.len(),
        "{}",
        ran.error()
    );
    assert!(!app.path("state/active").exists(), "it was never served");
}

#[tokio::test]
async fn a_place_gives_what_it_has_and_remembers_what_was_active() {
    let app = app();
    let digest = printed(&app, &["package"]);
    let arguments = ["--place", "place.toml", "test.amphi"];
    refused(
        &app,
        &["serve", "--place", "place.toml"],
        &["no version has been active"],
    );
    // As with a folder: migrations are applied by their own command.
    let serve = [&["serve"][..], &arguments[..]].concat();
    let place = app.path("place.toml");
    let migrate = format!("`amphi migrate --place {} test.amphi`", place.display());
    refused(&app, &serve, &[&migrate]);
    assert!(!app.path("state/active").exists(), "it was not served");
    printed(&app, &[&["migrate"][..], &arguments[..]].concat());
    let server = app.serve_with(&arguments).await;
    assert!(server.post("/sync/rows/placed", "").await.status < 300);
    assert!(server.app.path("data/placed.db").is_file());
    assert_eq!(active(&server).await, digest);
    let active = fs::read_to_string(server.app.path("state/active")).expect("it was written");
    let active: Value = serde_json::from_str(&active).expect("it is JSON");
    assert_eq!(
        (&active["active"]["digest"], &active["active"]["from"]),
        (&digest.as_str().into(), &"test.amphi".into())
    );
    let left = names(&server.app.path("state"));
    assert_eq!(
        left,
        ["active", "lock", "versions"].map(str::to_owned).into()
    );

    // A second host with the same state, and without the artifact.
    fs::rename(server.app.path("test.amphi"), server.app.path("gone")).expect("it is there");
    let again = server.app.amphi(&["migrate", "--place", "place.toml"], &[]);
    assert_eq!(
        again.stdout, "nothing to do: every database is up to date\n",
        "{again:?}"
    );
    // A version that was changed on the disk is not run.
    let version = format!("state/versions/{}", digest.replace(':', "-"));
    let file = server
        .app
        .path(&format!("{version}/app/static/css/style.css"));
    fs::write(&file, "body{ }").expect("it is ours");
    refused(
        &server.app,
        &["serve", "--place", "place.toml"],
        &["style.css", "it is damaged, or was changed"],
    );
    // The artifact makes it whole again.
    fs::rename(server.app.path("gone"), server.app.path("test.amphi")).expect("it is there");
    printed(
        &server.app,
        &["migrate", "--place", "place.toml", "test.amphi"],
    );
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "body {}");
    assert_eq!(names(&server.app.path("state")), left);
}

#[tokio::test]
async fn a_folder_is_served_in_a_place_as_its_artifact_would_be() {
    let app = app();
    let digest = printed(&app, &["package"]);
    printed(&app, &["migrate", "--place", "place.toml", "."]);
    let server = app.serve_with(&["--place", "place.toml", "."]).await;
    assert_eq!(active(&server).await, digest);
    server.get("/sync/hello").await.ok();
}

#[tokio::test]
async fn an_artifact_goes_through_a_registry_and_is_served_from_there() {
    let registry = Registry::start();
    let app = app();
    let digest = printed(&app, &["package", "--output", "test.amphi"]);
    let reference = registry.reference("team/test:1.0");
    assert_eq!(printed(&app, &["push", "test.amphi", &reference]), digest);
    // A second time: everything is there already.
    assert_eq!(printed(&app, &["push", "test.amphi", &reference]), digest);
    assert_eq!(
        printed(&app, &["push", &reference]),
        digest,
        "the folder itself"
    );
    let manifest = reqwest::get(format!(
        "http://{}/v2/team/test/manifests/1.0",
        registry.host
    ))
    .await;
    assert!(manifest.is_ok(), "others can ask for it: {manifest:?}");
    assert_eq!(
        printed(&app, &["pull", &reference, "-o", "pulled.amphi"]),
        digest
    );
    let bytes = |file: &str| fs::read(app.path(file)).expect("it was written");
    assert_eq!(bytes("pulled.amphi"), bytes("test.amphi"));
    let exact = registry.reference(&format!("team/test@{digest}"));
    assert_eq!(printed(&app, &["pull", &exact]), digest);
    assert_eq!(
        bytes("test.amphi"),
        bytes("pulled.amphi"),
        "it is called as the last part of the name"
    );
    for (name, words) in [
        ("team/test:2.0", &["has no artifact `2.0`"][..]),
        ("other/test:1.0", &["has no artifact `1.0`"]),
        (
            "team/test@sha256:00",
            &["is not a reference to an artifact"],
        ),
        ("Team/test", &["a name has small letters"]),
        ("team/test:", &["a tag has at most"]),
    ] {
        refused(
            &app,
            &["pull", &registry.reference(name), "-o", "none"],
            words,
        );
    }
    refused(
        &app,
        &["pull", "team/test", "-o", "none"],
        &["is not the host of a registry"],
    );
    assert!(!app.path("none").exists());

    let reference = format!("oci://{reference}");
    let arguments = ["--place", "place.toml", reference.as_str()];
    printed(&app, &[&["migrate"][..], &arguments[..]].concat());
    let server = app.serve_with(&arguments).await;
    server.get("/sync/hello").await.ok();
    assert_eq!(active(&server).await, digest);
    assert_eq!(
        names(&server.app.path("state")),
        ["active", "lock", "versions"].map(str::to_owned).into()
    );
    // Without the registry, what was active is served.
    drop(registry);
    refused(
        &server.app,
        &["serve", "--place", "place.toml", &reference],
        &["cannot be reached"],
    );
    let again = server.app.amphi(&["migrate", "--place", "place.toml"], &[]);
    assert!(again.success, "{again:?}");
}

#[tokio::test]
async fn a_content_that_was_changed_in_the_registry_is_refused() {
    let registry = Registry::start();
    let app = app();
    printed(&app, &["package"]);
    let reference = registry.reference("test:1");
    printed(&app, &["push", "test.amphi", &reference]);
    let inspected = app.amphi(&["inspect", "test.amphi"], &[]).stdout;
    let line = inspected
        .lines()
        .find(|line| line.starts_with("components/behaviour.sync.wasm"));
    let digest = line
        .and_then(|line| line.split_whitespace().last())
        .expect("it is listed");
    let content = registry.content(digest);
    let mut bytes = fs::read(&content).expect("the registry has it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&content, &bytes).expect("it is ours");
    let pull = ["pull", &reference, "-o", "pulled.amphi"];
    refused(
        &app,
        &pull,
        &[
            "components/behaviour.sync.wasm",
            "it is damaged, or was changed",
        ],
    );
    bytes.extend(vec![0; 100_000]);
    fs::write(&content, &bytes).expect("it is ours");
    refused(&app, &pull, &["components/behaviour.sync.wasm"]);
    let serve = [
        "serve",
        "--place",
        "place.toml",
        &format!("oci://{reference}"),
    ];
    refused(&app, &serve, &["components/behaviour.sync.wasm"]);
    assert_eq!(
        names(&app.path("state")),
        ["lock", "versions"].map(str::to_owned).into()
    );
    assert!(names(&app.path("state/versions")).is_empty());
    let left = names(app.folder());
    assert!(
        !left
            .iter()
            .any(|name| name.starts_with(".tmp") || name == "pulled.amphi"),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_place_with_trusted_keys_runs_nothing_else() {
    let registry = Registry::start();
    let app = app();
    let keys = ["release", "other"].map(|name| printed(&app, &["sign", "--new-key", name]));
    refused(
        &app,
        &["sign", "--new-key", "release"],
        &["release.key", "File exists"],
    );
    let digest = printed(&app, &["package"]);
    let reference = registry.reference("test:1");
    let serve = [
        "serve",
        "--place",
        "place.toml",
        &format!("oci://{reference}"),
    ];
    let trust = |key: &str| {
        let deploy = format!("[deploy]\ntrusted_keys = [{key:?}]\n");
        app.write("place.toml", format!("{PLACE}{deploy}"));
    };
    trust(&keys[0]);
    printed(&app, &["push", "test.amphi", &reference]);
    let none = [
        "has no signature by a key that this place trusts",
        "it has none",
    ];
    refused(&app, &serve, &none);
    refused(
        &app,
        &["serve", "--place", "place.toml", "test.amphi"],
        &none,
    );
    refused(&app, &["serve", "--place", "place.toml", "."], &none);
    refused(
        &app,
        &["migrate", "--place", "place.toml", "test.amphi"],
        &none,
    );
    assert_eq!(
        printed(&app, &["sign", "test.amphi", "--key", "other.key"]),
        digest
    );
    printed(&app, &["push", "test.amphi", &reference]);
    refused(&app, &serve, &["by the key", "which is not trusted here"]);
    assert!(names(&app.path("state/versions")).is_empty());
    assert_eq!(
        printed(&app, &["sign", "test.amphi", "--key", "release.key"]),
        digest
    );
    printed(&app, &["push", "test.amphi", &reference]);
    // The path of the key's file is as good as the key.
    trust("release.pub");
    printed(
        &app,
        &[
            "migrate",
            "--place",
            "place.toml",
            &format!("oci://{reference}"),
        ],
    );
    // What is there already was signed by a key that is not trusted any more.
    trust(&keys[1].replace('R', "Q"));
    refused(
        &app,
        &["migrate", "--place", "place.toml", "test.amphi"],
        &["neither a public key"],
    );
    app.write(
        "place.toml",
        format!("{PLACE}[deploy]\ntrusted_keys = []\n"),
    );
    refused(
        &app,
        &["migrate", "--place", "place.toml", "test.amphi"],
        &["has no signature"],
    );
    trust(&keys[0]);
    // Signing while packaging, and the same digest.
    assert_eq!(
        printed(
            &app,
            &["package", "-o", "again.amphi", "--sign", "release.key"]
        ),
        digest
    );
    let server = app
        .serve_with(&["--place", "place.toml", "again.amphi"])
        .await;
    server.get("/sync/hello").await.ok();
    // The signatures in the state are checked, too.
    let version = format!("state/versions/{}", digest.replace(':', "-"));
    server
        .app
        .write(&format!("{version}/signatures.json"), "[]");
    refused(&server.app, &["serve", "--place", "place.toml"], &none);
}

#[tokio::test]
async fn a_private_registry_gets_the_password_of_docker_over_tls() {
    let registry = Registry::private();
    let app = app();
    let digest = printed(&app, &["package"]);
    let certificate = registry.certificate().display().to_string();
    let docker = app.path("docker").display().to_string();
    let trusted = [
        ("SSL_CERT_FILE", certificate.as_str()),
        ("DOCKER_CONFIG", docker.as_str()),
    ];
    let reference = registry.reference("test:1");
    let push = ["push", "test.amphi", &reference];
    let unknown = app.amphi(&push, &trusted);
    assert!(unknown.error().contains("docker login"), "{unknown:?}");
    let log_in = |password: &str| {
        let user = base64(&format!("{USER}:{password}"));
        let config = format!(r#"{{"auths":{{"{}":{{"auth":"{user}"}}}}}}"#, registry.host);
        app.write("docker/config.json", config);
    };
    log_in("another password");
    let wrong = app.amphi(&push, &trusted);
    assert!(wrong.error().contains("401"), "{wrong:?}");
    assert!(!wrong.stderr.contains("another password"), "{wrong:?}");
    log_in(PASSWORD);
    let pushed = app.amphi(&push, &trusted);
    assert_eq!(pushed.stdout.trim(), digest, "{pushed:?}");
    let pulled = app.amphi(&["pull", &reference, "-o", "pulled.amphi"], &trusted);
    assert_eq!(pulled.stdout.trim(), digest, "{pulled:?}");
    // A certificate that nobody trusts: the password is not sent to it.
    let untrusted = app.amphi(&push, &[("DOCKER_CONFIG", docker.as_str())]);
    assert!(!untrusted.success, "{untrusted:?}");
}

fn base64(text: &str) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for three in text.as_bytes().chunks(3) {
        let number = (0..3).fold(0, |number, at| {
            number << 8 | u32::from(*three.get(at).unwrap_or(&0))
        });
        for at in 0..4 {
            let digit = alphabet[(number >> (18 - 6 * at) & 63) as usize];
            encoded.push(if at <= three.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    encoded
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_attacks_is_refused_within_limits() {
    let app = app();
    let pull = |origin: &str| {
        let reference = format!("{}/test:1", origin.replace("http://", ""));
        app.amphi(&["pull", &reference, "-o", "pulled.amphi"], &[])
    };
    for (answer, words) in [
        (
            &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 104857600\r\n\r\n{"[..],
            "the manifest has 104857600 bytes: the most is 4194304",
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}", "the manifest cannot be read"),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 20\r\n\r\n{}", "the registry"),
        (
            b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\nwww-authenticate: Bearer realm=\"ftp://x/\"\r\ncontent-length: 0\r\n\r\n",
            "the registry",
        ),
        (
            b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\nwww-authenticate: \"\"\"=,,\r\ncontent-length: 0\r\n\r\n",
            "docker login",
        ),
        (b"HTTP/1.1 500 Oh\r\nconnection: close\r\ncontent-length: 5\r\n\r\n\x1b[31m", "500"),
        (b"HTTP/1.1 307 There\r\nconnection: close\r\nlocation: /v2/\r\ncontent-length: 0\r\n\r\n", "the registry"),
        (b"nonsense", "the registry"),
    ] {
        let ran = pull(&origin::canned(answer).await);
        assert!(ran.error().contains(words), "no {words:?} in: {ran:?}");
        assert!(!ran.stderr.contains('\x1b'), "{ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    }
    // A manifest that does not end.
    let endless =
        origin::endless(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n").await;
    let ran = pull(&endless);
    assert!(
        ran.error().contains("or more bytes: the most is 4194304"),
        "{ran:?}"
    );
    assert!(!app.path("pulled.amphi").exists());
}

#[test]
fn an_artifact_is_shown_with_what_it_asks_for() {
    let app = app();
    let digest = printed(&app, &["package"]);
    let ran = app.amphi(&["inspect", "test.amphi"], &[]);
    assert!(ran.success, "{ran:?}");
    for words in [
        format!("artifact {digest}"),
        "app      test".to_owned(),
        "signed   by nobody".to_owned(),
        "needs    the database `default`, SQLite".to_owned(),
        "behaviour: databases default".to_owned(),
        "behaviour: http self".to_owned(),
        "static/css/style.css".to_owned(),
        "components/behaviour.sync.wasm is sync and imports".to_owned(),
        "amphi:view/database@".to_owned(),
        "/sync/hello".to_owned(),
        "/async/hello".to_owned(),
    ] {
        assert!(
            ran.stdout.contains(&words),
            "no {words:?} in: {}",
            ran.stdout
        );
    }
    assert!(!ran.stdout.contains(".hidden"), "{}", ran.stdout);
    let bytes = fs::read(app.path("test.amphi")).expect("it was written");
    app.write("cut.amphi", &bytes[..bytes.len() / 2]);
    refused(
        &app,
        &["inspect", "cut.amphi"],
        &["cut.amphi", "has been cut off"],
    );
    let component = guests::behaviour(crate::harness::Mode::Sync)
        .display()
        .to_string();
    assert!(
        app.amphi(&["inspect", &component], &[]).success,
        "a component, as before"
    );
}

#[test]
fn the_configuration_in_an_artifact_cannot_reach_the_machine() {
    let app = app();
    printed(&app, &["package"]);
    let artifact = amphi::artifact::Artifact::open(&app.path("test.amphi")).expect("it is right");
    let out = app.path("out");
    artifact.unpack(&out).expect("it is right");
    let files: std::collections::BTreeMap<String, std::path::PathBuf> =
        (artifact.manifest.files.iter())
            .map(|file| (file.path.clone(), out.join(&file.path)))
            .collect();
    let pack = |config: &str| {
        let path = app.path("bad.amphi");
        amphi::artifact::pack(config, &files, &path).expect("any text can be packed");
    };
    let right = &artifact.config;
    for (from, to, word) in [
        (
            "[static]",
            "[server]\nlisten = [\"0.0.0.0:1\"]\n[static]",
            "`server.listen` belongs to a place",
        ),
        (
            "[static]",
            "[sync_views]\nworkers = 9\n[static]",
            "`sync_views.workers` belongs to a place",
        ),
        (
            "dir = \"static\"",
            "dir = \"/etc\"",
            "`static.dir` has to be \"static\"",
        ),
        (
            "dir = \"static\"",
            "dir = \"../../..\"",
            "`static.dir` has to be \"static\"",
        ),
        (
            "path = \"components\"",
            "path = \"/tmp/x.wasm\"",
            "`modules.behaviour.path` has to be",
        ),
        (
            "migrations = \"migrations/default\"",
            "migrations = \"/etc\"",
            "has to be \"migrations/default\"",
        ),
        (
            "path = \"components\"",
            "path = \"components\"\nbuild = \"touch /tmp/x\"",
            "`modules.behaviour.build`",
        ),
        (
            "path = \"components\"",
            "path = \"components\"\nsecrets = { a = { file = \"/etc/passwd\" } }",
            "`modules.behaviour.secrets` belongs to a place",
        ),
        (
            "path = \"components\"",
            "path = \"components\"\ndirectories = [{ host = \"/\", guest = \"/\" }]",
            "`modules.behaviour.directories` belongs to a place",
        ),
        (
            "[databases.default]",
            "[databases.default]\nsqlite = \"/var/lib/x.db\"",
            "`databases.default.sqlite` belongs to a place",
        ),
        (
            "[static]",
            "[middleware.admin]\nuse = \"basic-auth\"\nfile = \"/etc/shadow\"\n[static]",
            "`middleware.admin.file` belongs to a place",
        ),
        (
            "[static]",
            "[channels]\nnats = \"nats://x\"\n[static]",
            "`channels.nats` belongs to a place",
        ),
        (
            "[needs.databases]",
            "[needs.database]",
            "unknown field `database`",
        ),
        ("[static]", "[statics]\n[static]", "unknown field `statics`"),
    ] {
        assert!(right.contains(from), "{from}: {right}");
        pack(&right.replacen(from, to, 1));
        for command in [&["inspect", "bad.amphi"][..], &["serve", "bad.amphi"]] {
            refused(&app, command, &[word]);
        }
    }
    let deep = format!(
        "{right}\n[x]\ny = {}1{}\n",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    pack(&deep);
    refused(&app, &["inspect", "bad.amphi"], &["amphi.toml"]);
}

/// The commands of the README's script that has this one in it, with this host in place of its registry.
fn script(with: &str, registry: &str) -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).expect("it is there");
    let mut blocks = readme.split("```sh\n").skip(1);
    let block = blocks.find(|block| block.contains(with));
    let block = block.expect("the README has the script");
    let script = block.split("```").next().expect("it has an end");
    let commands = script.lines().map(|line| {
        let command = line.split('#').next().unwrap_or_default();
        let command = command.replace("localhost:5000", registry);
        command.split_whitespace().map(str::to_owned).collect()
    });
    commands.collect()
}

/// Runs a command of a script, on this folder in place of the example's.
#[track_caller]
fn by_the_script(app: &App, command: &[String], folder: &str) -> String {
    assert_eq!(command[0], "amphi");
    let words = command[1..].iter().map(|word| match word.as_str() {
        "examples/guestbook" => folder,
        word => word,
    });
    printed(app, &words.collect::<Vec<_>>())
}

/// The scripts in the README, line by line.
#[tokio::test(flavor = "multi_thread")]
async fn the_readme_packages_pushes_serves_deploys_and_goes_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let registry = Registry::start();
    let example = root.join("examples/guestbook").display().to_string();
    let app = App::written("");
    let commands = script("amphi push", &registry.host);
    let [first @ .., serve] = &commands[..] else {
        panic!("the script is empty");
    };
    for command in first {
        let printed = by_the_script(&app, command, &example);
        assert!(
            command[1] == "build" || printed.starts_with("sha256:"),
            "{printed}"
        );
    }
    let words: Vec<&str> = serve.iter().map(String::as_str).collect();
    assert_eq!(words[..2], ["amphi", "serve"]);
    let server = app.serve_with(&words[2..]).await;
    let title = async || {
        let page = server.get("/").await;
        let title = page.ok().split("<title>").nth(1);
        let title = title.and_then(|rest| rest.split('<').next());
        title.unwrap_or_default().to_owned()
    };
    let before = title().await;
    assert!(before.contains("Guestbook"), "{before}");
    assert!(server.app.path("guestbook.state/data/default.db").is_file());

    let changed = App::guestbook("[modules.guestbook.settings]\ntitle = \"Changed\"\n");
    let changed = changed.folder().display().to_string();
    for command in script("amphi deploy", &registry.host) {
        let printed =
            tokio::task::block_in_place(|| by_the_script(&server.app, &command, &changed));
        match command[1].as_str() {
            "deploy" => {
                assert!(printed.ends_with("is active"), "{printed}");
                assert!(title().await.contains("Changed"));
            }
            "rollback" => assert!(printed.ends_with("is active again"), "{printed}"),
            _ => {}
        }
    }
    assert_eq!(title().await, before);
}
