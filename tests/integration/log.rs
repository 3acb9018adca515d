//! A log that cannot be written: standard error is full, closed, or a pipe that nobody reads. Lines are lost and
//! counted. Requests and commits are not lost, and the server still stops in order.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::harness::guests::{self, AMPHI};
use crate::harness::metrics::Metrics;
use crate::harness::server::client;
use crate::harness::steps::{end, insert, must};
use crate::harness::{App, Kind, Mode, SOON, eventually};

/// The bytes that a pipe of Linux holds when nobody reads.
const PIPE_BYTES: usize = 64 << 10;
const REQUESTS: i64 = 100;

/// A server whose standard error is `stderr`; killed when dropped.
struct Served {
    process: Child,
    app: App,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Served {
    /// Addresses are chosen beforehand, because the log cannot tell them.
    async fn start(stderr: Stdio) -> Served {
        let free = || TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let (own, admin) = (free(), free());
        let at = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let (address, admin_address) = (at(&own), at(&admin));
        drop((own, admin));
        let server = format!(
            "[server]\nlisten = [\"{address}\"]\nadmin = \"{admin_address}\"\nlog_queue_bytes = 4096"
        );
        let app = App::rules(Kind::Sqlite, &server).await;
        app.migrate();
        let process = Command::new(AMPHI)
            .arg("serve")
            .arg(app.folder())
            .args(["--log-format", "json"])
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("it can be started");
        let mut served = Served {
            process,
            app,
            address,
            admin: admin_address,
        };
        served.until_listening().await;
        served
    }

    async fn until_listening(&mut self) {
        let address = self.address;
        eventually("a server that listens", async || {
            let ended = self.process.try_wait().expect("it can be asked");
            assert!(ended.is_none(), "the server ended with {ended:?}");
            let health = format!("http://{address}/missing");
            client().get(health).timeout(SOON).send().await.map(drop)
        })
        .await;
    }

    async fn metric(&self, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.admin);
        let response = client()
            .get(url)
            .timeout(SOON)
            .send()
            .await
            .expect("metrics are served");
        let text = response.text().await.expect("metrics are a text");
        Metrics::parse(&text).get(name)
    }

    fn rows(&self) -> i64 {
        let file = self.app.path("data/test.db");
        let database = rusqlite::Connection::open(file).expect("the database is there");
        let count = database.query_row("select count(*) from rows", (), |row| row.get(0));
        count.expect("there is such a table")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Checks that commits and failures are answered, that lost lines are counted, and that the server stops in order after
/// SIGTERM.
async fn assert_unharmed(stderr: Stdio) {
    let mut served = Served::start(stderr).await;
    let client = client();
    for number in 0..REQUESTS {
        let mode = [Mode::Sync, Mode::Async][usize::from(number % 2 == 0)];
        let url = format!("http://{}/{mode}/run/atomic", served.address);
        let steps = json!([must(insert("kept"))]);
        let sent = client
            .post(&url)
            .body(steps.to_string())
            .timeout(SOON)
            .send()
            .await;
        assert_eq!(sent.expect("a commit is answered").status(), 200);
        let steps = json!([must(insert("lost")), end("panic")]);
        let sent = client
            .post(&url)
            .body(steps.to_string())
            .timeout(SOON)
            .send()
            .await;
        assert_eq!(sent.expect("a failure is answered").status(), 500);
    }
    assert_eq!(served.rows(), REQUESTS);
    let lost = served.metric("amphi_log_lost_lines_total").await;
    assert!(lost > 0.0, "lost lines are counted");
    let pid = i32::try_from(served.process.id()).ok();
    let pid = pid.and_then(Pid::from_raw).expect("a process has an id");
    kill_process(pid, Signal::TERM).expect("it is our own");
    let status = eventually("the end of the server", async || {
        let ended = served.process.try_wait().expect("it can be asked");
        ended.ok_or("still there")
    })
    .await;
    assert!(status.success(), "{status}");
}

/// A pipe that is full, and its end for reading.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe can be made");
    let bytes = [b'\n'; PIPE_BYTES];
    writer.write_all(&bytes).expect("a pipe holds as much");
    (reader, writer)
}

fn closed_pipe() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe can be made").1
}

