//! Random work, compared with a model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::remote::{Link, Remote};
use super::super::wire::Head;
use super::super::*;
use super::{Seen, attach, number, send};

/// A connection, the groups that it is in, and what it should have got.
type Modelled = (Arc<Seen>, Attachment, BTreeSet<String>, Vec<u64>);

/// Random connections, memberships and messages, compared with sets.
#[tokio::test]
async fn each_member_gets_each_message_once_and_in_order() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let hub = Hub::new(Limits::default(), vec![(Pattern::new("g.*"), 5)]);
        let mut connections: Vec<Modelled> = Vec::new();
        for step in 0..3_000 {
            let group = format!("g.{}", random.u8(..4));
            let one = (!connections.is_empty()).then(|| random.usize(..connections.len()));
            match (random.u8(..10), one) {
                (0..3, _) if connections.len() < 400 => {
                    let seen = Seen::new(&hub);
                    let attachment = attach(&hub, &seen);
                    connections.push((seen, attachment, BTreeSet::new(), Vec::new()));
                }
                (3..6, Some(one)) => {
                    connections[one].1.join(&group).expect("limits are far");
                    connections[one].2.insert(group);
                }
                (6, Some(one)) => {
                    hub.leave(&group, &connections[one].0.id);
                    connections[one].2.remove(&group);
                }
                (7, Some(one)) => {
                    let (seen, _, _, expected) = connections.swap_remove(one);
                    assert_eq!(seen.numbers(), expected);
                }
                _ => {
                    send(&hub, &group, step);
                    for (_, _, groups, expected) in &mut connections {
                        if groups.contains(&group) {
                            expected.push(step);
                        }
                    }
                }
            }
        }
        for at in 0..4 {
            let group = format!("g.{at}");
            let members = hub.members(&group).await;
            let expected = connections
                .iter()
                .filter(|one| one.2.contains(&group))
                .count();
            assert_eq!(
                (members.count, members.list.len()),
                (expected as u64, expected)
            );
        }
        for (seen, attachment, _, expected) in connections.drain(..) {
            drop(attachment);
            assert_eq!(seen.numbers(), expected);
        }
        let counters = hub.counters();
        assert_eq!((get(&counters.groups), get(&counters.memberships)), (0, 0));
        assert_eq!(get(&counters.connections), 0);
    }
}

/// Random messages, subscriptions and cursors: what a cursor does not reach is told as a gap, all else comes.
#[test]
fn a_cursor_loses_nothing_in_silence() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits {
            history_max_bytes: random.usize(1_000..8_000),
            history_group_max_bytes: 2_000,
            subscription_queue_max: 8,
            ..Limits::default()
        };
        let most = limits.history_max_bytes as u64;
        let hub = Hub::new(limits, vec![(Pattern::new("*"), 6)]);
        let mut logs: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        let mut cursors: Vec<(String, Cursor)> = Vec::new();
        for step in 0..800 {
            let group = format!("g.{}", random.u8(..5));
            if random.u8(..3) > 0 {
                send(&hub, &group, step);
                let sequence = hub.sequence.load(Ordering::Relaxed);
                logs.entry(group).or_default().push((sequence, step));
                assert!(get(&hub.counters().history_bytes) <= most);
                continue;
            }
            let at = (!cursors.is_empty()).then(|| random.usize(..cursors.len()));
            let (group, after) = match at {
                Some(at) if random.bool() => (cursors[at].0.clone(), Some(cursors[at].1)),
                _ => (group, None),
            };
            let mut subscription = hub.subscribe(&group, after).expect("limits are far");
            let log = logs.entry(group.clone()).or_default();
            let from = after.map_or(u64::MAX, |cursor| cursor.sequence);
            let mut expected: Vec<u64> = Vec::new();
            expected.extend(
                log.iter()
                    .filter(|(at, _)| *at > from)
                    .map(|(_, step)| *step),
            );
            for more in 0..random.u64(..5) {
                send(&hub, &group, 10_000 + more);
                let sequence = hub.sequence.load(Ordering::Relaxed);
                logs.entry(group.clone())
                    .or_default()
                    .push((sequence, 10_000 + more));
                expected.push(10_000 + more);
            }
            let gap = subscription.gap();
            let mut got = Vec::new();
            while let Some(next) = subscription.try_next() {
                let Next::Message(payload) = next else {
                    panic!("{next:?}");
                };
                got.push(number(&payload.bytes));
                cursors.push((group.clone(), payload.cursor));
            }
            cursors.push((group.clone(), subscription.cursor()));
            match gap {
                true => assert!(expected.ends_with(&got)),
                false => assert_eq!(got, expected),
            }
        }
    }
}

/// One host that announces and answers, one that hears, and between them two subjects that lose messages: afterwards
/// the lost messages are counted exactly, and the members agree.
#[test]
fn losses_are_counted_and_members_agree_again() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut link = Link::new("g".into(), 100);
        link.active = Some(Instant::now());
        let mut remote = Remote::default();
        let mut members: BTreeSet<String> = BTreeSet::new();
        let (mut group, mut answers) = (VecDeque::new(), VecDeque::new());
        let (mut lost, mut missed) = (0, 0);
        let listed = |members: &BTreeSet<String>| {
            let all = members.iter().take(10);
            all.map(|id| Change::Joined(id.as_str().into(), None))
                .collect()
        };
        let head = |kind, (epoch, sequence)| Head {
            kind,
            host: 1,
            epoch,
            sequence,
        };
        for _ in 0..300 {
            match random.u8(..8) {
                0..3 => {
                    let id = format!("c{}", random.u8(..14));
                    let change = match members.remove(&id) {
                        true => Change::Left(id.as_str().into()),
                        false => {
                            members.insert(id.clone());
                            Change::Joined(id.as_str().into(), None)
                        }
                    };
                    link.changed(change, 10);
                }
                3 => {
                    let changes = link.announcement(members.len(), || listed(&members));
                    let head = head(Kind::Changes, link.stream.next(1));
                    group.push_back((head, Some(changes)));
                }
                4 => group.push_back((head(Kind::Text, link.stream.next(1)), None)),
                5 => {
                    let numbers = (link.stream.epoch, link.stream.sequence);
                    let answer = link.answer(members.len(), || listed(&members));
                    answers.push_back((head(Kind::Answer, numbers), answer));
                }
                6 => {
                    if let Some((head, answer)) = answers.pop_front() {
                        remote.answered(head, answer, 10, true);
                    }
                }
                _ => {
                    while let Some((head, changes)) = group.pop_front() {
                        if random.u8(..10) == 0 {
                            lost += 1;
                            continue;
                        }
                        missed += remote.hear(&head, true);
                        if let Some(changes) = changes {
                            remote.announced(changes, 10);
                        }
                    }
                }
            }
        }
        let changes = link.announcement(members.len(), || listed(&members));
        let numbers = link.stream.next(1);
        for (head, changes) in group {
            missed += remote.hear(&head, true);
            if let Some(changes) = changes {
                remote.announced(changes, 10);
            }
        }
        lost += 1;
        missed += remote.hear(&head(Kind::Mark, numbers), true);
        drop(changes);
        assert_eq!(missed, lost, "seed {seed}");
        assert!(!remote.synced, "the last announcement is lost");
        let answer = link.answer(members.len(), || listed(&members));
        remote.answered(head(Kind::Answer, numbers), answer, 10, true);
        assert!(remote.synced);
        assert_eq!(remote.count, members.len() as u64);
        assert_eq!(remote.members.len(), members.len().min(10));
        assert!(remote.members.keys().all(|id| members.contains(&**id)));
    }
}
