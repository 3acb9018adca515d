//! Mistakes in an `amphi.toml`, and the messages about them.

use proptest::prelude::*;

use super::*;

/// The folder of an app: it has an empty `Cargo.toml`, and a folder `files`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("Cargo.toml"), "").expect("writing a manifest");
    std::fs::create_dir(folder.path().join("files")).expect("making a folder");
    folder
}

fn parse(text: &str) -> Result<Config, String> {
    let folder = folder();
    Config::parse(&folder.path().join("amphi.toml"), text).map_err(|error| {
        error
            .to_string()
            .replace(&folder.path().display().to_string(), "APP")
    })
}

#[track_caller]
fn assert_error(text: &str, place: &str, parts: &[&str]) {
    let error = parse(text).expect_err("it is wrong");
    assert!(
        error.starts_with(&format!("APP/amphi.toml:{place}: ")),
        "{error}"
    );
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

const LEAST: &str = "[app]\nname = \"shop\"\n[modules.shop]\npath = \".\"\n";

#[test]
fn the_least_configuration_has_every_default() {
    let config = parse(LEAST).expect("it is right");
    assert_eq!(
        config.listen,
        ["127.0.0.1:3000".parse().expect("an address")]
    );
    // A request body may be as large as a response.
    assert_eq!(config.server.body_max_bytes, 8 << 20);
    assert_eq!(Limits::default().response_max_bytes, 8 << 20);
    assert_eq!(config.modules[0].mount, "");
    assert_eq!(config.modules[0].limits, Limits::default());
    assert_eq!(config.modules[0].atomic, Atomic::UnsafeMethods);
    assert!(matches!(&config.modules[0].source, Source::Crate(_)));
}

#[test]
fn passwords_of_databases_are_in_no_message() {
    for lines in [
        "[databases.a]\npostgres = \"postgres://u:s3cret@h/db?nonsense=1\"",
        "[databases.a]\npostgres = \"postgres://u:s3cret@h:x/db\"",
        "[databases]\na = \"postgres://u:s3cret@h/db\"",
        "[databases.a]\nconnections = \"postgres://u:s3cret@h/db\"",
        "[databases.a]\npostgres = \"postgres://u:s3cret@h/db\" x",
        "[databases.a]\npostgres = \"postgres://u:s3cret@h/db",
        "[databases.a]\npostgres = [\"postgres://u:s3cret@h/db\"]",
        "[databases.a]\nsqlite = \"postgres://u:s3cret@h/db\"\npostgres = \"host=h password=s3cret x\"",
    ] {
        let error = parse(&format!("{LEAST}{lines}\n")).expect_err("it is wrong");
        assert!(!error.contains("s3cret"), "{error}");
        assert!(error.starts_with("APP/amphi.toml:"), "{error}");
    }
}

#[test]
fn everything_that_can_be_said() {
    let config = parse(
        r#"
        [app]
        name = "shop"
        atomic = true
        [server]
        listen = ["0.0.0.0:80", "[::1]:8080"]
        admin = "127.0.0.1:9000"
        [sync_views]
        workers = 3
        workers_max = 9
        [async_views]
        loops = 2
        in_flight_max = 10
        [limits]
        cpu_ms = 100
        timeout_ms = 2000
        [databases.default]
        sqlite = "shop.db"
        migrations = "files"
        readers = 2
        [static]
        dir = "files"
        mount = "/assets/"
        [modules.shop]
        path = "."
        mount = "/shop/"
        databases = ["default"]
        http = ["self", "https://api.example.com", "http://127.0.0.1:8080/"]
        directories = [{ host = "files", guest = "/files", write = true }]
        atomic = "unsafe-methods"
        [modules.shop.settings]
        title = "Shop"
        size = 3
        [modules.shop.secrets]
        home = { env = "HOME" }
        [modules.shop.limits]
        timeout_ms = 500
        "#,
    )
    .expect("it is right");
    let shop = &config.modules[0];
    assert_eq!((shop.limits.cpu_ms, shop.limits.timeout_ms), (100, 500));
    assert_eq!(shop.mount, "/shop");
    assert_eq!(shop.atomic, Atomic::UnsafeMethods);
    assert_eq!(shop.settings["size"], "3");
    assert_eq!(
        shop.settings["home"],
        std::env::var("HOME").expect("HOME is set")
    );
    assert!(
        shop.http
            .contains(&HttpGrant::Origin("http://127.0.0.1:8080".into()))
    );
    assert!(
        shop.http
            .contains(&HttpGrant::Origin("https://api.example.com".into()))
    );
    assert_eq!(config.static_files.expect("there are").mount, "/assets");
}

#[test]
fn a_secret_is_made_once_and_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = folder();
    let text = format!(
        "{LEAST}secrets = {{ key = {{ file = \"keys/session.key\", generate = true }} }}\n"
    );
    let read = || {
        let config = Config::parse(&folder.path().join("amphi.toml"), &text).expect("it is right");
        config.modules[0].settings["key"].clone()
    };
    let key = read();
    assert!(
        key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{key}"
    );
    assert_eq!(read(), key);
    let file = folder.path().join("keys/session.key");
    let mode = file.metadata().expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::remove_file(file).expect("removing the key");
    assert_ne!(read(), key);
}

