//! The addresses that outbound requests may go to. A granted origin has a name, and DNS can resolve a name to any
//! address: for example to the machine itself, to its private network, or to the address where clouds serve
//! credentials.
//!
//! Addresses that are not public are allowed in two cases only: a grant has the address itself
//! (`http://127.0.0.1:8080`, or `localhost`, which always means the machine itself), or the address is in
//! `http_private`. A name is resolved for each new connection. Its addresses are checked then, and the connection goes
//! to one of the checked addresses, so a different answer of DNS later has no effect. Modules with different
//! `http_private` share no connections.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Networks that are not on the internet (RFC 6890 and its registries), or have a special meaning there.
const NOT_PUBLIC_V4: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    // Azure's services for its virtual machines.
    "168.63.129.16/32",
];
/// Public IPv6 addresses are those in this network that are not in [`NOT_PUBLIC_V6`].
const PUBLIC_V6: &str = "2000::/3";
const NOT_PUBLIC_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];
/// IPv6 addresses that contain an IPv4 address, for a translator (RFC 6052). They are public if the IPv4 address is.
const TRANSLATED: &str = "64:ff9b::/96";

static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    (NOT_PUBLIC_V4.iter().chain(&NOT_PUBLIC_V6))
        .map(|text| network(text))
        .collect()
});
static PUBLIC_V6_NETWORK: LazyLock<IpNet> = LazyLock::new(|| network(PUBLIC_V6));
static TRANSLATED_NETWORK: LazyLock<IpNet> = LazyLock::new(|| network(TRANSLATED));
static LOOPBACK: LazyLock<[IpNet; 2]> =
    LazyLock::new(|| [network("127.0.0.0/8"), network("::1/128")]);

fn network(text: &str) -> IpNet {
    text.parse().expect("it is a network")
}

/// Networks that requests may lead to although they are not public.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Allowed(Vec<IpNet>);

impl Allowed {
    pub(super) fn new(networks: &[IpNet]) -> Allowed {
        Allowed(networks.to_vec())
    }

    /// Also allows the addresses of the machine itself.
    pub(super) fn with_loopback(mut self) -> Allowed {
        self.0.extend(*LOOPBACK);
        self
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.0.iter().any(|network| network.contains(&address))
    }
}

fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V6(address) if TRANSLATED_NETWORK.contains(&IpAddr::V6(address)) => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        address => {
            let public = address.is_ipv4() || PUBLIC_V6_NETWORK.contains(&address);
            public && !NOT_PUBLIC.iter().any(|network| network.contains(&address))
        }
    }
}

/// The IP address in a URL. None: the URL has a name.
pub(super) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let v6 = (host.strip_prefix('[')).and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

/// Whether a URL's name always means the machine itself (RFC 6761, 6.3).
pub(super) fn is_localhost(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    host == "localhost" || host.ends_with(".localhost")
}

/// Resolves names, and returns the allowed addresses only.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Allowed);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(Unresolved)?;
            let (good, bad): (Vec<SocketAddr>, Vec<_>) =
                found.partition(|address| allowed.has(address.ip()));
            match (good.is_empty(), bad.first()) {
                (true, Some(address)) => Err(NotAllowed {
                    name: name.as_str().to_owned(),
                    address: address.ip(),
                }
                .into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

/// An address that is neither public nor granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotAllowed {
    pub(super) name: String,
    pub(super) address: IpAddr,
}

impl NotAllowed {
    /// The error text for a view of this module.
    pub(super) fn sentence(&self, module: &str) -> String {
        let NotAllowed { name, address } = self;
        let leads = match name.is_empty() {
            true => format!("{address} is"),
            false => format!("`{name}` leads to {address}, which is"),
        };
        format!(
            "module `{module}` may not send requests there: {leads} not a public address; add \"{address}\", or its network, to `http_private` of `[modules.{module}]` if it is meant to be reached"
        )
    }
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` leads to {}", self.name, self.address)
    }
}

impl std::error::Error for NotAllowed {}

/// A name that no address was found for.
#[derive(Debug)]
pub(super) struct Unresolved(std::io::Error);

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unresolved {}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_is_not_on_the_internet_is_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(address(text)), "{text}");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(address(text)), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_is_reached_in_every_form() {
        let allowed = Allowed::new(&[network("10.0.0.0/8")]);
        for (text, has) in [
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("127.0.0.1", false),
            ("8.8.8.8", true),
        ] {
            assert_eq!(allowed.has(address(text)), has, "{text}");
        }
        assert!(allowed.with_loopback().has(address("::1")));
    }

    #[test]
    fn urls_have_addresses_in_many_forms() {
        for url in [
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://１２７.0.0.1/",
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(literal(&url), Some(address("127.0.0.1")), "{url}");
        }
        let v6 = Url::parse("http://[::ffff:127.0.0.1]:80/").expect("a URL");
        assert!(literal(&v6).is_some_and(|address| !is_public(address)));
        for (url, local) in [
            ("http://localhost:1/", true),
            ("http://a.LOCALHOST./", true),
            ("http://localhost.example/", false),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!((literal(&url), is_localhost(&url)), (None, local), "{url}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_when_they_are_resolved() {
        let name = || "localhost".parse::<Name>().expect("a name");
        let refused = Resolver(Allowed::default()).resolve(name()).await;
        let Err(refused) = refused else {
            panic!("it leads to the machine itself");
        };
        let refused = refused.downcast::<NotAllowed>().expect("that is why");
        let sentence = refused.sentence("shop");
        assert!(
            sentence.contains("`localhost`") && sentence.contains("`http_private`"),
            "{sentence}"
        );
        let allowed = Resolver(Allowed::default().with_loopback());
        assert!(allowed.resolve(name()).await.is_ok());
    }
}
