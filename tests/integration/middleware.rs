//! Chains of middleware in any mix of modes: their order, what they can change, and what they see of failures.

use serde_json::{Value, json};

use crate::harness::steps::{
    about, broken, calls, end, get, header, insert, join, log, must, nap, next, query, set, status,
    view,
};
use crate::harness::{App, Kind, Mode, Reply, Server};

/// Four middleware functions of alternating modes: sync, async, sync, async.
const MIXED: &str = r#"
    app.middleware = ["rules::sync_views::first", "rules::async_views::first", "rules::sync_views::second", "rules::async_views::second"]
"#;

async fn serve(toml: &str) -> Server {
    App::rules(Kind::Sqlite, toml).await.serve().await
}

/// An app with the middleware `first` of this mode.
async fn serve_with_first(mode: Mode) -> Server {
    serve(&format!("app.middleware = [\"{}\"]", mode.part("first"))).await
}

/// Sends POST to a view, with steps for the view in the body and for middleware in headers.
async fn post(server: &Server, path: &str, middleware: &[(String, Value)], steps: Value) -> Reply {
    let mut request = server.request("POST", path).body(steps.to_string());
    for (name, steps) in middleware {
        request = request.header(name, steps.to_string());
    }
    Reply::of(request).await
}

/// What a middleware told, from its header in the response.
fn told_by(reply: &Reply, header: &str) -> Value {
    serde_json::from_str(reply.header(header)).unwrap_or_else(|_| panic!("{reply:?}"))
}

async fn r3_middleware_of_both_modes_nests(mode: Mode) {
    let server = serve(MIXED).await;
    let mark = server.log.mark();
    let reply = server
        .steps(&format!("/{mode}/run"), json!([header("x-seen")]))
        .await;
    assert_eq!(
        reply.told(),
        json!(["sync-first,async-first,sync-second,async-second"])
    );
    assert_eq!(
        reply.headers("x-passed"),
        ["async-second", "sync-second", "async-first", "sync-first"]
    );
    let line = &server.log.requests(mark, 1).await[0];
    // From loop to worker to loop to worker to loop is four hops; a sync view adds one.
    assert_eq!(
        line.number("hops"),
        if mode == Mode::Sync { 5 } else { 4 },
        "{line:?}"
    );
    assert_eq!(line.text("view"), mode.part("run"));
    server.assert_baseline().await;
}
both_modes!(r3_middleware_of_both_modes_nests);

/// The app's middleware is around the module's.
async fn r3_the_middleware_of_a_module_is_within_that_of_the_app(mode: Mode) {
    let toml = r#"
            app.middleware = ["rules::async_views::first", "rules::sync_views::first"]
            modules.rules.middleware = ["rules::sync_views::second", "rules::async_views::second"]
        "#;
    let server = serve(toml).await;
    let told = server
        .told(&format!("/{mode}/run"), json!([header("x-seen")]))
        .await;
    assert_eq!(
        told,
        json!(["async-first,sync-first,sync-second,async-second"])
    );
}
both_modes!(r3_the_middleware_of_a_module_is_within_that_of_the_app);

/// A middleware that does not run the rest of the chain answers the request itself, and no function of the rest runs.
async fn middleware_can_answer_itself(mode: Mode) {
    let server = serve_with_first(mode).await;
    let steps = json!([status(403), get("nothing")]);
    for view in ["sync", "async"] {
        let reply = post(
            &server,
            &format!("/{view}/run/atomic"),
            &[(mode.header("first"), steps.clone())],
            json!([insert("a")]),
        )
        .await;
        assert_eq!(reply.status, 403);
        assert_eq!(reply.text(), "[null,null]");
    }
    assert_eq!(server.app.data.rows().await, 0);
    server.assert_baseline().await;
}
both_modes!(middleware_can_answer_itself);

