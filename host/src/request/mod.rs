//! One request's life. Read this first.
//!
//! accept → [`answer`]: route → body received → scope opens → the chain runs (`chain.rs`), on a worker, on this loop
//! or on both → response head checked → transaction ends, what it held is released (`settle.rs`) → response. Whatever fails on the way comes back as a [`Failure`]
//! and becomes a response in one place; whatever way it ends, one line in the log says how.

pub mod authority;
pub mod body;
pub mod error_view;
pub mod page;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt as _;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Either, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Body, Frame};

use crate::app::{App, Routed, Target};
use crate::bindings::types;
use crate::budget::{Account, Exhausted};
use crate::call_depth::{self, CALL_DEPTH};
use crate::completion::Line;
use crate::conditional;
use crate::config::Limits;
use crate::deadline::Ended;
use crate::error::{Failure, Fault, cut};
use crate::host::Host;
use crate::metrics::METRICS;
use crate::middleware::{self, Builtin, Visit};
use crate::negotiation::{Form, form};
use crate::proxies::{Asked, FORWARDED_HOST, FORWARDED_PROTO};
use crate::report::Report;
use crate::request::body::Received;
use crate::request::page::Failed;
use crate::router::{Allowed, Route};
use crate::run::Stop;
use crate::scope::{self, Origin, Value};
use crate::settle::{Ready, Settled};
use crate::static_files::{self, Content, StaticFiles, WHOLE_BYTES};
use crate::trace::Trace;
use crate::transaction::Fate;
use crate::view::View;

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

/// Who is connected, and what that may take.
#[derive(Debug, Clone)]
pub struct Client {
    /// The client's address, or a proxy's.
    pub peer: SocketAddr,
    /// What is kept for the requests of the connection.
    pub account: Arc<Account>,
}

/// Answers one request. Dropping the future is what a disconnect means (R15).
pub async fn answer<B>(
    host: Arc<Host>,
    client: &Client,
    request: Request<B>,
) -> Response<ResponseBody>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let app = host.app.load_full();
    let (account, refused) = account(client);
    // Whose request it is and whom it is for has to be clear before anybody decides about it.
    let from = app.config.proxies.client(client.peer, &parts.headers);
    let unclear = match &from {
        Ok(_) => authority::check(&parts).err(),
        Err(malformed) => {
            let text = malformed.to_string();
            Some(Failure::client(StatusCode::BAD_REQUEST, text))
        }
    };
    let addresses = (client.peer, from.unwrap_or(client.peer));
    let mut completion = Completion::new(&host, &app, addresses, account, &parts);
    let mut response = match unclear {
        Some(failure) => completion.failed(failure),
        None => {
            around(&app.config.builtins, &mut completion, async |completion| {
                if let Some(refused) = refused {
                    return Err(refused.into());
                }
                route(body, completion).await
            })
            .await
        }
    };
    if parts.method == http::Method::HEAD {
        without_body(&mut response);
    }
    completion.finish(response.status());
    response
}

/// The account of a request. Without memory for another one, it has nothing, and goes no further.
fn account(client: &Client) -> (Arc<Account>, Option<Exhausted>) {
    match client.account.request() {
        Ok(account) => (account, None),
        Err(refused) => (client.account.unpaid(), Some(refused)),
    }
}

/// Takes the request through built-in middleware, runs what is within, and takes the answer back: a failure too, as
/// the response that the client will get.
async fn around(
    builtins: &[Arc<Builtin>],
    completion: &mut Completion<'_>,
    within: impl AsyncFnOnce(&mut Completion<'_>) -> Result<Response<ResponseBody>, Failure>,
) -> Response<ResponseBody> {
    let entry = middleware::enter(builtins, completion.visit()).await;
    for (name, text) in entry.values {
        let values = &mut Arc::make_mut(&mut completion.origin).values;
        Arc::make_mut(values).insert(name.into(), Value::reserved(&text));
    }
    let mut response = match entry.answer {
        Some(Ok(response)) => response,
        Some(Err(refused)) => {
            let mut response = completion.failed(refused.failure);
            response.headers_mut().extend(refused.headers);
            response
        }
        None => match within(completion).await {
            Ok(response) => response,
            Err(failure) => completion.failed_within(failure).await,
        },
    };
    middleware::leave(&builtins[..entry.seen], completion.visit(), &mut response);
    response
}

async fn route<B>(
    body: B,
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let Completion { app, parts, .. } = *completion;
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
    // It may have read more before it looked at how much there was.
    let header_bytes =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    let bytes: usize = parts.headers.iter().map(header_bytes).sum();
    if bytes > limits.headers_max_bytes {
        let text = format!(
            "The request's headers have {bytes} bytes; the most is {}.",
            limits.headers_max_bytes
        );
        return Err(Failure::client(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            text,
        ));
    }
    // Guests get a copy.
    completion.origin.account.charge(bytes as u64 * 2)?;
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
        Route::NotText => {
            let text = "The path is not UTF-8 when decoded.";
            return Err(Failure::client(StatusCode::BAD_REQUEST, text));
        }
        Route::Options(allowed) | Route::MethodNotAllowed(allowed) => {
            return Ok(other_methods(allowed, completion).await);
        }
    };
    match target {
        Target::Static(files) => {
            static_file(app, files, (parts, &completion.origin.account), params).await
        }
        Target::View(routed) => {
            not_broken(completion)?;
            completion.view = Some(Arc::clone(&routed.chain.view().view));
            let viewed = async |completion: &mut Completion<'_>| {
                view(routed, params, body, completion).await
            };
            Ok(around(routed.builtins(), completion, viewed).await)
        }
    }
}

