//! `header-auth`: takes the user's name from a header that a proxy in front of the app sets, after the proxy has
//! authenticated the user.

use std::net::SocketAddr;

use http::request::Parts;
use http::{HeaderName, StatusCode};

use super::request_head::Refused;
use crate::http::proxies::Proxies;

/// The header, and the proxies that may set it. Anybody can send a header, so it counts only if the connected peer is a
/// trusted proxy.
#[derive(Debug, PartialEq, Eq)]
pub struct HeaderAuth {
    /// The header with the user's name.
    pub header: HeaderName,
    /// The proxies that may set the header.
    pub from: Proxies,
    /// Whether a request without a user is refused.
    pub required: bool,
}

impl HeaderAuth {
    pub(super) fn before(
        &self,
        request: &Parts,
        peer: SocketAddr,
    ) -> Result<Option<String>, Box<Refused>> {
        let trusted = self.from.trust(peer.ip());
        let mut sent = request.headers.get_all(&self.header).iter();
        let user = match (sent.next(), sent.next()) {
            (Some(user), None) if trusted => std::str::from_utf8(user.as_bytes()).ok(),
            _ => None,
        };
        match user.map(str::trim).filter(|user| !user.is_empty()) {
            Some(user) => Ok(Some(user.to_owned())),
            None if !self.required => Ok(None),
            None if trusted => Err(Refused::unauthorized("This page is for known users.")),
            None => Err(Refused::with(
                StatusCode::FORBIDDEN,
                "This page is reached through its proxy only.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::http::proxies::Addresses;

    const PROXY: ([u8; 4], u16) = ([10, 0, 0, 1], 1);
    const ANYBODY: ([u8; 4], u16) = ([203, 0, 113, 7], 1);

    fn user(
        required: bool,
        peer: ([u8; 4], u16),
        values: &[&str],
    ) -> Result<Option<String>, StatusCode> {
        let networks = vec![Proxies::parse("10.0.0.0/8").expect("a network")];
        let auth = HeaderAuth {
            header: HeaderName::from_static("x-forwarded-user"),
            from: Proxies::new(networks, Addresses::default()),
            required,
        };
        let request = (values.iter()).fold(Request::builder(), |request, value| {
            request.header(&auth.header, *value)
        });
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        auth.before(&parts, peer.into())
            .map_err(|refused| refused.failure.status)
    }

    #[test]
    fn r14_only_a_trusted_proxy_names_the_user() {
        assert_eq!(user(true, PROXY, &["ann"]), Ok(Some("ann".into())));
        assert_eq!(user(true, PROXY, &[" Zoë "]), Ok(Some("Zoë".into())));
        assert_eq!(user(true, ANYBODY, &["ann"]), Err(StatusCode::FORBIDDEN));
        assert_eq!(user(false, ANYBODY, &["ann"]), Ok(None));
    }

    #[test]
    fn without_a_name_nobody_comes_in() {
        for values in [&[][..], &[""], &[" "], &["ann", "bob"]] {
            assert_eq!(user(true, PROXY, values), Err(StatusCode::UNAUTHORIZED));
            assert_eq!(user(false, PROXY, values), Ok(None));
        }
    }
}
