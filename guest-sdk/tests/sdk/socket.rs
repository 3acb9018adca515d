//! Web sockets, groups and subscriptions.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, get, post};

/// What the sockets below do with a message.
fn obey<M: Mode>(cx: &Context<M>, message: &Message) -> Result<()> {
    let socket = cx.socket();
    match message.as_text().unwrap_or("bytes") {
        "echo" => socket.send("echo"),
        "all" => cx.channels().send("room.7", "to all"),
        "self" => cx.channels().send_to(socket.id()?, "to self"),
        "notify" => cx.channels().notify("room.7", &[1, 2]),
        "leave" => socket.leave("room.7"),
        "close" => socket.close(4000, "enough"),
        "code" => socket.close(1001, ""),
        "reason" => socket.close(1000, &"x".repeat(124)),
        "group" => socket.join("no group"),
        "large" => socket.send("x".repeat(65_537)),
        "many" => (0..=1000).try_for_each(|_| socket.send("")),
        "user" => cx.set("user", "ann"),
        "bytes" => socket.send(message.as_bytes().to_vec()),
        other => Err(Error::bad_request(format!("`{other}`?"))),
    }
}

#[socket("/sync/{room}", origins = ["https://a.example", "*"], cpu_ms = 20)]
fn chat(cx: &Context, Path(room): Path<u32>, event: SocketEvent) -> Result<()> {
    talk(cx, room, event)
}

#[socket("/async/{room}")]
async fn chat_async(cx: &Context, Path(room): Path<u32>, event: SocketEvent) -> Result<()> {
    talk(cx, room, event).await
}

#[both]
async fn talk(cx: &Context, room: u32, event: SocketEvent) -> Result<()> {
    let insert = "insert into events values ($1)";
    cx.db().execute(insert, (kind(&event),)).await?;
    match event {
        SocketEvent::Opened(opening) => {
            let name = opening.query("name");
            cx.set("name", &name.ok_or_else(|| Error::forbidden("who?"))?)?;
            cx.set("agent", opening.headers.get("user-agent").unwrap_or("none"))?;
            cx.socket().join(format!("room.{room}"))?;
            cx.socket().send(format!("Hello, room {room}"))
        }
        SocketEvent::Message(message) => {
            let count = cx.get_json("count")?.unwrap_or(0) + 1;
            cx.set_json("count", &count)?;
            let failing = message
                .as_text()
                .and_then(|text| text.strip_prefix("fail "));
            match failing {
                None => obey(cx, &message),
                Some(order) => {
                    obey(cx, &Message::text(order))?;
                    Err(Error::conflict("it was to fail"))
                }
            }
        }
        SocketEvent::Notice(notice) => {
            let numbers: Vec<u32> = notice.json()?;
            cx.socket().send(format!("{} {numbers:?}", notice.group))
        }
        SocketEvent::Closed(closed) => {
            cx.socket().leave(format!("room.{room}"))?;
            let left = cx.channels().members(format!("room.{room}"))?.count;
            log::info!(
                "closed",
                code = closed.code,
                reason = closed.reason,
                left = left
            );
            cx.channels().send("room.7", "one is gone")
        }
    }
}

fn kind(event: &SocketEvent) -> &'static str {
    match event {
        SocketEvent::Opened(_) => "opened",
        SocketEvent::Message(_) => "message",
        SocketEvent::Notice(_) => "notice",
        SocketEvent::Closed(_) => "closed",
    }
}

views![chat, chat_async, say, events, poll, loose, polite, guarded];

fn app() -> App {
    App::new().execute_batch("create table events (kind text)")
}

fn events_of(app: &App) -> Vec<String> {
    app.query("select kind from events order by rowid", ())
}

fn texts(messages: &[Message]) -> Vec<&str> {
    let texts = messages.iter().map(Message::as_text);
    texts.map(|text| text.unwrap_or("bytes")).collect()
}

#[test]
fn a_socket_lives_from_the_opening_to_the_end_in_both_modes() {
    lives::<chat>("/sync/7");
    lives::<chat_async>("/async/7");
}

