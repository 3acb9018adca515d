//! The async views.

use amphi_sdk::prelude::*;

use crate::deeds::{self, Digest, Entry, Fetch, File, With, told};

#[view(get, "/async/hello")]
pub async fn hello() -> &'static str {
    "hello"
}

#[view(get, "/async/greet/{name}")]
pub async fn greet(Path(name): Path<String>) -> String {
    format!("hello {name}")
}

/// This pattern is more specific than the pattern of `greet`, but is for another method.
#[view(post, "/async/greet/everybody")]
pub async fn greet_everybody() -> &'static str {
    "hello everybody"
}

#[view(get, "/async/grüße/{name}")]
pub async fn greet_in_german(Path(name): Path<String>, request: Request) -> impl IntoResponse {
    // The header has the path as the host passes it to guests.
    format!("hallo {name}").with_header("x-path", request.path)
}

#[view(post, "/async/submit")]
pub async fn submit(Form(entry): Form<Entry>) -> String {
    format!("{} is {}", entry.name, entry.age)
}

/// Inserts a row, then ends in the way that its path names: see `deeds::end`.
#[view(post, "/async/fail/{how}")]
pub async fn fail(cx: &Context, Path(how): Path<String>) -> Result<Response> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (&how,))
        .await?;
    match how.as_str() {
        "sleep" => {
            cx.sleep(Duration::from_secs(60)).await;
            "slept".into_response()
        }
        "sleep-then-write" => {
            for _ in 0..600 {
                cx.sleep(Duration::from_millis(100)).await;
                cx.db()
                    .execute("insert into rows (tag) values ('after a nap')", ())
                    .await?;
            }
            "slept".into_response()
        }
        how => deeds::end(how),
    }
}

/// Ends in the way that its path names, without touching the database.
#[view(get, "/async/fail/{how}")]
pub async fn fail_plainly(Path(how): Path<String>) -> Result<Response> {
    deeds::end(&how)
}

#[view(post, "/async/rows/{tag}")]
pub async fn insert(cx: &Context, Path(tag): Path<String>) -> Result<StatusCode> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (tag,))
        .await?;
    Ok(StatusCode::CREATED)
}

/// Inserts the number, and traps if it is a multiple of three.
#[view(post, "/async/numbers/{number}")]
pub async fn insert_or_trap(cx: &Context, Path(number): Path<u32>) -> Result<StatusCode> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (number.to_string(),))
        .await?;
    assert!(!number.is_multiple_of(3), "three of them");
    Ok(StatusCode::CREATED)
}

#[view(post, "/async/savepoints")]
pub async fn savepoints(cx: &Context) -> Result<String> {
    let insert = "insert into rows (tag) values (?)";
    cx.db().execute(insert, ("outer",)).await?;
    let undone: Result<()> = cx
        .atomic(async |tx| {
            tx.execute(insert, ("undone",)).await?;
            tx.atomic(async |inner| inner.execute(insert, ("undone inside",)).await)
                .await?;
            Err(Error::conflict("undo this"))
        })
        .await;
    let kept = cx
        .atomic(async |tx| {
            tx.execute(insert, ("kept",)).await?;
            let inner: Result<()> = tx
                .atomic(async |inner| {
                    inner.execute(insert, ("undone innermost",)).await?;
                    Err(Error::conflict("undo this"))
                })
                .await;
            Ok(inner.is_err())
        })
        .await?;
    Ok(format!("{} {kept}", undone.is_err()))
}

/// Runs the statement in its body, outside a transaction.
#[view(post, "/async/sql", atomic = false)]
pub async fn sql(cx: &Context, Query(how): Query<With>, Body(sql): Body) -> Result<String> {
    let sql = String::from_utf8(sql)?;
    Ok(told(run(cx, &how, &sql).await))
}

/// Runs the statement in its body in a savepoint of the view's transaction, and answers 200 even if it fails.
#[view(post, "/async/sql/atomic", atomic)]
pub async fn sql_atomic(cx: &Context, Query(how): Query<With>, Body(sql): Body) -> Result<String> {
    cx.db()
        .execute("insert into rows (tag) values ('before')", ())
        .await?;
    let sql = String::from_utf8(sql)?;
    Ok(told(cx.atomic(async |_| run(cx, &how, &sql).await).await))
}

async fn run(cx: &asynch::Context, how: &With, sql: &str) -> Result<u64> {
    match how.with.as_deref() {
        Some("query") => {
            let rows = cx.db().query::<Option<String>>(sql, ()).await?;
            Ok(rows.len() as u64)
        }
        Some("rows") => Ok(count(cx, sql).await? as u64),
        Some("begin") => cx.atomic(async |tx| tx.execute(sql, ()).await).await,
        Some(other) => cx.database(other).execute(sql, ()).await,
        None => cx.db().execute(sql, ()).await,
    }
}

