//! NATS for the tests: installed when it is missing, one server for each test that needs one, gone when the test ends.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::command;

/// What Debian's package starts is a service of the system: it is not started in the first place.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm "$policy"' EXIT
fi
apt-get install --yes --no-install-recommends nats-server
"#;

/// Where packages put programs of the system, which may not be in the path of a user.
const SYSTEM: &str = "/usr/sbin";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// A server has to end with the test process, which may be killed. So a shell starts the server, and reads from a pipe
/// whose other end only the test process has.
const WATCH: &str = r#"
log=$1
shift
"$@" >>"$log" 2>&1 </dev/null &
server=$!
read -r line
kill -s KILL "$server"
wait "$server" 2>/dev/null
"#;

/// What the log says before the address when the server is there.
const READY: &str = "Listening for client connections on 127.0.0.1:";

/// A server on a port of its own, killed when dropped.
pub struct Nats {
    folder: TempDir,
    port: u16,
    watch: Option<Child>,
}

impl Nats {
    /// A server for one test, on a port that is free.
    pub fn start() -> Nats {
        let mut nats = Nats {
            folder: tempfile::tempdir().expect("there is room for a temporary folder"),
            port: 0,
            watch: None,
        };
        // The server chooses its port, and says which.
        nats.run("-1");
        nats
    }

    /// Where apps find it.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server, as a crash does.
    pub fn kill(&mut self) {
        let mut watch = self.watch.take().expect("it runs");
        drop(watch.stdin.take());
        watch.wait().expect("it is a child");
    }

    /// Starts the server again, on the same port.
    pub fn restart(&mut self) {
        assert!(self.watch.is_none(), "it runs already");
        self.run(&self.port.to_string());
    }

    fn run(&mut self, port: &str) {
        let log = self.folder.path().join("log");
        // What an earlier server has said is not this one's.
        let _ = fs::remove_file(&log);
        let mut watch = Command::new("sh")
            .args(["-c", WATCH, "watch"])
            .arg(&log)
            .arg(program())
            .args(["--addr", "127.0.0.1", "--port", port])
            .stdin(Stdio::piped())
            // Ctrl-C at a terminal must reach the tests alone.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let since = Instant::now();
        let found = loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let address = text.lines().find_map(|line| line.split_once(READY));
            if let Some((_, port)) = address
                && text.contains("Server is ready")
            {
                break port.trim().parse().expect("it is a port");
            }
            if since.elapsed() > START {
                drop(watch.stdin.take());
                panic!("nats-server does not start; its log:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.port = found;
        self.watch = Some(watch);
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if self.watch.is_some() {
            self.kill();
        }
    }
}

/// The program `nats-server`.
///
/// # Panics
/// When it is missing and cannot be installed.
fn program() -> PathBuf {
    if let Some(found) = find() {
        return found;
    }
    // Another process of the tests may be installing it.
    let lock = File::create(env::temp_dir().join("amphi-tests-nats.lock"))
        .expect("there is room for a lock");
    lock.lock().expect("the lock comes free");
    if let Some(found) = find() {
        return found;
    }
    eprintln!("installing NATS for the tests");
    if let Err(said) = command::install(INSTALL) {
        panic!(
            "the tests need `nats-server` in the PATH, and could not install it: install it (with apt-get: the package \
             `nats-server`), or run the tests as a user who may, by sudo without a password.\n{said}"
        );
    }
    find().expect("the package has the program")
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = [Path::new(SYSTEM).to_owned()];
    (env::split_paths(&path).chain(system))
        .map(|folder| folder.join("nats-server"))
        .find(|program| program.is_file())
}