/// Answers where a path has views for other methods alone: 204 to OPTIONS, 405 to anything else. The built-in middleware of
/// their module comes first, so that who may not use a module is not told what it has.
async fn other_methods(
    allowed: Allowed<'_, Target>,
    completion: &mut Completion<'_>,
) -> Response<ResponseBody> {
    let Completion { app, parts, .. } = *completion;
    let is_open = |target: &Target| !target.builtins().iter().any(|it| it.asks_for_user());
    let first = asked_about(app, parts)
        .or_else(|| allowed.targets().find(|target| is_open(target)))
        .or_else(|| allowed.targets().next());
    let module = first.and_then(Target::module);
    let allowed = allowed.only(|target| is_open(target) || target.module() == module);
    let allow = allowed.to_string();
    let answer = async |completion: &mut Completion<'_>| {
        if parts.method == http::Method::OPTIONS {
            return Ok(with_allow(empty(StatusCode::NO_CONTENT), &allow));
        }
        let text = format!("{} is not possible here; {allow} are.", parts.method);
        let failure = Failure::client(StatusCode::METHOD_NOT_ALLOWED, text);
        Ok(with_allow(completion.failed_within(failure).await, &allow))
    };
    around(first.map_or(&[], Target::builtins), completion, answer).await
}

/// In development, a page says that the app could not be built. Programs get the answers of the one before.
fn not_broken(completion: &Completion<'_>) -> Result<(), Failure> {
    let Completion { host, parts, .. } = completion;
    if !host.development || form(&parts.headers) != Form::Html {
        return Ok(());
    }
    match &*host.broken.load() {
        Some(why) => Err(Failure::host(format!(
            "the app could not be built, and is still the one before the change: {why}"
        ))),
        None => Ok(()),
    }
}

/// What a preflight asks about (Fetch, 4.8): its module decides who may use it.
fn asked_about<'a>(app: &'a App, parts: &Parts) -> Option<&'a Target> {
    let method = parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = http::Method::from_bytes(method.as_bytes()).ok()?;
    match app.router.route(&method, parts.uri.path()) {
        Route::Found(target, _) => Some(target),
        _ => None,
    }
}

async fn view<B>(
    routed: &Routed,
    params: Vec<(String, String)>,
    body: B,
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let Completion {
        host, app, parts, ..
    } = *completion;
    let received = body::receive(body, &app.config.server, &completion.origin.account).await?;
    let asked = app.config.proxies.asked(completion.peer, &parts.headers);
    let (request, kept) = contract_request(parts, &asked, received);
    let ready = Ready {
        host,
        app,
        origin: &completion.origin,
        chain: &routed.chain,
        params: params.into(),
        body: kept,
    };
    let mut settled = ready.run(request).await;
    let response = std::mem::replace(&mut settled.response, Ok(Response::default()));
    completion.settled = Some(settled);
    let mut response = response?;
    let length = response.body().len() as u64;
    let asked = (&parts.method, &parts.headers);
    conditional::apply(asked, Some(length), &mut response);
    Ok(response.map(|body| Either::Left(Full::new(body))))
}

/// The request as guests get it, and its body if the host keeps that.
pub fn contract_request(
    parts: &Parts,
    asked: &Asked,
    received: Received,
) -> (types::Request, Option<Arc<body::Spooled>>) {
    let headers = contract_headers(parts, asked);
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
        // Each part gets those of its own route.
        params: Vec::new(),
        body,
    };
    (request, kept)
}

