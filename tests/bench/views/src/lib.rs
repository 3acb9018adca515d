//! The views that the benchmark measures in addition to those of the module `hello`. Each does only what it is named
//! after.

use std::time::Instant;

use amphi_sdk::prelude::*;

/// The benchmark's clients regard an answer as complete when it ends with this text.
const HELLO: &str = "Hello, World!";
const READ: &str = "select name from items where id = $1";
const COUNT: &str = "update items set hits = hits + 1 where id = $1";
const MILLION: &str = "select a.id, a.name from items a, items b where b.id <= 100";
const LARGE: usize = 1 << 20;

#[derive(FromRow)]
struct Item {
    name: String,
}

#[view(get, "/sync/items/{id}")]
fn read_sync(cx: &Context, Path(id): Path<i64>) -> Result<String> {
    let item: Option<Item> = cx.database("sqlite").query_one(READ, (id,))?;
    Ok(item.map(|item| item.name).unwrap_or_default())
}

#[view(get, "/async/items/{id}")]
async fn read_async(cx: &Context, Path(id): Path<i64>) -> Result<String> {
    let item: Option<Item> = cx.database("sqlite").query_one(READ, (id,)).await?;
    Ok(item.map(|item| item.name).unwrap_or_default())
}

#[view(get, "/async/postgres/{id}")]
async fn read_postgres(cx: &Context, Path(id): Path<i64>) -> Result<String> {
    let item: Option<Item> = cx.database("postgres").query_one(READ, (id,)).await?;
    Ok(item.map(|item| item.name).unwrap_or_default())
}

#[view(post, "/sync/items/{id}")]
fn count_sync(cx: &Context, Path(id): Path<i64>) -> Result<()> {
    cx.database("sqlite").execute(COUNT, (id,))?;
    Ok(())
}

#[view(post, "/async/items/{id}")]
async fn count_async(cx: &Context, Path(id): Path<i64>) -> Result<()> {
    cx.database("sqlite").execute(COUNT, (id,)).await?;
    Ok(())
}

#[view(post, "/sync/echo")]
fn echo_sync(Body(body): Body) -> Vec<u8> {
    body
}

#[view(post, "/async/echo")]
async fn echo_async(Body(body): Body) -> Vec<u8> {
    body
}

#[view(get, "/sync/large")]
fn large_sync(_: &Context) -> Vec<u8> {
    vec![b'x'; LARGE]
}

#[view(get, "/async/large")]
async fn large_async(_: &Context) -> Vec<u8> {
    vec![b'x'; LARGE]
}

/// Makes a thousand host calls.
#[view(get, "/sync/asks")]
fn asks_sync(cx: &Context) -> &'static str {
    (0..1000).for_each(|_| drop(cx.get("nothing")));
    HELLO
}

#[view(get, "/async/asks")]
async fn asks_async(cx: &Context) -> &'static str {
    (0..1000).for_each(|_| drop(cx.get("nothing")));
    HELLO
}

/// Makes ten calls of 100 ms at the same time; answers with the duration of the slowest, in µs.
#[view(get, "/async/calls")]
async fn calls(cx: &Context) -> Result<String> {
    let call = async |_| {
        let since = Instant::now();
        cx.http().get("/async/sleep").send().await?;
        Ok::<_, Error>(since.elapsed())
    };
    let took = try_join_all((0..10).map(call)).await?;
    let slowest = took.into_iter().max().unwrap_or_default();
    Ok(slowest.as_micros().to_string())
}

#[view(get, "/async/sleep")]
async fn sleep(cx: &Context) -> &'static str {
    cx.sleep(Duration::from_millis(100)).await;
    HELLO
}

/// Waits until the client disconnects or the time limit ends it.
#[view(get, "/async/wait")]
async fn wait_async(cx: &Context) -> &'static str {
    cx.sleep(Duration::from_secs(60)).await;
    HELLO
}

#[view(get, "/sync/wait")]
fn wait_sync(_: &Context) -> &'static str {
    std::thread::sleep(Duration::from_secs(60));
    HELLO
}

/// Computes until the CPU limit ends it.
#[view(get, "/async/spin")]
async fn spin(_: &Context) -> &'static str {
    while std::hint::black_box(true) {}
    HELLO
}

#[socket("/sync/echo-socket")]
fn echo_socket_sync(cx: &Context, event: SocketEvent) -> Result<()> {
    match event {
        SocketEvent::Message(message) => cx.socket().send(message),
        _ => Ok(()),
    }
}

#[socket("/async/echo-socket")]
async fn echo_socket_async(cx: &Context, event: SocketEvent) -> Result<()> {
    match event {
        SocketEvent::Message(message) => cx.socket().send(message),
        _ => Ok(()),
    }
}

#[socket("/sync/broadcast")]
fn broadcast_sync(cx: &Context, event: SocketEvent) -> Result<()> {
    broadcast(cx, event)
}

#[socket("/async/broadcast")]
async fn broadcast_async(cx: &Context, event: SocketEvent) -> Result<()> {
    broadcast(cx, event).await
}

#[both]
async fn broadcast(cx: &Context, event: SocketEvent) -> Result<()> {
    match event {
        SocketEvent::Opened(_) => cx.socket().join("all"),
        SocketEvent::Message(message) => cx.channels().send("all", message),
        _ => Ok(()),
    }
}

/// A million rows as CSV. Each ends with a semicolon, by which the benchmark counts them.
#[view(get, "/sync/csv/{database}")]
fn csv_sync(cx: &Context, Path(database): Path<String>) -> Stream {
    cx.stream(move |cx, out| {
        let mut rows = cx.database(&database).rows(MILLION, ())?;
        while let Some(row) = rows.try_next()? {
            let (id, name): (i64, String) = row;
            out.write(format!("{id},{name};\n"))?;
        }
        Ok(())
    })
}

#[view(get, "/async/csv/{database}")]
async fn csv_async(cx: &Context, Path(database): Path<String>) -> Stream {
    cx.stream(async move |cx, out| {
        let mut rows = cx.database(&database).rows(MILLION, ()).await?;
        while let Some(row) = rows.try_next().await? {
            let (id, name): (i64, String) = row;
            out.write(format!("{id},{name};\n")).await?;
        }
        Ok(())
    })
}

views![
    echo_socket_sync,
    echo_socket_async,
    broadcast_sync,
    broadcast_async,
    csv_sync,
    csv_async,
    read_sync,
    read_async,
    read_postgres,
    count_sync,
    count_async,
    echo_sync,
    echo_async,
    large_sync,
    large_async,
    asks_sync,
    asks_async,
    calls,
    sleep,
    wait_async,
    wait_sync,
    spin
];
