//! Request bodies. A body is received completely before a view starts, so that a slow client never holds a worker, an
//! instance or a transaction, unless the view asks for the body as it arrives ([`Arriving`]). A small body is handed to
//! the guest with the request, a larger one, or one with trailers, is kept in memory, the largest in a temporary file
//! that is deleted with the request. Memory is drawn from the request's account as bytes
//! arrive; the announced length is not trusted. When memory is tight, or the request's share is used up, a body goes to
//! a file earlier.

mod read_ahead;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Body;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;

use crate::budget::{Account, Room};
use crate::contract::types;
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::view::Mode;
use read_ahead::ReadAhead;

/// How request bodies are received (`body_*` of `[server]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyLimits {
    /// The largest body, in bytes.
    pub max_bytes: u64,
    /// The largest body that is kept in memory, in bytes. A larger one goes to a temporary file.
    pub memory_bytes: u64,
    /// The largest body that is handed to the guest with the request, in bytes. The guest reads a larger one piece by
    /// piece.
    pub inline_bytes: u64,
    /// How long a body may take to arrive, in milliseconds.
    pub timeout_ms: u64,
}

/// A received body.
#[derive(Clone)]
pub enum Received {
    /// Handed to the guest with the request.
    Inline(Vec<u8>),
    /// Kept by the host. The guest reads it piece by piece.
    Kept(RequestBody),
}

/// A body that the guest reads piece by piece.
#[derive(Clone)]
pub enum RequestBody {
    /// It has been received.
    Spooled(Arc<Spooled>),
    /// It arrives while the guest runs.
    Arriving(Arc<Arriving>),
}

impl RequestBody {
    /// The body in the form of the contract.
    pub fn contract(&self) -> types::Body {
        match self {
            RequestBody::Spooled(body) => types::Body::Spooled(body.length()),
            RequestBody::Arriving(body) => types::Body::Arriving(body.announced),
        }
    }

    /// The trailers, if there are any. Those of a body that arrives are there when it has been read to its end.
    pub async fn trailers(&self) -> Option<HeaderMap> {
        match self {
            RequestBody::Spooled(body) => body.trailers.clone(),
            RequestBody::Arriving(body) => body.state.lock().await.trailers.clone(),
        }
    }
}

/// A body that arrives while the guest reads it, from the start to the end. Nothing of it is kept but a piece that has
/// not been read to its end and, for a sync guest, what its loop has received ahead.
pub struct Arriving {
    /// The length that the client has announced.
    announced: Option<u64>,
    max_bytes: u64,
    timeout: Duration,
    /// The runtime of the loop that receives the body.
    runtime: Handle,
    account: Arc<Account>,
    state: tokio::sync::Mutex<Arrived>,
}

struct Arrived {
    body: UnsyncBoxBody<Bytes, io::Error>,
    /// Whether `body` is a [`ReadAhead`].
    is_ahead: bool,
    piece: Bytes,
    /// How much has been read.
    read: u64,
    /// How much has arrived.
    length: u64,
    trailers: Option<HeaderMap>,
}

