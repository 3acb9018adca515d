//! Web sockets: the host has the connection, and views of both modes are called for what happens on it.

use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest as _};
use tokio_tungstenite::{MaybeTlsStream, connect_async};

use crate::channels::tells;
use crate::harness::raw::{Raw, status};
use crate::harness::socket::{Socket, app};
use crate::harness::{Mode, Server, eventually};

/// A server with the views of `tests/guests/sockets` in both modes. `toml` goes before the modules.
async fn serve(toml: &str) -> Server {
    app(toml).serve().await
}

async fn closed(mut client: Socket) {
    client.0.close(None).await.expect("it is open");
    while let Some(Ok(_)) = client.0.next().await {}
}

async fn a_socket_is_opened_heard_and_closed(mode: Mode) {
    let server = serve("").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    let mut bob = Socket::open(&server, mode, "1", "bob").await;
    ann.say("hello").await;
    assert_eq!(ann.hear().await, "echo hello");
    ann.0
        .send(Message::binary(vec![0, 255]))
        .await
        .expect("it is open");
    assert_eq!(ann.hear().await, r#"b"\0\xff""#);
    ann.say("say hi").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "ann: hi");
    }
    bob.say("notify news").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "notice in room.1: news");
    }
    ann.say("members").await;
    assert_eq!(ann.hear().await, "2 members");
    ann.say("id").await;
    let id = ann.hear().await;
    bob.say(&format!("tell {id} psst")).await;
    assert_eq!(ann.hear().await, "psst");
    bob.say("close bye").await;
    assert_eq!(bob.hear().await, "closed 4000 bye");
    assert_eq!(ann.hear().await, "bob has left");
    closed(ann).await;
    server.assert_baseline().await;
    assert_eq!(
        server.tags(),
        [
            "opened ann",
            "opened bob",
            "hi",
            "closed bob 4000",
            "closed ann 1005"
        ]
    );
}
both_modes!(a_socket_is_opened_heard_and_closed);

/// What is refused gets a response, and leaves nothing behind.
async fn a_handshake_can_be_refused(mode: Mode) {
    let server = serve("").await;
    let refused = async |query: &str, origin: Option<&str>| {
        let url = format!("ws://{}/{mode}/room/1?{query}", server.address);
        let mut request = url.into_client_request().expect("it is a URL");
        if let Some(origin) = origin {
            let origin = origin.parse().expect("it is a header");
            request.headers_mut().insert("origin", origin);
        }
        match connect_async(request).await {
            Ok(_) => 101,
            Err(Error::Http(response)) => response.status().as_u16(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(refused("refuse", None).await, 403);
    assert_eq!(refused("panic", None).await, 500);
    assert_eq!(refused("name=a", Some("https://evil.example")).await, 403);
    let own = format!("http://{}", server.address);
    assert_eq!(refused("name=a", Some(&own)).await, 101);
    let path = format!("/{mode}/room/1");
    let plain = server.get(&path).await;
    assert_eq!((plain.status, plain.header("upgrade")), (426, "websocket"));
    let old = server.request("GET", &path).header("connection", "upgrade");
    let old = old
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "8");
    let old = crate::harness::Reply::of(old.header("sec-websocket-key", "x")).await;
    assert_eq!(
        (old.status, old.header("sec-websocket-version")),
        (426, "13")
    );
    server.assert_baseline().await;
    assert!(!server.tags().iter().any(|tag| tag.contains("nobody")));
}
both_modes!(a_handshake_can_be_refused);

async fn r18_an_idle_socket_holds_nothing_of_a_guest(mode: Mode) {
    let server =
        serve("[sync_views]\nworkers = 1\nworkers_max = 2\n[async_views]\nin_flight_max = 2").await;
    let mut all = Vec::new();
    for number in 0..50 {
        all.push(Socket::open(&server, mode, "1", &number.to_string()).await);
    }
    eventually("nothing but the connections", async || {
        let metrics = server.metrics().await;
        let held: Vec<_> = metrics.in_flight().into_iter().collect();
        let others = held.iter().filter(|(name, _)| *name != "amphi_sockets");
        match others.count() {
            0 => Ok(()),
            _ => Err(held.clone()),
        }
    })
    .await;
    all[0].say("say still here").await;
    for client in &mut all {
        assert_eq!(client.hear().await, "0: still here");
    }
    drop(all);
    server.assert_baseline().await;
    assert_eq!(
        server.count("select count(*) from rows where tag like 'closed%'"),
        50
    );
}
both_modes!(r18_an_idle_socket_holds_nothing_of_a_guest);

/// Messages are handled in their order, one at a time, and the connection's context goes from one to the next, unless
/// the one before has failed.
async fn r19_events_come_one_after_the_other(mode: Mode) {
    let server = serve("").await;
    let mut client = Socket::open(&server, mode, "1", "ann").await;
    for number in 0..100 {
        client
            .0
            .feed(Message::text(format!("set {number}")))
            .await
            .expect("it is open");
        if number % 10 == 3 {
            client
                .0
                .feed(Message::text("fail never"))
                .await
                .expect("it is open");
        }
        client
            .0
            .feed(Message::text("say now"))
            .await
            .expect("it is open");
    }
    client.0.flush().await.expect("it is open");
    for number in 0..100 {
        assert_eq!(client.hear().await, format!("{number}: now"));
    }
    // What was sent before the end is handled, and the end comes last.
    for number in 0..20 {
        client
            .0
            .feed(Message::text(format!("say last {number}")))
            .await
            .expect("it is open");
    }
    client.0.flush().await.expect("it is open");
    drop(client);
    server.assert_baseline().await;
    let tags = server.tags();
    assert_eq!(tags.len(), 1 + 100 + 20 + 1);
    assert_eq!(tags[120], "last 19");
    assert_eq!(tags[121], "closed 99 1006");
}
both_modes!(r19_events_come_one_after_the_other);

/// An event that fails has sent nothing, joined nothing and kept nothing.
async fn r20_what_a_failing_event_has_sent_is_dropped(mode: Mode) {
    let server = serve("").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    let mut bob = Socket::open(&server, mode, "1", "bob").await;
    for how in ["fail", "panic", "spin"] {
        ann.say(&format!("{how} never")).await;
    }
    ann.say("send other x").await;
    ann.say("say done").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "ann: done");
    }
    drop((ann, bob));
    server.assert_baseline().await;
    assert!(!server.tags().contains(&"never".to_owned()));
}
both_modes!(r20_what_a_failing_event_has_sent_is_dropped);

