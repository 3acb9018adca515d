//! A host that goes on while what it serves is changed: by the admin API and the commands that use it.
//!
//! `DEPLOY_SECONDS` is for how long deploys happen under load, `DEPLOY_KILLS` how often a host is killed during one, and
//! `DEPLOY_SEED` when:
//!
//! ```text
//! DEPLOY_SECONDS=60 DEPLOY_KILLS=100 cargo test -p amphi-tests --test integration deploying
//! ```

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::app::Ran;
use crate::harness::guests::AMPHI;
use crate::harness::registry::Registry;
use crate::harness::socket::{Socket, app as sockets};
use crate::harness::{App, Mode, Server, eventually, guests};

/// The place of all tests here. Whoever may open the socket may do everything.
pub(crate) const PLACE: &str = r#"
state = "state"
[server]
admin = "127.0.0.1:0"
[databases.default]
sqlite = "data/test.db"
[grants]
channels = ["room.*"]
[deploy]
listen = "unix:admin.sock"
health = "/sync/hello"
"#;

/// How the version `one` is served in the place.
const ARGUMENTS: [&str; 3] = ["--place", "place.toml", "one.amphi"];

pub(crate) fn number(name: &str, default: usize) -> usize {
    let given = env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("it is a number"))
}

/// An app with the views of two guests, in both modes.
pub(crate) fn app() -> App {
    let behaviour = format!(
        "[modules.behaviour]\npath = \"{}/behaviour\"\ndatabases = [\"default\"]\nhttp = [\"self\"]\nsettings = {{ word = \"one\" }}\n[static]\ndir = \"files\"\n",
        guests::folder().display()
    );
    let app = sockets(&behaviour);
    app.write("files/a.txt", "a file");
    app.write("place.toml", PLACE);
    app
}

/// Packages the app with another value of its setting, and what `change` makes of its `amphi.toml`.
pub(crate) fn version(app: &App, word: &str, change: impl FnOnce(String) -> String) -> String {
    let own = fs::read_to_string(app.path("amphi.toml")).expect("it was written");
    let changed = own.replace("word = \"one\"", &format!("word = \"{word}\""));
    assert!(word == "one" || changed != own);
    app.write("amphi.toml", change(changed));
    let file = format!("{word}.amphi");
    let ran = block_in_place(|| app.amphi(&["package", "-o", &file], &[]));
    app.write("amphi.toml", own);
    assert!(ran.success, "{ran:?}");
    ran.stdout.trim().to_owned()
}

/// Serves the version `one` in the place.
pub(crate) async fn served(app: App) -> Server {
    migrated(&app);
    app.serve_with(&ARGUMENTS).await
}

/// Applies the migrations of the version `one` in the place.
fn migrated(app: &App) {
    let ran = block_in_place(|| app.amphi(&[&["migrate"][..], &ARGUMENTS].concat(), &[]));
    assert!(ran.success, "{ran:?}");
}

/// Runs a command on the place.
pub(crate) fn command(app: &App, arguments: &[&str]) -> Ran {
    let all = [arguments, &["--to", "unix:admin.sock"]].concat();
    let ran = block_in_place(|| app.amphi(&all, &[]));
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    ran
}

/// The same, which has to succeed.
#[track_caller]
pub(crate) fn done(app: &App, arguments: &[&str]) -> String {
    let ran = command(app, arguments);
    assert!(ran.success, "{arguments:?}: {ran:?}");
    ran.stdout
}

/// The same, which has to fail with these words.
#[track_caller]
pub(crate) fn refused(app: &App, arguments: &[&str], words: &[&str]) {
    let ran = command(app, arguments);
    assert!(!ran.success, "{arguments:?}: {ran:?}");
    for word in words {
        assert!(ran.error().contains(word), "no {word:?} in {ran:?}");
    }
}

pub(crate) fn status(app: &App) -> Value {
    let text = done(app, &["status", "--json"]);
    serde_json::from_str(&text).expect("it is JSON")
}

