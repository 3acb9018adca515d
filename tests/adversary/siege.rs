//! Attacks on the host by guests and clients, all at the same time. Meanwhile, the response times of a small view are
//! measured.
//!
//! Guests run statements that compute for long before the database looks whether it has to stop, and statements that
//! nest deeply. They leak handles, and log and publish without end. Clients send bodies that never end and floods of
//! headers. Results and errors have many megabytes. The host has to stay alive and within its memory, and the small
//! view has to be answered quickly.

use std::fmt;
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::guests;
use crate::harness::server::client;
use crate::harness::steps::{execute_with, insert, pinned, publish, query, query_with};
use crate::harness::{App, Kind, Server};

/// The pause between two requests to the small view.
const EVERY: Duration = Duration::from_millis(10);
/// How long a client waits for a response.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client holds an unfinished body.
const HELD: Duration = Duration::from_secs(20);
/// How many clients hold an unfinished body each.
const UNFINISHED: usize = 200;

/// The result of [`siege`].
#[derive(Debug)]
pub struct Report {
    pub kind: Kind,
    /// The times of the small view, as an async and as a sync view.
    hellos: Vec<Hello>,
    /// Resident memory in MiB: before the attacks, and the maximum.
    pub before_mib: u64,
    pub most_mib: u64,
    /// The most memory that requests took from the budget `memory_budget_mb`, in MiB.
    drawn_mib: u64,
    attacks: [(&'static str, u64); 3],
    /// What was wrong at the end. Empty if nothing was wrong.
    pub wrong: Vec<String>,
}

/// The response times of one small view.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) name: &'static str,
    /// Times of the requests that were answered, the shortest first.
    times: Vec<Duration>,
    pub(super) refused: usize,
}

impl Hello {
    fn at(&self, share: f64) -> Duration {
        let last = self.times.len().saturating_sub(1);
        let index = (share * last as f64) as usize;
        self.times.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| self.at(share));
        write!(
            f,
            "{} answered {} times, p50 {half:?}, p99 {most:?}, longest {all:?}; refused {} times",
            self.name,
            self.times.len(),
            self.refused
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for hello in &self.hellos {
            writeln!(f, "{}: {hello}", self.kind)?;
        }
        writeln!(
            f,
            "memory: {} MiB before, {} MiB at most; {} MiB of the host's budget at most",
            self.before_mib, self.most_mib, self.drawn_mib
        )?;
        for (name, times) in &self.attacks {
            writeln!(f, "  {name}: {times}")?;
        }
        match self.wrong.is_empty() {
            true => write!(f, "the host is alive and everything is given back"),
            false => write!(f, "WRONG: {}", self.wrong.join("; ")),
        }
    }
}

/// An attack: a path, and the body that is sent to it.
struct Attack {
    path: String,
    steps: Value,
}

/// Starts a server and attacks it for this long.
/// Each of the `clients` goes through all attacks, and each begins with a different attack.
pub async fn siege(kind: Kind, time: Duration, clients: usize) -> Report {
    let toml = format!(
        r#"
        limits = {{ timeout_ms = 5000 }}
        [modules.greedy]
        path = "{guests}/greedy"
        mount = "/greedy"
        http = ["self"]
        publish = ["greed.*"]
        subscribe = ["greed.*"]
        "#,
        guests = guests::folder().display(),
    );
    let server = App::rules(kind, &toml).await.serve().await;
    let prepared = server
        .steps("/sync/run", json!([insert(&"a".repeat(24_000))]))
        .await;
    assert_eq!(prepared.status, 200, "a long row can be inserted");
    let before_mib = server.memory_kib() >> 10;
    let until = Instant::now() + time;

    let mut attacks = attacks(kind);
    attacks.extend(greed());
    let attackers = join_all((0..clients).map(|client| {
        let (earlier, later) = attacks.split_at(client * attacks.len() / clients);
        all_in_turn(&server, later.iter().chain(earlier), until)
    }));
    let bodies = join_all((0..UNFINISHED).map(|number| unfinished(&server, number, until)));
    let floods = join_all((0..4).map(|_| flood(&server, until)));
    let memory = most_memory(&server, until);
    // Measured in threads of their own, since the attackers keep this thread busy.
    let hellos = [("async hello", "/async/run"), ("sync hello", "/sync/run")];
    let hellos = join_all(hellos.map(|(name, path)| {
        let (client, url) = (client(), server.url(path));
        tokio::task::spawn_blocking(move || {
            let ask = || client.post(&url).body("[]");
            super::hunt::on_this_thread(measure(name, ask, until))
        })
    }));
    let (attacks, bodies, floods, [most_mib, drawn_mib], hellos) =
        tokio::join!(attackers, bodies, floods, memory, hellos);
    let hellos = hellos
        .into_iter()
        .map(|hello| hello.expect("measuring does not panic"));
    let attacks = [
        ("attacks", attacks.iter().sum()),
        ("unfinished bodies", bodies.iter().sum()),
        ("floods of headers", floods.iter().sum()),
    ];
    let mut wrong = super::run::quiet(&server).await;
    wrong.extend(super::run::probe(&server).await.err());
    Report {
        kind,
        hellos: hellos.collect(),
        before_mib,
        most_mib,
        drawn_mib,
        attacks,
        wrong,
    }
}

/// Steps for the views of `rules`: each attack on a sync view and on an async view.
fn attacks(kind: Kind) -> Vec<Attack> {
    let repeat = |times: u32, step: Value| json!([{"do": "repeat", "times": times, "step": step}]);
    let leak = |what: &str| json!({"do": "leak", "what": what});
    let slow = match kind {
        Kind::Sqlite => "select instr(hex(zeroblob(1600000)), hex(zeroblob(800000)) || '1')",
        Kind::Postgres => "select position(repeat('0', 1600000) || '1' in repeat('0', 3200000))",
    };
    let large = match kind {
        Kind::Sqlite => "select hex(zeroblob(5000000)) as a",
        Kind::Postgres => "select repeat('a', 10000000) as a",
    };
    let endless =
        "with recursive c (n) as (select 1 union all select n + 1 from c) select count(*) from c";
    let all = [
        (
            "LIKE",
            json!([query_with(
                "select id from rows where tag like '%' || $1 || '%'",
                json!(["%a".repeat(11_000)])
            )]),
        ),
        (
            "explain",
            json!([query(&format!("{}select 1", "explain ".repeat(20_000)))]),
        ),
        (
            "parentheses",
            json!([query(&format!(
                "select {}1{}",
                "(".repeat(50_000),
                ")".repeat(50_000)
            ))]),
        ),
        (
            "unions",
            json!([query(&vec!["select 1"; 20_000].join(" union all "))]),
        ),
        (
            "JSON",
            json!([query_with("select $1", json!(["[".repeat(200_000)]))]),
        ),
        ("a slow function", json!([query(slow)])),
        (
            "a slow function that writes",
            json!([execute_with(
                &format!("insert into rows (tag) {slow}"),
                json!([])
            )]),
        ),
        ("an endless query", json!([query(endless)])),
        ("large results", repeat(5, query(large))),
        ("leaked blocks", repeat(60_000, leak("begin"))),
        ("leaked results", repeat(60_000, leak("rows"))),
        (
            "leaked pins",
            json!([leak("pin"), pinned(json!([query("select 1")])), leak("pin")]),
        ),
        (
            "log",
            repeat(2_000, json!({"do": "log", "text": "x".repeat(12_000)})),
        ),
        (
            "events",
            repeat(
                20_000,
                publish(
                    "orders.siege",
                    json!([{"do": "get", "name": "x".repeat(20_000)}]),
                ),
            ),
        ),
    ];
    let modes = ["sync", "async"].into_iter();
    modes
        .flat_map(|mode| {
            let all = all.iter().cloned();
            all.map(move |(_, steps)| Attack {
                path: format!("/{mode}/run"),
                steps,
            })
        })
        .collect()
}

/// Requests to the views of `greedy`: each attack on a sync view and on an async view.
fn greed() -> Vec<Attack> {
    let all = [
        ("random", "ask/random/4/16000000"),
        ("fields", "ask/fields/2000/12000"),
        ("errors", "ask/detail/1/30000000"),
        ("panics", "ask/panic/1/30000000"),
        ("headers of responses", "ask/headers/1000/10000"),
        ("bodies of responses", "ask/body/1/8000000"),
        ("output", "ask/output/1000/10000"),
        ("lines", "ask/lines/100000/1"),
        ("values", "ask/set/100000/8000"),
        ("held events", "hold/20000/60000/200"),
        ("streams", "ask/streams/100000/1"),
    ];
    let modes = ["sync", "async"].into_iter();
    modes
        .flat_map(|mode| {
            let attack = move |(_, path)| Attack {
                path: format!("/greedy/{mode}/{path}"),
                steps: Value::Null,
            };
            all.into_iter().map(attack)
        })
        .collect()
}

/// Sends one attack after the other, from the first again after the last. Returns how many it has sent.
async fn all_in_turn(
    server: &Server,
    attacks: impl Iterator<Item = &Attack> + Clone,
    until: Instant,
) -> u64 {
    let mut count = 0;
    for attack in attacks.cycle() {
        if Instant::now() >= until {
            break;
        }
        let request = server
            .request("POST", &attack.path)
            .timeout(PATIENCE)
            .body(attack.steps.to_string());
        // The result does not matter.
        let _ = crate::harness::Reply::maybe(request).await;
        count += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

/// A client that sends a body without its last byte, waits, and begins again. Returns how many bodies it has sent.
async fn unfinished(server: &Server, number: usize, until: Instant) -> u64 {
    let mut count = 0;
    tokio::time::sleep(Duration::from_millis(10 * number as u64)).await;
    while Instant::now() < until {
        if let Ok(mut stream) = TcpStream::connect(server.address).await {
            let head = "POST /sync/run HTTP/1.1\r\nhost: a\r\ncontent-length: 1000001\r\n\r\n";
            let sent = stream.write_all(head.as_bytes()).await;
            if sent.is_ok() && stream.write_all(&vec![b' '; 1_000_000]).await.is_ok() {
                count += 1;
                let left = until.saturating_duration_since(Instant::now());
                let _ = tokio::time::timeout(HELD.min(left), stream.read_u8()).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    count
}

/// Sends requests with nearly as many headers as the server allows, twenty on each connection. Returns the number of
/// connections.
pub(super) async fn flood(server: &Server, until: Instant) -> u64 {
    let mut count = 0;
    let headers: String = (0..90)
        .map(|number| format!("x-{number}: {}\r\n", "h".repeat(300)))
        .collect();
    let request = format!("GET /nowhere HTTP/1.1\r\nhost: a\r\n{headers}\r\n").repeat(20);
    while Instant::now() < until {
        let Ok(mut stream) = TcpStream::connect(server.address).await else {
            continue;
        };
        if stream.write_all(request.as_bytes()).await.is_ok() {
            let mut piece = [0; 8192];
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut piece)).await;
            count += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

/// The most resident memory, and the most memory that requests took from the host's budget, in MiB.
async fn most_memory(server: &Server, until: Instant) -> [u64; 2] {
    let mut most = [0; 2];
    while Instant::now() < until {
        let drawn = server.metrics().await.get("amphi_memory_bytes");
        let now = [server.memory_kib() >> 10, drawn as u64 >> 20];
        most = [most[0].max(now[0]), most[1].max(now[1])];
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    most
}

/// Sends the request that `ask` makes again and again, and measures each response time.
pub(super) async fn measure(
    name: &'static str,
    ask: impl Fn() -> RequestBuilder,
    until: Instant,
) -> Hello {
    let (mut times, mut refused) = (Vec::new(), 0);
    while Instant::now() < until {
        let since = Instant::now();
        match crate::harness::Reply::maybe(ask().timeout(PATIENCE)).await {
            Ok(reply) if reply.status == 200 => times.push(since.elapsed()),
            _ => refused += 1,
        }
        tokio::time::sleep(EVERY).await;
    }
    times.sort_unstable();
    Hello {
        name,
        times,
        refused,
    }
}
