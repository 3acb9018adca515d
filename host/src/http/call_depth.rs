//! How deep requests of this app are nested. An app that sends requests to itself, directly or through other servers,
//! must not do so without end.
//!
//! The depth is sent in a header that the host sets on every outbound request, with an HMAC that only this process can
//! make. So a client cannot choose the depth, and a header from another process does not count.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;

/// The header. Its value is `DEPTH.DIGEST`.
pub const CALL_DEPTH: HeaderName = HeaderName::from_static("amphi-call-depth");

/// The key of the HMAC, random for each process.
static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
    let random = ring::rand::SystemRandom::new();
    hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has randomness")
});

/// The value of the header for an outbound request that is nested in `depth` others.
pub fn sealed(depth: u32) -> HeaderValue {
    let digest = hmac::sign(&KEY, depth.to_string().as_bytes());
    let text = format!("{depth}.{}", BASE64_URL_SAFE_NO_PAD.encode(digest));
    HeaderValue::try_from(text).expect("digits and base64 are valid in headers")
}

/// The depth of a request with these headers: 0 without a genuine value.
pub fn of(headers: &HeaderMap) -> u32 {
    // Clients and proxies may have added values. Only the genuine ones count, and of these the deepest.
    let genuine = |value: &HeaderValue| {
        let (depth, digest) = value.to_str().ok()?.split_once('.')?;
        let digest = BASE64_URL_SAFE_NO_PAD.decode(digest).ok()?;
        hmac::verify(&KEY, depth.as_bytes(), &digest).ok()?;
        depth.parse().ok()
    };
    let sent = headers.get_all(CALL_DEPTH).iter();
    sent.filter_map(genuine).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(values: &[HeaderValue]) -> u32 {
        let values = values.iter().map(|value| (CALL_DEPTH, value.clone()));
        let mut headers = HeaderMap::new();
        values.for_each(|(name, value)| {
            headers.append(name, value);
        });
        of(&headers)
    }

    #[test]
    fn only_this_process_says_how_deep_a_request_is() {
        let three = sealed(3);
        assert_eq!(depth(std::slice::from_ref(&three)), 3);
        assert_eq!(depth(&[]), 0);
        let text = three.to_str().expect("it is text");
        let forged = text.replacen('3', "1", 1);
        for wrong in [&*forged, "1", "1.", ".", "", "1.AAAA"] {
            let wrong = HeaderValue::from_str(wrong).expect("a header");
            assert_eq!(depth(std::slice::from_ref(&wrong)), 0, "{wrong:?}");
            assert_eq!(depth(&[wrong, three.clone()]), 3);
        }
    }
}
