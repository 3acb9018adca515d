//! The example `todo`: all that its pages and its API offer, on both kinds of databases.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::browser::Browser;
use crate::harness::{App, Kind, Reply, Server, eventually};

/// The content of an uploaded file: bytes that are not text.
const FILE: &[u8] = b"\0\xff\r\n--\r\n\x1a";

async fn the_to_dos_do_what_their_pages_offer(kind: Kind) {
    let app = App::todo(kind).await;
    let built = app.run("build");
    assert!(built.success, "{}", built.stderr);
    let server = app.serve().await;

    let mut ann = signed_up(&server, "ann").await;
    let mut bob = signed_up(&server, "bob").await;
    passwords(&server).await;
    list(&mut ann).await;
    somebody_elses(&mut bob).await;
    files(&mut ann, &mut bob).await;
    export(&mut ann, &mut bob).await;
    api(&server, &mut ann).await;
    log(&mut ann, &mut bob).await;
    failures(&server, &mut ann).await;

    let out = ann.post("/logout", "").await;
    assert_eq!(led_to(&out), "/login");
    assert_eq!(led_to(&ann.get("/").await), "/login");
    assert_eq!(
        bob.get("/").await.status,
        StatusCode::OK,
        "he is still there"
    );
    server.assert_baseline().await;
}
both_databases!(the_to_dos_do_what_their_pages_offer);

/// The `location` of the redirect after a form.
#[track_caller]
fn led_to(reply: &Reply) -> &str {
    assert_eq!(reply.status, StatusCode::SEE_OTHER, "{reply:?}");
    reply.header("location")
}

#[track_caller]
fn assert_shows(page: &Reply, texts: &[&str]) {
    for text in texts {
        assert!(page.ok().contains(text), "{text}: {}", page.text());
    }
}

async fn signed_up<'a>(server: &'a Server, name: &str) -> Browser<'a> {
    let mut browser = Browser::at(server, "/signup").await;
    let fields = format!("email={name}%40example.com&password=correct+horse");
    assert_eq!(led_to(&browser.post("/signup", &fields).await), "/");
    let page = browser.get("/").await;
    assert_shows(&page, &[&format!("{name}@example.com"), "0 to-dos"]);
    browser
}

async fn passwords(server: &Server) {
    assert_eq!(led_to(&server.get("/").await), "/login");
    let mut browser = Browser::at(server, "/login").await;
    let log_in =
        |name: &str, password: &str| format!("email={name}%40example.com&password={password}");
    for (name, password) in [("ann", "wrong+horse"), ("eve", "correct+horse")] {
        let refused = browser.post("/login", &log_in(name, password)).await;
        let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
        assert!(page.contains("Address or password is wrong."), "{page}");
        assert_eq!(led_to(&browser.get("/").await), "/login");
    }
    browser.get("/login").await.ok();
    let right = browser
        .post("/login", &log_in("ANN", "correct+horse"))
        .await;
    assert_eq!(led_to(&right), "/");
    assert_shows(&browser.get("/").await, &["ann@example.com"]);

    let mut twice = Browser::at(server, "/signup").await;
    let twice = twice.post("/signup", &log_in("ann", "another+horse")).await;
    twice.expect(StatusCode::CONFLICT);
}

async fn list(ann: &mut Browser<'_>) {
    for n in 1..=12 {
        let created = ann.post("/todos", &format!("title=Task+{n}+%3Cb%3E")).await;
        assert_eq!(led_to(&created), "/");
    }
    let refused = ann.post("/todos", "title=+").await;
    let page = refused.expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert!(page.contains("Please say what there is to do."), "{page}");

    let first = ann.get("/").await;
    assert_shows(&first, &["12 to-dos", "Page 1 of 2", "Task 12 &lt;b&gt;<"]);
    assert!(!first.text().contains("Task 2 "), "{}", first.text());
    let second = ann.get("/?page=2").await;
    assert_shows(&second, &["Page 2 of 2", "Task 2 &lt;b&gt;<"]);
    let found = ann.get("/?q=TASK+12").await;
    assert_shows(&found, &["1 to-do<", "Task 12 "]);
    assert_shows(&ann.get("/?q=%25").await, &["0 to-dos"]);

    assert_eq!(led_to(&ann.post("/todos/1/tick", "").await), "/");
    assert_shows(
        &ann.get("/todos/1").await,
        &["Task 1 &lt;b&gt;", " checked>"],
    );
    let edit = "title=%C3%9Cbung&note=in+the+%22hall%22%0D%0Aat+5";
    assert_eq!(led_to(&ann.post("/todos/1", edit).await), "/todos/1");
    let edited = ann.get("/todos/1").await;
    assert_shows(&edited, &["<h1>Übung</h1>", "at 5</textarea>"]);
    assert!(!edited.text().contains(" checked>"), "{}", edited.text());
    assert_shows(&ann.get("/?q=%C3%9Cbung").await, &["1 to-do<", "Übung"]);
    assert_eq!(led_to(&ann.post("/todos/2/delete", "").await), "/");
    assert_shows(&ann.get("/").await, &["11 to-dos"]);
}