async fn middleware_can_change_what_goes_in_and_what_comes_out(mode: Mode) {
    let server = serve_with_first(mode).await;
    let steps = json!([must(next()), status(202)]);
    let reply = post(
        &server,
        "/async/run",
        &[(mode.header("first"), steps)],
        json!([header("x-seen")]),
    )
    .await;
    assert_eq!(
        (reply.status, reply.text()),
        (
            202,
            format!("[\"{}\"]", &mode.header("first")[2..]).as_str()
        )
    );
    assert_eq!(told_by(&reply, &mode.header("first")), json!([200, null]));
}
both_modes!(middleware_can_change_what_goes_in_and_what_comes_out);

/// A large body, which the host keeps in a file, passes through middleware unchanged.
async fn a_large_body_passes_through_middleware(mode: Mode) {
    let server = serve(MIXED).await;
    let steps = format!("{}[{}]", " ".repeat(2 << 20), header("x-seen"));
    let reply = server.post(&format!("/{mode}/run"), steps).await;
    assert_eq!(
        reply.told(),
        json!(["sync-first,async-first,sync-second,async-second"])
    );
    server.assert_baseline().await;
}
both_modes!(a_large_body_passes_through_middleware);

/// A view's error reaches the middleware with its status and text, and can be passed on unchanged.
async fn r17_an_error_passes_through_middleware_as_it_is(mode: Mode) {
    let server = serve(MIXED).await;
    let path = format!("/{mode}/run/atomic");
    let mark = server.log.mark();
    let refused = server
        .steps(&path, json!([insert("a"), end("refuse")]))
        .await;
    assert_eq!(refused.status, 409);
    assert!(
        refused.text().contains("the client may read this"),
        "{}",
        refused.text()
    );
    let failed = server
        .steps(&path, json!([insert("a"), end("error")]))
        .await;
    assert_eq!(failed.status, 500);
    assert!(!failed.text().contains("only the log"), "{}", failed.text());
    let trapped = server
        .steps(&path, json!([insert("a"), end("panic")]))
        .await;
    assert_eq!(trapped.status, 500);
    assert!(!trapped.text().contains("on purpose"), "{}", trapped.text());
    let lines = server.log.requests(mark, 3).await;
    for (line, (fault, why)) in lines.iter().zip([
        ("client", "returned an error"),
        ("view", "only the log may read this"),
        ("view", "on purpose"),
    ]) {
        assert_eq!(line.text("fault"), fault, "{line:?}");
        assert!(line.text("why").contains(why), "{line:?}");
        assert_eq!(line.text("transaction"), "rolled back");
        let way: Vec<&str> = line.text("call_path").split(" → ").collect();
        assert_eq!(
            way,
            [
                "sync rules::sync_views::first",
                "async rules::async_views::first",
                "sync rules::sync_views::second",
                "async rules::async_views::second",
                &format!("{mode} {}", mode.part("run_atomic")),
            ]
        );
    }
    assert_eq!(server.app.data.rows().await, 0);
    server.assert_baseline().await;
}
both_modes!(r17_an_error_passes_through_middleware_as_it_is);

/// A middleware sees a limit or trap in the rest of the chain as an error with the status that the client would get.
async fn middleware_sees_failures_of_the_rest(mode: Mode) {
    let server = serve_with_first(mode).await;
    let around = [(mode.header("first"), json!([next(), status(200)]))];
    for (view, how, seen) in [
        ("run", "refuse", "409: "),
        ("run", "error", "500: "),
        ("run", "panic", "500: "),
        ("limited", "loop", "504: "),
    ] {
        for view_mode in [Mode::Sync, Mode::Async] {
            let mark = server.log.mark();
            let reply = post(
                &server,
                &format!("/{view_mode}/{view}"),
                &around,
                json!([end(how)]),
            )
            .await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let told = told_by(&reply, &mode.header("first"));
            assert!(
                told[0].as_str().is_some_and(|told| told.starts_with(seen)),
                "{how}: {told}"
            );
            server.log.requests(mark, 1).await;
        }
    }
    server.assert_baseline().await;
}
both_modes!(middleware_sees_failures_of_the_rest);

