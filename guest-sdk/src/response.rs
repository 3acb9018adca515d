//! Responses: the results of views.

use crate::bindings::amphi::view::types;
#[cfg(any(target_arch = "wasm32", feature = "testing"))]
use crate::host::Host;
use crate::stream::{Producer, Streamed};
use crate::{Error, Headers, Result};
use ::http::StatusCode;
use cookie::Cookie;
use serde::Serialize;

/// The type of a body that says nothing about its content.
const BYTES: &str = "application/octet-stream";

/// A response: status, headers and body.
///
/// Middleware, and views that make sub-requests, also get responses whose body streams ([`Stream`](crate::Stream),
/// [`EventStream`](crate::EventStream), [`Poll`](crate::Poll)).
/// They can change status and headers and pass the response on, and can replace its body, but cannot read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: Headers,
    /// The body. When it streams ([`is_stream`](Self::is_stream)), this is empty; bytes that are put here replace the
    /// stream.
    pub body: Vec<u8>,
    stream: Option<Streamed>,
}

impl Response {
    /// A response with this status, without headers and body.
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            headers: Headers::new(),
            body: Vec::new(),
            stream: None,
        }
    }

    /// Whether the body streams. A stream can be returned once; of several clones of a response, only one.
    pub fn is_stream(&self) -> bool {
        self.stream.is_some() && self.body.is_empty()
    }

    /// The body.
    ///
    /// # Errors
    /// When the body streams.
    pub fn bytes(&self) -> Result<&[u8]> {
        if self.is_stream() {
            return Err(Error::internal(
                "the body of this response streams, so it cannot be read here: a response that streams can only be passed on",
            ));
        }
        Ok(&self.body)
    }

    /// The body as text.
    ///
    /// # Errors
    /// When the body streams, or is not UTF-8.
    pub fn text(&self) -> Result<&str> {
        Ok(std::str::from_utf8(self.bytes()?)?)
    }

    /// Replaces the body. A stream that it replaces is dropped.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) {
        self.body = body.into();
        self.stream = None;
    }

    /// A response that the host writes.
    pub(crate) fn subscription(subscription: types::Subscription) -> Self {
        Self {
            stream: Some(Streamed::Subscription(subscription)),
            ..Self::new(StatusCode::OK)
        }
    }

    /// What the host writes as the body, if it does.
    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) fn subscribes_to(&self) -> Option<&types::Subscription> {
        match &self.stream {
            Some(Streamed::Subscription(subscription)) if self.body.is_empty() => {
                Some(subscription)
            }
            _ => None,
        }
    }

    pub(crate) fn streaming(producer: Producer) -> Self {
        Self {
            stream: Some(Streamed::own(producer)),
            ..Self::of_type(BYTES, Vec::new())
        }
    }

    /// Takes the stream out of the response. `None` when the body is in memory.
    #[cfg(any(target_arch = "wasm32", feature = "testing"))]
    pub(crate) fn take_stream(&mut self) -> Option<Streamed> {
        self.stream.take().filter(|_| self.body.is_empty())
    }

    /// The response as the host gets it. The host, or the instance for it, keeps the function of a stream.
    #[cfg(any(target_arch = "wasm32", feature = "testing"))]
    pub(crate) fn into_raw(mut self, host: &Host) -> types::Response {
        let body = match self.take_stream() {
            None => types::ResponseBody::Bytes(self.body),
            Some(Streamed::PassedOn(number)) => types::ResponseBody::Stream(number),
            Some(Streamed::Subscription(subscription)) => {
                types::ResponseBody::Subscription(subscription)
            }
            Some(Streamed::Own(producer)) => {
                let producer = producer.take();
                types::ResponseBody::Stream(
                    host.keep(producer.expect("a function returns one response, once")),
                )
            }
        };
        types::Response {
            status: self.status.as_u16(),
            headers: self.headers.into_inner(),
            body,
        }
    }

    fn of_type(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let mut response = Self {
            body: body.into(),
            ..Self::new(StatusCode::OK)
        };
        response.headers.append("content-type", content_type);
        response
    }
}

impl From<types::Response> for Response {
    fn from(response: types::Response) -> Self {
        let (body, stream) = match response.body {
            types::ResponseBody::Bytes(bytes) => (bytes, None),
            types::ResponseBody::Stream(number) => (Vec::new(), Some(Streamed::PassedOn(number))),
            types::ResponseBody::Subscription(subscription) => {
                (Vec::new(), Some(Streamed::Subscription(subscription)))
            }
        };
        Self {
            // The response of another guest function may have an invalid status. It becomes 500 here.
            status: StatusCode::from_u16(response.status)
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: response.headers.into(),
            body,
            stream,
        }
    }
}

/// A type that views can return.
///
/// `into_response` turns a value into a `Result<Response>`. Call it when branches of a view return different types:
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/door/{open}")]
/// fn door(Path(open): Path<bool>) -> Result<Response> {
///     if open {
///         return Redirect::see_other("/inside").into_response();
///     }
///     (StatusCode::FORBIDDEN, "closed").with_header("retry-after", "60").into_response()
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let response = App::new().call::<door>(get("/door/false"));
/// # assert_eq!((response.status().as_u16(), response.header("retry-after")), (403, Some("60")));
/// # assert_eq!(App::new().call::<door>(get("/door/true")).header("location"), Some("/inside"));
/// ```
#[diagnostic::on_unimplemented(
    message = "a view cannot return `{Self}`",
    note = "views return `Html`, `Json`, `Text`, `&str`, `String`, `Redirect`, `Stream`, `EventStream`, `Poll`, `StatusCode`, `()`, `Response`, \
            `(StatusCode, …)`, `([(\"name\", value)], …)`, or a `Result` of one of these"
)]
pub trait IntoResponse: Sized {
    /// The response.
    fn into_response(self) -> Result<Response>;

