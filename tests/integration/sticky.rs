//! All sync functions of a request run on one worker (R2, R3).

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::harness::log::Line;
use crate::harness::steps::{execute, insert, join, log, must, nap, next, query, view};
use crate::harness::{App, Kind, Mode, Reply, Server};

/// Exactly two workers, however many requests wait.
const TWO_WORKERS: &str = r#"
    app.middleware = ["rules::sync_views::first", "rules::async_views::first", "rules::sync_views::second", "rules::async_views::second"]
    [sync_views]
    workers = 2
    workers_max = 2
    queue_timeout_ms = 60000
"#;

/// Steps of sync and async views that call each other, each of which logs its worker.
fn nested(mode: Mode) -> Value {
    let innermost = json!([log("part"), nap(1), log("part")]);
    let asynchronous = json!([
        log("part"),
        view("/sync/run", innermost),
        nap(1),
        view("/sync/run", json!([log("part")]))
    ]);
    let other = match mode {
        Mode::Sync => "async",
        Mode::Async => "sync",
    };
    json!([
        log("part"),
        view(
            &format!("/{other}/run"),
            json!([
                log("part"),
                view("/async/run", asynchronous),
                nap(1),
                log("part")
            ])
        ),
        nap(1),
        log("part"),
    ])
}

async fn post(server: &Server, mode: Mode, steps: Value) -> Reply {
    let around = json!([log("part"), must(next()), log("part")]).to_string();
    let mut request = server
        .request("POST", &format!("/{mode}/run"))
        .body(steps.to_string());
    for name in [
        "x-sync-first",
        "x-async-first",
        "x-sync-second",
        "x-async-second",
    ] {
        request = request.header(name, &around);
    }
    Reply::of(request).await
}

/// The workers that the sync functions of each request have logged.
fn workers(lines: &[Line]) -> BTreeMap<String, Vec<i64>> {
    let mut workers: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.text("message") == "part") {
        let is_sync = line.text("view").contains("::sync_views::");
        assert_eq!(
            line.0.get("worker").is_some(),
            is_sync,
            "sync parts have a worker, and async parts none: {line:?}"
        );
        let of_this = workers.entry(line.text("request").to_owned()).or_default();
        if is_sync {
            of_this.push(line.number("worker"));
        }
    }
    workers
}

/// Middleware of both modes, view and nested sub-requests run their sync code on one worker. 64 such requests at the
/// same time, on two workers, all succeed.
async fn r2_r3_all_sync_parts_of_a_request_run_on_its_worker(mode: Mode) {
    let server = App::rules(Kind::Sqlite, TWO_WORKERS).await.serve().await;
    let mark = server.log.mark();
    let replies = join_all((0..64).map(|_| post(&server, mode, nested(mode)))).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{replies:#?}"
    );
    let lines = server.log.since(mark);
    let workers = workers(&lines);
    assert_eq!(workers.len(), 64);
    for (request, seen) in &workers {
        assert!(seen.len() >= 7, "{request}: {seen:?}");
        assert!(
            seen.iter().all(|worker| worker == &seen[0]),
            "{request} ran on {seen:?}"
        );
        let line = lines.iter().find(|line| {
            line.text("target") == "amphi::request" && line.text("request") == request
        });
        assert_eq!(
            line.map(|line| line.number("worker")),
            Some(seen[0]),
            "{request}"
        );
    }
    let used: std::collections::BTreeSet<i64> = workers.values().map(|seen| seen[0]).collect();
    assert_eq!(used.len(), 2, "both workers are used: {used:?}");
    assert!(server.metrics().await.get("amphi_sync_workers") <= 2.0);
    server.assert_baseline().await;
}
both_modes!(r2_r3_all_sync_parts_of_a_request_run_on_its_worker);

