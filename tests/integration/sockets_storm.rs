//! Three thousand web sockets that do what comes to mind and end at a random moment, 64 at once, and what is left of them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use fastrand::Rng;
use futures::{SinkExt as _, StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, client_async};

use crate::channels::tells;
use crate::harness::socket::app;
use crate::harness::{Mode, SOON, Server};

const SOCKETS: usize = 3_000;
const AT_ONCE: usize = 64;

/// How a socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client sends a close, and waits for that of the server.
    Close,
    /// The client closes the connection without a word.
    Drop,
    /// The client resets the connection.
    Reset,
    /// The view closes it.
    ByView,
    /// The client resets the connection while the handshake runs or shortly after it.
    Early,
    /// The client sends what breaks the protocol.
    Broken,
}

/// What one client does.
struct Plan {
    name: String,
    path: String,
    commands: Vec<String>,
    end: End,
    pause: Duration,
    /// Whether the client reads what it gets.
    reads: bool,
}

impl Plan {
    fn new(number: usize, random: &mut Rng) -> Plan {
        let mode = [Mode::Sync, Mode::Async][random.usize(..2)];
        let (room, name) = (random.u8(..8), format!("n{number}"));
        let ends = [
            End::Close,
            End::Close,
            End::Drop,
            End::Drop,
            End::Reset,
            End::Reset,
            End::ByView,
            End::Early,
            End::Broken,
        ];
        let count = random.usize(..8);
        let mut commands: Vec<String> = (0..count).map(|_| command(random)).collect();
        // It takes 300 ms of a processor.
        if random.u8(..100) == 0 {
            commands.push("spin".to_owned());
        }
        Plan {
            path: format!("/{mode}/room/{room}?name={name}"),
            name,
            commands,
            end: ends[random.usize(..ends.len())],
            pause: Duration::from_micros(random.u64(..20_000)),
            reads: random.u8(..4) > 0,
        }
    }

    /// Returns whether a server without capacity has refused the handshake.
    async fn run(&self, server: &Server) -> bool {
        let stream = TcpStream::connect(server.address).await;
        let mut stream = stream.expect("the server accepts connections");
        if self.end == End::Early {
            let head = format!(
                "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                self.path, server.address
            );
            stream.write_all(head.as_bytes()).await.expect("it is open");
            sleep(self.pause).await;
            stream.set_zero_linger().expect("it is a socket");
            return false;
        }
        let url = format!("ws://{}{}", server.address, self.path);
        let opened = client_async(url, MaybeTlsStream::Plain(stream)).await;
        let mut client = match opened {
            Ok((client, _)) => client,
            Err(Error::Http(refused)) if refused.status().as_u16() == 503 => return true,
            Err(error) => panic!("the handshake of {} fails: {error}", self.name),
        };
        for command in &self.commands {
            // The view may have closed the connection.
            let _ = client.feed(Message::text(command)).await;
        }
        let _ = client.flush().await;
        if self.reads {
            let read = async { while let Some(Ok(_)) = client.next().await {} };
            let _ = timeout(self.pause, read).await;
        }
        match self.end {
            End::Close | End::ByView => {
                let _ = match self.end {
                    End::Close => client.close(None).await,
                    _ => client.send(Message::text("close bye")).await,
                };
                let rest = async { while let Some(Ok(_)) = client.next().await {} };
                let ended = timeout(SOON, rest).await;
                assert!(ended.is_ok(), "{} should be closed", self.name);
            }
            End::Broken => {
                let MaybeTlsStream::Plain(stream) = client.get_mut() else {
                    unreachable!("it is plain")
                };
                // A frame that is not masked, of a kind that does not exist.
                let _ = stream.write_all(&[0xff, 0x01, 0x00]).await;
                let mut rest = Vec::new();
                let ended = timeout(SOON, stream.read_to_end(&mut rest)).await;
                assert!(ended.is_ok(), "{} should be closed", self.name);
            }
            End::Reset => {
                if let MaybeTlsStream::Plain(stream) = client.get_mut() {
                    stream.set_zero_linger().expect("it is a socket");
                }
            }
            End::Drop | End::Early => {}
        }
        false
    }
}

fn command(random: &mut Rng) -> String {
    let room = random.u8(..8);
    match random.u8(..12) {
        0 | 1 => "say hi".to_owned(),
        2 => "fail never".to_owned(),
        3 => "panic never".to_owned(),
        4 => "notify news".to_owned(),
        5 => format!("join {room}"),
        6 => format!("leave {room}"),
        7 => format!("send {room} hello"),
        8 => "members".to_owned(),
        9 => format!("flood {}", random.u8(..20)),
        10 => "send other x".to_owned(),
        _ => "id".to_owned(),
    }
}

/// Whatever sockets do and however they end: each view that has been told of an opening is told of the end, once, and
/// nothing is held of any.
#[tokio::test]
async fn r13_r19_r21_a_storm_of_sockets_leaves_nothing_behind() {
    let seed = 20_261_129;
    let mut random = Rng::with_seed(seed);
    // One connection of the database writes for all, and what waits in vain for it would not be written.
    let server = app("acquire_timeout_ms = 30000").serve().await;
    let plans: Vec<Plan> = (0..SOCKETS)
        .map(|number| Plan::new(number, &mut random))
        .collect();
    let runs = stream::iter(&plans).map(async |plan| (&*plan.name, plan.run(&server).await));
    let refused: HashSet<&str> = (runs.buffer_unordered(AT_ONCE))
        .filter_map(async |(name, refused)| refused.then_some(name))
        .collect()
        .await;
    server.assert_baseline().await;
    for what in ["connections", "memberships", "groups"] {
        tells(&server, what, 0).await;
    }
    let mut ends: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
    for tag in server.tags() {
        let words: Vec<&str> = tag.split(' ').collect();
        match words[..] {
            ["opened", name] => ends.entry(name.to_owned()).or_default().0 += 1,
            ["closed", name, code] => {
                let codes = &mut ends.entry(name.to_owned()).or_default().1;
                codes.push(code.to_owned());
            }
            _ => assert_eq!(tag, "hi", "what fails writes nothing (seed {seed})"),
        }
    }
    let right = |end: End, code: &str| match end {
        // A notice too many closes a connection, and a client may go before it has read the answer to its close.
        End::Close => ["1005", "1000", "1006", "1013"].contains(&code),
        End::ByView => ["4000", "1006", "1013"].contains(&code),
        End::Broken => ["1002", "1013"].contains(&code),
        End::Drop | End::Reset | End::Early => ["1006", "1013", "1008"].contains(&code),
    };
    let mut opened = 0;
    for plan in &plans {
        let (openings, codes) = ends.remove(&plan.name).unwrap_or_default();
        // The client of a handshake may have gone before the view was called, or before its commit.
        let fits = match openings {
            0 => (plan.end == End::Early || refused.contains(&*plan.name)) && codes.is_empty(),
            _ => openings == 1 && codes.len() == 1 && right(plan.end, &codes[0]),
        };
        assert!(
            fits,
            "{} with {:?}: {openings} openings, and {codes:?} (seed {seed})",
            plan.name, plan.end
        );
        opened += openings;
    }
    assert!(ends.is_empty(), "who are they? {ends:?}");
    assert!(opened as usize > SOCKETS * 8 / 10, "{opened}");
}
