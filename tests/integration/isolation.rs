//! Views that compute or wait: other requests are answered meanwhile, and limits end the views.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::harness::{App, Mode, Reply, best_of_three, eventually};

/// While one async view computes for a second, others on the same loop answer quickly.
#[tokio::test]
async fn r5_a_spinning_async_view_does_not_hold_up_others() {
    let toml = "[async_views]\nloops = 1\n[limits]\ncpu_ms = 5000";
    let server = App::new(toml).serve_alone().await;
    // Connections and instances are made before anything is measured.
    for _ in 0..20 {
        server.get("/async/hello").await.ok();
    }
    best_of_three(Duration::from_millis(10), async || {
        let spinning = tokio::spawn(server.request("GET", "/async/spin/1000").send());
        let since = Instant::now();
        let mut times = Vec::new();
        while since.elapsed() < Duration::from_millis(900) {
            let before = Instant::now();
            server.get("/async/hello").await.ok();
            times.push(before.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(
            !spinning.is_finished(),
            "the view should still have been computing"
        );
        let spun = spinning
            .await
            .expect("it was not aborted")
            .expect("it is answered");
        assert_eq!(spun.status(), 200);
        times.sort();
        assert!(times.len() > 50, "few answers in 900 ms: {times:?}");
        times[times.len() * 99 / 100]
    })
    .await;
    server.assert_baseline().await;
}

/// Several async views that compute take turns, each for one time slice. After each slice, other tasks that are ready
/// run first.
#[tokio::test]
async fn r5_many_spinning_async_views_hold_up_others_no_longer_than_one_does() {
    let toml = "[async_views]\nloops = 1\n[limits]\ncpu_ms = 5000";
    let server = App::new(toml).serve_alone().await;
    server.get("/async/hello").await.ok();
    best_of_three(Duration::from_millis(10), async || {
        let spinning = join_all((0..30).map(|_| server.get("/async/spin/800")));
        let others = async {
            let (mut times, since) = (Vec::new(), Instant::now());
            tokio::time::sleep(Duration::from_millis(100)).await;
            while since.elapsed() < Duration::from_millis(600) {
                let before = Instant::now();
                server.get("/async/hello").await.ok();
                times.push(before.elapsed());
            }
            times.sort();
            times[times.len() / 2]
        };
        let (spun, typical) = tokio::join!(spinning, others);
        assert!(spun.iter().all(|reply| reply.status == 200));
        typical
    })
    .await;
}

/// Sync views that compute hold up no async view.
#[tokio::test]
async fn r5_spinning_sync_views_do_not_hold_up_async_views() {
    let toml = "[sync_views]\nworkers = 2\nworkers_max = 2\n[limits]\ncpu_ms = 5000";
    let server = App::new(toml).serve_alone().await;
    server.get("/async/hello").await.ok();
    best_of_three(Duration::from_millis(100), async || {
        let spinning = [0, 1].map(|_| tokio::spawn(server.request("GET", "/sync/spin/600").send()));
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let before = Instant::now();
            server.get("/async/hello").await.ok();
            slowest = slowest.max(before.elapsed());
        }
        for spun in spinning {
            assert_eq!(
                spun.await
                    .expect("it was not aborted")
                    .expect("it is answered")
                    .status(),
                200
            );
        }
        slowest
    })
    .await;
}

/// While all sync workers wait, async views answer immediately, and queued sync requests get 503 at their deadline.
#[tokio::test]
async fn r4_queued_sync_requests_are_refused_at_their_deadline() {
    let toml = "[sync_views]\nworkers = 2\nworkers_max = 2\nqueue_timeout_ms = 300";
    let server = App::new(toml).serve_alone().await;
    server.get("/async/hello").await.ok();
    let sleeping = [0, 1].map(|_| tokio::spawn(server.request("GET", "/sync/nap/1500").send()));
    eventually("both workers to wait", async || {
        let blocked = server.metrics().await.get("amphi_sync_workers_blocked");
        if blocked == 2.0 { Ok(()) } else { Err(blocked) }
    })
    .await;

    let mark = server.log.mark();
    let queued = (0..8).map(|_| async {
        let before = Instant::now();
        (server.get("/sync/hello").await, before.elapsed())
    });
    let asynchronous = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let before = Instant::now();
            assert_eq!(server.get("/async/hello").await.ok(), "hello");
            slowest = slowest.max(before.elapsed());
        }
        slowest
    };
    let (refused, slowest) = tokio::join!(join_all(queued), asynchronous);
    assert!(
        slowest < Duration::from_millis(100),
        "async views should answer at once: {slowest:?}"
    );
    for (reply, took) in refused {
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.header("retry-after"), "1");
        assert!(
            took >= Duration::from_millis(290) && took < Duration::from_millis(700),
            "{took:?}"
        );
    }
    let lines = server.log.requests(mark, 28).await;
    let refusals: Vec<_> = lines
        .iter()
        .filter(|line| line.number("status") == 503)
        .collect();
    assert_eq!(refusals.len(), 8);
    for line in refusals {
        assert_eq!(line.text("view"), Mode::Sync.view("hello"));
        assert!(
            line.text("why")
                .contains("sync workers: none of 2 came free within 300 ms"),
            "{line:?}"
        );
    }
    for slept in sleeping {
        assert_eq!(
            slept
                .await
                .expect("it was not aborted")
                .expect("it is answered")
                .status(),
            200
        );
    }
    assert_eq!(
        server.get("/sync/hello").await.ok(),
        "hello",
        "the workers go on"
    );
    server.assert_baseline().await;
}

