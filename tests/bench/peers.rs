//! The servers that the hello-world benchmark compares with: installs them and starts them on 127.0.0.1.
//!
//! Versions are pinned here, so that a run tomorrow measures the same. What is installed or built goes to a folder
//! that the caller names; the guests, apps and configurations are in `peers/`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/peers");
const PATIENCE: Duration = Duration::from_secs(60);

const WASMTIME: &str = "=48.0.8";
const WASMTIME_FEATURES: &str = "cache,component-model,component-model-async,cranelift,parallel-compilation,pooling-allocator,run,serve";
const WORKERD: &str = "workerd@1.20261117.1";
/// What pip installs. Python itself is the machine's, 3.10 or later.
const PYTHON: [&str; 6] = [
    "django==5.2.19",
    "asgiref==3.13.0",
    "granian==2.8.7",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
];
const DJANGO_VERSION: &str = r#"
import sys, platform, django, granian, uvicorn, uvloop, httptools
from importlib.metadata import version
server = sys.argv[1]
print(f"Django {version('django')} on {server} {version(server)}, 2 workers, Python {platform.python_version()}")
"#;

/// Keeps the memory and tables of instances, and asks the kernel which pages to reset. What else the pool can be told
/// made no difference beyond noise.
const KEEP: &str = "-Opooling-memory-keep-resident=4194304,pooling-table-keep-resident=1048576,pooling-pagemap-scan=auto";
/// Instances of WASI 0.3 serve many requests anyway: by default 128.
const REUSE: &str = "--max-instance-reuse-count=100000";
/// Each serves one, as those of WASI 0.2 do.
const FRESH: &str = "--max-instance-reuse-count=1";

/// Django is several times slower over ASGI, on granian as well. More threads would only wait for each other.
const GRANIAN: [&str; 3] = [
    "--interface=wsgi",
    "--blocking-threads=1",
    "wsgi:application",
];
const UVICORN: [&str; 5] = [
    "--loop=uvloop",
    "--http=httptools",
    "--lifespan=off",
    "--no-access-log",
    "asgi:application",
];

/// Runs a server until it or the guard's input ends, then ends the whole process group: no server outlives us, even
/// when we are killed.
const GUARD: &str = r#"{ "$@" </dev/null; kill -KILL 0; } & read -r _; kill -KILL 0"#;

/// A server to compare with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// What the table calls it.
    pub(crate) name: &'static str,
    server: Server,
}

#[derive(Debug, Clone, Copy)]
enum Server {
    /// `wasmtime serve`: the guest and flags.
    Wasmtime(&'static str, &'static [&'static str]),
    Workerd,
    /// Two workers of an application server: its name and flags.
    Django(&'static str, &'static [&'static str]),
}

/// All servers to compare with.
pub(crate) const ALL: [Peer; 8] = [
    Peer::new(
        "wasmtime serve, WASI 0.2",
        Server::Wasmtime("wasi-0.2", &[]),
    ),
    Peer::new(
        "wasmtime serve, WASI 0.2, tuned",
        Server::Wasmtime("wasi-0.2", &[KEEP]),
    ),
    Peer::new(
        "wasmtime serve, WASI 0.3",
        Server::Wasmtime("wasi-0.3", &[]),
    ),
    Peer::new(
        "wasmtime serve, WASI 0.3, tuned",
        Server::Wasmtime("wasi-0.3", &[KEEP, REUSE]),
    ),
    Peer::new(
        "wasmtime serve, WASI 0.3, tuned, fresh",
        Server::Wasmtime("wasi-0.3", &[KEEP, FRESH]),
    ),
    Peer::new("workerd", Server::Workerd),
    Peer::new("Django on granian", Server::Django("granian", &GRANIAN)),
    Peer::new("Django on uvicorn", Server::Django("uvicorn", &UVICORN)),
];

impl Peer {
    const fn new(name: &'static str, server: Server) -> Peer {
        Peer { name, server }
    }

    /// Installs it into `folder`, unless it is there, starts it and waits until it says hello.
    pub(crate) fn start(&self, folder: &Path) -> anyhow::Result<Running> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let folder = folder.to_str().context("the folder's path is not UTF-8")?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (version, mut command) = match self.server {
            Server::Wasmtime(guest, flags) => wasmtime(folder, &address, guest, flags),
            Server::Workerd => workerd(folder, &address),
            Server::Django(server, flags) => django(folder, &address, server, flags),
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
        if let Err(error) = running.wait_for_hello(&address) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            bail!("{error:#}; {log} ends with: {}", end_of(&text));
        }
        Ok(running)
    }
}

/// A server that answers; dropping it ends its processes.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where it says hello.
    pub(crate) url: String,
    /// What answers there, for the table.
    pub(crate) version: String,
    process: Child,
}

impl Running {
    fn wait_for_hello(&mut self, address: &str) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let last = match hello(address) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.process.try_wait()?.is_some() {
                bail!("it ended");
            }
            if since.elapsed() > PATIENCE {
                return Err(last.context(format!("no hello within {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Closes its input first, which ends the group: see `GUARD`.
        let _ = self.process.wait();
    }
}

/// Asks for `/` as a client would.
fn hello(address: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") || !answer.contains("Hello, World!") {
        bail!("the answer was: {answer}");
    }
    Ok(())
}

/// Each of these installs a server and returns its version and what starts it.
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
        .args(["--manifest-path", &format!("{DATA}/{guest}/Cargo.toml")]))?;
    let component = format!("{target}/wasm32-wasip2/release/hello.wasm");

    let mut serve = guarded(&program);
    serve
        // What Rust's standard library imports.
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
        .args(["serve", &format!("{DATA}/workerd/hello.capnp")])
        .args(["--socket-addr", &format!("http={address}")]);
    Ok((version, serve))
}

fn django(folder: &str, address: &str, server: &str, flags: &[&str]) -> Prepared {
    let root = format!("{folder}/django");
    let python = format!("{root}/bin/python");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear", &root]);
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check"])
        .args(PYTHON);
    let version = install(
        &root,
        &mut [venv, pip],
        Command::new(&python).args(["-c", DJANGO_VERSION, server]),
    )?;

    let (host, port) = address.split_once(':').expect("an address has a port");
    let mut serve = guarded(&format!("{root}/bin/{server}"));
    serve
        .current_dir(format!("{DATA}/django"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["--workers", "2", "--log-level", "warning"])
        .args(["--host", host, "--port", port])
        .args(flags);
    Ok((version, serve))
}

/// Fills a folder by the steps, unless an earlier run came to their end; returns the version of what is there.
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

/// What a command prints until it ends.
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

/// The last lines.
fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
