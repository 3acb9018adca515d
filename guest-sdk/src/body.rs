//! Request bodies. A small body arrives with the request. The host keeps a large one, and the view reads it in pieces.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Result};
use ::http::StatusCode;
use futures_util::stream::{Stream, try_unfold};
use std::marker::PhantomData;

/// How many bytes one read asks the host for. The host allows up to 1 MiB.
const CHUNK: u32 = 256 * 1024;

/// Where the body of a request is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// In the guest's memory.
    Bytes(Vec<u8>),
    /// With the host.
    Host(Source),
    /// With the host, and its first bytes have been read into memory. There are more.
    Begun(Vec<u8>, Source),
}

/// How the host has a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Source {
    /// It has all of it: the number is the length in bytes. It can be read more than once.
    Spooled(u64),
    /// It gets it from the client while the view runs. The number is the length that the client has announced. It can be
    /// read once, from the start to the end.
    Arriving(Option<u64>),
}

impl Source {
    fn length(self) -> Option<u64> {
        match self {
            Source::Spooled(length) => Some(length),
            Source::Arriving(announced) => announced,
        }
    }
}

/// The body of a request, not read yet: an extractor for views that do not want the whole body in memory.
///
/// The host receives the whole body before the view starts, unless the view has the option `body = "stream"`. Then the view
/// starts at once, and the next piece of the body is there when the client has sent it.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/uploads")]
/// fn upload(cx: &Context, body: BodyReader) -> Result<String> {
///     let mut zeros = 0;
///     for chunk in cx.chunks(body) {
///         zeros += chunk?.iter().filter(|byte| **byte == 0).count();
///     }
///     Ok(format!("{zeros} zeros"))
/// }
///
/// #[view(post, "/uploads/slowly")]
/// async fn upload_slowly(cx: &Context, body: BodyReader) -> Result<String> {
///     let mut zeros = 0;
///     let mut chunks = cx.chunks(body);
///     while let Some(chunk) = chunks.next().await? {
///         zeros += chunk.iter().filter(|byte| **byte == 0).count();
///     }
///     Ok(format!("{zeros} zeros"))
/// }
/// ```
#[derive(Debug)]
pub struct BodyReader(Content);

impl BodyReader {
    pub(crate) fn new(content: Content) -> Self {
        Self(content)
    }

    /// The length of the body in bytes, or 0 when it is not known: see [`length`](Self::length).
    pub fn len(&self) -> u64 {
        self.length().unwrap_or_default()
    }

    /// The length of the body in bytes. In a view with `body = "stream"`, this is the length that the client has
    /// announced, if it has.
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Content::Bytes(bytes) => Some(bytes.len() as u64),
            Content::Host(source) | Content::Begun(_, source) => source.length(),
        }
    }

    /// Whether the body is known to be empty.
    pub fn is_empty(&self) -> bool {
        self.length() == Some(0)
    }
}

/// The pieces of a body. In a sync view, this is an iterator. In an async view, call `next().await?`, or turn it into a
/// stream with [`into_stream`](Chunks::into_stream).
#[derive(Debug)]
pub struct Chunks<'a, M: Mode> {
    host: &'a Host,
    rest: Rest,
    mode: PhantomData<M>,
}

/// The part of the body that [`Chunks`] has not returned yet.
#[derive(Debug)]
enum Rest {
    Bytes(Vec<u8>),
    Begun(Vec<u8>),
    Host { offset: u64 },
    Nothing,
}

impl<'a, M: Mode> Chunks<'a, M> {
    pub(crate) fn new(host: &'a Host, body: BodyReader) -> Self {
        let rest = match body.0 {
            Content::Bytes(bytes) => Rest::Bytes(bytes),
            Content::Host(_) => Rest::Host { offset: 0 },
            Content::Begun(beginning, _) => Rest::Begun(beginning),
        };
        Self {
            host,
            rest,
            mode: PhantomData,
        }
    }

    /// Returns `Ok` with the offset to read at when the host has the next piece. Otherwise, returns `Err` with the next
    /// piece, which is in memory already, or `Err(None)` at the end of the body.
    fn ask(&mut self) -> Result<u64, Option<Vec<u8>>> {
        match std::mem::replace(&mut self.rest, Rest::Nothing) {
            Rest::Host { offset } => Ok(offset),
            Rest::Bytes(bytes) if !bytes.is_empty() => Err(Some(bytes)),
            Rest::Begun(bytes) => {
                let offset = bytes.len() as u64;
                self.rest = Rest::Host { offset };
                Err(Some(bytes))
            }
            Rest::Bytes(_) | Rest::Nothing => Err(None),
        }
    }

    fn take(&mut self, offset: u64, chunk: Vec<u8>) -> Option<Vec<u8>> {
        if chunk.is_empty() {
            return None;
        }
        self.rest = Rest::Host {
            offset: offset + chunk.len() as u64,
        };
        Some(chunk)
    }
}

impl Iterator for Chunks<'_, Sync> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.ask() {
            Err(known) => known.map(Ok),
            Ok(offset) => match host::sync::read_body(self.host, offset, CHUNK) {
                Ok(chunk) => self.take(offset, chunk).map(Ok),
                Err(error) => Some(Err(Error::from_body(error))),
            },
        }
    }
}

