//! `compression`: compresses responses, in the encoding that the client prefers.
//!
//! A small body is compressed immediately, on the event loop. A larger one is compressed on another thread, a bounded
//! number at a time, when the client begins to read. A stream is compressed piece by piece while it is sent. So no
//! response holds the event loop for longer than about a millisecond.

mod encode;
mod files;

use std::io;
use std::sync::LazyLock;

use async_compression::Level;
use async_compression::brotli::EncoderParams;
use async_compression::tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use bytes::Bytes;
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use http::header::{self, Entry};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, BodyStream, Either, Full, StreamBody};
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio_util::io::{ReaderStream, StreamReader};

use super::request_head::{RequestHead, vary};
use crate::budget::Room;
use crate::http::accept::{Weight, weighted};
use crate::http::conditional::Unmodified;
use crate::http::message::ResponseBody;
use crate::telemetry::metrics::{GaugeGuard, METRICS};

pub use files::FileCache;

/// The options, and the cache of compressed files.
#[derive(Debug, PartialEq, Eq)]
pub struct Compression {
    /// The encodings, the preferred one first. The order decides where the client has no preference.
    pub encodings: Vec<Encoding>,
    /// The smallest body that is compressed, in bytes.
    pub min_bytes: u64,
    /// The compressed static files that are kept.
    pub files: FileCache,
}

/// A content encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Brotli.
    Br,
    /// Zstandard.
    Zstd,
    /// Gzip.
    Gzip,
}

/// The levels for bodies that are compressed while they are sent. The window of brotli and zstd has 2^18 bytes.
const STREAM_BROTLI_QUALITY: i32 = 3;
const STREAM_WINDOW: u32 = 18;
const STREAM_ZSTD_LEVEL: i32 = 3;
const STREAM_GZIP_LEVEL: i32 = 5;
/// The bytes of a body that are compressed before other requests get their turn: less than a millisecond of work.
const PIECE_BYTES: usize = 16 << 10;
const SENT_BYTES: usize = 16 << 10;

/// Permits for compressing on other threads than the event loops, one for each core. Further bodies wait.
static PERMITS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

impl Encoding {
    /// Each encoding by its name in the configuration and in headers.
    pub const ALL: [(&'static str, Encoding); 3] = [
        ("zstd", Encoding::Zstd),
        ("br", Encoding::Br),
        ("gzip", Encoding::Gzip),
    ];

    /// The memory of an encoder while a response is sent, together with the pieces that wait for the client, in bytes.
    /// It was measured (brotli 1.6 MB, zstd 0.9 MB, gzip 0.3 MB) and rounded up.
    fn encoder_bytes(self) -> u64 {
        match self {
            Encoding::Br => 2 << 20,
            Encoding::Zstd => 3 << 19,
            Encoding::Gzip => 512 << 10,
        }
    }

    /// The extension of a compressed file.
    fn extension(self) -> &'static str {
        match self {
            Encoding::Br => "br",
            Encoding::Zstd => "zst",
            Encoding::Gzip => "gz",
        }
    }

    /// The largest body that is compressed immediately, in bytes: this takes about a millisecond.
    fn at_once_bytes(self) -> usize {
        match self {
            Encoding::Br | Encoding::Gzip => 16 << 10,
            Encoding::Zstd => 64 << 10,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Encoding::Br => "br",
            Encoding::Zstd => "zstd",
            Encoding::Gzip => "gzip",
        }
    }
}