/// Queued requests are served when a worker comes free, if they may wait that long.
#[tokio::test]
async fn r4_queued_sync_requests_are_served_in_time() {
    let server = App::new("[sync_views]\nworkers = 2\nworkers_max = 2")
        .serve()
        .await;
    let replies = join_all((0..12).map(|_| server.get("/sync/nap/50"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    server.assert_baseline().await;
}

#[tokio::test]
async fn r4_a_full_queue_refuses_at_once() {
    let toml = "[sync_views]\nworkers = 1\nworkers_max = 1\nqueue_max = 2";
    let server = App::new(toml).serve().await;
    let sleeping = tokio::spawn(server.request("GET", "/sync/nap/1000").send());
    eventually("the worker to wait", async || {
        let blocked = server.metrics().await.get("amphi_sync_workers_blocked");
        if blocked == 1.0 { Ok(()) } else { Err(blocked) }
    })
    .await;
    let replies = join_all((0..6).map(|_| server.get("/sync/hello"))).await;
    let refused: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(refused.len(), 4, "two wait, the others are told at once");
    assert!(refused[0].text().contains("busy"), "{}", refused[0].text());
    assert_eq!(
        sleeping
            .await
            .expect("it was not aborted")
            .expect("it is answered")
            .status(),
        200
    );
    assert_eq!(server.metrics().await.get("amphi_refused_total"), 4.0);
    server.assert_baseline().await;
}

/// The pool grows while workers wait in host calls, so that sleeping views do not hold up others.
#[tokio::test]
async fn r4_the_pool_grows_for_waiting_views() {
    let server = App::new("[sync_views]\nworkers = 1\nworkers_max = 8")
        .serve_alone()
        .await;
    server.get("/sync/hello").await.ok();
    best_of_three(Duration::from_millis(600), async || {
        let before = Instant::now();
        let sleeping = join_all((0..7).map(|_| server.get("/sync/nap/400")));
        let hello = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let before = Instant::now();
            assert_eq!(server.get("/sync/hello").await.ok(), "hello");
            before.elapsed()
        };
        let (slept, hello) = tokio::join!(sleeping, hello);
        assert!(slept.iter().all(|reply| reply.status == 200));
        assert!(
            hello < Duration::from_millis(200),
            "behind sleepers it took {hello:?}"
        );
        before.elapsed()
    })
    .await;
    assert_eq!(server.metrics().await.get("amphi_sync_workers"), 8.0);
    server.assert_baseline().await;
}

/// The pool does not grow while workers compute, since more threads would gain nothing.
#[tokio::test]
async fn r4_the_pool_does_not_grow_for_computing_views() {
    let server = App::new("[sync_views]\nworkers = 1\nworkers_max = 8")
        .serve()
        .await;
    let replies = join_all((0..6).map(|_| server.get("/sync/spin/40"))).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(server.metrics().await.get("amphi_sync_workers"), 1.0);
}

/// Waiting uses no CPU time, however often a view wakes up.
#[tokio::test]
async fn r5_waiting_takes_no_cpu_time() {
    let server = App::new("[modules.behaviour.limits]\ncpu_ms = 100")
        .serve()
        .await;
    assert_eq!(server.get("/async/naps/400").await.ok(), "slept 400 times");
}

/// Async views beyond `in_flight_max` queue for an instance, and get 503 when that takes too long.
#[tokio::test]
async fn r4_async_views_queue_for_their_instances() {
    let toml = "[async_views]\nin_flight_max = 2\nqueue_timeout_ms = 300";
    let server = App::new(toml).serve().await;
    let served = join_all((0..6).map(|_| server.get("/async/nap/20"))).await;
    assert!(served.iter().all(|reply| reply.status == 200));
    let mark = server.log.mark();
    let replies = join_all((0..4).map(|_| server.get("/async/nap/1000"))).await;
    let mut statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503]);
    let lines = server.log.requests(mark, 4).await;
    assert!(lines[0].text("why").contains("within 300 ms"), "{lines:#?}");
    server.assert_baseline().await;
}

