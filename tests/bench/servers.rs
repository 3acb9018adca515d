//! The two servers that are part of this program, Amphi and the native server, and the data that all servers work on.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

const BENCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench");

const ITEMS: &str = "
    create table items (id integer primary key, name text not null, hits integer not null);
    insert into items
        with recursive numbers (id) as (select 1 union all select id + 1 from numbers where id < 10000)
        select id, 'item ' || id, 0 from numbers;
";

/// The table of the guestbook, with two entries.
const ENTRIES: &str = include_str!("../../examples/guestbook/migrations/V1__entries.sql");
/// More entries, at fixed times.
const MORE_ENTRIES: &str = "
    insert into entries (name, message)
        with recursive numbers (id) as (select 3 union all select id + 1 from numbers where id < 200)
        select 'Guest ' || id || ' & friends',
            'We came by <i>foot</i>, stayed for ' || id || ' minutes and liked what we saw. '
            || 'The next time we bring the children, who would have liked it even more.'
        from numbers;
    update entries set signed_at = '2026-11-01T12:00:00Z';
";

/// What all servers work on: databases and configurations in a temporary folder.
pub(crate) struct Data {
    folder: tempfile::TempDir,
    postgres: Option<String>,
    /// Whether the guests of the app have been built.
    is_built: Cell<bool>,
    streams_are_built: Cell<bool>,
}

