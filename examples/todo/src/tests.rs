//! Native tests of the views.

use crate::store::{self, Change, NewTodo};
use crate::{api, audit, errors, files, pages, users};
use amphi_sdk::StatusCode;
use amphi_sdk::testing::{App, Multipart, TestRequest, delete, get, patch, post, run};
use serde_json::{Value, json};

/// An app with two users, Ann and Bob. Ann has twelve to-dos.
fn app() -> App {
    app_of("migrations")
}

fn app_of(migrations: &str) -> App {
    let app = App::new().migrations(migrations).execute_batch(
        "insert into users values (1, 'ann@example.com', 'x', '2026-01-01'), (2, 'bob@example.com', 'x', '2026-01-01')",
    );
    let cx = app.context();
    for n in 1..=12 {
        let new = NewTodo {
            title: format!("Task {n}"),
            note: if n == 3 {
                "50% <b>".into()
            } else {
                String::new()
            },
        };
        store::insert(&cx, 1, &new).expect("a to-do is inserted");
    }
    app
}

fn ann(request: TestRequest) -> TestRequest {
    request.session("user", &1)
}

fn bob(request: TestRequest) -> TestRequest {
    request.session("user", &2)
}

fn signed_up(email: &str, password: &str) -> TestRequest {
    post("/signup")
        .csrf()
        .form(&[("email", email), ("password", password)])
}

#[test]
fn an_account_is_made_and_used() {
    let app = app();
    let response = app.call::<users::sign_up>(signed_up(" Eve@Example.com", "correct horse"));
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let id = response.session::<i64>("user").expect("logged in");
    assert_eq!(
        app.query::<String>("select email from users where id = $1", (id,)),
        ["eve@example.com"]
    );

    let twice = app.call::<users::sign_up>(signed_up("eve@example.com", "correct horse"));
    assert_eq!(twice.status(), StatusCode::CONFLICT);
    let short = app.call::<users::sign_up>(signed_up("f@example.com", "short"));
    assert_eq!(short.status(), StatusCode::UNPROCESSABLE_ENTITY);

    let log_in = |password| {
        app.call::<users::log_in>(
            post("/login")
                .csrf()
                .form(&[("email", "eve@example.com"), ("password", password)]),
        )
    };
    assert_eq!(log_in("correct horse").session::<i64>("user"), Some(id));
    let wrong = log_in("wrong horse");
    assert_eq!(
        (wrong.status(), wrong.session::<i64>("user")),
        (StatusCode::UNPROCESSABLE_ENTITY, None)
    );

    let out = app.call::<users::log_out>(ann(post("/logout")).csrf());
    assert_eq!(out.session::<i64>("user"), None);
}

