//! What hosts say to each other, and what they do about it.
//!
//! A host subscribes to a group's subject while it has members or subscribers of the group. Once the server has
//! confirmed the subscription, the group is *active*: the host announces its members on the group's subject and asks
//! each other host for theirs. The answers come on the host's own subject. A host is asked again as long as its members
//! are not known for sure: it did not answer, a number is missing, the connection was made anew, or the host is new.
//! So whatever is lost, the memberships of all hosts agree again soon.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::{Subject, Subscriber};
use futures::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::group::{Group, State};
use super::limits::add;
use super::nats::{CALL, Network};
use super::remote::{ASK_AGAIN, Link, Stream};
use super::report::Report;
use super::wire::{Change, Changes, Head, Kind, Writer, subject_word};
use super::{Hub, shown};

/// How often a host says that it is alive.
const BEAT: Duration = Duration::from_secs(2);
/// After which silence a host is forgotten.
const SILENCE: Duration = Duration::from_secs(8);
/// How long changes of memberships are gathered for one announcement.
const TICK: Duration = Duration::from_millis(100);
/// How long a host that connects waits to hear the others.
const HELLO_WAIT: Duration = Duration::from_millis(200);
/// Groups in one question.
const ASKED_AT_ONCE: usize = 256;
/// Another host that is heard.
pub(super) struct Host {
    pub(super) seen: Instant,
    /// When the host started.
    pub(super) since: Instant,
    /// The numbers of what this host sent to that host alone.
    pub(super) stream: Stream,
}

/// One host's answer to a question of [`Hub::members`].
pub(super) struct Gathered {
    pub(super) host: u64,
    pub(super) members: Changes,
}

/// Subscriptions that the server has not confirmed.
type Unconfirmed = Vec<(Arc<Group>, u64)>;

/// Sending.
impl Hub {
    /// The host's clock, in nanoseconds.
    pub(super) fn clock(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn head(&self, kind: Kind, (epoch, sequence): (u64, u64)) -> Head {
        Head {
            kind,
            host: self.host,
            epoch,
            sequence,
        }
    }

    /// The group's link, if the hub has a network.
    fn link<'s>(
        &self,
        group: &Group,
        link: &'s mut Option<Box<Link>>,
    ) -> Option<(&Arc<Network>, &'s mut Link)> {
        let network = self.network.get()?;
        let new = || {
            let subject = format!("{}.group.{}", network.prefix, subject_word(&group.name));
            Box::new(Link::new(subject.into(), self.clock()))
        };
        Some((network, link.get_or_insert_with(new)))
    }

    /// Has the group subscribed, soon.
    pub(super) fn want(&self, group: &Arc<Group>, state: &mut State) {
        if let Some((network, link)) = self.link(group, &mut state.link)
            && !std::mem::replace(&mut link.wanted, true)
        {
            network.wanted.lock().push(Arc::clone(group));
            network.wake.notify_one();
        }
    }

    /// Has a change of the group's members announced, soon.
    pub(super) fn member_changed(
        &self,
        group: &Arc<Group>,
        state: &mut State,
        change: impl FnOnce() -> Change,
    ) {
        if state.roster.count > 0 {
            self.want(group, state);
        }
        let listed = self.limits.members_listed_max;
        if let Some((network, link)) = self.link(group, &mut state.link)
            && link.changed(change(), listed)
        {
            network.changed.lock().push(Arc::clone(group));
        }
    }

    /// Numbers and queues a message to the other hosts of a group. The state is locked meanwhile, so that messages are
    /// queued in the order of their numbers. A message that the queue does not take keeps its number: the others see
    /// that it is missing.
    pub(super) fn publish(&self, group: &Group, state: &mut State, kind: Kind, body: &[u8]) {
        if let Some((network, link)) = self.link(group, &mut state.link) {
            let head = self.head(kind, link.stream.next(self.clock()));
            let bytes = Writer::new(head, body.len()).rest(body).done();
            network.queue(&self.counters, link.subject.clone(), bytes, true);
        }
    }

