//! Bodies that stream, in views of both modes: responses that are produced while they are sent, and requests that are
//! read while they arrive.

use std::time::{Duration, Instant};

use reqwest::Body;

use crate::harness::server::client_http2;
use crate::harness::{App, Mode, Reply, Server, guests, raw};

/// A server with the views of `tests/guests/streams`, in both modes, in a module each. `toml` goes before the modules.
async fn serve(toml: &str) -> Server {
    let module = |mode| {
        format!(
            "[modules.{mode}]\npath = {:?}\nmount = \"/streams\"\ndatabases = [\"default\"]\nungranted_imports = true\nsubrequests = {}\nmiddleware = [{}]\n",
            guests::built("streams", mode),
            toml.contains("subrequests"),
            match toml.contains("around") {
                true => format!("\"{mode}::around\""),
                false => String::new(),
            }
        )
    };
    let migrations = guests::folder().join("migrations");
    let app = App::written(&format!(
        r#"
        [app]
        name = "streams"
        middleware = ["compression"]
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        [databases.default]
        sqlite = "data/test.db"
        migrations = {migrations:?}
        {toml}
        {}{}"#,
        module(Mode::Sync),
        module(Mode::Async)
    ));
    app.serve().await
}

fn path(mode: Mode, rest: &str) -> String {
    format!("/streams/{mode}/{rest}")
}

/// What a raw connection gets for a request that it ends with `connection: close`.
async fn exchange(server: &Server, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    raw::exchange(server, request).await
}

async fn a_stream_is_sent_as_it_is_produced(mode: Mode) {
    let server = serve("").await;
    let reply = server.get(&path(mode, "lines?count=3")).await;
    assert_eq!(reply.ok(), "line 0\nline 1\nline 2\n");
    assert_eq!(reply.header("content-type"), "text/plain");
    let begun = Instant::now();
    let drip = path(mode, "lines?count=3&ms=2000");
    let mut response = server
        .request("GET", &drip)
        .send()
        .await
        .expect("it begins");
    let first = response.chunk().await.expect("it goes on");
    assert_eq!(first.as_deref(), Some(&b"line 0\n"[..]));
    assert!(
        begun.elapsed() < Duration::from_millis(1800),
        "{:?}",
        begun.elapsed()
    );
    drop(response);
    server.assert_baseline().await;
}
both_modes!(a_stream_is_sent_as_it_is_produced);

/// However a producer fails, the client sees a body that breaks off, over HTTP/1.1 and HTTP/2, and the log says why.
async fn no_client_takes_a_part_for_the_whole(mode: Mode) {
    let server = serve("").await;
    for (how, why) in [
        ("error", "the stream fails on purpose"),
        ("panic", "the stream panics on purpose"),
        ("declares-0", "more bytes than the 0"),
        ("declares-5", "more bytes than the 5"),
        ("declares-9", "7 bytes, and not the 9"),
    ] {
        let path = path(mode, &format!("ends/{how}"));
        let mark = server.log.mark();
        let sent = exchange(&server, &path).await;
        assert!(!sent.ends_with("0\r\n\r\n"), "{how}: {sent}");
        // The connection may end before anything of the response is sent.
        let (head, body) = sent.split_once("\r\n\r\n").unwrap_or_default();
        let mut lines = head.lines();
        let declared = lines.find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = declared.map(|text| text.parse().expect("it is a number")) {
            assert!(body.len() < length, "{how}: {sent}");
        }
        let line = &server.log.requests(mark, 1).await[0];
        assert!(line.text("why").contains(why), "{how}: {line:?}");
        let http2 = client_http2();
        let response = http2.get(server.url(&path)).send().await;
        let body = match response {
            Ok(response) => response.bytes().await,
            Err(error) => Err(error),
        };
        assert!(body.is_err(), "{how}: {body:?}");
    }
    let reply = server.get(&path(mode, "ends/declares-7")).await;
    assert_eq!(
        (reply.ok(), reply.header("content-length")),
        ("a line\n", "7")
    );
    server.assert_baseline().await;
}
both_modes!(no_client_takes_a_part_for_the_whole);

