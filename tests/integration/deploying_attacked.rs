//! Attacks on a host that is changed while it serves: by the candidate, by clients, by whoever may open its admin API.
//!
//! `DEPLOY_ROUNDS` is how many deploys the test of leaks makes.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::deploying::{PLACE, app, command, done, number, refused, served, status, version, word};
use crate::harness::log::Line;
use crate::harness::{App, Mode, Reply, Server, eventually, guests};

const USERS: &str = "[middleware.basic-auth]\nusers = { ann = \"$2b$04$s/XlW/w9kFua1wNQSQEf5e.DiQy4Q4QtNAZEekWN5oweUfIQYkjaK\" }\n";
/// Each response of such a candidate is too large, so each of its requests fails when its view has run.
const FAILS: &str = "\n[modules.behaviour.limits]\nresponse_max_bytes = 1\n";

/// Sends a request as a client that the candidate is for.
async fn tried(server: &Server, method: &str, path: &str, body: &str) -> Reply {
    let request = server.request(method, path).header("x-canary", "1");
    Reply::of(request.body(body.to_owned())).await
}

/// What a candidate fails is answered by the served app as if it had got the request at first: behind its own middleware.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_candidate_opens_nothing_that_the_served_app_guards() {
    let app = app();
    version(&app, "one", |toml| {
        let guarded = toml.replace(
            "[modules.behaviour]\n",
            "[modules.behaviour]\nmiddleware = [\"basic-auth\"]\n",
        );
        assert_ne!(guarded, toml);
        format!("{guarded}\n{USERS}")
    });
    version(&app, "two", |toml| format!("{toml}{FAILS}"));
    // Without a health check, which has no password.
    let place = PLACE.replace("health =", "# health =");
    app.write("place.toml", format!("{place}{USERS}"));
    let server = served(app).await;
    let canary = ["deploy", "two.amphi", "--canary", "header:x-canary=1"];
    done(&server.app, &canary);
    for mode in ["sync", "async"] {
        let path = format!("/{mode}/setting/word");
        assert_eq!(server.get(&path).await.status, 401);
        let reply = tried(&server, "GET", &path, "").await;
        assert_eq!(reply.status, 401, "{reply:?}");
        assert!(reply.header("www-authenticate").starts_with("Basic"));
        let request = server.request("GET", &path).header("x-canary", "1");
        let reply = Reply::of(request.basic_auth("ann", Some("secret"))).await;
        assert_eq!(reply.ok(), "one");
    }
    // The candidate has the blame; the served app is judged by its own part of the time only.
    let now = status(&server.app);
    assert_eq!(now["candidate"]["traffic"]["errors"], 4, "{now}");
    assert_eq!(now["active"]["traffic"]["errors"], 0, "{now}");
    server.assert_baseline().await;
}

/// A request is run again only when nothing is left of its first run.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_candidate_fails_happens_once() {
    let app = app();
    version(&app, "one", |toml| toml);
    version(&app, "two", |toml| format!("{toml}{FAILS}"));
    let server = served(app).await;
    let canary = [
        "deploy",
        "two.amphi",
        "--canary",
        "header:x-canary=1",
        "--health",
        "/static/a.txt",
    ];
    done(&server.app, &canary);
    for mode in ["sync", "async"] {
        let count = |tag: &str| {
            server.count(&format!(
                "select count(*) from rows where tag = '{mode} {tag}'"
            ))
        };
        // Ten rows, whose number is too long an answer for the candidate.
        let insert = |tag: &str| {
            let values = vec![format!("('{mode} {tag}')"); 10].join(", ");
            format!("insert into rows (tag) values {values}")
        };
        // Within a transaction, which is rolled back: with a body that is handed to the guest, and one that is kept.
        for length in [1, 200_000] {
            let sql = format!("{} -- {}", insert("inside"), "x".repeat(length));
            let path = format!("/{mode}/sql/atomic");
            assert_eq!(tried(&server, "POST", &path, &sql).await.ok(), "10");
        }
        assert_eq!(count("inside"), 20);
        // Outside of one: it stays, so the client hears of the failure.
        let reply = tried(&server, "POST", &format!("/{mode}/sql"), &insert("outside")).await;
        assert_eq!((reply.status, count("outside")), (500, 10));
    }
    let now = status(&server.app);
    assert_eq!(now["candidate"]["traffic"]["errors"], 6, "{now}");
    assert_eq!(
        server.count("select count(*) from rows where tag = 'before'"),
        4
    );
    server.assert_baseline().await;
}

