//! Thousands of web sockets, event streams and polls that are killed at a random moment, 64 at once: by their clients, by
//! views that trap or hit a limit, and by hosts that are stopped and started again meanwhile.
//!
//! `KILLS` is how many there are, and `KILLS_SEED` which ones:
//!
//! ```text
//! KILLS=100000 KILLS_SEED=7 cargo test -p amphi-tests --test integration kills
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

const KILLS: usize = 10_000;
const SEED: usize = 20_261_129;
const AT_ONCE: usize = 64;
/// How many hosts serve the app, one after the other.
const HOSTS: usize = 3;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client closes in an orderly way, and waits for the server to do the same.
    Close,
    /// The client closes the connection without a word.
    Drop,
    /// The client resets the connection.
    Reset,
    /// The client closes its own direction, and reads on.
    Half,
    /// The client closes the connection in the middle of a frame.
    MidFrame,
    /// The view closes it.
    ByView,
    /// The client resets the connection while the request that opens it runs, or shortly after it.
    Early,
    /// The client closes the connection in the middle of the request that opens it.
    MidRequest,
    /// The client sends what breaks the protocol.
    Broken,
}

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Socket,
    EventStream,
    Poll,
}

/// What one client does.
struct Plan {
    name: String,
    kind: Kind,
    path: String,
    commands: Vec<String>,
    end: End,
    pause: Duration,
    /// Whether the client reads what it gets.
    reads: bool,
}

/// What has become of a plan, if its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    ToItsEnd,
    /// A server without capacity has refused the request.
    Refused,
    /// The server was not there any more.
    Missed,
}

/// The server of a plan, and whether it has been told to stop.
struct Host {
    server: Server,
    stops: AtomicBool,
}

impl Plan {
    fn new(number: usize, random: &mut Rng) -> Plan {
        let mode = [Mode::Sync, Mode::Async][random.usize(..2)];
        let (room, name) = (random.u8(..8), format!("n{number}"));
        // Half of them are sockets, which take most of the time.
        let kinds = [Kind::Socket, Kind::Socket, Kind::EventStream, Kind::Poll];
        let kind = kinds[random.usize(..kinds.len())];
        let ends: &[End] = match kind {
            Kind::Socket => &[
                End::Close,
                End::Drop,
                End::Reset,
                End::Half,
                End::MidFrame,
                End::ByView,
                End::Early,
                End::MidRequest,
                End::Broken,
            ],
            _ => &[
                End::Drop,
                End::Reset,
                End::Half,
                End::Early,
                End::MidRequest,
            ],
        };
        let mut commands = Vec::new();
        if kind == Kind::Socket {
            commands.extend((0..random.usize(..4)).map(|_| command(random)));
            // These take 300 ms of a processor, and 5 seconds of waiting.
            match random.u16(..1000) {
                0..5 => commands.push("spin".to_owned()),
                5..10 => commands.push("nap".to_owned()),
                _ => {}
            }
        }
        // One in ten asks for a group that its view may not answer with, which fails.
        let group = match random.u8(..10) {
            0 => "secret".to_owned(),
            _ => format!("room.{room}"),
        };
        Plan {
            path: match kind {
                Kind::Socket => format!("/{mode}/room/{room}?name={name}"),
                Kind::EventStream => format!("/{mode}/events/{group}"),
                Kind::Poll => format!("/{mode}/poll/{group}?ms={}", random.u16(..2_000)),
            },
            name,
            kind,
            commands,
            end: ends[random.usize(..ends.len())],
            pause: Duration::from_micros(random.u64(..20_000)),
            reads: random.u8(..4) > 0,
        }
    }

    async fn run(&self, host: &Host) -> Ran {
        let Ok(stream) = TcpStream::connect(host.server.address).await else {
            assert!(host.stops(), "the server accepts connections");
            return Ran::Missed;
        };
        match (self.kind, self.end) {
            (_, End::Early | End::MidRequest) => self.run_early(stream, host).await,
            (Kind::Socket, _) => self.run_socket(stream, host).await,
            _ => self.run_subscriber(stream, host).await,
        }
    }

