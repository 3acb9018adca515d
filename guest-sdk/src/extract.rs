//! Extractors: the parameters of views.
//!
//! Each parameter of a view, except the context, is an extractor: a type that reads a part of the request, or refuses the
//! request with a status and a message that a client can act on. At most one extractor reads the body, and it is the last.

mod fields;
mod form;
mod json;
mod path;
mod upload;
mod value;

pub(crate) use form::query_value;
pub use form::{Form, Query};
pub use json::Json;
pub use path::Path;
pub use upload::Upload;

use crate::body::{BodyReader, Content};
use crate::context::Context;
use crate::mode::Mode;
use crate::{Error, Headers, Request, Result, StatusCode};
use cookie::Cookie;

/// How an extractor uses the body of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyUse {
    /// The extractor does not read the body.
    Unused,
    /// The whole body is in memory when the extractor runs.
    Whole,
    /// The first 64 KiB are in memory when the extractor runs. The view reads the rest.
    Beginning,
    /// The view reads the body, piece by piece.
    Piecewise,
}

/// An extractor: a type that views can take as a parameter.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// struct Language(String);
///
/// impl FromRequest for Language {
///     fn from_request<M: Mode>(_cx: &Context<M>, request: &mut Request) -> Result<Self> {
///         let wanted = request.headers.get("accept-language").unwrap_or("en");
///         Ok(Language(wanted.chars().take(2).collect()))
///     }
/// }
///
/// #[view(get, "/hello")]
/// fn hello(Language(language): Language) -> &'static str {
///     if language == "de" { "Hallo" } else { "Hello" }
/// }
/// # use amphi_sdk::testing::{App, get};
/// # assert_eq!(App::new().call::<hello>(get("/hello").header("accept-language", "de-AT")).text(), "Hallo");
/// ```
#[diagnostic::on_unimplemented(
    message = "a view cannot take `{Self}`",
    label = "not an extractor",
    note = "views take `cx: &Context` first, and then extractors: `Path`, `Query`, `Headers`, `Cookies`, \
            `Session`, `Csrf` and, as the last, one of `Form`, `Json`, `Body`, `BodyReader`, `Multipart`, `Request`, `Protected`; \
            functions with `#[socket]` take `SocketEvent` as the last"
)]
pub trait FromRequest: Sized {
    /// How the extractor uses the body.
    const BODY: BodyUse = BodyUse::Unused;

    /// Reads the request. When this returns an error, the host answers with it and the view does not run.
    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self>;

    /// Whether the extractor waits for the host, for example for a database statement. If so, [`load`](Self::load) is
    /// called instead of `from_request`. The macro [`extractor`](macro@crate::extractor) implements both methods.
    const LOADS: bool = false;

    /// Like [`from_request`](Self::from_request), for extractors that wait for the host.
    fn load<'a, M: Mode>(
        cx: &'a Context<M>,
        request: &'a mut Request,
    ) -> M::Output<'a, Result<Self>>
    where
        Self: 'a,
    {
        M::ready(Self::from_request(cx, request))
    }

    /// Whether the request has nothing for this extractor. If so, an `Option` of the extractor is `None`.
    fn is_absent(_request: &Request) -> bool {
        false
    }

    /// Checks the settings and secrets of the module that the extractor needs. `setting` looks one up by its name. The
    /// host runs this check when it loads the module, so a missing setting fails the start or the reload, not the first
    /// request.
    fn check_settings(_setting: Settings<'_>) -> Result<()> {
        Ok(())
    }
}

/// Looks up a setting or a secret of the module by its name.
pub type Settings<'a> = &'a dyn Fn(&str) -> Option<String>;

impl FromRequest for Request {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        use std::mem::take;
        Ok(Request {
            content: Content::Bytes(request.take_body()),
            method: take(&mut request.method),
            path: take(&mut request.path),
            query: take(&mut request.query),
            headers: take(&mut request.headers),
            params: take(&mut request.params),
        })
    }
}

impl FromRequest for Headers {
    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(request.headers.clone())
    }
}

/// The body as bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Body(pub Vec<u8>);

impl FromRequest for Body {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self(request.take_body()))
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}

impl FromRequest for BodyReader {
    const BODY: BodyUse = BodyUse::Piecewise;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self::new(std::mem::replace(
            &mut request.content,
            Content::Bytes(Vec::new()),
        )))
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}

/// The cookies of the request.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/visits")]
/// fn visits(cookies: Cookies) -> impl IntoResponse {
///     let visits: u32 = cookies.get("visits").and_then(|text| text.parse().ok()).unwrap_or(0);
///     let cookie = Cookie::build(("visits", (visits + 1).to_string())).path("/").http_only(true);
///     format!("{visits} before").with_cookie(cookie.build())
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let response = App::new().call::<visits>(get("/visits").header("cookie", "a=b; visits=2"));
/// # assert_eq!(response.text(), "2 before");
/// # assert_eq!(response.header("set-cookie"), Some("visits=3; HttpOnly; Path=/"));
/// ```
#[derive(Clone, Debug)]
pub struct Cookies(Vec<Cookie<'static>>);

impl Cookies {
    /// The value of the cookie of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|cookie| cookie.name() == name)
            .map(Cookie::value)
    }

    pub(crate) fn of(headers: &Headers) -> Self {
        let pairs = headers
            .get_all("cookie")
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.split_once('='));
        // Like browsers, trim only spaces and tabs. Otherwise another spelling of a name could pass for a `__Host-` cookie.
        let trimmed = |text: &str| text.trim_matches([' ', '\t']).to_owned();
        let cookies = pairs.map(|(name, value)| Cookie::new(trimmed(name), trimmed(value)));
        Self(cookies.collect())
    }

    /// All cookies: name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(Cookie::name_value)
    }
}

impl FromRequest for Cookies {
    /// Skips malformed cookies instead of refusing the request: a browser sends back whatever sites have set.
    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self::of(&request.headers))
    }
}

/// `None` when the request has nothing for the extractor, or when the extractor refuses the request with 401 (nobody is
/// signed in). Any other refusal stays an error.
impl<T: FromRequest> FromRequest for Option<T> {
    const BODY: BodyUse = T::BODY;

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        if T::is_absent(request) {
            return Ok(None);
        }
        some_or_nobody(T::from_request(cx, request))
    }

    const LOADS: bool = T::LOADS;

    fn load<'a, M: Mode>(
        cx: &'a Context<M>,
        request: &'a mut Request,
    ) -> M::Output<'a, Result<Self>>
    where
        Self: 'a,
    {
        if T::is_absent(request) {
            return M::ready(Ok(None));
        }
        M::map(T::load(cx, request), some_or_nobody)
    }

    fn check_settings(setting: Settings<'_>) -> Result<()> {
        T::check_settings(setting)
    }
}

fn some_or_nobody<T>(extracted: Result<T>) -> Result<Option<T>> {
    match extracted {
        Err(error) if error.status() == StatusCode::UNAUTHORIZED => Ok(None),
        extracted => extracted.map(Some),
    }
}

/// Passes a refusal of the extractor to the view, which can answer it with a page of its own.
impl<T: FromRequest> FromRequest for Result<T, Error> {
    const BODY: BodyUse = T::BODY;

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(T::from_request(cx, request))
    }

    const LOADS: bool = T::LOADS;

    fn load<'a, M: Mode>(
        cx: &'a Context<M>,
        request: &'a mut Request,
    ) -> M::Output<'a, Result<Self>>
    where
        Self: 'a,
    {
        M::map(T::load(cx, request), Ok)
    }
}
