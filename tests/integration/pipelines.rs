//! Requests that follow each other on one connection of HTTP/1.1 without waiting: each gets its own answer, in its turn,
//! whatever is left of the bodies before it and whatever follows.

use std::time::Duration;

use fastrand::Rng;

use crate::harness::raw::Raw;
use crate::harness::wasi_http::{self, Version};
use crate::harness::{App, Server};

/// The targets of requests: the path, and what the answer is made of.
const TARGETS: [(&str, Answer); 9] = [
    ("/nowhere", Answer::Status("404")),
    ("/async/hello", Answer::Get("hello")),
    ("/sync/hello", Answer::Get("hello")),
    ("/p2/nowhere", Answer::Text("404", "no such path\n")),
    ("/p3/nowhere", Answer::Text("404", "no such path\n")),
    ("/p2/echo", Answer::Echo),
    ("/p3/echo", Answer::Echo),
    ("/p2/upload", Answer::Counts),
    ("/p3/upload", Answer::Counts),
];

/// What a target answers.
#[derive(Clone, Copy)]
enum Answer {
    /// This status, with whatever text.
    Status(&'static str),
    /// This text to GET, and 405 to anything else.
    Get(&'static str),
    /// This status and text.
    Text(&'static str, &'static str),
    /// The body of the request.
    Echo,
    /// The number of bytes of the request's body.
    Counts,
}

/// A request, as it is sent, and its answer.
struct Request {
    bytes: String,
    status: &'static str,
    /// None: whatever text.
    body: Option<String>,
}

impl Request {
    fn random(random: &mut Rng) -> Request {
        let (path, answer) = TARGETS[random.usize(..TARGETS.len())];
        let with_body = random.bool();
        let size = match with_body {
            true => random
                .choice([1, 10, 5_000, 50_000])
                .expect("there are some"),
            false => 0,
        };
        let text = "a".repeat(size);
        let method = if with_body { "POST" } else { "GET" };
        let expects = if random.u8(..4) == 0 {
            "expect: 100-continue\r\n"
        } else {
            ""
        };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{expects}");
        let bytes = match (with_body, random.bool()) {
            (false, _) => format!("{head}\r\n"),
            (true, true) => format!("{head}content-length: {size}\r\n\r\n{text}"),
            (true, false) => {
                let (first, second) = text.split_at(random.usize(..=size));
                let chunks = [first, second].map(|chunk| match chunk.len() {
                    0 => String::new(),
                    length => format!("{length:x}\r\n{chunk}\r\n"),
                });
                format!(
                    "{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
                    chunks.concat()
                )
            }
        };
        let (status, body) = match answer {
            Answer::Status(status) => (status, None),
            Answer::Get(_) if with_body => ("405", None),
            Answer::Get(text) => ("200", Some(text.to_owned())),
            Answer::Text(status, text) => (status, Some(text.to_owned())),
            Answer::Echo => ("200", Some(text)),
            Answer::Counts => ("200", Some(format!("{size} bytes\n"))),
        };
        Request {
            bytes,
            status,
            body,
        }
    }
}

/// The status and the body of the first answer in a text, and the rest; interim answers are left out. None: the text
/// ends before the answer does.
fn first(answers: &str) -> Option<(&str, String, &str)> {
    let (head, mut rest) = answers.split_once("\r\n\r\n")?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .expect("an answer begins here");
    let status = status.get(..3).expect("it has a status");
    if status == "100" {
        return first(rest);
    }
    let header = |name: &str| {
        let mut lines = head.lines();
        lines.find_map(|line| line.strip_prefix(name))
    };
    if let Some(length) = header("content-length: ") {
        let (body, rest) = rest.split_at_checked(length.parse().expect("a length is a number"))?;
        return Some((status, body.to_owned(), rest));
    }
    assert_eq!(header("transfer-encoding: "), Some("chunked"), "{head}");
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).expect("a chunk has a length");
        let (chunk, after) = after.split_at_checked(length)?;
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n")?;
        if length == 0 {
            return Some((status, body, rest));
        }
    }
}

/// Sends requests, in pieces or at once, and then one that is the last, or no request at all. Returns how many of the
/// requests before it were answered.
async fn exchange(server: &Server, random: &mut Rng, requests: &[Request]) -> usize {
    let last = random.choice([
        ("G\r\n\r\n", "400"),
        ("\u{1}", "400"),
        ("GET / HTTP/9\r\n\r\n", "400"),
        (
            "GET /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            "404",
        ),
    ]);
    let (last, answer_to_last) = last.expect("there are some");
    let sent: String = requests.iter().map(|request| &*request.bytes).collect();
    let sent = sent + last;
    let mut raw = Raw::connect(server).await;
    let mut unsent = sent.as_bytes();
    while !unsent.is_empty() {
        let now = match random.bool() {
            true => unsent.len(),
            false => random.usize(1..=unsent.len().min(2_000)),
        };
        let (piece, rest) = unsent.split_at(now);
        raw.send(piece).await;
        unsent = rest;
        if random.bool() {
            tokio::time::sleep(Duration::from_micros(random.u64(..2_000))).await;
        }
    }
    let answers = raw.rest().await;
    let mut rest = &*answers;
    for (number, request) in requests.iter().enumerate() {
        let Some((status, body, after)) = first(rest) else {
            return number;
        };
        assert_eq!(status, request.status, "{number} of {sent:?}: {answers:?}");
        if let Some(expected) = &request.body {
            assert_eq!(&body, expected, "{number} of {sent:?}: {answers:?}");
        }
        rest = after;
    }
    if let Some((status, _, after)) = first(rest) {
        assert_eq!(
            (status, after),
            (answer_to_last, ""),
            "{sent:?}: {answers:?}"
        );
    }
    requests.len()
}

/// An app of views, and of plain components that get a body as it arrives or when all of it is there.
async fn serve(streams: bool) -> Server {
    let module = |version: Version| {
        let path = wasi_http::built(&version.to_string());
        format!(
            "[modules.{version}]\npath = {path:?}\nmount = \"/{version}\"\ndatabases = [\"default\"]\nstream_bodies = {streams}\n"
        )
    };
    let modules = [module(Version::P2), module(Version::P3)].concat();
    App::new(&modules).serve().await
}

#[tokio::test]
async fn each_request_gets_its_answer_in_its_turn() {
    let seed = fastrand::u64(..);
    eprintln!("the seed is {seed}");
    let mut random = Rng::with_seed(seed);
    let mut answered = 0;
    for streams in [false, true] {
        let server = serve(streams).await;
        for _ in 0..200 {
            let number = random.usize(1..6);
            let requests: Vec<Request> = std::iter::repeat_with(|| Request::random(&mut random))
                .take(number)
                .collect();
            answered += exchange(&server, &mut random, &requests).await;
        }
        server.assert_baseline().await;
    }
    assert!(answered > 400, "only {answered} requests were answered");
}