    /// Sends a message to a connection of another host. False: the host is not heard.
    pub(super) fn send_to_host(&self, host: u64, id: &str, text: bool, body: &[u8]) -> bool {
        let Some(network) = self.network.get() else {
            return false;
        };
        let mut hosts = network.hosts.lock();
        let Some(known) = hosts.get_mut(&host) else {
            return false;
        };
        let kind = if text { Kind::Text } else { Kind::Binary };
        let head = self.head(kind, known.stream.next(self.clock()));
        let bytes = Writer::new(head, id.len() + body.len()).text(id).rest(body);
        network.queue(
            &self.counters,
            network.host_subject(host),
            bytes.done(),
            true,
        );
        true
    }

    /// Asks a host for its members of some groups. `question`: 0, or who waits for the answers.
    pub(super) fn ask(&self, host: u64, question: u64, groups: &[impl AsRef<str>]) {
        if let Some(network) = self.network.get() {
            let writer = Writer::new(self.head(Kind::Ask, (0, 0)), 1 << 10).u64(question);
            let names = groups.iter().map(AsRef::as_ref);
            let bytes = names.fold(writer, Writer::text).done();
            network.queue(&self.counters, network.host_subject(host), bytes, false);
        }
    }

    /// Tells all hosts that this host is alive.
    pub(super) async fn say(&self, network: &Network, kind: Kind) {
        if network.ending.load(Ordering::Relaxed) {
            return;
        }
        let uptime = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let bytes = Writer::new(self.head(kind, (0, 0)), 8).u64(uptime).done();
        // A host that is not heard says so again soon.
        let _ = timeout(
            CALL,
            network.client.publish(network.common_subject(), bytes),
        )
        .await;
    }
}

impl Network {
    pub(super) fn host_subject(&self, host: u64) -> Subject {
        format!("{}.host.{}", self.prefix, shown(host)).into()
    }

    fn common_subject(&self) -> Subject {
        format!("{}.all", self.prefix).into()
    }
}

/// The tasks.
impl Hub {
    /// Begins to hear other hosts, and lets them hear this one.
    pub(super) async fn begin_exchange(
        self: &Arc<Self>,
        network: &Arc<Network>,
    ) -> anyhow::Result<()> {
        let mut common = network.client.subscribe(network.common_subject()).await?;
        let mut own = network
            .client
            .subscribe(network.host_subject(self.host))
            .await?;
        anyhow::ensure!(network.round_trip().await, "NATS does not answer");
        let (hub, net) = (Arc::clone(self), Arc::clone(network));
        network.spawn(async move {
            while let Some(message) = common.next().await {
                hub.hear_common(&net, &message.payload).await;
            }
        });
        let (hub, net) = (Arc::clone(self), Arc::clone(network));
        network.spawn(async move {
            while let Some(message) = own.next().await {
                hub.hear_own(&net, &message.payload).await;
            }
        });
        network.spawn(Arc::clone(self).beat(Arc::clone(network)));
        network.spawn(Arc::clone(self).watch(Arc::clone(network)));
        self.say(network, Kind::Hello).await;
        for group in self.all_groups() {
            let mut state = group.state.lock();
            if state.interested() {
                self.want(&group, &mut state);
            }
        }
        network.spawn(Arc::clone(self).drive(Arc::clone(network)));
        sleep(HELLO_WAIT).await;
        Ok(())
    }

    /// Says every two seconds that the host is alive, and sees more often what has arrived at the server.
    async fn beat(self: Arc<Self>, network: Arc<Network>) {
        let mut turns = interval(BEAT / 8);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: Option<Instant> = None;
        loop {
            turns.tick().await;
            if !network.is_connected() {
                continue;
            }
            if said.is_none_or(|said| said.elapsed() >= BEAT) {
                said = Some(Instant::now());
                self.say(&network, Kind::Beat).await;
            }
            network.confirm().await;
        }
    }