impl Arriving {
    /// The body of a request whose head has arrived, on the loop of its connection.
    ///
    /// # Errors
    /// 413 when its announced length is too large.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new<B>(
        body: B,
        limits: &BodyLimits,
        account: &Arc<Account>,
    ) -> Result<Arc<Arriving>, Failure>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let hint = body.size_hint();
        if hint.lower() > limits.max_bytes {
            return Err(too_large(limits.max_bytes));
        }
        let broken = |error: B::Error| io::Error::other(format!("the body broke off: {error}"));
        Ok(Arc::new(Arriving {
            announced: hint.exact(),
            max_bytes: limits.max_bytes,
            timeout: Duration::from_millis(limits.timeout_ms),
            runtime: Handle::current(),
            account: Arc::clone(account),
            state: tokio::sync::Mutex::new(Arrived {
                body: body.map_err(broken).boxed_unsync(),
                is_ahead: false,
                piece: Bytes::new(),
                read: 0,
                length: 0,
                trailers: None,
            }),
        }))
    }

    /// Reads at most `max` bytes: what there is, or, when there is nothing, what arrives next. No bytes: the end.
    /// `offset` is where the last read ended; None: there. `reader`: the mode of the guest.
    ///
    /// # Errors
    /// When `offset` is elsewhere, the body is too large or breaks off, or nothing arrives within `body_timeout_ms`.
    pub async fn read(&self, reader: Mode, offset: Option<u64>, max: u32) -> io::Result<Bytes> {
        let mut state = self.state.lock().await;
        if offset.is_some_and(|offset| offset != state.read) {
            let sentence = "a body that arrives is read once, from its start to its end";
            return Err(io::Error::other(sentence));
        }
        if reader == Mode::Sync && !state.is_ahead {
            self.read_ahead(&mut state);
        }
        while state.piece.is_empty() {
            let frame = tokio::time::timeout(self.timeout, state.body.frame()).await;
            let frame = frame.map_err(|_| {
                let ms = self.timeout.as_millis();
                io::Error::other(format!(
                    "nothing of the body arrived for {ms} ms (`body_timeout_ms`)"
                ))
            })?;
            let Some(frame) = frame else {
                return Ok(Bytes::new());
            };
            let data = match frame?.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    state.trailers = frame.into_trailers().ok();
                    continue;
                }
            };
            state.length += data.len() as u64;
            if state.length > self.max_bytes {
                let max = self.max_bytes;
                return Err(io::Error::other(format!(
                    "the body has more than {max} bytes (`body_max_bytes`)"
                )));
            }
            state.piece = data;
        }
        let most = state.piece.len().min(max as usize);
        state.read += most as u64;
        Ok(state.piece.split_to(most))
    }

    /// Has the rest of the body received by a task of its loop from now on. Without memory for that, everything stays
    /// as it is. Not before the first read: a client may wait until its body is wanted (`expect: 100-continue`).
    fn read_ahead(&self, state: &mut Arrived) {
        if let Ok(room) = self.account.draw(read_ahead::BYTES) {
            let nothing = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let body = std::mem::replace(&mut state.body, nothing);
            state.body = ReadAhead::new(body, &self.runtime, room).boxed_unsync();
        }
        state.is_ahead = true;
    }
}

/// A body that the host keeps, in memory or in a temporary file.
pub struct Spooled {
    length: u64,
    trailers: Option<HeaderMap>,
    storage: Storage,
}

enum Storage {
    Memory(
        Bytes,
        #[expect(dead_code, reason = "counts the memory while it exists")] Room,
    ),
    File(
        File,
        #[expect(dead_code, reason = "counts the file while it exists")] GaugeGuard,
    ),
}

impl Spooled {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads at most `max` bytes, beginning at `offset`. Blocks on the disk if the body is in a file.
    ///
    /// # Errors
    /// When the temporary file cannot be read.
    pub fn read(&self, offset: u64, max: u32) -> io::Result<Vec<u8>> {
        if let Some(piece) = self.read_memory(offset, max) {
            return Ok(piece);
        }
        let Storage::File(file, _) = &self.storage else {
            unreachable!("it is not in memory")
        };
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(max as usize)];
        file.read_exact_at(&mut piece, offset)?;
        Ok(piece)
    }

    /// Like [`Spooled::read`] for a body in memory, without blocking. None: the body is in a file.
    pub fn read_memory(&self, offset: u64, max: u32) -> Option<Vec<u8>> {
        let Storage::Memory(bytes, _) = &self.storage else {
            return None;
        };
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = start.saturating_add(max as usize).min(bytes.len());
        Some(bytes[start..end].to_vec())
    }
}

