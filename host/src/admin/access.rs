//! Who may use the admin API.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use ring::digest::{SHA256, digest};

use crate::config::{Scope, Token};

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    /// The name of the token, or of the user of this machine.
    pub(super) name: String,
    /// Where it comes from.
    pub(super) peer: String,
}

/// A request that is not done, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, sentence: impl Into<String>) -> Refusal {
        Refusal {
            status,
            sentence: sentence.into(),
        }
    }

    pub(super) fn add_headers<B>(&self, response: &mut Response<B>) {
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
    }
}

/// Finds out whose request this is, and whether it may do what needs this scope. `local`: the user of this machine who
/// has connected over a socket in the file system.
pub(super) fn check(
    tokens: &[Token],
    local: Option<&str>,
    headers: &HeaderMap,
    needed: Scope,
    peer: &str,
) -> Result<Who, Refusal> {
    let who = |name: &str| Who {
        name: name.to_owned(),
        peer: peer.to_owned(),
    };
    if let (Some(user), true) = (local, tokens.is_empty()) {
        return Ok(who(user));
    }
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "this needs a token: `authorization: Bearer …` (the commands take it from the variable AMPHI_TOKEN)",
        ));
    };
    let scheme = given.as_bytes().split_at_checked(7);
    let text = scheme.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let hash = text.map(|(_, text)| digest(&SHA256, text.trim_ascii()));
    // Only hashes are compared: how long that takes says nothing about the token.
    let found = hash.and_then(|hash| tokens.iter().find(|token| token.sha256 == hash.as_ref()));
    let Some(token) = found else {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "this place has no such token: `[deploy.tokens]` of its amphi-host.toml lists the hashes of those that it has",
        ));
    };
    if !token.scopes.iter().any(|scope| *scope >= needed) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "the token `{}` may not do this: it needs the scope `{}`",
                token.name,
                needed.as_str()
            ),
        ));
    }
    Ok(who(&token.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_what_its_scopes_say() {
        let token = |name: &str, text: &str, scope| Token {
            name: name.to_owned(),
            sha256: digest(&SHA256, text.as_bytes())
                .as_ref()
                .try_into()
                .expect("32 bytes"),
            scopes: vec![scope],
        };
        let tokens = [
            token("eye", "aaa", Scope::Read),
            token("pager", "bbb", Scope::Switch),
            token("ci", "ccc", Scope::Deploy),
        ];
        let asked = |given: Option<&str>, local, tokens: &[Token], needed| {
            let given = given.map(|text| (header::AUTHORIZATION, text.parse().expect("a header")));
            let headers = given.into_iter().collect();
            let checked = check(tokens, local, &headers, needed, "peer");
            checked.map(|who| who.name).map_err(|it| it.status.as_u16())
        };
        let with = |given, needed| asked(Some(given), None, &tokens, needed);
        assert_eq!(with("Bearer aaa", Scope::Read), Ok("eye".to_owned()));
        assert_eq!(with("bearer aaa", Scope::Switch), Err(403));
        assert_eq!(with("Bearer bbb", Scope::Read), Ok("pager".to_owned()));
        assert_eq!(with("Bearer bbb", Scope::Deploy), Err(403));
        assert_eq!(with("Bearer ccc", Scope::Deploy), Ok("ci".to_owned()));
        for wrong in ["Bearer ddd", "Bearer ", "Bearer", "", "Basic aaa", "aaa"] {
            assert_eq!(with(wrong, Scope::Read), Err(401), "{wrong}");
        }
        assert_eq!(asked(None, None, &tokens, Scope::Read), Err(401));
        // Whoever may open the socket is who it says, unless there are tokens.
        let root = Some("root");
        assert_eq!(asked(None, root, &[], Scope::Deploy), Ok("root".to_owned()));
        assert_eq!(asked(None, root, &tokens, Scope::Read), Err(401));
    }
}
