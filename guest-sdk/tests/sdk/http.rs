//! Outbound requests, and what else a view gets from its `Context`.

use amphi_sdk::http::ErrorKind;
use amphi_sdk::log::Level;
use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, Reply, failure, get, reply};

#[test]
fn requests_are_sent_as_written_and_answers_read() {
    let app = App::new()
        .on(
            "POST",
            "https://api.example.com/things",
            Reply::json(&[1, 2]).status(StatusCode::CREATED),
        )
        .on_get("/text", reply("plain"));
    let cx = app.context();
    let request = cx
        .http()
        .post("https://api.example.com/things")
        .header("X-Key", "k")
        .json(&("a", 1));
    let response = request.send().expect("it is answered");
    assert_eq!(
        (
            response.status,
            response.json::<Vec<i32>>().expect("numbers")
        ),
        (StatusCode::CREATED, vec![1, 2])
    );
    assert_eq!(
        cx.http()
            .get("/text")
            .send()
            .and_then(|reply| reply.text())
            .expect("a text"),
        "plain"
    );
    let sent = &app.sent()[0];
    assert_eq!(
        (sent.method.as_str(), sent.body.as_slice()),
        ("POST", &br#"["a",1]"#[..])
    );
    assert_eq!(
        (sent.headers.get("x-key"), sent.headers.get("content-type")),
        (Some("k"), Some("application/json"))
    );
}

#[test]
fn failures_have_a_kind_and_a_status() {
    let app = App::new()
        .on_get("/late", failure(ErrorKind::Timeout))
        .on_get("/broken", reply("no").status(StatusCode::NOT_FOUND));
    let cx = app.context();
    let error = cx.http().get("/late").send().expect_err("it is late");
    assert_eq!(
        (error.http_kind(), error.status()),
        (Some(ErrorKind::Timeout), StatusCode::GATEWAY_TIMEOUT)
    );
    assert!(
        error
            .detail()
            .is_some_and(|text| text.contains("GET /late")),
        "{error}"
    );
    let error = cx
        .http()
        .get("/unknown")
        .send()
        .expect_err("nobody answers");
    assert_eq!(
        (error.http_kind(), error.status()),
        (Some(ErrorKind::Denied), StatusCode::INTERNAL_SERVER_ERROR)
    );
    let error = cx
        .http()
        .get("/broken")
        .send()
        .and_then(|reply| reply.error_for_status())
        .expect_err("it is a 404");
    assert_eq!(error.status(), StatusCode::BAD_GATEWAY);
    assert!(
        error.detail().is_some_and(|text| text.contains("404")),
        "{error}"
    );
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct User {
    name: String,
}

#[view(get, "/about/{id}", timeout_ms = 2000)]
async fn about(cx: &Context) -> Result<String> {
    let (user, missing): (Option<User>, Option<User>) =
        (cx.get_json("user")?, cx.get_json("nobody")?);
    cx.set("seen", "yes")?;
    log::warn!("about", user = format!("{user:?}"));
    assert_eq!((missing, cx.get("seen").as_deref()), (None, Some("yes")));
    assert!(cx.remaining() <= Duration::from_secs(2));
    Ok(format!(
        "{} {} {}",
        cx.route(),
        cx.config("title").unwrap_or_default(),
        cx.config("other").is_none()
    ))
}

#[test]
fn a_context_knows_its_request() {
    let app = App::new()
        .setting("title", "T")
        .value_json("user", &User { name: "Ann".into() });
    assert_eq!(
        app.call::<about>(get("/about/1")).text(),
        "/about/{id} T true"
    );
    let logs = app.logs();
    assert_eq!(
        (logs[0].level, logs[0].message.as_str()),
        (Level::Warn, "about")
    );
    assert!(logs[0].fields[0].1.contains("Ann"), "{logs:?}");
    assert_eq!(
        app.context().get("seen"),
        None,
        "a value must not outlive its request"
    );
}

/// What a view of each mode does with the pieces of a response.
#[both]
async fn piece_by_piece(cx: &Context) -> Result<String> {
    let mut response = cx.http().get("/long").stream().await?;
    assert_eq!(response.headers.get("x-kind"), Some("long"));
    let (mut bytes, mut pieces) = (0, 0);
    while let Some(piece) = response.read().await? {
        bytes += piece.len();
        pieces += 1;
    }
    assert!(response.read().await?.is_none(), "the end stays the end");
    Ok(format!("{} {bytes} in {pieces}", response.status.as_u16()))
}

#[both]
async fn uploaded(cx: &Context, length: Option<u64>) -> Result<String> {
    let request = cx.http().put("/archive").header("X-Name", "a");
    let mut upload = match length {
        Some(length) => request.upload_sized(length).await?,
        None => request.upload().await?,
    };
    upload.write("one ").await?;
    upload.write(b"two").await?;
    let mut response = upload.finish().await?.error_for_status()?;
    let text = response.read().await?.unwrap_or_default();
    Ok(String::from_utf8(text)?)
}

/// Runs a function in both modes, which do the same.
macro_rules! in_both_modes {
    ($app:expr, |$cx:ident| $call:expr) => {{
        let app = $app;
        let $cx = &app.context();
        let blocking = $call;
        let $cx = &app.async_context();
        let awaited = amphi_sdk::testing::run($call);
        assert_eq!(blocking, awaited);
        blocking
    }};
}

#[test]
fn responses_are_read_in_pieces() {
    let long = || reply(vec![7; 300_000]).header("x-kind", "long");
    let app = App::new().on_get("/long", long());
    let read = in_both_modes!(&app, |cx| piece_by_piece(cx));
    assert_eq!(read.expect("it is whole"), "200 300000 in 2");
    let app = App::new().on_get("/long", long().breaks_off());
    let broken = in_both_modes!(&app, |cx| piece_by_piece(cx));
    let error = broken.expect_err("it breaks off");
    assert_eq!(error.http_kind(), Some(ErrorKind::Connection));
    let whole = app.context().http().get("/long").send();
    let error = whole.expect_err("it breaks off");
    assert_eq!(error.http_kind(), Some(ErrorKind::Connection));
}

#[test]
fn uploads_are_sent_when_they_are_finished() {
    let app = App::new().on("PUT", "/archive", reply("kept"));
    for length in [None, Some(7)] {
        let kept = in_both_modes!(&app, |cx| uploaded(cx, length));
        assert_eq!(kept.expect("it is finished"), "kept");
    }
    assert_eq!(app.sent().len(), 4);
    for sent in app.sent() {
        assert_eq!((&*sent.method, &*sent.body), ("PUT", &b"one two"[..]));
        assert_eq!(sent.headers.get("x-name"), Some("a"));
    }
    for length in [6, 8] {
        let refused = in_both_modes!(&app, |cx| uploaded(cx, Some(length)));
        let error = refused.expect_err("it has another length");
        assert_eq!(error.http_kind(), Some(ErrorKind::Invalid));
    }
    let cx = app.context();
    let twice = cx.http().put("/archive").body("a").upload();
    let error = twice.expect_err("it has two bodies");
    assert!(
        error.detail().is_some_and(|why| why.contains("`write`")),
        "{error}"
    );
    let dropped = cx.http().put("/archive").upload().expect("it begins");
    drop(dropped);
    assert_eq!(app.sent().len(), 4, "nothing else was finished");
}
