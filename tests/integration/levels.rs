//! Statements and levels (savepoints) of a transaction: their order, and what a failed statement does.

use serde_json::{Value, json};

use crate::harness::steps::{
    atomic, broken, execute, execute_with, insert, join, must, query, query_with,
};
use crate::harness::{App, Kind, Mode, Reply};

/// Whether a step told that it failed with this kind of error.
fn failed(told: &Value, kind: &str) -> bool {
    told.as_str()
        .is_some_and(|told| told.starts_with(&format!("{kind}: ")))
}

/// When a constraint fails, the view is told the constraint's kind. If the view passes the error on, the client gets
/// the status for that kind.
async fn constraints_are_told_apart(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let strict = if kind == Kind::Sqlite { "strict" } else { "" };
    server.app.data.execute(&format!(
            "create table things (id integer primary key, name text not null unique, age integer, parent integer references parents (id), constraint of_age check (age > 0)) {strict};
            insert into things values (1, 'a', 1, null)"
        )).await;
    let value = json!("x");
    for (sql, params, failed, status) in [
        (
            "insert into things values (2, 'a', 1, null)",
            json!([]),
            "Unique",
            409,
        ),
        (
            "insert into things values (1, 'b', 1, null)",
            json!([]),
            "Unique",
            409,
        ),
        (
            "insert into things values (2, 'b', 1, 7)",
            json!([]),
            "ForeignKey",
            409,
        ),
        (
            "insert into things values (2, null, 1, null)",
            json!([]),
            "NotNull",
            400,
        ),
        (
            "insert into things values (2, 'b', 0, null)",
            json!([]),
            "Check",
            400,
        ),
        (
            "insert into things values (2, 'b', $1, null)",
            json!([value]),
            "DataType",
            400,
        ),
    ] {
        let step = execute_with(sql, params);
        let told = server.told(&format!("/{mode}/run"), json!([step])).await;
        assert!(
            told[0]
                .as_str()
                .is_some_and(|text| text.starts_with(&format!("{failed}: "))),
            "{sql}: {told}"
        );
        for path in ["run", "run/atomic"] {
            let mark = server.log.mark();
            let reply = server
                .steps(&format!("/{mode}/{path}"), json!([must(step.clone())]))
                .await;
            assert_eq!(reply.status, status, "{sql}: {}", reply.text());
            let lines = server.log.requests(mark, 1).await;
            let why = lines[0].text("why");
            assert!(why.contains("database: "), "{why}");
        }
    }
    // A deferred constraint fails at the commit, after the view has answered with a success: 500.
    let orphan = execute("insert into children (parent) values (7)");
    assert_eq!(
        server
            .steps(&format!("/{mode}/run/atomic"), json!([orphan]))
            .await
            .status,
        500
    );
    assert_eq!(
        server.app.data.count("select count(*) from things").await,
        1
    );
    server.assert_baseline().await;
}
both_modes_and_databases!(constraints_are_told_apart);

/// `execute` returns 0 for statements that change definitions.
async fn definitions_count_no_rows(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let steps = json!([
        insert("a"),
        execute("insert into rows (tag) select tag from rows union all select 'b'"),
        execute("create table copied as select * from rows"),
        execute("alter table copied add column more integer"),
        execute("create index by_tag on copied (tag)"),
        execute("drop table copied"),
        execute("with a as (select 1) update rows set tag = 'c'"),
        execute("with a as (select 1) select * from a"),
    ]);
    for path in ["run", "run/atomic"] {
        let rows = server.app.data.rows().await;
        let told = server.told(&format!("/{mode}/{path}"), steps.clone()).await;
        assert_eq!(
            told,
            json!([1, rows + 2, 0, 0, 0, 0, 2 * rows + 3, 0]),
            "{path}"
        );
    }
    server.assert_baseline().await;
}
both_modes_and_databases!(definitions_count_no_rows);

async fn r8_nested_blocks_are_savepoints(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let steps = json!([
        insert("outer"),
        atomic(json!([
            insert("kept"),
            atomic(json!([insert("undone"), must(broken())])),
            insert("too")
        ])),
        atomic(json!([
            insert("undone"),
            atomic(json!([insert("undone")])),
            must(broken())
        ])),
    ]);
    for (view, tags) in [
        ("run/atomic", vec!["outer", "kept", "too"]),
        ("run", vec!["outer", "kept", "too"]),
    ] {
        let told = server.told(&format!("/{mode}/{view}"), steps.clone()).await;
        assert_eq!((&told[0], &told[1]), (&json!(1), &json!(1)));
        assert!(failed(&told[2], "NotNull"), "{told}");
        assert_eq!(server.app.data.tags().await, tags, "{view}");
        server.app.data.execute("delete from rows").await;
    }
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_nested_blocks_are_savepoints);

