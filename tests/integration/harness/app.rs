//! Apps: each is a temporary folder with an `amphi.toml` and a database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use toml::{Table, Value};

use super::data::Data;
use super::guests::{self, AMPHI};
use super::postgres::Database;
use super::{Kind, Mode, Server};

/// The folders of the guests that `amphi build tests/guests` builds: their components are copied into apps.
const BUILT: [&str; 4] = ["behaviour", "docs", "greedy", "rules"];

/// An app in a temporary folder.
pub struct App {
    folder: TempDir,
    /// Its database.
    pub data: Data,
    /// The soft and the hard limit of open files for its server, if the test sets them.
    files: Option<(u32, u32)>,
}

/// The folder of the guestbook.
pub fn guestbook() -> PathBuf {
    example("guestbook")
}

/// The folder of the to-dos.
pub fn todo() -> PathBuf {
    example("todo")
}

/// The folder of the polls.
pub fn polls() -> PathBuf {
    example("polls")
}

/// The folder of the chat.
pub fn chat() -> PathBuf {
    example("chat")
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("examples")
        .join(name)
}

impl App {
    /// An app with the guest `behaviour`, a database and outbound requests to itself. The values of `toml` replace
    /// those here.
    pub fn new(toml: &str) -> App {
        let base = format!(
            r#"
            [app]
            name = "test"
            [server]
            listen = ["127.0.0.1:0"]
            admin = "127.0.0.1:0"
            [databases.default]
            sqlite = "data/test.db"
            # Tests write tens of thousands of rows, and no power fails.
            synchronous = "normal"
            migrations = "{guests}/migrations"
            [modules.behaviour]
            path = "{guests}/behaviour"
            databases = ["default"]
            http = ["self"]
            "#,
            guests = guests::folder().display(),
        );
        App::changed(&base, toml)
    }

