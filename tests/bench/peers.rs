//! Installs the servers of other projects (peers) that Amphi is compared with, and starts them on 127.0.0.1.
//!
//! Versions are pinned here, so that later runs measure the same programs. What is installed or built goes into a folder
//! that the caller names; the guests, applications and configurations are in `peers/`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/peers");
/// How long a server may take to its first answer.
const PATIENCE: Duration = Duration::from_secs(60);

const WASMTIME: &str = "=48.0.8";
const WASMTIME_FEATURES: &str = "cache,component-model,component-model-async,cranelift,parallel-compilation,pooling-allocator,run,serve";
const WORKERD: &str = "workerd@1.20261117.1";
/// What pip installs: Django, the servers, and all that they depend on. Python is the machine's, 3.10 or later.
const PYTHON: [&str; 13] = [
    "django==5.2.19",
    "asgiref==3.13.0",
    "sqlparse==0.6.1",
    "gunicorn==27.0.1",
    "packaging==26.4",
    "granian==2.8.7",
    "uvicorn==0.54.0",
    "click==8.5.1",
    "h11==0.16.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
    "channels==4.3.2",
    "websockets==17.4",
];
const DJANGO_VERSION: &str = r#"
import sys, platform, django, gunicorn, granian, uvicorn, uvloop, httptools
from importlib.metadata import version
server = sys.argv[1]
print(f"Django {version('django')}, {server} {version(server)}, Python {platform.python_version()}")
"#;

/// Settings of wasmtime's pool of instances: memories and tables stay resident, and the kernel says which pages have to
/// be reset. Other settings of the pool made no difference beyond noise.
const KEEP: &str = "-Opooling-memory-keep-resident=4194304,pooling-table-keep-resident=1048576,pooling-pagemap-scan=auto";
/// Each instance of WASI 0.3 serves up to 100,000 requests. wasmtime's default is 128.
const REUSE: &str = "--max-instance-reuse-count=100000";
/// Each instance serves one request, as with WASI 0.2.
const FRESH: &str = "--max-instance-reuse-count=1";

/// On granian, Django is several times faster over WSGI than over ASGI. More threads per worker would only wait for
/// Python's global lock.
const GRANIAN: &[&str] = &["--interface=wsgi", "--blocking-threads=1"];
/// The event loop and parser that `uvicorn[standard]` installs and prefers.
const UVICORN: &[&str] = &[
    "--loop=uvloop",
    "--http=httptools",
    "--lifespan=off",
    "--no-access-log",
];

/// A shell script, the guard. Runs a server until the server ends or the guard's input is closed, then kills the whole
/// process group. So no server outlives this program, even when this program is killed.
const GUARD: &str = r#"{ "$@" </dev/null; kill -KILL 0; } & read -r _; kill -KILL 0"#;

/// A server to compare with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    server: Server,
}