/// After a failed statement, its level refuses further statements and quotes the failure; the levels around it go on.
async fn r8_a_failed_statement_poisons_its_level(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let count = query("select count(*) from rows");
    let steps = json!([
        insert("before"),
        atomic(json!([
            insert("x"),
            broken(),
            join(json!([insert("y"), count, atomic(json!([insert("z")]))]))
        ])),
        insert("after"),
        count,
    ]);
    let reply = server.steps(&format!("/{mode}/run/atomic"), steps).await;
    let told = reply.told();
    assert!(
        told[1]
            .as_str()
            .is_some_and(|told| told.starts_with("Poisoned: ")),
        "a poisoned block is no success: {told}"
    );
    assert_eq!((&told[2], &told[3]), (&json!(1), &json!([[2]])));
    assert_eq!(server.app.data.tags().await, ["before", "after"]);

    // Each later statement and block of the level is refused, with the text of the first failure.
    let steps = json!([atomic(json!([
        broken(),
        must(json!({"do": "join", "steps": [insert("y")]})),
        must(insert("y"))
    ]))]);
    let told = server.told(&format!("/{mode}/run"), steps).await;
    assert!(failed(&told[0], "Poisoned"), "{told}");
    let first = if kind == Kind::Sqlite {
        "NOT NULL"
    } else {
        "not-null"
    };
    assert!(
        told[0].as_str().is_some_and(|told| told.contains(first)),
        "it quotes the first failure: {told}"
    );
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_a_failed_statement_poisons_its_level);

