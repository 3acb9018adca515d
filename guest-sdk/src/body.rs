//! Request bodies. A small body arrives with the request. The host keeps a large one, and the view reads it in pieces.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Result};
use ::http::StatusCode;
use futures_util::stream::{Stream, try_unfold};
use std::marker::PhantomData;

/// How many bytes one read asks the host for. The host allows up to 1 MiB.
const CHUNK: u32 = 256 * 1024;

/// Where the body of a request is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// In the guest's memory.
    Bytes(Vec<u8>),
    /// The host has the body. The number is the length of the body in bytes.
    Spooled(u64),
    /// The host has the body, and its first bytes have also been read into memory. The number is the length of the
    /// whole body in bytes.
    Begun(Vec<u8>, u64),
}

/// The body of a request, not read yet: an extractor for views that do not want the whole body in memory.
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

    /// The length of the body in bytes.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Spooled(length) | Content::Begun(_, length) => *length,
        }
    }

    /// Whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
    Spooled { offset: u64 },
    Nothing,
}

impl<'a, M: Mode> Chunks<'a, M> {
    pub(crate) fn new(host: &'a Host, body: BodyReader) -> Self {
        let rest = match body.0 {
            Content::Bytes(bytes) => Rest::Bytes(bytes),
            Content::Spooled(_) => Rest::Spooled { offset: 0 },
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
            Rest::Spooled { offset } => Ok(offset),
            Rest::Bytes(bytes) if !bytes.is_empty() => Err(Some(bytes)),
            Rest::Begun(bytes) => {
                let offset = bytes.len() as u64;
                self.rest = Rest::Spooled { offset };
                Err(Some(bytes))
            }
            Rest::Bytes(_) | Rest::Nothing => Err(None),
        }
    }

    fn take(&mut self, offset: u64, chunk: Vec<u8>) -> Option<Vec<u8>> {
        if chunk.is_empty() {
            return None;
        }
        self.rest = Rest::Spooled {
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
    let (Content::Spooled(length) | Content::Begun(_, length)) = request.content else {
        return Ok(());
    };
    let mut bytes = reserve(length)?;
    for chunk in Chunks::<Sync>::new(host, BodyReader(Content::Spooled(length))) {
        bytes.extend_from_slice(&chunk?);
    }
    request.content = Content::Bytes(bytes);
    Ok(())
}

/// Reads the whole body into memory, for extractors that parse it.
pub(crate) async fn load_async(host: &Host, request: &mut Request) -> Result<()> {
    let (Content::Spooled(length) | Content::Begun(_, length)) = request.content else {
        return Ok(());
    };
    let mut bytes = reserve(length)?;
    let mut chunks = Chunks::<Async>::new(host, BodyReader(Content::Spooled(length)));
    while let Some(chunk) = chunks.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    request.content = Content::Bytes(bytes);
    Ok(())
}

/// How many bytes of a body are read for extractors that look at its beginning.
const BEGINNING: u32 = 64 * 1024;

/// Reads the beginning of the body into memory.
pub(crate) fn begin(host: &Host, request: &mut Request) -> Result<()> {
    if let Content::Spooled(length) = request.content {
        let bytes = host::sync::read_body(host, 0, BEGINNING).map_err(Error::from_body)?;
        request.content = Content::Begun(bytes, length);
    }
    Ok(())
}

/// Reads the beginning of the body into memory.
pub(crate) async fn begin_async(host: &Host, request: &mut Request) -> Result<()> {
    if let Content::Spooled(length) = request.content {
        let bytes = host::asynch::read_body(host, 0, BEGINNING).await;
        request.content = Content::Begun(bytes.map_err(Error::from_body)?, length);
    }
    Ok(())
}

/// Allocates memory for a whole body. The body may be larger than the module's memory: then the client gets an error
/// with status 413, where an ordinary allocation would trap.
fn reserve(length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    usize::try_from(length)
        .ok()
        .and_then(|length| bytes.try_reserve_exact(length).ok())
        .ok_or_else(|| {
            Error::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request body is too large",
            )
            .with_detail(format!(
                "a body of {length} bytes does not fit into the module's memory; read it in pieces with `BodyReader`"
            ))
        })?;
    Ok(bytes)
}
