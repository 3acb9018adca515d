//! The audit log: who has changed, or tried to change, what runs at a place. One JSON object per line, in `audit.log` in the
//! folder of the state.
//!
//! A change is not begun before its line is on the disk, so nothing changes without a line. The file is opened for each line:
//! whoever moves it away, as programs do that rotate logs, gets the next line in a new one.

use std::collections::BTreeMap;
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
/// So many refused requests of each token are written in a minute, and so many of all who have none. So nobody who may
/// not do something can fill the disk, or push the lines of others out.
const REFUSALS: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

/// The file.
pub(super) struct Audit {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    minute: Instant,
    /// The number of refused requests in this minute, by the name of the token.
    refusals: BTreeMap<Option<String>, u32>,
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

impl<'a> Entry<'a> {
    /// A line about what is done by somebody, whom [`Audit::of`] adds.
    pub(super) fn new(action: &'a str, outcome: &'a str) -> Entry<'a> {
        Entry {
            who: None,
            peer: "",
            action,
            digest: None,
            from: None,
            outcome,
            sentence: "",
        }
    }
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
        open(&path)?;
        let state = State {
            minute: Instant::now(),
            refusals: BTreeMap::new(),
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
        if entry.outcome == "refused" && !state.is_noted(entry.who) {
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
        let mut file = open(&self.path)?;
        let mut before = file.metadata()?.len();
        if before + line.len() as u64 > FILE_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            file = open(&self.path)?;
            before = 0;
        }
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if written.is_err() {
            // The next line does not begin within a part of this one.
            let _ = file.set_len(before);
        }
        written
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
    /// Whether a refused request of this token, or of nobody known, is written.
    fn is_noted(&mut self, who: Option<&str>) -> bool {
        if self.minute.elapsed() > MINUTE {
            self.minute = Instant::now();
            self.refusals.clear();
        }
        let number = self.refusals.entry(who.map(str::to_owned)).or_default();
        *number += 1;
        if *number == REFUSALS + 1 {
            tracing::warn!(target: "amphi::admin", who, "over {REFUSALS} refused requests in a minute: further ones are not written");
        }
        *number <= REFUSALS
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
            // Whoever has a token for less can neither.
            audit.write(&entry(Some("eye"))).expect("there is room");
        }
        audit.write(&entry(Some("ci"))).expect("there is room");
        let done = Entry {
            outcome: "done",
            ..entry(Some("eye"))
        };
        audit.write(&done).expect("there is room");
        let text = fs::read_to_string(folder.path().join("audit.log")).expect("it is there");
        assert_eq!(text.lines().count(), 2 * REFUSALS as usize + 2);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
            assert_eq!(value["sentence"], "no\n\"token\"");
        }
    }

    #[test]
    fn the_file_is_limited() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let audit = Audit::open(folder.path()).expect("it is made");
        let path = folder.path().join("audit.log");
        let file = File::create(&path).expect("it is made");
        file.set_len(FILE_BYTES - 10).expect("there is room");
        audit.write(&entry(Some("a"))).expect("there is room");
        audit.write(&entry(Some("b"))).expect("there is room");
        let text = fs::read_to_string(&path).expect("it is there");
        assert_eq!(text.lines().count(), 2);
        let old = fs::metadata(path.with_extension("log.1")).expect("it is there");
        assert_eq!(old.len(), FILE_BYTES - 10);
    }

    #[test]
    fn a_file_that_is_moved_away_is_made_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let audit = Audit::open(folder.path()).expect("it is made");
        let path = folder.path().join("audit.log");
        audit.write(&entry(Some("a"))).expect("there is room");
        fs::rename(&path, folder.path().join("audit.log.old")).expect("it is there");
        audit.write(&entry(Some("b"))).expect("there is room");
        let text = fs::read_to_string(&path).expect("it is there");
        assert!(text.contains("\"who\":\"b\"") && !text.contains("\"who\":\"a\""));
    }
}