pub(crate) async fn word(server: &Server, mode: &str) -> String {
    let reply = server.get(&format!("/{mode}/setting/word")).await;
    reply.ok().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_deployed_tried_promoted_and_rolled_back() {
    let app = app();
    let [one, two, three] = ["one", "two", "three"].map(|word| version(&app, word, |toml| toml));
    let server = served(app).await;
    let app = &server.app;
    assert_eq!(word(&server, "sync").await, "one");
    assert!(done(app, &["deploy", "two.amphi"]).contains(&two));
    for mode in ["sync", "async"] {
        assert_eq!(word(&server, mode).await, "two");
    }
    refused(
        app,
        &["deploy", "two.amphi"],
        &["is the active version already"],
    );
    refused(app, &["promote"], &["there is no candidate"]);

    // By a header: others do not notice.
    done(
        app,
        &["deploy", "three.amphi", "--canary", "header:x-canary=1"],
    );
    assert_eq!(word(&server, "sync").await, "two");
    let canary = server.request("GET", "/async/setting/word");
    let canary = canary
        .header("x-canary", "1")
        .send()
        .await
        .expect("it is answered");
    assert!(canary.headers().get("set-cookie").is_none());
    assert_eq!(canary.text().await.expect("a text"), "three");
    let now = status(app);
    assert_eq!(now["candidate"]["digest"], three.as_str());
    assert_eq!(now["candidate"]["traffic"]["requests"], 1);
    assert_eq!(now["active"]["traffic"]["requests"], 1);
    let shown = done(app, &["status"]);
    assert!(shown.contains("header:x-canary=1"), "{shown}");
    done(app, &["promote"]);
    assert_eq!(word(&server, "sync").await, "three");

    done(app, &["rollback"]);
    assert_eq!(word(&server, "sync").await, "two");
    done(app, &["rollback"]);
    assert_eq!(word(&server, "async").await, "one");
    refused(app, &["rollback"], &["there is no earlier version"]);
    done(app, &["rollback", &three]);
    assert_eq!(word(&server, "sync").await, "three");
    let versions = done(app, &["versions", "--json"]);
    let versions: Vec<Value> = serde_json::from_str(&versions).expect("it is JSON");
    let listed: BTreeMap<_, _> = (versions.iter())
        .map(|it| (it["digest"].as_str(), it["state"].as_str()))
        .collect();
    let expected = [
        (one.as_str(), "rolled back"),
        (&two, "rolled back"),
        (&three, "active"),
    ];
    assert_eq!(
        listed,
        expected
            .map(|(digest, state)| (Some(digest), Some(state)))
            .into()
    );
    // What changed is in the audit log, and in the log that can be followed.
    let audit = fs::read_to_string(app.path("state/audit.log")).expect("it is there");
    assert_eq!(
        audit.matches("\"outcome\":\"done\"").count(),
        2 + 2 + 1 + 3 + 1,
        "{audit}"
    );
    let logs = done(app, &["logs"]);
    assert!(logs.contains("is active again"), "{logs}");
    server.assert_baseline().await;
}

/// A candidate is served after a restart as before; one that cannot be is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_versions_and_candidates() {
    let app = app();
    let one = version(&app, "one", |toml| toml);
    let two = version(&app, "two", |toml| toml);
    let mut server = served(app).await;
    done(&server.app, &["deploy", "two.amphi", "--canary", "100%"]);
    assert_eq!(word(&server, "sync").await, "two");
    for file in ["one.amphi", "two.amphi"] {
        fs::remove_file(server.app.path(file)).expect("it is there");
    }
    server.kill();
    server.again_with(&["--place", "place.toml"]).await;
    eventually("the candidate is back", async || {
        match word(&server, "async").await.as_str() {
            "two" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    done(&server.app, &["promote"]);
    server.terminate();
    server.again_with(&["--place", "place.toml"]).await;
    assert_eq!(word(&server, "sync").await, "two");
    let now = status(&server.app);
    assert_eq!(
        (&now["active"]["digest"], &now["candidate"]),
        (&two.as_str().into(), &Value::Null)
    );
    done(&server.app, &["rollback"]);
    assert_eq!(word(&server, "sync").await, "one");
    let versions = done(&server.app, &["versions"]);
    assert!(versions.starts_with(&one), "{versions}");
}

/// Whatever fails before a version is active leaves the version before.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_fails_changes_nothing() {
    let registry = Registry::start();
    let app = app();
    version(&app, "one", |toml| toml);
    // What `amphi package` would refuse.
    let build = |name: &str, toml: &str, component: &[u8]| {
        app.write("made.wasm", component);
        let files = [(
            "components/made.sync.wasm".to_owned(),
            app.path("made.wasm"),
        )];
        let file = app.path(name);
        amphi::artifact::pack(toml, &files.into(), &file).expect("it is packed");
    };
    let made = "[app]\nname = \"sockets\"\n[modules.made]\npath = \"components\"\n";
    build("broken.amphi", made, b"\0asm no");
    let misfit = fs::read(guests::misfit("other_world"));
    let misfit = misfit.unwrap_or_else(|_| b"\0asm\x0d\0\x01\0".to_vec());
    build("world.amphi", made, &misfit);
    version(&app, "grant", |toml| {
        toml.replace(
            "http = [\"self\"]",
            "http = [\"self\", \"https://api.example.com\"]\npublish = [\"orders.*\"]\nlimits = { memory_mb = 500 }",
        )
    });
    let migrations = app.path("migrations");
    fs::create_dir(&migrations).expect("it is new");
    for entry in fs::read_dir(guests::folder().join("migrations")).expect("it is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("it has one");
        fs::copy(&path, migrations.join(name)).expect("there is room");
    }
    let with_migration = |name: &str, sql: &str| {
        app.write(&format!("migrations/V900__{name}.sql"), sql);
        let own = |toml: String| {
            let lines = toml
                .lines()
                .map(|line| match line.trim().starts_with("migrations =") {
                    true => "migrations = \"migrations\"",
                    false => line,
                });
            lines.collect::<Vec<_>>().join("\n")
        };
        version(&app, name, own);
        fs::remove_file(app.path(&format!("migrations/V900__{name}.sql"))).expect("it is ours");
    };
    with_migration("missing", "create table missing (a);");
    with_migration(
        "failing",
        "create table failing (a); insert into nowhere values (1);",
    );
    version(&app, "two", |toml| toml);
    let signed = block_in_place(|| app.amphi(&["sign", "--new-key", "release"], &[]));
    assert!(signed.success, "{signed:?}");
    let reference = registry.reference("team/test:1.0");
    let pushed = block_in_place(|| app.amphi(&["push", "two.amphi", &reference], &[]));
    assert!(pushed.success, "{pushed:?}");
    let mut bytes = fs::read(app.path("two.amphi")).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    app.write("damaged.amphi", &bytes);
    drop(registry);

    let server = served(app).await;
    let app = &server.app;
    let reference = format!("oci://{reference}");
    let none = ["deploy", "two.amphi", "--health", "/sync/fail/panic"];
    let cases: [(&[&str], &[&str]); 12] = [
        (&["deploy", "damaged.amphi"], &["damaged, or was changed"]),
        (&["deploy", "broken.amphi"], &["made"]),
        (&["deploy", "world.amphi"], &["made"]),
        (
            &["deploy", "grant.amphi"],
            &["https://api.example.com", "orders.*", "memory_mb = 500"],
        ),
        (
            &["deploy", "missing.amphi"],
            &["V900__missing", "--migrate"],
        ),
        (
            &["deploy", "failing.amphi", "--migrate"],
            &["V900__failing", "nowhere"],
        ),
        (
            &["deploy", "two.amphi", "--health", "/sync/setting/no"],
            &["health check", "/sync/setting/no", "404"],
        ),
        (&none, &["health check", "/sync/fail/panic", "500"]),
        (&["deploy", &reference], &["cannot be reached"]),
        (
            &[
                "deploy",
                "sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ],
            &["manifest.json"],
        ),
        (
            &["deploy", "two.amphi", "--canary", "5"],
            &["does not say who gets"],
        ),
        (
            &[
                "rollback",
                "sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ],
            &["has no version"],
        ),
    ];
    for (arguments, words) in cases {
        refused(app, arguments, words);
        for mode in ["sync", "async"] {
            assert_eq!(word(&server, mode).await, "one", "{arguments:?}");
        }
        assert_eq!(status(app)["candidate"], Value::Null, "{arguments:?}");
    }
    let tables = server.count(
        "select count(*) from sqlite_schema where name in ('missing', 'failing', 'nowhere')",
    );
    assert_eq!(tables, 0);
    // With what was missing, it goes.
    done(app, &["deploy", "missing.amphi", "--migrate"]);
    assert_eq!(word(&server, "sync").await, "missing");

    // A place that trusts one key.
    let mut server = server;
    let trusting = format!("{PLACE}trusted_keys = [\"release.pub\"]\n");
    server.app.write("place.toml", trusting);
    server.terminate();
    server.ended().await;
    let ran = server
        .app
        .amphi(&["sign", "one.amphi", "--key", "release.key"], &[]);
    assert!(ran.success, "{ran:?}");
    server
        .again_with(&["--place", "place.toml", "one.amphi"])
        .await;
    refused(
        &server.app,
        &["deploy", "two.amphi"],
        &["has no signature by a key that this place trusts"],
    );
    refused(&server.app, &["rollback"], &["has no signature"]);
    assert_eq!(word(&server, "sync").await, "one");
}

/// A disk without room: nothing is begun that could not be noted, and what runs goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_changes_nothing() {
    let app = app();
    version(&app, "one", |toml| toml);
    version(&app, "two", |toml| toml);
    // The folder of the state is a small file system of its own.
    let state = app.path("state");
    fs::create_dir(&state).expect("it is new");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(&state)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user may not mount a file system");
        return;
    }
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mounted = Mounted(state.clone());
    let size = fs::metadata(app.path("one.amphi"))
        .expect("it is there")
        .len();
    assert!(size < 11 << 20, "the version has room: {size}");
    let server = served(app).await;
    let fill = |left: u64| {
        let filling = state.join("filling");
        let free = rustix::fs::statvfs(&state).expect("it is mounted");
        let bytes = free.f_bavail * free.f_frsize;
        let file = fs::File::create(&filling).expect("it is made");
        let _ = rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            bytes.saturating_sub(left).max(1),
        );
    };
    for left in [0, 4 << 10, 64 << 10, 1 << 20, size + (64 << 10)] {
        fill(left);
        let ran = command(&server.app, &["deploy", "two.amphi"]);
        assert!(!ran.success, "{left}: {ran:?}");
        assert_eq!(word(&server, "sync").await, "one", "{left}");
        fs::remove_file(state.join("filling")).expect("it is there");
    }
    done(&server.app, &["deploy", "two.amphi"]);
    assert_eq!(word(&server, "async").await, "two");
    // A line for which there was no room is not begun.
    let audit = fs::read_to_string(state.join("audit.log")).expect("it is there");
    for line in audit.lines() {
        serde_json::from_str::<Value>(line).expect("each line is JSON");
    }
}

/// Split and stickiness of a canary.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_and_clients_stay() {
    let app = app();
    version(&app, "one", |toml| toml);
    version(&app, "two", |toml| toml);
    let server = served(app).await;
    let asked = |cookie: Option<String>| {
        let mut request = server.request("GET", "/sync/setting/word");
        if let Some(cookie) = cookie {
            request = request.header("cookie", format!("a=b; {cookie}"));
        }
        async move {
            let response = request.send().await.expect("it is answered");
            let cookie = response.headers().get("set-cookie");
            let cookie = cookie.map(|it| it.to_str().expect("a text").to_owned());
            (response.text().await.expect("a text"), cookie)
        }
    };
    for (share, part) in [("7%", 0.07), ("33.33%", 0.3333)] {
        done(&server.app, &["deploy", "two.amphi", "--canary", share]);
        let (mut new, mut clients) = (0, Vec::new());
        for _ in 0..20_000 / 50 {
            for (word, cookie) in join_all((0..50).map(|_| asked(None))).await {
                new += usize::from(word == "two");
                let cookie = cookie.expect("a client without one gets a cookie");
                let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
                clients.push((word, cookie));
            }
        }
        let found = new as f64 / 20_000.0;
        assert!((found - part).abs() < 0.001, "{share}: {found}");
        for (word, cookie) in clients.iter().step_by(97) {
            let (again, set) = asked(Some(cookie.clone())).await;
            assert_eq!((&again, set), (word, None), "{cookie}");
        }
    }
    // A larger share leaves those who have the candidate on it. A cookie that is no number is none.
    let (_, wrong) = asked(Some("amphi_rollout=99999".to_owned())).await;
    assert!(wrong.is_some());
    // Clients of one address stay together.
    done(
        &server.app,
        &["deploy", "two.amphi", "--canary", "50%", "--by-address"],
    );
    let words = join_all((0..50).map(|_| asked(None))).await;
    assert!(
        words
            .iter()
            .all(|(word, cookie)| *word == words[0].0 && cookie.is_none())
    );
    done(&server.app, &["rollback"]);
    assert_eq!(word(&server, "sync").await, "one");
}

