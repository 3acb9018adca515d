//! The example `chat`: its pages, its sockets in both modes and its event stream, on both kinds of databases, with NATS.

use reqwest::StatusCode;
use serde_json::Value;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::harness::browser::Browser;
use crate::harness::nats::Nats;
use crate::harness::socket::Socket;
use crate::harness::{App, Kind, Server, eventually};

async fn the_chat_does_what_its_pages_offer(kind: Kind) {
    let nats = Nats::start();
    let app = App::chat(kind, &nats.url()).await;
    let built = app.run("build");
    assert!(built.success, "{}", built.stderr);
    let server = app.serve().await;

    let mut nobody = Browser::at(&server, "/").await;
    let refused = nobody.post("/", "name=&room=lobby").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(nobody.get("/rooms/lobby").await.header("location"), "/");

    let mut ann = entered(&server, "Ann+%3Cb%3E").await;
    let bob = entered(&server, "Bob").await;
    let mut sync_one = connected(&server, &ann, "/rooms/lobby/sync").await;
    let mut async_one = connected(&server, &bob, "/rooms/lobby/async").await;
    present(&server, r#"["Ann <b>","Bob"]"#).await;

    async_one.say(r#"{"kind":"typing"}"#).await;
    assert_eq!(told(&mut sync_one, "typing").await["name"], "Bob");
    for (say, name) in [("Hello, <i>Bob</i>", "Ann <b>"), ("Hello, Ann", "Bob")] {
        let from = if name == "Bob" {
            &mut async_one
        } else {
            &mut sync_one
        };
        from.say(&format!(r#"{{"kind":"line","text":"{say}"}}"#))
            .await;
        for socket in [&mut sync_one, &mut async_one] {
            let line = told(socket, "line").await;
            assert_eq!((&line["name"], &line["text"]), (&name.into(), &say.into()));
        }
    }
    let page = ann.get("/rooms/lobby").await;
    assert!(
        page.ok().contains("Hello, &lt;i&gt;Bob&lt;/i&gt;"),
        "{page:?}"
    );
    let watch = server.get("/rooms/lobby/watch").await;
    assert!(watch.ok().contains("Hello, Ann"), "{watch:?}");
    assert!(server.get("/").await.ok().contains("2 messages"));

    // One that comes back gets what it has missed.
    async_one.0.close(None).await.expect("it is open");
    present(&server, r#"["Ann <b>"]"#).await;
    let mut again = connected(&server, &bob, "/rooms/lobby/async?after=1").await;
    assert_eq!(told(&mut again, "line").await["text"], "Hello, Ann");
    again.say("nonsense").await;
    let closed = loop {
        let heard = again.hear().await;
        if heard.starts_with("closed") {
            break heard;
        }
    };
    assert_eq!(closed, "closed 4008 that is not what this page sends");
    drop((sync_one, again));
    server.assert_baseline().await;
}
both_databases!(the_chat_does_what_its_pages_offer);

/// A browser whose user has told a name and is led to the lobby.
async fn entered<'a>(server: &'a Server, name: &str) -> Browser<'a> {
    let mut browser = Browser::at(server, "/").await;
    let led = browser.post("/", &format!("name={name}&room=Lobby")).await;
    assert_eq!(led.header("location"), "/rooms/lobby", "{led:?}");
    browser
}

async fn connected(server: &Server, browser: &Browser<'_>, path: &str) -> Socket {
    let url = format!("ws://{}{path}", server.address);
    let mut request = url.into_client_request().expect("it is a URL");
    let cookie = browser.cookie.parse().expect("it is a cookie");
    request.headers_mut().insert("cookie", cookie);
    let (socket, _) = connect_async(request)
        .await
        .expect("the handshake succeeds");
    Socket(socket)
}

/// The next message of this kind.
async fn told(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let heard = socket.hear().await;
        let told: Value = serde_json::from_str(&heard).unwrap_or_else(|_| panic!("{heard}"));
        if told["kind"] == kind {
            return told;
        }
    }
}

/// Waits until these are in the lobby.
async fn present(server: &Server, names: &str) {
    eventually(names, async || {
        match server.get("/rooms/lobby/members").await.text() {
            text if text == names => Ok(()),
            text => Err(text.to_owned()),
        }
    })
    .await;
}
