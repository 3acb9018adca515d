//! Built-in middleware, through which every response of the app goes, and what else the host does to responses.

use std::io::Read as _;

use futures::future::join_all;
use serde_json::json;

use crate::harness::steps::{about, end, get, set};
use crate::harness::{App, Kind, Mode, Reply, Server, eventually};

const BUILTINS: &str = r#"
    app.middleware = ["request-id", "security-headers", "compression"]
    static = { dir = "static" }
"#;

async fn serve(toml: &str) -> Server {
    let app = App::rules(Kind::Sqlite, toml).await;
    app.write("static/page.html", "<p>hello</p>".repeat(1_000));
    app.serve().await
}

/// `basic-auth`: checking a password takes long and anybody may send wrong ones, so checks queue, and the queue is
/// fair.
#[tokio::test]
async fn who_sends_many_wrong_passwords_locks_nobody_out() {
    let toml = r#"
        app.middleware = ["basic-auth"]
        server.trusted_proxies = ["127.0.0.1"]
        [middleware.basic-auth]
        checks_max = 1
        queue_max = 20
        queue_timeout_ms = 60000
        users = { ann = "$2b$11$abcdefghijklmnopqrstuuViuGI07N4McP9Kl.tD6XMEzyuvcY8LG", bob = "$2b$11$abcdefghijklmnopqrstuuViuGI07N4McP9Kl.tD6XMEzyuvcY8LG" }
    "#;
    let server = serve(&format!("static = {{ dir = \"static\" }}\n{toml}")).await;
    let ask = |client: &str, user: &str, password: &str| {
        let request = server.request("GET", "/static/page.html");
        let request = request.header("x-forwarded-for", client);
        Reply::of(request.basic_auth(user, Some(password)))
    };
    let server_is_busy = async || {
        eventually("a full queue", async || {
            let queued = server.metrics().await.get("amphi_queued");
            if queued == 20.0 { Ok(()) } else { Err(queued) }
        })
        .await;
    };
    let wrong = join_all((0..90).map(|_| ask("203.0.113.7", "ann", "wrong")));
    let right = async {
        server_is_busy().await;
        let reply = ask("198.51.100.1", "ann", "secret").await;
        assert_eq!(reply.status, 200, "of another address: {reply:?}");
        let reply = ask("203.0.113.7", "bob", "secret").await;
        assert_eq!(reply.status, 200, "by another name: {reply:?}");
        // This password was checked before and is remembered, so the request needs no check and does not queue.
        let reply = ask("203.0.113.7", "ann", "secret").await;
        assert_eq!(reply.status, 200, "remembered: {reply:?}");
        server.metrics().await.get("amphi_queued")
    };
    let (wrong, still_waiting) = tokio::join!(wrong, right);
    assert!(
        still_waiting > 5.0,
        "they did not wait for the others: {still_waiting}"
    );
    let count = |status| wrong.iter().filter(|reply| reply.status == status).count();
    assert_eq!(count(401) + count(503), 90);
    assert!(
        count(401) >= 18 && count(503) >= 60,
        "{} {}",
        count(401),
        count(503)
    );
    server.assert_baseline().await;
}

/// Built-in middleware sees views' responses, static files, failures and 404 alike.
async fn every_answer_goes_through_built_in_middleware(mode: Mode) {
    let server = serve(BUILTINS).await;
    let answers = [
        (200, server.steps(&format!("/{mode}/run"), json!([])).await),
        (
            500,
            server
                .steps(&format!("/{mode}/run"), json!([end("panic")]))
                .await,
        ),
        (
            409,
            server
                .steps(&format!("/{mode}/run"), json!([end("refuse")]))
                .await,
        ),
        (404, server.get("/nowhere").await),
        (405, server.get(&format!("/{mode}/run")).await),
        (200, server.get("/static/page.html").await),
        (404, server.get("/static/nowhere.html").await),
    ];
    let mut ids = std::collections::BTreeSet::new();
    for (status, reply) in &answers {
        assert_eq!(reply.status, *status, "{}", reply.text());
        assert_eq!(
            reply.header("x-content-type-options"),
            "nosniff",
            "{reply:?}"
        );
        assert_eq!(
            reply.header("referrer-policy"),
            "strict-origin-when-cross-origin",
            "{reply:?}"
        );
        assert!(
            ids.insert(reply.header("x-request-id").to_owned()),
            "{reply:?}"
        );
    }
    assert!(!ids.contains(""), "each has its id");
    let lines = server.log.requests(0, answers.len()).await;
    assert!(
        lines.iter().all(|line| ids.contains(line.text("request"))),
        "as the log has it"
    );
}
both_modes!(every_answer_goes_through_built_in_middleware);

