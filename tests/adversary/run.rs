//! Runs a program against a server, and collects what was seen: responses, log, rows, metrics.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::program::{Client, Program, Request, Shape, script};
use crate::harness::log::Line;
use crate::harness::{App, Kind, Server};

/// How long a client waits for a response before the run counts as a hang.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long work may stay in flight after the last response.
const QUIET: Duration = Duration::from_secs(12);

/// What was seen of one run.
#[derive(Debug, Default)]
pub struct Seen {
    /// Notes by the number of the step. Steps of an event have a note for each subscriber.
    pub notes: HashMap<u32, Vec<Note>>,
    pub replies: Vec<Reply>,
    /// The number of rows, by the number of the step.
    pub rows: HashMap<u32, i64>,
    /// How much the counter has grown.
    pub counted: i64,
    /// Gauges that did not return to their baseline.
    pub left: Vec<String>,
}

/// What a step noted in the log.
#[derive(Debug, Clone)]
pub struct Note {
    /// The number of the line in the log, and the time in seconds of the day.
    pub began: (usize, f64),
    pub ended: Option<(usize, f64, Told)>,
    /// The view, middleware or subscriber that did the step, and its worker if it is sync.
    pub part: String,
    pub worker: Option<i64>,
}

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Ok(String),
    /// The kind of the error, or a status; and the text.
    Failed(String, String),
}

/// What a client saw, and the log's line about the request.
#[derive(Debug, Default)]
pub struct Reply {
    /// None if the client disconnected, or its connection was closed.
    pub status: Option<u16>,
    /// Whether the body is a view's answer, and not an error page.
    pub is_told: bool,
    pub took: Duration,
    /// When the client disconnected, in seconds of the day.
    pub left_at: Option<f64>,
    /// The field `transaction` of the log's line: `committed`, `rolled back`.
    pub transaction: Option<String>,
    pub why: String,
}

/// Starts a server of this shape.
pub async fn start(kind: Kind, shape: &Shape) -> Server {
    App::rules(kind, &shape.config(kind)).await.serve().await
}

/// Runs a program. `run` is a name that no other run on this server has.
pub async fn run(server: &Server, program: &Program, run: &str) -> Seen {
    let data = &server.app.data;
    let (mark, before) = (
        server.log.mark(),
        data.count("select n from counters").await,
    );
    let sent = program.requests.iter().enumerate();
    let mut replies = join_all(sent.map(|(number, request)| {
        let id = format!("{run}-r{number}");
        send(server, &program.shape, request, run, id)
    }))
    .await;
    let left = quiet(server).await;
    let lines = server.log.since(mark);
    for (number, reply) in replies.iter_mut().enumerate() {
        let id = format!("{run}-r{number}");
        let line = lines.iter().find(|line| {
            line.text("target") == "amphi::request"
                && line.text("request") == id
                && line.text("method") == "POST"
        });
        if let Some(line) = line {
            reply.transaction = Some(line.text("transaction"))
                .filter(|text| !text.is_empty())
                .map(str::to_owned);
            reply.why = line.text("why").to_owned();
        }
    }
    let counted = data
        .texts("select tag || ' ' || count(*) from rows group by tag")
        .await;
    let rows = counted.iter().filter_map(|text| {
        let (tag, count) = text.split_once(' ')?;
        Some((number_of(tag, run)?, count.parse().ok()?))
    });
    let seen = Seen {
        notes: notes(&lines, run),
        replies,
        rows: rows.collect(),
        counted: data.count("select n from counters").await - before,
        left,
    };
    data.execute("delete from rows").await;
    seen
}

/// The number of the step with this tag.
fn number_of(tag: &str, run: &str) -> Option<u32> {
    tag.strip_prefix(run)?.strip_prefix('.')?.parse().ok()
}

fn notes(lines: &[Line], run: &str) -> HashMap<u32, Vec<Note>> {
    let mut notes: HashMap<u32, Vec<Note>> = HashMap::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((tag, what)) = line
            .text("message")
            .strip_prefix("note ")
            .and_then(|text| text.split_once(' '))
        else {
            continue;
        };
        let Some(id) = number_of(tag, run) else {
            continue;
        };
        let (at, part) = (seconds(line.text("timestamp")), line.text("view"));
        let of_step = notes.entry(id).or_default();
        if what == "began" {
            let worker = line.0.get("worker").and_then(serde_json::Value::as_i64);
            of_step.push(Note {
                began: (index, at),
                ended: None,
                part: part.to_owned(),
                worker,
            });
            continue;
        }
        // A step is done once, except that each subscriber does the steps of an event. There is one subscriber in each
        // mode.
        if let Some(note) = of_step
            .iter_mut()
            .find(|note| note.part == part && note.ended.is_none())
        {
            note.ended = Some((index, at, told(what)));
        }
    }
    notes
}

fn told(what: &str) -> Told {
    match what.strip_prefix("failed ") {
        Some(error) => {
            let (kind, text) = error.split_once(": ").unwrap_or((error, ""));
            Told::Failed(kind.to_owned(), text.to_owned())
        }
        None => Told::Ok(what.strip_prefix("told ").unwrap_or(what).to_owned()),
    }
}

