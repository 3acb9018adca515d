//! Which transaction a statement belongs to while several guest functions of a request run: pins, blocks and sibling
//! views (called at the same time) affect only their own rows, and no function waits for a function that waits for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::steps::{atomic, broken, end, insert, join, must, nap, pinned, query, view};
use crate::harness::{App, Kind, Mode, Server};

/// Whether a step told that it failed with this kind of error.
fn failed(told: &Value, kind: &str) -> bool {
    told.as_str()
        .is_some_and(|told| told.starts_with(&format!("{kind}: ")))
}

async fn tags(server: &Server) -> Vec<String> {
    let mut tags = server.app.data.tags().await;
    tags.sort();
    server.app.data.execute("delete from rows").await;
    tags
}

/// A step that reads rows one by one and does other steps after each row.
fn stream(steps: Value) -> Value {
    let sql = "with recursive c (n) as (select 1 union all select n + 1 from c where n < 2000) select n from c";
    json!({"do": "stream", "sql": sql, "steps": steps, "drain": true})
}

const BOTH: [Mode; 2] = [Mode::Sync, Mode::Async];

/// An atomic view that is called while its caller has a pin has a transaction of its own.
async fn r7_r9_an_atomic_view_called_with_a_pin_has_its_own_transaction(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for other in BOTH {
        let path = format!("/{other}/run/atomic");
        let steps = json!([pinned(json!([
            insert("mine"),
            view(&path, json!([insert("undone"), end("error")])),
            view(&path, json!([insert("kept")])),
            insert("too")
        ]))]);
        let told = server.told(&format!("/{mode}/run"), steps).await;
        let (undone, kept) = (&told[0][1], &told[0][2]);
        let expected = match kind {
            // The only connection that writes is the pinned one, so the called view's writes are refused.
            Kind::Sqlite => {
                assert!(kept[1].to_string().contains("pinned"), "{told}");
                vec!["mine", "too"]
            }
            Kind::Postgres => {
                assert_eq!(kept[0], json!(200), "{told}");
                vec!["kept", "mine", "too"]
            }
        };
        assert!(failed(undone, "500"), "{told}");
        assert_eq!(tags(&server).await, expected, "{mode} {other}");
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r7_r9_an_atomic_view_called_with_a_pin_has_its_own_transaction);

/// A view without a transaction is called while its caller has a pin. The view's statements that need the pinned
/// connection are refused immediately, and do not wait.
async fn r3_a_write_never_waits_for_the_pin_of_its_caller(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for other in BOTH {
        let within = json!([
            insert("a"),
            query("select count(*) from rows"),
            atomic(json!([insert("b")])),
            pinned(json!([insert("c")]))
        ]);
        let steps = json!([pinned(json!([view(&format!("/{other}/run"), within)]))]);
        let since = Instant::now();
        let told = server.told(&format!("/{mode}/run"), steps).await;
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "it waited for itself: {told}"
        );
        let told = &told[0][0][1];
        assert!(
            failed(&told[3], "Denied") && told[3].to_string().contains("pinned"),
            "{told}"
        );
        match kind {
            Kind::Sqlite => {
                assert!(
                    failed(&told[0], "Denied") && failed(&told[2], "Denied"),
                    "{told}"
                );
                assert!(
                    told[1].is_array(),
                    "what only reads has other connections: {told}"
                );
                assert_eq!(tags(&server).await, [] as [&str; 0]);
            }
            Kind::Postgres => {
                assert_eq!((&told[0], &told[2]), (&json!(1), &json!(1)));
                assert_eq!(tags(&server).await, ["a", "b"]);
            }
        }
    }
    server.assert_baseline().await;
}
both_modes_and_databases!(r3_a_write_never_waits_for_the_pin_of_its_caller);