fn full_disk() -> File {
    let full = File::options().write(true).open("/dev/full");
    full.expect("Linux has it")
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_nothing_else() {
    assert_unharmed(full_disk().into()).await;
}

#[tokio::test]
async fn a_closed_pipe_costs_lines_and_nothing_else() {
    assert_unharmed(closed_pipe().into()).await;
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_costs_lines_and_nothing_else() {
    let (reader, writer) = full_pipe();
    assert_unharmed(writer.into()).await;
    drop(reader);
}

/// All migrations are applied even if the reader of their names leaves early, as in `amphi migrate | head -1`.
#[test]
fn migrations_are_applied_whoever_reads_their_names() {
    let app = App::written(
        "[app]\nname = \"a\"\n[databases.default]\nsqlite = \"data/test.db\"\nmigrations = \"migrations\"\n[static]\ndir = \"public\"",
    );
    app.write("public/a.txt", "a");
    for number in 1..=3 {
        let sql = format!("create table t{number} (a integer) strict;");
        app.write(&format!("migrations/V{number}__t.sql"), sql);
    }
    let migrate = |stdout: Stdio| {
        let mut command = Command::new(AMPHI);
        command.arg("migrate").arg(app.folder()).stdout(stdout);
        command.output().expect("it can be started")
    };
    let ran = migrate(closed_pipe().into());
    assert!(ran.status.success(), "{ran:?}");
    let database = rusqlite::Connection::open(app.path("data/test.db")).expect("it is there");
    database
        .execute_batch("select * from t1, t2, t3")
        .expect("all are applied");
    // If standard output is on a full disk, the command fails: otherwise nobody would know which migrations were
    // applied.
    let ran = migrate(full_disk().into());
    assert!(!ran.status.success(), "{ran:?}");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("standard output"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn commands_end_as_they_should_when_their_output_cannot_be_written() {
    let module = guests::behaviour(Mode::Sync);
    let app = App::written(&format!(
        "[app]\nname = \"a\"\n[databases.default]\nsqlite = \"data/test.db\"\n[modules.behaviour]\npath = \"{}\"\ndatabases = [\"default\"]\nhttp = [\"self\"]",
        module.display()
    ));
    for command in ["build", "routes"] {
        for closed in [closed_pipe().into(), full_disk().into()] {
            let mut ran = Command::new(AMPHI);
            ran.arg(command).arg(app.folder()).stderr::<Stdio>(closed);
            let ran = ran.output().expect("it can be started");
            assert!(ran.status.success(), "amphi {command}: {ran:?}");
        }
    }
    let made = app.path("made");
    let mut new = Command::new(AMPHI);
    let ran = new.arg("new").arg(&made).stdout(closed_pipe()).output();
    let ran = ran.expect("it can be started");
    assert!(ran.status.success(), "{ran:?}");
    // A command that fails says so with its status, even where it cannot say why.
    let mut failing = Command::new(AMPHI);
    let ran = failing
        .arg("routes")
        .arg("/missing")
        .stderr(closed_pipe())
        .output();
    assert_eq!(ran.expect("it can be started").status.code(), Some(1));
}

#[test]
fn arguments_need_not_be_utf8() {
    let odd = OsStr::from_bytes(b"/no\xffwhere");
    for command in ["routes", "serve", "new", "\u{ff}"] {
        let ran = Command::new(AMPHI).arg(command).arg(odd).output();
        let ran = ran.expect("it can be started");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!([Some(1), Some(2)].contains(&ran.status.code()), "{ran:?}");
        assert!(said.starts_with("error: "), "amphi {command}: {said}");
    }
}
