//! Delivers events from the queue to their subscribers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use super::access_log::AccessLogEntry;
use super::attempt::Attempt;
use crate::app::events::Delivery;
use crate::app::host::Host;
use crate::contract::types;
use crate::telemetry::error::{Failure, Fault};
use crate::telemetry::metrics::METRICS;

/// How long a delivery waits before it tries again when there was no capacity. No client waits for a delivery.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// Begins the deliveries of events as they are published, until the process ends.
pub async fn run(host: Arc<Host>) {
    loop {
        let (delivery, unended) = host.events.next().await;
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            let _unended = unended;
            delivery.deliver(&host).await;
        });
    }
}

impl Delivery {
    async fn deliver(self, host: &Arc<Host>) {
        let _running = self
            .running
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let since = Instant::now();
        loop {
            let ready = Attempt {
                host,
                app: &self.app,
                origin: &self.origin,
                chain: &self.chain,
                params: Arc::default(),
                body: None,
                binary: None,
                streams: false,
            };
            let settled = ready.run(self.request()).await;
            let mut failure = settled.response.as_ref().err().cloned();
            // The subscriber has not begun to run, because there was no capacity.
            let busy = !settled.scope.has_begun()
                && failure.as_ref().is_some_and(|failure| {
                    failure.fault == Fault::Limit
                        && failure.status == StatusCode::SERVICE_UNAVAILABLE
                });
            if busy {
                tokio::time::sleep(BUSY_WAIT).await;
                continue;
            }
            let status = match (&settled.response, &failure) {
                (Ok(response), _) => response.status(),
                (Err(_), Some(failure)) => failure.status,
                (Err(_), None) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            if failure.is_none() && status.is_server_error() {
                failure = Some(Failure::view(format!("the subscriber answered {status}")));
            }
            let outcome = if failure.is_none() {
                "delivered"
            } else {
                "failed"
            };
            METRICS.events.with_label_values(&[outcome]).inc();
            let line = AccessLogEntry {
                method: "EVENT",
                path: &self.topic,
                status: status.as_u16(),
                took: since.elapsed(),
                view: Some(&self.chain.view().view),
                settled: Some(&settled),
                request: &self.origin.id,
                failure: failure.as_ref(),
            };
            return line.write();
        }
    }

    fn request(&self) -> types::Request {
        types::Request {
            method: "EVENT".to_owned(),
            path: self.topic.clone(),
            query: String::new(),
            headers: Vec::new(),
            params: Vec::new(),
            body: types::Body::Bytes(self.event.payload.to_vec()),
        }
    }
}
