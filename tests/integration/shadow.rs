//! Shadow mode: a candidate gets copies of requests, and its answers are compared. The host runs in the process of the
//! test, which begins the rollout and reads its report.
//!
//! The guests `ported-sync` and `ported-async` are the same app in both modes, with the same routes. Whichever has the
//! setting `role = "candidate"` misbehaves where the request says so.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphi::app::host::Host;
use amphi::app::load::{Migrations, load};
use amphi::app::rollout::Rollout;
use amphi::app::rollout::shadow::{Shadow, ShadowOptions, ShadowReport};
use amphi::config::Config;
use amphi::deploy::Trial;
use amphi::guest::run::{Engines, PoolSizes};
use amphi::server::{self, Sockets};
use futures::future::join_all;
use reqwest::{Client, Method};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::data::Data;
use crate::harness::{Kind, Mode, Reply, eventually, guests};

/// The modules of a version: of this mode, in this role.
pub(crate) type Modules = fn(Mode, &str) -> String;

/// A host in this process.
pub(crate) struct Served {
    pub(crate) host: Arc<Host>,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
    pub(crate) data: Data,
    kind: Kind,
    mode: Mode,
    modules: Modules,
    stop: CancellationToken,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
    folder: TempDir,
}

impl Served {
    /// Serves the version of this mode.
    async fn start(mode: Mode, kind: Kind) -> Served {
        Served::start_with(mode, kind, ported).await
    }

    pub(crate) async fn start_with(mode: Mode, kind: Kind, modules: Modules) -> Served {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::new(kind, folder.path().join("data/test.db")).await;
        let sizes = |at_once| PoolSizes { at_once, kept: 8 };
        let engines = Engines::new(sizes(64), sizes(64)).expect("there is address space");
        let file = folder.path().join("amphi.toml");
        let config = config(file, &data, kind, &modules(mode, "served"));
        let sockets = Sockets::bind(&config).expect("a port is free");
        let address = sockets.addresses().expect("the system says so")[0];
        let loading = engines.clone();
        let app = tokio::task::spawn_blocking(move || {
            load(config, &loading, None, Migrations::Apply, false)
        });
        let app = app.await.expect("no panic").expect("it can be served");
        app.services.http.set_own(address);
        let host = Arc::new(Host::new(app, engines, false));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server::serve(Arc::clone(&host), sockets, stop.clone()));
        data.execute("insert into names values ('taken')").await;
        for client in 0..CLIENTS {
            let insert = format!("insert into counters values ('client-{client}', 0)");
            data.execute(&insert).await;
        }
        data.execute("insert into counters values ('shared', 0)")
            .await;
        Served {
            host,
            address,
            client: Client::new(),
            data,
            kind,
            mode,
            modules,
            stop,
            serving: Some(serving),
            folder,
        }
    }

    /// Begins a rollout of the version of the other mode, in shadow mode.
    pub(crate) async fn shadow(&self, options: ShadowOptions) -> Arc<Shadow> {
        let modules = (self.modules)(other(self.mode), "candidate");
        let file = self.folder.path().join("candidate/amphi.toml");
        let config = config(file, &self.data, self.kind, &modules);
        let (engines, served) = (self.host.engines.clone(), self.host.app.load_full());
        let app = tokio::task::spawn_blocking(move || {
            load(config, &engines, Some(&served), Migrations::Check, false)
        });
        let app = app.await.expect("no panic").expect("it can be served");
        let rollout = Rollout::in_shadow(Arc::new(app), options);
        let shadow = rollout.shadow.clone().expect("it is one in shadow mode");
        self.host.roll_out(Some(rollout));
        shadow
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: String) -> Reply {
        let url = format!("http://{}{path}", self.address);
        Reply::of(self.client.request(method, url).body(body)).await
    }

    pub(crate) async fn post(&self, path: &str) -> Reply {
        self.send(Method::POST, path, String::new()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, String::new()).await
    }

    async fn order(&self, tag: &str, n: i64) -> Reply {
        let order = format!("{{\"tag\": \"{tag}\", \"n\": {n}}}");
        let url = format!("http://{}/orders", self.address);
        let request = self.client.post(url).body(order);
        Reply::of(request.header("content-type", "application/json")).await
    }

    /// All that the database has. The numbers of rows are left out where the database does not undo them.
    pub(crate) async fn dump(&self) -> String {
        self.settled().await;
        let id = match self.kind {
            Kind::Sqlite => "cast(id as text) || ' ' || ",
            Kind::Postgres => "",
        };
        let mut dump = String::new();
        for sql in [
            format!("select {id}tag from rows order by tag, id"),
            "select name || ' ' || cast(n as text) from counters order by name".to_owned(),
            "select name from names order by name".to_owned(),
        ] {
            writeln!(dump, "{:?}", self.data.texts(&sql).await).expect("it is a text");
        }
        dump
    }

    /// Waits until all events are delivered.
    pub(crate) async fn settled(&self) {
        self.host.events.idle().await;
    }

    pub(crate) async fn count(&self, tag: &str) -> i64 {
        let sql = format!("select count(*) from rows where tag = '{tag}'");
        self.data.count(&sql).await
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        let serving = self.serving.take().expect("it ends once");
        serving.await.expect("no panic").expect("it ends well");
        self.data.assert_quiet().await;
    }
}

