//! Measures the steps of a request, without a network: `cargo bench -p amphi --bench requests`.
//!
//! `-- NAME` runs only the benchmarks with this text in their names. The guests are those of `tests/bench`. With
//! `AMPHI_BENCH_PATH`, the benchmark `answer` requests this path only, for a profiler.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use amphi::app::host::Host;
use amphi::app::{App, Target};
use amphi::budget;
use amphi::config::{Config, Limits};
use amphi::database::{self, Databases, Face, Statement};
use amphi::guest::run::{Engines, PoolSizes, Reply, ReplyBody};
use amphi::http::body::Received;
use amphi::http::message;
use amphi::request::settle;
use amphi::request::socket::Upgrades;
use amphi::request::{self, Client};
use amphi::scope::transaction::Transaction;
use amphi::scope::{Origin, Scope, Setup};
use amphi::threads::deadline::Deadline;
use amphi::view::Options;
use amphi::view::{Mode, View};
use bytes::Bytes;
use divan::{Bencher, black_box};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

/// The runtime for everything but requests, as in `amphi serve`.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made")
});

static HOST: LazyLock<Arc<Host>> = LazyLock::new(|| {
    let file = written();
    amphi::cli::build::run(&file).expect("the guests can be built");
    let config = Config::load(&file).expect("the configuration is right");
    let room = PoolSizes {
        at_once: 10,
        kept: 10,
    };
    let engines = Engines::new(room, room).expect("there is address space");
    let loading = engines.clone();
    let load = move || {
        let databases = database::open_all(&config, &Databases::new())?;
        App::load(config, &loading, databases, false, None)
    };
    let app = RUNTIME.block_on(async { tokio::task::spawn_blocking(load).await });
    let app = app.expect("it does not panic").expect("the app is right");
    let _runtime = RUNTIME.enter();
    Arc::new(Host::new(app, engines, false))
});

/// Writes an `amphi.toml` to a temporary folder, and returns its path.
fn written() -> PathBuf {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bench");
    let folder = std::env::temp_dir().join("amphi-benches");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let toml = format!(
        r#"
        [app]
        name = "bench"
        [databases.sqlite]
        sqlite = "bench.db"
        synchronous = "normal"
        [modules.fresh]
        path = "{0}/hello"
        [modules.reused]
        path = "{0}/hello"
        mount = "/reused"
        instances = "reuse"
        [modules.views]
        path = "{0}/views"
        databases = ["sqlite"]
        http = ["self"]
        "#,
        guests.display()
    );
    let file = folder.join("amphi.toml");
    std::fs::write(&file, toml).expect("a file can be written");
    file
}

fn loop_of_its_own() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

fn hello(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "bench")
        .header("accept", "text/plain")
        .body(Full::new(Bytes::new()))
        .expect("the request is valid")
}

fn paths() -> Vec<String> {
    match std::env::var("AMPHI_BENCH_PATH") {
        Ok(path) => vec![path],
        Err(_) => [
            "/sync",
            "/async",
            "/reused/sync",
            "/reused/async",
            "/nowhere",
        ]
        .map(str::to_owned)
        .into(),
    }
}

/// A whole request, from its parsed head to its response. The sync paths include the hand-off to a worker. Below
/// `/reused`, instances are kept; elsewhere each request gets a fresh one.
#[divan::bench(args = paths())]
fn answer(bencher: Bencher<'_, '_>, path: &str) {
    let (host, on_loop) = (&*HOST, loop_of_its_own());
    let client = Client {
        peer: ([127, 0, 0, 1], 1).into(),
        account: budget::process().connection(),
        upgrades: Upgrades {
            open: Default::default(),
            stop: Default::default(),
            held: Arc::new(()),
            into_stream: |_| None,
        },
    };
    bencher
        .with_inputs(|| hello(path).into_parts())
        .bench_local_values(|(mut parts, body)| {
            let response = on_loop.block_on(request::answer(host, &client, &mut parts, body));
            assert!(response.status() == StatusCode::OK || path == "/nowhere");
        });
}