/// A running server. Dropping it ends the process.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Data {
    /// Makes the databases.
    pub(crate) fn new(postgres: Option<String>) -> anyhow::Result<Data> {
        let folder = tempfile::tempdir()?;
        for name in ["amphi.db", "native.db"] {
            rusqlite::Connection::open(folder.path().join(name))?.execute_batch(ITEMS)?;
        }
        Ok(Data {
            folder,
            postgres,
            is_built: Cell::new(false),
            streams_are_built: Cell::new(false),
        })
    }

    /// The temporary folder of the data. Callers may add other files to it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the configuration of the app into a file of this name, with `more` added to it.
    fn app(&self, name: &str, more: &str) -> anyhow::Result<PathBuf> {
        let mut databases = vec!["sqlite"];
        let mut toml = format!(
            "[app]\nname = \"bench\"\n[databases.sqlite]\nsqlite = \"amphi.db\"\nsynchronous = \"normal\"\n{more}\n"
        );
        if let Some(url) = &self.postgres {
            databases.push("postgres");
            toml += &format!("[databases.postgres]\npostgres = \"{url}\"\n");
        }
        toml += &format!(
            r#"
            [modules.hello]
            path = "{BENCH}/hello"
            [modules.reused]
            path = "{BENCH}/hello"
            mount = "/reused"
            instances = "reuse"
            [modules.views]
            path = "{BENCH}/views"
            http = ["self"]
            channels = ["*"]
            databases = {databases:?}
            "#
        );
        // The same components that `wasmtime serve` serves.
        for version in ["0.2", "0.3"] {
            let manifest = format!("{BENCH}/peers/wasi-{version}/Cargo.toml");
            let (target, component) = (
                format!("wasi-{version}"),
                "wasm32-wasip2/release/hello.wasm",
            );
            toml += &format!(
                r#"
                [modules.wasi-{version}]
                path = "{target}/{component}"
                mount = "/wasi-{version}"
                build = "cargo build --release --locked --target wasm32-wasip2 --target-dir {target} --manifest-path {manifest}"
                "#
            )
            .replace("[modules.wasi-0.", "[modules.wasi-0-");
        }
        let file = self.folder().join(format!("{name}.toml"));
        std::fs::write(&file, toml)?;
        Ok(file)
    }

    /// Amphi with default settings.
    pub(crate) fn amphi(&self) -> anyhow::Result<Server> {
        self.start_built("app", "")
    }

    /// Amphi with this number of event loops, restricted to these CPUs (a list as `taskset` takes it).
    pub(crate) fn pinned(&self, loops: usize, cpus: &str) -> anyhow::Result<Server> {
        let more = format!("[async_views]\nloops = {loops}\n");
        self.start_amphi(&format!("loops-{loops}"), &more, Some(cpus))?
            .answering("/sync")
    }

    /// Amphi with room for 20,000 connections, and compression for the sockets that ask for it.
    pub(crate) fn sockets(&self) -> anyhow::Result<Server> {
        let more = "[server]\nconnections_max = 20100\n[sockets]\ncompression = true\n";
        self.start_built("sockets", more)
    }

    /// Starts Amphi with the benchmark's app. The first call builds the guests.
    fn start_built(&self, name: &str, more: &str) -> anyhow::Result<Server> {
        if !self.is_built.replace(true) {
            build(&self.app("app", "")?)?;
        }
        self.start_amphi(name, more, None)?.answering("/sync")
    }

    /// Amphi with the views and components of the tests that stream, beside those of the benchmark. The first call builds
    /// them.
    pub(crate) fn streams(&self) -> anyhow::Result<Server> {
        let guests = format!("{BENCH}/../guests");
        let mut more = format!(
            "[server]\nbody_max_bytes = 2147483648\n[limits]\ncpu_ms = 20000\nstream_timeout_ms = 600000\n[modules.streams]\npath = \"{guests}/streams\"\nhttp = [\"self\"]\nsubrequests = true\ndatabases = [\"sqlite\"]\n"
        );
        for name in ["p2", "p3"] {
            more += &format!(
                r#"
                [modules.{name}]
                path = "tests/wasm32-wasip2/release/wasi_http_{name}.wasm"
                mount = "/{name}"
                databases = ["sqlite"]
                http = ["self"]
                stream_bodies = true
                build = "cargo build --release --locked --target wasm32-wasip2 --target-dir tests --manifest-path {guests}/wasi-http/Cargo.toml -p wasi-http-{name}"
                "#
            );
        }
        let app = self.app("streams", &more)?;
        if !self.streams_are_built.replace(true) {
            build(&app)?;
        }
        Server::amphi(itself()?, "serve", &app)?.answering("/sync")
    }

    /// Time from the start of Amphi to its first answer.
    pub(crate) fn time_to_start(&self) -> anyhow::Result<Duration> {
        let since = Instant::now();
        let server = self.start_amphi("app", "", None)?.answering("/sync")?;
        let took = since.elapsed();
        drop(server);
        Ok(took)
    }

    fn start_amphi(&self, name: &str, more: &str, cpus: Option<&str>) -> anyhow::Result<Server> {
        let app = self.app(name, more)?;
        let command = match cpus {
            None => itself()?,
            Some(cpus) => {
                // `taskset` replaces itself by the server, so the server has the process id of `taskset`.
                let mut pinned = Command::new("taskset");
                pinned.args(["-c", cpus]).arg(std::env::current_exe()?);
                pinned
            }
        };
        Server::amphi(command, "serve", &app)
    }

    /// The guestbook of `examples/` on Amphi: at `/` with a fresh instance for each request, at `/reused` with reused
    /// instances. Makes the guestbook's database, and a copy of it for Django.
    pub(crate) fn guestbook(&self) -> anyhow::Result<Server> {
        let folder = self.folder().join("guestbook");
        std::fs::create_dir_all(&folder)?;
        if !self.django_database().exists() {
            let file = folder.join("amphi.db");
            let database = rusqlite::Connection::open(&file)?;
            database.pragma_update(None, "journal_mode", "wal")?;
            database.execute_batch(ENTRIES)?;
            database.execute_batch(MORE_ENTRIES)?;
            // Closing the database moves everything from the write-ahead log into the file.
            database.close().map_err(|(_, error)| error)?;
            std::fs::copy(file, self.django_database())?;
        }
        let modules = [
            guestbook_module("fresh", "mount = \"/\""),
            guestbook_module("reused", "mount = \"/reused\"\ninstances = \"reuse\""),
        ];
        let app = self.guestbook_app("amphi.toml", &modules.concat())?;
        build(&app)?;
        Server::amphi(itself()?, "serve", &app)?.answering("/")
    }

    /// The guestbook under `amphi up`, with a middleware that makes each request fail after its page has been made. The
    /// answer to a failed request names the statements that the page has run. The server listens only after the
    /// guestbook has been built, which takes minutes.
    pub(crate) fn guestbook_telling_statements(&self) -> anyhow::Result<Server> {
        let module = format!("[modules.statements]\npath = \"{BENCH}/statements\"\n");
        let list = guestbook_module(
            "fresh",
            "mount = \"/\"\nmiddleware = [\"statements::list\"]",
        );
        let app = self.guestbook_app("statements.toml", &(module + &list))?;
        Server::amphi(itself()?, "up", &app)
    }

    fn guestbook_app(&self, file: &str, modules: &str) -> anyhow::Result<PathBuf> {
        let file = self.folder().join("guestbook").join(file);
        let app = "[app]\nname = \"guestbook\"\n[databases.default]\nsqlite = \"amphi.db\"\n";
        std::fs::write(&file, format!("{app}{modules}"))?;
        Ok(file)
    }

    /// Django's database of the guestbook.
    pub(crate) fn django_database(&self) -> PathBuf {
        self.folder().join("guestbook/django.db")
    }

    /// Gives the newest entry of both guestbooks the same time.
    pub(crate) fn align_newest_entries(&self) -> anyhow::Result<()> {
        for file in [
            self.folder().join("guestbook/amphi.db"),
            self.django_database(),
        ] {
            rusqlite::Connection::open(file)?.execute(
                "update entries set signed_at = '2026-11-02T12:00:00Z' where id = (select max(id) from entries)",
                (),
            )?;
        }
        Ok(())
    }

    /// The native server.
    pub(crate) fn native(&self) -> anyhow::Result<Server> {
        let address = free_address()?;
        let mut command = itself()?;
        command.args(["native", &address.to_string(), "--sqlite"]);
        command.arg(self.folder().join("native.db"));
        if let Some(url) = &self.postgres {
            command.args(["--postgres", url]);
        }
        Server::start(address, &mut command)?.answering("/")
    }
}

