//! Plain components of `wasi:http`, which know nothing of Amphi: what reaches them, how their answers are sent, and what
//! becomes of those that break off. Version 0.2 runs on workers, 0.3 on loops.

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Body;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::mirror::mirror;
use crate::harness::origin::{Origin, canned};
use crate::harness::raw::{Raw, exchange, status};
use crate::harness::wasi_http::{self, Version};
use crate::harness::{App, Reply, SOON, Server, best_of_three, eventually};

/// Makes two tests of an `async fn name(version: Version)`: `name::p2` and `name::p3`.
macro_rules! both_versions {
    ($name:ident) => {
        mod $name {
            use crate::harness::wasi_http::Version;

            #[tokio::test]
            async fn p2() {
                super::$name(Version::P2).await;
            }

            #[tokio::test]
            async fn p3() {
                super::$name(Version::P3).await;
            }
        }
    };
}

/// An app with the component of this version below `/x`. `module` has further keys of its module.
fn app(version: Version, module: &str) -> App {
    let component = wasi_http::built(&version.to_string());
    App::new(&format!(
        "[modules.x]\npath = {component:?}\nmount = \"/x\"\n{module}"
    ))
}

const DATABASE: &str = "databases = [\"default\"]";

/// A server of [`app`]. The component has the database.
async fn serve(version: Version, module: &str) -> Server {
    app(version, &format!("{DATABASE}\n{module}")).serve().await
}

/// A request whose answer is the last one on its connection.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
}

/// Whether a client takes an answer for complete.
fn is_complete(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_ascii_lowercase();
    let length = head.split_once("content-length: ");
    let length = length.and_then(|(_, rest)| rest.lines().next()?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        // The end of the connection is the end of the answer.
        None => true,
    }
}

async fn every_request_below_the_mount_reaches_the_component(version: Version) {
    let server = serve(version, "").await;
    let number = match version {
        Version::P2 => "0.2",
        Version::P3 => "0.3",
    };
    let hello = format!("Hello from wasi:http {number}\n");
    assert_eq!(server.get("/x/hello").await.ok(), hello);
    assert_eq!(server.get("/x/a/b/hello").await.ok(), hello);
    for (method, shown) in [
        ("GET", "Get"),
        ("PUT", "Put"),
        ("PURGE", "Other(\"PURGE\")"),
    ] {
        let request = server.request(method, "/x/headers?a=b%20c&d");
        let reply = Reply::of(request.header("x-a", "1").header("x-a", "2")).await;
        let lines: Vec<&str> = reply.ok().lines().collect();
        for line in [
            &*format!("method: Method::{shown}"),
            "target: Some(\"/x/headers?a=b%20c&d\")",
            "scheme: Some(Scheme::Http)",
            &*format!("authority: Some(\"{}\")", server.address),
            "x-a=1",
            "x-a=2",
        ] {
            assert!(lines.contains(&line), "{line} in {lines:#?}");
        }
    }
    let head = Reply::of(server.request("HEAD", "/x/hello")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    for path in ["/x", "/x/", "/x/nowhere"] {
        let reply = server.get(path).await;
        assert_eq!((reply.status, reply.text()), (404, "no such path\n"));
    }
    // Neither are these below the mount, nor does the component hide other modules.
    assert_ne!(server.get("/xy").await.text(), "no such path\n");
    server.get("/sync/hello").await.ok();
    server.assert_baseline().await;
}
both_versions!(every_request_below_the_mount_reaches_the_component);

/// Bodies that the host has when the component begins, in memory and in a file, and those that arrive while it runs.
async fn bodies_go_both_ways(version: Version) {
    const SIZES: &str = "[server]\nbody_inline_bytes = 1000\nbody_memory_bytes = 100000";
    for streams in [false, true] {
        let server = serve(version, &format!("stream_bodies = {streams}\n{SIZES}")).await;
        for length in [0, 1, 999, 1001, 100_001, 3_000_000] {
            let body: Vec<u8> = (0..length).map(|at| (at * 7 + at / 251) as u8).collect();
            let what = format!("{length} bytes, stream_bodies = {streams}");
            let pieces = body.chunks(7919).map(|piece| Ok(piece.to_vec()));
            let pieces: Vec<std::io::Result<Vec<u8>>> = pieces.collect();
            let chunked = Body::wrap_stream(futures::stream::iter(pieces));
            let reply = server.post("/x/upload", chunked).await;
            assert_eq!(reply.ok(), format!("{length} bytes\n"), "{what}");
            let reply = server.post("/x/echo", body.clone()).await;
            assert_eq!(reply.status, 200, "{what}");
            assert!(reply.body == body, "{what}: {} came back", reply.body.len());
            // What hands a body on without reading it.
            if version == Version::P3 {
                let reply = server.post("/x/pass", body.clone()).await;
                assert!(reply.body == body, "{what}: {} came back", reply.body.len());
            }
        }
        server.assert_baseline().await;
    }
}
both_versions!(bodies_go_both_ways);

async fn an_answer_is_sent_while_it_is_written(version: Version) {
    let server = serve(version, "atomic = false").await;
    let mut raw = Raw::connect(&server).await;
    raw.send(get("/x/drip?n=3&ms=1000")).await;
    let begin = raw.until("line 1\n\r\n").await;
    assert_eq!(status(&begin), 200, "{begin}");
    assert!(begin.contains("transfer-encoding: chunked"), "{begin}");
    assert!(raw.is_silent_for(Duration::from_millis(200)).await);
    let rest = raw.rest().await;
    assert!(
        rest.contains("line 3\n") && is_complete(&(begin + &rest)),
        "{rest}"
    );
    let big = server.get("/x/big?mb=20").await;
    assert_eq!((big.status, big.body.len()), (200, 20 << 20));
    server.assert_baseline().await;
}
both_versions!(an_answer_is_sent_while_it_is_written);

async fn r9_an_atomic_answer_is_sent_when_its_component_has_ended(version: Version) {
    let server = serve(version, "atomic = true").await;
    let mut raw = Raw::connect(&server).await;
    raw.send(get("/x/drip?n=2&ms=500")).await;
    assert!(raw.is_silent_for(Duration::from_millis(750)).await);
    let answer = raw.rest().await;
    assert!(answer.contains("content-length: 14\r\n"), "{answer}");
    assert!(answer.ends_with("line 1\nline 2\n"), "{answer}");
    server.assert_baseline().await;
}
both_versions!(r9_an_atomic_answer_is_sent_when_its_component_has_ended);

/// The ways to break off that both versions have, and those of one.
fn broken(version: Version) -> Vec<&'static str> {
    let mut ways = vec![
        "trap-before",
        "trap-middle",
        "length-short",
        "length-long",
        "no-finish",
        "no-finish-leaked",
        "error-code",
    ];
    ways.extend(match version {
        Version::P2 => &["noset", "noset-leaked"][..],
        Version::P3 => &["end-error"],
    });
    ways
}

