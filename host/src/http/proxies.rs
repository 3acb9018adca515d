//! Trusted proxies in front of the server. They report the client's address, the id of the request, and the URL that
//! the client asked for.
//!
//! Anybody can send the headers that proxies add. So the headers count only if the connected peer is a trusted proxy. A
//! list of addresses is read from its end, and only as far as trusted proxies wrote it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

use crate::http::authority::Host;
use crate::http::forwarded::{self, Malformed};

/// The header with the id of the request. It is accepted from trusted proxies, and sent in responses and outbound
/// requests.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The header with the authority that the client asked for, as a proxy reports it.
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The header with the scheme that the client used, as a proxy reports it.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The longest request id that is accepted from a proxy, in bytes.
const REQUEST_ID_MAX: usize = 128;

/// The trusted proxies: all hosts of some networks. None by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    networks: Vec<IpNet>,
    addresses: Addresses,
}

/// The header in which proxies name the client. Only one of the two is read: a proxy that writes one of them passes the
/// other on as the client sent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addresses {
    /// `x-forwarded-for`.
    #[default]
    XForwardedFor,
    /// `forwarded` (RFC 7239).
    Forwarded,
}

/// The URL that the client asked for, as far as a trusted proxy reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Host and port, as in a `host` header.
    pub authority: Option<String>,
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
}

impl Proxies {
    /// Trusts all hosts of `networks`. `addresses` says in which header these proxies name the client.
    pub fn new(networks: Vec<IpNet>, addresses: Addresses) -> Proxies {
        Proxies {
            networks,
            addresses,
        }
    }

    /// Parses a network (`10.0.0.0/8`) or an address.
    ///
    /// # Errors
    /// A sentence, when the text is neither.
    pub fn parse(text: &str) -> Result<IpNet, String> {
        let address = text
            .parse::<IpAddr>()
            .map(|address| address.to_canonical().into());
        (text.parse::<IpNet>().or(address)).map_err(|_| {
            format!(
                "`{text}` is neither an address nor a network: write e.g. \"127.0.0.1\" or \"10.0.0.0/8\""
            )
        })
    }

    /// Whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether this is the address of a trusted proxy.
    pub fn trust(&self, address: IpAddr) -> bool {
        // A socket for both versions of IP reports an IPv4 address as an IPv4-mapped IPv6 address.
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The client's address. The search begins with the connected `peer` and then goes through the list of the proxies
    /// from its end, up to the first address that is no trusted proxy. The last address of the search is the client's.
    /// Port 0: the proxies did not report the port.
    ///
    /// # Errors
    /// When a trusted proxy has passed on a malformed `forwarded`: nobody can tell then where the proxy's own element
    /// begins.
    pub fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<SocketAddr, Malformed> {
        let mut client = peer;
        if !self.trust(peer.ip()) {
            return Ok(client);
        }
        let addresses = match self.addresses {
            Addresses::XForwardedFor => forwarded_for(headers),
            Addresses::Forwarded => forwarded(headers)?,
        };
        for address in addresses.into_iter().rev() {
            // The address is hidden by a proxy, or malformed: the addresses before it do not count.
            let Some(address) = address else {
                break;
            };
            client = address;
            if !self.trust(address.ip()) {
                break;
            }
        }
        Ok(client)
    }

    /// The URL that the client asked for, as the connected proxy reports it. Empty if the peer is no trusted proxy.
    pub fn asked(&self, peer: SocketAddr, headers: &HeaderMap) -> Asked {
        if self.is_empty() || !self.trust(peer.ip()) {
            return Asked::default();
        }
        // Of a list, only the last value counts: the values before it may come from the client.
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
        let (authority, scheme) = match self.addresses {
            Addresses::XForwardedFor => {
                let last = |name| last(headers, name).and_then(text);
                (last(&FORWARDED_HOST), last(&FORWARDED_PROTO))
            }
            Addresses::Forwarded => {
                let line = headers.get_all(header::FORWARDED).iter().next_back();
                // A malformed header does not count here. `Proxies::client` has refused the request for it.
                let elements = line.and_then(|line| forwarded::parse(line.as_bytes()).ok());
                let element = elements.and_then(|elements| elements.into_iter().next_back());
                let of = |name| text(element.as_ref()?.get(name)?.to_vec());
                (of("host"), of("proto"))
            }
        };
        let schemes = ["http", "https"].into_iter();
        let known = |scheme: String| schemes.clone().find(|s| scheme.eq_ignore_ascii_case(s));
        Asked {
            authority: authority.filter(|text| Host::parse(text.as_bytes()).is_some()),
            scheme: scheme.and_then(known),
        }
    }

    /// The id that a trusted proxy has given to the request.
    pub fn request_id(&self, peer: SocketAddr, headers: &HeaderMap) -> Option<String> {
        if self.is_empty() || !self.trust(peer.ip()) {
            return None;
        }
        let mut sent = headers.get_all(REQUEST_ID).iter();
        let (Some(id), None) = (sent.next(), sent.next()) else {
            return None;
        };
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(byte);
        let valid = (1..=REQUEST_ID_MAX).contains(&id.len()) && id.as_bytes().iter().all(plain);
        id.to_str().ok().filter(|_| valid).map(str::to_owned)
    }
}

/// The unit that counts as one client: an IPv4 address, or the /64 network of an IPv6 address, which one client has for
/// itself (RFC 6177).
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).into()
        }
        address => address,
    }
}

