//! Transactions: which views have one, which statements are in it, and how it ends.

use futures::StreamExt as _;
use futures::stream;
use reqwest::StatusCode;

use crate::harness::{App, Mode, Reply, Server, eventually};

/// Sends POST to many paths, 64 requests at a time.
async fn post_all(server: &Server, paths: impl Iterator<Item = String>) -> Vec<u16> {
    let requests = paths.map(|path| async move { server.post(&path, "").await.status });
    stream::iter(requests).buffer_unordered(64).collect().await
}

/// Runs a statement in a view, and returns the view's answer.
async fn sql(server: &Server, mode: Mode, with: &str, statement: &str) -> String {
    server
        .post(&format!("/{mode}/sql{with}"), statement.to_owned())
        .await
        .ok()
        .to_owned()
}

async fn r7_ten_thousand_inserts_by_64_clients_are_ten_thousand_rows(mode: Mode) {
    let server = App::new("[databases.default]\nacquire_timeout_ms = 20000")
        .serve()
        .await;
    let statuses = post_all(
        &server,
        (0..10_000).map(|number| format!("/{mode}/rows/{number}")),
    )
    .await;
    assert!(
        statuses.iter().all(|status| *status == 201),
        "not all are 201: {:?}",
        tally(&statuses)
    );
    assert_eq!(server.rows(), 10_000);
    assert_eq!(server.count("select count(distinct tag) from rows"), 10_000);
    server.assert_baseline().await;
}
both_modes!(r7_ten_thousand_inserts_by_64_clients_are_ten_thousand_rows);

async fn r9_every_third_one_traps_and_exactly_the_others_are_kept(mode: Mode) {
    let server = App::new("[databases.default]\nacquire_timeout_ms = 20000")
        .serve()
        .await;
    let statuses = post_all(
        &server,
        (0..10_000).map(|number| format!("/{mode}/numbers/{number}")),
    )
    .await;
    assert_eq!(tally(&statuses), [(201, 6_666), (500, 3_334)]);
    assert_eq!(server.rows(), 6_666);
    assert_eq!(
        server.count("select count(*) from rows where cast(tag as integer) % 3 = 0"),
        0
    );
    assert_eq!(server.count("select count(distinct tag) from rows"), 6_666);
    server.assert_baseline().await;
}
both_modes!(r9_every_third_one_traps_and_exactly_the_others_are_kept);

async fn r8_nested_atomic_blocks_are_savepoints(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    assert_eq!(
        server.post(&format!("/{mode}/savepoints"), "").await.ok(),
        "true true"
    );
    assert_eq!(server.tags(), ["outer", "kept"]);
    assert_eq!(
        server.log.requests(mark, 1).await[0].text("transaction"),
        "committed"
    );
    server.assert_baseline().await;
}
both_modes!(r8_nested_atomic_blocks_are_savepoints);

/// In a view that is not atomic, an atomic block is a transaction of its own.
async fn r7_an_atomic_block_of_a_view_that_is_not_atomic_is_a_transaction(mode: Mode) {
    let server = App::new("").serve().await;
    assert_eq!(
        sql(
            &server,
            mode,
            "?with=begin",
            "insert into rows (tag) values ('kept')"
        )
        .await,
        "1"
    );
    let failed = sql(
        &server,
        mode,
        "?with=begin",
        "insert into rows (tag) values (null)",
    )
    .await;
    assert!(failed.starts_with("NotNull: "), "{failed}");
    assert_eq!(server.tags(), ["kept"]);
    server.assert_baseline().await;
}
both_modes!(r7_an_atomic_block_of_a_view_that_is_not_atomic_is_a_transaction);

/// `[app] atomic` decides for views that do not say whether they are atomic.
async fn r7_the_configuration_decides_which_views_are_atomic(mode: Mode) {
    for (atomic, kept) in [("\"unsafe-methods\"", 0), ("true", 0), ("false", 1)] {
        let server = App::new(&format!("app.atomic = {atomic}")).serve().await;
        assert_eq!(
            server.post(&format!("/{mode}/fail/error"), "").await.status,
            500
        );
        assert_eq!(server.rows(), kept, "atomic = {atomic}");
        let server = App::new(&format!("modules.behaviour.atomic = {atomic}"))
            .serve()
            .await;
        assert_eq!(
            server.post(&format!("/{mode}/fail/error"), "").await.status,
            500
        );
        assert_eq!(server.rows(), kept, "atomic = {atomic} for the module");
    }
}
both_modes!(r7_the_configuration_decides_which_views_are_atomic);

