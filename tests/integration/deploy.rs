//! Loading modules: what the host refuses and how it says so, and what `amphi routes` and `inspect` show.

use std::process::Command;

use crate::harness::{App, Mode, guests};

/// An app of one module from a `.wasm` file, with these keys in the module's table.
fn app_of(file: &std::path::Path, more: &str) -> App {
    App::written(&format!(
        "[app]\nname = \"test\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n[databases.default]\nsqlite = \"test.db\"\n[modules.odd]\npath = \"{}\"\n{more}",
        file.display()
    ))
}

/// Checks that every command that loads the app refuses it, with all these words in the error.
fn assert_refused(app: &App, words: &[&str]) {
    for command in ["serve", "routes", "build"] {
        let ran = app.run(command);
        let error = ran.error();
        for word in words.iter().chain(&["odd"]) {
            assert!(
                error.contains(word),
                "`amphi {command}` should say {word:?}: {error}"
            );
        }
        assert!(
            !error.contains("thread '"),
            "the host should not panic: {error}"
        );
    }
}

#[test]
fn what_is_not_a_component_is_refused() {
    let folder = tempfile::tempdir().expect("there is room");
    let file = folder.path().join("odd.wasm");
    let cases: &[(&[u8], &[&str])] = &[
        (b"this is a text", &["is not a WebAssembly component"]),
        (b"", &["is not a WebAssembly component"]),
        (b"\0asm", &["is not a WebAssembly component"]),
        (
            b"\0asm\x01\0\0\0",
            &["core WebAssembly module, not a component", "wasm32-wasip2"],
        ),
        (
            b"\0asm\x0d\0\x01\0garbage behind the head",
            &["component is not valid"],
        ),
        (b"\0asm\x0d\0\x01\0", &["has no views", "exports nothing"]),
    ];
    for (bytes, words) in cases {
        std::fs::write(&file, bytes).expect("it can be written");
        assert_refused(&app_of(&file, ""), words);
    }
    let half = std::fs::read(guests::behaviour(Mode::Sync)).expect("it is built");
    std::fs::write(&file, &half[..half.len() / 2]).expect("it can be written");
    assert_refused(&app_of(&file, ""), &["component is not valid"]);
    let missing = folder.path().join("missing.wasm");
    assert_refused(&app_of(&missing, ""), &["missing.wasm", "cannot be read"]);
}

#[test]
fn components_of_other_worlds_are_refused() {
    assert_refused(
        &app_of(&guests::misfit("command"), ""),
        &["has no views", "wasi:cli/run"],
    );
    assert_refused(
        &app_of(&guests::misfit("other_handle"), ""),
        &["does not fit the world `sync-views`"],
    );
}

#[test]
fn r1_an_async_component_cannot_import_what_blocks() {
    let app = app_of(
        &guests::misfit("async_blocking"),
        "databases = [\"default\"]",
    );
    assert_refused(
        &app,
        &[
            "is async",
            "amphi:view/database@0.3.0",
            "blocks",
            "database-async",
        ],
    );
}

#[test]
fn r1_a_sync_component_cannot_import_what_is_async() {
    let app = app_of(&guests::misfit("sync_waiting"), "databases = [\"default\"]");
    assert_refused(&app, &["amphi:view/database-async@0.3.0", "sync"]);
    assert_refused(
        &app_of(&guests::misfit("sync_timer"), ""),
        &["amphi:view/timer@0.3.0", "sync"],
    );
}

#[test]
fn imports_that_nobody_provides_are_refused() {
    let app = app_of(&guests::misfit("unknown_import"), "");
    assert_refused(&app, &["tests:misfits/weather", "does not provide"]);
}

#[test]
fn a_component_of_another_version_of_the_contract_is_refused() {
    let app = app_of(&guests::misfit("old_contract"), "");
    assert_refused(
        &app,
        &["amphi:view/types@0.1.0", "version 0.1.0", "version 0.3.0"],
    );
}

