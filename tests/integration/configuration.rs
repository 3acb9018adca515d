//! Mistakes in `amphi.toml`: every command that reads it names the mistake, its line and column, and what to write
//! instead.

use crate::harness::App;

const START: &str = "[app]\nname = \"test\"\n";

/// Checks that `amphi` refuses this configuration, with all these words in the error.
fn assert_refused(toml: &str, words: &[&str]) {
    assert_refused_by(&["serve", "build", "routes"], toml, words);
}

fn assert_refused_by(commands: &[&str], toml: &str, words: &[&str]) {
    let app = App::written(&format!("{START}{toml}"));
    app.write("views.wasm", "never read");
    std::fs::create_dir(app.path("folder")).expect("it can be made");
    for command in commands {
        let ran = app.run(command);
        let error = ran.error();
        for word in words.iter().chain(&["amphi.toml"]) {
            assert!(
                error.contains(word),
                "`amphi {command}` on\n{toml}\nshould say {word:?}: {error}"
            );
        }
        assert!(
            !app.path("test.db").exists(),
            "nothing should have been done before"
        );
    }
}

#[test]
fn unknown_keys_are_named_with_a_suggestion() {
    assert_refused(
        "[server]\nlisten_on = []",
        &["amphi.toml:4:1", "listen_on", "did you mean `listen`?"],
    );
    assert_refused(
        "[sync_views]\nworker = 2",
        &["amphi.toml:4:1", "did you mean `workers`?"],
    );
    assert_refused(
        "[limits]\nmemory_mib = 2",
        &["amphi.toml:4:1", "did you mean `memory_mb`?"],
    );
    assert_refused(
        "[modules.a]\npath = \"views.wasm\"\nmonut = \"/\"",
        &["amphi.toml:5:1", "did you mean `mount`?"],
    );
    assert_refused(
        "[database.default]\nsqlite = \"test.db\"",
        &["amphi.toml:3:2", "did you mean `databases`?"],
    );
    assert_refused(
        "[modules.a]\npath = \"views.wasm\"\n[modules.a.limits]\ncpu = 2",
        &["amphi.toml:6:1", "cpu"],
    );
}

#[test]
fn wrong_types_are_named() {
    assert_refused(
        "[server]\nlisten = \"127.0.0.1:3000\"",
        &["amphi.toml:4:10", "expected a sequence"],
    );
    assert_refused(
        "[limits]\ncpu_ms = \"much\"",
        &["amphi.toml:4:10", "\"much\""],
    );
    assert_refused("[limits]\ncpu_ms = -1", &["amphi.toml:4:10", "-1"]);
    assert_refused("[limits]\ncpu_ms = 1.5", &["amphi.toml:4:10", "1.5"]);
    assert_refused("[modules]\na = 1", &["amphi.toml:4:5"]);
    assert_refused(
        "[modules.a]\nmount = \"/\"",
        &["amphi.toml:3:1", "missing field `path`"],
    );
    assert_refused("not toml at all", &["amphi.toml:3:"]);
    assert_refused("[server]\nlisten = [\"127.0.0.1:3000\"", &["amphi.toml:4:"]);
    assert_refused(
        "[server]\nlisten = []\nlisten = []",
        &["amphi.toml:5:1", "duplicate key"],
    );
}