/// A container image is built without the secrets of production. The build must neither need these secrets nor make new
/// ones.
#[test]
fn secrets_are_needed_where_they_are_used() {
    let folder = folder();
    let file = folder.path().join("amphi.toml");
    let made = folder.path().join("session.key");
    let read = |secrets: &str, database: &str, purpose: Purpose| {
        let text = format!("{LEAST}secrets = {{ {secrets} }}\n[databases.a]\n{database}\n");
        Config::parse_for(&file, &text, purpose).map_err(|error| error.to_string())
    };
    let sqlite = "sqlite = \"x.db\"";
    let generated = "session_key = { file = \"session.key\", generate = true }";
    std::fs::write(folder.path().join("short.key"), "short").expect("writing a key");
    let short = "session_key = { file = \"short.key\" }";
    let error = read(short, sqlite, Purpose::Serve).expect_err("it is used");
    assert!(error.contains("needs at least"), "{error}");
    for purpose in [Purpose::Check, Purpose::Migrate] {
        for missing in [
            generated,
            short,
            "a = { file = \"none\" }",
            "a = { env = \"NOT_SET_ANYWHERE\" }",
        ] {
            read(missing, sqlite, purpose).unwrap_or_else(|error| panic!("{missing}: {error}"));
        }
        assert!(!made.exists());
        // How a secret is written is checked, even if its value is not needed.
        let error = read("a = { env = \"HOME\", file = \"x\" }", sqlite, purpose);
        assert!(error.expect_err("two places").contains("from one place"));
    }
    let url = "postgres = { env = \"NOT_SET_ANYWHERE\" }";
    read(generated, url, Purpose::Check).expect("nobody opens it");
    read(generated, url, Purpose::Migrate).expect_err("it is opened");
    read(generated, url, Purpose::Serve).expect_err("it is opened");
    let served = read(generated, sqlite, Purpose::Serve).expect("it is made");
    assert!(made.exists());
    // A secret that exists is read, even if its value is not needed.
    let checked = read(generated, sqlite, Purpose::Check).expect("it is there");
    assert_eq!(checked.modules[0].settings, served.modules[0].settings);
}

#[test]
fn unknown_keys_are_named_with_the_nearest_known_one() {
    assert_error(
        "[app]\nname = \"x\"\n[server]\nlisen = []\n",
        "4:1",
        &[
            "unknown field `lisen`",
            "did you mean `listen`?",
            "4 | lisen = []",
        ],
    );
    assert_error(
        &format!("{LEAST}datbases = []\n"),
        "5:1",
        &["did you mean `databases`?"],
    );
    assert_error(
        &format!("{LEAST}[modules.shop.limits]\ncpu = 1\n"),
        "6:1",
        &["did you mean `cpu_ms`?"],
    );
    assert_error(
        "[app]\nname = \"x\"\n[sever]\n",
        "3:2",
        &["did you mean `server`?"],
    );
}

