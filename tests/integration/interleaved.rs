//! Concurrent requests see nothing of each other: neither context values nor uncommitted rows.

use std::time::Instant;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::steps::{get, query_with, set};
use crate::harness::{App, Kind, Mode, Server};

/// How many requests run at the same time.
const SCOPES: usize = 8;
/// How often each request reads its context value and lets the others run: 200,000 times in all.
const TIMES: usize = 25_000;
/// Reads per statement.
const PER_STATEMENT: usize = 50;

/// Steps of a request that sets a context value and, between statements, checks that it still reads its own value.
fn busy(name: &str, write: bool) -> Value {
    let rounds = TIMES / PER_STATEMENT;
    let mut steps = vec![set("own", name)];
    for _ in 0..rounds {
        let keep = json!({"do": "keep", "name": "who", "value": name, "times": PER_STATEMENT});
        steps.extend([json!({"do": "must", "step": keep}), get("own")]);
        let sql = if write {
            "insert into rows (tag) values ($1) returning tag"
        } else {
            "select $1"
        };
        steps.push(query_with(sql, json!([name])));
        steps.push(json!({"do": "query", "sql": "select count(*) as n, count(distinct tag) as m from rows"}));
    }
    steps.into()
}

fn check(told: &Value, name: &str, write: bool) {
    let told = told.as_array().expect("a list");
    assert_eq!(told.len(), 1 + 4 * TIMES / PER_STATEMENT);
    for (round, seen) in told[1..].chunks(4).enumerate() {
        assert_eq!(seen[0], true, "{name} in round {round} lost its value");
        assert_eq!(seen[1], name, "in round {round}");
        assert_eq!(seen[2], json!([[name]]), "in round {round}");
        // Each transaction sees all of its own rows, and no rows of another transaction.
        let rows = if write {
            json!([[round + 1, 1]])
        } else {
            json!([[0, 0]])
        };
        assert_eq!(seen[3], rows, "{name} in round {round}");
    }
}

async fn timed(server: &Server, path: String, steps: Value) -> (Instant, Value, Instant) {
    let begin = Instant::now();
    let told = server.told(&path, steps).await;
    (begin, told, Instant::now())
}

/// Requests that are interleaved more than 100,000 times.
async fn r8_r14_scopes_beside_each_other_see_nothing_of_each_other(mode: Mode, kind: Kind) {
    let database = match kind {
        Kind::Sqlite => "databases.default.readers = 8",
        Kind::Postgres => "",
    };
    let toml = format!(
        "{database}\nlimits = {{ cpu_ms = 100000, timeout_ms = 300000 }}\nasync_views.loops = 1"
    );
    let server = App::rules(kind, &toml).await.serve().await;
    // With repeatable reads, each request sees what was committed before the request began. SQLite has one writer at a
    // time, so on SQLite all requests but one only read.
    let writes = |scope: usize| kind == Kind::Postgres || scope == 0;
    let scopes = join_all((0..SCOPES).map(|scope| {
        let view = if writes(scope) {
            "repeatable"
        } else {
            "read/atomic"
        };
        timed(
            &server,
            format!("/{mode}/{view}"),
            busy(&format!("scope {scope}"), writes(scope)),
        )
    }))
    .await;
    let first_end = scopes
        .iter()
        .map(|scope| scope.2)
        .min()
        .expect("there are some");
    let last_begin = scopes
        .iter()
        .map(|scope| scope.0)
        .max()
        .expect("there are some");
    let longest = scopes
        .iter()
        .map(|scope| scope.2 - scope.0)
        .max()
        .expect("there are some");
    let overlap = first_end.saturating_duration_since(last_begin);
    assert!(
        overlap > longest / 4,
        "they should have run beside each other: {overlap:?} of {longest:?}"
    );
    for (scope, (_, told, _)) in scopes.iter().enumerate() {
        check(told, &format!("scope {scope}"), writes(scope));
    }
    server.assert_baseline().await;
    let rows = (0..SCOPES).filter(|scope| writes(*scope)).count() * TIMES / PER_STATEMENT;
    assert_eq!(
        server.app.data.rows().await,
        i64::try_from(rows).expect("few")
    );
}
both_modes_and_databases!(r8_r14_scopes_beside_each_other_see_nothing_of_each_other);
