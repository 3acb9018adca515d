//! The life of a request. Read this first.
//!
//! [`answer`] routes the request and receives its body. `attempt.rs` opens a scope, has `dispatch.rs` run the chain of
//! guest functions, on a worker, on this loop or on both, and has `settle.rs` check the response and end the
//! transaction. Whatever fails on the way comes back as a [`Failure`] and becomes a response in one place (`around`).
//! However the request ends, `access_log.rs` writes one line about it.

pub mod access_log;
pub mod attempt;
pub mod delivery;
pub mod dispatch;
mod error_view;
pub mod settle;
mod shadow;
pub mod socket;
mod static_file;
mod streaming;
mod subscription;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Body;

use crate::app::host::Host;
use crate::app::rollout::Choice;
use crate::app::router::{Allowed, Route};
use crate::app::{App, Routed, Target};
use crate::budget::{Account, Exhausted, Room};
use crate::http::accept::{Form, form};
use crate::http::body::{self, Arriving, Received, RequestBody};
use crate::http::message::{
    ResponseBody, binary_headers, contract_request, empty, with_allow, without_body,
};
use crate::http::middleware::{self, Builtin};
use crate::http::{authority, conditional, path};
use crate::request::access_log::Completion;
use crate::request::attempt::Attempt;
use crate::request::settle::CheckedBody;
use crate::request::shadow::ShadowCopy;
use crate::request::socket::Upgrades;
use crate::scope::context::Value;
use crate::telemetry::error::Failure;

/// What the requests of a connection need to know of it.
#[derive(Clone)]
pub struct Client {
    /// The address at the other end of the connection: the client's, or that of a proxy in front of it.
    pub peer: SocketAddr,
    /// The memory account of the connection.
    pub account: Arc<Account>,
    /// Where the connection goes on when it becomes a web socket.
    pub upgrades: Upgrades,
}

/// Answers one request. When the client disconnects, this future is dropped, which cancels the request (R15).
pub async fn answer<B>(
    host: &Arc<Host>,
    client: &Client,
    parts: &mut Parts,
    body: B,
) -> Response<ResponseBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    // The rollout is loaded before the app: a promotion replaces the app first, so whoever finds no rollout any more gets
    // the promoted app, and never the one before.
    let choice = match &*host.rollout.load() {
        Some(rollout) => {
            let proxies = &host.app.load().config.proxies;
            let address = proxies.client(client.peer, &parts.headers);
            rollout.choose(parts, address.unwrap_or(client.peer).ip())
        }
        None => Choice::default(),
    };
    let app = host.app_of(choice.candidate);
    let mut response = answer_in(host, (&app, choice.candidate), client, parts, body).await;
    if let Some(cookie) = choice.cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// Answers one request in this app: the served one, or the candidate of this rollout, or a version that is checked before
/// it is either. What a candidate fails without leaving anything, the served app answers: the whole request, from its
/// first middleware on, because the candidate's middleware may let others in than that of the served app.
pub async fn answer_in<B>(
    host: &Arc<Host>,
    (app, candidate): (&Arc<App>, Option<u64>),
    client: &Client,
    parts: &mut Parts,
    body: B,
) -> Response<ResponseBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    // From here on, each path has one spelling: for routes, middleware, guests, error pages and the log.
    let too_long = path::normalize(&mut parts.uri).is_err();
    let opens = socket::from_connect(app, parts);
    let unclear = match too_long {
        true => Err(Failure::client(
            StatusCode::URI_TOO_LONG,
            "The URL is too long when it is encoded.",
        )),
        false => opens,
    };
    let (body, id) = (BodySource::Client(body), None);
    match answer_once(host, (app, candidate), client, parts, (body, unclear, id)).await {
        Answered::Response(response) => response,
        Answered::Again { body, id } => {
            let (served, body) = (host.app.load_full(), BodySource::<B>::Received(body));
            let rest = (body, Ok(()), Some(id));
            match answer_once(host, (&served, None), client, parts, rest).await {
                Answered::Response(response) => response,
                Answered::Again { .. } => unreachable!("only what a candidate fails is run again"),
            }
        }
    }
}

/// Where the body of a request is.
enum BodySource<B> {
    /// At the client.
    Client(B),
    /// Here: the request is run again.
    Received(Received),
}

/// What has become of one run of a request.
enum Answered {
    /// It has a response.
    Response(Response<ResponseBody>),
    /// A candidate has failed it, and nothing is left of it: the served app answers it, with this body and this id.
    Again { body: Received, id: String },
}

