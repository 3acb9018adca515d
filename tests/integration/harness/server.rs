//! A running server.

use std::fmt;
use std::net::SocketAddr;
use std::process::{Child, ExitStatus, Stdio};

use futures::future::join_all;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use reqwest::header::HeaderValue;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::app::App;
use super::eventually;
use super::log::{Line, Log};
use super::metrics::Metrics;

/// Locked for reading by every test that runs a server, and for writing by the tests that need the machine for
/// themselves, because they measure time or memory.
static MACHINE: RwLock<()> = RwLock::new(());

/// An environment variable of the server, for apps with a secret.
pub(super) const SECRET: (&str, &str) = ("TEST_SECRET", "hidden");

enum Share {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
}

/// A running server, killed when dropped.
pub struct Server {
    process: Child,
    /// Its app.
    pub app: App,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its metrics are.
    pub admin: SocketAddr,
    /// What it logs.
    pub log: Log,
    /// A client that keeps connections open.
    pub client: Client,
    _share: Share,
}

/// A response.
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Server {
    pub(super) async fn start(app: App, command: &str, alone: bool) -> Server {
        let folder = app.folder().display().to_string();
        Server::start_with(app, command, &[&folder], alone).await
    }

    pub(super) async fn start_with(
        app: App,
        command: &str,
        arguments: &[&str],
        alone: bool,
    ) -> Server {
        let share = match alone {
            true => Share::Alone {
                _guard: MACHINE.write(),
            },
            // The lock is taken recursively, because a test may run two servers.
            false => Share::Shared {
                _guard: MACHINE.read_recursive(),
            },
        };
        let (process, log, [address, admin]) = launched(&app, command, arguments).await;
        Server {
            address,
            admin,
            process,
            app,
            log,
            client: client(),
            _share: share,
        }
    }

    /// Serves the app once more, after its process has ended: at other addresses, and with a log that begins anew.
    pub async fn again(&mut self) {
        let folder = self.app.folder().display().to_string();
        self.again_with(&[&folder]).await;
    }

    /// Likewise, with these arguments in place of the app's folder.
    pub async fn again_with(&mut self, arguments: &[&str]) {
        self.ended().await;
        let (process, log, addresses) = launched(&self.app, "serve", arguments).await;
        (self.process, self.log) = (process, log);
        [self.address, self.admin] = addresses;
    }

    /// Changes the source of an app of [`App::of_crate`], and waits until `amphi up` serves it.
    pub async fn edit(&self, source: &str) {
        let mark = self.log.mark();
        self.app.write("crate/src/lib.rs", source);
        // A build has no time limit of the tests, as that at the start has none.
        let swapped = |line: &Line| line.text("message").starts_with("swapped");
        while !self.log.since(mark).iter().any(swapped) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request to a path.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).expect("it is a method");
        self.client.request(method, self.url(path))
    }

    /// Sends GET.
    pub async fn get(&self, path: &str) -> Reply {
        Reply::of(self.request("GET", path)).await
    }

    /// Sends POST.
    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Reply::of(self.request("POST", path).body(body)).await
    }

    /// Sends POST to a view of `rules`, which does these steps.
    pub async fn steps(&self, path: &str, steps: Value) -> Reply {
        self.post(path, steps.to_string()).await
    }

    /// Does what [`Server::steps`] does, `count` times at the same time.
    pub async fn many_steps(&self, count: usize, path: &str, steps: Value) -> Vec<Reply> {
        join_all((0..count).map(|_| self.steps(path, steps.clone()))).await
    }

    /// What a view of `rules` told about these steps; see [`Reply::told`].
    pub async fn told(&self, path: &str, steps: Value) -> Value {
        self.steps(path, steps).await.told()
    }

    /// The answer of a view of `rules`, and after it the reason in the log if the view failed.
    pub async fn reason(&self, path: &str, steps: Value) -> String {
        let mark = self.log.mark();
        let reply = self.steps(path, steps).await;
        let lines = self.log.requests(mark, 1).await;
        format!("{} {}", reply.text(), lines[0].text("why"))
    }

    /// The server's metrics.
    pub async fn metrics(&self) -> Metrics {
        let response = self
            .client
            .get(format!("http://{}/metrics", self.admin))
            .send()
            .await
            .expect("metrics are served");
        Metrics::parse(&response.text().await.expect("metrics are a text"))
    }

    /// Waits until nothing is in flight any more (R13), and checks that the host has not panicked.
    pub async fn assert_baseline(&self) {
        eventually("every gauge at its baseline", async || {
            let in_flight = self.metrics().await.in_flight();
            if in_flight.is_empty() {
                Ok(())
            } else {
                Err(in_flight)
            }
        })
        .await;
        let strays = self.log.strays();
        assert!(
            strays.is_empty(),
            "the host should log events alone: {strays:#?}"
        );
    }

    /// A connection of the test's own to the app's SQLite database.
    pub fn database(&self) -> Connection {
        let database =
            Connection::open(self.app.path("data/test.db")).expect("the database is there");
        database
            .busy_timeout(super::SOON)
            .expect("the timeout is set");
        database
    }

    /// How many rows the table `rows` has.
    pub fn rows(&self) -> i64 {
        self.count("select count(*) from rows")
    }

    /// The number that a query returns.
    pub fn count(&self, sql: &str) -> i64 {
        self.database()
            .query_row(sql, (), |row| row.get(0))
            .expect("the query gives a number")
    }

    /// The tags of all rows, in the order of their ids.
    pub fn tags(&self) -> Vec<String> {
        let database = self.database();
        let mut statement = database
            .prepare("select tag from rows order by id")
            .expect("there is such a table");
        let tags = statement
            .query_map((), |row| row.get(0))
            .expect("it can be read");
        tags.collect::<Result<_, _>>().expect("tags are texts")
    }

    /// The resident memory of the process, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status("VmRSS")
    }

    /// The number of threads of the process.
    pub fn threads(&self) -> u64 {
        self.status("Threads")
    }

    /// The number of open files of the process.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id()))
            .expect("Linux says so")
            .count()
    }

    /// The ports of IPv4 that the process listens on.
    pub fn listening(&self) -> Vec<u16> {
        let process = format!("/proc/{}", self.process.id());
        let files = std::fs::read_dir(format!("{process}/fd")).expect("Linux says so");
        // A file that was closed in the meantime is left out.
        let sockets: Vec<_> = files
            .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
            .collect();
        let table = std::fs::read_to_string(format!("{process}/net/tcp")).expect("Linux says so");
        let port = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, port) = fields.get(1)?.split_once(':')?;
            let socket = format!("socket:[{}]", fields.get(9)?);
            let own = sockets.iter().any(|link| link.as_os_str() == &*socket);
            let listens = own && fields.get(3) == Some(&"0A");
            u16::from_str_radix(port, 16).ok().filter(|_| listens)
        };
        table.lines().filter_map(port).collect()
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))
            .expect("Linux says so");
        let number = status.lines().find_map(|line| {
            let rest = line.strip_prefix(field)?.strip_prefix(':')?;
            rest.split_whitespace().next()?.parse().ok()
        });
        number.expect("Linux says so")
    }

    /// Sends SIGTERM to the process.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Halts the process, as a machine does that has too much to do.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a process has an id");
        kill_process(pid, signal).expect("it is our own");
    }

    /// Kills the process, without a chance to end in order.
    pub fn kill(&mut self) {
        self.process.kill().expect("it is our own");
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually("the end of the server", async || {
            self.process
                .try_wait()
                .expect("it can be asked")
                .ok_or("still there")
        })
        .await
    }
}

