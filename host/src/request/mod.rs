//! One request's life. Read this first.
//!
//! accept → [`answer`]: route → body received → scope opens → the view runs on a worker or on this loop →
//! response head checked → transaction ends → response. Whatever fails on the way comes back as a [`Failure`]
//! and becomes a response in one place; whatever way it ends, one line in the log says how.

pub mod body;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Body, Frame};
use tokio::runtime::Handle;
use tokio_util::io::ReaderStream;

use crate::app::{App, Target};
use crate::bindings::types;
use crate::capability::Guest;
use crate::database::{Error as DatabaseError, ErrorKind, Face};
use crate::deadline::Ended;
use crate::error::{Failure, Fault};
use crate::gate::{Gate, Refused};
use crate::metrics::METRICS;
use crate::module::Module;
use crate::request::body::Received;
use crate::router::Route;
use crate::run::{Answer, Engines, Stop};
use crate::scope::{self, Scope};
use crate::static_files::{Content, StaticFiles};
use crate::transaction::Fate;
use crate::view::{Mode, View};
use crate::workers::Workers;

/// Headers about one connection: only the host sets them (RFC 9110, 7.6.1).
pub const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TRAILER,
    header::TE,
];

/// What a response's body is made of.
pub type ResponseBody = Either<Full<Bytes>, BoxBody<Bytes, io::Error>>;

/// What all requests of the process share.
pub struct Host {
    /// The app that new requests get.
    pub app: ArcSwap<App>,
    /// Where guests run.
    pub engines: Engines,
    /// Where sync views run.
    pub workers: Workers,
    /// Room for async instances.
    pub instances: Gate,
    /// Set when the host has waited long enough for the requests in flight.
    pub stopping: AtomicBool,
}

impl Host {
    /// A host that serves `app` on the runtime that calls this.
    pub fn new(app: App, engines: Engines) -> Host {
        let views = &app.config.async_views;
        let wait = Duration::from_millis(views.queue_timeout_ms);
        Host {
            engines,
            workers: Workers::new(app.config.sync_views.clone(), Handle::current()),
            instances: Gate::new(
                "async instances",
                views.in_flight_max,
                views.queue_max,
                wait,
            ),
            app: ArcSwap::from_pointee(app),
            stopping: AtomicBool::new(false),
        }
    }
}

/// Answers one request. Dropping the future is what a disconnect means (R15).
pub async fn answer<B>(
    host: Arc<Host>,
    peer: SocketAddr,
    request: Request<B>,
) -> Response<ResponseBody>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let mut completion = Completion::new(&host, &parts);
    let app = host.app.load_full();
    let mut response = match route(&app, &host, peer, &parts, body, &mut completion).await {
        Ok(response) => response,
        Err(failure) => completion.failed(failure),
    };
    if parts.method == http::Method::HEAD {
        without_body(&mut response);
    }
    completion.finish(response.status());
    response
}