#[test]
fn who_has_no_account_waits_as_long() {
    let app = app();
    app.call::<users::sign_up>(signed_up("eve@example.com", "correct horse"));
    let hash = app
        .query::<String>(
            "select password from users where email = 'eve@example.com'",
            (),
        )
        .remove(0);
    // `$algorithm$version$memory,passes,lanes$salt$digest`: the parts before the salt decide how long verifying takes.
    let cost = |hash: &str| hash.splitn(5, '$').take(4).collect::<Vec<_>>().join("$");
    assert_eq!(cost(&hash), cost(users::NOBODY));
    assert_eq!(hash.len(), users::NOBODY.len());
    let form = [("email", "f@example.com"), ("password", "correct horse")];
    let nobody = app.call::<users::log_in>(post("/login").csrf().form(&form));
    assert_eq!(nobody.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[test]
fn without_a_session_there_is_the_log_in_page() {
    let app = app().around::<pages::list>();
    assert_eq!(
        app.call::<users::signed_in>(get("/")).header("location"),
        Some("/login")
    );
    assert_eq!(
        app.call::<pages::list>(get("/")).header("location"),
        Some("/login")
    );
    assert_eq!(
        app.call::<pages::list>(get("/").session("user", &99))
            .header("location"),
        Some("/login")
    );
}

#[test]
fn the_list_has_pages_and_a_search() {
    let app = app();
    let first = app.call::<pages::list>(ann(get("/")));
    assert!(
        first.text().contains("Task 12<") && !first.text().contains("Task 2<"),
        "{}",
        first.text()
    );
    assert!(first.text().contains("Page 1 of 2"));
    assert!(
        app.call::<pages::list>(ann(get("/?page=2")))
            .text()
            .contains("Task 2<")
    );
    assert!(
        app.call::<pages::list>(ann(get("/?q=TASK+12")))
            .text()
            .contains("1 to-do<")
    );
    assert!(
        app.call::<pages::list>(ann(get("/?q=%25")))
            .text()
            .contains("1 to-do<")
    );
    assert!(
        app.call::<pages::list>(bob(get("/")))
            .text()
            .contains("0 to-dos")
    );
}

/// `lower` of SQLite changes ASCII letters only, so Rust must not lower the text that is searched for.
#[test]
fn what_is_found_has_any_letters() {
    let app = app();
    app.call::<pages::create>(ann(post("/todos")).csrf().form(&[("title", "Übung %_!")]));
    for found in ["%C3%9CBUNG", "%C3%9Cbung+%25_!"] {
        let page = app.call::<pages::list>(ann(get(&format!("/?q={found}"))));
        assert!(page.text().contains("1 to-do<"), "{found}: {}", page.text());
    }
}

#[test]
fn to_dos_are_made_ticked_edited_and_deleted() {
    let app = app();
    let made = app.call::<pages::create>(ann(post("/todos")).csrf().form(&[("title", "Tea")]));
    assert_eq!(made.status(), StatusCode::SEE_OTHER);
    let empty = app.call::<pages::create>(ann(post("/todos")).csrf().form(&[("title", " ")]));
    assert_eq!(empty.status(), StatusCode::UNPROCESSABLE_ENTITY);
    app.call::<pages::tick>(ann(post("/todos/13/tick")).csrf());
    assert_eq!(
        app.query::<bool>("select done from todos where id = 13", ()),
        [true]
    );
    let edited = app.call::<pages::edit>(ann(post("/todos/13")).csrf().form(&[
        ("title", "Coffee"),
        ("note", "black"),
        ("done", "on"),
    ]));
    assert_eq!(edited.header("location"), Some("/todos/13"));
    let row = app
        .query::<(String, String, bool)>("select title, note, done from todos where id = 13", ());
    assert_eq!(row, [("Coffee".to_owned(), "black".to_owned(), true)]);
    app.call::<pages::delete>(ann(post("/todos/13/delete")).csrf());
    assert!(
        app.query::<i64>("select id from todos where id = 13", ())
            .is_empty()
    );

    let topics: Vec<String> = app
        .published()
        .into_iter()
        .skip(12)
        .map(|event| event.topic)
        .collect();
    assert_eq!(
        topics,
        [
            "todos.created",
            "todos.changed",
            "todos.changed",
            "todos.deleted"
        ]
    );
}

#[test]
fn what_is_somebody_elses_is_not_there() {
    let app = app();
    for response in [
        app.call::<pages::detail>(bob(get("/todos/1"))),
        app.call::<pages::tick>(bob(post("/todos/1/tick")).csrf()),
        app.call::<pages::delete>(bob(post("/todos/1/delete")).csrf()),
        app.call::<pages::edit>(
            bob(post("/todos/1"))
                .csrf()
                .form(&[("title", "Mine"), ("note", "")]),
        ),
    ] {
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }
    let form = Multipart::new().file("file", "a.txt", "text/plain", b"a");
    let upload =
        app.call::<files::upload>(bob(post("/todos/1/files")).csrf_field().multipart(form));
    assert_eq!(upload.status(), StatusCode::NOT_FOUND);
}

#[test]
fn files_are_attached_and_come_back() {
    let app = app();
    let form = || Multipart::new().file("file", "Übersicht.txt", "text/plain", b"\0\xff!");
    let response =
        app.call::<files::upload>(ann(post("/todos/12/files")).csrf_field().multipart(form()));
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let file = app.call::<files::download>(ann(get("/files/1")));
    assert_eq!(
        (file.body(), file.header("content-type")),
        (&b"\0\xff!"[..], Some("text/plain"))
    );
    assert_eq!(
        file.header("content-disposition"),
        Some("attachment; filename*=UTF-8''%C3%9Cbersicht.txt")
    );
    assert_eq!(
        app.call::<files::download>(bob(get("/files/1"))).status(),
        StatusCode::NOT_FOUND
    );
    let foreign = app.call::<files::upload>(ann(post("/todos/12/files")).multipart(form()));
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let odd = Multipart::new().file("file", "a", "te\u{e9}t", b"a");
    app.call::<files::upload>(ann(post("/todos/12/files")).csrf_field().multipart(odd));
    let odd = app.call::<files::download>(ann(get("/files/2")));
    assert_eq!(odd.header("content-type"), Some("application/octet-stream"));
    // Deleting a to-do deletes its files.
    app.call::<pages::delete>(ann(post("/todos/12/delete")).csrf());
    assert_eq!(app.query::<i64>("select count(*) from files", ()), [0]);
}

#[test]
fn the_api_wants_a_token() {
    let app = app();
    let page =
        app.call::<users::add_token>(ann(post("/tokens")).csrf().form(&[("label", "script")]));
    let token = page
        .text()
        .split("<code id=\"token\">")
        .nth(1)
        .expect("a token")
        .split('<')
        .next()
        .expect("its end")
        .to_owned();
    let with = |request: TestRequest| request.header("authorization", format!("Bearer {token}"));

    assert_eq!(
        app.call::<api::list>(get("/api/todos")).status(),
        StatusCode::UNAUTHORIZED
    );
    let wrong = get("/api/todos").header("authorization", "Bearer 00");
    assert_eq!(
        app.call::<api::list>(wrong).status(),
        StatusCode::UNAUTHORIZED
    );

    let list: Value = app.call::<api::list>(with(get("/api/todos?page=2"))).json();
    assert_eq!(
        (&list["count"], &list["todos"][1]["title"]),
        (&json!(12), &json!("Task 1"))
    );
    let made = app.call::<api::create>(with(post("/api/todos")).json(&json!({ "title": "Tea" })));
    assert_eq!(
        (made.status(), made.header("location")),
        (StatusCode::CREATED, Some("/api/todos/13"))
    );
    let bad = app.call::<api::create>(with(post("/api/todos")).json(&json!({ "title": "" })));
    assert_eq!(bad.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let done: Value = app
        .call::<api::change>(with(patch("/api/todos/13")).json(&json!({ "done": true })))
        .json();
    assert_eq!(
        (&done["done"], &done["title"]),
        (&json!(true), &json!("Tea"))
    );
    assert_eq!(
        app.call::<api::delete>(with(delete("/api/todos/13")))
            .status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        app.call::<api::detail>(with(get("/api/todos/13"))).status(),
        StatusCode::NOT_FOUND
    );

    app.call::<users::revoke_token>(ann(post("/tokens/1/revoke")).csrf());
    assert_eq!(
        app.call::<api::list>(with(get("/api/todos"))).status(),
        StatusCode::UNAUTHORIZED
    );
}

#[test]
fn what_happens_is_logged() {
    let app = app();
    app.deliver::<audit::record>(
        "todos.deleted",
        &Change {
            user_id: 1,
            todo_id: 7,
            title: "<i>".into(),
        },
    );
    let page = app.call::<audit::show>(ann(get("/audit")));
    assert!(
        page.text().contains("todos.deleted 7: &lt;i&gt;"),
        "{}",
        page.text()
    );
    assert!(
        !app.call::<audit::show>(bob(get("/audit")))
            .text()
            .contains("todos.deleted")
    );
}

#[test]
fn the_export_has_all() {
    let app = app();
    let export = app.call::<pages::export>(ann(get("/export.csv")));
    assert_eq!(
        export.header("content-type"),
        Some("text/csv; charset=utf-8")
    );
    assert_eq!(export.text().lines().count(), 13);
    assert!(
        export
            .text()
            .starts_with("id,title,note,done,created_at\n1,Task 1,,false,"),
        "{}",
        export.text()
    );
    // `store::csv`, a function under `#[both]`, does the same in both modes.
    let sync = store::csv(&app.context(), 1).expect("sync");
    let cx = app.async_context();
    let asynch = run(async { store::csv(&cx, 1).await }).expect("async");
    assert_eq!(sync, asynch);
}

#[test]
fn failures_have_pages() {
    let app = app();
    assert_eq!(
        app.call::<errors::page>(get("/error/500")).status(),
        StatusCode::NOT_FOUND
    );
    let app = app.value("error.message", "There is no such page.");
    assert!(
        app.call::<errors::page>(get("/error/404"))
            .text()
            .contains("There is nothing here")
    );
}

/// The migrations for PostgreSQL make the same tables as those for SQLite.
#[test]
fn both_kinds_of_tables_do() {
    let app = app_of("migrations-postgres");
    assert!(
        app.call::<pages::list>(ann(get("/")))
            .text()
            .contains("Page 1 of 2")
    );
    app.call::<pages::tick>(ann(post("/todos/1/tick")).csrf());
    assert_eq!(
        app.query::<bool>("select done from todos where id = 1", ()),
        [true]
    );
    app.deliver::<audit::record>(
        "todos.changed",
        &Change {
            user_id: 1,
            todo_id: 1,
            title: "x".into(),
        },
    );
    assert!(
        app.call::<audit::show>(ann(get("/audit")))
            .text()
            .contains("todos.changed 1: x")
    );
}

/// The API sends `www-authenticate` when the token is missing. Errors are JSON, also without an `accept` header.
#[test]
fn the_api_fails_in_json() {
    let app = app().around::<api::list>();
    let response = app.call::<api::challenge>(get("/api/todos"));
    assert_eq!(
        (response.status(), response.header("www-authenticate")),
        (StatusCode::UNAUTHORIZED, Some("Bearer"))
    );
    let app = app
        .value("error.path", "/api/nope")
        .value("error.message", "There is no such page.");
    let problem: Value = app.call::<errors::page>(get("/error/404")).json();
    assert_eq!(
        problem,
        json!({ "status": 404, "detail": "There is no such page." })
    );
}
