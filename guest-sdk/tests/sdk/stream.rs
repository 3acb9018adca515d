//! Bodies that stream: responses that are written after the view has returned, and requests that are read while they
//! arrive.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, Multipart as Files, TestResponse, get, post};
use std::io::Write as _;

fn app() -> App {
    App::new().execute_batch(
        "create table entries (id integer, name text); insert into entries values (1, 'Ann'), (2, 'Ben')",
    )
}

const ENTRIES: &str = "select id, name from entries order by id";

#[view(get, "/sync", atomic)]
fn export(cx: &Context) -> Result<Stream> {
    cx.db()
        .execute("insert into entries values (3, 'Cem')", ())?;
    Ok(cx.stream(move |cx, out| {
        for row in cx.db().rows::<(i64, String)>(ENTRIES, ())? {
            let (id, name) = row?;
            out.write(format!("{id},{name}\n"))?;
        }
        out.trailer("X-Rows", "all")?;
        Ok(())
    }))
}

#[view(get, "/async", atomic)]
async fn export_async(cx: &Context) -> Result<Stream> {
    cx.db()
        .execute("insert into entries values (3, 'Cem')", ())
        .await?;
    Ok(cx.stream(async move |cx, out| {
        let mut rows = cx.db().rows::<(i64, String)>(ENTRIES, ()).await?;
        while let Some((id, name)) = rows.next().await? {
            out.write(format!("{id},{name}\n")).await?;
        }
        out.trailer("X-Rows", "all")?;
        Ok(())
    }))
}

