//! The servers that are built here: Amphi and the native one, with their data.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

const ITEMS: &str = "
    create table items (id integer primary key, name text not null, hits integer not null);
    insert into items
        with recursive numbers (id) as (select 1 union all select id + 1 from numbers where id < 10000)
        select id, 'item ' || id, 0 from numbers;
";

/// What all servers work on.
pub(crate) struct Data {
    folder: tempfile::TempDir,
    postgres: Option<String>,
}

/// A server; it ends with this value.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Data {
    /// Makes the data, and builds the guests.
    pub(crate) fn new(postgres: Option<String>) -> anyhow::Result<Data> {
        let folder = tempfile::tempdir()?;
        for name in ["amphi.db", "native.db"] {
            rusqlite::Connection::open(folder.path().join(name))?.execute_batch(ITEMS)?;
        }
        let data = Data { folder, postgres };
        let app = data.app("app", "")?;
        let built = itself()?.args(["amphi", "build"]).arg(app).status()?;
        if !built.success() {
            bail!("the guests could not be built");
        }
        Ok(data)
    }

    /// A folder for files that go with the data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// An app with this name in a file of its own; `more` is added to its configuration.
    fn app(&self, name: &str, more: &str) -> anyhow::Result<PathBuf> {
        let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
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
            path = "{0}/hello"
            [modules.reused]
            path = "{0}/hello"
            mount = "/reused"
            instances = "reuse"
            [modules.views]
            path = "{0}/views"
            http = ["self"]
            databases = {databases:?}
            "#,
            guests.display(),
        );
        let file = self.folder().join(format!("{name}.toml"));
        std::fs::write(&file, toml)?;
        Ok(file)
    }

    /// Amphi as it is by default.
    pub(crate) fn amphi(&self) -> anyhow::Result<Server> {
        self.start_amphi("app", "", None)?.answering("/sync")
    }

    /// Amphi with so many loops, on these CPUs (as `taskset` has them).
    pub(crate) fn pinned(&self, loops: usize, cpus: &str) -> anyhow::Result<Server> {
        let more = format!("[async_views]\nloops = {loops}\n");
        self.start_amphi(&format!("loops-{loops}"), &more, Some(cpus))?
            .answering("/sync")
    }

    /// Amphi from its start to its first answer.
    pub(crate) fn time_to_start(&self) -> anyhow::Result<Duration> {
        let since = Instant::now();
        let server = self.start_amphi("app", "", None)?.answering("/sync")?;
        let took = since.elapsed();
        drop(server);
        Ok(took)
    }

    fn start_amphi(&self, name: &str, more: &str, cpus: Option<&str>) -> anyhow::Result<Server> {
        let app = self.app(name, more)?;
        let address = free_address()?;
        let mut command = match cpus {
            None => itself()?,
            Some(cpus) => {
                let mut pinned = Command::new("taskset");
                pinned.args(["-c", cpus]).arg(std::env::current_exe()?);
                pinned
            }
        };
        command
            .args(["amphi", "serve"])
            .arg(app)
            .args(["--listen", &address.to_string()]);
        Server::start(address, &mut command)
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

fn itself() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Server {
    fn start(address: SocketAddr, command: &mut Command) -> anyhow::Result<Server> {
        let process = command
            .env("AMPHI_LOG", "error")
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting a server")?;
        Ok(Server { address, process })
    }

    /// Waits until it answers.
    fn answering(mut self, path: &str) -> anyhow::Result<Server> {
        let since = Instant::now();
        while get(self.address, path).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("a server ended ({status}) before it answered");
            }
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

    /// CPU time that it has used.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // The name may have spaces in it; user and system time are the 14th and 15th field (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(')').context("an unknown form of stat")?;
        let ticks: u64 = (fields.split_whitespace().skip(11).take(2))
            .map(str::parse::<u64>)
            .sum::<Result<_, _>>()?;
        Ok(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    }

    /// Memory that is its own, and its share of what it shares, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = maps.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.context("no `Pss`")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks once, on a connection of its own; the body of a success.
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