/// A failure whose body is still produced is not over: what its function does then would happen twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_streams_is_not_run_again() {
    let module = |mode| {
        format!(
            "[modules.{mode}]\npath = {:?}\nmount = \"/streams\"\ndatabases = [\"default\"]\nungranted_imports = true\nsettings = {{ word = \"one\" }}\n",
            guests::built("streams", mode)
        )
    };
    let migrations = guests::folder().join("migrations");
    let app = App::written(&format!(
        "[app]\nname = \"streams\"\n[databases.default]\nsqlite = \"data/test.db\"\nmigrations = {migrations:?}\n{}{}",
        module(Mode::Sync),
        module(Mode::Async),
    ));
    let place = PLACE.replace("/sync/hello", "/streams/sync/lines?count=1");
    app.write("place.toml", place);
    for word in ["one", "two"] {
        version(&app, word, |toml| toml);
    }
    let server = served(app).await;
    done(
        &server.app,
        &["deploy", "two.amphi", "--canary", "header:x-canary=1"],
    );
    for (mode, rows) in [("sync", 1), ("async", 2)] {
        let path = format!("/streams/{mode}/committed/undone");
        assert_eq!(tried(&server, "POST", &path, "").await.status, 500);
        server.assert_baseline().await;
        let found = server.count("select count(*) from rows where tag = 'from the stream'");
        assert_eq!(found, rows, "{mode}");
    }
}