/// Whatever was wrong: before the head, the client gets 500 or, in time, 504; after it, the answer breaks off. The head may
/// break off with it.
async fn r16_what_has_broken_off_never_looks_complete(version: Version) {
    for atomic in [false, true] {
        let limits = "limits.timeout_ms = 1500\nlimits.stream_timeout_ms = 1500";
        let server = serve(version, &format!("atomic = {atomic}\n{limits}")).await;
        for way in broken(version) {
            for wait in ["", "?ms=300"] {
                let what = format!("{way}{wait}, atomic = {atomic}");
                let answer = exchange(&server, get(&format!("/x/{way}{wait}"))).await;
                let failed = status(&answer) >= 500 && is_complete(&answer);
                let broke_off =
                    !atomic && [0, 200].contains(&status(&answer)) && !is_complete(&answer);
                assert!(failed || broke_off, "{what}: {answer:?}");
                // The head is out when the component waits after it, and nothing was wrong so far.
                if !atomic && !wait.is_empty() && is_good_at_first(way) {
                    assert!(broke_off, "{what}: {answer:?}");
                }
            }
            server.get("/x/hello").await.ok();
        }
        server.assert_baseline().await;
    }
}
both_versions!(r16_what_has_broken_off_never_looks_complete);

/// Whether a way to break off begins with a good head, and the beginning of its body.
fn is_good_at_first(way: &str) -> bool {
    let late = ["trap-middle", "length-short", "end-error"];
    late.contains(&way) || way.starts_with("no-finish")
}

/// On HTTP/2, a stream that breaks off is reset.
async fn r16_what_has_broken_off_is_reset_on_http2(version: Version) {
    let server = serve(version, "atomic = false").await;
    let client = crate::harness::server::client_http2();
    let request = client.get(server.url("/x/trap-middle?ms=300"));
    let reply = Reply::maybe(request).await;
    assert!(reply.is_err(), "{reply:?}");
    let reply = Reply::of(client.get(server.url("/x/hello"))).await;
    assert_eq!(reply.status, 200);
    server.assert_baseline().await;
}
both_versions!(r16_what_has_broken_off_is_reset_on_http2);

/// What fails after its answer has failed if a commit depends on it. Otherwise the answer was complete, and the log tells.
async fn r9_what_fails_after_its_answer(version: Version) {
    let limits = "limits.cpu_ms = 300\nlimits.stream_cpu_ms = 300";
    for way in ["trap-after", "spin-after"] {
        let path = format!("/x/{way}?ms=100");
        let server = serve(version, &format!("atomic = false\n{limits}")).await;
        // The client that wants the head alone has it, and may leave; the component goes on all the same.
        for (method, answer) in [("GET", "the whole answer\n"), ("HEAD", "")] {
            let mark = server.log.mark();
            let reply = Reply::of(server.request(method, &path)).await;
            assert_eq!(reply.ok(), answer, "{method} {way}");
            let why = match way {
                "trap-after" => "on purpose",
                _ => "cpu_ms",
            };
            eventually("the log of the failure", async || {
                let lines = server.log.since(mark);
                let any = lines.iter().any(|line| {
                    let is_after = line
                        .text("message")
                        .contains("went on after its answer, and failed");
                    is_after && line.text("why").contains(why)
                });
                if any { Ok(()) } else { Err(lines) }
            })
            .await;
        }
        server.assert_baseline().await;
        let server = serve(version, &format!("atomic = true\n{limits}")).await;
        let reply = server.get(&path).await;
        assert!(reply.status >= 500, "{way}: {reply:?}");
        server.assert_baseline().await;
    }
}
both_versions!(r9_what_fails_after_its_answer);

