//! Middleware of `wasi:http` around views of every kind, and plain components behind other functions: their bodies stream
//! in both, under the same rules.

use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::harness::raw::{Raw, exchange, status};
use crate::harness::wasi_http::{self, Version};
use crate::harness::{App, Mode, Reply, Server, guests};

/// An app with the views of `tests/guests/streams` in both modes, and plain components of both versions below `/p2` and
/// `/p3`; `mw` is middleware of `wasi:http`, and `outer` is the same once more. `around` is around all of them, outermost
/// first. `plain`: further keys of the plain components.
pub(crate) async fn serve(around: &[&str], plain: &str) -> Server {
    let mut toml = format!(
        r#"
        [app]
        name = "middleware"
        middleware = {around:?}
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        body_inline_bytes = 1000
        body_memory_bytes = 100000
        [databases.default]
        sqlite = "data/test.db"
        synchronous = "normal"
        migrations = "{}/migrations"
        [limits]
        timeout_ms = 2000
        "#,
        guests::folder().display()
    );
    let mut module = |name: &str, path: std::path::PathBuf, keys: &str| {
        toml += &format!("[modules.{name}]\npath = {path:?}\n{keys}\n");
    };
    let database = "databases = [\"default\"]\nungranted_imports = true";
    for mode in [Mode::Sync, Mode::Async] {
        let keys = format!("mount = \"/streams\"\nsubrequests = true\n{database}");
        module(&mode.to_string(), guests::built("streams", mode), &keys);
        let keys = database.to_owned();
        module(
            &format!("all-{mode}"),
            guests::built("behaviour", mode),
            &keys,
        );
    }
    for version in [Version::P2, Version::P3] {
        let name = version.to_string();
        let keys = format!("mount = \"/{name}\"\n{database}\n{plain}");
        module(&name, wasi_http::built(&name), &keys);
    }
    for name in ["mw", "outer"] {
        module(name, wasi_http::built("middleware"), "");
    }
    App::written(&toml).serve().await
}

/// A request for `middleware` to do this.
fn with(server: &Server, method: &str, path: &str, what: &str) -> reqwest::RequestBuilder {
    server.request(method, path).header("x-do", what)
}

async fn get(server: &Server, path: &str, what: &str) -> Reply {
    Reply::of(with(server, "GET", path, what)).await
}

/// Answers of each kind of view: whole ones, and streams of three lines that take some time.
const WHOLE: [&str; 2] = ["/sync/hello", "/async/hello"];
const DRIPS: [&str; 4] = [
    "/streams/sync/lines?count=3&ms=700",
    "/streams/async/lines?count=3&ms=700",
    "/p2/drip?n=3&ms=700",
    "/p3/drip?n=3&ms=700",
];

#[tokio::test]
async fn middleware_passes_requests_and_responses_on() {
    let plain = serve(&[], "").await;
    let server = serve(&["mw::handler"], "").await;
    for path in WHOLE {
        let (reply, bare) = (server.get(path).await, plain.get(path).await);
        assert_eq!(reply.ok(), bare.ok());
        assert_eq!(reply.header("content-type"), bare.header("content-type"));
        let capital = get(&server, path, "upper").await;
        assert_eq!(capital.ok(), bare.ok().to_uppercase());
        assert_eq!(get(&server, path, "stop").await.ok(), "stopped\n");
        assert_eq!(get(&server, path, "replace").await.ok(), "replaced\n");
        let length = bare.ok().len();
        let collected = get(&server, path, "collect").await;
        assert_eq!(collected.ok(), format!("{length} bytes\n"));
    }
    // What the view sees is what the client has sent.
    let seen = server.get("/p2/headers?a=b%20c").await;
    for line in [
        "target: Some(\"/p2/headers?a=b%20c\")",
        "method: Method::Get",
    ] {
        assert!(seen.ok().contains(line), "{seen:?}");
    }
    let (reply, bare) = (
        server.get("/sync/header/host"),
        plain.get("/sync/header/host"),
    );
    let (reply, bare) = (reply.await, bare.await);
    assert_eq!(
        (reply.ok(), bare.ok()),
        (&*server.address.to_string(), &*plain.address.to_string())
    );
    server.assert_baseline().await;
}

/// The body of the request goes through: a small one, one in memory and one in a file, as it is and changed.
#[tokio::test]
async fn middleware_changes_the_bodies_of_requests() {
    let server = serve(&["mw::handler"], "").await;
    for length in [0, 10, 5_000, 3_000_000] {
        let body = "a".repeat(length);
        for path in ["/p2/echo", "/p3/echo"] {
            let reply = server.post(path, body.clone()).await;
            assert!(reply.ok() == body, "{path}, {length}");
            let request = with(&server, "POST", path, "request").body(body.clone());
            let reply = Reply::of(request).await;
            assert!(reply.ok() == body.to_uppercase(), "{path}, {length}");
        }
    }
    server.assert_baseline().await;
}

