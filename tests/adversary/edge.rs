//! Attacks on how the host handles HTTP, all at the same time. The app is the guestbook of `examples/`, with the
//! middleware compression and basic-auth. Meanwhile, the response times of a client with the right password are
//! measured.

use std::fmt;
use std::io::{Seek as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::siege::{Hello, flood, measure};
use crate::harness::{App, Server};

/// The hash of the password `secret`, with a cost at which a check takes tens of milliseconds.
const HASH: &str = "$2b$10$IlLa4SjrCagzpxKtJbWGw.6YUkYBI9gG2Aj00kXi34HgwkguHdxyW";
const ADMIN_CONNECTIONS: usize = 1_100;
const SLOW_CONNECTIONS: usize = 300;
const GUESSERS: usize = 90;
const WRONG_MAX: usize = 10;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Request heads that are malformed or ambiguous. Each is sent with bytes after it that could be read as a second
/// request.
const HEADS: [&str; 19] = [
    "GET http://u:p@evil/ HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a/b?c\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\nforwarded: for=1.2.3.4;x=\"a\\\"b\", for=203.0.113.7\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\nforwarded: for=\"1.2.3.4, for=203.0.113.7\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
    "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff0\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "PURGE /entries/1 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /static/../../amphi.toml HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /static/%2e%2e/%2e%2e/amphi.toml HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /static/.env HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /%C3%A4%FF%00 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: br;q=2, gzip;q=0.0.1, *;;q\r\nrange: bytes=9-1\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\ncookie: session=bad; session=\"; =; x\r\nif-none-match: W/\"\", *, \"\r\n\r\n",
];

/// The result of [`edge`].
#[derive(Debug)]
pub struct Report {
    reader: Hello,
    /// Resident memory in MiB: before the attack, and the maximum.
    memory_mib: [u64; 2],
    attacks: Vec<(&'static str, u64)>,
    /// What was wrong. Empty if nothing was wrong.
    pub wrong: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.reader)?;
        let [before, most] = self.memory_mib;
        writeln!(f, "memory: {before} MiB before, {most} MiB at most")?;
        for (name, times) in &self.attacks {
            writeln!(f, "  {name}: {times}")?;
        }
        match self.wrong.is_empty() {
            true => write!(f, "the host is alive and everything is given back"),
            false => write!(f, "WRONG: {}", self.wrong.join("; ")),
        }
    }
}

/// Serves the guestbook, with every feature configured that is attacked.
async fn serve() -> Server {
    let app = App::guestbook(&format!(
        r#"
        app.middleware = ["compression", "basic-auth"]
        server.trusted_proxies = ["127.0.0.9"]
        middleware.basic-auth.users = {{ ann = "{HASH}" }}
        static.dir = "static"
        "#
    ));
    app.write("static/large.css", "a { color: red; }\n".repeat(60_000));
    app.write("static/changing.txt", "0123456789");
    let built = app.run("build");
    assert!(built.success, "{}", built.stderr);
    app.migrate();
    app.serve().await
}