/// A commit that fails is an error for the client.
async fn r9_a_success_whose_commit_fails_is_an_error(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    let orphan = "insert into children (parent) values (7)";
    let reply = server.post(&format!("/{mode}/sql/atomic"), orphan).await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].text("transaction"), "rolled back");
    assert!(
        lines[0].text("why").contains("could not be committed"),
        "{lines:#?}"
    );
    assert!(lines[0].text("why").contains("FOREIGN KEY"), "{lines:#?}");
    assert_eq!(
        (server.rows(), server.count("select count(*) from children")),
        (0, 0)
    );
    server.assert_baseline().await;
}
both_modes!(r9_a_success_whose_commit_fails_is_an_error);

/// After some errors SQLite itself rolls back the whole transaction. A view that ignores the error must not succeed.
async fn r9_a_view_that_ignores_a_lost_transaction_does_not_succeed(mode: Mode) {
    let server = App::new("").serve().await;
    server
        .database()
        .execute("insert into names values ('taken')", ())
        .expect("the name is free");
    let mark = server.log.mark();
    let reply = server
        .post(
            &format!("/{mode}/sql/atomic"),
            "insert or rollback into names values ('taken')",
        )
        .await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].text("transaction"), "rolled back");
    assert!(lines[0].text("why").contains("rolled back"), "{lines:#?}");
    assert_eq!(server.rows(), 0);
    server.assert_baseline().await;
}
both_modes!(r9_a_view_that_ignores_a_lost_transaction_does_not_succeed);

/// The failure of a statement in a savepoint can be ignored.
async fn r9_a_failed_statement_in_a_savepoint_does_not_end_the_transaction(mode: Mode) {
    let server = App::new("").serve().await;
    server
        .database()
        .execute("insert into names values ('taken')", ())
        .expect("the name is free");
    let reply = server
        .post(
            &format!("/{mode}/sql/atomic"),
            "insert into names values ('taken')",
        )
        .await;
    assert!(reply.ok().starts_with("Unique: "), "{}", reply.text());
    assert_eq!(server.tags(), ["before"]);
}
both_modes!(r9_a_failed_statement_in_a_savepoint_does_not_end_the_transaction);

/// Statements that change one connection of the pool, or that begin and end transactions, are refused with an
/// explanation.
async fn r11_statements_that_change_the_connection_are_refused(mode: Mode) {
    let app = App::new("");
    let outside = app.path("outside.db");
    let outside = outside.display().to_string();
    let server = app.serve().await;
    let refused = [
        "pragma foreign_keys = off",
        "PRAGMA journal_mode = delete",
        "/* a comment */ pragma busy_timeout = 1",
        "pragma writable_schema = 1",
        "pragma main.synchronous = off",
        "pragma temp_store_directory = '/tmp'",
        &format!("attach database '{outside}' as other"),
        "attach ':memory:' as other",
        "detach main",
        "begin",
        "BEGIN IMMEDIATE",
        // The texts that the host itself sends to SQLite.
        "begin immediate",
        "savepoint level_1",
        "release level_1",
        "rollback to level_1",
        "commit",
        "end transaction",
        "rollback",
        "savepoint mine",
        "release mine",
        "rollback to mine",
        "create temp table secret (a)",
        "create temporary view secret as select 1",
        "create temp trigger secret after insert on rows begin select 1; end",
        "create table temp.secret (a)",
        &format!("vacuum into '{outside}'"),
        "vacuum",
    ];
    for statement in refused {
        for with in [
            "",
            "?with=query",
            "?with=rows",
            "?with=begin",
            "/atomic",
            "/atomic?with=query",
        ] {
            let said = sql(&server, mode, with, statement).await;
            // Within a transaction, SQLite itself refuses `vacuum`.
            if statement.starts_with("vacuum") && said.contains("from within a transaction") {
                continue;
            }
            assert!(
                said.starts_with("Denied: "),
                "{statement} with {with:?}: {said}"
            );
            assert!(
                said.contains("refused"),
                "{statement} with {with:?}: {said}"
            );
        }
    }
    assert!(
        !std::path::Path::new(&outside).exists(),
        "a statement reached another file"
    );
    server
        .database()
        .execute("delete from rows", ())
        .expect("nothing holds the database");
    // The connections are unchanged, and pragmas that only read are allowed.
    assert_eq!(
        sql(
            &server,
            mode,
            "?with=query",
            "select name from pragma_table_info('rows')"
        )
        .await,
        "2"
    );
    let orphan = sql(
        &server,
        mode,
        "",
        "insert into children (parent) values (7)",
    )
    .await;
    assert!(orphan.contains("FOREIGN KEY"), "{orphan}");
    assert_eq!(
        sql(&server, mode, "", "insert into rows (tag) values ('well')").await,
        "1"
    );
    server.assert_baseline().await;
}
both_modes!(r11_statements_that_change_the_connection_are_refused);

