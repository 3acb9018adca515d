//! HTTP: methods, versions, connections, limits, and clients that break the protocol.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::log::Line;
use crate::harness::raw::{Raw, exchange, status};
use crate::harness::server::{client, client_http2};
use crate::harness::steps::{fetch, nap, publish};
use crate::harness::{App, Kind, Mode, Reply, Server, eventually};

/// Checks that the server still answers, with nothing in flight and no panic in its log.
async fn assert_well(server: &Server) {
    for mode in [Mode::Sync, Mode::Async] {
        assert_eq!(server.get(&format!("/{mode}/hello")).await.ok(), "hello");
    }
    server.assert_baseline().await;
}

async fn methods_without_a_view_are_answered_by_the_host(mode: Mode) {
    let server = App::new("").serve().await;
    let reply = Reply::of(server.request("HEAD", &format!("/{mode}/hello"))).await;
    assert_eq!(
        (
            reply.status,
            reply.header("content-length"),
            reply.body.len()
        ),
        (200, "5", 0)
    );
    assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
    let reply = Reply::of(server.request("OPTIONS", &format!("/{mode}/file"))).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (204, "GET, HEAD, OPTIONS, PUT")
    );
    for method in ["POST", "DELETE", "PATCH", "TRACE", "BREW"] {
        let reply = Reply::of(server.request(method, &format!("/{mode}/hello"))).await;
        assert_eq!(
            (reply.status, reply.header("allow")),
            (405, "GET, HEAD, OPTIONS"),
            "{method}"
        );
        assert!(reply.text().contains(method), "{}", reply.text());
    }
    let reply = Reply::of(server.request("HEAD", &format!("/{mode}/rows/a"))).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (405, "OPTIONS, POST")
    );
    for path in [
        "/",
        "/nothing",
        &format!("/{mode}"),
        &format!("/{mode}/hello/"),
        &format!("/{mode}/hello/x"),
        &format!("//{mode}/hello"),
    ] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    let reply = Reply::of(server.request("HEAD", "/nothing")).await;
    assert_eq!((reply.status, reply.body.len()), (404, 0));
    assert_eq!(
        server.get(&format!("/{mode}/hello?a=b&%ff")).await.ok(),
        "hello"
    );
    assert_well(&server).await;
}
both_modes!(methods_without_a_view_are_answered_by_the_host);

/// A less specific pattern serves a method that the more specific pattern lacks. Literals match in any encoding
/// (RFC 3986, 6.2.2).
async fn patterns_match_whatever_the_encoding_and_hide_no_other(mode: Mode) {
    let server = App::new("").serve().await;
    let path = format!("/{mode}/greet/everybody");
    assert_eq!(server.post(&path, "").await.ok(), "hello everybody");
    assert_eq!(server.get(&path).await.ok(), "hello everybody");
    let reply = Reply::of(server.request("DELETE", &path)).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (405, "GET, HEAD, OPTIONS, POST")
    );
    let reply = Reply::of(server.request("POST", &format!("/{mode}/greet/anna"))).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (405, "GET, HEAD, OPTIONS")
    );
    for literal in [
        "gr%C3%BC%C3%9Fe",
        "gr%c3%bc%c3%9fe",
        "%67r%C3%BC%c3%9F%65",
        "grüße",
    ] {
        let request =
            format!("GET /{mode}/{literal}/a%2Fb HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = exchange(&server, request).await;
        assert!(answer.ends_with("hallo a/b"), "{literal}: {answer}");
    }
    assert_eq!(
        server.get(&format!("/{mode}%2Fhello")).await.status,
        404,
        "an encoded slash is data"
    );
    assert_eq!(
        server
            .get(&format!(
                "/%{:02x}{}/hello",
                mode.to_string().as_bytes()[0],
                &mode.to_string()[1..]
            ))
            .await
            .ok(),
        "hello"
    );
    assert_well(&server).await;
}
both_modes!(patterns_match_whatever_the_encoding_and_hide_no_other);

