//! The header `forwarded` (RFC 7239), in which each proxy describes the connection that it accepted.
//!
//! A proxy appends its element to the header that the client sent. The header decides who the client is, so it counts
//! only if all of it can be parsed: an unbalanced quote or a backslash from the client can make the proxy's element
//! look like a part of the client's. Anything that does not match the grammar is an error; the parser never guesses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The most parameters of an element. RFC 7239 defines four. Without a limit, the search for duplicate names would take
/// quadratic time in the length of the line.
const PARAMETERS_MAX: usize = 16;

/// The element that one proxy added: parameters with unquoted values. The names are in lower case, and each occurs
/// once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Element(Vec<(String, Vec<u8>)>);

impl Element {
    /// The value of a parameter. `name` has to be in lower case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let known = self.0.iter().find(|(known, _)| known == name);
        known.map(|(_, value)| value.as_slice())
    }

    /// The address that was connected to the proxy. None, if the proxy hides the address or does not report it. Port 0:
    /// the port is not known.
    ///
    /// # Errors
    /// When `for` is not a node in the grammar of RFC 7239.
    pub fn client(&self) -> Result<Option<SocketAddr>, Malformed> {
        match self.get("for") {
            None => Ok(None),
            Some(node) => {
                read_node(node).ok_or(Malformed("`for` is neither an address nor hidden"))
            }
        }
    }
}

/// Why a header is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The `forwarded` header is malformed: {}.", self.0)
    }
}

/// Parses one line of the header: a list of elements. Empty elements are skipped (RFC 9110, 5.6.1.2).
///
/// # Errors
/// When the line does not match the grammar.
pub fn parse(line: &[u8]) -> Result<Vec<Element>, Malformed> {
    let mut rest = Rest(line);
    let (mut elements, mut element) = (Vec::new(), Element::default());
    loop {
        rest.skip_spaces();
        if !matches!(rest.0.first(), None | Some(b';' | b',')) {
            let (name, value) = rest.pair()?;
            if element.get(&name).is_some() {
                return Err(Malformed("a parameter is there twice"));
            }
            if element.0.len() == PARAMETERS_MAX {
                return Err(Malformed("an element has more than 16 parameters"));
            }
            element.0.push((name, value));
            rest.skip_spaces();
        }
        let separator = rest.next();
        if separator == Some(b';') {
            continue;
        }
        if !element.0.is_empty() {
            elements.push(std::mem::take(&mut element));
        }
        match separator {
            None => return Ok(elements),
            Some(b',') => {}
            Some(_) => return Err(Malformed("a value goes on where `,` or `;` should be")),
        }
    }
}

/// The part of the line that is still to be parsed.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn skip_spaces(&mut self) {
        self.0 = &self.0[self.count(|byte| matches!(byte, b' ' | b'\t'))..];
    }

    /// The number of bytes at the front for which `like` holds.
    fn count(&self, like: impl Fn(u8) -> bool) -> usize {
        (self.0.iter().position(|byte| !like(*byte))).unwrap_or(self.0.len())
    }

    fn pair(&mut self) -> Result<(String, Vec<u8>), Malformed> {
        let name = self.token().ok_or(Malformed("a parameter has no name"))?;
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        if self.next() != Some(b'=') {
            return Err(Malformed("a parameter has no value"));
        }
        let value = match self.0.first() {
            Some(b'"') => self.quoted()?,
            _ => (self
                .token()
                .ok_or(Malformed("a value is empty or has to be quoted"))?)
            .to_vec(),
        };
        Ok((name, value))
    }

    fn token(&mut self) -> Option<&'a [u8]> {
        let length =
            self.count(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        (length > 0).then_some(token)
    }

    fn quoted(&mut self) -> Result<Vec<u8>, Malformed> {
        self.next();
        let mut value = Vec::new();
        loop {
            let byte = match self.next() {
                Some(b'"') => return Ok(value),
                Some(b'\\') => self.next(),
                other => other,
            };
            match byte {
                Some(b'\t' | b' '..=b'~' | 0x80..) => value.extend(byte),
                Some(_) => return Err(Malformed("a quoted value has a control character")),
                None => return Err(Malformed("a quoted value does not end")),
            }
        }
    }
}