/// Receives a body.
///
/// # Errors
/// 413 when the body is too large, 408 when it takes too long to arrive, 400 when the client breaks off, 503 when there
/// is no memory even for the buffer of a file. A temporary file that cannot be written is the host's fault.
pub async fn receive<B>(
    body: B,
    limits: &BodyLimits,
    account: &Arc<Account>,
) -> Result<Received, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let announced = body.size_hint().lower();
    if announced > limits.max_bytes {
        return Err(too_large(limits.max_bytes));
    }
    if body.is_end_stream() {
        return Ok(Received::Inline(Vec::new()));
    }
    let time = Duration::from_millis(limits.timeout_ms);
    // Boxed, as most requests have no body.
    let collected = Box::pin(collect(body, limits, account));
    match tokio::time::timeout(time, collected).await {
        Ok(received) => received,
        Err(_) => Err(Failure::client(
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "The request body did not arrive within {} ms.",
                limits.timeout_ms
            ),
        )),
    }
}

async fn collect<B>(
    body: B,
    limits: &BodyLimits,
    account: &Arc<Account>,
) -> Result<Received, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let mut memory = Memory::new(account);
    let mut file: Option<tokio::fs::File> = None;
    let mut length = 0;
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::client(
                StatusCode::BAD_REQUEST,
                format!("The request body broke off: {error}."),
            )
        })?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        length += data.len() as u64;
        if length > limits.max_bytes {
            return Err(too_large(limits.max_bytes));
        }
        match &mut file {
            None if length <= limits.memory_bytes && memory.add(&data, limits) => {}
            None => {
                account.charge(FILE_BUFFER_BYTES as u64)?;
                let mut new = tokio::task::spawn_blocking(tempfile::tempfile)
                    .await
                    .expect("opening a file does not panic")
                    .map_err(disk)
                    .map(tokio::fs::File::from_std)?;
                new.set_max_buf_size(FILE_BUFFER_BYTES);
                let before = std::mem::replace(&mut memory, Memory::new(account));
                new.write_all(&before.bytes).await.map_err(disk)?;
                drop(before);
                new.write_all(&data).await.map_err(disk)?;
                file = Some(new);
            }
            Some(file) => file.write_all(&data).await.map_err(disk)?,
        }
    }
    match file {
        None if length <= limits.inline_bytes && trailers.is_none() => {
            // Counted until the request ends: the guest may hold copies of the body until then.
            account.charge(length)?;
            Ok(Received::Inline(memory.bytes.into()))
        }
        None => Ok(kept(Spooled {
            length,
            trailers,
            storage: Storage::Memory(memory.bytes.freeze(), memory.room),
        })),
        Some(mut file) => {
            file.flush().await.map_err(disk)?;
            let storage =
                Storage::File(file.into_std().await, GaugeGuard::new(&METRICS.body_files));
            Ok(kept(Spooled {
                length,
                trailers,
                storage,
            }))
        }
    }
}

fn kept(body: Spooled) -> Received {
    Received::Kept(RequestBody::Spooled(Arc::new(body)))
}

/// The part of a body that has arrived, as long as the body is in memory.
struct Memory {
    bytes: BytesMut,
    room: Room,
}

impl Memory {
    fn new(account: &Arc<Account>) -> Memory {
        Memory {
            bytes: BytesMut::new(),
            room: Room::empty(account),
        }
    }

    /// Appends `data`. False, if memory is tight or the request's share is used up: the body then goes to a file.
    fn add(&mut self, data: &[u8], limits: &BodyLimits) -> bool {
        let length = self.bytes.len() + data.len();
        if length > self.bytes.capacity() {
            let most = usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX);
            let capacity = length.max(self.bytes.capacity().saturating_mul(2).min(most));
            let small = length as u64 <= SMALL_BYTES;
            if (!small && self.room.account().is_tight())
                || self.room.grow_to(capacity as u64).is_err()
            {
                return false;
            }
            self.bytes.reserve(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        true
    }
}

/// A body of up to this size stays in memory even when memory is tight, because a file needs a buffer of the same size.
const SMALL_BYTES: u64 = FILE_BUFFER_BYTES as u64;
/// The size of the buffer in front of a temporary file.
const FILE_BUFFER_BYTES: usize = 64 << 10;

fn too_large(max: u64) -> Failure {
    Failure::client(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("The request body has more than {max} bytes."),
    )
}

fn disk(error: io::Error) -> Failure {
    let what = "the request body could not be written to a temporary file";
    Failure::disk(what, &error)
}

#[cfg(test)]
mod tests;
