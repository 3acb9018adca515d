//! The sync views.

use amphi_sdk::prelude::*;

use crate::deeds::{self, Digest, Entry, Fetch, File, With, told};

#[view(get, "/sync/hello")]
pub fn hello() -> &'static str {
    "hello"
}

#[view(get, "/sync/greet/{name}")]
pub fn greet(Path(name): Path<String>) -> String {
    format!("hello {name}")
}

/// This pattern is more specific than the pattern of `greet`, but is for another method.
#[view(post, "/sync/greet/everybody")]
pub fn greet_everybody() -> &'static str {
    "hello everybody"
}

#[view(get, "/sync/grüße/{name}")]
pub fn greet_in_german(Path(name): Path<String>, request: Request) -> impl IntoResponse {
    // The header has the path as the host passes it to guests.
    format!("hallo {name}").with_header("x-path", request.path)
}

#[view(post, "/sync/submit")]
pub fn submit(Form(entry): Form<Entry>) -> String {
    format!("{} is {}", entry.name, entry.age)
}

/// Inserts a row, then ends in the way that its path names: see `deeds::end`.
#[view(post, "/sync/fail/{how}")]
pub fn fail(cx: &Context, Path(how): Path<String>) -> Result<Response> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (&how,))?;
    match how.as_str() {
        "sleep" => {
            std::thread::sleep(Duration::from_secs(60));
            "slept".into_response()
        }
        "sleep-then-write" => {
            for _ in 0..600 {
                std::thread::sleep(Duration::from_millis(100));
                cx.db()
                    .execute("insert into rows (tag) values ('after a nap')", ())?;
            }
            "slept".into_response()
        }
        how => deeds::end(how),
    }
}

/// Ends in the way that its path names, without touching the database.
#[view(get, "/sync/fail/{how}")]
pub fn fail_plainly(Path(how): Path<String>) -> Result<Response> {
    deeds::end(&how)
}

#[view(post, "/sync/rows/{tag}")]
pub fn insert(cx: &Context, Path(tag): Path<String>) -> Result<StatusCode> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (tag,))?;
    Ok(StatusCode::CREATED)
}

/// Inserts the number, and traps if it is a multiple of three.
#[view(post, "/sync/numbers/{number}")]
pub fn insert_or_trap(cx: &Context, Path(number): Path<u32>) -> Result<StatusCode> {
    cx.db()
        .execute("insert into rows (tag) values (?)", (number.to_string(),))?;
    assert!(!number.is_multiple_of(3), "three of them");
    Ok(StatusCode::CREATED)
}

#[view(post, "/sync/savepoints")]
pub fn savepoints(cx: &Context) -> Result<String> {
    let insert = "insert into rows (tag) values (?)";
    cx.db().execute(insert, ("outer",))?;
    let undone: Result<()> = cx.atomic(|tx| {
        tx.execute(insert, ("undone",))?;
        tx.atomic(|inner| inner.execute(insert, ("undone inside",)))?;
        Err(Error::conflict("undo this"))
    });
    let kept = cx.atomic(|tx| {
        tx.execute(insert, ("kept",))?;
        let inner: Result<()> = tx.atomic(|inner| {
            inner.execute(insert, ("undone innermost",))?;
            Err(Error::conflict("undo this"))
        });
        Ok(inner.is_err())
    })?;
    Ok(format!("{} {kept}", undone.is_err()))
}

/// Runs the statement in its body, outside a transaction.
#[view(post, "/sync/sql", atomic = false)]
pub fn sql(cx: &Context, Query(how): Query<With>, Body(sql): Body) -> Result<String> {
    let sql = String::from_utf8(sql)?;
    Ok(told(run(cx, &how, &sql)))
}

/// Runs the statement in its body in a savepoint of the view's transaction, and answers 200 even if it fails.
#[view(post, "/sync/sql/atomic", atomic)]
pub fn sql_atomic(cx: &Context, Query(how): Query<With>, Body(sql): Body) -> Result<String> {
    cx.db()
        .execute("insert into rows (tag) values ('before')", ())?;
    let sql = String::from_utf8(sql)?;
    Ok(told(cx.atomic(|_| run(cx, &how, &sql))))
}

fn run(cx: &sync::Context, how: &With, sql: &str) -> Result<u64> {
    match how.with.as_deref() {
        Some("query") => {
            let rows = cx.db().query::<Option<String>>(sql, ())?;
            Ok(rows.len() as u64)
        }
        Some("rows") => Ok(count(cx, sql)? as u64),
        Some("begin") => cx.atomic(|tx| tx.execute(sql, ())),
        Some(other) => cx.database(other).execute(sql, ()),
        None => cx.db().execute(sql, ()),
    }
}

fn count(cx: &sync::Context, sql: &str) -> Result<usize> {
    let mut count = 0;
    for row in cx.db().rows::<Option<String>>(sql, ())? {
        row?;
        count += 1;
    }
    Ok(count)
}

/// Runs the query in its body `count` times, one after the other.
#[view(post, "/sync/joined/{count}", atomic = false)]
pub fn joined(cx: &Context, Path(count): Path<usize>, Body(sql): Body) -> Result<String> {
    let sql = String::from_utf8(sql)?;
    let all: Vec<i64> = (0..count)
        .map(|_| Ok(cx.db().query_one(&sql, ())?.unwrap_or(0)))
        .collect::<Result<_>>()?;
    Ok(all.iter().sum::<i64>().to_string())
}