async fn answers_are_compressed_for_those_who_can_read_it(mode: Mode) {
    let server = serve(BUILTINS).await;
    let long = json!([set("x", "y"), {"do": "query", "sql": "select replace(hex(zeroblob(5000)), '0', 'long ')"}]);
    let view = format!("/{mode}/run");
    let plain = server.steps(&view, long.clone()).await;
    assert_eq!(plain.header("content-encoding"), "");
    assert!(
        plain.header("vary").contains("accept-encoding"),
        "{plain:?}"
    );
    let request = server
        .request("POST", &view)
        .header("accept-encoding", "gzip")
        .body(long.to_string());
    let packed = Reply::of(request).await;
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.body.len() < plain.body.len() / 10);
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_string(&mut text)
        .expect("it is gzip");
    assert_eq!(text, plain.text());
    let file = Reply::of(
        server
            .request("GET", "/static/page.html")
            .header("accept-encoding", "gzip"),
    )
    .await;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&file.body[..])
        .read_to_string(&mut text)
        .expect("it is gzip");
    assert_eq!(text, "<p>hello</p>".repeat(1_000));
    let short = Reply::of(
        server
            .request("POST", &view)
            .header("accept-encoding", "gzip")
            .body("[]"),
    )
    .await;
    assert_eq!(
        short.header("content-encoding"),
        "",
        "what is short stays as it is"
    );
}
both_modes!(answers_are_compressed_for_those_who_can_read_it);

/// A client that already has the present version of a page or file gets 304, with the same caching headers as with 200.
async fn what_has_not_changed_is_not_sent_again(mode: Mode) {
    let app = App::new("app.middleware = [\"compression\"]\nstatic = { dir = \"static\" }");
    app.write("static/page.html", "<p>hello</p>".repeat(1_000));
    app.write("static/image.png", [7; 5_000]);
    let server = app.serve().await;
    let view = format!("/{mode}/tagged/a,b");
    for (path, compressed) in [
        (&*view, true),
        ("/static/page.html", true),
        ("/static/image.png", false),
    ] {
        for accept in ["gzip", "identity"] {
            let ask = |headers: &[(&str, &str)]| {
                let request = server
                    .request("GET", path)
                    .header("accept-encoding", accept);
                Reply::of(headers.iter().fold(request, |request, (name, value)| {
                    request.header(*name, *value)
                }))
            };
            let first = ask(&[]).await;
            assert_eq!(first.status, 200);
            let tag = first.header("etag").to_owned();
            assert_eq!(
                tag.starts_with("W/"),
                compressed && accept == "gzip",
                "{tag}"
            );
            let strong = tag.trim_start_matches("W/");
            for known in [
                &*tag,
                strong,
                &format!("W/{strong}"),
                &format!("\"x\", {tag}"),
                "*",
            ] {
                let again = ask(&[("if-none-match", known)]).await;
                assert_eq!((again.status, again.body.len()), (304, 0), "{path} {known}");
                for name in ["etag", "vary", "cache-control", "last-modified"] {
                    assert_eq!(
                        again.headers(name),
                        first.headers(name),
                        "{path} {accept} {known}: {name}"
                    );
                }
                assert_eq!(
                    (
                        again.header("content-encoding"),
                        again.header("content-type")
                    ),
                    ("", "")
                );
            }
            let changed = ask(&[("if-none-match", "\"other\"")]).await;
            assert_eq!(
                (changed.status, changed.body.len()),
                (200, first.body.len())
            );
        }
    }
    assert!(
        server
            .get(&view)
            .await
            .header("vary")
            .contains("accept-encoding")
    );
    server.assert_baseline().await;
}
both_modes!(what_has_not_changed_is_not_sent_again);

