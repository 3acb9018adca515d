//! Scopes beside each other see nothing of each other.

use std::time::Instant;

use futures::future::join;
use serde_json::{Value, json};

use crate::harness::steps::{get, query_with, set};
use crate::harness::{App, Kind, Mode, Server};

/// How often each of two scopes looks around.
const TIMES: usize = 100_000;
/// Looks per statement.
const PER_STATEMENT: usize = 50;

/// Sets a value and, between statements, keeps looking whether it is still its own.
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
        steps.push(json!({"do": "query", "sql": "select count(*), count(distinct tag) from rows"}));
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
        // Nobody sees a row of the other transaction, and each sees all of its own.
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

both_modes_and_databases! {
    /// Acceptance: two scopes 100,000 times.
    async fn r8_r14_scopes_beside_each_other_see_nothing_of_each_other(mode: Mode, kind: Kind) {
        let toml = "[limits]\ncpu_ms = 100000\ntimeout_ms = 300000\n[async_views]\nloops = 1";
        let server = App::rules(kind, toml).await.serve().await;
        // Each sees what was committed before it began, and nothing of what is committed meanwhile. SQLite has one
        // writer at a time: there the other one reads.
        let other_writes = kind == Kind::Postgres;
        let other = if other_writes { "repeatable" } else { "read/atomic" };
        let (one, other) = join(
            timed(&server, format!("/{mode}/repeatable"), busy("one", true)),
            timed(&server, format!("/{mode}/{other}"), busy("other", other_writes)),
        )
        .await;
        let overlap = one.2.min(other.2).saturating_duration_since(one.0.max(other.0));
        let longer = (one.2 - one.0).max(other.2 - other.0);
        assert!(overlap > longer / 4, "they should have run beside each other: {overlap:?} of {longer:?}");
        check(&one.1, "one", true);
        check(&other.1, "other", other_writes);
        server.assert_baseline().await;
        let rows = if other_writes { 2 } else { 1 } * TIMES / PER_STATEMENT;
        assert_eq!(server.app.data.rows().await, i64::try_from(rows).expect("few"));
    }
}
