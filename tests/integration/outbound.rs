//! Outbound requests: many at the same time, only to granted addresses, within limits.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::origin::canned as origin;
use crate::harness::{App, Mode, Reply, best_of_three, eventually};

/// A second module, whose slow views the module `behaviour` requests.
const SLOW_MODULE: &str = r#"
    [modules.slow]
    path = "GUESTS/behaviour"
    mount = "/slow"
    databases = ["default"]
    http = ["self"]
"#;

fn slow_module() -> String {
    SLOW_MODULE.replace(
        "GUESTS",
        &crate::harness::guests::folder().display().to_string(),
    )
}

#[tokio::test]
async fn r6_ten_calls_of_100_ms_take_little_more_than_one() {
    let server = App::new(&slow_module()).serve_alone().await;
    server.get("/async/fan?url=/slow/async/nap/1").await.ok();
    best_of_three(Duration::from_millis(130), async || {
        let before = Instant::now();
        assert_eq!(
            server.get("/async/fan?url=/slow/async/nap/100").await.ok(),
            "10 replies"
        );
        before.elapsed()
    })
    .await;
    server.assert_baseline().await;
}

/// Ten requests at the same time to sync views: the workers of these views wait in host calls, so the pool grows.
#[tokio::test]
async fn r6_ten_calls_of_100_ms_to_sync_views_take_little_more_than_one() {
    let server = App::new(&slow_module()).serve_alone().await;
    server.get("/async/fan?url=/slow/sync/nap/1").await.ok();
    best_of_three(Duration::from_millis(160), async || {
        let before = Instant::now();
        assert_eq!(
            server.get("/async/fan?url=/slow/sync/nap/100").await.ok(),
            "10 replies"
        );
        before.elapsed()
    })
    .await;
}

#[tokio::test]
async fn calls_of_a_sync_view_come_one_after_the_other() {
    let server = App::new(&slow_module()).serve().await;
    let before = Instant::now();
    assert_eq!(
        server
            .get("/sync/fan?url=/slow/async/nap/50&count=4")
            .await
            .ok(),
        "4 replies"
    );
    assert!(before.elapsed() >= Duration::from_millis(200));
}

