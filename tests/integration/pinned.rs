//! Statements that change a session need a pinned connection, and nothing of the change is left afterwards.

use serde_json::{Value, json};

use crate::harness::steps::{end, execute, insert, nap, pinned, query};
use crate::harness::{App, Kind, Mode, Server};

/// Statements that PostgreSQL runs on a pinned connection only.
const SESSION: [&str; 16] = [
    "set search_path = pg_catalog",
    "SET SESSION statement_timeout = 1000",
    "/* a comment */ set timezone to 'Europe/Vienna'",
    "-- a comment\nset role none",
    "reset all",
    "discard all",
    "listen news",
    "unlisten *",
    "prepare mine as select 1",
    "deallocate all",
    "create temp table secret (a int)",
    "create temporary view secret as select 1",
    "create table pg_temp.secret (a int)",
    "select pg_advisory_lock(1)",
    "select set_config('search_path', 'pg_catalog', false)",
    "select 1 as a into temp secret",
];

/// Statements that are refused everywhere.
const NEVER: [&str; 9] = [
    "begin",
    "start transaction",
    "commit",
    "rollback",
    "savepoint mine",
    "release mine",
    "rollback to mine",
    "copy rows to stdout",
    "prepare transaction 'mine'",
];

/// A query for what a view can notice of a session that it has just borrowed.
const STATE: &str = "select current_setting('search_path') as a, current_setting('timezone') as b, \
     current_setting('statement_timeout') as c, current_setting('application_name') as d, \
     current_setting('default_transaction_read_only') as e, \
     (select count(*) from pg_prepared_statements where name = 'mine') as f, \
     (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as g, \
     (select count(*) from pg_listening_channels()) as h, to_regclass('pg_temp.secret') is null as i";

fn text(told: &Value) -> &str {
    told.as_str().unwrap_or_default()
}

/// A server with one database connection, so that the next borrower gets the same one.
async fn serve_with_one_connection() -> Server {
    App::rules(Kind::Postgres, "databases.default.connections = 1")
        .await
        .serve()
        .await
}

/// A statement that changes the session is refused. The refusal names the statement, and what to do instead.
async fn r11_statements_that_change_the_session_are_refused_outside_a_pinned_one(mode: Mode) {
    let server = serve_with_one_connection().await;
    let before = server
        .told(&format!("/{mode}/run"), json!([query(STATE)]))
        .await;
    for statement in SESSION {
        for path in ["run", "run/atomic"] {
            for step in [execute(statement), query(statement)] {
                let told = server
                    .reason(&format!("/{mode}/{path}"), json!([step]))
                    .await;
                assert!(
                    told.contains("was refused"),
                    "{statement} in {path}: {told}"
                );
                assert!(
                    told.contains("`pin`"),
                    "it should say the way out: {statement}: {told}"
                );
            }
        }
    }
    for statement in NEVER {
        for step in [
            execute(statement),
            query(statement),
            pinned(json!([execute(statement)])),
        ] {
            let told = server.steps(&format!("/{mode}/run"), json!([step])).await;
            assert!(
                told.text().contains("Denied: "),
                "{statement}: {}",
                told.text()
            );
        }
    }
    let after = server
        .told(&format!("/{mode}/run"), json!([query(STATE)]))
        .await;
    assert_eq!(after, before);
    server.assert_baseline().await;
}
both_modes!(r11_statements_that_change_the_session_are_refused_outside_a_pinned_one);

/// Statements that only look as if they changed the session are not refused.
async fn r11_what_leaves_no_trace_is_not_refused(mode: Mode) {
    let server = serve_with_one_connection().await;
    let path = format!("/{mode}/run/atomic");
    for statement in [
        "select 'set search_path = x; begin'",
        "select 1 /* set role none */",
        "select $q$ listen $q$",
        "insert into rows (tag) values ('discard all')",
        "update rows set tag = 'commit' where tag = 'begin'",
        "with s as (select 1 as set) select set::text from s",
        "select pg_advisory_xact_lock(1)::text",
        "set local statement_timeout = 5000",
    ] {
        let told = server.told(&path, json!([execute(statement)])).await;
        assert!(told[0].is_number(), "{statement}: {told}");
    }
    let state = server
        .told(&format!("/{mode}/run"), json!([query(STATE)]))
        .await;
    assert_eq!(state[0][0][6], 0, "{state}");
    server.assert_baseline().await;
}
both_modes!(r11_what_leaves_no_trace_is_not_refused);