async fn count(cx: &asynch::Context, sql: &str) -> Result<usize> {
    let mut rows = cx.db().rows::<Option<String>>(sql, ()).await?;
    let mut count = 0;
    while rows.next().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Runs the query in its body `count` times, all at the same time.
#[view(post, "/async/joined/{count}", atomic = false)]
pub async fn joined(cx: &Context, Path(count): Path<usize>, Body(sql): Body) -> Result<String> {
    let sql = String::from_utf8(sql)?;
    let all = try_join_all((0..count).map(|_| cx.db().query_one::<i64>(&sql, ()))).await?;
    Ok(all.into_iter().flatten().sum::<i64>().to_string())
}

/// Inserts 20 rows at the same time in one transaction, each joined with a read. Then ends as its path names it.
#[view(post, "/async/joined-atomic/{how}", atomic)]
pub async fn joined_atomic(cx: &Context, Path(how): Path<String>) -> Result<Response> {
    let counts = try_join_all((1..=20).map(|number: i64| async move {
        let insert = cx
            .db()
            .execute("insert into rows (id, tag) values (?, 'joined')", (number,));
        let count = cx
            .db()
            .query_one::<i64>("select count(*) from rows where tag = 'joined'", ());
        let (_, count) = try_join!(insert, count)?;
        Ok::<_, Error>(count.unwrap_or(0))
    }))
    .await?;
    // Each read sees the insert that it is joined with, and all inserts that were issued before.
    if counts != (1..=20).collect::<Vec<i64>>() {
        return Err(Error::internal(format!("out of order: {counts:?}")));
    }
    deeds::end(&how)
}

/// Runs two atomic blocks and a statement at the same time, in one transaction. Fails if one of the three fails.
#[view(post, "/async/interleaved", atomic)]
pub async fn interleaved(cx: &Context) -> Result<String> {
    let (a, b, c) = three_at_once(cx).await;
    a?;
    b?;
    c?;
    Ok("all".into())
}

/// Like `interleaved`, but always answers 200. The body says which of the three succeeded.
#[view(post, "/async/interleaved-and-ignored", atomic)]
pub async fn interleaved_and_ignored(cx: &Context) -> String {
    let (a, b, c) = three_at_once(cx).await;
    format!("{} {} {}", a.is_ok(), b.is_ok(), c.is_ok())
}

async fn three_at_once(cx: &asynch::Context) -> (Result<()>, Result<()>, Result<u64>) {
    let block = async |name: &str| {
        cx.atomic(async |tx| {
            tx.execute(
                "insert into rows (tag) values (?)",
                (format!("{name} first"),),
            )
            .await?;
            cx.sleep(Duration::from_millis(5)).await;
            tx.execute(
                "insert into rows (tag) values (?)",
                (format!("{name} second"),),
            )
            .await?;
            Ok(())
        })
        .await
    };
    join!(
        block("a"),
        block("b"),
        cx.db().execute("insert into rows (tag) values ('c')", ())
    )
}

/// Reads all rows from a result that is fetched piece by piece.
#[view(get, "/async/export")]
pub async fn export(cx: &Context) -> Result<String> {
    let (mut count, mut sum) = (0, 0);
    let mut rows = cx
        .db()
        .rows::<(i64, String)>("select id, tag from rows", ())
        .await?;
    while let Some((id, _)) = rows.next().await? {
        count += 1;
        sum += id;
    }
    Ok(format!("{count} {sum}"))
}

/// Opens `count` results of a megabyte each and keeps them open. Answers with how many it could open.
#[view(post, "/async/hoard/{count}")]
pub async fn hoard(cx: &Context, Path(count): Path<usize>) -> String {
    let mut open = Vec::new();
    for _ in 0..count {
        match cx
            .db()
            .rows::<Vec<u8>>("select zeroblob(1000000)", ())
            .await
        {
            Ok(rows) => open.push(rows),
            Err(_) => break,
        }
    }
    open.len().to_string()
}

/// Like `hoard`, without a transaction.
#[view(post, "/async/hoard/{count}/outside", atomic = false)]
pub async fn hoard_outside(cx: &Context, path: Path<usize>) -> String {
    hoard(cx, path).await
}

/// Sleeps `count` times for a millisecond, and computes nothing.
#[view(get, "/async/naps/{count}")]
pub async fn naps(cx: &Context, Path(count): Path<usize>) -> String {
    for _ in 0..count {
        cx.sleep(Duration::from_millis(1)).await;
    }
    format!("slept {count} times")
}

#[view(get, "/async/nap/{ms}")]
pub async fn nap(cx: &Context, Path(ms): Path<u64>) -> String {
    cx.sleep(Duration::from_millis(ms)).await;
    format!("slept {ms}")
}

#[view(get, "/async/spin/{ms}")]
pub async fn spin(Path(ms): Path<u64>) -> String {
    deeds::spin(ms)
}

/// A view with limits of its own.
#[view(get, "/async/short/{how}", cpu_ms = 50, timeout_ms = 1000)]
pub async fn short(cx: &Context, Path(how): Path<String>) -> Result<Response> {
    if how == "nap" {
        cx.sleep(Duration::from_secs(60)).await;
    }
    deeds::end(&how)
}

#[view(get, "/async/fetch")]
pub async fn fetch(cx: &Context, Query(fetch): Query<Fetch>) -> String {
    let mut request = cx.http().get(fetch.url);
    if let Some(ms) = fetch.timeout_ms {
        request = request.timeout(Duration::from_millis(ms));
    }
    told(
        request
            .send()
            .await
            .and_then(|response| Ok(format!("{} {}", response.status.as_u16(), response.text()?))),
    )
}

/// Sends the same request several times, all at the same time.
#[view(get, "/async/fan")]
pub async fn fan(cx: &Context, Query(fetch): Query<Fetch>) -> Result<String> {
    let calls = (0..fetch.count.unwrap_or(10))
        .map(async |_| cx.http().get(&fetch.url).send().await?.error_for_status());
    let replies = try_join_all(calls).await?;
    Ok(format!("{} replies", replies.len()))
}

/// Reads its body piece by piece.
#[view(post, "/async/digest", atomic = false)]
pub async fn digest(cx: &Context, body: BodyReader) -> Result<String> {
    let mut digest = Digest::default();
    let mut pieces = cx.chunks(body);
    while let Some(piece) = pieces.next().await? {
        digest.add(&piece);
    }
    Ok(digest.text())
}

/// Reads its whole body in one piece.
#[view(post, "/async/whole", atomic = false)]
pub async fn whole(Body(body): Body) -> String {
    let mut digest = Digest::default();
    digest.add(&body);
    digest.text()
}

#[view(get, "/async/identity")]
pub async fn identity(cx: &Context, headers: Headers) -> String {
    format!(
        "{} {} {}",
        cx.request_id(),
        cx.route(),
        headers.get("x-request-id").unwrap_or("none")
    )
}

/// The values of a request header, joined by ` | `.
#[view(get, "/async/header/{name}")]
pub async fn header(Path(name): Path<String>, headers: Headers) -> String {
    headers.get_all(&name).collect::<Vec<_>>().join(" | ")
}

/// A page with an `etag` from its path.
#[view(get, "/async/tagged/{tag}")]
pub async fn tagged(Path(tag): Path<String>) -> impl IntoResponse {
    Html("<p>tagged</p>".repeat(300)).with_header("etag", format!("\"{tag}\""))
}

/// The app's error page. The page itself fails for paths that end with `broken`. It sets the status itself when the
/// header `accept-language` is `own-status`.
#[view(get, "/async/error/{status}")]
pub async fn error_page(
    cx: &Context,
    Path(status): Path<u16>,
    headers: Headers,
) -> Result<impl IntoResponse> {
    let told = |name| cx.get(name).unwrap_or_default();
    let path = told("error.path");
    assert!(!path.ends_with("broken"), "on purpose");
    let language = headers.get("accept-language").unwrap_or_default();
    let own = match language {
        "own-status" => StatusCode::from_u16(status)?,
        _ => StatusCode::OK,
    };
    let page = format!(
        "own page {status} {} {path} {} {language}",
        told("error.status"),
        told("error.message")
    );
    Ok((own, page))
}

/// Answers with the context value `note` before and after setting it.
#[view(get, "/async/remember/{value}")]
pub async fn remember(cx: &Context, Path(value): Path<String>) -> Result<String> {
    let before = cx.get("note").unwrap_or_else(|| "nothing".into());
    cx.set("note", &value)?;
    Ok(format!("{before} {}", cx.get("note").unwrap_or_default()))
}

#[view(get, "/async/global")]
pub async fn global() -> String {
    deeds::calls()
}

#[view(get, "/async/setting/{name}")]
pub async fn setting(cx: &Context, Path(name): Path<String>) -> Result<String> {
    cx.config(&name)
        .ok_or_else(|| Error::not_found("no such setting"))
}

#[view(get, "/async/file")]
pub async fn read_file(Query(file): Query<File>) -> String {
    std::fs::read_to_string(&file.path).unwrap_or_else(|error| format!("{:?}", error.kind()))
}

#[view(put, "/async/file", atomic = false)]
pub async fn write_file(Query(file): Query<File>, Body(content): Body) -> String {
    std::fs::write(&file.path, content)
        .map_or_else(|error| format!("{:?}", error.kind()), |()| "written".into())
}

#[view(get, "/async/chatter/{text}")]
pub async fn chatter(Path(text): Path<String>) -> &'static str {
    deeds::chatter(&text)
}

#[view(get, "/async/cookies")]
pub async fn cookies(cookies: Cookies) -> impl IntoResponse {
    deeds::cookies(&cookies)
}