/// Reads all rows from a result that is fetched piece by piece.
#[view(get, "/sync/export")]
pub fn export(cx: &Context) -> Result<String> {
    let (mut count, mut sum) = (0, 0);
    for row in cx
        .db()
        .rows::<(i64, String)>("select id, tag from rows", ())?
    {
        let (id, _) = row?;
        count += 1;
        sum += id;
    }
    Ok(format!("{count} {sum}"))
}

/// Opens `count` results of a megabyte each and keeps them open. Answers with how many it could open.
#[view(post, "/sync/hoard/{count}")]
pub fn hoard(cx: &Context, Path(count): Path<usize>) -> String {
    let mut open = Vec::new();
    for _ in 0..count {
        match cx.db().rows::<Vec<u8>>("select zeroblob(1000000)", ()) {
            Ok(rows) => open.push(rows),
            Err(_) => break,
        }
    }
    open.len().to_string()
}

/// Like `hoard`, without a transaction.
#[view(post, "/sync/hoard/{count}/outside", atomic = false)]
pub fn hoard_outside(cx: &Context, path: Path<usize>) -> String {
    hoard(cx, path)
}

#[view(get, "/sync/nap/{ms}")]
pub fn nap(Path(ms): Path<u64>) -> String {
    std::thread::sleep(Duration::from_millis(ms));
    format!("slept {ms}")
}

#[view(get, "/sync/spin/{ms}")]
pub fn spin(Path(ms): Path<u64>) -> String {
    deeds::spin(ms)
}

/// A view with limits of its own.
#[view(get, "/sync/short/{how}", cpu_ms = 50, timeout_ms = 1000)]
pub fn short(Path(how): Path<String>) -> Result<Response> {
    if how == "nap" {
        std::thread::sleep(Duration::from_secs(60));
    }
    deeds::end(&how)
}

#[view(get, "/sync/fetch")]
pub fn fetch(cx: &Context, Query(fetch): Query<Fetch>) -> String {
    let mut request = cx.http().get(fetch.url);
    if let Some(ms) = fetch.timeout_ms {
        request = request.timeout(Duration::from_millis(ms));
    }
    told(
        request
            .send()
            .and_then(|response| Ok(format!("{} {}", response.status.as_u16(), response.text()?))),
    )
}

/// Sends the same request several times, one after the other.
#[view(get, "/sync/fan")]
pub fn fan(cx: &Context, Query(fetch): Query<Fetch>) -> Result<String> {
    let mut replies = 0;
    for _ in 0..fetch.count.unwrap_or(10) {
        cx.http().get(&fetch.url).send()?.error_for_status()?;
        replies += 1;
    }
    Ok(format!("{replies} replies"))
}

/// Reads its body piece by piece.
#[view(post, "/sync/digest", atomic = false)]
pub fn digest(cx: &Context, body: BodyReader) -> Result<String> {
    let mut digest = Digest::default();
    for piece in cx.chunks(body) {
        digest.add(&piece?);
    }
    Ok(digest.text())
}

/// Reads its whole body in one piece.
#[view(post, "/sync/whole", atomic = false)]
pub fn whole(Body(body): Body) -> String {
    let mut digest = Digest::default();
    digest.add(&body);
    digest.text()
}

#[view(get, "/sync/identity")]
pub fn identity(cx: &Context, headers: Headers) -> String {
    format!(
        "{} {} {}",
        cx.request_id(),
        cx.route(),
        headers.get("x-request-id").unwrap_or("none")
    )
}

/// The values of a request header, joined by ` | `.
#[view(get, "/sync/header/{name}")]
pub fn header(Path(name): Path<String>, headers: Headers) -> String {
    headers.get_all(&name).collect::<Vec<_>>().join(" | ")
}

/// A page with an `etag` from its path.
#[view(get, "/sync/tagged/{tag}")]
pub fn tagged(Path(tag): Path<String>) -> impl IntoResponse {
    Html("<p>tagged</p>".repeat(300)).with_header("etag", format!("\"{tag}\""))
}

/// The app's error page. The page itself fails for paths that end with `broken`. It sets the status itself when the
/// header `accept-language` is `own-status`.
#[view(get, "/sync/error/{status}")]
pub fn error_page(
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
#[view(get, "/sync/remember/{value}")]
pub fn remember(cx: &Context, Path(value): Path<String>) -> Result<String> {
    let before = cx.get("note").unwrap_or_else(|| "nothing".into());
    cx.set("note", &value)?;
    Ok(format!("{before} {}", cx.get("note").unwrap_or_default()))
}

#[view(get, "/sync/global")]
pub fn global() -> String {
    deeds::calls()
}

#[view(get, "/sync/setting/{name}")]
pub fn setting(cx: &Context, Path(name): Path<String>) -> Result<String> {
    cx.config(&name)
        .ok_or_else(|| Error::not_found("no such setting"))
}

#[view(get, "/sync/file")]
pub fn read_file(Query(file): Query<File>) -> String {
    std::fs::read_to_string(&file.path).unwrap_or_else(|error| format!("{:?}", error.kind()))
}

#[view(put, "/sync/file", atomic = false)]
pub fn write_file(Query(file): Query<File>, Body(content): Body) -> String {
    std::fs::write(&file.path, content)
        .map_or_else(|error| format!("{:?}", error.kind()), |()| "written".into())
}

#[view(get, "/sync/chatter/{text}")]
pub fn chatter(Path(text): Path<String>) -> &'static str {
    deeds::chatter(&text)
}

#[view(get, "/sync/cookies")]
pub fn cookies(cookies: Cookies) -> impl IntoResponse {
    deeds::cookies(&cookies)
}
