//! Views in Python: components of the same worlds, made by another toolchain.

use std::path::Path;

use crate::harness::{App, Mode, Server, guests, python};

/// A server with the views in this component.
async fn serve(component: &Path, instances: &str) -> Server {
    let migrations = guests::folder().join("migrations");
    let app = App::written(&format!(
        r#"
        [app]
        name = "python"
        [server]
        listen = ["127.0.0.1:0"]
        admin = "127.0.0.1:0"
        [databases.default]
        sqlite = "data/test.db"
        migrations = {migrations:?}
        [modules.views]
        path = {component:?}
        databases = ["default"]
        ungranted_imports = true
        instances = "{instances}"
        "#
    ));
    app.serve().await
}

/// Python's views are called, have transactions, and fail as those in Rust do. An exception ends the instance, also one
/// that would be kept.
async fn views_in_python_are_views(mode: Mode) {
    let component = match python::built(mode) {
        Ok(component) => component,
        Err(why) => return eprintln!("skipped: views_in_python_are_views, because {why}"),
    };
    for instances in ["fresh", "reuse"] {
        let server = serve(&component, instances).await;
        for _ in 0..3 {
            let expected = format!("Hello ann from {mode} Python, /hello/{{name}}\n");
            assert_eq!(server.get("/hello/ann").await.ok(), expected);
        }
        assert_eq!(server.post("/rows/kept", "").await.ok(), "1 rows\n");
        let mark = server.log.mark();
        assert_eq!(server.post("/rows/undone", "").await.status, 500);
        assert_eq!(
            server.log.requests(mark, 1).await[0].text("transaction"),
            "rolled back"
        );
        assert_eq!(server.post("/rows/kept", "").await.ok(), "2 rows\n");
        let lines: String = (0..1000).map(|line| format!("line {line}\n")).collect();
        assert_eq!(server.get("/lines/1000").await.ok(), lines);
        let mark = server.log.mark();
        assert_eq!(server.get("/fail").await.status, 500);
        server.log.requests(mark, 1).await;
        let lines = server.log.since(mark);
        let said = |text: &str| lines.iter().any(|line| line.text("message").contains(text));
        assert!(said("ValueError: this view fails on purpose"), "{lines:?}");
        assert_eq!(server.get("/hello/bob").await.status, 200);
        server.assert_baseline().await;
    }
}
both_modes!(views_in_python_are_views);
