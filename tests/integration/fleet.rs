//! Hosts that serve the same: what is deployed through one is served by all, whatever happens to hosts and to NATS.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::app::Ran;
use crate::harness::nats::Nats;
use crate::harness::{App, Kind, Reply, Server};

/// How long hosts may take to converge: longer than a host has to be silent until it does not count any more.
const CONVERGED: Duration = Duration::from_secs(45);

/// Artifacts of one app, which tell their number under /static/version.txt.
struct Versions {
    folder: TempDir,
    /// Where they were made. It has their database, if all hosts share one.
    app: App,
}

/// What an app of the tests needs beside its modules.
const STATIC: &str = "[static]\ndir = \"files\"\n";

impl Versions {
    fn new(app: App) -> Versions {
        let versions = Versions {
            folder: tempfile::tempdir().expect("there is room"),
            app,
        };
        let app = &versions.app;
        for number in 1..=5 {
            app.write("files/version.txt", number.to_string());
            if number == 4 {
                // This one needs another table.
                let own = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
                let config: toml::Table = own.parse().expect("it is TOML");
                let from = config["databases"]["default"]["migrations"].as_str();
                let from = from.expect("it has migrations").to_owned();
                for entry in fs::read_dir(&from).expect("it is a folder") {
                    let entry = entry.expect("it can be listed");
                    let name = entry.file_name().into_string().expect("it is UTF-8");
                    let text = fs::read(entry.path()).expect("it can be read");
                    app.write(&format!("migrations/{name}"), text);
                }
                app.write(
                    "migrations/V9__more.sql",
                    "create table more (id integer primary key);",
                );
                app.write("amphi.toml", own.replace(&from, "migrations"));
            }
            if number == 5 {
                // One more, which is wrong.
                app.write(
                    "migrations/V10__wrong.sql",
                    "create table rows (id integer);",
                );
            }
            let file = versions.file(number);
            let ran = app.amphi(&["package", ".", "-o", &file], &[]);
            assert!(ran.success, "{ran:?}");
        }
        versions
    }

    fn file(&self, number: usize) -> String {
        let name = format!("v{number}.amphi");
        self.folder.path().join(name).display().to_string()
    }
}

/// Hosts of one fleet.
struct Fleet {
    nats: Nats,
    versions: Versions,
    hosts: Vec<Server>,
}

const PLACED: [&str; 2] = ["--place", "place.toml"];

impl Fleet {
    /// Three hosts that serve version 1.
    async fn start() -> Fleet {
        Fleet::start_of(App::new(STATIC)).await
    }

    async fn start_of(app: App) -> Fleet {
        let mut fleet = Fleet {
            nats: Nats::with_buckets(),
            versions: Versions::new(app),
            hosts: Vec::new(),
        };
        for _ in 0..3 {
            let file = fleet.versions.file(1);
            fleet.add(&[&file], "").await;
        }
        // The first of them says what is to be served.
        let founded = async || {
            let status = fleet.status(0).await;
            let table = status["fleet"]["hosts"].as_array().map(Vec::len);
            (table == Some(3) && status["fleet"]["change"].is_null())
                .then_some(())
                .ok_or(status)
        };
        within("three hosts that know each other", founded).await;
        fleet
    }

    /// Another host, whose state is empty. `deploy`: more lines of its `[deploy]`.
    async fn add(&mut self, source: &[&str], deploy: &str) {
        let app = App::written("");
        app.write("place.toml", self.place(deploy));
        let migrate = [&["migrate"], &PLACED[..], source].concat();
        let ran = app.amphi(&migrate, &[]);
        assert!(ran.success, "{ran:?}");
        let server = app.serve_with(&[&PLACED, source].concat()).await;
        self.hosts.push(server);
    }

    fn place(&self, deploy: &str) -> String {
        let data = &self.versions.app.data;
        let database = match data.postgres() {
            Some(_) => data.config(),
            None => "sqlite = \"data/placed.db\"".to_owned(),
        };
        format!(
            "state = \"state\"\n[server]\nadmin = \"127.0.0.1:0\"\n[databases.default]\n{database}\n[grants]\npublish = [\"*\"]\nsubscribe = [\"*\"]\n[channels]\nnats = \"{}\"\n[deploy]\nlisten = \"unix:admin.sock\"\nfleet = \"shop\"\n{deploy}",
            self.nats.url()
        )
    }