#[test]
fn values_that_cannot_be_are_named() {
    let module = "[modules.a]\npath = \"views.wasm\"\n";
    assert_refused(
        "[server]\nlisten = [\"localhost\"]",
        &[
            "amphi.toml:4:11",
            "`localhost` is not an address",
            "IP:PORT",
        ],
    );
    assert_refused(
        "[server]\nlisten = []",
        &["amphi.toml:3:1", "`listen` is empty"],
    );
    assert_refused(
        "[server]\nadmin = \"3000\"",
        &["amphi.toml:4:9", "`3000` is not an address"],
    );
    assert_refused(
        "[server]\nbody_inline_bytes = 2000000",
        &["`body_inline_bytes` (2000000) is over `body_memory_bytes` (1048576)"],
    );
    assert_refused(
        "[server]\nheaders_max_bytes = 10",
        &["`headers_max_bytes` is 10", "8192"],
    );
    assert_refused("[sync_views]\nworkers = 0", &["`workers` is 0"]);
    assert_refused(
        "[sync_views]\nworkers = 5\nworkers_max = 4",
        &["`workers` (5) is over `workers_max` (4)"],
    );
    assert_refused("[async_views]\nloops = 0", &["`loops` is 0"]);
    assert_refused(
        "[limits]\ncpu_ms = 5000\ntimeout_ms = 1000",
        &["`cpu_ms` (5000) is over `timeout_ms` (1000)"],
    );
    assert_refused(
        "[limits]\nmemory_mb = 100000",
        &["`memory_mb` is 100000: the most is 1024"],
    );
    assert_refused("[limits]\nmemory_mb = 18446744073709551615", &["memory_mb"]);
    assert_refused("[limits]\nmemory_mb = 9223372036854775807", &["memory_mb"]);
    assert_refused(
        &format!("{module}limits = {{ cpu_ms = 60000 }}"),
        &["amphi.toml:5:10", "`cpu_ms` (60000)"],
    );
    assert_refused("", &["neither a module nor static files"]);
    assert_refused(
        "[modules.a]\npath = \"nowhere\"",
        &[
            "amphi.toml:4:8",
            "neither a `.wasm` file nor a folder with a Cargo.toml",
        ],
    );
    assert_refused(
        "[modules.a]\npath = \"folder\"",
        &[
            "amphi.toml:4:8",
            "neither a `.wasm` file nor a folder with a Cargo.toml",
        ],
    );
    assert_refused(
        "[modules.\"a b\"]\npath = \"views.wasm\"",
        &["amphi.toml:3:1", "`a b` cannot be a module's name"],
    );
    assert_refused(
        "[modules.\"../a\"]\npath = \"views.wasm\"",
        &["`../a` cannot be a module's name"],
    );
    assert_refused(
        &format!("{module}mount = \"shop\""),
        &["amphi.toml:5:9", "`shop` cannot be a mount"],
    );
    assert_refused(
        &format!("{module}mount = \"/{{id}}\""),
        &["`/{id}` cannot be a mount"],
    );
    assert_refused(
        &format!("{module}databases = [\"other\"]"),
        &["amphi.toml:5:14", "`other`", "it has: none"],
    );
    assert_refused(
        &format!("{module}http = [\"api.example.com\"]"),
        &["amphi.toml:5:9", "`api.example.com` cannot be granted"],
    );
    assert_refused(
        &format!("{module}http = [\"https://api.example.com/v1\"]"),
        &["cannot be granted"],
    );
    assert_refused(
        &format!("{module}directories = [{{ host = \"nowhere\", guest = \"/x\" }}]"),
        &["amphi.toml:5:16", "there is no folder"],
    );
    assert_refused(
        &format!("{module}settings = {{ list = [1] }}"),
        &["a setting is a text"],
    );
    // To build or show an app, nobody needs its secrets.
    assert_refused_by(
        &["serve"],
        &format!("{module}secrets = {{ key = {{ env = \"AMPHI_NO_SUCH\" }} }}"),
        &["AMPHI_NO_SUCH is not set"],
    );
    assert_refused_by(
        &["serve"],
        &format!("{module}secrets = {{ key = {{ file = \"nowhere\" }} }}"),
        &["nowhere cannot be read"],
    );
    assert_refused(
        &format!("{module}secrets = {{ key = {{ }} }}"),
        &["a secret comes from one place"],
    );
    assert_refused(
        &format!("{module}settings = {{ key = 1 }}\nsecrets = {{ key = {{ env = \"PATH\" }} }}"),
        &["`key` is both a setting and a secret"],
    );
    assert_refused(
        &format!("{module}atomic = \"always\""),
        &["amphi.toml:5:10", "`always` is not a value of `atomic`"],
    );
    assert_refused(
        "[static]\ndir = \"nowhere\"",
        &["amphi.toml:4:7", "there is no folder"],
    );
    assert_refused(
        "[databases.default]\nsqlite = \"test.db\"\nreaders = 0",
        &["amphi.toml:5:11", "`readers` is 0"],
    );
    assert_refused(
        "[databases.default]\nsqlite = \"test.db\"\nmigrations = \"nowhere\"",
        &["amphi.toml:5:14", "there is no folder"],
    );
}

#[test]
fn a_missing_file_is_named() {
    let app = App::written("");
    std::fs::remove_file(app.path("amphi.toml")).expect("it is there");
    for command in ["serve", "build", "routes"] {
        let ran = app.run(command);
        assert!(
            ran.error().contains("amphi.toml: cannot be read") && ran.error().contains("amphi new"),
            "{}",
            ran.error()
        );
    }
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = taken.local_addr().expect("it is bound");
    let app = App::new(&format!("server.listen = [\"{address}\"]"));
    let ran = app.run("serve");
    assert!(
        ran.error().contains(&format!("cannot listen on {address}")),
        "{}",
        ran.error()
    );
}

#[test]
fn a_crate_that_is_not_built_is_named() {
    let app = App::new("");
    app.migrate();
    std::fs::remove_dir_all(app.path("target")).expect("it is there");
    for command in ["serve", "routes"] {
        let ran = app.run(command);
        assert!(
            ran.error().contains("module `behaviour`") && ran.error().contains("amphi build"),
            "{}",
            ran.error()
        );
    }
}

#[test]
fn databases_that_cannot_be_opened_are_named() {
    let app = App::new("");
    app.write(
        "data/test.db",
        "this is a text, and a long one, so that nobody takes it for a database. ".repeat(20),
    );
    let ran = app.run("serve");
    assert!(
        ran.error().contains("database `default`") && ran.error().contains("not a database"),
        "{}",
        ran.error()
    );

    let app = App::new("databases.default.migrations = \"migrations\"");
    app.write("migrations/V1__broken.sql", "create tabel things (a);");
    let ran = app.run("migrate");
    assert!(
        ran.error().contains("database `default`") && ran.error().contains("tabel"),
        "{}",
        ran.error()
    );
}
