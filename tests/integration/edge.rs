//! The HTTP edge: which host a request is for, which client it is from, the admin address, file descriptors.

use futures::future::join_all;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::raw::{Raw, exchange, status};
use crate::harness::{App, Reply, Server, eventually};

/// RFC 9112, 3.2: a request has exactly one valid host.
#[tokio::test]
async fn a_request_names_one_host() {
    let server = App::new("").serve().await;
    for (line, hosts, expected) in [
        ("/async/hello HTTP/1.1", &["a"][..], 200),
        ("/async/hello HTTP/1.1", &["a:80"], 200),
        ("/async/hello HTTP/1.1", &["[::1]:80"], 200),
        ("/async/hello HTTP/1.1", &[], 400),
        ("/async/hello HTTP/1.1", &[""], 400),
        ("/async/hello HTTP/1.1", &["a", "a"], 400),
        ("/async/hello HTTP/1.1", &["a", "b"], 400),
        ("/async/hello HTTP/1.1", &["a b"], 400),
        ("/async/hello HTTP/1.1", &["a, b"], 400),
        ("/async/hello HTTP/1.1", &["u:p@a"], 400),
        ("/async/hello HTTP/1.1", &["a/b"], 400),
        ("/async/hello HTTP/1.1", &["a:x"], 400),
        ("/async/hello HTTP/1.1", &["<script>"], 400),
        ("/async/hello HTTP/1.0", &[], 200),
        ("/async/hello HTTP/1.0", &["a"], 200),
        ("/async/hello HTTP/1.0", &["a", "b"], 400),
        ("/async/hello HTTP/1.0", &["a b"], 400),
        ("http://a/async/hello HTTP/1.1", &["a"], 200),
        ("http://a/async/hello HTTP/1.1", &["b"], 200),
        ("http://a/async/hello HTTP/1.1", &[], 400),
        ("http://u:p@evil/async/hello HTTP/1.1", &["a"], 400),
        ("http://u@evil/async/hello HTTP/1.1", &["a"], 400),
        ("http://@evil/async/hello HTTP/1.1", &["a"], 400),
        ("/nowhere HTTP/1.1", &[], 400),
    ] {
        let hosts: String = hosts
            .iter()
            .map(|host| format!("host: {host}\r\n"))
            .collect();
        let request = format!("GET {line}\r\n{hosts}connection: close\r\n\r\n");
        let answer = exchange(&server, &request).await;
        let got = answer.get(9..12).unwrap_or_default();
        assert_eq!(got, expected.to_string(), "{request}: {answer}");
    }
    server.assert_baseline().await;
}

/// RFC 9113, 8.3.1: `:authority` and `host` must be the same.
#[tokio::test]
async fn a_request_of_http2_names_one_host() {
    let server = App::new("").serve().await;
    let stream = TcpStream::connect(server.address)
        .await
        .expect("it accepts");
    let (client, connection) = h2::client::handshake(stream)
        .await
        .expect("it speaks HTTP/2");
    tokio::spawn(connection);
    for (authority, hosts, expected) in [
        ("a", &[][..], 200),
        ("a", &["a"], 200),
        ("a", &["A:80"], 200),
        ("a", &["b"], 400),
        ("a", &["a", "a"], 400),
        ("a:81", &["a"], 400),
        ("u:p@a", &[], 400),
        ("u:p@a", &["u:p@a"], 400),
    ] {
        let mut request = hyper::Request::builder().uri(format!("http://{authority}/async/hello"));
        for host in hosts {
            request = request.header("host", *host);
        }
        let request = request.body(()).expect("it is a request");
        let mut client = client.clone().ready().await.expect("it is there");
        let (response, _) = client.send_request(request, true).expect("it is sent");
        // Ending the stream with a protocol error is a refusal, too.
        let got = response
            .await
            .map_or(400, |response| response.status().as_u16());
        assert_eq!(got, expected, "{authority} {hosts:?}");
    }
    server.assert_baseline().await;
}

