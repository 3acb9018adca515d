//! Clients that disconnect before their response, in every way: their requests are rolled back (R15).

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::server::client_http2;
use crate::harness::steps::{insert, log, must, nap, publish};
use crate::harness::{App, Kind, Mode, Reply, SOON, Server, eventually};

/// How long the view waits after its insertion: much longer than the host may take to notice a disconnect.
const NAP_MS: u64 = 4_000;

/// A request to a view that inserts a row, logs that, waits, and would commit.
fn request(mode: Mode) -> String {
    let steps = json!([must(insert("left")), log("inserted"), nap(NAP_MS)]).to_string();
    let length = steps.len();
    format!(
        "POST /{mode}/run/atomic HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{steps}"
    )
}

/// The same request with its body in chunks, followed by trailers.
fn chunked(mode: Mode) -> String {
    let steps = json!([must(insert("left")), log("inserted"), nap(NAP_MS)]).to_string();
    let (first, second) = steps.split_at(10);
    format!(
        "POST /{mode}/run/atomic HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\na\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\nx-trailer: a\r\n\r\n",
        second.len()
    )
}

/// How a client disconnects.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    /// The connection is closed.
    Closed,
    /// The connection is reset.
    Reset,
    /// The client closes its direction of the connection, which counts as a disconnect.
    Half,
}

/// Sends `bytes`, disconnects when the view has inserted, and checks that the host notices it soon and keeps nothing.
async fn leaves(server: &Server, bytes: &[u8], leaving: Leaving) {
    let what = format!("{} bytes, {leaving:?}", bytes.len());
    let mark = server.log.mark();
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    stream.write_all(bytes).await.expect("the server reads");
    inserted(server, mark).await;
    let since = Instant::now();
    let _kept = match leaving {
        Leaving::Closed => {
            drop(stream);
            None
        }
        Leaving::Reset => {
            let socket = stream.into_std().expect("it is open");
            socket2::SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .expect("it can be set");
            None
        }
        Leaving::Half => {
            stream.shutdown().await.expect("it is open");
            Some(stream)
        }
    };
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 499, "{what}: {lines:#?}");
    let took = since.elapsed();
    assert!(
        took < Duration::from_millis(NAP_MS / 2),
        "{what}: seen after {took:?}"
    );
    server.assert_baseline().await;
    assert_eq!(server.app.data.rows().await, 0, "{what}");
}

async fn inserted(server: &Server, mark: u64) {
    eventually("the view to insert", async || {
        let lines = server.log.since(mark);
        match lines.iter().any(|line| line.text("message") == "inserted") {
            true => Ok(()),
            false => Err(lines),
        }
    })
    .await;
}

/// A disconnect is noticed whatever bytes follow the request: none, a line end, one byte, another request, a part of a
/// large request, bytes after a chunked body.
async fn r15_a_client_that_leaves_is_noticed_behind_what_it_has_sent(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let request = request(mode);
    let behind = [
        String::new(),
        "\r\n".to_owned(),
        "x".to_owned(),
        request.clone(),
        format!("GET /{mode}/hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
        format!(
            "POST /{mode}/run HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n{}",
            "x".repeat(150_000)
        ),
    ];
    for leaving in [Leaving::Closed, Leaving::Reset, Leaving::Half] {
        for behind in &behind {
            leaves(&server, format!("{request}{behind}").as_bytes(), leaving).await;
        }
        leaves(&server, chunked(mode).as_bytes(), leaving).await;
        leaves(
            &server,
            format!("{}\r\nmore", chunked(mode)).as_bytes(),
            leaving,
        )
        .await;
    }
}
both_modes!(r15_a_client_that_leaves_is_noticed_behind_what_it_has_sent);

/// A client that sends more bytes after its request than the host reads ahead is disconnected, because the host could
/// not notice when such a client leaves.
async fn r15_a_client_that_floods_a_request_is_left(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let mark = server.log.mark();
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    stream
        .write_all(request(mode).as_bytes())
        .await
        .expect("the server reads");
    inserted(&server, mark).await;
    let flood = vec![b'x'; 1 << 20];
    let flooded = async { while stream.write_all(&flood).await.is_ok() {} };
    tokio::time::timeout(SOON, flooded)
        .await
        .expect("the server closes the connection");
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 499, "{lines:#?}");
    server.assert_baseline().await;
    assert_eq!(server.app.data.rows().await, 0);
}
both_modes!(r15_a_client_that_floods_a_request_is_left);

/// Pipelined requests of a client that stays connected are answered in order, however many bytes they have.
async fn pipelined_requests_are_answered_in_order(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let one = |tag: &str, size: usize| {
        let steps = json!([nap(50), insert(tag)]).to_string() + &" ".repeat(size);
        format!(
            "POST /{mode}/run/atomic HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{steps}",
            steps.len()
        )
    };
    let all = [
        one("a", 0),
        one("b", 100_000),
        one("c", 60_000),
        one("d", 0),
    ]
    .concat();
    let mut raw = crate::harness::raw::Raw::connect(&server).await;
    raw.send(all).await;
    for _ in 0..4 {
        let head = raw.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        raw.until("]").await;
    }
    assert_eq!(server.app.data.tags().await, ["a", "b", "c", "d"]);
    drop(raw);
    server.assert_baseline().await;
}
both_modes!(pipelined_requests_are_answered_in_order);

