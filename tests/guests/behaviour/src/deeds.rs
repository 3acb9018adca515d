//! What the sync and the async views share: everything that never waits.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

use amphi_sdk::prelude::*;

/// Counts the calls of [`calls`] in this instance. The count outlives a request only if the instance is reused.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// The form that the view `submit` reads.
#[derive(Deserialize)]
pub struct Entry {
    pub name: String,
    pub age: u8,
}

/// How the view `sql` runs a statement: `/sql?with=query`.
#[derive(Deserialize)]
pub struct With {
    pub with: Option<String>,
}

/// The outbound request that the view `fetch` sends: `/fetch?url=/slow`.
#[derive(Deserialize)]
pub struct Fetch {
    pub url: String,
    pub count: Option<usize>,
    pub timeout_ms: Option<u64>,
}

/// The file that a view reads or writes: `/file?path=/files/a.txt`.
#[derive(Deserialize)]
pub struct File {
    pub path: String,
}

/// Ends a view in the way that is named: with an error, a panic, a trap, a bad response …
pub fn end(how: &str) -> Result<Response> {
    match how {
        "ok" => "done".into_response(),
        "status-404" => (StatusCode::NOT_FOUND, "not here").into_response(),
        "status-500" => (StatusCode::INTERNAL_SERVER_ERROR, "own page").into_response(),
        "refuse" => {
            Err(Error::conflict("the client may read this").with_detail("the log may read this"))
        }
        "error" => Err(Error::internal("only the log may read this")),
        "error-503" => Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "hidden words")),
        "panic" => panic!("on purpose"),
        "exit" => std::process::exit(1),
        "loop" => loop {
            black_box(());
        },
        "recurse" => format!("{}", recurse(1)).into_response(),
        "allocate" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![black_box(1_u8); 1 << 20]);
            }
        }
        "header-name" => "x".with_header("bad name", "x").into_response(),
        "header-empty-name" => "x".with_header("", "x").into_response(),
        "header-value" => "x"
            .with_header("x-value", "a\nset-cookie: stolen=1")
            .into_response(),
        "header-return" => "x"
            .with_header("x-value", "a\r\n\r\n<html>")
            .into_response(),
        "hop-by-hop" => "x".with_header("connection", "close").into_response(),
        "transfer-encoding" => "x"
            .with_header("Transfer-Encoding", "chunked")
            .into_response(),
        "content-length" => "six bytes"
            .with_header("content-length", "3")
            .into_response(),
        "status-100" => Ok(Response::new(StatusCode::CONTINUE)),
        "status-600" => Ok(Response::new(StatusCode::from_u16(600)?)),
        "large" => vec![0_u8; (8 << 20) + 1].into_response(),
        "thread-sleep" => {
            std::thread::sleep(Duration::from_secs(60));
            "slept".into_response()
        }
        other => Err(Error::not_found(format!("no way to end called {other}"))),
    }
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(true) {
        recurse(depth + 1).wrapping_add(frame[depth as usize % 64])
    } else {
        0
    }
}

/// Computes until `ms` milliseconds have passed on the clock.
pub fn spin(ms: u64) -> String {
    let since = Instant::now();
    let mut rounds = 0_u64;
    while since.elapsed() < Duration::from_millis(ms) {
        for _ in 0..1_000 {
            rounds = black_box(rounds + 1);
        }
    }
    format!("{rounds} rounds")
}

/// The result of a host call as text: its value, or the kind of its error and the detail for the log.
pub fn told<T: ToString>(result: Result<T>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => {
            let kind = match (error.database_kind(), error.http_kind()) {
                (Some(kind), _) => format!("{kind:?}"),
                (_, Some(kind)) => format!("{kind:?}"),
                _ => "other".into(),
            };
            let detail = error.detail().unwrap_or_default();
            let text = detail.strip_prefix("database: ").unwrap_or(detail);
            format!("{}: {text}", kind.trim_start_matches("ErrorKind::"))
        }
    }
}

/// How often this function has been called in this instance, with this call.
pub fn calls() -> String {
    (CALLS.fetch_add(1, Relaxed) + 1).to_string()
}

/// Length, checksum and number of pieces of a body that is read piece by piece.
#[derive(Default)]
pub struct Digest {
    length: u64,
    sum: u64,
    pieces: u32,
}

impl Digest {
    pub fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.pieces += 1;
        for byte in piece {
            self.sum = self.sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
    }

    pub fn text(&self) -> String {
        format!("{} {} {}", self.length, self.sum, self.pieces)
    }
}

pub fn cookies(cookies: &Cookies) -> impl IntoResponse + use<> {
    let mut known: Vec<String> = cookies
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    known.sort();
    known
        .join(",")
        .with_cookie(Cookie::new("a", "1"))
        .with_cookie(Cookie::new("b", "2"))
}

pub fn chatter(text: &str) -> &'static str {
    log::info!("told: {text}", length = text.len());
    log::warn!("a warning\nover two lines");
    println!("standard output");
    eprintln!("standard error");
    "said"
}
