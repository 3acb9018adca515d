//! Runs the load generator `wrk` against one server, and measures how many requests the server answers and how much CPU
//! time it uses.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::{cpu, sockets};

/// Number of connections that send requests at the same time.
pub(crate) const CONNECTIONS: &str = "64";

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Send {
    /// GET.
    Get,
    /// POST, with a body of this many bytes.
    Post(usize),
    /// GET, with the cookies of a visitor of the guestbook.
    Visit,
    /// A small message on each of 64 web sockets, again and again; not by wrk.
    Echo,
}

/// The requests that one measurement sends.
pub(crate) struct Requests<'a> {
    pub(crate) url: String,
    pub(crate) send: Send,
    /// The value of the header `cookie`, if there is one.
    pub(crate) cookie: Option<&'a str>,
    /// The id of the process that answers. Its child processes count as part of the server.
    pub(crate) server: u32,
    /// A folder for wrk's scripts.
    pub(crate) folder: &'a Path,
}

/// What a server did under load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Requests per second.
    pub(crate) rate: f64,
    /// CPU time of the server for each request, in µs.
    pub(crate) cpu_us: f64,
}

impl Requests<'_> {
    /// Sends requests for one second, so that caches and pools are filled, and then for `seconds`, which are measured.
    pub(crate) fn measure(&self, seconds: u32) -> anyhow::Result<Load> {
        if self.send == Send::Echo {
            return sockets::echo(&self.url, self.server, seconds);
        }
        self.send(1)?;
        let before = cpu::used_by(self.server)?;
        let (requests, rate) = self.send(seconds)?;
        let used = cpu::used_by(self.server)?.saturating_sub(before);
        ensure!(requests > 0, "{}: no request was answered", self.url);
        Ok(Load {
            rate,
            cpu_us: used.as_secs_f64() * 1e6 / requests as f64,
        })
    }

    /// Runs wrk for `seconds`. Returns the number of answers, and answers per second.
    fn send(&self, seconds: u32) -> anyhow::Result<(u64, f64)> {
        let mut command = Command::new("wrk");
        command.args(["-t2", "-c", CONNECTIONS, "-d", &format!("{seconds}s")]);
        if let Some(cookie) = self.cookie {
            command.args(["-H", &format!("Cookie: {cookie}")]);
        }
        if let Send::Post(bytes) = self.send {
            command.arg("-s").arg(self.script(bytes)?);
        }
        let output = command.arg(&self.url).output().context(MISSING)?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse(&text).with_context(|| format!("{}: wrk printed\n{text}", self.url))
    }

    fn script(&self, bytes: usize) -> anyhow::Result<PathBuf> {
        let file = self.folder.join(format!("post-{bytes}.lua"));
        let lua = format!("wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {bytes})\n");
        std::fs::write(&file, lua)?;
        Ok(file)
    }
}

const MISSING: &str = "wrk could not be started: install it (Debian's package is `wrk`)";

/// Number of answers, and answers per second, from what wrk prints.
fn parse(text: &str) -> anyhow::Result<(u64, f64)> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("not every request was answered with success");
    }
    let requests = text
        .lines()
        .find_map(|line| line.split_once(" requests in ")?.0.trim().parse().ok());
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    requests.zip(rate).context("the counts are missing")
}

/// The name and version of wrk, for the text above the table. An error if wrk is not installed.
pub(crate) fn version() -> anyhow::Result<String> {
    let output = Command::new("wrk").arg("-v").output().context(MISSING)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(1).unwrap_or("unknown");
    Ok(format!("wrk {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "Running 2s test @ http://127.0.0.1:3000/sync
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.13ms  480.20us  12.41ms   88.71%
    Req/Sec    28.61k     1.02k   30.21k    75.00%
  119604 requests in 2.10s, 15.63MB read
Requests/sec:  56954.31
Transfer/sec:      7.44MB
";

    #[test]
    fn counts_are_read() {
        assert_eq!(
            parse(PRINTED).expect("they are there"),
            (119_604, 56_954.31)
        );
    }

    #[test]
    fn failed_requests_are_an_error() {
        for failures in [
            "  Non-2xx or 3xx responses: 3\n",
            "  Socket errors: connect 0, read 2, write 0, timeout 0\n",
        ] {
            assert!(parse(&format!("{PRINTED}{failures}")).is_err());
        }
        assert!(parse("unable to connect to 127.0.0.1:3000\n").is_err());
    }
}
