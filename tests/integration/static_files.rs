//! Static files.

use std::os::unix::fs::symlink;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::harness::raw::{Raw, exchange, status};
use crate::harness::server::client_http2;
use crate::harness::{App, Reply, Server};

async fn serve() -> Server {
    // The folder has to exist before the configuration is read.
    let app = App::new("static = { dir = \"public\", mount = \"/static\" }");
    app.write("public/style.css", "body { color: black }");
    app.write("public/a b/ü.html", "<p>hi</p>");
    app.write("public/empty", "");
    app.write(
        "public/large.bin",
        (0..1_000_000)
            .map(|index| (index / 251) as u8)
            .collect::<Vec<u8>>(),
    );
    app.write("secret.txt", "secret");
    app.write("public-secret/secret.txt", "secret");
    symlink("../secret.txt", app.path("public/way-out")).expect("a link can be made");
    symlink("..", app.path("public/up")).expect("a link can be made");
    symlink("/etc", app.path("public/etc")).expect("a link can be made");
    symlink("style.css", app.path("public/inside.css")).expect("a link can be made");
    app.serve().await
}

/// A compressed file beside a static file is sent, unless the static file is newer. Other small files are compressed
/// once, and the result is kept.
#[tokio::test]
async fn compressed_files_are_sent_as_they_are() {
    let app = App::new("app.middleware = [\"compression\"]\nstatic = { dir = \"public\" }");
    let text = "body { color: black }\n".repeat(100);
    for name in ["with.css", "stale.css", "alone.css"] {
        app.write(&format!("public/{name}"), &text);
    }
    app.write("public/with.css.br", "made beforehand");
    app.write("public/stale.css.br", "made beforehand");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let stale = std::fs::File::options()
        .write(true)
        .open(app.path("public/stale.css.br"));
    (stale.and_then(|file| file.set_modified(hour_ago))).expect("its time can be set");
    let server = app.serve().await;
    let ask = |method: &str, name: &str, accept: &str| {
        let request = server.request(method, &format!("/static/{name}"));
        Reply::of(request.header("accept-encoding", accept))
    };
    let with = ask("GET", "with.css", "br, gzip;q=0.5").await;
    assert_eq!((with.status, with.text()), (200, "made beforehand"));
    assert_eq!(with.header("content-type"), "text/css; charset=utf-8");
    assert_eq!(
        ask("HEAD", "with.css", "br").await.header("content-length"),
        "15"
    );
    for name in ["stale.css", "alone.css"] {
        let first = ask("GET", name, "br").await;
        let again = ask("GET", name, "br").await;
        assert_eq!(first.body, again.body, "{name}");
        assert!(
            first.body.len() < 100 && first.body != b"made beforehand",
            "{name}"
        );
        assert_eq!(first.header("content-length"), first.body.len().to_string());
    }
    for name in ["with.css", "stale.css", "alone.css"] {
        let reply = ask("GET", name, "br").await;
        assert_eq!(
            (reply.header("content-encoding"), reply.header("vary")),
            ("br", "accept-encoding")
        );
        assert!(reply.header("etag").starts_with("W/"), "{reply:?}");
        let plain = ask("GET", name, "identity").await;
        assert_eq!(
            (plain.ok(), plain.header("vary")),
            (&*text, "accept-encoding")
        );
    }
    server.assert_baseline().await;
}

#[tokio::test]
async fn files_are_served_with_their_types() {
    let server = serve().await;
    let reply = server.get("/static/style.css").await;
    assert_eq!(reply.ok(), "body { color: black }");
    assert_eq!(reply.header("content-type"), "text/css; charset=utf-8");
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
    assert_eq!(reply.header("content-length"), "21");
    let reply = server.get("/static/a%20b/%C3%BC.html").await;
    assert_eq!(
        (reply.ok(), reply.header("content-type")),
        ("<p>hi</p>", "text/html; charset=utf-8")
    );
    assert_eq!(
        server.get("/static/inside.css").await.ok(),
        "body { color: black }",
        "a link that stays inside"
    );
    assert_eq!(server.get("/static/empty").await.ok(), "");
    let large = server.get("/static/large.bin").await;
    assert_eq!((large.status, large.body.len()), (200, 1_000_000));
    assert!(
        large
            .body
            .iter()
            .enumerate()
            .all(|(index, byte)| *byte == (index / 251) as u8)
    );
    for path in [
        "/static/nothing.css",
        "/static/",
        "/static",
        "/static/a%20b",
        "/static/style.css/",
        "/static/style.css/x",
        "/static/%ff",
    ] {
        let reply = server.get(path).await;
        assert!(
            [400, 404].contains(&reply.status),
            "{path}: {}",
            reply.status
        );
    }
    server.assert_baseline().await;
}