    /// Sets a header.
    fn with_header(self, name: impl Into<String>, value: impl Into<String>) -> With<Self> {
        let mut headers = Headers::new();
        headers.append(name, value);
        With {
            inner: self,
            set: headers,
            append: Headers::new(),
        }
    }

    /// Adds a cookie.
    fn with_cookie(self, cookie: Cookie<'_>) -> With<Self> {
        let mut headers = Headers::new();
        headers.append("set-cookie", cookie.to_string());
        With {
            inner: self,
            set: Headers::new(),
            append: headers,
        }
    }
}

/// A value with added headers, made by [`IntoResponse::with_header`] and [`IntoResponse::with_cookie`].
#[derive(Clone, Debug)]
pub struct With<T> {
    inner: T,
    set: Headers,
    append: Headers,
}

impl<T: IntoResponse> IntoResponse for With<T> {
    fn into_response(self) -> Result<Response> {
        let mut response = self.inner.into_response()?;
        for (name, value) in self.set.iter() {
            response.headers.set(name, value);
        }
        for (name, value) in self.append.iter() {
            response.headers.append(name, value);
        }
        Ok(response)
    }
}

/// A page of HTML. The text is sent as it is: escape the values that you insert, or use templates that escape them,
/// such as maud's.
#[derive(Clone, Copy, Debug)]
pub struct Html<T = String>(pub T);

impl<T: Into<String>> IntoResponse for Html<T> {
    fn into_response(self) -> Result<Response> {
        Ok(Response::of_type("text/html; charset=utf-8", self.0.into()))
    }
}

/// A page written with `maud::html!`.
#[cfg(feature = "maud")]
impl IntoResponse for maud::Markup {
    fn into_response(self) -> Result<Response> {
        Html(self.into_string()).into_response()
    }
}

/// Plain text (`text/plain`). A view that returns `String` or `&str` sends the same response.
#[derive(Clone, Copy, Debug)]
pub struct Text<T = String>(pub T);

impl<T: Into<String>> IntoResponse for Text<T> {
    fn into_response(self) -> Result<Response> {
        Ok(Response::of_type(
            "text/plain; charset=utf-8",
            self.0.into(),
        ))
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Result<Response> {
        Text(self).into_response()
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Result<Response> {
        Text(self).into_response()
    }
}

impl IntoResponse for Vec<u8> {
    fn into_response(self) -> Result<Response> {
        Ok(Response::of_type(BYTES, self))
    }
}

impl<T: Serialize> IntoResponse for crate::extract::Json<T> {
    fn into_response(self) -> Result<Response> {
        let body = serde_json::to_vec(&self.0).map_err(|error| {
            Error::internal(format!("the response cannot be written as JSON: {error}"))
        })?;
        Ok(Response::of_type("application/json", body))
    }
}

/// A redirect to another URL.
#[derive(Clone, Debug)]
pub struct Redirect {
    status: StatusCode,
    location: String,
}

impl Redirect {
    /// 303: the client sends a GET request to the new URL. Return this after the POST of a form.
    pub fn see_other(location: impl Into<String>) -> Self {
        Self {
            status: StatusCode::SEE_OTHER,
            location: location.into(),
        }
    }

    /// 307: the client repeats this request at the new URL, but uses the old URL for later requests.
    pub fn temporary(location: impl Into<String>) -> Self {
        Self {
            status: StatusCode::TEMPORARY_REDIRECT,
            location: location.into(),
        }
    }

    /// 308: the client repeats this request at the new URL, and may use the new URL from now on.
    pub fn permanent(location: impl Into<String>) -> Self {
        Self {
            status: StatusCode::PERMANENT_REDIRECT,
            location: location.into(),
        }
    }
}

impl IntoResponse for Redirect {
    fn into_response(self) -> Result<Response> {
        let mut response = Response::new(self.status);
        response.headers.append("location", self.location);
        Ok(response)
    }
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response> {
        Ok(self)
    }
}

impl IntoResponse for StatusCode {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(self))
    }
}

/// 204, without a body.
impl IntoResponse for () {
    fn into_response(self) -> Result<Response> {
        Ok(Response::new(StatusCode::NO_CONTENT))
    }
}

impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    fn into_response(self) -> Result<Response> {
        Ok(Response {
            status: self.0,
            ..self.1.into_response()?
        })
    }
}

impl<T: IntoResponse, N: Into<String>, V: Into<String>, const C: usize> IntoResponse
    for ([(N, V); C], T)
{
    fn into_response(self) -> Result<Response> {
        let mut response = self.1.into_response()?;
        for (name, value) in self.0 {
            response.headers.set(name, value);
        }
        Ok(response)
    }
}

impl<T: IntoResponse, N: Into<String>, V: Into<String>, const C: usize> IntoResponse
    for (StatusCode, [(N, V); C], T)
{
    fn into_response(self) -> Result<Response> {
        (self.0, (self.1, self.2)).into_response()
    }
}

impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    fn into_response(self) -> Result<Response> {
        self.map_err(Into::into)?.into_response()
    }
}
