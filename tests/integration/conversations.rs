//! Web sockets whose functions keep the conversation: async functions that run as long as their connection.

use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::{SinkExt as _, StreamExt as _, future::join_all};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest as _};
use tokio_tungstenite::{MaybeTlsStream, connect_async};

use crate::harness::log::Line;
use crate::harness::raw::Raw;
use crate::harness::socket::{Socket, app, app_on};
use crate::harness::{App, Kind, Mode, Reply, SOON, Server, eventually};

/// A server with the views of `tests/guests/sockets` in both modes. `toml` goes before the modules.
async fn serve(toml: &str) -> Server {
    app(toml).serve().await
}

/// Opens a conversation, which welcomes its client.
async fn talk(server: &Server, name: &str) -> Socket {
    let mut socket = Socket::at(server, &format!("/talk/1?name={name}")).await;
    assert_eq!(socket.hear().await, format!("welcome {name}"));
    socket
}

/// Tries to open a conversation. Returns the status.
async fn refused(server: &Server, query: &str) -> u16 {
    let url = format!("ws://{}/talk/1?{query}", server.address);
    match connect_async(url).await {
        Ok(_) => 101,
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

/// The line about a conversation that has failed.
async fn failure(server: &Server, mark: u64) -> Line {
    eventually("the line of a failed conversation", async || {
        let lines = server.log.requests_now(mark);
        let line = lines
            .iter()
            .find(|line| line.text("method") == "CONVERSATION");
        line.cloned().ok_or(lines)
    })
    .await
}

async fn open(server: &Server) -> f64 {
    server.metrics().await.get("amphi_conversations")
}

/// How many ended with this outcome.
async fn ended(server: &Server, outcome: &str) -> f64 {
    let name = format!("amphi_conversations_total{{outcome=\"{outcome}\"}}");
    server.metrics().await.labelled(&name)
}

#[tokio::test]
async fn a_conversation_remembers_and_ends_as_it_likes() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    let mut bob = talk(&server, "bob").await;
    for number in 1..=100 {
        ann.say("count").await;
        assert_eq!(ann.hear().await, format!("{number} so far"));
    }
    bob.say("count").await;
    assert_eq!(bob.hear().await, "1 so far");
    let binary = Message::binary(vec![0, 255]);
    ann.0.send(binary).await.expect("it is open");
    assert_eq!(ann.hear().await, r#"b"\0\xff""#);
    ann.say("say hi").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "ann: hi");
    }
    bob.say("notify news").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "notice in room.1: news");
    }
    ann.say("id").await;
    assert!(!ann.hear().await.is_empty());
    ann.say("members").await;
    assert_eq!(ann.hear().await, "2 members");
    assert_eq!(open(&server).await, 2.0);
    // The function closes with a code of its own, receives the end, and does what it wants to do then.
    bob.say("close bye").await;
    assert_eq!(bob.hear().await, "closed 4000 bye");
    assert_eq!(ann.hear().await, "bob has left");
    ann.say("end").await;
    assert_eq!(ann.hear().await, "closed 1000 ");
    drop((ann, bob));
    server.assert_baseline().await;
    assert_eq!(
        server.tags(),
        ["opened ann", "opened bob", "hi", "closed bob 4000"]
    );
    assert_eq!(ended(&server, "finished").await, 2.0);
    assert!(
        server
            .log
            .requests_now(0)
            .iter()
            .all(|line| line.text("method") == "GET")
    );
}

#[tokio::test]
async fn the_opening_of_a_conversation_can_be_refused() {
    let server = serve("").await;
    let before = server.rows();
    assert_eq!(refused(&server, "refuse").await, 403);
    assert_eq!(refused(&server, "panic").await, 500);
    // It has written, and is undone.
    assert_eq!(refused(&server, "late").await, 409);
    assert_eq!(server.rows(), before);
    let url = format!("ws://{}/talk/1?name=a", server.address);
    let mut request = url.into_client_request().expect("it is a URL");
    let protocols = "talk.v0, talk.v1".parse().expect("it is a header");
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocols);
    let (socket, response) = connect_async(request.clone()).await.expect("it opens");
    assert_eq!(response.headers()["sec-websocket-protocol"], "talk.v1");
    let evil = "https://evil.example".parse().expect("it is a header");
    request.headers_mut().insert("origin", evil);
    assert!(
        matches!(connect_async(request).await, Err(Error::Http(response)) if response.status().as_u16() == 403)
    );
    drop(socket);
    server.assert_baseline().await;
    assert_eq!(open(&server).await, 0.0);
}

