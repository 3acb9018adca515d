//! What is told about a change while it is made.

use std::fmt;

use tokio::sync::mpsc;

use super::api::Line;

/// The lines about a change that wait for whoever has asked for it.
const LINES: usize = 256;

/// Takes the lines about a change. Whoever asked for it may have gone; the change goes on.
#[derive(Clone)]
pub(super) struct Progress(Option<mpsc::Sender<Line>>);

impl Progress {
    pub(super) fn new() -> (Progress, mpsc::Receiver<Line>) {
        let (sender, receiver) = mpsc::channel(LINES);
        (Progress(Some(sender)), receiver)
    }

    /// Nobody is told.
    pub(super) fn nobody() -> Progress {
        Progress(None)
    }

    pub(super) fn tell(&self, line: Line) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(line);
        }
    }

    pub(super) fn step(&self, text: impl Into<String>) {
        self.tell(Line::Step(text.into()));
    }
}

/// A change that was made, but not on all hosts, or of which that is not known. Its text is a sentence.
#[derive(Debug)]
pub(super) struct Partly(pub(super) String);

impl fmt::Display for Partly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Partly {}
