//! The host that a request is for. A request is refused if it names more than one host, a malformed one, or none (RFC
//! 9112, 3.2; RFC 9113, 8.3.1). Only HTTP/1.0 may name none.
//!
//! Views build links and origins from `host`, and caches and proxies tell sites apart by it. With a second `host`, or a
//! user's name in `host`, a cache or a proxy could take the request for one site and the app for another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::request::Parts;
use http::{HeaderValue, StatusCode, Version, header};

use crate::telemetry::error::Failure;

/// Checks the authority that a request names.
///
/// # Errors
/// 400 when the request names more than one host, a malformed one, or none although its version of HTTP requires one.
pub fn check(parts: &Parts) -> Result<(), Failure> {
    let wrong = |text| Err(Failure::client(StatusCode::BAD_REQUEST, text));
    let target = parts.uri.authority().map(|authority| authority.as_str());
    if target.is_some_and(|target| Host::parse(target.as_bytes()).is_none()) {
        return wrong("The host in the request's target is malformed.");
    }
    let mut headers = parts.headers.get_all(header::HOST).iter();
    let (first, second) = (headers.next(), headers.next());
    if second.is_some() {
        return wrong("The request has more than one `host` header.");
    }
    let named = first.map(|value| Host::parse(value.as_bytes()));
    if named == Some(None) {
        return wrong("The `host` header is malformed.");
    }
    let may_lack = match parts.version {
        Version::HTTP_09 | Version::HTTP_10 => true,
        Version::HTTP_11 => false,
        _ => target.is_some(),
    };
    if named.is_none() && !may_lack {
        return wrong("The request has no `host` header.");
    }
    // In HTTP/1.1, the host in the target overrides the header (RFC 9112, 3.2.2), so they may differ.
    let differs = |(target, named): (&str, Host<'_>)| {
        !Host::parse(target.as_bytes()).is_some_and(|target| target.is(&named))
    };
    if parts.version >= Version::HTTP_2 && target.zip(named.flatten()).is_some_and(differs) {
        return wrong("The `host` header and `:authority` differ.");
    }
    Ok(())
}

/// The host that a request is for: the one in its target, else the one in its `host` header. None if a request of
/// HTTP/1.0 has neither.
pub fn host(parts: &Parts) -> Option<Host<'_>> {
    let header = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let target = parts
        .uri
        .authority()
        .map(|target| target.as_str().as_bytes());
    Host::parse(target.or(header)?)
}

/// A host with or without port, in the syntax of RFC 3986.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host<'a> {
    name: &'a str,
    port: Option<u16>,
}

impl<'a> Host<'a> {
    /// Parses `HOST` or `HOST:PORT`. None for an empty text, a user's name, a comma (a list is no host), or another
    /// character that is not allowed.
    pub fn parse(text: &'a [u8]) -> Option<Host<'a>> {
        let text = std::str::from_utf8(text).ok()?;
        let end = match text.starts_with('[') {
            true => text.find(']')? + 1,
            false => text.find(':').unwrap_or(text.len()),
        };
        let (name, port) = text.split_at(end);
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse().ok()?)
            }
            Some(_) => return None,
        };
        let valid = match name.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
            None => is_name(name),
        };
        valid.then_some(Host { name, port })
    }

    /// The host as it was written, without the port.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Whether the host is an IP address, `localhost` or a name below `localhost`: no DNS server decides where it
    /// leads.
    pub fn is_local_or_address(&self) -> bool {
        let name = self.name.trim_end_matches('.').to_ascii_lowercase();
        let local = name == "localhost" || name.ends_with(".localhost");
        local || self.address().is_some()
    }

    fn address(&self) -> Option<IpAddr> {
        let bare = self
            .name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::from),
            None => self.name.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        }
    }

    /// Whether the host is this name. Case and a final dot do not count.
    pub fn is_called(&self, name: &str) -> bool {
        self.name.trim_end_matches('.').eq_ignore_ascii_case(name)
    }

    fn is(&self, other: &Host<'_>) -> bool {
        let port = |host: &Host<'_>| host.port.unwrap_or(80);
        self.name.eq_ignore_ascii_case(other.name) && port(self) == port(other)
    }
}

/// Whether a text is a registered name: allowed characters and percent-encoded bytes (RFC 3986, 3.2.2).
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let valid = match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&byte),
        };
        if !valid {
            return false;
        }
    }
    !name.is_empty()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn checked(version: Version, target: &str, hosts: &[&str]) -> Result<(), Failure> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        check(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn one_host_is_named_and_readable() {
        for host in [
            "a",
            "a:80",
            "a:",
            "A.example",
            "a_b",
            "127.0.0.1:3000",
            "[::1]",
            "[::1]:80",
            "a%C3%A4",
            "xn--4ca.de.",
        ] {
            checked(Version::HTTP_11, "/", &[host]).expect(host);
            checked(Version::HTTP_2, "/", &[host]).expect(host);
        }
        for host in [
            "", " ", "a b", "a,b", "u@a", "u:p@a", "a:b", "a:80:80", "a:65536", "a:-1", "[::1",
            "::1", "[a]", "[::1]a", "[::1]80", "a/", "a?b", "a#b", "a%", "a%4", "a%zz", "ä", ":80",
            "http://a",
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                checked(version, "/", &[host]).expect_err(host);
            }
        }
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            let twice = checked(version, "/", &["a", "a"]).expect_err("it is there twice");
            assert_eq!(twice.status, StatusCode::BAD_REQUEST);
        }
        checked(Version::HTTP_10, "/", &[]).expect("HTTP/1.0 has none");
        checked(Version::HTTP_11, "/", &[]).expect_err("HTTP/1.1 has one");
        checked(Version::HTTP_2, "/", &[]).expect_err("HTTP/2 has one or the other");
    }

    #[test]
    fn targets_name_no_user_and_agree_with_the_header_in_http2() {
        for (version, target, hosts, right) in [
            (Version::HTTP_11, "http://a/", &["b"][..], true),
            (Version::HTTP_11, "http://a/", &[], false),
            (Version::HTTP_10, "http://a/", &[], true),
            (Version::HTTP_11, "http://u:p@evil/", &["a"], false),
            (Version::HTTP_11, "http://u@evil/", &["a"], false),
            (Version::HTTP_2, "http://u:p@evil/", &[], false),
            (Version::HTTP_2, "http://a/", &[], true),
            (Version::HTTP_2, "http://a/", &["A:80"], true),
            (Version::HTTP_2, "http://a/", &["a:81"], false),
            (Version::HTTP_2, "http://a/", &["b"], false),
        ] {
            let checked = checked(version, target, hosts);
            assert_eq!(checked.is_ok(), right, "{version:?} {target} {hosts:?}");
        }
    }

    #[test]
    fn names_that_anybody_can_resolve_are_told_from_local_ones() {
        let local = |text: &str| {
            Host::parse(text.as_bytes())
                .expect("a host")
                .is_local_or_address()
        };
        for host in [
            "localhost:3000",
            "LocalHost",
            "a.localhost",
            "127.0.0.1",
            "[::1]:80",
            "localhost.",
        ] {
            assert!(local(host), "{host}");
        }
        for host in [
            "evil.com",
            "localhost.evil.com",
            "127.0.0.1.evil.com",
            "evillocalhost",
            "127.1",
        ] {
            assert!(!local(host), "{host}");
        }
    }
}
