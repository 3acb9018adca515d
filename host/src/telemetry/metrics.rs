//! The host's metrics, for Prometheus. A gauge of work in flight is back at its baseline when nothing is in flight.

use std::sync::LazyLock;

use http::StatusCode;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// All metrics of the host.
pub struct Metrics {
    registry: Registry,
    /// Open client connections.
    pub connections: IntGauge,
    /// Requests whose scope is open.
    pub scopes: IntGauge,
    /// Instances of sync guests that work on a request.
    pub sync_instances: IntGauge,
    /// Instances of async guests that work on requests.
    pub async_instances: IntGauge,
    /// Instances of sync guests that are kept for another request.
    pub sync_kept: IntGauge,
    /// Instances of async guests that are kept for another request.
    pub async_kept: IntGauge,
    /// Instances that were ended instead of being kept for another request, by reason (`requests`, `age`, `memory`,
    /// `unclean`, `full`).
    pub recycled: IntCounterVec,
    /// Sync worker threads.
    pub workers: IntGauge,
    /// Sync workers that wait in a host call.
    pub workers_blocked: IntGauge,
    /// Requests waiting, by queue.
    pub queued: IntGaugeVec,
    /// Requests refused because a queue was full or the wait too long, by queue.
    pub refused: IntCounterVec,
    /// How long requests waited for a sync worker or an async instance.
    pub queue_wait: Histogram,
    /// Database connections in use, by database.
    pub database_connections: IntGaugeVec,
    /// Database connections pinned by a request, by database.
    pub database_pinned: IntGaugeVec,
    /// Query results that were read as a whole instead of in pieces, because too many connections were sending other
    /// results.
    pub results_at_once: IntCounter,
    /// Transactions open.
    pub transactions: IntGauge,
    /// Outbound HTTP requests in flight.
    pub outbound: IntGauge,
    /// Memory that is drawn from the budget for requests, in bytes.
    pub memory: IntGauge,
    /// Temporary files that hold request bodies.
    pub body_files: IntGauge,
    /// Responses that are being compressed.
    pub compressing: IntGauge,
    /// Responses that their views produce while they are sent.
    pub streams: IntGauge,
    /// Such responses that have ended, by how.
    pub streams_ended: IntCounterVec,
    /// Passwords that basic-auth is checking.
    pub password_checks: IntGauge,
    /// Credentials that basic-auth remembers as right.
    pub credentials: IntGauge,
    /// Finished requests, by status class (`2xx` …).
    pub requests: ByStatus,
    /// Failed requests, by fault (`client`, `view`, `limit`, `host`).
    pub failures: IntCounterVec,
    /// Requests that were run again after a conflict.
    pub retries: IntCounter,
    /// Requests that a version in shadow mode was to get a copy of, by outcome (`equal`, `differing`, `unclear`,
    /// `not compared`).
    pub shadowed: IntCounterVec,
    /// Requests that a candidate has failed, and the active version has answered.
    pub failed_over: IntCounter,
    /// The generation of the record that this host of a fleet serves. It is the same on all hosts that have converged.
    pub fleet_generation: IntGauge,
    /// Attempts to serve what the fleet is to serve that have failed.
    pub fleet_failures: IntCounter,
    /// Events, by outcome (`published`; for each subscriber `delivered`, `failed`).
    pub events: IntCounterVec,
    /// What groups of connections have and have done, by name, once a second.
    pub channels: IntGaugeVec,
    /// Event streams that are sent.
    pub event_streams: IntGauge,
    /// Polls that wait.
    pub polls: IntGauge,
    /// Open web sockets.
    pub sockets: IntGauge,
    /// Web sockets that have ended, by their code.
    pub sockets_closed: IntCounterVec,
    /// Web sockets whose functions keep the conversation.
    pub conversations: IntGauge,
    /// Such functions that have ended, by outcome (`finished`, `failed`).
    pub conversations_ended: IntCounterVec,
    /// Events of web sockets, by outcome (`handled`, `failed`, `no view`, `other form`, `no capacity`).
    pub socket_events: IntCounterVec,
    /// Messages of web sockets, by direction (`in`, `out`), and `dropped`: sent to a connection that was closed, or that ended
    /// before its client could be sent the message.
    pub socket_messages: IntCounterVec,
    /// How often a web socket was read no further for a while, because of `messages_per_second`.
    pub socket_pauses: IntCounter,
    /// Web sockets that are closed because a limit was reached, by limit (`outbox`, `mailbox`, `rate`, `memory`,
    /// `capacity`).
    pub socket_dropped: IntCounterVec,
    /// Time from accepting a request to its response head.
    pub duration: Histogram,
    /// Log text dropped because a request wrote too much, in bytes.
    pub log_cut: IntCounter,
    /// Lines of the log that could not be written to standard error.
    pub log_lost: IntCounter,
}

/// The process's metrics.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