/// Requests beyond `outbound_max` wait until another request ends.
#[tokio::test]
async fn outbound_requests_in_flight_are_limited() {
    let server = App::new("[limits]\noutbound_max = 2").serve().await;
    let url = server.url("/async/fan?url=/async/nap/150&count=6");
    let fan = tokio::spawn(Reply::of(server.client.get(url)));
    let mut most = 0.0_f64;
    while !fan.is_finished() {
        most = most.max(server.metrics().await.get("amphi_outbound_requests"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fan.await.expect("it does not panic").ok(), "6 replies");
    assert_eq!(most, 2.0);
    server.assert_baseline().await;
}

async fn only_granted_origins_can_be_reached(mode: Mode) {
    let granted = origin(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let other = origin(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await;
    let server = App::new(&format!("modules.behaviour.http = [\"{granted}\"]"))
        .serve()
        .await;
    let fetch = async |url: &str| {
        let encoded: String = url.bytes().map(|byte| format!("%{byte:02x}")).collect();
        server
            .get(&format!("/{mode}/fetch?url={encoded}"))
            .await
            .ok()
            .to_owned()
    };
    assert_eq!(fetch(&format!("{granted}/any/path?a=b")).await, "200 hi");
    let port = granted.rsplit(':').next().expect("it has a port");
    for url in [
        &*format!("{other}/"),
        "/async/hello",
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        &granted.replace("http:", "https:"),
        &granted.replace("127.0.0.1", "localhost"),
        &granted.replace("127.0.0.1", "127.0.0.1.example.com"),
        &format!("http://127.0.0.1:{}/", &port[1..]),
        &format!(
            "http://127.0.0.1:{port}@{}/",
            other.trim_start_matches("http://")
        ),
        &format!("{other}/#{granted}"),
        &other.replace("http://", "http:\\\\"),
    ] {
        let said = fetch(url).await;
        assert!(said.starts_with("Denied: "), "{url}: {said}");
        assert!(
            said.contains("module `behaviour` may not send requests to"),
            "{url}: {said}"
        );
    }
    for url in ["file:///etc/passwd", "ftp://127.0.0.1/", "nonsense", ""] {
        let said = fetch(url).await;
        assert!(said.starts_with("Invalid: "), "{url}: {said}");
    }
    // With a user and password in the URL, the origin is the same.
    let said = fetch(&granted.replace("http://", "http://user:pass@")).await;
    assert_eq!(said, "200 hi");
    server.assert_baseline().await;
}
both_modes!(only_granted_origins_can_be_reached);

/// Redirects are not followed, since they could lead to an address that is not granted.
async fn redirects_are_not_followed(mode: Mode) {
    let origin =
        origin(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
            .await;
    let server = App::new(&format!("modules.behaviour.http = [\"{origin}\"]"))
        .serve()
        .await;
    assert_eq!(
        server
            .get(&format!("/{mode}/fetch?url={origin}/"))
            .await
            .ok(),
        "302 "
    );
}
both_modes!(redirects_are_not_followed);

/// Addresses that are not public need a grant of their own, whatever name resolves to them.
async fn addresses_that_are_not_public_are_granted_by_themselves(mode: Mode) {
    let origin =
        origin(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
            .await;
    let port = origin.rsplit(':').next().expect("it has a port").to_owned();
    let (by_name, mapped) = (
        format!("http://localhost:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
    );
    let cases = [
        ("http = [\"*\"]".to_owned(), [false, false, false]),
        (
            "http = [\"*\"]\nhttp_private = [\"10.0.0.0/8\"]".to_owned(),
            [false, false, false],
        ),
        (
            "http = [\"*\"]\nhttp_private = [\"127.0.0.0/8\"]".to_owned(),
            [true, true, true],
        ),
        (
            format!("http = [\"*\", \"{origin}\"]"),
            [true, false, false],
        ),
        (
            format!("http = [\"*\", \"{by_name}\"]"),
            [false, true, false],
        ),
    ];
    for (grants, reached) in cases {
        let server = App::new(&format!("[modules.behaviour]\n{grants}"))
            .serve()
            .await;
        for (url, reached) in [&origin, &by_name, &mapped].into_iter().zip(reached) {
            let said = server
                .get(&format!(
                    "/{mode}/fetch?url={}/",
                    url.replace('[', "%5b").replace(']', "%5d")
                ))
                .await
                .ok()
                .to_owned();
            match reached {
                true => assert_eq!(said, "302 ", "{grants}: {url}"),
                false => assert!(
                    said.starts_with("Denied: ")
                        && said.contains("`http_private` of `[modules.behaviour]`"),
                    "{grants}: {url}: {said}"
                ),
            }
        }
        let said = server
            .get(&format!(
                "/{mode}/fetch?url=http://169.254.169.254/latest/meta-data"
            ))
            .await
            .ok()
            .to_owned();
        assert!(said.starts_with("Denied: "), "{grants}: {said}");
    }
}
both_modes!(addresses_that_are_not_public_are_granted_by_themselves);

/// A server may close a kept connection just when the host uses the connection again: the host then sends the request
/// once more.
async fn a_kept_connection_that_was_closed_is_no_failure(mode: Mode) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a free port");
    let origin = format!("http://{}", listener.local_addr().expect("it is bound"));
    let requests = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&requests);
    // The server reads the second request on each connection and closes it without an answer.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = std::sync::Arc::clone(&counted);
            tokio::spawn(async move {
                let mut request = [0; 4096];
                for answer in [&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"[..], b""] {
                    match stream.read(&mut request).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                    };
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    let server = App::new(&format!("modules.behaviour.http = [\"{origin}\"]"))
        .serve()
        .await;
    for _ in 0..20 {
        assert_eq!(
            server
                .get(&format!("/{mode}/fetch?url={origin}/"))
                .await
                .ok(),
            "200 hi"
        );
    }
    let requests = requests.load(std::sync::atomic::Ordering::SeqCst);
    assert!(
        requests > 20,
        "kept connections should have been used: {requests}"
    );
}
both_modes!(a_kept_connection_that_was_closed_is_no_failure);

/// Requests of the app to itself are refused beyond `outbound_depth_max`, and clients cannot forge the depth.
async fn an_app_does_not_call_itself_without_end(mode: Mode) {
    let server = App::new("limits.outbound_depth_max = 2").serve().await;
    let nested = |depth: usize| {
        let mut url = format!("/{mode}/hello");
        for _ in 0..depth {
            let encoded: String = url.bytes().map(|byte| format!("%{byte:02x}")).collect();
            url = format!("/{mode}/fetch?url={encoded}");
        }
        url
    };
    let mark = server.log.mark();
    let reached = server.get(&nested(2)).await;
    assert!(reached.ok().starts_with("200 200 "), "{reached:?}");
    let refused = server.get(&nested(3)).await;
    assert!(
        refused.ok().contains("Denied: ") && refused.ok().contains("`outbound_depth_max`"),
        "{refused:?}"
    );
    assert_eq!(
        server.log.requests(mark, 6).await.len(),
        6,
        "the last one is not sent"
    );
    // A depth in a client's header is ignored.
    for forged in ["9", "9.AAAA", "0.AAAA"] {
        let reply = Reply::of(
            server
                .request("GET", &nested(2))
                .header("amphi-call-depth", forged),
        )
        .await;
        assert!(reply.ok().starts_with("200 200 "), "{forged}: {reply:?}");
    }
}
both_modes!(an_app_does_not_call_itself_without_end);

async fn failing_origins_are_told_apart(mode: Mode) {
    let silent = origin(b"").await;
    let nonsense = origin(b"this is not HTTP at all\r\n\r\n").await;
    let endless = origin(Box::leak(
        format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(300_000))
            .into_bytes()
            .into_boxed_slice(),
    ))
    .await;
    let toml = "modules.behaviour = { http = [\"*\"], http_private = [\"127.0.0.1\"] }\nlimits.outbound_response_max_bytes = 100000";
    let server = App::new(toml).serve().await;
    let fetch = async |url: &str| {
        server
            .get(&format!("/{mode}/fetch?url={url}"))
            .await
            .ok()
            .to_owned()
    };
    let said = fetch(&format!("{silent}/%26timeout_ms=100&timeout_ms=100")).await;
    assert!(said.starts_with("Timeout: "), "{said}");
    let said = fetch("http://127.0.0.1:1/").await;
    assert!(
        said.starts_with("Connection: ") && said.contains("refused"),
        "{said}"
    );
    let said = fetch(&format!("{nonsense}/")).await;
    assert!(said.starts_with("Connection: "), "{said}");
    let said = fetch(&format!("{endless}/")).await;
    assert!(
        said.starts_with("TooLarge: ") && said.contains("`outbound_response_max_bytes`"),
        "{said}"
    );
    server.assert_baseline().await;
}
both_modes!(failing_origins_are_told_apart);

/// An outbound request is cancelled when its view's request ends.
async fn r13_an_outbound_request_ends_with_its_view(mode: Mode) {
    let silent = origin(b"").await;
    let toml = format!(
        "modules.behaviour.http = [\"{silent}\"]\nlimits.cpu_ms = 400\nlimits.timeout_ms = 400"
    );
    let server = App::new(&toml).serve().await;
    let mark = server.log.mark();
    let reply = server.get(&format!("/{mode}/fetch?url={silent}/")).await;
    assert_eq!(reply.status, 504, "{}", reply.text());
    assert!(
        server.log.requests(mark, 1).await[0]
            .text("why")
            .contains("time limit")
    );

    let path = format!("/{mode}/fetch?url={silent}/");
    let leaving = tokio::spawn(server.request("GET", &path).send());
    eventually("the outbound request", async || {
        let outbound = server.metrics().await.get("amphi_outbound_requests");
        if outbound == 1.0 {
            Ok(())
        } else {
            Err(outbound)
        }
    })
    .await;
    leaving.abort();
    server.assert_baseline().await;
}
both_modes!(r13_an_outbound_request_ends_with_its_view);
