//! The one line of log about a request or an event that has ended, and its counts. `Completion` watches a request to
//! its end, so that the line is written however the request ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Method, Response, StatusCode};

use super::attempt::AttemptOutcome;
use crate::app::App;
use crate::app::host::Host;
use crate::budget::Account;
use crate::guest::stop::Stop;
use crate::http::body::Received;
use crate::http::error_page::Failed;
use crate::http::message::{ResponseBody, is_bodiless};
use crate::http::middleware::{self, RequestHead};
use crate::http::stream::StreamEnd;
use crate::http::trace_context::Trace;
use crate::http::{authority, call_depth};
use crate::scope::context::Value;
use crate::scope::transaction::Fate;
use crate::scope::{self, Origin};
use crate::telemetry::error::{Failure, Fault, cut};
use crate::telemetry::metrics::METRICS;
use crate::telemetry::report::Report;
use crate::threads::deadline::Ended;
use crate::view::View;

/// The most bytes of a failure's sentence that the log line has.
const DETAIL_MAX: usize = 4 << 10;

/// Watches a request to its end and writes its line of log, also when the request is dropped before its end.
pub(super) struct Completion<'a> {
    pub(super) host: &'a Arc<Host>,
    pub(super) app: &'a Arc<App>,
    /// The rollout whose candidate the app is.
    pub(super) candidate: Option<u64>,
    /// The body of a request that the app has failed, as a candidate, and that the served app answers in its place.
    pub(super) again: Option<Received>,
    pub(super) parts: &'a Parts,
    /// Who is connected: the client, or a proxy.
    pub(super) peer: SocketAddr,
    arrived: Instant,
    pub(super) origin: Arc<Origin>,
    pub(super) view: Option<&'a Arc<View>>,
    pub(super) settled: Option<Box<AttemptOutcome>>,
    pub(super) failure: Option<Failure>,
    done: bool,
}