/// A sibling's transaction neither commits nor rolls back rows of another sibling.
async fn r7_r9_siblings_decide_over_their_own_rows_only(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for other in BOTH {
        let (run, whole) = (format!("/{other}/run"), format!("/{other}/run/atomic"));
        let block = |tag: &str, last: Value| {
            view(
                &run,
                json!([atomic(json!([insert(tag), nap(10), insert(tag), last]))]),
            )
        };
        let all = |tag: &str, last: Value| {
            view(
                &whole,
                json!([nap(3), insert(tag), nap(10), insert(tag), last]),
            )
        };
        for (pair, kept) in [
            (
                json!([block("a", must(broken())), all("b", nap(1))]),
                ["b", "b"],
            ),
            (
                json!([block("a", nap(1)), all("b", end("error"))]),
                ["a", "a"],
            ),
            (
                json!([all("a", end("error")), block("b", nap(1))]),
                ["b", "b"],
            ),
            (
                json!([all("a", end("error")), all("b", nap(1))]),
                ["b", "b"],
            ),
            (
                json!([block("a", must(broken())), block("b", nap(1))]),
                ["b", "b"],
            ),
            (
                json!([
                    all("a", end("error")),
                    view(&run, json!([insert("b"), nap(5), insert("b")]))
                ]),
                ["b", "b"],
            ),
        ] {
            let told = server
                .told(&format!("/{mode}/run"), json!([join(pair)]))
                .await;
            assert_eq!(tags(&server).await, kept, "{mode} {other}: {told}");
        }
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r7_r9_siblings_decide_over_their_own_rows_only);

/// Within one transaction, rolling back one sibling's savepoint keeps the rows of the others.
async fn r8_a_savepoint_holds_its_own_views_statements_only(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for other in BOTH {
        let run = format!("/{other}/run");
        let undone = view(
            &run,
            json!([atomic(json!([insert("undone"), nap(10), must(broken())]))]),
        );
        let kept = view(
            &run,
            json!([
                nap(3),
                insert("kept"),
                nap(1),
                atomic(json!([insert("kept")]))
            ]),
        );
        let told = server
            .told(
                &format!("/{mode}/run/atomic"),
                json!([join(json!([undone, kept, insert("mine")]))]),
            )
            .await;
        assert_eq!(
            tags(&server).await,
            ["kept", "kept", "mine"],
            "{mode} {other}: {told}"
        );
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_a_savepoint_holds_its_own_views_statements_only);

/// A statement outside a transaction is not part of the transaction of a view that was called at the same time.
async fn r8_a_statement_beside_a_view_is_not_in_its_transaction(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for other in BOTH {
        let beside = json!([join(json!([
            view(
                &format!("/{other}/run/atomic"),
                json!([insert("undone"), nap(20), end("error")])
            ),
            insert("plain"),
            insert("plain")
        ]))]);
        let told = server.told(&format!("/{mode}/run"), beside).await;
        assert_eq!((&told[0][1], &told[0][2]), (&json!(1), &json!(1)), "{told}");
        assert_eq!(tags(&server).await, ["plain", "plain"]);
    }
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_a_statement_beside_a_view_is_not_in_its_transaction);

/// A view that fails within a block has the block rolled back, whatever its caller makes of the failure.
async fn r9_a_view_that_fails_in_a_block_has_it_undone(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for (other, path) in BOTH
        .into_iter()
        .flat_map(|other| [(other, "run"), (other, "run/atomic")])
    {
        for last in [
            end("error"),
            end("panic"),
            json!({"do": "status", "code": 500}),
        ] {
            let steps = json!([
                atomic(json!([
                    insert("a"),
                    view(&format!("/{other}/{path}"), json!([insert("b"), last]))
                ])),
                insert("after")
            ]);
            let told = server.told(&format!("/{mode}/run"), steps).await;
            assert!(failed(&told[0], "Poisoned"), "{told}");
            assert_eq!(
                tags(&server).await,
                ["after"],
                "{mode} {other} {path}: {told}"
            );
        }
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_a_view_that_fails_in_a_block_has_it_undone);

/// A read-only view writes nothing, whoever calls it, and neither do the views that it calls.
async fn r9_a_read_only_view_writes_nothing_wherever_it_is_called(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for (other, caller) in BOTH
        .into_iter()
        .flat_map(|other| [(other, "run"), (other, "run/atomic")])
    {
        for path in ["read", "read/atomic"] {
            let within = json!([
                query("select count(*) from rows"),
                atomic(json!([
                    query("select count(*) from rows"),
                    insert("undone")
                ])),
                view(&format!("/{mode}/run"), json!([insert("undone")])),
                query("select count(*) from rows"),
            ]);
            let steps = json!([
                atomic(json!([
                    insert("a"),
                    view(&format!("/{other}/{path}"), within),
                    insert("b")
                ])),
                insert("c")
            ]);
            let reply = server.steps(&format!("/{mode}/{caller}"), steps).await;
            let text = reply.text();
            assert!(text.contains("read-only"), "{text}");
            assert!(
                !tags(&server).await.contains(&"undone".to_owned()),
                "{mode} {other} {caller} {path}: {text}"
            );
            let reads = json!([
                atomic(json!([
                    insert("a"),
                    view(
                        &format!("/{other}/{path}"),
                        json!([
                            query("select count(*) from rows"),
                            query("select count(*) from rows")
                        ])
                    ),
                    insert("b")
                ])),
                insert("c")
            ]);
            let told = server.told(&format!("/{mode}/{caller}"), reads).await;
            assert_eq!(tags(&server).await, ["a", "b", "c"], "{told}");
        }
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_a_read_only_view_writes_nothing_wherever_it_is_called);

/// A request can have a limited number of open blocks and pins. All of them are released at its end.
async fn r13_open_levels_and_pins_are_bounded(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let mut leaks = vec![("pin", "run"), ("pin", "run/atomic")];
    if mode == Mode::Async {
        // In sync code a block ends with its closure: it cannot be left open.
        leaks.push(("begin", "run"));
    }
    for (what, path) in leaks {
        let leak = json!({"do": "repeat", "times": 70, "step": {"do": "leak", "what": what}});
        let told = server.told(&format!("/{mode}/{path}"), json!([leak])).await;
        assert!(
            failed(&told[0], "Denied") && told[0].to_string().contains("64"),
            "{what} {path}: {told}"
        );
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r13_open_levels_and_pins_are_bounded);

/// A possible deadlock on the scope's worker: an atomic sync view waits for an async view. Meanwhile a sync sibling
/// without a transaction begins on top of the atomic view on the same worker, and calls another atomic view, which
/// needs the connection of the first atomic view. So the host must not let a sibling begin on top of a view that holds
/// a transaction.
async fn r3_a_transaction_is_not_buried_under_its_siblings(kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let waits = view("/async/run", json!([nap(30)]));
    for inner in ["run/atomic", "run"] {
        let wanting = match inner {
            "run" => atomic(json!([insert("c")])),
            _ => view("/async/run/atomic", json!([insert("c")])),
        };
        for holding in [
            view(
                "/sync/run/atomic",
                json!([insert("b"), waits.clone(), insert("b")]),
            ),
            view(
                "/sync/run",
                json!([atomic(json!([insert("b"), waits.clone(), insert("b")]))]),
            ),
            view(
                "/async/run/atomic",
                json!([
                    insert("b"),
                    nap(20),
                    view("/sync/run", json!([insert("b")]))
                ]),
            ),
            view(
                "/async/run",
                json!([atomic(json!([
                    insert("b"),
                    nap(20),
                    view("/sync/run", json!([insert("b")]))
                ]))]),
            ),
        ] {
            let plain = view(
                "/sync/run",
                json!([
                    insert("y"),
                    view("/async/run", json!([wanting.clone()])),
                    wanting.clone(),
                    insert("y")
                ]),
            );
            let since = Instant::now();
            let told = server
                .told("/async/run", json!([join(json!([holding, plain]))]))
                .await;
            assert!(since.elapsed() < Duration::from_secs(3), "{told}");
            assert_eq!(
                tags(&server).await,
                ["b", "b", "c", "c", "y", "y"],
                "{told}"
            );
        }
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_databases!(r3_a_transaction_is_not_buried_under_its_siblings);

/// A caller drops its call while the called view still runs. The transaction that the view is part of is rolled back.
async fn r9_a_view_that_is_given_up_is_not_kept(kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for path in [
        "sync/run",
        "async/run",
        "sync/run/atomic",
        "async/run/atomic",
    ] {
        let race = json!({"do": "race", "steps": [nap(10), view(&format!("/{path}"), json!([insert("undone"), nap(100), insert("undone")]))]});
        let mark = server.log.mark();
        let reply = server
            .steps("/async/run/atomic", json!([insert("mine"), race]))
            .await;
        assert_eq!(reply.status, 500, "{path}: {}", reply.text());
        let line = &server.log.requests(mark, 1).await[0];
        assert!(line.text("why").contains("given up"), "{line:?}");
        server
            .told("/async/run", json!([insert("mine"), race, insert("after")]))
            .await;
        server.app.data.assert_quiet().await;
        let kept = tags(&server).await;
        let undone = kept.iter().filter(|tag| *tag == "undone").count();
        assert_eq!(kept.len() - undone, 2, "{path}: {kept:?}");
        assert!(undone == 0 || !path.ends_with("atomic"), "{path}: {kept:?}");
    }
    server.assert_baseline().await;
}
both_databases!(r9_a_view_that_is_given_up_is_not_kept);

/// A view that is given up right after it has begun, behind middleware of both modes, leaves nothing of its block: neither
/// in the block nor, through a view that it calls, outside.
async fn r9_nothing_is_kept_of_a_view_that_is_given_up_early(kind: Kind) {
    let toml = "modules.rules.middleware = [\"rules::async_views::second\", \"rules::sync_views::second\"]";
    let server = App::rules(kind, toml).await.serve().await;
    const NAP: Duration = Duration::from_millis(300);
    for path in ["/async/run", "/sync/run"] {
        let called = view("/sync/run", json!([insert("undone")]));
        let nap = nap(NAP.as_millis() as u64);
        let block = atomic(json!([view("/async/run", json!([])), called, nap]));
        let given_up = view(path, json!([block]));
        let race = json!({"do": "race", "steps": [given_up, view("/async/run/atomic", json!([]))]});
        for _ in 0..10 {
            let since = Instant::now();
            let told = server.told("/async/run", json!([race])).await;
            let took = since.elapsed();
            server.app.data.assert_quiet().await;
            let kept = tags(&server).await.len();
            // The atomic view waits for a block that has begun before it. When both end together, the block was committed.
            if told[0][0] == 0 {
                assert_eq!(kept, 1, "{path}: {told} after {took:?}");
            } else if took < NAP {
                assert_eq!(kept, 0, "{path}: {told} after {took:?}");
            }
        }
    }
    server.assert_baseline().await;
}
both_databases!(r9_nothing_is_kept_of_a_view_that_is_given_up_early);

/// A block ends while a view that was called in it still runs. The block is rolled back, because otherwise chance would
/// decide which of the view's rows are in the block.
async fn r9_a_block_does_not_end_before_a_view_that_was_called_in_it(kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for path in ["/async/run", "/async/run/atomic", "/sync/run"] {
        let steps = json!([join(json!([
            atomic(json!([insert("a"), nap(20)])),
            view(path, json!([nap(60), insert("b")])),
        ]))]);
        let told = server.told("/async/run", steps).await;
        assert!(
            failed(&told[0][0], "Denied") && told[0][0].to_string().contains("still running"),
            "{told}"
        );
        assert_eq!(tags(&server).await, [] as [&str; 0], "{path}: {told}");
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_databases!(r9_a_block_does_not_end_before_a_view_that_was_called_in_it);

/// Requests that run statements while they read a result in pieces never wait for each other in a circle.
async fn r4_streams_leave_connections_to_others(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let count = query("select count(*) from rows");
    let steps = json!([stream(json!([
        count,
        insert("a"),
        count,
        atomic(json!([insert("b")])),
        stream(json!([count]))
    ]))]);
    let path = format!("/{mode}/run");
    let since = Instant::now();
    let requests = (0..24).map(|_| server.steps(&path, steps.clone()));
    for reply in futures::future::join_all(requests).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(!reply.text().contains("Unavailable"), "{}", reply.text());
    }
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(tags(&server).await.len(), 48);
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r4_streams_leave_connections_to_others);

/// A view that is called in a transaction with less isolation than it asks for is refused.
async fn r7_a_view_is_not_run_with_less_isolation_than_it_asks_for(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    for other in BOTH {
        let called = |path: &str| {
            view(
                &format!("/{other}/{path}"),
                json!([query("show transaction_isolation")]),
            )
        };
        let told = server
            .told(
                &format!("/{mode}/run"),
                json!([called("serializable"), called("repeatable")]),
            )
            .await;
        assert_eq!(
            (&told[0][1][0], &told[1][1][0]),
            (&json!([["serializable"]]), &json!([["repeatable read"]])),
            "{told}"
        );
        let told = server
            .told(
                &format!("/{mode}/repeatable"),
                json!([called("repeatable"), called("run")]),
            )
            .await;
        assert_eq!(
            (&told[0][1][0], &told[1][1][0]),
            (&json!([["repeatable read"]]), &json!([["repeatable read"]])),
            "{told}"
        );
        let told = server
            .told(
                &format!("/{mode}/repeatable"),
                json!([called("serializable")]),
            )
            .await;
        assert!(told[0][1][0].to_string().contains("isolation"), "{told}");
    }
    server.assert_baseline().await;
}
both_modes!(r7_a_view_is_not_run_with_less_isolation_than_it_asks_for);

/// R3: a sync view whose caller has dropped the call is ended, even while it computes, so that the scope's worker is
/// free for other functions.
#[tokio::test]
async fn r3_a_view_that_is_given_up_gives_the_worker_back() {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    for goes_on in [
        end("loop"),
        json!({"do": "repeat", "times": 30, "step": nap(100)}),
    ] {
        let given_up = view("/sync/run", json!([goes_on]));
        let race = json!({"do": "race", "steps": [nap(50), given_up]});
        let next = view("/sync/run", json!([insert("a")]));
        let since = Instant::now();
        server.told("/async/run", json!([race, next])).await;
        let took = since.elapsed();
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
    server.assert_baseline().await;
}

/// A view waits, within a transaction, for a view that it called before the transaction began. That view waits for the
/// end of the transaction, so the time limit ends both, and the log says what was waited for.
#[tokio::test]
async fn r3_what_a_request_waited_for_is_named_when_its_time_is_over() {
    let late = |mode: Mode, view_steps: Value| {
        let called = view(&format!("/{mode}/run"), view_steps);
        json!([{"do": "late", "step": called, "steps": [insert("within")]}])
    };
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let toml = "limits.timeout_ms = 700";
        let server = App::rules(kind, toml).await.serve().await;
        let joined = late(Mode::Async, json!([nap(200), insert("joined")]));
        let why = server.reason("/async/run/atomic", joined).await;
        assert!(why.contains("waited for the end of a transaction"), "{why}");
        let calls = json!([nap(200), view("/sync/run", json!([]))]);
        let queued = late(Mode::Async, calls);
        let why = server.reason("/async/run/atomic", queued).await;
        assert!(why.contains("waited for the worker"), "{why}");
        if kind == Kind::Sqlite {
            let alone = late(Mode::Async, json!([nap(200), insert("alone")]));
            let why = server.reason("/async/run", alone).await;
            assert!(why.contains("waited for a connection"), "{why}");
        }
        assert_eq!(tags(&server).await, Vec::<String>::new());
        server.assert_baseline().await;
    }
}