impl Chunks<'_, Sync> {
    /// The next piece, `None` at the end. Functions under [`both`](macro@crate::both) call `try_next`, since this
    /// method exists in both modes.
    pub fn try_next(&mut self) -> Result<Option<Vec<u8>>> {
        self.next().transpose()
    }
}

impl<'a> Chunks<'a, Async> {
    /// The same as [`next`](Self::next). Functions under [`both`](macro@crate::both) call `try_next`, since this method
    /// exists in both modes.
    pub async fn try_next(&mut self) -> Result<Option<Vec<u8>>> {
        self.next().await
    }

    /// The next piece, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match self.ask() {
            Err(known) => Ok(known),
            Ok(offset) => {
                let chunk = host::asynch::read_body(self.host, offset, CHUNK)
                    .await
                    .map_err(Error::from_body)?;
                Ok(self.take(offset, chunk))
            }
        }
    }

    /// The pieces as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Vec<u8>>> + 'a {
        try_unfold(self, async |mut chunks| {
            Ok(chunks.next().await?.map(|chunk| (chunk, chunks)))
        })
    }
}

/// Reads the whole body into memory, for extractors that parse it.
pub(crate) fn load(host: &Host, request: &mut Request) -> Result<()> {
    if !request.is_with_host() {
        return Ok(());
    }
    let body = BodyReader(request.content.clone());
    let mut bytes = Vec::new();
    reserve(&mut bytes, body.len())?;
    for chunk in Chunks::<Sync>::new(host, body) {
        append(&mut bytes, &chunk?)?;
    }
    request.content = Content::Bytes(bytes);
    Ok(())
}

/// Reads the whole body into memory, for extractors that parse it.
pub(crate) async fn load_async(host: &Host, request: &mut Request) -> Result<()> {
    if !request.is_with_host() {
        return Ok(());
    }
    let body = BodyReader(request.content.clone());
    let mut bytes = Vec::new();
    reserve(&mut bytes, body.len())?;
    let mut chunks = Chunks::<Async>::new(host, body);
    while let Some(chunk) = chunks.next().await? {
        append(&mut bytes, &chunk)?;
    }
    request.content = Content::Bytes(bytes);
    Ok(())
}

/// How many bytes of a body are read for extractors that look at its beginning.
const BEGINNING: usize = 64 * 1024;

/// Reads the beginning of the body into memory.
pub(crate) fn begin(host: &Host, request: &mut Request) -> Result<()> {
    let Content::Host(source) = request.content else {
        return Ok(());
    };
    let mut bytes = Vec::new();
    while let Some((offset, max)) = missing(&bytes) {
        let chunk = host::sync::read_body(host, offset, max).map_err(Error::from_body)?;
        if chunk.is_empty() {
            request.content = Content::Bytes(bytes);
            return Ok(());
        }
        bytes.extend(chunk);
    }
    request.content = Content::Begun(bytes, source);
    Ok(())
}

/// Reads the beginning of the body into memory.
pub(crate) async fn begin_async(host: &Host, request: &mut Request) -> Result<()> {
    let Content::Host(source) = request.content else {
        return Ok(());
    };
    let mut bytes = Vec::new();
    while let Some((offset, max)) = missing(&bytes) {
        let chunk = host::asynch::read_body(host, offset, max).await;
        let chunk = chunk.map_err(Error::from_body)?;
        if chunk.is_empty() {
            request.content = Content::Bytes(bytes);
            return Ok(());
        }
        bytes.extend(chunk);
    }
    request.content = Content::Begun(bytes, source);
    Ok(())
}

/// What is still to be read of the beginning: from where, and how many bytes.
fn missing(bytes: &[u8]) -> Option<(u64, u32)> {
    let max = u32::try_from(BEGINNING.saturating_sub(bytes.len())).unwrap_or(u32::MAX);
    (max > 0).then_some((bytes.len() as u64, max))
}

fn append(bytes: &mut Vec<u8>, chunk: &[u8]) -> Result<()> {
    if bytes.capacity() - bytes.len() < chunk.len() {
        // Grow as a `Vec` does, so that a body of unknown length is not copied for each of its pieces.
        let more = chunk.len().max(bytes.capacity());
        bytes
            .try_reserve(more)
            .map_err(|_| too_large((bytes.len() + chunk.len()) as u64))?;
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

/// Allocates memory for a whole body. The body may be larger than the module's memory: then the client gets an error
/// with status 413, where an ordinary allocation would trap.
fn reserve(bytes: &mut Vec<u8>, length: u64) -> Result<()> {
    usize::try_from(length)
        .ok()
        .and_then(|length| bytes.try_reserve_exact(length).ok())
        .ok_or_else(|| too_large(length))
}

fn too_large(length: u64) -> Error {
    Error::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "the request body is too large",
    )
    .with_detail(format!(
        "a body of {length} bytes does not fit into the module's memory; read it in pieces with `BodyReader`"
    ))
}
