//! PostgreSQL: types, errors, limits, connections and TLS.

use serde_json::{Value, json};

use crate::harness::postgres::Postgres;
use crate::harness::steps::{execute_with, insert, must, query, query_with};
use crate::harness::{App, Kind, Mode, eventually};

/// Types, each with a parameter for it and the value that is read back.
fn mapping() -> Vec<(&'static str, Value, Value)> {
    let same = |ty, value: Value| (ty, value.clone(), value);
    vec![
        same("smallint", json!(-32768)),
        same("integer", json!(2_147_483_647)),
        same("bigint", json!(i64::MIN)),
        same("real", json!(0.5)),
        same("double precision", json!(0.1)),
        ("double precision", json!(7), json!(7.0)),
        same("numeric", json!("123456789012345678901234567890.1234500")),
        ("numeric", json!(7), json!("7")),
        ("numeric", json!("-0.001"), json!("-0.001")),
        same("text", json!("grüße, \0\u{1}日本".replace('\0', ""))),
        same("varchar(5)", json!("abc")),
        ("char(3)", json!("a"), json!("a  ")),
        ("boolean", json!(true), json!(1)),
        ("boolean", json!(0), json!(0)),
        same("bytea", json!([0, 255, 10])),
        same("uuid", json!("0191a0f2-7c3e-7f00-8000-0123456789ab")),
        (
            "uuid",
            json!("0191A0F27C3E7F0080000123456789AB"),
            json!("0191a0f2-7c3e-7f00-8000-0123456789ab"),
        ),
        same("date", json!("2026-11-21")),
        same("time", json!("04:05:06.789")),
        same("timestamp", json!("2026-11-21T04:05:06.789012")),
        same("timestamptz", json!("2026-11-21T04:05:06.789012Z")),
        (
            "timestamptz",
            json!("2026-11-21T04:05:06+02:00"),
            json!("2026-11-21T02:05:06Z"),
        ),
        (
            "json",
            json!("{\"a\": [1, null]}"),
            json!("{\"a\": [1, null]}"),
        ),
        (
            "jsonb",
            json!("{\"a\":[1,null]}"),
            json!("{\"a\": [1, null]}"),
        ),
        same("integer[]", json!("[1,null,3]")),
        same("text[]", json!("[\"a\",\"b \\\"c\\\"\",null]")),
        same("boolean[]", json!("[true,false]")),
        same(
            "uuid[]",
            json!("[\"0191a0f2-7c3e-7f00-8000-0123456789ab\"]"),
        ),
        same("numeric[]", json!("[\"1.50\"]")),
        same("date[]", json!("[\"2026-11-21\"]")),
        same("integer[]", json!("[[1,2],[3,4]]")),
        same("integer[]", json!("[]")),
    ]
}

async fn values_of_every_type_go_there_and_back(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    for (ty, given, read) in mapping() {
        for path in ["run", "run/atomic"] {
            let sql = format!("select $1::{ty}");
            let told = server
                .told(
                    &format!("/{mode}/{path}"),
                    json!([query_with(&sql, json!([given]))]),
                )
                .await;
            assert_eq!(told, json!([[[read]]]), "{ty}");
            let told = server
                .told(
                    &format!("/{mode}/{path}"),
                    json!([query_with(&sql, json!([null]))]),
                )
                .await;
            assert_eq!(told, json!([[[null]]]), "{ty}");
        }
    }
    server.assert_baseline().await;
}
both_modes!(values_of_every_type_go_there_and_back);

