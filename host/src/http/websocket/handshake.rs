//! How a WebSocket begins: an upgrade of HTTP/1.1 (RFC 6455, 4.2) or an extended CONNECT of HTTP/2 (RFC 8441).
//!
//! Nothing here keeps a part of the request: its headers are slices of hyper's read buffer, which would stay in memory
//! as long as the connection. Whether the client's `origin` may connect is the caller's question.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::ext::Protocol;
use ring::digest;

const WEBSOCKET: &str = "websocket";
/// What the server appends to the client's key (RFC 6455, 1.3).
const KEY_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A valid request for a WebSocket, and what is negotiated with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The value of `sec-websocket-accept`. `None` for HTTP/2.
    accept: Option<HeaderValue>,
    /// The value of `sec-websocket-extensions`.
    extensions: Option<&'static str>,
}

/// Why a request does not open a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// A sentence for the client.
    pub reason: &'static str,
    /// Headers that the response needs because of its status.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Whether a request asks for a WebSocket, so that it is for [`Handshake::check`] and not for an ordinary view.
pub fn is_requested(parts: &Parts) -> bool {
    match parts.extensions.get::<Protocol>() {
        Some(protocol) => protocol.as_str() == WEBSOCKET,
        None => has_token(&parts.headers, &header::UPGRADE, WEBSOCKET),
    }
}

/// The subprotocols that the client offers, the preferred one first. Invalid names are left out.
pub fn offered_protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    list(headers, &header::SEC_WEBSOCKET_PROTOCOL).filter(|name| is_token(name))
}

impl Handshake {
    /// Checks a request. `deflate` says whether the server would like to use `permessage-deflate`.
    ///
    /// # Errors
    /// When the request is not a valid one for a WebSocket.
    pub fn check(parts: &Parts, deflate: bool) -> Result<Handshake, Refusal> {
        let headers = &parts.headers;
        let accept = match parts.version {
            Version::HTTP_2 => {
                check_connect(parts)?;
                None
            }
            _ => {
                check_upgrade(parts)?;
                Some(accept(headers)?)
            }
        };
        let extensions = if deflate { negotiate(headers) } else { None };
        Ok(Handshake { accept, extensions })
    }

    /// Whether messages may be compressed, in both directions.
    pub fn deflate(&self) -> bool {
        self.extensions.is_some()
    }

    /// The response that opens the WebSocket: 101, or 200 for HTTP/2. `protocol` is one of the [`offered_protocols`],
    /// else the client closes the connection.
    pub fn response(self, protocol: Option<HeaderValue>) -> Response<()> {
        let mut response = Response::new(());
        if self.accept.is_some() {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        let upgrade = self.accept.is_some();
        let fixed = |value, applies: bool| applies.then(|| HeaderValue::from_static(value));
        let headers = [
            (header::UPGRADE, fixed(WEBSOCKET, upgrade)),
            (header::CONNECTION, fixed("upgrade", upgrade)),
            (header::SEC_WEBSOCKET_ACCEPT, self.accept),
            (header::SEC_WEBSOCKET_PROTOCOL, protocol),
            (
                header::SEC_WEBSOCKET_EXTENSIONS,
                self.extensions.map(HeaderValue::from_static),
            ),
        ];
        let present = headers
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        response.headers_mut().extend(present);
        response
    }
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str) -> Refusal {
        Refusal {
            status,
            reason,
            headers: Vec::new(),
        }
    }

    fn bad(reason: &'static str) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, reason)
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Refusal {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }
}

/// Checks what is particular to HTTP/1.1.
fn check_upgrade(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    if parts.version != Version::HTTP_11 {
        return Err(Refusal::bad("A WebSocket needs HTTP/1.1 or HTTP/2."));
    }
    if !has_token(headers, &header::UPGRADE, WEBSOCKET) {
        let reason = "This is a WebSocket: the request must have the header `upgrade: websocket`.";
        return Err(upgrade_required(reason));
    }
    if parts.method != Method::GET {
        let reason = "A WebSocket is opened with GET.";
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason);
        return Err(refusal.with(header::ALLOW, "GET"));
    }
    if !has_token(headers, &header::CONNECTION, "upgrade") {
        return Err(Refusal::bad(
            "The request must have the header `connection: upgrade`; a proxy in between may have removed it.",
        ));
    }
    if !is_version_13(headers) {
        let refusal = upgrade_required("This server speaks version 13 of the WebSocket protocol.");
        return Err(refusal.with(header::SEC_WEBSOCKET_VERSION, "13"));
    }
    Ok(())
}

