//! What is logged of losses: once a second the sums, not each message.

use super::limits::get;
use super::nats::Network;
use super::{Hub, shown};

/// What has been logged of losses.
#[derive(Default)]
pub(super) struct Report {
    queue_full: u64,
    not_connected: u64,
    failed: u64,
    slow_consumer: u64,
    /// The connection has broken, and that is logged.
    broken: bool,
}

impl Report {
    /// Logs that the connection has broken, once.
    pub(super) fn disconnected(&mut self) {
        if !std::mem::replace(&mut self.broken, true) {
            tracing::warn!(target: "amphi::channels", "the connection to NATS is broken: other hosts get no messages");
        }
    }

    /// Logs what was lost since the last time.
    pub(super) fn log(&mut self, hub: &Hub, network: &Network) {
        let counters = &hub.counters;
        let now = Report {
            queue_full: get(&counters.lost_queue_full),
            not_connected: get(&counters.lost_disconnected),
            failed: get(&counters.lost_failed),
            slow_consumer: get(&counters.slow_consumer),
            broken: !network.is_connected(),
        };
        let queue_full = now.queue_full - self.queue_full;
        let disconnected = now.not_connected - self.not_connected;
        let failed = now.failed - self.failed;
        let dropped = now.slow_consumer - self.slow_consumer;
        *self = now;
        if queue_full + disconnected + failed > 0 {
            tracing::warn!(target: "amphi::channels", queue_full, disconnected, failed, "messages were not sent to other hosts");
        }
        if dropped > 0 {
            tracing::warn!(target: "amphi::channels", dropped, "messages of other hosts came faster than this host delivered them, and were dropped");
        }
        if let Some(error) = hub.server_error.lock().take() {
            tracing::warn!(target: "amphi::channels", error, "the NATS server refused something");
        }
        for ((host, group), lost) in std::mem::take(&mut *network.losses.lock()) {
            tracing::warn!(target: "amphi::channels", host = shown(host), %group, lost, "messages of another host did not arrive");
        }
    }
}