/// Runs all attacks at the same time, for as long as `time`.
///
/// # Panics
/// When the guestbook does not start.
pub async fn edge(time: Duration) -> Report {
    let server = serve().await;
    let before = server.memory_kib() >> 10;
    let until = Instant::now() + time;
    let reading = {
        let (client, url) = (from(2), server.url("/"));
        tokio::task::spawn_blocking(move || {
            let ask = || client.get(&url).basic_auth("ann", Some("secret"));
            super::hunt::on_this_thread(measure("the reader", ask, until))
        })
    };
    let changed = Arc::new(AtomicU64::new(0));
    let attacks = async {
        let guessing = join_all((0..GUESSERS).map(|number| guess(&server, number, until)));
        let encoded = join_all((0..6).map(|number| compressed(&server, number, until)));
        let heads = join_all((0..4).map(|number| heads(&server, number, until)));
        let floods = join_all((0..2).map(|_| flood(&server, until)));
        let admin = admin(&server, until);
        let slow = slow(&server, until);
        let rewritten = rewritten(&server, &changed, until);
        let all = tokio::join!(guessing, encoded, heads, floods, admin, slow, rewritten);
        let (guessing, encoded, heads, floods, admin, slow, (rewritten, wrong)) = all;
        let attacks = vec![
            ("wrong passwords", guessing.iter().sum()),
            ("compressed answers", encoded.iter().sum()),
            ("odd heads", heads.iter().sum()),
            ("floods of headers", floods.iter().sum()),
            ("connections to the admin address", admin),
            ("connections that do not go on", slow),
            ("answers with a file that changes", rewritten),
        ];
        (attacks, wrong)
    };
    let memory = most_memory(&server, until);
    let ((attacks, mut wrong), most, reader) = tokio::join!(attacks, memory, reading);
    // The admin address has time limits of its own. After this long, it has closed the connections that occupied it.
    tokio::time::sleep(PATIENCE).await;
    wrong.extend(super::run::quiet(&server).await);
    // One panic of the host has dozens of lines, each of them an entry.
    wrong.truncate(WRONG_MAX);
    let again = from(2)
        .get(server.url("/"))
        .basic_auth("ann", Some("secret"));
    let alive = crate::harness::Reply::maybe(again).await;
    if !alive.as_ref().is_ok_and(|reply| reply.status == 200) {
        wrong.push(format!("afterwards the guestbook answers {alive:?}"));
    }
    Report {
        reader: reader.expect("measuring does not panic"),
        memory_mib: [before, most],
        attacks,
        wrong,
    }
}

/// A client that connects from the address 127.0.0.`last`.
fn from(last: u8) -> Client {
    Client::builder()
        .local_address(IpAddr::from(Ipv4Addr::new(127, 0, 0, last)))
        .timeout(PATIENCE)
        .build()
        .expect("a client can be made")
}

