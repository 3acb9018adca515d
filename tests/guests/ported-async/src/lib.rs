//! The async port of `ported-sync`. Each may be the served version or the candidate: the setting `role` says which, and
//! only the candidate misbehaves.

use amphi_sdk::prelude::*;
use amphi_sdk::{try_join, views};

const READ: &str = "select n from counters where name = $1";
const WRITE: &str = "update counters set n = $1 where name = $2";
const INSERT: &str = "insert into rows (tag) values ($1)";
const COUNT: &str = "select count(*) from rows where tag = $1";

#[derive(Deserialize)]
struct Order {
    tag: String,
    n: i64,
}

#[derive(Serialize)]
struct Made {
    rows: i64,
    n: i64,
    id: i64,
    mode: &'static str,
}

/// Writes a row and a counter, publishes an event, and tells what is there now.
#[view(post, "/orders", atomic)]
async fn order(cx: &Context, Json(order): Json<Order>) -> Result<Response> {
    let n = add(cx, &order.tag, order.n).await?;
    let insert = "insert into rows (tag) values ($1) returning id";
    let id: Option<i64> = cx.db().query_one(insert, (&order.tag,)).await?;
    let rows: Option<i64> = cx.db().query_one(COUNT, (&order.tag,)).await?;
    cx.publish_bytes("orders.made", order.tag.as_bytes())?;
    let made = Made {
        rows: rows.unwrap_or(0),
        n,
        id: id.unwrap_or(0),
        mode: "async",
    };
    let mut response = Json(made).into_response()?;
    response.headers.append("x-mode", "async");
    response.headers.append("x-tag", order.tag);
    Ok(response)
}

/// Adds one twice. Both at once: one is lost.
#[view(post, "/lost", atomic)]
async fn lost(cx: &Context) -> Result<&'static str> {
    add_twice(cx).await?;
    Ok("added")
}

/// As `lost`, at another level of isolation.
#[view(
    post,
    "/lost/repeatable",
    atomic,
    isolation = "repeatable-read",
    retries = 10
)]
async fn lost_repeatable(cx: &Context) -> Result<&'static str> {
    add_twice(cx).await?;
    Ok("added")
}

#[view(get, "/count/{tag}", atomic = false)]
async fn count(cx: &Context, Path(tag): Path<String>) -> Result<String> {
    let rows: Option<i64> = cx.db().query_one(COUNT, (tag,)).await?;
    Ok(rows.unwrap_or(0).to_string())
}

/// A safe request with a failing statement in it, outside of a transaction.
#[view(get, "/refused", atomic = false)]
async fn refused(cx: &Context) -> Result<&'static str> {
    let again = cx
        .db()
        .execute("insert into names values ('taken')", ())
        .await;
    let once_more = cx.db().query::<i64>("select 1", ()).await;
    Ok(match (again, once_more) {
        (Err(_), Ok(_)) => "refused, and went on",
        _ => "not refused",
    })
}

/// An unsafe request without a transaction.
#[view(post, "/loose", atomic = false)]
async fn loose(cx: &Context) -> Result<&'static str> {
    cx.db().execute(INSERT, ("loose",)).await?;
    Ok("written")
}

/// Writes a row. The candidate does in addition what the path names.
#[view(post, "/deeds/{deed}", atomic)]
async fn deed(cx: &Context, Path(deed): Path<String>) -> Result<String> {
    cx.db().execute(INSERT, ("deed",)).await?;
    if cx.config("role").as_deref() == Some("candidate") {
        misbehave(cx, &deed).await?;
    }
    Ok("done".to_owned())
}

/// The same in a safe request without a transaction, which writes nothing otherwise.
#[view(get, "/safe/{deed}", atomic = false)]
async fn safe_deed(cx: &Context, Path(deed): Path<String>) -> Result<String> {
    if cx.config("role").as_deref() == Some("candidate") {
        misbehave(cx, &deed).await?;
    }
    Ok("done".to_owned())
}

