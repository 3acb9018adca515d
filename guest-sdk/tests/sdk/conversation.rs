//! Functions that keep the conversation of a web socket.

use amphi_sdk::prelude::*;
use amphi_sdk::socket::Opening;
use amphi_sdk::testing::{App, get};

struct Name(String);

#[extractor]
async fn name(cx: &Context, opening: Opening) -> Result<Name> {
    let insert = "insert into events values ('opening')";
    cx.db().execute(insert, ()).await?;
    opening.choose_subprotocol(&["talk.v1"]);
    let name = opening.query("name");
    name.map(Name).ok_or_else(|| Error::forbidden("who?"))
}

#[socket("/talk/{room}", atomic)]
async fn talk(
    cx: &Context,
    Path(room): Path<u32>,
    Name(name): Name,
    session: Session,
    mut socket: Socket,
) -> Result<()> {
    socket.join(format!("room.{room}"))?;
    let mut count = 0;
    while let Some(event) = socket.receive().await? {
        let message = match event {
            Received::Message(message) => message,
            Received::Notice(notice) => {
                let text: String = notice.json()?;
                socket.send(format!("{}: {text}", notice.group)).await?;
                continue;
            }
        };
        count += 1;
        match message.as_text().unwrap_or("bytes") {
            "count" => socket.send(format!("{name}: {count}")).await?,
            "keep" | "undo" => {
                let kept = cx.atomic(async |tx| {
                    tx.execute("insert into events values ('kept')", ()).await?;
                    socket.send("in the block").await?;
                    match message.as_text() {
                        Some("keep") => Ok(()),
                        _ => Err(Error::conflict("undone")),
                    }
                });
                let kept = kept.await.is_ok();
                socket.send(format!("{kept}")).await?;
            }
            "inner" => {
                let inner = cx.atomic(async |_| socket.receive().await.map(drop));
                let error = inner.await.expect_err("it is refused");
                socket.send(error.detail().unwrap_or_default()).await?;
            }
            "pinned" => {
                let pinned = cx.db().pin().await?;
                assert!(socket.receive().await.is_err());
                drop(pinned);
            }
            "many" => {
                for _ in 0..2_000 {
                    socket.send("").await?;
                }
            }
            "session" => session.set("name", &name)?,
            "fail" => return Err(Error::conflict("it was to fail")),
            "close" => socket.close(4000, "enough")?,
            "end" => return Ok(()),
            "wait" => match socket.receive_within(Duration::from_secs(5)).await? {
                Some(_) => socket.send("came").await?,
                None if socket.is_open() => socket.send("nothing came").await?,
                None => log::info!("ended while it waited"),
            },
            "race" => {
                // The first future of `receive` is dropped.
                let short = cx.sleep(Duration::from_secs(1));
                let won = match futures_util::future::select(
                    std::pin::pin!(socket.receive()),
                    std::pin::pin!(short),
                )
                .await
                {
                    futures_util::future::Either::Left(_) => "event",
                    futures_util::future::Either::Right(_) => "sleep",
                };
                socket.send(won).await?;
            }
            "deaf" => {
                cx.sleep(Duration::from_secs(3)).await;
                socket.send("awake").await?;
            }
            "ignore" => loop {
                cx.sleep(Duration::from_secs(3)).await;
            },
            "late" => {
                while socket.receive().await?.is_some() {}
                socket.send("nobody hears").await?;
            }
            other => socket.send(other).await?,
        }
    }
    let closed = socket.closed().expect("it has ended");
    log::info!("closed", code = closed.code, reason = closed.reason);
    Ok(())
}

fn app() -> App {
    App::new()
        .grant_all()
        .execute_batch("create table events (what text)")
}

fn texts(messages: &[Message]) -> Vec<&str> {
    messages.iter().filter_map(Message::as_text).collect()
}