#[test]
fn imports_that_are_not_granted_are_refused() {
    for mode in [Mode::Sync, Mode::Async] {
        let face = if mode == Mode::Async { "-async" } else { "" };
        let file = guests::behaviour(mode);
        let (database, http) = (
            format!("amphi:view/database{face}@0.3.0"),
            format!("amphi:view/http{face}@0.3.0"),
        );
        let app = app_of(&file, "http = [\"self\"]");
        assert_refused(
            &app,
            &[
                &database,
                "module `odd` is not granted",
                "databases = [\"default\"]",
                "[modules.odd]",
            ],
        );
        let app = app_of(&file, "databases = [\"default\"]");
        assert_refused(
            &app,
            &[
                &http,
                "module `odd` is not granted",
                "http = [\"self\"]",
                "[modules.odd]",
            ],
        );
    }
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    for (said, words) in [
        ("nothing", &["`describe` lists no view"][..]),
        ("an id twice", &["the id 1 to two views", "`view_1`"]),
        (
            "a route twice",
            &[
                "odd::view_2",
                "GET /a is already served by the view odd::view_1",
            ],
        ),
        ("an unknown method", &["`view_1`", "`brew`", "GET, POST"]),
        ("no slash", &["`view_1`", "starts with `/`"]),
        ("a malformed pattern", &["odd::view_1", "/a/{", "malformed"]),
        ("a panic", &["`describe` failed", "nothing to describe"]),
    ] {
        let app = app_of(
            &guests::misfit("liar"),
            &format!("settings = {{ describe = \"{said}\" }}"),
        );
        assert_refused(&app, words);
    }
}

/// A setting or secret that a view cannot run without is reported as missing at the start, not at the first request for
/// the view.
#[test]
fn a_secret_that_a_view_cannot_do_without_is_missed_at_the_start() {
    let grants = "databases = [\"default\"]\nhttp = [\"self\"]\nsubrequests = true\npublish = [\"*\"]\nsubscribe = [\"*\"]\nchannels = [\"*\"]\n";
    for (more, words) in [
        (
            "",
            &["`sign_in` cannot run", "the secret `session_key`"][..],
        ),
        (
            "settings = { session_key = \"a key that is as long as it has to be\", session_days = \"many\" }",
            &["`sign_in` cannot run", "`session_days`"],
        ),
    ] {
        let file = guests::built("docs", Mode::Sync);
        assert_refused(&app_of(&file, &format!("{grants}{more}")), words);
    }
}

/// A `describe` that never ends is stopped by the time limit for it.
#[test]
fn a_description_that_never_ends_is_refused() {
    for (misfit, grants) in [
        ("liar", "settings = { describe = \"an endless loop\" }"),
        ("async_endless", ""),
    ] {
        let ran = app_of(&guests::misfit(misfit), grants).run("routes");
        assert!(
            ran.error().contains("module `odd`") && ran.error().contains("`describe` failed"),
            "{misfit}: {}",
            ran.error()
        );
    }
}

/// Views can lower their module's limits, and cannot raise them.
#[tokio::test]
async fn a_view_cannot_raise_its_limits() {
    let app = App::new(&format!(
        "modules.odd = {{ path = \"{}\", settings = {{ describe = \"more than its limits\" }}, limits = {{ cpu_ms = 50 }} }}",
        guests::misfit("liar").display()
    ));
    let server = app.serve().await;
    let mark = server.log.mark();
    assert_eq!(server.get("/loop").await.status, 504);
    assert!(
        server.log.requests(mark, 1).await[0]
            .text("why")
            .contains("CPU time of 50 ms")
    );
}

/// The host checks what a guest answers, also if the guest was not built with the SDK.
#[tokio::test]
async fn statuses_that_are_none_are_500() {
    for (status, expected) in [
        (0, 500),
        (99, 500),
        (100, 500),
        (199, 500),
        (204, 204),
        (599, 599),
        (600, 500),
        (65_535, 500),
    ] {
        let app = App::new(&format!(
            "modules.odd = {{ path = \"{}\", settings = {{ status = {status}, error = {status} }} }}",
            guests::misfit("liar").display()
        ));
        let server = app.serve().await;
        assert_eq!(
            server.get("/status").await.status,
            expected,
            "status {status}"
        );
        let mark = server.log.mark();
        let reply = server.get("/error").await;
        let expected = if status == 599 { 599 } else { 500 };
        assert_eq!(reply.status, expected, "an error of status {status}");
        let lines = server.log.requests(mark, 1).await;
        assert!(lines[0].text("why").contains("with a detail"), "{lines:#?}");
        assert!(!reply.text().contains("with a detail"));
    }
}

