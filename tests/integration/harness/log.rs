//! The log of a server: the lines of its standard error.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStderr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::eventually;

/// The lines so far, and those to come.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Line>>>);

/// One line.
#[derive(Debug, Clone)]
pub struct Line(pub Value);

impl Log {
    /// Reads until the server ends.
    pub fn follow(stderr: ChildStderr) -> Log {
        let log = Log::default();
        let lines = Arc::clone(&log.0);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // What is not an event (a panic of the host's, say) stays a text.
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                lines.lock().push(Line(value));
            }
        });
        log
    }

    /// How many lines there are: the lines [`Log::since`] it are those to come.
    pub fn mark(&self) -> usize {
        self.0.lock().len()
    }

    /// The lines since a mark.
    pub fn since(&self, mark: usize) -> Vec<Line> {
        self.0.lock()[mark..].to_vec()
    }

    /// Waits for the lines about finished requests since a mark, as many as that.
    pub async fn requests(&self, mark: usize, count: usize) -> Vec<Line> {
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
    pub fn requests_now(&self, mark: usize) -> Vec<Line> {
        self.since(mark)
            .into_iter()
            .filter(|line| line.text("target") == "amphi::request")
            .collect()
    }

    /// Waits for an event with this message since a mark.
    pub async fn event(&self, mark: usize, message: &str) -> Line {
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
