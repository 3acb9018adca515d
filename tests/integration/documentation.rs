//! Runs the examples of the README, of the SDK's pages and of the SDK's documentation on the real server.
//! `tests/guests/docs/build.rs` takes the examples from there, unchanged.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use reqwest::StatusCode;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::browser::{self, FORM};
use crate::harness::{App, Reply, Server, eventually, guests};

const TABLES: &str = "
    create table entries (id integer primary key, name text not null default 'Bob', message text, email text);
    insert into entries values (7, 'Ann', 'Hi', null);
    create table names (name text unique);
    create table orders (id integer primary key, paid integer);
    insert into orders values (7, 0);
    create table tickets (id text, at text);
    create table shipments (order_id integer);
    create table news (id integer);
    create table users (name text, staff integer);
    insert into users values ('ann', 1);
    create table photos (title text, bytes blob);
    create table messages (room text, line text, text text);
    create table games (tries integer);
    create table catches (player text, height real);
";

fn app() -> App {
    let grants = r#"databases = ["default"], http = ["self"], subrequests = true, publish = ["*"], subscribe = ["*"], channels = ["*"],
        directories = [{ host = "notes", guest = "/notes" }], settings = { greeting = "Hello" },
        secrets = { session_key = { file = "session.key", generate = true } }"#
        .replace('\n', " ");
    let guest = guests::folder().join("docs").display().to_string();
    let app = App::new(&format!(
        r#"
        [databases.default]
        migrations = "migrations"
        [modules]
        docs = {{ path = "{guest}", mount = "/", {grants} }}
        around = {{ path = "{guest}", mount = "/around", middleware = ["around::middleware_1::signed_in", "around::middleware_1::timed"], {grants} }}
        known = {{ path = "{guest}", mount = "/known", middleware = ["known::lib_2::signed_in"], {grants} }}
        "#
    ));
    app.write("migrations/V1__tables.sql", TABLES);
    app.write("notes/tea", "green");
    app
}

/// A browser with a session and a CSRF token, which remembers the routes that it has requested.
struct Browser<'a> {
    server: &'a Server,
    cookie: String,
    token: String,
    seen: BTreeSet<String>,
}

const JSON: &str = "application/json";
const FILES: &str = "multipart/form-data; boundary=B";

impl Browser<'_> {
    async fn ask(
        &mut self,
        line: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> Reply {
        let (method, path) = line.split_once(' ').expect("it has both");
        let request = self.server.request(method, path);
        let reply = Reply::of(
            request
                .header("content-type", content_type)
                .header("cookie", &self.cookie)
                .header("x-csrf-token", &self.token)
                .header("sec-fetch-site", "same-origin")
                .header("x-user", "ann")
                .body(body),
        )
        .await;
        self.seen
            .insert(line.split('?').next().unwrap_or(line).to_owned());
        reply
    }

    /// Sends GET, and checks for 200 with this text in the body.
    async fn gets(&mut self, path: &str, text: &str) {
        let reply = self.ask(&format!("GET {path}"), FORM, "").await;
        assert!(reply.ok().contains(text), "{path}: {}", reply.text());
    }

    /// Opens a web socket, sends a message and gets this one; without a message, `answer` is the subprotocol.
    async fn opens(&mut self, path: &str, message: &str, answer: &str) {
        let url = format!("ws://{}{path}", self.server.address);
        let mut request = url.into_client_request().expect("it is a URL");
        let cookie = self.cookie.parse().expect("it is a header");
        request.headers_mut().insert("cookie", cookie);
        if message.is_empty() {
            let offered = format!("feed.v0, {answer}")
                .parse()
                .expect("it is a header");
            request
                .headers_mut()
                .insert("sec-websocket-protocol", offered);
        }
        let opened = tokio_tungstenite::connect_async(request).await;
        let (mut socket, response) = opened.unwrap_or_else(|error| panic!("{path}: {error}"));
        let path = path.split('?').next().unwrap_or(path);
        self.seen.insert(format!("SOCKET {path}"));
        if !message.is_empty() {
            socket.send(message.into()).await.expect("it is open");
            let got = socket
                .next()
                .await
                .expect("it is open")
                .expect("it is a message");
            assert_eq!(got.to_text().expect("it is a text"), answer, "{path}");
        } else {
            assert_eq!(
                response.headers()["sec-websocket-protocol"],
                answer,
                "{path}"
            );
        }
    }

    async fn posts(
        &mut self,
        path: &str,
        (content_type, body): (&str, &str),
        status: u16,
        text: &str,
    ) {
        let reply = self
            .ask(&format!("POST {path}"), content_type, body.to_owned())
            .await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        assert!(reply.text().contains(text), "{path}: {}", reply.text());
    }
}

fn part(head: &str, content: &str) -> String {
    format!("--B\r\ncontent-disposition: form-data; {head}\r\n\r\n{content}\r\n")
}