/// Who gets a message finds in the database what was written with it.
async fn r20_a_message_comes_after_its_commit(mode: Mode) {
    let server = serve("").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    let mut bob = Socket::open(&server, mode, "1", "bob").await;
    for number in 0..50 {
        ann.say(&format!("say {number}")).await;
        assert_eq!(bob.hear().await, format!("ann: {number}"));
        let there = format!("select count(*) from rows where tag = '{number}'");
        assert_eq!(server.count(&there), 1);
    }
}
both_modes!(r20_a_message_comes_after_its_commit);

async fn r21_membership_ends_with_the_connection(mode: Mode) {
    let server = serve("").await;
    let mut watcher = Socket::open(&server, mode, "1", "watcher").await;
    for end in ["close", "drop", "reset"] {
        let mut client = Socket::open(&server, mode, "1", end).await;
        watcher.say("members").await;
        assert_eq!(watcher.hear().await, "2 members");
        match end {
            "close" => closed(client).await,
            "reset" => {
                if let MaybeTlsStream::Plain(stream) = client.0.get_mut() {
                    stream.set_zero_linger().expect("it is a socket");
                }
                drop(client);
            }
            _ => drop(client),
        }
        assert_eq!(watcher.hear().await, format!("{end} has left"));
        watcher.say("members").await;
        assert_eq!(watcher.hear().await, "1 members");
    }
    watcher.say("leave 1").await;
    watcher.say("members").await;
    assert_eq!(watcher.hear().await, "0 members");
}
both_modes!(r21_membership_ends_with_the_connection);

/// The value that is told of members is the one that the configuration names, as the last event has left it.
async fn members_are_told_by_a_chosen_value(mode: Mode) {
    let server = serve("[channels]\nmember_value = \"name\"").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    let _bob = Socket::open(&server, mode, "1", "bob").await;
    ann.say("who").await;
    assert_eq!(ann.hear().await, "ann, bob");
    ann.say("set carl").await;
    ann.say("who").await;
    assert_eq!(ann.hear().await, "bob, carl");
}
both_modes!(members_are_told_by_a_chosen_value);

