//! Views that fail in every way: what the client gets, what the log says, what is rolled back, and that nothing is
//! left.

use crate::harness::{App, Mode, Reply, Server, eventually};

/// A way for a view to end, and what must follow.
struct Case {
    how: &'static str,
    status: u16,
    /// A part of the response's text.
    client: &'static str,
    /// The log's `fault`: whose fault it was. Empty if nothing failed.
    fault: &'static str,
    /// Parts of the log's `why`.
    why: &'static [&'static str],
    /// The log's `transaction`: what became of the transaction.
    transaction: &'static str,
}

const GENERIC: &str = "The server could not answer this request.";

const fn broken(how: &'static str, why: &'static [&'static str]) -> Case {
    Case {
        how,
        status: 500,
        client: GENERIC,
        fault: "view",
        why,
        transaction: "rolled back",
    }
}

const fn limited(
    how: &'static str,
    status: u16,
    client: &'static str,
    why: &'static [&'static str],
) -> Case {
    Case {
        how,
        status,
        client,
        fault: "limit",
        why,
        transaction: "rolled back",
    }
}

const fn answered(
    how: &'static str,
    status: u16,
    client: &'static str,
    transaction: &'static str,
) -> Case {
    Case {
        how,
        status,
        client,
        fault: "",
        why: &[],
        transaction,
    }
}

const SLOW: &str = "The server took too long to answer this request.";

const CASES: &[Case] = &[
    answered("ok", 200, "done", "committed"),
    answered("status-404", 404, "not here", "committed"),
    answered("status-500", 500, "own page", "rolled back"),
    Case {
        status: 409,
        client: "the client may read this",
        fault: "client",
        ..broken("refuse", &["returned an error", "the log may read this"])
    },
    answered("content-length", 200, "six bytes", "committed"),
    broken(
        "error",
        &["returned an error", "only the log may read this"],
    ),
    Case {
        status: 503,
        client: "",
        ..broken("error-503", &["hidden words"])
    },
    broken("panic", &["panicked at", "deeds.rs", "on purpose"]),
    broken("exit", &["ended its own process with code 1"]),
    broken(
        "recurse",
        &["nested", "deep", "endless recursion", "deeds::recurse"],
    ),
    broken("header-name", &["header", "\"bad name\"", "not valid"]),
    broken("header-empty-name", &["header", "not valid"]),
    broken("header-value", &["header `x-value`", "not valid"]),
    broken("header-return", &["header `x-value`", "not valid"]),
    broken("hop-by-hop", &["header `connection`", "only the host"]),
    broken(
        "transfer-encoding",
        &["header `transfer-encoding`", "only the host"],
    ),
    broken("status-100", &["the status 100"]),
    broken("status-600", &["the status 600"]),
    broken("large", &["8388609 bytes", "`response_max_bytes`"]),
    limited("loop", 504, SLOW, &["CPU time of 200 ms", "`cpu_ms`"]),
    limited(
        "allocate",
        500,
        GENERIC,
        &["more than its 32 MB of memory", "`memory_mb`"],
    ),
    limited(
        "sleep",
        504,
        SLOW,
        &["longer than its time limit", "`timeout_ms`"],
    ),
];

const LIMITS: &str = "[limits]\ncpu_ms = 200\ntimeout_ms = 1500\nmemory_mb = 32";

async fn r9_r13_r16_r17_every_failure_is_undone_and_named(mode: Mode) {
    let server = App::new(LIMITS).serve().await;
    for case in CASES {
        check(&server, mode, case).await;
    }
    server.assert_baseline().await;
}
both_modes!(r9_r13_r16_r17_every_failure_is_undone_and_named);

async fn r9_r15_a_client_that_leaves_has_its_request_undone(mode: Mode) {
    let server = App::new("").serve().await;
    for how in ["sleep", "sleep-then-write", "loop"] {
        let mark = server.log.mark();
        let path = format!("/{mode}/fail/{how}");
        let request = tokio::spawn(server.request("POST", &path).send());
        eventually("the view to run", async || {
            let metrics = server.metrics().await;
            let runs = metrics.get("amphi_transactions") == 1.0;
            if runs {
                Ok(())
            } else {
                Err(metrics.in_flight())
            }
        })
        .await;
        request.abort();
        let lines = server.log.requests(mark, 1).await;
        assert_eq!(lines[0].text("view"), mode.view("fail"), "{how}");
        assert_eq!(lines[0].number("status"), 499, "{how}");
        assert!(
            lines[0].text("why").contains("the client has gone"),
            "{how}: {:?}",
            lines[0]
        );
        // The request ends soon, not only after the minute that the view wanted to sleep.
        server.assert_baseline().await;
        assert_eq!(server.rows(), 0, "{how}");
    }
    assert_eq!(server.get(&format!("/{mode}/hello")).await.ok(), "hello");
}
both_modes!(r9_r15_a_client_that_leaves_has_its_request_undone);