/// Parameters that do not fit and types that have no mapping are refused, with a sentence that says why.
async fn what_does_not_fit_is_said(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    for (sql, given, part) in [
        (
            "select $1::uuid",
            json!("abc"),
            "parameter 1 is the text `abc`",
        ),
        ("select $1::smallint", json!(40_000), "40000"),
        (
            "select $1::integer[]",
            json!(1),
            "parameter 1 is the integer 1",
        ),
        ("select $1::bytea", json!(1), "parameter 1 is the integer 1"),
        ("select $1::point", json!("(1,2)"), "cast it to text"),
        ("select $1::integer, $2::integer", json!(1), "2"),
    ] {
        let told = server
            .told(
                &format!("/{mode}/run"),
                json!([query_with(sql, json!([given]))]),
            )
            .await;
        let text = told[0].as_str().unwrap_or_default();
        let kind = if sql.contains("point") || sql.contains("$2") {
            "Statement: "
        } else {
            "DataType: "
        };
        assert!(
            text.starts_with(kind) && text.contains(part),
            "{sql}: {told}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(what_does_not_fit_is_said);

/// The kinds of errors that views can tell apart.
async fn errors_have_their_kinds(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    for (sql, kind, part) in [
        ("selec 1", "Statement", "syntax"),
        ("select * from nowhere", "Statement", "nowhere"),
        ("select 1/0", "Statement", "zero"),
        (
            "insert into rows (tag) values (null)",
            "NotNull",
            "not-null",
        ),
        (
            "insert into children (parent) values (7)",
            "ForeignKey",
            "foreign key",
        ),
        ("select 1; select 2", "Statement", "one statement"),
    ] {
        let told = server
            .told(&format!("/{mode}/run"), json!([query(sql)]))
            .await;
        let text = told[0].as_str().unwrap_or_default();
        assert!(
            text.starts_with(&format!("{kind}: ")) && text.contains(part),
            "{sql}: {told}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(errors_have_their_kinds);

/// `?` is an operator of PostgreSQL. Where it seems to be meant as a parameter, the error says to write `$1`.
async fn a_question_mark_is_no_parameter(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    for sql in [
        "select ?",
        "insert into rows (tag) values (?)",
        "select * from rows where tag = ? and id > 1",
        "select * from rows where id=?",
        "select * from rows limit ?",
        "select ?1",
    ] {
        let told = server
            .told(
                &format!("/{mode}/run"),
                json!([query_with(sql, json!(["a"]))]),
            )
            .await;
        assert!(
            told[0]
                .as_str()
                .is_some_and(|told| told.contains("write parameters as `$1`")),
            "{sql}: {told}"
        );
    }
    let told = server
        .told(
            &format!("/{mode}/run"),
            json!([query("select '{\"a\":1}'::jsonb ? 'a'")]),
        )
        .await;
    assert_eq!(told, json!([[[1]]]));
    server.assert_baseline().await;
}
both_modes!(a_question_mark_is_no_parameter);

/// Another client changes definitions while the app is served: statements are prepared anew without a failure.
async fn a_changed_definition_is_noticed_without_a_failure(mode: Mode) {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    let data = &server.app.data;
    data.execute("create type mood as enum ('a', 'b'); create table shapes (a integer, m mood); insert into shapes values (1, 'a')").await;
    let reads = query("select * from shapes");
    let writes = execute_with("update shapes set m = $1", json!(["a"]));
    let open = json!({"do": "open", "sql": "select * from shapes", "rows": 10});
    let paths = ["run", "run/atomic", "retried"].map(|path| format!("/{mode}/{path}"));
    // In a transaction, only the first statement can be run again without a conflict, so the transaction has only one
    // statement.
    let steps = |path: &str| match path.rsplit('/').next() {
        Some("run") => json!([reads, writes, open]),
        Some("atomic") => json!([reads]),
        _ => json!([writes]),
    };
    for path in &paths {
        server.many_steps(12, path, steps(path)).await;
    }
    let changes = [
        "alter table shapes add column b integer",
        "alter table shapes alter column a type text",
        "alter table shapes drop column m; drop type mood; create type mood as enum ('a', 'c'); alter table shapes add column m mood; update shapes set m = 'a'",
    ];
    for change in changes {
        for path in &paths {
            data.execute(change).await;
            let replies = server.many_steps(12, path, steps(path)).await;
            assert!(
                replies
                    .iter()
                    .all(|reply| reply.status == 200 && !reply.text().contains(": ")),
                "{change} {path}: {replies:#?}"
            );
            let undone = "alter table shapes drop column if exists b; alter table shapes alter column a type integer using 1";
            data.execute(undone).await;
            server.many_steps(12, path, steps(path)).await;
        }
    }
    server.assert_baseline().await;
}
both_modes!(a_changed_definition_is_noticed_without_a_failure);

/// When a changed definition is noticed after another statement of the same transaction, that is a conflict: with
/// `retries`, the request is run again and succeeds.
async fn r9_a_changed_definition_within_a_transaction_is_a_conflict(mode: Mode) {
    let server = App::rules(Kind::Postgres, "databases.default.connections = 4")
        .await
        .serve()
        .await;
    let data = &server.app.data;
    data.execute("create table shapes (a integer)").await;
    let steps = json!([query("select 1"), must(query("select * from shapes"))]);
    let (plain, retried) = (format!("/{mode}/run/atomic"), format!("/{mode}/retried"));
    server.many_steps(12, &plain, steps.clone()).await;
    data.execute("alter table shapes add column b integer")
        .await;
    let replies = server.many_steps(12, &retried, steps.clone()).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{replies:#?}"
    );
    // Without `retries`, at most one request fails, not one for each connection.
    data.execute("alter table shapes add column c integer")
        .await;
    let mut failed = 0;
    for _ in 0..8 {
        let reply = server.steps(&plain, steps.clone()).await;
        failed += usize::from(reply.status != 200);
    }
    assert!(failed <= 1, "{failed}");
    server.assert_baseline().await;
}
both_modes!(r9_a_changed_definition_within_a_transaction_is_a_conflict);

/// Single values and whole results have limits.
async fn large_values_and_results_are_refused(mode: Mode) {
    let toml = "limits.rows_max_bytes = 100000\ndatabases.default.value_max_bytes = 65536";
    let server = App::rules(Kind::Postgres, toml).await.serve().await;
    for (sql, limit) in [
        ("select repeat('x', 70000)", "value_max_bytes"),
        (
            "select repeat('x', 1000) from generate_series(1, 200)",
            "rows_max_bytes",
        ),
    ] {
        let told = server
            .told(&format!("/{mode}/run"), json!([query(sql)]))
            .await;
        let text = told[0].as_str().unwrap_or_default();
        assert!(
            text.starts_with("TooLarge: ") && text.contains(limit),
            "{sql}: {told}"
        );
    }
    let given = execute_with(
        "insert into rows (tag) values ($1)",
        json!(["x".repeat(70_000)]),
    );
    let told = server.told(&format!("/{mode}/run"), json!([given])).await;
    assert!(
        told[0]
            .as_str()
            .is_some_and(|told| told.starts_with("TooLarge: ")),
        "{told}"
    );
    // A result that is read in pieces has no limit as a whole.
    let open = json!([{"do": "open", "sql": "select repeat('x', 1000) from generate_series(1, 20000)", "rows": 100_000}]);
    assert_eq!(
        server.told(&format!("/{mode}/run"), open).await,
        json!([20_000])
    );
    // A result that is dropped half-way gives its connection back.
    let open = json!([{"do": "open", "sql": "select repeat('x', 1000) from generate_series(1, 20000)", "rows": 10}]);
    assert_eq!(
        server.told(&format!("/{mode}/run"), open).await,
        json!([10])
    );
    server.assert_baseline().await;
    server.app.data.assert_quiet().await;
}
both_modes!(large_values_and_results_are_refused);

/// Transactions wait for a connection up to `acquire_timeout_ms`, and then get 503.
async fn r4_statements_wait_for_a_connection_until_their_deadline(mode: Mode) {
    let toml = "databases.default.connections = 2\ndatabases.default.acquire_timeout_ms = 1000";
    let server = App::rules(Kind::Postgres, toml).await.serve().await;
    let quick = server
        .many_steps(
            50,
            &format!("/{mode}/run/atomic"),
            json!([must(insert("a"))]),
        )
        .await;
    assert!(quick.iter().all(|reply| reply.status == 200), "{quick:#?}");
    let mark = server.log.mark();
    let slow = server
        .many_steps(
            6,
            &format!("/{mode}/run/atomic"),
            json!([must(query("select pg_sleep(3)::text"))]),
        )
        .await;
    let mut statuses: Vec<u16> = slow.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 503, 503, 503, 503]);
    let lines = server.log.requests(mark, 6).await;
    assert!(lines[0].text("why").contains("1000 ms"), "{lines:#?}");
    server.assert_baseline().await;
    assert!(server.app.data.postgres().expect("it is").sessions().await <= 2);
}
both_modes!(r4_statements_wait_for_a_connection_until_their_deadline);

/// When a request ends, its statement ends on the database server, too.
async fn r13_r15_a_statement_ends_with_its_request(mode: Mode) {
    let server = App::rules(
        Kind::Postgres,
        "limits = { timeout_ms = 400, cpu_ms = 400 }",
    )
    .await
    .serve()
    .await;
    let endless = json!([query("select pg_sleep(60)::text")]);
    let running = "select count(*) from pg_stat_activity where datname = current_database() and query like '%pg_sleep(60)%' and state = 'active' and pid <> pg_backend_pid()";
    for path in ["run", "run/atomic"] {
        let path = format!("/{mode}/{path}");
        assert_eq!(server.steps(&path, endless.clone()).await.status, 504);
        server.assert_baseline().await;
        assert_eq!(server.app.data.count(running).await, 0);
        let left = server.request("POST", &path).body(endless.to_string());
        assert!(
            tokio::time::timeout(std::time::Duration::from_millis(150), left.send())
                .await
                .is_err()
        );
        server.assert_baseline().await;
        assert_eq!(server.app.data.count(running).await, 0);
    }
    server.app.data.assert_quiet().await;
}
both_modes!(r13_r15_a_statement_ends_with_its_request);

/// With TLS, the certificate is checked against the host's name.
async fn connections_can_be_encrypted(mode: Mode) {
    let postgres = Postgres::shared();
    let certificate = postgres.certificate();
    let database = postgres.database().await;
    let url = format!("{}?sslmode=require", database.url_by_name());
    let toml = format!(
        "databases.default = {{ postgres = {url:?}, ca_file = {:?} }}",
        certificate.display().to_string()
    );
    let server = App::rules_on(database, &toml).serve().await;
    let encrypted = query("select ssl from pg_stat_ssl where pid = pg_backend_pid()");
    assert_eq!(
        server
            .told(&format!("/{mode}/run"), json!([encrypted]))
            .await,
        json!([[[1]]])
    );
    server.assert_baseline().await;
}
both_modes!(connections_can_be_encrypted);

/// A certificate that is not trusted, or is for another host, is refused before anything is sent.
#[tokio::test]
async fn a_server_that_cannot_be_trusted_is_refused() {
    let postgres = Postgres::shared();
    for (by_name, trusted) in [(true, false), (false, true)] {
        let database = postgres.database().await;
        let url = if by_name {
            database.url_by_name()
        } else {
            database.url()
        };
        let mut toml = format!("databases.default.postgres = \"{url}?sslmode=require\"\n");
        if trusted {
            toml += &format!(
                "databases.default.ca_file = {:?}\n",
                postgres.certificate().display().to_string()
            );
        }
        let app = App::rules_on(database, &toml);
        let ran = app.run("migrate");
        assert!(ran.error().contains("certificate"), "{ran:?}");
    }
}

/// If the server cannot be reached, the host does not start, and names the server.
#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let postgres = Postgres::shared();
    let toml = "databases.default.postgres = \"postgres://amphi@127.0.0.1:1/nothing\"";
    let app = App::rules_on(postgres.database().await, toml);
    let ran = app.run("serve");
    assert!(ran.error().contains("127.0.0.1:1"), "{ran:?}");
}

/// Idle connections that the server has closed are noticed before a statement is sent on them.
#[tokio::test]
async fn connections_that_the_server_has_closed_are_replaced() {
    let server = App::rules(Kind::Postgres, "").await.serve().await;
    server
        .many_steps(8, "/async/run", json!([query("select 1")]))
        .await;
    let database = server.app.data.postgres().expect("it is");
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
    assert!(database.count(kill).await > 0);
    eventually("all sessions to be gone", async || {
        match database.sessions().await {
            0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
    for mode in [Mode::Sync, Mode::Async] {
        let replies = server
            .many_steps(
                8,
                &format!("/{mode}/run/atomic"),
                json!([must(insert("a"))]),
            )
            .await;
        assert!(
            replies.iter().all(|reply| reply.status == 200),
            "{replies:#?}"
        );
    }
    server.assert_baseline().await;
}

/// `setseed` has no effect on the random numbers of the connection's next borrower.
#[tokio::test]
async fn r11_a_seed_is_gone_with_its_borrower() {
    let server = App::rules(Kind::Postgres, "databases.default.connections = 1")
        .await
        .serve()
        .await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let seeded = json!([query("select setseed(0.5) is null")]);
        server.told("/sync/run", seeded).await;
        let told = server
            .told("/sync/run", json!([query("select random()::text")]))
            .await;
        assert!(told[0][0][0].is_string(), "{told}");
        assert!(!seen.contains(&told), "{told} again");
        seen.push(told);
    }
}