/// Whoever has no token can hold no place that those with one need, and those with one can hold some only.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_the_operator_out() {
    let app = app();
    let two = {
        version(&app, "one", |toml| toml);
        version(&app, "two", |toml| toml)
    };
    let ran = block_in_place(|| app.amphi(&["token", "ci"], &[]));
    let token = ran.stdout.trim().to_owned();
    let lines = ran.stderr.lines().skip_while(|line| !line.starts_with('['));
    let lines: Vec<&str> = lines.take(3).collect();
    let place = PLACE.replace("unix:admin.sock", "127.0.0.1:0");
    app.write("place.toml", format!("{place}{}\n", lines.join("\n")));
    let server = served(app).await;
    let api = eventually("the address of the API", async || {
        let lines = server.log.since(0);
        let listens = |line: &&Line| line_is(line, "the admin API listens");
        let found = lines.iter().find(listens);
        found.map(|line| line.text("address").to_owned()).ok_or(())
    })
    .await;
    let address = api
        .strip_prefix("http://")
        .expect("it is a port")
        .to_owned();
    let client = Client::new();
    let get = |path: &str| {
        let request = client.get(format!("{api}{path}")).bearer_auth(&token);
        request.timeout(Duration::from_secs(10)).send()
    };
    // Half a head each, of nobody known.
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(&address).expect("it is accepted");
        stream
            .write_all(b"GET /v1/status HTTP/1.1\r\nhost: a\r\n")
            .expect("it is sent");
        held.push(stream);
    }
    for _ in 0..5 {
        let response = get("/v1/status").await.expect("others do not keep it out");
        assert_eq!(response.status(), 200);
    }
    drop(held);
    // Readers of the log that never end.
    let (mut following, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let client = Client::new();
        let request = client
            .get(format!("{api}/v1/logs?follow"))
            .bearer_auth(&token);
        let response = request.send().await.expect("it is answered");
        match response.status().as_u16() {
            200 => following.push((client, response)),
            503 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((following.len(), refused), (8, 12));
    // Uploads that do not go on.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&address).expect("it is accepted");
        let head = format!(
            "POST /v1/artifacts HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nif-match: \"1\"\r\ncontent-length: 100000\r\n\r\nabc"
        );
        stream.write_all(head.as_bytes()).expect("it is sent");
        held.push(stream);
    }
    let upload = async || {
        let request = client
            .post(format!("{api}/v1/artifacts"))
            .bearer_auth(&token);
        let artifact = fs::read(server.app.path("two.amphi")).expect("it is there");
        let request = request.header("if-match", "\"1\"").body(artifact);
        let response = request.send().await.expect("it is answered");
        response.status().as_u16()
    };
    eventually("both have begun", async || match arriving(&server) {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(upload().await, 503);
    drop(held);
    eventually("there is room again", async || match upload().await {
        201 => Ok(()),
        other => Err(other),
    })
    .await;
    // With all of that, a deploy goes.
    let wanted = json!({ "source": { "digest": two }, "from": "forged\n\u{1b}[2Jactive" });
    let request = client.post(format!("{api}/v1/deploy")).bearer_auth(&token);
    let request = request.header("if-match", "\"1\"").body(wanted.to_string());
    let text = request.send().await.expect("it is answered").text().await;
    assert!(text.expect("a text").contains("done"));
    assert_eq!(word(&server, "sync").await, "two");
    let text = get("/v1/status")
        .await
        .expect("it is answered")
        .text()
        .await;
    let now: Value = serde_json::from_str(&text.expect("a text")).expect("it is JSON");
    assert_eq!(now["active"]["from"], "forged\\n\\u{1b}[2Jactive");
    drop(following);
}

fn line_is(line: &Line, message: &str) -> bool {
    line.text("message") == message
}

/// The number of artifacts that arrive.
fn arriving(server: &Server) -> usize {
    let entries = fs::read_dir(server.app.path("state")).expect("it is there");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("incoming-")).count()
}

/// The generation outlives the host, and only one host writes the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_and_a_second_host_undo_nothing_unawares() {
    let app = app();
    let [one, two] = ["one", "two"].map(|word| version(&app, word, |toml| toml));
    let mut server = served(app).await;
    let socket = fs::metadata(server.app.path("admin.sock")).expect("it is there");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let before = status(&server.app)["generation"].clone();
    refused(
        &server.app,
        &["deploy", "two.amphi", "--health", "/sync/fail/panic"],
        &["health check"],
    );
    let attempted = status(&server.app)["generation"].clone();
    assert_ne!(before, attempted);
    server.kill();
    server.again_with(&["--place", "place.toml"]).await;
    assert_eq!(status(&server.app)["generation"], attempted);

    // Another host with the same folder.
    let other = PLACE.replace("admin.sock", "other.sock");
    server.app.write("other.toml", other);
    let mut second = std::process::Command::new(crate::harness::guests::AMPHI)
        .args(["serve", "--place", "other.toml", "two.amphi"])
        .current_dir(server.app.folder())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it can be started");
    eventually("it serves", async || {
        match UnixStream::connect(server.app.path("other.sock")) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    let to_other = ["status", "--json", "--to", "unix:other.sock"];
    let ran = block_in_place(|| server.app.amphi(&to_other, &[]));
    assert!(ran.success && ran.stdout.contains(&two), "{ran:?}");
    // The first host would undo what the second one has written.
    refused(
        &server.app,
        &["rollback"],
        &["another host uses the folder"],
    );
    refused(
        &server.app,
        &["deploy", "two.amphi"],
        &["another host uses the folder"],
    );
    assert_eq!(word(&server, "sync").await, "one");
    let record = fs::read_to_string(server.app.path("state/active")).expect("it is there");
    let record: Value = serde_json::from_str(&record).expect("it is JSON");
    assert_eq!(record["active"]["digest"], two.as_str());
    let _ = second.kill();
    let _ = second.wait();
    // Whoever is started anew goes on with what there is.
    server.kill();
    server.again_with(&["--place", "place.toml"]).await;
    assert_eq!(word(&server, "sync").await, "two");
    done(&server.app, &["rollback"]);
    assert_eq!(status(&server.app)["active"]["digest"], one.as_str());
}

/// Uploads that nobody deploys do not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_do_not_fill_the_disk() {
    let app = app();
    version(&app, "one", |toml| toml);
    let names: Vec<String> = (0..5).map(|number| format!("number-{number}")).collect();
    for name in &names {
        version(&app, name, |toml| toml);
    }
    app.write("place.toml", format!("{PLACE}keep = 2\n"));
    let server = served(app).await;
    for name in &names {
        let file = format!("{name}.amphi");
        refused(
            &server.app,
            &["deploy", &file, "--health", "/nowhere"],
            &["404"],
        );
    }
    let versions = fs::read_dir(server.app.path("state/versions")).expect("it is there");
    assert!(
        versions.count() <= 4,
        "the active one, two more, and one that has just come"
    );
}

/// A migration that stays when its version is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_passes_over_a_migration() {
    let app = app();
    version(&app, "one", |toml| toml);
    let migrations = app.path("migrations");
    fs::create_dir(&migrations).expect("it is new");
    for entry in fs::read_dir(guests::folder().join("migrations")).expect("it is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("it has one");
        fs::copy(&path, migrations.join(name)).expect("there is room");
    }
    app.write("migrations/V900__more.sql", "create table more (a);");
    version(&app, "two", |toml| {
        let lines = toml
            .lines()
            .map(|line| match line.trim().starts_with("migrations =") {
                true => "migrations = \"migrations\"",
                false => line,
            });
        lines.collect::<Vec<_>>().join("\n")
    });
    let mut server = served(app).await;
    done(&server.app, &["deploy", "two.amphi", "--migrate"]);
    done(&server.app, &["rollback"]);
    assert_eq!(word(&server, "sync").await, "one");
    server.kill();
    server.again_with(&["--place", "place.toml"]).await;
    assert_eq!(word(&server, "async").await, "one");
    done(&server.app, &["deploy", "two.amphi"]);
    assert_eq!(word(&server, "async").await, "two");
}