/// `amphi routes` lists what the views describe, and each listed route is served.
#[tokio::test]
async fn routes_descriptions_and_behaviour_agree() {
    let app = App::new("static = { dir = \"files\" }\nmodules.behaviour.mount = \"/app\"");
    app.write("files/a.txt", "a");
    let ran = app.run("routes");
    assert!(ran.success, "{ran:?}");
    let rows: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["METHOD", "PATH", "MODULE", "VIEW", "MODE", "ATOMIC"]
    );
    let has = |row: &[&str]| {
        assert!(
            rows.iter().any(|known| known == row),
            "{row:?} should be in\n{}",
            ran.stdout
        )
    };
    for mode in [Mode::Sync, Mode::Async] {
        let (word, file) = (mode.to_string(), mode.view("").replace("behaviour::", ""));
        let view = |name: &str| format!("{file}{name}");
        has(&[
            "GET",
            &format!("/app/{mode}/hello"),
            "behaviour",
            &view("hello"),
            &word,
            "-",
        ]);
        has(&[
            "POST",
            &format!("/app/{mode}/rows/{{tag}}"),
            "behaviour",
            &view("insert"),
            &word,
            "atomic",
        ]);
        has(&[
            "POST",
            &format!("/app/{mode}/sql"),
            "behaviour",
            &view("sql"),
            &word,
            "-",
        ]);
        has(&[
            "PUT",
            &format!("/app/{mode}/file"),
            "behaviour",
            &view("write_file"),
            &word,
            "-",
        ]);
    }
    assert!(ran.stdout.contains("/static/{*path}"), "{}", ran.stdout);
    let views: Vec<_> = rows[1..]
        .iter()
        .filter(|row| row[2] == "behaviour")
        .collect();
    assert_eq!(views.len(), 34 + 38);
    assert!(
        !app.path("data/test.db").exists(),
        "looking at routes should not make a database"
    );

    let server = app.serve().await;
    let listening = server.log.event(0, "listening").await;
    assert_eq!(
        (
            listening.number("sync_views"),
            listening.number("async_views")
        ),
        (34, 38)
    );
    for row in views {
        // To OPTIONS, each route answers 204 with its methods in `allow`.
        let path = row[1].replace(['{', '}'], "");
        let reply = crate::harness::Reply::of(server.request("OPTIONS", &path)).await;
        assert_eq!(reply.status, 204, "{path}");
        assert!(
            reply
                .header("allow")
                .split(", ")
                .any(|method| method == row[0]),
            "{row:?}: {}",
            reply.header("allow")
        );
    }
}

#[test]
fn inspect_shows_mode_views_and_imports() {
    for mode in [Mode::Sync, Mode::Async] {
        let output = Command::new(guests::AMPHI)
            .arg("inspect")
            .arg(guests::behaviour(mode))
            .output()
            .expect("it can be started");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (face, other) = if mode == Mode::Async {
            ("-async", "")
        } else {
            ("", "-async")
        };
        for part in [
            &mode.to_string(),
            &format!("amphi:view/database{face}@0.3.0"),
            &format!("amphi:view/http{face}@0.3.0"),
            &format!("/{mode}/hello"),
        ] {
            assert!(
                said.contains(part.as_str()),
                "it should name {part}: {said}"
            );
        }
        assert!(
            !said.contains(&format!("amphi:view/database{other}@")),
            "{said}"
        );
    }
    // `amphi inspect` needs neither grants nor secrets.
    let output = Command::new(guests::AMPHI)
        .arg("inspect")
        .arg(guests::built("docs", Mode::Sync))
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("orders.*") && said.contains("/sign-in"),
        "{output:?}"
    );
    let output = Command::new(guests::AMPHI)
        .arg("inspect")
        .arg(guests::misfit("async_blocking"))
        .output()
        .expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("amphi:view/database@0.3.0"),
        "{said}"
    );
}

/// The path of a module may be one component, of either mode. The module may be granted more than this component
/// imports.
#[tokio::test]
async fn r1_a_module_may_be_one_file_of_either_mode() {
    for mode in [Mode::Sync, Mode::Async] {
        let app = App::new(&format!(
            "modules.behaviour.path = \"{}\"",
            guests::behaviour(mode).display()
        ));
        let server = app.serve().await;
        assert_eq!(server.get(&format!("/{mode}/hello")).await.ok(), "hello");
        let other = if mode == Mode::Sync {
            Mode::Async
        } else {
            Mode::Sync
        };
        assert_eq!(server.get(&format!("/{other}/hello")).await.status, 404);
    }
}

