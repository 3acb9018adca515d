//! The process of a server.
//!
//! A server has to end with the test process, although statics are not dropped and the process may be killed. So a
//! shell starts each server and reads from a pipe whose other end only the test process has. When the pipe is closed,
//! for whatever reason, the shell ends the server and removes its folder.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Stop, USER, programs};

/// Files in a server's folder.
pub(super) const LOG: &str = "log";
pub(super) const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
const DATA: &str = "data";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// `$1` is the folder, `$2` the signal that ends the server for good, the rest is the server's command. A line on the
/// pipe names a signal that stops the server and leaves its folder; the end of the pipe ends the server and removes the
/// folder.
const WATCH: &str = r#"
folder=$1
end=$2
shift 2
"$@" >>"$folder/log" 2>&1 </dev/null &
server=$!
if read -r signal; then
    kill -s "$signal" "$server"
    wait "$server"
else
    kill -s "$end" "$server"
    wait "$server"
    rm -rf "$folder"
fi
"#;

/// Settings that the tests need, and settings that make the server quick, since its data need not survive a crash.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 400
shared_buffers = '64MB'
fsync = off
full_page_writes = off
autovacuum = off
ssl = on
ssl_cert_file = '../certificate.pem'
ssl_key_file = '../key.pem'
log_destination = 'stderr'
log_line_prefix = '<%c %d %a> '
lc_messages = 'C'
timezone = 'UTC'
";

/// A running server, ended when dropped.
pub(super) struct Process {
    watch: Child,
}

impl Process {
    /// Starts the server of a folder on a port that is free.
    pub(super) fn start_somewhere(folder: &Path) -> (Process, u16) {
        let mut seen = String::new();
        // Another process may take the port after it was found free.
        for _ in 0..5 {
            let port = free_port();
            match Process::start(folder, port) {
                Ok(process) => return (process, port),
                Err(log) => seen = log,
            }
        }
        panic!("{seen}");
    }

    /// Starts the server of a folder. An error is the text of its log.
    pub(super) fn start(folder: &Path, port: u16) -> Result<Process, String> {
        let data = folder.join(DATA).display().to_string();
        let arguments = ["-D".to_owned(), data, "-p".to_owned(), port.to_string()];
        Process::run(
            folder,
            &programs().join("postgres"),
            &arguments,
            "QUIT",
            |log| log.contains("ready to accept connections"),
        )
    }

    /// Starts a program whose log is in a folder, and waits until the log says that it is ready.
    pub(super) fn run(
        folder: &Path,
        program: &Path,
        arguments: &[String],
        end: &str,
        is_ready: impl Fn(&str) -> bool,
    ) -> Result<Process, String> {
        let log = folder.join(LOG);
        let mark = fs::read(&log).map_or(0, |text| text.len());
        let watch = Command::new("sh")
            .args(["-c", WATCH, "watch"])
            .arg(folder)
            .arg(end)
            .args(unprivileged())
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            // Ctrl-C at a terminal must reach the tests alone.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let process = Process { watch };
        let since = Instant::now();
        loop {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(mark..).unwrap_or_default());
            if is_ready(&text) {
                return Ok(process);
            }
            if text.contains("FATAL:  ") || since.elapsed() > START {
                process.stop(Stop::Crash);
                return Err(format!(
                    "{} does not start; its log:\n{text}",
                    program.display()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the server and waits for its end. Its folder stays.
    pub(super) fn stop(mut self, how: Stop) {
        let signal = match how {
            Stop::Fast => "INT",
            Stop::Crash => "QUIT",
        };
        let mut pipe = self.watch.stdin.take().expect("it is piped");
        writeln!(pipe, "{signal}").expect("the watch reads");
        self.watch.wait().expect("it is a child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.watch.stdin.take());
        // The shell may have ended before.
        let _ = self.watch.wait();
    }
}

/// A folder with the files of a new server: certificate, log, and data made by `initdb`.
pub(super) fn initialised() -> TempDir {
    let folder = tempfile::tempdir().expect("there is room for a temporary folder");
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()])
        .expect("a certificate can be made");
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("the folder is ours");
        path
    };
    let files = [
        write(CERTIFICATE, &key.cert.pem()),
        write(KEY, &key.signing_key.serialize_pem()),
        write(LOG, ""),
    ];
    fs::set_permissions(&files[1], fs::Permissions::from_mode(0o600)).expect("the file is ours");
    give(&[folder.path(), &files[0], &files[1], &files[2]]);
    let output = Command::new("env")
        .args(unprivileged())
        .arg(programs().join("initdb"))
        .arg("-D")
        .arg(folder.path().join(DATA))
        .args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
        .current_dir(folder.path())
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "initdb failed:\n{said}");
    let config = folder.path().join(DATA).join("postgresql.auto.conf");
    fs::write(config, SETTINGS).expect("the folder is ours");
    folder
}

/// Makes the user that servers run as the owner of files.
pub(super) fn give(paths: &[&Path]) {
    if let Some((user, group)) = other_user() {
        for path in paths {
            chown(path, Some(user), Some(group)).expect("root may do so");
        }
    }
}

/// A port that is free at the moment.
pub(super) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port is free")
        .port()
}

/// The beginning of a command that runs the rest as another user, if the tests run as root: PostgreSQL refuses root.
fn unprivileged() -> Vec<String> {
    other_user().map_or_else(Vec::new, |(user, group)| {
        vec![
            "setpriv".into(),
            format!("--reuid={user}"),
            format!("--regid={group}"),
            "--clear-groups".into(),
        ]
    })
}

/// The user and group that servers run as, if that is not the tests' own user.
fn other_user() -> Option<(u32, u32)> {
    // The user `nobody`: it owns nothing else, and every system has it.
    const NOBODY: u32 = 65_534;
    rustix::process::geteuid()
        .is_root()
        .then_some((NOBODY, NOBODY))
}
