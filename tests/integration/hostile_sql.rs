//! Hostile SQL: deep, long, huge, slow, recursive, or changing the session. Each statement ends with a result or an
//! error within the time limit plus a second, the host keeps running, and other requests are answered meanwhile.

mod sqlite;

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::steps::{execute, execute_with, insert, query, query_with};
use crate::harness::{App, Kind, Mode, Reply, Server, eventually};

/// The time limit of the views.
const LIMIT: Duration = Duration::from_millis(300);
/// How much longer a statement may take to end.
const BEYOND: Duration = Duration::from_secs(1);
/// A further allowance for the request itself, on a machine that may compile at the same time.
const MARGIN: Duration = Duration::from_millis(500);
/// How long the neighbour (a second client, which reads) may wait for each answer.
const NEIGHBOUR: Duration = Duration::from_secs(1);

/// The hostile statements for one kind of database.
struct Corpus {
    kind: Kind,
    /// Statements that the test runs first, with a connection of its own.
    setup: Vec<String>,
    lines: Vec<Line>,
}

/// One request.
struct Line {
    name: String,
    /// The view's path, below the mode's.
    view: &'static str,
    steps: Value,
}

impl Line {
    /// A statement whose rows are read.
    fn new(name: &str, sql: impl AsRef<str>) -> Line {
        Line::of(name, "run", json!([query(sql.as_ref())]))
    }

    /// A statement that writes, in a transaction.
    fn writes(name: &str, sql: impl AsRef<str>) -> Line {
        Line::of(name, "run/atomic", json!([execute(sql.as_ref())]))
    }

    fn of(name: &str, view: &'static str, steps: Value) -> Line {
        Line {
            name: name.to_owned(),
            view,
            steps,
        }
    }
}

/// Runs every line while a neighbour reads.
async fn survive(mode: Mode, corpus: Corpus) {
    let limits = format!("limits.timeout_ms = {}", LIMIT.as_millis());
    let server = App::rules(corpus.kind, &limits).await.serve_alone().await;
    let setup = corpus.setup.join(";\n");
    server
        .app
        .data
        .execute(&format!("begin;\n{setup};\ncommit"))
        .await;
    let end = Cell::new(false);
    let lines = async {
        let failed = lines(mode, &server, corpus.lines).await;
        end.set(true);
        failed
    };
    let (failed, waits) = tokio::join!(lines, neighbour(mode, &server, &end));
    assert!(failed.is_empty(), "{failed:#?}");
    let longest = waits.iter().max().expect("it asked");
    assert!(
        *longest < NEIGHBOUR,
        "the neighbour waited {longest:?}, {} times asked",
        waits.len()
    );
    // The connection that writes is free again.
    let path = format!("/{mode}/run/atomic");
    assert_eq!(
        server.told(&path, json!([insert("after")])).await,
        json!([1])
    );
}

/// Runs the lines one after the other. Returns those that did not end as they should.
async fn lines(mode: Mode, server: &Server, lines: Vec<Line>) -> Vec<String> {
    let mut failed = Vec::new();
    for line in lines {
        let name = &line.name;
        // Three tries, because other programs may have had the processor.
        for attempt in 1..=3 {
            let (reply, took) = line_once(mode, server, &line).await;
            // 500 if the statement fails an atomic view, 504 at the time limit.
            let is_known = [200, 500, 504].contains(&reply.status);
            if is_known && took <= LIMIT + BEYOND + MARGIN {
                break;
            }
            if !is_known || attempt == 3 {
                failed.push(format!("{name}: {} after {took:?}", reply.status));
                break;
            }
        }
    }
    failed
}

/// Runs a line. Returns the answer, and when the connections were free again.
async fn line_once(mode: Mode, server: &Server, line: &Line) -> (Reply, Duration) {
    let Line { name, view, steps } = line;
    let begin = Instant::now();
    let reply = server
        .steps(&format!("/{mode}/{view}"), steps.clone())
        .await;
    let answered = begin.elapsed();
    // The client gets its answer at the time limit. The connection has to be given back as well.
    let free = async || match server.metrics().await.get("amphi_database_connections") {
        0.0 => Ok(()),
        busy => Err(busy),
    };
    eventually("the connections to be free", free).await;
    let took = begin.elapsed();
    println!(
        "{answered:>8.0?} {took:>8.0?} {} {name}: {:.120}",
        reply.status,
        reply.text()
    );
    (reply, took)
}