async fn r5_a_component_that_computes_holds_up_nobody(version: Version) {
    let server = serve(version, "limits.cpu_ms = 1000").await;
    let spins = (0..4).map(|_| tokio::spawn(Reply::of(server.request("GET", "/x/spin"))));
    let spins: Vec<_> = spins.collect();
    for _ in 0..5 {
        server.get("/x/hello").await.ok();
    }
    for spin in spins {
        let reply = spin.await.expect("it does not panic");
        assert_eq!(reply.status, 504, "{reply:?}");
    }
    server.assert_baseline().await;
}
both_versions!(r5_a_component_that_computes_holds_up_nobody);

async fn a_component_that_waits_too_long_is_504(version: Version) {
    let server = serve(version, "limits.timeout_ms = 300").await;
    let before = Instant::now();
    assert_eq!(server.get("/x/sleep?ms=60000").await.status, 504);
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    server.assert_baseline().await;
}
both_versions!(a_component_that_waits_too_long_is_504);

#[tokio::test]
async fn r4_the_pool_grows_for_components_that_wait() {
    let component = wasi_http::built("p2");
    let toml = "[sync_views]\nworkers = 1\nworkers_max = 20\n[modules.x]\nmount = \"/x\"";
    let server = App::new(&format!("{toml}\npath = {component:?}\n{DATABASE}"));
    let server = server.serve_alone().await;
    best_of_three(Duration::from_millis(1500), async || {
        let before = Instant::now();
        let replies = join_all((0..10).map(|_| server.get("/x/sleep?ms=300"))).await;
        assert!(replies.iter().all(|reply| reply.ok() == "slept\n"));
        before.elapsed()
    })
    .await;
    server.assert_baseline().await;
}

#[tokio::test]
async fn r6_a_component_waits_for_many_things_at_once() {
    let server = app(Version::P3, DATABASE).serve_alone().await;
    server.get("/x/hello").await.ok();
    best_of_three(Duration::from_millis(300), async || {
        let before = Instant::now();
        let reply = server.get("/x/concurrent?n=10&ms=100").await;
        assert_eq!(reply.ok(), "slept\n");
        before.elapsed()
    })
    .await;
    server.assert_baseline().await;
}

async fn r15_a_client_that_leaves_ends_the_component(version: Version) {
    let server = serve(version, "atomic = false").await;
    // In the middle of an answer without end, and of one that waits.
    for (path, length) in [("/x/endless", 1 << 20), ("/x/drip?n=1000&ms=50", 20)] {
        let request = server.request("GET", path).send();
        let mut response = request.await.expect("there is a response");
        let mut got = 0;
        while got < length {
            let piece = response.chunk().await.expect("it goes on");
            got += piece.expect("it has no end").len();
        }
        drop(response);
        server.assert_baseline().await;
    }
    let mark = server.log.mark();
    let waiting = server.request("GET", "/x/sleep?ms=60000").send();
    let left = tokio::time::timeout(Duration::from_millis(300), waiting).await;
    assert!(left.is_err(), "it should have waited");
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 499, "{lines:#?}");
    server.assert_baseline().await;
}
both_versions!(r15_a_client_that_leaves_ends_the_component);

/// Also when there is something in the socket that the component does not read.
async fn r15_a_client_that_leaves_its_upload_ends_the_component(version: Version) {
    let server = serve(version, "stream_bodies = true\natomic = false").await;
    for body in [100, 40_000] {
        let mark = server.log.mark();
        let mut raw = Raw::connect(&server).await;
        let head = "POST /x/sleep?ms=60000 HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n";
        raw.send(head).await;
        raw.send("x".repeat(body)).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(raw);
        let lines = server.log.requests(mark, 1).await;
        assert_eq!(lines[0].number("status"), 499, "{lines:#?}");
        server.assert_baseline().await;
    }
}
both_versions!(r15_a_client_that_leaves_its_upload_ends_the_component);