impl Metrics {
    fn new() -> Metrics {
        let registry =
            Registry::new_custom(Some("amphi".into()), None).expect("the prefix is valid");
        let seconds = |name: &str, help: &str| {
            let buckets =
                prometheus::exponential_buckets(0.000_1, 4.0, 10).expect("the buckets are valid");
            registered(
                &registry,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)),
            )
        };
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help));
        let gauges = |name: &str, help: &str, label: &str| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let counters = |name: &str, help: &str, label: &str| {
            registered(
                &registry,
                IntCounterVec::new(Opts::new(name, help), &[label]),
            )
        };
        let instances = gauges("instances", "Guest instances at work", "mode");
        let kept = gauges(
            "instances_kept",
            "Guest instances kept for another request",
            "mode",
        );
        Metrics {
            connections: gauge("connections", "Open client connections"),
            scopes: gauge("scopes", "Requests whose scope is open"),
            sync_instances: instances.with_label_values(&["sync"]),
            async_instances: instances.with_label_values(&["async"]),
            sync_kept: kept.with_label_values(&["sync"]),
            async_kept: kept.with_label_values(&["async"]),
            recycled: counters(
                "instances_recycled_total",
                "Instances that were not kept for another request",
                "reason",
            ),
            workers: gauge("sync_workers", "Sync worker threads"),
            workers_blocked: gauge(
                "sync_workers_blocked",
                "Sync workers that wait in a host call",
            ),
            queued: gauges("queued", "Requests waiting", "queue"),
            refused: counters(
                "refused_total",
                "Requests refused by a full or slow queue",
                "queue",
            ),
            queue_wait: seconds(
                "queue_wait_seconds",
                "Wait for a sync worker or an async instance",
            ),
            database_connections: gauges(
                "database_connections",
                "Database connections in use",
                "database",
            ),
            database_pinned: gauges(
                "database_pinned",
                "Database connections pinned by a request",
                "database",
            ),
            transactions: gauge("transactions", "Transactions open"),
            outbound: gauge("outbound_requests", "Outbound HTTP requests in flight"),
            memory: gauge(
                "memory_bytes",
                "What the host keeps for requests, of its budget",
            ),
            body_files: gauge("body_files", "Temporary files that hold request bodies"),
            compressing: gauge(
                "compressing",
                "Responses that are compressed while they are sent",
            ),
            streams: gauge(
                "streams",
                "Responses that their views produce while they are sent",
            ),
            streams_ended: counters(
                "streams_total",
                "Responses that their views produced while they were sent",
                "outcome",
            ),
            password_checks: gauge("password_checks", "Passwords that basic-auth checks"),
            credentials: gauge(
                "credentials_remembered",
                "Credentials that basic-auth need not check again",
            ),
            requests: ByStatus::new(&counters("requests_total", "Finished requests", "status")),
            failures: counters(
                "failures_total",
                "Failed requests by whose fault it was",
                "fault",
            ),
            retries: registered(
                &registry,
                IntCounter::new("retries_total", "Requests run again after a conflict"),
            ),
            shadowed: counters(
                "shadow_requests_total",
                "Requests copied to a version in shadow mode, by what the comparison says",
                "outcome",
            ),
            failed_over: registered(
                &registry,
                IntCounter::new(
                    "failed_over_total",
                    "Requests that a candidate has failed, and the active version has answered",
                ),
            ),
            fleet_generation: gauge(
                "fleet_generation",
                "Generation of the record that this host of a fleet serves",
            ),
            fleet_failures: registered(
                &registry,
                IntCounter::new(
                    "fleet_failures_total",
                    "Failed attempts to serve what the fleet is to serve",
                ),
            ),
            events: counters("events_total", "Events by what became of them", "outcome"),
            channels: gauges(
                "channels",
                "Groups of connections: what they have, and what they have done since the start",
                "what",
            ),
            event_streams: gauge("event_streams", "Event streams that are sent"),
            polls: gauge("polls", "Polls that wait for a message"),
            sockets: gauge("sockets", "Open web sockets"),
            sockets_closed: counters(
                "sockets_closed_total",
                "Web sockets that have ended, by code",
                "code",
            ),
            conversations: gauge(
                "conversations",
                "Web sockets whose functions keep the conversation",
            ),
            conversations_ended: counters(
                "conversations_total",
                "Functions that kept the conversation of a web socket and have ended",
                "outcome",
            ),
            socket_events: counters(
                "socket_events_total",
                "Events of web sockets by what became of them",
                "outcome",
            ),
            socket_messages: counters(
                "socket_messages_total",
                "Messages of web sockets",
                "direction",
            ),
            socket_pauses: registered(
                &registry,
                IntCounter::new(
                    "socket_pauses_total",
                    "Times that a web socket was read no further because of messages_per_second",
                ),
            ),
            socket_dropped: counters(
                "socket_limits_total",
                "Web sockets closed because of a limit",
                "limit",
            ),
            duration: seconds(
                "request_seconds",
                "Time from accepting a request to its response head",
            ),
            results_at_once: registered(
                &registry,
                IntCounter::new(
                    "results_read_at_once_total",
                    "Results read at once because too many connections fed others",
                ),
            ),
            log_cut: registered(
                &registry,
                IntCounter::new("log_cut_bytes_total", "Guest log text over the limit"),
            ),
            log_lost: registered(
                &registry,
                IntCounter::new(
                    "log_lost_lines_total",
                    "Lines of the log that standard error did not take",
                ),
            ),
            registry,
        }
    }

    /// All values in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory cannot fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

fn registered<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names and labels are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("each name is registered once");
    metric
}

/// A counter for each class of status.
pub struct ByStatus([IntCounter; 5]);

impl ByStatus {
    fn new(counters: &IntCounterVec) -> ByStatus {
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        ByStatus(classes.map(|class| counters.with_label_values(&[class])))
    }

    /// The counter of a status. A status above 599 counts in the last class.
    pub fn of(&self, status: StatusCode) -> &IntCounter {
        let class = usize::from(status.as_u16() / 100).clamp(1, self.0.len());
        &self.0[class - 1]
    }
}

/// Adds one to a gauge until dropped.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    /// Adds one to `gauge` until dropped.
    pub fn new(gauge: &IntGauge) -> GaugeGuard {
        gauge.inc();
        GaugeGuard(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