/// The app's error pages replace failures of views, of the host and of static files alike.
async fn failures_have_pages_of_the_app(mode: Mode) {
    let guest = if mode == Mode::Sync {
        "sync_views"
    } else {
        "async_views"
    };
    let toml = format!(
        "app.errors = \"behaviour::{guest}::error_page\"\nstatic = {{ dir = \"static\" }}\nserver.uri_max_bytes = 100"
    );
    let app = App::new(&toml);
    app.write("static/page.html", "<p>hello</p>");
    let server = app.serve().await;
    let long = format!("/{}", "x".repeat(200));
    let ask = |method: &str, path: &str, accept: &str| {
        Reply::of(
            server
                .request(method, path)
                .header("accept", accept)
                .header("accept-language", "de"),
        )
    };
    let browser = "text/html,*/*;q=0.8";
    for (method, path, status) in [
        ("GET", "/nowhere", 404),
        ("DELETE", &*format!("/{mode}/hello"), 405),
        ("GET", "/static/nothing.css", 404),
        ("GET", &long, 414),
        ("POST", &format!("/{mode}/hello"), 405),
    ] {
        let page = ask(method, path, browser).await;
        assert_eq!(page.status, status, "{page:?}");
        let start = format!("own page {status} {status} {path} ");
        assert!(
            page.text().starts_with(&start) && page.text().ends_with(" de"),
            "{page:?}"
        );
        assert_eq!(page.header("cache-control"), "no-store");
        assert_eq!(page.header("allow").is_empty(), status != 405, "{page:?}");
    }
    // JSON clients get a problem (RFC 9457), and a failing error view is replaced by the built-in page.
    let problem = ask("GET", "/nowhere", "application/json").await;
    assert_eq!(
        (problem.status, problem.header("content-type")),
        (404, "application/problem+json")
    );
    let mark = server.log.mark();
    let page = ask("GET", "/broken", browser).await;
    assert_eq!(page.status, 404);
    assert!(
        !page.text().contains("own page") && page.text().contains("There is no such page."),
        "{page:?}"
    );
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 404, "{lines:?}");
    assert_eq!(ask("HEAD", "/nowhere", browser).await.status, 404);
    // An error view that sets the status itself, even 500, has not failed: its page is sent.
    let failing = server.request("GET", &format!("/{mode}/fail/error"));
    let failing = failing.header("accept", browser);
    let page = Reply::of(failing.header("accept-language", "own-status")).await;
    assert_eq!(page.status, 500, "{page:?}");
    assert!(page.text().starts_with("own page 500 500 "), "{page:?}");
    assert_eq!(
        ask("GET", &format!("/{mode}/error/404"), browser)
            .await
            .status,
        200,
        "it is a view like others"
    );
    server.assert_baseline().await;
}
both_modes!(failures_have_pages_of_the_app);

async fn clients_and_users_have_limits(mode: Mode) {
    let toml = r#"
            app.middleware = ["header-auth", "rate-limit"]
            server.trusted_proxies = ["127.0.0.1"]
            [middleware.header-auth]
            required = false
            [middleware.rate-limit]
            by = "user"
            requests = 2
            per_ms = 60000
        "#;
    let server = App::new(toml).serve().await;
    let ask = |client: &str, user: &str| {
        let request = server
            .request("GET", &format!("/{mode}/hello"))
            .header("x-forwarded-for", client);
        Reply::of(if user.is_empty() {
            request
        } else {
            request.header("x-forwarded-user", user)
        })
    };
    for (client, user, status) in [
        ("203.0.113.7", "", 200),
        ("203.0.113.7", "", 200),
        ("203.0.113.7", "", 429),
        ("203.0.113.8", "", 200),
        ("203.0.113.7", "ann", 200),
        ("203.0.113.9", "ann", 200),
        ("203.0.113.8", "ann", 429),
        ("203.0.113.8", "bob", 200),
    ] {
        let reply = ask(client, user).await;
        assert_eq!(reply.status, status, "{client} {user}: {reply:?}");
        if status == 429 {
            let seconds: u64 = reply.header("retry-after").parse().expect("seconds");
            assert!((1..=30).contains(&seconds), "{seconds}");
        }
    }
    server.assert_baseline().await;
}
both_modes!(clients_and_users_have_limits);

