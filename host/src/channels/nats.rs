//! The connection to NATS, and the queue of what is to be sent to other hosts.
//!
//! A caller of the hub only puts a message into the queue, under the lock of the message's group, so that numbers and
//! queue have the same order. One task takes messages from the queue and hands them to the NATS client. While there is
//! no connection the task holds a message for a moment, because the connection may be back soon; then the message is
//! lost and counted. What the client took shortly before the connection broke may be lost too and is counted apart:
//! a round trip every quarter of a second tells what has arrived at the server.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, RequestErrorKind, ServerAddr, Subject};
use bytes::Bytes;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Hub;
use super::exchange::{Gathered, Host};
use super::group::Group;
use super::limits::{Counters, add, get};
use super::remote::Heard;
use super::wire::subject_word;

/// How long a group that nobody on this host wants stays subscribed.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long a message is held while there is no connection.
const HOLD: Duration = Duration::from_secs(2);
/// How long the queue waits after the connection was made again. When the server had gone, the other hosts connect
/// again too, and what is sent before they have subscribed is lost.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the NATS client may take for one call. The client blocks when it has too much to do.
pub(super) const CALL: Duration = Duration::from_secs(2);
/// What a message to other hosts may have beside its payload: a head and the id of a connection.
const HEAD_BYTES: usize = 1 << 10;
/// How often the client asks a silent server whether it is there.
const PING: Duration = Duration::from_secs(2);
/// The longest pause between attempts to connect.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// How to reach NATS. The type has no `Debug`: URLs may have passwords.
#[derive(Clone)]
pub struct NatsConfig {
    /// The servers of one cluster: `nats://host:4222`, or `tls://` where TLS is required. A user and a password, or a
    /// token in the place of the user, may stand before the host.
    pub urls: Vec<String>,
    /// What all subjects begin with. Hosts of one app have the same prefix, other apps another one. A NATS user needs
    /// the permission to publish and to subscribe to `PREFIX.>`.
    pub prefix: String,
    /// A file with the certificates that the servers' certificates are signed by, in PEM. None: those of the system.
    pub root_certificates: Option<PathBuf>,
}

/// The hub's side of NATS.
pub(super) struct Network {
    pub(super) client: Client,
    pub(super) prefix: String,
    outgoing: mpsc::Sender<Outgoing>,
    outgoing_max: usize,
    outgoing_max_bytes: usize,
    outgoing_bytes: AtomicUsize,
    /// Messages that the client took, and how many of them the server is sure to have got.
    published: AtomicU64,
    confirmed: AtomicU64,
    /// The number of the connection, as the client counts them, that the hub has dealt with.
    pub(super) connection: AtomicU64,
    /// Groups to subscribe to, and groups whose changes are to be announced.
    pub(super) wanted: Mutex<Vec<Arc<Group>>>,
    pub(super) changed: Mutex<Vec<Arc<Group>>>,
    /// Wakes the task that subscribes, announces and asks.
    pub(super) wake: Notify,
    /// Ask other hosts at the next wake, not only at the next turn.
    pub(super) ask_now: AtomicBool,
    /// The host shuts down and no longer says that it is alive.
    pub(super) ending: AtomicBool,
    pub(super) hosts: Mutex<HashMap<u64, Host>>,
    /// The numbers of what other hosts sent to this host alone.
    pub(super) direct: Mutex<HashMap<u64, Heard>>,
    /// Who waits for answers, by the number of the question.
    pub(super) questions: Mutex<HashMap<u64, mpsc::UnboundedSender<Gathered>>>,
    question: AtomicU64,
    /// Lost messages that are not logged yet, by sending host and group.
    pub(super) losses: Mutex<HashMap<(u64, Arc<str>), u64>>,
    pub(super) tasks: Mutex<Vec<AbortHandle>>,
}

/// A message on its way to other hosts.
pub(super) struct Outgoing {
    pub(super) subject: Subject,
    pub(super) bytes: Bytes,
    /// A message of a view, whose loss counts. What hosts tell each other is told again when it is lost.
    pub(super) counts: bool,
    since: Instant,
}

impl Network {
    /// Puts a message into the queue, or loses and counts it when the queue is full. Never waits.
    pub(super) fn queue(&self, counters: &Counters, subject: Subject, bytes: Bytes, counts: bool) {
        let size = bytes.len();
        let outgoing = Outgoing {
            subject,
            bytes,
            counts,
            since: Instant::now(),
        };
        let queued = self.outgoing_bytes.fetch_add(size, Ordering::Relaxed);
        if queued + size > self.outgoing_max_bytes || self.outgoing.try_send(outgoing).is_err() {
            self.outgoing_bytes.fetch_sub(size, Ordering::Relaxed);
            add(&counters.lost_queue_full, counts.into());
        }
    }

