//! Bodies of outbound requests that stream, in views of both modes: responses that are read while they arrive, and uploads
//! that are written in pieces.

use std::time::{Duration, Instant};

use reqwest::Body;

use crate::harness::origin::{Origin, Received, canned};
use crate::harness::{App, Mode, Reply, Server, eventually, guests, raw};

/// A server with the views of `tests/guests/streams`, which may send requests to `origins`. `toml` goes on with
/// `[server]`.
async fn serve(origins: &[&str], toml: &str) -> Server {
    let module = |mode| {
        format!(
            "[modules.{mode}]\npath = {:?}\nmount = \"/streams\"\nungranted_imports = true\nhttp = {origins:?}\n",
            guests::built("streams", mode),
        )
    };
    let app = App::written(&format!(
        "[app]\nname = \"streams\"\n[server]\nlisten = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"\n{toml}\n{}{}",
        module(Mode::Sync),
        module(Mode::Async)
    ));
    app.serve().await
}

/// A server with an origin that its views may send requests to.
async fn with_origin(toml: &str) -> (Server, Origin) {
    let origin = Origin::start().await;
    (serve(&[&origin.url], toml).await, origin)
}

fn path(mode: Mode, view: &str, url: &str, more: &str) -> String {
    format!("/streams/{mode}/outbound/{view}?url={url}{more}")
}

const MB: u64 = 1 << 20;

async fn a_response_is_read_in_pieces(mode: Mode) {
    let (server, origin) = with_origin("").await;
    for (rest, said) in [
        ("text", "200 6 bytes in one piece"),
        ("big?mb=3", "200 3145728 bytes in pieces"),
        ("big?mb=0", "200 0 bytes in one piece"),
        ("early/404/reads", "404 15 bytes in one piece"),
    ] {
        let url = format!("{}/{rest}", origin.url);
        let reply = server.get(&path(mode, "download", &url, "")).await;
        assert_eq!(reply.ok(), said, "{rest}");
    }
    server.assert_baseline().await;
}
both_modes!(a_response_is_read_in_pieces);

/// The response that a view has got passes through the function of its stream: pieces arrive one by one.
async fn a_drip_passes_through_a_proxy(mode: Mode) {
    let (server, origin) = with_origin("").await;
    let url = format!("{}/drip?ms=2000", origin.url);
    let begun = Instant::now();
    let request = server.request("GET", &path(mode, "proxy", &url, ""));
    let mut response = request.send().await.expect("it begins");
    assert_eq!(response.headers()["x-type"], "text/x-pieces");
    for line in 0..3 {
        let piece = response.chunk().await.expect("it goes on");
        let expected = format!("line {line}\n");
        assert_eq!(piece.as_deref(), Some(expected.as_bytes()));
        let due = Duration::from_secs(2 * line);
        let took = begun.elapsed();
        assert!(
            took >= due && took < due + Duration::from_millis(1800),
            "{line}: {took:?}"
        );
    }
    assert_eq!(response.chunk().await.expect("it ends"), None);
    server.assert_baseline().await;
}
both_modes!(a_drip_passes_through_a_proxy);

/// The deadline of the view is that of its head: its stream reads the response for longer.
async fn a_stream_reads_for_longer_than_its_view_may_take(mode: Mode) {
    let limits = "[limits]\ncpu_ms = 400\ntimeout_ms = 400";
    let (server, origin) = with_origin(limits).await;
    let url = format!("{}/drip?ms=400", origin.url);
    let reply = server.get(&path(mode, "proxy", &url, "")).await;
    assert_eq!(reply.ok(), "line 0\nline 1\nline 2\n");
    let mark = server.log.mark();
    let reply = server.get(&path(mode, "download", &url, "")).await;
    assert_eq!(reply.status, 504, "{}", reply.text());
    let line = &server.log.requests(mark, 1).await[0];
    assert!(line.text("why").contains("time limit"), "{line:?}");
    server.assert_baseline().await;
}
both_modes!(a_stream_reads_for_longer_than_its_view_may_take);