#[test]
fn a_conversation_runs_until_it_waits_for_the_test() {
    let app = app();
    let mut ann = app.socket::<talk>(
        get("/talk/7?name=Ann").header("sec-websocket-protocol", "talk.v0, talk.v1"),
    );
    let chosen = ann.response().header("sec-websocket-protocol");
    assert_eq!(chosen, Some("talk.v1"));
    assert_eq!(ann.groups(), ["room.7"]);
    ann.send("count");
    ann.send("count");
    ann.notice("room.7", "hello");
    assert_eq!(
        texts(&ann.received()),
        ["Ann: 1", "Ann: 2", "room.7: hello"]
    );
    ann.send("many");
    assert_eq!(ann.received().len(), 2_003);
    assert_eq!(ann.closed(1001, "bye").error(), None);
    assert_eq!(app.logs()[0].message, "closed");
    assert_eq!(
        app.logs()[0].fields,
        [
            ("code".to_owned(), "1001".to_owned()),
            ("reason".to_owned(), "bye".to_owned())
        ]
    );
    assert!(!ann.is_open());
    assert!(ann.groups().is_empty());
}

#[test]
fn blocks_are_transactions_and_nothing_is_received_within_them() {
    let app = app();
    let mut ann = app.socket::<talk>("/talk/7?name=Ann");
    for message in ["keep", "undo", "inner", "pinned", "echo"] {
        assert_eq!(ann.send(message).error(), None, "{message}");
    }
    let received = ann.received();
    let received = texts(&received);
    assert_eq!(received[..3], ["in the block", "true", "false"]);
    assert!(received[3].contains("nothing is received within a transaction"));
    assert_eq!(received[4], "echo");
    let rows = app.query::<String>("select what from events", ());
    assert_eq!(rows, ["opening", "kept"]);
}

#[test]
fn the_opening_can_be_refused() {
    let app = app();
    let refused = app.socket::<talk>("/talk/7");
    assert_eq!(refused.response().status(), StatusCode::FORBIDDEN);
    assert!(!refused.is_open());
    assert_eq!(app.query::<String>("select what from events", ()).len(), 0);
}

#[test]
fn the_end_of_the_function_closes_the_connection() {
    for (how, code, failed) in [
        ("end", 1000, false),
        ("fail", 1011, true),
        ("close", 4000, false),
    ] {
        let mut ann = app().socket::<talk>("/talk/7?name=Ann");
        assert_eq!(ann.send(how).error().is_some(), failed, "{how}");
        let closed = ann.closed_by_view().map(|closed| closed.code);
        assert_eq!(closed, Some(code), "{how}");
        assert_eq!(ann.closed(code, "").error(), None);
    }
    // An error of a call after the end is none of the function.
    let mut late = app().socket::<talk>("/talk/7?name=Ann");
    late.send("late");
    assert_eq!(late.closed(1006, "").error(), None);
    // The session went out with the handshake.
    let mut changed = app().socket::<talk>("/talk/7?name=Ann");
    changed.send("session");
    let error = changed.send("end");
    let detail = error.error().and_then(Error::detail);
    assert!(detail.is_some_and(|detail| detail.contains("cannot change the session")));
}

#[test]
fn time_passes_when_the_test_says_so() {
    let app = app();
    let mut ann = app.socket::<talk>("/talk/7?name=Ann");
    ann.send("wait");
    ann.pass(Duration::from_secs(4));
    assert!(ann.received().is_empty());
    ann.pass(Duration::from_secs(1));
    ann.send("wait");
    ann.send("x");
    ann.send("race");
    ann.pass(Duration::from_secs(1));
    ann.send("after the race");
    ann.send("deaf");
    ann.send("count");
    assert_eq!(
        texts(&ann.received()),
        ["nothing came", "came", "sleep", "after the race"]
    );
    ann.pass(Duration::from_secs(3));
    assert_eq!(texts(&ann.received())[4..], ["awake", "Ann: 6"]);
    ann.send("wait");
    ann.closed(1001, "");
    assert_eq!(app.logs()[0].message, "ended while it waited");
}

#[test]
#[should_panic(expected = "goes on for longer than its `timeout_ms` after the end")]
fn a_function_that_ignores_the_end_is_told_of() {
    let mut ann = app().socket::<talk>("/talk/7?name=Ann");
    ann.send("ignore");
    ann.closed(1001, "");
}
