//! The async views.

use amphi_sdk::prelude::*;

use crate::{Drip, Ending, Size};

/// So many lines, so many milliseconds apart.
#[view(get, "/async/lines")]
pub async fn lines(cx: &Context, Query(Drip { count, ms }): Query<Drip>) -> impl IntoResponse {
    cx.stream(async move |cx, out| {
        for line in 0..count {
            if line > 0 && ms > 0 {
                cx.sleep(Duration::from_millis(ms)).await;
            }
            out.write(format!("line {line}\n")).await?;
        }
        println!("the last line is written");
        Ok(())
    })
    .with_header("content-type", "text/plain")
}

/// So many megabytes, in pieces of 64 kB.
#[view(get, "/async/big")]
pub async fn big(cx: &Context, Query(Size { mb, declared }): Query<Size>) -> Result<Response> {
    let stream = cx.stream(async move |_, out| {
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..mb * 16 {
            out.write(&piece).await?;
        }
        Ok(())
    });
    match declared {
        Some(length) => stream
            .with_header("content-length", length.to_string())
            .into_response(),
        None => stream.into_response(),
    }
}

/// A body that never ends.
#[view(get, "/async/endless")]
pub async fn endless(cx: &Context) -> Stream {
    cx.stream(async move |_, out| {
        loop {
            out.write([b'x'; 1024]).await?;
        }
    })
}

/// Writes a line, then ends as its path says.
#[view(get, "/async/ends/{how}")]
pub async fn ends(cx: &Context, Path(how): Path<String>) -> impl IntoResponse {
    let length = how.strip_prefix("declares-").unwrap_or("").to_owned();
    let stream = cx.stream(async move |cx, out| {
        out.write("a line\n").await?;
        match Ending::of(&how) {
            Ending::Well => Ok(()),
            Ending::Error => Err(Error::internal("the stream fails on purpose")),
            Ending::Panic => panic!("the stream panics on purpose"),
            Ending::Spin => loop {
                std::hint::black_box(());
            },
            Ending::Sleep => {
                let ms = 600_000;
                cx.sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
            Ending::Trailers => out.trailer("x-sum", "42"),
            Ending::OpenBlock => {
                cx.db()
                    .execute("insert into rows (tag) values ('plain')", ())
                    .await?;
                cx.atomic(async |tx| {
                    tx.execute("insert into rows (tag) values ('in a block')", ())
                        .await?;
                    panic!("the stream panics within its block")
                })
                .await
            }
        }
    });
    match length.is_empty() {
        true => stream.into_response(),
        false => stream.with_header("content-length", length).into_response(),
    }
}

/// All rows, as the table has them when they are read.
#[view(get, "/async/rows.csv")]
pub async fn csv(cx: &Context) -> impl IntoResponse {
    let stream = cx.stream(async move |cx, out| {
        let mut rows = cx
            .db()
            .rows("select id, tag from rows order by id", ())
            .await?;
        while let Some(row) = rows.try_next().await? {
            let (id, tag): (i64, String) = row;
            out.write(format!("{id},{tag}\n")).await?;
        }
        Ok(())
    });
    stream.with_header("content-type", "text/csv")
}

/// Inserts a row in the transaction of the request; the body counts the rows that another connection sees.
#[view(post, "/async/committed/{tag}", atomic = true)]
pub async fn committed(cx: &Context, Path(tag): Path<String>) -> Result<Response> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (&tag,))
        .await?;
    cx.set("tag", &tag)?;
    let status = match tag.as_str() {
        "undone" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    };
    let stream = cx.stream(async move |cx, out| {
        let seen: Option<(i64,)> = cx
            .db()
            .query_one("select count(*) from rows where tag = ?", (&tag,))
            .await?;
        let seen = seen.map_or(0, |(count,)| count);
        let known = cx.get("tag").unwrap_or_default();
        out.write(format!("{seen} of {known}\n")).await?;
        cx.db()
            .execute("insert into rows (tag) values ('from the stream')", ())
            .await?;
        Ok(())
    });
    (status, stream).into_response()
}

/// Counts the bytes of a body that arrives.
#[view(post, "/async/upload", body = "stream")]
pub async fn upload(cx: &Context, body: BodyReader) -> Result<String> {
    let announced = body.length();
    let (mut bytes, mut pieces) = (0, 0);
    let mut chunks = cx.chunks(body);
    while let Some(chunk) = chunks.try_next().await? {
        bytes += chunk.len();
        pieces += 1;
    }
    Ok(format!(
        "{bytes} bytes of {announced:?} in {}\n",
        if pieces > 1 { "pieces" } else { "one piece" }
    ))
}

/// Passes a stream on, replaces it, or adds a header.
#[middleware]
pub async fn around(_cx: &Context, request: Request, next: Next) -> Result<Response> {
    let wanted = request.query.strip_prefix("around=").map(str::to_owned);
    let response = next.run(request).await?;
    match wanted.as_deref() {
        Some("replace") if response.is_stream() => "replaced\n".into_response(),
        Some("mark") => response.with_header("x-around", "async").into_response(),
        _ => Ok(response),
    }
}

/// Answers with the response of another view.
#[view(get, "/async/from/{*path}")]
pub async fn from(cx: &Context, Path(path): Path<String>) -> Result<Response> {
    cx.subrequest("GET", format!("/streams/{path}"))
        .send()
        .await
}