/// With `ungranted_imports`, the host loads a component although some of its imports are not granted, because some
/// toolchains import everything. Calls of these imports are denied.
#[tokio::test]
async fn imports_that_are_not_granted_can_be_let_in_and_are_denied() {
    let app =
        App::new("modules.behaviour = { databases = [], http = [], ungranted_imports = true }");
    let server = app.serve().await;
    for mode in [Mode::Sync, Mode::Async] {
        assert_eq!(server.get(&format!("/{mode}/hello")).await.ok(), "hello");
        let said = server.post(&format!("/{mode}/sql"), "select 1").await;
        assert!(said.ok().starts_with("Denied: "), "{}", said.text());
        let said = server
            .get(&format!("/{mode}/fetch?url=/{mode}/hello"))
            .await;
        assert!(said.ok().starts_with("Denied: "), "{}", said.text());
    }
    server.assert_baseline().await;
}

/// `amphi new` makes a folder with the template. It refuses invalid names, and folders that exist already.
#[test]
fn new_makes_an_app_and_overwrites_nothing() {
    let folder = tempfile::tempdir().expect("there is room");
    let new = |name: &str| {
        let output = Command::new(guests::AMPHI)
            .arg("new")
            .arg(name)
            .current_dir(folder.path())
            .output();
        let output = output.expect("it can be started");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(new("demo"), (true, String::new()));
    for file in ["amphi.toml", "Cargo.toml", "src/lib.rs"] {
        assert!(
            folder.path().join("demo").join(file).is_file(),
            "{file} is missing"
        );
    }
    std::fs::write(folder.path().join("demo/amphi.toml"), "mine").expect("it can be written");
    let (made, said) = new("demo");
    assert!(!made && said.contains("demo exists already"), "{said}");
    let kept = std::fs::read_to_string(folder.path().join("demo/amphi.toml")).expect("it is there");
    assert_eq!(kept, "mine");
    for name in ["Demo", "1st", "a b", "..", "dé"] {
        let (made, said) = new(name);
        assert!(
            !made && said.contains("cannot be an app's name"),
            "{name}: {said}"
        );
    }
}

/// A container image with an app is built without the secrets of production: only serving the app makes or needs
/// secrets.
#[tokio::test]
async fn secrets_are_made_where_the_app_is_served() {
    let app = App::new(
        "[modules.behaviour.secrets]\nsession_key = { file = \"session.key\", generate = true }",
    );
    let key = app.path("session.key");
    for command in ["build", "routes", "migrate"] {
        let ran = app.run(command);
        assert!(ran.success, "amphi {command}: {ran:?}");
        assert!(!key.exists(), "amphi {command} makes no secret");
    }
    let server = app.serve().await;
    assert!(key.exists());
    let line = server
        .log
        .event(0, "a secret was missing and has been made")
        .await;
    assert!(line.text("file").ends_with("session.key"), "{line:?}");
}

/// rustup chooses the compiler by the current folder. So `amphi build` runs rustup and rustc in the crate's folder,
/// wherever `amphi build` itself is called.
#[test]
fn the_target_is_added_to_the_compiler_of_the_crate() {
    let app = App::written("[app]\nname = \"a\"\n[modules.a]\npath = \"guest\"\n");
    app.write("guest/Cargo.toml", "[package]\nname = \"a\"\n");
    let [told, tools] = ["told", "tools"].map(|name| app.path(name));
    for (tool, body) in [("rustc", "echo /nowhere"), ("rustup", "exit 1")] {
        let script = format!(
            "#!/bin/sh\necho {tool} $PWD >> {}\n{body}\n",
            told.display()
        );
        app.write(&format!("tools/{tool}"), script);
        let file = tools.join(tool);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(file, executable).expect("it is our own");
    }
    let path = std::env::var("PATH").expect("there is one");
    let ran = Command::new(guests::AMPHI)
        .arg("build")
        .arg(app.folder())
        .current_dir(std::env::temp_dir())
        .env("PATH", format!("{}:{path}", tools.display()))
        .output()
        .expect("it can be started");
    assert!(!ran.status.success(), "there is no target: {ran:?}");
    let guest = app.path("guest").canonicalize().expect("it is there");
    let guest = guest.display();
    let told = std::fs::read_to_string(told).expect("both were asked");
    assert_eq!(told, format!("rustc {guest}\nrustup {guest}\n"));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        said.contains(&format!("wasm32-wasip2` in {guest}")),
        "{said}"
    );
}
