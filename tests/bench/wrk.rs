//! The load generator: `wrk`, with as many connections as the table says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// How many connections ask at once.
pub(crate) const CONNECTIONS: &str = "64";

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Send {
    /// GET.
    Get,
    /// POST, with a body of so many bytes.
    Post(usize),
}

/// Asks for `url` for some seconds; answers a second.
pub(crate) fn run(url: &str, send: Send, seconds: u32, folder: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t2", "-c", CONNECTIONS, "-d", &format!("{seconds}s")]);
    if let Send::Post(bytes) = send {
        command.arg("-s").arg(script(folder, bytes)?);
    }
    let output = command
        .arg(url)
        .output()
        .context("wrk could not be started: install it (Debian's package is `wrk`)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("{url}: not every request was answered:\n{text}");
    }
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok())
        .with_context(|| format!("{url}: wrk said\n{text}"))
}

fn script(folder: &Path, bytes: usize) -> anyhow::Result<PathBuf> {
    let file = folder.join(format!("post-{bytes}.lua"));
    let lua = format!("wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {bytes})\n");
    std::fs::write(&file, lua)?;
    Ok(file)
}

/// The version, for the table.
pub(crate) fn version() -> anyhow::Result<String> {
    let output = Command::new("wrk").arg("-v").output();
    let output =
        output.context("wrk could not be started: install it (Debian's package is `wrk`)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(1).unwrap_or("unknown");
    Ok(format!("wrk {version}"))
}