/// A view that ignores the failure of a statement in its transaction does not succeed.
async fn r9_a_poisoned_transaction_is_no_success(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for failing in [
        broken(),
        execute("insert into nowhere values (1)"),
        execute("selec 1"),
    ] {
        let mark = server.log.mark();
        let reply = server
            .steps(
                &format!("/{mode}/run/atomic"),
                json!([insert("a"), failing, insert("b")]),
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
    // In an atomic block of its own, the failed statement does no harm.
    let steps = json!([insert("a"), atomic(json!([must(broken())])), insert("b")]);
    server
        .steps(&format!("/{mode}/run/atomic"), steps)
        .await
        .ok();
    assert_eq!(server.app.data.tags().await, ["a", "b"]);
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_a_poisoned_transaction_is_no_success);

/// Outside a transaction, a failed statement affects no other statement.
async fn r7_without_a_transaction_a_failed_statement_is_alone(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let told = server
        .told(
            &format!("/{mode}/run"),
            json!([insert("a"), broken(), insert("b")]),
        )
        .await;
    assert!(failed(&told[1], "NotNull"), "{told}");
    assert_eq!(server.app.data.tags().await, ["a", "b"]);
    server.assert_baseline().await;
}
both_modes_and_databases!(r7_without_a_transaction_a_failed_statement_is_alone);

/// Joined statements of a transaction run in the order in which they were issued, and all within the transaction.
async fn r8_joined_statements_keep_their_order(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    // More statements than tokio lets one task poll before the task yields.
    let tags: Vec<String> = (0..200).map(|number| format!("{number:03}")).collect();
    let inserts: Value = tags.iter().map(|tag| insert(tag)).collect();
    let counts: Value = (0..200)
        .map(|_| json!([insert("x"), query("select count(*) from rows")]))
        .flat_map(|pair| pair.as_array().cloned().unwrap_or_default())
        .collect();
    let told = server
        .told(
            &format!("/{mode}/run/atomic"),
            json!([join(inserts), execute("delete from rows"), join(counts)]),
        )
        .await;
    let seen: Vec<&Value> = told[2]
        .as_array()
        .expect("a list")
        .iter()
        .skip(1)
        .step_by(2)
        .map(|rows| &rows[0][0])
        .collect();
    let expected: Vec<Value> = (1..=200).map(Value::from).collect();
    assert_eq!(seen, expected.iter().collect::<Vec<_>>());
    let inserts: Value = tags.iter().map(|tag| insert(tag)).collect();
    server.app.data.execute("delete from rows").await;
    server
        .told(&format!("/{mode}/run/atomic"), json!([join(inserts)]))
        .await;
    assert_eq!(server.app.data.tags().await, tags);
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_joined_statements_keep_their_order);

/// A statement that was issued before a block began is not rolled back with the block, even if the statement had to
/// wait for the request's worker.
async fn r8_a_statement_that_was_issued_before_a_block_is_not_in_it(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let block = atomic(json!([must(broken())]));
    let sql = "insert into rows (tag) values ('opened') returning tag";
    let opened = json!({"do": "stream", "sql": sql, "steps": [], "drain": true});
    for (path, first, tag) in [
        ("run/atomic", insert("mine"), "mine"),
        ("run", opened, "opened"),
    ] {
        let steps = json!([join(json!([first, block]))]);
        let told = server.told(&format!("/{mode}/{path}"), steps).await;
        assert!(failed(&told[0][1], "NotNull"), "{told}");
        assert_eq!(server.app.data.tags().await, [tag], "{path}: {told}");
        server.app.data.execute("delete from rows").await;
    }
    server.assert_baseline().await;
}
both_modes_and_databases!(r8_a_statement_that_was_issued_before_a_block_is_not_in_it);

/// Numbered parameters may be used twice and in any order, on both databases.
async fn one_statement_serves_both_databases(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let sql = "select $2 as x, $1 as y, $2 as z";
    let told = server
        .told(
            &format!("/{mode}/run/atomic"),
            json!([query_with(sql, json!(["a", "b"]))]),
        )
        .await;
    assert_eq!(told, json!([[["b", "a", "b"]]]));
}
both_modes_and_databases!(one_statement_serves_both_databases);

/// Three statements are joined in a transaction, and the second fails: PostgreSQL's log shows one session and a
/// rollback, and the request fails with the error of the second statement.
async fn r8_joined_statements_of_a_transaction_have_one_session(mode: Mode) {
    let app = App::rules(Kind::Postgres, "").await;
    app.data.postgres().expect("it is").log_statements().await;
    let server = app.serve().await;
    let database = server.app.data.postgres().expect("it is");
    let (path, mark, log) = (
        format!("/{mode}/run/atomic"),
        database.mark(),
        server.log.mark(),
    );
    let three = json!([must(join(json!([
        must(insert("one")),
        must(broken()),
        must(insert("three"))
    ])))]);
    let reply = server.steps(&path, three).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    let line = &server.log.requests(log, 1).await[0];
    assert!(line.text("why").contains("not-null"), "{line:?}");
    assert_eq!(line.text("transaction"), "rolled back");

    database.assert_quiet().await;
    let logged = database.logged(mark);
    let begin = logged
        .iter()
        .find(|logged| logged.sql.to_lowercase().starts_with("begin"))
        .expect("it begins");
    let ran: Vec<_> = logged
        .iter()
        .filter(|logged| logged.sql.contains("into rows"))
        .collect();
    assert!(
        !ran.is_empty() && ran.iter().all(|logged| logged.session == begin.session),
        "{logged:#?}"
    );
    assert!(
        logged.iter().any(|logged| logged.session == begin.session
            && logged.sql.to_lowercase().starts_with("rollback")),
        "{logged:#?}"
    );
    assert!(
        !logged
            .iter()
            .any(|logged| logged.sql.to_lowercase().starts_with("commit")),
        "{logged:#?}"
    );
    assert_eq!(server.app.data.rows().await, 0);
    server.assert_baseline().await;
}
both_modes!(r8_joined_statements_of_a_transaction_have_one_session);

/// The same three statements, joined outside a transaction, run in several sessions at the same time.
#[tokio::test]
async fn r12_joined_statements_outside_of_a_transaction_have_several_sessions() {
    let app = App::rules(Kind::Postgres, "").await;
    app.data.postgres().expect("it is").log_statements().await;
    let server = app.serve().await;
    let database = server.app.data.postgres().expect("it is");
    let mark = database.mark();
    let three = json!([join(json!([insert("one"), broken(), insert("three")]))]);
    let told = server.told("/async/run", three).await;
    assert_eq!((&told[0][0], &told[0][2]), (&json!(1), &json!(1)));
    assert!(failed(&told[0][1], "NotNull"), "{told}");
    let mut sessions: Vec<String> = database
        .logged(mark)
        .into_iter()
        .filter(|logged| logged.sql.contains("into rows"))
        .map(|logged| logged.session)
        .collect();
    sessions.sort_unstable();
    sessions.dedup();
    assert!(sessions.len() > 1, "{sessions:?}");
    let mut tags = server.app.data.tags().await;
    tags.sort_unstable();
    assert_eq!(tags, ["one", "three"]);

    // Five statements of 200 ms in five sessions take about as long as one.
    let naps: Value = (0..5)
        .map(|_| query("select pg_sleep(0.2)::text"))
        .collect();
    let since = std::time::Instant::now();
    let reply: Reply = server.steps("/async/run", json!([join(naps)])).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(
        since.elapsed() < std::time::Duration::from_millis(800),
        "{:?}",
        since.elapsed()
    );
    server.assert_baseline().await;
}