/// The clients that send at the same time.
const CLIENTS: usize = 8;

/// The mode of the candidate.
pub(crate) fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Sync => Mode::Async,
        Mode::Async => Mode::Sync,
    }
}

/// The module `ported` in this mode.
pub(crate) fn ported(mode: Mode, role: &str) -> String {
    module("ported", mode, role)
}

/// A module of this name with the views of `ported-sync` or `ported-async`.
pub(crate) fn module(name: &str, mode: Mode, role: &str) -> String {
    format!(
        r#"
        [modules.{name}]
        path = "{component}"
        databases = ["default"]
        http = ["self"]
        subrequests = true
        publish = ["orders.*"]
        subscribe = ["orders.*"]
        channels = ["room.*"]
        settings = {{ role = "{role}", session_key = "the key of sessions in tests alone" }}
        "#,
        component = guests::built(&format!("ported-{mode}"), mode).display(),
    )
}

fn config(file: PathBuf, data: &Data, kind: Kind, modules: &str) -> Config {
    let text = format!(
        r#"
        [app]
        name = "ported"
        [server]
        listen = ["127.0.0.1:0"]
        [databases.default]
        {database}
        migrations = "{guests}/rules/migrations/{kind}"
        {modules}
        "#,
        database = data.config(),
        guests = guests::folder().display(),
    );
    let folder = file.parent().expect("it is in a folder");
    std::fs::create_dir_all(folder).expect("there is room for it");
    std::fs::write(&file, text).expect("there is room for it");
    Config::load(&file).expect("it is right")
}

/// The mode differs as declared; on PostgreSQL a copy takes numbers from sequences.
pub(crate) fn options(kind: Kind) -> ShadowOptions {
    let fields: &[&str] = match kind {
        Kind::Sqlite => &["mode"],
        Kind::Postgres => &["mode", "id"],
    };
    let trial = Trial {
        audience: "shadow".to_owned(),
        judge: None,
        ignored_headers: vec!["X-Mode".to_owned()],
        ignored_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ignored_writes: false,
        shadow_timeout_ms: None,
        shadow_at_once: None,
    };
    ShadowOptions {
        timeout: Duration::from_secs(10),
        at_once: CLIENTS,
        ..ShadowOptions::of(&trial).expect("they are names")
    }
}

/// The classes of a report, without its texts.
pub(crate) fn numbers(report: &ShadowReport) -> [u64; 4] {
    let not_compared = report.not_compared.values().sum();
    [report.equal, report.differing, report.unclear, not_compared]
}

