//! Web sockets over HTTP/2: each is a stream that was opened by an extended CONNECT (RFC 8441). All that holds for those
//! over HTTP/1.1 holds for them.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures::{SinkExt as _, StreamExt as _};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::frames::{Heard, deflated, frame, sent};
use crate::harness::http2::Http2;
use crate::harness::socket::{Socket, app};
use crate::harness::{Mode, SOON, Server, eventually};

/// A server with the views of `tests/guests/sockets` in both modes. `toml` goes before the modules.
async fn serve(toml: &str) -> Server {
    app(toml).serve().await
}

fn room(mode: Mode, name: &str) -> String {
    format!("/{mode}/room/1?name={name}")
}

/// Two sockets and requests share a connection; a third socket has one of its own, of HTTP/1.1.
async fn sockets_share_a_connection_of_http2(mode: Mode) {
    let server = serve("").await;
    let mark = server.log.mark();
    let client = Http2::connect(&server).await;
    let mut ann = client.socket(&room(mode, "ann")).await;
    assert_eq!(ann.hear().await, "welcome ann");
    let mut bob = client.socket(&room(mode, "bob")).await;
    assert_eq!(bob.hear().await, "welcome bob");
    let mut carl = Socket::open(&server, mode, "1", "carl").await;
    assert_eq!(server.metrics().await.get("amphi_sockets"), 3.0);
    ann.say("hello").await;
    assert_eq!(ann.hear().await, "echo hello");
    let binary = Message::binary(vec![0, 255]);
    ann.0.send(binary).await.expect("it is open");
    assert_eq!(ann.hear().await, r#"b"\0\xff""#);
    carl.say("say hi").await;
    assert_eq!(carl.hear().await, "carl: hi");
    for socket in [&mut ann, &mut bob] {
        assert_eq!(socket.hear().await, "carl: hi");
    }
    ann.say("members").await;
    assert_eq!(ann.hear().await, "3 members");
    let (missing, _) = client.ask("/nowhere", None, &[]).await;
    assert_eq!(missing.status(), 404);
    // More than the windows of HTTP/2 and the pieces that are written at once.
    for bytes in [20_000, 60_000] {
        let long = "x".repeat(bytes);
        for _ in 0..4 {
            for _ in 0..3 {
                ann.say(&long).await;
            }
            for _ in 0..3 {
                assert_eq!(ann.hear().await, format!("echo {long}"));
            }
        }
    }
    bob.say("close bye").await;
    assert_eq!(bob.hear().await, "closed 4000 bye");
    assert_eq!(ann.hear().await, "bob has left");
    assert_eq!(carl.hear().await, "bob has left");
    ann.0.close(None).await.expect("it is open");
    while let Some(Ok(_)) = ann.0.next().await {}
    assert_eq!(carl.hear().await, "ann has left");
    drop((bob, carl));
    server.assert_baseline().await;
    let tags = server.tags();
    let closed = ["closed bob 4000", "closed ann 1005", "closed carl 1006"];
    assert_eq!(tags[tags.len() - 3..], closed);
    // For the log, they are opened as all others are.
    let lines = server.log.requests(mark, 4).await;
    let opened = lines.iter().filter(|line| line.number("status") != 404);
    let methods: Vec<_> = opened.map(|line| line.text("method")).collect();
    assert_eq!(methods, ["GET"; 3]);
}
both_modes!(sockets_share_a_connection_of_http2);

/// What is refused gets a response, whatever else is there does not run, and the connection goes on.
async fn an_extended_connect_can_be_refused(mode: Mode) {
    let server = serve("").await;
    let client = Http2::connect(&server).await;
    let refused = async |path: &str, headers: &[(&str, &str)]| {
        let (response, _) = client.handshake(path, headers).await;
        response.status().as_u16()
    };
    let path = format!("/{mode}/room/1");
    assert_eq!(refused(&format!("{path}?refuse"), &[]).await, 403);
    assert_eq!(refused(&format!("{path}?panic"), &[]).await, 500);
    assert_eq!(
        refused(&path, &[("origin", "https://evil.example")]).await,
        403
    );
    assert_eq!(refused(&path, &[("origin", "null")]).await, 403);
    // A page of the host that `:authority` names.
    assert_eq!(
        refused(&path, &[("origin", "https://example.com")]).await,
        200
    );
    // An event stream, a view of another method, and nothing.
    for other in ["events/a", "post/a", "nowhere"] {
        assert_eq!(
            refused(&format!("/{mode}/{other}"), &[]).await,
            404,
            "{other}"
        );
    }
    let old = [("sec-websocket-version", "8")];
    for (protocol, headers, status) in [
        ("websocket", &old[..], 400),
        ("websocket", &[], 400),
        ("connect-udp", &[][..], 501),
    ] {
        let (response, _) = client.ask(&path, Some(protocol), headers).await;
        assert_eq!(response.status(), status, "{protocol}");
    }
    // Without CONNECT, it is none.
    let (plain, _) = client.ask(&path, None, &[]).await;
    assert_eq!(plain.status(), 400);
    let (chosen, stream) = client
        .handshake(&path, &[("sec-websocket-protocol", "v0, v1")])
        .await;
    assert_eq!(chosen.status(), 200);
    assert_eq!(chosen.headers()["sec-websocket-protocol"], "v1");
    assert!(!chosen.headers().contains_key("sec-websocket-accept"));
    drop((chosen, stream));
    server.assert_baseline().await;
    let tags = server.tags();
    let opened = tags.iter().filter(|tag| tag.starts_with("opened"));
    assert_eq!(opened.count(), 2, "{tags:?}");
}
both_modes!(an_extended_connect_can_be_refused);

/// Compressed messages in both directions, whose frames are cut anywhere.
#[tokio::test]
async fn messages_are_compressed_over_http2() {
    let server = serve("[sockets]\ncompression = true").await;
    let client = Http2::connect(&server).await;
    let offer = ("sec-websocket-extensions", "permessage-deflate");
    let (response, mut up) = client.handshake(&room(Mode::Async, "ann"), &[offer]).await;
    assert_eq!(
        response.headers()["sec-websocket-extensions"],
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    );
    let text = "x".repeat(5_000);
    let mut random = Rng::new();
    for byte in frame(0xc1, &deflated(text.as_bytes()), &mut random) {
        let sent = up.send_data(Bytes::copy_from_slice(&[byte]), false);
        sent.expect("it is open");
    }
    let (mut down, mut got) = (response.into_body(), Vec::new());
    // What waits when a client closes is not sent, so the echo has to be there first.
    while got.len() <= 2 + "welcome ann".len() {
        let bytes = timeout(SOON, down.data()).await.expect("it comes in time");
        got.extend(bytes.expect("it is open").expect("it is whole"));
    }
    let close = frame(0x88, &1000_u16.to_be_bytes(), &mut random);
    up.send_data(close.into(), false).expect("it is open");
    while let Some(bytes) = timeout(SOON, down.data()).await.expect("it ends") {
        got.extend(bytes.expect("the stream is whole"));
    }
    assert!(got.len() < 500, "{} bytes", got.len());
    assert_eq!(
        sent(&got),
        [
            Heard::Text("welcome ann".to_owned()),
            Heard::Text(format!("echo {text}")),
            Heard::Closed(Some(1000), String::new()),
        ]
    );
}

/// A connection with an open socket is not idle, however long nothing happens. Afterwards it is.
#[tokio::test]
async fn an_open_socket_keeps_its_http2_connection() {
    let short = "[server]\nheader_timeout_ms = 200\nwrite_timeout_ms = 200";
    let server = serve(short).await;
    let client = Http2::connect(&server).await;
    let mut ann = client.socket(&room(Mode::Async, "ann")).await;
    assert_eq!(ann.hear().await, "welcome ann");
    sleep(Duration::from_millis(1_500)).await;
    ann.say("hello").await;
    assert_eq!(ann.hear().await, "echo hello");
    ann.say("close bye").await;
    assert_eq!(ann.hear().await, "closed 4000 bye");
    drop(ann);
    client.closed().await;
    server.assert_baseline().await;
}

/// Streams and connections that end in whatever way end the memberships of their sockets.
async fn r21_membership_ends_with_the_stream(mode: Mode) {
    let server = serve("").await;
    let mut watcher = Socket::open(&server, mode, "1", "watcher").await;
    let client = Http2::connect(&server).await;
    let reset = client.socket(&room(mode, "reset")).await;
    watcher.members(2).await;
    drop(reset);
    assert_eq!(watcher.hear().await, "reset has left");
    // Its direction ends without a close.
    let (response, mut stream) = client.handshake(&room(mode, "ended"), &[]).await;
    watcher.members(2).await;
    stream.send_data(Bytes::new(), true).expect("it is open");
    assert_eq!(watcher.hear().await, "ended has left");
    drop(response);
    let cut = [
        client.socket(&room(mode, "one")).await,
        client.socket(&room(mode, "other")).await,
    ];
    watcher.members(3).await;
    client.cut();
    watcher.members(1).await;
    drop((cut, watcher));
    server.assert_baseline().await;
    let tags = server.tags();
    for name in ["reset", "ended", "one", "other"] {
        let closed = format!("closed {name} 1006");
        assert_eq!(
            tags.iter().filter(|tag| **tag == closed).count(),
            1,
            "{tags:?}"
        );
    }
}
both_modes!(r21_membership_ends_with_the_stream);

/// A client that does not read one of its sockets has that one closed, and the others go on. One that sends faster than
/// its view is held back.
async fn r22_limits_hold_for_sockets_over_http2(mode: Mode) {
    let toml = "[sockets]\noutbox_max_bytes = 20000\nping_ms = 1000\n[limits]\nevents_max = 100000";
    let server = serve(toml).await;
    let before = server.memory_kib();
    let client = Http2::connect(&server).await;
    let mut slow = client.socket(&room(mode, "slow")).await;
    let mut other = client.socket(&room(mode, "other")).await;
    for _ in 0..10 {
        slow.say("flood 1000").await;
    }
    assert_eq!(other.hear().await, "welcome other");
    other.say("hello").await;
    assert_eq!(other.hear().await, "echo hello");
    assert_eq!(other.hear().await, "slow has left");
    let closed = server.count("select count(*) from rows where tag = 'closed slow 1008'");
    assert_eq!(closed, 1);
    assert!(server.memory_kib() < before + (64 << 10));
    for number in 0..2000 {
        let said = Message::text(format!("{number}"));
        other.0.feed(said).await.expect("it is open");
        if number % 100 == 99 {
            other.0.flush().await.expect("it is open");
            for number in number - 99..=number {
                assert_eq!(other.hear().await, format!("echo {number}"));
            }
        }
    }
    // A client that is there but answers no pings is gone, and its connection is not.
    let (_response, _stream) = client.handshake(&room(mode, "silent"), &[]).await;
    assert_eq!(other.hear().await, "silent has left");
    other.say("hello").await;
    assert_eq!(other.hear().await, "echo hello");
    drop((slow, other));
    server.assert_baseline().await;
}
both_modes!(r22_limits_hold_for_sockets_over_http2);

/// The server tells each client that it stops, and ends the connection when its sockets have ended.
async fn r19_a_server_that_stops_closes_its_sockets_over_http2(mode: Mode) {
    let mut server = serve("").await;
    let client = Http2::connect(&server).await;
    let mut ann = client.socket(&room(mode, "ann")).await;
    assert_eq!(ann.hear().await, "welcome ann");
    let since = Instant::now();
    server.terminate();
    assert_eq!(ann.hear().await, "closed 1001 the server stops");
    drop(ann);
    client.closed().await;
    assert!(server.ended().await.success());
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(server.tags(), ["opened ann", "closed ann 1001"]);
}
both_modes!(r19_a_server_that_stops_closes_its_sockets_over_http2);

/// Conversations, too.
#[tokio::test]
async fn a_conversation_runs_over_http2() {
    let server = serve("").await;
    let client = Http2::connect(&server).await;
    let mut all = Vec::new();
    for number in 0..20 {
        let mut socket = client
            .socket(&format!("/talk/{number}?name=n{number}"))
            .await;
        assert_eq!(socket.hear().await, format!("welcome n{number}"));
        all.push(socket);
    }
    for round in 1..=20 {
        for socket in &mut all {
            socket.say("count").await;
        }
        for socket in &mut all {
            assert_eq!(socket.hear().await, format!("{round} so far"));
        }
    }
    let mut first = all.remove(0);
    first.say("end").await;
    assert_eq!(first.hear().await, "closed 1000 ");
    client.cut();
    drop((first, all));
    server.assert_baseline().await;
}

/// Sockets count as streams of their connection: the next one waits until one of them has ended.
#[tokio::test]
async fn r4_sockets_count_as_streams_of_their_connection() {
    let server = serve("[server]\nhttp2_streams_max = 2").await;
    let client = Http2::connect(&server).await;
    let one = client.socket(&room(Mode::Async, "one")).await;
    let mut two = client.socket(&room(Mode::Async, "two")).await;
    assert_eq!(two.hear().await, "welcome two");
    let path = room(Mode::Async, "three");
    let three = client.socket(&path);
    let mut three = std::pin::pin!(three);
    let waits = timeout(Duration::from_millis(500), three.as_mut()).await;
    assert!(waits.is_err());
    drop(one);
    let mut three = timeout(SOON, three).await.expect("there is room");
    assert_eq!(three.hear().await, "welcome three");
    drop((two, three));
    eventually("the end of all", async || {
        match server.metrics().await.get("amphi_sockets") {
            0.0 => Ok(()),
            open => Err(open),
        }
    })
    .await;
}