fn lives<V: amphi_sdk::__private::View>(path: &str) {
    let app = app();
    let request = get(&format!("{path}?x=1&name=Ann%20B")).header("user-agent", "test");
    let mut ann = app.socket::<V>(request);
    assert_eq!(ann.response().status().as_u16(), 200);
    assert!(ann.is_open());
    let mut bob = app.socket::<V>(format!("{path}?name=Bob").as_str());
    let value = |name| ann.value(name).unwrap_or_default();
    assert_eq!(
        (value("name"), value("agent")),
        ("Ann B".into(), "test".into())
    );
    assert_eq!(
        (ann.groups(), ann.received()),
        (vec!["room.7".into()], vec![Message::text("Hello, room 7")])
    );
    assert_ne!(ann.id(), bob.id());

    for order in ["all", "self", "echo", "notify"] {
        assert_eq!(ann.send(order).error(), None);
    }
    ann.send(vec![7]);
    assert_eq!(
        texts(&ann.received()[1..]),
        ["to all", "to self", "echo", "bytes"]
    );
    assert_eq!(texts(&bob.received()[1..]), ["to all"]);
    assert_eq!(app.sent_to("room.7"), [Message::text("to all")]);
    assert_eq!(app.sent_to(ann.id()), [Message::text("to self")]);
    assert_eq!(ann.value("count").as_deref(), Some("5"));

    let [notice] = &app.notices()[..] else {
        panic!("{:?}", app.notices())
    };
    assert_eq!(
        (notice.group.as_str(), &notice.payload[..]),
        ("room.7", &b"[1,2]"[..])
    );
    bob.notice("room.7", &[1, 2]);
    assert_eq!(texts(&bob.received()[2..]), ["room.7 [1, 2]"]);
    assert!(bob.notice("room.7", "no numbers").error().is_some());

    bob.send("leave");
    assert_eq!(bob.groups(), [""; 0]);
    bob.send("close");
    let closed = bob.closed_by_view().expect("it is closed");
    assert_eq!((closed.code, closed.reason.as_str()), (4000, "enough"));
    assert!(!bob.is_open());
    assert_eq!(bob.closed(4000, "enough").error(), None);
    assert_eq!(ann.closed(1001, "").error(), None);
    let logs = app.logs();
    let fields = |at: usize| {
        logs[at]
            .fields
            .iter()
            .map(|(_, text)| text.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(fields(0), ["4000", "enough", "1"]);
    assert_eq!(fields(1), ["1001", "", "0"]);
    // Nobody was in the group when the second one had ended.
    assert_eq!(texts(&ann.received()[5..]), ["one is gone"]);
    let events = events_of(&app);
    assert_eq!(events.iter().filter(|kind| *kind == "closed").count(), 2);
}

#[test]
fn a_refused_socket_leaves_nothing() {
    refuses::<chat>("/sync/7");
    refuses::<chat_async>("/async/7");
}

fn refuses<V: amphi_sdk::__private::View>(path: &str) {
    let app = app();
    let socket = app.socket::<V>(path);
    assert_eq!(socket.response().status(), StatusCode::FORBIDDEN);
    assert_eq!(socket.response().text(), "who?");
    assert!(!socket.is_open() && socket.groups().is_empty() && socket.received().is_empty());
    assert!(events_of(&app).is_empty());
    let socket = app.socket::<V>(format!("{}x?name=Ann", path).as_str());
    assert_eq!(socket.response().status(), StatusCode::BAD_REQUEST);
}

#[test]
fn what_a_failing_event_has_done_is_dropped() {
    drops::<chat>("/sync/7?name=Ann");
    drops::<chat_async>("/async/7?name=Ann");
}

fn drops<V: amphi_sdk::__private::View>(path: &str) {
    let app = app();
    let mut socket = app.socket::<V>(path);
    for order in ["echo", "all", "self", "notify", "leave", "close"] {
        let response = socket.send(format!("fail {order}"));
        assert_eq!(response.status(), StatusCode::CONFLICT, "{order}");
    }
    assert_eq!(socket.received().len(), 1);
    assert_eq!(
        (socket.groups(), socket.closed_by_view()),
        (vec!["room.7".to_owned()], None)
    );
    assert!(app.sent_to("room.7").is_empty() && app.notices().is_empty());
    assert_eq!(socket.value("count"), None);
    assert_eq!(events_of(&app), ["opened"]);
    socket.send("echo");
    assert_eq!(socket.value("count").as_deref(), Some("1"));
}

#[test]
fn what_the_host_would_refuse_is_refused() {
    let app = app();
    let mut socket = app.socket::<chat>("/sync/7?name=Ann");
    for (order, sentence) in [
        ("code", "not with 1001"),
        ("reason", "and 124 bytes"),
        ("group", "`no group` is not a group"),
        ("large", "`payload_max_bytes` of `[channels]` is 65536"),
        ("many", "as many as `events_max` allows"),
        ("user", "`user` is the host's"),
    ] {
        let response = socket.send(order);
        let error = response.error().expect(order).to_string();
        assert!(error.contains(sentence), "{order}: {error}");
    }
    let response = app.call::<say>(post("/say"));
    let error = response.error().expect("it is no socket").to_string();
    assert!(error.contains("there is no web socket"), "{error}");
}

#[view(post, "/say")]
fn say(cx: &Context) -> Result<()> {
    cx.socket().id().map(drop).expect_err("it is no socket");
    cx.socket().leave("room.7").expect_err("it is no socket");
    cx.socket().send("Hi")
}

#[socket("/loose", atomic = false)]
fn loose(cx: &Context, event: SocketEvent) -> Result<()> {
    if let SocketEvent::Message(message) = event {
        let lost: Result<()> = cx.atomic(|_| {
            cx.channels().send("room.7", "lost")?;
            Err(Error::conflict("no"))
        });
        assert!(lost.is_err());
        cx.atomic(|_| cx.channels().send("room.7", "kept"))?;
        cx.channels().send("room.7", "at once")?;
        return Err(Error::bad_request(message.json::<String>()?));
    }
    Ok(())
}

#[test]
fn r20_messages_go_with_the_level_they_were_sent_in() {
    let app = App::new().member("room.7", "other", None);
    let mut socket = app.socket::<loose>("/loose");
    let response = socket.send(Message::of_json("done").expect("it is JSON"));
    assert_eq!(response.text(), "done");
    assert_eq!(texts(&app.sent_to("room.7")), ["kept", "at once"]);
    let refused = socket.send("not JSON");
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(socket.send("1").status(), StatusCode::UNPROCESSABLE_ENTITY);
}

/// Sets a cookie of its own, the session and the subprotocol.
#[socket("/polite")]
fn polite(session: Session, event: SocketEvent) -> Result<impl IntoResponse> {
    match event {
        SocketEvent::Opened(opening) => {
            let offered: Vec<&str> = opening.subprotocols().collect();
            assert_eq!(offered, ["a", "b", "c"]);
            assert_eq!(opening.choose_subprotocol(&["z"]), None);
            assert_eq!(opening.choose_subprotocol(&["c", "a"]), Some("c"));
            session.set("opened", &true)?;
            if opening.query("refuse").is_some() {
                return Redirect::see_other("/sign-in").into_response();
            }
        }
        SocketEvent::Message(message) => {
            assert_eq!(session.get::<bool>("opened"), None);
            if message.as_text() == Some("set") {
                session.set("late", &true)?;
            }
        }
        SocketEvent::Notice(_) | SocketEvent::Closed(_) => {}
    }
    ().with_header("x-polite", "yes").into_response()
}

#[test]
fn the_handshake_carries_what_the_view_says() {
    let app = App::new();
    let request = |path| {
        get(path)
            .header("sec-websocket-protocol", "a, b")
            .header("Sec-WebSocket-Protocol", "c")
    };
    let mut socket = app.socket::<polite>(request("/polite").session("user", "ann"));
    let response = socket.response();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.header("sec-websocket-protocol"), Some("c"));
    assert_eq!(response.header("x-polite"), Some("yes"));
    assert_eq!(response.session::<bool>("opened"), Some(true));
    assert_eq!(response.session::<String>("user").as_deref(), Some("ann"));
    assert_eq!(socket.send("hello").error(), None);
    let error = socket
        .send("set")
        .error()
        .expect("it is too late")
        .to_string();
    assert!(error.contains("only when it opens"), "{error}");

    let refused = app.socket::<polite>(request("/polite?refuse"));
    assert_eq!(refused.response().header("location"), Some("/sign-in"));
    assert_eq!(refused.response().header("sec-websocket-protocol"), None);
    assert!(!refused.is_open());
}

#[middleware]
fn known(cx: &Context, headers: Headers, request: Request, next: Next) -> Result<Response> {
    let who = headers.get("x-user");
    cx.set("who", who.ok_or_else(|| Error::unauthorized("who?"))?)?;
    next.run(request)
}

#[socket("/guarded", middleware = [known])]
async fn guarded(cx: &Context, event: SocketEvent) -> Result<()> {
    if let SocketEvent::Message(_) = event {
        cx.socket().send(cx.get("who").unwrap_or_default())?;
    }
    Ok(())
}

#[test]
fn middleware_runs_around_the_opening_alone() {
    let app = App::new().spool_over(2);
    assert_eq!(
        app.socket::<guarded>("/guarded").response().status(),
        StatusCode::UNAUTHORIZED
    );
    let mut socket = app.socket::<guarded>(get("/guarded").header("x-user", "ann"));
    socket.send("a message that the host keeps");
    assert_eq!(socket.received(), [Message::text("ann")]);

    let app = app
        .around::<chat>()
        .execute_batch("create table events (kind text)");
    let mut socket = app.socket::<known>(get("/sync/7?name=Ann").header("x-user", "ann"));
    socket.send("echo");
    assert_eq!(texts(&socket.received()), ["Hello, room 7", "echo"]);
}

#[test]
#[should_panic(expected = "`socket::chat` is for a socket")]
fn a_socket_is_not_called() {
    App::new().call::<chat>(get("/sync/7"));
}

#[test]
#[should_panic(expected = "`socket::say` is no socket")]
fn a_view_is_not_opened() {
    App::new().socket::<say>("/say");
}

#[test]
#[should_panic(expected = "this socket is not open")]
fn a_closed_socket_gets_no_messages() {
    let mut socket = app().socket::<chat>("/sync/7?name=Ann");
    socket.send("close");
    socket.send("echo");
}

#[view(get, "/events/{group}")]
fn events(Path(group): Path<String>, LastEventId(last): LastEventId) -> impl IntoResponse {
    EventStream::of(group)
        .after(last)
        .with_header("x-kind", "events")
}

#[view(get, "/poll/{group}")]
async fn poll(Path(group): Path<String>) -> Poll {
    Poll::of(group, None, Duration::from_millis(1500))
}

#[middleware]
async fn stamped(request: Request, next: Next) -> Result<Response> {
    let mut response = next.run(request).await?;
    assert!(response.is_stream() && response.bytes().is_err());
    response.headers.set("x-stamp", "yes");
    Ok(response)
}

#[test]
fn a_subscription_is_what_the_client_waits_for() {
    let app = App::new();
    let response = app.call::<events>(get("/events/room.7").header("last-event-id", "4"));
    let subscription = response.subscription().expect("it is one");
    assert_eq!(
        (
            subscription.group.as_str(),
            subscription.after.as_deref(),
            subscription.poll
        ),
        ("room.7", Some("4"), None)
    );
    assert_eq!(
        (response.status().as_u16(), response.header("x-kind")),
        (200, Some("events"))
    );

    let response = app.call::<events>(get("/events/room.7"));
    assert_eq!(
        response.subscription().and_then(|it| it.after.clone()),
        None
    );

    let response = app.call::<events>(get("/events/no%20group"));
    assert_eq!(
        (response.status().as_u16(), response.subscription()),
        (500, None)
    );

    let response = app.around::<poll>().call::<stamped>(get("/poll/room.8"));
    let subscription = response.subscription().expect("it is passed on");
    assert_eq!(subscription.poll, Some(Duration::from_millis(1500)));
    assert_eq!(
        (subscription.group.as_str(), response.header("x-stamp")),
        ("room.8", Some("yes"))
    );
}

#[view(get, "/members")]
fn members(cx: &Context) -> Result<String> {
    let members = cx.channels().members("room.7")?;
    let named = members
        .list
        .iter()
        .map(|it| format!("{} {:?};", it.connection, it.user));
    Ok(named.chain([members.count.to_string()]).collect())
}

#[test]
fn members_are_those_that_the_test_adds_and_those_that_join() {
    let app = app()
        .value("user", "ben")
        .member("room.7", "c1", Some("ann"));
    let socket = app.socket::<chat>("/sync/7?name=Ben");
    let wanted = format!("c1 Some(\"ann\");{} Some(\"ben\");2", socket.id());
    assert_eq!(app.call::<members>(get("/members")).text(), wanted);
}