async fn answer_once<B>(
    host: &Arc<Host>,
    (app, candidate): (&Arc<App>, Option<u64>),
    client: &Client,
    parts: &Parts,
    (body, unclear, id): (BodySource<B>, Result<(), Failure>, Option<String>),
) -> Answered
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (account, refused) = account(client);
    // Middleware and routing depend on the client's address and on the requested host, so a request in which one of
    // them is unclear is refused first.
    let from = app.config.proxies.client(client.peer, &parts.headers);
    let unclear = match &from {
        Ok(_) => unclear.and_then(|()| authority::check(parts)).err(),
        Err(malformed) => {
            let text = malformed.to_string();
            Some(Failure::client(StatusCode::BAD_REQUEST, text))
        }
    };
    let addresses = (client.peer, from.unwrap_or(client.peer));
    let mut completion = Completion::new(host, (app, candidate), addresses, account, parts, id);
    let mut response = match unclear {
        Some(failure) => completion.failed(failure),
        None => {
            around(&app.config.builtins, &mut completion, async |completion| {
                if let Some(refused) = refused {
                    return Err(refused.into());
                }
                route(body, client, completion).await
            })
            .await
        }
    };
    if let Some(body) = completion.again.take() {
        completion.failed_over();
        let id = completion.origin.id.clone();
        return Answered::Again { body, id };
    }
    if parts.method == http::Method::HEAD {
        without_body(&mut response);
    }
    completion.finish(response.status());
    Answered::Response(response)
}

/// The memory account of a request. When there is no memory for one more request, the second value is the reason to
/// refuse the request, and its account has nothing prepaid.
fn account(client: &Client) -> (Arc<Account>, Option<Exhausted>) {
    match client.account.request() {
        Ok(account) => (account, None),
        Err(refused) => (client.account.unpaid(), Some(refused)),
    }
}

/// Runs built-in middleware on the request, then `within`, then the middleware on the response. A failure is made a
/// response in between, so that the middleware sees responses of failures, too.
async fn around(
    builtins: &[Arc<Builtin>],
    completion: &mut Completion<'_>,
    within: impl AsyncFnOnce(&mut Completion<'_>) -> Result<Response<ResponseBody>, Failure>,
) -> Response<ResponseBody> {
    let entry = middleware::on_request(builtins, completion.head()).await;
    for (name, text) in entry.values {
        let values = &mut Arc::make_mut(&mut completion.origin).values;
        Arc::make_mut(values).insert(name.into(), Value::reserved(&text));
    }
    let mut response = match entry.answer {
        Some(Ok(response)) => *response,
        Some(Err(refused)) => {
            let mut response = completion.failed(refused.failure);
            response.headers_mut().extend(refused.headers);
            response
        }
        None => match within(completion).await {
            Ok(response) => response,
            Err(failure) => error_view::respond(completion, failure).await,
        },
    };
    middleware::on_response(&builtins[..entry.seen], completion.head(), &mut response);
    response
}

async fn route<B>(
    body: BodySource<B>,
    client: &Client,
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
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
    // For HTTP/1, hyper has refused more headers already.
    if parts.headers.len() > limits.headers_max {
        let text = format!("The request has more than {} headers.", limits.headers_max);
        return Err(Failure::client(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            text,
        ));
    }
    // hyper checks its limit on bytes only between reads, so the headers may exceed the limit by one read.
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
    // The headers are charged twice: once for the host, and once for the copy that guests get.
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
            // Boxed, as all that few requests need: it would make the futures of all others as large as its own.
            return Ok(Box::pin(other_methods(allowed, completion)).await);
        }
    };
    match target {
        Target::Static(files) => {
            static_file::answer(app, files, (parts, &completion.origin.account), params).await
        }
        Target::Socket(routed) => {
            completion.view = Some(&routed.chain.view().view);
            let opened = async |completion: &mut Completion<'_>| {
                let client = (&client.account, &client.upgrades);
                Box::pin(socket::open(routed, params, client, completion)).await
            };
            Ok(around(routed.builtins(), completion, opened).await)
        }
        Target::View(routed) => {
            not_broken(completion)?;
            completion.view = Some(&routed.chain.view().view);
            let viewed = async |completion: &mut Completion<'_>| {
                view(routed, params, (body, client), completion).await
            };
            Ok(around(routed.builtins(), completion, viewed).await)
        }
    }
}

fn is_for_view(app: &App, parts: &Parts) -> bool {
    let route = app.router.route(&parts.method, parts.uri.path());
    matches!(route, Route::Found(Target::View(_), _))
}