async fn heads_have_limits(version: Version) {
    let server = serve(version, "").await;
    for code in [200, 204, 304, 404, 418, 503, 599] {
        let reply = server.get(&format!("/x/status?code={code}")).await;
        assert_eq!((reply.status, reply.body.len()), (code, 0), "{reply:?}");
    }
    // Those that belong to the connection are not a component's, and others do not exist.
    assert_eq!(server.get("/x/status?code=101").await.status, 500);
    let reply = server.get("/x/status?code=1000").await;
    assert_eq!(reply.ok(), "no such status\n");
    let reply = server.get("/x/huge-headers?kb=10").await;
    assert_eq!(
        (reply.ok(), reply.header("x-huge").len()),
        ("huge\n", 10_240)
    );
    assert_eq!(server.get("/x/huge-headers?kb=100").await.status, 500);
    let reply = server.get("/x/many-headers?n=90").await;
    assert_eq!((reply.ok(), reply.header("x-89")), ("many\n", "1"));
    assert_eq!(server.get("/x/many-headers?n=300").await.status, 500);
    server.assert_baseline().await;
}
both_versions!(heads_have_limits);

/// A response that is all head declares the length of what is not sent.
async fn heads_without_bodies_declare_lengths(version: Version) {
    for atomic in [false, true] {
        let server = serve(version, &format!("atomic = {atomic}")).await;
        for (method, code, length) in [
            ("HEAD", 200, Some("100")),
            ("HEAD", 404, Some("100")),
            ("GET", 304, None),
            ("HEAD", 304, Some("100")),
            ("GET", 204, None),
            ("HEAD", 204, None),
        ] {
            let what = format!("{method} {code}, atomic = {atomic}");
            let request = server.request(method, &format!("/x/declares?code={code}"));
            let reply = Reply::of(request).await;
            assert_eq!((reply.status, reply.body.len()), (code, 0), "{what}");
            let told = reply.headers("content-length");
            assert_eq!(told.first().copied(), length, "{what}");
        }
        assert_eq!(server.get("/x/declares").await.status, 500);
        // As the answer to GET declares it, if the body is there at once; a component that writes none says nothing of it.
        let hello = server.get("/x/hello").await.ok().len().to_string();
        let large = (1 << 20).to_string();
        for (path, length) in [
            ("/x/hello", Some(&*hello)),
            ("/x/big?mb=1", atomic.then_some(&*large)),
            ("/x/drip?ms=100", atomic.then_some("21")),
            ("/x/trailers", Some("5")),
            ("/x/status", None),
            ("/x/length-short", Some("10")),
        ] {
            let reply = Reply::of(server.request("HEAD", path)).await;
            let what = format!("{path}, atomic = {atomic}: {reply:?}");
            assert_eq!((reply.status, reply.body.len()), (200, 0), "{what}");
            assert_eq!(
                reply.headers("content-length").first().copied(),
                length,
                "{what}"
            );
        }
        server.assert_baseline().await;
    }
}
both_versions!(heads_without_bodies_declare_lengths);

/// Bytes that are no UTF-8, too.
async fn header_values_arrive_as_they_are(version: Version) {
    let server = serve(version, "").await;
    let request = b"GET /x/headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-a: Zo\xeb\r\nx-c: Zo\xc3\xab\r\nx-b: \xff\xfe\x80\r\n\r\n";
    let answer = exchange(&server, request).await;
    for line in [
        "x-a=Zo\\xeb\n",
        "x-c=Zo\\xc3\\xab\n",
        "x-b=\\xff\\xfe\\x80\n",
    ] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
}
both_versions!(header_values_arrive_as_they_are);

/// What the standard library of Rust does when a program sleeps.
async fn a_component_may_block_in_wasi(version: Version) {
    let server = serve(version, "").await;
    let naps = join_all((0..5).map(|_| server.get("/x/nap?ms=300")));
    let (naps, hello) = futures::future::join(naps, server.get("/x/hello")).await;
    assert!(naps.iter().all(|nap| nap.ok() == "slept\n"));
    hello.ok();
    server.assert_baseline().await;
}
both_versions!(a_component_may_block_in_wasi);

async fn trailers_are_passed_on(version: Version) {
    for streams in [false, true] {
        let server = serve(version, &format!("stream_bodies = {streams}")).await;
        let request = "POST /x/trailers HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: x-digest\r\n\r\n2\r\nhi\r\n0\r\nx-digest: abc\r\n\r\n";
        let answer = exchange(&server, request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains("x-digest=abc\n"), "{answer}");
    }
    for atomic in [false, true] {
        let server = serve(version, &format!("atomic = {atomic}")).await;
        let request = "POST /x/trailers HTTP/1.1\r\nhost: a\r\nconnection: close, te\r\nte: trailers\r\ncontent-length: 2\r\n\r\nhi";
        let answer = exchange(&server, request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains("\r\n0\r\nx-sum: 42\r\n\r\n"), "{answer}");
        // To a client that has not asked for trailers, none are sent.
        let reply = server.post("/x/trailers", "hi").await;
        assert_eq!(reply.ok(), "none\n");
        server.assert_baseline().await;
    }
}
both_versions!(trailers_are_passed_on);

/// The URL in a query. It needs no encoding, as the component takes it as it stands there.
fn to(origin: &str) -> String {
    format!("url={origin}/path")
}