/// `2026-11-21T10:20:30.123456Z` as seconds of the day.
fn seconds(timestamp: &str) -> f64 {
    let time = timestamp
        .split_once('T')
        .map_or("", |(_, time)| time.trim_end_matches('Z'));
    time.split(':')
        .fold(0.0, |all, part| all * 60.0 + part.parse().unwrap_or(0.0))
}

fn now() -> f64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_secs_f64() % 86_400.0
}

/// Waits until nothing is in flight any more, but not longer than [`QUIET`]. Returns what is still in flight then, and
/// what the host has printed outside its log.
pub(super) async fn quiet(server: &Server) -> Vec<String> {
    let since = Instant::now();
    loop {
        let mut left: Vec<String> = server
            .metrics()
            .await
            .in_flight()
            .iter()
            .map(|(name, value)| format!("{name} is {value}"))
            .collect();
        if let Some(database) = server.app.data.postgres() {
            match database.transactions().await {
                0 => {}
                open => left.push(format!("{open} transactions are open on the server")),
            }
        }
        if left.is_empty() || since.elapsed() > QUIET {
            let strays = server.log.strays();
            left.extend(
                strays
                    .iter()
                    .map(|line| format!("the host has not logged but said: {}", line.0)),
            );
            return left;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Checks that the server quickly answers a sync view and an async view that run a statement each.
pub async fn probe(server: &Server) -> Result<(), String> {
    for path in ["/sync/run", "/async/run/atomic"] {
        let since = Instant::now();
        let steps = serde_json::json!([{"do": "query", "sql": "select n from counters"}]);
        let asked = tokio::time::timeout(PATIENCE, server.steps(path, steps)).await;
        let status = asked.map(|reply| reply.status).unwrap_or(0);
        if status != 200 || since.elapsed() > Duration::from_secs(2) {
            return Err(format!(
                "afterwards {path} answers {status} after {:?}",
                since.elapsed()
            ));
        }
    }
    Ok(())
}

async fn send(server: &Server, shape: &Shape, request: &Request, run: &str, id: String) -> Reply {
    tokio::time::sleep(Duration::from_millis(request.delay_ms)).await;
    let part = &request.part;
    let mut headers = part.headers(shape, true, run);
    headers.push(("x-request-id".to_owned(), id));
    let body = script(&part.steps, shape, run).to_string();
    let since = Instant::now();
    let sending = async {
        match request.client {
            Client::Stays => kept(server, &part.view.path(), &headers, body).await,
            client => raw(server, client, &part.view.path(), &headers, body).await,
        }
    };
    let reply = tokio::time::timeout(PATIENCE, sending).await;
    Reply {
        took: since.elapsed(),
        ..reply.unwrap_or_default()
    }
}

/// Sends a request on a connection that is kept for other requests.
async fn kept(server: &Server, path: &str, headers: &[(String, String)], body: String) -> Reply {
    let mut request = server.request("POST", path).body(body);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    match crate::harness::Reply::maybe(request).await {
        Ok(reply) => Reply {
            status: Some(reply.status),
            is_told: reply.body.starts_with(b"["),
            ..Reply::default()
        },
        Err(_) => Reply::default(),
    }
}

/// Writes a request as bytes on a connection of its own, then does what this kind of client does.
async fn raw(
    server: &Server,
    client: Client,
    path: &str,
    headers: &[(String, String)],
    body: String,
) -> Reply {
    let Ok(mut stream) = TcpStream::connect(server.address).await else {
        return Reply::default();
    };
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nhost: adversary\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    text += &body;
    match client {
        Client::Pipelines | Client::LeavesBehindRequest { .. } => {
            text += "GET /nowhere HTTP/1.1\r\nhost: adversary\r\n\r\n"
        }
        Client::LeavesBehindLine { .. } => text += "\r\n",
        _ => {}
    }
    if stream.write_all(text.as_bytes()).await.is_err() {
        return Reply::default();
    }
    if client == Client::HalfCloses {
        // The server may have closed the connection before.
        let _ = stream.shutdown().await;
    }
    let Some(after_ms) = client.leaves_after_ms() else {
        return read(&mut stream).await;
    };
    match tokio::time::timeout(Duration::from_millis(after_ms), read(&mut stream)).await {
        Ok(reply) => reply,
        Err(_) => {
            drop(stream);
            Reply {
                left_at: Some(now()),
                ..Reply::default()
            }
        }
    }
}

/// Reads the first response on a connection.
async fn read(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        if let Some(reply) = parse(&bytes) {
            return reply;
        }
        match stream.read(&mut piece).await {
            Ok(length @ 1..) => bytes.extend_from_slice(&piece[..length]),
            _ => return Reply::default(),
        }
    }
}

/// Parses a response. None if it is not complete yet.
fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let body = &bytes[end + 4..];
    (body.len() >= length.unwrap_or(0)).then(|| Reply {
        status: head
            .split_whitespace()
            .nth(1)
            .and_then(|status| status.parse().ok()),
        is_told: body.starts_with(b"["),
        ..Reply::default()
    })
}