/// Deploys leave nothing: no memory that grows, no descriptor, no thread.
#[tokio::test(flavor = "multi_thread")]
async fn deploys_leave_nothing_in_the_host() {
    let app = app();
    for word in ["one", "two"] {
        version(&app, word, |toml| toml);
    }
    let server = served(app).await;
    let rounds = number("DEPLOY_ROUNDS", 24);
    let measured = |server: &Server| (server.memory_kib(), server.files(), server.threads());
    let begun = Instant::now();
    let mut first = (0, 0, 0);
    for round in 0..rounds {
        let arguments: &[&str] = match round % 4 {
            0 => &["deploy", "two.amphi"],
            1 => &["rollback"],
            2 => &["deploy", "two.amphi", "--canary", "50%"],
            _ => &["rollback"],
        };
        done(&server.app, arguments);
        for mode in ["sync", "async"] {
            word(&server, mode).await;
        }
        server.post("/sync/rows/load", "").await;
        if round == 8.min(rounds / 2) {
            server.assert_baseline().await;
            first = measured(&server);
        }
        if round % 20 == 0 {
            let (memory, files, threads) = measured(&server);
            eprintln!("{round}: {memory} KiB, {files} files, {threads} threads");
        }
    }
    server.assert_baseline().await;
    let last = measured(&server);
    eprintln!(
        "{rounds} deploys in {:?}: {first:?} to {last:?}",
        begun.elapsed()
    );
    assert!(last.0 < first.0 + 40_000, "memory: {first:?} to {last:?}");
    assert!(last.1 <= first.1 + 8, "files: {first:?} to {last:?}");
    assert!(last.2 <= first.2 + 4, "threads: {first:?} to {last:?}");
}