/// What is sent in a block leaves with its commit, and not at all when the block is undone. Nothing is received within it.
#[tokio::test]
async fn r20_blocks_of_a_conversation_are_transactions() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    let mut bob = talk(&server, "bob").await;
    for number in 0..50 {
        ann.say(&format!("keep {number}")).await;
        let sent = format!("keep {number}");
        assert_eq!(ann.hear().await, sent);
        assert_eq!(ann.hear().await, format!("all: {number}"));
        assert_eq!(bob.hear().await, format!("all: {number}"));
        let there = format!("select count(*) from rows where tag = '{number}'");
        assert_eq!(server.count(&there), 1);
        assert_eq!(ann.hear().await, "true");
        ann.say("undo never").await;
        assert_eq!(ann.hear().await, "false");
    }
    ann.say("inner").await;
    assert!(
        ann.hear()
            .await
            .contains("nothing is received within a transaction")
    );
    // It goes on.
    ann.say("count").await;
    assert_eq!(ann.hear().await, "102 so far");
    drop((ann, bob));
    server.assert_baseline().await;
    assert!(!server.tags().contains(&"never".to_owned()));
    assert_eq!(server.rows(), 2 + 50 + 2);
}

/// A conversation has no end, so the time that is left is that for its next call: less while something is open.
#[tokio::test]
async fn a_conversation_is_told_the_time_for_its_calls() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    for _ in 0..2 {
        // Longer than the time limit, which is 1500 ms.
        sleep(Duration::from_millis(1_600)).await;
        ann.say("remaining").await;
        let told = ann.hear().await;
        let told: Vec<u64> = (told.split(' '))
            .map(|text| text.parse().expect("it is a number"))
            .collect();
        let [outside, within, after] = told[..] else {
            panic!("{told:?}");
        };
        assert_eq!((outside, after), (1_500, 1_500));
        assert!((1..=1_200).contains(&within), "{within}");
    }
}

/// What conversations do with a database, on both kinds: blocks that are kept and undone, statements of their own, blocks
/// that are open for too long, and clients that leave within one.
async fn conversations_use_both_databases(kind: Kind) {
    let server = app_on(kind, "").await.serve().await;
    let data = &server.app.data;
    let mut ann = talk(&server, "ann").await;
    let mut bob = talk(&server, "bob").await;
    for number in 0..20 {
        ann.say(&format!("keep {number}")).await;
        assert_eq!(ann.hear().await, format!("keep {number}"));
        for client in [&mut ann, &mut bob] {
            assert_eq!(client.hear().await, format!("all: {number}"));
        }
        // Who gets the message finds what was written before.
        let there = format!("select count(*) from rows where tag = '{number}'");
        assert_eq!(data.count(&there).await, 1);
        assert_eq!(ann.hear().await, "true");
        ann.say("undo never").await;
        assert_eq!(ann.hear().await, "false");
    }
    ann.say("blocks 100").await;
    assert_eq!(ann.hear().await, "blocks");
    ann.say("say alone").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "ann: alone");
    }
    // Between its statements, it holds nothing of the database.
    data.assert_quiet().await;
    assert_eq!(server.metrics().await.get("amphi_transactions"), 0.0);
    ann.say("hold 60000").await;
    assert_eq!(ann.hear().await, "closed 1011 the server has failed");
    data.assert_quiet().await;
    let mut carl = talk(&server, "carl").await;
    carl.say("hold 300").await;
    sleep(Duration::from_millis(100)).await;
    drop((ann, carl));
    bob.members(1).await;
    drop(bob);
    server.assert_baseline().await;
    data.assert_quiet().await;
    let tags = data.tags().await;
    assert!(!tags.iter().any(|tag| tag == "never"), "{tags:?}");
    // That of `ann` is undone, and that of `carl` is not, since it ends in time.
    let held = tags.iter().filter(|tag| *tag == "held");
    assert_eq!(held.count(), 1, "{tags:?}");
    let count = |what: &str| tags.iter().filter(|tag| tag.starts_with(what)).count();
    assert_eq!((count("block"), count("alone")), (100, 1));
    // That of `carl` has got an error when it wanted to send.
    assert_eq!(count("closed"), 1, "{tags:?}");
}
both_databases!(conversations_use_both_databases);

