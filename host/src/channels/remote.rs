//! A group across hosts: the numbers of this host's messages, and what is known of each other host.
//!
//! This module has no network of its own: `nats.rs` moves the bytes, these types decide what the bytes mean.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::Subject;
use tokio::task::AbortHandle;

use super::wire::{Change, Changes, Head, Kind};

/// How long a number that another host named may be ahead of the messages themselves: they come by another subject.
const CLAIM_WAIT: Duration = Duration::from_secs(1);
/// How long after a message its number is told once more, the first time; and how often it is.
const MARK_AFTER: Duration = Duration::from_secs(1);
const MARKS: u32 = 3;
/// How soon a host that did not answer is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a group that nobody here wants is kept for the numbers of what was sent.
const KEEP_NUMBERS: Duration = Duration::from_secs(10);
/// How long the numbers of a host that is no longer heard are kept, so that its return shows what was lost meanwhile.
const REMEMBER: Duration = Duration::from_secs(600);

/// The numbers of what this host sends on one subject.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stream {
    /// When the numbering began, in nanoseconds of the host's clock. 0: nothing was sent.
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    /// How many marks have been sent after the last message.
    marks: u32,
    /// When the last message was sent.
    pub(super) used: Option<Instant>,
}

impl Stream {
    /// Numbers the next message. `clock`: the host's clock.
    pub(super) fn next(&mut self, clock: u64) -> (u64, u64) {
        if self.epoch == 0 {
            self.epoch = clock.max(1);
        }
        self.sequence += 1;
        self.marks = 0;
        self.used = Some(Instant::now());
        (self.epoch, self.sequence)
    }

    /// The numbers for a mark, if one is due. Marks follow a message after 1, 3 and 9 seconds: one alone could be lost as
    /// the message was, while a host is too slow, and then nobody would notice.
    pub(super) fn take_mark(&mut self) -> Option<(u64, u64)> {
        let after = MARK_AFTER * 3_u32.pow(self.marks);
        let due = self.is_unmarked() && self.used.is_some_and(|used| used.elapsed() >= after);
        self.marks += u32::from(due);
        due.then_some((self.epoch, self.sequence))
    }

    /// Whether marks are still to be sent.
    fn is_unmarked(&self) -> bool {
        self.used.is_some() && self.marks < MARKS
    }
}

/// The numbers of what another host has sent on one subject, as far as they have arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heard {
    epoch: u64,
    last: u64,
}

impl Heard {
    /// Takes up with a stream at any number, as if all messages before had arrived.
    pub(super) fn from(head: &Head) -> Heard {
        let numbered = u64::from(!matches!(head.kind, Kind::Mark | Kind::Answer));
        Heard {
            epoch: head.epoch,
            last: head.sequence.saturating_sub(numbered),
        }
    }

    /// Notes a message and returns how many before it have not arrived. NATS keeps the order of one sender's messages,
    /// so a missing number will not come later.
    pub(super) fn hear(&mut self, head: &Head) -> u64 {
        let before = match head.kind {
            Kind::Mark | Kind::Answer => head.sequence,
            _ => head.sequence.saturating_sub(1),
        };
        if head.epoch > self.epoch {
            *self = Heard {
                epoch: head.epoch,
                last: head.sequence,
            };
            return before;
        }
        if head.epoch < self.epoch {
            return 0;
        }
        let missed = before.saturating_sub(self.last);
        self.last = self.last.max(head.sequence);
        missed
    }
}

/// What this host knows of another host's part in a group.
#[derive(Debug, Default)]
pub(super) struct Remote {
    pub(super) host: u64,
    pub(super) heard: Option<Heard>,
    /// The numbers that an answer named, and when. They are compared when the messages have had time to arrive.
    claim: Option<(Head, Instant)>,
    /// The members are known as of `version`.
    pub(super) synced: bool,
    version: u64,
    /// The newest version that this host has heard of.
    newest: u64,
    pub(super) asked: Option<Instant>,
    /// The members' ids and users, as far as they are listed.
    pub(super) members: HashMap<Box<str>, Option<Box<str>>>,
    pub(super) count: u64,
    /// Since when the host has not been heard.
    gone: Option<Instant>,
}