/// A disconnect ends a request wherever it waits: in a statement, for the connection that writes, or for a worker or
/// instance.
async fn r13_r15_a_client_that_leaves_a_waiting_request_frees_it(mode: Mode) {
    let toml = "[sync_views]\nworkers = 2\nworkers_max = 2\n[async_views]\nin_flight_max = 2\n[databases.default]\nacquire_timeout_ms = 30000";
    let server = App::new(toml).serve().await;
    let scopes = async |expected: f64| {
        eventually("that many requests", async || {
            let scopes = server.metrics().await.get("amphi_scopes");
            if scopes == expected {
                Ok(())
            } else {
                Err(scopes)
            }
        })
        .await;
    };
    let start = |path: &str, body: &'static str| {
        tokio::spawn(
            server
                .request("POST", &format!("/{mode}/{path}"))
                .body(body)
                .send(),
        )
    };
    let endless =
        "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n";
    for statement in ["sql?with=query", "sql?with=rows", "sql/atomic?with=query"] {
        let computing = start(statement, endless);
        scopes(1.0).await;
        computing.abort();
        server.assert_baseline().await;
    }
    let holding = start("fail/sleep", "");
    scopes(1.0).await;
    let writing = start("rows/second", "");
    scopes(2.0).await;
    let queued = start("rows/third", "");
    scopes(3.0).await;
    queued.abort();
    scopes(2.0).await;
    writing.abort();
    scopes(1.0).await;
    holding.abort();
    server.assert_baseline().await;
    assert_eq!(server.rows(), 0);
    assert_eq!(
        server.post(&format!("/{mode}/rows/after"), "").await.status,
        201
    );
    let lines = server.log.requests(0, 7).await;
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.number("status") == 499)
            .count(),
        6,
        "{lines:#?}"
    );
}
both_modes!(r13_r15_a_client_that_leaves_a_waiting_request_frees_it);

async fn r13_memory_hogs_leave_nothing_behind(mode: Mode) {
    let server = App::new(LIMITS).serve().await;
    let hog = async || server.get(&format!("/{mode}/fail/allocate")).await.status;
    // The first requests make pools grow to their full size.
    for _ in 0..10 {
        assert_eq!(hog().await, 500);
    }
    let before = server.memory_kib();
    for _ in 0..100 {
        assert_eq!(hog().await, 500);
    }
    server.assert_baseline().await;
    let after = server.memory_kib();
    assert!(
        after < before + (16 << 10),
        "{before} KiB before, {after} KiB after"
    );
}
both_modes!(r13_memory_hogs_leave_nothing_behind);

async fn a_view_can_have_less_than_its_module(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    assert_eq!(server.get(&format!("/{mode}/short/loop")).await.status, 504);
    assert_eq!(server.get(&format!("/{mode}/short/nap")).await.status, 504);
    let lines = server.log.requests(mark, 2).await;
    assert!(
        lines[0].text("why").contains("CPU time of 50 ms"),
        "{lines:#?}"
    );
    assert!(
        lines[1].text("why").contains("longer than its time limit"),
        "{lines:#?}"
    );
    server.assert_baseline().await;
}
both_modes!(a_view_can_have_less_than_its_module);

async fn check(server: &Server, mode: Mode, case: &Case) {
    let how = case.how;
    let (mark, rows) = (server.log.mark(), server.rows());
    let reply = server.post(&format!("/{mode}/fail/{how}"), "").await;

    assert_eq!(reply.status, case.status, "{mode} {how}");
    assert!(
        reply.text().contains(case.client),
        "{mode} {how}: {}",
        reply.text()
    );
    for hidden in [
        "only the log",
        "hidden words",
        "the log may",
        "panicked",
        "deeds.rs",
        "stolen",
    ] {
        assert!(
            !reply.text().contains(hidden),
            "{mode} {how} tells the client: {}",
            reply.text()
        );
        assert!(reply.headers.get("set-cookie").is_none(), "{mode} {how}");
    }

    let lines = server.log.requests(mark, 1).await;
    let line = &lines[0];
    assert_eq!(line.text("view"), mode.view("fail"), "{how}");
    assert_eq!(line.text("mode"), mode.to_string(), "{how}");
    assert_eq!(line.number("status"), i64::from(case.status), "{how}");
    assert_eq!(line.text("fault"), case.fault, "{how}: {line:?}");
    for part in case.why {
        assert!(
            line.text("why").contains(part),
            "{mode} {how} should say {part:?}: {line:?}"
        );
    }
    if !case.fault.is_empty() {
        assert!(
            reply.text().contains(line.text("request")),
            "the client should be told the request's id: {}",
            reply.text()
        );
    }
    assert_eq!(line.text("transaction"), case.transaction, "{mode} {how}");

    let kept = i64::from(case.transaction == "committed");
    assert_eq!(server.rows(), rows + kept, "{mode} {how}");
    let next = server.get(&format!("/{mode}/hello")).await;
    assert_eq!(next.ok(), "hello", "after {mode} {how}");
    // One line in the log for each of the two requests, and no more.
    server.log.requests(mark, 2).await;
}

/// An async view that sleeps with `std::thread::sleep` is ended, and the log names the call and what to write instead.
#[tokio::test]
async fn a_blocking_sleep_in_an_async_view_is_a_synchronous_only_operation() {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    let reply = server.post("/async/fail/thread-sleep", "").await;
    assert_eq!(reply.status, 500);
    let lines = server.log.requests(mark, 1).await;
    let why = lines[0].text("why");
    assert!(
        why.contains("SynchronousOnlyOperation") && why.contains("wasi:io/poll"),
        "{why}"
    );
    assert!(
        why.contains("blocking_wasi"),
        "it should say the way out: {why}"
    );
    assert_eq!(server.rows(), 0);
    server.assert_baseline().await;
}

/// With `blocking_wasi = true`, an async view may call `std::thread::sleep`. The time limit still ends the view.
#[tokio::test]
async fn blocking_wasi_can_be_granted_to_an_async_view() {
    let toml = format!("{LIMITS}\n[modules.behaviour]\nblocking_wasi = true");
    let server = App::new(&toml).serve().await;
    let mark = server.log.mark();
    let reply: Reply = server.post("/async/fail/thread-sleep", "").await;
    assert_eq!(reply.status, 504);
    let lines = server.log.requests(mark, 1).await;
    assert!(
        lines[0].text("why").contains("longer than its time limit"),
        "{lines:#?}"
    );
    assert_eq!(server.rows(), 0);
    server.assert_baseline().await;
}