/// With `instances = "reuse"`, a conversation has its instance to itself as long as it goes on, and one that has trapped
/// leaves its instance to nobody.
#[tokio::test]
async fn r16_a_conversation_has_a_kept_instance_to_itself() {
    let server = serve("[modules.async]\ninstances = \"reuse\"").await;
    let served = async |client: &mut Socket| {
        client.say("served").await;
        client.hear().await
    };
    let mut all = Vec::new();
    for number in 0..5 {
        let mut client = talk(&server, &number.to_string()).await;
        assert_eq!(served(&mut client).await, "conversation 1");
        all.push(client);
    }
    // Other work of the module runs beside them, in kept instances of its own.
    let mut other = Socket::open(&server, Mode::Async, "2", "other").await;
    for number in 0..20 {
        other.say(&format!("{number}")).await;
        assert_eq!(other.hear().await, format!("echo {number}"));
        all[number % 5].say("count").await;
        let expected = format!("{} so far", 2 + number / 5);
        assert_eq!(all[number % 5].hear().await, expected);
    }
    // What it remembers ends with it, however it ends; each new one begins anew.
    for end in ["end", "panic", "fail", "spin", "close bye"] {
        let mut client = all.pop().expect("there is one for each end");
        client.say(end).await;
        assert!(client.hear().await.starts_with("closed "), "{end}");
        drop(client);
        let mut next = Socket::at(&server, &format!("/talk/{}?name=next", end.len())).await;
        assert_eq!(next.hear().await, "welcome next");
        next.say("count").await;
        assert_eq!(next.hear().await, "1 so far");
        // The others have returned, and their instances are used again.
        if ["panic", "spin"].contains(&end) {
            assert_eq!(served(&mut next).await, "conversation 1", "{end}");
        } else if end == "end" {
            assert_eq!(served(&mut next).await, "conversation 2");
        }
        next.say("panic").await;
        assert_eq!(next.hear().await, "closed 1011 the server has failed");
    }
    drop((all, other));
    server.assert_baseline().await;
    assert_eq!(open(&server).await, 0.0);
}

/// Middleware of both modes runs around the opening of a conversation, not around what follows, and can refuse it.
#[tokio::test]
async fn middleware_runs_around_the_opening_of_a_conversation() {
    let around = "[app]\nmiddleware = [\"sync::sync_guard\", \"async::async_guard\"]";
    let server = serve(around).await;
    let url = format!("ws://{}/talk/1?name=ann", server.address);
    let (socket, response) = connect_async(url).await.expect("it opens");
    // The outer one has set it last.
    assert_eq!(response.headers()["x-guard"], "sync");
    let mut ann = Socket(socket);
    assert_eq!(ann.hear().await, "welcome ann");
    // The context goes on in the conversation.
    for _ in 0..3 {
        ann.say("get guards").await;
        assert_eq!(ann.hear().await, "sync async ");
    }
    ann.say("keep 1").await;
    for expected in ["keep 1", "all: 1", "true"] {
        assert_eq!(ann.hear().await, expected);
    }
    let before = server.tags();
    assert_eq!(refused(&server, "guard=refuse").await, 403);
    // The view has run, and is undone with its conversation, which has not begun.
    assert_eq!(refused(&server, "guard=late").await, 409);
    assert_eq!(refused(&server, "refuse").await, 403);
    assert_eq!(open(&server).await, 1.0);
    let opened = |tags: &[String]| tags.iter().filter(|tag| tag.starts_with("opened")).count();
    assert_eq!(opened(&server.tags()), opened(&before));
    ann.say("end").await;
    assert_eq!(ann.hear().await, "closed 1000 ");
    drop(ann);
    server.assert_baseline().await;
    assert_eq!(
        before,
        [
            "before sync",
            "before async",
            "opened ann",
            "after async 200",
            "after sync 200",
            "1"
        ]
    );
}