/// The client of the API, against what is not one.
#[tokio::test(flavor = "multi_thread")]
async fn commands_say_what_is_wrong_with_an_address() {
    let app = app();
    version(&app, "one", |toml| toml);
    let server = served(app).await;
    let web = server.url("");
    let asked = |to: &str, environment: &[(&str, &str)]| {
        let ran = block_in_place(|| server.app.amphi(&["status", "--to", to], environment));
        assert!(!ran.success && !ran.stderr.contains("panicked"), "{ran:?}");
        ran.stderr
    };
    let said = asked(&web, &[]);
    assert!(said.contains("no admin API of Amphi"), "{said}");
    let said = asked("unix:nowhere.sock", &[]);
    assert!(said.contains("nowhere.sock"), "{said}");
    let said = asked(&format!("unix:{}", "x".repeat(200)), &[]);
    assert!(said.contains("xxx"), "{said}");
    // A proxy of the environment is not asked for an address of this machine: it would see the token.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    proxy.set_nonblocking(true).expect("it is a socket");
    let address = format!("http://{}", proxy.local_addr().expect("it has one"));
    asked(
        &web,
        &[
            ("HTTP_PROXY", address.as_str()),
            ("http_proxy", address.as_str()),
            ("AMPHI_TOKEN", "amphi_secret"),
        ],
    );
    assert!(proxy.accept().is_err(), "the proxy was asked");
    let said = command(&server.app, &["deploy", "one.amphi", "--health", "sync"]);
    assert!(
        said.error().contains("is the active version already")
            || said.error().contains("begin with `/`"),
        "{said:?}"
    );
}

/// A judge goes on after a restart, and two commands at once or one that is interrupted leave one version, whole.
#[tokio::test(flavor = "multi_thread")]
async fn judges_outlive_the_host_and_changes_their_commands() {
    let app = app();
    let digests = ["one", "two"].map(|word| version(&app, word, |toml| toml));
    let mut server = served(app).await;
    let started = |server: &Server, arguments: &[&str]| {
        std::process::Command::new(guests::AMPHI)
            .args(arguments)
            .args(["--to", "unix:admin.sock"])
            .current_dir(server.app.folder())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it can be started")
    };
    let automatic = [
        "deploy",
        "two.amphi",
        "--canary",
        "100%",
        "--auto",
        "--window",
        "4",
        "--requests-min",
        "5",
        "--p99-max",
        "1000",
    ];
    let mut judging = started(&server, &automatic);
    eventually("it is tried", async || {
        match status(&server.app)["candidate"]["digest"] == digests[1].as_str() {
            true => Ok(()),
            false => Err(()),
        }
    })
    .await;
    server.kill();
    let ended = block_in_place(|| judging.wait()).expect("it ends");
    assert!(!ended.success(), "nobody knows what has become of it");
    server.again_with(&["--place", "place.toml"]).await;
    eventually("the judge promotes it", async || {
        word(&server, "sync").await;
        match status(&server.app)["active"]["digest"] == digests[1].as_str() {
            true => Ok(()),
            false => Err(()),
        }
    })
    .await;
    let audit = fs::read_to_string(server.app.path("state/audit.log")).expect("it is there");
    let begun = audit
        .lines()
        .rfind(|line| line.contains("begun"))
        .expect("it is noted");
    assert!(
        begun.contains(&digests[1]) && begun.contains("judge"),
        "{begun}"
    );

    // Commands that are interrupted, and two at once.
    let mut random = fastrand::Rng::with_seed(7);
    let mut active = 1;
    for _ in 0..6 {
        let file = ["one.amphi", "two.amphi"][1 - active];
        let mut interrupted = started(&server, &["deploy", file]);
        tokio::time::sleep(Duration::from_millis(random.u64(20..900))).await;
        interrupted.kill().expect("it is ours");
        let _ = interrupted.wait();
        let mut both = [(); 2].map(|()| started(&server, &["rollback", &digests[active]]));
        for command in &mut both {
            let _ = block_in_place(|| command.wait());
        }
        // A change that has begun ends by itself.
        let begun = Instant::now();
        loop {
            let ran = command(&server.app, &["deploy", "one.amphi"]);
            let said = ran.stderr.clone();
            if ran.success || said.contains("is the active version already") {
                break;
            }
            assert!(
                said.contains("another change is under way")
                    || said.contains("somebody has changed it"),
                "{said}"
            );
            assert!(begun.elapsed() < Duration::from_secs(60), "{said}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        active = 0;
        for mode in ["sync", "async"] {
            assert_eq!(word(&server, mode).await, "one");
        }
    }
    let audit = fs::read_to_string(server.app.path("state/audit.log")).expect("it is there");
    for line in audit.lines() {
        serde_json::from_str::<Value>(line).expect("each line is JSON");
    }
    assert_eq!(arriving(&server), 0, "what has arrived in part is removed");
}
