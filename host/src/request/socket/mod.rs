//! Web sockets. The host has the connection, from the handshake to the end; a view is called for what happens on it, one
//! event after the other, each in a scope of its own (R18, R19).
//!
//! The other form of a view keeps the conversation: it runs as long as the connection (`conversation.rs`).
//!
//! `open` runs the view for the handshake, through all middleware, as for any other request. When it succeeds, the
//! connection's task (`connection.rs`) takes over, and calls the view by `events.rs`.

mod connection;
mod conversation;
mod events;
mod stream;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;

use super::access_log::Completion;
use super::attempt::{Attempt, Conversing};
use super::error_view;
use crate::app::router::Route;
use crate::app::{App, Routed, Target};
use crate::budget::{Account, Room};
use crate::http::body::Received;
use crate::http::message::{ResponseBody, binary_headers, contract_request};
use crate::http::proxies::Asked;
use crate::http::websocket::{Handshake, offered_protocols};
use crate::scope::context::Values;
use crate::scope::socket::{Socket, SocketLimits};
use crate::telemetry::error::{Failure, shown};
use crate::view::Kind;
use connection::Connection;
pub use connection::{KeptOpen, Upgrades};
use conversation::Ready;
use events::Events;
use stream::HTTP2_BYTES;
pub use stream::Stream;

/// Makes an extended CONNECT of HTTP/2 (RFC 8441) a GET, as which a web socket is opened over HTTP/1.1: views, middleware
/// and the log see no difference.
///
/// # Errors
/// 404 when the path is not one of a web socket. Whatever else is there does not run: its client would take a success for
/// the beginning of a web socket.
pub(super) fn from_connect(app: &App, parts: &mut Parts) -> Result<(), Failure> {
    if parts.extensions.get::<Protocol>().is_none() {
        return Ok(());
    }
    parts.method = Method::GET;
    match app.router.route(&parts.method, parts.uri.path()) {
        Route::Found(Target::Socket(_), _) => Ok(()),
        _ => Err(Failure::client(
            StatusCode::NOT_FOUND,
            "There is no web socket at this path.",
        )),
    }
}

/// Opens a web socket, or answers why not.
///
/// # Errors
/// A failure of the handshake, or of the view.
pub(super) async fn open(
    routed: &Arc<Routed>,
    params: Vec<(String, String)>,
    (account, upgrades): (&Arc<Account>, &Upgrades),
    completion: &mut Completion<'_>,
) -> Result<Response<ResponseBody>, Failure> {
    let Completion {
        host, app, parts, ..
    } = *completion;
    let limits = &app.config.sockets;
    let handshake = match Handshake::check(parts, limits.compression) {
        Ok(handshake) => handshake,
        Err(refusal) => {
            let failure = Failure::client(refusal.status, refusal.reason);
            let mut response = error_view::respond(completion, failure).await;
            response.headers_mut().extend(refusal.headers);
            return Ok(response);
        }
    };
    let asked = app.config.proxies.asked(completion.peer, &parts.headers);
    let host_header = || parts.headers.get(header::HOST)?.to_str().ok();
    let named = parts.uri.authority().map(Authority::as_str);
    let own = asked.authority.as_deref();
    let own = own.or(named).or_else(host_header);
    let view = &routed.chain.view().view;
    let Kind::Socket { origins, .. } = &view.kind else {
        unreachable!("the route is one of a socket")
    };
    check_origin(
        parts.headers.get(header::ORIGIN),
        own,
        &[origins, &app.config.allowed_origins],
    )?;
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let upgrade = upgrade.ok_or_else(|| {
        Failure::client(
            StatusCode::BAD_REQUEST,
            "This connection cannot become a web socket.",
        )
    })?;
    let kept_open = parts.extensions.get::<KeptOpen>().cloned();
    let mut stream = Room::empty(account);
    if kept_open.is_some() {
        stream.grow_to(HTTP2_BYTES)?;
    }
    let kept = SocketLimits {
        outbox_max_bytes: limits.outbox_max_bytes,
        mailbox_max: limits.mailbox_max,
    };
    let unpaid = account.unpaid();
    let socket = Socket::new(&host.hub, handshake.deflate(), kept, &unpaid);
    let socket = socket.map_err(|why| {
        Failure::limit(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("no room for a web socket: {why}"),
        )
    })?;
    Arc::make_mut(&mut completion.origin).socket = Some(Arc::clone(&socket));
    // Nothing of the request itself is kept: its headers are slices of hyper's buffer.
    let events = Arc::new(Events {
        host: Arc::clone(host),
        path: parts.uri.path().to_owned(),
        candidate: completion.candidate,
        trace: completion.origin.trace.clone(),
        peer: completion.origin.peer,
        depth: completion.origin.depth,
        account: Arc::clone(account),
        socket: Arc::clone(&socket),
        values: Mutex::default(),
        gave_up: AtomicBool::new(false),
    });
    let opening = Opening(Some(Arc::clone(&events)), upgrades);
    let opened = handshaken(routed, params, &asked, completion).await;
    opening.ended();
    let (response, values, conversing) = match opened {
        Ok((response, values, conversing)) if response.status().is_success() => {
            (response, values, conversing)
        }
        refused => {
            socket.end();
            return refused.map(|(response, ..)| response);
        }
    };
    events.keep(values);
    let offered = offered_protocols(&parts.headers);
    let protocol = match chosen(&response, offered) {
        Ok(protocol) => protocol,
        Err(failure) => {
            match conversing {
                // The view has opened it, so it is told of the end.
                None => Connection::new(events, limits, false, None).end_in(upgrades),
                // A conversation that has not begun has no end.
                Some(_) => socket.end(),
            }
            return Err(failure);
        }
    };
    let ready = match (conversing, &completion.settled) {
        (Some(conversing), Some(settled)) => {
            let ready = Ready::new(conversing, &settled.scope, &events, app);
            Some(Box::new(ready.inspect_err(|_| socket.end())?))
        }
        _ => None,
    };
    let deflate = handshake.deflate();
    let mut switched = handshake
        .response(protocol)
        .map(|()| Either::Left(Full::default()));
    for (name, value) in response.headers() {
        let is_about_body = [header::CONTENT_LENGTH, header::CONTENT_TYPE].contains(name);
        if !is_about_body && *name != header::SEC_WEBSOCKET_PROTOCOL {
            switched.headers_mut().append(name.clone(), value.clone());
        }
    }
    let connection = Connection::new(events, limits, deflate, ready);
    upgrades.spawn(upgrade, (kept_open, stream), connection);
    Ok(switched)
}