impl<'a> Completion<'a> {
    pub(super) fn new(
        host: &'a Arc<Host>,
        (app, candidate): (&'a Arc<App>, Option<u64>),
        (peer, client): (SocketAddr, SocketAddr),
        account: Arc<Account>,
        parts: &'a Parts,
        id: Option<String>,
    ) -> Completion<'a> {
        let proxies = &app.config.proxies;
        let id = id.or_else(|| proxies.request_id(peer, &parts.headers));
        Completion {
            host,
            app,
            candidate,
            again: None,
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
                socket: None,
            }),
            view: None,
            settled: None,
            failure: None,
            done: false,
        }
    }

    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            request: self.parts,
            id: &self.origin.id,
            peer: self.peer,
            client: self.origin.peer.ip(),
            user: (self.origin.values.get(middleware::USER)).map(|user| &*user.text),
            account: &self.origin.account,
        }
    }

    /// Makes the built-in response for a failure, and notes the failure for the line of log.
    pub(super) fn failed(&mut self, mut failure: Failure) -> Response<ResponseBody> {
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

    /// Notes the failure for the line of log, when the response is made elsewhere.
    pub(super) fn note(&mut self, mut failure: Failure) {
        failure.detail = cut(failure.detail, DETAIL_MAX);
        self.failure = Some(failure);
    }

    /// Whether the request names this machine: localhost, an address, or a configured name. Without this check, a page
    /// of another site could have its own name resolved to this machine (DNS rebinding), and then read what an app
    /// under development answers.
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

    /// Everything that is known of the request so far, for the error page in development.
    fn report(&self) -> Report {
        let view = self.view.as_ref().map(ToString::to_string);
        let Some(settled) = &self.settled else {
            return Report {
                view,
                ..Report::default()
            };
        };
        let (statements, statements_omitted) = settled.scope.journal.statements();
        let values = settled.scope.context.all();
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

    /// Notes that a candidate has failed, and that the served app answers in its place: the request has its line of log
    /// from there.
    pub(super) fn failed_over(&mut self) {
        self.done = true;
        let took = self.arrived.elapsed();
        let outcome = self.settled.as_ref().map(|settled| &settled.response);
        let (status, why) = match outcome {
            Some(Ok(response)) => (response.status(), "the view answered so"),
            Some(Err(failure)) => (failure.status, &*failure.detail),
            None => (StatusCode::INTERNAL_SERVER_ERROR, ""),
        };
        self.app.stats.answered(status, took);
        METRICS.failed_over.inc();
        let why = cut(why.to_owned(), DETAIL_MAX);
        let view = self.view.map(tracing::field::display);
        let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::warn!(target: "amphi::request", view, request = self.origin.id, status = status.as_u16(), duration_us, why, "the candidate failed; the active version answers");
    }

    /// Writes the line of log; for a response whose body is still being produced, when that has ended.
    pub(super) fn finish(&mut self, status: StatusCode) {
        self.done = true;
        METRICS.requests.of(status).inc();
        let took = self.arrived.elapsed();
        METRICS.duration.observe(took.as_secs_f64());
        self.app.stats.answered(status, took);
        let settled = self.settled.as_mut();
        let Some(stream) = settled.and_then(|settled| settled.stream.take()) else {
            return self.log(status.as_u16());
        };
        let streamed = Streamed {
            host: Arc::clone(self.host),
            app: Arc::clone(self.app),
            method: self.parts.method.clone(),
            path: self.parts.uri.path().to_owned(),
            status,
            arrived: self.arrived,
            view: self.view.take().cloned(),
            settled: self.settled.take(),
            request: self.origin.id.clone(),
            failure: self.failure.take(),
        };
        stream.when_over(move |end| streamed.log(end));
    }

    fn log(&self, status: u16) {
        let line = AccessLogEntry {
            method: self.parts.method.as_str(),
            path: self.parts.uri.path(),
            status,
            took: self.arrived.elapsed(),
            view: self.view.map(|view| &**view),
            settled: self.settled.as_deref(),
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
            self.app.stats.failed();
            return self.log(500);
        }
        self.failure = Some(dropped(self.host));
        // No response was sent. 499 is the status that nginx logs when the client has closed the connection.
        self.log(499);
    }
}

/// A request whose response has begun, for its line of log when the response has ended.
struct Streamed {
    host: Arc<Host>,
    app: Arc<App>,
    method: Method,
    path: String,
    status: StatusCode,
    arrived: Instant,
    view: Option<Arc<View>>,
    settled: Option<Box<AttemptOutcome>>,
    request: String,
    failure: Option<Failure>,
}

impl Streamed {
    fn log(self, end: StreamEnd) {
        let bodiless = self.method == Method::HEAD || is_bodiless(self.status);
        let (outcome, failure) = match end {
            StreamEnd::Complete => ("complete", None),
            StreamEnd::NotWanted if bodiless => ("complete", None),
            StreamEnd::NotWanted => ("abandoned", Some(dropped(&self.host))),
            StreamEnd::Failed(failure) => {
                self.app.stats.failed();
                ("failed", Some(failure))
            }
        };
        METRICS.streams_ended.with_label_values(&[outcome]).inc();
        let failure = failure.or(self.failure).map(|failure| Failure {
            detail: cut(failure.detail, DETAIL_MAX),
            ..failure
        });
        let line = AccessLogEntry {
            method: self.method.as_str(),
            path: &self.path,
            status: self.status.as_u16(),
            took: self.arrived.elapsed(),
            view: self.view.as_deref(),
            settled: self.settled.as_deref(),
            request: &self.request,
            failure: failure.as_ref(),
        };
        line.write();
    }
}

/// The failure of a request that was dropped before it had been answered.
fn dropped(host: &Host) -> Failure {
    let why = host.why_dropped();
    let fault = match why {
        Ended::Shutdown => Fault::Limit,
        _ => Fault::Client,
    };
    Failure {
        fault,
        ..Failure::view(Stop::from(why).to_string())
    }
}

/// The facts of one line of log.
pub struct AccessLogEntry<'a> {
    /// The method, or `EVENT`.
    pub method: &'a str,
    /// The path, or the topic.
    pub path: &'a str,
    /// The status of the response; 499 when the request was dropped before it had a response.
    pub status: u16,
    /// Time since the request arrived.
    pub took: Duration,
    /// The view that the request was routed to.
    pub view: Option<&'a View>,
    /// The outcome of the chain, if it ran.
    pub settled: Option<&'a AttemptOutcome>,
    /// The request's id.
    pub request: &'a str,
    /// The failure, if any.
    pub failure: Option<&'a Failure>,
}

impl AccessLogEntry<'_> {
    /// Writes the line: as an error when the host is at fault, as a warning when a view is at fault or a limit was
    /// reached, else as information.
    pub fn write(&self) {
        let AccessLogEntry {
            method,
            path,
            status,
            request,
            ..
        } = *self;
        let duration_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        let view = self.view.map(tracing::field::display);
        let mode = self.view.map(|view| view.mode.as_str());
        let settled = self.settled;
        let transaction = settled.map(|settled| settled.fate);
        let transaction = transaction.filter(|fate| *fate != Fate::None);
        let transaction = transaction.map(tracing::field::display);
        let hops = settled.map(|settled| settled.scope.hops());
        let worker = settled.and_then(|settled| settled.scope.worker.number());
        let retries = settled.map(|settled| settled.retries);
        let retries = retries.filter(|retries| *retries > 0);
        macro_rules! line {
            ($level:ident, $($more:tt)*) => {
                tracing::$level!(target: "amphi::request", method, path, status, duration_us, mode, view, transaction, hops, worker, retries, request, $($more)*)
            };
        }
        let Some(failure) = self.failure else {
            return line!(info, "request");
        };
        let (fault, why) = (failure.fault.as_str(), &failure.detail);
        // The line has the view already: a call path of one function adds nothing.
        let call_path = (failure.call_path.len() > 1).then(|| failure.call_path.join(" → "));
        METRICS.failures.with_label_values(&[fault]).inc();
        match failure.fault {
            Fault::Client => line!(info, fault, why, call_path, "request"),
            Fault::View | Fault::Limit => line!(warn, fault, why, call_path, "request"),
            Fault::Host => line!(error, fault, why, call_path, "request"),
        }
    }
}
