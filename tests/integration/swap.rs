//! `amphi up`, with an app that is edited while it is served; and which crates `amphi build` builds, and when.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::harness::raw::exchange;
use crate::harness::{App, Reply, eventually, guests};

/// An app with a copy of the guest `versions` in its folder `crate`. All copies share a target folder, so each package
/// has a name of its own.
fn app_with_copy(package: &str, module: &str) -> App {
    let toml = |word: &str| {
        format!(
            "[app]\nname = \"test\"\n[server]\nadmin = \"127.0.0.1:0\"\n[modules.versions]\n{module}\nsettings = {{ word = \"{word}\" }}\n"
        )
    };
    let app = App::written(&toml("first"));
    let guests = guests::folder();
    // Builds the other guests first, so that the dependencies are compiled.
    guests::behaviour(crate::harness::Mode::Sync);
    app.write(
        ".cargo/config.toml",
        format!("[build]\ntarget-dir = \"{}/target\"\n", guests.display()),
    );
    let manifest = fs::read_to_string(guests.join("versions/Cargo.toml")).expect("it is there");
    let manifest = manifest
        .replace("\"versions\"", &format!("\"{package}\""))
        .replace(
            "../../..",
            guests.join("../..").to_str().expect("the path is UTF-8"),
        )
        .replace("edition.workspace = true", "edition = \"2024\"")
        .replace("rust-version.workspace = true\n", "")
        .replace("license.workspace = true\n", "");
    app.write(
        "crate/Cargo.toml",
        format!("{manifest}\n[workspace]\n[profile.release]\nopt-level = 1\n"),
    );
    fs::copy(guests.join("Cargo.lock"), app.path("crate/Cargo.lock")).expect("it is there");
    edit(&app, "\"1\"");
    app
}

/// Changes the version in the copy's source.
fn edit(app: &App, version: &str) {
    let source =
        fs::read_to_string(guests::folder().join("versions/src/lib.rs")).expect("it is there");
    app.write("crate/src/lib.rs", source.replace("\"1\"", version));
}

#[tokio::test]
async fn an_edited_view_is_swapped_with_no_failed_request() {
    let server = app_with_copy("edited", "path = \"crate\"").up().await;
    assert_eq!(server.get("/sync").await.ok(), "1");
    assert_eq!(server.get("/setting").await.ok(), "first");

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = ["/sync", "/async", "/sync", "/async"]
        .map(|path| {
            let (client, url, stop) = (server.client.clone(), server.url(path), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !stop.load(Relaxed) {
                    let reply = Reply::of(client.get(&url)).await;
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    seen.push(reply.text().to_owned());
                }
                seen
            })
        })
        .into();

    // Details of a failure are shown only for `localhost` and addresses, because of DNS rebinding.
    for (host, shown) in [
        ("127.0.0.1:1", true),
        ("app.localhost", true),
        ("evil.example", false),
    ] {
        let request = format!(
            "GET /nowhere HTTP/1.1\r\nhost: {host}\r\naccept: application/json\r\nconnection: close\r\n\r\n"
        );
        let answer = exchange(&server, request).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert_eq!(
            answer.contains("\"development\""),
            shown,
            "{host}: {answer}"
        );
    }

    let in_flight = tokio::spawn(Reply::of(server.request("GET", "/slow")));
    let mark = server.log.mark();
    edit(&server.app, "\"2\"");
    server.log.event(mark, "swapped").await;
    assert_eq!(server.get("/sync").await.ok(), "2");
    assert_eq!(server.get("/async").await.ok(), "2");

    // If a version does not compile, the log says so, and the version before stays in use.
    let mark = server.log.mark();
    edit(&server.app, "3");
    eventually("an error about the build", async || {
        let lines = server.log.since(mark);
        let told = |line: &crate::harness::log::Line| {
            line.text("level") == "ERROR" && line.text("message").contains("goes on as it was")
        };
        if lines.iter().any(told) {
            Ok(())
        } else {
            Err(lines.len())
        }
    })
    .await;
    assert_eq!(server.get("/sync").await.ok(), "2");
    let page = Reply::of(server.request("GET", "/sync").header("accept", "text/html")).await;
    assert!(
        page.status == 500
            && page.text().contains("mismatched types")
            && page.text().contains("src/lib.rs"),
        "{}",
        page.text()
    );

    let mark = server.log.mark();
    edit(&server.app, "\"3\"");
    server.log.event(mark, "swapped").await;
    assert_eq!(server.get("/sync").await.ok(), "3");
    let page = Reply::of(server.request("GET", "/sync").header("accept", "text/html")).await;
    assert_eq!(page.ok(), "3", "the error is over");

    // A change of the configuration is taken up, too.
    let mark = server.log.mark();
    let toml = fs::read_to_string(server.app.path("amphi.toml")).expect("it is there");
    server
        .app
        .write("amphi.toml", toml.replace("first", "second"));
    server.log.event(mark, "swapped").await;
    assert_eq!(server.get("/setting").await.ok(), "second");

    stop.store(true, Relaxed);
    for client in clients {
        let seen = client.await.expect("no request failed");
        assert!(seen.is_sorted(), "versions should not go back: {seen:?}");
        assert!(
            seen.first().is_some_and(|version| version == "1")
                && seen.last().is_some_and(|version| version == "3")
        );
    }
    assert_eq!(
        in_flight.await.expect("it does not panic").ok(),
        "1",
        "a request finishes with the version it began with"
    );
    for mode in ["sync", "async"] {
        let served = server
            .app
            .path(&format!("target/amphi/versions.{mode}.wasm"));
        assert!(
            !served.exists(),
            "`amphi serve` serves nothing for development"
        );
    }
}

