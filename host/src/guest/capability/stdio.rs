//! The output of a guest: each line of standard output and of standard error, and each record of the capability `log`,
//! becomes a record of the host's log. A guest may write a line in parts, with a new handle for each: it is logged when it
//! ends, or when the call does.
//!
//! One limit (`log_max_bytes`) bounds the whole output of one call. The message of a panic on standard error is kept,
//! because it becomes part of the one line that the host logs about the trap.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tracing::Level;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::scope::Scope;
use crate::telemetry::error::cut;
use crate::telemetry::metrics::METRICS;
use crate::threads::workers;
use crate::view::View;

/// The most bytes of a panic's message that are kept.
const PANIC_BYTES: usize = 4 << 10;
/// The bytes that a record counts for in addition to its text, because the host adds the time, the view and the
/// request.
const RECORD_BYTES: usize = 100;
/// The most bytes that a guest can write to a stream in one call. A line that is longer than that is split.
const WRITE_BYTES: usize = 64 << 10;

/// The log of one instance. Clones share its state.
#[derive(Clone)]
pub struct Output(Arc<Mutex<State>>);

struct State {
    /// The call that the instance serves. None while the instance is kept for a later request.
    work: Option<(Arc<Scope>, Arc<View>)>,
    max_bytes: usize,
    left: usize,
    cut: bool,
    panic: Option<String>,
    /// The unfinished lines of standard output and of standard error.
    lines: [Vec<u8>; 2],
}

impl State {
    fn new(max_bytes: usize, scope: &Arc<Scope>, view: &Arc<View>) -> State {
        State {
            work: Some((Arc::clone(scope), Arc::clone(view))),
            max_bytes,
            left: max_bytes,
            cut: false,
            panic: None,
            lines: Default::default(),
        }
    }

    fn line(&mut self, level: Level) -> &mut Vec<u8> {
        &mut self.lines[usize::from(level == Level::WARN)]
    }

    /// Whether a line of standard error belongs to a panic's message. Such a line is kept instead of being logged.
    /// After the first line of a panic, all lines belong to the message, because a guest that panics does nothing else.
    fn panicking(&mut self, line: &str) -> bool {
        if self.panic.is_none()
            && let Some((_, place)) = line
                .split_once("' ")
                .filter(|_| line.starts_with("thread '"))
                .and_then(|(_, rest)| rest.split_once("panicked at "))
        {
            self.panic = Some(cut(format!("panicked at {place}"), PANIC_BYTES));
            return true;
        }
        let Some(panic) = &mut self.panic else {
            return false;
        };
        if !line.is_empty()
            && !line.starts_with("note: ")
            && panic.len() + line.len() <= PANIC_BYTES
        {
            panic.push(' ');
            panic.push_str(line);
        }
        true
    }
}

impl Output {
    /// The output of a first call: see [`Output::begin`].
    pub(in crate::guest) fn new(max_bytes: usize, scope: &Arc<Scope>, view: &Arc<View>) -> Output {
        Output(Arc::new(Mutex::new(State::new(max_bytes, scope, view))))
    }

    /// Starts a call: output from now on is logged with `view` and with the request of `scope`.
    pub(in crate::guest) fn begin(&self, scope: &Arc<Scope>, view: &Arc<View>) {
        let mut state = self.0.lock();
        *state = State::new(state.max_bytes, scope, view);
    }

    /// Ends the call and logs its unfinished lines. Returns whether the guest wrote more than the limit.
    pub(in crate::guest) fn finish(&self) -> bool {
        let mut state = self.0.lock();
        // Most calls leave nothing to log, and take the lock once.
        if state.panic.is_none() && state.lines.iter().all(Vec::is_empty) {
            state.work = None;
            return state.cut;
        }
        drop(state);
        self.flush(Level::INFO);
        self.flush(Level::WARN);
        let panic = self.0.lock().panic.take();
        if let Some(panic) = panic {
            // The guest has not trapped, so the text only looked like a panic. It is logged like other output.
            self.record(Level::WARN, &panic);
        }
        let mut state = self.0.lock();
        state.work = None;
        state.cut
    }

    /// The bytes that the call may still log.
    pub(super) fn left(&self) -> usize {
        self.0.lock().left
    }

    /// Writes one record.
    pub(super) fn record(&self, level: Level, text: &str) {
        let mut state = self.0.lock();
        let Some((scope, view)) = state.work.clone() else {
            return;
        };
        let request = &scope.origin.id;
        let size = text.len() + RECORD_BYTES;
        if scope.conversation().is_some_and(|it| it.renews_log()) {
            (state.left, state.cut) = (state.max_bytes, false);
        }
        if size > state.left {
            METRICS.log_cut.inc_by(size as u64);
            if !std::mem::replace(&mut state.cut, true) {
                let max_bytes = state.max_bytes;
                tracing::warn!(target: "amphi::guest", %view, request, "the view logs more than `log_max_bytes` ({max_bytes}): the rest of what it logs for this request is cut");
            }
            return;
        }
        state.left -= size;
        drop(state);
        // The number of the sync worker that the function runs on. None for an async function.
        let worker = Some(workers::number()).filter(|number| *number > 0);
        // What a version in shadow mode logs is not about what the client gets.
        let copy = scope.transaction.is_copy().then_some(true);
        match level {
            Level::TRACE => {
                tracing::trace!(target: "amphi::guest", %view, request, worker, copy, "{text}")
            }
            Level::DEBUG => {
                tracing::debug!(target: "amphi::guest", %view, request, worker, copy, "{text}")
            }
            Level::INFO => {
                tracing::info!(target: "amphi::guest", %view, request, worker, copy, "{text}")
            }
            Level::WARN => {
                tracing::warn!(target: "amphi::guest", %view, request, worker, copy, "{text}")
            }
            Level::ERROR => {
                tracing::error!(target: "amphi::guest", %view, request, worker, copy, "{text}")
            }
        }
    }

    /// The place and message of the guest's panic, if there was one.
    pub fn panic(&self) -> Option<String> {
        self.0.lock().panic.clone()
    }

    /// A stream whose lines become records of `level`.
    pub(super) fn stream(&self, level: Level) -> Lines {
        Lines(LineWriter {
            output: self.clone(),
            level,
        })
    }

    fn log(&self, level: Level, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if level == Level::WARN && self.0.lock().panicking(text) {
            return;
        }
        if !text.is_empty() {
            self.record(level, text);
        }
    }

    /// Logs an unfinished line.
    fn flush(&self, level: Level) {
        let rest = std::mem::take(self.0.lock().line(level));
        if !rest.is_empty() {
            self.log(level, &rest);
        }
    }
}

/// A stream of an instance, for as long as the instance exists. A guest opens many handles to it.
pub(super) struct Lines(LineWriter);

impl Drop for Lines {
    fn drop(&mut self) {
        self.0.output.flush(self.0.level);
    }
}

/// A handle to a stream: splits what is written into lines and logs them.
#[derive(Clone)]
struct LineWriter {
    output: Output,
    level: Level,
}

impl LineWriter {
    fn write(&self, bytes: &[u8]) {
        let (output, level) = (&self.output, self.level);
        let mut line = std::mem::take(output.0.lock().line(level));
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if part.ends_with(b"\n") || line.len() > WRITE_BYTES {
                output.log(level, &line);
                line.clear();
            }
        }
        *output.0.lock().line(level) = line;
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.0.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.0.clone())
    }
}

/// For WASI 0.3.
impl AsyncWrite for LineWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        LineWriter::write(&self, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OutputStream for LineWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        LineWriter::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LineWriter {
    async fn ready(&mut self) {}
}