async fn route<B>(
    app: &App,
    host: &Arc<Host>,
    peer: SocketAddr,
    parts: &Parts,
    body: B,
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let limits = &app.config.server;
    let length = parts
        .uri
        .path_and_query()
        .map_or(0, |text| text.as_str().len());
    if length > limits.uri_max_bytes {
        let text = format!(
            "The URL has {length} bytes; the most is {}.",
            limits.uri_max_bytes
        );
        return Err(Failure::client(StatusCode::URI_TOO_LONG, text));
    }
    // HTTP/1 has refused more already, while it parsed them.
    if parts.headers.len() > limits.headers_max {
        let text = format!("The request has more than {} headers.", limits.headers_max);
        return Err(Failure::client(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            text,
        ));
    }
    if parts.method == http::Method::OPTIONS && parts.uri.path() == "*" {
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let (target, params) = match app.router.route(&parts.method, parts.uri.path()) {
        Route::Found(target, params) => (target, params),
        Route::NotFound => {
            return Err(Failure::client(
                StatusCode::NOT_FOUND,
                "There is no such page.",
            ));
        }
        Route::NotUtf8(name) => {
            let text = format!("The part `{name}` of the path is not UTF-8 when decoded.");
            return Err(Failure::client(StatusCode::BAD_REQUEST, text));
        }
        Route::Options(allow) => return Ok(with_allow(empty(StatusCode::NO_CONTENT), &allow)),
        Route::MethodNotAllowed(allow) => {
            let text = format!("{} is not possible here; {allow} are.", parts.method);
            let failure = Failure::client(StatusCode::METHOD_NOT_ALLOWED, text);
            return Ok(with_allow(completion.failed(failure), &allow));
        }
    };
    match target {
        Target::Static(files) => static_file(files, parts, params).await,
        Target::View(view, module) => {
            completion.view = Some(Arc::clone(view));
            let received = body::receive(body, limits).await?;
            let scope = Scope::open(
                completion.id().to_owned(),
                peer,
                Instant::now(),
                Arc::clone(view),
                module.grants.limits.clone(),
            );
            completion.scope = Some(Arc::clone(&scope));
            let (request, kept) = contract_request(parts, params, received);
            let guest = Guest::new(
                scope,
                Arc::clone(&module.grants),
                Arc::clone(&app.services),
                kept,
            );
            let settled = match view.mode {
                Mode::Sync => run_sync(host, module, guest, request).await?,
                Mode::Async => run_async(host, module, guest, request).await?,
            };
            completion.fate = settled.fate;
            settled.response
        }
    }
}

/// A sync view and the end of its transaction run on one worker, in one go.
async fn run_sync(
    host: &Host,
    module: &Arc<Module>,
    guest: Guest,
    request: types::Request,
) -> Result<Settled, Failure> {
    let scope = Arc::clone(&guest.scope);
    let module = Arc::clone(module);
    let settling = Arc::clone(&scope);
    let job = move || {
        let answer = module.call_sync(guest, &request);
        Handle::current().block_on(settle(&settling, Face::Sync, answer))
    };
    host.workers.run(&scope.deadline, job).await.map_err(busy)
}

async fn run_async(
    host: &Host,
    module: &Module,
    guest: Guest,
    request: types::Request,
) -> Result<Settled, Failure> {
    let scope = Arc::clone(&guest.scope);
    let _place = host.instances.enter(&scope.deadline).await.map_err(busy)?;
    let answer = module.call_async(guest, request).await;
    Ok(settle(&scope, Face::Async, answer).await)
}

fn busy(refused: Refused) -> Failure {
    match refused {
        Refused::Busy(sentence) => Failure::limit(StatusCode::SERVICE_UNAVAILABLE, sentence),
        Refused::Ended(why) => (&Stop::from(why)).into(),
    }
}

/// How a view's work ended.
struct Settled {
    response: Result<Response<ResponseBody>, Failure>,
    fate: Fate,
}

/// Decides the response head, then ends the transaction (R9): a client never sees a success that was not kept.
async fn settle(scope: &Scope, face: Face, answer: Result<Answer, Failure>) -> Settled {
    let mut response = answer.and_then(|answer| match answer {
        Ok(response) => checked(response, scope),
        Err(error) => Err(view_error(error)),
    });
    if let (Ok(_), Some(why)) = (&response, scope.deadline.ended()) {
        response = Err((&Stop::from(why)).into());
    }
    if response.is_err() {
        // Nobody waits for what the view left running.
        scope.deadline.cancel(Ended::Failed);
    }
    let keep = matches!(&response, Ok(response) if !response.status().is_server_error());
    let fate = match scope.transaction.finish(face, keep).await {
        Ok(fate) => fate,
        Err(error) => {
            if keep {
                response = Err(not_kept(&error));
            }
            Fate::RolledBack
        }
    };
    Settled { response, fate }
}

/// A view answered with a success, and its transaction could not be kept.
fn not_kept(error: &DatabaseError) -> Failure {
    let sentence = format!(
        "the transaction could not be committed and was rolled back: {}",
        error.message
    );
    match error.kind {
        ErrorKind::Conflict | ErrorKind::Unavailable => Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Failure::host(sentence)
        },
        ErrorKind::Other | ErrorKind::Aborted => Failure::host(sentence),
        ErrorKind::Denied | ErrorKind::Statement | ErrorKind::Constraint | ErrorKind::TooLarge => {
            Failure::view(sentence)
        }
    }
}

