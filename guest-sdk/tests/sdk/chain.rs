//! Middleware, sub-requests and events.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, get, post};

#[middleware]
fn signed(cx: &Context, mut request: Request, next: Next) -> Result<Response> {
    let user = request
        .headers
        .get("x-user")
        .ok_or_else(|| Error::unauthorized("who?"))?;
    cx.set("member", user)?;
    request.headers.set("x-seen", "1");
    let mut response = next.run(request)?;
    response.headers.set("x-signed", "yes");
    Ok(response)
}

#[middleware]
async fn signed_slowly(
    cx: &Context,
    agent: Headers,
    request: Request,
    next: Next,
) -> Result<Response> {
    cx.set("member", agent.get("x-user").unwrap_or("nobody"))?;
    match next.run(request).await {
        Err(error) if error.status() == StatusCode::NOT_FOUND => "nothing here".into_response(),
        other => other,
    }
}

#[view(post, "/upload")]
fn upload(cx: &Context, headers: Headers, body: Body) -> String {
    let seen = headers.get("x-seen").is_some();
    format!("{:?} {seen} {}", cx.get("member"), body.0.len())
}

#[view(get, "/missing")]
async fn missing() -> Result<()> {
    Err(Error::not_found("no such thing").with_detail("for the log"))
}

#[view(get, "/fragments/{name}")]
async fn fragment(cx: &Context, Path(name): Path<String>) -> String {
    format!("<{name} for {:?}>", cx.get("member"))
}

#[view(get, "/page")]
fn page(cx: &Context) -> Result<String> {
    cx.set("member", "ann")?;
    let news = cx.subrequest("GET", "/fragments/news?n=1").send()?;
    let error = cx
        .subrequest("GET", "/nowhere")
        .send()
        .expect_err("there is none");
    Ok(format!(
        "{} {}",
        String::from_utf8(news.body)?,
        error.status()
    ))
}

#[view(post, "/pay", atomic)]
fn pay(cx: &Context, Body(fail): Body) -> Result<()> {
    cx.publish("orders.paid", &7)?;
    if fail.is_empty() {
        Ok(())
    } else {
        Err(Error::conflict("no"))
    }
}

#[view(post, "/undo", atomic)]
async fn undo(cx: &Context) -> Result<()> {
    cx.db().execute("insert into t values (1)", ()).await?;
    cx.publish("orders.paid", &8)?;
    cx.set_rollback();
    Ok(())
}

#[subscriber("orders.*", atomic = false)]
fn on_order(event: Event) -> Result<()> {
    let id: i64 = event.json()?;
    log::info!("{}", format!("{} {id}", event.topic));
    Ok(())
}

#[view(post, "/careful", atomic)]
fn careful(cx: &Context) -> Result<String> {
    let insert = "insert into t values (1)";
    cx.db().execute(insert, ())?;
    let inner = cx.atomic(|tx| tx.execute(insert, ()));
    assert_eq!(
        inner.expect_err("it is unique").status(),
        StatusCode::CONFLICT
    );
    cx.db().execute("insert into t values (2)", ())?;
    cx.db().execute(insert, ()).expect_err("it is unique");
    let error = cx
        .db()
        .execute("insert into t values (3)", ())
        .expect_err("poisoned");
    Ok(format!("{:?}", error.database_kind()))
}

views![
    signed,
    signed_slowly,
    upload,
    missing,
    fragment,
    page,
    pay,
    undo,
    on_order,
    careful,
    in_parts,
    loose,
    half_done,
    soothing
];

#[test]
fn middleware_changes_what_goes_in_and_what_comes_out() {
    let app = App::new().around::<upload>().spool_over(100);
    let response = app.call::<signed>(
        post("/upload")
            .header("x-user", "ann")
            .with_body("x".repeat(200)),
    );
    assert_eq!(response.text(), "Some(\"ann\") true 200");
    assert_eq!(response.header("x-signed"), Some("yes"));
    assert_eq!(
        app.call::<signed>(post("/upload")).status(),
        StatusCode::UNAUTHORIZED
    );
}