/// Parses a node, with or without its port. None: it is malformed. `Some(None)`: the proxy hides the address.
fn read_node(text: &[u8]) -> Option<Option<SocketAddr>> {
    let text = std::str::from_utf8(text).ok()?;
    let name_end = text
        .find(']')
        .map_or_else(|| text.find(':').unwrap_or(text.len()), |at| at + 1);
    let (name, port) = text.split_at(name_end);
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => 0,
        None => return None,
        Some(port) if is_obfuscated(port) => 0,
        Some(port) if (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().ok()?
        }
        Some(_) => return None,
    };
    if name.eq_ignore_ascii_case("unknown") || is_obfuscated(name) {
        return Some(None);
    }
    let address: IpAddr = match name.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => name.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(Some(SocketAddr::new(address.to_canonical(), port)))
}

fn is_obfuscated(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.strip_prefix('_')
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(line: &str) -> Result<Vec<Option<String>>, Malformed> {
        let clients = parse(line.as_bytes())?
            .into_iter()
            .map(|element| Ok(element.client()?.map(|address| address.to_string())));
        clients.collect()
    }

    #[test]
    fn lines_are_read_as_the_grammar_has_them() {
        for (line, expected) in [
            ("", &[][..]),
            (" , ,\t,", &[]),
            ("for=1.2.3.4", &["1.2.3.4:0"]),
            ("For=\"1.2.3.4:80\"", &["1.2.3.4:80"]),
            ("for=\"1.2.3.4:_port\"", &["1.2.3.4:0"]),
            ("for=\"[2001:db8::1]\"", &["[2001:db8::1]:0"]),
            ("for=\"[2001:db8::1]:65535\"", &["[2001:db8::1]:65535"]),
            ("for=\"[::ffff:1.2.3.4]\"", &["1.2.3.4:0"]),
            ("for=\"\\1.2\\.3.4\"", &["1.2.3.4:0"]),
            (";for=1.2.3.4; ;by=_a ; proto=http;", &["1.2.3.4:0"]),
            ("for=1.2.3.4 ,, for=5.6.7.8", &["1.2.3.4:0", "5.6.7.8:0"]),
            (
                "for=1.2.3.4;x=\"a\\\"b\", for=5.6.7.8",
                &["1.2.3.4:0", "5.6.7.8:0"],
            ),
            (
                "x=\", for=6.6.6.6;y=\\\\\", for=5.6.7.8",
                &["", "5.6.7.8:0"],
            ),
            (
                "for=unknown, for=_hidden, for=\"_h:1\", proto=http",
                &["", "", "", ""],
            ),
        ] {
            let expected: Vec<_> = (expected.iter())
                .map(|text| (!text.is_empty()).then(|| (*text).to_owned()))
                .collect();
            assert_eq!(clients(line), Ok(expected), "{line}");
        }
        let elements = parse(b"host=\"a:1\";proto=https").expect("it is right");
        assert_eq!(elements[0].get("host"), Some(&b"a:1"[..]));
    }

    #[test]
    fn what_the_grammar_does_not_have_is_refused() {
        for line in [
            "for",
            "for=",
            "=1.2.3.4",
            "1.2.3.4",
            "for =1.2.3.4",
            "for= 1.2.3.4",
            "for=1.2.3.4 5",
            "for=1.2.3.4:80",
            "for=[::1]",
            "for=\"1.2.3.4",
            "for=\"1.2.3.4\\",
            "for=\"1.2.3.4\\\"",
            "for=\"1.2.3.4\"x",
            "for=\"1.2.3.4\"\"\"",
            "for=1.2.3.4\"\"",
            "for=1.2.3.4;FOR=5.6.7.8",
            "x=1;x=1",
            "for=banana",
            "for=\"::1\"",
            "for=\"[::1\"",
            "for=\"[1.2.3.4]\"",
            "for=\"[::1]80\"",
            "for=\"[::1%eth0]\"",
            "for=\"1.2.3.4:\"",
            "for=\"1.2.3.4:65536\"",
            "for=\"1.2.3.4:+80\"",
            "for=\"1.2.3.4:000080\"",
            "for=01.2.3.4",
            "for=_",
            "for=\"_a b\"",
            "for=\"\"",
            "f(r=1",
        ] {
            clients(line).expect_err(line);
        }
        parse(b"x=\"\x01\"").expect_err("it has a control character");
        parse(b"x=\xff").expect_err("it has to be quoted");
        parse(b"x=\"\xff\"").expect("quoted, it may have any bytes");
    }
}
