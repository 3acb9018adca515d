//! Random sequences of frames, valid and invalid, cut anywhere: what the decoder of web sockets and a whole server make of
//! them, beside what the model in `harness/frames.rs` says that they mean.

use amphi::http::websocket::{Decoder, Event, Message};
use amphi_tests::harness::frames::{self, Heard};
use amphi_tests::harness::raw::{Raw, status};
use amphi_tests::harness::socket::app;
use amphi_tests::harness::{Mode, Server};
use fastrand::Rng;

use super::{scripts, seed};

/// The most bytes of a message.
const MAX: usize = 1_000;

/// Cuts a stream at random places, often into single bytes.
fn cut(mut stream: &[u8], random: &mut Rng) -> Vec<Vec<u8>> {
    let most = [1, 3, 100, 10_000][random.usize(..4)];
    let mut parts = Vec::new();
    while !stream.is_empty() {
        let (part, rest) = stream.split_at(random.usize(1..=most).min(stream.len()));
        parts.push(part.to_vec());
        stream = rest;
    }
    parts
}

/// What the decoder makes of a stream that arrives in these parts. A caller may keep a part back after any event, as the
/// host does when a mailbox is full.
fn decoded(parts: &[Vec<u8>], deflate: bool, random: &mut Rng) -> Vec<Heard> {
    let mut decoder = Decoder::new(MAX, deflate);
    let (mut heard, mut kept) = (Vec::new(), Vec::new());
    for part in parts {
        kept.extend(part);
        let mut bytes = std::mem::take(&mut kept);
        let mut input = &mut bytes[..];
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => heard.push(told(event)),
                Ok(None) => break,
                Err(violation) => heard.push(Heard::Broken(violation.code)),
            }
            if random.u8(..4) == 0 {
                kept = input.to_vec();
                break;
            }
        }
        assert!(decoder.kept_bytes() < 4 * MAX, "{}", decoder.kept_bytes());
    }
    let mut input = &mut kept[..];
    loop {
        match decoder.next(&mut input) {
            Ok(Some(event)) => heard.push(told(event)),
            Ok(None) => return heard,
            Err(violation) => heard.push(Heard::Broken(violation.code)),
        }
    }
}

fn told(event: Event) -> Heard {
    match event {
        Event::Message(Message::Text(text)) => {
            Heard::Text(String::from_utf8(text.into()).expect("a text is UTF-8"))
        }
        Event::Message(Message::Binary(bytes)) => Heard::Binary(bytes.into()),
        Event::Ping(content) => Heard::Ping(content.into()),
        Event::Pong(content) => Heard::Pong(content.into()),
        Event::Close { code, reason } => Heard::Closed(code, reason),
    }
}

#[test]
fn the_decoder_of_frames_agrees_with_the_model() {
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mut count = 0;
    for _ in scripts(random.fork()) {
        let deflate = random.bool();
        let stream = frames::stream(&mut random, deflate, MAX);
        let parts = cut(&stream, &mut random);
        let (decoded, meant) = (
            decoded(&parts, deflate, &mut random),
            frames::meaning(&stream, deflate, MAX),
        );
        assert_eq!(decoded, meant, "seed {seed}, stream {count}: {stream:x?}");
        count += 1;
    }
    println!("{count} streams");
}

/// How a last message is sent, whose answer comes after all others.
const LAST: &[u8] = b"~last";

/// What a client sends, and what that means.
struct Script {
    stream: Vec<u8>,
    meant: Vec<Heard>,
    /// Whether the stream ends with a message that the server answers by [`LAST`], in the clear.
    is_answered: bool,
}

impl Script {
    fn new(deflate: bool, random: &mut Rng) -> Script {
        let stream = frames::stream(random, deflate, MAX);
        // The stream may end within a message, or within a frame, where nothing can be sent any more.
        for first in [0x81, 0x80] {
            let last = frames::frame(first, LAST, random);
            let stream = [&stream[..], &last].concat();
            let meant = frames::meaning(&stream, deflate, MAX);
            let content = match meant.last() {
                Some(Heard::Text(text)) => text.as_bytes(),
                Some(Heard::Binary(bytes)) => bytes,
                _ => continue,
            };
            // What is longer may be answered in compressed form.
            if content.ends_with(LAST) && content.len() < 200 {
                return Script {
                    stream,
                    meant,
                    is_answered: true,
                };
            }
        }
        Script {
            meant: frames::meaning(&stream, deflate, MAX),
            stream,
            is_answered: false,
        }
    }