/// A failure rolls the transaction back, whatever response a middleware makes of it.
async fn r9_a_failure_that_middleware_converts_is_rolled_back_all_the_same(mode: Mode) {
    let server = serve_with_first(mode).await;
    let around = [(
        mode.header("first"),
        json!([next(), insert("after"), status(200)]),
    )];
    for view_mode in [Mode::Sync, Mode::Async] {
        for end in [end("error"), end("panic"), end("refuse"), status(500)] {
            let mark = server.log.mark();
            let reply = post(
                &server,
                &format!("/{view_mode}/run/atomic"),
                &around,
                json!([insert("a"), end]),
            )
            .await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(
                server.log.requests(mark, 1).await[0].text("transaction"),
                "rolled back"
            );
        }
    }
    assert_eq!(server.app.data.tags().await, [""; 0]);
    server.assert_baseline().await;
}
both_modes!(r9_a_failure_that_middleware_converts_is_rolled_back_all_the_same);

/// When the rest of a chain cannot begin, the transaction is rolled back, too.
async fn r9_a_rest_that_cannot_begin_is_a_failure_like_others(mode: Mode) {
    let toml = format!(
        "modules.rules.middleware = [{:?}, {:?}]",
        mode.part("first"),
        mode.part("second")
    );
    let server = App::rules(Kind::Sqlite, &toml).await.serve().await;
    let converts = json!([next(), status(200)]).to_string();
    // Each call nests three guest functions (two middleware functions and the view), and at most sixteen may be nested:
    // of the sixth call, only the first function runs.
    let mut call = json!({"do": "call", "path": format!("/{mode}/run"), "headers": {mode.header("first"): converts}, "steps": []});
    for _ in 0..4 {
        call = json!({"do": "call", "path": format!("/{mode}/run"), "headers": {}, "steps": [insert("a"), call]});
    }
    let mark = server.log.mark();
    let reply = post(
        &server,
        &format!("/{mode}/run/atomic"),
        &[],
        json!([insert("a"), call]),
    )
    .await;
    assert!(
        reply.text().contains("more than 16 guest functions"),
        "{}",
        reply.text()
    );
    assert_eq!(reply.status, 200);
    assert_eq!(
        server.log.requests(mark, 1).await[0].text("transaction"),
        "rolled back"
    );
    assert_eq!(server.app.data.rows().await, 0);
    server.assert_baseline().await;
}
both_modes!(r9_a_rest_that_cannot_begin_is_a_failure_like_others);

/// A middleware that fails, before or after the rest, fails the request and rolls it back.
async fn r9_a_middleware_that_fails_has_everything_undone(mode: Mode) {
    let server = serve_with_first(mode).await;
    for view_mode in [Mode::Sync, Mode::Async] {
        for how in ["error", "panic"] {
            for steps in [
                json!([insert("m"), end(how)]),
                json!([must(next()), end(how)]),
            ] {
                let mark = server.log.mark();
                let around = [(mode.header("first"), steps)];
                let reply = post(
                    &server,
                    &format!("/{view_mode}/run/atomic"),
                    &around,
                    json!([insert("a")]),
                )
                .await;
                assert_eq!(reply.status, 500, "{}", reply.text());
                let line = &server.log.requests(mark, 1).await[0];
                assert_eq!(
                    (line.text("fault"), line.text("transaction")),
                    ("view", "rolled back"),
                    "{line:?}"
                );
            }
        }
    }
    assert_eq!(server.app.data.rows().await, 0);
    server.assert_baseline().await;
}
both_modes!(r9_a_middleware_that_fails_has_everything_undone);