impl Compression {
    pub(super) fn after(&self, head: RequestHead<'_>, response: &mut Response<ResponseBody>) {
        if response.status() == StatusCode::NOT_MODIFIED {
            return self.after_not_modified(head, response);
        }
        if !self.worth_it(response) {
            return;
        }
        // Responses that stay uncompressed get `vary`, too: a cache must not give an uncompressed response to clients
        // that would get a compressed one, nor the other way round.
        vary(response.headers_mut(), &header::ACCEPT_ENCODING);
        let Some(encoding) = self.choose(&head.request.headers) else {
            return;
        };
        // Without memory for the encoder, the response is sent uncompressed.
        let Ok(room) = head.account.draw(encoding.encoder_bytes()) else {
            return;
        };
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(encoding.name()),
        );
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::ACCEPT_RANGES);
        weaken_tag(headers);
        let body = std::mem::replace(response.body_mut(), Either::Left(Full::default()));
        *response.body_mut() = match body {
            // This is the response to HEAD for a file. The length of the compressed file is not known, and an empty
            // stream announces no length.
            body if body.is_end_stream() => {
                Either::Right(BoxBody::new(StreamBody::new(stream::empty())))
            }
            Either::Left(whole) => {
                let whole = whole.collect().now_or_never();
                let whole = whole.expect("it is there").expect("it cannot fail");
                compressed(encoding, whole.to_bytes(), room)
            }
            Either::Right(streamed) => {
                let data = BodyStream::new(streamed)
                    .try_filter_map(async |frame| Ok(frame.into_data().ok()));
                streaming(encoder(encoding, data), room)
            }
        };
    }

    /// Gives a 304 the headers that the full response would have had (RFC 9110, 15.4.5). If a view itself has made the
    /// 304, the host does not know the full response, and assumes that it would have been compressed.
    fn after_not_modified(&self, head: RequestHead<'_>, response: &mut Response<ResponseBody>) {
        let left_out = response.extensions().get::<Unmodified>();
        let would_be = left_out.is_none_or(|left_out| {
            let content_type = left_out.content_type.as_ref();
            let content_type = content_type.and_then(|value| value.to_str().ok());
            content_type.is_some_and(is_compressible)
                && left_out
                    .length
                    .is_none_or(|length| length >= self.min_bytes.max(1))
        });
        if !would_be || is_fixed(response.headers()) {
            return;
        }
        vary(response.headers_mut(), &header::ACCEPT_ENCODING);
        if self.choose(&head.request.headers).is_some() {
            weaken_tag(response.headers_mut());
        }
    }

    /// Whether the response may be compressed and is worth it: by its status, headers, length and type.
    fn worth_it(&self, response: &Response<ResponseBody>) -> bool {
        let headers = response.headers();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let whole = !matches!(
            response.status(),
            StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        );
        let told = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let length: Option<u64> = told.or_else(|| response.body().size_hint().exact());
        whole
            && !is_fixed(headers)
            && !headers.contains_key(header::CONTENT_RANGE)
            && length.is_none_or(|length| length >= self.min_bytes.max(1))
            && text(header::CONTENT_TYPE).is_some_and(is_compressible)
    }

    /// The encoding with the most weight in `accept-encoding`. None, if the client prefers the uncompressed body.
    fn choose(&self, headers: &HeaderMap) -> Option<Encoding> {
        let accepted = weighted(headers, header::ACCEPT_ENCODING);
        let weight = |name: &str| -> Option<Weight> {
            let named = accepted.iter().find(|(known, _)| known == name);
            named.map(|(_, weight)| *weight)
        };
        let of = |encoding: Encoding| {
            // `x-gzip` means `gzip` (RFC 9110, 8.4.1.3).
            let other = (encoding == Encoding::Gzip)
                .then(|| weight("x-gzip"))
                .flatten();
            let named = weight(encoding.name()).or(other);
            named.or_else(|| weight("*")).unwrap_or(0)
        };
        let identity = weight("identity").unwrap_or(1);
        // `max_by_key` returns the last of several maxima. In reverse order, that is the encoding that is configured
        // first.
        let best = (self.encodings.iter().rev()).max_by_key(|encoding| of(**encoding))?;
        (of(*best) > 0 && of(*best) >= identity).then_some(*best)
    }
}

/// Whether the body must not be changed (`no-transform`) or is encoded already.
fn is_fixed(headers: &HeaderMap) -> bool {
    let says = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.to_ascii_lowercase().contains("no-transform")
    };
    headers.contains_key(header::CONTENT_ENCODING)
        || headers.get_all(header::CACHE_CONTROL).iter().any(says)
}

/// Makes a strong tag weak, because the compressed body has other bytes with the same meaning (RFC 9110, 8.8.1).
fn weaken_tag(headers: &mut HeaderMap) {
    if let Entry::Occupied(mut tag) = headers.entry(header::ETAG)
        && !tag.get().as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.get().as_bytes()].concat())
    {
        tag.insert(weak);
    }
}