#[tokio::test]
async fn what_has_not_changed_is_304() {
    let server = serve().await;
    let first = server.get("/static/style.css").await;
    let (tag, modified) = (
        first.header("etag").to_owned(),
        first.header("last-modified").to_owned(),
    );
    assert!(tag.starts_with('"') && !modified.is_empty());
    let conditional = async |name: &str, value: &str| {
        Reply::of(
            server
                .request("GET", "/static/style.css")
                .header(name, value),
        )
        .await
    };
    for (name, value, expected) in [
        ("if-none-match", tag.clone(), 304),
        ("if-none-match", format!("\"other\", W/{tag}"), 304),
        ("if-none-match", "*".to_owned(), 304),
        ("if-none-match", "\"other\"".to_owned(), 200),
        ("if-modified-since", modified.clone(), 304),
        (
            "if-modified-since",
            "Sat, 01 Jan 2000 00:00:00 GMT".to_owned(),
            200,
        ),
        ("if-modified-since", "nonsense".to_owned(), 200),
    ] {
        let reply = conditional(name, &value).await;
        assert_eq!(reply.status, expected, "{name}: {value}");
        assert_eq!(reply.header("etag"), tag);
        assert_eq!(reply.body.is_empty(), expected == 304);
    }
    server.app.write("public/style.css", "changed");
    assert_eq!(conditional("if-none-match", &tag).await.ok(), "changed");
}

#[tokio::test]
async fn head_has_the_headers_alone() {
    let server = serve().await;
    for (path, length) in [
        ("style.css", "21"),
        ("large.bin", "1000000"),
        ("empty", "0"),
    ] {
        let reply = Reply::of(server.request("HEAD", &format!("/static/{path}"))).await;
        assert_eq!(
            (reply.status, reply.header("content-length")),
            (200, length),
            "{path}"
        );
        assert!(reply.body.is_empty());
    }
    let reply = Reply::of(server.request("POST", "/static/style.css")).await;
    assert_eq!(
        (reply.status, reply.header("allow")),
        (405, "GET, HEAD, OPTIONS")
    );
}