async fn r14_requests_of_a_component_carry_the_trace(version: Version) {
    let (granted, other) = (mirror().await, mirror().await);
    let server = serve(version, &format!("http = [\"{granted}\"]")).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c";
    let request = server.request("GET", &format!("/x/outbound?{}", to(&granted)));
    let request = request.header("traceparent", format!("{trace}-b7ad6b7169203331-01"));
    let seen = Reply::of(request).await;
    assert!(seen.ok().starts_with("GET /path HTTP/1.1\r\n"), "{seen:?}");
    assert!(
        seen.ok().contains(&format!("traceparent: {trace}-")),
        "{seen:?}"
    );
    let body = "a body that is passed on";
    let path = format!("/x/outbound-post?{}", to(&granted));
    let seen = server.post(&path, body).await;
    assert!(seen.ok().starts_with("POST /path HTTP/1.1\r\n"), "{seen:?}");
    assert!(seen.ok().contains(body), "{seen:?}");
    for (url, error) in [
        (to(&other), "HttpRequestDenied"),
        (to(&granted.replace("http:", "https:")), "HttpRequestDenied"),
        ("url=http://127.0.0.1:1".to_owned(), "HttpRequestDenied"),
        ("url=nonsense".to_owned(), "HttpRequestUriInvalid"),
    ] {
        let reply = server.get(&format!("/x/outbound?{url}")).await;
        assert_eq!(reply.status, 502, "{url}: {reply:?}");
        assert!(reply.text().contains(error), "{url}: {reply:?}");
    }
    server.assert_baseline().await;
}
both_versions!(r14_requests_of_a_component_carry_the_trace);

async fn trailers_of_outbound_requests_go_both_ways(version: Version) {
    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n4\r\npart\r\n0\r\nx-t: yes\r\n\r\n";
    let (mirror, origin) = (mirror().await, canned(answer).await);
    let server = serve(version, &format!("http = [\"{mirror}\", \"{origin}\"]")).await;
    let seen = server
        .get(&format!("/x/outbound-body?{}", to(&mirror)))
        .await;
    let seen = seen.ok();
    for part in ["\r\ntrailer: x-sum\r\n", "\r\nte: trailers\r\n"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    let end = "A\r\nxxxxxxxxxx\r\n0\r\nx-sum: 42\r\n\r\n\ntrailers: none\n";
    assert!(seen.ends_with(end), "{seen}");
    let reply = server
        .get(&format!("/x/outbound-body?{}", to(&origin)))
        .await;
    assert_eq!(reply.ok(), "part\ntrailers: x-t=yes\n");
    server.assert_baseline().await;
}
both_versions!(trailers_of_outbound_requests_go_both_ways);

/// An address that takes no connection, and what keeps it busy.
async fn unreachable() -> (String, Vec<TcpStream>, TcpListener) {
    let socket = TcpSocket::new_v4().expect("there are sockets");
    let any = "127.0.0.1:0".parse().expect("it is an address");
    socket.bind(any).expect("there is a free port");
    let listener = socket.listen(1).expect("it can listen");
    let address = listener.local_addr().expect("it is bound");
    let mut waiting = Vec::new();
    let wait = Duration::from_millis(300);
    while let Ok(connected) = timeout(wait, TcpStream::connect(address)).await {
        waiting.push(connected.expect("there is a listener"));
    }
    (format!("http://{address}"), waiting, listener)
}

async fn outbound_requests_have_the_time_limits_of_their_component(version: Version) {
    let (busy, _waiting, _listener) = unreachable().await;
    let (silent, slow) = (canned(b"").await, Origin::start().await);
    let grants = [&busy, &silent, &slow.url].map(|origin| format!("\"{origin}\""));
    let server = serve(version, &format!("http = [{}]", grants.join(", "))).await;
    for (query, error) in [
        (format!("connect=300&{}", to(&busy)), "ConnectionTimeout"),
        (
            format!("first=300&{}", to(&silent)),
            "ConnectionReadTimeout",
        ),
        // A limit for one step is none for the others.
        (
            format!("first=300&connect=1&{}", to(&silent)),
            "ConnectionReadTimeout",
        ),
    ] {
        let before = Instant::now();
        let reply = server.get(&format!("/x/outbound?{query}")).await;
        assert_eq!(reply.status, 502, "{query}: {reply:?}");
        assert!(reply.text().contains(error), "{query}: {reply:?}");
        assert!(before.elapsed() < SOON, "{query}: {:?}", before.elapsed());
    }
    let drip = format!(
        "/x/outbound-many?url={}/drip?ms=60000&between=300",
        slow.url
    );
    let before = Instant::now();
    let _ = Reply::maybe(server.request("GET", &drip)).await;
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    server.assert_baseline().await;
}
both_versions!(outbound_requests_have_the_time_limits_of_their_component);

/// A component may hold more responses than it may have requests in flight: one whose end has been received is not.
async fn r4_responses_that_are_held_keep_no_request_waiting(version: Version) {
    let origin = Origin::start().await;
    let limits = "limits.outbound_max = 4\nlimits.timeout_ms = 20000";
    let server = serve(version, &format!("http = [\"{}\"]\n{limits}", origin.url)).await;
    let many = async |n: u32, path: &str| {
        let path = format!("/x/outbound-many?n={n}&url={}{path}", origin.url);
        server.get(&path).await
    };
    assert_eq!(many(30, "/text").await.ok(), "180 bytes\n");
    assert_eq!(many(4, "/big?mb=1").await.ok(), "4194304 bytes\n");
    let (mark, before) = (server.log.mark(), Instant::now());
    let reply = many(5, "/big?mb=1").await;
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(reply.text().contains("ConnectionLimitReached"), "{reply:?}");
    assert!(before.elapsed() < SOON, "{:?}", before.elapsed());
    assert_logged(&server, mark, "`outbound_max`");
    server.assert_baseline().await;
    // It is left while it holds responses that it has not read.
    let path = format!("/x/outbound-many?n=4&ms=60000&url={}/big?mb=1", origin.url);
    let left = timeout(
        Duration::from_millis(500),
        server.request("GET", &path).send(),
    );
    assert!(left.await.is_err(), "it should have waited");
    server.assert_baseline().await;
}
both_versions!(r4_responses_that_are_held_keep_no_request_waiting);

fn assert_logged(server: &Server, mark: u64, text: &str) {
    let lines = server.log.since(mark);
    let found = lines.iter().any(|line| line.text("why").contains(text));
    assert!(found, "{text} in {lines:#?}");
}

/// A server that closes each connection without an answer.
async fn closing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream);
        }
    });
    format!("http://{address}")
}

