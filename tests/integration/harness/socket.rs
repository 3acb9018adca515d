//! Web sockets of the guest `tests/guests/sockets`, whose messages are commands.

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{App, Kind, Mode, SOON, Server, eventually, guests};

/// An app with the views of `tests/guests/sockets` in both modes. The values of `toml` replace those here.
pub fn app(toml: &str) -> App {
    let migrations = guests::folder().join("migrations");
    let database = format!(
        "sqlite = \"data/test.db\"\nsynchronous = \"normal\"\nmigrations = {migrations:?}\n"
    );
    App::changed(&format!("{}{database}", base()), toml)
}

/// Such an app on a database of this kind.
pub async fn app_on(kind: Kind, toml: &str) -> App {
    let migrations = guests::folder().join(format!("rules/migrations/{kind}"));
    let base = format!("{}migrations = {migrations:?}\n", base());
    App::changed_on(kind, &base, toml).await
}

/// The configuration, up to the keys of the database.
fn base() -> String {
    let module = |mode| {
        format!(
            "[modules.{mode}]\npath = {:?}\ndatabases = [\"default\"]\nchannels = [\"room.*\"]\n",
            guests::built("sockets", mode)
        )
    };
    format!(
        r#"
        [app]
        name = "sockets"
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        {}{}
        [databases.default]
        "#,
        module(Mode::Sync),
        module(Mode::Async)
    )
}

/// A web socket in a room, on a connection of its own unless it says otherwise.
pub struct Socket<S = MaybeTlsStream<TcpStream>>(pub WebSocketStream<S>);

impl Socket {
    /// Opens one that is welcomed.
    pub async fn open(server: &Server, mode: Mode, room: &str, name: &str) -> Socket {
        let path = format!("/{mode}/room/{room}?name={name}");
        let mut socket = Socket::at(server, &path).await;
        assert_eq!(socket.hear().await, format!("welcome {name}"));
        socket
    }

    /// Opens one at a path.
    pub async fn at(server: &Server, path: &str) -> Socket {
        let opened = Socket::try_at(server, path).await;
        opened.expect("the handshake succeeds")
    }

    /// Opens one at a path, if the server has room.
    ///
    /// # Errors
    /// What the server answers instead.
    pub async fn try_at(server: &Server, path: &str) -> Result<Socket, Error> {
        let url = format!("ws://{}{path}", server.address);
        let (socket, _) = connect_async(url).await?;
        Ok(Socket(socket))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Sends a text.
    pub async fn say(&mut self, text: &str) {
        let said = self.0.send(Message::text(text)).await;
        said.expect("it is open");
    }

    /// The next message, or how the connection has ended.
    pub async fn hear(&mut self) -> String {
        // For all of them together: pings may come for ever.
        let until = Instant::now() + SOON;
        loop {
            let next = timeout_at(until, self.0.next()).await;
            match next.expect("it comes in time") {
                Some(Ok(Message::Text(text))) => return text.to_string(),
                Some(Ok(Message::Binary(bytes))) => return format!("{bytes:?}"),
                Some(Ok(Message::Close(Some(close)))) => {
                    return format!("closed {} {}", u16::from(close.code), close.reason);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return format!("error {error}"),
                None => return "gone".to_owned(),
            }
        }
    }

    /// The answer to a command. What comes before it is kept in `others`.
    pub async fn answer(&mut self, command: &str, end: &str, others: &mut Vec<String>) -> String {
        self.say(command).await;
        loop {
            let heard = self.hear().await;
            if heard.ends_with(end) {
                return heard;
            }
            others.push(heard);
        }
    }

    /// Waits until the room has so many members, and returns what came meanwhile.
    pub async fn members(&mut self, count: usize) -> Vec<String> {
        let mut others = Vec::new();
        eventually("the members", async || {
            match self.answer("members", " members", &mut others).await {
                told if told == format!("{count} members") => Ok(()),
                told => Err(told),
            }
        })
        .await;
        others
    }
}