/// Starts a process for an app. Returns its log and where it listens: for the app's clients, and for metrics.
async fn launched(app: &App, command: &str, arguments: &[&str]) -> (Child, Log, [SocketAddr; 2]) {
    let (log, stderr) = Log::new();
    let mut process = (app.program())
        .arg(command)
        .args(arguments)
        .current_dir(app.folder())
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .envs([SECRET])
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("it can be started");
    // No time limit: `amphi up` builds first.
    let listening = loop {
        if let Some(line) = log
            .since(0)
            .into_iter()
            .find(|line| line.text("message") == "listening")
        {
            break line;
        }
        if let Some(status) = process.try_wait().expect("it can be asked") {
            panic!("the server ended with {status}: {:#?}", log.since(0));
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    let address = |field| {
        listening
            .text(field)
            .parse()
            .unwrap_or_else(|_| panic!("{field} should be an address: {listening:?}"))
    };
    let admin = match listening.text("admin") {
        // An app may have none.
        "" => address("address"),
        _ => address("admin"),
    };
    (process, log, [address("address"), admin])
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended before.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let lines = self.log.since(0);
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("the last lines of the server's log:");
            last.iter().for_each(|line| eprintln!("  {}", line.0));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{} {:?} {body:?}", self.status, self.headers)
    }
}

impl Reply {
    /// Sends a request and reads the whole response.
    ///
    /// # Panics
    /// When there is no response.
    pub async fn of(request: RequestBuilder) -> Reply {
        Reply::maybe(request)
            .await
            .unwrap_or_else(|error| panic!("there should be a response: {error:?}"))
    }

    /// Like [`Reply::of`], for requests that may get no response.
    pub async fn maybe(request: RequestBuilder) -> reqwest::Result<Reply> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Reply {
            status,
            headers,
            body: response.bytes().await?.into(),
        })
    }

    /// The body as a text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is a text")
    }

    /// The JSON that a view of `rules` answered: what each of its steps told.
    pub fn told(&self) -> Value {
        serde_json::from_str(self.ok()).expect("what is told is JSON")
    }

    /// The values of all headers of a name.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        let text = |value| HeaderValue::to_str(value).expect("the header is a text");
        self.headers.get_all(name).iter().map(text).collect()
    }

    /// A header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("the header is a text"))
    }

    /// The text of the response.
    ///
    /// # Panics
    /// When the response has another status.
    pub fn expect(&self, status: StatusCode) -> &str {
        assert_eq!(
            self.status,
            status.as_u16(),
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self.text()
    }

    /// The text of the response.
    ///
    /// # Panics
    /// When the status is not 200.
    pub fn ok(&self) -> &str {
        self.expect(StatusCode::OK)
    }
}

/// A client that keeps its connections.
pub fn client() -> Client {
    builder().build().expect("a client can be made")
}

/// A client that speaks HTTP/2 from the first byte.
pub fn client_http2() -> Client {
    builder()
        .http2_prior_knowledge()
        .build()
        .expect("a client can be made")
}

fn builder() -> reqwest::ClientBuilder {
    // A host that a test runs in this process may have been the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
}