/// The request's headers, alike for every version of HTTP: `host` is the authority that a trusted proxy says was asked
/// for, else the one that the request names (RFC 9113, 8.3.1; RFC 9112, 3.2.2), and cookies are one header (RFC 9113,
/// 8.2.3). `x-forwarded-host` and `x-forwarded-proto` are those of a trusted proxy or not there.
pub(crate) fn contract_headers(parts: &Parts, asked: &Asked) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::with_capacity(parts.headers.len() + 2);
    let named = parts.uri.authority().map(http::uri::Authority::as_str);
    let authority = asked.authority.as_deref().or(named);
    let mut push = |name: &str, value: Option<&str>| {
        headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    };
    push("host", authority);
    push(FORWARDED_HOST.as_str(), asked.authority.as_deref());
    push(FORWARDED_PROTO.as_str(), asked.scheme);
    let mut cookies: Option<usize> = None;
    for (name, value) in &parts.headers {
        let value = text(value.as_bytes());
        match cookies {
            _ if name == header::HOST && authority.is_some() => {}
            _ if [CALL_DEPTH, FORWARDED_HOST, FORWARDED_PROTO].contains(name) => {}
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

/// What headers take, in bytes.
pub fn header_bytes(headers: &[(String, String)]) -> u64 {
    let texts = headers.iter().map(|(name, value)| name.len() + value.len());
    texts.map(|text| text as u64 + HEADER_BYTES).sum()
}

/// What a header counts for beside its text.
pub const HEADER_BYTES: u64 = 32;

/// Checks a head that a guest made or that another server sent: its number of headers, then their bytes. `HeaderMap`
/// panics at 24,577 different names, so this comes before any is made.
///
/// # Errors
/// With a sentence that names the limit.
pub fn check_head(whose: &str, count: usize, bytes: u64, limits: &Limits) -> Result<(), String> {
    let (headers_max, bytes_max) = (limits.headers_max, limits.headers_max_bytes);
    if bytes > bytes_max {
        return Err(format!(
            "the headers of the {whose} have {bytes} bytes; `headers_max_bytes` of `[limits]` is {bytes_max}"
        ));
    }
    if count > headers_max {
        return Err(format!(
            "the {whose} has {count} headers; `headers_max` of `[limits]` is {headers_max}"
        ));
    }
    Ok(())
}

/// A header value as text: UTF-8, or else ISO-8859-1 as HTTP had it once.
pub fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().copied().map(char::from).collect(),
    }
}

async fn static_file(
    app: &App,
    files: &Arc<StaticFiles>,
    (parts, account): (&Parts, &Arc<Account>),
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
    // A file that is read at once is no larger.
    let room = account.draw(WHOLE_BYTES)?;
    let builtins = app.config.builtins.clone();
    let read = tokio::task::spawn_blocking(move || {
        let response = files.respond(&method, &path, &headers)?;
        let compression = builtins.iter().find_map(|builtin| match &**builtin {
            Builtin::Compression(compression) => Some(compression),
            _ => None,
        });
        Ok::<_, Failure>(match compression {
            Some(compression) => compression.file(&files, (&method, &path, &headers), response),
            None => response,
        })
    });
    let response = read
        .await
        .map_err(|error| Failure::host(format!("reading a static file: {error}")))??;
    let (head, content) = response.into_parts();
    let body = match content {
        Content::Whole(bytes) => {
            let room = room.cut_to(bytes.capacity() as u64);
            Either::Left(Full::new(room.hold(bytes)))
        }
        Content::Shared(bytes) => Either::Left(Full::new(bytes)),
        Content::Open(file, length) => {
            let pieces = static_files::pieces(file, length, FILE_PIECE);
            let frame = move |piece| {
                let _reading = &room;
                Frame::data(piece)
            };
            Either::Right(StreamBody::new(pieces.map_ok(frame)).boxed())
        }
    };
    Ok(Response::from_parts(head, body))
}

/// How much of a file is read at once, and how many such pieces there are of it at the same time: one that tokio
/// reads, one that the stream has room for, one that is cut into frames and one that waits for the client.
const FILE_PIECE: usize = 64 << 10;
const FILE_PIECES: u64 = 4;
const _: () = assert!(FILE_PIECES * FILE_PIECE as u64 <= WHOLE_BYTES);