    /// Runs a command at the place of a host, beside the test.
    fn beside(&self, host: usize, arguments: &[&str]) -> JoinHandle<Ran> {
        let arguments = [&arguments[..1], &["--to", "place.toml"], &arguments[1..]].concat();
        self.hosts[host].app.amphi_beside(&arguments)
    }

    async fn run(&self, host: usize, arguments: &[&str]) -> Ran {
        self.beside(host, arguments)
            .await
            .expect("it does not panic")
    }

    /// Deploys a version through a host.
    async fn deploy(&self, host: usize, number: usize, more: &[&str]) -> Ran {
        let file = self.versions.file(number);
        self.run(host, &[&["deploy", &file], more].concat()).await
    }

    async fn status(&self, host: usize) -> Value {
        let ran = self.run(host, &["status", "--json"]).await;
        assert!(ran.success, "{ran:?}");
        serde_json::from_str(&ran.stdout).expect("it is JSON")
    }

    /// What a host serves.
    async fn served(&self, host: usize) -> String {
        self.hosts[host]
            .get("/static/version.txt")
            .await
            .ok()
            .to_owned()
    }

    /// Waits until these hosts serve a version.
    async fn serve(&self, hosts: &[usize], number: usize) {
        within(&format!("version {number} on {hosts:?}"), async || {
            let served = join_all(hosts.iter().map(|host| self.served(*host))).await;
            served
                .iter()
                .all(|it| *it == number.to_string())
                .then_some(())
                .ok_or(served)
        })
        .await;
    }

    /// Waits until these hosts serve the same, whatever that is, with the same generation.
    async fn agree(&self, hosts: &[usize]) -> String {
        within(&format!("{hosts:?} to agree"), async || {
            let served = join_all(hosts.iter().map(async |host| {
                let status = self.status(*host).await;
                let table = status["fleet"]["hosts"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let own = table.iter().find(|it| it["own"] == true).cloned();
                let generation = own.map(|own| own["generation"].clone());
                (
                    self.served(*host).await,
                    generation.unwrap_or_default().to_string(),
                )
            }))
            .await;
            let different: BTreeSet<_> = served.iter().cloned().collect();
            match different.len() {
                1 => Ok(served[0].0.clone()),
                _ => Err(served),
            }
        })
        .await
    }

    /// Starts a host again that was ended, without naming a version.
    async fn again(&mut self, host: usize) {
        self.hosts[host].again_with(&PLACED).await;
    }

    fn audit(&self, host: usize) -> Vec<Value> {
        let path = self.hosts[host].app.path("state/audit.log");
        let text = fs::read_to_string(path).expect("it is there");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("it is JSON"));
        lines.collect()
    }
}

/// As `eventually`, with more time.
async fn within<T, E: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let since = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if since.elapsed() > CONVERGED => panic!("{what}: {seen:#?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Clients of a host, none of whose requests may fail.
struct Clients {
    stop: Arc<AtomicBool>,
    task: JoinHandle<usize>,
}

impl Clients {
    fn of(server: &Server) -> Clients {
        let (stop, client) = (Arc::new(AtomicBool::new(false)), server.client.clone());
        let (stopped, url) = (Arc::clone(&stop), server.url("/sync/hello"));
        let task = tokio::spawn(async move {
            let mut count = 0;
            while !stopped.load(Relaxed) {
                let reply = client.get(&url).send().await.expect("there is an answer");
                assert_eq!(reply.status(), 200);
                assert_eq!(reply.text().await.expect("it is whole"), "hello");
                count += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            count
        });
        Clients { stop, task }
    }

    /// How many requests were answered.
    async fn end(self) -> usize {
        self.stop.store(true, Relaxed);
        self.task.await.expect("no request fails")
    }
}

/// A random number below a limit: another sequence for each seed, and the same for the same.
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % below
}

#[track_caller]
fn done(ran: &Ran) {
    assert!(ran.success, "{ran:?}");
}

#[track_caller]
fn said(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(
            ran.error().contains(word),
            "no {word:?} in: {}",
            ran.error()
        );
    }
}