/// Many requests at the same time: each gets its own response.
async fn r14_answers_do_not_get_mixed_up(mode: Mode) {
    let server = App::new("").serve().await;
    let all = join_all((0..200).map(|number| {
        let server = &server;
        async move { (number, server.get(&format!("/{mode}/greet/{number}")).await) }
    }));
    for (number, reply) in all.await {
        assert_eq!(reply.ok(), format!("hello {number}"));
    }
    server.assert_baseline().await;
}
both_modes!(r14_answers_do_not_get_mixed_up);

/// All results that a view has open in the host may together be as large as one result may be (`rows_max_bytes`).
/// Outside a transaction, results on half of the four reading connections are read in pieces, and those results do not
/// count.
async fn r13_open_results_share_a_limit(mode: Mode) {
    let server = App::new("").serve().await;
    assert_eq!(
        server.post(&format!("/{mode}/hoard/50"), "").await.ok(),
        "8"
    );
    assert_eq!(
        server
            .post(&format!("/{mode}/hoard/50/outside"), "")
            .await
            .ok(),
        "10"
    );
    server.assert_baseline().await;
}
both_modes!(r13_open_results_share_a_limit);

/// Requests that are ended in every way, at the same time as requests that succeed.
async fn r13_a_storm_of_failures_leaves_every_gauge_at_its_baseline(mode: Mode) {
    let toml =
        "[limits]\ncpu_ms = 50\ntimeout_ms = 200\nmemory_mb = 16\n[sync_views]\nworkers_max = 16";
    let server = App::new(toml).serve().await;
    let ends = [
        "panic",
        "loop",
        "allocate",
        "sleep",
        "recurse",
        "error",
        "ok",
        "header-value",
    ];
    let requests = (0..120).map(|number| {
        let how = ends[number % ends.len()];
        let request = server.request("POST", &format!("/{mode}/fail/{how}"));
        async move {
            if number % 5 == 0 {
                // The client disconnects in the middle.
                let _ =
                    tokio::time::timeout(Duration::from_millis(20), Reply::maybe(request)).await;
            } else {
                let reply = Reply::of(request).await;
                assert!(
                    [200, 500, 503, 504].contains(&reply.status),
                    "{how}: {}",
                    reply.status
                );
            }
        }
    });
    join_all(requests).await;
    server.assert_baseline().await;
    assert_eq!(server.tags().iter().filter(|tag| *tag != "ok").count(), 0);
    assert_eq!(server.get(&format!("/{mode}/hello")).await.ok(), "hello");
}
both_modes!(r13_a_storm_of_failures_leaves_every_gauge_at_its_baseline);
