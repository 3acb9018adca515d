//! The log of a server: the lines of its standard error.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;

use serde_json::Value;

use super::eventually;

/// What a server has written to its standard error, which is a file: a line that was written before a response
/// was sent is there when the response is.
pub struct Log(File);

/// One line.
#[derive(Debug, Clone)]
pub struct Line(pub Value);

impl Log {
    /// An empty log, and what to write it through.
    pub fn new() -> (Log, Stdio) {
        let file = tempfile::tempfile().expect("there is room for a temporary file");
        let writer = file.try_clone().expect("a file can be shared");
        (Log(file), writer.into())
    }

    /// The end of the log so far: the lines [`Log::since`] it are those to come.
    pub fn mark(&self) -> u64 {
        self.0.metadata().expect("the file is open").len()
    }

    /// The lines since a mark.
    pub fn since(&self, mark: u64) -> Vec<Line> {
        let mut text = vec![0; usize::try_from(self.mark() - mark).expect("it fits")];
        self.0
            .read_exact_at(&mut text, mark)
            .expect("it can be read");
        // The last line may be about to be written.
        let end = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines = String::from_utf8_lossy(&text[..end]).into_owned();
        // What is not an event (a panic of the host's, say) stays a text.
        lines
            .lines()
            .map(|line| {
                Line(serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned())))
            })
            .collect()
    }

    /// Waits for the lines about finished requests since a mark, as many as that.
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

    /// Whatever is not an event: only a panic of the host's would be.
    pub fn strays(&self) -> Vec<Line> {
        self.since(0)
            .into_iter()
            .filter(|line| line.0.is_string())
            .collect()
    }
}

impl Line {
    /// A field; empty when there is none.
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
