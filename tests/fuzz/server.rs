//! Fuzzing of a whole server: with nearly valid requests, and with views whose responses are nearly valid.

use std::time::{Duration, Instant};

use amphi_tests::harness::raw::Raw;
use amphi_tests::harness::{App, Kind, Server};
use fastrand::Rng;
use serde_json::{Value, json};

use super::{script, scripts, seed};

const REQUESTS: [&str; 6] = [
    "POST /sync/run HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n[]",
    "POST /async/run HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
    "GET /nowhere?a=%20&b HTTP/1.1\r\nhost: a\r\ncookie: a=b; c=\"d\"\r\naccept: text/html;q=0.5\r\nexpect: 100-continue\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
    "HEAD /sync/run HTTP/1.0\r\nx-forwarded-for: 1.2.3.4\r\nforwarded: for=\"[::1]:1\"\r\nx-request-id: a\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\u{6}\u{4}\0\0\0\0\0\0\u{3}\0\0\0d\0\0\u{4}\u{8}\0\0\0\0\0\0\u{1}\0\0",
];

/// Values of headers and statements that a guest may pass to the host.
const VALUES: [&str; 5] = [
    "text/html; charset=utf-8",
    "a=b; Path=/; HttpOnly",
    "12",
    "bytes 0-1/2",
    "select $1 as a, '[1,2]' as b",
];

const HEADERS: [&str; 10] = [
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "set-cookie",
    "date",
    "x-a",
    "location",
    "trailer",
    "\u{e4} :",
];

async fn serve(toml: &str) -> Server {
    App::rules(Kind::Sqlite, toml).await.serve().await
}

/// Checks that the server answers, and that it holds no resources of earlier requests.
async fn is_well(server: &Server) {
    assert_eq!(server.steps("/sync/run", json!([])).await.status, 200);
    assert_eq!(server.steps("/async/run", json!([])).await.status, 200);
    server.assert_baseline().await;
}

#[tokio::test]
async fn request() {
    let server = serve("server = { header_timeout_ms = 200, body_timeout_ms = 200 }").await;
    let seed = seed();
    for script in scripts(Rng::with_seed(seed)) {
        let input = script::changed(&REQUESTS, &script);
        let mut raw = Raw::connect(&server).await;
        raw.send(&input).await;
        raw.finish().await;
        let since = Instant::now();
        raw.rest().await;
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "{:?}",
            String::from_utf8_lossy(&input)
        );
    }
    is_well(&server).await;
}

/// A guest answers with random statuses and nearly valid headers.
#[tokio::test]
async fn response() {
    let server = serve("").await;
    let mut random = Rng::with_seed(seed());
    for script in scripts(random.fork()) {
        let texts: Vec<String> = script
            .chunks(20)
            .take(6)
            .map(|piece| text(&VALUES, piece))
            .collect();
        let headers: Vec<[&str; 2]> = texts
            .iter()
            .map(|text| [HEADERS[random.usize(..HEADERS.len())], text.as_str()])
            .collect();
        let status = [random.u16(100..600), random.u16(..), 200, 304, 204, 101][random.usize(..6)];
        let answer = json!([{"do": "answer", "code": status, "headers": headers}]);
        let path = ["/sync/run", "/async/run/atomic"][random.usize(..2)];
        let mut raw = Raw::connect(&server).await;
        let body = answer.to_string();
        let length = body.len();
        raw.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        let reply = raw.rest().await;
        // No status or header of a guest ends a response early or begins a second one.
        assert!(reply.starts_with("HTTP/1.1 "), "{answer}: {reply:?}");
        assert_eq!(reply.matches("HTTP/1.1 ").count(), 1, "{answer}: {reply:?}");
    }
    is_well(&server).await;
}

/// A guest runs nearly valid statements with random parameters.
#[tokio::test]
async fn values() {
    let server = serve("").await;
    let mut random = Rng::with_seed(seed());
    for script in scripts(random.fork()) {
        let params: Vec<Value> = script
            .chunks(12)
            .take(5)
            .map(|piece| match piece[0] % 6 {
                0 => Value::Null,
                1 => Value::from(i64::from(piece[0]) << (piece.len() * 5)),
                2 => Value::from(f64::from(piece[0]) * 1e300),
                3 => Value::from(piece.iter().copied().map(Value::from).collect::<Vec<_>>()),
                4 => Value::Bool(true),
                _ => Value::from(text(&VALUES, piece)),
            })
            .collect();
        let sql = match random.bool() {
            true => "select $1 as a, $2 as b, $3 as c".to_owned(),
            false => text(&VALUES, &script),
        };
        let steps = json!([{"do": "query", "sql": sql, "params": params}]);
        let path = ["/sync/run", "/async/run/atomic"][random.usize(..2)];
        let reply = server.steps(path, steps.clone()).await;
        assert!([200, 500].contains(&reply.status), "{steps}: {reply:?}");
    }
    is_well(&server).await;
}

fn text(seeds: &[&str], piece: &[u8]) -> String {
    String::from_utf8_lossy(&script::changed(seeds, piece)).into_owned()
}