/// A malformed `forwarded` of a trusted proxy is refused: the host does not guess the client's address.
#[tokio::test]
async fn r14_a_malformed_forwarded_of_a_proxy_is_refused() {
    let toml = |trusted: &str| {
        format!(
            "server = {{ listen = [\"127.0.0.1:0\"], admin = \"127.0.0.1:0\", client_address = \"forwarded\", trusted_proxies = [\"{trusted}\"] }}"
        )
    };
    let server = App::new(&toml("127.0.0.1")).serve().await;
    let ask = async |server: &Server, lines: &[&str]| {
        let mut request = server.request("GET", "/async/hello");
        for line in lines {
            request = request.header("forwarded", *line);
        }
        Reply::of(request).await
    };
    for lines in [
        &["for=1.2.3.4;x=\"a\\\"b\", for=203.0.113.7"][..],
        &["for=1.2.3.4", "for=\"[2001:db8::1]:80\";proto=https"],
        &["for=_hidden, for=unknown"],
    ] {
        ask(&server, lines).await.ok();
    }
    for lines in [
        &["for=1.2.3.4;x=\", for=203.0.113.7"][..],
        &["for=1.2.3.4;x=\"", "for=203.0.113.7"],
        &["for=1.2.3.4;for=5.6.7.8"],
        &["for=1.2.3.4:80"],
        &["1.2.3.4"],
    ] {
        let refused = ask(&server, lines).await;
        assert_eq!(refused.status, 400, "{lines:?}");
        assert!(
            refused.text().contains("`forwarded` header is malformed"),
            "{}",
            refused.text()
        );
    }
    // From other peers the header is ignored.
    let server = App::new(&toml("10.1.2.3")).serve().await;
    ask(&server, &["for=\""]).await.ok();
}

/// Clients of the admin address that do not read their responses take no connections from the app.
#[tokio::test]
async fn the_admin_address_does_not_hold_up_the_others() {
    // The test process itself needs many file descriptors.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("it may be raised so far");
    let server = App::new("").with_files(1024, 1024).serve().await;
    let connect = async || {
        let mut stream = TcpStream::connect(server.admin).await.ok()?;
        let requests = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
        let _ = stream.write_all(requests.as_bytes()).await;
        Some(stream)
    };
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..11 {
        held.extend(
            join_all((0..100).map(|_| connect()))
                .await
                .into_iter()
                .flatten(),
        );
        let mut raw = Raw::connect(&server).await;
        raw.send("GET /async/hello HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        assert_eq!(status(&raw.until("hello").await), 200);
    }
    assert!(held.len() > 1000, "{}", held.len());
    assert!(server.files() < 500, "{} files are open", server.files());
    // The admin address answers again after the host has closed the connections that read nothing.
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    let ask = async || {
        let mut stream = TcpStream::connect(server.admin).await.expect("it accepts");
        let request = "GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        if answer.ends_with("ok\n") {
            Ok(())
        } else {
            Err(answer)
        }
    };
    eventually("the admin address to answer", ask).await;
}

/// The host raises its limit of open files as far as it may. If that is too little, it accepts fewer connections, so
/// that files and databases keep working.
#[tokio::test]
async fn there_are_no_more_connections_than_files_can_be_opened() {
    let server = App::new("").with_files(64, 4000).serve().await;
    let told = server.log.event(0, "there will be fewer connections").await;
    assert_eq!(told.number("files"), 4000, "{told:?}");
    assert!(told.number("connections") > 2000, "{told:?}");
    server.get("/async/hello").await.ok();

    let app = App::new(
        "static.dir = \"public\"\nserver.body_memory_bytes = 1000\nserver.body_inline_bytes = 1000",
    );
    app.write("public/large", vec![0; 1 << 20]);
    let server = app.with_files(400, 400).serve().await;
    let open = || async { Raw::connect(&server).await };
    let held = join_all((0..300).map(|_| open())).await;
    eventually("all places to be taken", async || {
        match server.metrics().await.get("amphi_connections") {
            few if few < 100.0 => Err(few),
            _ => Ok(()),
        }
    })
    .await;
    assert!(server.files() < 400, "some are left: {}", server.files());
    drop(held);
    let bodies = join_all((0..20).map(|_| server.post("/async/whole", vec![7; 100_000]))).await;
    assert!(bodies.iter().all(|reply| reply.status == 200));
    assert_eq!(server.get("/static/large").await.body.len(), 1 << 20);
    server.assert_baseline().await;

    let refused = App::new("").with_files(150, 150);
    refused.migrate();
    let refused = refused.run_limited("serve");
    assert!(
        refused.error().contains("`ulimit -n`") && refused.error().contains("150 files"),
        "{refused:?}"
    );
}
