//! What a host does with what it hears from other hosts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::exchange::{Gathered, Host};
use super::group::{Group, Snapshot};
use super::limits::add;
use super::nats::Network;
use super::remote::{Link, Stream};
use super::wire::{Changes, Head, Kind, Reader, Writer};
use super::{Hub, shown};

/// Hosts and groups whose losses are logged one by one; of more the sum is.
const LOSSES_LISTED: usize = 100;

impl Hub {
    /// Takes a message on a group's subject.
    pub(super) fn hear_group(&self, group: &Arc<Group>, generation: u64, bytes: &[u8]) {
        let Some(network) = self.network.get() else {
            return;
        };
        let Some((head, mut body)) = Reader::new(bytes) else {
            return add(&self.counters.malformed, 1);
        };
        let mut state = group.state.lock();
        let link = state.link.as_mut();
        let link = link.filter(|link| link.generation == generation && head.host != self.host);
        let Some(link) = link else {
            return;
        };
        let missed = self.number(network, link, &head);
        let remote = link.remote(head.host);
        self.lose(network, head.host, &group.name, missed);
        match head.kind {
            Kind::Text if std::str::from_utf8(body.rest()).is_err() => {
                add(&self.counters.malformed, 1);
            }
            // The bytes are copied, because the client's are a part of all that it has read at once.
            Kind::Text | Kind::Binary => {
                let bytes = Bytes::copy_from_slice(body.rest());
                let delivery = self.record(&mut state, head.kind == Kind::Text, bytes);
                drop(state);
                add(&self.counters.received, 1);
                self.deliver(Some(delivery));
            }
            Kind::Notice => {
                let members = state.roster.snapshot();
                drop(state);
                add(&self.counters.received, 1);
                self.notice(&members, &group.name, body.rest());
            }
            Kind::Changes => match Changes::read(&mut body) {
                Some(changes) => remote.announced(changes, self.limits.members_listed_max),
                None => add(&self.counters.malformed, 1),
            },
            Kind::Mark => {}
            _ => add(&self.counters.malformed, 1),
        }
    }

    fn notice(&self, members: &Snapshot, group: &str, payload: &[u8]) {
        let payload = Bytes::copy_from_slice(payload);
        for receiver in members.receivers() {
            receiver.notice(group, &payload);
        }
    }

    /// Compares a message's number, and returns how many messages before are missing.
    fn number(&self, network: &Network, link: &mut Link, head: &Head) -> u64 {
        let new = link.remote(head.host).heard.is_none() && is_new(network, link, head.host);
        link.remote(head.host).hear(head, new)
    }

    /// Takes a message for all hosts.
    pub(super) async fn hear_common(&self, network: &Network, bytes: &[u8]) {
        let Some((head, mut body)) = Reader::new(bytes) else {
            return add(&self.counters.malformed, 1);
        };
        match head.kind {
            _ if head.host == self.host => {}
            Kind::Bye => {
                tracing::info!(target: "amphi::channels", host = shown(head.host), "another host has shut down");
                self.forget_host(network, head.host);
            }
            Kind::Hello | Kind::Beat => {
                let uptime = Duration::from_millis(body.u64().unwrap_or(0));
                self.hear_host(network, head.host, uptime);
                if head.kind == Kind::Hello {
                    self.say(network, Kind::Beat).await;
                }
            }
            _ => add(&self.counters.malformed, 1),
        }
    }

    fn hear_host(&self, network: &Network, host: u64, uptime: Duration) {
        let now = Instant::now();
        let mut hosts = network.hosts.lock();
        if let Some(known) = hosts.get_mut(&host) {
            known.seen = now;
            return;
        }
        tracing::info!(target: "amphi::channels", host = shown(host), "another host is heard");
        let new = Host {
            seen: now,
            since: now.checked_sub(uptime).unwrap_or(self.started),
            stream: Stream::default(),
        };
        hosts.insert(host, new);
        (self.counters.hosts).store(hosts.len() as u64, Ordering::Relaxed);
        network.ask_now.store(true, Ordering::Relaxed);
        network.wake.notify_one();
    }

    pub(super) fn forget_host(&self, network: &Network, host: u64) {
        let mut hosts = network.hosts.lock();
        hosts.remove(&host);
        (self.counters.hosts).store(hosts.len() as u64, Ordering::Relaxed);
        drop(hosts);
        for group in self.all_groups() {
            let mut state = group.state.lock();
            let link = state.link.as_mut();
            let mut remotes = link.into_iter().flat_map(|link| &mut link.hosts);
            if let Some(remote) = remotes.find(|remote| remote.host == host) {
                remote.forget();
            }
        }
    }

