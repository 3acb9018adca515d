//! The example guestbook, and the app that `amphi new` makes. The examples `todo`, `polls` and `chat` have files of their own.

use std::path::Path;
use std::process::Command;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::app::{chat, guestbook, polls, todo};
use crate::harness::browser::FORM;
use crate::harness::{App, Browser, Reply, Server, guests};

/// Runs an app's own tests, in the guestbook's target folder, where the dependencies are compiled already.
#[track_caller]
fn assert_own_tests_pass(folder: &Path) {
    let cargo = Command::new("cargo")
        .args(["test", "--workspace", "--target-dir"])
        .arg(guestbook().join("target"))
        .current_dir(folder)
        .output()
        .expect("cargo can be started");
    let (said, errors) = (
        String::from_utf8_lossy(&cargo.stdout),
        String::from_utf8_lossy(&cargo.stderr),
    );
    assert!(cargo.status.success(), "{said}\n{errors}");
    assert!(said.contains("... ok"), "no test ran: {said}");
}

/// Opens the first page, and sends its form with its CSRF token.
async fn post_form(server: &Server, body: &str) -> Reply {
    Browser::at(server, "/").await.post("/entries", body).await
}

async fn post_form_from(server: &Server, body: &str, headers: &[(&str, &str)]) -> Reply {
    let mut browser = Browser::at(server, "/").await;
    let form = browser
        .request("POST", "/entries")
        .header("content-type", FORM)
        .body(format!("csrf_token={}&{body}", browser.token));
    let form = (headers.iter()).fold(form, |form, (name, value)| form.header(*name, *value));
    browser.send(form).await
}

#[tokio::test]
async fn the_guestbook_does_what_its_pages_offer() {
    let app = App::guestbook(
        r#"
        app.allowed_origins = ["https://partner.example"]
        server.trusted_proxies = ["127.0.0.1"]
        "#,
    );
    let built = app.run("build");
    assert!(built.success, "{}", built.stderr);
    let server = app.serve().await;

    let sent = post_form(&server, "name=Zo%C3%AB+%3Cb%3E&message=Hello+%26+welcome").await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER);
    let list = server.get("/").await;
    assert!(
        list.ok().contains("Zoë &lt;b&gt;") && list.ok().contains("Hello &amp; welcome"),
        "{}",
        list.text()
    );
    let elsewhere = server.request("POST", "/entries");
    let elsewhere = elsewhere
        .header("content-type", FORM)
        .body("name=Eve&message=From+another+site");
    Reply::of(elsewhere).await.expect(StatusCode::FORBIDDEN);
    // Behind a proxy, the browser's `origin` and the host of the request differ.
    let origin = ("origin", "http://shop.example");
    for (headers, status) in [
        (&[origin][..], StatusCode::FORBIDDEN),
        (
            &[origin, ("x-forwarded-host", "shop.example")],
            StatusCode::SEE_OTHER,
        ),
        (
            &[origin, ("x-forwarded-host", "other.example")],
            StatusCode::FORBIDDEN,
        ),
        (
            &[
                ("origin", "https://partner.example"),
                ("sec-fetch-site", "cross-site"),
            ],
            StatusCode::SEE_OTHER,
        ),
    ] {
        let mark = server.log.mark();
        let sent = post_form_from(&server, "name=Pat&message=By+way+of+a+proxy", headers).await;
        assert_eq!(sent.status, status, "{headers:?}: {sent:?}");
        if status == StatusCode::FORBIDDEN {
            let lines = server.log.requests(mark, 2).await;
            let why = lines[1].text("why");
            assert!(
                why.contains("`x-forwarded-host`") && why.contains("`allowed_origins`"),
                "{why}"
            );
        }
    }
    let refused = post_form(&server, "name=&message=Kept").await;
    assert!(
        refused
            .expect(StatusCode::UNPROCESSABLE_ENTITY)
            .contains("Kept"),
        "what was typed is kept"
    );

    let create = server
        .request("POST", "/api/entries")
        .header("content-type", "application/json");
    let created =
        Reply::of(create.body(json!({ "name": "Ann", "message": "Hi" }).to_string())).await;
    let entry: Value =
        serde_json::from_str(created.expect(StatusCode::CREATED)).expect("it is JSON");
    let location = format!("/entries/{}", entry["id"]);
    assert_eq!(created.header("location"), location);
    assert!(server.get(&location).await.ok().contains("Ann"));
    let all: Value =
        serde_json::from_str(server.get("/api/entries").await.ok()).expect("it is JSON");
    assert_eq!(all["entries"][0]["name"], "Ann");

    let dashboard = server.get("/dashboard").await;
    assert!(
        dashboard.ok().matches("°C").count() >= 10,
        "{}",
        dashboard.text()
    );
    assert!(
        server
            .get("/static/style.css")
            .await
            .ok()
            .contains("prefers-color-scheme")
    );
    server.assert_baseline().await;
}

#[test]
fn the_guestbook_passes_its_own_tests() {
    assert_own_tests_pass(&guestbook());
}

#[test]
fn the_to_dos_pass_their_own_tests() {
    assert_own_tests_pass(&todo());
}

#[test]
fn the_polls_pass_their_own_tests() {
    assert_own_tests_pass(&polls());
}

#[test]
fn the_chat_passes_its_own_tests() {
    assert_own_tests_pass(&chat());
}

#[test]
fn what_new_makes_passes_its_own_tests() {
    let folder = tempfile::tempdir().expect("there is room");
    let made = Command::new(guests::AMPHI)
        .args(["new", "demo"])
        .current_dir(&folder)
        .status();
    assert!(made.expect("it can be started").success());
    let demo = folder.path().join("demo");
    // The guestbook's lock file, so that the same versions are used and little has to be compiled.
    std::fs::copy(guestbook().join("Cargo.lock"), demo.join("Cargo.lock"))
        .expect("it can be copied");
    assert_own_tests_pass(&demo);
}