    /// An app with the guest `rules`, a database of this kind and every grant. The values of `toml` replace those here.
    pub async fn rules(kind: Kind, toml: &str) -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::new(kind, folder.path().join("data/test.db")).await;
        App::with_data(folder, data, kind, toml)
    }

    /// Like [`App::rules`], on a database that the test has made.
    pub fn rules_on(database: Database, toml: &str) -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        App::with_data(folder, Data::Postgres(database), Kind::Postgres, toml)
    }

    fn with_data(folder: TempDir, data: Data, kind: Kind, toml: &str) -> App {
        let base = format!(
            r#"
            [app]
            name = "rules"
            [server]
            listen = ["127.0.0.1:0"]
            admin = "127.0.0.1:0"
            [databases.default]
            {database}
            migrations = "{guests}/rules/migrations/{kind}"
            [modules.rules]
            path = "{guests}/rules"
            databases = ["default"]
            http = ["self"]
            subrequests = true
            publish = ["orders.*"]
            subscribe = ["orders.*"]
            "#,
            database = data.config(),
            guests = guests::folder().display(),
        );
        let app = App {
            folder,
            data,
            files: None,
        };
        app.configure(&base, toml);
        app
    }

    /// An app with one module, a crate of its own with this source, which `amphi up` builds. `name` is that of the crate;
    /// `toml` goes before the module's table, `grants` into it.
    pub fn of_crate(name: &str, toml: &str, grants: &str, source: &str) -> App {
        let app = App::written(&format!(
            "[app]\nname = \"versioned\"\n[server]\nadmin = \"127.0.0.1:0\"\n{toml}\n[modules.versioned]\npath = \"crate\"\n{grants}\n"
        ));
        let guests = guests::folder();
        // Builds the other guests first, so that the dependencies are compiled.
        guests::behaviour(Mode::Sync);
        let target = guests.join("target");
        app.write(
            ".cargo/config.toml",
            format!("[build]\ntarget-dir = {target:?}\n"),
        );
        let sdk = guests.join("../../guest-sdk");
        app.write(
            "crate/Cargo.toml",
            format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n[dependencies]\namphi-sdk = {{ path = {sdk:?} }}\n[workspace]\n[profile.release]\nopt-level = 1\n"),
        );
        fs::copy(guests.join("Cargo.lock"), app.path("crate/Cargo.lock")).expect("it is there");
        app.write("crate/src/lib.rs", source);
        app
    }

    /// The guestbook with a database of its own. The values of `toml` replace those here. The test has to run
    /// `amphi build` on the app.
    pub fn guestbook(toml: &str) -> App {
        let base = format!(
            r#"
            [app]
            name = "guestbook"
            [server]
            listen = ["127.0.0.1:0"]
            admin = "127.0.0.1:0"
            [databases.default]
            sqlite = "data/test.db"
            migrations = "{0}/migrations"
            [static]
            dir = "{0}/static"
            [modules.guestbook]
            path = "{0}"
            databases = ["default"]
            http = ["self"]
            settings = {{ title = "Guestbook" }}
            secrets = {{ session_key = {{ file = "session.key", generate = true }} }}
            [modules.weather]
            path = "{0}/weather"
            mount = "/weather"
            "#,
            guestbook().display()
        );
        App::changed(&base, toml)
    }

    /// The example `todo` with its own `amphi.toml` for this kind of database, on a database of the test. The test has
    /// to run `amphi build` on the app.
    pub async fn todo(kind: Kind) -> App {
        App::example(kind, "todo", &["session_key"]).await
    }

    /// The example `polls` with its own `amphi.toml` for this kind of database, on a database of the test. The test has
    /// to run `amphi build` on the app.
    pub async fn polls(kind: Kind) -> App {
        App::example(kind, "polls", &["session_key", "admin_password"]).await
    }

    /// The example `chat` likewise, with groups across all hosts of this NATS server.
    pub async fn chat(kind: Kind, nats: &str) -> App {
        let app = App::example(kind, "chat", &["session_key"]).await;
        let own = fs::read_to_string(app.path("amphi.toml")).expect("it was written");
        app.configure(&own, &format!("[channels]\nnats = {nats:?}"));
        app
    }

    /// An example with its own `amphi.toml` for this kind of database, but with a database and secrets of the test.
    /// Each secret is generated into a file in the app's folder that has the secret's name.
    async fn example(kind: Kind, name: &str, secrets: &[&str]) -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::new(kind, folder.path().join("data/test.db")).await;
        let (own, migrations) = match kind {
            Kind::Sqlite => ("amphi.toml", "migrations"),
            Kind::Postgres => ("postgres/amphi.toml", "migrations-postgres"),
        };
        let own = fs::read_to_string(example(name).join(own)).expect("the example has one");
        let secrets = secrets
            .iter()
            .map(|secret| format!("{secret} = {{ file = \"{secret}\", generate = true }}\n"));
        let here = format!(
            r#"
            [server]
            listen = ["127.0.0.1:0"]
            admin = "127.0.0.1:0"
            [databases.default]
            {database}
            migrations = "{example}/{migrations}"
            [static]
            dir = "{example}/static"
            [modules.{name}]
            path = "{example}"
            [modules.{name}.secrets]
            {secrets}
            "#,
            database = data.config(),
            example = example(name).display(),
            secrets = secrets.collect::<String>(),
        );
        let app = App {
            folder,
            data,
            files: None,
        };
        app.configure(&own, &here);
        app
    }

    /// An app with this configuration. The values of `toml` replace those of `base`.
    pub(super) fn changed(base: &str, toml: &str) -> App {
        let app = App::empty();
        app.configure(base, toml);
        app
    }

    /// Likewise, on a database of this kind, whose keys go behind `base`.
    pub(super) async fn changed_on(kind: Kind, base: &str, toml: &str) -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::new(kind, folder.path().join("data/test.db")).await;
        let base = format!("{base}{}", data.config());
        let app = App {
            folder,
            data,
            files: None,
        };
        app.configure(&base, toml);
        app
    }

    /// Writes the `amphi.toml`, and copies the components of the guests that it names into the app.
    fn configure(&self, base: &str, toml: &str) {
        let mut config: Table = base
            .parse()
            .expect("the configuration of the tests is TOML");
        merge(&mut config, toml.parse().expect("what a test adds is TOML"));
        self.write("amphi.toml", config.to_string());
        let modules = config
            .get("modules")
            .and_then(Value::as_table)
            .into_iter()
            .flatten();
        for (name, module) in modules {
            let path = module.get("path").and_then(Value::as_str).map(Path::new);
            let guest = path
                .filter(|path| path.parent() == Some(&guests::folder()))
                .and_then(|path| path.file_name()?.to_str())
                .filter(|guest| BUILT.contains(guest));
            if let Some(guest) = guest {
                self.install(guest, name);
            }
        }
    }

    /// An app whose `amphi.toml` is this text.
    pub fn written(toml: &str) -> App {
        let app = App::empty();
        app.write("amphi.toml", toml);
        app
    }

    fn empty() -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::Sqlite(folder.path().join("data/test.db"));
        App {
            folder,
            data,
            files: None,
        }
    }

    /// Copies a guest's components to where `amphi build` puts the components of this module.
    fn install(&self, guest: &str, module: &str) {
        for mode in [Mode::Sync, Mode::Async] {
            let artifact = self.path(&format!("target/amphi/{module}.{mode}.wasm"));
            fs::create_dir_all(artifact.parent().expect("it is in a folder"))
                .expect("the folder can be made");
            fs::copy(guests::built(guest, mode), artifact).expect("the component can be copied");
        }
    }

    /// A path in the app's folder.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The app's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file of the app, making its folder.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it is in a folder"))
            .expect("the folder can be made");
        fs::write(path, content).expect("the file can be written");
    }

    /// Runs a command of `amphi` on the app.
    pub fn run(&self, command: &str) -> Ran {
        self.run_with(command, &[])
    }

    /// Like [`App::run`], under the limits of open files that the test has set.
    pub fn run_limited(&self, command: &str) -> Ran {
        let output = (self.program().arg(command))
            .arg(self.folder())
            .output()
            .expect("it can be started");
        Ran::new(output)
    }

    /// The program `amphi`, under the limits of open files that the test has set.
    pub(super) fn program(&self) -> Command {
        let Some((soft, hard)) = self.files else {
            return Command::new(AMPHI);
        };
        let mut program = Command::new("sh");
        program
            .arg("-c")
            .arg(format!(
                "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\""
            ))
            .arg(AMPHI);
        program
    }

    fn run_with(&self, command: &str, environment: &[(&str, &str)]) -> Ran {
        let output = Command::new(AMPHI)
            .arg(command)
            .arg(self.folder())
            .envs(environment.iter().copied())
            .output()
            .expect("it can be started");
        Ran::new(output)
    }

    /// Runs `amphi` with these arguments, in the app's folder, with these variables.
    pub fn amphi(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
        let output = Command::new(AMPHI)
            .args(arguments)
            .current_dir(self.folder())
            .envs(environment.iter().copied())
            .output()
            .expect("it can be started");
        Ran::new(output)
    }

    /// Runs `amphi` with these arguments beside the test.
    pub fn amphi_beside(&self, arguments: &[&str]) -> JoinHandle<Ran> {
        let mut command = Command::new(AMPHI);
        command.args(arguments).current_dir(self.folder());
        tokio::task::spawn_blocking(move || Ran::new(command.output().expect("it can be started")))
    }

    /// Limits the open files of the app's server: `soft` is the limit at the start, which the server may raise to
    /// `hard`.
    pub fn with_files(mut self, soft: u32, hard: u32) -> App {
        self.files = Some((soft, hard));
        self
    }

    /// Serves the app. Other tests may run servers meanwhile.
    pub async fn serve(self) -> Server {
        self.migrate();
        Server::start(self, "serve", false).await
    }

    /// Runs `amphi serve` with these arguments in place of the app's folder, in that folder.
    pub async fn serve_with(self, arguments: &[&str]) -> Server {
        Server::start_with(self, "serve", arguments, false).await
    }

    /// Likewise, while no other test runs a server: for tests of what happens under load.
    pub async fn serve_alone_with(self, arguments: &[&str]) -> Server {
        Server::start_with(self, "serve", arguments, true).await
    }

    /// Serves the app while no other test runs a server: for tests that measure time.
    pub async fn serve_alone(self) -> Server {
        self.migrate();
        Server::start(self, "serve", true).await
    }

    /// Applies the migrations of the app's databases.
    pub fn migrate(&self) {
        let ran = self.run_with("migrate", &[super::server::SECRET]);
        assert!(ran.success, "{ran:?}");
    }

    /// Serves the app by `amphi up`.
    pub async fn up(self) -> Server {
        Server::start(self, "up", false).await
    }
}

/// The result of a command.
#[derive(Debug)]
pub struct Ran {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn new(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what it says is UTF-8");
        Ran {
            success: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// The error on standard error, from `error: ` on.
    ///
    /// # Panics
    /// When the command succeeded.
    pub fn error(&self) -> &str {
        assert!(!self.success, "it should have failed: {self:?}");
        let at = self
            .stderr
            .find("error: ")
            .unwrap_or_else(|| panic!("it should say what is wrong: {self:?}"));
        self.stderr[at..].trim_end()
    }
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}