impl Remote {
    /// Notes a message's number. `new`: the host has started after this host subscribed to the group, so its first
    /// message is number 1.
    pub(super) fn hear(&mut self, head: &Head, new: bool) -> u64 {
        let missed = match &mut self.heard {
            Some(heard) => heard.hear(head),
            None if new => self.heard.insert(Heard::default()).hear(head),
            None => self.heard.insert(Heard::from(head)).hear(head),
        };
        // What is missing may have been changes of the membership.
        self.synced &= missed == 0;
        missed
    }

    /// Notes what the host has announced. `listed`: how many members of one host are listed at most.
    pub(super) fn announced(&mut self, changes: Changes, listed: usize) {
        if changes.version <= self.version {
            return;
        }
        self.newest = self.newest.max(changes.version);
        if changes.full {
            self.replace(changes, listed);
        } else if self.synced && changes.version == self.version + 1 {
            self.apply(changes, listed);
        } else {
            self.synced = false;
        }
    }

    /// Notes the host's answer. An answer that is older than an announcement which came before is not taken: the host
    /// is asked again.
    pub(super) fn answered(&mut self, head: Head, members: Changes, listed: usize, new: bool) {
        match self.heard {
            Some(_) => self.claim = Some((head, Instant::now())),
            None if new => {
                self.heard = Some(Heard::default());
                self.claim = Some((head, Instant::now()));
            }
            None => self.heard = Some(Heard::from(&head)),
        }
        if members.version >= self.newest {
            self.replace(members, listed);
        }
    }

    fn replace(&mut self, all: Changes, listed: usize) {
        (self.version, self.newest) = (all.version, all.version);
        self.synced = true;
        self.gone = None;
        self.members.clear();
        self.list(all, listed);
    }

    fn apply(&mut self, changes: Changes, listed: usize) {
        self.version = changes.version;
        self.list(changes, listed);
        // Members who are not listed may take the places of those who left: ask for them.
        let few =
            self.members.len() < listed.min(usize::try_from(self.count).unwrap_or(listed)) / 2;
        self.synced = !few;
    }

    fn list(&mut self, changes: Changes, listed: usize) {
        self.count = changes.count;
        for change in changes.changes {
            match change {
                Change::Joined(id, user) if self.members.len() < listed => {
                    self.members.insert(id, user);
                }
                Change::Joined(..) => {}
                Change::Left(id) => {
                    self.members.remove(&id);
                }
            }
        }
    }

    /// Forgets the members, because the host is no longer heard.
    pub(super) fn forget(&mut self) {
        self.members = HashMap::new();
        self.count = 0;
        self.synced = false;
        self.asked = None;
        self.gone = Some(Instant::now());
    }

    /// Whether nothing is left to remember of a host that is gone.
    pub(super) fn is_over(&self) -> bool {
        self.gone.is_some_and(|since| since.elapsed() > REMEMBER)
    }

    /// How many messages have not arrived of those that an earlier answer named.
    pub(super) fn settle_claim(&mut self) -> u64 {
        match self.claim {
            Some((head, since)) if since.elapsed() >= CLAIM_WAIT => {
                self.claim = None;
                self.hear(&head, false)
            }
            _ => 0,
        }
    }
}

/// A group across hosts.
pub(super) struct Link {
    pub(super) subject: Subject,
    /// Since when the group's messages are sure to arrive here. None: not subscribed, or the server has not confirmed
    /// the subscription yet.
    pub(super) active: Option<Instant>,
    /// The subscription is on its way or there.
    pub(super) wanted: bool,
    /// The task that reads the subscription.
    pub(super) reader: Option<AbortHandle>,
    /// The number of the subscription: what a task of an earlier one still has is not delivered twice.
    pub(super) generation: u64,
    pub(super) stream: Stream,
    /// What has changed since the last announcement.
    changes: Vec<Change>,
    /// The next announcement tells all members.
    full: bool,
    /// The group is in the list of those to announce.
    dirty: bool,
    version: u64,
    pub(super) hosts: Vec<Remote>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }
}