/// A client sends more than its view can handle, and the view never waits: a request on the same loop is answered before
/// the messages that are there already. So it is in both forms of async views.
#[tokio::test(flavor = "multi_thread")]
async fn r5_a_flooded_socket_lets_others_on_its_loop_go_first() {
    const MESSAGES: usize = 3_000;
    for path in ["/async/room/1?name=ann", "/talk/1?name=ann"] {
        // Between the answer and the look at what was sent, a busy machine may handle all messages. A loop that lets nobody
        // go first has always handled them.
        let mut first = usize::MAX;
        for _ in 0..5 {
            let server = serve("[async_views]\nloops = 1").await;
            let mut client = Socket::at(&server, path).await;
            assert_eq!(client.hear().await, "welcome ann");
            for number in 0..MESSAGES {
                let message = Message::text(format!("{number}"));
                client.0.feed(message).await.expect("it is open");
            }
            client.0.flush().await.expect("it is open");
            assert_eq!(server.get("/nowhere").await.status, 404);
            let metrics = server.metrics().await;
            let sent = metrics.labelled("amphi_socket_messages_total{direction=\"out\"}");
            for number in 0..MESSAGES {
                assert_eq!(client.hear().await, format!("echo {number}"));
            }
            first = first.min(sent as usize);
            if first < MESSAGES / 2 {
                break;
            }
        }
        assert!(first < MESSAGES / 2, "{path}: {first} came first");
    }
}

/// A client that does not read is closed, and others do not notice.
async fn r22_a_client_that_does_not_keep_up_is_closed(mode: Mode) {
    let server = serve("[sockets]\noutbox_max_bytes = 20000\n[limits]\nevents_max = 100000").await;
    let before = server.memory_kib();
    let mut slow = Socket::open(&server, mode, "1", "slow").await;
    let mut other = Socket::open(&server, mode, "1", "other").await;
    // More than the kernel takes for it.
    for _ in 0..10 {
        slow.say("flood 1000").await;
    }
    other.say("hello").await;
    assert_eq!(other.hear().await, "echo hello");
    assert_eq!(other.hear().await, "slow has left");
    let closed = server.count("select count(*) from rows where tag = 'closed slow 1008'");
    assert_eq!(closed, 1);
    assert!(server.memory_kib() < before + (64 << 10));
    drop((slow, other));
    server.assert_baseline().await;
}
both_modes!(r22_a_client_that_does_not_keep_up_is_closed);

/// A client that sends faster than its view is read no further; one that sends more than the limit is closed.
async fn r22_a_client_that_floods_is_held_back_or_closed(mode: Mode) {
    let server = serve("").await;
    let mut client = Socket::open(&server, mode, "1", "ann").await;
    for number in 0..2000 {
        client
            .0
            .feed(Message::text(format!("{number}")))
            .await
            .expect("it is open");
    }
    client.0.flush().await.expect("it is open");
    for number in 0..2000 {
        assert_eq!(client.hear().await, format!("echo {number}"));
    }
    let server = serve("[sockets]\nmessages_per_second_max = 20").await;
    let mut client = Socket::open(&server, mode, "1", "ann").await;
    for number in 0..50 {
        let _ = client.0.send(Message::text(format!("{number}"))).await;
    }
    let mut last = String::new();
    while !last.starts_with("closed") {
        last = client.hear().await;
    }
    assert_eq!(last, "closed 1008 more than 20 messages in a second");
}
both_modes!(r22_a_client_that_floods_is_held_back_or_closed);

/// A client is read at the pace of `messages_per_second`, pings too, and nothing of what it sends is lost.
#[tokio::test]
async fn r5_a_client_that_floods_is_read_at_its_pace() {
    const AT_ONCE: usize = 100;
    let server = serve("[sockets]\nmessages_per_second = 100").await;
    for path in [
        "/sync/room/1?name=ann",
        "/async/room/2?name=ann",
        "/talk/3?name=ann",
    ] {
        let mut client = Socket::at(&server, path).await;
        assert_eq!(client.hear().await, "welcome ann");
        let since = Instant::now();
        for number in 0..2 * AT_ONCE {
            client
                .0
                .feed(Message::text(format!("{number}")))
                .await
                .expect("it is open");
        }
        client.0.flush().await.expect("it is open");
        for number in 0..2 * AT_ONCE {
            assert_eq!(client.hear().await, format!("echo {number}"));
        }
        let took = since.elapsed();
        assert!(took > Duration::from_millis(950), "{path}: {took:?}");
    }
    assert!(server.metrics().await.get("amphi_socket_pauses_total") > 100.0);
    let mut client = Socket::open(&server, Mode::Sync, "4", "ann").await;
    let since = Instant::now();
    for _ in 0..2 * AT_ONCE {
        client
            .0
            .feed(Message::Ping("are you there?".into()))
            .await
            .expect("it is open");
    }
    client.0.flush().await.expect("it is open");
    client.say("and now?").await;
    assert_eq!(client.hear().await, "echo and now?");
    let took = since.elapsed();
    assert!(took > Duration::from_millis(950), "pings: {took:?}");
}

