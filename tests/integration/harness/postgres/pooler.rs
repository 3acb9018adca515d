//! PgBouncer between an app and the tests' server, in a process that ends with the tests.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use tempfile::TempDir;

use super::super::command;
use super::install::find_program;
use super::process::{self, Process, free_port};
use super::{Database, Postgres, USER};

/// Debian's package starts a service, unless `policy-rc.d` forbids it. So the script forbids it during the
/// installation.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get install --yes --no-install-recommends pgbouncer
"#;

/// A running PgBouncer, ended when dropped.
pub struct Pooler {
    port: u16,
    _process: Process,
    _folder: TempDir,
}

impl Pooler {
    /// Starts PgBouncer in front of the shared server, with this `pool_mode`.
    pub fn start(mode: &str) -> Pooler {
        let program = program();
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let mut seen = String::new();
        for _ in 0..5 {
            let port = free_port();
            let config = format!(
                "[databases]\n* = host=127.0.0.1 port={} user={USER}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = any\npool_mode = {mode}\ndefault_pool_size = 20\nmax_client_conn = 200\n",
                Postgres::shared().port
            );
            let file = folder.path().join("pgbouncer.ini");
            fs::write(&file, config).expect("the folder is ours");
            fs::write(folder.path().join(process::LOG), "").expect("the folder is ours");
            process::give(&[folder.path(), &file, &folder.path().join(process::LOG)]);
            let arguments = [file.display().to_string()];
            let started = Process::run(folder.path(), &program, &arguments, "KILL", |log| {
                log.contains("process up") && TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            match started {
                Ok(process) => {
                    return Pooler {
                        port,
                        _process: process,
                        _folder: folder,
                    };
                }
                Err(log) => seen = log,
            }
        }
        panic!("PgBouncer does not start: {seen}");
    }

    /// The URL of a database of the shared server, through this pooler.
    pub fn url(&self, database: &Database) -> String {
        format!(
            "postgres://{USER}@127.0.0.1:{}/{}",
            self.port, database.name
        )
    }
}

fn program() -> PathBuf {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let find = || {
            find_program("pgbouncer").or_else(|| {
                let debian = Path::new("/usr/sbin/pgbouncer");
                debian.is_file().then(|| debian.to_owned())
            })
        };
        if let Some(found) = find() {
            return found;
        }
        let lock = File::create(std::env::temp_dir().join("amphi-tests-postgresql.lock"))
            .expect("there is room for a lock");
        lock.lock().expect("the lock comes free");
        if find().is_none() {
            eprintln!("installing PgBouncer for the tests");
            if let Err(said) = command::install(INSTALL) {
                panic!(
                    "the tests need `pgbouncer` in the PATH, and could not install it: install it (with apt-get: the package `pgbouncer`), or run the tests as a user who may, by sudo without a password.\n{said}"
                );
            }
        }
        find().expect("the package has the program")
    });
    PROGRAM.clone()
}