fn is_compressible(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    let (family, name) = kind.split_once('/').unwrap_or((&kind, ""));
    match family {
        // An encoder would hold events back until it has enough of them.
        "text" => name != "event-stream",
        "application" => {
            let plain = [
                "json",
                "javascript",
                "xml",
                "wasm",
                "x-ndjson",
                "graphql",
                "rtf",
                "sql",
                "toml",
                "yaml",
                "x-sh",
                "vnd.ms-fontobject",
            ];
            plain.contains(&name) || name.ends_with("+json") || name.ends_with("+xml")
        }
        "image" => matches!(name, "svg+xml" | "bmp" | "x-icon" | "vnd.microsoft.icon"),
        "font" => matches!(name, "ttf" | "otf" | "collection"),
        _ => false,
    }
}

type Encoder = Box<dyn AsyncRead + Send + Sync + Unpin>;

fn encoder(
    encoding: Encoding,
    data: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
) -> Encoder {
    let data = StreamReader::new(Box::pin(in_pieces(data)));
    match encoding {
        Encoding::Br => {
            let params = EncoderParams::default()
                .quality(Level::Precise(STREAM_BROTLI_QUALITY))
                .window_size(STREAM_WINDOW.cast_signed());
            Box::new(BrotliEncoder::with_params(data, params))
        }
        Encoding::Zstd => {
            let params = &[CParameter::window_log(STREAM_WINDOW)];
            let level = Level::Precise(STREAM_ZSTD_LEVEL);
            Box::new(ZstdEncoder::with_quality_and_params(data, level, params))
        }
        Encoding::Gzip => {
            let level = Level::Precise(STREAM_GZIP_LEVEL);
            Box::new(GzipEncoder::with_quality(data, level))
        }
    }
}

/// Compresses a body that is in memory: immediately if it is small, else on another thread, when the client begins to
/// read.
fn compressed(encoding: Encoding, whole: Bytes, mut room: Room) -> ResponseBody {
    if whole.len() <= encoding.at_once_bytes() {
        let small = encode::quickly(encoding, &whole);
        // The memory that was drawn for the encoder is more than enough for the result.
        return Either::Left(Full::new(room.cut_to(small.capacity() as u64).hold(small)));
    }
    // The result is in memory beside the original. Without memory for both, the body is compressed piece by piece.
    if room.grow_to(room.bytes() + whole.len() as u64).is_err() {
        let pieces = stream::iter([Ok(whole)]);
        return streaming(encoder(encoding, pieces), room);
    }
    let held = GaugeGuard::new(&METRICS.compressing);
    let made = async move {
        let _held = held;
        let _permit = PERMITS.acquire().await.expect("it is never closed");
        let made = tokio::task::spawn_blocking(move || encode::quickly(encoding, &whole)).await;
        let made = made.map_err(io::Error::other)?;
        let room = room.cut_to(made.capacity() as u64);
        Ok(Frame::data(room.hold(made)))
    };
    Either::Right(BoxBody::new(StreamBody::new(stream::once(made))))
}

/// Splits a body into pieces that take little time to compress, and lets other tasks run between them.
fn in_pieces(
    data: impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    let state = (Box::pin(data), Bytes::new());
    stream::try_unfold(state, async |(mut data, mut rest)| {
        while rest.is_empty() {
            match data.next().await.transpose()? {
                Some(more) => rest = more,
                None => return Ok(None),
            }
        }
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        // While its input is not ready, an encoder returns the output that it has. So this wait bounds the work of one
        // poll.
        tokio::task::yield_now().await;
        Ok(Some((piece, (data, rest))))
    })
}

fn streaming(encoder: Encoder, room: Room) -> ResponseBody {
    let held = (GaugeGuard::new(&METRICS.compressing), room);
    let data = stream::unfold(
        (ReaderStream::with_capacity(encoder, SENT_BYTES), held),
        async |mut state| {
            let data = state.0.next().await?;
            tokio::task::yield_now().await;
            Some((data.map(Frame::data), state))
        },
    );
    Either::Right(BoxBody::new(StreamBody::new(data)))
}

#[cfg(test)]
mod tests;