/// Middleware is in the transaction of the view that it is around, and sees the view's rows.
async fn r7_middleware_and_view_share_the_transaction(mode: Mode) {
    let server = serve(MIXED).await;
    let count = query("select count(*) from rows");
    let around = [
        (
            Mode::Sync.header("first"),
            json!([insert("1"), must(next()), count]),
        ),
        (
            Mode::Async.header("second"),
            json!([insert("2"), must(next()), count]),
        ),
    ];
    let mark = server.log.mark();
    let reply = post(
        &server,
        &format!("/{mode}/run/atomic"),
        &around,
        json!([insert("3"), count]),
    )
    .await;
    assert_eq!(reply.told(), json!([1, [[3]]]));
    assert_eq!(
        told_by(&reply, &Mode::Async.header("second")),
        json!([1, 200, [[3]]])
    );
    assert_eq!(
        told_by(&reply, &Mode::Sync.header("first")),
        json!([1, 200, [[3]]])
    );
    assert_eq!(server.app.data.tags().await, ["1", "2", "3"]);
    assert_eq!(
        server.log.requests(mark, 1).await[0].text("transaction"),
        "committed"
    );
}
both_modes!(r7_middleware_and_view_share_the_transaction);

/// Statements of middleware are in the view's transaction if the view is atomic. Otherwise they commit immediately.
async fn r7_the_view_decides_whether_its_middleware_is_atomic(mode: Mode) {
    let server = serve_with_first(mode).await;
    for view_mode in [Mode::Sync, Mode::Async] {
        let around = [(mode.header("first"), json!([insert("m"), end("error")]))];
        let reply = post(&server, &format!("/{view_mode}/run"), &around, json!([])).await;
        assert_eq!(reply.status, 500);
        let reply = post(
            &server,
            &format!("/{view_mode}/run/atomic"),
            &around,
            json!([]),
        )
        .await;
        assert_eq!(reply.status, 500);
    }
    assert_eq!(
        server.app.data.tags().await,
        ["m", "m"],
        "once for each view that is not atomic"
    );
}
both_modes!(r7_the_view_decides_whether_its_middleware_is_atomic);

/// `next` is an error in a view, because a view has no rest of the chain.
async fn the_rest_runs_once_and_for_middleware_only(mode: Mode) {
    let server = serve_with_first(mode).await;
    let told = server.told(&format!("/{mode}/run"), json!([next()])).await;
    assert!(
        told[0]
            .as_str()
            .is_some_and(|told| told.starts_with("500: ")),
        "{told}"
    );
    server.assert_baseline().await;
}
both_modes!(the_rest_runs_once_and_for_middleware_only);

/// Each guest function of a chain has an instance of its own, also if one function is in the chain several times.
async fn r16_every_part_of_a_chain_is_a_fresh_instance(mode: Mode) {
    let first = mode.part("first");
    let server = serve(&format!(
        "app.middleware = [\"{first}\"]\nmodules.rules.middleware = [\"{first}\"]"
    ))
    .await;
    let around = [(
        mode.header("first"),
        json!([calls(), must(next()), calls()]),
    )];
    let within = json!([
        calls(),
        view(&format!("/{mode}/run"), json!([calls()])),
        calls()
    ]);
    let reply = post(&server, &format!("/{mode}/run"), &around, within).await;
    assert_eq!(reply.told(), json!([1, [200, [1]], 2]));
    assert_eq!(told_by(&reply, &mode.header("first")), json!([1, 200, 2]));
    assert_eq!(reply.headers("x-passed").len(), 2);
}
both_modes!(r16_every_part_of_a_chain_is_a_fresh_instance);

/// Context values reach later functions of the chain and of sub-requests, in either mode, and middleware after the
/// view.
async fn r14_values_follow_the_request_through_all_its_parts(mode: Mode) {
    let server = serve(MIXED).await;
    let around = [
        (
            Mode::Sync.header("first"),
            json!([set("one", "1"), must(next()), get("three"), get("four")]),
        ),
        (
            Mode::Async.header("second"),
            json!([get("one"), set("two", "2"), must(next()), get("three")]),
        ),
    ];
    for other in [Mode::Sync, Mode::Async] {
        let steps = json!([
            get("one"),
            get("two"),
            view(
                &format!("/{other}/run"),
                json!([get("two"), set("four", "4")])
            ),
            set("three", "3"),
            get("four")
        ]);
        let reply = post(&server, &format!("/{mode}/run"), &around, steps).await;
        assert_eq!(
            reply.told(),
            json!(["1", "2", [200, ["2", null]], null, "4"])
        );
        assert_eq!(
            told_by(&reply, &Mode::Async.header("second")),
            json!(["1", null, 200, "3"])
        );
        assert_eq!(
            told_by(&reply, &Mode::Sync.header("first")),
            json!([null, 200, "3", "4"])
        );
    }
    let after = server
        .told(
            &format!("/{mode}/run"),
            json!([get("one"), get("two"), get("three"), get("four")]),
        )
        .await;
    assert_eq!(
        after,
        json!([null, null, null, null]),
        "nothing outlives its request"
    );
}
both_modes!(r14_values_follow_the_request_through_all_its_parts);

