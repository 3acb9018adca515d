//! Components that other toolchains make from programs which know nothing of Amphi run unchanged: Spin's and wstd's in Rust,
//! Python's by componentize-py, JavaScript's by componentize-js.

use std::path::Path;

use crate::harness::mirror::mirror;
use crate::harness::wasi_http::{self, Version};
use crate::harness::{App, Reply, Server, javascript, python};

/// A server with only this component, below `/x`.
async fn serve(component: &Path, module: &str) -> Server {
    let app = App::written(&format!(
        r#"
        [app]
        name = "ecosystem"
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        [modules.x]
        path = {component:?}
        mount = "/x"
        {module}
        "#
    ));
    app.serve().await
}

/// What all of these components do.
async fn says_hello_and_echoes(server: &Server, hello: &str) {
    assert_eq!(server.get("/x/hello").await.ok(), hello);
    let body: Vec<u8> = (0..300_000).map(|at| (at * 7 + at / 251) as u8).collect();
    for body in [b"some text".to_vec(), Vec::new(), body] {
        let reply = server.post("/x/echo", body.clone()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(reply.body == body, "{} of {}", reply.body.len(), body.len());
    }
    let reply = server.get("/x/nowhere").await;
    assert_eq!((reply.status, reply.text()), (404, "no such path\n"));
}

/// The header gets to the component as it was sent.
async fn shows_headers(server: &Server) {
    let request = server.request("GET", "/x/headers");
    let reply = Reply::of(request.header("x-a", "b c")).await;
    let found = reply.ok().lines().any(|line| line == "x-a=b c");
    assert!(found, "{reply:?}");
}

/// The component fails, the log says why, and the next request is served.
async fn fails_alone(server: &Server) {
    let mark = server.log.mark();
    assert_eq!(server.get("/x/fail").await.status, 500);
    server.log.requests(mark, 1).await;
    let lines = server.log.since(mark);
    let why = "this component fails on purpose";
    let said = lines.iter().any(|line| line.text("message").contains(why));
    assert!(said, "{lines:#?}");
    assert_eq!(server.get("/x/hello").await.status, 200);
}

async fn counts(server: &Server, expected: &[&str]) {
    for expected in expected {
        assert_eq!(server.get("/x/count").await.ok().trim(), *expected);
    }
}

#[tokio::test]
async fn components_in_rust_run_unchanged() {
    for (guest, hello) in [
        ("spin", "Hello from spin-sdk\n"),
        ("wstd", "Hello from wstd\n"),
    ] {
        for instances in ["fresh", "reuse"] {
            let module = format!("instances = \"{instances}\"");
            let server = serve(&wasi_http::built(guest), &module).await;
            for _ in 0..3 {
                says_hello_and_echoes(&server, hello).await;
            }
            server.assert_baseline().await;
        }
    }
}

async fn components_in_python_run_unchanged(version: Version) {
    let component = match python::http(version) {
        Ok(component) => component,
        Err(why) => {
            return eprintln!("skipped: components_in_python_run_unchanged, because {why}");
        }
    };
    let number = match version {
        Version::P2 => "0.2",
        Version::P3 => "0.3",
    };
    let hello = format!("Hello from wasi:http {number} in Python\n");
    for (instances, expected) in [("fresh", ["1", "1", "1"]), ("reuse", ["1", "2", "3"])] {
        let server = serve(&component, &format!("instances = \"{instances}\"")).await;
        counts(&server, &expected).await;
        for _ in 0..3 {
            says_hello_and_echoes(&server, &hello).await;
        }
        shows_headers(&server).await;
        fails_alone(&server).await;
        server.assert_baseline().await;
    }
}

#[tokio::test]
async fn components_in_python_run_unchanged_p2() {
    components_in_python_run_unchanged(Version::P2).await;
}

#[tokio::test]
async fn components_in_python_run_unchanged_p3() {
    components_in_python_run_unchanged(Version::P3).await;
}

/// The engine of componentize-js 0.23 answers one `fetch` event only. It leaves handles open after it, so that no instance is
/// kept, also where it might be.
#[tokio::test]
async fn components_in_javascript_run_unchanged() {
    let component = match javascript::built() {
        Ok(component) => component,
        Err(why) => {
            return eprintln!("skipped: components_in_javascript_run_unchanged, because {why}");
        }
    };
    let origin = mirror().await;
    for instances in ["fresh", "reuse"] {
        let module = format!("instances = \"{instances}\"\nhttp = [\"{origin}\"]");
        let server = serve(&component, &module).await;
        counts(&server, &["1", "1", "1"]).await;
        says_hello_and_echoes(&server, "Hello from wasi:http in JavaScript\n").await;
        shows_headers(&server).await;
        let stream = server.get("/x/stream").await;
        assert_eq!(stream.ok(), "line 1\nline 2\nline 3\n");
        let reply = server.get(&format!("/x/fetch?url={origin}/path")).await;
        assert!(
            reply.ok().starts_with("GET /path HTTP/1.1\r\n"),
            "{reply:?}"
        );
        fails_alone(&server).await;
        server.assert_baseline().await;
    }
}
