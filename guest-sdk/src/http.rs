//! Outbound HTTP requests.

pub use ::http::StatusCode;

use crate::host::{self, Host, InboundResponse, OutboundRequest};
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Headers, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::time::Duration;

/// How an outbound request failed; see [`Error::http_kind`](crate::Error::http_kind).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The module has no grant for this origin.
    Denied,
    /// The request is malformed: its URL, its method or one of its headers.
    Invalid,
    /// No response arrived in time.
    Timeout,
    /// No connection could be made, or the connection broke.
    Connection,
    /// The response is over the host's limit.
    TooLarge,
    /// The host has too many outbound requests in flight.
    Unavailable,
    /// The client of this request has disconnected, or the time limit of this request is over.
    Aborted,
}

/// Sends outbound requests to the origins that are listed in `http` of the module's table in `amphi.toml`. A request
/// whose URL is only a path, such as `/weather`, goes to this same app and needs the grant `self`.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/both")]
/// async fn both(cx: &Context) -> Result<String> {
///     let (a, b) = try_join!(cx.http().get("/a").send(), cx.http().get("/b").send())?;
///     Ok(a.text()? + &b.text()?)
/// }
/// # use amphi_sdk::testing::{App, get, reply};
/// # let app = App::new().on_get("/a", reply("one ")).on_get("/b", reply("two"));
/// # assert_eq!(app.call::<both>(get("/both")).text(), "one two");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Http<'a, M: Mode> {
    host: &'a Host,
    mode: PhantomData<M>,
}

impl<'a, M: Mode> Http<'a, M> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self {
            host,
            mode: PhantomData,
        }
    }

    /// A GET request.
    pub fn get(self, url: impl Into<String>) -> RequestBuilder<'a, M> {
        self.request("GET", url)
    }

    /// A POST request.
    pub fn post(self, url: impl Into<String>) -> RequestBuilder<'a, M> {
        self.request("POST", url)
    }

    /// A PUT request.
    pub fn put(self, url: impl Into<String>) -> RequestBuilder<'a, M> {
        self.request("PUT", url)
    }

    /// A PATCH request.
    pub fn patch(self, url: impl Into<String>) -> RequestBuilder<'a, M> {
        self.request("PATCH", url)
    }

    /// A DELETE request.
    pub fn delete(self, url: impl Into<String>) -> RequestBuilder<'a, M> {
        self.request("DELETE", url)
    }

    /// A request of any method.
    pub fn request(
        self,
        method: impl Into<String>,
        url: impl Into<String>,
    ) -> RequestBuilder<'a, M> {
        let request = OutboundRequest {
            method: method.into(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout_ms: None,
        };
        RequestBuilder {
            host: self.host,
            request: Ok(request),
            mode: PhantomData,
        }
    }
}

/// A request before it is sent.
#[derive(Debug)]
#[must_use = "a request does nothing until `send` is called"]
pub struct RequestBuilder<'a, M: Mode> {
    host: &'a Host,
    /// The request, or the first error that occurred while it was built. `send` returns that error.
    request: Result<OutboundRequest>,
    mode: PhantomData<M>,
}

impl<M: Mode> RequestBuilder<'_, M> {
    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Ok(request) = &mut self.request {
            request
                .headers
                .push((name.into().to_ascii_lowercase(), value.into()));
        }
        self
    }

    /// Limits how long this request may take. Without this, the time limit of the view applies.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        if let Ok(request) = &mut self.request {
            let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
            request.timeout_ms = Some(ms.max(1));
        }
        self
    }

    /// Sends these bytes.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        if let Ok(request) = &mut self.request {
            request.body = body.into();
        }
        self
    }

    /// Sends the value as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        self.encoded(
            "application/json",
            serde_json::to_vec(value).map_err(Error::from),
        )
    }

    /// Sends the value as a form (`application/x-www-form-urlencoded`).
    pub fn form<T: Serialize + ?Sized>(self, value: &T) -> Self {
        let body = serde_html_form::to_string(value)
            .map(String::into_bytes)
            .map_err(Error::from);
        self.encoded("application/x-www-form-urlencoded", body)
    }

    fn encoded(mut self, content_type: &str, body: Result<Vec<u8>>) -> Self {
        match body {
            Ok(body) => self.header("content-type", content_type).body(body),
            Err(error) => {
                if let Ok(request) = self.request {
                    self.request =
                        Err(error.with_detail(format!("the body of {}", title(&request))));
                }
                self
            }
        }
    }
}

impl RequestBuilder<'_, Sync> {
    /// Sends the request and waits for the whole response. A response with a status of 400 or above is not an error:
    /// [`Response::error_for_status`] turns it into one. Redirects are not followed.
    pub fn send(self) -> Result<Response> {
        let request = self.request?;
        let title = title(&request);
        host::sync::send(self.host, request)
            .map_err(|error| Error::from_http(error, &title))
            .and_then(|response| Response::new(title, response))
    }
}

impl RequestBuilder<'_, Async> {
    /// Sends the request and waits for the whole response. A response with a status of 400 or above is not an error:
    /// [`Response::error_for_status`] turns it into one. Redirects are not followed.
    pub async fn send(self) -> Result<Response> {
        let request = self.request?;
        let title = title(&request);
        host::asynch::send(self.host, request)
            .await
            .map_err(|error| Error::from_http(error, &title))
            .and_then(|response| Response::new(title, response))
    }
}

/// The response to an outbound request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
    /// The method and URL of the request, for error messages.
    request: String,
}

impl Response {
    fn new(request: String, response: InboundResponse) -> Result<Self> {
        let status = StatusCode::from_u16(response.status).map_err(|_| {
            bad_gateway(
                &request,
                format!("the status {} is not valid", response.status),
            )
        })?;
        Ok(Self {
            status,
            headers: Headers::from(response.headers),
            body: response.body,
            request,
        })
    }

    /// Turns a status of 400 or above into an error of status 502.
    pub fn error_for_status(self) -> Result<Self> {
        if self.status.is_client_error() || self.status.is_server_error() {
            return Err(bad_gateway(
                &self.request,
                format!("the answer is {}", self.status),
            ));
        }
        Ok(self)
    }

    /// The body as text; an error when the body is not UTF-8.
    pub fn text(self) -> Result<String> {
        String::from_utf8(self.body).map_err(|error| {
            bad_gateway(
                &self.request,
                format!("the body is not valid UTF-8: {error}"),
            )
        })
    }

    /// The body, read as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .map_err(|error| bad_gateway(&self.request, format!("the body: {error}")))
    }
}

fn title(request: &OutboundRequest) -> String {
    format!("{} {}", request.method, request.url)
}

fn bad_gateway(request: &str, what: String) -> Error {
    Error::new(StatusCode::BAD_GATEWAY, "bad gateway").with_detail(format!("{request}: {what}"))
}
