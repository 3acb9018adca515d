//! Ten thousand requests that are ended at a random host call, and as many whose bodies stream and break off, and what the
//! host still holds afterwards.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use crate::harness::server::{client, client_http2};
use crate::harness::steps::{
    atomic, end, fetch, get, insert, join, must, nap, next, publish, query, rollback, set, status,
    view,
};
use crate::harness::{App, Kind, Reply, Server, eventually};
use crate::wasi_middleware;

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

/// A request whose body or whose response's body streams.
struct Streamed {
    path: String,
    what: &'static str,
    upload: Vec<u8>,
    /// The body of a complete answer. None: there is no complete answer with a status below 500.
    whole: Option<Vec<u8>>,
    leaves_after: Option<Duration>,
}

impl Streamed {
    fn new(random: &mut fastrand::Rng, with_middleware: bool) -> Streamed {
        let mode = ["sync", "async"][random.usize(..2)];
        let version = ["p2", "p3"][random.usize(..2)];
        let (count, ms) = (random.usize(1..20), random.u64(..4));
        let lines = |from: usize| {
            let lines = (from..from + count).map(|line| format!("line {line}\n"));
            Some(lines.collect::<String>().into_bytes())
        };
        let mut upload = Vec::new();
        let (path, whole) = match random.usize(..9) {
            0 => (
                format!("/streams/{mode}/lines?count={count}&ms={ms}"),
                lines(0),
            ),
            1 => (format!("/{version}/drip?n={count}&ms={ms}"), lines(1)),
            2 => (
                format!("/streams/{mode}/big?mb=1"),
                Some(vec![b'x'; 1 << 20]),
            ),
            3 => (format!("/{version}/big?mb=1"), Some(vec![b'.'; 1 << 20])),
            4 => {
                upload = vec![b'u'; random.usize(..200_000)];
                (format!("/{version}/echo"), Some(upload.clone()))
            }
            5 => (format!("/streams/{mode}/endless"), None),
            6 => {
                let how = ["panic", "error", "declares-5", "declares-9"][random.usize(..4)];
                (format!("/streams/{mode}/ends/{how}"), None)
            }
            _ => {
                let how =
                    ["trap-middle", "length-short", "no-finish", "endless"][random.usize(..4)];
                (format!("/{version}/{how}?ms={ms}"), None)
            }
        };
        let what = match with_middleware {
            true => ["", "", "upper", "trap-middle", "trap-after"][random.usize(..5)],
            false => "",
        };
        let whole = match what {
            "upper" => whole.map(|body| body.to_ascii_uppercase()),
            "trap-middle" | "trap-after" => None,
            _ => whole,
        };
        let leaves = whole.is_none() || random.bool();
        Streamed {
            path,
            what,
            upload,
            whole,
            leaves_after: leaves.then(|| Duration::from_micros(random.u64(..60_000))),
        }
    }

    /// Sends the request. A complete answer is the right one. Returns whether there was one.
    async fn run(&self, server: &Server, client: &reqwest::Client) -> bool {
        let method = if self.upload.is_empty() {
            "GET"
        } else {
            "POST"
        };
        let method = method.parse().expect("it is one");
        let request = client.request(method, server.url(&self.path));
        let request = request.header("x-do", self.what).body(self.upload.clone());
        let answered = Reply::maybe(request);
        let answered = match self.leaves_after {
            Some(patience) => tokio::time::timeout(patience, answered).await.ok(),
            None => Some(answered.await),
        };
        let Some(Ok(reply)) = answered else {
            return false;
        };
        let (path, what) = (&self.path, self.what);
        match &self.whole {
            _ if reply.status >= 500 => {}
            Some(whole) => assert!(reply.body == *whole, "{path} {what}: another body"),
            None => panic!("{path} {what}: a complete answer, {}", reply.status),
        }
        reply.status < 500
    }
}

/// Clients that leave, functions that trap and lengths that lie, in the middle of bodies, over HTTP/1.1 and HTTP/2: no
/// client takes a part for the whole, and nothing is left.
#[tokio::test]
async fn r16_a_storm_of_broken_streams_leaves_nothing_behind() {
    let seed = 20_261_129;
    let mut random = fastrand::Rng::with_seed(seed);
    let around = [&[][..], &["outer::handler", "sync::around", "mw::handler"]];
    for around in around {
        let plain = "atomic = false\nstream_bodies = true";
        let server = wasi_middleware::serve(around, plain).await;
        streams(&server, REQUESTS / 10, !around.is_empty(), &mut random).await;
        let before = Left::of(&server).await;
        streams(&server, REQUESTS / 2, !around.is_empty(), &mut random).await;
        eventually("threads and files as before", async || {
            let after = Left::of(&server).await;
            match after.threads <= before.threads && after.files <= before.files {
                true => Ok(()),
                false => Err((before, after)),
            }
        })
        .await;
        let after = Left::of(&server).await;
        assert!(
            after.memory_kib < before.memory_kib + (64 << 10),
            "memory: {before:?}, {after:?} (seed {seed})"
        );
    }
}

async fn streams(server: &Server, count: usize, around: bool, random: &mut fastrand::Rng) {
    let clients = [client(), client_http2()];
    let requests: Vec<Streamed> = (0..count).map(|_| Streamed::new(random, around)).collect();
    let runs = requests.iter().enumerate();
    let runs = runs.map(|(at, request)| request.run(server, &clients[at % 2]));
    let whole = stream::iter(runs).buffer_unordered(AT_ONCE);
    let whole = whole
        .filter(|whole| std::future::ready(*whole))
        .count()
        .await;
    assert!(whole > count / 10 && whole < count, "{whole} of {count}");
}
