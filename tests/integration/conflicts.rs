//! Isolation levels, requests that are run again after a conflict, and views that only read.

use futures::future::join_all;
use serde_json::json;

use crate::harness::steps::{
    append, execute, fetch, increment, insert, must, next, pinned, publish, query,
};
use crate::harness::{App, Kind, Mode, Reply};

/// Concurrent increments: the counter equals the number of requests that succeeded, and with `retries` every request
/// succeeds.
async fn r9_requests_are_run_again_after_a_conflict(mode: Mode, kind: Kind) {
    let connections = if kind == Kind::Postgres {
        "databases.default.connections = 16"
    } else {
        ""
    };
    let server = App::rules(kind, connections).await.serve().await;
    let mark = server.log.mark();
    let mut kept = 0;
    for _ in 0..20 {
        let replies = server
            .many_steps(4, &format!("/{mode}/retried"), json!([must(increment())]))
            .await;
        assert!(
            replies
                .iter()
                .all(|reply| [200, 503].contains(&reply.status)),
            "{replies:#?}"
        );
        kept += replies.iter().filter(|reply| reply.status == 200).count();
    }
    assert_eq!(
        server.app.data.count("select n from counters").await,
        i64::try_from(kept).expect("few")
    );
    assert_eq!(kept, 80, "ten times are enough for four");
    if kind == Kind::Postgres {
        assert!(
            server.metrics().await.get("amphi_retries_total") > 0.0,
            "there were conflicts"
        );
        let lines = server.log.requests(mark, 80).await;
        assert!(
            lines.iter().any(|line| line.0.get("retries").is_some()),
            "the log tells of them"
        );
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_requests_are_run_again_after_a_conflict);

/// A read-only view cannot write, neither in a transaction nor outside.
async fn r9_read_only_views_cannot_write(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for path in ["read", "read/atomic"] {
        for statement in [
            "insert into rows (tag) values ('a')",
            "delete from counters",
            "update counters set n = 1",
            "create table mine (a integer)",
        ] {
            let told = server
                .reason(&format!("/{mode}/{path}"), json!([execute(statement)]))
                .await;
            assert!(told.contains("read-only"), "{path} {statement}: {told}");
        }
        let told = server
            .told(
                &format!("/{mode}/{path}"),
                json!([query("select n from counters")]),
            )
            .await;
        assert_eq!(told, json!([[[0]]]));
        let told = server
            .reason(
                &format!("/{mode}/{path}"),
                json!([pinned(json!([execute("delete from counters")]))]),
            )
            .await;
        assert!(told.contains("read-only"), "{path}: {told}");
    }
    assert_eq!(
        (
            server.app.data.rows().await,
            server.app.data.count("select n from counters").await
        ),
        (0, 0)
    );
    // Afterwards the connections are no longer read-only: other views can write.
    for _ in 0..8 {
        assert_eq!(
            server
                .told(&format!("/{mode}/run"), json!([insert("a")]))
                .await,
            json!([1])
        );
    }
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_read_only_views_cannot_write);

/// Without `retries`, a conflict is a 503 with `retry-after`.
async fn r9_a_conflict_is_a_503_and_undone(mode: Mode) {
    let server = App::rules(Kind::Postgres, "databases.default.connections = 16")
        .await
        .serve()
        .await;
    let replies = server
        .many_steps(
            60,
            &format!("/{mode}/serializable"),
            json!([must(increment())]),
        )
        .await;
    let kept = replies.iter().filter(|reply| reply.status == 200).count();
    for refused in replies.iter().filter(|reply| reply.status != 200) {
        assert_eq!(
            (refused.status, refused.header("retry-after")),
            (503, "1"),
            "{}",
            refused.text()
        );
    }
    assert!(kept < 60, "there were conflicts");
    assert_eq!(
        server.app.data.count("select n from counters").await,
        i64::try_from(kept).expect("few")
    );
    server.assert_baseline().await;
}
both_modes!(r9_a_conflict_is_a_503_and_undone);

/// A request that has sent an outbound request is not run again. A request that has published an event is run again,
/// and the event is delivered once.
async fn r10_what_has_sent_something_is_not_run_again(mode: Mode) {
    let server = App::rules(Kind::Postgres, "databases.default.connections = 16")
        .await
        .serve()
        .await;
    let sent = json!([must(fetch("/nowhere")), must(increment())]);
    let replies = server
        .many_steps(60, &format!("/{mode}/retried"), sent)
        .await;
    assert!(
        replies.iter().any(|reply| reply.status == 503),
        "some met a conflict"
    );
    assert_eq!(server.metrics().await.get("amphi_retries_total"), 0.0);

    let mark = server.log.mark();
    let published = json!([must(publish("orders.new", json!([]))), must(increment())]);
    let replies = server
        .many_steps(60, &format!("/{mode}/retried"), published)
        .await;
    let kept = replies.iter().filter(|reply| reply.status == 200).count();
    server.assert_baseline().await;
    let heard = server
        .log
        .since(mark)
        .iter()
        .filter(|line| line.text("message").starts_with("heard"))
        .count();
    assert_eq!(heard, 2 * kept);
}
both_modes!(r10_what_has_sent_something_is_not_run_again);

/// A request that is run again starts from nothing: context values, instances and middleware are new.
async fn r14_r16_a_request_that_is_run_again_begins_anew(mode: Mode) {
    let toml = format!(
        "databases.default.connections = 16\napp.middleware = [\"{}\"]",
        mode.part("first")
    );
    let server = App::rules(Kind::Postgres, &toml).await.serve().await;
    let around = json!([{"do": "get", "name": "left"}, {"do": "calls"}, must(next())]).to_string();
    let steps = json!([{"do": "get", "name": "left"}, {"do": "set", "name": "left", "value": "behind"}, must(increment()), {"do": "calls"}]).to_string();
    let replies = join_all((0..60).map(|_| {
        let request = server
            .request("POST", &format!("/{mode}/retried"))
            .header(mode.header("first"), &around);
        Reply::of(request.body(steps.clone()))
    }))
    .await;
    assert!(
        server.metrics().await.get("amphi_retries_total") > 0.0,
        "some were run again"
    );
    for reply in replies.iter().filter(|reply| reply.status == 200) {
        assert_eq!(reply.told(), json!([null, null, 1, 1]));
        assert_eq!(reply.header(&mode.header("first")), "[null,1,200]");
    }
    server.assert_baseline().await;
}
both_modes!(r14_r16_a_request_that_is_run_again_begins_anew);

/// The database uses the isolation level that the view asks for.
async fn r7_the_isolation_level_is_the_views(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    let level = query(
        "select current_setting('transaction_isolation') as a, current_setting('transaction_read_only') as b",
    );
    for (path, expected) in [
        ("run/atomic", ["read committed", "off"]),
        ("serializable", ["serializable", "off"]),
        ("repeatable", ["repeatable read", "off"]),
        ("read/atomic", ["read committed", "on"]),
        ("run", ["read committed", "off"]),
    ] {
        assert_eq!(
            server
                .told(&format!("/{mode}/{path}"), json!([level]))
                .await,
            json!([[expected]]),
            "{path}"
        );
    }
}
both_modes!(r7_the_isolation_level_is_the_views);

/// Files cannot be rolled back, so a request that may have written some is not run again.
async fn r9_what_may_have_written_files_is_not_run_again(mode: Mode) {
    let app = App::rules(
        Kind::Postgres,
        r#"
        [modules.rules]
        blocking_wasi = true
        directories = [{ host = "open", guest = "/open", write = true }]
    "#,
    )
    .await;
    app.write("open/lines.txt", "");
    let server = app.serve().await;
    let conflict = must(execute(
        "do $$ begin raise exception 'on purpose' using errcode = '40001'; end $$",
    ));
    let mark = server.log.mark();
    let reply = server
        .steps(
            &format!("/{mode}/retried"),
            json!([must(append("/open/lines.txt", "one")), conflict]),
        )
        .await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
    assert_eq!(
        std::fs::read_to_string(server.app.path("open/lines.txt")).expect("it is there"),
        "one\n"
    );
    assert_eq!(server.metrics().await.get("amphi_retries_total"), 0.0);
    let lines = server.log.since(mark);
    let said = |line: &crate::harness::log::Line| line.text("message").contains("`directories`");
    assert!(lines.iter().any(said), "the log says why: {lines:#?}");
    // Another request of the same module that touches no file is run again.
    assert_eq!(
        server
            .steps(&format!("/{mode}/retried"), json!([conflict]))
            .await
            .status,
        503
    );
    assert_eq!(server.metrics().await.get("amphi_retries_total"), 10.0);
    server.assert_baseline().await;
}
both_modes!(r9_what_may_have_written_files_is_not_run_again);