    /// Forgets hosts that are no longer heard. This task waits for nothing else, so that it is never late.
    async fn watch(self: Arc<Self>, network: Arc<Network>) {
        let mut turns = interval(BEAT / 4);
        loop {
            turns.tick().await;
            let silent: Vec<u64> = (network.hosts.lock().iter())
                .filter(|(_, host)| host.seen.elapsed() >= SILENCE)
                .map(|(id, _)| *id)
                .collect();
            for host in silent {
                tracing::warn!(target: "amphi::channels", host = shown(host), "another host is no longer heard: its members are forgotten");
                self.forget_host(&network, host);
            }
        }
    }

    /// Subscribes, announces, asks, and tidies up.
    async fn drive(self: Arc<Self>, network: Arc<Network>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unconfirmed = Unconfirmed::new();
        let mut report = Report::default();
        let (mut scanned, mut swept) = (Instant::now(), Instant::now());
        loop {
            let tick = tokio::select! {
                _ = ticks.tick() => true,
                () = network.wake.notified() => false,
            };
            if swept.elapsed() >= 10 * TICK {
                swept = Instant::now();
                self.sweep();
                report.log(&self, &network);
            }
            if !network.is_connected() {
                report.disconnected();
                network.drop_unwanted();
                continue;
            }
            self.notice_reconnect(&network);
            self.subscribe_wanted(&network, &mut unconfirmed).await;
            if tick {
                self.announce(&network).await;
            }
            let now = network.ask_now.swap(false, Ordering::Relaxed);
            if now || scanned.elapsed() >= ASK_AGAIN {
                scanned = Instant::now();
                self.scan(&network, self.all_groups()).await;
                self.mark_hosts(&network);
            }
        }
    }

    /// After the connection was made again: counts what may have been lost, announces all members, and asks for those
    /// of others.
    fn notice_reconnect(&self, network: &Network) {
        let connects = network.connects();
        if network.connection.swap(connects, Ordering::Relaxed) == connects {
            return;
        }
        let unsure = network.connection_broke();
        add(&self.counters.unsure, unsure);
        add(&self.counters.reconnects, 1);
        tracing::warn!(target: "amphi::channels", unsure, "the connection to NATS has been made again: of the messages sent shortly before it broke, so many may not have arrived");
        for group in self.all_groups() {
            let mut state = group.state.lock();
            let Some(link) = &mut state.link else {
                continue;
            };
            for remote in &mut link.hosts {
                (remote.synced, remote.asked) = (false, None);
            }
            if link.announce_all() {
                network.changed.lock().push(Arc::clone(&group));
            }
        }
        network.ask_now.store(true, Ordering::Relaxed);
    }

    /// Subscribes to the groups that are wanted. They are active when the server has confirmed that.
    async fn subscribe_wanted(self: &Arc<Self>, network: &Network, unconfirmed: &mut Unconfirmed) {
        let wanted = std::mem::take(&mut *network.wanted.lock());
        for group in wanted {
            let Some((subject, generation)) = begin_subscription(&group) else {
                continue;
            };
            match timeout(CALL, network.client.subscribe(subject)).await {
                Ok(Ok(subscriber)) => {
                    self.read(&group, generation, subscriber);
                    unconfirmed.push((group, generation));
                }
                Ok(Err(_)) | Err(_) => network.wanted.lock().push(group),
            }
        }
        if unconfirmed.is_empty() || !network.round_trip().await {
            return;
        }
        let mut active = Vec::new();
        for (group, generation) in unconfirmed.drain(..) {
            let mut state = group.state.lock();
            let link = state.link.as_mut();
            let Some(link) = link.filter(|link| link.generation == generation) else {
                continue;
            };
            link.active = Some(Instant::now());
            if link.announce_all() {
                network.changed.lock().push(Arc::clone(&group));
            }
            drop(state);
            active.push(group);
        }
        self.scan(network, active).await;
    }