/// Writes a row, and lets the response tell that it was passed. The candidate does in addition what the header names.
#[middleware]
async fn around(cx: &Context, request: Request, next: Next) -> Result<Response> {
    cx.db().execute(INSERT, ("around",)).await?;
    let deed = request.headers.get("x-around").map(str::to_owned);
    if let (Some(deed), Some("candidate")) = (deed, cx.config("role").as_deref()) {
        misbehave(cx, &deed).await?;
    }
    let mut response = next.run(request).await?;
    response.headers.append("x-around", "passed");
    Ok(response)
}

/// A body that is produced while it is sent. The candidate's head differs where the path says so.
#[view(get, "/stream/{text}", atomic = false)]
async fn streamed(cx: &Context, Path(text): Path<String>) -> Result<Response> {
    let is_candidate = cx.config("role").as_deref() == Some("candidate");
    let head = match is_candidate && text == "differs" {
        true => "candidate",
        false => "served",
    };
    let stream = cx.stream(async move |cx, out| {
        cx.db().execute(INSERT, ("while sent",)).await?;
        out.write(text).await
    });
    stream.with_header("x-head", head).into_response()
}

/// Such a body behind a transaction.
#[view(post, "/stream/{text}", atomic)]
async fn streamed_atomic(cx: &Context, Path(text): Path<String>) -> Result<Response> {
    cx.db().execute(INSERT, ("before it is sent",)).await?;
    let stream = cx.stream(async move |cx, out| {
        cx.db().execute(INSERT, ("while sent",)).await?;
        out.write(text).await
    });
    stream.into_response()
}

/// Counts the visits of a browser, in its session.
#[view(post, "/visits", atomic)]
async fn visits(cx: &Context, session: Session) -> Result<String> {
    let visits: u32 = session.get("visits").unwrap_or(0);
    session.set("visits", &(visits + 1))?;
    cx.db().execute(INSERT, ("visit",)).await?;
    if cx.config("role").as_deref() == Some("candidate") && visits == 2 {
        session.clear();
    }
    Ok(visits.to_string())
}

/// The token of a form. It has another mask each time.
#[view(get, "/token", atomic = false)]
async fn token(csrf: Csrf) -> String {
    csrf.token().to_owned()
}

/// What only the app's own forms may do.
#[view(post, "/protected", atomic)]
async fn protected(cx: &Context, _: Protected) -> Result<&'static str> {
    cx.db().execute(INSERT, ("protected",)).await?;
    Ok("allowed")
}

/// Adds one to a row that others change, too.
#[view(post, "/steady", atomic, isolation = "repeatable-read", retries = 10)]
async fn steady(cx: &Context) -> Result<&'static str> {
    add(cx, "shared", 1).await?;
    Ok("added")
}

/// Fails in both versions.
#[view(post, "/broken", atomic)]
async fn broken(cx: &Context) -> Result<&'static str> {
    cx.db().execute(INSERT, ("broken",)).await?;
    Err(Error::internal("broken on purpose"))
}

/// Fails each second time, whoever asks.
#[view(post, "/flaky", atomic)]
async fn flaky(cx: &Context) -> Result<&'static str> {
    let number: Option<i64> = cx.db().query_one("select nextval('flaky')", ()).await?;
    match number.unwrap_or(0) % 2 {
        0 => Err(Error::internal("flaky on purpose")),
        _ => Ok("steady this time"),
    }
}

/// Only the versions of this mode have it.
#[view(post, "/only/async", atomic)]
async fn only_here(cx: &Context) -> Result<&'static str> {
    cx.db().execute(INSERT, ("only here",)).await?;
    Ok("here")
}

/// Atomic in the sync version alone.
#[view(post, "/partly", atomic = false)]
async fn partly(cx: &Context) -> Result<&'static str> {
    cx.db().execute(INSERT, ("partly",)).await?;
    cx.publish_bytes("orders.made", b"partly")?;
    Ok("partly")
}

