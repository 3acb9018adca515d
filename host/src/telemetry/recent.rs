//! The last lines of the log, for whoever follows it from elsewhere (`amphi logs`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most bytes of lines that are kept.
const MAX_BYTES: usize = 1 << 20;
/// The most bytes that a reader gets at once.
const PIECE_BYTES: usize = 64 << 10;

static RECENT: Recent = Recent {
    lines: Mutex::new(Lines {
        kept: VecDeque::new(),
        bytes: 0,
        first: 0,
    }),
    added: Notify::const_new(),
    is_kept: AtomicBool::new(false),
};

struct Recent {
    lines: Mutex<Lines>,
    added: Notify,
    is_kept: AtomicBool,
}

struct Lines {
    kept: VecDeque<Bytes>,
    bytes: usize,
    /// The number of the first line that is kept.
    first: u64,
}

/// Keeps lines from now on.
pub fn keep() {
    RECENT.is_kept.store(true, Relaxed);
}

/// Adds what was written to the log: one or more whole lines.
pub(super) fn add(lines: &[u8]) {
    if !RECENT.is_kept.load(Relaxed) || lines.len() > MAX_BYTES {
        return;
    }
    {
        let mut kept = RECENT.lines.lock();
        kept.bytes += lines.len();
        kept.kept.push_back(Bytes::copy_from_slice(lines));
        while kept.bytes > MAX_BYTES
            && let Some(old) = kept.kept.pop_front()
        {
            kept.bytes -= old.len();
            kept.first += 1;
        }
    }
    RECENT.added.notify_waiters();
}

/// Reads the lines that are kept, and then those that are added.
#[derive(Debug, Default)]
pub struct Reader {
    next: u64,
}

impl Reader {
    /// The next lines that are there; empty when there are none yet. A reader that was too slow gets a line that says how
    /// much it has missed.
    pub fn read(&mut self) -> Bytes {
        let lines = RECENT.lines.lock();
        let mut piece = Vec::new();
        if self.next < lines.first {
            if self.next > 0 {
                let missed = lines.first - self.next;
                piece.extend(
                    format!(
                        "… {missed} lines are left out: they came faster than they were read\n"
                    )
                    .bytes(),
                );
            }
            self.next = lines.first;
        }
        let from = usize::try_from(self.next - lines.first).unwrap_or(usize::MAX);
        for line in lines.kept.iter().skip(from) {
            if !piece.is_empty() && piece.len() + line.len() > PIECE_BYTES {
                break;
            }
            piece.extend_from_slice(line);
            self.next += 1;
        }
        piece.into()
    }

    /// Waits for the next lines.
    pub async fn wait(&mut self) -> Bytes {
        loop {
            let added = RECENT.added.notified();
            let piece = self.read();
            if !piece.is_empty() {
                return piece;
            }
            added.await;
        }
    }
}