/// Each way to fail ends the connection with 1011 and the conversation with one line of log, and nobody else notices.
#[tokio::test]
async fn r16_a_conversation_that_fails_ends_alone() {
    let server = serve("[limits]\nmemory_mb = 16").await;
    let mut other = talk(&server, "other").await;
    for (what, why) in [
        ("fail", "the view returned an error in its conversation"),
        ("panic", "a panic on purpose"),
        (
            "spin",
            "used up its CPU time of 300 ms (`cpu_ms`), which counts anew with each event",
        ),
        ("nap", "used up its CPU time of 300 ms (`cpu_ms`)"),
        ("hog", "`memory_mb`"),
        ("hold 60000", "open for longer than 1500 ms (`timeout_ms`)"),
    ] {
        let mark = server.log.mark();
        let mut client = talk(&server, "ann").await;
        client.say(what).await;
        assert_eq!(
            client.hear().await,
            "closed 1011 the server has failed",
            "{what}"
        );
        let line = failure(&server, mark).await;
        assert!(line.text("why").contains(why), "{what}: {line:?}");
        assert_eq!(line.text("view"), "async::conversation::talk");
        let closed = server.log.event(mark, "closed").await;
        assert_eq!(closed.number("code"), 1011, "{what}");
        drop(client);
    }
    other.say("count").await;
    assert_eq!(other.hear().await, "1 so far");
    assert_eq!(ended(&server, "failed").await, 6.0);
    assert_eq!(open(&server).await, 1.0);
    drop(other);
    server.assert_baseline().await;
    assert!(!server.tags().contains(&"held".to_owned()));
}

/// The budget counts anew with each event: a conversation computes more than a request may, but not at a time.
#[tokio::test]
async fn r5_cpu_time_counts_anew_with_each_event() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    for _ in 0..30 {
        ann.say("work 100").await;
        assert_eq!(ann.hear().await, "worked");
    }
    ann.say("work 1000").await;
    assert_eq!(ann.hear().await, "closed 1011 the server has failed");
}

/// And it counts anew after `timeout_ms`, so that a function with a clock need not hear from its client.
#[tokio::test]
async fn r5_cpu_time_counts_anew_with_time() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    ann.say("ticks 60").await;
    assert_eq!(ann.hear().await, "60 ticks");
    ann.say("many 2500").await;
    let mut full = 0;
    loop {
        match &*ann.hear().await {
            "many" => {}
            "sent" => break,
            told => {
                assert!(told.starts_with("full after "), "{told}");
                full += 1;
            }
        }
    }
    assert!((2..=3).contains(&full), "{full}");
}

/// Who leaves in whatever way is noticed, and the function sees the end once.
#[tokio::test]
async fn r21_a_conversation_sees_the_end_of_its_connection() {
    let server = serve("[sockets]\nping_ms = 400").await;
    let mut watcher = talk(&server, "watcher").await;
    for end in ["close", "drop", "reset", "silent"] {
        let mut client = talk(&server, end).await;
        let mut others = watcher.members(2).await;
        assert!(others.is_empty(), "{others:?}");
        match end {
            "close" => {
                client.0.close(None).await.expect("it is open");
                while let Some(Ok(_)) = client.0.next().await {}
                drop(client);
            }
            "reset" => {
                if let MaybeTlsStream::Plain(stream) = client.0.get_mut() {
                    stream.set_zero_linger().expect("it is a socket");
                }
                drop(client);
            }
            "silent" => {
                // A client that does not read does not answer to pings. The watcher does while it waits.
                assert_eq!(watcher.hear().await, "silent has left");
                drop(client);
                continue;
            }
            _ => drop(client),
        }
        assert_eq!(watcher.hear().await, format!("{end} has left"));
        others = watcher.members(1).await;
        assert!(others.is_empty(), "{others:?}");
    }
    drop(watcher);
    server.assert_baseline().await;
    let tags = server.tags();
    let closed: Vec<_> = tags
        .iter()
        .filter(|tag| tag.starts_with("closed"))
        .collect();
    assert_eq!(
        closed,
        [
            "closed close 1005",
            "closed drop 1006",
            "closed reset 1006",
            "closed silent 1006",
            "closed watcher 1006"
        ]
    );
}