#[test]
fn wrong_types_and_broken_syntax_have_their_place() {
    assert_error(
        "[app]\nname = 7\n",
        "2:8",
        &["invalid type: integer `7`, expected a string"],
    );
    assert_error(
        &format!("{LEAST}[limits]\ncpu_ms = \"1s\"\n"),
        "6:10",
        &["expected u64; write a whole number, without quotes"],
    );
    let app = LEAST.replace("[app]\n", "[app]\nmiddleware = \"shop::staff\"\n");
    assert_ne!(app, LEAST);
    assert_error(&app, "2:14", &["write a list, in brackets"]);
    assert_error(
        &format!("{LEAST}mount = 7\n"),
        "5:9",
        &["invalid type: integer `7`, expected a string; write a text, in quotes"],
    );
    assert_error(
        &format!("{LEAST}subrequests = \"yes\"\n"),
        "5:15",
        &["write `true` or `false`, without quotes"],
    );
    assert_error(
        &format!("{LEAST}limits = 7\n"),
        "5:10",
        &["write a table, in braces"],
    );
    assert_error(
        &format!("{LEAST}path = [\"a\"]\n").replace("path = \".\"\n", ""),
        "4:8",
        &["write a text, in quotes"],
    );
    assert_error(&format!("{LEAST}[limits]\ncpu_ms = -1\n"), "6:10", &["-1"]);
    assert_error("[app\nname = 7\n", "1:5", &[]);
    assert_error(
        "[modules.x]\npath = \".\"\n",
        "1:1",
        &["missing field `app`"],
    );
}

#[test]
fn contradictions_are_explained() {
    assert_error(
        &format!("{LEAST}[limits]\ncpu_ms = 5000\ntimeout_ms = 100\n"),
        "5:1",
        &["`cpu_ms` (5000) is over `timeout_ms` (100)"],
    );
    assert_error(
        &format!("{LEAST}limits = {{ cpu_ms = 50000 }}\n"),
        "5:10",
        &["`cpu_ms` (50000) is over `timeout_ms` (30000)"],
    );
    assert_error(
        &format!("{LEAST}[sync_views]\nworkers = 9\nworkers_max = 2\n"),
        "5:1",
        &["`workers` (9) is over `workers_max` (2)"],
    );
    assert_error(
        &format!("{LEAST}[server]\nbody_max_bytes = 1000\n"),
        "5:1",
        &["`body_memory_bytes` (1048576) is over `body_max_bytes` (1000)"],
    );
    assert_error(
        &format!("{LEAST}[async_views]\nin_flight_max = 0\n"),
        "5:1",
        &["`in_flight_max` is 0"],
    );
    assert_error(
        &format!("{LEAST}[limits]\nmemory_mb = 5000\n"),
        "5:1",
        &["the most is 1024"],
    );
}

#[test]
fn values_that_cannot_be_are_explained() {
    assert_error(
        &format!("{LEAST}mount = \"shop\"\n"),
        "5:9",
        &["`shop` cannot be a mount", "\"/shop\""],
    );
    assert_error(
        &format!("{LEAST}databases = [\"main\"]\n"),
        "5:14",
        &[
            "`main`, which the app does not have (it has: none)",
            "[databases.main]",
        ],
    );
    assert_error(
        &format!("{LEAST}http = [\"example.com\"]\n"),
        "5:9",
        &["write an origin such as"],
    );
    assert_error(
        &format!("{LEAST}http = [\"http://example.com/api\"]\n"),
        "5:9",
        &["write an origin such as"],
    );
    assert_error(
        &format!("{LEAST}atomic = \"yes\"\n"),
        "5:10",
        &["\"unsafe-methods\", true or false"],
    );
    assert_error(
        &format!("{LEAST}secrets = {{ key = {{ env = \"NOT_SET_ANYWHERE\" }} }}\n"),
        "5:19",
        &["NOT_SET_ANYWHERE is not set"],
    );
    assert_error(
        &format!("{LEAST}secrets = {{ key = {{ file = \"none\" }} }}\n"),
        "5:19",
        &["APP/none cannot be read", "`generate = true`"],
    );
    assert_error(
        &format!("{LEAST}secrets = {{ key = {{ env = \"HOME\", generate = true }} }}\n"),
        "5:19",
        &["write { file = \"path\", generate = true }"],
    );
    assert_error(
        &format!("{LEAST}secrets = {{ key = {{ file = \"files\", generate = true }} }}\n"),
        "5:19",
        &["APP/files cannot be read"],
    );
    assert_error(
        &format!("{LEAST}directories = [{{ host = \"none\", guest = \"/\" }}]\n"),
        "5:16",
        &["there is no folder APP/none"],
    );
    assert_error(
        "[app]\nname = \"x\"\n[modules.x]\npath = \"nowhere\"\n",
        "4:8",
        &["neither a `.wasm` file nor a folder with a Cargo.toml"],
    );
    assert_error(
        "[app]\nname = \"x\"\n[server]\nlisten = [\"localhost\"]\n[static]\ndir = \"files\"\n",
        "4:11",
        &["write IP:PORT"],
    );
    assert_error(
        "[app]\nname = \"x\"\n",
        "1:1",
        &["neither a module nor static files"],
    );
}