#[tokio::test]
async fn every_example_does_on_the_host_what_it_says() {
    let app = app();
    let routes = app.run("routes");
    assert!(routes.success, "{routes:?}");
    let server = app.serve().await;
    let form = browser::Browser::at(&server, "/form_3/photos/new").await;
    let mut browser = Browser {
        token: form.token,
        cookie: form.cookie,
        server: &server,
        seen: BTreeSet::new(),
    };

    browser
        .gets("/readme_1/entries/7", r#"{"id":7,"message":"Hi"}"#)
        .await;
    browser
        .posts("/readme_1/entries", (FORM, "message=Tea"), 303, "")
        .await;
    browser.gets("/readme_1/dashboard", "10 replies").await;
    browser.gets("/readme_1/entries.csv", "7,Hi").await;
    browser.gets("/guide_2/entries.csv", "7,Ann").await;
    browser
        .posts("/guide_2/uploads", (FORM, "four"), 200, "4 bytes")
        .await;
    let mut clock = server.request("GET", "/guide_2/clock").send().await;
    let second = clock.as_mut().expect("it begins").chunk().await;
    let second = second.expect("it goes on").expect("it has a first second");
    assert_eq!(second, "data: 0\n\n");
    browser.seen.insert("GET /guide_2/clock".to_owned());
    browser.opens("/readme_2/chat/7", "Hi", "Hi").await;
    browser
        .opens("/socket_1/chat/7?name=Ann", "Hi", "Ann: Hi")
        .await;
    browser.opens("/socket_2/feed", "", "feed.v1").await;
    browser.opens("/socket_3/echo", "Hi", "Hi").await;
    browser.opens("/socket_4/guess/7", "7", "guess!").await;
    browser.opens("/socket_5/count", "2", "2").await;
    browser
        .opens("/guide_4/game/ann", "catch", "catch it!")
        .await;
    for path in ["/guide_3/chat/7/events", "/subscription_1/rooms/7/events"] {
        let events = server.request("GET", path).send().await;
        let first = events.expect("it begins").chunk().await;
        let first = first.expect("it goes on").expect("it has a beginning");
        assert!(first.starts_with(b"retry: "), "{first:?}");
        browser.seen.insert(format!("GET {path}"));
    }
    let greeted = browser
        .ask("POST /guide_3/chat/7/greetings", FORM, "")
        .await;
    greeted.expect(StatusCode::NO_CONTENT);
    let poll = browser.ask("GET /subscription_2/rooms/7/messages", FORM, "");
    assert!(
        tokio::time::timeout(Duration::from_millis(300), poll)
            .await
            .is_err()
    );
    browser
        .seen
        .insert("GET /subscription_2/rooms/7/messages".to_owned());
    browser
        .posts(
            "/channels_1/rooms/7/messages",
            (FORM, "Hi"),
            200,
            "0 are here",
        )
        .await;
    browser.gets("/guide_5/copy", "a long text").await;
    let archived = browser.ask("PUT /guide_5/archive/a", FORM, "text").await;
    archived.expect(StatusCode::ACCEPTED);
    browser.gets("/stream_1/entries.csv", "7,Ann").await;
    browser.gets("/stream_1/ticks/1", "tick 1").await;
    browser
        .posts("/body_1/uploads", (FORM, "a\0b"), 200, "1 zeros")
        .await;
    browser
        .posts(
            "/body_1/uploads/slowly",
            (FORM, &"\0".repeat(300_000)),
            200,
            "300000 zeros",
        )
        .await;
    browser
        .posts("/from_django_1/orders/7/pay", (FORM, ""), 303, "")
        .await;
    browser
        .gets("/from_spin_and_axum_1/entries/7", r#""message":"Hi""#)
        .await;
    browser
        .gets("/from_spin_and_axum_1/entries/7/length", "2")
        .await;
    browser.gets("/context_1/hello", "Hello 127.0.0.1").await;
    browser
        .gets("/context_1/hello/slowly", "Hello 127.0.0.1")
        .await;
    browser.gets("/context_2/notes/tea", "green").await;
    browser.gets("/csrf_1/notes/new", "csrf_token").await;
    browser
        .posts("/csrf_1/notes", (FORM, "text=Tea"), 200, "Tea")
        .await;
    browser
        .posts("/database_2/names/ann", (FORM, ""), 200, "it is yours")
        .await;
    browser
        .posts("/database_2/names/ann", (FORM, ""), 200, "has it")
        .await;
    let ticket = "/database_3/tickets/0191a0f2-7c3e-7f00-8000-0123456789ab";
    browser.posts(ticket, (FORM, ""), 200, "1970").await;
    browser
        .gets("/database_1/entries/7", r#""name":"Ann""#)
        .await;
    browser.gets("/form_1/entries?page=2", "page 2").await;
    browser
        .posts("/form_2/entries", (FORM, "name=Ann&message=Hi"), 303, "")
        .await;
    browser.gets("/form_3/photos/new", "multipart").await;
    let png =
        part("name=title", "Sea") + &part("name=photo; filename=a.png", "\u{89}PNG") + "--B--";
    browser
        .posts("/form_3/photos", (FILES, &png), 422, "is no PNG")
        .await;
    browser
        .posts(
            "/json_1/mirror",
            (JSON, r#"{"x":1,"y":2}"#),
            200,
            r#"{"x":-1,"y":2}"#,
        )
        .await;
    browser.gets("/path_1/entries/7", "entry 7").await;
    browser.gets("/path_1/2001/a%20b", "a b of 2001").await;
    browser.gets("/extract_1/hello", "Hello").await;
    browser.gets("/extract_2/visits", "0 before").await;
    browser
        .gets("/lib_1/entries/7", r#"{"id":7,"name":"Ann"}"#)
        .await;
    browser.gets("/lib_1/dashboard", "10 replies").await;
    browser
        .posts("/lib_2/orders/7/pay", (FORM, ""), 303, "")
        .await;
    browser
        .posts("/event_1/orders/7/paid", (FORM, ""), 204, "")
        .await;
    let large =
        part("name=note", "Hi") + &part("name=photo; filename=a", &"-".repeat(300_000)) + "--B--";
    browser
        .posts(
            "/multipart_1/measure",
            (FILES, &large),
            200,
            "photo Some(\"a\") 300000",
        )
        .await;
    browser
        .posts("/multipart_1/measure/slowly", (FILES, &large), 200, "Hi")
        .await;
    browser.gets("/session_1/visits", "0 before").await;
    browser.posts("/session_1/leave", (FORM, ""), 303, "").await;
    browser.gets("/subrequest_1", "cartnews").await;
    browser.gets("/view_1", "Hello").await;
    browser.gets("/view_1/entries", "none").await;
    let closed = browser.ask("GET /response_1/door/false", FORM, "").await;
    closed.expect(StatusCode::FORBIDDEN);
    browser.ask("GET /database_1/export", FORM, "").await.ok();
    browser.ask("GET /http_1/both", FORM, "").await;
    browser.gets("/bodies_1/count", "11 bytes").await;
    browser.gets("/bodies_1/mirror", "a long text").await;
    browser.posts("/bodies_2/export", (FORM, ""), 202, "").await;
    browser
        .posts("/bodies_2/pass", (FORM, "some text"), 202, "")
        .await;
    assert_eq!(
        server.get("/around/member").await.status,
        StatusCode::UNAUTHORIZED
    );
    browser.gets("/around/member", "ann").await;
    let unknown = browser.ask("GET /known/member", FORM, "").await;
    assert_eq!(unknown.header("location"), "/sign-in");
    let signed_in = browser.ask("GET /sign-in", FORM, "").await;
    browser.cookie = signed_in
        .header("set-cookie")
        .split(';')
        .next()
        .expect("a session")
        .to_owned();
    browser.gets("/known/member", "ann").await;
    browser.opens("/guide_3/chat/7", "Hi", "ann: Hi").await;
    browser.gets("/guide_1/me", "ann").await;
    let purged = browser.ask("PURGE /guide_1/admin/a", FORM, "").await;
    assert_eq!(purged.ok(), "a");
    let nobody = server.get("/guide_1/admin/a").await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    browser.gets("/guide_1/welcome", "Hello, ann!").await;
    assert_eq!(server.get("/guide_1/welcome").await.ok(), "Hello, you!");
    browser.gets("/guide_1/members", "the members' page").await;
    let nobody = server.get("/guide_1/members").await;
    assert_eq!(
        (nobody.status, nobody.header("location")),
        (303, "/sign-in")
    );
    browser.seen.insert("* /guide_1/admin/a".to_owned());
    // The subscribers of the three modules have each received both events.
    eventually("shipments", async || {
        let count = server
            .app
            .data
            .count("select count(*) from shipments")
            .await;
        if count == 6 { Ok(()) } else { Err(count) }
    })
    .await;

    for row in routes.stdout.lines().skip(1) {
        let row: Vec<&str> = row.split_whitespace().collect();
        let [method, pattern, "docs", view, ..] = row[..] else {
            continue;
        };
        let of_example = view.contains("::") && !matches!(method, "-" | "EVENT");
        let matches = |line: &String| {
            let path = line
                .strip_prefix(method)
                .map(str::trim_start)
                .unwrap_or_default();
            let mut segments = path.split('/').zip(pattern.split('/'));
            path.split('/').count() == pattern.split('/').count()
                && segments.all(|(segment, wanted)| wanted.starts_with('{') || segment == wanted)
        };
        assert!(
            !of_example || browser.seen.iter().any(matches),
            "the example {view} ({method} {pattern}) is not tried here: add a line"
        );
    }
}