async fn misbehave(cx: &asynch::Context, deed: &str) -> Result<()> {
    let execute = async |sql: &str| cx.db().execute(sql, ()).await.map(drop);
    match deed {
        "trap" => panic!("the candidate traps"),
        "spin" => loop {
            std::hint::black_box(());
        },
        "sleep" => cx.sleep(Duration::from_secs(60)).await,
        "memory" => std::mem::forget(vec![1_u8; 1 << 30]),
        "write" => execute("insert into rows (tag) values ('candidate')").await?,
        "nest" => {
            cx.atomic(async |tx| tx.execute(INSERT, ("candidate",)).await.map(drop))
                .await?
        }
        "publish" => {
            for _ in 0..20 {
                cx.publish_bytes("orders.made", b"candidate")?;
            }
        }
        "nested publish" => {
            cx.atomic(async |_| cx.publish_bytes("orders.made", b"candidate"))
                .await?
        }
        "send" => cx.channels().send("room.1", "candidate")?,
        "notify" => cx.channels().notify("room.1", &"candidate")?,
        "fetch" => drop(cx.http().get("/count/fetched").send().await),
        "pin" => drop(cx.db().pin().await?),
        "subrequest" => drop(cx.subrequest("POST", "/loose").send().await?),
        "context" => cx.set("left", "behind")?,
        "refuse" => return Err(Error::internal("the candidate answers 500")),
        "fail" => return Err(Error::conflict("the candidate refuses")),
        "rollback" => cx.set_rollback(),
        // What would end the transaction, or leave something in its session. Each may be refused.
        "commit" | "escape" => {
            for sql in [
                "commit",
                "end",
                "rollback",
                "release amphi_copy",
                "release savepoint amphi_copy",
                "rollback to amphi_copy",
                "savepoint amphi_copy",
                "commit and chain",
                "prepare transaction 'x'",
                "do $$ begin commit; end $$",
                "do $$ begin rollback; end $$",
            ] {
                let _ = cx
                    .atomic(async |tx| tx.execute(INSERT, ("candidate",)).await)
                    .await;
                let _: Result<u64> = cx.atomic(async |tx| tx.execute(sql, ()).await).await;
                let _ = cx.db().execute(sql, ()).await;
            }
        }
        "session" => {
            for sql in [
                "select set_config('search_path', 'pg_catalog', false)",
                "select pg_advisory_lock(1)",
                "create temp table counters (name text, n bigint)",
                "create table left_behind (n bigint)",
                "drop table counters",
                "alter table rows add column more text",
                "select set_config('statement_timeout', '1ms', true)",
            ] {
                let _: Result<Vec<Option<String>>> =
                    cx.atomic(async |tx| tx.query(sql, ()).await).await;
            }
        }
        "poison" => {
            let _ = execute("insert into names values ('taken')").await;
            let _ = execute("insert into rows (tag) values ('candidate')").await;
        }
        _ => {}
    }
    Ok(())
}

async fn add(cx: &asynch::Context, name: &str, more: i64) -> Result<i64> {
    let n: Option<i64> = cx.db().query_one(READ, (name,)).await?;
    let n = n.unwrap_or(0) + more;
    cx.db().execute(WRITE, (n, name)).await?;
    Ok(n)
}

/// As nobody should: both read before either writes, and one of them is lost.
async fn add_twice(cx: &asynch::Context) -> Result<()> {
    let read = || async { cx.db().query_one::<i64>(READ, ("one",)).await };
    let (first, second) = try_join!(read(), read())?;
    for n in [first, second] {
        let values = (n.unwrap_or(0) + 1, "one");
        cx.db().execute(WRITE, values).await?;
    }
    Ok(())
}

#[subscriber("orders.made")]
async fn made(cx: &Context, event: Event) -> Result<()> {
    let tag = String::from_utf8_lossy(&event.payload);
    let heard = cx.db().execute(INSERT, (format!("heard {tag}"),)).await;
    heard.map(drop)
}

views![
    order,
    lost,
    lost_repeatable,
    count,
    refused,
    loose,
    deed,
    safe_deed,
    made,
    around,
    streamed,
    streamed_atomic,
    visits,
    token,
    protected,
    steady,
    broken,
    flaky,
    only_here,
    partly,
];