async fn r4_large_bodies_take_little_memory_in_both_directions(mode: Mode) {
    let (server, origin) = with_origin("[limits]\ncpu_ms = 20000").await;
    let url = |rest: &str| format!("{}/{rest}", origin.url);
    for (view, rest, more) in [("proxy", "big?mb=1", ""), ("upload", "sink", "&pieces=16")] {
        server.get(&path(mode, view, &url(rest), more)).await.ok();
    }
    let before = server.memory_kib();
    let flat = |what: &str| {
        let more = server.memory_kib().saturating_sub(before);
        assert!(more < 24 << 10, "{what}: {more} KiB");
    };
    // The client is slow at first.
    let request = server.request("GET", &path(mode, "proxy", &url("big?mb=80"), ""));
    let mut response = request.send().await.expect("it begins");
    response.chunk().await.expect("it goes on");
    tokio::time::sleep(Duration::from_millis(500)).await;
    flat("a slow client");
    let mut bytes = 0;
    while let Some(piece) = response.chunk().await.expect("it goes on") {
        bytes += piece.len() as u64;
    }
    assert!(bytes > 79 * MB, "{bytes}");
    flat("down");
    // The server is slow at first.
    let uploads = path(mode, "upload", &url("sink?ms=500"), "&pieces=1280");
    let uploading = tokio::spawn(Reply::of(server.request("GET", &uploads)));
    tokio::time::sleep(Duration::from_millis(400)).await;
    flat("a slow server");
    let reply = uploading.await.expect("no panic");
    assert_eq!(reply.ok(), format!("200 {} bytes", 80 * MB));
    flat("up");
    server.assert_baseline().await;
}
both_modes!(r4_large_bodies_take_little_memory_in_both_directions);

