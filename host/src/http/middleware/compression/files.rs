//! Static files that are compressed once: ahead of time, into a file beside the original (`style.css.br`), or by the
//! host, which keeps the result for later requests.

use std::sync::Arc;

use bytes::Bytes;
use hashlink::LruCache;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use parking_lot::Mutex;

use super::{Compression, Encoding, PERMITS, encode, is_compressible, is_fixed, weaken_tag};
use crate::budget;
use crate::http::middleware::request_head::vary;
use crate::http::static_files::{Content, StaticFiles};

/// Compressed files. The least recently used are dropped first.
#[derive(Debug)]
pub struct FileCache {
    kept: Mutex<Kept>,
    max_bytes: u64,
}

#[derive(Debug)]
struct Kept {
    files: LruCache<(String, Encoding), File>,
    bytes: u64,
}

#[derive(Debug, Clone)]
struct File {
    /// The `etag` of the file that this one was made from.
    tag: HeaderValue,
    content: Bytes,
}

impl FileCache {
    /// An empty cache for at most `max_bytes` bytes.
    pub fn new(max_bytes: u64) -> FileCache {
        let kept = Kept {
            files: LruCache::new_unbounded(),
            bytes: 0,
        };
        FileCache {
            kept: Mutex::new(kept),
            max_bytes,
        }
    }

    fn get(&self, path: &str, encoding: Encoding, tag: &HeaderValue) -> Option<Bytes> {
        let mut kept = self.kept.lock();
        let file = kept.files.get(&(path.to_owned(), encoding))?;
        (file.tag == tag).then(|| file.content.clone())
    }

    /// Keeps a compressed file if there is memory for it. Returns its content.
    fn add(&self, path: &str, encoding: Encoding, tag: &HeaderValue, content: Vec<u8>) -> Bytes {
        let size = content.len() as u64;
        let process = budget::process();
        if size > self.max_bytes || process.is_tight() {
            return content.into();
        }
        let Ok(room) = process.draw(size) else {
            return content.into();
        };
        let file = File {
            tag: tag.clone(),
            content: room.hold(content),
        };
        let content = file.content.clone();
        let mut kept = self.kept.lock();
        kept.bytes += size;
        if let Some(before) = kept.files.insert((path.to_owned(), encoding), file) {
            kept.bytes -= before.content.len() as u64;
        }
        while kept.bytes > self.max_bytes {
            let Some((_, oldest)) = kept.files.remove_lru() else {
                break;
            };
            kept.bytes -= oldest.content.len() as u64;
        }
        content
    }
}

/// Compares the configuration, and not the files.
impl PartialEq for FileCache {
    fn eq(&self, other: &FileCache) -> bool {
        self.max_bytes == other.max_bytes
    }
}

impl Eq for FileCache {}

impl Compression {
    /// Replaces the content of a response by its compressed form, if there is one, or if the file is small enough to be
    /// compressed now. Blocks on the disk.
    pub fn file(
        &self,
        files: &Arc<StaticFiles>,
        (method, path, headers): (&Method, &str, &HeaderMap),
        response: Response<Content>,
    ) -> Response<Content> {
        let text = |name: HeaderName| response.headers().get(name)?.to_str().ok();
        let length: Option<u64> = text(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let is_candidate = response.status() == StatusCode::OK
            && text(header::CONTENT_TYPE).is_some_and(is_compressible)
            && length.is_some_and(|length| length >= self.min_bytes.max(1))
            && !is_fixed(response.headers());
        let tag = response.headers().get(header::ETAG).cloned();
        let (true, Some(encoding), Some(tag)) = (is_candidate, self.choose(headers), tag) else {
            return response;
        };
        let (mut head, content) = response.into_parts();
        let compressed = match beside(files, (method, path), encoding, &head.headers) {
            Some((compressed, length)) => Some((compressed, length)),
            None => match &content {
                Content::Whole(whole) if method == Method::GET => {
                    self.made(path, encoding, &tag, whole)
                }
                _ => None,
            },
        };
        let Some((compressed, length)) = compressed else {
            return Response::from_parts(head, content);
        };
        let headers = &mut head.headers;
        let name = HeaderValue::from_static(encoding.name());
        headers.insert(header::CONTENT_ENCODING, name);
        headers.insert(header::CONTENT_LENGTH, length.into());
        headers.remove(header::ACCEPT_RANGES);
        vary(headers, &header::ACCEPT_ENCODING);
        weaken_tag(headers);
        Response::from_parts(head, compressed)
    }

    /// The compressed form from the cache, or else one that is made now. None, if the cache has no room at all
    /// (`max_bytes` is 0), or if no permit for compressing is free.
    fn made(
        &self,
        path: &str,
        encoding: Encoding,
        tag: &HeaderValue,
        whole: &[u8],
    ) -> Option<(Content, u64)> {
        let kept = self.files.get(path, encoding, tag);
        let content = match kept {
            Some(content) => content,
            None if self.files.max_bytes == 0 => return None,
            None => {
                let _permit = PERMITS.try_acquire().ok()?;
                let made = encode::well(encoding, whole);
                self.files.add(path, encoding, tag, made)
            }
        };
        let length = content.len() as u64;
        Some((Content::Shared(content), length))
    }
}

/// The compressed file beside the original (`style.css.br`), unless the original is newer.
fn beside(
    files: &StaticFiles,
    (method, path): (&Method, &str),
    encoding: Encoding,
    original: &HeaderMap,
) -> Option<(Content, u64)> {
    let path = format!("{path}.{}", encoding.extension());
    let found = files.respond(method, &path, &HeaderMap::new()).ok()?;
    let date = |headers: &HeaderMap| {
        let date = headers.get(header::LAST_MODIFIED)?.to_str().ok()?;
        httpdate::parse_http_date(date).ok()
    };
    if date(found.headers())? < date(original)? {
        return None;
    }
    let length = found.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?;
    let length = length.parse().ok()?;
    Some((found.into_body(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn a_bounded_number_of_bytes_is_kept() {
        let cache = FileCache::new(100);
        let add = |path: &str, size: usize| {
            cache.add(path, Encoding::Br, &tag("\"a\""), vec![7; size]);
        };
        let has = |path: &str, of: &'static str| cache.get(path, Encoding::Br, &tag(of)).is_some();
        add("a", 40);
        add("b", 40);
        assert!(has("a", "\"a\"") && has("b", "\"a\""));
        assert!(!has("a", "\"b\""), "of a file that has changed since");
        assert!(cache.get("a", Encoding::Zstd, &tag("\"a\"")).is_none());
        add("a", 50);
        assert_eq!(cache.kept.lock().bytes, 90);
        add("c", 40);
        assert!(has("a", "\"a\"") && has("c", "\"a\"") && !has("b", "\"a\""));
        add("d", 101);
        assert!(!has("d", "\"a\"") && has("a", "\"a\""));
        assert_eq!(cache.kept.lock().bytes, 90);
    }
}