/// On HTTP/2: a stream that the client resets, and a connection that breaks with several streams on it.
async fn r15_streams_and_connections_of_http2_that_end_are_noticed(mode: Mode) {
    let server = App::rules(
        Kind::Sqlite,
        "sync_views = { workers_max = 16 }\ndatabases.default.acquire_timeout_ms = 60000",
    )
    .await
    .serve()
    .await;
    let steps = json!([must(insert("left")), log("inserted"), nap(NAP_MS)]).to_string();
    let (client, path) = (client_http2(), server.url(&format!("/{mode}/run/atomic")));
    let mark = server.log.mark();
    let sent = tokio::spawn(client.post(&path).body(steps.clone()).send());
    inserted(&server, mark).await;
    sent.abort();
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 499, "{lines:#?}");
    // The connection stays open.
    assert_eq!(
        Reply::of(client.post(server.url(&format!("/{mode}/run"))).body("[]"))
            .await
            .status,
        200
    );

    // The next requests go through a proxy that can break the connection.
    let (proxy, breaks) = broken_proxy(&server).await;
    let client = client_http2();
    let mark = server.log.mark();
    let sent: Vec<_> = (0..3)
        .map(|_| {
            tokio::spawn(
                client
                    .post(format!("http://{proxy}/{mode}/run/atomic"))
                    .body(steps.clone())
                    .send(),
            )
        })
        .collect();
    inserted(&server, mark).await;
    let since = Instant::now();
    breaks.abort();
    let lines = server.log.requests(mark, 3).await;
    assert!(
        lines.iter().all(|line| line.number("status") == 499),
        "{lines:#?}"
    );
    assert!(
        since.elapsed() < Duration::from_millis(NAP_MS / 2),
        "{:?}",
        since.elapsed()
    );
    drop(sent);
    server.assert_baseline().await;
    assert_eq!(server.app.data.rows().await, 0);
}
both_modes!(r15_streams_and_connections_of_http2_that_end_are_noticed);

/// A client that disconnects while its request is queued for a worker or an instance: the view never begins.
async fn r15_a_client_that_leaves_the_queue_is_noticed(mode: Mode) {
    let toml = "sync_views = { workers = 1, workers_max = 1 }\nasync_views = { in_flight_max = 1 }";
    let server = App::rules(Kind::Sqlite, toml).await.serve().await;
    let mark = server.log.mark();
    let path = format!("/{mode}/run");
    let first = server.steps(&path, json!([log("inserted"), nap(4000)]));
    let leaving = async {
        inserted(&server, mark).await;
        for behind in ["", "\r\n"] {
            let mut stream = TcpStream::connect(server.address)
                .await
                .expect("the server accepts");
            stream
                .write_all(format!("{}{behind}", request(mode)).as_bytes())
                .await
                .expect("the server reads");
            eventually("it to be queued", async || {
                let queued = server.metrics().await.get("amphi_queued");
                if queued == 1.0 { Ok(()) } else { Err(queued) }
            })
            .await;
            drop(stream);
            eventually("it to leave the queue", async || {
                let queued = server.metrics().await.get("amphi_queued");
                if queued == 0.0 { Ok(()) } else { Err(queued) }
            })
            .await;
        }
    };
    tokio::join!(first, leaving);
    let lines = server.log.requests(mark, 3).await;
    let statuses: Vec<i64> = lines.iter().map(|line| line.number("status")).collect();
    assert_eq!(statuses, [499, 499, 200], "{lines:#?}");
    server.assert_baseline().await;
    assert_eq!(server.app.data.rows().await, 0);
}
both_modes!(r15_a_client_that_leaves_the_queue_is_noticed);

/// A body that breaks off never reaches its view. A disconnect after an event is published does not stop the event's
/// subscribers.
async fn r15_leaving_early_or_late_changes_nothing_else(mode: Mode) {
    let server = App::rules(Kind::Sqlite, "").await.serve().await;
    let request = request(mode);
    for part in [request.len() - 1, request.len() - 50] {
        let mark = server.log.mark();
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("the server accepts");
        stream
            .write_all(&request.as_bytes()[..part])
            .await
            .expect("the server reads");
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
        let lines = server.log.requests(mark, 1).await;
        assert!(
            [400, 499].contains(&lines[0].number("status")),
            "{lines:#?}"
        );
    }
    let head = format!(
        "POST /{mode}/run/atomic HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n"
    );
    let mut raw = crate::harness::raw::Raw::connect(&server).await;
    raw.send(head).await;
    raw.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    drop(raw);
    server.assert_baseline().await;
    assert_eq!(server.app.data.rows().await, 0);

    let mark = server.log.mark();
    let steps = json!([
        publish("orders.paid", json!([nap(500), must(insert("heard"))])),
        log("inserted"),
        nap(NAP_MS)
    ]);
    let (path, body) = (format!("/{mode}/run"), steps.to_string());
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    let sent = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}\r\n",
        body.len()
    );
    stream
        .write_all(sent.as_bytes())
        .await
        .expect("the server reads");
    inserted(&server, mark).await;
    drop(stream);
    eventually("the subscriber to go on", async || {
        let tags = server.app.data.tags().await;
        if tags.iter().all(|tag| tag == "heard") && !tags.is_empty() {
            Ok(())
        } else {
            Err(tags)
        }
    })
    .await;
    server.assert_baseline().await;
}
both_modes!(r15_leaving_early_or_late_changes_nothing_else);

/// A proxy to the server, for one connection. Aborting the returned task breaks the connection.
async fn broken_proxy(server: &Server) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port is free");
    let (address, to) = (listener.local_addr().expect("it listens"), server.address);
    let proxied = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("a client comes");
        let mut server = TcpStream::connect(to).await.expect("the server accepts");
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    (address, proxied)
}
