//! Ten thousand requests that are ended at a random host call, and what the host still holds afterwards.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::harness::server::client;
use crate::harness::steps::{
    atomic, end, fetch, get, insert, join, must, nap, next, publish, query, rollback, set, status,
    view,
};
use crate::harness::{App, Kind, Reply, Server, eventually};

const REQUESTS: usize = 10_000;
const AT_ONCE: usize = 64;

/// How a request of the storm ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    Trap,
    Error,
    FiveHundred,
    Cpu,
    Wall,
    Disconnect,
    Rollback,
}

/// One request: the steps of its functions, and when its client disconnects.
struct Plan {
    id: String,
    end: End,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
    leaves_after: Option<Duration>,
}

/// The rows of a request that succeeds: one for each of its functions.
const ROWS: i64 = 5;

impl Plan {
    fn new(number: usize, random: &mut fastrand::Rng) -> Plan {
        let ends = [
            End::Well,
            End::Trap,
            End::Trap,
            End::Error,
            End::FiveHundred,
            End::Cpu,
            End::Wall,
            End::Disconnect,
            End::Disconnect,
            End::Rollback,
        ];
        let end = ends[random.usize(..ends.len())];
        let tag = number.to_string();
        let add = || must(insert(&tag));
        // The steps of each function: each step is a host call.
        let around = |first: bool| {
            let mut steps = vec![set("tag", &tag), get("tag")];
            if first {
                steps.push(add());
            }
            steps.extend([
                must(next()),
                query("select count(*) from counters"),
                publish("orders.storm", json!([get("tag")])),
            ]);
            steps
        };
        let inner = vec![get("tag"), add(), nap(random.u64(..3))];
        let middle = vec![
            add(),
            fetch("/nowhere"),
            view(["/sync/run", "/async/run"][random.usize(..2)], Value::Null),
            get("tag"),
        ];
        let outer = vec![
            query("select count(*) from counters"),
            atomic(json!([add(), get("tag")])),
            join(json!([query("select 1"), get("tag"), query("select 2")])),
            publish(
                "orders.storm",
                json!([query("select count(*) from counters")]),
            ),
            view(
                ["/sync/run/atomic", "/async/run/atomic"][random.usize(..2)],
                Value::Null,
            ),
            nap(1),
        ];
        let mut parts = [
            around(true),
            around(false),
            around(false),
            around(true),
            outer,
            middle,
            inner,
        ];
        // Two middleware functions and three views insert a row each: `ROWS` rows in all.
        let mut leaves_after = None;
        let kill = match end {
            End::Well => None,
            End::Trap => Some(self::end("panic")),
            End::Error => Some(self::end("error")),
            End::FiveHundred => Some(status(500)),
            End::Cpu => Some(self::end("loop")),
            End::Wall => Some(nap(60_000)),
            End::Rollback => Some(rollback()),
            End::Disconnect => {
                leaves_after = Some(Duration::from_micros(random.u64(..40_000)));
                Some(nap(60_000))
            }
        };
        if let Some(kill) = kill {
            let part = &mut parts[random.usize(..7)];
            part.insert(random.usize(..=part.len()), kill);
        }
        let [first, second, third, fourth, mut outer, mut middle, inner] = parts;
        // Puts the steps of a called view into the step that calls it.
        let nest = |steps: &mut Vec<Value>, within: Vec<Value>| {
            let at = steps
                .iter()
                .position(|step| step["do"] == "view")
                .expect("there is one");
            steps[at]["steps"] = within.into();
            let call = steps[at].take();
            steps[at] = must(call);
        };
        nest(&mut middle, inner);
        nest(&mut outer, middle);
        let json = |steps: Vec<Value>| Value::from(steps).to_string();
        Plan {
            id: format!("storm-{number}"),
            end,
            path: format!("/{}/run/atomic", ["sync", "async"][random.usize(..2)]),
            headers: vec![
                ("x-sync-first", json(first)),
                ("x-async-first", json(second)),
                ("x-sync-second", json(third)),
                ("x-async-second", json(fourth)),
            ],
            body: json(outer),
            leaves_after,
        }
    }

    /// Sends the request. Returns its status; none if the client disconnects.
    async fn run(&self, server: &Server, client: &reqwest::Client) -> Option<u16> {
        let mut request = client
            .post(server.url(&self.path))
            .header("x-request-id", &self.id)
            .body(self.body.clone());
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        match self.leaves_after {
            None => Some(Reply::of(request).await.status),
            Some(patience) => {
                let answered = tokio::time::timeout(patience, Reply::maybe(request)).await;
                answered
                    .ok()
                    .map(|reply| reply.map_or(0, |reply| reply.status))
            }
        }
    }
}

