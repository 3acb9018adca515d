//! The log of a server: the lines of its standard error.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;

use serde_json::Value;

use super::eventually;

/// What a server has written to its standard error, which is a file. So a line that was written before a response was
/// sent can be read when the response arrives.
pub struct Log(File);

/// One line.
#[derive(Debug, Clone)]
pub struct Line(pub Value);

impl Log {
    /// An empty log, and the file that a process can use as standard error.
    pub fn new() -> (Log, Stdio) {
        let file = tempfile::tempfile().expect("there is room for a temporary file");
        let writer = file.try_clone().expect("a file can be shared");
        (Log(file), writer.into())
    }

    /// The present end of the log, for [`Log::since`].
    pub fn mark(&self) -> u64 {
        self.0.metadata().expect("the file is open").len()
    }

    /// The lines since a mark.
    pub fn since(&self, mark: u64) -> Vec<Line> {
        let mut text = vec![0; usize::try_from(self.mark() - mark).expect("it fits")];
        self.0
            .read_exact_at(&mut text, mark)
            .expect("it can be read");
        // The last line may be incomplete.
        let end = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(&text[..end]).into_owned();
        // Lines that are no JSON, such as those of a panic in the host, are kept as text.
        lines
            .lines()
            .map(|line| {
                Line(serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned())))
            })
            .collect()
    }

    /// Waits until there are `count` lines about finished requests since a mark, and checks that there are no more.
    pub async fn requests(&self, mark: u64, count: usize) -> Vec<Line> {
        let lines = eventually("a line per request", async || {
            let lines = self.requests_now(mark);
            if lines.len() >= count {
                Ok(lines)
            } else {
                Err(self.since(mark))
            }
        })
        .await;
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// The lines about finished requests since a mark.
    pub fn requests_now(&self, mark: u64) -> Vec<Line> {
        self.since(mark)
            .into_iter()
            .filter(|line| line.text("target") == "amphi::request")
            .collect()
    }

    /// Waits for an event with this message since a mark.
    pub async fn event(&self, mark: u64, message: &str) -> Line {
        eventually(message, async || {
            let lines = self.since(mark);
            lines
                .iter()
                .find(|line| line.text("message").starts_with(message))
                .cloned()
                .ok_or(lines)
        })
        .await
    }

    /// The lines that are no JSON: none, unless the host has panicked.
    pub fn strays(&self) -> Vec<Line> {
        self.since(0)
            .into_iter()
            .filter(|line| line.0.is_string())
            .collect()
    }
}

impl Line {
    /// A field as text; empty if there is none.
    pub fn text(&self, field: &str) -> &str {
        self.0
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A field that is a number.
    pub fn number(&self, field: &str) -> i64 {
        self.0
            .get(field)
            .and_then(Value::as_i64)
            .unwrap_or_else(|| panic!("{field} should be a number: {self:?}"))
    }
}
