//! Outbound requests whose bodies are read and written in pieces.

use super::{StatusCode, check_status, status};
use crate::host;
use crate::mode::{Async, Mode, Sync};
use crate::{Error, Headers, Result};
use std::fmt;

/// How many bytes one call asks the host for.
const READ: u32 = 256 * 1024;
/// How many bytes one call passes to the host. What a view passes in one call is limited (`call_max_bytes`).
const WRITE: usize = 256 * 1024;

/// The response to an outbound request whose body is read while it arrives, from
/// [`RequestBuilder::stream`](super::RequestBuilder) and [`RequestWriter::finish`].
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/count")]
/// fn count(cx: &Context) -> Result<String> {
///     let mut response = cx.http().get("/big").stream()?.error_for_status()?;
///     let mut bytes = 0;
///     while let Some(piece) = response.read()? {
///         bytes += piece.len();
///     }
///     Ok(format!("{bytes} bytes"))
/// }
///
/// /// Passes the response on to the client, while it arrives.
/// #[view(get, "/mirror")]
/// async fn mirror(cx: &Context) -> Result<Response> {
///     let mut response = cx.http().get("/big").stream().await?;
///     let status = response.status;
///     let body = cx.stream(async move |_, out| {
///         while let Some(piece) = response.read().await? {
///             out.write(piece).await?;
///         }
///         Ok(())
///     });
///     (status, body).into_response()
/// }
/// # use amphi_sdk::testing::{App, get, reply};
/// # let app = App::new().on_get("/big", reply("a long text"));
/// # assert_eq!(app.call::<count>(get("/count")).text(), "11 bytes");
/// # assert_eq!(app.call::<mirror>(get("/mirror")).text(), "a long text");
/// ```
///
/// The request counts as in flight (`outbound_max`) until its body has been read to the end, or this value is dropped.
pub struct ResponseReader<M: Mode> {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: Headers,
    response: M::ResponseStream,
    /// The method and URL of the request, for error messages.
    request: String,
}

impl<M: Mode> ResponseReader<M> {
    /// Turns a status of 400 or above into an error of status 502.
    pub fn error_for_status(self) -> Result<Self> {
        check_status(self.status, &self.request)?;
        Ok(self)
    }
}

impl ResponseReader<Sync> {
    pub(super) fn new(request: String, response: host::sync::ResponseStream) -> Result<Self> {
        Ok(Self {
            status: status(&request, host::sync::response_status(&response))?,
            headers: Headers::from(host::sync::response_headers(&response)),
            response,
            request,
        })
    }

    /// Waits for the next piece of the body. `None` is its end. A body that breaks off is an error.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let piece = host::sync::read_response(&self.response, READ);
        let piece = piece.map_err(|error| Error::from_http(error, &self.request))?;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}

impl ResponseReader<Async> {
    pub(super) fn new(request: String, response: host::asynch::ResponseStream) -> Result<Self> {
        Ok(Self {
            status: status(&request, host::asynch::response_status(&response))?,
            headers: Headers::from(host::asynch::response_headers(&response)),
            response,
            request,
        })
    }

    /// Waits for the next piece of the body. `None` is its end. A body that breaks off is an error.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let piece = host::asynch::read_response(&self.response, READ).await;
        let piece = piece.map_err(|error| Error::from_http(error, &self.request))?;
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}