#[tokio::test]
async fn streams_come_through_middleware_piece_by_piece() {
    for around in [
        &["mw::handler"][..],
        &["outer::handler", "sync::around", "mw::handler"],
    ] {
        let server = serve(around, "atomic = false").await;
        for path in DRIPS {
            let begun = Instant::now();
            let response = with(&server, "GET", path, "upper").send();
            let mut response = response.await.expect("it begins");
            let first = response.chunk().await.expect("it goes on");
            assert!(
                begun.elapsed() < Duration::from_millis(1300),
                "{path}: {:?}",
                begun.elapsed()
            );
            let mut body = first.expect("it has not ended").to_vec();
            while let Some(piece) = response.chunk().await.expect("it goes on") {
                body.extend(piece);
            }
            let body = String::from_utf8(body).expect("it is text");
            assert!(begun.elapsed() > Duration::from_millis(1400), "{path}");
            assert_eq!(body.lines().count(), 3, "{path}: {body}");
            assert_eq!(body, body.to_uppercase());
        }
        let reply = get(&server, "/streams/sync/big?mb=20", "upper").await;
        assert_eq!((reply.status, reply.body.len()), (200, 20 << 20));
        // A stream that nobody wants ends.
        assert_eq!(
            get(&server, "/streams/async/endless", "replace").await.ok(),
            "replaced\n"
        );
        assert_eq!(
            get(&server, "/p3/endless", "replace").await.ok(),
            "replaced\n"
        );
        assert_eq!(
            get(&server, "/streams/sync/endless", "stop").await.ok(),
            "stopped\n"
        );
        server.assert_baseline().await;
    }
}

/// The body of a stream begins after the commit, and the middleware that changes it writes after the commit, too.
#[tokio::test]
async fn r9_middleware_reads_a_stream_after_the_commit() {
    let server = serve(&["mw::handler"], "").await;
    for mode in ["sync", "async"] {
        let path = format!("/streams/{mode}/committed/kept");
        let reply = Reply::of(with(&server, "POST", &path, "upper")).await;
        assert_eq!(reply.ok(), "1 OF KEPT\n");
        let path = format!("/streams/{mode}/committed/undone");
        let reply = Reply::of(with(&server, "POST", &path, "upper")).await;
        assert_eq!((reply.status, reply.text()), (500, "0 OF UNDONE\n"));
        let database = server.database();
        database
            .execute("delete from rows", [])
            .expect("it is there");
    }
    // Middleware that wants all of it before it answers waits for what comes only after its answer.
    let mark = server.log.mark();
    let reply = Reply::of(with(
        &server,
        "POST",
        "/streams/sync/committed/never",
        "collect",
    ))
    .await;
    assert_eq!(reply.status, 504, "{reply:?}");
    let line = &server.log.requests(mark, 1).await[0];
    assert!(
        line.text("why").contains("let it answer before it reads"),
        "{line:?}"
    );
    assert_eq!(line.text("transaction"), "rolled back");
    assert_eq!(server.tags(), Vec::<String>::new());
    server.assert_baseline().await;
}

/// What middleware makes of it does not matter: when it fails, or the view does, nothing is kept.
#[tokio::test]
async fn r9_middleware_that_fails_rolls_back() {
    let server = serve(&["mw::handler"], "").await;
    for mode in ["sync", "async"] {
        for (path, what, expected) in [
            ("rows/a", "trap-after", 500),
            ("rows/a", "twice", 500),
            ("fail/panic", "catch", 200),
        ] {
            let path = format!("/{mode}/{path}");
            let mark = server.log.mark();
            let reply = Reply::of(with(&server, "POST", &path, what)).await;
            assert_eq!(reply.status, expected, "{what}: {reply:?}");
            let line = &server.log.requests(mark, 1).await[0];
            assert_eq!(line.text("transaction"), "rolled back", "{what}: {line:?}");
        }
        let kept = with(&server, "POST", &format!("/{mode}/rows/kept"), "upper");
        assert_eq!(Reply::of(kept).await.status, 201);
    }
    assert_eq!(server.tags(), ["kept", "kept"]);
    server.assert_baseline().await;
}

/// An error that the middleware passes on is the error of the view.
#[tokio::test]
async fn errors_come_through_middleware_as_they_are() {
    let server = serve(&["outer::handler", "mw::handler"], "").await;
    let plain = serve(&[], "").await;
    for path in [
        "/sync/greet/",
        "/async/fail/panic",
        "/sync/fail/error",
        "/p2/noset",
        "/p3/trap-before",
    ] {
        let (reply, bare) = (server.get(path).await, plain.get(path).await);
        assert!(bare.status >= 400, "{path}: {bare:?}");
        // But for the request's id.
        let told = |reply: &Reply| {
            let id = reply.text().find("Request ").expect("a page has it");
            (reply.status, reply.text()[..id].to_owned())
        };
        assert_eq!(told(&reply), told(&bare), "{path}");
    }
    server.assert_baseline().await;
}