/// The configuration of a module with the guestbook's crate: `keys`, and the keys that every such module needs.
fn guestbook_module(name: &str, keys: &str) -> String {
    format!(
        r#"
        [modules.{name}]
        path = "{BENCH}/../../examples/guestbook"
        {keys}
        databases = ["default"]
        http = ["self"]
        settings = {{ title = "Guestbook" }}
        secrets = {{ session_key = {{ file = "session.key", generate = true }} }}
        "#
    )
}

/// Builds the components of an app.
fn build(app: &Path) -> anyhow::Result<()> {
    let built = itself()?.args(["amphi", "build"]).arg(app).status()?;
    ensure!(built.success(), "the guests could not be built");
    Ok(())
}

/// A command that runs this program, which can also run as Amphi or as the native server.
fn itself() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Server {
    /// Starts `amphi serve` or `amphi up`. `program` is a command that runs this program.
    fn amphi(mut program: Command, subcommand: &str, app: &Path) -> anyhow::Result<Server> {
        let address = free_address()?;
        let command = program.args(["amphi", subcommand]).arg(app);
        Server::start(address, command.args(["--listen", &address.to_string()]))
    }

    fn start(address: SocketAddr, command: &mut Command) -> anyhow::Result<Server> {
        let process = command
            .env("AMPHI_LOG", "error")
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting a server")?;
        Ok(Server { address, process })
    }

    /// Waits until the server answers a request for `path` with success.
    fn answering(mut self, path: &str) -> anyhow::Result<Server> {
        let since = Instant::now();
        while get(self.address, path).is_err() {
            self.ensure_running()?;
            if since.elapsed() > Duration::from_secs(60) {
                bail!("a server does not answer at {}", self.address);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self)
    }

    /// The URL of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The id of its process.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Fails if the process has ended.
    pub(crate) fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("a server ended ({status}) before it answered"),
        }
    }

    /// The number of its threads.
    pub(crate) fn threads(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/task", self.process()))?.count())
    }

    /// Its proportional set size in bytes: private pages, and a share of each shared page.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = maps.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.context("no `Pss`")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends one GET on a new connection; returns the body of a success.
pub(crate) fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {answer}");
    }
    Ok(body.to_owned())
}