/// A response with so many headers of so many bytes.
fn with_headers(count: usize, bytes: usize) -> &'static [u8] {
    let line = format!("x-a: {}\r\n", "x".repeat(bytes));
    let head = format!(
        "HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n",
        line.repeat(count)
    );
    head.leak().as_bytes()
}

async fn errors_say_what_went_wrong(version: Version) {
    let garbage = canned(b"this is not http\r\n\r\n").await;
    let silent = canned(b"").await;
    let (many, huge) = (
        canned(with_headers(150, 10)).await,
        canned(with_headers(1, 100_000)).await,
    );
    let closes = closing().await;
    let refuses = TcpListener::bind("127.0.0.1:0").await;
    let refuses = refuses.and_then(|listener| listener.local_addr());
    let refuses = format!("http://{}", refuses.expect("there is a free port"));
    let tls = garbage.replace("http:", "https:");
    let own = "http://localhost:1";
    let granted = [&*garbage, &silent, &many, &huge, &closes, &refuses, &tls];
    let granted = granted.map(|origin| format!("\"{origin}\"")).join(", ");
    let server = serve(version, &format!("http = [{granted}, \"*\"]")).await;
    for (path, error, why) in [
        (
            "outbound?url=http://some.invalid/".to_owned(),
            "DnsError",
            "",
        ),
        (format!("outbound?{}", to(&closes)), "HttpProtocolError", ""),
        (
            format!("outbound?{}", to(&garbage)),
            "HttpProtocolError",
            "",
        ),
        (format!("outbound?{}", to(&many)), "HttpProtocolError", ""),
        (
            format!("outbound?{}", to(&refuses)),
            "ConnectionRefused",
            "",
        ),
        (format!("outbound?{}", to(&tls)), "TlsProtocolError", ""),
        (
            format!("outbound?{}", to(own)),
            "HttpRequestDenied",
            "`http_private`",
        ),
        (
            format!("outbound?{}", to(&huge)),
            "HttpResponseHeaderSectionSize",
            "`headers_max_bytes`",
        ),
        (
            format!("outbound-body?declare=10&write=5&{}", to(&silent)),
            "HttpRequestBodySize(Some(5))",
            "",
        ),
        (
            format!("outbound-body?declare=10&write=15&{}", to(&silent)),
            "HttpRequestBodySize(Some(15))",
            "",
        ),
        (
            format!("outbound?url={closes}/a/../b"),
            "HttpRequestUriInvalid",
            "`/a/../b`",
        ),
        (
            format!("outbound?url={closes}/%2e%2E/a"),
            "HttpRequestUriInvalid",
            "would be resolved",
        ),
        (
            format!("outbound?url={closes}/a\\b"),
            "HttpRequestUriInvalid",
            "a backslash",
        ),
    ] {
        let mark = server.log.mark();
        let reply = server.get(&format!("/x/{path}")).await;
        assert_eq!(reply.status, 502, "{path}: {reply:?}");
        assert!(reply.text().contains(error), "{path}: {reply:?}");
        if !why.is_empty() {
            assert_logged(&server, mark, why);
        }
    }
    server.assert_baseline().await;
}
both_versions!(errors_say_what_went_wrong);

/// What an instance keeps is not the request that it served before.
async fn r14_a_reused_instance_sends_requests_for_the_present_one(version: Version) {
    let origin = mirror().await;
    let reuse = format!("instances = \"reuse\"\nhttp = [\"{origin}\"]");
    let server = serve(version, &reuse).await;
    for number in 1..=3 {
        let trace = format!("00-{number:032x}");
        let request = server.request("GET", &format!("/x/outbound?{}", to(&origin)));
        let request = request.header("traceparent", format!("{trace}-b7ad6b7169203331-01"));
        let seen = Reply::of(request).await;
        assert!(
            seen.ok().contains(&format!("traceparent: {trace}-")),
            "{seen:?}"
        );
    }
    server.assert_baseline().await;
}
both_versions!(r14_a_reused_instance_sends_requests_for_the_present_one);