#[test]
fn numbers_have_bounds() {
    for (table, key, wrong, bound) in [
        ("server", "connections_max", 0, "the least is 1"),
        ("server", "connections_max", i64::MAX, "the most is 1000000"),
        ("server", "headers_max_bytes", 8191, "the least is 8192"),
        ("server", "headers_max_bytes", 1 << 40, "the most is"),
        ("server", "headers_max", 40_000, "the most is 10000"),
        ("server", "uri_max_bytes", 70_000, "the most is 65534"),
        ("server", "http2_streams_max", 0, "the least is 1"),
        ("server", "header_timeout_ms", 0, "the least is 1"),
        ("server", "body_timeout_ms", 0, "the least is 1"),
        ("server", "write_timeout_ms", 0, "the least is 1"),
        (
            "server",
            "drain_timeout_ms",
            i64::MAX,
            "the most is 86400000",
        ),
        ("server", "log_queue_bytes", 4095, "the least is 4096"),
        ("sync_views", "workers_max", i64::MAX, "the most is 10000"),
        ("sync_views", "queue_timeout_ms", 0, "the least is 1"),
        ("async_views", "in_flight_max", i64::MAX, "the most is"),
        ("async_views", "queue_max", i64::MAX, "the most is 1000000"),
        ("limits", "cpu_ms", 0, "the least is 1"),
        ("limits", "timeout_ms", i64::MAX, "the most is 86400000"),
        ("limits", "memory_mb", 1 << 44, "the most is 1024"),
        ("limits", "response_max_bytes", 0, "the least is 1"),
        ("limits", "outbound_max", 0, "the least is 1"),
        ("limits", "outbound_max", i64::MAX, "the most is 10000"),
        ("modules.shop.limits", "memory_mb", 0, "the least is 1"),
    ] {
        let text = format!("{LEAST}[{table}]\n{key} = {wrong}\n");
        assert_error(&text, "5:1", &[&format!("`{key}` is {wrong}: {bound}")]);
    }
    let database = format!("{LEAST}[databases.default]\nsqlite = \"x.db\"\n");
    for (key, wrong, bound) in [
        ("readers", 0, "the least is 1"),
        ("readers", i64::MAX, "the most is 1000"),
        ("busy_timeout_ms", 1 << 40, "the most is 86400000"),
        ("acquire_timeout_ms", 0, "the least is 1"),
    ] {
        let place = format!("7:{}", key.len() + 4);
        let text = format!("{database}{key} = {wrong}\n");
        assert_error(&text, &place, &[&format!("`{key}` is {wrong}: {bound}")]);
    }
}

#[test]
fn zeros_that_mean_something_are_accepted() {
    let text = format!(
        "{LEAST}[server]\ndrain_timeout_ms = 0\n[sync_views]\nqueue_max = 0\n[async_views]\nqueue_max = 0\n"
    );
    let config = parse(&text).expect("it is right");
    assert_eq!(config.server.drain_timeout_ms, 0);
}