/// The last value of a header that is a list. The list is split before its last value is decoded: the values before it
/// may come from the client and may not be UTF-8.
fn last(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let line = headers.get_all(name).iter().next_back()?;
    let last = line.as_bytes().rsplit(|byte| *byte == b',').next()?;
    Some(last.trim_ascii().to_vec())
}

/// The addresses in `x-forwarded-for`. The list is split before it is decoded, so that a value from the client that is
/// not UTF-8 does not spoil the address that a proxy appended.
fn forwarded_for(headers: &HeaderMap) -> Vec<Option<SocketAddr>> {
    (headers.get_all(FORWARDED_FOR).iter())
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|address| node(std::str::from_utf8(address).ok()?.trim()))
        .collect()
}

/// The address in each element of `forwarded`. Each line of the header is a list by itself.
fn forwarded(headers: &HeaderMap) -> Result<Vec<Option<SocketAddr>>, Malformed> {
    let mut addresses = Vec::new();
    for line in headers.get_all(header::FORWARDED) {
        for element in forwarded::parse(line.as_bytes())? {
            addresses.push(element.client()?);
        }
    }
    Ok(addresses)
}

/// Parses an address with or without port, and IPv6 with or without brackets.
fn node(text: &str) -> Option<SocketAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = |text: &str| {
        text.parse::<IpAddr>()
            .ok()
            .map(|address| (address, 0).into())
    };
    let node: SocketAddr = (text.parse().ok()).or_else(|| address(bare.unwrap_or(text)))?;
    Some(SocketAddr::new(node.ip().to_canonical(), node.port()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn proxies(networks: &[&str], addresses: Addresses) -> Proxies {
        let networks = networks
            .iter()
            .map(|text| Proxies::parse(text).expect("a network"));
        Proxies::new(networks.collect(), addresses)
    }

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    const PEER: ([u8; 4], u16) = ([10, 0, 0, 1], 4000);

    #[track_caller]
    fn assert_client(proxies: &Proxies, headers: &HeaderMap, client: &str) {
        let found = proxies.client(PEER.into(), headers).expect("it is right");
        assert_eq!(found.to_string(), client);
    }

    #[test]
    fn r14_only_trusted_proxies_say_who_the_client_is() {
        let sent = headers(&FORWARDED_FOR, &["203.0.113.7"]);
        assert_client(&Proxies::default(), &sent, "10.0.0.1:4000");
        let others = proxies(&["192.168.0.0/16"], Addresses::XForwardedFor);
        assert_client(&others, &sent, "10.0.0.1:4000");
        let trusted = proxies(&["10.0.0.0/8"], Addresses::XForwardedFor);
        assert_client(&trusted, &sent, "203.0.113.7:0");
        assert_client(&trusted, &HeaderMap::new(), "10.0.0.1:4000");
        let forwarded = proxies(&["10.0.0.0/8"], Addresses::Forwarded);
        assert_client(&forwarded, &sent, "10.0.0.1:4000");
    }

    #[test]
    fn r14_a_client_cannot_put_itself_before_what_the_proxies_say() {
        let trusted = proxies(&["10.0.0.0/8", "::1"], Addresses::XForwardedFor);
        let client = |values: &[&str], client| {
            assert_client(&trusted, &headers(&FORWARDED_FOR, values), client);
        };
        client(&["1.1.1.1, 203.0.113.7"], "203.0.113.7:0");
        client(&["1.1.1.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7:0");
        client(&["1.1.1.1", "203.0.113.7:99,10.0.0.2"], "203.0.113.7:99");
        client(&["10.0.0.3, 10.0.0.2"], "10.0.0.3:0");
        client(&["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2:0");
        client(&["203.0.113.7, "], "10.0.0.1:4000");
        client(&["2001:db8::7"], "[2001:db8::7]:0");
        client(&["203.0.113.7, [::1]:80"], "203.0.113.7:0");
        client(&["::ffff:203.0.113.7"], "203.0.113.7:0");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        let trusted = proxies(&["10.0.0.0/8"], Addresses::Forwarded);
        let client = |values: &[&str], client| {
            assert_client(&trusted, &headers(&header::FORWARDED, values), client);
        };
        client(
            &["for=1.1.1.1, For=\"[2001:db8:cafe::17]:4711\";proto=https"],
            "[2001:db8:cafe::17]:4711",
        );
        client(&["by=10.0.0.9;for=203.0.113.7"], "203.0.113.7:0");
        client(
            &["for=1.1.1.1", "for=203.0.113.7;host=\"a,for=2.2.2.2\""],
            "203.0.113.7:0",
        );
        client(&["for=203.0.113.7, for=_hidden"], "10.0.0.1:4000");
        client(&["for=203.0.113.7, proto=http"], "10.0.0.1:4000");
        client(
            &["for=1.2.3.4;x=\"a\\\"b\", for=203.0.113.7"],
            "203.0.113.7:0",
        );
        // Each line has to be well-formed by itself.
        for lines in [
            &["for=1.2.3.4;x=\"", "for=203.0.113.7"][..],
            &["for=1.2.3.4;x=\"", "\", for=203.0.113.7"],
            &["for=1.2.3.4;x=\", for=203.0.113.7"],
        ] {
            let headers = headers(&header::FORWARDED, lines);
            trusted
                .client(PEER.into(), &headers)
                .expect_err("a quote is open");
            let others = proxies(&["192.168.0.0/16"], Addresses::Forwarded);
            assert_client(&others, &headers, "10.0.0.1:4000");
        }
    }

    /// A client may send bytes that are no text, and the proxy appends to the same line.
    #[test]
    fn r14_bytes_of_a_client_do_not_hide_what_the_proxy_says() {
        let trusted = proxies(&["10.0.0.0/8"], Addresses::XForwardedFor);
        let line = HeaderValue::from_bytes(b"\xff\xfe, 203.0.113.7").expect("a header");
        let sent = HeaderMap::from_iter([(FORWARDED_FOR, line)]);
        assert_client(&trusted, &sent, "203.0.113.7:0");
    }

    #[test]
    fn r14_only_a_trusted_proxy_says_what_was_asked_for() {
        let asked = |proxies: &Proxies, pairs: &[(&HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_str(value).expect("a header"));
            }
            let asked = proxies.asked(PEER.into(), &headers);
            (asked.authority.unwrap_or_default(), asked.scheme)
        };
        let trusted = proxies(&["10.0.0.0/8"], Addresses::XForwardedFor);
        let sent = [
            (&FORWARDED_HOST, "shop.example:8443"),
            (&FORWARDED_PROTO, "HTTPS"),
        ];
        let none = (String::new(), None);
        assert_eq!(
            asked(&trusted, &sent),
            ("shop.example:8443".into(), Some("https"))
        );
        let others = proxies(&["192.168.0.0/16"], Addresses::XForwardedFor);
        assert_eq!(asked(&others, &sent), none);
        assert_eq!(asked(&Proxies::default(), &sent), none);
        // The client sent a value, and the proxy added its own after it.
        let list = [(&FORWARDED_HOST, "evil.example, shop.example")];
        assert_eq!(asked(&trusted, &list).0, "shop.example");
        let two = [(&FORWARDED_HOST, "evil.example"), (&FORWARDED_HOST, "a.b")];
        assert_eq!(asked(&trusted, &two).0, "a.b");
        for wrong in ["", "a b", "user@a.b", "a/b", "a.b\u{7f}", "\"a.b\""] {
            let Ok(value) = HeaderValue::from_str(wrong) else {
                continue;
            };
            let headers = HeaderMap::from_iter([(FORWARDED_HOST, value)]);
            let asked = trusted.asked(PEER.into(), &headers);
            assert_eq!(asked, Asked::default(), "{wrong}");
        }
        let rfc = proxies(&["10.0.0.0/8"], Addresses::Forwarded);
        assert_eq!(asked(&rfc, &sent), none);
        let element = "for=1.1.1.1;host=evil, for=1.2.3.4;Host=\"shop.example:80\";proto=https";
        assert_eq!(
            asked(&rfc, &[(&header::FORWARDED, element)]),
            ("shop.example:80".into(), Some("https"))
        );
    }

    #[test]
    fn r14_only_a_trusted_proxy_names_the_request() {
        let trusted = proxies(&["10.0.0.1"], Addresses::XForwardedFor);
        let id = |proxies: &Proxies, values: &[&str]| {
            proxies.request_id(PEER.into(), &headers(&REQUEST_ID, values))
        };
        assert_eq!(id(&trusted, &["a-1_b.C:2"]).as_deref(), Some("a-1_b.C:2"));
        assert_eq!(id(&Proxies::default(), &["a"]), None);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:1".parse().expect("an address");
        assert!(trusted.trust(mapped.ip()));
        for wrong in ["", "a b", "a\"b", "<a>", "é", &"a".repeat(129)] {
            assert_eq!(id(&trusted, &[wrong]), None, "{wrong}");
        }
        assert_eq!(id(&trusted, &["a", "b"]), None);
        assert_eq!(
            id(&trusted, &[&"a".repeat(128)]).map(|id| id.len()),
            Some(128)
        );
    }

    #[test]
    fn networks_are_written_as_addresses_or_prefixes() {
        for right in ["127.0.0.1", "::1", "10.0.0.0/8", "fd00::/8"] {
            Proxies::parse(right).expect("it is right");
        }
        for wrong in ["", "localhost", "10.0.0.0/33", "10.0.0", "10.0.0.1:80"] {
            let sentence = Proxies::parse(wrong).expect_err("it is wrong");
            assert!(sentence.contains("\"10.0.0.0/8\""), "{sentence}");
        }
    }

    /// Texts that a hostile client may send in `forwarded`: pieces of the grammar, in any order.
    const HOSTILE: &str = "([ -~]|\\PC|\"|\\\\|,|;|=|for=|x=\"|\\\\\"|1\\.2\\.3\\.4|for=10\\.0\\.0\\.2|\"\\[::1\\]\"|, |\t){0,12}";

    proptest! {
        /// Whatever a client sends before the proxy's element, in the same line or in lines before: the address that
        /// the last trusted proxy saw is the client's, or the request is refused.
        #[test]
        fn r14_what_a_client_sends_never_makes_it_another(
            sent in prop::collection::vec(HOSTILE, 1..3),
            proxy in "(by=_p;|by=\"_p\";|x=\"a\\\\\"b\";)?for=(203\\.0\\.113\\.7|\"203\\.0\\.113\\.7(:[0-9]{1,4}|:_p)?\")(;by=\"\")?",
            same_line: bool,
        ) {
            let cases = [
                (FORWARDED_FOR, Addresses::XForwardedFor, "203.0.113.7".to_owned()),
                (header::FORWARDED, Addresses::Forwarded, proxy),
            ];
            for (name, addresses, proxy) in cases {
                let trusted = proxies(&["10.0.0.0/8"], addresses);
                let mut lines = sent.clone();
                match same_line {
                    true => {
                        let last = lines.last_mut().expect("there is one");
                        *last = format!("{last}, {proxy}");
                    }
                    false => lines.push(proxy),
                }
                let mut headers = HeaderMap::new();
                for line in &lines {
                    if let Ok(line) = HeaderValue::from_bytes(line.as_bytes()) {
                        headers.append(&name, line);
                    }
                }
                match trusted.client(PEER.into(), &headers) {
                    Ok(client) => prop_assert_eq!(client.ip().to_string(), "203.0.113.7", "{:?}", lines),
                    Err(_) => prop_assert_eq!(addresses, Addresses::Forwarded),
                }
            }
        }

        /// A well-formed header is accepted, whatever its quoted values contain.
        #[test]
        fn what_proxies_send_is_understood(quoted in "[ -~\t]{0,20}", spaces in "[ \t]{0,2}", before: bool) {
            let quoted = quoted.replace('\\', "\\\\").replace('"', "\\\"");
            let own = format!("for=203.0.113.7;{spaces}x=\"{quoted}\"");
            let line = if before { format!("for=1.2.3.4{spaces},{spaces}{own}") } else { own };
            let trusted = proxies(&["10.0.0.0/8"], Addresses::Forwarded);
            let client = trusted.client(PEER.into(), &headers(&header::FORWARDED, &[&line]));
            prop_assert_eq!(client.map(|client| client.ip().to_string()), Ok("203.0.113.7".to_owned()), "{}", line);
        }
    }
}
