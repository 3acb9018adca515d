//! Forms that only the app's own pages can send.
//!
//! Browsers send an app's cookies with a form that another site has made, too (cross-site request forgery). So each
//! form carries a token that only the app's own pages know: the token is in the session, which other sites cannot read.
//! Each page shows the token under a different random mask, so that the token cannot be guessed from the lengths of
//! compressed pages (BREACH). A request is also refused when the browser's own headers say that another site sent it.

use crate::extract::{Body, BodyUse, Settings};
use crate::mode::Mode;
use crate::session::Session;
use crate::{Context, Error, FromRequest, Headers, Request, Result, multipart};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;
use subtle::ConstantTimeEq as _;

/// The name of the form field, and of the session value, that holds the token.
pub(crate) const FIELD: &str = "csrf_token";
pub(crate) const HEADER: &str = "x-csrf-token";
const TOKEN_BYTES: usize = 16;

/// The CSRF token of this session: an extractor for views that show a form.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/notes/new")]
/// fn new(csrf: Csrf) -> Html {
///     Html(format!(r#"<form method="post" action="/notes">{}<input name="text"></form>"#, csrf.field()))
/// }
///
/// #[derive(Deserialize)]
/// struct Note { text: String }
///
/// #[view(post, "/notes")]
/// async fn add(Protected(Form(note)): Protected<Form<Note>>) -> String {
///     note.text
/// }
/// # use amphi_sdk::testing::{App, get, post};
/// # let app = App::new();
/// # assert!(app.call::<new>(get("/notes/new")).text().contains(r#"<input type="hidden" name="csrf_token" value=""#));
/// # assert_eq!(app.call::<add>(post("/notes").csrf().form(&[("text", "Tea")])).text(), "Tea");
/// # assert_eq!(app.call::<add>(post("/notes").form(&[("text", "Tea")])).status().as_u16(), 403);
/// ```
///
/// In a maud template, write `form method="post" { (csrf.field()) … }`. Scripts send [`token`](Self::token) in the header
/// `x-csrf-token`.
#[derive(Clone, Debug)]
pub struct Csrf {
    token: String,
}

impl Csrf {
    /// The token under a random mask, which differs from page to page.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The hidden field for a form.
    pub fn field(&self) -> CsrfField<'_> {
        CsrfField(&self.token)
    }
}

impl FromRequest for Csrf {
    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        let session = Session::of(cx, request)?;
        let token = match token_of(&session) {
            Some(token) => token,
            None => {
                let token = random()?;
                session.set_if_missing(FIELD, URL_SAFE_NO_PAD.encode(token))?;
                token
            }
        };
        Ok(Self {
            token: disguise(token)?,
        })
    }

    fn check_settings(setting: Settings<'_>) -> Result<()> {
        Session::check_settings(setting)
    }
}

/// A hidden form field with the token. It is HTML, to be inserted into a page as it is: by maud or by `format!`.
#[derive(Clone, Copy, Debug)]
pub struct CsrfField<'a>(&'a str);

impl fmt::Display for CsrfField<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token has only characters that need no escaping in HTML.
        write!(
            f,
            r#"<input type="hidden" name="{FIELD}" value="{}">"#,
            self.0
        )
    }
}

#[cfg(feature = "maud")]
impl maud::Render for CsrfField<'_> {
    fn render_to(&self, buffer: &mut String) {
        use fmt::Write as _;
        write!(buffer, "{self}").expect("writing to a string cannot fail");
    }
}

/// Accepts only requests that the app's own pages have sent, and then runs the extractor `T`:
/// `Protected(Form(new)): Protected<Form<New>>`. For a form with files, write `Protected<Form<…>>` as well, or
/// `Protected<Multipart>`. For a request whose body does not matter, write `_: Protected`.
///
/// A request must carry the token of its session, in the field that [`Csrf::field`] makes or in the header
/// `x-csrf-token`. A request without this token is refused with 403, and so is one that another site sent, according to
/// the browser's headers.
#[derive(Clone, Copy, Debug)]
pub struct Protected<T = Body>(pub T);

impl<T: FromRequest> FromRequest for Protected<T> {
    const BODY: BodyUse = match T::BODY {
        BodyUse::Unused | BodyUse::Whole => BodyUse::Whole,
        BodyUse::Beginning | BodyUse::Piecewise => BodyUse::Beginning,
    };
    const LOADS: bool = T::LOADS;

