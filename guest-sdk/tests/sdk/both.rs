//! Functions with `#[both]`, extractors that query the database, middleware of a single view, and unusual methods.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, get, request};

#[derive(Debug, FromRow)]
struct Entry {
    id: i64,
    name: String,
}

#[both]
async fn named(cx: &Context, name: &str, least: impl Into<i64>) -> Result<Vec<Entry>> {
    let least = least.into();
    check(cx, least).await?;
    let mut found = Vec::new();
    let mut rows = cx
        .db()
        .rows::<Entry>(
            "select id, name from entries where id >= $2 and name = $1",
            (name, least),
        )
        .await?;
    while let Some(entry) = rows.try_next().await? {
        found.push(entry);
    }
    Ok(found)
}

#[both]
async fn check(cx: &Context, least: i64) -> Result<()> {
    cx.atomic(async |tx| {
        tx.execute("insert into asked values ($1)", (least,))
            .await?;
        Ok(())
    })
    .await
}

/// Returns one of its parameters, so `#[both]` has to keep the lifetimes.
#[both]
async fn longest<'a>(_: &Context, one: &'a str, other: &'a str) -> &'a str {
    if one.len() > other.len() { one } else { other }
}

#[view(get, "/sync", atomic)]
fn blocking(cx: &Context) -> Result<String> {
    let found = named(cx, longest(cx, "Ann", "A"), 2)?;
    Ok(found
        .iter()
        .map(|entry| format!("{} {};", entry.id, entry.name))
        .collect())
}

#[view(get, "/async", atomic)]
async fn waiting(cx: &Context) -> Result<String> {
    let name = longest(cx, "Ann", "A").await;
    let found = named(cx, name, 2).await?;
    Ok(found
        .iter()
        .map(|entry| format!("{} {};", entry.id, entry.name))
        .collect())
}

fn app() -> App {
    App::new().execute_batch(
        "create table entries (id integer, name text); create table asked (least integer);
         insert into entries values (1, 'Ann'), (2, 'Ann'), (3, 'Bob'), (4, 'Ann')",
    )
}

#[test]
fn a_function_serves_both_modes() {
    let app = app();
    assert_eq!(app.call::<blocking>(get("/sync")).text(), "2 Ann;4 Ann;");
    assert_eq!(app.call::<waiting>(get("/async")).text(), "2 Ann;4 Ann;");
    assert_eq!(app.query::<i64>("select least from asked", ()), [2, 2]);
}

struct User(String);

#[extractor]
async fn user(cx: &Context, session: Session) -> Result<User> {
    let id: i64 = session
        .get("id")
        .ok_or_else(|| Error::unauthorized("sign in first"))?;
    let name = cx
        .db()
        .query_one("select name from entries where id = $1", (id,))
        .await?;
    Ok(User(
        name.ok_or_else(|| Error::unauthorized("sign in again"))?,
    ))
}

#[view(get, "/me")]
fn me(User(name): User) -> String {
    name
}

#[view(get, "/me/later")]
async fn me_later(user: Result<User>, known: Option<User>) -> String {
    assert_eq!(user.is_ok(), known.is_some());
    user.map_or_else(|error| error.message().to_owned(), |User(name)| name)
}

#[test]
fn an_extractor_asks_the_database() {
    let app = app();
    assert_eq!(app.call::<me>(get("/me").session("id", &3)).text(), "Bob");
    assert_eq!(
        app.call::<me>(get("/me")).status(),
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(
        app.call::<me>(get("/me").session("id", &9)).text(),
        "sign in again"
    );
    assert_eq!(
        app.call::<me_later>(get("/me/later").session("id", &1))
            .status(),
        StatusCode::OK
    );
    let nobody = app.call::<me_later>(get("/me/later"));
    assert_eq!(nobody.text(), "sign in first");
}

#[middleware]
fn outer(cx: &Context, request: Request, next: Next) -> Result<Response> {
    cx.set("way", "outer")?;
    let mut response = next.run(request)?;
    response.headers.append("x-way", "outer");
    Ok(response)
}

#[middleware]
async fn inner(cx: &Context, request: Request, next: Next) -> Result<Response> {
    if request.headers.get("x-staff").is_none() {
        return Err(Error::forbidden("staff only"));
    }
    cx.set(
        "way",
        &format!("{} inner", cx.get("way").unwrap_or_default()),
    )?;
    next.run(request).await
}

#[view(any, "/admin/{page}", middleware = [outer, inner])]
fn admin(cx: &Context, Path(page): Path<String>, request: Request) -> String {
    format!(
        "{} {page} {}",
        request.method,
        cx.get("way").unwrap_or_default()
    )
}

#[view(method = "PURGE", "/cache")]
fn purge() {}

#[test]
fn middleware_is_around_one_view() {
    let app = App::new();
    let response = app.call::<admin>(request("REPORT", "/admin/a").header("x-staff", "1"));
    assert_eq!(response.text(), "REPORT a outer inner");
    assert_eq!(response.header("x-way"), Some("outer"));
    let response = app.call::<admin>(get("/admin/a"));
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let response = app.call::<purge>(request("PURGE", "/cache"));
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
}