    /// Reads a subscription in a task of its own.
    fn read(self: &Arc<Self>, group: &Arc<Group>, generation: u64, mut subscriber: Subscriber) {
        let (hub, read) = (Arc::clone(self), Arc::clone(group));
        let reader = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                hub.hear_group(&read, generation, &message.payload);
            }
        });
        let mut state = group.state.lock();
        let link = state.link.as_mut();
        match link.filter(|link| link.generation == generation) {
            Some(link) => link.reader = Some(reader.abort_handle()),
            None => reader.abort(),
        }
    }

    /// Announces how the members of groups have changed.
    async fn announce(&self, network: &Network) {
        let changed = std::mem::take(&mut *network.changed.lock());
        for group in changed {
            network.room().await;
            let mut state = group.state.lock();
            let Some(mut link) = state.link.take() else {
                continue;
            };
            let count = state.roster.count;
            let changes = link.announcement(count, || self.listed(&state));
            let head = self.head(Kind::Changes, link.stream.next(self.clock()));
            let bytes = changes.write(Writer::new(head, 256)).done();
            network.queue(&self.counters, link.subject.clone(), bytes, false);
            state.link = Some(link);
        }
    }

    /// Sends marks, compares numbers, and asks hosts whose members are not known.
    async fn scan(&self, network: &Network, groups: Vec<Arc<Group>>) {
        let hosts = network.heard();
        let mut asks: HashMap<u64, Vec<Arc<str>>> = HashMap::new();
        for group in groups {
            network.room().await;
            let mut state = group.state.lock();
            let Some(link) = &mut state.link else {
                continue;
            };
            if let Some(numbers) = link.stream.take_mark() {
                let bytes = Writer::new(self.head(Kind::Mark, numbers), 0).done();
                network.queue(&self.counters, link.subject.clone(), bytes, false);
            }
            link.hosts.retain(|remote| !remote.is_over());
            for remote in &mut link.hosts {
                let missed = remote.settle_claim();
                self.lose(network, remote.host, &group.name, missed);
            }
            if link.active.is_none() {
                continue;
            }
            for host in &hosts {
                let remote = link.remote(*host);
                if !remote.synced && remote.asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                    remote.asked = Some(Instant::now());
                    asks.entry(*host).or_default().push(Arc::clone(&group.name));
                }
            }
        }
        for (host, groups) in asks {
            for some in groups.chunks(ASKED_AT_ONCE) {
                network.room().await;
                self.ask(host, 0, some);
            }
        }
    }

    fn mark_hosts(&self, network: &Network) {
        for (host, known) in &mut *network.hosts.lock() {
            if let Some(numbers) = known.stream.take_mark() {
                let bytes = Writer::new(self.head(Kind::Mark, numbers), 0).done();
                network.queue(&self.counters, network.host_subject(*host), bytes, false);
            }
        }
    }

    /// Ends all subscriptions, tells other hosts that this one is gone, and ends the exchange with them.
    pub async fn shutdown(&self) {
        for group in self.all_groups() {
            group.state.lock().channel = None;
        }
        if let Some(network) = self.network.get() {
            network.ending.store(true, Ordering::Relaxed);
            let bytes = Writer::new(self.head(Kind::Bye, (0, 0)), 0).done();
            network.queue(&self.counters, network.common_subject(), bytes, false);
            // `Bye` is the last message in the queue: what was sent before arrives before.
            let _ = timeout(CALL, network.drained()).await;
            network.round_trip().await;
            self.abandon(network);
        }
    }

    /// Ends the exchange without a word.
    pub(super) fn abandon(&self, network: &Network) {
        network.abort();
        for group in self.all_groups() {
            if let Some(link) = &mut group.state.lock().link {
                link.unsubscribe();
            }
        }
    }
}

/// Notes that a subscription is on its way. None: it is no longer wanted, or there already.
fn begin_subscription(group: &Group) -> Option<(Subject, u64)> {
    let mut state = group.state.lock();
    let wanted = |link: &&mut Box<Link>| link.wanted && link.reader.is_none();
    let link = state.link.as_mut().filter(wanted)?;
    link.generation += 1;
    Some((link.subject.clone(), link.generation))
}
