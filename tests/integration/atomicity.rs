//! Views that insert a row and then fail in every possible way: no row is kept, and neither the host nor the database
//! keeps a resource of the request.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use serde_json::{Value, json};

use crate::harness::steps::{end, insert, log, must, nap, open, rollback, status};
use crate::harness::{App, Kind, Mode, Reply, Server};

const REQUESTS: usize = 1_000;
const AT_ONCE: usize = 64;

/// A way to fail after the insertion.
struct Way {
    name: &'static str,
    view: &'static str,
    last: fn() -> Value,
    /// The status that the client gets; none if the client disconnects.
    status: Option<u16>,
    /// Whether requests hold connections for so long that other requests time out while they wait for a connection.
    slow: bool,
}

const WAYS: [Way; 7] = [
    Way {
        name: "error",
        view: "run/atomic",
        last: || end("error"),
        status: Some(500),
        slow: false,
    },
    Way {
        name: "5xx",
        view: "run/atomic",
        last: || status(503),
        status: Some(503),
        slow: false,
    },
    Way {
        name: "trap",
        view: "run/atomic",
        last: || end("panic"),
        status: Some(500),
        slow: false,
    },
    Way {
        name: "CPU limit",
        view: "limited",
        last: || end("loop"),
        status: Some(504),
        slow: false,
    },
    Way {
        name: "wall limit",
        view: "brief",
        last: || nap(60_000),
        status: Some(504),
        slow: true,
    },
    Way {
        name: "disconnect",
        view: "run/atomic",
        last: || nap(60_000),
        status: None,
        slow: true,
    },
    Way {
        name: "set-rollback",
        view: "run/atomic",
        last: rollback,
        status: Some(200),
        slow: false,
    },
];

async fn r9_r13_insert_then_fail_keeps_nothing_and_leaves_nothing(mode: Mode, kind: Kind) {
    let server = App::rules(kind, &limits(kind)).await.serve().await;
    for way in &WAYS {
        // The time is measured for each way, because the load that other tests cause changes.
        let patience = time_to_insert(&server, mode).await;
        let mark = server.log.mark();
        let ends: Vec<Option<u16>> = stream::iter(0..REQUESTS)
            .map(|number| fail(&server, mode, way, number, patience))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        server.assert_baseline().await;
        server.app.data.assert_quiet().await;
        assert_eq!(server.app.data.rows().await, 0, "{}", way.name);

        let unexpected: Vec<_> = ends.iter().filter(|end| **end != way.status).collect();
        let inserted = server
            .log
            .since(mark)
            .iter()
            .filter(|line| line.text("message") == "inserted")
            .count();
        // SQLite has one writer: while one request holds it, others time out before they have inserted anything.
        if way.slow && kind == Kind::Sqlite {
            assert!(
                unexpected.iter().all(|end| **end == Some(503)),
                "{}: {unexpected:?}",
                way.name
            );
            assert!(inserted > 5, "{}: {inserted} inserted", way.name);
        } else {
            assert!(unexpected.is_empty(), "{}: {unexpected:?}", way.name);
            // Some clients disconnect before their view has inserted, and on a busy machine some views reach the time limit
            // before.
            let few = match way.status {
                None => REQUESTS / 10,
                Some(_) if way.slow => REQUESTS / 2,
                Some(_) => REQUESTS,
            };
            assert!(inserted >= few, "{}: {inserted} inserted", way.name);
        }
    }
    // After all this the server works as at its start.
    let reply = server
        .steps(&format!("/{mode}/run/atomic"), json!([insert("well")]))
        .await;
    assert_eq!(reply.told(), json!([1]));
    assert_eq!(server.app.data.tags().await, ["well"]);
}
both_modes_and_databases!(r9_r13_insert_then_fail_keeps_nothing_and_leaves_nothing);

/// The time limit ends a request on the event loop while the request's view still writes (a sync view writes on a
/// worker). Nothing is written after the rollback.
async fn r9_r15_nothing_is_written_after_the_end(mode: Mode, kind: Kind) {
    let toml = format!(
        "app.middleware = [\"rules::async_views::first\"]\n{}",
        limits(kind)
    );
    let server = App::rules(kind, &toml).await.serve().await;
    let many = json!([{"do": "repeat", "times": 1_000_000, "step": insert("late")}]);
    for _ in 0..8 {
        let replies = server
            .many_steps(16, &format!("/{mode}/brief"), many.clone())
            .await;
        assert!(
            replies.iter().all(|reply| reply.status == 504),
            "{replies:#?}"
        );
        server.assert_baseline().await;
        server.app.data.assert_quiet().await;
        assert_eq!(server.app.data.rows().await, 0);
    }
}
both_modes_and_databases!(r9_r15_nothing_is_written_after_the_end);

