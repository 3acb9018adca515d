//! A registry of OCI for the tests: Debian's `docker-registry`, installed when it is missing, one for each test that needs
//! one, gone when the test ends.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::command;
use super::watched::{NO_SERVICES, Watched};

const INSTALL: &str = "apt-get install --yes --no-install-recommends docker-registry\n";

/// The name and password that a registry with users knows, and the password's hash.
pub const USER: &str = "ann";
pub const PASSWORD: &str = "a password";
const USERS: &str = "ann:$2y$05$Uql/tqlNTuivMleaRwoX6OsYmNvmoNhaCGFlGkv2NDYnRr9Z2zDxG\n";

/// A registry on a port of its own, killed when dropped.
pub struct Registry {
    folder: TempDir,
    /// `127.0.0.1:PORT`
    pub host: String,
    _process: Watched,
}

impl Registry {
    /// A registry for everybody, over plain HTTP.
    pub fn start() -> Registry {
        Registry::with("")
    }

    /// A registry with TLS, by a certificate of its own authority, that wants a name and a password.
    pub fn private() -> Registry {
        Registry::with(
            "  tls:\n    certificate: FOLDER/certificate.pem\n    key: FOLDER/key.pem\nauth:\n  htpasswd:\n    realm: tests\n    path: FOLDER/users\n",
        )
    }

    fn with(more: &str) -> Registry {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| fs::write(path(name), text).expect("it is ours");
        let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])
            .expect("a certificate can be made");
        write("certificate.pem", &key.cert.pem());
        write("key.pem", &key.signing_key.serialize_pem());
        write("users", USERS);
        let mut seen = String::new();
        // Another process may take the port after it was found free.
        for _ in 0..5 {
            let port = free_port();
            let data = path("data");
            let config = format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{more}",
                data.display()
            );
            write(
                "config.yml",
                &config.replace("FOLDER", &folder.path().display().to_string()),
            );
            let file = path("config.yml").display().to_string();
            let is_ready = |log: &str| {
                let listens = log.contains("listening on");
                let connected = listens.then(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
                connected.and_then(Result::ok).map(drop)
            };
            match Watched::start(&path("log"), &program(), &["serve", &file], is_ready) {
                Ok((process, ())) => {
                    return Registry {
                        folder,
                        host: format!("127.0.0.1:{port}"),
                        _process: process,
                    };
                }
                Err(log) => seen = log,
            }
        }
        panic!("docker-registry does not start; its log:\n{seen}");
    }

    /// A reference to an artifact in it.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    /// The certificate of its authority.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// Where it keeps a content: a test can change it.
    pub fn content(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("it is a digest");
        let blobs = "data/docker/registry/v2/blobs/sha256";
        self.folder
            .path()
            .join(blobs)
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
        .port()
}

/// The program `docker-registry`.
///
/// # Panics
/// When it is missing and cannot be installed.
fn program() -> PathBuf {
    if let Some(found) = find() {
        return found;
    }
    // Another process of the tests may be installing it.
    let lock = File::create(env::temp_dir().join("amphi-tests-registry.lock"))
        .expect("there is room for a lock");
    lock.lock().expect("the lock comes free");
    if let Some(found) = find() {
        return found;
    }
    eprintln!("installing a registry for the tests");
    if let Err(said) = command::install(&[NO_SERVICES, INSTALL].concat()) {
        panic!(
            "the tests need `docker-registry` in the PATH, and could not install it: install it (with apt-get: the \
             package `docker-registry`), or run the tests as a user who may, by sudo without a password.\n{said}"
        );
    }
    find().expect("the package has the program")
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = [Path::new("/usr/bin").to_owned()];
    (env::split_paths(&path).chain(system))
        .map(|folder| folder.join("docker-registry"))
        .find(|program| program.is_file())
}
