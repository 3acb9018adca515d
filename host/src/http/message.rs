//! HTTP messages: the size of heads, requests in the form of the contract, and small changes to responses.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full, combinators::BoxBody};
use hyper::body::Body as _;

use super::body::{Received, RequestBody};
use super::call_depth::CALL_DEPTH;
use super::proxies::{Asked, FORWARDED_HOST, FORWARDED_PROTO};
use crate::contract::types;

/// Headers that belong to one connection, not to the message (RFC 9110, 7.6.1). Only the host sets them.
pub const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    header::TE,
];

/// The body of a response: bytes in memory, or a stream.
pub type ResponseBody = Either<Full<Bytes>, BoxBody<Bytes, io::Error>>;

/// Headers whose values are not UTF-8, if there are any. The contract has texts in their place ([`text`]).
pub type BinaryHeaders = Option<Arc<[(HeaderName, HeaderValue)]>>;

/// The headers whose values are not UTF-8.
pub fn binary_headers(headers: &HeaderMap) -> BinaryHeaders {
    let is_binary = |value: &HeaderValue| std::str::from_utf8(value.as_bytes()).is_err();
    if !headers.values().any(is_binary) {
        return None;
    }
    let binary = headers.iter().filter(|(_, value)| is_binary(value));
    let copy = |(name, value): (&HeaderName, &HeaderValue)| (name.clone(), value.clone());
    Some(binary.map(copy).collect())
}

/// Converts a request to the form of the contract. The second value is the body, if the host keeps it and guests read
/// it piece by piece.
pub fn contract_request(
    parts: &Parts,
    asked: &Asked,
    received: Received,
) -> (types::Request, Option<RequestBody>) {
    let headers = contract_headers(parts, asked);
    let (body, kept) = match received {
        Received::Inline(bytes) => (types::Body::Bytes(bytes), None),
        Received::Kept(body) => (body.contract(), Some(body)),
    };
    let request = types::Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers,
        // Each function that is called gets the parameters of its own route later.
        params: Vec::new(),
        body,
    };
    (request, kept)
}

/// The request's headers in the form of the contract, the same for every version of HTTP. `host` is the authority that
/// a trusted proxy reports, else the one in the request's target (RFC 9113, 8.3.1; RFC 9112, 3.2.2), else the `host`
/// header of the request. Several `cookie` headers become one (RFC 9113, 8.2.3). `x-forwarded-host` and
/// `x-forwarded-proto` have the values that a trusted proxy reports. The values that anybody else sent are removed.
pub fn contract_headers(parts: &Parts, asked: &Asked) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::with_capacity(parts.headers.len() + 2);
    let named = parts.uri.authority().map(http::uri::Authority::as_str);
    let authority = asked.authority.as_deref().or(named);
    let mut push = |name: &str, value: Option<&str>| {
        headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    };
    push("host", authority);
    push(FORWARDED_HOST.as_str(), asked.authority.as_deref());
    push(FORWARDED_PROTO.as_str(), asked.scheme);
    let mut cookies: Option<usize> = None;
    for (name, value) in &parts.headers {
        let value = text(value.as_bytes());
        match cookies {
            _ if name == header::HOST && authority.is_some() => {}
            _ if [CALL_DEPTH, FORWARDED_HOST, FORWARDED_PROTO].contains(name) => {}
            Some(first) if name == header::COOKIE => {
                headers[first].1.push_str("; ");
                headers[first].1.push_str(&value);
            }
            _ => {
                if name == header::COOKIE {
                    cookies = Some(headers.len());
                }
                headers.push((name.as_str().to_owned(), value));
            }
        }
    }
    headers
}

/// The bytes that headers count for: their texts, and [`HEADER_BYTES`] for each header.
pub fn header_bytes(headers: &[(String, String)]) -> u64 {
    let texts = headers.iter().map(|(name, value)| name.len() + value.len());
    texts.map(|text| text as u64 + HEADER_BYTES).sum()
}

/// The bytes that a header counts for in addition to its name and value.
pub const HEADER_BYTES: u64 = 32;

/// The size of these headers.
pub fn head_size(headers: &HeaderMap) -> HeadSize {
    let size = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().len() + value.len()) as u64 + HEADER_BYTES
    };
    HeadSize {
        headers: headers.len(),
        bytes: headers.iter().map(size).sum(),
    }
}

/// Checks trailers that a guest made.
///
/// # Errors
/// A sentence: they are too many or too large, or one is about the connection or the framing of the message.
pub fn check_trailers(trailers: &HeaderMap, max: HeadSize) -> Result<(), String> {
    let hosts = |name: &&HeaderName| {
        HOP_BY_HOP.contains(*name)
            || [header::CONTENT_LENGTH, header::HOST, header::SET_COOKIE].contains(*name)
    };
    if let Some(name) = trailers.keys().find(hosts) {
        return Err(format!(
            "the response has the trailer `{name}`, which cannot be one"
        ));
    }
    head_size(trailers).check("response", max)
}

/// The size of a head, or the limit on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSize {
    /// Number of headers.
    pub headers: usize,
    /// Bytes of the headers, as [`header_bytes`] counts them.
    pub bytes: u64,
}

impl HeadSize {
    /// Checks a head that a guest made or that another server sent: first its bytes, then its number of headers. Call
    /// this before a `HeaderMap` is built, because a `HeaderMap` panics at 24,577 different names.
    ///
    /// # Errors
    /// A sentence that names the limit.
    pub fn check(self, whose: &str, max: HeadSize) -> Result<(), String> {
        if self.bytes > max.bytes {
            return Err(format!(
                "the headers of the {whose} have {} bytes; `headers_max_bytes` of `[limits]` is {}",
                self.bytes, max.bytes
            ));
        }
        if self.headers > max.headers {
            return Err(format!(
                "the {whose} has {} headers; `headers_max` of `[limits]` is {}",
                self.headers, max.headers
            ));
        }
        Ok(())
    }
}

/// Converts a header value to text: UTF-8, or else ISO-8859-1, the encoding of older versions of HTTP.
pub fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().copied().map(char::from).collect(),
    }
}

/// A response without a body.
pub fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// Sets the header `allow`: the methods that a path supports.
///
/// # Panics
/// When `allow` is not a valid header value.
pub fn with_allow(mut response: Response<ResponseBody>, allow: &str) -> Response<ResponseBody> {
    let value = HeaderValue::from_str(allow).expect("methods are valid in headers");
    response.headers_mut().insert(header::ALLOW, value);
    response
}

/// Whether responses of this status have no body, whatever the method (RFC 9110, 6.4.1).
pub fn is_bodiless(status: StatusCode) -> bool {
    [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Turns a response to GET into a response to HEAD: it keeps the length of the body and loses the body (RFC 9110,
/// 9.3.2). A length of 0 is left out, as HEAD allows: the body may be that of a component of `wasi:http`, which nobody
/// reads after such a head.
pub fn without_body(response: &mut Response<ResponseBody>) {
    if !is_bodiless(response.status())
        && let Some(length @ 1..) = response.body().size_hint().exact()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Either::Left(Full::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_become_text_without_loss() {
        assert_eq!(text("Zoë".as_bytes()), "Zoë");
        assert_eq!(text(b"Zo\xeb"), "Zoë", "ISO-8859-1, where it is not UTF-8");
    }
}