/// A function that goes on after the end of its connection is ended: by its time limit, or by its CPU time.
#[tokio::test]
async fn r15_a_conversation_that_ignores_the_end_is_ended() {
    let server = serve("").await;
    for (what, why) in [
        (
            "ignore",
            "did not end its conversation within 1500 ms after the connection had ended (`timeout_ms`)",
        ),
        ("insist", "used up its CPU time"),
        ("deaf 60000", "did not end its conversation within 1500 ms"),
    ] {
        let mark = server.log.mark();
        let mut client = talk(&server, "ann").await;
        client.say(what).await;
        client.say("more").await;
        client.0.close(None).await.expect("it is open");
        while let Ok(Some(Ok(_))) = timeout(SOON, client.0.next()).await {}
        drop(client);
        let line = failure(&server, mark).await;
        assert!(line.text("why").contains(why), "{what}: {line:?}");
        server.assert_baseline().await;
    }
    assert_eq!(open(&server).await, 0.0);
}

/// What was sent before the end is received before it, also by a function that was not listening.
#[tokio::test]
async fn r19_messages_come_in_order_and_the_end_last() {
    let server = serve("[sockets]\nmailbox_max = 10").await;
    let mut ann = talk(&server, "ann").await;
    // Beyond `mailbox_max`, the host reads no more: nothing is lost.
    ann.say("deaf 700").await;
    for number in 0..300 {
        ann.say(&format!("say {number}")).await;
    }
    assert_eq!(ann.hear().await, "awake");
    for number in 0..300 {
        assert_eq!(ann.hear().await, format!("ann: {number}"));
    }
    ann.say("both").await;
    ann.say("one").await;
    ann.say("other").await;
    let mut got = [ann.hear().await, ann.hear().await];
    got.sort();
    assert_eq!(got, ["got one", "got other"]);
    ann.say("deaf 200").await;
    for number in 0..5 {
        ann.say(&format!("say last{number}")).await;
    }
    drop(ann);
    server.assert_baseline().await;
    let tags = server.tags();
    assert_eq!(tags.len(), 1 + 300 + 5 + 1);
    assert_eq!(tags[305], "last4");
    assert_eq!(tags[306], "closed ann 1006");
}

/// Notices have no one to hold back: a mailbox that is full closes the connection.
#[tokio::test]
async fn r22_a_conversation_that_does_not_receive_is_closed() {
    let server = serve("[sockets]\nmailbox_max = 10").await;
    let mut ann = talk(&server, "ann").await;
    let mut bob = talk(&server, "bob").await;
    ann.say("deaf 1000").await;
    for number in 0..40 {
        bob.say(&format!("notify {number}")).await;
        assert_eq!(bob.hear().await, format!("notice in room.1: {number}"));
    }
    let closed = "closed 1013 the server cannot keep up with notices";
    assert_eq!(ann.hear().await, closed);
    drop((ann, bob));
    server.assert_baseline().await;
    // That of `ann` has got an error when it wanted to send, and has ended with it.
    assert_eq!(ended(&server, "finished").await, 2.0);
    assert_eq!(ended(&server, "failed").await, 0.0);
}

