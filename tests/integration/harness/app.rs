//! Apps: a folder with an `amphi.toml`, and a database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use toml::{Table, Value};

use super::data::Data;
use super::guests::{self, AMPHI};
use super::postgres::Database;
use super::{Kind, Mode, Server};

/// Guests that `amphi build` has built, by the names of their folders.
const BUILT: [&str; 4] = ["behaviour", "docs", "greedy", "rules"];

/// An app in a temporary folder.
pub struct App {
    folder: TempDir,
    /// Its database.
    pub data: Data,
    /// How many files its server may open: now, and when it asks for more.
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

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("examples")
        .join(name)
}

impl App {
    /// The guest `behaviour` with a database and everything else it may want, changed by `toml`: its values take
    /// the place of those here.
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

    /// The guest `rules` with a database of this kind and every grant, changed by `toml`.
    pub async fn rules(kind: Kind, toml: &str) -> App {
        let folder = tempfile::tempdir().expect("there is room for a temporary folder");
        let data = Data::new(kind, folder.path().join("data/test.db")).await;
        App::with_data(folder, data, kind, toml)
    }

    /// The same with a database of a server that the test has chosen.
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

    /// The guestbook with a database of its own, changed by `toml`. It has to be built.
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

    /// The to-dos, with a database of the test. They have to be built.
    pub async fn todo(kind: Kind) -> App {
        App::example(kind, "todo", &["session_key"]).await
    }

    /// The polls, with a database of the test. They have to be built.
    pub async fn polls(kind: Kind) -> App {
        App::example(kind, "polls", &["session_key", "admin_password"]).await
    }

    /// An example as its `amphi.toml` for this kind of database has it, with a database and secrets of the test: each
    /// secret is generated into the file of its name in the app's folder.
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

    fn changed(base: &str, toml: &str) -> App {
        let app = App::empty();
        app.configure(base, toml);
        app
    }

    /// Writes the `amphi.toml`, and puts the components that it names in place.
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

    /// Nothing but this `amphi.toml`.
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

    /// Puts the components of a guest where `amphi build` would have put them for this module.
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

    /// The same with the files that its server may open.
    pub fn run_limited(&self, command: &str) -> Ran {
        let output = (self.program().arg(command))
            .arg(self.folder())
            .output()
            .expect("it can be started");
        Ran::new(output)
    }

    /// Amphi, with the files that it may open.
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

    /// Lets its server open only so many files: now, and when it asks for more.
    pub fn with_files(mut self, soft: u32, hard: u32) -> App {
        self.files = Some((soft, hard));
        self
    }

    /// Serves the app, with other tests running beside.
    pub async fn serve(self) -> Server {
        self.migrate();
        Server::start(self, "serve", false).await
    }

    /// Serves the app when no other test runs: for what is measured in time.
    pub async fn serve_alone(self) -> Server {
        self.migrate();
        Server::start(self, "serve", true).await
    }

    /// Brings the databases up to date, if there are any.
    pub fn migrate(&self) {
        let ran = self.run_with("migrate", &[super::server::SECRET]);
        assert!(ran.success, "{ran:?}");
    }

    /// `amphi up`.
    pub async fn up(self) -> Server {
        Server::start(self, "up", false).await
    }
}

/// What a command said.
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

    /// The one error that it failed with.
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