/// Checks what is particular to HTTP/2. Only a CONNECT has a protocol: h2 resets the stream of any other request with one.
fn check_connect(parts: &Parts) -> Result<(), Refusal> {
    let protocol = parts.extensions.get::<Protocol>();
    match protocol.map(Protocol::as_str) {
        Some(WEBSOCKET) => {}
        Some(_) => {
            let reason = "This server speaks no protocol over CONNECT but `websocket`.";
            return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, reason));
        }
        None => {
            return Err(Refusal::bad(
                "This is a WebSocket: over HTTP/2 it is opened with CONNECT and `:protocol: websocket`.",
            ));
        }
    }
    if !is_version_13(&parts.headers) {
        let refusal = Refusal::bad("This server speaks version 13 of the WebSocket protocol.");
        return Err(refusal.with(header::SEC_WEBSOCKET_VERSION, "13"));
    }
    Ok(())
}

fn upgrade_required(reason: &'static str) -> Refusal {
    Refusal::new(StatusCode::UPGRADE_REQUIRED, reason)
        .with(header::UPGRADE, WEBSOCKET)
        .with(header::CONNECTION, "upgrade")
}

fn is_version_13(headers: &HeaderMap) -> bool {
    list(headers, &header::SEC_WEBSOCKET_VERSION).eq(["13"])
}

/// The answer to the client's key: proof for the client that the server has understood the request.
fn accept(headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(Refusal::bad(
            "The request must have one header `sec-websocket-key`.",
        ));
    };
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    // 16 bytes are 22 characters and padding.
    let is_key = key.as_bytes().strip_suffix(b"==");
    if !is_key.is_some_and(|text| text.len() == 22 && text.iter().all(is_base64)) {
        return Err(Refusal::bad(
            "The header `sec-websocket-key` must be 16 bytes in base64.",
        ));
    }
    // The protocol asks for SHA-1. Nothing depends on its strength.
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(KEY_SUFFIX);
    let value = HeaderValue::from_str(&BASE64.encode(hash.finish()));
    Ok(value.expect("base64 is a valid header"))
}

/// Chooses `permessage-deflate` from the client's offers: the answer to the first one that can be accepted. Offers of
/// other extensions, and invalid ones, are ignored, which declines them.
fn negotiate(headers: &HeaderMap) -> Option<&'static str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    values.flat_map(|value| split(value, ',')).find_map(answer)
}

/// The answer to one offer (RFC 7692, 7.1), or `None` to decline it.
fn answer(offer: &str) -> Option<&'static str> {
    let mut parts = split(offer, ';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return None;
    }
    let mut seen = [false; 4];
    for parameter in parts {
        let (name, value) = match parameter.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquoted(value.trim_start()))),
            None => (parameter, None),
        };
        let which = match (name, value) {
            ("server_no_context_takeover", None) => 0,
            ("client_no_context_takeover", None) => 1,
            // The client wants to inflate with a small window. Our compressor has only the largest one.
            ("server_max_window_bits", Some("15")) => 2,
            // The client's compressor can use a small window. Our decompressor has room for any.
            (
                "client_max_window_bits",
                None | Some("8" | "9" | "10" | "11" | "12" | "13" | "14" | "15"),
            ) => 3,
            _ => return None,
        };
        if std::mem::replace(&mut seen[which], true) {
            return None;
        }
    }
    // The server may ask for both "no context takeover" even if the client has not offered them (7.1.1). A parameter
    // for the server's window must be answered when the client has sent it (7.1.2.1).
    Some(match seen[2] {
        false => "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        true => {
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
        }
    })
}

/// Splits at a character that does not stand within quotes.
fn split(text: &str, at: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |char| {
        let is_quote = char == '"' && !escaped;
        quoted ^= is_quote;
        escaped = quoted && char == '\\' && !escaped;
        char == at && !quoted
    })
}

fn unquoted(value: &str) -> &str {
    let inner = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or(value)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    list(headers, name).any(|member| member.eq_ignore_ascii_case(token))
}

/// The members of a comma-separated list, over all headers of the name.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let values = headers.get_all(name).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let members = values.flat_map(|value| value.split(',')).map(str::trim);
    members.filter(|member| !member.is_empty())
}