/// A statement outside of a transaction has written everything by the time its first row is read. The writes are kept
/// even if the view never reads the other rows.
async fn r9_what_a_statement_writes_is_kept_however_few_of_its_rows_are_read(
    mode: Mode,
    kind: Kind,
) {
    let server = App::rules(kind, "").await.serve().await;
    let numbers =
        "with recursive c (n) as (select 1 union all select n + 1 from c where n < 20000)";
    let mut statements = vec![format!(
        "insert into rows (tag) {numbers} select 'x' from c returning id"
    )];
    if kind == Kind::Postgres {
        server.app.data.execute("create function add_row(tag text) returns bigint language sql as 'insert into rows (tag) values (tag) returning id::bigint'").await;
        statements.push("select add_row('x') from generate_series(1, 20000)".to_owned());
        statements.push(format!("with added as (insert into rows (tag) {numbers} select 'x' from c returning id) select id from added"));
    }
    for sql in statements {
        server.app.data.execute("delete from rows").await;
        assert_eq!(
            server
                .told(&format!("/{mode}/run"), json!([open(&sql, 1)]))
                .await,
            json!([1])
        );
        server.assert_baseline().await;
        assert_eq!(server.app.data.rows().await, 20_000, "{sql}");
    }
}
both_modes_and_databases!(r9_what_a_statement_writes_is_kept_however_few_of_its_rows_are_read);

/// The first statement of a transaction is issued just before the time limit: rows are kept exactly for the requests
/// that were answered with a success.
async fn r9_r15_a_statement_at_the_last_moment_is_not_kept_alone(mode: Mode, kind: Kind) {
    let server = App::rules(kind, &limits(kind)).await.serve().await;
    let mut kept = 0;
    for round in 0..40 {
        let path = format!("/{mode}/brief");
        let requests = (0..64).map(|number| {
            let steps = json!([nap(220 + (round + number) % 32), must(insert("late"))]);
            server.steps(&path, steps)
        });
        let replies = futures::future::join_all(requests).await;
        kept += replies.iter().filter(|reply| reply.status == 200).count();
        assert!(
            replies
                .iter()
                .all(|reply| [200, 503, 504].contains(&reply.status)),
            "{replies:#?}"
        );
    }
    server.assert_baseline().await;
    server.app.data.assert_quiet().await;
    assert_eq!(
        server.app.data.rows().await,
        i64::try_from(kept).expect("few")
    );
}
both_modes_and_databases!(r9_r15_a_statement_at_the_last_moment_is_not_kept_alone);

/// A commit that the database refuses is a failure for the client.
async fn r9_no_success_without_its_commit(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    let orphan = crate::harness::steps::execute("insert into children (parent) values (7)");
    let mark = server.log.mark();
    let reply = server
        .steps(
            &format!("/{mode}/run/atomic"),
            json!([insert("a"), must(orphan)]),
        )
        .await;
    assert_eq!(reply.status, 500, "{}", reply.text());
    let line = &server.log.requests(mark, 1).await[0];
    assert_eq!(line.text("transaction"), "rolled back");
    assert!(
        line.text("why").contains("could not be committed"),
        "{line:?}"
    );
    assert_eq!(server.app.data.rows().await, 0);
    server.app.data.assert_quiet().await;
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_no_success_without_its_commit);

/// Every status below 500 commits.
async fn r9_answers_below_500_are_kept(mode: Mode, kind: Kind) {
    let server = App::rules(kind, "").await.serve().await;
    for code in [200, 303, 404, 499] {
        let reply = server
            .steps(
                &format!("/{mode}/run/atomic"),
                json!([insert(&code.to_string()), status(code)]),
            )
            .await;
        assert_eq!(reply.status, code);
    }
    assert_eq!(server.app.data.tags().await, ["200", "303", "404", "499"]);
    server.assert_baseline().await;
}
both_modes_and_databases!(r9_answers_below_500_are_kept);

/// Limits with as many connections and workers as there are clients, so that all requests fail at the same time.
fn limits(kind: Kind) -> String {
    let database = match kind {
        // SQLite has one writer, so requests wait for it.
        Kind::Sqlite => "databases.default.acquire_timeout_ms = 60000",
        Kind::Postgres => "databases.default.connections = 64",
    };
    format!("sync_views = {{ workers_max = 64 }}\n{database}")
}

/// How long it takes until `AT_ONCE` simultaneous requests have each inserted a row, on this machine under the present
/// load.
async fn time_to_insert(server: &Server, mode: Mode) -> Duration {
    let path = format!("/{mode}/run/atomic");
    let since = Instant::now();
    let undone = json!([must(insert("undone")), rollback()]);
    for reply in server.many_steps(AT_ONCE, &path, undone).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    since.elapsed()
}

/// Sends one request. Returns its status, or `None` if the client disconnects.
async fn fail(
    server: &Server,
    mode: Mode,
    way: &Way,
    number: usize,
    patience: Duration,
) -> Option<u16> {
    let steps = json!([
        must(insert(&format!("{number}"))),
        log("inserted"),
        (way.last)()
    ]);
    let request = server
        .request("POST", &format!("/{mode}/{}", way.view))
        .body(steps.to_string());
    match way.status {
        Some(_) => Some(Reply::of(request).await.status),
        None => {
            // The client disconnects mostly after the insertion.
            let patience =
                patience.max(Duration::from_millis(60)) + Duration::from_millis(number as u64 % 60);
            let answered = tokio::time::timeout(patience, Reply::maybe(request)).await;
            answered
                .ok()
                .map(|reply| reply.map_or(0, |reply| reply.status))
        }
    }
}