#[tokio::test]
async fn what_is_deployed_through_one_host_is_served_by_all() {
    let fleet = Fleet::start().await;
    let clients: Vec<_> = fleet.hosts.iter().map(Clients::of).collect();
    let ran = fleet.deploy(0, 2, &[]).await;
    done(&ran);
    assert!(ran.stdout.contains("is active, on all 3 hosts"), "{ran:?}");
    assert_eq!(ran.stderr.matches("is ready").count(), 2, "{ran:?}");
    // When the command has ended, all serve it: nobody needs to wait.
    for host in 0..3 {
        assert_eq!(fleet.served(host).await, "2");
    }
    // A change through another host begins with what this one has done.
    done(&fleet.run(1, &["rollback"]).await);
    for host in 0..3 {
        assert_eq!(fleet.served(host).await, "1");
    }
    // Two changes at once: one of them is refused, or comes after the other.
    let (one, other) = (fleet.versions.file(2), fleet.versions.file(3));
    let (one, other) = (
        fleet.beside(0, &["deploy", &one]),
        fleet.beside(1, &["deploy", &other]),
    );
    let (one, other) = (one.await.expect("it ends"), other.await.expect("it ends"));
    assert!(one.success || other.success, "{one:?} {other:?}");
    for ran in [&one, &other] {
        let refused = [
            "is under way",
            "has just begun",
            "somebody has changed it since",
            "does not serve yet",
        ];
        assert!(
            ran.success || refused.iter().any(|it| ran.stderr.contains(it)),
            "{ran:?}"
        );
    }
    let agreed = fleet.agree(&[0, 1, 2]).await;
    assert!(["2", "3"].contains(&&*agreed), "{agreed}");

    // A candidate is one on all hosts; it is promoted on all.
    let to_try = if agreed == "2" { 3 } else { 2 };
    done(
        &fleet
            .deploy(2, to_try, &["--canary", "header:x-canary=1"])
            .await,
    );
    for host in &fleet.hosts {
        let request = host
            .request("GET", "/static/version.txt")
            .header("x-canary", "1");
        let got = Reply::of(request).await;
        assert_eq!(got.ok(), to_try.to_string());
        assert_eq!(host.get("/static/version.txt").await.ok(), agreed);
    }
    done(&fleet.run(0, &["promote"]).await);
    for host in 0..3 {
        assert_eq!(fleet.served(host).await, to_try.to_string());
    }
    for clients in clients {
        assert!(clients.end().await > 50);
    }
    // Each host has a line about what it has followed, and whose change that was.
    let lines = fleet.audit(2);
    let followed = lines
        .iter()
        .filter(|line| line["who"] == "nats" && line["outcome"] == "done");
    assert!(followed.count() >= 3, "{lines:#?}");
    let metrics = fleet.hosts[1].metrics().await;
    let status = fleet.status(1).await;
    assert_eq!(
        metrics.get("amphi_fleet_generation"),
        status["generation"].as_f64().expect("a number")
    );
    let shown = fleet.run(1, &["status"]).await;
    assert_eq!(shown.stdout.matches("  serves").count(), 3, "{shown:?}");
}

#[tokio::test]
async fn a_host_that_is_stopped_during_a_deploy_converges_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    let clients: Vec<_> = fleet.hosts[..2].iter().map(Clients::of).collect();
    let mut seed = 7;
    for round in 0..6 {
        let number = 2 + round % 2;
        let file = fleet.versions.file(number);
        let deploying = fleet.beside(0, &["deploy", &file]);
        let pause = random(&mut seed, 1_500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match round % 2 {
            0 => fleet.hosts[2].kill(),
            _ => fleet.hosts[2].terminate(),
        }
        let ran = deploying.await.expect("it ends");
        // It was there until the end, or is named.
        if !ran.success {
            said(&ran, &["is active, on 2 of 3 hosts", "is not there"]);
        }
        fleet.serve(&[0, 1], number).await;
        fleet.again(2).await;
        // What it missed is served before anybody is.
        assert_eq!(
            fleet.served(2).await,
            number.to_string(),
            "round {round}, after {pause} ms: {ran:?}"
        );
        fleet.agree(&[0, 1, 2]).await;
    }
    for clients in clients {
        assert!(clients.end().await > 50);
    }
}