#[derive(Debug, Clone, Copy)]
enum Server {
    /// `wasmtime serve`: the guest and flags.
    Wasmtime(&'static str, &'static [&'static str]),
    Workerd,
    /// An application server for Django, and the application.
    Django(AppServer, &'static str),
}

/// An application server, with the number of workers that its documentation advises.
#[derive(Debug, Clone, Copy)]
enum AppServer {
    /// 2 × cores + 1 sync workers. A sync worker closes the connection after each answer.
    Gunicorn,
    /// A worker for each core.
    Granian,
    /// A worker for each core.
    Uvicorn,
}

/// All servers to compare with.
#[rustfmt::skip]
pub(crate) const ALL: [Peer; 14] = [
    Peer::new("wasmtime serve, WASI 0.2", Server::Wasmtime("wasi-0.2", &[])),
    Peer::new("wasmtime serve, WASI 0.2, tuned", Server::Wasmtime("wasi-0.2", &[KEEP])),
    Peer::new("wasmtime serve, WASI 0.3", Server::Wasmtime("wasi-0.3", &[])),
    Peer::new("wasmtime serve, WASI 0.3, tuned", Server::Wasmtime("wasi-0.3", &[KEEP, REUSE])),
    Peer::new("wasmtime serve, WASI 0.3, tuned, fresh", Server::Wasmtime("wasi-0.3", &[KEEP, FRESH])),
    Peer::new("workerd", Server::Workerd),
    Peer::new("Django on gunicorn", Server::Django(AppServer::Gunicorn, "wsgi:application")),
    Peer::new("Django on granian", Server::Django(AppServer::Granian, "wsgi:application")),
    Peer::new("Django on uvicorn", Server::Django(AppServer::Uvicorn, "asgi:application")),
    Peer::new("Channels, sync", Server::Django(AppServer::Uvicorn, "channels_echo:sync_application")),
    Peer::new("Channels, async", Server::Django(AppServer::Uvicorn, "channels_echo:async_application")),
    Peer::new("Django's page on gunicorn", Server::Django(AppServer::Gunicorn, "guestbook.wsgi:application")),
    Peer::new("Django's page on granian", Server::Django(AppServer::Granian, "guestbook.wsgi:application")),
    Peer::new("Django's page on uvicorn", Server::Django(AppServer::Uvicorn, "guestbook.asgi:application")),
];

impl Peer {
    const fn new(name: &'static str, server: Server) -> Peer {
        Peer { name, server }
    }

    /// Installs the server into `folder` if it is missing, starts it and waits for its first answer. The guestbook of
    /// Django works on `database`.
    pub(crate) fn start(&self, folder: &Path, database: &Path) -> anyhow::Result<Running> {
        let folder = &existing(folder)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (version, mut command) = match self.server {
            Server::Wasmtime(guest, flags) => wasmtime(folder, &address, guest, flags),
            Server::Workerd => workerd(folder, &address),
            Server::Django(server, application) => {
                django(folder, &address, server, application, database)
            }
        }?;

        let log = format!("{folder}/{}.log", self.name.replace(' ', "-"));
        let output = File::create(&log).with_context(|| format!("making {log}"))?;
        let process = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting `sh`")?;
        let mut running = Running {
            url: format!("http://{address}/"),
            version,
            process,
        };
        if let Err(error) = running.wait_for_answer(&address) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("{error:#}; {log} ends with: {}", end_of(&text));
        }
        Ok(running)
    }
}

/// A running server. Dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Running {
    /// The URL at which it answers.
    pub(crate) url: String,
    /// Its version and, where it has settings, the command that started it.
    pub(crate) version: String,
    process: Child,
}

impl Running {
    /// The id of the process that all processes of the server descend from.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    fn wait_for_answer(&mut self, address: &str) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let last = match answer(address) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.process.try_wait()?.is_some() {
                bail!("it ended");
            }
            if since.elapsed() > PATIENCE {
                return Err(last.context(format!("no answer within {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // `wait` closes the guard's input first, which ends the process group: see `GUARD`.
        let _ = self.process.wait();
    }
}

/// Requests `/`, and checks that the answer is one of the two pages that the servers have at this path.
fn answer(address: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let is_known = ["Hello, World!", "Leave a word"]
        .iter()
        .any(|text| answer.contains(text));
    if !answer.starts_with("HTTP/1.1 200") || !is_known {
        bail!("the answer was: {answer}");
    }
    Ok(())
}

/// The SQL statements that Django's page runs for a request with these cookies. Django must be installed.
pub(crate) fn django_statements(
    folder: &Path,
    database: &Path,
    cookie: &str,
) -> anyhow::Result<Vec<String>> {
    let mut python = Command::new(format!("{}/django/bin/python", existing(folder)?));
    let printed = run(in_django(&mut python, database)
        .args(["-m", "guestbook.statements"])
        .arg(cookie))?;
    serde_json::from_str(&printed).with_context(|| format!("not a list of statements: {printed}"))
}

/// Makes a folder if it is missing. Returns its full path.
fn existing(folder: &Path) -> anyhow::Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let folder = folder.to_str().context("the folder's path is not UTF-8")?;
    Ok(folder.to_owned())
}

/// A server that is installed: its version, and the command that starts it.
type Prepared = anyhow::Result<(String, Command)>;

fn wasmtime(folder: &str, address: &str, guest: &str, flags: &[&str]) -> Prepared {
    let root = format!("{folder}/wasmtime");
    let program = format!("{root}/bin/wasmtime");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", "wasmtime-cli", "--version", WASMTIME, "--locked"])
        .args(["--no-default-features", "--features", WASMTIME_FEATURES])
        .args(["--root", &root]);
    let version = install(&root, &mut [cargo], Command::new(&program).arg("--version"))?;

    let target = format!("{folder}/{guest}");
    run(Command::new("cargo")
        .args(["build", "--release", "--locked"])
        .args(["--target", "wasm32-wasip2", "--target-dir", &target])
        .args(["--manifest-path", &format!("{SOURCES}/{guest}/Cargo.toml")]))?;
    let component = format!("{target}/wasm32-wasip2/release/hello.wasm");

    let mut serve = guarded(&program);
    serve
        // Rust's standard library imports the interfaces of WASI's `cli`.
        .args(["serve", "-S", "cli", "--addr", address])
        .args(flags)
        .arg(component);
    Ok((version, serve))
}

fn workerd(folder: &str, address: &str) -> Prepared {
    let root = format!("{folder}/workerd");
    let program = format!("{root}/node_modules/workerd/bin/workerd");
    let mut empty = Command::new("rm");
    empty.args(["-rf", &root]);
    let mut npm = Command::new("npm");
    npm.args([
        "install",
        "--no-audit",
        "--no-fund",
        "--prefix",
        &root,
        WORKERD,
    ]);
    let version = install(
        &root,
        &mut [empty, npm],
        Command::new(&program).arg("--version"),
    )?;

    let mut serve = guarded(&program);
    serve
        .args(["serve", &format!("{SOURCES}/workerd/hello.capnp")])
        .args(["--socket-addr", &format!("http={address}")]);
    Ok((version, serve))
}

fn django(
    folder: &str,
    address: &str,
    server: AppServer,
    application: &str,
    database: &Path,
) -> Prepared {
    let cores = std::thread::available_parallelism()?.get();
    let (name, workers, flags) = match server {
        AppServer::Gunicorn => ("gunicorn", 2 * cores + 1, [].as_slice()),
        AppServer::Granian => ("granian", cores, GRANIAN),
        AppServer::Uvicorn => ("uvicorn", cores, UVICORN),
    };
    let root = format!("{folder}/django");
    let python = format!("{root}/bin/python");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear", &root]);
    let mut pip = Command::new(&python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .args(PYTHON);
    let version = install(
        &root,
        &mut [venv, pip],
        Command::new(&python).args(["-c", DJANGO_VERSION, name]),
    )?;

    let workers = format!("--workers={workers}");
    let settings = [&[workers.as_str()], flags, &[application]].concat();
    let (host, port) = address.split_once(':').expect("an address has a port");
    let mut serve = guarded(&format!("{root}/bin/{name}"));
    in_django(&mut serve, database)
        .args(&settings)
        .arg("--log-level=warning");
    match server {
        AppServer::Gunicorn => serve.args(["--bind", address]),
        AppServer::Granian | AppServer::Uvicorn => serve.args(["--host", host, "--port", port]),
    };
    Ok((format!("{version}: `{name} {}`", settings.join(" ")), serve))
}

/// Sets a command's folder and environment so that it finds the Django applications and the guestbook's database.
fn in_django<'a>(command: &'a mut Command, database: &Path) -> &'a mut Command {
    command
        .current_dir(format!("{SOURCES}/django"))
        .env("GUESTBOOK_DATABASE", database)
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// Fills the folder `root` by running the steps, unless an earlier run has finished the same steps. Returns what the
/// command `version` prints.
fn install(root: &str, steps: &mut [Command], version: &mut Command) -> anyhow::Result<String> {
    let mark = format!("{root}/complete");
    let wanted = format!("{steps:?}");
    if fs::read_to_string(&mark).is_ok_and(|complete| complete == wanted)
        && let Ok(version) = run(version)
    {
        return Ok(version);
    }
    eprintln!("Installing into {root}, which can take minutes");
    for step in steps {
        run(step)?;
    }
    let version = run(version)?;
    fs::write(&mark, wanted).with_context(|| format!("writing {mark}"))?;
    Ok(version)
}

/// Runs a command to its end; returns what it prints.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| {
        let program = command.get_program().display();
        format!("`{program}` is needed and cannot be started")
    })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?} failed: {}",
            end_of(&format!("{printed}{complaint}"))
        );
    }
    Ok(printed.trim().to_owned())
}

fn guarded(program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "sh", program]);
    command
}

/// The last ten lines.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