    fn check_settings(setting: Settings<'_>) -> Result<()> {
        Session::check_settings(setting)?;
        T::check_settings(setting)
    }

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        check(cx, request)?;
        T::from_request(cx, request).map(Self)
    }

    fn load<'a, M: Mode>(
        cx: &'a Context<M>,
        request: &'a mut Request,
    ) -> M::Output<'a, Result<Self>>
    where
        Self: 'a,
    {
        match check(cx, request) {
            Ok(()) => M::map(T::load(cx, request), |loaded| loaded.map(Self)),
            Err(refused) => M::ready(Err(refused)),
        }
    }
}

fn check<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<()> {
    let allowed = cx.config("amphi.allowed_origins").unwrap_or_default();
    check_site(&request.headers, &allowed)?;
    let session = Session::of(cx, request)?;
    check_token(&session, request)
}

/// Refuses a request when the browser's headers say that another site sent it, unless `allowed_origins` of the app names
/// that site.
fn check_site(headers: &Headers, allowed: &str) -> Result<()> {
    let from_elsewhere = |who: &str, way_out: &str| {
        let detail = format!("CSRF: the browser says that {who} has sent this request: {way_out}");
        Err(
            Error::forbidden("another site has sent this; open this one and try again")
                .with_detail(detail),
        )
    };
    let origin = headers.get("origin");
    if origin.is_some_and(|origin| allowed.split(' ').any(|known| known == origin)) {
        return Ok(());
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return match site {
            "same-origin" | "none" => Ok(()),
            other => from_elsewhere(
                &format!("a page of {} that is {other}", origin.unwrap_or("a site")),
                "if its forms are meant to come here, add that origin to `allowed_origins` of `[app]`",
            ),
        };
    }
    match (origin, headers.get("host")) {
        // Under some referrer policies, browsers leave `origin` out or send `null`, even to the site itself.
        (None | Some("null"), _) | (_, None) => Ok(()),
        (Some(origin), Some(host)) => {
            let (_, authority) = origin.split_once("://").unwrap_or(("", origin));
            match without_port(authority).eq_ignore_ascii_case(without_port(host)) {
                true => Ok(()),
                false => from_elsewhere(
                    &format!("a page of {origin}"),
                    &format!(
                        "this is `{host}`, as far as the request tells. If a proxy is in front, have it send \
                         `x-forwarded-host` and name it in `trusted_proxies` of `[server]`, or have it pass `host` \
                         on; or add the origin to `allowed_origins` of `[app]`"
                    ),
                ),
            }
        }
    }
}

/// The host without its port. Ports are not compared, since a proxy in front may listen on a different port.
fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

fn check_token(session: &Session, request: &mut Request) -> Result<()> {
    let refused = |detail: &str| {
        Err(
            Error::forbidden("this form has expired: reload its page and send it again")
                .with_detail(format!("CSRF: {detail}")),
        )
    };
    let in_form = match multipart::boundary(&request.headers) {
        Ok(Some(boundary)) => multipart::field(request.beginning(), &boundary, FIELD),
        _ => take_field(request),
    };
    let given = match request.headers.get(HEADER) {
        Some(token) => Some(token.to_owned()),
        None => in_form,
    };
    let Some(given) = given else {
        return refused(
            if multipart::boundary(&request.headers).is_ok_and(|boundary| boundary.is_some()) {
                "the request has no token in its first 64 KiB: put `csrf.field()` first into its form, or send the header `x-csrf-token`"
            } else {
                "the request has no token: put `csrf.field()` into its form, or send the header `x-csrf-token`"
            },
        );
    };
    // The session may have a token only because `Csrf`, another parameter of the view, has just made it. The form
    // cannot have such a token, so it does not count.
    let came = token_of(session).filter(|_| !session.was_missing(FIELD));
    let Some(wanted) = came else {
        let over_https = request.headers.get("x-forwarded-proto") == Some("https");
        if session.may_be_lost() && !over_https {
            return Err(Error::forbidden(
                "the browser has sent no session with this form: reload its page and send it again; over plain \
                 http, it keeps none",
            )
            .with_detail(
                "CSRF: the session has no token: no cookie of it came along. It is `Secure`, so browsers keep it over https alone: put TLS in \
                 front, with the proxy in `trusted_proxies` of `[server]` and sending `x-forwarded-proto`; or, if the \
                 app is for plain http, set `settings = { session_secure = false }` in the module's table in amphi.toml",
            ));
        }
        return refused(
            "the session has no token: it is over, its key has changed, or the browser keeps no cookies of this app",
        );
    };
    match revealed(&given) {
        Some(given) if bool::from(given.ct_eq(&wanted)) => Ok(()),
        _ => refused("the token is not the one of this session"),
    }
}