/// A client sends the parts of a message without end, each of them empty: others on its loop go first all the same.
#[tokio::test]
async fn r5_frames_without_end_do_not_hold_a_loop() {
    let server = serve("[async_views]\nloops = 1").await;
    let mut raw = begun(&server, Mode::Async).await;
    let flooding = async {
        assert!(raw.send(frame(0x01, b"")).await);
        let parts = frame(0x00, b"").repeat(10_000);
        while raw.send(&parts).await {}
        panic!("the server has closed the connection");
    };
    let asking = async {
        sleep(Duration::from_millis(300)).await;
        for _ in 0..20 {
            assert_eq!(server.get("/nowhere").await.status, 404);
        }
    };
    let asked = async {
        tokio::select! {
            () = asking => {}
            () = flooding => {}
        }
    };
    let asked = tokio::time::timeout(Duration::from_secs(20), asked).await;
    asked.expect("the others are answered");
}

/// A client that writes the frames itself, after its handshake.
async fn begun(server: &Server, mode: Mode) -> Raw {
    let mut raw = Raw::connect(server).await;
    raw.send(format!("GET /{mode}/room/1?name=raw HTTP/1.1\r\nhost: {}\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", server.address)).await;
    let head = raw.until("welcome raw").await;
    assert_eq!(status(&head), 101, "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    raw
}

/// A frame of a client, with the mask 0.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend((long as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// What breaks the protocol is closed with the right code.
async fn the_protocol_is_kept(mode: Mode) {
    let server = serve("[sockets]\nmessage_max_bytes = 1000").await;
    let begin = async || begun(&server, mode).await;
    let huge = [&[0x82, 0x80 | 127][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    for (what, bytes, code) in [
        ("not masked", vec![0x81, 1, b'a'], 1002),
        ("a reserved bit", frame(0xc1, b"a"), 1002),
        ("an unknown opcode", frame(0x83, b"a"), 1002),
        ("a continuation of nothing", frame(0x80, b"a"), 1002),
        ("a ping that is not final", frame(0x09, b"a"), 1002),
        ("a long ping", frame(0x89, &[b'a'; 126]), 1002),
        (
            "a message within another",
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(),
            1002,
        ),
        ("a length without end", huge, 1002),
        ("not UTF-8", frame(0x81, b"\xff"), 1007),
        ("too large", frame(0x82, &[0; 1001]), 1009),
        (
            "too large in parts",
            [frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat(),
            1009,
        ),
        (
            "a close with a bad code",
            frame(0x88, &999_u16.to_be_bytes()),
            1002,
        ),
        ("a close with one byte", frame(0x88, b"a"), 1002),
    ] {
        let mut raw = begin().await;
        raw.send(bytes).await;
        let close = raw.rest_of_bytes().await;
        let told = close
            .get(2..4)
            .map(|two| u16::from_be_bytes([two[0], two[1]]));
        assert_eq!(
            (close.first(), told),
            (Some(&0x88), Some(code)),
            "{what}: {close:?}"
        );
    }
    // Control frames may come between the parts of a message, which may come byte by byte.
    let mut raw = begin().await;
    let parts = [
        frame(0x01, b"fragm"),
        frame(0x89, b"pong?"),
        frame(0x00, b"en"),
        frame(0x80, b"ts"),
    ];
    for byte in parts.concat() {
        raw.send([byte]).await;
    }
    raw.until("pong?").await;
    raw.until("echo fragments").await;
    drop(raw);
    server.assert_baseline().await;
}
both_modes!(the_protocol_is_kept);

/// The server tells each client that it stops, and each view that its connection has ended.
async fn r19_a_server_that_stops_closes_its_sockets(mode: Mode) {
    let server = serve("").await;
    let mut client = Socket::open(&server, mode, "1", "ann").await;
    let database = server.database();
    server.terminate();
    assert_eq!(client.hear().await, "closed 1001 the server stops");
    eventually("the last event", async || {
        let count = "select count(*) from rows where tag = 'closed ann 1001'";
        let count: i64 = database
            .query_row(count, (), |row| row.get(0))
            .expect("it is a number");
        if count == 1 { Ok(()) } else { Err(count) }
    })
    .await;
}
both_modes!(r19_a_server_that_stops_closes_its_sockets);

/// A client that is there but says nothing is asked, and one that does not answer is gone.
async fn r22_a_client_that_is_gone_is_noticed(mode: Mode) {
    let server = serve("[sockets]\nping_ms = 200").await;
    let mut watcher = Socket::open(&server, mode, "1", "watcher").await;
    // It reads nothing, so it answers no ping.
    let silent = Socket::open(&server, mode, "1", "silent").await;
    assert_eq!(watcher.hear().await, "silent has left");
    // Who waits answers pings.
    let nothing = tokio::time::timeout(Duration::from_secs(1), watcher.0.next()).await;
    assert!(
        !matches!(nothing, Ok(Some(Ok(Message::Text(_))) | None)),
        "{nothing:?}"
    );
    watcher.say("hello").await;
    assert_eq!(watcher.hear().await, "echo hello");
    drop(silent);
}
both_modes!(r22_a_client_that_is_gone_is_noticed);

/// From the moment at which the host decides to close a connection, it is no member, whether or not its client answers.
async fn r21_who_is_closed_is_no_member(mode: Mode) {
    let server = serve("").await;
    let mut watcher = Socket::open(&server, mode, "1", "watcher").await;
    // It reads and answers nothing.
    let mut closed = Socket::open(&server, mode, "1", "closed").await;
    closed.say("close bye").await;
    let since = Instant::now();
    watcher.members(1).await;
    let took = since.elapsed();
    // The client has 5 seconds to answer.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(closed.hear().await, "closed 4000 bye");
}
both_modes!(r21_who_is_closed_is_no_member);

/// A view that is slower than others send notices has its connection closed, and is told of it.
async fn r22_more_notices_than_a_view_can_take_close_its_connection(mode: Mode) {
    let server = serve("[sockets]\nmailbox_max = 2").await;
    let mut slow = Socket::open(&server, mode, "1", "slow").await;
    let mut other = Socket::open(&server, mode, "1", "other").await;
    other.say("leave 1").await;
    // Its view computes for 300 ms.
    slow.say("spin").await;
    for number in 0..10 {
        other.say(&format!("notify {number}")).await;
    }
    let mut heard = Vec::new();
    while !(heard.last()).is_some_and(|last: &String| last.starts_with("closed")) {
        heard.push(slow.hear().await);
    }
    let closed = "closed 1013 the server cannot keep up with notices";
    assert_eq!(heard.pop().as_deref(), Some(closed));
    let told = heard.iter().enumerate();
    for (number, text) in told {
        assert_eq!(*text, format!("notice in room.1: {number}"));
    }
    drop((slow, other));
    server.assert_baseline().await;
    assert!(server.tags().contains(&"closed slow 1013".to_owned()));
    let metrics = server.metrics().await;
    let limit = metrics.labelled("amphi_socket_limits_total{limit=\"mailbox\"}");
    assert_eq!(limit, 1.0);
}
both_modes!(r22_more_notices_than_a_view_can_take_close_its_connection);

/// Events for which there is no capacity wait, and are handled in their order.
async fn r22_events_without_capacity_are_handled_later(mode: Mode) {
    let one = "[sync_views]\nworkers = 1\nworkers_max = 1\nqueue_max = 0\n[async_views]\nloops = 1\nin_flight_max = 1\nqueue_max = 0";
    let server = serve(one).await;
    let mut clients = Vec::new();
    for number in 0..20 {
        // A room for each, so that nobody else hears it.
        let room = number.to_string();
        let client = eventually("room for a handshake", async || {
            let path = format!("/{mode}/room/{room}?name=n{room}");
            Socket::try_at(&server, &path).await
        });
        let mut client = client.await;
        assert_eq!(client.hear().await, format!("welcome n{number}"));
        clients.push(client);
    }
    for client in &mut clients {
        for number in 0..5 {
            let said = client.0.feed(Message::text(format!("say {number}")));
            said.await.expect("it is open");
        }
    }
    for client in &mut clients {
        client.0.flush().await.expect("it is open");
    }
    for (name, client) in clients.iter_mut().enumerate() {
        for number in 0..5 {
            assert_eq!(client.hear().await, format!("n{name}: {number}"));
        }
    }
    drop(clients);
    server.assert_baseline().await;
    let closed = "select count(*) from rows where tag like 'closed n%'";
    assert_eq!(server.count(closed), 20);
}
both_modes!(r22_events_without_capacity_are_handled_later);

/// A message that waits for too long is not handled, nor are those after it; its connection is closed, and its view is
/// told of that when there is capacity again.
async fn r22_an_event_that_finds_no_capacity_closes_its_connection(mode: Mode) {
    let one = "[sync_views]\nworkers = 1\nworkers_max = 1\nqueue_max = 0\n[async_views]\nloops = 1\nin_flight_max = 1\nqueue_max = 0\n[sockets]\ncapacity_timeout_ms = 300\n[limits]\ntimeout_ms = 3000";
    let server = serve(one).await;
    let mark = server.log.mark();
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    let mut bob = Socket::open(&server, mode, "2", "bob").await;
    // It has the only place until its time limit.
    bob.say("nap").await;
    sleep(Duration::from_millis(100)).await;
    let since = Instant::now();
    for number in 1..=3 {
        ann.say(&format!("say {number}")).await;
    }
    let closed = "closed 1013 the server has no capacity for messages";
    assert_eq!(ann.hear().await, closed);
    let took = since.elapsed();
    assert!(
        took > Duration::from_millis(250) && took < Duration::from_secs(2),
        "{took:?}"
    );
    drop(ann);
    let line = server.log.event(mark, "closed").await;
    assert_eq!(line.number("code"), 1013);
    eventually("the end of ann", async || {
        let tags = server.tags();
        match tags.contains(&"closed ann 1013".to_owned()) {
            true => Ok(()),
            false => Err(tags),
        }
    })
    .await;
    // The other connection goes on.
    bob.say("say hello").await;
    assert_eq!(bob.hear().await, "bob: hello");
    drop(bob);
    server.assert_baseline().await;
    let tags = server.tags();
    let expected = [
        "opened ann",
        "opened bob",
        "closed ann 1013",
        "hello",
        "closed bob 1006",
    ];
    assert_eq!(tags, expected);
    let metrics = server.metrics().await;
    let limit = metrics.labelled("amphi_socket_limits_total{limit=\"capacity\"}");
    let given_up = metrics.labelled("amphi_socket_events_total{outcome=\"no capacity\"}");
    assert_eq!((limit, given_up), (1.0, 3.0));
}
both_modes!(r22_an_event_that_finds_no_capacity_closes_its_connection);

/// A message counts as sent when it leaves for its client. What an outbox that is full throws away counts as dropped.
async fn r22_what_a_full_outbox_throws_away_is_counted(mode: Mode) {
    let server = serve("[sockets]\noutbox_max_bytes = 20000\n[limits]\nevents_max = 100000").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    ann.say("flood 2000").await;
    let mut heard = 0;
    loop {
        let next = ann.hear().await;
        if next.starts_with("closed") {
            assert_eq!(next, "closed 1008 the client does not read fast enough");
            break;
        }
        heard += 1;
    }
    drop(ann);
    server.assert_baseline().await;
    let metrics = server.metrics().await;
    let count = |direction: &str| {
        let name = format!("amphi_socket_messages_total{{direction=\"{direction}\"}}");
        metrics.labelled(&name) as usize
    };
    assert_eq!((count("out"), count("dropped")), (1 + heard, 2_000 - heard));
    assert!(heard < 2_000);
}
both_modes!(r22_what_a_full_outbox_throws_away_is_counted);

/// A message to a connection that is closed is counted, since nobody is told.
async fn r22_what_is_sent_to_a_closed_connection_is_counted(mode: Mode) {
    let server = serve("").await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    ann.say("id").await;
    let id = ann.hear().await;
    let mut bob = Socket::open(&server, mode, "1", "bob").await;
    // Its view sends after it has closed. The client does not read, and so does not answer.
    ann.say("late bye").await;
    bob.members(1).await;
    let metrics = server.metrics().await;
    let dropped = metrics.labelled("amphi_socket_messages_total{direction=\"dropped\"}");
    assert_eq!(dropped, 1.0);
    bob.say(&format!("tell {id} later")).await;
    tells(&server, "undeliverable", 1).await;
    assert_eq!(ann.hear().await, "closed 4000 bye");
}
both_modes!(r22_what_is_sent_to_a_closed_connection_is_counted);
