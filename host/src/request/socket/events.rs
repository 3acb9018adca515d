//! The events of a web socket: calls of its view, one after the other (R19).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use parking_lot::Mutex;

use crate::app::host::Host;
use crate::app::router::Route;
use crate::app::{App, Routed, Target};
use crate::budget::Account;
use crate::contract::types;
use crate::database::Face;
use crate::http::trace_context::Trace;
use crate::http::websocket::{Message, code};
use crate::request::access_log::AccessLogEntry;
use crate::request::attempt::Attempt;
use crate::scope::context::{Values, kept};
use crate::scope::conversation::Event;
use crate::scope::socket::Socket;
use crate::scope::transaction::Fate;
use crate::scope::{Origin, Scope, new_id};
use crate::telemetry::error::{Failure, Fault};
use crate::telemetry::metrics::METRICS;

/// How long an event waits before it tries again when there was no capacity: nothing is lost in silence (R22).
const BUSY_WAIT: Duration = Duration::from_millis(50);

type Params = Arc<[(String, String)]>;

/// Calls the view of one connection.
pub(super) struct Events {
    pub(super) host: Arc<Host>,
    pub(super) socket: Arc<Socket>,
    /// The path that the socket was opened at. Each event is routed anew, so that it goes to the present app (R23).
    pub(super) path: String,
    /// The rollout whose candidate the socket was opened in.
    pub(super) candidate: Option<u64>,
    pub(super) trace: Trace,
    pub(super) peer: SocketAddr,
    pub(super) depth: u32,
    pub(super) account: Arc<Account>,
    /// The values of the context, as the last event that succeeded has left them.
    pub(super) values: Mutex<Arc<Values>>,
    /// Whether a message or notice was given up because there was no capacity: then none after it is handled.
    pub(super) gave_up: AtomicBool,
}

impl Event {
    fn method(&self) -> &'static str {
        match self {
            Event::Message(Message::Text(_)) => "TEXT",
            Event::Message(Message::Binary(_)) => "BINARY",
            Event::Notice(_) => "NOTICE",
            Event::Closed { .. } => "CLOSED",
        }
    }

    fn is_last(&self) -> bool {
        matches!(self, Event::Closed { .. })
    }

    fn headers(&self) -> Vec<(String, String)> {
        let header = |name: &str, value: String| vec![(name.to_owned(), value)];
        match self {
            Event::Message(_) => Vec::new(),
            Event::Notice(notice) => header("group", notice.group.clone()),
            Event::Closed { code, .. } => header("code", code.to_string()),
        }
    }
}

impl Events {
    /// The app that the next event gets.
    pub(super) fn app(&self) -> Arc<App> {
        self.host.app_of(self.candidate)
    }

    /// Notes the values of the context that an event has left, and the one among them that is told to others.
    pub(super) fn keep(&self, values: Arc<Values>) {
        let app = self.app();
        let told = &app.config.channels.member_value;
        let user = values.get(&**told).map(|user| user.text.to_string());
        self.socket.set_user(user);
        let mut known = self.values.lock();
        if !Arc::ptr_eq(&known, &values) {
            *known = Arc::new(kept(&values, &self.account));
        }
    }