impl Link {
    /// A link without a subscription. `clock`: the host's clock, where the versions of the members begin.
    pub(super) fn new(subject: Subject, clock: u64) -> Link {
        Link {
            subject,
            active: None,
            wanted: false,
            reader: None,
            generation: 0,
            stream: Stream::default(),
            changes: Vec::new(),
            full: true,
            dirty: false,
            version: clock,
            hosts: Vec::new(),
        }
    }

    /// Notes a change for the next announcement. True: the group has to be put into the list of those to announce.
    pub(super) fn changed(&mut self, change: Change, listed: usize) -> bool {
        if !self.full {
            self.changes.push(change);
            // A list of all members is shorter.
            self.full = self.changes.len() > listed;
        }
        if self.full {
            self.changes = Vec::new();
        }
        self.active.is_some() && !std::mem::replace(&mut self.dirty, true)
    }

    /// Notes that the next announcement tells all members. True: as for `changed`.
    pub(super) fn announce_all(&mut self) -> bool {
        self.full = true;
        self.changes = Vec::new();
        self.active.is_some() && !std::mem::replace(&mut self.dirty, true)
    }

    /// Whether the group's record has to stay although nobody here wants its messages: the numbers of what was sent
    /// are of use until all hosts have been told the last one.
    pub(super) fn is_needed(&self) -> bool {
        let recent = (self.stream.used).is_some_and(|used| used.elapsed() < KEEP_NUMBERS);
        self.wanted || self.dirty || self.stream.is_unmarked() || recent
    }

    /// Whether changes wait to be announced.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// What is to be announced now. `members`: all members as far as they are listed.
    pub(super) fn announcement(
        &mut self,
        count: usize,
        members: impl FnOnce() -> Vec<Change>,
    ) -> Changes {
        self.dirty = false;
        self.version += 1;
        let full = std::mem::replace(&mut self.full, false);
        let changes = std::mem::take(&mut self.changes);
        Changes {
            full,
            version: self.version,
            count: count as u64,
            changes: if full { members() } else { changes },
        }
    }

    /// All members, for a host that asked. Before the group is active here, there are none: messages for them may not
    /// arrive yet.
    pub(super) fn answer(&self, count: usize, members: impl FnOnce() -> Vec<Change>) -> Changes {
        let active = self.active.is_some();
        Changes {
            full: true,
            version: self.version,
            count: if active { count as u64 } else { 0 },
            changes: if active { members() } else { Vec::new() },
        }
    }

    /// What is known of a host.
    pub(super) fn remote(&mut self, host: u64) -> &mut Remote {
        let at = self.hosts.iter().position(|remote| remote.host == host);
        let at = at.unwrap_or_else(|| {
            self.hosts.push(Remote {
                host,
                ..Remote::default()
            });
            self.hosts.len() - 1
        });
        &mut self.hosts[at]
    }

    /// Ends the subscription. What was known of other hosts is forgotten with it.
    pub(super) fn unsubscribe(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
        self.generation += 1;
        self.active = None;
        self.wanted = false;
        self.hosts = Vec::new();
        self.announce_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_last_message_is_told_three_times() {
        let mut stream = Stream::default();
        assert_eq!(stream.take_mark(), None);
        for _ in 0..2 {
            let numbers = Some(stream.next(7));
            let mut told = Vec::new();
            for seconds in 0..30 {
                stream.used = Instant::now().checked_sub(Duration::from_secs(seconds));
                if stream.take_mark() == numbers {
                    told.push(seconds);
                }
            }
            assert_eq!(told, [1, 3, 9]);
            assert!(!stream.is_unmarked());
        }
    }
}