/// All functions of a request see the same id, trace, route and peer, and share its remaining time.
async fn r14_all_parts_have_one_identity_and_one_deadline(mode: Mode) {
    let server = serve(MIXED).await;
    let asked = json!([
        about("request-id"),
        about("traceparent"),
        about("route"),
        about("peer"),
        about("remaining")
    ]);
    let mut around_steps = asked.as_array().expect("a list").clone();
    around_steps.push(must(next()));
    let around = [(Mode::Async.header("first"), Value::Array(around_steps))];
    let within = json!([
        about("request-id"),
        about("traceparent"),
        about("route"),
        about("peer"),
        about("remaining"),
        view("/sync/run", asked)
    ]);
    let reply = post(&server, &format!("/{mode}/run"), &around, within).await;
    let (outer, told) = (told_by(&reply, &Mode::Async.header("first")), reply.told());
    let inner = &told[5][1];
    for at in 0..4 {
        assert_eq!(outer[at], told[at]);
        assert_eq!(inner[at], told[at]);
    }
    let remaining = |part: &Value| part[4].as_u64().expect("a number");
    assert!(
        remaining(&outer) >= remaining(&told) && remaining(&told) >= remaining(inner),
        "{outer} {told}"
    );
    assert!(remaining(inner) > 1_000);
}
both_modes!(r14_all_parts_have_one_identity_and_one_deadline);

/// Sub-requests run the middleware of the called module, and not that of the app.
async fn sub_requests_have_the_middleware_of_their_module(mode: Mode) {
    let toml = r#"
            app.middleware = ["rules::async_views::first", "rules::sync_views::first"]
            modules.rules.middleware = ["rules::sync_views::second", "rules::async_views::second"]
        "#;
    let server = serve(toml).await;
    for other in [Mode::Sync, Mode::Async] {
        let told = server
            .told(
                &format!("/{mode}/run"),
                json!([view(&format!("/{other}/run"), json!([header("x-seen")]))]),
            )
            .await;
        assert_eq!(told, json!([[200, ["sync-second,async-second"]]]));
    }
}
both_modes!(sub_requests_have_the_middleware_of_their_module);

/// A sub-request is in the transaction of its caller. If the sub-request fails, the whole transaction is rolled back.
async fn r7_r9_sub_requests_share_the_transaction(mode: Mode) {
    let server = serve("").await;
    for other in [Mode::Sync, Mode::Async] {
        let count = query("select count(*) from rows");
        let kept = json!([
            insert("a"),
            view(&format!("/{other}/run"), json!([insert("b"), count])),
            count
        ]);
        let path = format!("/{mode}/run/atomic");
        assert_eq!(
            server.told(&path, kept).await,
            json!([1, [200, [1, [[2]]]], [[2]]])
        );
        server.app.data.execute("delete from rows").await;
        for end in [end("error"), end("panic"), status(500)] {
            let mark = server.log.mark();
            let undone = json!([
                insert("a"),
                view(&format!("/{other}/run"), json!([insert("b"), end]))
            ]);
            let reply = server.steps(&path, undone).await;
            // The calling view answers 200 in spite of the failure. The transaction is rolled back all the same.
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(
                server.log.requests(mark, 1).await[0].text("transaction"),
                "rolled back"
            );
            assert_eq!(server.app.data.rows().await, 0);
        }
    }
    server.assert_baseline().await;
}
both_modes!(r7_r9_sub_requests_share_the_transaction);