fn empty(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

fn with_allow(mut response: Response<ResponseBody>, allow: &str) -> Response<ResponseBody> {
    let value = HeaderValue::from_str(allow).expect("methods are valid in headers");
    response.headers_mut().insert(header::ALLOW, value);
    response
}

/// The most bytes of a failure's sentence that the log line has.
const DETAIL_MAX: usize = 4 << 10;

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
    host: &'a Arc<Host>,
    app: &'a Arc<App>,
    parts: &'a Parts,
    /// Who is connected: the client, or a proxy.
    peer: SocketAddr,
    arrived: Instant,
    origin: Arc<Origin>,
    view: Option<Arc<View>>,
    settled: Option<Settled>,
    failure: Option<Failure>,
    done: bool,
}

impl<'a> Completion<'a> {
    fn new(
        host: &'a Arc<Host>,
        app: &'a Arc<App>,
        (peer, client): (SocketAddr, SocketAddr),
        account: Arc<Account>,
        parts: &'a Parts,
    ) -> Completion<'a> {
        let proxies = &app.config.proxies;
        let id = proxies.request_id(peer, &parts.headers);
        Completion {
            host,
            app,
            parts,
            peer,
            arrived: Instant::now(),
            origin: Arc::new(Origin {
                id: id.unwrap_or_else(scope::new_id),
                trace: Trace::of(&parts.headers),
                peer: client,
                depth: call_depth::of(&parts.headers),
                values: Arc::default(),
                account,
            }),
            view: None,
            settled: None,
            failure: None,
            done: false,
        }
    }

    fn visit(&self) -> Visit<'_> {
        Visit {
            request: self.parts,
            id: &self.origin.id,
            peer: self.peer,
            client: self.origin.peer.ip(),
            user: (self.origin.values.get(middleware::USER)).map(|user| &*user.text),
            account: &self.origin.account,
        }
    }

    /// The response for a failure of what was asked for: the app may have a page of its own for it.
    async fn failed_within(&mut self, failure: Failure) -> Response<ResponseBody> {
        match Box::pin(error_view::page(self, &failure)).await {
            Some(page) => {
                let detail = cut(failure.detail, DETAIL_MAX);
                self.failure = Some(Failure { detail, ..failure });
                page
            }
            None => self.failed(failure),
        }
    }

    /// The built-in response for a failure, which the line will name.
    fn failed(&mut self, mut failure: Failure) -> Response<ResponseBody> {
        failure.detail = cut(failure.detail, DETAIL_MAX);
        let report = (self.host.development && self.may_see_details()).then(|| self.report());
        let failed = Failed {
            failure: &failure,
            id: &self.origin.id,
            request: self.parts,
            report: report.as_ref(),
        };
        let response = failed.response();
        self.failure = Some(failure);
        response
    }

    /// Whether the client has asked for this machine by a name of its own. A page from elsewhere could read what an app under
    /// development answers, if its name were resolved to this machine (DNS rebinding).
    fn may_see_details(&self) -> bool {
        let names = &self.app.config.server.development_hosts;
        let host = authority::host(self.parts);
        let is_own = host.is_some_and(|host| {
            host.is_local_or_address() || names.iter().any(|name| host.is_called(name))
        });
        if !is_own {
            tracing::warn!(
                host = host.as_ref().map(authority::Host::name),
                request = self.origin.id,
                "the details of a failure were not shown: the request is for a host that is neither localhost nor an address; add its name to `development_hosts` of `[server]` if it is this machine's"
            );
        }
        is_own
    }

    /// What is known so far, for the page that developers get.
    fn report(&self) -> Report {
        let view = self.view.as_ref().map(ToString::to_string);
        let Some(settled) = &self.settled else {
            return Report {
                view,
                ..Report::default()
            };
        };
        let (statements, statements_omitted) = settled.scope.journal.statements();
        let values = settled.scope.values();
        let text = |(name, value): (&Arc<str>, &Value)| (name.to_string(), value.text.to_string());
        let mut values: Vec<_> = values.iter().map(text).collect();
        values.sort();
        Report {
            view,
            statements,
            statements_omitted,
            transaction: (settled.fate != Fate::None).then(|| settled.fate.to_string()),
            values,
        }
    }

    fn finish(&mut self, status: StatusCode) {
        self.done = true;
        METRICS.requests.of(status).inc();
        METRICS
            .duration
            .observe(self.arrived.elapsed().as_secs_f64());
        self.log(status.as_u16());
    }

    fn log(&self, status: u16) {
        let line = Line {
            method: self.parts.method.as_str(),
            path: self.parts.uri.path(),
            status,
            took: self.arrived.elapsed(),
            view: self.view.as_deref(),
            settled: self.settled.as_ref(),
            request: &self.origin.id,
            failure: self.failure.as_ref(),
        };
        line.write();
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
        let why = self.host.why_dropped();
        let fault = match why {
            Ended::Shutdown => Fault::Limit,
            _ => Fault::Client,
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