/// What a client does under load.
async fn load(base: &str, number: usize, stop: &AtomicBool, counts: &[AtomicUsize; 2]) {
    let client = Client::new();
    let mut round = number;
    let mut cookie = String::new();
    while !stop.load(Relaxed) {
        round += 1;
        let mode = ["sync", "async"][round % 2];
        let (method, path) = match round % 5 {
            0 => ("POST", format!("/{mode}/rows/load")),
            1 => ("GET", "/static/a.txt".to_owned()),
            2 => ("GET", format!("/{mode}/spin/15")),
            _ => ("GET", format!("/{mode}/setting/word")),
        };
        let method = method.parse().expect("it is a method");
        let request = client.request(method, format!("{base}{path}"));
        let response = request.header("cookie", &cookie).send().await;
        match response {
            Ok(response) if response.status().is_success() => {
                if let Some(set) = response.headers().get("set-cookie") {
                    let set = set.to_str().expect("a text");
                    cookie = set.split(';').next().unwrap_or_default().to_owned();
                }
                let body = response.bytes().await;
                counts[usize::from(body.is_err())].fetch_add(1, Relaxed);
            }
            failed => {
                eprintln!("{path}: {failed:?}");
                counts[1].fetch_add(1, Relaxed);
            }
        }
    }
}