async fn wrong_statements_are_told_apart(mode: Mode) {
    let server = App::new("").serve().await;
    for (statement, kind, part) in [
        ("selec 1", "Statement", "syntax error"),
        (
            "select * from nowhere",
            "Statement",
            "no such table: nowhere",
        ),
        (
            "insert into rows (tag) values (?)",
            "Statement",
            "1 parameters, and 0 were given",
        ),
        (
            "insert into rows (tag) values (null)",
            "NotNull",
            "NOT NULL",
        ),
        (
            "insert into rows (tag) values ('a'); delete from rows",
            "Statement",
            "one statement",
        ),
        (
            "select load_extension('/tmp/x.so')",
            "Denied",
            "`load_extension` was refused",
        ),
    ] {
        for with in ["", "?with=query", "/atomic"] {
            let said = sql(&server, mode, with, statement).await;
            assert!(
                said.starts_with(kind) && said.contains(part),
                "{statement} with {with:?}: {said}"
            );
        }
    }
    let other = sql(&server, mode, "?with=other", "select 1").await;
    assert!(
        other.starts_with("Denied: module `behaviour` is not granted the database `other`"),
        "{other}"
    );
    assert!(other.contains("granted: default"), "{other}");
    server.assert_baseline().await;
}
both_modes!(wrong_statements_are_told_apart);

/// A transaction is on one database: statements on another database are refused.
async fn r8_a_transaction_does_not_reach_over_two_databases(mode: Mode) {
    let toml = r#"
            databases.second = { sqlite = "data/second.db" }
            modules.behaviour.databases = ["default", "second"]
        "#;
    let server = App::new(toml).serve().await;
    assert_eq!(
        sql(&server, mode, "?with=second", "create table things (a)").await,
        "0"
    );
    let said = sql(
        &server,
        mode,
        "/atomic?with=second",
        "insert into things values (1)",
    )
    .await;
    assert!(
        said.starts_with("Denied: ") && said.contains("`default`") && said.contains("`second`"),
        "{said}"
    );
    server.assert_baseline().await;
}
both_modes!(r8_a_transaction_does_not_reach_over_two_databases);

/// Results beyond `rows_max_bytes` are refused, unless they are read in pieces.
async fn large_results_are_read_in_pieces(mode: Mode) {
    let server = App::new("[limits]\nrows_max_bytes = 100000\ncpu_ms = 10000")
        .serve()
        .await;
    fill(&server, 100_000);
    let said = sql(&server, mode, "?with=query", "select tag from rows").await;
    assert!(
        said.starts_with("TooLarge: ") && said.contains("`rows_max_bytes`"),
        "{said}"
    );
    let sum: i64 = (1..=100_000).sum();
    assert_eq!(
        server.get(&format!("/{mode}/export")).await.ok(),
        format!("100000 {sum}")
    );
    assert_eq!(
        sql(&server, mode, "?with=rows", "select tag from rows").await,
        "100000"
    );
    server.assert_baseline().await;
}
both_modes!(large_results_are_read_in_pieces);

/// A statement that never ends is interrupted when its request ends.
async fn r15_a_long_statement_ends_with_its_request(mode: Mode) {
    let server = App::new("[limits]\ncpu_ms = 300\ntimeout_ms = 300")
        .serve()
        .await;
    let endless =
        "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n";
    for path in [
        "sql?with=query",
        "sql",
        "sql/atomic?with=query",
        "sql?with=rows",
    ] {
        let reply = server.post(&format!("/{mode}/{path}"), endless).await;
        assert_eq!(reply.status, 504, "{path}: {}", reply.text());
    }
    server.assert_baseline().await;
    assert_eq!(server.rows(), 0);
    assert_eq!(
        server.post(&format!("/{mode}/rows/after"), "").await.status,
        201
    );
}
both_modes!(r15_a_long_statement_ends_with_its_request);

/// The CPU limit ends a view while it reads a large result: the connection is given back.
async fn r13_a_result_that_is_not_read_to_its_end_is_let_go(mode: Mode) {
    let server = App::new("[limits]\ncpu_ms = 100\n[databases.default]\nreaders = 1")
        .serve()
        .await;
    fill(&server, 300_000);
    assert_eq!(server.get(&format!("/{mode}/export")).await.status, 504);
    server.assert_baseline().await;
    assert_eq!(sql(&server, mode, "?with=query", "select 'a'").await, "1");
}
both_modes!(r13_a_result_that_is_not_read_to_its_end_is_let_go);

fn fill(server: &Server, count: u32) {
    let sql = "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) insert into rows (id, tag) select i, 'row ' || i from n";
    server
        .database()
        .execute(sql, (count,))
        .expect("there is room");
}