/// A client's body goes through the view to a server, and the server's response back to the client.
async fn bodies_pass_through_a_proxy_in_both_directions(mode: Mode) {
    let (server, origin) =
        with_origin("body_max_bytes = 100000000\n[limits]\ncpu_ms = 20000").await;
    let body: Vec<u8> = (0..20 * MB).map(|at| (at * 7 + at / 251) as u8).collect();
    let to = path(mode, "pass", &format!("{}/echo", origin.url), "");
    let reply = server.post(&to, body.clone()).await;
    assert!(reply.body == body, "{} came back", reply.body.len());
    let pieces: Vec<std::io::Result<Vec<u8>>> = body
        .chunks(79_193)
        .map(|piece| Ok(piece.to_vec()))
        .collect();
    let chunked = Body::wrap_stream(futures::stream::iter(pieces));
    let reply = server.post(&to, chunked).await;
    assert!(reply.body == body, "{} came back", reply.body.len());
    let declared = origin
        .received(2)
        .await
        .iter()
        .map(|it| it.declared)
        .collect::<Vec<_>>();
    assert_eq!(declared, [Some(20 * MB), None]);
    // A body that the client breaks off is not whole for the server either.
    let mut client = raw::Raw::connect(&server).await;
    let head = format!("POST {to} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(head + "6\r\na part\r\n").await;
    eventually("the part", async || match origin.bytes() - 40 * MB {
        6 => Ok(()),
        bytes => Err(bytes),
    })
    .await;
    drop(client);
    let last = origin.received(3).await.remove(2);
    assert_eq!((last.bytes, last.whole), (6, false));
    server.assert_baseline().await;
}
both_modes!(bodies_pass_through_a_proxy_in_both_directions);

/// However a view leaves an upload, the server does not take the upload for a whole one.
async fn r13_an_upload_that_is_not_finished_breaks_off(mode: Mode) {
    let limits = "[limits]\ncpu_ms = 300\ntimeout_ms = 2000";
    let (server, origin) = with_origin(limits).await;
    let url = format!("{}/sink", origin.url);
    for declared in ["", "&declared=131072"] {
        for (end, status) in [
            ("drop", 200),
            ("error", 500),
            ("panic", 500),
            ("spin", 504),
            ("wait", 504),
        ] {
            let more = format!("&pieces=2&end={end}{declared}");
            let reply = server.get(&path(mode, "upload", &url, &more)).await;
            assert_eq!(reply.status, status, "{end}: {}", reply.text());
            server.assert_baseline().await;
        }
    }
    // The host may have dropped some requests before anything of them was sent.
    for received in origin.received(4).await {
        assert!(!received.whole, "{received:?}");
    }
}
both_modes!(r13_an_upload_that_is_not_finished_breaks_off);

/// A client that leaves ends what its view waits for: the upload breaks off, and the response is dropped.
async fn r15_a_client_that_leaves_ends_its_outbound_bodies(mode: Mode) {
    let (server, origin) = with_origin("").await;
    let more = "&pieces=1&end=wait";
    let url = format!("{}/sink", origin.url);
    let waiting = tokio::spawn(
        server
            .request("GET", &path(mode, "upload", &url, more))
            .send(),
    );
    // What the view has written arrives while the view does something else.
    eventually("the first piece", async || match origin.bytes() {
        65_536 => Ok(()),
        bytes => Err(bytes),
    })
    .await;
    assert_eq!(server.metrics().await.get("amphi_outbound_requests"), 2.0);
    waiting.abort();
    let [received] = &origin.received(1).await[..] else {
        panic!("there was one upload");
    };
    assert_eq!((received.bytes, received.whole), (65_536, false));
    server.assert_baseline().await;

    let url = format!("{}/big?mb=1000", origin.url);
    let request = server.request("GET", &path(mode, "proxy", &url, ""));
    let mut response = request.send().await.expect("it begins");
    response.chunk().await.expect("it goes on");
    assert_eq!(server.metrics().await.get("amphi_outbound_requests"), 1.0);
    drop(response);
    server.assert_baseline().await;
}
both_modes!(r15_a_client_that_leaves_ends_its_outbound_bodies);

async fn a_declared_length_is_checked(mode: Mode) {
    let (server, origin) = with_origin("").await;
    let url = format!("{}/sink", origin.url);
    let upload = async |more: &str| {
        let reply = server.get(&path(mode, "upload", &url, more)).await;
        reply.ok().to_owned()
    };
    assert_eq!(
        upload("&pieces=2&declared=131072").await,
        "200 131072 bytes"
    );
    assert_eq!(upload("&pieces=2").await, "200 131072 bytes");
    assert_eq!(upload("&pieces=0&declared=0").await, "200 0 bytes");
    let whole = |bytes, declared| Received {
        bytes,
        whole: true,
        declared,
    };
    let all = [
        whole(131_072, Some(131_072)),
        whole(131_072, None),
        whole(0, None),
    ];
    assert_eq!(origin.received(3).await, all);
    assert!(
        origin
            .heads()
            .iter()
            .all(|head| head["x-upload"] == "yes" && head.contains_key("traceparent"))
    );
    let short = upload("&pieces=2&declared=131073").await;
    let said = "131072 bytes, and not the 131073 that `content-length` declares";
    assert!(
        short.starts_with("Invalid: ") && short.contains(said),
        "{short}"
    );
    let long = upload("&pieces=2&declared=131071").await;
    let said = "more bytes than the 131071 that `content-length` declares";
    assert!(
        long.starts_with("Invalid: ") && long.contains(said),
        "{long}"
    );
    server.assert_baseline().await;
    let received = origin.received(3).await;
    assert!(received[3..].iter().all(|it| !it.whole), "{received:?}");
}
both_modes!(a_declared_length_is_checked);

/// A server may answer before it has the whole upload, whatever it does with the rest.
async fn a_server_that_answers_early_is_heard(mode: Mode) {
    let (server, origin) = with_origin("").await;
    for (status, how) in [
        (200, "reads"),
        (413, "reads"),
        (413, "ignores"),
        (413, "closes"),
        (302, "ignores"),
    ] {
        // More than the connection holds.
        for more in ["&pieces=320", "&pieces=320&declared=20971520"] {
            let url = format!("{}/early/{status}/{how}", origin.url);
            let reply = server.get(&path(mode, "upload", &url, more)).await;
            let said = reply.ok();
            // The end of a connection that a server closes at once can overtake its answer (RFC 9112, 9.6).
            let lost = how == "closes" && said.starts_with("Connection: ");
            let heard = format!("{status} an early answer");
            assert!(said == heard || lost, "{how}{more}: {said}");
            server.assert_baseline().await;
        }
    }
    // What was refused does not look whole.
    for received in origin.received(2).await {
        assert_eq!(received.whole, received.bytes == 20 * MB, "{received:?}");
    }
}
both_modes!(a_server_that_answers_early_is_heard);

/// A body that breaks off is an error, and stays one; a view that passes it on passes on that it is not whole.
async fn a_response_that_breaks_off_is_never_whole(mode: Mode) {
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na part"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\na part\r\n",
    ] {
        let origin = canned(answer).await;
        let server = serve(&[&origin], "").await;
        let reply = server.get(&path(mode, "download", &origin, "/")).await;
        let said = reply.ok();
        assert!(
            said.starts_with("Connection: after 6 bytes: GET "),
            "{said}"
        );
        let to = path(mode, "proxy", &origin, "/");
        let broken = Reply::maybe(server.request("GET", &to)).await;
        assert!(broken.is_err(), "{broken:?}");
        server.assert_baseline().await;
    }
}
both_modes!(a_response_that_breaks_off_is_never_whole);