#[tokio::test]
async fn a_host_that_cannot_serve_a_version_is_named() {
    let mut fleet = Fleet::start().await;
    let file = fleet.versions.file(1);
    fleet.add(&[&file], "health = \"/sync/nothing\"\n").await;
    within("four hosts", async || {
        let status = fleet.status(0).await;
        let hosts = status["fleet"]["hosts"].as_array().map(Vec::len);
        (hosts == Some(4)).then_some(()).ok_or(status)
    })
    .await;
    let name = fs::read_to_string(fleet.hosts[3].app.path("state/host-id"));
    let name = name.expect("it has one");
    // Nobody switches.
    let ran = fleet.deploy(0, 2, &[]).await;
    said(
        &ran,
        &[
            "nothing was changed",
            &name,
            "the health check failed: /sync/nothing answered 404",
            "All hosts stay",
        ],
    );
    for host in 0..4 {
        assert_eq!(fleet.served(host).await, "1");
    }
    // Those switch that can.
    let ran = fleet.deploy(0, 2, &["--if-one-fails", "switch"]).await;
    said(
        &ran,
        &[
            "is active, on 3 of 4 hosts",
            &name,
            "the health check failed",
        ],
    );
    assert!(!ran.stderr.contains("nothing was changed"), "{ran:?}");
    for host in 0..4 {
        assert_eq!(fleet.served(host).await, if host == 3 { "1" } else { "2" });
    }
    let shown = within("the failure in the table", async || {
        let shown = fleet.run(1, &["status"]).await;
        if shown.stdout.contains("fails: the health check") {
            Ok(shown.stdout)
        } else {
            Err(shown)
        }
    })
    .await;
    assert!(shown.contains(&name), "{shown}");
    // A host that does not serve what it is to serve coordinates nothing.
    let ran = fleet.deploy(3, 3, &[]).await;
    said(&ran, &["does not serve yet what the fleet is to serve"]);
    // What is in the way goes away, and the host is started anew: it serves the version.
    fleet.hosts[3].app.write("place.toml", fleet.place(""));
    fleet.hosts[3].terminate();
    fleet.again(3).await;
    assert_eq!(fleet.served(3).await, "2");
}

/// Databases of their own: a version that needs a migration is refused without `--migrate`, and with it each host applies
/// the migration. A host that cannot at first goes on trying.
#[tokio::test]
async fn migrations_are_applied_on_every_host_that_has_a_database() {
    let fleet = Fleet::start().await;
    let ran = fleet.deploy(1, 4, &[]).await;
    said(&ran, &["nothing was changed", "lacks 1 of its migrations"]);
    // The database of the first host has it.
    let file = fleet.versions.file(4);
    let migrated = fleet.hosts[0]
        .app
        .amphi_beside(&["migrate", "--place", "place.toml", &file]);
    done(&migrated.await.expect("it ends"));
    let ran = fleet.deploy(0, 4, &["--if-one-fails", "switch"]).await;
    said(
        &ran,
        &["is active, on 1 of 3 hosts", "lacks 1 of its migrations"],
    );
    assert_eq!(fleet.served(1).await, "1");
    // Now that of the second one has it, too.
    let migrated = fleet.hosts[1]
        .app
        .amphi_beside(&["migrate", "--place", "place.toml", &file]);
    done(&migrated.await.expect("it ends"));
    fleet.serve(&[0, 1], 4).await;
    assert_eq!(fleet.served(2).await, "1");
    within("attempts that fail", async || {
        let metrics = fleet.hosts[2].metrics().await;
        let failed = metrics.get("amphi_fleet_failures_total");
        if failed > 2.0 { Ok(()) } else { Err(failed) }
    })
    .await;
    // Back, and again with the flag.
    let ran = fleet.run(0, &["rollback"]).await;
    done(&ran);
    fleet.serve(&[0, 1, 2], 1).await;
    done(&fleet.deploy(0, 4, &["--migrate"]).await);
    fleet.serve(&[0, 1, 2], 4).await;
}

