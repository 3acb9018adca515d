//! Groups of connections: event streams and polls, what views of requests send, reloads, and groups across hosts.

use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::SinkExt as _;
use futures::future::join_all;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::nats::Nats;
use crate::harness::server::{client, client_http2};
use crate::harness::socket::{Socket, app};
use crate::harness::{App, Mode, Reply, SOON, Server, eventually};

/// The number that the hub has for `what`, such as `memberships`. It is told once a second.
pub(crate) async fn told(server: &Server, what: &str) -> u64 {
    let url = format!("http://{}/metrics", server.admin);
    let metrics = Reply::of(server.client.get(url)).await;
    let name = format!("amphi_channels{{what=\"{what}\"}} ");
    let mut lines = metrics.text().lines();
    let number = lines.find_map(|line| line.strip_prefix(&name)?.parse().ok());
    number.unwrap_or_default()
}

/// Waits until the hub tells this number.
pub(crate) async fn tells(server: &Server, what: &str, number: u64) {
    eventually(what, async || match told(server, what).await {
        found if found == number => Ok(()),
        found => Err(found),
    })
    .await;
}

/// The client of an event stream.
pub(crate) struct Stream {
    response: Response,
    read: Vec<u8>,
    /// The id of the last event.
    pub(crate) last: String,
}

/// What an event stream says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Empty: a message.
    pub(crate) name: String,
    pub(crate) data: String,
}

impl Stream {
    /// Opens a stream that goes on after an event.
    pub(crate) async fn open(
        client: &Client,
        server: &Server,
        path: &str,
        last: Option<&str>,
    ) -> Stream {
        let mut request = client.get(server.url(path));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.expect("there is a response");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let mut stream = Stream {
            response,
            read: Vec::new(),
            last: String::new(),
        };
        let first = stream.block().await.expect("it says where it begins");
        let id = first.strip_prefix("retry: 2000\nid: ");
        stream.last = id.expect("it is how a stream begins").to_owned();
        stream
    }

    /// The text up to the next empty line. None: the stream has ended.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\n\n") {
                let block = self.read.drain(..at + 2).collect();
                let block = String::from_utf8(block).expect("it is a text");
                return Some(block.trim_end_matches('\n').to_owned());
            }
            let more = timeout(2 * SOON, self.response.chunk()).await;
            let more = more.expect("it comes in time");
            let more = more.expect("it does not break off")?;
            self.read.extend_from_slice(&more);
        }
    }

    /// The next event that is no comment. None: the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().await?;
            let (mut name, mut data) = (String::new(), Vec::new());
            for line in block.lines() {
                match line.split_once(": ") {
                    Some(("id", id)) => self.last = id.to_owned(),
                    Some(("event", event)) => name = event.to_owned(),
                    Some(("data", line)) => data.push(line),
                    _ => assert_eq!(line, ":"),
                }
            }
            if !data.is_empty() {
                let data = data.join("\n");
                return Some(Event { name, data });
            }
        }
    }

    /// The data of the next events, which are messages.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<String> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let event = self.next().await.expect("the stream goes on");
            assert_eq!(event.name, "", "{event:?} after {messages:?}");
            messages.push(event.data);
        }
        messages
    }
}

/// Sends a message to a group, by a view.
async fn send(server: &Server, mode: Mode, group: &str, text: &str) {
    let path = format!("/{mode}/send/{group}");
    let sent = server.request("POST", &path).body(json!(text).to_string());
    let sent = Reply::of(sent.header("content-type", "application/json")).await;
    assert!(sent.status < 300, "{sent:?}");
}

