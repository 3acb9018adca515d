//! Folders of the host that are granted to modules (`directories`).

use std::time::Duration;

use crate::harness::{App, Mode, Reply, Server};

const GRANTS: &str = r#"
    [modules.behaviour]
    blocking_wasi = true
    directories = [
        { host = "open", guest = "/open", write = true },
        { host = "closed", guest = "/closed" },
    ]
"#;

fn app(toml: &str) -> App {
    // The folders have to exist before the configuration is read.
    let app = App::new(toml);
    app.write("open/a.txt", "open");
    app.write("closed/a.txt", "closed");
    app.write("secret.txt", "secret");
    std::os::unix::fs::symlink("../secret.txt", app.path("open/way-out"))
        .expect("a link can be made");
    std::os::unix::fs::symlink("/etc/passwd", app.path("open/far-out"))
        .expect("a link can be made");
    app
}

async fn read(server: &Server, mode: Mode, path: &str) -> String {
    server
        .get(&format!("/{mode}/file?path={path}"))
        .await
        .ok()
        .to_owned()
}

async fn write(server: &Server, mode: Mode, path: &str) -> String {
    let request = server.request("PUT", &format!("/{mode}/file?path={path}"));
    Reply::of(request.body("written by a view"))
        .await
        .ok()
        .to_owned()
}

async fn granted_folders_are_all_there_is(mode: Mode) {
    let server = app(GRANTS).serve().await;
    assert_eq!(read(&server, mode, "/open/a.txt").await, "open");
    assert_eq!(read(&server, mode, "/closed/a.txt").await, "closed");
    for path in [
        "/etc/passwd",
        "/open/../secret.txt",
        "/open/way-out",
        "/open/far-out",
        "/closed/../open/a.txt",
        "secret.txt",
        "../secret.txt",
        "/open/../../../../../../etc/passwd",
    ] {
        let said = read(&server, mode, path).await;
        assert!(
            ["NotFound", "PermissionDenied", "Uncategorized"].contains(&&*said),
            "{path}: {said}"
        );
    }
    server.assert_baseline().await;
}
both_modes!(granted_folders_are_all_there_is);

async fn only_a_folder_granted_for_writing_can_be_changed(mode: Mode) {
    let server = app(GRANTS).serve().await;
    assert_eq!(write(&server, mode, "/open/new.txt").await, "written");
    assert_eq!(
        std::fs::read_to_string(server.app.path("open/new.txt")).expect("it is there"),
        "written by a view"
    );
    for path in [
        "/closed/new.txt",
        "/closed/a.txt",
        "/open/../new.txt",
        "/new.txt",
    ] {
        let said = write(&server, mode, path).await;
        assert!(said != "written", "{path}: {said}");
    }
    assert_ne!(write(&server, mode, "/open/way-out").await, "written");
    assert_eq!(
        std::fs::read_to_string(server.app.path("closed/a.txt")).expect("it is there"),
        "closed"
    );
    assert_eq!(
        std::fs::read_to_string(server.app.path("secret.txt")).expect("it is there"),
        "secret"
    );
    assert!(!server.app.path("new.txt").exists());
    server.assert_baseline().await;
}
both_modes!(only_a_folder_granted_for_writing_can_be_changed);

async fn without_a_grant_there_are_no_files(mode: Mode) {
    let server = App::new("modules.behaviour.blocking_wasi = true")
        .serve()
        .await;
    for path in ["/etc/passwd", "/", ".", "amphi.toml"] {
        let said = read(&server, mode, path).await;
        assert!(
            ["NotFound", "PermissionDenied", "Uncategorized"].contains(&&*said),
            "{path}: {said}"
        );
    }
}
both_modes!(without_a_grant_there_are_no_files);

/// Without `blocking_wasi`, files are refused in async views: a read may wait for the disk, and would hold up
/// everything that the view has in flight.
#[tokio::test]
async fn a_file_read_in_an_async_view_is_a_synchronous_only_operation() {
    let server = app(&GRANTS.replace("blocking_wasi = true", "blocking_wasi = false"))
        .serve()
        .await;
    let mark = server.log.mark();
    assert_eq!(server.get("/async/file?path=/open/a.txt").await.status, 500);
    assert_eq!(read(&server, Mode::Sync, "/open/a.txt").await, "open");
    let lines = server.log.requests(mark, 2).await;
    let why = lines[0].text("why");
    assert!(
        why.contains("SynchronousOnlyOperation") && why.contains("wasi:filesystem/types"),
        "{why}"
    );
    assert!(why.contains("blocking_wasi = true"), "{why}");
    server.assert_baseline().await;
}

/// A worker that waits for a file does not keep another worker from computing. The file is a pipe: opening a pipe waits
/// until somebody opens its other end.
#[tokio::test]
async fn r4_the_pool_grows_for_views_that_wait_for_files() {
    let toml = format!(
        "sync_views = {{ workers = 1, workers_max = 2, queue_timeout_ms = 2000 }}\n{GRANTS}"
    );
    let server = app(&toml).serve().await;
    let pipe = server.app.path("open/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("it can be started").success());
    let reading = server.request("GET", "/sync/file?path=/open/pipe");
    let reading = tokio::spawn(Reply::of(reading));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        assert_eq!(server.get("/sync/hello").await.ok(), "hello");
    }
    assert!(!reading.is_finished(), "it waits");
    let opened =
        tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe));
    drop(opened.await.expect("no panic").expect("it is there"));
    assert_eq!(reading.await.expect("no panic").status, 200);
    server.assert_baseline().await;
}
