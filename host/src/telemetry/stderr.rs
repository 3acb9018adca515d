//! Standard error, where the log goes. Writing to it never fails and never waits for a reader.
//!
//! A terminal, a pipe or a socket has a reader, and a reader can stall. Lines for a reader are put in a queue, which a
//! separate thread writes: when the reader stalls, the queue fills and further lines are lost, but no event loop and no
//! worker waits. A regular file has no reader. A line for a file is written immediately by the thread that logs it, so
//! that the line of a request is in the file before its response is sent, even if the process is killed then.
//!
//! Lines that are lost (full queue, closed pipe, full disk) are counted in `amphi_log_lost_lines_total`.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::metrics::METRICS;
use super::recent;

/// The size of the queue in bytes, until the configuration sets another one.
pub const QUEUE_BYTES: usize = 1 << 20;
/// How long the process waits at its end until the reader has taken all lines.
pub const LAST_WAIT: Duration = Duration::from_secs(1);
/// How long lines are collected after others were written. At a high rate of lines, the thread that writes them is woken
/// once in this time, and not for each line: a wake-up costs more than a line.
const COLLECTED: Duration = Duration::from_millis(2);
/// The pause before the next try when standard error is non-blocking and its reader is not ready.
const RETRY: Duration = Duration::from_millis(5);

static QUEUE: Queue = Queue {
    state: Mutex::new(State {
        lines: Vec::new(),
        max_bytes: QUEUE_BYTES,
        is_writing: false,
    }),
    filled: Condvar::new(),
    written: Condvar::new(),
};

/// Whether lines are put in the queue, which a separate thread writes. Otherwise each thread writes its own lines.
static IS_QUEUED: LazyLock<bool> = LazyLock::new(|| {
    let thread = std::thread::Builder::new().name("amphi-log".to_owned());
    !is_file() && thread.spawn(|| QUEUE.run(Unlocked)).is_ok()
});

/// Whether standard error is a regular file.
fn is_file() -> bool {
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
}

/// Writes whole lines, or counts them as lost.
pub fn write(lines: &[u8]) {
    recent::add(lines);
    if *IS_QUEUED {
        QUEUE.push(lines);
    } else {
        write_lines(&mut Unlocked, lines);
    }
}

/// Writes a text, and ends its last line.
pub fn say(text: &str) {
    let line = match text.is_empty() || text.ends_with('\n') {
        true => text.to_owned(),
        false => format!("{text}\n"),
    };
    write(line.as_bytes());
}

/// Waits until all lines are written, but no longer than `longest`.
pub fn flush(longest: Duration) {
    if *IS_QUEUED {
        QUEUE.flush(longest);
    }
}

/// Sets how many bytes of lines may wait for the reader.
pub fn set_queue_bytes(max_bytes: usize) {
    QUEUE.state.lock().max_bytes = max_bytes;
}

fn lost(lines: &[u8]) {
    let count = lines.iter().filter(|byte| **byte == b'\n').count();
    METRICS.log_lost.inc_by(count.max(1) as u64);
}

/// Lines that wait for the thread that writes them.
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

struct State {
    lines: Vec<u8>,
    max_bytes: usize,
    /// Whether the thread has taken lines that are not all written yet.
    is_writing: bool,
}

impl Queue {
    fn push(&self, lines: &[u8]) {
        let mut state = self.state.lock();
        if state.lines.len() + lines.len() > state.max_bytes {
            drop(state);
            return lost(lines);
        }
        state.lines.extend_from_slice(lines);
        drop(state);
        self.filled.notify_one();
    }

    fn flush(&self, longest: Duration) {
        let end = Instant::now() + longest;
        let mut state = self.state.lock();
        while state.is_writing || !state.lines.is_empty() {
            if self.written.wait_until(&mut state, end).timed_out() {
                return;
            }
        }
    }

    /// Writes the lines in the queue, until the process ends.
    fn run(&self, mut stderr: impl io::Write) {
        let mut lines = Vec::new();
        let mut state = self.state.lock();
        loop {
            while state.lines.is_empty() {
                state.is_writing = false;
                self.written.notify_all();
                self.filled.wait(&mut state);
            }
            state.is_writing = true;
            std::mem::swap(&mut state.lines, &mut lines);
            drop(state);
            write_lines(&mut stderr, &lines);
            lines.clear();
            std::thread::sleep(COLLECTED);
            state = self.state.lock();
        }
    }
}

/// Writes lines. Those that cannot be written are counted as lost.
fn write_lines(stderr: &mut impl io::Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match stderr.write(lines) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return lost(lines),
            Ok(count) => lines = &lines[count..],
        }
    }
}

/// Standard error without the lock of the standard library: a thread that writes to a slow disk, or to a reader that
/// stalls, would hold the lock, and event loops would wait for it. The kernel keeps lines for a file apart that threads
/// write at the same time. Another process may have made standard error non-blocking, so writes are retried.
struct Unlocked;

impl io::Write for Unlocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(io::stderr(), bytes) {
                Err(rustix::io::Errno::AGAIN) => std::thread::sleep(RETRY),
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A reader that takes one batch of lines for each message in `told`.
    struct Reader {
        told: mpsc::Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl io::Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.told.recv().map_err(io::Error::other)?;
            self.taken.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time() {
        let queue: &'static Queue = Box::leak(Box::new(Queue {
            state: Mutex::new(State {
                lines: Vec::new(),
                max_bytes: 12,
                is_writing: false,
            }),
            filled: Condvar::new(),
            written: Condvar::new(),
        }));
        let taken: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (tell, told) = mpsc::channel();
        let reader = Reader {
            told,
            taken: Arc::clone(&taken),
        };
        let writing = std::thread::spawn(move || queue.run(reader));
        queue.push(b"one\n");
        while !queue.state.lock().is_writing {
            std::thread::yield_now();
        }
        let before = METRICS.log_lost.get();
        for line in ["two\n", "three\n", "four\n", "5\n"] {
            queue.push(line.as_bytes());
        }
        assert!(METRICS.log_lost.get() > before, "`four` has no room");
        let since = Instant::now();
        queue.flush(Duration::from_millis(20));
        assert!(since.elapsed() >= Duration::from_millis(20));
        tell.send(()).expect("it reads");
        tell.send(()).expect("it reads");
        queue.flush(Duration::from_secs(10));
        let text = String::from_utf8(taken.lock().clone()).expect("it is a text");
        assert_eq!(text, "one\ntwo\nthree\n5\n");
        // The reader is gone: the lines in the queue are lost, and the thread goes on.
        drop(tell);
        queue.push(b"late\n");
        queue.flush(Duration::from_secs(10));
        assert!(!writing.is_finished());
    }

    #[test]
    fn what_cannot_be_written_is_counted_line_by_line() {
        struct Broken(usize);
        impl io::Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let count = std::mem::take(&mut self.0).min(bytes.len());
                if count == 0 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let before = METRICS.log_lost.get();
        write_lines(&mut Broken(6), b"one\ntwo\nthree\n");
        assert!(METRICS.log_lost.get() - before >= 2);
    }
}
