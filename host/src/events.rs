//! Events on their way from views to subscribers.
//!
//! An event is an effect of the scope that publishes it: within a transaction it is held until the commit (R10).
//! Its place in the queue is taken when it is published, so nothing that was committed can be refused later. Each
//! subscriber gets it in a scope of its own, which goes on with the publisher's id, trace and values (R14). An event
//! is delivered once at most: a subscriber that fails is logged, and what a stopping host could not deliver too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::bindings::types;
use crate::budget::{self, Account, Room};
use crate::chain::Chain;
use crate::completion::Line;
use crate::config::Events as Config;
use crate::error::{Failure, Fault, shown};
use crate::host::Host;
use crate::metrics::{Held, METRICS};
use crate::scope::{Origin, Scope, Value};
use crate::settle::Ready;
use crate::transaction::Member;
use crate::view::is_topic;

/// How long an event waits for capacity before it tries again; nobody else waits for it.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// The longest topic.
const TOPIC_BYTES_MAX: usize = 1 << 10;
/// What an event takes beside its payload, while it is held or waits.
const EVENT_BYTES: u64 = 2 << 10;

/// Why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPublished {
    /// It has no topic that can be.
    NoTopic(String),
    /// Its payload is too large.
    TooLarge(String),
    /// Nobody waits for what publishes it any more.
    Over(String),
    /// Too many events wait.
    Full(String),
}

/// The events of the process.
pub struct Bus {
    config: Config,
    /// What events take that are held or wait.
    account: Arc<Account>,
    runtime: Handle,
    places: Arc<Semaphore>,
    running: Arc<Semaphore>,
    deliveries: TaskTracker,
}

/// What all subscribers of an event share.
struct Event {
    payload: Arc<[u8]>,
    _room: (Room, Room),
}

/// One event for one subscriber.
struct Delivery {
    chain: Arc<Chain>,
    origin: Arc<Origin>,
    topic: String,
    event: Arc<Event>,
    _place: OwnedSemaphorePermit,
    _queued: Held,
}

impl Bus {
    /// A bus that delivers on `runtime`.
    pub fn new(config: Config, runtime: Handle) -> Arc<Bus> {
        Arc::new(Bus {
            places: Arc::new(Semaphore::new(config.queue_max)),
            running: Arc::new(Semaphore::new(config.in_flight_max)),
            deliveries: TaskTracker::new(),
            account: budget::process().events(),
            config,
            runtime,
        })
    }