/// Requests one row again and again until `end` is set. Returns how long each request took.
async fn neighbour(mode: Mode, server: &Server, end: &Cell<bool>) -> Vec<Duration> {
    let path = format!("/{mode}/run");
    let mut waits = Vec::new();
    while !end.get() {
        let begin = Instant::now();
        let reply = server.steps(&path, json!([query("select 1 as a")])).await;
        waits.push(begin.elapsed());
        // On a loaded machine the neighbour itself may reach the short time limit. The wait is measured all the same.
        match reply.status {
            504 => {}
            _ => assert_eq!(reply.told(), json!([[[1]]]), "the neighbour's row"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits
}

async fn r13_hostile_sql_on_sqlite_ends_in_time(mode: Mode) {
    survive(mode, sqlite::corpus()).await;
}
both_modes!(r13_hostile_sql_on_sqlite_ends_in_time);

/// A LIKE pattern that is as long as the text, with a `%` at every other place. With such a pattern, SQLite's own
/// implementation of LIKE ended the process.
async fn a_search_of_any_length_ends_nothing(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let path = format!("/{mode}/run");
    let search = |pattern: String| {
        json!([query_with(
            "select id from rows where tag like '%' || ? || '%'",
            json!([pattern])
        )])
    };
    let long = execute_with(
        "insert into rows (tag) values (?)",
        json!(["a".repeat(24_000)]),
    );
    server.told(&path, json!([long])).await;
    let told = server.told(&path, search("%a".repeat(23_000))).await;
    let text = told[0].as_str().unwrap_or_default();
    assert!(text.starts_with("TooLarge: "), "{told}");
    assert!(
        text.contains("may have 10000: look for a shorter text"),
        "{told}"
    );
    assert_eq!(
        server.told(&path, search("%a".repeat(4_900))).await,
        json!([[[1]]])
    );
}
both_modes!(a_search_of_any_length_ends_nothing);

/// `last_insert_rowid()`, `changes()` and `total_changes()` tell nothing of earlier requests on the same connection.
async fn r11_nobody_is_told_what_others_inserted(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let told = |view: &str, steps: Value| {
        let path = format!("/{mode}/{view}");
        let server = &server;
        async move { server.told(&path, steps).await }
    };
    let ask = "select last_insert_rowid() as a, changes() as b, total_changes() as c";
    let insert = "insert into rows (tag) values ('mine')";
    let update = "update rows set tag = 'theirs'";
    for _ in 0..2 {
        told("run", json!([execute(insert), execute(insert)])).await;
        assert_eq!(
            told("run/atomic", json!([query(ask)])).await,
            json!([[[0, 0, 0]]])
        );
        let rows = server.app.data.rows().await;
        assert_eq!(
            told("run/atomic", json!([execute(update), query(ask)])).await,
            json!([rows, [[0, rows, rows]]])
        );
        let expected = json!([
            1,
            [[rows + 1, 1, 1]],
            rows + 1,
            [[rows + 1, rows + 1, rows + 2]]
        ]);
        assert_eq!(
            told(
                "run/atomic",
                json!([execute(insert), query(ask), execute(update), query(ask)])
            )
            .await,
            expected
        );
        // A statement that changes no row returns 0, whatever ran before.
        assert_eq!(
            told(
                "run",
                json!([execute("create table if not exists other (a)")])
            )
            .await,
            json!([0])
        );
        let refused = told(
            "run",
            json!([execute(insert), query("select last_insert_rowid()")]),
        )
        .await;
        assert!(
            refused[1]
                .as_str()
                .is_some_and(|text| text.contains("Use `returning`")),
            "{refused}"
        );
    }
}
both_modes!(r11_nobody_is_told_what_others_inserted);