fn tally(statuses: &[u16]) -> Vec<(u16, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    for status in statuses {
        *counts.entry(*status).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}

/// Statements that are joined in an atomic view run one after the other, in the order in which they were issued.
#[tokio::test]
async fn r8_joined_statements_of_an_atomic_view_are_serialised() {
    let server = App::new("").serve().await;
    let reply = server.post("/async/joined-atomic/ok", "").await;
    assert_eq!(reply.ok(), "done");
    assert_eq!(server.rows(), 20);
    server
        .database()
        .execute("delete from rows", ())
        .expect("nothing holds the database");
    assert_eq!(
        server.post("/async/joined-atomic/panic", "").await.status,
        500
    );
    assert_eq!(
        server
            .post("/async/joined-atomic/status-500", "")
            .await
            .status,
        500
    );
    assert_eq!(server.rows(), 0, "none of them escapes");
    server.assert_baseline().await;
}

/// Atomic blocks that overlap cannot both be savepoints. Whatever becomes of them, the rows that are kept are those of
/// the blocks that were reported as successful.
#[tokio::test]
async fn r8_atomic_blocks_that_overlap_are_kept_whole_or_not_at_all() {
    let server = App::new("").serve().await;
    for _ in 0..20 {
        let reply = server.post("/async/interleaved", "").await;
        let tags = server.tags();
        match reply.status {
            200 => assert_eq!(tags.len(), 5, "{tags:?}"),
            500 => assert!(tags.is_empty(), "{tags:?}"),
            other => panic!("{other}: {}", reply.text()),
        }
        server
            .database()
            .execute("delete from rows", ())
            .expect("nothing holds the database");

        let reply = server.post("/async/interleaved-and-ignored", "").await;
        let tags = server.tags();
        match reply.status {
            200 => {
                let told: Vec<bool> = reply.text().split(' ').map(|word| word == "true").collect();
                let kept = |block: &str| tags.iter().filter(|tag| tag.starts_with(block)).count();
                assert_eq!(
                    (kept("a"), kept("b"), kept("c")),
                    (
                        2 * usize::from(told[0]),
                        2 * usize::from(told[1]),
                        usize::from(told[2])
                    ),
                    "{} {tags:?}",
                    reply.text()
                );
            }
            500 => assert!(tags.is_empty(), "{tags:?}"),
            other => panic!("{other}: {}", reply.text()),
        }
        server
            .database()
            .execute("delete from rows", ())
            .expect("nothing holds the database");
    }
    server.assert_baseline().await;
}

/// Outside a transaction, joined reads run at the same time, each on a connection of its own.
#[tokio::test]
async fn r12_joined_reads_outside_of_a_transaction_overlap() {
    let server = App::new("[limits]\ncpu_ms = 10000").serve().await;
    let slow = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000000) select max(i) from n";
    let path = server.url("/async/joined/4");
    let joined = tokio::spawn(Reply::of(server.client.post(path).body(slow)));
    eventually("all four to run at once", async || {
        let connections = server.metrics().await.get("amphi_database_connections");
        if connections == 4.0 {
            Ok(())
        } else {
            Err(connections)
        }
    })
    .await;
    assert_eq!(
        joined
            .await
            .expect("it does not panic")
            .expect(StatusCode::OK),
        "12000000"
    );
    server.assert_baseline().await;
}

/// There are more joined reads than connections: the other reads wait.
#[tokio::test]
async fn r12_more_joined_reads_than_connections_wait_for_one() {
    let server = App::new("[databases.default]\nreaders = 2").serve().await;
    assert_eq!(
        server.post("/async/joined/50", "select 2").await.ok(),
        "100"
    );
    server.assert_baseline().await;
}

/// When the database stays locked for too long, the request gets 503.
#[tokio::test]
async fn r9_a_database_that_is_busy_for_too_long_is_a_503() {
    let toml = "[databases.default]\nacquire_timeout_ms = 200\nbusy_timeout_ms = 200";
    let server = App::new(toml).serve().await;
    let other = server.database();
    other
        .execute_batch("begin immediate")
        .expect("nothing holds the database");
    for mode in [Mode::Sync, Mode::Async] {
        let reply = server.post(&format!("/{mode}/rows/late"), "").await;
        assert_eq!(reply.status, 503, "{}", reply.text());
        // Readers see the last commit, and do not wait for the lock.
        assert_eq!(server.get(&format!("/{mode}/export")).await.ok(), "0 0");
    }
    other.execute_batch("rollback").expect("it has begun");
    assert_eq!(server.post("/sync/rows/now", "").await.status, 201);
    server.assert_baseline().await;
}