    /// Waits until half of the queue is free, so that what hosts tell each other leaves room for messages.
    pub(super) async fn room(&self) {
        while self.outgoing.capacity() < self.outgoing_max / 2
            || self.outgoing_bytes.load(Ordering::Relaxed) > self.outgoing_max_bytes / 2
        {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the queue is empty.
    pub(super) async fn drained(&self) {
        while self.outgoing.capacity() < self.outgoing.max_capacity() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How often the client has connected.
    pub(super) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Waits until the server has done all that the client was told before. `flush` does not: it waits until the bytes
    /// are written. A request to a subject without subscribers does, because the server answers it itself.
    pub(super) async fn round_trip(&self) -> bool {
        let subject = format!("{}.nobody", self.prefix);
        let answer = timeout(CALL, self.client.request(subject, Bytes::new())).await;
        match answer {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == RequestErrorKind::NoResponders,
            Err(_) => false,
        }
    }

    /// Makes a round trip, if something was published since the last one. If the connection is still the same, all
    /// messages before have arrived at the server.
    pub(super) async fn confirm(&self) {
        // Not on a new connection before `connection_broke` has counted what the old one may have lost.
        let (published, connection) = (get(&self.published), get(&self.connection));
        if connection != self.connects() {
            return;
        }
        if published == get(&self.confirmed) {
            return;
        }
        if self.round_trip().await && connection == self.connects() {
            self.confirmed.fetch_max(published, Ordering::Relaxed);
        }
    }

    /// Drops groups that are no longer wanted from the list of those to subscribe to. The list would grow while there
    /// is no connection.
    pub(super) fn drop_unwanted(&self) {
        // Not in place: a group's lock is taken before the list's.
        let mut wanted = std::mem::take(&mut *self.wanted.lock());
        wanted.retain(|group| {
            let state = group.state.lock();
            state.link.as_ref().is_some_and(|link| link.wanted)
        });
        self.wanted.lock().append(&mut wanted);
    }

    /// Counts what was published and not confirmed on a connection that has broken. Returns how much that is.
    pub(super) fn connection_broke(&self) -> u64 {
        let published = get(&self.published);
        let confirmed = self.confirmed.swap(published, Ordering::Relaxed);
        published.saturating_sub(confirmed)
    }

    /// Begins to gather answers.
    pub(super) fn gather(&self) -> (u64, mpsc::UnboundedReceiver<Gathered>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let question = self.question.fetch_add(1, Ordering::Relaxed) + 1;
        self.questions.lock().insert(question, sender);
        (question, receiver)
    }

    /// Ends gathering.
    pub(super) fn gathered(&self, question: u64) {
        self.questions.lock().remove(&question);
    }

    /// The hosts that are heard.
    pub(super) fn heard(&self) -> HashSet<u64> {
        self.hosts.lock().keys().copied().collect()
    }

    /// Hands the messages of the queue to the client, in order.
    async fn publish_all(&self, counters: &Counters, mut queue: mpsc::Receiver<Outgoing>) {
        let mut connects = self.connects();
        while let Some(outgoing) = queue.recv().await {
            (self.outgoing_bytes).fetch_sub(outgoing.bytes.len(), Ordering::Relaxed);
            let counts = u64::from(outgoing.counts);
            if !self.connected_by(outgoing.since + HOLD).await {
                add(&counters.lost_disconnected, counts);
                continue;
            }
            let now = self.connects();
            if std::mem::replace(&mut connects, now) != now {
                sleep(SETTLE).await;
            }
            let published = self.client.publish(outgoing.subject, outgoing.bytes);
            match timeout(CALL, published).await {
                Ok(Ok(())) => {
                    add(&self.published, counts);
                    add(&counters.sent, counts);
                }
                Ok(Err(_)) | Err(_) => add(&counters.lost_failed, counts),
            }
        }
    }

    /// Waits until there is a connection, until a deadline at most.
    async fn connected_by(&self, deadline: Instant) -> bool {
        while !self.is_connected() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(10)).await;
        }
        true
    }
}

impl Hub {
    /// Connects to NATS and begins to exchange messages with other hosts. The connection is made again whenever it
    /// breaks. Call this once.
    ///
    /// # Errors
    /// When no server can be reached now, or the configuration is wrong. The text has no password.
    pub async fn connect(self: &Arc<Self>, config: NatsConfig) -> anyhow::Result<()> {
        let client = self.client(&config).await?;
        let (taken, needed) = (
            client.max_payload(),
            self.limits.payload_max_bytes + HEAD_BYTES,
        );
        if taken < needed {
            bail!(
                "NATS takes messages of {taken} bytes (`max_payload`): {needed} are needed for the largest payload"
            );
        }
        let (sender, queue) = mpsc::channel(self.limits.outgoing_max.max(2));
        let network = Arc::new(Network {
            connection: AtomicU64::new(client.statistics().connects.load(Ordering::Relaxed)),
            client,
            prefix: config.prefix,
            outgoing: sender,
            outgoing_max: self.limits.outgoing_max,
            outgoing_max_bytes: self.limits.outgoing_max_bytes,
            outgoing_bytes: AtomicUsize::new(0),
            published: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            wanted: Mutex::default(),
            changed: Mutex::default(),
            wake: Notify::new(),
            ask_now: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            hosts: Mutex::default(),
            direct: Mutex::default(),
            questions: Mutex::default(),
            question: AtomicU64::new(0),
            losses: Mutex::default(),
            tasks: Mutex::default(),
        });
        if self.network.set(Arc::clone(&network)).is_err() {
            bail!("the hub is connected already");
        }
        let publisher = (Arc::clone(self), Arc::clone(&network));
        network.spawn(async move {
            let (hub, network) = publisher;
            network.publish_all(&hub.counters, queue).await;
        });
        self.begin_exchange(&network).await
    }