/// A conversation waits for a slow client, within bounded memory. One that takes nothing is gone.
#[tokio::test]
async fn r22_a_conversation_waits_for_its_client() {
    let server = serve("[sockets]\noutbox_max_bytes = 100000\nping_ms = 1500").await;
    let before = server.memory_kib();
    let mut ann = talk(&server, "ann").await;
    // More than the kernel takes for it.
    ann.say("flood 500").await;
    sleep(Duration::from_millis(700)).await;
    let more = server.memory_kib().saturating_sub(before);
    assert!(more < 30_000, "{more} KiB");
    for number in 0..500 {
        let heard = ann.hear().await;
        assert!(heard.starts_with(&format!("{number} x")), "{heard}");
    }
    assert_eq!(ann.hear().await, "flooded");
    ann.say("large 70000").await;
    assert!(ann.hear().await.contains("`payload_max_bytes`"));
    ann.say("large 100000").await;
    assert!(ann.hear().await.contains("`outbox_max_bytes`"));
    let mut stuck = talk(&server, "stuck").await;
    stuck.say("flood 500").await;
    // `ann` answers to pings meanwhile.
    let others = ann.members(1).await;
    assert!(others.is_empty(), "{others:?}");
    drop((ann, stuck));
    server.assert_baseline().await;
    assert_eq!(ended(&server, "failed").await, 0.0);
}

/// A conversation that waits holds no place among the async requests, and there are only so many.
#[tokio::test]
async fn r4_conversations_have_a_limit_of_their_own() {
    let server = serve("[async_views]\nin_flight_max = 1\nsockets_max = 3").await;
    let mut all = Vec::new();
    for number in 0..3 {
        all.push(talk(&server, &number.to_string()).await);
    }
    let rows = server.rows();
    let mark = server.log.mark();
    assert_eq!(refused(&server, "name=more").await, 503);
    let line = &server.log.requests(mark, 1).await[0];
    let why = "3 web sockets have functions that keep their conversations, as many as `sockets_max` of `[async_views]` allows";
    assert_eq!(line.text("why"), why);
    // What the opening wrote is undone.
    assert_eq!(server.rows(), rows);
    let refused_count = server
        .metrics()
        .await
        .labelled("amphi_refused_total{queue=\"conversations\"}");
    assert_eq!(refused_count, 1.0);
    // The one place is free for other sockets and requests.
    let mut others = Vec::new();
    for number in 0..3 {
        others.push(Socket::open(&server, Mode::Async, "2", &number.to_string()).await);
    }
    let request = server.request("POST", "/async/send/room.1");
    let request = request.header("content-type", "application/json");
    let reply = Reply::of(request.body("\"hello\"")).await;
    assert!(reply.status < 300, "{}", reply.text());
    for client in &mut all {
        assert_eq!(client.hear().await, "hello");
    }
    // A place is free again when a conversation has ended.
    let mut first = all.remove(0);
    first.say("end").await;
    assert_eq!(first.hear().await, "closed 1000 ");
    eventually("a free place", async || match open(&server).await {
        2.0 => Ok(()),
        open => Err(open),
    })
    .await;
    drop(talk(&server, "again").await);
    drop((all, others, first));
    server.assert_baseline().await;
    assert_eq!(open(&server).await, 0.0);
}

/// Beside its instance, a conversation that waits holds nothing that others may want.
#[tokio::test]
async fn r18_a_conversation_holds_its_instance_alone() {
    let server =
        serve("[sync_views]\nworkers = 1\nworkers_max = 1\n[async_views]\nin_flight_max = 1").await;
    let mut all = Vec::new();
    for number in 0..20 {
        let mut client = talk(&server, &number.to_string()).await;
        client.say("keep it").await;
        loop {
            if client.hear().await == "true" {
                break;
            }
        }
        all.push(client);
    }
    let expected = [
        "amphi_scopes",
        "amphi_instances",
        "amphi_sockets",
        "amphi_conversations",
    ];
    let expected: Vec<_> = expected.iter().map(|name| (*name, 20.0)).collect();
    eventually("nothing but the instances", async || {
        match server.metrics().await.in_flight() {
            held if held == expected => Ok(()),
            held => Err(held),
        }
    })
    .await;
    drop(all);
    server.assert_baseline().await;
}