/// The response that the view made, if it can be sent.
fn checked(response: types::Response, scope: &Scope) -> Result<Response<ResponseBody>, Failure> {
    let max = scope.limits.response_max_bytes;
    if response.body.len() as u64 > max {
        return Err(Failure::view(format!(
            "the response has {} bytes; `response_max_bytes` is {max}",
            response.body.len()
        )));
    }
    let status = StatusCode::from_u16(response.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| {
        Failure::view(format!(
            "the response has the status {}: a view answers with 200 to 599",
            response.status
        ))
    })?;
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if bodiless { Vec::new() } else { response.body };
    let mut checked = Response::new(Either::Left(Full::new(body.into())));
    *checked.status_mut() = status;
    for (name, value) in response.headers {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response has a header whose name is not valid: {name:?}"
            ))
        })?;
        if HOP_BY_HOP.contains(&key) {
            return Err(Failure::view(format!(
                "the response has the header `{key}`, which only the host can set"
            )));
        }
        // The host knows the length, and a wrong one would damage the connection.
        if key == header::CONTENT_LENGTH {
            continue;
        }
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response header `{key}` has a value that is not valid: {value:?}"
            ))
        })?;
        checked.headers_mut().append(key, value);
    }
    Ok(checked)
}

/// An error that a view returned on purpose: below 500 it is the client's doing, and the client is told.
fn view_error(error: types::Error) -> Failure {
    let types::Error {
        status,
        message,
        detail,
    } = error;
    let detail = match detail {
        Some(detail) => format!("{message}: {detail}"),
        None => message.clone(),
    };
    let sentence = format!("the view returned an error: {detail}");
    match StatusCode::from_u16(status) {
        Ok(status) if status.is_client_error() => Failure {
            detail: sentence,
            ..Failure::client(status, cut(message, CLIENT_TEXT_MAX))
        },
        Ok(status) if status.is_server_error() => Failure {
            status,
            ..Failure::view(sentence)
        },
        _ => Failure::view(format!(
            "the view returned an error with the status {status}, which is none: {detail}"
        )),
    }
}

fn contract_request(
    parts: &Parts,
    params: Vec<(String, String)>,
    received: Received,
) -> (types::Request, Option<Arc<body::Spooled>>) {
    let headers = contract_headers(parts);
    let (body, kept) = match received {
        Received::Inline(bytes) => (types::Body::Bytes(bytes), None),
        Received::Kept(spooled) => (
            types::Body::Spooled(spooled.length()),
            Some(Arc::new(spooled)),
        ),
    };
    let request = types::Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers,
        params,
        body,
    };
    (request, kept)
}

/// The request's headers, alike for every version of HTTP: `host` is the authority that the request names
/// (RFC 9113, 8.3.1; RFC 9112, 3.2.2), and cookies are one header (RFC 9113, 8.2.3).
fn contract_headers(parts: &Parts) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::with_capacity(parts.headers.len() + 1);
    let authority = parts.uri.authority();
    headers.extend(authority.map(|authority| ("host".to_owned(), authority.as_str().to_owned())));
    let mut cookies: Option<usize> = None;
    for (name, value) in &parts.headers {
        let value = text(value.as_bytes());
        match cookies {
            _ if name == header::HOST && authority.is_some() => {}
            Some(first) if name == header::COOKIE => {
                headers[first].1.push_str("; ");
                headers[first].1.push_str(&value);
            }
            _ => {
                if name == header::COOKIE {
                    cookies = Some(headers.len());
                }
                headers.push((name.as_str().to_owned(), value));
            }
        }
    }
    headers
}

/// A header value as text: UTF-8, or else ISO-8859-1 as HTTP had it once.
pub fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().copied().map(char::from).collect(),
    }
}

async fn static_file(
    files: &Arc<StaticFiles>,
    parts: &Parts,
    params: Vec<(String, String)>,
) -> Result<Response<ResponseBody>, Failure> {
    let (files, method, headers) = (
        Arc::clone(files),
        parts.method.clone(),
        parts.headers.clone(),
    );
    let path = params
        .into_iter()
        .next()
        .map_or_else(String::new, |(_, path)| path);
    let read = tokio::task::spawn_blocking(move || files.respond(&method, &path, &headers));
    let response = read
        .await
        .map_err(|error| Failure::host(format!("reading a static file: {error}")))??;
    Ok(response.map(|content| match content {
        Content::Whole(bytes) => Either::Left(Full::new(bytes)),
        Content::Open(file, length) => {
            let file = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), length);
            Either::Right(
                StreamBody::new(ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data))
                    .boxed(),
            )
        }
    }))
}

fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

