//! Web sockets, spoken to by clients that share no code with the host or with this test: the Python packages `websockets`
//! and `wsproto`.

use std::path::Path;
use std::process::Command;

use crate::harness::socket::app;
use crate::harness::{Mode, python};

/// The packages and their versions.
const CLIENTS: [&str; 2] = ["websockets==16.0", "wsproto==1.2.0"];
/// The number of checks in `conformance/client.py`.
const CHECKS: usize = 15;
const MESSAGE_MAX_BYTES: usize = 200_000;
const PING_MS: usize = 500;

/// Messages of all lengths, fragments, control frames, closes from both sides, what breaks the protocol, compression and
/// subprotocols; and clients that are silent or do not read, which end with the code 1006.
async fn independent_clients_agree_on_the_protocol(mode: Mode) {
    let python = match python::with(&CLIENTS) {
        Ok(python) => python,
        Err(why) => {
            return eprintln!("skipped: independent_clients_agree_on_the_protocol, because {why}");
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/conformance/client.py");
    for compression in [true, false] {
        let limits = format!(
            r#"
            [sockets]
            message_max_bytes = {MESSAGE_MAX_BYTES}
            outbox_max_bytes = 16000000
            ping_ms = {PING_MS}
            compression = {compression}
            [channels]
            payload_max_bytes = 300000
            [limits]
            events_max = 2000
            "#
        );
        let server = app(&limits).serve().await;
        let mut client = Command::new(&python);
        client.arg(&script).args([
            server.address.to_string(),
            mode.to_string(),
            MESSAGE_MAX_BYTES.to_string(),
            PING_MS.to_string(),
            compression.to_string(),
        ]);
        // On a thread of its own, because it blocks.
        let ran = tokio::task::spawn_blocking(move || client.output());
        let ran = ran.await.expect("it does not panic");
        let ran = ran.expect("Python can be started");
        let passed = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success() && passed.lines().count() == CHECKS,
            "after these checks:\n{passed}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        server.assert_baseline().await;
        let tags = server.tags();
        let count = |tag: &str| tags.iter().filter(|found| *found == tag).count();
        for name in ["no-pong", "no-read"] {
            assert_eq!(count(&format!("closed {name} 1006")), 1, "{name}: {tags:?}");
        }
        for code in [1000, 1001, 3000, 4999] {
            assert_eq!(count(&format!("closed by-client {code}")), 1, "{tags:?}");
        }
        assert_eq!(count("closed no-code 1005"), 1, "{tags:?}");
        let begun = tags.iter().filter(|tag| tag.starts_with("opened ")).count();
        let ended = tags.iter().filter(|tag| tag.starts_with("closed ")).count();
        assert_eq!(begun, ended);
        let metrics = server.metrics().await;
        assert_eq!(metrics.get("amphi_sockets_closed_total"), begun as f64);
        let gone = "amphi_sockets_closed_total{code=\"1006\"}";
        assert!(metrics.labelled(gone) >= 2.0, "{metrics:?}");
    }
}
both_modes!(independent_clients_agree_on_the_protocol);