/// What a conversation does in many transactions, one after the other, does not pile up.
#[tokio::test]
async fn r13_a_long_conversation_does_not_grow() {
    let server = serve("").await;
    let mut ann = talk(&server, "ann").await;
    let mut rounds = Vec::new();
    for _ in 0..4 {
        for _ in 0..50 {
            ann.say("blocks 20").await;
            assert_eq!(ann.hear().await, "blocks");
        }
        rounds.push(server.memory_kib());
    }
    assert_eq!(server.rows(), 1 + 4_000);
    let grown = rounds[3].saturating_sub(rounds[1]);
    assert!(grown < 2_000, "{rounds:?}");
}

/// A server that stops tells the clients, and the functions have the time to come to an end.
#[tokio::test]
async fn r19_a_server_that_stops_ends_its_conversations() {
    let mut server = serve("").await;
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(talk(&server, &number.to_string()).await);
    }
    server.terminate();
    for client in &mut all {
        loop {
            match &*client.hear().await {
                told if told.ends_with("has left") => {}
                told => {
                    assert_eq!(told, "closed 1001 the server stops");
                    break;
                }
            }
        }
    }
    assert!(server.ended().await.success());
    let tags = server.tags();
    let closed = tags
        .iter()
        .filter(|tag| tag.starts_with("closed") && tag.ends_with("1001"));
    assert_eq!(closed.count(), 5, "{tags:?}");
}

/// Hundreds of conversations that end at a random moment in a random way leave nothing behind.
#[tokio::test]
async fn r13_a_storm_of_conversations_leaves_nothing_behind() {
    let server =
        serve("[sockets]\nmailbox_max = 8\noutbox_max_bytes = 100000\nping_ms = 2000").await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let one = async |number: u64| {
        let mut random = Rng::with_seed(seed + number);
        let path = format!(
            "ws://{}/talk/{}?name=n{number}",
            server.address,
            random.u8(..4)
        );
        let Ok((mut client, _)) = connect_async(path).await else {
            panic!("it opens");
        };
        for _ in 0..random.usize(..6) {
            let commands = [
                "say hi",
                "count",
                "keep x",
                "undo never",
                "fail",
                "panic",
                "end",
                "close bye",
                "deaf 30",
                "notify news",
                "flood 20",
                "hold 5",
                "ticks 3",
                "both",
                "ignore",
                "join other",
                "hold 100",
            ];
            let command = commands[random.usize(..commands.len())];
            let _ = client.feed(Message::text(command)).await;
        }
        let _ = client.flush().await;
        let pause = Duration::from_micros(random.u64(..30_000));
        if random.bool() {
            let read = async { while let Some(Ok(_)) = client.next().await {} };
            let _ = timeout(pause, read).await;
        } else {
            sleep(pause).await;
        }
        match random.u8(..3) {
            0 => {
                let _ = client.close(None).await;
            }
            1 => {
                if let MaybeTlsStream::Plain(stream) = client.get_mut() {
                    stream.set_zero_linger().expect("it is a socket");
                }
            }
            _ => {}
        }
    };
    for round in 0..10 {
        join_all((0..40).map(|number| one(round * 40 + number))).await;
    }
    // One whose client is gone while the handshake runs.
    for _ in 0..40 {
        let mut raw = Raw::connect(&server).await;
        raw.send(format!(
            "GET /talk/1?name=early HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            server.address
        ))
        .await;
        sleep(Duration::from_micros(fastrand::u64(..3_000))).await;
        drop(raw);
    }
    server.assert_baseline().await;
    assert_eq!(open(&server).await, 0.0);
    crate::channels::tells(&server, "memberships", 0).await;
    assert!(!server.tags().contains(&"never".to_owned()));
    // It serves on.
    drop(talk(&server, "after").await);
}

/// The memory of a conversation that waits. The limit is far above what is measured.
#[tokio::test]
async fn an_idle_conversation_takes_bounded_memory() {
    let server = serve("").await;
    let mut all = Vec::new();
    for number in 0..20 {
        all.push(talk(&server, &number.to_string()).await);
    }
    let before = server.memory_kib();
    const MORE: u64 = 300;
    for number in 0..MORE {
        all.push(talk(&server, &number.to_string()).await);
    }
    let each = server.memory_kib().saturating_sub(before) / MORE;
    println!("{each} KiB for each idle conversation");
    assert!(each < 2_000, "{each} KiB");
    assert_eq!(open(&server).await, 320.0);
    drop(all);
    server.assert_baseline().await;
}