async fn paths_are_decoded_once_and_only_as_utf8(mode: Mode) {
    let server = App::new("").serve().await;
    for (path, said) in [
        ("%C3%A4%2F%20b", "hello ä/ b"),
        ("%2541", "hello %41"),
        ("a+b", "hello a+b"),
        ("..%2f", "hello ../"),
    ] {
        assert_eq!(
            server.get(&format!("/{mode}/greet/{path}")).await.ok(),
            said
        );
    }
    for path in ["%ff", "%C3", "%80abc", "a%ED%A0%80"] {
        let reply = server.get(&format!("/{mode}/greet/{path}")).await;
        assert_eq!(reply.status, 400, "{path}");
        assert!(reply.text().contains("UTF-8"), "{}", reply.text());
    }
    let answer = exchange(
        &server,
        [
            format!("GET /{mode}/greet/").as_bytes(),
            b"\xff\xfe HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        ]
        .concat(),
    )
    .await;
    assert_eq!(status(&answer), 400, "{answer}");
    assert_well(&server).await;
}
both_modes!(paths_are_decoded_once_and_only_as_utf8);

/// However a client spells a path, guests get one spelling, and so does the log.
async fn guests_get_one_spelling_of_a_path(mode: Mode) {
    let server = App::new("").serve().await;
    let mark = server.log.mark();
    let name = mode.to_string();
    let (first, rest) = (name.as_bytes()[0], &name[1..]);
    let seen = format!("/{mode}/gr%C3%BC%C3%9Fe/caf%C3%A9%2F@");
    let spellings = [
        "gr%C3%BC%C3%9Fe",
        "gr%c3%bc%c3%9fe",
        "%67r%C3%BC%c3%9F%65",
        "grüße",
    ];
    for spelling in spellings {
        let request = format!(
            "GET /%{first:02x}{rest}/{spelling}/caf%c3%a9%2f%40 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        );
        let answer = exchange(&server, request).await;
        let header = format!("x-path: {seen}\r\n");
        assert!(answer.contains(&header), "{spelling}: {answer}");
        assert!(answer.ends_with("hallo café/@"), "{spelling}: {answer}");
    }
    for line in server.log.requests(mark, spellings.len()).await {
        assert_eq!(line.text("path"), seen);
    }
    assert_well(&server).await;
}
both_modes!(guests_get_one_spelling_of_a_path);

async fn http2_is_spoken_from_the_first_byte(mode: Mode) {
    let server = App::new("").serve().await;
    let client = client_http2();
    let replies = join_all((0..100).map(|number| {
        let request = client.get(server.url(&format!("/{mode}/greet/{number}")));
        async move { (number, Reply::of(request).await) }
    }));
    for (number, reply) in replies.await {
        assert_eq!(reply.ok(), format!("hello {number}"));
    }
    let reply = Reply::of(
        client
            .post(server.url(&format!("/{mode}/whole")))
            .body(vec![7; 500_000]),
    )
    .await;
    assert!(reply.ok().starts_with("500000 "), "{}", reply.text());
    assert_eq!(
        Reply::of(client.post(server.url(&format!("/{mode}/fail/panic"))))
            .await
            .status,
        500
    );
    assert_eq!(
        Reply::of(client.get(server.url("/nothing"))).await.status,
        404
    );
    assert!(
        server.metrics().await.get("amphi_connections") <= 4.0,
        "one connection serves them all"
    );

    // A client that resets its stream cancels the view; the connection stays open.
    let mark = server.log.mark();
    let request = client
        .post(server.url(&format!("/{mode}/fail/sleep")))
        .timeout(Duration::from_millis(200));
    Reply::maybe(request).await.expect_err("it was taken back");
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 499, "{lines:#?}");
    assert_eq!(
        Reply::of(client.get(server.url(&format!("/{mode}/hello"))))
            .await
            .ok(),
        "hello"
    );
    assert_eq!(server.rows(), 0);
    assert_well(&server).await;
}
both_modes!(http2_is_spoken_from_the_first_byte);

async fn connections_are_kept(mode: Mode) {
    let server = App::new("").serve().await;
    let mut raw = Raw::connect(&server).await;
    for _ in 0..5 {
        raw.send(format!("GET /{mode}/hello HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let answer = raw.until("hello").await;
        assert_eq!(status(&answer), 200);
    }
    // A view that fails does not end the connection.
    raw.send(format!(
        "GET /{mode}/fail/panic HTTP/1.1\r\nhost: a\r\n\r\n"
    ))
    .await;
    assert_eq!(status(&raw.until("\r\n\r\n").await), 500);
    raw.send(format!(
        "GET /{mode}/hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    ))
    .await;
    assert!(raw.rest().await.ends_with("hello"));
    // Pipelined requests on one connection are answered in order.
    let requests: String = (0..5)
        .map(|number| format!("GET /{mode}/greet/{number} HTTP/1.1\r\nhost: a\r\n\r\n"))
        .collect();
    let mut raw = Raw::connect(&server).await;
    raw.send(requests).await;
    for number in 0..5 {
        raw.until(&format!("hello {number}")).await;
    }
    let answer = exchange(&server, format!("GET /{mode}/hello HTTP/1.0\r\n\r\n")).await;
    assert!(answer.ends_with("hello"), "{answer}");
    assert_well(&server).await;
}
both_modes!(connections_are_kept);

/// After SIGTERM, requests in flight finish, no new requests begin, and the process ends with success.
async fn a_request_in_flight_finishes_when_the_server_stops(mode: Mode) {
    let mut server = App::new("").serve().await;
    let mut idle = Raw::connect(&server).await;
    idle.send("GET /async/hello HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    idle.until("hello").await;
    let in_flight = tokio::spawn(Reply::of(
        server.request("GET", &format!("/{mode}/nap/700")),
    ));
    running(&server).await;
    server.terminate();
    server.log.event(0, "stopping").await;
    eventually(
        "the listener to be closed",
        async || match TcpStream::connect(server.address).await {
            Ok(_) => Err("it still accepts"),
            Err(_) => Ok(()),
        },
    )
    .await;
    assert_eq!(
        in_flight.await.expect("it does not panic").ok(),
        "slept 700"
    );
    let since = Instant::now();
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "idle connections should not hold it up"
    );
}
both_modes!(a_request_in_flight_finishes_when_the_server_stops);

async fn what_takes_longer_than_the_drain_is_cancelled(mode: Mode) {
    let mut server = App::new("server.drain_timeout_ms = 300").serve().await;
    let in_flight = tokio::spawn(Reply::maybe(
        server.request("POST", &format!("/{mode}/fail/sleep")),
    ));
    running(&server).await;
    let since = Instant::now();
    server.terminate();
    in_flight
        .await
        .expect("it does not panic")
        .expect_err("it gets no response");
    assert_eq!(server.ended().await.code(), Some(0));
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(5),
        "{took:?}"
    );
    let lines = server.log.requests(0, 1).await;
    assert!(lines[0].text("why").contains("shutting down"), "{lines:#?}");
    assert_eq!(server.rows(), 0);
}
both_modes!(what_takes_longer_than_the_drain_is_cancelled);

async fn bodies_that_are_wrong_are_answered(mode: Mode) {
    let toml = "[server]\nbody_max_bytes = 100000\nbody_memory_bytes = 50000\nbody_inline_bytes = 1000\nbody_timeout_ms = 300\nheader_timeout_ms = 1000";
    let server = App::new(toml).serve().await;
    let post =
        |headers: &str| format!("POST /{mode}/whole HTTP/1.1\r\nhost: a\r\n{headers}\r\n\r\n");
    let big = "x".repeat(100_001);
    for (what, request, expected) in [
        (
            "a length over the limit",
            post("content-length: 100001"),
            &[413][..],
        ),
        (
            "a length beyond all",
            post("content-length: 18446744073709551615"),
            &[400, 413, 431],
        ),
        (
            "chunks over the limit",
            format!(
                "{}{:x}\r\n{big}\r\n0\r\n\r\n",
                post("transfer-encoding: chunked"),
                big.len()
            ),
            &[413],
        ),
        (
            "two lengths that differ",
            format!("{}ab", post("content-length: 1\r\ncontent-length: 2")),
            &[400],
        ),
        (
            "a list of lengths that differ",
            format!("{}ab", post("content-length: 1, 2")),
            &[400],
        ),
        ("a length that is none", post("content-length: two"), &[400]),
        ("a negative length", post("content-length: -1"), &[400]),
        (
            "a length with a sign",
            format!("{}a", post("content-length: +1")),
            &[400],
        ),
        (
            "an unknown coding",
            post("transfer-encoding: gzip"),
            &[400, 501],
        ),
        (
            "chunks that are not last",
            post("transfer-encoding: chunked, identity"),
            &[400, 501],
        ),
        (
            "a chunk without a size",
            format!("{}zz\r\nab\r\n", post("transfer-encoding: chunked")),
            &[400],
        ),
        (
            "a chunk too long",
            format!(
                "{}ffffffffffffffffff\r\nab\r\n",
                post("transfer-encoding: chunked")
            ),
            &[400],
        ),
        (
            "a chunk that is longer than it says",
            format!(
                "{}1\r\nabc\r\n0\r\n\r\n",
                post("transfer-encoding: chunked")
            ),
            &[400],
        ),
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.send(&request).await;
        let answer = raw.until_or_closed("\r\n\r\n").await;
        assert!(expected.contains(&status(&answer)), "{what}: {answer}");
    }
    // The request has both a length and chunks. Whichever of them the server uses, the body must not be read as a
    // second request.
    let smuggled = "GET /async/hello HTTP/1.1\r\nhost: a\r\n\r\n";
    let request = format!(
        "{}0\r\n\r\n{smuggled}",
        post(&format!(
            "content-length: {}\r\ntransfer-encoding: chunked",
            5 + smuggled.len()
        ))
    );
    let mut raw = Raw::connect(&server).await;
    raw.send(request).await;
    let answer = raw.rest().await;
    assert!(
        status(&answer) == 400 || !answer.contains("hello"),
        "both a length and chunks: {answer}"
    );

    // Requests that are sent slowly, and never completed.
    let mark = server.log.mark();
    let mut slow = Raw::connect(&server).await;
    slow.send(format!("{}half", post("content-length: 8")))
        .await;
    let answer = slow.rest().await;
    assert_eq!(status(&answer), 408, "{answer}");
    let mut gone = Raw::connect(&server).await;
    gone.send(format!("{}half", post("content-length: 8")))
        .await;
    drop(gone);
    let mut gone = Raw::connect(&server).await;
    gone.send(format!(
        "{}ffff\r\n{}",
        post("transfer-encoding: chunked"),
        "x".repeat(60_000)
    ))
    .await;
    drop(gone);
    let lines = server.log.requests(mark, 3).await;
    assert_eq!(lines[0].number("status"), 408);
    for line in &lines[1..] {
        assert!([400, 499].contains(&line.number("status")), "{line:?}");
    }
    assert_well(&server).await;
}
both_modes!(bodies_that_are_wrong_are_answered);

async fn running(server: &Server) {
    eventually("the view to run", async || {
        let running = server.metrics().await.get("amphi_scopes");
        if running >= 1.0 { Ok(()) } else { Err(running) }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let server = App::new("server.header_timeout_ms = 1000").serve().await;
    let headers = |count: usize| {
        (0..count)
            .map(|number| format!("x-{number}: a\r\n"))
            .collect::<String>()
    };
    let get = "GET /async/hello HTTP/1.1\r\nhost: a\r\n";
    let bytes = |text: &str| text.as_bytes().to_vec();
    for (what, request, expected) in [
        ("nonsense", bytes("this is not HTTP\r\n\r\n"), &[400][..]),
        (
            "another protocol",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            &[400, 0],
        ),
        ("no version", bytes("GET /async/hello\r\n\r\n"), &[400]),
        (
            "an unknown version",
            bytes("GET /async/hello HTTP/9.9\r\n\r\n"),
            &[400, 505],
        ),
        (
            "a method with a space",
            bytes("GE T /async/hello HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[400],
        ),
        (
            "a space in the path",
            bytes("GET /async /hello HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[400],
        ),
        (
            "a header without a colon",
            bytes(&format!("{get}nonsense\r\n\r\n")),
            &[400],
        ),
        (
            "a header with a space in its name",
            bytes(&format!("{get}bad name: a\r\n\r\n")),
            &[400],
        ),
        (
            "a header that continues",
            bytes(&format!("{get}x: a\r\n b\r\n\r\n")),
            &[400, 200],
        ),
        (
            "a header with a zero byte",
            bytes(&format!("{get}x: a\0b\r\n\r\n")),
            &[400],
        ),
        (
            "too many headers",
            bytes(&format!("{get}{}\r\n", headers(120))),
            &[431],
        ),
        (
            "very many headers",
            bytes(&format!("{get}{}\r\n", headers(3_000))),
            &[431],
        ),
        (
            "a header too large",
            bytes(&format!("{get}x: {}\r\n\r\n", "a".repeat(40_000))),
            &[431],
        ),
        (
            "a header far too large",
            bytes(&format!("{get}x: {}\r\n\r\n", "a".repeat(4_000_000))),
            &[431],
        ),
        (
            "a path too long",
            bytes(&format!(
                "GET /async/greet/{} HTTP/1.1\r\nhost: a\r\n\r\n",
                "a".repeat(10_000)
            )),
            &[414],
        ),
        (
            "a path far too long",
            bytes(&format!(
                "GET /{} HTTP/1.1\r\nhost: a\r\n\r\n",
                "a".repeat(1_000_000)
            )),
            &[414, 431],
        ),
        (
            "a query too long",
            bytes(&format!(
                "GET /async/hello?{} HTTP/1.1\r\nhost: a\r\n\r\n",
                "a".repeat(10_000)
            )),
            &[414],
        ),
        (
            "ten thousand segments",
            bytes(&format!(
                "GET {} HTTP/1.1\r\nhost: a\r\n\r\n",
                "/a".repeat(10_000)
            )),
            &[414, 404],
        ),
        (
            "ten thousand empty segments",
            bytes(&format!(
                "GET {} HTTP/1.1\r\nhost: a\r\n\r\n",
                "/".repeat(10_000)
            )),
            &[414, 404],
        ),
        (
            "a path that is a star",
            bytes("GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[400, 404],
        ),
        (
            "options of a star",
            bytes("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[204, 400, 404],
        ),
        (
            "a tunnel",
            bytes("CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[400, 404, 405],
        ),
        (
            "a whole URL",
            bytes("GET http://other/async/hello HTTP/1.1\r\nhost: a\r\n\r\n"),
            &[200],
        ),
        (
            "http2 that is none",
            bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense nonsense"),
            &[0],
        ),
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.send(&request).await;
        let answer = raw.until_or_closed("\r\n\r\n").await;
        assert!(expected.contains(&status(&answer)), "{what}: {answer}");
    }
    assert_well(&server).await;
}

/// Paths of many segments, and of one long segment.
#[tokio::test]
async fn a_path_of_many_segments_is_answered() {
    let server = App::new("server.uri_max_bytes = 30000").serve().await;
    let reply = server.get(&format!("/static{}", "/a".repeat(10_000))).await;
    assert_eq!(reply.status, 404);
    let reply = server
        .get(&format!("/async/greet/{}", "a".repeat(20_000)))
        .await;
    assert_eq!(reply.ok().len(), 20_006);
    assert_well(&server).await;
}

/// Connections of clients that send their request slowly, or send nothing, are closed.
#[tokio::test]
async fn slow_and_silent_clients_are_left() {
    let server = App::new("server.header_timeout_ms = 400").serve().await;
    let since = Instant::now();
    let slow = async {
        let mut raw = Raw::connect(&server).await;
        raw.send("GET /async/hello HTTP/1.1\r\nhost: a\r\n").await;
        let mut number = 0;
        // A byte now and then does not extend the time.
        while since.elapsed() < Duration::from_millis(350) {
            raw.send(format!("x-{number}: a\r\n")).await;
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        raw.rest().await
    };
    let mut silent: Vec<Raw> = Vec::new();
    for start in [
        "",
        "G",
        "GET /async/he",
        "PRI * HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.send(start).await;
        silent.push(raw);
    }
    let (slow, _) = tokio::join!(slow, join_all(silent.iter_mut().map(Raw::rest)));
    assert!([0, 408].contains(&status(&slow)), "{slow}");
    let took = since.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "they were left after {took:?}"
    );

    // A used connection that is idle is closed as well.
    let mut idle = Raw::connect(&server).await;
    idle.send("GET /async/hello HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    idle.until("hello").await;
    assert_eq!(idle.rest().await, "");
    eventually("the connections to be closed", async || {
        // The connection of this request for metrics counts, too.
        let open = server.metrics().await.get("amphi_connections");
        if open <= 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_well(&server).await;
}

/// A client that does not read its response holds only its connection, which is closed after `write_timeout_ms`.
#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let app = App::new("static = { dir = \"public\" }\nserver.write_timeout_ms = 400");
    app.write("public/large.bin", vec![7; 40 << 20]);
    let server = app.serve().await;
    let mut raw = Raw::connect(&server).await;
    raw.send("GET /static/large.bin HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    raw.until("\r\n\r\n").await;
    eventually("the connection to be closed", async || {
        let open = server.metrics().await.get("amphi_connections");
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_well(&server).await;
}

/// Beyond `connections_max`, connections wait until another one ends.
#[tokio::test]
async fn connections_are_limited() {
    let server = App::new("server.connections_max = 2").serve().await;
    let held = [Raw::connect(&server).await, Raw::connect(&server).await];
    eventually("both to be accepted", async || {
        let open = server.metrics().await.get("amphi_connections");
        if open == 2.0 { Ok(()) } else { Err(open) }
    })
    .await;
    let mut third = Raw::connect(&server).await;
    third
        .send("GET /async/hello HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert!(third.is_silent_for(Duration::from_millis(200)).await);
    drop(held);
    third.until("hello").await;
}

/// HTTP/2 has the same limits as HTTP/1.1.
#[tokio::test]
async fn http2_has_the_same_limits() {
    let server = App::new("server.body_max_bytes = 100000\nserver.body_memory_bytes = 50000\nserver.body_inline_bytes = 1000").serve().await;
    let client = client_http2();
    let hello = server.url("/async/hello");
    let large = "a".repeat(40_000);
    // Beyond the limit, hyper answers or ends the stream.
    if let Ok(reply) = Reply::maybe(client.get(&hello).header("x-large", &large)).await {
        assert_eq!(reply.status, 431);
    }
    let reply =
        Reply::of(client.get(server.url(&format!("/async/hello?{}", &large[..10_000])))).await;
    assert_eq!(reply.status, 414);
    if let Ok(reply) = Reply::maybe(
        client
            .post(server.url("/async/whole"))
            .body(vec![7; 100_001]),
    )
    .await
    {
        assert_eq!(reply.status, 413);
    }
    assert_eq!(Reply::of(client.get(&hello)).await.ok(), "hello");
    assert_well(&server).await;
}

/// `expect: 100-continue` is answered with 100, or with a final status if the body is not wanted.
#[tokio::test]
async fn a_client_may_ask_before_it_sends_its_body() {
    let server = App::new("server.body_max_bytes = 100000\nserver.body_memory_bytes = 50000\nserver.body_inline_bytes = 1000").serve().await;
    for (length, expected) in [(4, 100), (100_001, 413)] {
        let mut raw = Raw::connect(&server).await;
        raw.send(format!("POST /async/whole HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n")).await;
        let answer = raw.until("\r\n\r\n").await;
        assert_eq!(status(&answer), expected, "{answer}");
        if expected == 100 {
            raw.send("body").await;
            assert_eq!(status(&raw.until("\r\n\r\n").await), 200);
        }
    }
    assert_well(&server).await;
}

/// While the server stops, requests in flight can still send requests to the app itself. So can the subscribers of the
/// events that they publish.
async fn requests_in_flight_reach_their_own_app_while_the_server_stops(mode: Mode) {
    let mut server = App::rules(Kind::Sqlite, "").await.serve().await;
    let event = publish("orders.new", json!([nap(300), fetch("/nowhere")]));
    let steps = json!([nap(500), event, fetch("/nowhere"), fetch("/nowhere")]);
    let request = server.request("POST", &format!("/{mode}/run"));
    let in_flight = tokio::spawn(Reply::of(request.body(steps.to_string())));
    running(&server).await;
    let mark = server.log.mark();
    server.terminate();
    server.log.event(mark, "stopping").await;
    let reply = in_flight.await.expect("it does not panic");
    assert_eq!(reply.told(), json!([null, null, 404, 404]));
    assert_eq!(server.ended().await.code(), Some(0));
    let lines = server.log.since(mark);
    let is_heard = |line: &&Line| line.text("message").starts_with("heard");
    let heard: Vec<_> = lines.iter().filter(is_heard).collect();
    assert_eq!(heard.len(), 2, "{lines:#?}");
    for line in heard {
        assert!(line.0.to_string().contains("404"), "{line:?}");
    }
    let own = lines.iter().filter(|line| line.text("path") == "/nowhere");
    assert_eq!(own.count(), 4, "{lines:#?}");
}
both_modes!(requests_in_flight_reach_their_own_app_while_the_server_stops);

/// A stopping app listens on another port for its own requests. Requests of other clients to this port get 503.
#[tokio::test]
async fn others_are_not_served_where_a_stopping_app_reaches_itself() {
    let mut server = App::rules(Kind::Sqlite, "").await.serve().await;
    let steps = json!([nap(2000), fetch("/nowhere")]).to_string();
    let in_flight = server.request("POST", "/async/run").body(steps);
    let in_flight = tokio::spawn(Reply::of(in_flight));
    running(&server).await;
    let address = server.address.port();
    server.terminate();
    let own = eventually("one listener that is new", async || {
        match server.listening()[..] {
            [own] if own != address => Ok(own),
            ref several => Err(several.to_vec()),
        }
    })
    .await;
    for forged in ["", "1", "1.AAAA"] {
        let request = client().post(format!("http://127.0.0.1:{own}/async/run"));
        let reply = Reply::of(request.header("amphi-call-depth", forged)).await;
        assert_eq!(reply.status, 503, "{forged:?}");
    }
    assert_eq!(
        in_flight.await.expect("it does not panic").told(),
        json!([null, 404])
    );
    assert_eq!(server.ended().await.code(), Some(0));
}
