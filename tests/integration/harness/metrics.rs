//! The metrics of a server.

/// The metrics that `/metrics` shows.
#[derive(Debug)]
pub struct Metrics(Vec<(String, f64)>);

/// The metrics that are zero when nothing is in flight.
const GAUGES: [&str; 14] = [
    "amphi_scopes",
    "amphi_instances",
    "amphi_database_connections",
    "amphi_database_pinned",
    "amphi_transactions",
    "amphi_outbound_requests",
    "amphi_body_files",
    "amphi_sync_workers_blocked",
    "amphi_queued",
    "amphi_streams",
    "amphi_sockets",
    "amphi_conversations",
    "amphi_event_streams",
    "amphi_polls",
];

impl Metrics {
    pub fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Metrics(
            lines
                .filter_map(|line| line.rsplit_once(' '))
                .map(|(name, value)| (name.to_owned(), number(value)))
                .collect(),
        )
    }

    /// The sum over all labels of a metric.
    pub fn get(&self, name: &str) -> f64 {
        let same = |found: &str| found.split('{').next() == Some(name);
        self.0
            .iter()
            .filter(|(found, _)| same(found))
            .map(|(_, value)| value)
            .sum()
    }

    /// A metric with these labels: `amphi_events_total{outcome="failed"}`. 0 if nothing was counted.
    pub fn labelled(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|(found, _)| found == name);
        found.map_or(0.0, |(_, value)| *value)
    }

    /// The metrics of `GAUGES` that are not zero.
    pub fn in_flight(&self) -> Vec<(&'static str, f64)> {
        GAUGES
            .iter()
            .map(|name| (*name, self.get(name)))
            .filter(|(_, value)| *value != 0.0)
            .collect()
    }
}

fn number(text: &str) -> f64 {
    text.parse()
        .unwrap_or_else(|_| panic!("a metric should have a number, not {text:?}"))
}
