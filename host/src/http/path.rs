//! Rewrites each path to one spelling (RFC 3986, 6.2.2). So code that compares paths as texts agrees with the router.
//!
//! The router compares decoded paths: `/admin` and `/%61dmin` are one route. Guests, built-in middleware, error pages
//! and the log get the path as a text, and a guard such as `path.starts_with("/admin")` must not see two texts for one
//! route. So the path of a request is rewritten before anything reads it. Characters that are allowed in a segment (RFC
//! 3986, 3.3: letters, digits and ``-._~!$&'()*+,;=:@``) are written as they are; all others are percent-encoded with
//! upper-case digits. An encoded slash is data and stays encoded. Dot segments (`.` and `..`) stay, because the router
//! treats them like other segments, too.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::Uri;
use http::uri::{InvalidUri, PathAndQuery};

/// Returns the one spelling of a path.
pub fn normalized(path: &str) -> Cow<'_, str> {
    let mut bytes = path.bytes();
    if bytes.all(|byte| byte == b'/' || stands_as_it_is(byte)) {
        return Cow::Borrowed(path);
    }
    let mut text = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, ..] = *rest {
        let (byte, length) = match encoded(rest) {
            Some(byte) => (byte, 3),
            None => (first, 1),
        };
        if stands_as_it_is(byte) || (byte == b'/' && length == 1) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a text takes any text");
        }
        rest = &rest[length..];
    }
    Cow::Owned(text)
}

/// Rewrites the path of a request's target.
///
/// # Errors
/// When the target becomes too long: each byte that is percent-encoded here takes three bytes.
pub fn normalize(uri: &mut Uri) -> Result<(), InvalidUri> {
    let Cow::Owned(path) = normalized(uri.path()) else {
        return Ok(());
    };
    let text = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let rewritten = PathAndQuery::try_from(text)?;
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(rewritten);
    *uri = Uri::from_parts(parts).expect("the parts were those of a target");
    Ok(())
}

/// Decodes the byte at the beginning of `text`, if it is percent-encoded.
fn encoded(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = *text else {
        return None;
    };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn stands_as_it_is(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proptest::prelude::*;

    use super::*;
    use crate::app::router::Router;

    #[test]
    fn a_path_has_one_spelling() {
        for (written, one) in [
            ("/", "/"),
            ("*", "*"),
            ("/admin/users", "/admin/users"),
            ("/%61dmin/%7eusers", "/admin/~users"),
            ("/a%2fb%2Fc", "/a%2Fb%2Fc"),
            ("/caf\u{e9}/caf%c3%a9", "/caf%C3%A9/caf%C3%A9"),
            ("/a%3Ab%40c:@", "/a:b@c:@"),
            ("/%2e%2E/%20\"{}", "/../%20%22%7B%7D"),
            ("/100%/%zz%2541%", "/100%25/%25zz%2541%25"),
            ("/%ff%00", "/%FF%00"),
            ("/a%3Fb%23c", "/a%3Fb%23c"),
        ] {
            assert_eq!(normalized(written), one);
            assert_eq!(normalized(one), one, "{written}: once is enough");
        }
    }

    #[test]
    fn the_rest_of_a_target_stays() {
        for (written, one) in [
            ("/%61?%61=%2f", "/a?%61=%2f"),
            ("/%61?", "/a?"),
            ("http://h:1/%61?b", "http://h:1/a?b"),
            ("/a", "/a"),
            ("*", "*"),
            ("h:80", "h:80"),
        ] {
            let mut uri: Uri = written.parse().expect("it is a target");
            normalize(&mut uri).expect("it is short");
            assert_eq!(uri.to_string(), one);
        }
        let mut long: Uri = format!("/{}", "\u{e9}".repeat(32_000))
            .parse()
            .expect("it fits");
        normalize(&mut long).expect_err("encoded, it does not");
    }

    /// Writes a character of a path, in one of the possible ways.
    fn written(c: char, how: u8) -> String {
        let mut utf8 = [0; 4];
        let bytes = c.encode_utf8(&mut utf8).bytes();
        match how {
            0 => bytes.map(|byte| format!("%{byte:02x}")).collect(),
            1 => bytes.map(|byte| format!("%{byte:02X}")).collect(),
            // Unencoded, these characters would end or begin a part of the target.
            _ if matches!(c, '/' | '%' | '?' | '#') || c.is_control() => {
                bytes.map(|byte| format!("%{byte:02X}")).collect()
            }
            _ => c.to_string(),
        }
    }

    proptest! {
        /// Two spellings of one path become the same text, and the router finds the same route for it.
        #[test]
        fn two_spellings_are_one_path(
            text in "[a-c/%@:;é ]{1,6}",
            one in proptest::collection::vec(0..3_u8, 6),
            other in proptest::collection::vec(0..3_u8, 6),
        ) {
            let spell = |how: &[u8]| -> String {
                let chars = text.chars().zip(how);
                format!("/{}", chars.map(|(c, how)| written(c, *how)).collect::<String>())
            };
            let (one, other) = (spell(&one), spell(&other));
            prop_assert_eq!(normalized(&one), normalized(&other));
            let mut router = Router::default();
            router.add(&Method::GET, "/{*path}", "").expect("it is a pattern");
            let route = |path: &str| format!("{:?}", router.route(&Method::GET, path));
            prop_assert_eq!(route(&one), route(&normalized(&one)));
        }

        /// Different paths stay different.
        #[test]
        fn nothing_is_lost(path in "/[a-c/%2@éF5]{0,8}") {
            let mut router = Router::default();
            router.add(&Method::GET, "/{*path}", "").expect("it is a pattern");
            let route = |path: &str| format!("{:?}", router.route(&Method::GET, path));
            prop_assert_eq!(route(&path), route(&normalized(&path)));
        }
    }
}