/// A client of HTTP/1.0 takes the end of the connection for the end of the body, so it gets a stream as a whole.
async fn old_clients_get_streams_as_a_whole(mode: Mode) {
    let server = serve("").await;
    for (rest, status, end) in [
        ("lines?count=2", 200, "line 1\n"),
        ("ends/error", 500, "could not answer"),
    ] {
        let request = format!("GET {} HTTP/1.0\r\nhost: a\r\n\r\n", path(mode, rest));
        let answer = raw::exchange(&server, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{answer}"
        );
        assert!(
            answer.contains("content-length: ") && answer.contains(end),
            "{answer}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(old_clients_get_streams_as_a_whole);

/// The transaction of the request has been committed before the first byte of the body is sent.
async fn r9_a_stream_begins_after_the_commit(mode: Mode) {
    let server = serve("").await;
    let reply = server.post(&path(mode, "committed/kept"), "").await;
    assert_eq!(reply.ok(), "1 of kept\n");
    let reply = server.post(&path(mode, "committed/undone"), "").await;
    assert_eq!((reply.status, reply.text()), (500, "0 of undone\n"));
    assert_eq!(
        server.tags(),
        ["kept", "from the stream", "from the stream"]
    );
    server.assert_baseline().await;
}
both_modes!(r9_a_stream_begins_after_the_commit);

/// What a producer leaves open is rolled back, and its other statements stay.
async fn r13_what_a_stream_leaves_open_is_rolled_back(mode: Mode) {
    let server = serve("").await;
    exchange(&server, &path(mode, "ends/open-block")).await;
    server.assert_baseline().await;
    assert_eq!(server.tags(), ["plain"]);
}
both_modes!(r13_what_a_stream_leaves_open_is_rolled_back);

/// A client that leaves ends the producer: one that writes, one that sleeps and one that computes.
async fn r15_a_client_that_leaves_ends_the_stream(mode: Mode) {
    let server = serve("").await;
    for rest in ["endless", "ends/sleep", "ends/spin"] {
        let mark = server.log.mark();
        let path = path(mode, rest);
        let mut response = server
            .request("GET", &path)
            .send()
            .await
            .expect("it begins");
        response.chunk().await.expect("it goes on");
        drop(response);
        let line = &server.log.requests(mark, 1).await[0];
        assert_eq!(line.text("fault"), "client", "{rest}: {line:?}");
        server.assert_baseline().await;
    }
    // Another request that waits in the socket does not hide it.
    let mut both = raw::Raw::connect(&server).await;
    for rest in ["ends/sleep", "lines?count=1"] {
        let request = format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", path(mode, rest));
        both.send(request).await;
    }
    both.until("a line").await;
    drop(both);
    server.assert_baseline().await;
}
both_modes!(r15_a_client_that_leaves_ends_the_stream);

/// A producer has limits of its own, on time, CPU time and bytes, and the log names the one that was reached.
async fn streams_have_limits(mode: Mode) {
    for (limit, rest, named) in [
        ("stream_timeout_ms = 500", "ends/sleep", "stream_timeout_ms"),
        (
            "stream_cpu_ms = 300\ncpu_ms = 200",
            "ends/spin",
            "stream_cpu_ms",
        ),
        ("stream_max_bytes = 100000", "endless", "stream_max_bytes"),
    ] {
        let server = serve(&format!("[limits]\n{limit}")).await;
        let mark = server.log.mark();
        let sent = exchange(&server, &path(mode, rest)).await;
        assert!(!sent.ends_with("0\r\n\r\n"), "{rest}");
        let line = &server.log.requests(mark, 1).await[0];
        assert!(line.text("why").contains(named), "{rest}: {line:?}");
        server.assert_baseline().await;
    }
}
both_modes!(streams_have_limits);

/// Much data takes little memory, also when the client is slow, and a slow client holds up nobody.
async fn r4_a_slow_client_holds_up_nobody(mode: Mode) {
    let server = serve("[sync_views]\nworkers = 1\nworkers_max = 4").await;
    server.get(&path(mode, "big?mb=1")).await.ok();
    let before = server.memory_kib();
    let mut slow = server
        .request("GET", &path(mode, "big?mb=100"))
        .send()
        .await
        .expect("it begins");
    slow.chunk().await.expect("it goes on");
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..10 {
        server.get(&path(mode, "lines?count=1")).await.ok();
    }
    let mut length = 0;
    while let Some(piece) = slow.chunk().await.expect("it goes on") {
        length += piece.len();
    }
    assert!(length > 99 << 20, "{length}");
    let more = server.memory_kib().saturating_sub(before);
    assert!(more < 32 << 10, "{more} KiB");
    server.assert_baseline().await;
}
both_modes!(r4_a_slow_client_holds_up_nobody);

async fn rows_stream_from_the_database(mode: Mode) {
    let server = serve("").await;
    let many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
        insert into rows (tag) select 'row ' || i from n";
    server.database().execute(many, []).expect("there is room");
    let reply = server.get(&path(mode, "rows.csv")).await;
    assert_eq!(reply.ok().lines().count(), 20_000);
    assert!(reply.text().ends_with("20000,row 20000\n"));
    server.assert_baseline().await;
}
both_modes!(rows_stream_from_the_database);

/// HEAD, and a response whose copy the client has, run no producer; a compressed stream arrives as it was written.
async fn a_stream_is_a_response_as_others(mode: Mode) {
    let server = serve("").await;
    let head = Reply::of(server.request("HEAD", &path(mode, "lines?count=3"))).await;
    assert_eq!(head.ok(), "");
    let request = server.request("GET", &path(mode, "lines?count=3&ms=300"));
    let request = request.header("accept-encoding", "gzip");
    let mut response = request.send().await.expect("it begins");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let begun = Instant::now();
    assert!(response.chunk().await.expect("it goes on").is_some());
    assert!(
        begun.elapsed() < Duration::from_millis(280),
        "{:?}",
        begun.elapsed()
    );
    drop(response);
    server.assert_baseline().await;
}
both_modes!(a_stream_is_a_response_as_others);

/// Middleware and callers pass a stream on, change its head, or replace it.
async fn streams_pass_through_other_functions(mode: Mode) {
    let server = serve("# around, subrequests").await;
    for other in ["sync", "async"] {
        let reply = server
            .get(&path(mode, &format!("from/{other}/ends/well")))
            .await;
        assert_eq!(reply.ok(), "a line\n");
    }
    let marked = server.get(&path(mode, "ends/well?around=mark")).await;
    assert_eq!(
        (marked.ok(), marked.header("x-around")),
        ("a line\n", &*mode.to_string())
    );
    let replaced = server.get(&path(mode, "ends/well?around=replace")).await;
    assert_eq!(replaced.ok(), "replaced\n");
    server.assert_baseline().await;
}
both_modes!(streams_pass_through_other_functions);

/// A view with `body = "stream"` begins with the head of its request, and reads what has arrived.
async fn a_body_is_read_while_it_arrives(mode: Mode) {
    let server = serve("").await;
    let pieces = (0..5).map(|_| Ok::<_, std::io::Error>(vec![7; 100_000]));
    let body = Body::wrap_stream(futures::stream::iter(pieces));
    let reply = server.post(&path(mode, "upload"), body).await;
    assert_eq!(reply.ok(), "500000 bytes of None in pieces\n");
    let reply = server.post(&path(mode, "upload"), vec![7; 10]).await;
    assert_eq!(reply.ok(), "10 bytes of Some(10) in one piece\n");
    let mark = server.log.mark();
    let much = server
        .request("POST", &path(mode, "upload"))
        .body(vec![7; 9 << 20]);
    // The server may close the connection before all of the body is sent.
    if let Ok(reply) = Reply::maybe(much).await {
        assert_eq!(reply.status, 413);
    }
    assert_eq!(server.log.requests(mark, 1).await[0].number("status"), 413);
    let mut broken = raw::Raw::connect(&server).await;
    let path = path(mode, "upload");
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nonly a part");
    broken.send(head).await;
    drop(broken);
    server.assert_baseline().await;
}
both_modes!(a_body_is_read_while_it_arrives);