async fn bodies_go_to_granted_origins_only(mode: Mode) {
    let origin = Origin::start().await;
    let server = serve(&["http://127.0.0.1:1"], "").await;
    for (view, rest) in [("download", "text"), ("upload", "sink")] {
        let url = format!("{}/{rest}", origin.url);
        let reply = server.get(&path(mode, view, &url, "&pieces=1")).await;
        let said = format!(
            "may not send requests to {0}: add \"{0}\" to `http` of `[modules.{mode}]`",
            origin.url
        );
        assert!(reply.ok().starts_with("Denied: "), "{}", reply.text());
        assert!(reply.ok().contains(&said), "{}", reply.text());
        let nobody = path(mode, view, "http://127.0.0.1:1/", "&pieces=1");
        let reply = server.get(&nobody).await;
        assert!(reply.ok().starts_with("Connection: "), "{}", reply.text());
        assert!(reply.ok().contains("refused"), "{}", reply.text());
    }
    assert!(origin.heads().is_empty());
    server.assert_baseline().await;
}
both_modes!(bodies_go_to_granted_origins_only);

async fn bodies_that_stream_have_limits(mode: Mode) {
    let (server, origin) = with_origin("[limits]\nstream_max_bytes = 1000000").await;
    let said = async |view: &str, rest: &str, more: &str| {
        let url = format!("{}/{rest}", origin.url);
        let reply = server.get(&path(mode, view, &url, more)).await;
        reply.ok().to_owned()
    };
    let down = said("download", "big?mb=1", "").await;
    assert!(
        down.starts_with("TooLarge: after ") && down.contains("`stream_max_bytes`"),
        "{down}"
    );
    let declared = said("upload", "sink", "&declared=1000001").await;
    assert!(
        declared.starts_with("TooLarge: ") && declared.contains("`stream_max_bytes`"),
        "{declared}"
    );
    // Whoever goes on after the error gets it again, and the server does not take the upload for a whole one.
    let up = said("upload", "sink", "&pieces=1&end=ignore").await;
    assert_eq!(up.lines().count(), 3, "{up}");
    for line in up.lines() {
        assert!(
            line.starts_with("TooLarge: ") && line.contains("`stream_max_bytes`"),
            "{line}"
        );
    }
    // A time limit of the request's own is for the head of the response.
    for (view, rest) in [("download", "silent"), ("upload", "silent")] {
        let late = said(view, rest, "&timeout_ms=200&pieces=1").await;
        assert!(late.starts_with("Timeout: "), "{view}: {late}");
    }
    let slow = said("download", "drip?ms=300", "&timeout_ms=200").await;
    assert_eq!(slow, "200 21 bytes in pieces");
    server.assert_baseline().await;
    let received = origin.received(0).await;
    assert!(received.iter().all(|it| !it.whole), "{received:?}");
}
both_modes!(bodies_that_stream_have_limits);

/// A view that has all its outbound requests open itself does not wait for one more until its time limit.
async fn r4_a_view_does_not_wait_for_its_own_open_bodies(mode: Mode) {
    let (server, origin) = with_origin("[limits]\noutbound_max = 3").await;
    let url = format!("{}/text", origin.url);
    for end in ["", "uploads"] {
        let more = |count| format!("&count={count}&end={end}");
        let reply = server.get(&path(mode, "hold", &url, &more(2))).await;
        assert_eq!(reply.ok(), "a text\na text");
        let begun = Instant::now();
        let reply = server.get(&path(mode, "hold", &url, &more(3))).await;
        let (refused, later) = reply.ok().split_once('\n').expect("two lines");
        assert!(refused.starts_with("Unavailable: "), "{refused}");
        assert!(
            refused.contains("the bodies of 3 outbound requests open")
                && refused.contains("`outbound_max`"),
            "{refused}"
        );
        assert_eq!(later, "a text", "dropped bodies give their permits back");
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
    }
    // What a view has open when it returns, its stream has open, too.
    let (server, origin) = with_origin("[limits]\noutbound_max = 1").await;
    let url = format!("{}/text", origin.url);
    let reply = server.get(&path(mode, "proxy", &url, "&count=1")).await;
    let (refused, rest) = reply.ok().split_once('\n').expect("two lines");
    assert!(refused.starts_with("Unavailable: "), "{refused}");
    assert_eq!(rest, "a text");
    server.assert_baseline().await;
}
both_modes!(r4_a_view_does_not_wait_for_its_own_open_bodies);

/// The rest of a response that a view drops is not taken for the response to the next request.
async fn a_dropped_response_leaves_nothing_on_its_connection(mode: Mode) {
    let (server, origin) = with_origin("").await;
    let reply = server
        .get(&path(mode, "abandon", &origin.url, "&count=20"))
        .await;
    assert_eq!(reply.ok(), "a text".repeat(20));
    server.assert_baseline().await;
}
both_modes!(a_dropped_response_leaves_nothing_on_its_connection);