/// Views can read the user's name, and no guest can change it.
async fn r14_the_user_is_set_by_the_host_alone(mode: Mode) {
    let toml = r#"
            app.middleware = ["basic-auth"]
            [middleware.basic-auth]
            realm = "Tests"
            users = { ann = "$2b$04$s/XlW/w9kFua1wNQSQEf5e.DiQy4Q4QtNAZEekWN5oweUfIQYkjaK" }
        "#;
    let server = serve(toml).await;
    let view = format!("/{mode}/run");
    for (user, password) in [("", ""), ("ann", "wrong"), ("bob", "secret")] {
        let mut request = server.request("POST", &view).body("[]");
        if !user.is_empty() {
            request = request.basic_auth(user, Some(password));
        }
        let refused = Reply::of(request).await;
        assert_eq!(refused.status, 401, "{user}");
        assert!(
            refused
                .header("www-authenticate")
                .starts_with("Basic realm=\"Tests\""),
            "{refused:?}"
        );
    }
    assert_eq!(
        server.get("/static/page.html").await.status,
        401,
        "files as well"
    );
    let steps = json!([get("user"), set("user", "bob"), get("user")]);
    let known = Reply::of(
        server
            .request("POST", &view)
            .basic_auth("ann", Some("secret"))
            .body(steps.to_string()),
    )
    .await;
    let told = known.told();
    assert_eq!((&told[0], &told[2]), (&json!("ann"), &json!("ann")));
    assert!(
        told[1]
            .as_str()
            .is_some_and(|told| told.contains("`user`") && told.contains("host")),
        "{told}"
    );
}
both_modes!(r14_the_user_is_set_by_the_host_alone);

/// A client that is not signed in does not learn the methods of a module's routes, neither by OPTIONS nor by 405.
async fn methods_behind_authentication_are_not_told_to_others(mode: Mode) {
    let toml = r#"
            modules.rules.middleware = ["basic-auth"]
            [middleware.basic-auth]
            users = { ann = "$2b$04$s/XlW/w9kFua1wNQSQEf5e.DiQy4Q4QtNAZEekWN5oweUfIQYkjaK" }
        "#;
    let server = serve(toml).await;
    let view = format!("/{mode}/run");
    for method in ["OPTIONS", "GET", "PUT"] {
        let refused = Reply::of(server.request(method, &view)).await;
        assert_eq!(
            (refused.status, refused.header("allow")),
            (401, ""),
            "{method}"
        );
        assert!(!refused.text().contains("POST"), "{}", refused.text());
    }
    for (method, status) in [("OPTIONS", 204), ("GET", 405)] {
        let known = server
            .request(method, &view)
            .basic_auth("ann", Some("secret"));
        let known = Reply::of(known).await;
        assert_eq!(
            (known.status, known.header("allow")),
            (status, "OPTIONS, POST"),
            "{method}"
        );
    }
}
both_modes!(methods_behind_authentication_are_not_told_to_others);

async fn r14_the_user_of_a_proxy_counts_from_that_proxy_alone(mode: Mode) {
    let toml = |from: &str| {
        format!(
            "app.middleware = [\"header-auth\"]\nmiddleware.header-auth = {{ from = [\"{from}\"] }}"
        )
    };
    let view = format!("/{mode}/run");
    let ask = |server: &Server| {
        let request = server
            .request("POST", &view)
            .header("x-forwarded-user", "ann")
            .body(json!([get("user")]).to_string());
        Reply::of(request)
    };
    let server = serve(&toml("127.0.0.1")).await;
    assert_eq!(ask(&server).await.told(), json!(["ann"]));
    assert_eq!(server.steps(&view, json!([])).await.status, 401);
    let server = serve(&toml("10.1.2.3")).await;
    assert_eq!(ask(&server).await.status, 403);
}
both_modes!(r14_the_user_of_a_proxy_counts_from_that_proxy_alone);

/// Pages of other origins may use the app where `cors` allows it. Preflights never reach a view.
async fn other_origins_are_let_in_by_name(mode: Mode) {
    let toml = r#"
            app.middleware = ["cors"]
            middleware.cors = { origins = ["https://app.example.com"], credentials = true }
        "#;
    let server = serve(toml).await;
    let view = format!("/{mode}/run");
    for (origin, allowed) in [
        ("https://app.example.com", "https://app.example.com"),
        ("https://evil.example.com", ""),
    ] {
        let mark = server.log.mark();
        let asked = server
            .request("OPTIONS", &view)
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        let asked = Reply::of(asked).await;
        assert_eq!(
            asked.header("access-control-allow-origin"),
            allowed,
            "{asked:?}"
        );
        let line = &server.log.requests(mark, 1).await[0];
        assert_eq!(
            line.text("view"),
            "",
            "a preflight reaches no view: {line:?}"
        );
        let reply = Reply::of(
            server
                .request("POST", &view)
                .header("origin", origin)
                .body("[]"),
        )
        .await;
        assert_eq!(
            (reply.status, reply.header("access-control-allow-origin")),
            (200, allowed)
        );
        assert!(
            reply.header("vary").to_ascii_lowercase().contains("origin"),
            "{reply:?}"
        );
    }
}
both_modes!(other_origins_are_let_in_by_name);