#[test]
fn a_crate_may_be_outside_of_the_apps_folder() {
    let app = app_with_copy("outside", "path = \"../APP/crate\"");
    let name = app
        .folder()
        .file_name()
        .expect("it has a name")
        .to_str()
        .expect("it is UTF-8")
        .to_owned();
    let toml = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
    app.write("amphi.toml", toml.replace("APP", &name));
    let ran = app.run("build");
    assert!(ran.success, "{ran:?}");
    assert!(
        app.path("target/amphi/versions.sync.wasm").is_file()
            && app.path("target/amphi/versions.async.wasm").is_file()
    );
}

/// A mode without views has no component: the component of this mode from an earlier build is removed.
#[test]
fn a_crate_of_one_mode_has_one_component() {
    let app = app_with_copy("one-mode", "path = \"crate\"");
    app.write("target/amphi/versions.async.wasm", "from before");
    let source = fs::read_to_string(app.path("crate/src/lib.rs")).expect("it is there");
    app.write(
        "crate/src/lib.rs",
        source.replace(
            "views![version, version_async, slow, setting]",
            "views![version, setting]",
        ),
    );
    let ran = app.run("build");
    assert!(ran.success, "{ran:?}");
    assert!(app.path("target/amphi/versions.sync.wasm").is_file());
    assert!(!app.path("target/amphi/versions.async.wasm").exists());
    for view in ["version_async", "slow"] {
        let told = ran.stderr.lines().any(|line| {
            line.starts_with(&format!("warning: `{view}` (src/lib.rs:"))
                && line.contains("is in no `views![…]`")
        });
        assert!(told, "{view}: {}", ran.stderr);
    }

    app.write(
        "crate/src/lib.rs",
        source.replace("views![version, version_async, slow, setting]", "views![]"),
    );
    let ran = app.run("build");
    assert!(
        ran.error().contains("module `versions`") && ran.error().contains("has no views"),
        "{}",
        ran.error()
    );

    app.write(
        "crate/src/lib.rs",
        source.replace("VERSION: &str", "VERSION: &String"),
    );
    let ran = app.run("build");
    assert!(ran.stderr.contains("mismatched types"), "{}", ran.stderr);
    assert!(
        ran.error().contains("module `versions` (sync)")
            && ran.error().contains("does not compile"),
        "{}",
        ran.error()
    );
}

/// One run of cargo compiles the components of both modes: besides the component that cargo asks for, this run builds
/// the component of the other mode and keeps it in a file. When this file is missing, the other mode is compiled by
/// itself.
#[test]
fn both_modes_are_compiled_at_once() {
    let app = app_with_copy("at-once", "path = \"crate\"");
    let build = |app: &App| {
        let ran = app.run("build");
        assert!(ran.success, "{ran:?}");
        let component = fs::read(app.path("target/amphi/versions.async.wasm"));
        let compiled = ran.stderr.matches("Compiling at-once").count();
        (component.expect("it is there"), compiled)
    };
    let beside = || {
        let folder = guests::folder().join("target/amphi/other-mode/production");
        let mut files = fs::read_dir(folder).expect("it is there").flatten();
        let file = files.find(|file| file.file_name().to_string_lossy().starts_with("at_once-"));
        file.expect("it was kept").path()
    };
    let (component, compiled) = build(&app);
    assert_eq!(compiled, 1);
    assert!(fs::read(beside()).expect("it is there") == component);

    edit(&app, "\"version two\"");
    let (edited, compiled) = build(&app);
    assert_eq!(compiled, 1);
    assert!(edited != component && fs::read(beside()).expect("it is there") == edited);

    fs::remove_file(beside()).expect("it is there");
    let (alone, compiled) = build(&app);
    assert_eq!(compiled, 1, "the mode whose component is missing");
    let text = b"version two";
    assert!(alone.windows(text.len()).any(|bytes| bytes == text));
}

/// `amphi build` compiles a crate only when the crate's source has changed.
#[test]
fn only_what_has_changed_is_built() {
    let app = app_with_copy("unchanged", "path = \"crate\"");
    let compiles = |app: &App| {
        let ran = app.run("build");
        assert!(ran.success, "{ran:?}");
        ran.stderr.contains("Compiling")
    };
    assert!(compiles(&app));
    assert!(!compiles(&app), "nothing has changed");
    let toml = fs::read_to_string(app.path("amphi.toml")).expect("it is there");
    app.write("amphi.toml", format!("{toml}\n# a comment\n"));
    app.write("crate/migrations/V1__a.sql", "select 1");
    assert!(!compiles(&app), "neither is source");
    edit(&app, "\"2\"");
    assert!(compiles(&app));
}

#[test]
fn a_build_that_fails_leaves_the_components_before() {
    let app = app_with_copy("failing", "path = \"crate\"");
    assert!(app.run("build").success);
    let components = || {
        ["sync", "async"].map(|mode| {
            fs::read(app.path(&format!("target/amphi/versions.{mode}.wasm"))).expect("it is there")
        })
    };
    let before = components();
    let source = fs::read_to_string(app.path("crate/src/lib.rs")).expect("it is there");
    for (from, to, why) in [
        ("VERSION: &str", "VERSION: &String", "does not compile"),
        // A component that compiles, and that the host refuses.
        ("\"/async\"", "\"/sync\"", "already served"),
    ] {
        app.write("crate/src/lib.rs", source.replace(from, to));
        let ran = app.run("build");
        assert!(ran.error().contains(why), "{ran:?}");
        assert!(components() == before, "{why}");
    }
}