#[tokio::test]
async fn r16_what_breaks_off_behind_middleware_never_looks_complete() {
    let server = serve(&["mw::handler"], "atomic = false").await;
    for (path, what) in [
        ("/streams/sync/ends/panic", "upper"),
        ("/streams/async/ends/error", "upper"),
        ("/p2/trap-middle?ms=100", "upper"),
        ("/p3/end-error?ms=100", "upper"),
        ("/p3/drip?n=3&ms=100", "trap-middle"),
        ("/streams/sync/lines?count=3&ms=100", "trap-middle"),
    ] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-do: {what}\r\nconnection: close\r\n\r\n");
        let answer = exchange(&server, request).await;
        let broke_off = [0, 200].contains(&status(&answer)) && !answer.ends_with("0\r\n\r\n");
        assert!(broke_off || status(&answer) >= 500, "{path}: {answer}");
        server.assert_baseline().await;
    }
}

#[tokio::test]
async fn r15_a_client_that_leaves_ends_middleware_and_view() {
    let server = serve(&["outer::handler", "mw::handler"], "atomic = false").await;
    for path in [
        "/streams/sync/endless",
        "/streams/async/ends/sleep",
        "/p2/endless",
        "/p3/drip?n=100&ms=100",
    ] {
        let response = with(&server, "GET", path, "upper").send();
        let mut response = response.await.expect("it begins");
        response.chunk().await.expect("it goes on");
        drop(response);
        server.assert_baseline().await;
    }
    let waits = server.request("GET", "/p3/sleep?ms=60000").send();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), waits)
            .await
            .is_err()
    );
    server.assert_baseline().await;
}

/// A plain component behind an SDK's middleware, and as a sub-request: its body streams, and it may use the database
/// while it does.
#[tokio::test]
async fn plain_components_stream_behind_other_functions() {
    for around in ["sync::around", "async::around"] {
        let server = serve(&[around], "atomic = false").await;
        for path in ["/p2/drip?n=3&ms=700", "/p3/drip?n=3&ms=700"] {
            let mut raw = Raw::connect(&server).await;
            let begun = Instant::now();
            raw.send(format!(
                "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            ))
            .await;
            let first = raw.until("line 1\n").await;
            assert!(
                begun.elapsed() < Duration::from_millis(1300),
                "{path}: {first}"
            );
            let rest = raw.rest().await;
            assert!(rest.contains("line 3\n"), "{rest}");
        }
        for version in ["p2", "p3"] {
            let reply = server
                .post(&format!("/{version}/rows-late?tag={version}&ms=50"), "")
                .await;
            assert_eq!(reply.ok(), "begun\n1 rows\n", "{version} {around}");
            server
                .database()
                .execute("delete from rows", [])
                .expect("it is there");
        }
        let replaced = server.get("/p2/endless?around=replace");
        server.assert_baseline().await;
        drop(replaced);
    }
}

/// With `commit_at_head`, what the component has written before its head is kept, whatever becomes of the body, and
/// what it wants to write afterwards is refused.
#[tokio::test]
async fn r9_a_component_may_be_committed_at_its_head() {
    for around in [&[][..], &["async::around"], &["mw::handler"]] {
        let server = serve(around, "atomic = true\ncommit_at_head = true").await;
        for version in ["p2", "p3"] {
            let path = format!("/{version}/rows-fail?tag={version}&how=trap-middle&ms=300");
            let mark = server.log.mark();
            let reply = Reply::maybe(server.request("POST", &path)).await;
            assert!(reply.is_err(), "{reply:?}");
            let line = &server.log.requests(mark, 1).await[0];
            assert_eq!(line.text("transaction"), "committed", "{line:?}");
            let path = format!("/{version}/rows-fail?tag=undone&how=trap-before");
            assert_eq!(server.post(&path, "").await.status, 500);
            let reply = server
                .post(&format!("/{version}/rows-late?tag=late&ms=50"), "")
                .await;
            assert!(reply.ok().contains("answered already"), "{reply:?}");
        }
        assert_eq!(server.tags(), ["p2", "p3"]);
        server.assert_baseline().await;
    }
}

/// Many at once, of all kinds, some of whose clients leave: nothing is left behind.
#[tokio::test]
async fn a_crowd_behind_middleware_leaves_nothing_behind() {
    let server = serve(&["outer::handler", "sync::around", "mw::handler"], "").await;
    let paths = [
        "/sync/hello",
        "/streams/sync/lines?count=20&ms=10",
        "/p2/drip?n=20&ms=10",
        "/p3/big?mb=1",
        "/streams/async/endless",
        "/async/nap/100",
    ];
    let does = [
        "",
        "upper",
        "replace",
        "stop",
        "trap-middle",
        "trap-after",
        "twice",
        "catch",
    ];
    let requests = (0..96).map(|number: usize| {
        let request = with(
            &server,
            "GET",
            paths[number % paths.len()],
            does[number % does.len()],
        );
        async move {
            let time = Duration::from_millis(20 * (number as u64 % 17));
            let _ = tokio::time::timeout(time, Reply::maybe(request)).await;
        }
    });
    join_all(requests).await;
    server.assert_baseline().await;
}