impl<M: Mode> fmt::Debug for ResponseReader<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseReader")
            .field("request", &self.request)
            .field("status", &self.status)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// Writes the body of an outbound request in pieces, from [`RequestBuilder::upload`](super::RequestBuilder).
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/export")]
/// fn export(cx: &Context) -> Result<StatusCode> {
///     let mut upload = cx.http().put("/archive").upload()?;
///     for row in cx.db().rows::<(i64, String)>("select id, name from entries", ())? {
///         let (id, name) = row?;
///         upload.write(format!("{id},{name}\n"))?;
///     }
///     Ok(upload.finish()?.error_for_status()?.status)
/// }
///
/// /// Passes the body on to another server, while it arrives.
/// #[view(post, "/pass", body = "stream")]
/// async fn pass(cx: &Context, body: BodyReader) -> Result<StatusCode> {
///     let request = cx.http().post("/archive");
///     let mut upload = match body.length() {
///         Some(length) => request.upload_sized(length).await?,
///         None => request.upload().await?,
///     };
///     let mut chunks = cx.chunks(body);
///     while let Some(chunk) = chunks.next().await? {
///         upload.write(chunk).await?;
///     }
///     Ok(upload.finish().await?.status)
/// }
/// # use amphi_sdk::testing::{App, post, reply};
/// # let app = App::new()
/// #     .execute_batch("create table entries (id integer, name text); insert into entries values (7, 'Ann')")
/// #     .on("PUT", "/archive", reply(""))
/// #     .on("POST", "/archive", reply("").status(StatusCode::CREATED));
/// # assert_eq!(app.call::<export>(post("/export")).status(), 200);
/// # assert_eq!(app.call::<pass>(post("/pass").with_body("some text")).status(), 201);
/// # assert_eq!(app.sent()[0].body, b"7,Ann\n");
/// # assert_eq!(app.sent()[1].body, b"some text");
/// ```
///
/// When this value is dropped before [`finish`](RequestWriter::finish), because of an error or a panic, the request breaks
/// off: the server sees that the body is not complete. The request counts as in flight (`outbound_max`) until then, or until
/// its response has been read.
pub struct RequestWriter<M: Mode> {
    upload: M::Upload,
    /// The method and URL of the request, for error messages.
    request: String,
}

impl<M: Mode> RequestWriter<M> {
    pub(super) fn new(request: String, upload: M::Upload) -> Self {
        Self { upload, request }
    }
}

impl RequestWriter<Sync> {
    /// Sends the next bytes of the body. While the server is slow, this waits.
    ///
    /// A server may answer before it has the whole body. When it does not want the rest (it answers with a status of 300 or
    /// above, or closes the connection), the bytes are dropped, and [`finish`](RequestWriter::finish) returns its response.
    ///
    /// # Errors
    /// When the connection breaks, or the body is too long. Later calls fail, too.
    pub fn write(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        for piece in data.as_ref().chunks(WRITE) {
            host::sync::write_upload(&self.upload, piece)
                .map_err(|error| Error::from_http(error, &self.request))?;
        }
        Ok(())
    }

    /// Ends the body, and waits for the head of the response.
    ///
    /// # Errors
    /// When the body does not have the declared length, or there is no response.
    pub fn finish(self) -> Result<ResponseReader<Sync>> {
        let response = host::sync::finish_upload(self.upload);
        let response = response.map_err(|error| Error::from_http(error, &self.request))?;
        ResponseReader::<Sync>::new(self.request, response)
    }
}

impl RequestWriter<Async> {
    /// Sends the next bytes of the body. While the server is slow, this waits.
    ///
    /// A server may answer before it has the whole body. When it does not want the rest (it answers with a status of 300 or
    /// above, or closes the connection), the bytes are dropped, and [`finish`](RequestWriter::finish) returns its response.
    ///
    /// # Errors
    /// When the connection breaks, or the body is too long. Later calls fail, too.
    pub async fn write(&mut self, data: impl AsRef<[u8]>) -> Result<()> {
        for piece in data.as_ref().chunks(WRITE) {
            let written = host::asynch::write_upload(&self.upload, piece.to_vec()).await;
            written.map_err(|error| Error::from_http(error, &self.request))?;
        }
        Ok(())
    }

    /// Ends the body, and waits for the head of the response.
    ///
    /// # Errors
    /// When the body does not have the declared length, or there is no response.
    pub async fn finish(self) -> Result<ResponseReader<Async>> {
        let response = host::asynch::finish_upload(self.upload).await;
        let response = response.map_err(|error| Error::from_http(error, &self.request))?;
        ResponseReader::<Async>::new(self.request, response)
    }
}

impl<M: Mode> fmt::Debug for RequestWriter<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestWriter")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}