/// Removes the token from the form and returns it. So `Form` reads only the fields that the page's author wrote.
fn take_field(request: &mut Request) -> Option<String> {
    let is_form =
        (request.headers).content_type_is(|name| name == "application/x-www-form-urlencoded");
    if !is_form || request.is_with_host() {
        return None;
    }
    let body = request.body();
    let mut token = None;
    let mut rest: Vec<&[u8]> = Vec::new();
    for field in body.split(|byte| *byte == b'&') {
        match field.strip_prefix(FIELD.as_bytes()) {
            Some([b'=', value @ ..]) => {
                token = token.or_else(|| String::from_utf8(value.to_vec()).ok());
            }
            _ => rest.push(field),
        }
    }
    let rest = rest.join(&b'&');
    request.set_body(rest);
    token
}

type Token = [u8; TOKEN_BYTES];

fn token_of(session: &Session) -> Option<Token> {
    let text: String = session.get(FIELD)?;
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn random() -> Result<Token> {
    let mut bytes = Token::default();
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::internal(format!("the host provides no random numbers: {error}"))
    })?;
    Ok(bytes)
}

/// A random mask, followed by the token under that mask (XOR), in base64.
fn disguise(token: Token) -> Result<String> {
    let mask = random()?;
    let masked: Vec<u8> = mask.iter().zip(token).map(|(a, b)| a ^ b).collect();
    Ok(URL_SAFE_NO_PAD.encode([&mask[..], &masked].concat()))
}

fn revealed(text: &str) -> Option<Token> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    if bytes.len() != 2 * TOKEN_BYTES {
        return None;
    }
    let (mask, masked) = bytes.split_at(TOKEN_BYTES);
    let token: Vec<u8> = mask.iter().zip(masked).map(|(a, b)| a ^ b).collect();
    token.try_into().ok()
}

/// A new token, as the session value and as the masked token of a form, for tests.
#[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
pub(crate) fn pair() -> (String, String) {
    let token = random().expect("a native test has random numbers");
    let given = disguise(token).expect("a native test has random numbers");
    (URL_SAFE_NO_PAD.encode(token), given)
}

#[cfg(test)]
mod tests {
    use super::{check_site, disguise, revealed};
    use crate::Headers;

    #[test]
    fn a_token_is_the_same_under_every_mask() {
        let token = [7; 16];
        let (one, other) = (
            disguise(token).expect("random"),
            disguise(token).expect("random"),
        );
        assert_ne!(one, other);
        assert_eq!(
            (revealed(&one), revealed(&other)),
            (Some(token), Some(token))
        );
        assert_eq!(
            (revealed(""), revealed("AAAA"), revealed("é")),
            (None, None, None)
        );
    }

    #[test]
    fn the_site_a_request_comes_from_is_checked() {
        for (headers, good) in [
            (&[][..], true),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://other.example"),
                    ("host", "a"),
                ][..],
                true,
            ),
            (&[("sec-fetch-site", "none")][..], true),
            (&[("sec-fetch-site", "same-site")][..], false),
            (&[("sec-fetch-site", "cross-site")][..], false),
            (
                &[("origin", "https://a.example"), ("host", "A.example")][..],
                true,
            ),
            (
                &[("origin", "http://[::1]:3000"), ("host", "[::1]:3000")][..],
                true,
            ),
            (&[("origin", "null"), ("host", "a.example")][..], true),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "https://b.example"),
                    ("host", "a.example"),
                ][..],
                false,
            ),
            (
                &[("origin", "https://b.example"), ("host", "a.example")][..],
                false,
            ),
            (
                &[
                    ("origin", "https://a.example.b.example"),
                    ("host", "a.example"),
                ][..],
                false,
            ),
            (
                &[("origin", "https://[::2]:80"), ("host", "[::1]:80")][..],
                false,
            ),
        ] {
            let list: Vec<(String, String)> = (headers.iter())
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(
                check_site(&Headers::from(list.clone()), "").is_ok(),
                good,
                "{headers:?}"
            );
            let allowed = "https://c.example https://b.example";
            let by_b = list.contains(&("origin".to_owned(), "https://b.example".to_owned()));
            assert_eq!(
                check_site(&Headers::from(list), allowed).is_ok(),
                good || by_b,
                "{headers:?}"
            );
        }
    }
}