/// A request continues the trace that the client sends. A malformed `traceparent` is replaced by a new trace.
async fn r14_the_trace_goes_on(mode: Mode) {
    let server = serve("").await;
    let view = format!("/{mode}/run");
    let ask = |traceparent: &'static str| {
        let request = server
            .request("POST", &view)
            .header("traceparent", traceparent);
        Reply::of(request.body(json!([about("traceparent"), about("request-id")]).to_string()))
    };
    let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let told = ask(known).await.told();
    let parts: Vec<&str> = told[0].as_str().unwrap_or_default().split('-').collect();
    assert_eq!(
        (parts[0], parts[1], parts[3]),
        ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01"),
        "{told}"
    );
    assert_ne!(
        parts[2], "00f067aa0ba902b7",
        "each part of a trace has an id of its own"
    );
    for broken in [
        "",
        "00-0-0-0",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    ] {
        let told = ask(broken).await.told();
        let new = told[0].as_str().unwrap_or_default();
        assert!(
            new.len() == 55 && !new.contains("4bf92f3577b34da6a3ce929d0e0e4736"),
            "{broken}: {new}"
        );
    }
    // The view sends a request to its own app: the log has both requests.
    let fetched = crate::harness::steps::fetch("/nowhere");
    let mark = server.log.mark();
    let request = server.request("POST", &view).header("traceparent", known);
    Reply::of(request.body(json!([fetched]).to_string()))
        .await
        .told();
    server.log.requests(mark, 2).await;
}
both_modes!(r14_the_trace_goes_on);

/// Only a trusted proxy can give a request its id and the client's address.
async fn r14_a_request_is_called_what_a_trusted_proxy_says(mode: Mode) {
    for (trusted, id, peer) in [
        ("127.0.0.1", "from-the-proxy", "203.0.113.7:0"),
        ("10.1.2.3", "", "127.0.0.1:"),
    ] {
        let server = serve(&format!("server.trusted_proxies = [\"{trusted}\"]")).await;
        let request = server
            .request("POST", &format!("/{mode}/run"))
            .header("x-request-id", "from-the-proxy")
            .header("x-forwarded-for", "198.51.100.1, 203.0.113.7");
        let told = Reply::of(request.body(json!([about("request-id"), about("peer")]).to_string()))
            .await
            .told();
        assert_eq!(told[0] == "from-the-proxy", !id.is_empty(), "{told}");
        assert!(
            told[1].as_str().is_some_and(|told| told.starts_with(peer)),
            "{told}"
        );
    }
}
both_modes!(r14_a_request_is_called_what_a_trusted_proxy_says);

/// In production the client gets a short text, as HTML, JSON or plain text as it asks for, with the request's id.
async fn r17_failures_are_told_in_the_form_that_the_client_wants(mode: Mode) {
    let server = serve("").await;
    for (accept, content_type) in [
        ("application/json", "application/problem+json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("*/*", "text/plain"),
    ] {
        let mark = server.log.mark();
        let request = server
            .request("POST", &format!("/{mode}/run"))
            .header("accept", accept);
        let reply = Reply::of(request.body(json!([end("panic")]).to_string())).await;
        assert_eq!(reply.status, 500);
        assert!(
            reply.header("content-type").starts_with(content_type),
            "{accept}: {reply:?}"
        );
        let id = server.log.requests(mark, 1).await[0]
            .text("request")
            .to_owned();
        assert!(reply.text().contains(&id), "{accept}: {}", reply.text());
        for hidden in [
            "on purpose",
            "panicked",
            "sync_views",
            "async_views",
            "steps.rs",
        ] {
            assert!(
                !reply.text().contains(hidden),
                "{accept} tells {hidden}: {}",
                reply.text()
            );
        }
        if accept == "application/json" {
            let problem: serde_json::Value =
                serde_json::from_str(reply.text()).expect("it is JSON");
            assert_eq!(problem["status"], 500);
        }
    }
}
both_modes!(r17_failures_are_told_in_the_form_that_the_client_wants);