#[test]
fn middleware_sees_errors_as_they_were() {
    let app = App::new().around::<missing>();
    assert_eq!(
        app.call::<signed_slowly>(get("/missing")).text(),
        "nothing here"
    );
    let response = app.call::<signed>(get("/missing").header("x-user", "ann"));
    assert_eq!(
        (response.status(), response.text()),
        (StatusCode::NOT_FOUND, "no such thing")
    );
}

#[test]
fn subrequests_share_the_context() {
    let app = App::new().view::<fragment>();
    let response = app.call::<page>(get("/page"));
    assert_eq!(response.text(), "<news for Some(\"ann\")> 404 Not Found");
}

#[test]
fn events_leave_with_the_commit() {
    let app = App::new().execute_batch("create table t (n integer unique)");
    app.call::<pay>(post("/pay"));
    app.call::<pay>(post("/pay").with_body("fail"));
    app.call::<undo>(post("/undo"));
    let [event] = &app.published()[..] else {
        panic!("{:?}", app.published())
    };
    assert_eq!(
        (event.topic.as_str(), &event.payload[..]),
        ("orders.paid", &b"7"[..])
    );
    assert_eq!(app.query::<i64>("select count(*) from t", ()), [0]);
    app.deliver::<on_order>("orders.paid", &7);
    assert_eq!(app.logs()[0].message, "orders.paid 7");
}

#[view(post, "/parts")]
fn in_parts(cx: &Context) -> Result<()> {
    cx.publish("outer", &1)?;
    let inner: Result<()> = cx.atomic(|tx| {
        cx.publish("lost", &2)?;
        tx.execute("insert into nowhere values (1)", ()).map(drop)
    });
    assert!(inner.is_err());
    cx.atomic(|_| cx.publish("inner", &3))
}

#[view(post, "/loose", atomic = false)]
async fn loose(cx: &Context) -> Result<()> {
    cx.publish("at-once", &1)?;
    cx.atomic(async |_| cx.publish("committed", &2)).await?;
    let rolled_back: Result<()> = cx
        .atomic(async |_| {
            cx.publish("lost", &3)?;
            Err(Error::conflict("no"))
        })
        .await;
    rolled_back
}

#[test]
fn r10_events_go_with_the_level_they_were_published_in() {
    let topics = |app: &App| -> Vec<String> {
        app.published()
            .into_iter()
            .map(|event| event.topic)
            .collect()
    };
    let app = App::new();
    app.call::<in_parts>(post("/parts"));
    assert_eq!(topics(&app), ["outer", "inner"]);
    let app = App::new();
    app.call::<loose>(post("/loose"));
    assert_eq!(topics(&app), ["at-once", "committed"]);
}

#[view(post, "/half")]
fn half_done(cx: &Context, Body(fail): Body) -> Result<StatusCode> {
    cx.db().execute("insert into t values (1)", ())?;
    match &fail[..] {
        b"error" => Err(Error::conflict("no")),
        b"status" => Ok(StatusCode::BAD_GATEWAY),
        _ => Ok(StatusCode::CREATED),
    }
}

#[middleware]
fn soothing(request: Request, next: Next) -> &'static str {
    let _ = next.run(request);
    "all is well"
}

#[test]
fn r9_middleware_cannot_hide_a_failure_from_the_transaction() {
    for (body, kept) in [("", 1), ("error", 0), ("status", 0)] {
        let app = App::new()
            .execute_batch("create table t (n integer unique)")
            .around::<half_done>();
        let response = app.call::<soothing>(post("/half").with_body(body));
        assert_eq!(response.text(), "all is well");
        assert_eq!(
            app.query::<i64>("select count(*) from t", ()),
            [kept],
            "{body}"
        );
    }
}

#[test]
fn r8_a_failed_statement_poisons_its_savepoint_alone() {
    let app = App::new().execute_batch("create table t (n integer unique)");
    let response = app.call::<careful>(post("/careful"));
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(app.query::<i64>("select count(*) from t", ()), [0]);
}