    /// Calls the view. When it fails, the connection goes on, with the context as it was. An event for which there is no
    /// capacity tries again, for `capacity_timeout_ms`.
    pub(super) async fn handle(self: Arc<Self>, event: Event) {
        let begun = Instant::now();
        loop {
            if self.gave_up.load(Relaxed) && !event.is_last() {
                return no_capacity();
            }
            let app = self.app();
            let Some((routed, params)) = self.routed(&app) else {
                METRICS.socket_events.with_label_values(&["no view"]).inc();
                let sentence = "the app has no such view any more";
                return self.socket.close(code::GOING_AWAY, sentence);
            };
            let id = new_id();
            let account = match self.account.request() {
                Ok(account) => account,
                Err(exhausted) => {
                    let entry = self.entry(&event, begun, &routed, &id);
                    self.wait(&event, entry, &exhausted.into(), &app).await;
                    continue;
                }
            };
            let origin = Arc::new(Origin {
                id: id.clone(),
                trace: self.trace.child(),
                peer: self.peer,
                depth: self.depth,
                values: Arc::clone(&self.values.lock()),
                socket: Some(Arc::clone(&self.socket)),
                account,
            });
            let ready = Attempt {
                host: &self.host,
                app: &app,
                origin: &origin,
                chain: &routed.alone,
                params,
                body: None,
                binary: None,
                streams: false,
            };
            let request = types::Request {
                method: event.method().to_owned(),
                path: self.path.clone(),
                query: String::new(),
                headers: event.headers(),
                params: Vec::new(),
                body: types::Body::Bytes(event.body().to_vec()),
            };
            let settled = ready.run(request).await;
            if settled.conversing.lock().is_some() {
                METRICS
                    .socket_events
                    .with_label_values(&["other form"])
                    .inc();
                let sentence = "the app has changed: connect again";
                return self.socket.close(code::RESTART, sentence);
            }
            let mut failure = settled.response.as_ref().err().cloned();
            // The view has not begun to run, because there was no capacity, or none in time: nothing is lost (R22).
            let busy = !settled.scope.has_begun()
                && (failure.as_ref()).is_some_and(|failure| failure.fault == Fault::Limit);
            if let Some(failure) = failure.as_ref().filter(|_| busy) {
                let entry = AccessLogEntry {
                    settled: Some(&settled),
                    ..self.entry(&event, begun, &routed, &id)
                };
                self.wait(&event, entry, failure, &app).await;
                continue;
            }
            let status = match (&settled.response, &failure) {
                (Ok(response), _) => response.status(),
                (Err(_), Some(failure)) => failure.status,
                (Err(_), None) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            if failure.is_none() && !status.is_success() {
                failure = Some(Failure::view(format!("the view answered {status}")));
            }
            let outcome = if failure.is_none() {
                "handled"
            } else {
                "failed"
            };
            METRICS.socket_events.with_label_values(&[outcome]).inc();
            let entry = AccessLogEntry {
                status: status.as_u16(),
                settled: Some(&settled),
                failure: failure.as_ref(),
                ..self.entry(&event, begun, &routed, &id)
            };
            match failure {
                None => {
                    self.keep(settled.scope.context.all());
                    let connection = self.socket.id();
                    tracing::debug!(target: "amphi::socket", method = event.method(), path = self.path, connection, request = origin.id, "event");
                }
                Some(_) => entry.write(),
            }
            return;
        }
    }

    /// The line of the log about an event, of which nothing is known yet.
    fn entry<'e>(
        &'e self,
        event: &Event,
        begun: Instant,
        routed: &'e Routed,
        id: &'e str,
    ) -> AccessLogEntry<'e> {
        AccessLogEntry {
            method: event.method(),
            path: &self.path,
            status: StatusCode::OK.as_u16(),
            took: begun.elapsed(),
            view: Some(&routed.alone.view().view),
            settled: None,
            request: id,
            failure: None,
        }
    }

    /// Waits before an event tries again. A message or notice that has waited for too long is given up, with all that come
    /// after it, and the connection is closed. The end of a connection is told in any case (R19): nothing waits behind it,
    /// and a server that stops waits no longer than `drain_timeout_ms`.
    async fn wait(&self, event: &Event, entry: AccessLogEntry<'_>, why: &Failure, app: &App) {
        let limit = app.config.sockets.capacity_timeout_ms;
        if event.is_last() || entry.took < Duration::from_millis(limit) {
            return tokio::time::sleep(BUSY_WAIT).await;
        }
        self.gave_up.store(true, Relaxed);
        METRICS
            .socket_dropped
            .with_label_values(&["capacity"])
            .inc();
        let entry = AccessLogEntry {
            status: why.status.as_u16(),
            failure: Some(why),
            ..entry
        };
        entry.write();
        let sentence = "the server has no capacity for messages";
        self.socket.close(code::TRY_AGAIN, sentence);
    }

    /// The view in this app, and the path parameters.
    fn routed(&self, app: &App) -> Option<(Arc<Routed>, Params)> {
        match app.router.route(&Method::GET, &self.path) {
            Route::Found(Target::Socket(routed), params) => {
                Some((Arc::clone(routed), params.into()))
            }
            _ => None,
        }
    }
}

/// Counts an event that is not handled.
fn no_capacity() {
    METRICS
        .socket_events
        .with_label_values(&["no capacity"])
        .inc();
}

/// Has the end of a connection told to its view whose client left while it was opened, if others may know of the
/// connection: something of the opening was committed or sent.
pub(super) async fn closed_if_known(events: Arc<Events>, scope: Arc<Scope>) {
    // Waits for a commit that runs.
    let fate = scope.transaction.finish(Face::Async, false).await;
    events.socket.end();
    if !matches!(fate, Ok(Fate::RolledBack)) && scope.transaction.lasting() {
        events.keep(scope.context.all());
        let reason = "the client left while the socket was opened".to_owned();
        events.handle(Event::Closed { code: 1006, reason }).await;
    }
}
