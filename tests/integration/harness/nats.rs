//! NATS for the tests: installed when it is missing, one server for each test that needs one, gone when the test ends.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::command;
use super::watched::{NO_SERVICES, Watched};

const INSTALL: &str = "apt-get install --yes --no-install-recommends nats-server\n";

/// Where packages put programs of the system, which may not be in the path of a user.
const SYSTEM: &str = "/usr/sbin";

/// What the log says before the address when the server is there.
const READY: &str = "Listening for client connections on 127.0.0.1:";

/// A server on a port of its own, killed when dropped.
pub struct Nats {
    folder: TempDir,
    port: u16,
    server: Option<Watched>,
    /// Whether it keeps buckets, on the disk.
    keeps: bool,
}

impl Nats {
    /// A server for one test, on a port that is free.
    pub fn start() -> Nats {
        Nats::begin(false)
    }

    /// The same, with JetStream.
    pub fn with_buckets() -> Nats {
        Nats::begin(true)
    }

    fn begin(keeps: bool) -> Nats {
        let mut nats = Nats {
            folder: tempfile::tempdir().expect("there is room for a temporary folder"),
            port: 0,
            server: None,
            keeps,
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
        drop(self.server.take().expect("it runs"));
    }

    /// Starts the server again, on the same port.
    pub fn restart(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        self.run(&self.port.to_string());
    }

    /// Removes all that it keeps, while it does not run.
    pub fn forget(&self) {
        assert!(self.server.is_none(), "it runs");
        fs::remove_dir_all(self.buckets()).expect("it has kept something");
    }

    fn buckets(&self) -> PathBuf {
        self.folder.path().join("buckets")
    }

    fn run(&mut self, port: &str) {
        let log = self.folder.path().join("log");
        let buckets = self.buckets().display().to_string();
        let mut arguments = vec!["--addr", "127.0.0.1", "--port", port];
        if self.keeps {
            arguments.extend(["--jetstream", "--store_dir", &buckets]);
        }
        let started = Watched::start(&log, &program(), &arguments, |text| {
            let address = text.lines().find_map(|line| line.split_once(READY));
            let (_, port) = address.filter(|_| text.contains("Server is ready"))?;
            Some(port.trim().parse().expect("it is a port"))
        });
        let (server, port) =
            started.unwrap_or_else(|log| panic!("nats-server does not start; its log:\n{log}"));
        self.port = port;
        self.server = Some(server);
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
    if let Err(said) = command::install(&[NO_SERVICES, INSTALL].concat()) {
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