    fn client_event(&self, event: Event) {
        match event {
            Event::SlowConsumer(_) => add(&self.counters.slow_consumer, 1),
            // Such as a missing permission. Many come when each message is refused: one at a time is logged.
            Event::ServerError(error) => *self.server_error.lock() = Some(error.to_string()),
            _ => {}
        }
    }

    async fn client(self: &Arc<Self>, config: &NatsConfig) -> anyhow::Result<Client> {
        let word = |word: &str| !word.is_empty() && subject_word(word) == word;
        if !config.prefix.split('.').all(word) {
            bail!(
                "the prefix of NATS subjects has words of letters, digits, `-` and `_` with dots between"
            );
        }
        let (servers, options) = options(&config.urls)?;
        let mut options = options
            .no_echo()
            .custom_inbox_prefix(format!("{}.inbox", config.prefix))
            .subscription_capacity(self.limits.incoming_max.max(1))
            .connection_timeout(CALL)
            .request_timeout(Some(CALL));
        if let Some(file) = &config.root_certificates {
            options = options.add_root_certificates(file.clone());
        }
        let hub = Arc::downgrade(self);
        options = options.event_callback(move |event| {
            if let Some(hub) = hub.upgrade() {
                hub.client_event(event);
            }
            std::future::ready(())
        });
        let names: Vec<_> = (servers.iter())
            .map(|server| format!("{}:{}", server.host(), server.port()))
            .collect();
        let names = names.join(", ");
        match timeout(2 * CALL, options.connect(servers)).await {
            Ok(Ok(client)) => Ok(client),
            // The kind has no URL in it; the source may.
            Ok(Err(error)) => bail!("NATS at {names} cannot be reached: {}", error.kind()),
            Err(_) => bail!("NATS at {names} does not answer"),
        }
    }
}

impl Network {
    /// Runs a task until the hub shuts down.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().push(tokio::spawn(task).abort_handle());
    }

    /// Ends all tasks.
    pub(super) fn abort(&self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// A user and a password, or a token alone.
type Credentials = (String, Option<String>);

/// The servers that URLs name, and options with their credentials: a silent server is found out, and a connection that
/// breaks is made again.
///
/// # Errors
/// When a URL is none. The text has no password.
pub fn options(urls: &[String]) -> anyhow::Result<(Vec<ServerAddr>, ConnectOptions)> {
    let (servers, user) = servers(urls)?;
    let options = ConnectOptions::new()
        .name("amphi")
        .ping_interval(PING)
        .reconnect_delay_callback(pause);
    let options = match user {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    };
    Ok((servers, options))
}

/// The servers without their credentials, which the client would log, and the credentials of the first server that has
/// some.
fn servers(urls: &[String]) -> anyhow::Result<(Vec<ServerAddr>, Option<Credentials>)> {
    let mut credentials = None;
    let mut servers = Vec::new();
    for (at, url) in urls.iter().enumerate() {
        let server: Result<ServerAddr, _> = url.trim().parse();
        // The error's text may have the URL in it.
        let server = server
            .ok()
            .with_context(|| format!("the {}. URL of NATS is not one", at + 1))?;
        let mut url = server.into_inner();
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        if !url.username().is_empty() && credentials.is_none() {
            credentials = Some((decoded(url.username()), url.password().map(decoded)));
        }
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        cleared.ok().context("a URL of NATS has no host")?;
        servers.push(ServerAddr::from_url(url).context("a URL of NATS is not one")?);
    }
    if servers.is_empty() {
        bail!("there is no URL of NATS");
    }
    Ok((servers, credentials))
}

/// The pause before an attempt to connect: longer after each attempt, and different on each host.
fn pause(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts).unwrap_or(u32::MAX).min(8);
    let longest = Duration::from_millis(5 << exponent).min(PAUSE_MAX);
    longest.mul_f64(0.5 + (super::random() % 512) as f64 / 1024.0)
}