#[test]
fn a_short_timeout_alone_shortens_the_cpu_time() {
    let limits = |text: &str| {
        let config = parse(&format!("{LEAST}{text}")).expect("it is right");
        (
            config.modules[0].limits.cpu_ms,
            config.modules[0].limits.timeout_ms,
        )
    };
    assert_eq!(limits("[limits]\ntimeout_ms = 400\n"), (400, 400));
    assert_eq!(
        limits("[modules.shop.limits]\ntimeout_ms = 400\n"),
        (400, 400)
    );
    let both = "[limits]\ncpu_ms = 2000\n[modules.shop.limits]\ntimeout_ms = 400\n";
    assert_eq!(limits(both), (400, 400));
    let longer = "[limits]\ntimeout_ms = 400\n[modules.shop.limits]\ntimeout_ms = 900\n";
    assert_eq!(limits(longer), (400, 900));
}

#[test]
fn what_only_a_start_takes_up_is_known() {
    let config = |text: &str| parse(&format!("{LEAST}{text}")).expect("it is right");
    let started = config("");
    assert!(config("").needing_restart(&started).is_empty());
    let taken_up = "[server]\nbody_max_bytes = 2000000\nuri_max_bytes = 99\n[limits]\ncpu_ms = 7\n";
    assert!(config(taken_up).needing_restart(&started).is_empty());
    let fixed = "[server]\nlisten = [\"[::1]:1\"]\nadmin = \"[::1]:2\"\nconnections_max = 7\nheaders_max_bytes = 9000\nheaders_max = 7\nheader_timeout_ms = 7\nwrite_timeout_ms = 7\nhttp2_streams_max = 7\ndrain_timeout_ms = 7\nlog_queue_bytes = 7000\n[sync_views]\nqueue_max = 7\n[async_views]\nqueue_timeout_ms = 7\n";
    let names = config(fixed).needing_restart(&started);
    assert_eq!(names.len(), fixed.matches(" = ").count());
    for name in names {
        let key = name.trim_matches(['[', ']']);
        assert!(fixed.contains(key), "{name}");
    }
}