/// Has a web socket echo something twice a second. None: it was closed, or did not answer; otherwise the number of echoes.
async fn echoed(mut socket: Socket, stop: Arc<AtomicBool>) -> Option<usize> {
    let mut number = 0;
    while !stop.load(Relaxed) {
        socket
            .0
            .send(Message::text(format!("{number}")))
            .await
            .ok()?;
        let heard = async {
            loop {
                match socket.0.next().await? {
                    Ok(Message::Text(text)) if text.starts_with("echo ") => return Some(()),
                    Ok(Message::Close(_)) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard)
            .await
            .ok()??;
        number += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    socket.0.close(None).await.ok()?;
    Some(number)
}

/// Ten deploys, five roll-backs, two canaries that are promoted and one that fails, under the load of 64 clients and 200
/// web sockets: no request fails, and no socket is closed.
#[tokio::test(flavor = "multi_thread")]
async fn deploys_under_load_fail_no_request_and_close_no_socket() {
    let app = app();
    for word in ["one", "two", "three"] {
        version(&app, word, |toml| toml);
    }
    // Its views that compute are over their limit.
    version(&app, "bad", |toml| {
        format!("{toml}\n[modules.behaviour.limits]\ncpu_ms = 3\n")
    });
    migrated(&app);
    // Alone: a machine that others keep busy has no room for all of it, and says so with 503.
    let server = app.serve_alone_with(&ARGUMENTS).await;
    let base = server.url("");
    let stop = Arc::new(AtomicBool::new(false));
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mut open = Vec::new();
    for number in 0..200 {
        let mode = [Mode::Sync, Mode::Async][number % 2];
        let socket = Socket::open(&server, mode, "load", &number.to_string()).await;
        open.push(tokio::spawn(echoed(socket, Arc::clone(&stop))));
    }
    let clients: Vec<_> = (0..64)
        .map(|number| {
            let (base, stop) = (base.clone(), Arc::clone(&stop));
            let counts = Arc::clone(&counts);
            tokio::spawn(async move { load(&base, number, &stop, &counts).await })
        })
        .collect();
    let app = &server.app;
    let time = Duration::from_secs(number("DEPLOY_SECONDS", 20) as u64);
    let begun = Instant::now();
    let pause = async |part: f64| {
        let left = time.mul_f64(part).saturating_sub(begun.elapsed());
        tokio::time::sleep(left).await;
    };
    let mut changes = 0;
    let mut step = async |arguments: &[&str]| {
        let ran = command(app, arguments);
        changes += 1;
        pause(f64::from(changes) / 20.0).await;
        ran
    };
    let mut first = "two";
    for round in 0..5 {
        for word in [first, "three"] {
            let file = format!("{word}.amphi");
            let ran = step(&["deploy", &file]).await;
            assert!(ran.success, "{ran:?}");
        }
        let ran = step(&["rollback"]).await;
        assert!(ran.success, "{ran:?}");
        if round % 2 == 0 && round < 4 {
            let automatic = [
                "deploy",
                "three.amphi",
                "--canary",
                "30%",
                "--auto",
                "--window",
                "1",
                "--requests-min",
                "50",
                "--p99-max",
                "1000",
            ];
            let ran = step(&automatic).await;
            assert!(ran.success, "{ran:?}");
            assert!(ran.stdout.contains("is active"), "{ran:?}");
        } else {
            first = if first == "two" { "one" } else { "two" };
        }
    }
    let automatic = [
        "deploy",
        "bad.amphi",
        "--canary",
        "20%",
        "--auto",
        "--window",
        "30",
        "--requests-min",
        "50",
    ];
    let ran = step(&automatic).await;
    assert!(
        !ran.success && ran.error().contains("is given up"),
        "{ran:?}"
    );
    eprintln!("{}", ran.error());
    let now = status(app);
    assert_eq!(now["candidate"], Value::Null);
    pause(1.0).await;
    stop.store(true, Relaxed);
    join_all(clients).await;
    let [good, failed] = [0, 1].map(|index| counts[index].load(Relaxed));
    let (mut closed, mut echoes) = (0, 0);
    for socket in join_all(open).await {
        match socket.expect("it does not panic") {
            Some(number) => echoes += number,
            None => closed += 1,
        }
    }
    let replaced = server.metrics().await.get("amphi_failed_over_total");
    eprintln!(
        "{changes} changes in {:?}: {good} requests answered, {failed} failed, of which the candidate failed {replaced} and the active version answered; 200 sockets with {echoes} echoes, {closed} closed",
        begun.elapsed()
    );
    assert_eq!((failed, closed), (0, 0));
    assert!(replaced > 0.0, "the bad candidate has failed requests");
    server.assert_baseline().await;
}

/// A host that is killed at any moment of a deploy serves the old or the new version afterwards, whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_during_a_deploy_serves_one_version_whole() {
    let app = app();
    let digests = ["one", "two"].map(|word| version(&app, word, |toml| toml));
    let mut random = fastrand::Rng::with_seed(number("DEPLOY_SEED", 20_261_129) as u64);
    let mut server = served(app).await;
    let kills = number("DEPLOY_KILLS", 12);
    let mut outcomes = [0, 0];
    // How long a deploy takes here.
    let begun = Instant::now();
    done(&server.app, &["deploy", "two.amphi"]);
    let usual = begun.elapsed();
    let mut active = 1;
    for _ in 0..kills {
        let other = 1 - active;
        let file = ["one.amphi", "two.amphi"][other];
        // Half of the time the version is new to the place.
        if random.bool() {
            let name = digests[other].replace(':', "-");
            let _ = fs::remove_dir_all(server.app.path(&format!("state/versions/{name}")));
        }
        let mut deploy = Command::new(AMPHI)
            .args(["deploy", file, "--to", "unix:admin.sock"])
            .current_dir(server.app.folder())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be started");
        tokio::time::sleep(usual.mul_f64(random.f64() * 1.1)).await;
        server.kill();
        let succeeded = block_in_place(|| deploy.wait()).expect("it ends").success();
        server.again_with(&["--place", "place.toml"]).await;
        let now = word(&server, "sync").await;
        assert_eq!(word(&server, "async").await, now);
        assert_eq!(server.get("/static/a.txt").await.ok(), "a file");
        let is_new = now == ["one", "two"][other];
        assert!(
            is_new || !succeeded,
            "a deploy that was told to be done is done"
        );
        active = if is_new { other } else { active };
        assert_eq!(now, ["one", "two"][active]);
        let lines = server.log.since(0);
        let says = lines.iter().find(|line| line.text("message") == "active");
        let says = says.map(|line| line.text("digest").to_owned());
        assert_eq!(says.as_deref(), Some(&*digests[active]), "it says which");
        outcomes[usize::from(is_new)] += 1;
        let left = fs::read_dir(server.app.path("state")).expect("it is there");
        let left = left.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        assert!(!left.into_iter().any(|name| name.starts_with("incoming-")));
    }
    eprintln!("{kills} kills: {} old, {} new", outcomes[0], outcomes[1]);
}

/// The API by itself: who may not, and what is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_refuses_by_name_and_writes_it_down() {
    let app = app();
    let [_, two] = ["one", "two"].map(|word| version(&app, word, |toml| toml));
    let mut place = PLACE.replace("unix:admin.sock", "127.0.0.1:0");
    place += "artifact_max_mb = 16\n";
    app.write("place.toml", &place);
    let ran = block_in_place(|| app.amphi(&["migrate", "--place", "place.toml", "one.amphi"], &[]));
    assert!(
        !ran.success && ran.error().contains("amphi token"),
        "{ran:?}"
    );
    let mut tokens = BTreeMap::new();
    for scope in ["read", "switch", "deploy"] {
        let ran = block_in_place(|| app.amphi(&["token", scope, "--scope", scope], &[]));
        let lines = ran.stderr.lines();
        let toml: Vec<&str> = (lines.skip_while(|line| !line.starts_with('[')))
            .take(3)
            .collect();
        place += &format!("{}\n", toml.join("\n"));
        tokens.insert(scope, ran.stdout.trim().to_owned());
    }
    app.write("place.toml", &place);
    let server = served(app).await;
    let api = eventually("the address of the API", async || {
        let lines = server.log.since(0);
        let mut found =
            (lines.iter()).filter(|line| line.text("message") == "the admin API listens");
        found
            .next()
            .map(|line| line.text("address").to_owned())
            .ok_or(())
    })
    .await;
    let client = Client::new();
    let call =
        async |method: &str, path: &str, token: &str, generation: Option<u64>, body: Vec<u8>| {
            let method = method.parse().expect("it is a method");
            let mut request = client.request(method, format!("{api}{path}")).body(body);
            if !token.is_empty() {
                request = request.bearer_auth(token);
            }
            if let Some(generation) = generation {
                request = request.header("if-match", format!("\"{generation}\""));
            }
            let response = request.send().await.expect("it is answered");
            let status = response.status().as_u16();
            (status, response.text().await.unwrap_or_default())
        };
    let [read, switch, deploy] = ["read", "switch", "deploy"].map(|scope| tokens[scope].clone());
    let artifact = fs::read(server.app.path("two.amphi")).expect("it is there");
    let wanted = json!({ "source": { "digest": two }, "from": "a test" }).to_string();
    let wanted = wanted.into_bytes();
    let nothing = Vec::new();
    for (asked, status, words) in [
        (
            call("GET", "/v1/status", "", None, nothing.clone()).await,
            401,
            "needs a token",
        ),
        (
            call("GET", "/v1/status", "amphi_wrong", None, nothing.clone()).await,
            401,
            "no such token",
        ),
        (
            call("GET", "/elsewhere", "", None, nothing.clone()).await,
            401,
            "needs a token",
        ),
        (
            call("GET", "/elsewhere", &read, None, nothing.clone()).await,
            404,
            "has no such path",
        ),
        (
            call("PUT", "/v1/status", &read, None, nothing.clone()).await,
            405,
            "is for GET",
        ),
        (
            call("POST", "/v1/rollback", &read, Some(1), nothing.clone()).await,
            403,
            "the scope `switch`",
        ),
        (
            call("POST", "/v1/deploy", &switch, Some(1), wanted.clone()).await,
            403,
            "the scope `deploy`",
        ),
        (
            call("POST", "/v1/artifacts", &switch, Some(1), artifact.clone()).await,
            403,
            "the scope `deploy`",
        ),
        (
            call("POST", "/v1/artifacts", &deploy, None, artifact.clone()).await,
            428,
            "if-match",
        ),
        (
            call("POST", "/v1/artifacts", &deploy, Some(7), artifact.clone()).await,
            412,
            "generation 7",
        ),
        (
            call("POST", "/v1/artifacts", &deploy, Some(1), vec![0; 17 << 20]).await,
            413,
            "16 MB",
        ),
        (
            call(
                "POST",
                "/v1/artifacts",
                &deploy,
                Some(1),
                b"no artifact".to_vec(),
            )
            .await,
            422,
            "is refused",
        ),
        (
            call("POST", "/v1/deploy", &deploy, Some(1), b"{}".to_vec()).await,
            400,
            "missing field",
        ),
        (
            call("POST", "/v1/deploy", &deploy, Some(1), vec![b' '; 70_000]).await,
            413,
            "65536 bytes",
        ),
    ] {
        assert_eq!(asked.0, status, "{asked:?}");
        assert!(asked.1.contains(words), "{asked:?}");
    }
    assert_eq!(word(&server, "sync").await, "one");
    // What is sent in pieces, without a length, is counted as it comes.
    let pieces =
        futures::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 1 << 20])));
    let request = client
        .post(format!("{api}/v1/artifacts"))
        .bearer_auth(&deploy);
    let request = request.header("if-match", "\"1\"");
    let sent = request
        .body(reqwest::Body::wrap_stream(pieces))
        .send()
        .await;
    let status = sent.map(|response| response.status());
    assert!(
        !matches!(status, Ok(status) if status != StatusCode::PAYLOAD_TOO_LARGE),
        "{status:?}"
    );

    // The right way, and the same once more: it was meant for another generation.
    assert_eq!(
        call("POST", "/v1/artifacts", &deploy, Some(1), artifact.clone())
            .await
            .0,
        201
    );
    let first = call("POST", "/v1/deploy", &deploy, Some(1), wanted.clone()).await;
    assert!(first.0 == 200 && first.1.contains("done"), "{first:?}");
    assert_eq!(word(&server, "sync").await, "two");
    let back = call("POST", "/v1/rollback", &switch, Some(2), nothing.clone()).await;
    assert!(back.1.contains("done"), "{back:?}");
    for (path, body) in [("/v1/deploy", &wanted), ("/v1/artifacts", &artifact)] {
        let replayed = call("POST", path, &deploy, Some(1), body.clone()).await;
        assert!(
            replayed.0 == 412 && replayed.1.contains("was sent before"),
            "{replayed:?}"
        );
    }
    assert_eq!(word(&server, "async").await, "one");
    // All of it is in the audit log, without a token.
    let audit = fs::read_to_string(server.app.path("state/audit.log")).expect("it is there");
    for words in [
        "needs a token",
        "the scope `switch`",
        "was sent before",
        "16 MB",
        "\"who\":\"switch\"",
        "is active again",
    ] {
        assert!(audit.contains(words), "no {words} in {audit}");
    }
    assert!(tokens.values().all(|token| !audit.contains(&**token)));
    let mode = fs::metadata(server.app.path("state/audit.log")).expect("it is there");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    let left = fs::read_dir(server.app.path("state")).expect("it is there");
    let left: Vec<_> = left
        .filter_map(|it| it.ok()?.file_name().into_string().ok())
        .collect();
    assert!(
        !left.iter().any(|name| name.starts_with("incoming-")),
        "{left:?}"
    );
    assert!(Path::new(&server.app.path("state/versions")).is_dir());
}
