//! Web sockets that do what their clients say, event streams and polls: in both modes, below `/sync` and `/async`.

use amphi_sdk::prelude::*;

mod conversation;

/// What a client says to do, and with what: `say hello`.
fn command(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

#[both]
async fn handle(cx: &Context, room: String, event: SocketEvent) -> Result<()> {
    let group = format!("room.{room}");
    match event {
        SocketEvent::Opened(opening) => {
            if opening.query("refuse").is_some() {
                return Err(Error::forbidden("refused on purpose"));
            }
            if opening.query("panic").is_some() {
                panic!("a panic at the opening, on purpose");
            }
            let name = opening.query("name").unwrap_or_else(|| "nobody".into());
            opening.choose_subprotocol(&["v2", "v1"]);
            cx.set("name", &name)?;
            cx.socket().join(&group)?;
            add(cx, &format!("opened {name}")).await?;
            cx.socket().send(Message::text(format!("welcome {name}")))
        }
        SocketEvent::Message(Message::Binary(bytes)) => cx.socket().send(Message::Binary(bytes)),
        SocketEvent::Message(Message::Text(text)) => told(cx, &group, &text).await,
        SocketEvent::Notice(notice) => {
            let text = String::from_utf8_lossy(&notice.payload).into_owned();
            cx.socket()
                .send(Message::text(format!("notice in {}: {text}", notice.group)))
        }
        SocketEvent::Closed(closed) => {
            let name = cx.get("name").unwrap_or_default();
            add(cx, &format!("closed {name} {}", closed.code)).await?;
            cx.channels()
                .send(&group, Message::text(format!("{name} has left")))
        }
    }
}

#[both]
async fn told(cx: &Context, group: &str, text: &str) -> Result<()> {
    let name = cx.get("name").unwrap_or_default();
    let (what, with) = command(text);
    match what {
        "say" => {
            add(cx, with).await?;
            cx.channels()
                .send(group, Message::text(format!("{name}: {with}")))
        }
        // Nothing of this is kept.
        "fail" | "panic" => {
            add(cx, with).await?;
            cx.set("name", "changed")?;
            cx.channels()
                .send(group, Message::text(format!("{name}: {with}")))?;
            cx.socket().send(Message::text("never"))?;
            cx.socket().join("room.other")?;
            if what == "panic" {
                panic!("a panic on purpose");
            }
            Err(Error::internal("a failure on purpose"))
        }
        "spin" => loop {
            std::hint::black_box(());
        },
        "set" => cx.set("name", with),
        "join" => cx.socket().join(format!("room.{with}")),
        "leave" => cx.socket().leave(format!("room.{with}")),
        "send" => {
            let (to, text) = command(with);
            cx.channels()
                .send(format!("room.{to}"), Message::text(text))
        }
        "tell" => {
            let (to, text) = command(with);
            cx.channels().send_to(to, Message::text(text))
        }
        "notify" => cx.channels().notify_bytes(group, with.as_bytes()),
        "close" => cx.socket().close(4000, with),
        "late" => {
            cx.socket().close(4000, with)?;
            cx.socket().send(Message::text("never"))
        }
        "id" => {
            let id = cx.socket().id()?;
            cx.socket().send(Message::text(id))
        }
        "members" => {
            let members = cx.channels().members(group)?;
            cx.socket()
                .send(Message::text(format!("{} members", members.count)))
        }
        "who" => {
            let members = cx.channels().members(group)?.list;
            let mut names: Vec<_> = (members.into_iter())
                .map(|member| member.user.unwrap_or_default())
                .collect();
            names.sort();
            cx.socket().send(Message::text(names.join(", ")))
        }
        "flood" => {
            for _ in 0..with.parse().unwrap_or(1) {
                cx.socket().send(Message::text("x".repeat(1000)))?;
            }
            Ok(())
        }
        _ => cx.socket().send(Message::text(format!("echo {text}"))),
    }
}

#[both]
async fn add(cx: &Context, tag: &str) -> Result<()> {
    cx.db()
        .execute("insert into rows (tag) values ($1)", (tag,))
        .await?;
    Ok(())
}

/// What middleware does before the opening of a socket: refuses, or tells the view.
#[both]
async fn admit(cx: &Context, query: &str, name: &str) -> Result<()> {
    if query.contains("guard=refuse") {
        return Err(Error::forbidden("refused by middleware"));
    }
    let told = cx.get("guards").unwrap_or_default();
    cx.set("guards", &format!("{told}{name} "))?;
    add(cx, &format!("before {name}")).await
}

/// What middleware does after the opening: refuses all the same, or adds a header.
#[both]
async fn admitted(cx: &Context, query: &str, name: &str, response: Response) -> Result<Response> {
    if query.contains("guard=late") {
        return Err(Error::conflict("refused by middleware after the view"));
    }
    let status = response.status.as_u16();
    add(cx, &format!("after {name} {status}")).await?;
    response.with_header("x-guard", name).into_response()
}

#[middleware]
fn sync_guard(cx: &Context, request: Request, next: Next) -> Result<Response> {
    let query = request.query.clone();
    admit(cx, &query, "sync")?;
    let response = next.run(request)?;
    admitted(cx, &query, "sync", response)
}

#[middleware]
async fn async_guard(cx: &Context, request: Request, next: Next) -> Result<Response> {
    let query = request.query.clone();
    admit(cx, &query, "async").await?;
    let response = next.run(request).await?;
    admitted(cx, &query, "async", response).await
}

/// How long the command `nap` waits: longer than any limit.
const NAP: Duration = Duration::from_secs(60);

fn is_nap(event: &SocketEvent) -> bool {
    matches!(event, SocketEvent::Message(Message::Text(text)) if text == "nap")
}

#[socket("/sync/room/{room}", atomic, cpu_ms = 300)]
fn sync_room(cx: &Context, Path(room): Path<String>, event: SocketEvent) -> Result<()> {
    if is_nap(&event) {
        std::thread::sleep(NAP);
    }
    handle(cx, room, event)
}

#[socket("/async/room/{room}", atomic, cpu_ms = 300)]
async fn async_room(cx: &Context, Path(room): Path<String>, event: SocketEvent) -> Result<()> {
    if is_nap(&event) {
        cx.sleep(NAP).await;
    }
    handle(cx, room, event).await
}

#[view(post, "/sync/send/{group}", atomic)]
fn sync_send(cx: &Context, Path(group): Path<String>, Json(text): Json<String>) -> Result<()> {
    cx.channels().send(group, Message::text(text))
}

#[view(post, "/async/send/{group}", atomic)]
async fn async_send(
    cx: &Context,
    Path(group): Path<String>,
    Json(text): Json<String>,
) -> Result<()> {
    cx.channels().send(group, Message::text(text))
}

/// What a view does around a message.
#[derive(serde::Deserialize)]
struct Post {
    text: String,
    /// How many times the message is sent, with its number behind it; 0: once, as it is.
    #[serde(default)]
    count: u32,
    /// What happens after that, such as `panic`.
    #[serde(default)]
    then: String,
}

#[both]
async fn posted(cx: &Context, group: &str, post: &Post) -> Result<()> {
    add(cx, &post.text).await?;
    if post.count == 0 {
        cx.channels().send(group, Message::text(&post.text))?;
    }
    for number in 0..post.count {
        let text = format!("{} {number}", post.text);
        cx.channels().send(group, Message::text(text))?;
    }
    cx.channels().notify_bytes(group, post.text.as_bytes())?;
    match post.then.as_str() {
        "error" => Err(Error::internal("a failure on purpose")),
        "refuse" => Err(Error::conflict("refused on purpose")),
        "panic" => panic!("a panic on purpose"),
        "spin" => loop {
            std::hint::black_box(());
        },
        // The commit fails, because there is no such parent.
        "orphan" => {
            cx.db()
                .execute("insert into children (parent) values (99)", ())
                .await?;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[view(post, "/sync/post/{group}", atomic, cpu_ms = 300)]
fn sync_post(cx: &Context, Path(group): Path<String>, Json(post): Json<Post>) -> Result<()> {
    posted(cx, &group, &post)
}

#[view(post, "/async/post/{group}", atomic, cpu_ms = 300)]
async fn async_post(cx: &Context, Path(group): Path<String>, Json(post): Json<Post>) -> Result<()> {
    posted(cx, &group, &post).await
}

#[view(get, "/sync/events/{group}")]
fn sync_events(Path(group): Path<String>, LastEventId(after): LastEventId) -> EventStream {
    EventStream::of(group).after(after)
}

#[view(get, "/async/events/{group}")]
async fn async_events(Path(group): Path<String>, LastEventId(after): LastEventId) -> EventStream {
    EventStream::of(group).after(after)
}

#[derive(serde::Deserialize)]
struct Wait {
    after: Option<String>,
    ms: u64,
}

#[view(get, "/sync/poll/{group}")]
fn sync_poll(Path(group): Path<String>, Query(Wait { after, ms }): Query<Wait>) -> Poll {
    Poll::of(group, after, Duration::from_millis(ms))
}

#[view(get, "/async/poll/{group}")]
async fn async_poll(Path(group): Path<String>, Query(Wait { after, ms }): Query<Wait>) -> Poll {
    Poll::of(group, after, Duration::from_millis(ms))
}

views![
    conversation::talk,
    sync_guard,
    async_guard,
    sync_room,
    async_room,
    sync_send,
    async_send,
    sync_post,
    async_post,
    sync_events,
    async_events,
    sync_poll,
    async_poll,
];