/// Requests that are ended at a random host call, by a trap, a limit or a disconnect.
async fn r13_a_storm_of_kills_leaves_nothing_behind(kind: Kind) {
    let seed = 20_261_121;
    let server = App::rules(kind, &config(kind)).await.serve().await;
    let mut random = fastrand::Rng::with_seed(seed);
    // The first requests make pools grow to their full size.
    storm(&server, 0..1_000, &mut random).await;
    let before = Left::of(&server).await;
    storm(&server, 1_000..REQUESTS / 2, &mut random).await;
    let halfway = Left::of(&server).await;
    storm(&server, REQUESTS / 2..REQUESTS, &mut random).await;
    eventually("threads and files as before", async || {
        let after = Left::of(&server).await;
        if after.threads <= before.threads && after.files <= before.files {
            Ok(())
        } else {
            Err((before, after))
        }
    })
    .await;
    let after = Left::of(&server).await;
    assert!(
        after.memory_kib < halfway.memory_kib + (16 << 10),
        "memory: {before:?}, {halfway:?}, {after:?} (seed {seed})"
    );
    if let Some(database) = server.app.data.postgres() {
        assert!(
            database.sessions().await <= 32,
            "sessions: {}",
            database.sessions().await
        );
    }
    assert_eq!(server.steps("/sync/run", json!([])).await.status, 200);
    assert_eq!(server.steps("/async/run", json!([])).await.status, 200);
}
both_databases!(r13_a_storm_of_kills_leaves_nothing_behind);

fn config(kind: Kind) -> String {
    let database = match kind {
        Kind::Sqlite => "",
        Kind::Postgres => "databases.default.connections = 32",
    };
    format!(
        r#"
        app.middleware = ["rules::sync_views::first", "rules::async_views::first"]
        # So that the log can be asked about each.
        server.trusted_proxies = ["127.0.0.1"]
        modules.rules.middleware = ["rules::sync_views::second", "rules::async_views::second"]
        limits = {{ cpu_ms = 20, timeout_ms = 400 }}
        sync_views = {{ workers = 2, workers_max = 8 }}
        {database}
        "#
    )
}

/// What a server would hold more of if requests left something behind.
#[derive(Debug, Clone, Copy)]
struct Left {
    threads: u64,
    /// Open files without connections to the database: the number of connections varies, because a connection is
    /// replaced after a cancelled statement.
    files: usize,
    memory_kib: u64,
}

impl Left {
    async fn of(server: &Server) -> Left {
        server.assert_baseline().await;
        let sessions = match server.app.data.postgres() {
            Some(database) => usize::try_from(database.sessions().await).unwrap_or(0),
            None => 0,
        };
        Left {
            threads: server.threads(),
            files: server.files().saturating_sub(sessions),
            memory_kib: server.memory_kib(),
        }
    }
}

/// Sends requests, and checks for each request that either all of its rows were kept or none.
async fn storm(server: &Server, numbers: std::ops::Range<usize>, random: &mut fastrand::Rng) {
    // Its connections are closed at the end of the storm.
    let client = client();
    let plans: Vec<(usize, Plan)> = numbers
        .map(|number| (number, Plan::new(number, random)))
        .collect();
    let ends: Vec<(usize, End, Option<u16>)> = stream::iter(&plans)
        .map(|(number, plan)| {
            let client = &client;
            async move { (*number, plan.end, plan.run(server, client).await) }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    drop(client);
    server.assert_baseline().await;
    server.app.data.assert_quiet().await;
    let counted = server
        .app
        .data
        .texts("select tag || ' ' || count(*) from rows group by tag")
        .await;
    let rows: std::collections::HashMap<usize, i64> = counted
        .iter()
        .map(|text| {
            let (tag, count) = text.split_once(' ').expect("two words");
            (
                tag.parse().expect("a number"),
                count.parse().expect("a number"),
            )
        })
        .collect();
    let mut well = 0;
    for (number, end, status) in ends {
        let kept = rows.get(&number).copied().unwrap_or(0);
        let right = match (end, status) {
            (End::Well, Some(200)) => {
                well += 1;
                kept == ROWS
            }
            // The time limit or a queue ended the request.
            (End::Well, Some(503 | 504)) => kept == 0,
            // The caller of a view that fails may answer 200, but everything is rolled back.
            (End::Rollback | End::FiveHundred, Some(200 | 503 | 504)) => kept == 0,
            (
                End::Trap | End::Error | End::FiveHundred | End::Cpu | End::Wall,
                Some(500 | 503 | 504),
            ) => kept == 0,
            (End::Disconnect, None | Some(503 | 504)) => kept == 0,
            _ => false,
        };
        if !right {
            let id = format!("storm-{number}");
            let lines = server.log.since(0);
            let lines: Vec<_> = lines
                .iter()
                .filter(|line| line.text("request") == id)
                .collect();
            panic!("request {number} ended with {end:?}, {status:?} and {kept} rows: {lines:#?}");
        }
    }
    assert!(well > 0, "some come to their end");
    server.app.data.execute("delete from rows").await;
}