/// The source of an app with a conversation and a socket that is called for each event.
const VERSIONED: &str = r#"
use amphi_sdk::prelude::*;

const VERSION: &str = "1";

#[socket("/talk")]
async fn talk(_: &Context, mut socket: Socket) -> Result<()> {
    while let Some(event) = socket.receive().await? {
        if let Received::Message(_) = event {
            socket.send(format!("talk of {VERSION}")).await?;
        }
    }
    log::info!("talk ended", code = socket.closed().map_or(0, |closed| closed.code));
    Ok(())
}

#[socket("/event")]
async fn event(cx: &Context, event: SocketEvent) -> Result<()> {
    match event {
        SocketEvent::Message(_) => cx.socket().send(format!("event of {VERSION}")),
        _ => Ok(()),
    }
}

views![talk, event];
"#;

/// The same socket, in the other form.
const OTHER_FORM: &str = r#"
#[socket("/event")]
async fn event(_: &Context, mut socket: Socket) -> Result<()> {
    while socket.receive().await?.is_some() {
        socket.send(format!("other form of {VERSION}")).await?;
    }
    Ok(())
}

views![talk, event];
"#;

/// A conversation goes on with its own version of the app until the drain time is over. A connection of the other form goes
/// on, as long as its view keeps that form.
#[tokio::test]
async fn r23_a_conversation_outlives_its_app_for_the_drain_time() {
    let app = App::of_crate("versioned-talk", "drain_timeout_ms = 2000", "", VERSIONED);
    let server = app.up().await;
    let mut talk = Socket::at(&server, "/talk").await;
    let mut event = Socket::at(&server, "/event").await;
    for (socket, told) in [(&mut talk, "talk of 1"), (&mut event, "event of 1")] {
        socket.say("who").await;
        assert_eq!(socket.hear().await, told);
    }
    let mark = server.log.mark();
    server.edit(&VERSIONED.replace("\"1\"", "\"2\"")).await;
    let swapped = Instant::now();
    for (socket, told) in [(&mut talk, "talk of 1"), (&mut event, "event of 2")] {
        socket.say("who").await;
        assert_eq!(socket.hear().await, told);
    }
    let mut new = Socket::at(&server, "/talk").await;
    new.say("who").await;
    assert_eq!(new.hear().await, "talk of 2");
    assert_eq!(
        talk.hear().await,
        "closed 1012 the app has changed: connect again"
    );
    let after = swapped.elapsed();
    assert!(
        after > Duration::from_millis(1_500) && after < Duration::from_millis(6_000),
        "{after:?}"
    );
    drop(talk);
    // The function has seen it.
    let line = server.log.event(mark, "talk ended").await;
    assert_eq!(line.text("message"), "talk ended code=1012");
    for (socket, told) in [(&mut new, "talk of 2"), (&mut event, "event of 2")] {
        socket.say("who").await;
        assert_eq!(socket.hear().await, told);
    }
    let at = VERSIONED
        .find("#[socket(\"/event\")]")
        .expect("it is there");
    server
        .edit(&format!("{}{OTHER_FORM}", &VERSIONED[..at]))
        .await;
    event.say("who").await;
    assert_eq!(
        event.hear().await,
        "closed 1012 the app has changed: connect again"
    );
    drop(event);
    let mut other = Socket::at(&server, "/event").await;
    other.say("who").await;
    assert_eq!(other.hear().await, "other form of 1");
    assert_eq!(
        new.hear().await,
        "closed 1012 the app has changed: connect again"
    );
    drop((new, other));
    eventually("every gauge at its baseline", async || {
        let in_flight = server.metrics().await.in_flight();
        match in_flight.is_empty() {
            true => Ok(()),
            false => Err(in_flight),
        }
    })
    .await;
}