/// A socket that is being opened. When this value is dropped before the end, the client has left. If others may know of
/// the connection all the same, its view is told of the end (R19).
struct Opening<'a>(Option<Arc<Events>>, &'a Upgrades);

impl Opening<'_> {
    fn ended(mut self) {
        if let Some(events) = self.0.take() {
            events.socket.opening_ended();
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some(events) = self.0.take()
            && let Some(scope) = events.socket.opening_ended()
        {
            self.1.open.spawn(events::closed_if_known(events, scope));
        }
    }
}

/// What the view answers to the opening, the values of its context, and what keeps the conversation, if it does.
type Opened = (Response<ResponseBody>, Arc<Values>, Option<Conversing>);

/// Runs the view, and all middleware around it, for the handshake.
async fn handshaken(
    routed: &Arc<Routed>,
    params: Vec<(String, String)>,
    asked: &Asked,
    completion: &mut Completion<'_>,
) -> Result<Opened, Failure> {
    let (request, _) = contract_request(completion.parts, asked, Received::Inline(Vec::new()));
    let ready = Attempt {
        host: completion.host,
        app: completion.app,
        origin: &completion.origin,
        chain: &routed.chain,
        params: params.into(),
        body: None,
        binary: binary_headers(&completion.parts.headers),
        streams: false,
    };
    let mut settled = ready.run(request).await;
    let response = std::mem::replace(&mut settled.response, Ok(Response::default()));
    let values = settled.scope.context.all();
    let conversing = settled.conversing.get_mut().take();
    completion.settled = Some(settled);
    Ok((response?.map(ResponseBody::from), values, conversing))
}

/// The subprotocol that the view has chosen, which has to be one that the client offers.
fn chosen<'a>(
    response: &Response<ResponseBody>,
    mut offered: impl Iterator<Item = &'a str>,
) -> Result<Option<HeaderValue>, Failure> {
    let Some(chosen) = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL) else {
        return Ok(None);
    };
    match offered.any(|offered| *chosen == *offered) {
        true => Ok(Some(chosen.clone())),
        false => Err(Failure::view(format!(
            "the view chose the subprotocol {chosen:?}, which the client does not offer"
        ))),
    }
}

/// Checks that the page which opens the socket may do so. A client that is no browser says nothing of pages.
fn check_origin(
    origin: Option<&HeaderValue>,
    own: Option<&str>,
    allowed: &[&Vec<String>],
) -> Result<(), Failure> {
    let Some(origin) = origin else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let is_own = origin
        .split_once("://")
        .is_some_and(|(_, authority)| own.is_some_and(|own| own.eq_ignore_ascii_case(authority)));
    let is_allowed = |known: &String| known == "*" || known.eq_ignore_ascii_case(origin);
    if is_own || allowed.iter().copied().flatten().any(is_allowed) {
        return Ok(());
    }
    let sentence = format!(
        "a page of `{}` may not open this web socket: add its origin to `origins` of the view, or to `allowed_origins` of `[app]`",
        shown(origin)
    );
    Err(Failure {
        detail: sentence,
        ..Failure::client(
            StatusCode::FORBIDDEN,
            "Pages of this origin may not open the web socket.",
        )
    })
}