/// Whether a text is a token (RFC 9110, 5.6.2).
fn is_token(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const DEFLATE: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    /// The request of RFC 6455, 1.3, with some headers changed. An empty value removes the header.
    fn request(changes: &[(&str, &str)]) -> Parts {
        let mut request = Request::get("/chat");
        let usual = [
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ];
        let is_changed = |name| changes.iter().any(|(changed, _)| *changed == name);
        let kept = usual.iter().filter(|(name, _)| !is_changed(*name));
        for (name, value) in kept.chain(changes).filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn connect(protocol: &'static str) -> Parts {
        let mut parts = request(&[
            ("upgrade", ""),
            ("connection", ""),
            ("sec-websocket-key", ""),
        ]);
        parts.method = Method::CONNECT;
        parts.version = Version::HTTP_2;
        parts.extensions.insert(Protocol::from_static(protocol));
        parts
    }

    fn refused(parts: &Parts) -> (u16, Vec<String>) {
        let refusal = Handshake::check(parts, true).expect_err("it is not valid");
        let names = refusal.headers.iter().map(|(name, _)| name.to_string());
        (refusal.status.as_u16(), names.collect())
    }

    #[test]
    fn a_valid_request_is_answered() {
        let parts = request(&[]);
        assert!(is_requested(&parts));
        let handshake = Handshake::check(&parts, true).expect("it is valid");
        assert!(!handshake.deflate());
        let response = handshake.response(Some(HeaderValue::from_static("chat")));
        assert_eq!(response.status(), 101);
        let headers = response.headers();
        assert_eq!(
            headers["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(headers["upgrade"], "websocket");
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["sec-websocket-protocol"], "chat");
        assert_eq!(headers.len(), 4);
        let firefox = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
        ];
        assert!(Handshake::check(&request(&firefox), true).is_ok());
    }

    #[test]
    fn an_extended_connect_is_answered() {
        let mut parts = connect("websocket");
        parts.headers = HeaderMap::from_iter([
            (
                header::SEC_WEBSOCKET_VERSION,
                HeaderValue::from_static("13"),
            ),
            (
                header::SEC_WEBSOCKET_EXTENSIONS,
                HeaderValue::from_static("permessage-deflate"),
            ),
        ]);
        assert!(is_requested(&parts));
        let handshake = Handshake::check(&parts, true).expect("it is valid");
        let response = handshake.response(None);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["sec-websocket-extensions"], DEFLATE);
        assert_eq!(response.headers().len(), 1);

        assert!(!is_requested(&connect("connect-udp")));
        assert_eq!(refused(&connect("connect-udp")).0, 501);
        parts.method = Method::GET;
        parts.extensions.clear();
        assert_eq!(refused(&parts).0, 400);
        let mut old = connect("websocket");
        old.headers.clear();
        assert_eq!(refused(&old), (400, vec!["sec-websocket-version".into()]));
    }

    #[test]
    fn invalid_requests_are_refused() {
        let changed = |name, value| refused(&request(&[(name, value)]));
        let upgrade = vec!["upgrade".to_owned(), "connection".into()];
        let version = [&upgrade[..], &["sec-websocket-version".into()]].concat();
        assert_eq!(changed("upgrade", ""), (426, upgrade.clone()));
        assert_eq!(changed("upgrade", "h2c"), (426, upgrade));
        for wrong in ["", "12", "8, 13", "013", "13x"] {
            assert_eq!(
                changed("sec-websocket-version", wrong),
                (426, version.clone())
            );
        }
        assert_eq!(changed("connection", "keep-alive").0, 400);
        for wrong in [
            "",
            "short",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ===",
            "dGhlIHNhbXBsZSBub25jZTE=",
            "dGhlIHNhbXBsZSBub25j!Q==",
        ] {
            assert_eq!(changed("sec-websocket-key", wrong).0, 400, "{wrong}");
        }
        let twice = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(refused(&request(&[twice, twice])).0, 400);
        let mut post = request(&[]);
        post.method = Method::POST;
        assert_eq!(refused(&post), (405, vec!["allow".into()]));
        let mut old = request(&[]);
        old.version = Version::HTTP_10;
        assert_eq!(refused(&old).0, 400);
    }

    #[test]
    fn compression_is_negotiated() {
        let answer = |offer| {
            let parts = request(&[("sec-websocket-extensions", offer)]);
            let handshake = Handshake::check(&parts, true).expect("it is valid");
            let none = Handshake::check(&parts, false).expect("it is valid");
            assert!(!none.deflate());
            handshake.extensions
        };
        let with_window = format!("{DEFLATE}; server_max_window_bits=15");
        for accepted in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate ;client_max_window_bits = \"9\"; server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "other; a=\"b, permessage-deflate; c\\\", \", permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert_eq!(answer(accepted), Some(DEFLATE), "{accepted}");
        }
        for accepted in [
            "permessage-deflate; server_max_window_bits=15",
            "permessage-deflate; server_max_window_bits=\"15\"; client_max_window_bits=15",
        ] {
            assert_eq!(answer(accepted), Some(&with_window[..]), "{accepted}");
        }
        for declined in [
            "permessage-bzip2",
            "other; a=\"b, permessage-deflate; c\"",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; unknown",
            "permessage-deflate;",
            "permessage-deflate; client_max_window_bits=\"",
        ] {
            assert_eq!(answer(declined), None, "{declined}");
        }
        let two = [
            ("sec-websocket-extensions", "permessage-deflate; unknown"),
            ("sec-websocket-extensions", "permessage-deflate"),
        ];
        let handshake = Handshake::check(&request(&two), true).expect("it is valid");
        assert!(handshake.deflate());
    }

    #[test]
    fn subprotocols_are_listed_in_the_order_of_the_client() {
        let parts = request(&[
            ("sec-websocket-protocol", "graphql-ws,chat.v2 ,, not valid"),
            ("sec-websocket-protocol", "chat"),
        ]);
        let offered: Vec<_> = offered_protocols(&parts.headers).collect();
        assert_eq!(offered, ["graphql-ws", "chat.v2", "chat"]);
    }
}