/// Has a view send a message to `room.1`, and do more: see `Post` of the guest.
async fn post(server: &Server, mode: Mode, text: &str, count: u32, then: &str) -> u16 {
    let post = json!({ "text": text, "count": count, "then": then });
    let path = format!("/{mode}/post/room.1");
    let posted = server.request("POST", &path).body(post.to_string());
    let posted = Reply::of(posted.header("content-type", "application/json"));
    posted.await.status
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

const HISTORY: &str = "[channels]\nhistory = { \"room.*\" = 100 }";

async fn r22_an_event_stream_goes_on_where_its_client_was(mode: Mode) {
    let server = app(HISTORY).serve().await;
    let path = format!("/{mode}/events/room.1");
    let open = async |last: Option<&str>| Stream::open(&server.client, &server, &path, last).await;
    let say = async |range: std::ops::Range<u32>| {
        for text in numbers(range) {
            send(&server, mode, "room.1", &text).await;
        }
    };
    let mut stream = open(None).await;
    let begin = stream.last.clone();
    send(&server, mode, "room.1", "two\nlines").await;
    send(&server, mode, "room.2", "for others").await;
    say(0..1).await;
    assert_eq!(stream.messages(2).await, ["two\nlines", "0"]);
    let last = stream.last.clone();
    drop(stream);
    say(1..6).await;
    let mut stream = open(Some(&last)).await;
    assert_eq!(stream.messages(5).await, numbers(1..6));
    say(6..7).await;
    assert_eq!(stream.messages(1).await, ["6"]);
    // Who names no event gets what is sent from now on.
    let mut fresh = open(None).await;
    say(7..8).await;
    assert_eq!(fresh.messages(1).await, ["7"]);
    let mut from_begin = open(Some(&begin)).await;
    assert_eq!(from_begin.messages(9).await[1..], numbers(0..8));
    drop((stream, fresh, from_begin));
    // Beyond the history.
    say(8..110).await;
    for unknown in [&*last, "nonsense", "0123456789abcdef-3"] {
        let mut stream = open(Some(unknown)).await;
        let gap = stream.next().await.expect("it goes on");
        assert_eq!((&*gap.name, &*gap.data), ("gap", "unknown"));
        if unknown == last {
            assert_eq!(stream.messages(100).await, numbers(10..110));
        }
        send(&server, mode, "room.1", "on").await;
        assert_eq!(stream.messages(1).await, ["on"]);
    }
    server.assert_baseline().await;
    tells(&server, "subscribers", 0).await;
}
both_modes!(r22_an_event_stream_goes_on_where_its_client_was);

/// A poll: the messages, where the next one goes on, and whether some are lost.
pub(crate) struct Polled {
    pub(crate) messages: Vec<String>,
    pub(crate) cursor: String,
    pub(crate) gap: bool,
}

pub(crate) async fn poll(client: &Client, server: &Server, path: &str) -> Polled {
    let reply = Reply::of(client.get(server.url(path))).await;
    assert_eq!(reply.header("cache-control"), "no-store");
    let cursor = reply.header("last-event-id").to_owned();
    if reply.status == 204 {
        let (messages, gap) = (Vec::new(), false);
        assert!(reply.body.is_empty());
        return Polled {
            messages,
            cursor,
            gap,
        };
    }
    let told: Value = serde_json::from_str(reply.ok()).expect("it is JSON");
    assert_eq!(told["cursor"], *cursor);
    let messages = told["messages"].as_array().expect("it is a list").iter();
    let text = |message: &Value| message["text"].as_str().expect("it is a text").to_owned();
    Polled {
        messages: messages.map(text).collect(),
        cursor,
        gap: told["gap"] == true,
    }
}

async fn r22_a_poll_goes_on_where_its_client_was(mode: Mode) {
    let server = app(HISTORY).serve().await;
    let after = async |after: Option<&str>, ms: u64| {
        let after = after.map_or_else(String::new, |after| format!("&after={after}"));
        let path = format!("/{mode}/poll/room.1?ms={ms}{after}");
        poll(&server.client, &server, &path).await
    };
    let begin = after(None, 0).await;
    assert!(begin.messages.is_empty() && !begin.gap);
    for text in numbers(0..5) {
        send(&server, mode, "room.1", &text).await;
    }
    let some = after(Some(&begin.cursor), 10_000).await;
    assert_eq!((some.messages, some.gap), (numbers(0..5), false));
    let none = after(Some(&some.cursor), 100).await;
    assert!(none.messages.is_empty() && none.cursor == some.cursor);
    // One that waits gets what comes.
    let (waited, ()) = tokio::join!(after(Some(&none.cursor), 10_000), async {
        eventually("a poll that waits", async || {
            match server.metrics().await.get("amphi_polls") {
                0.0 => Err("none"),
                _ => Ok(()),
            }
        })
        .await;
        send(&server, mode, "room.1", "5").await;
    });
    assert_eq!(waited.messages, ["5"]);
    for text in numbers(6..110) {
        send(&server, mode, "room.1", &text).await;
    }
    for unknown in [&*begin.cursor, "nonsense", "0123456789abcdef-3"] {
        let lost = after(Some(unknown), 10_000).await;
        assert!(lost.gap && lost.messages.is_empty());
        if unknown == begin.cursor {
            let rest = after(Some(&lost.cursor), 10_000).await;
            assert_eq!((rest.messages, rest.gap), (numbers(10..110), false));
        }
    }
    server.assert_baseline().await;
}
both_modes!(r22_a_poll_goes_on_where_its_client_was);

/// Every cursor has a gap there, which must not have clients ask without a pause.
async fn a_poll_waits_without_a_history_too(mode: Mode) {
    let server = app("").serve().await;
    let after = async |after: &str, ms: u64| {
        let path = format!("/{mode}/poll/room.1?ms={ms}{after}");
        poll(&server.client, &server, &path).await
    };
    let begin = after("", 0).await;
    let next = format!("&after={}", begin.cursor);
    let begun = Instant::now();
    let none = after(&next, 500).await;
    assert!(none.gap && none.messages.is_empty());
    assert!(begun.elapsed() >= Duration::from_millis(500));
    let (waited, ()) = tokio::join!(after(&next, 10_000), async {
        eventually("a poll that waits", async || {
            match server.metrics().await.get("amphi_polls") {
                0.0 => Err("none"),
                _ => Ok(()),
            }
        })
        .await;
        send(&server, mode, "room.1", "0").await;
    });
    assert!(waited.gap && waited.messages == ["0"]);
}
both_modes!(a_poll_waits_without_a_history_too);

/// Many messages at once are more than wait for a subscriber, but the history has them.
async fn a_poll_misses_nothing_of_a_burst(mode: Mode) {
    let server = app("[channels]\nhistory = { \"room.*\" = 1000 }")
        .serve()
        .await;
    let path = format!("/{mode}/poll/room.1?ms=10000");
    let begin = format!("/{mode}/poll/room.1?ms=0");
    let mut cursor = poll(&server.client, &server, &begin).await.cursor;
    // What comes first, the end of the burst or the poll, is a matter of luck.
    for round in 0..10 {
        let text = format!("burst {round}");
        let next = format!("{path}&after={cursor}");
        let (mut polled, status) = tokio::join!(poll(&server.client, &server, &next), async {
            eventually("a poll that waits", async || {
                match server.metrics().await.get("amphi_polls") {
                    0.0 => Err("none"),
                    _ => Ok(()),
                }
            })
            .await;
            post(&server, mode, &text, 300, "").await
        });
        assert!(status < 300);
        let mut all = Vec::new();
        let last = format!("{text} 299");
        while !polled.messages.contains(&last) {
            assert!(!polled.gap, "the history has all");
            all.append(&mut polled.messages);
            let next = format!("{path}&after={}", polled.cursor);
            polled = poll(&server.client, &server, &next).await;
        }
        all.append(&mut polled.messages);
        cursor = polled.cursor;
        let sent = (0..300).map(|number| format!("{text} {number}"));
        let first = all.first().cloned();
        assert!(
            all.len() == 300 && all.into_iter().eq(sent),
            "messages are lost, and no gap was told: the first that came is {first:?}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(a_poll_misses_nothing_of_a_burst);

/// How many messages the clients that come and go have to get.
const MANY: u32 = 1_000;

/// A history that reaches back over all of them.
const LONG: &str = "[channels]\nhistory = { \"room.*\" = 1000 }";

/// Clients that leave at random moments, and name the last event that they have got when they come back.
async fn event_streams_that_come_back_miss_and_repeat_nothing(mode: Mode) {
    let server = app(LONG).serve().await;
    let path = format!("/{mode}/events/room.1");
    let clients = [client(), client_http2()];
    let mut streams = Vec::new();
    for number in 0..8 {
        streams.push(Stream::open(&clients[number % 2], &server, &path, None).await);
    }
    let listen = async |number: usize, mut stream: Stream| {
        let mut random = Rng::with_seed(number as u64);
        let (mut next, mut left) = (0, random.u64(1..40));
        while next < MANY {
            let pause = Duration::from_micros(random.u64(..20_000));
            let wait = if left > 0 { SOON } else { pause };
            match timeout(wait, stream.next()).await {
                Ok(Some(Event { name, data })) if name.is_empty() => {
                    assert_eq!(data, next.to_string(), "client {number}");
                    next += 1;
                    left = left.saturating_sub(1);
                    if left > 0 || random.bool() {
                        continue;
                    }
                }
                Ok(Some(event)) => panic!("the history has all: {event:?}"),
                Ok(None) => panic!("the stream should not end: client {number} before {next}"),
                Err(_) => assert_eq!(left, 0, "client {number} should get {next} in time"),
            }
            let last = stream.last.clone();
            drop(stream);
            if random.bool() {
                tokio::time::sleep(pause).await;
            }
            stream = Stream::open(&clients[number % 2], &server, &path, Some(&last)).await;
            left = random.u64(1..40);
        }
    };
    let listening = streams.into_iter().enumerate();
    let listening = join_all(listening.map(|(number, stream)| listen(number, stream)));
    tokio::join!(listening, async {
        for text in numbers(0..MANY) {
            send(&server, mode, "room.1", &text).await;
        }
    });
    server.assert_baseline().await;
    tells(&server, "subscribers", 0).await;
}
both_modes!(event_streams_that_come_back_miss_and_repeat_nothing);

/// Polls one after the other, of which clients give up some.
async fn polls_that_come_back_miss_and_repeat_nothing(mode: Mode) {
    let server = app(LONG).serve().await;
    let path = |ms: u64| format!("/{mode}/poll/room.1?ms={ms}");
    let begin = poll(&server.client, &server, &path(0)).await.cursor;
    let clients = [client(), client_http2()];
    let listen = async |number: usize| {
        let mut random = Rng::with_seed(number as u64);
        let (mut all, mut cursor) = (Vec::new(), begin.clone());
        while all.len() < MANY as usize {
            let path = format!("{}&after={cursor}", path(random.u64(..200)));
            let polled = poll(&clients[number % 2], &server, &path);
            let patience = match random.u8(..4) {
                0 => Duration::from_micros(random.u64(..5_000)),
                _ => SOON,
            };
            if let Ok(mut polled) = timeout(patience, polled).await {
                assert!(!polled.gap, "the history has all");
                all.append(&mut polled.messages);
                cursor = polled.cursor;
            }
            if random.u8(..4) == 0 {
                tokio::time::sleep(Duration::from_micros(random.u64(..20_000))).await;
            }
        }
        all
    };
    let (heard, ()) = tokio::join!(join_all((0..8).map(listen)), async {
        for text in numbers(0..MANY) {
            send(&server, mode, "room.1", &text).await;
        }
    });
    for all in heard {
        assert_eq!(all, numbers(0..MANY));
    }
    server.assert_baseline().await;
}
both_modes!(polls_that_come_back_miss_and_repeat_nothing);

/// A client that reads too slowly goes on from the history, and is told how many messages it has missed.
async fn r22_a_slow_event_stream_is_told_how_much_it_missed(mode: Mode) {
    let server = app("[channels]\nhistory = { \"room.*\" = 10 }")
        .serve()
        .await;
    let path = format!("/{mode}/events/room.1");
    let mut stream = Stream::open(&server.client, &server, &path, None).await;
    // More than the kernel keeps for a client that does not read.
    let text = "x".repeat(60_000);
    let (posts, count) = (30, 20);
    for _ in 0..posts {
        assert!(post(&server, mode, &text, count, "").await < 300);
    }
    send(&server, mode, "room.1", "last").await;
    let (mut heard, mut missed) = (0, 0);
    loop {
        let event = stream.next().await.expect("the stream goes on");
        match &*event.name {
            "gap" => missed += event.data.parse::<u32>().expect("it is a number"),
            _ if event.data == "last" => break,
            _ => heard += 1,
        }
    }
    assert!(missed > 0, "{heard} were heard");
    assert_eq!(heard + missed, posts * count);
    drop(stream);
    server.assert_baseline().await;
    tells(&server, "missed_by_subscribers", missed.into()).await;
}
both_modes!(r22_a_slow_event_stream_is_told_how_much_it_missed);

/// What waits for messages holds one connection each, and the views run for others meanwhile.
async fn r18_event_streams_and_polls_hold_nothing_of_a_guest(mode: Mode) {
    let limits = "[sync_views]\nworkers = 1\nworkers_max = 2\n[async_views]\nin_flight_max = 2";
    let server = app(limits).serve().await;
    let path = format!("/{mode}/events/room.1");
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(Stream::open(&server.client, &server, &path, None).await);
    }
    let polls = format!("/{mode}/poll/room.1?ms=60000");
    let polls: Vec<_> = (0..20)
        .map(|_| tokio::spawn(Reply::maybe(server.request("GET", &polls))))
        .collect();
    let held = async |what: &str, wanted: &[(&str, f64)]| {
        eventually(what, async || {
            let held = server.metrics().await.in_flight();
            if held == wanted { Ok(()) } else { Err(held) }
        })
        .await;
    };
    let waiting = [("amphi_event_streams", 50.0), ("amphi_polls", 20.0)];
    held("nothing but what waits", &waiting).await;
    tells(&server, "subscribers", 70).await;
    send(&server, mode, "room.1", "hello").await;
    for stream in &mut streams {
        assert_eq!(stream.messages(1).await, ["hello"]);
    }
    for poll in polls {
        let reply = poll.await.expect("it does not panic");
        let reply = reply.expect("there is a response");
        assert!(reply.ok().contains("hello"), "{reply:?}");
    }
    held("the streams alone", &waiting[..1]).await;
    // Clients that leave are noticed, although nothing is sent to them.
    let polls: Vec<_> = (0..5)
        .map(|_| {
            let path = format!("/{mode}/poll/room.1?ms=60000");
            tokio::spawn(Reply::maybe(server.request("GET", &path)))
        })
        .collect();
    let waiting = [("amphi_event_streams", 50.0), ("amphi_polls", 5.0)];
    held("polls once more", &waiting).await;
    polls.iter().for_each(tokio::task::JoinHandle::abort);
    drop(streams);
    server.assert_baseline().await;
    tells(&server, "subscribers", 0).await;
}
both_modes!(r18_event_streams_and_polls_hold_nothing_of_a_guest);

/// No more clients listen than are allowed, and those who leave make room.
async fn subscribers_are_limited(mode: Mode) {
    let server = app("[channels]\nsubscribers_max = 3").serve().await;
    let path = format!("/{mode}/events/room.1");
    let poll = format!("/{mode}/poll/room.1?ms=0");
    // Who asks for the head alone does not stay.
    for path in [&path, &poll] {
        let head = Reply::of(server.request("HEAD", path)).await;
        assert!(head.status < 300 && head.body.is_empty(), "{head:?}");
    }
    server.assert_baseline().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Stream::open(&server.client, &server, &path, None).await);
    }
    for path in [&path, &poll] {
        let refused = server.get(path).await;
        assert_eq!(refused.status, 503, "{refused:?}");
    }
    streams.pop();
    eventually("room for another", async || match server.get(&poll).await {
        reply if reply.status == 204 => Ok(()),
        reply => Err(reply),
    })
    .await;
    drop(streams);
    server.assert_baseline().await;
    tells(&server, "subscribers", 0).await;
}
both_modes!(subscribers_are_limited);

/// A view may answer from the groups that its module is granted alone.
async fn a_group_without_a_grant_is_not_heard(mode: Mode) {
    let server = app("").serve().await;
    for path in ["events/secret", "poll/secret?ms=60000", "events/room"] {
        let mark = server.log.mark();
        let reply = server.get(&format!("/{mode}/{path}")).await;
        assert_eq!(reply.status, 500, "{reply:?}");
        let line = &server.log.requests(mark, 1).await[0];
        assert!(line.text("why").contains("`channels`"), "{line:?}");
    }
    let refused = server.request("POST", &format!("/{mode}/send/secret"));
    let refused = refused.header("content-type", "application/json");
    assert_eq!(Reply::of(refused.body("\"x\"")).await.status, 500);
    server.assert_baseline().await;
}
both_modes!(a_group_without_a_grant_is_not_heard);

async fn a_server_that_stops_ends_event_streams_and_polls(mode: Mode) {
    let mut server = app("").serve().await;
    let path = format!("/{mode}/events/room.1");
    let mut stream = Stream::open(&server.client, &server, &path, None).await;
    let path = format!("/{mode}/poll/room.1?ms=60000");
    let poll = tokio::spawn(Reply::of(server.request("GET", &path)));
    tells(&server, "subscribers", 2).await;
    server.terminate();
    assert_eq!(stream.next().await, None);
    assert_eq!(poll.await.expect("it does not panic").status, 204);
    assert!(server.ended().await.success());
}
both_modes!(a_server_that_stops_ends_event_streams_and_polls);

/// A request that fails, in whatever way, has sent nothing. One that succeeds has sent after its commit.
async fn r20_a_request_sends_with_its_commit(mode: Mode) {
    let server = app("").serve().await;
    let path = format!("/{mode}/events/room.1");
    let mut stream = Stream::open(&server.client, &server, &path, None).await;
    let mut ann = Socket::open(&server, mode, "1", "ann").await;
    for (then, status) in [
        ("error", 500),
        ("refuse", 409),
        ("panic", 500),
        ("orphan", 500),
        ("spin", 503),
    ] {
        let answered = post(&server, mode, "never", 0, then).await;
        assert!(
            answered == status
                || (then == "spin" && answered >= 500 || then == "orphan" && answered >= 400),
            "{then}: {answered}"
        );
    }
    for text in numbers(0..50) {
        let sent = async { assert!(post(&server, mode, &text, 0, "").await < 300) };
        let heard = async {
            let there = format!("select count(*) from rows where tag = '{text}'");
            let heard = [ann.hear().await, stream.messages(1).await.remove(0)];
            assert_eq!(heard, [&*text, &*text]);
            assert_eq!(server.count(&there), 1);
            // The notice has its event.
            assert_eq!(ann.hear().await, format!("notice in room.1: {text}"));
        };
        tokio::join!(sent, heard);
    }
    assert_eq!(
        server.count("select count(*) from rows where tag = 'never'"),
        0
    );
    drop((ann, stream));
    server.assert_baseline().await;
}
both_modes!(r20_a_request_sends_with_its_commit);

/// The source of an app whose sockets say which version of it handles them.
const VERSIONED: &str = r#"
use amphi_sdk::prelude::*;

const VERSION: &str = "1";

#[both]
async fn handle(cx: &Context, event: SocketEvent) -> Result<()> {
    let opened = cx.get("opened").unwrap_or_default();
    match event {
        SocketEvent::Opened(_) => {
            cx.set("opened", VERSION)?;
            cx.socket().join("room.1")
        }
        SocketEvent::Message(Message::Text(text)) if text == "all" => cx.channels().send("room.1", format!("all by {VERSION}")),
        SocketEvent::Message(_) => cx.socket().send(format!("opened by {opened}, handled by {VERSION}")),
        SocketEvent::Notice(_) | SocketEvent::Closed(_) => Ok(()),
    }
}

#[socket("/sync/old")]
fn sync_socket(cx: &Context, event: SocketEvent) -> Result<()> {
    handle(cx, event)
}

#[socket("/async/old")]
async fn async_socket(cx: &Context, event: SocketEvent) -> Result<()> {
    handle(cx, event).await
}

#[view(get, "/events")]
fn events() -> EventStream {
    EventStream::of("room.1")
}

views![sync_socket, async_socket, events];
"#;

/// Connections outlive the version of the app that opened them.
#[tokio::test]
async fn r23_a_reload_ends_no_connection() {
    let app = App::of_crate("versioned", "", "channels = [\"room.*\"]", VERSIONED);
    let server = app.up().await;
    let mut sync_socket = Socket::at(&server, "/sync/old").await;
    let mut async_socket = Socket::at(&server, "/async/old").await;
    let mut stream = Stream::open(&server.client, &server, "/events", None).await;
    for socket in [&mut sync_socket, &mut async_socket] {
        socket.say("who").await;
        assert_eq!(socket.hear().await, "opened by 1, handled by 1");
    }
    server.edit(&VERSIONED.replace("\"1\"", "\"2\"")).await;
    for socket in [&mut sync_socket, &mut async_socket] {
        socket.say("who").await;
        assert_eq!(socket.hear().await, "opened by 1, handled by 2");
    }
    // They are still in their group.
    sync_socket.say("all").await;
    for socket in [&mut sync_socket, &mut async_socket] {
        assert_eq!(socket.hear().await, "all by 2");
    }
    assert_eq!(stream.messages(1).await, ["all by 2"]);
    server.edit(&VERSIONED.replace("/old", "/new")).await;
    for mut socket in [sync_socket, async_socket] {
        socket.say("who").await;
        let closed = "closed 1001 the app has no such view any more";
        assert_eq!(socket.hear().await, closed);
    }
    let mut new = Socket::at(&server, "/sync/new").await;
    new.say("all").await;
    assert_eq!(new.hear().await, "all by 1");
    assert_eq!(stream.messages(1).await, ["all by 1"]);
    drop((new, stream));
    // Not `assert_baseline`: cargo writes to this log, too.
    eventually("every gauge at its baseline", async || {
        let in_flight = server.metrics().await.in_flight();
        match in_flight.is_empty() {
            true => Ok(()),
            false => Err(in_flight),
        }
    })
    .await;
    tells(&server, "memberships", 0).await;
}

/// Servers of one app, each with a database of its own.
async fn hosts<const N: usize>(nats: &Nats, toml: &str) -> [Server; N] {
    let toml = format!("[channels]\nnats = \"{}\"\n{toml}", nats.url());
    let mut servers = Vec::new();
    for _ in 0..N {
        servers.push(app(&toml).serve().await);
    }
    servers.try_into().ok().expect("there are so many")
}

async fn groups_reach_across_hosts(mode: Mode) {
    let nats = Nats::start();
    let [here, there] = hosts(&nats, "").await;
    let mut ann = Socket::open(&here, mode, "1", "ann").await;
    let mut bob = Socket::open(&there, mode, "1", "bob").await;
    // Who is told of a member reaches it.
    ann.members(2).await;
    bob.members(2).await;
    for number in 0..300 {
        for (client, name) in [(&mut ann, "ann"), (&mut bob, "bob")] {
            let said = client.0.feed(Message::text(format!("say {name}{number}")));
            said.await.expect("it is open");
        }
    }
    for client in [&mut ann, &mut bob] {
        client.0.flush().await.expect("it is open");
    }
    for client in [&mut ann, &mut bob] {
        let mut heard = Vec::new();
        while heard.len() < 600 {
            heard.push(client.hear().await);
        }
        for name in ["ann", "bob"] {
            let told = heard.iter().filter(|text| text.starts_with(name));
            let sent = (0..300).map(|number| format!("{name}: {name}{number}"));
            assert!(told.cloned().eq(sent), "{name}: {heard:?}");
        }
    }
    ann.say("notify news").await;
    for client in [&mut ann, &mut bob] {
        assert_eq!(client.hear().await, "notice in room.1: news");
    }
    // To one connection.
    bob.say("id").await;
    let id = bob.hear().await;
    ann.say(&format!("tell {id} psst")).await;
    assert_eq!(bob.hear().await, "psst");
    // By a view of a request, and to a client of an event stream.
    let path = format!("/{mode}/events/room.1");
    let mut stream = Stream::open(&here.client, &here, &path, None).await;
    assert!(post(&there, mode, "posted", 0, "").await < 300);
    for client in [&mut ann, &mut bob] {
        let mut heard = [client.hear().await, client.hear().await];
        heard.sort();
        assert_eq!(heard, ["notice in room.1: posted", "posted"]);
    }
    assert_eq!(stream.messages(1).await, ["posted"]);
    bob.0.close(None).await.expect("it is open");
    assert_eq!(ann.hear().await, "bob has left");
    ann.members(1).await;
    drop((ann, stream));
    for server in [here, there] {
        server.assert_baseline().await;
        tells(&server, "memberships", 0).await;
        for lost in ["gaps", "malformed", "slow_consumer", "lost_failed"] {
            assert_eq!(told(&server, lost).await, 0, "{lost}");
        }
    }
}
both_modes!(groups_reach_across_hosts);

#[tokio::test]
async fn r21_members_of_a_host_that_is_killed_are_gone_in_ten_seconds() {
    let nats = Nats::start();
    let [here, there] = hosts(&nats, "").await;
    let mut ann = Socket::open(&here, Mode::Sync, "1", "ann").await;
    let mut others = Vec::new();
    for name in ["bob", "cyd", "dan"] {
        others.push(Socket::open(&there, Mode::Async, "1", name).await);
    }
    ann.members(4).await;
    let killed = Instant::now();
    // It gets SIGKILL.
    drop(there);
    ann.members(1).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    ann.say("say alone").await;
    assert_eq!(ann.hear().await, "ann: alone");
    tells(&here, "hosts", 0).await;
    for mut other in others {
        let gone = other.hear().await;
        assert!(gone.starts_with("error"), "{gone}");
    }
}

/// A server that is stopped says so: its members are gone at once, and what their views have sent at the end arrives.
#[tokio::test]
async fn r21_members_of_a_host_that_stops_are_gone_at_once() {
    let nats = Nats::start();
    let [here, mut there] = hosts(&nats, "").await;
    let mut ann = Socket::open(&here, Mode::Sync, "1", "ann").await;
    let mut bob = Socket::open(&there, Mode::Async, "1", "bob").await;
    ann.members(2).await;
    let stopped = Instant::now();
    there.terminate();
    assert_eq!(bob.hear().await, "closed 1001 the server stops");
    drop(bob);
    assert_eq!(ann.hear().await, "bob has left");
    ann.members(1).await;
    let left = stopped.elapsed();
    assert!(there.ended().await.success());
    let ended = stopped.elapsed();
    tells(&here, "hosts", 0).await;
    let took = stopped.elapsed();
    // A host that has died is noticed after 8 seconds.
    let said = "the members left, the process ended and the other host knew after";
    assert!(
        took < Duration::from_secs(6),
        "{said} {left:?}, {ended:?}, {took:?}"
    );
}

/// While NATS is away, each host goes on alone. What did not reach the others is counted.
#[tokio::test]
async fn r22_hosts_go_on_without_nats_and_count_what_is_lost() {
    let mut nats = Nats::start();
    let [here, there] = hosts(&nats, "").await;
    let mut ann = Socket::open(&here, Mode::Sync, "1", "ann").await;
    let mut bob = Socket::open(&there, Mode::Async, "1", "bob").await;
    ann.members(2).await;
    bob.members(2).await;
    let mut number = 0;
    let mut heard = Vec::new();
    let mut longest = Duration::ZERO;
    // Ann says something as long as this is true, and hears each message herself.
    let mut say = async |ann: &mut Socket, more: &mut dyn FnMut(usize) -> bool| {
        let mut count = 0;
        while more(count) {
            let begun = Instant::now();
            ann.say(&format!("say {number}")).await;
            assert_eq!(ann.hear().await, format!("ann: {number}"));
            longest = longest.max(begun.elapsed());
            number += 1;
            count += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    say(&mut ann, &mut |count| count < 200).await;
    nats.kill();
    let since = Instant::now();
    say(&mut ann, &mut |_| {
        since.elapsed() < Duration::from_millis(2500)
    })
    .await;
    eventually("losses", async || {
        match told(&here, "lost_disconnected").await {
            0 => Err("none"),
            _ => Ok(()),
        }
    })
    .await;
    let mut others = Vec::new();
    assert_eq!(
        ann.answer("hello", "echo hello", &mut others).await,
        "echo hello"
    );
    nats.restart();
    let since = Instant::now();
    say(&mut ann, &mut |_| since.elapsed() < Duration::from_secs(2)).await;
    heard.extend(bob.members(2).await);
    others.extend(ann.members(2).await);
    for server in [&here, &there] {
        eventually("a new connection", async || {
            match told(server, "reconnects").await {
                0 => Err("none"),
                _ => Ok(()),
            }
        })
        .await;
    }
    // Both ways again.
    let said = bob.answer("say back", "bob: back", &mut heard).await;
    assert_eq!(
        (said, ann.hear().await),
        ("bob: back".into(), "bob: back".into())
    );
    ann.say("say last").await;
    assert_eq!(ann.hear().await, "ann: last");
    while heard.last().is_none_or(|text| text != "ann: last") {
        heard.push(bob.hear().await);
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    heard.retain(|text| !text.ends_with(" members") && text != "ann: last");
    let heard: Vec<usize> = (heard.iter())
        .map(|text| {
            let number = text
                .strip_prefix("ann: ")
                .and_then(|text| text.parse().ok());
            number.unwrap_or_else(|| panic!("it is not of ann: {text}"))
        })
        .collect();
    assert!(heard.is_sorted_by(|one, next| one < next), "{heard:?}");
    let missing = (number - heard.len()) as u64;
    assert!(
        missing > 0,
        "some are lost: it was away for longer than messages are held"
    );
    eventually("all that is lost is counted", async || {
        let mut counted = Vec::new();
        for what in [
            "lost_disconnected",
            "lost_failed",
            "lost_queue_full",
            "unsure",
        ] {
            counted.push(told(&here, what).await);
        }
        let gaps = told(&there, "gaps").await;
        match counted.iter().sum::<u64>() >= missing && gaps >= missing {
            true => Ok(()),
            false => Err((missing, counted, gaps)),
        }
    })
    .await;
    assert!(others.is_empty(), "{others:?}");
}

/// A server that cannot reach NATS does not start, and says why, without the password.
#[test]
fn a_server_does_not_start_without_its_nats() {
    let app = app("[channels]\nnats = \"nats://someone:hidden@127.0.0.1:1\"");
    app.migrate();
    let ran = app.run("serve");
    assert!(ran.error().contains("`nats` of `[channels]`"), "{ran:?}");
    assert!(!format!("{ran:?}").contains("hidden"), "{ran:?}");
}