#[tokio::test]
async fn a_coordinator_that_is_killed_leaves_one_version_on_all_hosts() {
    let mut fleet = Fleet::start().await;
    let clients: Vec<_> = fleet.hosts[1..].iter().map(Clients::of).collect();
    let mut seed = 11;
    let mut versions = vec!["1".to_owned()];
    for round in 0..5 {
        let number = 2 + round % 2;
        let file = fleet.versions.file(number);
        let deploying = fleet.beside(0, &["deploy", &file]);
        let pause = 100 + random(&mut seed, 1_200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        fleet.hosts[0].kill();
        let ran = deploying.await.expect("it ends");
        fleet.hosts[0].ended().await;
        // The others look at what they are to serve more often than that.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let agreed = fleet.agree(&[1, 2]).await;
        let before = versions.last().expect("there is one").clone();
        assert!(
            [before.clone(), number.to_string()].contains(&agreed),
            "{agreed}, {ran:?}"
        );
        if ran.success {
            assert_eq!(agreed, number.to_string());
        }
        fleet.again(0).await;
        assert_eq!(
            fleet.served(0).await,
            agreed,
            "round {round}, after {pause} ms"
        );
        assert_eq!(fleet.agree(&[0, 1, 2]).await, agreed);
        versions.push(agreed);
    }
    // Nothing is left of the changes that were not finished.
    let ran = within("another change", async || {
        let last = versions.last().map(String::as_str);
        let ran = fleet
            .deploy(1, if last == Some("2") { 3 } else { 2 }, &[])
            .await;
        if ran.success { Ok(ran) } else { Err(ran) }
    })
    .await;
    assert!(ran.stdout.contains("on all 3 hosts"), "{ran:?}");
    for clients in clients {
        assert!(clients.end().await > 50);
    }
}

/// A coordinator that is silent for long loses its change to others, and does not finish it when it goes on.
#[tokio::test]
async fn a_coordinator_that_was_halted_does_not_undo_what_others_did() {
    let fleet = Fleet::start().await;
    let mut seed = 5;
    for round in 0..2 {
        let file = fleet.versions.file(2);
        let deploying = fleet.beside(0, &["deploy", &file]);
        let pause = 200 + random(&mut seed, 700);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        fleet.hosts[0].freeze();
        // The others wait until it does not count any more; then they go on without it.
        let ran = within("a change through another host", async || {
            let ran = fleet.deploy(1, 3, &[]).await;
            if ran.stdout.contains("is active") || ran.stderr.contains("is active") {
                Ok(ran)
            } else {
                Err(ran)
            }
        })
        .await;
        fleet.serve(&[1, 2], 3).await;
        fleet.hosts[0].thaw();
        let late = deploying.await.expect("it ends");
        assert_eq!(
            fleet.agree(&[0, 1, 2]).await,
            "3",
            "round {round}: {late:?} {ran:?}"
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(fleet.agree(&[0, 1, 2]).await, "3");
        done(&fleet.deploy(0, 1, &[]).await);
    }
}

#[tokio::test]
async fn hosts_go_on_without_nats_and_converge_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    done(&fleet.deploy(0, 2, &[]).await);
    // A host that starts later, and has never served anything.
    fleet.add(&[], "").await;
    assert_eq!(fleet.served(3).await, "2");
    let clients: Vec<_> = fleet.hosts.iter().map(Clients::of).collect();

    fleet.nats.kill();
    let ran = fleet.deploy(0, 3, &[]).await;
    said(&ran, &["NATS cannot be reached", "nothing is changed"]);
    let shown = fleet.run(0, &["status"]).await;
    assert!(
        shown
            .stdout
            .contains("nothing is known of the other hosts: NATS cannot be reached"),
        "{shown:?}"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    for clients in clients {
        assert!(clients.end().await > 20);
    }
    // A host that starts now serves what it has.
    fleet.hosts[2].kill();
    fleet.again(2).await;
    assert_eq!(fleet.served(2).await, "2");
    fleet.hosts[2]
        .log
        .event(0, "what the fleet is to serve cannot be read")
        .await;

    fleet.nats.restart();
    within("a deploy", async || {
        let ran = fleet.deploy(0, 3, &[]).await;
        if ran.stdout.contains("on all 4 hosts") || ran.stderr.contains("already") {
            Ok(())
        } else {
            Err(ran)
        }
    })
    .await;
    fleet.serve(&[0, 1, 2, 3], 3).await;

    // A host that missed it because NATS was away for it alone would be told by the others: it is, when NATS has lost all.
    fleet.nats.kill();
    fleet.nats.forget();
    fleet.nats.restart();
    within("a deploy", async || {
        let ran = fleet.deploy(1, 1, &[]).await;
        if ran.stdout.contains("on all 4 hosts") || ran.stderr.contains("already") {
            Ok(())
        } else {
            Err(ran)
        }
    })
    .await;
    fleet.serve(&[0, 1, 2, 3], 1).await;
    // And a version that only the others have had is there again.
    done(&fleet.run(2, &["rollback"]).await);
    fleet.serve(&[0, 1, 2, 3], 3).await;
}

/// A host takes from NATS only what its own place allows: whoever may write to NATS, or deploy through another host, signs
/// nothing. A signature that is added later reaches all hosts.
#[tokio::test]
async fn signatures_hold_on_every_host() {
    let mut fleet = Fleet::start().await;
    let folder = fleet.versions.folder.path().display().to_string();
    let sign = |app: &App, arguments: &[&str]| {
        let ran = app.amphi(&[&["sign"], arguments].concat(), &[]);
        done(&ran);
        ran.stdout
    };
    let key = format!("{folder}/release");
    sign(&fleet.hosts[0].app, &["--new-key", &key]);
    let secret = format!("{key}.key");
    sign(
        &fleet.hosts[0].app,
        &[&fleet.versions.file(1), "--key", &secret],
    );
    let file = fleet.versions.file(1);
    fleet
        .add(&[&file], &format!("trusted_keys = [\"{key}.pub\"]\n"))
        .await;
    within("four hosts", async || {
        let status = fleet.status(0).await;
        let hosts = status["fleet"]["hosts"].as_array().map(Vec::len);
        (hosts == Some(4)).then_some(()).ok_or(status)
    })
    .await;
    let unsigned = [
        "nothing was changed",
        "has no signature by a key that this place trusts",
    ];
    said(&fleet.deploy(0, 2, &[]).await, &unsigned);
    let ran = fleet.deploy(0, 2, &["--if-one-fails", "switch"]).await;
    said(&ran, &["is active, on 3 of 4 hosts", unsigned[1]]);
    assert_eq!(fleet.served(3).await, "1");
    done(&fleet.run(1, &["rollback"]).await);
    fleet.serve(&[0, 1, 2, 3], 1).await;
    sign(
        &fleet.hosts[0].app,
        &[&fleet.versions.file(2), "--key", &secret],
    );
    done(&fleet.deploy(0, 2, &[]).await);
    fleet.serve(&[0, 1, 2, 3], 2).await;
}

/// One PostgreSQL for all hosts: whoever is first applies a migration, and one that fails changes no host.
#[tokio::test]
async fn migrations_of_a_shared_database_are_applied_once() {
    let app = App::rules(Kind::Postgres, STATIC).await;
    let fleet = Fleet::start_of(app).await;
    let data = &fleet.versions.app.data;
    let ran = fleet.deploy(1, 4, &[]).await;
    said(&ran, &["nothing was changed", "lacks 1 of its migrations"]);
    for more in [
        &["--migrate"][..],
        &["--migrate", "--if-one-fails", "switch"],
    ] {
        let ran = fleet.deploy(1, 5, more).await;
        said(&ran, &["nothing was changed", "V10__wrong.sql"]);
        for host in 0..3 {
            assert_eq!(fleet.served(host).await, "1");
        }
    }
    let ran = fleet.deploy(2, 4, &["--migrate"]).await;
    done(&ran);
    assert!(ran.stdout.contains("on all 3 hosts"), "{ran:?}");
    for host in 0..3 {
        assert_eq!(fleet.served(host).await, "4");
    }
    assert_eq!(data.count("select count(*) from more").await, 0);
    // A roll-back leaves it there, for all.
    done(&fleet.run(0, &["rollback"]).await);
    fleet.serve(&[0, 1, 2], 1).await;
    assert_eq!(data.count("select count(*) from more").await, 0);
    done(&fleet.deploy(1, 4, &[]).await);
    fleet.serve(&[0, 1, 2], 4).await;
}

/// What a host was away for, it neither needs nor lacks: it goes back with the others, also to what it has never served.
#[tokio::test]
async fn a_host_that_has_missed_versions_goes_back_with_the_others() {
    let mut fleet = Fleet::start().await;
    fleet.hosts[2].kill();
    let ran = fleet.deploy(0, 2, &[]).await;
    said(&ran, &["is active, on 2 of 3 hosts", "is not there"]);
    done(&fleet.deploy(1, 3, &[]).await);
    done(&fleet.deploy(0, 4, &["--migrate"]).await);
    let four = fleet.status(1).await["active"]["digest"].clone();
    let four = four.as_str().expect("a digest").to_owned();
    done(&fleet.run(1, &["rollback"]).await);
    fleet.serve(&[0, 1], 3).await;
    fleet.again(2).await;
    assert_eq!(fleet.served(2).await, "3");
    fleet.agree(&[0, 1, 2]).await;
    // Through the host that was away.
    let ran = fleet.run(2, &["rollback"]).await;
    done(&ran);
    assert!(ran.stdout.contains("on all 3 hosts"), "{ran:?}");
    fleet.serve(&[0, 1, 2], 2).await;
    // Only that host lacks the migration of this one, which was allowed when it was away.
    let ran = fleet.run(0, &["rollback", &four]).await;
    done(&ran);
    assert!(ran.stdout.contains("on all 3 hosts"), "{ran:?}");
    fleet.serve(&[0, 1, 2], 4).await;
}

/// The host that judges has seen no request itself.
#[tokio::test]
async fn a_candidate_is_judged_by_what_all_hosts_have_seen() {
    let fleet = Fleet::start().await;
    let file = fleet.versions.file(2);
    let judging = [
        "--window",
        "8",
        "--requests-min",
        "40",
        "--p99-max",
        "100000",
    ];
    let canary = ["deploy", &file, "--canary", "100%", "--auto"];
    let deploying = fleet.beside(0, &[&canary[..], &judging].concat());
    let clients: Vec<_> = fleet.hosts[1..].iter().map(Clients::of).collect();
    let ran = deploying.await.expect("it ends");
    done(&ran);
    assert!(
        ran.stdout
            .contains("is active, on all 3 hosts; about the candidate"),
        "{ran:?}"
    );
    for clients in clients {
        assert!(clients.end().await > 40);
    }
    fleet.serve(&[0, 1, 2], 2).await;

    // One that fails on another host is given up early. The active version fails these requests, too, but answers others.
    let clients = Clients::of(&fleet.hosts[2]);
    let file = fleet.versions.file(3);
    let canary = ["deploy", &file, "--canary", "header:x-canary=1", "--auto"];
    let deploying = fleet.beside(0, &[&canary[..], &["--window", "600"]].concat());
    within("a candidate on the other host", async || {
        let request = fleet.hosts[1].request("GET", "/static/version.txt");
        let reply = Reply::of(request.header("x-canary", "1")).await;
        if reply.text() == "3" {
            Ok(())
        } else {
            Err(reply)
        }
    })
    .await;
    for _ in 0..30 {
        let request = fleet.hosts[1].request("GET", "/sync/fail/panic");
        let reply = Reply::of(request.header("x-canary", "1")).await;
        assert_eq!(reply.status, 500);
    }
    let ran = deploying.await.expect("it ends");
    said(&ran, &["requests failed", "is given up"]);
    assert!(clients.end().await > 50);
    fleet.serve(&[0, 1, 2], 2).await;

    // What copies have shown on each host is in the status of all.
    done(&fleet.deploy(0, 3, &["--shadow"]).await);
    for _ in 0..5 {
        assert_eq!(fleet.hosts[1].get("/sync/hello").await.ok(), "hello");
    }
    within("the numbers of all hosts", async || {
        let shown = fleet.run(2, &["status"]).await;
        let of_asked = shown.stdout.contains("shadow: 5 equal, 0 differing");
        let of_others = shown.stdout.matches("shadow: 0 equal").count();
        if of_asked && of_others == 2 {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .await;
}
