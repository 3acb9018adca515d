//! The members of a group, of all hosts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::exchange::Gathered;
use super::group::{Group, State};
use super::wire::{Change, Changes};
use super::{Hub, shown};

/// How long [`Hub::members`] waits for other hosts to answer.
const GATHER: Duration = Duration::from_secs(1);

/// The members of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The members, at most `members_listed_max` of each host.
    pub list: Vec<Member>,
    /// How many members there are.
    pub count: u64,
    /// Every host that is heard has told its members. False: one did not answer in time.
    pub complete: bool,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The connection's id.
    pub id: String,
    /// What the connection's receiver tells of its user.
    pub user: Option<String>,
    /// The host that has the connection.
    pub host: String,
}

impl Members {
    fn add(&mut self, host: u64, count: u64, changes: Vec<Change>) {
        self.count += count;
        self.list.extend(changes.into_iter().filter_map(|change| {
            let Change::Joined(id, user) = change else {
                return None;
            };
            Some(Member {
                id: id.into(),
                user: user.map(Into::into),
                host: shown(host),
            })
        }));
    }
}

impl Hub {
    /// The members of a group, of all hosts as last heard. For a group that this host has members or subscribers of,
    /// the answer is there at once. Otherwise other hosts are asked, which takes about a round trip through NATS and at
    /// most a second.
    pub async fn members(&self, group: &str) -> Members {
        let (mut members, mut unknown) = self.members_known(group);
        let Some(network) = self.network.get().filter(|_| !unknown.is_empty()) else {
            return members;
        };
        let (question, mut answers) = network.gather();
        for host in &unknown {
            self.ask(*host, question, &[group]);
        }
        let until = Instant::now() + GATHER;
        while !unknown.is_empty()
            && let Ok(Some(answer)) = timeout_at(until, answers.recv()).await
        {
            let Gathered { host, members: all } = answer;
            if unknown.remove(&host) {
                members.add(host, all.count, all.changes);
            }
        }
        network.gathered(question);
        members.complete = unknown.is_empty();
        members
    }

    /// The members of a group, as last heard of those of other hosts, without a wait: those of a group that this host
    /// has neither members nor subscribers of may be missing.
    pub fn members_heard(&self, group: &str) -> Members {
        let (mut members, unknown) = self.members_known(group);
        members.complete = unknown.is_empty();
        members
    }

    /// The members that are known here, and the hosts that would have to be asked for theirs.
    fn members_known(&self, name: &str) -> (Members, HashSet<u64>) {
        let mut members = Members {
            list: Vec::new(),
            count: 0,
            complete: true,
        };
        let mut unknown: HashSet<u64> =
            (self.network.get()).map_or_else(HashSet::new, |network| network.heard());
        let group = self.groups.read().get(name).cloned();
        let Some(group) = group else {
            return (members, unknown);
        };
        let state = group.state.lock();
        let here = self.listed(&state);
        members.add(self.host, state.roster.count as u64, here);
        let link = state.link.as_ref();
        for remote in link.iter().flat_map(|link| &link.hosts) {
            if remote.synced && unknown.remove(&remote.host) {
                let listed = remote.members.iter();
                let listed = listed.map(|(id, user)| Change::Joined(id.clone(), user.clone()));
                members.add(remote.host, remote.count, listed.collect());
            }
        }
        (members, unknown)
    }

    /// This host's members, as far as they are listed.
    pub(super) fn listed(&self, state: &State) -> Vec<Change> {
        let members = state.roster.iter().take(self.limits.members_listed_max);
        members.map(|member| super::joined_change(member)).collect()
    }

    /// A group's record, and the host's clock before the look. The clock is read first: whoever makes a record that was
    /// not found makes it later, so the versions of its members are newer than the clock.
    pub(super) fn look_up(&self, name: &str) -> (u64, Option<Arc<Group>>) {
        let clock = self.clock();
        (clock, self.groups.read().get(name).cloned())
    }

    /// This host's members of a group, for a host that asks. A group without a record has none. The version of that
    /// answer is the clock of [`Hub::look_up`]: newer than all that was told of an earlier record, and older than all that
    /// will be told of a later one, which the other host would ignore otherwise.
    pub(super) fn members_here(&self, state: Option<&State>, clock: u64) -> Changes {
        match state.and_then(|state| Some((state, state.link.as_ref()?))) {
            Some((state, link)) => link.answer(state.roster.count, || self.listed(state)),
            None => Changes {
                full: true,
                version: clock,
                count: 0,
                changes: Vec::new(),
            },
        }
    }
}
