//! Native tests refuse what the host would refuse, with the same messages.

use amphi_sdk::database::ErrorKind;
use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, get, post};

#[view(get, "/many")]
fn many(cx: &Context) -> Result<()> {
    (0..100).try_for_each(|n| cx.set(&n.to_string(), ""))
}

#[view(get, "/name")]
fn takes_the_hosts_name(cx: &Context) -> Result<()> {
    cx.set("user", "ann")
}

#[view(get, "/long")]
fn long(cx: &Context) -> Result<()> {
    cx.set("long", &"x".repeat(9000))
}

#[view(get, "/large")]
fn large() -> Vec<u8> {
    vec![0; 9 << 20]
}

#[view(post, "/header")]
fn header() -> impl IntoResponse {
    "".with_header("connection", "close")
}

#[view(post, "/publish")]
fn publish(cx: &Context) -> Result<()> {
    cx.publish("no topic", &1)
}

#[view(post, "/read", read_only)]
fn read_only(cx: &Context) -> Result<()> {
    cx.db().execute("delete from a", ()).map(drop)
}

#[view(get, "/rows")]
fn rows(cx: &Context) -> Result<String> {
    let all = cx.db().query::<Vec<u8>>("select zeroblob(9000000)", ());
    let error = all.expect_err("it is too much");
    assert_eq!(error.database_kind(), Some(ErrorKind::TooLarge));
    let mut rows = cx.db().rows::<Vec<u8>>("select zeroblob(9000000)", ())?;
    Ok(rows.try_next()?.map_or(0, |row| row.len()).to_string())
}

#[view(post, "/body")]
fn body(Body(body): Body) -> String {
    body.len().to_string()
}

fn detail<V: amphi_sdk::__private::View>(
    app: &App,
    request: amphi_sdk::testing::TestRequest,
) -> String {
    let response = app.call::<V>(request);
    assert_eq!(response.status().as_u16(), 500);
    response.error().expect("it failed").to_string()
}

#[test]
fn names_and_limits_of_the_host_hold_in_tests() {
    let app = App::new().execute_batch("create table a (b)");
    let said = detail::<takes_the_hosts_name>(&app, get("/name"));
    assert!(
        said.contains("`user` is the host's, and views cannot set it"),
        "{said}"
    );
    assert!(detail::<long>(&app, get("/long")).contains("`context_value_max_bytes` is 8192"));
    assert!(detail::<many>(&app, get("/many")).contains("`context_values_max`"));
    assert!(detail::<large>(&app, get("/large")).contains("`response_max_bytes`"));
    assert!(detail::<header>(&app, post("/header")).contains("`connection`"));
    assert!(detail::<publish>(&app, post("/publish")).contains("not a topic"));
    assert!(detail::<read_only>(&app, post("/read")).contains("read-only"));
    assert_eq!(app.call::<rows>(get("/rows")).text(), "9000000");
    let response = app.call::<body>(post("/body").with_body(vec![0; 11 << 20]));
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[view(get, "/notes/{name}")]
fn note(cx: &Context, Path(name): Path<String>) -> Result<String> {
    Ok(std::fs::read_to_string(cx.directory("/notes")?.join(name))?)
}

#[test]
fn a_folder_is_where_the_test_says() {
    let folder = std::env::temp_dir().join(format!("amphi-sdk-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is room");
    std::fs::write(folder.join("tea"), "green").expect("there is room");
    let app = App::new().directory("/notes", &folder);
    assert_eq!(app.call::<note>(get("/notes/tea")).text(), "green");
    std::fs::remove_dir_all(folder).expect("it is there");
    assert!(detail::<note>(&App::new(), get("/notes/tea")).contains("`/notes`"));
}

#[view(get, "/account")]
fn account(cx: &Context) -> Result<String> {
    let (id, kind, at): (i64, String, String) = cx
        .db()
        .query_one(
            "select id, kind, at from accounts where $2 = $2 and name = $1",
            ("ann", 1),
        )?
        .ok_or_else(|| Error::not_found("nobody"))?;
    Ok(format!("{id} {kind} {}", at.len()))
}

#[test]
fn migrations_may_be_written_for_postgres() {
    let folder = std::env::temp_dir().join(format!("amphi-sdk-postgres-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is room");
    let sql = "create extension if not exists pgcrypto;
        create type kind as enum ('staff', 'guest');
        create table accounts (id bigint generated always as identity primary key, name varchar(40) not null unique,
            kind kind not null default 'guest'::kind, key uuid default gen_random_uuid(),
            at timestamp with time zone not null default now(), tags text[] not null default '{}'::text[]);
        create index concurrently accounts_at on accounts using btree (at desc);
        insert into accounts (name) values ('ann'), ('bob');";
    std::fs::write(folder.join("V1__accounts.sql"), sql).expect("there is room");
    let app = App::new().migrations(&folder);
    assert_eq!(app.call::<account>(get("/account")).text(), "1 guest 24");
    std::fs::remove_dir_all(folder).expect("it is there");
}