    /// The messages, the pongs and the close that the server has to answer with.
    fn answers(&self) -> (Vec<Heard>, Vec<Heard>, Option<u16>) {
        let (mut messages, mut pongs) = (vec![Heard::Text("welcome raw".to_owned())], Vec::new());
        let mut code = self.is_answered.then_some(1000);
        for heard in &self.meant {
            match heard.clone() {
                Heard::Text(text) => messages.push(Heard::Text(format!("echo {text}"))),
                Heard::Binary(bytes) => messages.push(Heard::Binary(bytes)),
                Heard::Ping(content) => pongs.push(Heard::Pong(content)),
                Heard::Pong(_) => {}
                // A close without a code is answered by one without.
                Heard::Closed(with, _) => code = with.or(Some(1005)),
                Heard::Broken(with) => code = Some(with),
            }
        }
        (messages, pongs, code)
    }

    /// Sends the stream on a new connection, and checks what comes back.
    async fn play(&self, server: &Server, mode: Mode, deflate: bool, random: &mut Rng) {
        let extensions = match deflate {
            true => "sec-websocket-extensions: permessage-deflate\r\n",
            false => "",
        };
        let head = format!(
            "GET /{mode}/room/1?name=raw HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n"
        );
        let mut parts = cut(&self.stream, random);
        // The first frames may come with the head.
        let with_head = match random.u8(..4) {
            0 if !parts.is_empty() => parts.remove(0),
            _ => Vec::new(),
        };
        let mut raw = Raw::connect(server).await;
        raw.send([head.as_bytes(), &with_head].concat()).await;
        let switched = raw.until("\r\n\r\n").await;
        assert_eq!(status(&switched), 101, "{switched}");
        assert_eq!(switched.contains("permessage-deflate"), deflate);
        for part in parts {
            // After a close the server takes no more.
            if !raw.send(part).await {
                break;
            }
        }
        let mut bytes = Vec::new();
        if self.is_answered {
            bytes = raw.bytes_until(LAST).await;
            let close = frames::frame(0x88, &1000_u16.to_be_bytes(), random);
            raw.send(close).await;
        } else if !matches!(
            self.meant.last(),
            Some(Heard::Closed(..) | Heard::Broken(_))
        ) {
            raw.finish().await;
        }
        bytes.extend(raw.rest_of_bytes().await);
        self.check(frames::sent(&bytes));
    }

    fn check(&self, mut sent: Vec<Heard>) {
        let (messages, pongs, code) = self.answers();
        let told = match sent.last() {
            Some(Heard::Closed(told, _)) => {
                let told = told.or(Some(1005));
                sent.pop();
                told
            }
            _ => None,
        };
        let (pongs_sent, messages_sent): (Vec<_>, Vec<_>) =
            (sent.into_iter()).partition(|heard| matches!(heard, Heard::Pong(_)));
        // A client that ends the connection does not wait for answers.
        let fits = match self.is_answered {
            true => messages_sent == messages && pongs_sent == pongs,
            false => messages.starts_with(&messages_sent) && pongs.starts_with(&pongs_sent),
        };
        assert!(
            fits && told == code,
            "{messages_sent:?}, {pongs_sent:?} and {told:?} instead of {messages:?}, {pongs:?} and {code:?} for {:x?}",
            self.stream
        );
    }
}

/// The same frames to a whole server: what its views have heard, what is answered, and that nothing is left.
#[tokio::test]
async fn a_server_agrees_with_the_model_of_frames() {
    let server = app("[sockets]\nmessage_max_bytes = 1000\ncompression = true")
        .serve()
        .await;
    let mut random = Rng::with_seed(seed());
    let mut count = 0;
    for _ in scripts(random.fork()) {
        let (deflate, mode) = (random.bool(), [Mode::Sync, Mode::Async][random.usize(..2)]);
        let script = Script::new(deflate, &mut random);
        script.play(&server, mode, deflate, &mut random).await;
        count += 1;
    }
    println!("{count} connections");
    server.assert_baseline().await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.get("amphi_sockets_closed_total"), f64::from(count));
    for tag in ["opened raw", "closed raw %"] {
        let told = format!("select count(*) from rows where tag like '{tag}'");
        assert_eq!(server.count(&told), i64::from(count), "{tag}");
    }
}