/// Joined sub-requests run their sync code on the worker of their request, too.
async fn r2_r3_joined_sync_parts_share_the_worker(mode: Mode) {
    let server = App::rules(Kind::Sqlite, TWO_WORKERS).await.serve().await;
    let mark = server.log.mark();
    let part = || {
        view(
            "/sync/run",
            json!([
                log("part"),
                nap(2),
                view(
                    "/async/run",
                    json!([log("part"), view("/sync/run", json!([log("part")]))])
                )
            ]),
        )
    };
    let steps = json!([log("part"), join((0..8).map(|_| part()).collect())]);
    let replies = join_all((0..16).map(|_| post(&server, mode, steps.clone()))).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{replies:#?}"
    );
    for (request, seen) in workers(&server.log.since(mark)) {
        assert!(
            seen.iter().all(|worker| worker == &seen[0]),
            "{request} ran on {seen:?}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(r2_r3_joined_sync_parts_share_the_worker);

/// All requests share one worker and one connection, and need the two in different orders. All requests succeed.
async fn r4_scopes_wait_for_capacity_and_never_for_each_other(mode: Mode) {
    let toml = r#"
            app.middleware = ["rules::async_views::first", "rules::sync_views::first"]
            databases.default.connections = 1
            databases.default.acquire_timeout_ms = 20000
            sync_views = { workers = 1, workers_max = 1, queue_timeout_ms = 20000 }
            async_views = { in_flight_max = 2, queue_timeout_ms = 20000 }
        "#;
    let server = App::rules(Kind::Postgres, toml).await.serve().await;
    // In every other request, async middleware begins the transaction before any sync code has run.
    let around = json!([must(insert("a")), must(next())]).to_string();
    let steps = json!([
        must(query("select count(*) from rows")),
        must(view("/sync/run", json!([must(insert("b"))]))),
        nap(1),
        must(view("/async/run", json!([must(insert("c"))])))
    ]);
    let replies = join_all((0..32).map(|number| {
        let mut request = server.request("POST", &format!("/{mode}/run/atomic"));
        if number % 2 == 0 {
            request = request.header("x-async-first", &around);
        }
        Reply::of(request.body(steps.to_string()))
    }))
    .await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{replies:#?}"
    );
    assert_eq!(server.app.data.rows().await, 80);
    server.assert_baseline().await;
}
both_modes!(r4_scopes_wait_for_capacity_and_never_for_each_other);

/// Ten thousand requests that are cancelled at random points: none hangs.
async fn r3_r15_cancelling_at_any_point_never_hangs(mode: Mode) {
    const CANCELLED: usize = 10_000;
    let seed = 0x5eed;
    let server = App::rules(Kind::Sqlite, TWO_WORKERS).await.serve().await;
    // How long 64 requests at the same time take when none is cancelled.
    let since = std::time::Instant::now();
    join_all((0..64).map(|_| post(&server, mode, nested(mode)))).await;
    let whole = since.elapsed();
    let mut random = fastrand::Rng::with_seed(seed);
    let patiences: Vec<Duration> = (0..CANCELLED)
        .map(|_| whole.mul_f64(random.f64() * random.f64()))
        .collect();
    let ended = stream::iter(patiences)
        .map(|patience| {
            let server = &server;
            async move {
                tokio::time::timeout(patience, post(server, mode, nested(mode)))
                    .await
                    .is_ok()
            }
        })
        .buffer_unordered(64)
        .filter(|ended| std::future::ready(*ended))
        .count()
        .await;
    assert!(
        ended < CANCELLED / 2,
        "most should have been cancelled: {ended} came to their end (seed {seed})"
    );
    server.assert_baseline().await;
    let replies = join_all((0..64).map(|_| post(&server, mode, nested(mode)))).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "afterwards all is well (seed {seed})"
    );
}
both_modes!(r3_r15_cancelling_at_any_point_never_hangs);

/// A request that waits before it is run again has no worker meanwhile.
async fn r4_a_request_that_waits_for_its_repetition_has_no_worker(mode: Mode) {
    let toml = "sync_views = { workers = 1, workers_max = 1, queue_timeout_ms = 250 }";
    let server = App::rules(Kind::Postgres, toml).await.serve().await;
    let conflict = "do $$ begin raise exception 'on purpose' using errcode = '40001'; end $$";
    // Ten repetitions, with waits of about 4 s in all.
    let steps = json!([must(execute(conflict))]).to_string();
    let conflicts = server.request("POST", &format!("/{mode}/retried"));
    let conflicts = tokio::spawn(Reply::of(conflicts.body(steps)));
    let (mut served, mut busy) = (0, 0);
    while !conflicts.is_finished() {
        let reply = server.steps("/sync/run", json!([insert("a")])).await;
        match reply.status {
            // On a busy machine, each of the ten tries may take long. A worker that is held while it waits is busy for 4 s.
            503 => busy += 1,
            _ => assert_eq!(reply.told(), json!([1])),
        }
        served += usize::from(reply.status == 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(conflicts.await.expect("it is answered").status, 503);
    let metrics = server.metrics().await;
    assert_eq!(metrics.get("amphi_retries_total"), 10.0);
    assert!(
        served > 10 && busy < 4,
        "served {served}, busy {busy} times"
    );
    server.assert_baseline().await;
}
both_modes!(r4_a_request_that_waits_for_its_repetition_has_no_worker);

/// The view of the error page gets the worker that the failed request had.
#[tokio::test]
async fn r4_the_page_for_a_failure_does_not_wait_for_the_failed_request() {
    let toml = r#"
        app.errors = "behaviour::sync_views::error_page"
        modules.behaviour.subrequests = true
        sync_views = { workers = 1, workers_max = 1, queue_timeout_ms = 2000 }
    "#;
    let server = App::new(toml).serve().await;
    let reply = server.post("/async/fail/nothing", "").await;
    assert_eq!(reply.status, 404);
    let text = reply.text();
    assert!(text.starts_with("own page 404"), "{text}");
    server.assert_baseline().await;
}
