//! Request bodies. A small one comes with the request; the host keeps a large one and gives it in pieces.

use crate::host::{self, Host};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Request, Result};
use ::http::StatusCode;
use futures::stream::{Stream, try_unfold};
use std::marker::PhantomData;

/// How much is read at once. The host allows up to a mebibyte.
const CHUNK: u32 = 256 * 1024;

/// Where the body of a request is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// With the host, this many bytes.
    Spooled(u64),
    /// With the host too, and its beginning is here.
    Begun(Vec<u8>, u64),
}

/// The body of a request, unread: an extractor for views that do not want all of it in memory.
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

    /// Whether there is no body.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The pieces of a body: an iterator in a sync view, `next().await?` or a stream in an async view.
#[derive(Debug)]
pub struct Chunks<'a, M: Mode> {
    host: &'a Host,
    rest: Rest,
    mode: PhantomData<M>,
}

/// What is still to be given.
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

    /// The offset to read from, or what there is without reading.
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
    /// The next piece; none at the end. It reads as in an async view, for functions of [`both`](macro@crate::both)
    /// modes.
    pub fn try_next(&mut self) -> Result<Option<Vec<u8>>> {
        self.next().transpose()
    }
}

impl<'a> Chunks<'a, Async> {
    /// The same as [`next`](Self::next), by the name that a sync view has for it.
    pub async fn try_next(&mut self) -> Result<Option<Vec<u8>>> {
        self.next().await
    }

    /// The next piece; none at the end.
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

/// Brings the whole body here, for extractors that read it.
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

/// Brings the whole body here, for extractors that read it.
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

/// How much of a body comes first, for extractors that look at its beginning.
const BEGINNING: u32 = 64 * 1024;

/// Brings the beginning of the body here.
pub(crate) fn begin(host: &Host, request: &mut Request) -> Result<()> {
    if let Content::Spooled(length) = request.content {
        let bytes = host::sync::read_body(host, 0, BEGINNING).map_err(Error::from_body)?;
        request.content = Content::Begun(bytes, length);
    }
    Ok(())
}

/// Brings the beginning of the body here.
pub(crate) async fn begin_async(host: &Host, request: &mut Request) -> Result<()> {
    if let Content::Spooled(length) = request.content {
        let bytes = host::asynch::read_body(host, 0, BEGINNING).await;
        request.content = Content::Begun(bytes.map_err(Error::from_body)?, length);
    }
    Ok(())
}

/// A body may be larger than the memory of the view: that is the client's to hear, not a trap.
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
                "a body of {length} bytes does not fit the module's memory; read it with BodyReader"
            ))
        })?;
    Ok(bytes)
}
