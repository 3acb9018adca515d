//! The budget for what the host keeps for requests (`memory_budget_mb`), and what happens when it is used up.

use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::attack::{self, Held};
use crate::harness::{App, Mode, Server, eventually, guests};

/// The smallest budget that can be configured, in MiB.
const BUDGET_MB: u64 = 64;
/// What the process takes beside the budget, in MiB: code, stacks, pools, buffers of connections, the allocator's
/// reserve.
const FIXED_MB: u64 = 120;

/// An app with the guest `greedy`, a large static file, compression and the smallest budget.
async fn greedy(toml: &str) -> Server {
    let base = format!(
        r#"
        app.middleware = ["compression"]
        server.memory_budget_mb = {BUDGET_MB}
        static.dir = "static"
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
    app.write("static/large.txt", "a line like others\n".repeat(20_400));
    app.serve_alone().await
}

/// Does what [`stays_within_the_budget`] does, and checks that the attack has drawn at least a tenth of the budget.
async fn within_the_budget<T>(server: &Server, attack: impl Future<Output = T>) {
    let drawn = stays_within_the_budget(server, attack).await;
    assert!(
        drawn > (BUDGET_MB << 20) as f64 / 10.0,
        "{drawn} bytes drawn"
    );
}

/// Checks that memory stays within the budget during `attack`, that other requests are answered or get 503, and that
/// everything is given back afterwards. Returns the most bytes that were drawn.
async fn stays_within_the_budget<T>(server: &Server, attack: impl Future<Output = T>) -> f64 {
    for mode in [Mode::Sync, Mode::Async] {
        server.get(&format!("/{mode}/hello")).await.ok();
    }
    let before = server.memory_kib() / 1024;
    let mut attack = std::pin::pin!(attack);
    let (mut most, mut drawn, mut answered) = (0, 0.0_f64, 0);
    let mut held = None;
    let mut rounds = 0;
    while rounds < 30 {
        tokio::select! {
            done = &mut attack, if held.is_none() => held = Some(done),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                rounds += usize::from(held.is_some());
                most = most.max(server.memory_kib() / 1024);
                drawn = drawn.max(server.metrics().await.get("amphi_memory_bytes"));
                let reply = server.get("/async/hello").await;
                match reply.status {
                    200 => answered += 1,
                    _ => assert_eq!((reply.status, reply.header("retry-after")), (503, "1")),
                }
            }
        }
    }
    let budget = (BUDGET_MB << 20) as f64;
    assert!(drawn <= budget, "{drawn} bytes drawn");
    assert!(
        most <= before + BUDGET_MB + FIXED_MB,
        "{most} MB after {before} MB"
    );
    assert!(answered > 0, "others should be answered, too");
    println!(
        "{before} MB before, {most} MB at most, {drawn} bytes drawn, {answered} answered beside"
    );
    drop(held);
    eventually("all memory to come back", async || {
        match server.metrics().await.get("amphi_memory_bytes") {
            // Requests for metrics draw nothing from the budget, because they go to the admin address.
            0.0 => Ok(()),
            // What may still be drawn for a moment: the connection of the test's own client (320 kB if it is HTTP/2),
            // and the client's last request.
            left => Err(left),
        }
    })
    .await;
    server.assert_baseline().await;
    drawn
}

async fn r13_unfinished_bodies_stay_within_the_budget(mode: Mode) {
    let server = greedy("").await;
    let path = format!("/{mode}/whole");
    within_the_budget(
        &server,
        attack::unfinished_bodies(&server, &path, 400, 1_000_000),
    )
    .await;
    within_the_budget(&server, async {
        attack::unfinished_streams(&server, &path, (3, 150), 900_000)
    })
    .await;
}
both_modes!(r13_unfinished_bodies_stay_within_the_budget);

async fn r13_publishers_stay_within_the_budget(mode: Mode) {
    let server = greedy("").await;
    let path = format!("/{mode}/hold/1000/60000/1500");
    let publishers = async {
        for reply in join_all((0..12).map(|_| server.post(&path, ""))).await {
            // Each request could publish some events, and its view was told why it could publish no more.
            match reply.status {
                200 => assert!(
                    reply.text().contains("`memory_budget_mb`"),
                    "{}",
                    reply.text()
                ),
                503 => {}
                other => panic!("{other}: {}", reply.text()),
            }
        }
    };
    within_the_budget(&server, publishers).await;
    let reply = server.post(&format!("/{mode}/hold/20/1000/0"), "").await;
    assert_eq!(reply.ok(), "20");
    let toml = "limits.events_max = 10";
    drop(server);
    let server = greedy(toml).await;
    let reply = server.post(&format!("/{mode}/hold/20/1000/0"), "").await;
    assert!(
        reply.ok().starts_with("10 ") && reply.text().contains("`events_max`"),
        "{}",
        reply.text()
    );
}
both_modes!(r13_publishers_stay_within_the_budget);