/// Sends wrong passwords for known and unknown users, from three addresses. Returns how many.
async fn guess(server: &Server, number: usize, until: Instant) -> u64 {
    let (client, mut count) = (from(3 + (number % 3) as u8), 0);
    while Instant::now() < until {
        let (user, password) = match count % 3 {
            0 => ("ann".to_owned(), format!("wrong {count}")),
            1 => (format!("nobody-{number}-{count}"), "secret".to_owned()),
            _ => ("ann".to_owned(), "x".repeat(20_000)),
        };
        // The result does not matter.
        let request = client.get(server.url("/"));
        let _ = request.basic_auth(user, Some(password)).send().await;
        count += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    count
}

/// Requests responses in every encoding, large and small.
async fn compressed(server: &Server, number: usize, until: Instant) -> u64 {
    let (client, mut count) = (from(2), 0);
    let encoding = ["br", "zstd", "gzip"][number % 3];
    let path = ["/", "/static/large.css"][number / 3];
    while Instant::now() < until {
        let request = client
            .get(server.url(path))
            .header("accept-encoding", encoding);
        if let Ok(answer) = request.basic_auth("ann", Some("secret")).send().await {
            let _ = answer.bytes().await;
            count += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

/// Sends the malformed heads with and without the password, from a trusted proxy's address and from another one.
async fn heads(server: &Server, number: usize, until: Instant) -> u64 {
    const PASSWORD: &str = "\r\nauthorization: Basic YW5uOnNlY3JldA==\r\n\r\n";
    let mut count = 0;
    while Instant::now() < until {
        for head in HEADS {
            let Some(mut stream) = connect(server, if number < 2 { 9 } else { 10 }).await else {
                continue;
            };
            let sent = match number % 2 {
                0 => head.replacen("\r\n\r\n", PASSWORD, 1),
                _ => head.to_owned(),
            };
            let second = "GET /second HTTP/1.1\r\nhost: a\r\n\r\n";
            let _ = stream.write_all(format!("{sent}{second}").as_bytes()).await;
            let mut answer = [0; 4096];
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut answer)).await;
            count += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

async fn connect(server: &Server, last: u8) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().ok()?;
    let local = std::net::SocketAddr::from(([127, 0, 0, last], 0));
    socket.bind(local).ok()?;
    socket.connect(server.address).await.ok()
}

/// Opens connections to the admin address that send requests and do not read the answers. Returns how many.
async fn admin(server: &Server, until: Instant) -> u64 {
    let (mut count, mut held) = (0, std::collections::VecDeque::new());
    let ask = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(50);
    while Instant::now() < until {
        if let Ok(Ok(mut stream)) =
            tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(server.admin)).await
        {
            let _ =
                tokio::time::timeout(Duration::from_millis(10), stream.write_all(ask.as_bytes()))
                    .await;
            count += 1;
            held.push_back(stream);
        }
        if held.len() >= ADMIN_CONNECTIONS {
            held.pop_front();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count
}

/// Opens connections that stop within a head, and connections that request a large file and do not read it. Returns how
/// many.
async fn slow(server: &Server, until: Instant) -> u64 {
    let (mut count, mut held) = (0_u64, std::collections::VecDeque::new());
    while Instant::now() < until {
        if let Some(mut stream) = connect(server, 11).await {
            let sent = match count % 2 {
                0 => {
                    "GET /static/large.css HTTP/1.1\r\nhost: a\r\nauthorization: Basic YW5uOnNlY3JldA==\r\n\r\n"
                }
                _ => "GET / HTTP/1.1\r\nhost: a\r\nx-",
            };
            let _ = stream.write_all(sent.as_bytes()).await;
            count += 1;
            held.push_back(stream);
        }
        if held.len() >= SLOW_CONNECTIONS {
            held.pop_front();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    count
}

/// Requests a static file again and again while a thread rewrites the file in place. Returns the number of responses,
/// and a sentence about each of the first three that were wrong.
async fn rewritten(
    server: &Server,
    changes: &Arc<AtomicU64>,
    until: Instant,
) -> (u64, Vec<String>) {
    let file = server.app.path("static/changing.txt");
    let writing = Arc::clone(changes);
    let writer = tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::options()
            .write(true)
            .open(file)
            .expect("the file is there");
        while Instant::now() < until {
            let change = writing.fetch_add(1, Relaxed);
            let length = [10, 84, 0, 5_000, 400_000][(change % 5) as usize];
            // A write that fails does not matter: the next round writes the whole file again.
            let _ = file.set_len(0);
            let _ = file.rewind();
            let _ = file.write_all(&vec![b'x'; length]);
            std::thread::sleep(Duration::from_micros(500));
        }
    });
    let readers = (0..4).map(async |_| {
        let (client, mut count, mut wrong) = (from(2), 0, Vec::new());
        while Instant::now() < until {
            let request = client.get(server.url("/static/changing.txt"));
            let asked = request.basic_auth("ann", Some("secret")).send().await;
            // A response that breaks off is an error for the client. The server is right to break it off when the file
            // has become shorter, so it is not counted.
            let Ok(answer) = asked else { continue };
            let status = answer.status();
            if let Ok(body) = answer.bytes().await
                && (!status.is_success()
                    || body.iter().any(|byte| !b"x0123456789\0".contains(byte)))
            {
                wrong.push(format!(
                    "a file that changes was answered with {status} and {} bytes",
                    body.len()
                ));
            }
            count += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (count, wrong)
    });
    let readers = join_all(readers).await;
    writer.await.expect("writing does not panic");
    let count = readers.iter().map(|(count, _)| count).sum();
    let mut wrong: Vec<String> = readers.into_iter().flat_map(|(_, wrong)| wrong).collect();
    wrong.truncate(3);
    (count, wrong)
}

async fn most_memory(server: &Server, until: Instant) -> u64 {
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(server.memory_kib() >> 10);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}