async fn a_component_sees_nothing_of_the_machine(version: Version) {
    let server = serve(version, "").await;
    let nothing = "variables: []\narguments: []\nfolders: 0\n";
    assert_eq!(server.get("/x/env").await.ok(), nothing);
    let one = server.get("/x/random").await;
    let other = server.get("/x/random").await;
    assert_eq!((one.ok().len(), other.ok().len()), (32, 32));
    assert_ne!(one.text(), other.text());
    let mark = server.log.mark();
    assert_eq!(server.get("/x/print?text=abc").await.ok(), "printed\n");
    let lines = server.log.since(mark);
    for text in ["printed abc", "complained abc", "a line in three parts"] {
        let found = lines.iter().any(|line| line.text("message").contains(text));
        assert!(found, "{text} in {lines:#?}");
    }
}
both_versions!(a_component_sees_nothing_of_the_machine);

/// Amphi's capabilities are there for plain components, too, with the same grants. What an atomic one has written is kept
/// only if all of it went well.
async fn r9_what_a_component_that_fails_has_written_is_rolled_back(version: Version) {
    let server = serve(version, "limits.timeout_ms = 1500").await;
    let mark = server.log.mark();
    assert_eq!(server.post("/x/rows?tag=kept", "").await.ok(), "1 rows\n");
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].text("transaction"), "committed", "{lines:#?}");
    for how in broken(version).into_iter().chain(["500", "trap-after"]) {
        let mark = server.log.mark();
        let path = format!("/x/rows-fail?tag=undone&how={how}");
        let reply = server.post(&path, "").await;
        assert!(reply.status >= 500, "{how}: {reply:?}");
        let lines = server.log.requests(mark, 1).await;
        assert_eq!(
            lines[0].text("transaction"),
            "rolled back",
            "{how}: {lines:#?}"
        );
        assert_eq!(server.tags(), ["kept"], "{how}");
    }
    server.assert_baseline().await;
}
both_versions!(r9_what_a_component_that_fails_has_written_is_rolled_back);

/// Without a transaction, each statement is kept by itself, whatever becomes of the answer.
async fn without_a_transaction_each_statement_is_kept(version: Version) {
    let server = serve(version, "atomic = false").await;
    for how in ["trap-before", "trap-middle", "trap-middle&ms=100", "500"] {
        let path = format!("/x/rows-fail?tag=kept&how={how}");
        // It may break off.
        let _ = Reply::maybe(server.request("POST", &path)).await;
    }
    assert_eq!(server.rows(), 4);
    server.assert_baseline().await;
}
both_versions!(without_a_transaction_each_statement_is_kept);

async fn capabilities_that_are_not_granted_are_refused(version: Version) {
    let import = match version {
        Version::P2 => "amphi:view/database@",
        Version::P3 => "amphi:view/database-async@",
    };
    let ran = app(version, "").run("routes");
    assert!(ran.error().contains(import), "{}", ran.error());
    let server = app(version, "ungranted_imports = true").serve().await;
    let reply = server.post("/x/rows?tag=a", "").await;
    assert!(reply.ok().starts_with("ErrorKind::Denied: "), "{reply:?}");
    assert_eq!(server.rows(), 0);
}
both_versions!(capabilities_that_are_not_granted_are_refused);

/// How many requests the instance that answers has served, this one included.
async fn count(server: &Server) -> u32 {
    let reply = server.get("/x/count").await;
    reply.ok().trim().parse().expect("it is a number")
}

async fn r16_an_instance_serves_one_request_unless_it_may_be_reused(version: Version) {
    let server = serve(version, "").await;
    for _ in 0..3 {
        assert_eq!(count(&server).await, 1);
    }
    let server = serve(version, "instances = \"reuse\"").await;
    for expected in 1..=3 {
        assert_eq!(count(&server).await, expected);
    }
    // Also one that went on after its head is kept, and bodies leave nothing behind.
    server.get("/x/drip?n=2&ms=50").await.ok();
    server.post("/x/echo", "some text").await.ok();
    eventually("the instance to come back", async || {
        match count(&server).await {
            1 => Err("another one"),
            _ => Ok(()),
        }
    })
    .await;
    server.assert_baseline().await;
}
both_versions!(r16_an_instance_serves_one_request_unless_it_may_be_reused);

