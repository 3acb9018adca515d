//! Host calls with large arguments or results: each has a limit, so that none holds a loop for long (R5).

use std::time::{Duration, Instant};

use crate::harness::{App, Mode, Server, guests};

/// The limit for the bytes of headers. More names fit into it than a `HeaderMap` can hold.
const HEADERS_BYTES: u64 = 1 << 20;

async fn greedy(toml: &str, alone: bool) -> Server {
    let base = format!(
        r#"
        limits = {{ memory_mb = 256, cpu_ms = 5000, headers_max = 1500, headers_max_bytes = {HEADERS_BYTES} }}
        {toml}
        [modules.greedy]
        path = "{}/greedy"
        http = ["self"]
        publish = ["greed.*"]
        subscribe = ["greed.*"]
        "#,
        guests::folder().display()
    );
    let app = App::new(&base);
    match alone {
        true => app.serve_alone().await,
        false => app.serve().await,
    }
}

/// Requests to `greedy`. The path says what the view asks the host for, how often, and in pieces of how many bytes.
/// Then follow the expected status, and a text that the response or the log must have.
const ASKED: [(&str, u16, &str); 26] = [
    ("fields/10/100", 200, "logged"),
    ("fields/600/12000", 200, "logged"),
    ("fields/10000/12000", 500, "`call_max_bytes`"),
    ("random/10/262144", 200, "2621440"),
    ("random/1/64000000", 500, "more than 262144 random bytes"),
    (
        "insecure-random/1/64000000",
        500,
        "more than 262144 random bytes",
    ),
    ("error/1/1000000", 409, "xxxxxxxx"),
    ("error/1/30000000", 500, "`call_max_bytes`"),
    ("detail/1/1000000", 500, "xxxxxxxx"),
    ("detail/1/30000000", 500, "`call_max_bytes`"),
    ("panic/1/3000000", 500, "panicked at"),
    ("output/500/100000", 200, "written"),
    ("lines/100000/1", 200, "written"),
    ("headers/50/10", 200, ""),
    ("headers/1/1100000", 500, "`headers_max_bytes`"),
    ("headers/1600/1", 500, "has 1600 headers; `headers_max`"),
    ("headers/24600/1", 500, "has 24600 headers; `headers_max`"),
    ("headers/100000/1", 500, "`headers_max_bytes`"),
    ("pollables/400/0", 200, "leaked"),
    ("pollables/100000/0", 500, "more handles than it may have"),
    ("streams/100000/0", 500, "more handles than it may have"),
    ("get/10/8000000", 200, "got"),
    ("config/10/8000000", 200, "got"),
    ("topic/1/8000000", 200, "may not publish"),
    ("set-name/1/9000", 200, "`context_value_max_bytes`"),
    ("environment/1000/0", 200, "0"),
];

async fn r5_host_calls_that_ask_for_too_much_are_refused_by_name(mode: Mode) {
    let server = greedy("", false).await;
    for (asked, status, said) in ASKED {
        let mark = server.log.mark();
        let reply = server.post(&format!("/{mode}/ask/{asked}"), "").await;
        let lines = server.log.requests(mark, 1).await;
        let why = lines[0].text("why").to_owned();
        let told = String::from_utf8_lossy(&reply.body).into_owned();
        let short = |text: &str| text.chars().take(300).collect::<String>();
        assert_eq!(
            reply.status,
            status,
            "{asked}: {} {}",
            short(&told),
            short(&why)
        );
        assert!(
            told.contains(said) || why.contains(said),
            "{asked}: {} {}",
            short(&told),
            short(&why)
        );
        assert!(
            why.len() <= 5000 && told.len() <= 20_000,
            "{asked}: {} and {} bytes",
            why.len(),
            told.len()
        );
    }
    server.assert_baseline().await;
}
both_modes!(r5_host_calls_that_ask_for_too_much_are_refused_by_name);

/// The number of calls that a view has in flight at the same time is limited.
#[tokio::test]
async fn r5_calls_in_flight_are_bounded() {
    let server = greedy("", false).await;
    assert_eq!(
        server.get("/async/sleep/1000/10").await.ok(),
        "slept 1000 times"
    );
    let mark = server.log.mark();
    let reply = server.get("/async/sleep/100000/10").await;
    let why = server.log.requests(mark, 1).await[0].text("why").to_owned();
    assert_eq!(reply.status, 500, "{why}");
    assert!(
        why.contains("handles") || why.contains("`memory_mb`"),
        "{why}"
    );
    server.assert_baseline().await;
}

/// With a single event loop, other views are answered quickly while a view makes the largest host calls allowed, again
/// and again.
#[tokio::test]
async fn r5_host_calls_at_their_limits_do_not_hold_the_loop() {
    let server = greedy("async_views.loops = 1", true).await;
    let most = [
        "fields/600/12000",
        "random/10/262144",
        "error/1/8000000",
        "detail/1/8000000",
        "panic/1/3000000",
        "output/100/65536",
        "lines/20000/1",
        // The headers are not larger, because the tests' client reads no longer response head.
        "headers/90/3000",
        "pollables/400/0",
        "get/1/8000000",
        "config/1/8000000",
        "topic/1/8000000",
        "set/64/8000",
        "environment/1000/0",
    ];
    for _ in 0..20 {
        server.get("/async/hello").await.ok();
    }
    for asked in most {
        let path = format!("/async/ask/{asked}");
        // The shortest of several tries counts: the host's own work is in every try, the load of other processes only
        // in some.
        let mut held = Duration::MAX;
        for attempt in 1..=16 {
            held = held.min(slowest_beside(&server, &path).await);
            if attempt >= 4 && held < HELD_MAX {
                break;
            }
        }
        println!("{asked}: {held:?} beside it");
        assert!(held < HELD_MAX, "{asked}: {held:?}");
    }
    server.assert_baseline().await;
}

/// How long another view's answer may take while one host call is made, in the unoptimised host of the tests.
const HELD_MAX: Duration = Duration::from_millis(25);

/// How long the slowest answer of another view takes while the request to `path` is answered.
async fn slowest_beside(server: &Server, path: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut asking = std::pin::pin!(server.post(path, ""));
    loop {
        let before = Instant::now();
        let hello = async {
            server.get("/async/hello").await.ok();
            before.elapsed()
        };
        tokio::select! {
            _ = &mut asking => return slowest.max(before.elapsed()),
            took = hello => slowest = slowest.max(took),
        }
    }
}
