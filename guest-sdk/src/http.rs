//! Outbound HTTP requests.

mod bodies;

pub use ::http::StatusCode;
pub use bodies::{RequestWriter, ResponseReader};

use crate::host::{self, Host, InboundResponse, OutboundRequest, OutboundUpload};
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
    /// The request is malformed: its URL, its method or one of its headers, or an upload does not have the length that it
    /// declares.
    Invalid,
    /// No response arrived in time.
    Timeout,
    /// No connection could be made, or the connection broke.
    Connection,
    /// The response, or the body of an upload, is over the host's limit.
    TooLarge,
    /// The host has too many outbound requests in flight, or this request has as many bodies open as it may have.
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
///
/// [`send`](RequestBuilder::send) has whole bodies in memory. For bodies in pieces, there are `stream` (see
/// [`ResponseReader`]) and `upload` (see [`RequestWriter`]).
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
#[must_use = "a request does nothing until `send`, `stream` or `upload` is called"]
pub struct RequestBuilder<'a, M: Mode> {
    host: &'a Host,
    /// The request, or the first error that occurred while it was built. Whatever sends the request returns that error.
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

    /// Limits how long this request may take: with [`send`](RequestBuilder::send) until the whole response is there, with
    /// `stream` until its head is there, with `upload` from the end of the upload until the head is there. Without this, the
    /// time limit of the view applies.
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

impl<M: Mode> RequestBuilder<'_, M> {
    /// The head of an upload, and the title of the request.
    fn head(self, length: Option<u64>) -> Result<(String, OutboundUpload)> {
        let request = self.request?;
        let title = title(&request);
        if !request.body.is_empty() {
            return Err(Error::internal(format!(
                "{title}: an upload has no other body: pass these bytes to `write`"
            )));
        }
        let OutboundRequest {
            method,
            url,
            headers,
            timeout_ms,
            ..
        } = request;
        let head = OutboundUpload {
            method,
            url,
            headers,
            length,
            timeout_ms,
        };
        Ok((title, head))
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

    /// Sends the request and waits for the head of the response. Its body is read in pieces, while it arrives.
    pub fn stream(self) -> Result<ResponseReader<Sync>> {
        let request = self.request?;
        let title = title(&request);
        let response = host::sync::open_request(self.host, request);
        let response = response.map_err(|error| Error::from_http(error, &title))?;
        ResponseReader::<Sync>::new(title, response)
    }

    /// Begins a request whose body is written in pieces; see [`RequestWriter`]. Its length is not known in advance. For
    /// servers that want to know it, see [`upload_sized`](RequestBuilder::upload_sized).
    pub fn upload(self) -> Result<RequestWriter<Sync>> {
        self.begin(None)
    }

    /// Begins a request whose body is written in pieces, and declares the length of the body in bytes. An upload with
    /// another length is an error, and the server sees that it is not complete.
    pub fn upload_sized(self, length: u64) -> Result<RequestWriter<Sync>> {
        self.begin(Some(length))
    }

    fn begin(self, length: Option<u64>) -> Result<RequestWriter<Sync>> {
        let host = self.host;
        let (title, head) = self.head(length)?;
        let upload = host::sync::begin_upload(host, head);
        let upload = upload.map_err(|error| Error::from_http(error, &title))?;
        Ok(RequestWriter::new(title, upload))
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

    /// Sends the request and waits for the head of the response. Its body is read in pieces, while it arrives.
    pub async fn stream(self) -> Result<ResponseReader<Async>> {
        let request = self.request?;
        let title = title(&request);
        let response = host::asynch::open_request(self.host, request).await;
        let response = response.map_err(|error| Error::from_http(error, &title))?;
        ResponseReader::<Async>::new(title, response)
    }

    /// Begins a request whose body is written in pieces; see [`RequestWriter`]. Its length is not known in advance. For
    /// servers that want to know it, see [`upload_sized`](RequestBuilder::upload_sized).
    pub async fn upload(self) -> Result<RequestWriter<Async>> {
        self.begin(None).await
    }

    /// Begins a request whose body is written in pieces, and declares the length of the body in bytes. An upload with
    /// another length is an error, and the server sees that it is not complete.
    pub async fn upload_sized(self, length: u64) -> Result<RequestWriter<Async>> {
        self.begin(Some(length)).await
    }

    async fn begin(self, length: Option<u64>) -> Result<RequestWriter<Async>> {
        let host = self.host;
        let (title, head) = self.head(length)?;
        let upload = host::asynch::begin_upload(host, head).await;
        let upload = upload.map_err(|error| Error::from_http(error, &title))?;
        Ok(RequestWriter::new(title, upload))
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
        Ok(Self {
            status: status(&request, response.status)?,
            headers: Headers::from(response.headers),
            body: response.body,
            request,
        })
    }

    /// Turns a status of 400 or above into an error of status 502.
    pub fn error_for_status(self) -> Result<Self> {
        check_status(self.status, &self.request)?;
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

fn status(request: &str, number: u16) -> Result<StatusCode> {
    let status = StatusCode::from_u16(number);
    status.map_err(|_| bad_gateway(request, format!("the status {number} is not valid")))
}

/// An error of status 502 for a status of 400 or above.
fn check_status(status: StatusCode, request: &str) -> Result<()> {
    match status.is_client_error() || status.is_server_error() {
        true => Err(bad_gateway(request, format!("the answer is {status}"))),
        false => Ok(()),
    }
}

fn title(request: &OutboundRequest) -> String {
    format!("{} {}", request.method, request.url)
}

fn bad_gateway(request: &str, what: String) -> Error {
    Error::new(StatusCode::BAD_GATEWAY, "bad gateway").with_detail(format!("{request}: {what}"))
}