async fn r13_outbound_requests_stay_within_the_budget(mode: Mode) {
    let server = greedy("").await;
    let refused = server.get(&format!("/{mode}/fetch/1/900000")).await;
    assert!(
        refused.ok().contains("`headers_max_bytes`"),
        "{}",
        refused.text()
    );
    drop(server);
    // The view sends headers of a kilobyte each: 900 of them have few enough bytes, but are too many headers.
    let server = greedy("limits.headers_max_bytes = 1048576").await;
    let refused = server.get(&format!("/{mode}/fetch/1/900000")).await;
    assert!(
        refused.ok().contains("has 900 headers; `headers_max`"),
        "{}",
        refused.text()
    );
    drop(server);
    let server = greedy("").await;
    let path = format!("/{mode}/fetch/200/30000");
    let requests = join_all((0..12).map(|_| server.get(&path)));
    match mode {
        // Twelve views, each with one outbound request at a time: too few to use up the budget.
        Mode::Sync => drop(stays_within_the_budget(&server, requests).await),
        Mode::Async => within_the_budget(&server, requests).await,
    }
}
both_modes!(r13_outbound_requests_stay_within_the_budget);

/// A response that the client does not read is drawn from the budget until it is sent or dropped.
async fn r13_responses_that_are_not_read_stay_within_the_budget(mode: Mode) {
    // The linear memory of guests is not part of the budget, so only a few guests may run at the same time.
    let server = greedy("async_views.in_flight_max = 20").await;
    let view = format!("/{mode}/ask/body/1/700000");
    for what in [
        ("GET", "/static/large.txt", "br"),
        ("POST", &view, "identity"),
        ("POST", &view, "zstd"),
    ] {
        let readers = async {
            let (held, statuses) = attack::slow_readers(&server, what, (5, 100)).await;
            // Compressed with zstd, a response is so small that all responses fit into the budget.
            let refused = what.2 == "zstd" || statuses.contains(&503);
            assert!(statuses.contains(&200) && refused, "{what:?}: {statuses:?}");
            held
        };
        within_the_budget(&server, readers).await;
    }
}
both_modes!(r13_responses_that_are_not_read_stay_within_the_budget);

/// R13: what a request has drawn is given back at its end, also while its connection stays open.
#[tokio::test]
async fn r13_a_connection_of_many_requests_holds_no_more_than_one_of_few() {
    let server = App::new("").serve_alone().await;
    for (method, body) in [("GET", String::new()), ("POST", "b".repeat(3000))] {
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("it listens");
        let request = format!(
            "{method} /async/hello HTTP/1.1\r\nhost: a\r\nx-long: {}\r\ncontent-length: {}\r\n\r\n{body}",
            "h".repeat(3000),
            body.len(),
        );
        for _ in 0..100 {
            stream
                .write_all(request.as_bytes())
                .await
                .expect("it reads");
            let mut answer = [0; 4096];
            let length = stream.read(&mut answer).await.expect("it answers");
            assert!(answer[..length].starts_with(b"HTTP/1.1 "), "{method}");
        }
        let drawn = server.metrics().await.get("amphi_memory_bytes");
        assert!(drawn < 20_000.0, "{method}: {drawn} bytes");
    }
}

/// All attacks at the same time.
#[tokio::test]
async fn r13_everything_at_once_stays_within_the_budget() {
    let server = greedy("").await;
    let all = async {
        let streams = attack::unfinished_streams(&server, "/async/whole", (2, 100), 300_000);
        let (bodies, readers, fetched, published) = tokio::join!(
            attack::unfinished_bodies(&server, "/sync/whole", 100, 1_000_000),
            attack::slow_readers(&server, ("GET", "/static/large.txt", "br"), (3, 50)),
            join_all((0..4).map(|_| server.get("/async/fetch/100/30000"))),
            join_all((0..4).map(|_| server.post("/async/hold/1000/60000/500", ""))),
        );
        let _: (&Held, _, _) = (&streams, fetched, published);
        (streams, bodies, readers)
    };
    within_the_budget(&server, all).await;
}