async fn r16_an_instance_that_has_failed_is_not_reused(version: Version) {
    let limits = "limits.timeout_ms = 500\nlimits.stream_timeout_ms = 500\nlimits.cpu_ms = 200";
    let server = serve(version, &format!("instances = \"reuse\"\n{limits}")).await;
    let more = ["trap-after", "spin", "sleep?ms=60000"];
    for way in broken(version).into_iter().chain(more) {
        count(&server).await;
        assert!(count(&server).await > 1, "{way}");
        let _ = Reply::maybe(server.request("GET", &format!("/x/{way}"))).await;
        server.assert_baseline().await;
        assert_eq!(count(&server).await, 1, "{way}");
    }
}
both_versions!(r16_an_instance_that_has_failed_is_not_reused);

/// What a component holds in resources of `wasi:http` counts, although no single one of them is large.
async fn what_a_component_holds_in_resources_is_bounded(version: Version) {
    let server = serve(version, "").await;
    let mut hoards = vec![
        ("what=fields&n=1000", "more than 8 MB"),
        ("what=authorities&n=500&bytes=50000", "more than 8 MB"),
        // Few, but large ones.
        ("what=authorities&n=20&bytes=1000000", "more than 8 MB"),
    ];
    if version == Version::P2 {
        hoards.push(("what=bodies&n=1000", "`memory_budget_mb`"));
    }
    for (hoard, why) in hoards {
        let mark = server.log.mark();
        let reply = server.get(&format!("/x/hoard?{hoard}")).await;
        assert_eq!(reply.status, 500, "{hoard}: {reply:?}");
        assert_logged(&server, mark, why);
    }
    // What a component drops does not count any more, and a few are always there.
    for hoard in [
        "what=fields&n=100",
        "what=authorities&n=50",
        "what=fields&n=500&bytes=100",
    ] {
        for _ in 0..3 {
            let reply = server.get(&format!("/x/hoard?{hoard}")).await;
            assert!(reply.ok().starts_with("held "), "{hoard}: {reply:?}");
        }
    }
    server.assert_baseline().await;
}
both_versions!(what_a_component_holds_in_resources_is_bounded);

/// A component that has forgotten what it writes its body with, and has ended, holds nothing for the time of a stream.
async fn a_body_that_nobody_can_finish_breaks_off_soon(version: Version) {
    let server = serve(version, "atomic = false").await;
    for wait in ["", "?ms=300"] {
        let mark = server.log.mark();
        let leaked = get(&format!("/x/no-finish-leaked{wait}"));
        let answer = timeout(Duration::from_secs(10), exchange(&server, leaked)).await;
        let answer = answer.unwrap_or_else(|_| panic!("it goes on: {wait:?}"));
        let failed = status(&answer) >= 500 || !is_complete(&answer);
        assert!(failed, "{wait:?}: {answer:?}");
        server.log.requests(mark, 1).await;
        assert_logged(&server, mark, "without finishing the body");
    }
    server.assert_baseline().await;
}
both_versions!(a_body_that_nobody_can_finish_breaks_off_soon);

/// A component may hand on a body that the host brings, and end: the body takes the time that it takes.
#[tokio::test]
async fn a_body_that_was_handed_on_outlives_the_call() {
    const PAUSE: Duration = Duration::from_millis(2500);
    let origin = Origin::start().await;
    let more = format!(
        "atomic = false\nstream_bodies = true\nhttp = [\"{}\"]",
        origin.url
    );
    let server = serve(Version::P3, &more).await;
    let mut raw = Raw::connect(&server).await;
    raw.send(
        "POST /x/pass HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 10\r\n\r\nfirst",
    )
    .await;
    let begin = raw.until("first\r\n").await;
    tokio::time::sleep(PAUSE).await;
    raw.send("later").await;
    let rest = raw.rest().await;
    assert!(rest.contains("later"), "{rest}");
    assert!(is_complete(&(begin + &rest)), "{rest}");

    let slow = format!("{}/drip?ms={}", origin.url, PAUSE.as_millis());
    let reply = server.get(&format!("/x/outbound?url={slow}")).await;
    assert_eq!(reply.ok().lines().count(), 3, "{reply:?}");
    server.assert_baseline().await;
}

/// What a component writes for an answer that it does not give is nobody's, and its writes end.
#[tokio::test]
async fn answers_that_are_not_given_are_dropped() {
    let server = serve(Version::P3, "atomic = false").await;
    for path in ["/x/spares", "/x/spares?ms=20", "/x/spares?n=50"] {
        assert_eq!(server.get(path).await.ok(), "the answer\n", "{path}");
        let sent = server.post(path, "a body").await;
        assert_eq!(sent.ok(), "the answer\n", "{path}");
    }
    for (query, bytes) in [("", 10), ("?ms=20", 10), ("?bytes=200000&ms=5", 200_000)] {
        let reply = server.get(&format!("/x/own-body{query}")).await;
        assert_eq!(reply.ok(), format!("{bytes} bytes\n"), "{query}");
    }
    server.assert_baseline().await;
}

/// A component is told what has become of its answer.
#[tokio::test]
async fn a_component_is_told_of_its_answer() {
    let server = serve(Version::P3, "atomic = false").await;
    let mark = server.log.mark();
    assert_eq!(server.get("/x/told").await.ok(), "told");
    server.log.event(mark, "told: Ok(())").await;
}