/// No path, link or encoding leads out of the folder.
#[tokio::test]
async fn nothing_outside_of_the_folder_is_served() {
    let server = serve().await;
    for path in [
        "/static/../secret.txt",
        "/static/../public-secret/secret.txt",
        "/static/./../secret.txt",
        "/static/a%20b/../../secret.txt",
        "/static/%2e%2e/secret.txt",
        "/static/%2E%2E%2Fsecret.txt",
        "/static/..%2fsecret.txt",
        "/static/..%5csecret.txt",
        "/static/..\\secret.txt",
        "/static/%252e%252e/secret.txt",
        "/static/....//secret.txt",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/way-out",
        "/static/up/secret.txt",
        "/static/etc/passwd",
        "/static/style.css%00.html",
        "/static/../../../../../../../../etc/passwd",
        "/static/../static/../secret.txt",
        "static/../secret.txt",
        "/../secret.txt",
        "//static/../secret.txt",
    ] {
        let answer = exchange(
            &server,
            format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!([400, 404].contains(&status(&answer)), "{path}: {answer}");
        assert!(
            !answer.contains("secret\n")
                && !answer.ends_with("secret")
                && !answer.contains("root:"),
            "{path}: {answer}"
        );
    }
    server.assert_baseline().await;
}

/// A file is changed in place while it is sent. On a kept connection, the next response still begins where the present
/// response ends.
#[tokio::test]
async fn a_file_that_changes_does_not_spoil_the_connection() {
    let server = serve().await;
    server.app.write("public/changing", "0");
    let going = Arc::new(AtomicBool::new(true));
    let writing = std::thread::spawn({
        let (going, path) = (Arc::clone(&going), server.app.path("public/changing"));
        move || {
            for length in (0..84).cycle().take_while(|_| going.load(Relaxed)) {
                std::fs::write(&path, "0".repeat(length)).expect("writing a file");
            }
        }
    });
    let http2 = client_http2();
    let mut raw = Raw::connect(&server).await;
    for _ in 0..300 {
        raw.send("GET /static/changing HTTP/1.1\r\nhost: a\r\n\r\n")
            .await;
        let head = raw.until("\r\n\r\n").await;
        assert_eq!(status(&head), 200, "{head}");
        let length = head.split("content-length: ").nth(1).expect("it is there");
        let length = length
            .split('\r')
            .next()
            .expect("it is a line")
            .parse()
            .expect("a number");
        let body = raw.exactly(length).await;
        assert_eq!(body, "0".repeat(length));
        let reply = Reply::of(http2.get(server.url("/static/changing"))).await;
        assert_eq!(reply.header("content-length"), reply.ok().len().to_string());
    }
    going.store(false, Relaxed);
    writing.join().expect("it does not panic");
    server.assert_baseline().await;
}

/// A file that becomes shorter while it is sent ends the connection (or the HTTP/2 stream), so that the client does not
/// take the part for the whole.
#[tokio::test]
async fn a_file_that_becomes_shorter_breaks_its_response_off() {
    const LENGTH: usize = 64 << 20;
    let server = serve().await;
    let shorten = || {
        let path = server.app.path("public/shorter");
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_len(1)).expect("it is ours");
    };
    server.app.write("public/shorter", vec![b'0'; LENGTH]);
    let mut raw = Raw::connect(&server).await;
    raw.send("GET /static/shorter HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let head = raw.until("\r\n\r\n").await;
    assert!(
        head.contains(&format!("content-length: {LENGTH}\r\n")),
        "{head}"
    );
    shorten();
    let rest = raw.rest().await.len();
    assert!(rest < LENGTH, "{rest}");

    for encoding in ["identity", "gzip"] {
        server.app.write("public/shorter", vec![b'0'; LENGTH]);
        let request = client_http2().get(server.url("/static/shorter"));
        let response = request.header("accept-encoding", encoding).send().await;
        let response = response.expect("it begins");
        shorten();
        response.bytes().await.expect_err("it does not end well");
    }
    // A file that grows is sent with its first length.
    server.app.write("public/longer", vec![b'0'; LENGTH]);
    let response = server.get("/static/longer");
    let grow = async {
        let path = server.app.path("public/longer");
        let file = std::fs::OpenOptions::new().append(true).open(path);
        file.and_then(|file| file.set_len(LENGTH as u64 * 2))
            .expect("it is ours");
    };
    let (response, ()) = tokio::join!(response, grow);
    assert_eq!(
        response.header("content-length"),
        response.body.len().to_string()
    );
    server.assert_baseline().await;
}

#[tokio::test]
async fn hidden_files_are_served_only_when_asked_for() {
    for (hidden, status) in [(false, 404), (true, 200)] {
        let app = App::new(&format!(
            "static = {{ dir = \"public\", hidden = {hidden} }}"
        ));
        for file in [".env", ".git/config", "a/.htaccess"] {
            app.write(&format!("public/{file}"), "text");
        }
        app.write("public/a/b", "text");
        let server = app.serve().await;
        for path in [".env", "%2eenv", ".git/config", "a/.htaccess"] {
            let reply = server.get(&format!("/static/{path}")).await;
            assert_eq!(reply.status, status, "{path}");
        }
        server.get("/static/a/b").await.ok();
        // An encoded slash is data, and no name of a file has one.
        for path in ["a%2f.htaccess", "a%2Fb", "a%2fb"] {
            let reply = server.get(&format!("/static/{path}")).await;
            assert_eq!(reply.status, 404, "{path}");
        }
    }
}

/// A pipe is not served, and the host does not block on opening it.
#[tokio::test]
async fn a_pipe_in_the_folder_is_no_file() {
    let server = serve().await;
    let made = std::process::Command::new("mkfifo")
        .arg(server.app.path("public/pipe"))
        .status();
    assert!(made.expect("it can be started").success());
    assert_eq!(server.get("/static/pipe").await.status, 404);
}

/// An app with a secret, users, a database or `amphi.toml` in its static folder does not start, even if only a link
/// leads there.
#[tokio::test]
async fn what_is_private_is_not_in_a_folder_that_is_served() {
    for (toml, files, named) in [
        ("static.dir = \".\"", &[][..], "the configuration"),
        (
            "static.dir = \"public\"\ndatabases.default.sqlite = \"public/data/app.db\"",
            &[],
            "the database",
        ),
        (
            "static.dir = \"public\"\ndatabases.default.sqlite = \"link/app.db\"",
            &[],
            "the database",
        ),
        (
            "static.dir = \"public\"\nmodules.behaviour.secrets.key = { file = \"public/.key\" }",
            &["public/.key"],
            "the secret's file",
        ),
        (
            "static.dir = \"link\"\nmodules.behaviour.secrets.key = { file = \"key\", generate = true }",
            &[],
            "",
        ),
        (
            "static.dir = \"link\"\nmodules.behaviour.secrets.key = { file = \"public/key\", generate = true }",
            &[],
            "the secret's file",
        ),
        (
            "static.dir = \"public\"\napp.middleware = [\"basic-auth\"]\nmiddleware.basic-auth.file = \"public/users\"",
            &["public/users"],
            "the users' file",
        ),
    ] {
        let app = App::new(toml);
        app.write("public/page.html", "hi");
        symlink("public", app.path("link")).expect("a link can be made");
        for file in files {
            app.write(
                file,
                "ann:$2b$04$s/XlW/w9kFua1wNQSQEf5e.DiQy4Q4QtNAZEekWN5oweUfIQYkjaK",
            );
        }
        let ran = app.run("routes");
        if named.is_empty() {
            assert!(ran.success, "{toml}: {ran:?}");
            continue;
        }
        let error = ran.error();
        assert!(
            error.contains(named) && error.contains("`[static]`"),
            "{toml}: {error}"
        );
    }
}

#[tokio::test]
async fn a_secret_that_others_can_read_is_a_warning() {
    let app = App::new("modules.behaviour.secrets.word = { file = \"word\" }");
    app.write("word", "hidden");
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(app.path("word"), mode).expect("it is ours");
        app.run("routes").stderr
    };
    for shared in [0o644, 0o640, 0o606] {
        let said = mode(shared);
        assert!(
            said.contains("chmod 600") && said.contains("/word"),
            "{shared:o}: {said}"
        );
    }
    assert_eq!(mode(0o600), "");
}