/// A request whose guest makes a thousand host calls.
#[divan::bench(args = ["/sync/asks", "/async/asks"])]
fn a_thousand_host_calls(bencher: Bencher<'_, '_>, path: &str) {
    answer(bencher, path);
}

/// Returns a function that opens scopes, all with the same origin and view.
fn opening() -> impl Fn() -> Arc<Scope> {
    let (origin, limits) = (Origin::host(), Limits::default());
    let view = View::unrouted("bench", "bench", Mode::Sync, Duration::from_secs(30));
    let view = Arc::new(view);
    move || Scope::open(&origin, &view, &limits, Setup::now())
}

#[divan::bench]
fn scope_open_and_close(bencher: Bencher<'_, '_>) {
    bencher.bench_local(opening());
}

#[divan::bench]
fn router(bencher: Bencher<'_, '_>) {
    let app = HOST.app.load();
    bencher.bench_local(|| {
        let route = app
            .router
            .route(black_box(&Method::GET), black_box("/reused/sync"));
        assert!(matches!(
            route,
            amphi::app::router::Route::Found(Target::View(_), _)
        ));
    });
}

/// The hand-off of an empty job to a worker, and back.
#[divan::bench]
fn hand_off_to_a_worker(bencher: Bencher<'_, '_>) {
    let (host, on_loop) = (&*HOST, loop_of_its_own());
    let deadline = Deadline::new(Instant::now() + Duration::from_secs(3600));
    bencher.bench_local(|| {
        let done = on_loop.block_on(host.workers.run(&deadline, || ()));
        done.expect("it runs");
    });
}

/// Begins a transaction on SQLite, runs one statement that writes or only reads, and commits.
#[divan::bench(args = [false, true])]
fn transaction_that_writes(bencher: Bencher<'_, '_>, writes: bool) {
    let app = HOST.app.load();
    let sqlite = &app.services.databases["sqlite"];
    let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(3600)));
    let run = async |options: Options, sql: &str| {
        let transaction = Transaction::new(options);
        let statement = Statement {
            sql: sql.to_owned(),
            params: Vec::new(),
            rows_max: Some(1 << 20),
        };
        let member = transaction.first_member();
        let turn = member
            .turn((sqlite, &deadline), std::future::ready(Ok(())))
            .await;
        let turn = turn.expect("it is free").expect("it is atomic");
        turn.run(Face::Sync, statement).await.expect("it runs");
        transaction.finish(Face::Sync, true).await
    };
    let options = Options {
        atomic: true,
        ..Options::default()
    };
    RUNTIME
        .block_on(run(
            options,
            "create table if not exists counts (n integer)",
        ))
        .expect("it commits");
    let sql = match writes {
        true => "insert into counts values (1)",
        false => "select 1",
    };
    bencher.bench_local(|| RUNTIME.block_on(run(options, sql)).expect("it commits"));
}

/// The conversion of a request from HTTP to the contract.
#[divan::bench]
fn request_conversion(bencher: Bencher<'_, '_>) {
    let (parts, _) = hello("/sync?a=b").into_parts();
    let asked = amphi::http::proxies::Asked::default();
    bencher.bench_local(|| message::contract_request(&parts, &asked, Received::Inline(Vec::new())));
}

/// The conversion of a response from the contract to HTTP.
#[divan::bench]
fn response_conversion(bencher: Bencher<'_, '_>) {
    let response = || Reply {
        status: 200,
        headers: vec![("content-type".into(), b"text/plain; charset=utf-8".to_vec())],
        body: ReplyBody::Bytes(b"Hello, World!".to_vec()),
        not_sent: None,
        trailers: None,
    };
    let scope = opening()();
    bencher
        .with_inputs(response)
        .bench_local_values(|response| settle::checked(response, &scope).expect("it is valid"));
}
