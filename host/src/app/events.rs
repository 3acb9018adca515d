//! The queue of events on their way from views to subscribers.
//!
//! An event is an effect of the scope that publishes it: within a transaction the event is held until the commit (R10).
//! Already when it is published, the event takes one place in the queue for each subscriber, so that a committed event
//! cannot be refused later. Each subscriber gets the event in a scope of its own, with the publisher's request id,
//! trace and context (R14). An event is delivered at most once: failed subscribers are logged, and so are events that a
//! stopping host could not deliver.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::App;
use crate::app::chain::Chain;
use crate::budget::{self, Account, Room};
use crate::config::Events as Config;
use crate::guest::store::NotPublished;
use crate::scope::context::Value;
use crate::scope::transaction::{Described, Member};
use crate::scope::{Origin, Scope};
use crate::telemetry::error::shown;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::view::is_topic;

/// The most bytes of a topic.
const TOPIC_BYTES_MAX: usize = 1 << 10;
/// About how many bytes an event takes beside its payload, its topic and its context values.
const EVENT_BYTES: u64 = 2 << 10;

/// The queue of the process's events.
pub struct Bus {
    config: Config,
    /// The memory account of all events that are held for a commit, wait in the queue or are being delivered.
    account: Arc<Account>,
    permits: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// Deliveries that have not ended. Events that are still held for a commit are not among them.
    deliveries: TaskTracker,
    /// Deliveries that wait to begin. The channel has no limit of its own: `permits` limits their number to
    /// `queue_max`.
    sender: mpsc::UnboundedSender<(Delivery, TaskTrackerToken)>,
    receiver: tokio::sync::Mutex<mpsc::UnboundedReceiver<(Delivery, TaskTrackerToken)>>,
}

/// What all subscribers of an event share.
pub struct Event {
    /// The payload.
    pub payload: Arc<[u8]>,
    _room: (Room, Room),
}

/// One event for one subscriber.
pub struct Delivery {
    /// The app that the event was published in.
    pub app: Arc<App>,
    /// The subscriber.
    pub chain: Arc<Chain>,
    /// The identity and the context of the request that published the event.
    pub origin: Arc<Origin>,
    /// The event's topic.
    pub topic: String,
    /// The event's payload.
    pub event: Arc<Event>,
    /// Limits how many deliveries run at the same time.
    pub running: Arc<Semaphore>,
    _permit: OwnedSemaphorePermit,
    _queued: GaugeGuard,
}

impl Bus {
    /// A bus without any events.
    pub fn new(config: Config) -> Arc<Bus> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Arc::new(Bus {
            sender,
            receiver: receiver.into(),
            permits: Arc::new(Semaphore::new(config.queue_max)),
            running: Arc::new(Semaphore::new(config.in_flight_max)),
            deliveries: TaskTracker::new(),
            account: budget::process().events(),
            config,
        })
    }

    /// Publishes an event: now, or when the publisher's transaction commits.
    ///
    /// # Errors
    /// When the event cannot be published; then no subscriber gets it. The text says why.
    pub fn publish(
        self: &Arc<Self>,
        (app, scope, member): (&Arc<App>, &Scope, &Member),
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
        let values = scope.context.all();
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
            socket: None,
            ..Origin::clone(&scope.origin)
        });
        // A copy's event goes to nobody, so it takes no place from others.
        let is_copy = member.transaction().is_copy();
        let deliveries = (app.subscribers(topic).filter(|_| !is_copy))
            .map(|chain| self.delivery((app, chain), &origin, topic, &event));
        let deliveries = deliveries.collect::<Result<Vec<_>, _>>()?;
        let what = member.describe(|| Described::new(format!("event `{topic}`"), &event.payload));
        let (sender, unended) = (self.sender.clone(), self.deliveries.clone());
        let (topic, request) = (topic.to_owned(), scope.origin.id.clone());
        let publishing = Box::new(move || {
            let bytes = event.payload.len();
            let subscribers = deliveries.len();
            tracing::info!(target: "amphi::event", topic, bytes, subscribers, request, "event");
            METRICS.events.with_label_values(&["published"]).inc();
            for delivery in deliveries {
                // Sending does not fail: the receiver is part of the bus, which lives as long as the process.
                let _ = sender.send((delivery, unended.token()));
            }
        });
        match member.effect(publishing, what) {
            true => Ok(()),
            false => Err(NotPublished::Over(
                "the request that this view was called in is over, or the transaction of its caller: the event was not published".to_owned(),
            )),
        }
    }

    /// Draws the bytes of an event from the publisher's account and from the account of all events, so that neither one
    /// request nor all events can take the whole budget.
    fn draw(&self, scope: &Scope, topic: &str, bytes: u64) -> Result<(Room, Room), NotPublished> {
        let drawn = self.account.draw(bytes);
        let drawn = drawn.and_then(|room| Ok((scope.origin.account.draw(bytes)?, room)));
        drawn.map_err(|why| {
            NotPublished::Full(format!("the event on `{topic}` was not published: {why}"))
        })
    }

    fn delivery(
        &self,
        (app, chain): (&Arc<App>, &Arc<Chain>),
        origin: &Arc<Origin>,
        topic: &str,
        event: &Arc<Event>,
    ) -> Result<Delivery, NotPublished> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            METRICS.refused.with_label_values(&["events"]).inc();
            NotPublished::Full(format!(
                "{} events wait already (`queue_max` of `[events]`): the event on `{topic}` was not published",
                self.config.queue_max
            ))
        })?;
        Ok(Delivery {
            app: Arc::clone(app),
            running: Arc::clone(&self.running),
            chain: Arc::clone(chain),
            origin: Arc::clone(origin),
            topic: topic.to_owned(),
            event: Arc::clone(event),
            _permit: permit,
            _queued: GaugeGuard::new(&METRICS.queued.with_label_values(&["events"])),
        })
    }

    /// Waits for the next delivery that is to begin. The token that is returned with the delivery counts it as in
    /// flight until the token is dropped.
    ///
    /// # Panics
    /// Never: the bus keeps a sender, so the channel stays open.
    pub async fn next(&self) -> (Delivery, TaskTrackerToken) {
        let delivery = self.receiver.lock().await.recv().await;
        delivery.expect("the bus has a sender of its own")
    }

    /// Waits until all published events are delivered.
    pub async fn idle(&self) {
        self.deliveries.close();
        self.deliveries.wait().await;
        self.deliveries.reopen();
    }

    /// Number of deliveries that have not ended. Events that are still held for a commit do not count.
    pub fn in_flight(&self) -> usize {
        self.deliveries.len()
    }
}
