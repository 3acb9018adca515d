//! The audit log: who has changed, or tried to change, what runs at a place. One JSON object per line, in `audit.log` in the
//! folder of the state.
//!
//! A change is not begun before its line is on the disk, so nothing changes without a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::access::Who;
use crate::artifact::Digest;
use crate::deploy::seconds;
use crate::telemetry::error::cut;

/// A file of this size gives way to a new one, and is kept as `audit.log.1`.
const FILE_BYTES: u64 = 16 << 20;
/// The most bytes of a sentence.
const SENTENCE_BYTES: usize = 2 << 10;
/// So many requests by nobody known are written in a minute; the others are counted. Whoever has no token can so neither
/// fill the disk nor push the lines of others out.
const STRANGERS: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// The file.
pub(super) struct Audit {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    bytes: u64,
    minute: Instant,
    strangers: u32,
}

/// A line of the audit log.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    /// The name of the token; none: nobody known.
    pub(super) who: Option<&'a str>,
    pub(super) peer: &'a str,
    /// What was asked for: `deploy`, `promote`, `rollback`, `upload`, …
    pub(super) action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<&'a str>,
    /// `begun`, `done`, `failed`, or `refused`.
    pub(super) outcome: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) sentence: &'a str,
}

#[derive(Serialize)]
struct Line<'a> {
    time: u64,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl Audit {
    /// Opens the file in this folder.
    pub(super) fn open(folder: &Path) -> io::Result<Audit> {
        let path = folder.join("audit.log");
        let file = open(&path)?;
        let bytes = file.metadata()?.len();
        let state = State {
            file,
            bytes,
            minute: Instant::now(),
            strangers: 0,
        };
        Ok(Audit {
            path,
            state: Mutex::new(state),
        })
    }

    /// Writes a line, also to the log of the host. It is on the disk when this returns.
    pub(super) fn write(&self, entry: &Entry<'_>) -> io::Result<()> {
        let sentence = cut(entry.sentence.to_owned(), SENTENCE_BYTES);
        let entry = Entry {
            sentence: &sentence,
            from: entry.from,
            ..*entry
        };
        let mut state = self.state.lock();
        if entry.who.is_none() && !state.is_noted() {
            return Ok(());
        }
        let Entry {
            who,
            peer,
            action,
            outcome,
            digest,
            ..
        } = entry;
        let digest = digest.map(tracing::field::display);
        match outcome {
            "refused" | "failed" => {
                tracing::warn!(target: "amphi::admin", who, peer, action, digest, outcome, "{sentence}");
            }
            _ => {
                tracing::info!(target: "amphi::admin", who, peer, action, digest, outcome, "{sentence}");
            }
        }
        let line = Line {
            time: seconds(),
            entry: &entry,
        };
        let mut line = serde_json::to_vec(&line).expect("it is plain data");
        line.push(b'\n');
        if state.bytes + line.len() as u64 > FILE_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            state.file = open(&self.path)?;
            state.bytes = 0;
        }
        state.file.write_all(&line)?;
        state.bytes += line.len() as u64;
        state.file.sync_data()
    }

    /// A line about what `who` does.
    pub(super) fn of(&self, who: &Who, entry: Entry<'_>) -> io::Result<()> {
        self.write(&Entry {
            who: Some(&who.name),
            peer: &who.peer,
            ..entry
        })
    }
}

impl State {
    /// Whether a request by nobody known is written.
    fn is_noted(&mut self) -> bool {
        if self.minute.elapsed() > MINUTE {
            (self.minute, self.strangers) = (Instant::now(), 0);
        }
        self.strangers += 1;
        if self.strangers == STRANGERS + 1 {
            tracing::warn!(target: "amphi::admin", "over {STRANGERS} requests without a right token in a minute: further ones are not written");
        }
        self.strangers <= STRANGERS
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(who: Option<&str>) -> Entry<'_> {
        Entry {
            who,
            peer: "127.0.0.1",
            action: "deploy",
            digest: None,
            from: Some("a\nb"),
            outcome: "refused",
            sentence: "no\n\"token\"",
        }
    }

    #[test]
    fn strangers_cannot_fill_the_log() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let audit = Audit::open(folder.path()).expect("it is made");
        for _ in 0..1_000 {
            audit.write(&entry(None)).expect("there is room");
        }
        audit.write(&entry(Some("ci"))).expect("there is room");
        let text = fs::read_to_string(folder.path().join("audit.log")).expect("it is there");
        assert_eq!(text.lines().count(), STRANGERS as usize + 1);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
            assert_eq!(value["sentence"], "no\n\"token\"");
        }
    }

    #[test]
    fn the_file_is_limited() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let audit = Audit::open(folder.path()).expect("it is made");
        audit.state.lock().bytes = FILE_BYTES - 10;
        audit.write(&entry(Some("a"))).expect("there is room");
        audit.write(&entry(Some("b"))).expect("there is room");
        let again = Audit::open(folder.path()).expect("it is there");
        assert!(again.state.lock().bytes > 100);
        assert!(folder.path().join("audit.log.1").is_file());
    }
}
