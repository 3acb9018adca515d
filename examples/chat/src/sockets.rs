//! The connections of a room. The host keeps them: a function below runs for each event, in a fresh instance and a
//! transaction of its own, and what it sends goes out with the commit.

use amphi_sdk::prelude::*;

use crate::messages::{self, Told, checked, group};

/// The most messages that a client gets at once after it was away.
const MISSED_MAX: u32 = 200;

/// What a client sends, as JSON.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Said {
    Line { text: String },
    Typing,
}

#[socket("/rooms/{room}/sync", atomic)]
pub fn sync_room(
    cx: &Context,
    Path(room): Path<String>,
    session: Session,
    event: SocketEvent,
) -> Result<()> {
    handle(cx, &room, &session, event)
}

/// The same as an async view.
#[socket("/rooms/{room}/async", atomic)]
pub async fn async_room(
    cx: &Context,
    Path(room): Path<String>,
    session: Session,
    event: SocketEvent,
) -> Result<()> {
    handle(cx, &room, &session, event).await
}

#[both]
async fn handle(cx: &Context, room: &str, session: &Session, event: SocketEvent) -> Result<()> {
    let group = group(room)?;
    match event {
        SocketEvent::Opened(opening) => {
            let name: Option<String> = session.get("name");
            let name = name.ok_or_else(|| Error::unauthorized("tell your name first"))?;
            // Later events have no session.
            cx.set("name", &name)?;
            messages::connected(cx, room, &cx.socket().id()?, &name).await?;
            cx.socket().join(&group)?;
            cx.channels().send(&group, Told::Members.message()?)?;
            // What was written since the client's page was made, or since its last connection.
            let last = opening.query("after").and_then(|id| id.parse().ok());
            for line in messages::after(cx, room, last.unwrap_or(i64::MAX), MISSED_MAX).await? {
                cx.socket().send(Told::Line(&line).message()?)?;
            }
            Ok(())
        }
        SocketEvent::Message(message) => {
            let name = cx.get("name").unwrap_or_default();
            let said = message.as_text().map(serde_json::from_str);
            let Some(Ok(said)) = said else {
                return cx.socket().close(4008, "that is not what this page sends");
            };
            match said {
                Said::Typing => {
                    let typing = Told::Typing { name: &name };
                    cx.channels().send(&group, typing.message()?)
                }
                Said::Line { text } => {
                    let Some(text) = checked(&text) else {
                        return Ok(());
                    };
                    let line = messages::insert(cx, room, &name, text).await?;
                    cx.channels().send(&group, Told::Line(&line).message()?)
                }
            }
        }
        SocketEvent::Notice(_) => Ok(()),
        SocketEvent::Closed(_) => {
            messages::disconnected(cx, &cx.socket().id()?).await?;
            cx.channels().send(&group, Told::Members.message()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::testing::{App, TestSocket, get};

    fn kinds(socket: &TestSocket) -> Vec<String> {
        let received = socket.received();
        let kinds = received.iter().map(|message| {
            let told: serde_json::Value = serde_json::from_str(message.as_text()?).ok()?;
            Some(told["kind"].as_str()?.to_owned())
        });
        kinds.map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn a_sync_and_an_async_connection_share_a_room() {
        let app = App::new().migrations("migrations");
        let mut ann = app.socket::<sync_room>(get("/rooms/lobby/sync").session("name", "Ann"));
        let mut bob = app.socket::<async_room>(get("/rooms/lobby/async").session("name", "Bob"));
        assert_eq!(
            (ann.groups(), bob.groups()),
            (vec!["room.lobby".into()], vec!["room.lobby".into()])
        );
        bob.send(r#"{"kind":"typing"}"#);
        ann.send(r#"{"kind":"line","text":" Hello "}"#);
        bob.send(r#"{"kind":"line","text":"Hello, Ann"}"#);
        ann.send(r#"{"kind":"line","text":" "}"#);
        assert_eq!(
            kinds(&ann),
            ["members", "members", "typing", "line", "line"]
        );
        assert_eq!(kinds(&bob), ["members", "typing", "line", "line"]);
        let lines: Vec<(String, String)> =
            app.query("select name, text from messages order by id", ());
        assert_eq!(lines[0], ("Ann".into(), "Hello".into()));
        assert_eq!(lines[1], ("Bob".into(), "Hello, Ann".into()));

        // One that comes back gets what it has missed.
        ann.closed(1006, "");
        let connected: Vec<String> = app.query("select name from connections", ());
        assert_eq!(connected, ["Bob"]);
        let again =
            app.socket::<async_room>(get("/rooms/lobby/async?after=1").session("name", "Ann"));
        assert_eq!(kinds(&again), ["members", "line"]);
        bob.send("nonsense");
        assert_eq!(bob.closed_by_view().map(|closed| closed.code), Some(4008));
    }

    #[test]
    fn who_has_told_no_name_is_refused() {
        let app = App::new().migrations("migrations");
        let socket = app.socket::<sync_room>("/rooms/lobby/sync");
        assert_eq!(socket.response().status(), StatusCode::UNAUTHORIZED);
        let socket = app.socket::<sync_room>(get("/rooms/No.room/sync").session("name", "Ann"));
        assert_eq!(socket.response().status(), StatusCode::NOT_FOUND);
    }
}