async fn somebody_elses(bob: &mut Browser<'_>) {
    bob.get("/todos/1").await.expect(StatusCode::NOT_FOUND);
    for (path, fields) in [
        ("/todos/1", "title=Mine&note="),
        ("/todos/1/tick", ""),
        ("/todos/1/delete", ""),
    ] {
        let refused = bob.post(path, fields).await;
        let page = refused.expect(StatusCode::NOT_FOUND);
        assert!(page.contains("somebody else's"), "{path}: {page}");
    }
}

async fn upload(browser: &mut Browser<'_>, token: &str) -> Reply {
    let mut body = format!(
        "--B\r\ncontent-disposition: form-data; name=\"csrf_token\"\r\n\r\n{token}\r\n\
         --B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"Übung 1.bin\"\r\n\
         content-type: application/x-tea\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(FILE);
    body.extend_from_slice(b"\r\n--B--\r\n");
    let form = browser.request("POST", "/todos/1/files");
    let form = form.header("content-type", "multipart/form-data; boundary=B");
    browser.send(form.body(body)).await
}

async fn files(ann: &mut Browser<'_>, bob: &mut Browser<'_>) {
    let foreign = upload(ann, "").await;
    foreign.expect(StatusCode::FORBIDDEN);
    assert!(!ann.get("/todos/1").await.ok().contains("/files/1"));
    let token = bob.token.clone();
    upload(bob, &token).await.expect(StatusCode::NOT_FOUND);

    let token = ann.token.clone();
    assert_eq!(led_to(&upload(ann, &token).await), "/todos/1");
    let shown = format!("Übung 1.bin</a> ({} bytes)", FILE.len());
    assert_shows(&ann.get("/todos/1").await, &[&shown]);
    let file = ann.get("/files/1").await;
    assert_eq!((file.status, file.body.as_slice()), (200, FILE));
    assert_eq!(file.header("content-type"), "application/x-tea");
    assert_eq!(
        file.header("content-disposition"),
        "attachment; filename*=UTF-8''%C3%9Cbung%201.bin"
    );
    bob.get("/files/1").await.expect(StatusCode::NOT_FOUND);
}

async fn export(ann: &mut Browser<'_>, bob: &mut Browser<'_>) {
    let export = ann.get("/export.csv").await;
    assert_eq!(export.header("content-type"), "text/csv; charset=utf-8");
    assert_eq!(
        export.header("content-disposition"),
        "attachment; filename=\"todos.csv\""
    );
    let text = export.ok();
    let first = "id,title,note,done,created_at\n1,Übung,\"in the \"\"hall\"\"\nat 5\",false,20";
    assert!(text.starts_with(first), "{text}");
    assert!(text.contains("\n3,Task 3 <b>,,false,20"), "{text}");
    // A heading and eleven to-dos, one of which has a note of two lines.
    assert_eq!(text.lines().count(), 13);
    assert_eq!(bob.get("/export.csv").await.ok().lines().count(), 1);
}

#[track_caller]
fn json_of(reply: &Reply, status: StatusCode) -> Value {
    serde_json::from_str(reply.expect(status)).expect("it is JSON")
}

async fn api(server: &Server, ann: &mut Browser<'_>) {
    let ask = async |line: &str, authorization: &str, body: Value| {
        let (method, path) = line.split_once(' ').expect("it has both");
        let request = server.request(method, path);
        let request = request.header("authorization", authorization);
        let request = match body {
            Value::Null => request,
            body => request
                .header("content-type", "application/json")
                .body(body.to_string()),
        };
        Reply::of(request).await
    };
    for refused in [
        server.get("/api/todos").await,
        ask("GET /api/todos", "Bearer 00", Value::Null).await,
        ask("POST /api/todos", "Basic 00", json!({ "title": "Tea" })).await,
    ] {
        assert_eq!(json_of(&refused, StatusCode::UNAUTHORIZED)["status"], 401);
        assert_eq!(refused.header("www-authenticate"), "Bearer");
        assert_eq!(refused.header("content-type"), "application/problem+json");
    }

    ann.get("/account").await.ok();
    let account = ann.post("/tokens", "label=script").await;
    assert_eq!(account.header("cache-control"), "no-store");
    let (_, token) = (account.ok().split_once("<code id=\"token\">")).expect("it is shown");
    let (token, _) = token.split_once('<').expect("it ends");
    let bearer = format!("Bearer {token}");

    let made = ask("POST /api/todos", &bearer, json!({ "title": "Tea" })).await;
    let todo = json_of(&made, StatusCode::CREATED);
    assert_eq!((&todo["id"], &todo["done"]), (&json!(13), &json!(false)));
    assert_eq!(made.header("location"), "/api/todos/13");
    let listed = ask("GET /api/todos?q=tea", &bearer, Value::Null).await;
    assert_eq!(
        json_of(&listed, StatusCode::OK),
        json!({ "count": 1, "page": 1, "todos": [todo] })
    );
    let empty = ask("POST /api/todos", &bearer, json!({ "title": "" })).await;
    empty.expect(StatusCode::UNPROCESSABLE_ENTITY);
    let second = ask("GET /api/todos?page=2", &bearer, Value::Null).await;
    assert_eq!(
        json_of(&second, StatusCode::OK)["todos"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    let changed = ask("PATCH /api/todos/13", &bearer, json!({ "done": true })).await;
    let changed = json_of(&changed, StatusCode::OK);
    assert_eq!(
        (&changed["title"], &changed["done"]),
        (&json!("Tea"), &json!(true))
    );
    let deleted = ask("DELETE /api/todos/13", &bearer, Value::Null).await;
    deleted.expect(StatusCode::NO_CONTENT);
    let gone = ask("GET /api/todos/13", &bearer, Value::Null).await;
    gone.expect(StatusCode::NOT_FOUND);
    assert_eq!(gone.header("content-type"), "application/problem+json");

    assert_eq!(led_to(&ann.post("/tokens/1/revoke", "").await), "/account");
    let revoked = ask("GET /api/todos", &bearer, Value::Null).await;
    revoked.expect(StatusCode::UNAUTHORIZED);
}

async fn log(ann: &mut Browser<'_>, bob: &mut Browser<'_>) {
    eventually("the log to have all that was done", async || {
        let page = ann.get("/audit").await;
        let lines = [
            "todos.created 1: Task 1 &lt;b&gt;",
            "todos.created 12: Task 12 &lt;b&gt;",
            "todos.changed 1: Übung",
            "todos.deleted 2: Task 2 &lt;b&gt;",
            "todos.attached 1: Übung",
            "todos.created 13: Tea",
            "todos.changed 13: Tea",
            "todos.deleted 13: Tea",
        ];
        let all = lines.iter().all(|line| page.ok().contains(line));
        // Refused actions are not in the log.
        let count = page.text().matches("todos.").count();
        if all && count == 19 {
            Ok(())
        } else {
            Err(page.text().to_owned())
        }
    })
    .await;
    assert!(!bob.get("/audit").await.ok().contains("todos."));
}

async fn failures(server: &Server, ann: &mut Browser<'_>) {
    let page = ann.get("/nope").await;
    assert!(
        page.expect(StatusCode::NOT_FOUND)
            .contains("There is nothing here."),
        "{}",
        page.text()
    );
    assert!(
        page.header("content-type").starts_with("text/html"),
        "{page:?}"
    );
    let page = server.get("/error/500").await;
    page.expect(StatusCode::NOT_FOUND);
    let problem = server.get("/api/nope").await;
    problem.expect(StatusCode::NOT_FOUND);
    assert_eq!(problem.header("content-type"), "application/problem+json");
}