/// An atomic view that is called outside a transaction has a transaction of its own.
async fn r7_an_atomic_sub_request_of_a_view_that_is_not_is_a_transaction(mode: Mode) {
    let server = serve("").await;
    for other in [Mode::Sync, Mode::Async] {
        let atomic = format!("/{other}/run/atomic");
        let steps = json!([
            insert("before"),
            view(&atomic, json!([insert("kept")])),
            view(&atomic, json!([insert("undone"), broken()])),
            insert("after"),
        ]);
        server.steps(&format!("/{mode}/run"), steps).await;
        assert_eq!(server.app.data.tags().await, ["before", "kept", "after"]);
        server.app.data.execute("delete from rows").await;
    }
    server.assert_baseline().await;
}
both_modes!(r7_an_atomic_sub_request_of_a_view_that_is_not_is_a_transaction);

/// Atomic views that are called at the same time have a transaction each: each is kept whole or not at all, whatever
/// the others do.
async fn r7_joined_atomic_sub_requests_have_a_transaction_each(mode: Mode) {
    let server = serve("").await;
    for other in [Mode::Sync, Mode::Async] {
        let atomic = format!("/{other}/run/atomic");
        let of =
            |tag: &str, end: Value| view(&atomic, json!([insert(tag), nap(5), insert(tag), end]));
        let steps = json!([join(json!([
            of("a", nap(1)),
            of("b", broken()),
            of("c", nap(1))
        ]))]);
        server.steps(&format!("/{mode}/run"), steps).await;
        let mut tags = server.app.data.tags().await;
        tags.sort();
        assert_eq!(tags, ["a", "a", "c", "c"]);
        server.app.data.execute("delete from rows").await;
    }
    server.assert_baseline().await;
}
both_modes!(r7_joined_atomic_sub_requests_have_a_transaction_each);

/// The log names the failed view of a sub-request, and the calls that led to it.
async fn r17_a_failed_sub_request_is_named_with_the_way_there(mode: Mode) {
    let server = serve_with_first(Mode::Sync).await;
    let mark = server.log.mark();
    let steps = json!([must(view(
        "/async/run",
        json!([must(view("/sync/run", json!([log("deep"), end("panic")])))])
    ))]);
    assert_eq!(
        server.steps(&format!("/{mode}/run"), steps).await.status,
        500
    );
    let line = &server.log.requests(mark, 1).await[0];
    let way = format!(
        "sync rules::sync_views::first → {mode} {} → async rules::async_views::run → sync rules::sync_views::run",
        mode.part("run")
    );
    assert_eq!(line.text("call_path"), way, "{line:?}");
    server.assert_baseline().await;
}
both_modes!(r17_a_failed_sub_request_is_named_with_the_way_there);

/// There is no hop between functions of one mode, so a request has only as many as its modes need.
#[tokio::test]
async fn r3_hops_are_as_few_as_the_chain_allows() {
    let (s, a) = ("rules::sync_views", "rules::async_views");
    for (middleware, to_sync, to_async) in [
        (vec![], 1, 0),
        (vec![s], 1, 2),
        (vec![a], 1, 0),
        (vec![s, s], 1, 2),
        (vec![a, a], 1, 0),
        (vec![s, a], 3, 2),
        (vec![a, s], 1, 2),
        (vec![s, a, s], 3, 4),
    ] {
        let names: Vec<String> = middleware
            .iter()
            .zip(["first", "second", "third"])
            .map(|(file, name)| format!("{file}::{name}"))
            .collect();
        let server = serve(&format!("app.middleware = {names:?}")).await;
        for (mode, hops) in [(Mode::Sync, to_sync), (Mode::Async, to_async)] {
            let mark = server.log.mark();
            server.steps(&format!("/{mode}/run"), json!([])).await.ok();
            let line = &server.log.requests(mark, 1).await[0];
            assert_eq!(line.number("hops"), hops, "{names:?} around a {mode} view");
        }
    }
}