#[test]
fn a_stream_is_written_after_the_view() {
    for response in [
        app().call::<export>(get("/sync")),
        app().call::<export_async>(get("/async")),
    ] {
        assert_eq!(response.text(), "1,Ann\n2,Ben\n3,Cem\n");
        assert_eq!(
            response.header("content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(response.trailer("x-rows"), Some("all"));
        assert_eq!(response.broken(), None);
        assert!(!response.response().is_stream());
    }
}

#[both]
async fn numbers(cx: &Context, count: u32) -> Stream {
    cx.stream(async move |_, out| {
        for number in 0..count {
            out.write([number as u8]).await?;
        }
        Ok(())
    })
}

#[view(get, "/sync/numbers")]
fn some(cx: &Context) -> impl IntoResponse {
    (StatusCode::ACCEPTED, numbers(cx, 3))
}

#[view(get, "/async/numbers")]
async fn some_async(cx: &Context) -> impl IntoResponse {
    let stream = numbers(cx, 3).await;
    (StatusCode::ACCEPTED, [("content-length", "3")], stream)
}

#[test]
fn a_stream_has_the_status_and_the_headers_that_it_is_given() {
    let response = App::new().call::<some>(get("/sync/numbers"));
    assert_eq!(
        (response.status().as_u16(), response.body()),
        (202, &[0, 1, 2][..])
    );
    let response = App::new().call::<some_async>(get("/async/numbers"));
    assert_eq!(
        (response.status().as_u16(), response.body()),
        (202, &[0, 1, 2][..])
    );
    assert_eq!(response.header("content-length"), Some("3"));
    assert_eq!(response.broken(), None);
}

#[view(get, "/formatted")]
fn formatted(cx: &Context) -> Stream {
    cx.stream(|cx, out| {
        write!(out, "{} ", cx.route())?;
        out.write(vec![b'x'; 600_000])?;
        writeln!(out)?;
        Ok(())
    })
}

#[test]
fn the_writer_takes_formats_and_large_pieces() {
    let response = App::new().call::<formatted>(get("/formatted"));
    let wanted = format!("/formatted {}\n", "x".repeat(600_000));
    assert_eq!(response.text(), wanted);
}

#[view(post, "/sync/{what}", atomic)]
fn fails(cx: &Context, Path(what): Path<String>) -> Result<impl IntoResponse> {
    cx.db()
        .execute("insert into entries values (3, 'Cem')", ())?;
    cx.publish("entries.added", &3)?;
    if what == "undone" {
        cx.set_rollback();
    }
    let stream = cx.stream(move |cx, out| {
        out.write("a")?;
        cx.publish("entries.sent", &3)?;
        match what.as_str() {
            "fails" => Err(Error::internal("no more")),
            "writes" => cx
                .db()
                .execute("insert into entries values (4, 'Dan')", ())
                .map(|_| ()),
            _ => Ok(()),
        }
    });
    Ok(stream.with_header("content-length", "2"))
}

#[test]
fn a_body_that_breaks_off_is_told_and_undoes_nothing() {
    let count = |app: &App| app.query::<i64>("select count(*) from entries", ())[0];
    let detail =
        |response: &TestResponse| response.broken().and_then(Error::detail).map(str::to_owned);

    let app = self::app();
    let response = app.call::<fails>(post("/sync/fails"));
    assert_eq!((response.status().as_u16(), response.text()), (200, "a"));
    assert_eq!(detail(&response).as_deref(), Some("no more"));
    assert_eq!((count(&app), app.published().len()), (3, 2));

    let response = app.call::<fails>(post("/sync/writes"));
    let sentence = "the body has 1 bytes, and its header `content-length` says 2";
    assert_eq!(detail(&response).as_deref(), Some(sentence));
    assert_eq!(count(&app), 5);

    // The events of what is rolled back are gone, those of the stream are not.
    let app = self::app();
    app.call::<fails>(post("/sync/undone"));
    let topics: Vec<_> = app
        .published()
        .into_iter()
        .map(|event| event.topic)
        .collect();
    assert_eq!((count(&app), topics), (2, vec!["entries.sent".to_owned()]));
}

#[middleware]
fn stamped(request: Request, next: Next) -> Result<Response> {
    let mut response = next.run(request)?;
    assert!(response.is_stream() && response.body.is_empty());
    let error = response.bytes().expect_err("it cannot be read");
    assert_eq!(error.status().as_u16(), 500);
    response.headers.set("x-stamp", "yes");
    Ok(response)
}

#[middleware]
async fn replaced(request: Request, next: Next) -> Result<Response> {
    let mut response = next.run(request).await?;
    response.set_body("");
    Ok(response)
}

#[view(get, "/outer", middleware = [stamped])]
async fn outer(cx: &Context) -> Result<Response> {
    let inner = cx.subrequest("GET", "/sync").send().await?;
    assert!(inner.is_stream());
    Ok(inner)
}

#[view(get, "/twice")]
fn twice(cx: &Context) -> Result<Response> {
    cx.stream(|_, out| out.write("once")).into_response()
}

#[test]
fn middleware_and_callers_pass_streams_on() {
    let app = app().around::<export>();
    let response = app.call::<stamped>(get("/sync"));
    assert_eq!(response.text(), "1,Ann\n2,Ben\n3,Cem\n");
    assert_eq!(response.header("x-stamp"), Some("yes"));

    let response = app.call::<replaced>(get("/sync"));
    assert_eq!((response.text(), response.trailer("x-rows")), ("", None));

    let app = self::app().view::<export>();
    let response = app.call::<outer>(get("/outer"));
    assert_eq!(response.text(), "1,Ann\n2,Ben\n3,Cem\n");
    assert_eq!(response.header("x-stamp"), Some("yes"));

    assert_eq!(App::new().call::<twice>(get("/twice")).text(), "once");
}

#[view(post, "/sync/upload", body = "stream")]
fn upload(cx: &Context, body: BodyReader) -> Result<String> {
    let (length, mut chunks, mut sum) = (body.length(), 0, 0_u64);
    for chunk in cx.chunks(body) {
        chunks += 1;
        sum += chunk?.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    Ok(format!("{length:?} {chunks} {sum}"))
}

#[view(post, "/async/upload", body = "stream")]
async fn upload_async(cx: &Context, body: BodyReader) -> Result<String> {
    let (length, mut count, mut sum) = (body.length(), 0, 0_u64);
    let mut chunks = cx.chunks(body);
    while let Some(chunk) = chunks.next().await? {
        count += 1;
        sum += chunk.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    Ok(format!("{length:?} {count} {sum}"))
}

#[view(post, "/sync/whole", body = "stream")]
fn whole(Body(bytes): Body) -> String {
    bytes.len().to_string()
}

#[view(post, "/async/whole", body = "stream")]
async fn whole_async(Body(bytes): Body) -> String {
    bytes.len().to_string()
}

#[test]
fn a_body_is_read_while_it_arrives() {
    let app = App::new();
    let body = vec![1; 40_000];
    let response = app.call::<upload>(post("/sync/upload").with_body(body.clone()));
    assert_eq!(response.text(), "Some(40000) 3 40000");
    let response = app.call::<upload_async>(post("/async/upload").with_body(body.clone()));
    assert_eq!(response.text(), "Some(40000) 3 40000");
    let response = app.call::<upload>(post("/sync/upload"));
    assert_eq!(response.text(), "Some(0) 0 0");
    let response = app.call::<whole>(post("/sync/whole").with_body(body.clone()));
    assert_eq!(response.text(), "40000");
    let response = app.call::<whole_async>(post("/async/whole").with_body(body));
    assert_eq!(response.text(), "40000");
}

#[view(post, "/sync/files", body = "stream")]
fn files(cx: &Context, form: Protected<Multipart>) -> Result<String> {
    let mut parts = cx.parts(form.0);
    let mut told = String::new();
    while let Some(part) = parts.next()? {
        told += &format!("{} {};", part.name, parts.bytes(1 << 20)?.len());
    }
    Ok(told)
}

#[view(post, "/async/files", body = "stream")]
async fn files_async(cx: &Context, form: Protected<Multipart>) -> Result<String> {
    let mut parts = cx.parts(form.0);
    let mut told = String::new();
    while let Some(part) = parts.next().await? {
        told += &format!("{} {};", part.name, parts.bytes(1 << 20).await?.len());
    }
    Ok(told)
}

/// The token is looked for in the first 64 KiB, which are read once.
#[test]
fn a_form_that_arrives_is_protected() {
    for bytes in [10, 100_000, 300_000] {
        let form = || {
            Files::new()
                .file("a", "a.bin", "image/png", vec![b'x'; bytes])
                .text("b", "c")
        };
        let wanted = format!("a {bytes};b 1;");
        let app = App::new();
        let request = post("/sync/files").csrf_field().multipart(form());
        assert_eq!(app.call::<files>(request).text(), wanted);
        let request = post("/async/files").csrf_field().multipart(form());
        assert_eq!(app.call::<files_async>(request).text(), wanted);
        let request = post("/sync/files").multipart(form());
        assert_eq!(app.call::<files>(request).status().as_u16(), 403);
    }
}

#[middleware]
fn reads_all(cx: &Context, mut request: Request, next: Next) -> Result<Response> {
    assert!(request.body().is_empty());
    cx.load(&mut request)?;
    assert_eq!(request.body().len(), 40_000);
    next.run(request)
}

#[middleware]
async fn reads_nothing(request: Request, next: Next) -> Result<Response> {
    next.run(request).await
}

#[test]
fn middleware_passes_on_what_arrives_or_reads_it() {
    let app = App::new().around::<upload>();
    let request = || post("/sync/upload").with_body(vec![1; 40_000]);
    assert_eq!(
        app.call::<reads_all>(request()).text(),
        "Some(40000) 1 40000"
    );
    assert_eq!(
        app.call::<reads_nothing>(request()).text(),
        "Some(40000) 3 40000"
    );
}