/// Answers when a path has views for other methods only: 204 to OPTIONS, 405 to any other method. The built-in
/// middleware of the views' module runs first, so that a client who may not use the module does not learn its methods.
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
        Ok(with_allow(
            error_view::respond(completion, failure).await,
            &allow,
        ))
    };
    around(first.map_or(&[], Target::builtins), completion, answer).await
}

/// Fails, in development, when a page is requested and the app could not be built, so that the page shows why. Other
/// requests are answered by the last build that worked.
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

/// The target that a CORS preflight asks about (Fetch standard, 4.8). The middleware of the target's module decides
/// what is allowed.
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
    (body, client): (BodySource<B>, &Client),
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let Completion {
        host, app, parts, ..
    } = *completion;
    let limits = app.config.server.body_limits();
    let account = &completion.origin.account;
    let received = match body {
        BodySource::Received(received) => received,
        BodySource::Client(body) => match routed.chain.view().view.stream_body {
            true => Received::Kept(RequestBody::Arriving(Arriving::new(
                body, &limits, account,
            )?)),
            false => body::receive(body, &limits, account).await?,
        },
    };
    let is_there = !matches!(&received, Received::Kept(RequestBody::Arriving(_)));
    let again = (completion.candidate.is_some() && is_there).then(|| received.clone());
    let asked = app.config.proxies.asked(completion.peer, &parts.headers);
    let (request, kept) = contract_request(parts, &asked, received);
    let binary = binary_headers(&parts.headers);
    let copied = (&request, kept.as_ref(), &binary);
    let copy = ShadowCopy::of((host, app), routed, parts, &completion.origin, copied);
    let ready = Attempt {
        host,
        app,
        origin: &completion.origin,
        chain: &routed.chain,
        params: params.into(),
        body: kept,
        binary,
        streams: true,
    };
    let mut settled = ready.run_beside(request, copy).await;
    if again.is_some()
        && settled.has_failed()
        && (parts.method.is_safe() || settled.left_nothing())
        && is_for_view(&host.app.load(), parts)
    {
        completion.settled = Some(settled);
        completion.again = again;
        // Nobody gets this response.
        return Ok(empty(StatusCode::NO_CONTENT));
    }
    let response = std::mem::replace(&mut settled.response, Ok(Response::default()));
    completion.settled = Some(settled);
    let mut response = response?;
    let length = response.body().length();
    let asked = (&parts.method, &parts.headers);
    conditional::apply(asked, length, &mut response);
    let (head, body) = response.into_parts();
    let body = match body {
        CheckedBody::Subscription(subscription) => {
            let response = Response::from_parts(head, subscription);
            // The function has ended, and a poll may wait for a minute.
            if let Some(settled) = &completion.settled {
                settled.scope.is_done();
            }
            let (account, stop) = (&completion.origin.account, &client.upgrades.stop);
            let answer = subscription::answer(&host.hub, response, account, stop);
            return Box::pin(answer).await;
        }
        body => body,
    };
    let response = Response::from_parts(head, body);
    match response.body() {
        CheckedBody::Stream(_) if parts.version < Version::HTTP_11 => {
            let whole = received_whole(response, routed, &completion.origin.account);
            Box::pin(whole).await
        }
        _ => Ok(response.map(ResponseBody::from)),
    }
}

/// The response with all of its body. A client of HTTP/1.0 takes the end of the connection for the end of the body, so
/// it would take a part for the whole.
async fn received_whole(
    response: Response<CheckedBody>,
    routed: &Routed,
    account: &Arc<Account>,
) -> Result<Response<ResponseBody>, Failure> {
    let max = routed
        .chain
        .view()
        .module
        .shared
        .grants
        .limits
        .response_max_bytes;
    let (head, body) = response.into_parts();
    let mut body = ResponseBody::from(body);
    let (mut whole, mut room) = (Vec::new(), Room::empty(account));
    while let Some(frame) = body.frame().await {
        let incomplete = |_| Failure::view("the body of the response could not be completed");
        let Ok(data) = frame.map_err(incomplete)?.into_data() else {
            continue;
        };
        if (whole.len() + data.len()) as u64 > max {
            return Err(Failure::view(format!(
                "the response has more than {max} bytes (`response_max_bytes`), and is for a client of HTTP/1.0, which gets streams as a whole"
            )));
        }
        room.grow_to((whole.len() + data.len()) as u64 * 2)?;
        whole.extend_from_slice(&data);
    }
    let whole = CheckedBody::Whole(room.hold(whole), None);
    Ok(Response::from_parts(head, whole.into()))
}