#[test]
fn a_value_in_a_database_has_a_size() {
    let with = |line: &str| format!("{LEAST}[databases.default]\nsqlite = \"x.db\"\n{line}\n");
    let config = parse(&with("")).expect("it is right");
    assert_eq!(config.databases["default"].value_max_bytes, 16 << 20);
    let config = parse(&with("value_max_bytes = 65536")).expect("it is right");
    assert_eq!(config.databases["default"].value_max_bytes, 65_536);
    for (bytes, bound) in [
        (0, "the least is 65536"),
        (65_535, "the least is 65536"),
        (1_000_000_001, "the most is 1000000000"),
    ] {
        let text = with(&format!("value_max_bytes = {bytes}"));
        assert_error(&text, "7:19", &[bound]);
    }
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Config::load(Path::new("/nowhere"))
        .expect_err("it is not there")
        .to_string();
    assert!(
        error.contains("/nowhere") && error.contains("amphi new NAME"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}|([a-z_]{1,8} ?= ?[\\[\\]\"{}0-9a-z]{0,10}\n){0,6}") {
        let _ = parse(&text);
        let _ = parse(&format!("{LEAST}{text}"));
    }
}

/// An error shows a line of the file, in the log and on the page of `amphi up`, so that line must not show a secret.
#[test]
fn no_secret_is_shown_with_an_error() {
    for (line, told) in [
        (
            "settings = { stripe = \"sk_live_7\", session_days = [1] }",
            "",
        ),
        ("secrets = { session_key = \"sk_live_7\" }", "expected"),
        ("databases = [\"main\", \"sk_live_7", ""),
        ("http = [\"example.com\", \"sk_live_7\"]", "example.com"),
        ("secrets = 'sk_live_7'", "expected"),
    ] {
        let error = parse(&format!("{LEAST}{line}\n")).expect_err("it is wrong");
        assert!(!error.contains("sk_live_7"), "{error}");
        assert!(error.contains(told), "{error}");
    }
    for url in [
        "host=h password = sk_live_7 hosst=x",
        "postgres://u:4sk_live_7",
    ] {
        let text = format!("{LEAST}databases = [\"d\"]\n[databases.d]\npostgres = \"{url}\"\n");
        let error = parse(&text).expect_err("it is wrong");
        assert!(!error.contains("sk_live_7"), "{error}");
    }
}

#[test]
fn modules_do_not_end_each_others_sessions() {
    const KEYS: [&str; 2] = [
        "one key that nobody can guess, really",
        "another key that nobody can guess",
    ];
    let app = |settings: [&str; 2]| {
        let module = |(name, settings): (&str, &str)| {
            format!("[modules.{name}]\npath = \".\"\nsettings = {{ {settings} }}\n")
        };
        let [one, other] = settings;
        format!(
            "[app]\nname = \"x\"\n{}{}",
            module(("news", one)),
            module(("shop", other))
        )
    };
    let [one, other] = KEYS.map(|key| format!("session_key = \"{key}\""));
    let named = |settings: &str, name: &str| format!("{settings}, session_name = \"{name}\"");
    let words = ["`news` and `shop`", "one cookie", "`session_name`"];
    assert_error(&app([&one, &other]), "8:28", &words);
    assert_error(&app([&named(&one, "session"), &other]), "8:28", &words);
    assert_error(
        &app([&named(&one, "a"), &named(&other, "a")]),
        "8:28",
        &words,
    );
    for fine in [
        [&*one, &*one],
        [&one, "title = \"x\""],
        [&one, &named(&other, "shop")],
        [&named(&one, "news"), &other],
        ["title = \"x\"", &other],
    ] {
        parse(&app(fine)).unwrap_or_else(|error| panic!("{fine:?}: {error}"));
    }
}

#[test]
fn addresses_do_not_overlap() {
    let server = |listen: &str, admin: &str| {
        let admin = match admin {
            "" => String::new(),
            admin => format!("admin = \"{admin}\"\n"),
        };
        format!("{LEAST}[server]\nlisten = [{listen}]\n{admin}")
    };
    for (listen, admin, words) in [
        ("\"[::1]:1\", \"[::1]:1\"", "", "has [::1]:1 twice"),
        (
            "\"127.0.0.1:1\"",
            "127.0.0.1:1",
            "`admin` and `listen` are the same",
        ),
        ("\"0.0.0.0:1\", \"127.0.0.1:1\"", "", "overlap"),
        ("\"127.0.0.1:1\"", "0.0.0.0:1", "overlap"),
        ("\"[::]:1\", \"127.0.0.1:1\"", "", "overlap"),
        ("\"[::1]:1\", \"[::]:1\"", "", "overlap"),
    ] {
        let error = parse(&server(listen, admin)).expect_err(listen).to_string();
        assert!(error.contains(words), "{listen} {admin}: {error}");
    }
    for (listen, admin) in [
        ("\"[::]:1\", \"0.0.0.0:1\"", "0.0.0.0:2"),
        ("\"0.0.0.0:1\", \"[::]:1\"", ""),
        ("\"127.0.0.1:1\", \"127.0.0.2:1\", \"[::1]:1\"", "[::]:2"),
        ("\"127.0.0.1:0\", \"127.0.0.1:0\"", "127.0.0.1:0"),
    ] {
        parse(&server(listen, admin)).unwrap_or_else(|error| panic!("{listen}: {error}"));
    }
}

#[test]
fn origins_are_what_browsers_send() {
    let app = |origin: &str| {
        let cors = format!("[middleware.api]\nuse = \"cors\"\norigins = [\"{origin}\"]\n");
        let own = format!("[app]\nname = \"x\"\nallowed_origins = [\"{origin}\"]\n");
        [
            parse(&format!("{LEAST}{cors}")),
            parse(&LEAST.replacen("[app]\nname = \"shop\"\n", &own, 1)),
        ]
    };
    for origin in [
        "https://app.example.com",
        "http://127.0.0.1:8080",
        "capacitor://localhost",
        "ionic://localhost",
        "app://shop:8080",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    ] {
        for read in app(origin) {
            read.unwrap_or_else(|error| panic!("{origin}: {error}"));
        }
    }
    for origin in [
        "app.example.com",
        "https://app.example.com/",
        "https://APP.example.com",
        "https://a@b.example",
        "capacitor://localhost/",
        "capacitor://",
        "capacitor:localhost",
        "capacitor://u@localhost",
        "capacitor://localhost?x",
        "file:///a",
        "null",
    ] {
        for read in app(origin) {
            let error = read.expect_err(origin).to_string();
            assert!(error.contains("is not an origin"), "{origin}: {error}");
        }
    }
}