    /// Publishes an event of a scope's: now, or when its transaction commits.
    ///
    /// # Errors
    /// When it cannot be, with a sentence; it is not published to anyone then.
    pub fn publish(
        self: &Arc<Self>,
        (host, app, scope, member): (&Arc<Host>, &Arc<App>, &Scope, &Member),
        topic: &str,
        payload: Vec<u8>,
    ) -> Result<(), NotPublished> {
        if topic.len() > TOPIC_BYTES_MAX || !is_topic(topic) {
            return Err(NotPublished::NoTopic(format!(
                "`{}` is not a topic: write words of letters, digits, `-` and `_` with dots between, such as `orders.paid`",
                shown(topic)
            )));
        }
        let max = self.config.payload_max_bytes;
        if payload.len() as u64 > max {
            return Err(NotPublished::TooLarge(format!(
                "the event on `{topic}` has {} bytes; `payload_max_bytes` of `[events]` is {max}",
                payload.len()
            )));
        }
        let (depth, deepest) = (scope.origin.depth, scope.limits.outbound_depth_max);
        if depth >= deepest {
            return Err(NotPublished::Full(format!(
                "the event on `{topic}` was not published: its request is within {depth} others that the app has caused itself, as many as `outbound_depth_max` of `[limits]` allows: subscribers publish for each other in a circle, or the limit is too low"
            )));
        }
        let (published, most) = (scope.count_event(), scope.limits.events_max);
        if published > most {
            return Err(NotPublished::Full(format!(
                "the request has published {most} events already, as many as `events_max` allows: the event on `{topic}` was not published"
            )));
        }
        let values = scope.values();
        let bytes = payload.len() + topic.len() + values.len() * size_of::<(Arc<str>, Value)>();
        let room = self.draw(scope, topic, bytes as u64 + EVENT_BYTES)?;
        let payload: Arc<[u8]> = payload.into();
        let event = Arc::new(Event {
            payload,
            _room: room,
        });
        let origin = Arc::new(Origin {
            values,
            account: budget::process().unpaid(),
            trace: scope.origin.trace.child(),
            depth: depth + 1,
            ..Origin::clone(&scope.origin)
        });
        let deliveries = app
            .subscribers(topic)
            .map(|chain| self.delivery(chain, &origin, topic, &event));
        let deliveries = deliveries.collect::<Result<Vec<_>, _>>()?;
        let (bus, host, app) = (Arc::clone(self), Arc::clone(host), Arc::clone(app));
        let (topic, request) = (topic.to_owned(), scope.origin.id.clone());
        let taken = member.effect(Box::new(move || {
            let bytes = event.payload.len();
            let subscribers = deliveries.len();
            tracing::info!(target: "amphi::event", topic, bytes, subscribers, request, "event");
            METRICS.events.with_label_values(&["published"]).inc();
            for delivery in deliveries {
                let delivered = delivery.deliver(
                    Arc::clone(&host),
                    Arc::clone(&app),
                    Arc::clone(&bus.running),
                );
                bus.deliveries.spawn_on(delivered, &bus.runtime);
            }
        }));
        match taken {
            true => Ok(()),
            false => Err(NotPublished::Over(
                "the request that this view was called in is over, or the transaction of its caller: the event was not published".to_owned(),
            )),
        }
    }

    /// Draws an event from its publisher's account and from what there is for events: neither may take everything.
    fn draw(&self, scope: &Scope, topic: &str, bytes: u64) -> Result<(Room, Room), NotPublished> {
        let drawn = self.account.draw(bytes);
        let drawn = drawn.and_then(|room| Ok((scope.origin.account.draw(bytes)?, room)));
        drawn.map_err(|why| {
            NotPublished::Full(format!("the event on `{topic}` was not published: {why}"))
        })
    }

    fn delivery(
        &self,
        chain: &Arc<Chain>,
        origin: &Arc<Origin>,
        topic: &str,
        event: &Arc<Event>,
    ) -> Result<Delivery, NotPublished> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            METRICS.refused.with_label_values(&["events"]).inc();
            NotPublished::Full(format!(
                "{} events wait already (`queue_max` of `[events]`): the event on `{topic}` was not published",
                self.config.queue_max
            ))
        })?;
        Ok(Delivery {
            chain: Arc::clone(chain),
            origin: Arc::clone(origin),
            topic: topic.to_owned(),
            event: Arc::clone(event),
            _place: place,
            _queued: Held::new(&METRICS.queued.with_label_values(&["events"])),
        })
    }

    /// Waits until nothing is on its way any more.
    pub async fn idle(&self) {
        self.deliveries.close();
        self.deliveries.wait().await;
        self.deliveries.reopen();
    }

    /// Events on their way, those that are held not counted.
    pub fn in_flight(&self) -> usize {
        self.deliveries.len()
    }
}

impl Delivery {
    async fn deliver(self, host: Arc<Host>, app: Arc<App>, running: Arc<Semaphore>) {
        let _running = running
            .acquire()
            .await
            .expect("the semaphore is never closed");
        let since = Instant::now();
        loop {
            let ready = Ready {
                host: &host,
                app: &app,
                origin: &self.origin,
                chain: &self.chain,
                params: Arc::default(),
                body: None,
            };
            let settled = ready.run(self.request()).await;
            let mut failure = settled.response.as_ref().err().cloned();
            // No part has run: there was no capacity.
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
            let line = Line {
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