    /// Takes a message for this host alone.
    pub(super) async fn hear_own(&self, network: &Network, bytes: &[u8]) {
        let Some((head, mut body)) = Reader::new(bytes) else {
            return add(&self.counters.malformed, 1);
        };
        let read = match head.kind {
            Kind::Text | Kind::Binary => {
                self.number_own(network, &head);
                self.hear_direct(head.kind == Kind::Text, &mut body)
            }
            Kind::Mark => {
                self.number_own(network, &head);
                Some(())
            }
            Kind::Ask => self.hear_question(network, head.host, &mut body).await,
            Kind::Answer => self.hear_answer(network, head, &mut body),
            _ => None,
        };
        if read.is_none() {
            add(&self.counters.malformed, 1);
        }
    }

    /// The numbers of a host for this host begin with 1, and this host has heard them from the beginning.
    fn number_own(&self, network: &Network, head: &Head) {
        let mut direct = network.direct.lock();
        if direct.len() > 1_000 {
            // Hosts that started and ended long ago.
            let hosts = network.heard();
            direct.retain(|host, _| hosts.contains(host));
        }
        let missed = direct.entry(head.host).or_default().hear(head);
        drop(direct);
        self.lose(network, head.host, &"(to one connection)".into(), missed);
    }

    fn hear_direct(&self, text: bool, body: &mut Reader) -> Option<()> {
        let id = body.text()?;
        if text {
            std::str::from_utf8(body.rest()).ok()?;
        }
        add(&self.counters.received, 1);
        match self.connection(id) {
            Some(connection) => {
                let payload = self.payload(text, Bytes::copy_from_slice(body.rest()));
                connection.receiver.message(&payload);
            }
            None => add(&self.counters.undeliverable, 1),
        }
        Some(())
    }

    async fn hear_question(
        &self,
        network: &Network,
        host: u64,
        body: &mut Reader<'_>,
    ) -> Option<()> {
        let question = body.u64()?;
        while !body.is_empty() {
            let name = body.text()?;
            network.room().await;
            let (clock, group) = self.look_up(name);
            let state = group.as_ref().map(|group| group.state.lock());
            let stream = state.as_ref().and_then(|state| state.link.as_ref());
            let stream = stream.map_or_else(Stream::default, |link| link.stream);
            let head = self.head(Kind::Answer, (stream.epoch, stream.sequence));
            let writer = Writer::new(head, 256).u64(question).text(name);
            let bytes = self
                .members_here(state.as_deref(), clock)
                .write(writer)
                .done();
            // Queued while the state is locked: after all messages that the head counts.
            network.queue(&self.counters, network.host_subject(host), bytes, false);
        }
        Some(())
    }

    fn hear_answer(&self, network: &Network, head: Head, body: &mut Reader) -> Option<()> {
        let (question, name) = (body.u64()?, body.text()?);
        let members = Changes::read(body)?;
        if question != 0 {
            if let Some(asker) = network.questions.lock().get(&question) {
                // The asker may have stopped to wait.
                let _ = asker.send(Gathered {
                    host: head.host,
                    members,
                });
            }
            return Some(());
        }
        let group = self.groups.read().get(name).cloned();
        if let Some(group) = group
            && let Some(link) = &mut group.state.lock().link
            && link.active.is_some()
        {
            let new = is_new(network, link, head.host);
            let listed = self.limits.members_listed_max;
            link.remote(head.host).answered(head, members, listed, new);
        }
        Some(())
    }

    /// Counts messages of another host that have not arrived. They are logged soon, together.
    pub(super) fn lose(&self, network: &Network, host: u64, group: &Arc<str>, missed: u64) {
        if missed == 0 {
            return;
        }
        add(&self.counters.gaps, missed);
        let mut losses = network.losses.lock();
        let group = match losses.len() < LOSSES_LISTED {
            true => Arc::clone(group),
            false => "(others)".into(),
        };
        *losses.entry((host, group)).or_default() += missed;
    }
}

/// Whether a host has started after this host began to hear the group.
fn is_new(network: &Network, link: &Link, host: u64) -> bool {
    let hosts = network.hosts.lock();
    let since = hosts.get(&host).map(|host| host.since);
    since.is_some_and(|since| link.active.is_some_and(|active| since > active))
}