fn text_response(status: StatusCode, text: &str) -> Response<ResponseBody> {
    let mut response = empty(status);
    *response.body_mut() = Either::Left(Full::new(format!("{text}\n").into()));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn with_allow(mut response: Response<ResponseBody>, allow: &str) -> Response<ResponseBody> {
    let value = HeaderValue::from_str(allow).expect("methods are valid in headers");
    response.headers_mut().insert(header::ALLOW, value);
    response
}

/// The most bytes of a view's error that a client is told, and that the log line has.
const CLIENT_TEXT_MAX: usize = 2 << 10;
const DETAIL_MAX: usize = 4 << 10;

/// A text of at most `max` bytes.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push_str(" …");
    }
    text
}

fn without_body(response: &mut Response<ResponseBody>) {
    let bodiless = matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if !bodiless
        && let Some(length) = response.body().size_hint().exact()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length.into());
    }
    *response.body_mut() = Either::Left(Full::default());
}

/// Watches a request to its end and writes the one line about it, also when it is dropped on the way.
struct Completion<'a> {
    host: &'a Host,
    parts: &'a Parts,
    arrived: Instant,
    id: String,
    view: Option<Arc<View>>,
    scope: Option<Arc<Scope>>,
    fate: Fate,
    failure: Option<Failure>,
    done: bool,
}

impl<'a> Completion<'a> {
    fn new(host: &'a Host, parts: &'a Parts) -> Completion<'a> {
        Completion {
            host,
            parts,
            arrived: Instant::now(),
            id: scope::new_id(),
            view: None,
            scope: None,
            fate: Fate::None,
            failure: None,
            done: false,
        }
    }

    fn id(&self) -> &str {
        &self.id
    }

    /// The response for a failure, which the line will name.
    fn failed(&mut self, mut failure: Failure) -> Response<ResponseBody> {
        failure.detail = cut(failure.detail, DETAIL_MAX);
        let reason = failure.status.canonical_reason().unwrap_or("Error");
        let text = format!(
            "{} {reason}\n{}\nRequest {}",
            failure.status.as_u16(),
            failure.client_text,
            self.id
        );
        let mut response = text_response(failure.status, &text);
        if failure.status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        self.failure = Some(failure);
        response
    }

    fn finish(&mut self, status: StatusCode) {
        self.done = true;
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .get(usize::from(status.as_u16() / 100) - 1)
            .unwrap_or(&"other");
        METRICS.requests.with_label_values(&[class]).inc();
        METRICS
            .duration
            .observe(self.arrived.elapsed().as_secs_f64());
        self.log(status.as_u16());
    }

    fn log(&self, status: u16) {
        let (method, path, request) = (&self.parts.method, self.parts.uri.path(), &self.id);
        let duration_us = u64::try_from(self.arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
        let view = self.view.as_ref().map(tracing::field::display);
        let mode = self.view.as_ref().map(|view| view.mode.as_str());
        let transaction = (self.fate != Fate::None).then(|| tracing::field::display(self.fate));
        macro_rules! line {
            ($level:ident, $($more:tt)*) => {
                tracing::$level!(target: "amphi::request", %method, path, status, duration_us, mode, view, transaction, request, $($more)*)
            };
        }
        match &self.failure {
            None => line!(info, "request"),
            Some(failure) => {
                let (fault, why) = (failure.fault.as_str(), &failure.detail);
                METRICS.failures.with_label_values(&[fault]).inc();
                match failure.fault {
                    Fault::Client => line!(info, fault, why, "request"),
                    Fault::View | Fault::Limit => line!(warn, fault, why, "request"),
                    Fault::Host => line!(error, fault, why, "request"),
                }
            }
        }
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if std::thread::panicking() {
            let sentence = "the host panicked while it answered: the message is on standard error";
            self.failure = Some(Failure::host(sentence));
            return self.log(500);
        }
        let stopping = self.host.stopping.load(Relaxed);
        let why = if stopping {
            Ended::Shutdown
        } else {
            Ended::Disconnected
        };
        if let Some(scope) = &self.scope {
            scope.deadline.cancel(why);
        }
        let fault = if stopping {
            Fault::Limit
        } else {
            Fault::Client
        };
        self.failure = Some(Failure {
            fault,
            ..Failure::view(Stop::from(why).to_string())
        });
        // As nginx has it: the client closed the request.
        self.log(499);
    }
}

#[cfg(test)]
mod tests;