async fn r11_a_pinned_session_leaves_nothing_to_the_next_borrower(mode: Mode) {
    let server = serve_with_one_connection().await;
    let path = format!("/{mode}/run");
    let before = server.told(&path, json!([query(STATE)])).await;
    let change = [
        execute("set search_path = pg_catalog, public"),
        execute("set timezone = 'Europe/Vienna'"),
        execute("set statement_timeout = 12345"),
        execute("set application_name = 'mine'"),
        execute("set default_transaction_read_only = on"),
        execute("prepare mine as select 1"),
        query("select pg_advisory_lock(1)::text"),
        execute("listen news"),
        query("select current_setting('timezone')"),
    ];
    for last in [json!([]), json!([end("panic")]), json!([end("error")])] {
        for atomic in ["", "/atomic"] {
            let steps: Vec<Value> = change
                .iter()
                .cloned()
                .chain(last.as_array().cloned().unwrap_or_default())
                .collect();
            let reply = server
                .steps(
                    &format!("{path}{atomic}"),
                    json!([pinned(Value::Array(steps))]),
                )
                .await;
            if last == json!([]) {
                assert_eq!(
                    reply.told()[0][8],
                    json!([["Europe/Vienna"]]),
                    "all statements have one session"
                );
            }
            let after = server.told(&path, json!([query(STATE)])).await;
            assert_eq!(after, before, "after {last} {atomic}");
        }
    }
    // A disconnect and a time limit leave nothing to the next borrower, either.
    let steps = json!([pinned(json!([
        execute("set timezone = 'Europe/Vienna'"),
        nap(60_000)
    ]))]);
    let left = server.request("POST", &path).body(steps.to_string());
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(200), left.send())
            .await
            .is_err()
    );
    assert_eq!(server.told(&path, json!([query(STATE)])).await, before);
    assert_eq!(
        server.steps(&format!("/{mode}/brief"), steps).await.status,
        504
    );
    assert_eq!(server.told(&path, json!([query(STATE)])).await, before);
    server.assert_baseline().await;
}
both_modes!(r11_a_pinned_session_leaves_nothing_to_the_next_borrower);

/// A temporary table exists as long as the pin.
async fn r11_temporary_tables_are_for_a_pinned_session(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let path = format!("/{mode}/run");
    let table = execute("create temp table secret (a integer)");
    let told = server.told(&path, json!([table])).await;
    assert!(text(&told[0]).starts_with("Denied: "), "{told}");
    for atomic in ["", "/atomic"] {
        let steps = json!([pinned(json!([
            table,
            execute("insert into secret values (7)"),
            query("select a from secret"),
            insert("kept")
        ]))]);
        let told = server.told(&format!("{path}{atomic}"), steps).await;
        assert_eq!(told[0][2], json!([[7]]), "{told}");
        for _ in 0..8 {
            let told = server
                .told(&path, json!([query("select a from secret")]))
                .await;
            assert!(text(&told[0]).starts_with("Statement: "), "{told}");
        }
    }
    assert_eq!(server.app.data.tags().await, ["kept", "kept"]);
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r11_temporary_tables_are_for_a_pinned_session);

/// However a transaction ends, its connection comes back without a transaction and without locks.
async fn r11_a_connection_comes_back_without_a_transaction(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for (path, steps) in [
        ("run/atomic", json!([insert("a")])),
        ("run/atomic", json!([insert("b"), end("panic")])),
        ("limited", json!([insert("b"), end("loop")])),
        ("brief", json!([insert("b"), nap(60_000)])),
    ] {
        server.steps(&format!("/{mode}/{path}"), steps).await;
        server.assert_baseline().await;
        server.app.data.assert_quiet().await;
        // The next request sees only what was committed.
        assert_eq!(
            server
                .told(
                    &format!("/{mode}/run"),
                    json!([query("select count(*) from rows")])
                )
                .await,
            json!([[[1]]])
        );
    }
}
both_modes_and_databases!(r11_a_connection_comes_back_without_a_transaction);

/// A pinned session cannot take more of SQLite's memory than other sessions, and its temporary tables may take only
/// `transaction_max_bytes` of the disk. So it cannot use up what all sessions share.
async fn r11_a_pinned_session_has_bounded_temporary_tables(mode: Mode) {
    let toml = "databases.default.transaction_max_bytes = 8388608";
    let server = App::rules(Kind::Sqlite, toml).await.serve().await;
    let fill = "insert into mine with recursive c (n) as (select 1 union all select n + 1 from c where n < 100) select randomblob(300000) from c";
    let steps = json!([pinned(json!([
        execute("pragma temp_store = memory"),
        execute("pragma cache_size = -1000000"),
        execute("pragma temp.cache_size = 1000000"),
        execute("pragma temp.max_page_count = 1000000000"),
        execute("create temp table mine (a)"),
        execute(fill),
        execute("insert into mine values ('small')"),
        query("select count(*) from mine"),
    ]))]);
    for _ in 0..2 {
        let told = server.told(&format!("/{mode}/run"), steps.clone()).await;
        let told = &told[0];
        for refused in 0..4 {
            assert!(text(&told[refused]).starts_with("Denied: "), "{told}");
        }
        assert_eq!(told[4], json!(0), "{told}");
        let failed = text(&told[5]);
        assert!(
            failed.starts_with("TooLarge: ") && failed.contains("`transaction_max_bytes`"),
            "{told}"
        );
        assert_eq!((&told[6], &told[7]), (&json!(1), &json!([[1]])), "{told}");
    }
    server.assert_baseline().await;
}
both_modes!(r11_a_pinned_session_has_bounded_temporary_tables);