macro_rules! shadow_tests {
    ($($name:ident),+) => {
        $(mod $name {
            use crate::harness::{Kind, Mode};

            #[tokio::test(flavor = "multi_thread")]
            async fn sync_sqlite() {
                super::$name(Mode::Sync, Kind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn asynch_sqlite() {
                super::$name(Mode::Async, Kind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn sync_postgres() {
                super::$name(Mode::Sync, Kind::Postgres).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn asynch_postgres() {
                super::$name(Mode::Async, Kind::Postgres).await;
            }
        })+
    };
}

shadow_tests!(
    a_right_port_answers_equally,
    a_lost_update_is_found,
    what_a_copy_does_leaves_nothing,
    the_database_is_the_same_as_without_copies,
    what_cannot_be_copied_is_counted,
    a_client_that_leaves_ends_the_copy
);

/// 5,000 requests of 8 clients. Those of two clients are about the same rows.
async fn a_right_port_answers_equally(mode: Mode, kind: Kind) {
    let served = Served::start(mode, kind).await;
    let shadow = served.shadow(options(kind)).await;
    let each = 5_000 / CLIENTS;
    let clients = (0..CLIENTS).map(async |client| {
        let (tag, n) = match client {
            0 | 1 => ("shared".to_owned(), 0),
            _ => (format!("client-{client}"), 1),
        };
        for number in 0..each {
            let reply = match number % 3 {
                0 => served.get(&format!("/count/{tag}")).await,
                _ => served.order(&tag, n).await,
            };
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    });
    join_all(clients).await;
    let report = shadow.report();
    assert_eq!(report.differing, 0, "{report:#?}");
    let [equal, _, unclear, not_compared] = numbers(&report);
    assert_eq!(
        equal + unclear + not_compared,
        (each * CLIENTS) as u64,
        "{report:#?}"
    );
    assert!(equal > 4_000, "{report:#?}");
    if kind == Kind::Sqlite {
        // The transactions of atomic views are the same; a count outside of them may change between any two looks.
        let views: Vec<_> = report.unclear_differences.iter().collect();
        assert!(
            views.iter().all(|it| it.request.method == "GET"),
            "{report:#?}"
        );
    }
    let orders = (0..each).filter(|number| number % 3 != 0).count() as i64;
    for client in 2..CLIENTS {
        let tag = format!("client-{client}");
        assert_eq!(served.count(&tag).await, orders);
        let sql = format!("select n from counters where name = '{tag}'");
        assert_eq!(served.data.count(&sql).await, orders);
    }
    assert_eq!(served.count("shared").await, orders * 2);
    served.settled().await;
    let sql = "select count(*) from rows where tag like 'heard %'";
    assert_eq!(
        served.data.count(sql).await,
        orders * CLIENTS as i64,
        "each event is heard once"
    );
    served.end().await;
}

/// The async version reads twice at once and then writes both: one is lost. The answer does not show that.
async fn a_lost_update_is_found(mode: Mode, kind: Kind) {
    let served = Served::start(mode, kind).await;
    let shadow = served.shadow(options(kind)).await;
    for path in ["/lost", "/lost/repeatable"] {
        let before = shadow.report().differing;
        // On PostgreSQL, a commit in any database of the server between the two makes a difference unclear.
        for _ in 0..200 {
            assert_eq!(served.post(path).await.ok(), "added");
            if shadow.report().differing > before {
                break;
            }
        }
        let report = shadow.report();
        assert!(report.differing > before, "{path}: {report:#?}");
        let [equal, _, _, not_compared] = numbers(&report);
        assert_eq!((equal, not_compared), (0, 0), "{path}: {report:#?}");
    }
    let report = shadow.report();
    let first = &report.differences[0];
    assert_eq!(
        (&*first.request.method, &*first.request.path),
        ("POST", "/lost")
    );
    assert!(first.request.view.contains("lost") && !first.request.request.is_empty());
    let sentence = "writes: other values, or another number of rows: update counters set n = $1 where name = $2";
    assert_eq!(first.differences, [sentence], "{report:#?}");
    let requests = numbers(&report)[1..3].iter().sum::<u64>();
    let each = match mode {
        Mode::Sync => 2,
        Mode::Async => 1,
    };
    let n = served
        .data
        .count("select n from counters where name = 'one'")
        .await;
    assert_eq!(
        n,
        i64::try_from(requests * each).expect("it is small"),
        "only the served version writes"
    );
    served.end().await;
}

/// What a deed of the candidate comes to.
enum Found {
    /// A difference with this in a sentence.
    Differs(&'static str),
    /// Not compared, for a reason with this in it.
    Refused(&'static str),
    Equal,
    /// One of these; what matters is that nothing is left of it.
    Something,
}

const DEEDS: [(&str, Found); 20] = [
    ("nothing", Found::Equal),
    ("trap", Found::Differs("the candidate traps")),
    ("spin", Found::Differs("status: 200 served, 50")),
    ("sleep", Found::Differs("status: 200 served, 504")),
    ("memory", Found::Differs("status: 200 served, 500")),
    (
        "write",
        Found::Differs(
            "writes: 0 times served, 1 times candidate: insert into rows (tag) values ('candidate')",
        ),
    ),
    (
        "nest",
        Found::Differs(
            "writes: 1 times served, 2 times candidate: insert into rows (tag) values ($1)",
        ),
    ),
    (
        "publish",
        Found::Differs("event `orders.made`: sent 0 times served, 20 times candidate"),
    ),
    (
        "nested%20publish",
        Found::Differs("event `orders.made`: sent 0 times served, 1 times candidate"),
    ),
    (
        "send",
        Found::Differs("message to the group `room.1`: sent 0 times served, 1 times candidate"),
    ),
    (
        "notify",
        Found::Differs("notice to the group `room.1`: sent 0 times served, 1 times candidate"),
    ),
    ("fetch", Found::Refused("makes outbound requests")),
    ("pin", Found::Refused("pins a connection")),
    (
        "subrequest",
        Found::Differs("writes: 1 times served, 2 times candidate"),
    ),
    ("context", Found::Equal),
    ("fail", Found::Differs("status: 200 served, 409")),
    (
        "rollback",
        Found::Differs("transaction: committed served, rolled back candidate"),
    ),
    ("poison", Found::Differs("status: 200 served, 500")),
    ("escape", Found::Something),
    ("session", Found::Something),
];

async fn what_a_copy_does_leaves_nothing(mode: Mode, kind: Kind) {
    let served = Served::start(mode, kind).await;
    let time = Duration::from_millis(1_500);
    let shadow = served
        .shadow(ShadowOptions {
            timeout: time,
            named_max: 1_000,
            ..options(kind)
        })
        .await;
    let counters = served.host.hub.counters().all();
    let mut rows = 0;
    for (deed, expected) in &DEEDS {
        let before = shadow.report();
        let since = Instant::now();
        let reply = served.post(&format!("/deeds/{deed}")).await;
        assert_eq!(reply.ok(), "done", "{deed}");
        assert!(
            since.elapsed() < time * 4,
            "{deed} took {:?}",
            since.elapsed()
        );
        rows += 1;
        assert_eq!(served.count("deed").await, rows, "{deed}");
        let after = shadow.report();
        let [equal, differing, unclear, not_compared] = numbers(&after);
        let was = numbers(&before);
        match expected {
            Found::Equal => assert_eq!(equal, was[0] + 1, "{deed}: {after:#?}"),
            Found::Refused(why) => {
                assert_eq!(not_compared, was[3] + 1, "{deed}: {after:#?}");
                let says = |it: &String| it.contains(why);
                assert!(after.not_compared.keys().any(says), "{deed}: {after:#?}");
            }
            Found::Differs(sentence) => {
                // Other tests use other databases of the same server, and PostgreSQL does not tell their commits apart.
                let named = match kind {
                    Kind::Postgres if unclear > was[2] => after.unclear_differences.last(),
                    _ => {
                        assert_eq!(differing, was[1] + 1, "{deed}: {after:#?}");
                        after.differences.last()
                    }
                };
                let named = named.expect("it is named");
                let says = |it: &String| it.contains(sentence);
                assert!(named.differences.iter().any(says), "{deed}: {named:#?}");
            }
            Found::Something => {}
        }
        let reply = served.get(&format!("/safe/{deed}")).await;
        assert_eq!(reply.ok(), "done", "safe {deed}");
        let order = served.order("one", 1).await;
        assert_eq!(order.status, 200, "after {deed}: {}", order.text());
    }
    served.settled().await;
    let deeds = DEEDS.len() as i64;
    for (tag, number) in [
        ("candidate", 0),
        ("loose", 0),
        ("heard candidate", 0),
        ("one", deeds),
        ("heard one", deeds),
    ] {
        assert_eq!(served.count(tag).await, number, "{tag}");
    }
    assert_eq!(
        served.data.count("select count(*) from counters").await,
        CLIENTS as i64 + 2
    );
    assert_eq!(served.data.count("select count(*) from names").await, 1);
    let left = match kind {
        Kind::Sqlite => "select count(*) from sqlite_master where name = 'left_behind'",
        Kind::Postgres => "select count(*) from pg_class where relname = 'left_behind'",
    };
    assert_eq!(served.data.count(left).await, 0);
    assert_eq!(
        served.host.hub.counters().all(),
        counters,
        "nothing was sent to groups"
    );
    let permits = eventually("all permits", async || {
        let permits: Vec<_> = (0..CLIENTS).map_while(|_| shadow.permit()).collect();
        match permits.len() {
            CLIENTS => Ok(permits),
            fewer => Err(fewer),
        }
    });
    assert_eq!(permits.await.len(), CLIENTS);
    served.end().await;
}

/// The same requests, one after the other, with copies and without.
async fn the_database_is_the_same_as_without_copies(mode: Mode, kind: Kind) {
    let mut dumps = Vec::new();
    let mut answers = Vec::new();
    for with_copies in [false, true] {
        let served = Served::start(mode, kind).await;
        if with_copies {
            served
                .shadow(ShadowOptions {
                    timeout: Duration::from_millis(300),
                    ..options(kind)
                })
                .await;
        }
        let mut texts = Vec::new();
        for (number, (deed, _)) in DEEDS.iter().enumerate() {
            let order = served.order("one", number as i64).await;
            // Where the database does not undo it, a copy takes a number from a sequence.
            let mut order: serde_json::Value =
                serde_json::from_slice(&order.body).expect("it is JSON");
            if kind == Kind::Postgres {
                order["id"].take();
            }
            texts.push(order.to_string());
            // The event of the order writes a row, too.
            served.settled().await;
            for reply in [
                served.post(&format!("/deeds/{deed}")).await,
                served.get("/count/one").await,
                served.post("/lost").await,
                served.get(&format!("/safe/{deed}")).await,
            ] {
                texts.push(format!("{} {}", reply.status, reply.text()));
            }
        }
        dumps.push(served.dump().await);
        answers.push(texts);
        served.end().await;
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(dumps[0], dumps[1]);
}

async fn what_cannot_be_copied_is_counted(mode: Mode, kind: Kind) {
    let served = Served::start(mode, kind).await;
    let time = Duration::from_secs(1);
    let shadow = served
        .shadow(ShadowOptions {
            at_once: 1,
            body_max_bytes: 1_000,
            timeout: time,
            ..options(kind)
        })
        .await;
    assert_eq!(served.post("/loose").await.ok(), "written");
    assert_eq!(served.count("loose").await, 1);
    assert_eq!(served.order(&"x".repeat(1_000), 1).await.status, 200);
    assert_eq!(served.get("/refused").await.ok(), "refused, and went on");
    assert_eq!(served.get("/nowhere").await.status, 404);
    let since = Instant::now();
    let replies = (0..CLIENTS).map(|_| served.get("/safe/sleep"));
    for reply in join_all(replies).await {
        assert_eq!(reply.ok(), "done");
    }
    // The candidate runs twice, since its answer differs.
    assert!(since.elapsed() < time * 4, "{:?}", since.elapsed());
    let report = shadow.report();
    let named: Vec<(&str, u64)> = (report.not_compared.iter())
        .map(|(why, number)| (&**why, *number))
        .collect();
    for why in [
        "the method is neither GET nor HEAD, and the view is not atomic",
        "the request's body is too large for a copy",
        "a statement of the candidate's view failed, and the view is not atomic",
    ] {
        assert!(named.contains(&(why, 1)), "{why}: {named:#?}");
    }
    let at_once = "as many copies as may run at once were running";
    assert!(named.contains(&(at_once, CLIENTS as u64 - 1)), "{named:#?}");
    served.end().await;
}

async fn a_client_that_leaves_ends_the_copy(mode: Mode, kind: Kind) {
    let served = Served::start(mode, kind).await;
    let shadow = served
        .shadow(ShadowOptions {
            timeout: Duration::from_secs(60),
            at_once: 1,
            ..options(kind)
        })
        .await;
    for path in ["/deeds/sleep", "/deeds/spin"] {
        let leaving = served.post(path);
        let left = tokio::time::timeout(Duration::from_millis(300), leaving).await;
        assert!(left.is_err(), "the copy takes longer");
        let free = eventually("the permit", async || shadow.permit().ok_or(()));
        drop(free.await);
        served.data.assert_quiet().await;
    }
    assert_eq!(served.count("deed").await, 0, "the request has not run");
    served.host.roll_out(None);
    assert_eq!(served.post("/deeds/sleep").await.ok(), "done");
    assert_eq!(served.count("deed").await, 1);
    served.end().await;
}