    fn head(&self) -> String {
        let upgrade = match self.kind {
            Kind::Socket => {
                "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            }
            _ => "",
        };
        format!("GET {} HTTP/1.1\r\nhost: a\r\n{upgrade}\r\n", self.path)
    }

    async fn run_early(&self, mut stream: TcpStream, host: &Host) -> Ran {
        let head = self.head();
        let sent = match self.end {
            End::MidRequest => &head[..head.len() - 3],
            _ => &head,
        };
        let sent = stream.write_all(sent.as_bytes()).await;
        assert!(sent.is_ok() || host.stops(), "{sent:?}");
        sleep(self.pause).await;
        if self.end == End::Early {
            // The server may have ended the connection.
            let _ = stream.set_zero_linger();
        }
        Ran::ToItsEnd
    }

    async fn run_subscriber(&self, mut stream: TcpStream, host: &Host) -> Ran {
        let sent = stream.write_all(self.head().as_bytes()).await;
        assert!(sent.is_ok() || host.stops(), "{sent:?}");
        if self.reads {
            let mut some = [0; 4096];
            let read = async { while let Ok(1..) = stream.read(&mut some).await {} };
            let _ = timeout(self.pause, read).await;
        } else {
            sleep(self.pause).await;
        }
        match self.end {
            End::Reset => {
                let _ = stream.set_zero_linger();
            }
            End::Half => ends(&mut stream, &self.name).await,
            _ => {}
        }
        Ran::ToItsEnd
    }

    async fn run_socket(&self, stream: TcpStream, host: &Host) -> Ran {
        let url = format!("ws://{}{}", host.server.address, self.path);
        let opened = client_async(url, MaybeTlsStream::Plain(stream)).await;
        let mut client = match opened {
            Ok((client, _)) => client,
            Err(Error::Http(refused)) if refused.status().as_u16() == 503 => return Ran::Refused,
            Err(_) if host.stops() => return Ran::Missed,
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
        if let End::Close | End::ByView = self.end {
            let _ = match self.end {
                End::Close => client.close(None).await,
                _ => client.send(Message::text("close bye")).await,
            };
            let rest = async { while let Some(Ok(_)) = client.next().await {} };
            let ended = timeout(SOON, rest).await;
            assert!(ended.is_ok(), "{} should be closed", self.name);
            return Ran::ToItsEnd;
        }
        let MaybeTlsStream::Plain(stream) = client.get_mut() else {
            unreachable!("it is plain")
        };
        match self.end {
            End::Broken => {
                // A frame that is not masked, of a kind that does not exist.
                let _ = stream.write_all(&[0xff, 0x01, 0x00]).await;
                ends(stream, &self.name).await;
            }
            End::MidFrame => {
                let _ = stream
                    .write_all(&[0x82, 0xfe, 0x01, 0x00, 1, 2, 3, 4, 5])
                    .await;
            }
            End::Half => ends(stream, &self.name).await,
            End::Reset => {
                let _ = stream.set_zero_linger();
            }
            _ => {}
        }
        Ran::ToItsEnd
    }

    /// Whether a socket of this plan may have ended with this code. `stopped`: its host was stopped.
    fn may_end_with(&self, code: &str, stopped: bool) -> bool {
        // A notice too many closes a connection.
        let always = code == "1013" || (stopped && code == "1001");
        always
            || match self.end {
                // A client may go before it has read the answer to its close.
                End::Close => ["1005", "1000", "1006"].contains(&code),
                End::ByView => ["4000", "1006"].contains(&code),
                End::Broken => code == "1002",
                _ => ["1006", "1008"].contains(&code),
            }
    }
}

impl Host {
    fn stops(&self) -> bool {
        self.stops.load(Ordering::SeqCst)
    }
}

/// Closes the client's direction, and waits until the server has closed its own.
async fn ends(stream: &mut TcpStream, name: &str) {
    let _ = stream.shutdown().await;
    let mut some = [0; 4096];
    let rest = async { while let Ok(1..) = stream.read(&mut some).await {} };
    let ended = timeout(SOON, rest).await;
    assert!(ended.is_ok(), "{name} should be closed");
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

fn number(name: &str, usual: usize) -> usize {
    match env::var(name) {
        Ok(number) => number.parse().expect("it is a number"),
        Err(_) => usual,
    }
}

/// Checks the log of a host: each socket is closed once, in a line of its own. Returns how many there were.
fn closed_in_the_log(server: &Server) -> usize {
    let mut closed = HashSet::new();
    for line in server.log.since(0) {
        if line.text("target") == "amphi::socket" && line.text("message") == "closed" {
            let connection = line.text("connection").to_owned();
            assert!(closed.insert(connection), "closed twice: {line:?}");
        }
    }
    closed.len()
}

/// However connections are killed: each view that has been told of an opening is told of the end, once, and nothing is
/// held of any.
#[tokio::test]
async fn r13_r19_r21_thousands_of_kills_leave_nothing_behind() {
    let (kills, seed) = (number("KILLS", KILLS), number("KILLS_SEED", SEED));
    let mut random = Rng::with_seed(seed as u64);
    let plans: Vec<Plan> = (0..kills)
        .map(|number| Plan::new(number, &mut random))
        .collect();
    // One connection of the database writes for all, and what waits in vain for it would not be written.
    let server =
        app("[databases.default]\nacquire_timeout_ms = 30000\n[limits]\ntimeout_ms = 5000")
            .serve()
            .await;
    let mut host = Host {
        server,
        stops: AtomicBool::new(false),
    };
    let mut ran: HashMap<&str, (Ran, bool)> = HashMap::new();
    let (mut in_the_log, share) = (0, kills.div_ceil(HOSTS));
    for (round, plans) in plans.chunks(share).enumerate() {
        let is_last = round == HOSTS - 1;
        // All but the last host are stopped at about two thirds of their connections.
        let begun = AtomicUsize::new(0);
        let runs = stream::iter(plans).map(async |plan| {
            if begun.fetch_add(1, Ordering::SeqCst) == share * 2 / 3 && !is_last {
                host.stops.store(true, Ordering::SeqCst);
                host.server.terminate();
            }
            (&*plan.name, plan.run(&host).await)
        });
        let results: Vec<_> = runs.buffer_unordered(AT_ONCE).collect().await;
        let stopped = host.stops();
        ran.extend(
            results
                .into_iter()
                .map(|(name, ran)| (name, (ran, stopped))),
        );
        if is_last {
            host.server.assert_baseline().await;
            for what in ["connections", "memberships", "groups", "subscribers"] {
                tells(&host.server, what, 0).await;
            }
        } else {
            assert!(host.server.ended().await.success(), "seed {seed}");
        }
        in_the_log += closed_in_the_log(&host.server);
        if !is_last {
            host.server.again().await;
            host.stops = AtomicBool::new(false);
        }
    }
    check(&plans, &ran, host.server.tags(), in_the_log, seed);
}

/// Checks what the views have written.
fn check(
    plans: &[Plan],
    ran: &HashMap<&str, (Ran, bool)>,
    tags: Vec<String>,
    in_the_log: usize,
    seed: usize,
) {
    let mut ends: BTreeMap<String, (u32, Vec<String>)> = BTreeMap::new();
    for tag in tags {
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
    // How many were opened, and of these, those whose clients may have gone before the handshake was complete.
    let (mut opened, mut early, mut sockets) = (0, 0, 0);
    for plan in plans.iter().filter(|plan| plan.kind == Kind::Socket) {
        let (openings, codes) = ends.remove(&plan.name).unwrap_or_default();
        let (ran, stopped) = ran[&*plan.name];
        let is_early = plan.end == End::Early || ran == Ran::Missed;
        let fits = match openings {
            0 => {
                let may_miss = is_early || plan.end == End::MidRequest || ran == Ran::Refused;
                may_miss && codes.is_empty()
            }
            _ => openings == 1 && codes.len() == 1 && plan.may_end_with(&codes[0], stopped),
        };
        assert!(
            fits,
            "{} with {:?}, {ran:?}: {openings} openings, and {codes:?} (seed {seed})",
            plan.name, plan.end
        );
        opened += openings as usize;
        early += if is_early { openings as usize } else { 0 };
        sockets += 1;
    }
    assert!(ends.is_empty(), "who are they? {ends:?}");
    // Those whose client goes during the handshake have no line of their own.
    assert!(
        (opened - early..=opened).contains(&in_the_log),
        "{opened} were opened, {early} of them early, and the log has {in_the_log} (seed {seed})"
    );
    assert!(opened > sockets / 2, "{opened} of {sockets}");
}
