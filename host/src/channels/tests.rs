//! The hub on one host, and what needs no network. `tests/model.rs`: random work, compared with a model.
//! `tests/across.rs` and `tests/losses.rs`: several hosts, and what they lose.

mod across;
mod losses;
mod model;

use super::wire::{Changes, Head, Reader, Writer, subject_word};
use super::*;

/// A receiver that keeps what it gets.
pub(super) struct Seen {
    id: String,
    user: Option<String>,
    messages: Mutex<Vec<Bytes>>,
    notices: Mutex<Vec<Bytes>>,
}

impl Seen {
    pub(super) fn new(hub: &Hub) -> Arc<Seen> {
        Seen::named(hub, None)
    }

    pub(super) fn named(hub: &Hub, user: Option<&str>) -> Arc<Seen> {
        Arc::new(Seen {
            id: hub.new_id(),
            user: user.map(str::to_owned),
            messages: Mutex::default(),
            notices: Mutex::default(),
        })
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        let messages = self.messages.lock();
        messages.iter().map(|bytes| number(bytes)).collect()
    }
}

impl Receiver for Seen {
    fn id(&self) -> &str {
        &self.id
    }

    fn user(&self) -> Option<String> {
        self.user.clone()
    }

    fn message(&self, message: &Arc<Payload>) {
        self.messages.lock().push(message.bytes.clone());
    }

    fn notice(&self, _: &str, payload: &Bytes) {
        self.notices.lock().push(payload.clone());
    }
}

pub(super) fn bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(super) fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("messages of tests are numbers"))
}

fn attach(hub: &Arc<Hub>, seen: &Arc<Seen>) -> Attachment {
    hub.attach(Arc::clone(seen) as _).expect("ids are new")
}

fn send(hub: &Hub, group: &str, number: u64) {
    hub.send(group, false, bytes(number))
        .expect("the message is allowed");
}

#[test]
fn patterns_match_as_topics_do() {
    assert!(matches("room.*", "room.7"));
    assert!(matches("room.*", "room.7.staff"));
    assert!(!matches("room.*", "room"));
    assert!(!matches("room.*", "room."));
    assert!(!matches("room.*", "roomX"));
    assert!(matches("*", "anything"));
    assert!(matches("room.7", "room.7"));
    assert!(!matches("room.7", "room.70"));
    assert!(!matches("room*", "room7"));
}

#[test]
fn names_of_groups_are_one_word() {
    assert_eq!(subject_word("room.7"), "room=2E7");
    assert_eq!(subject_word("*"), "=2A");
    assert_eq!(subject_word("a b>ü="), "a=20b=3E=C3=BC=3D");
}

#[test]
fn cursors_are_read_as_they_are_shown() {
    let cursor = Cursor {
        host: 0xab,
        sequence: 77,
    };
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for wrong in ["", "-", "1", "+1-2", "x-1", "1-2-3", "1-11111111111111111"] {
        assert_eq!(wrong.parse::<Cursor>(), Err(NoCursor), "{wrong}");
    }
}

#[test]
fn garbage_from_other_hosts_is_no_message() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.usize(..80)).map(|_| random.u8(..)).collect();
        if let Some(format) = bytes.first_mut() {
            *format = 1;
        }
        if let Some((_, mut body)) = Reader::new(&bytes) {
            let _ = Changes::read(&mut body);
        }
    }
}

#[test]
fn limits_refuse() {
    let limits = Limits {
        groups_max: 2,
        groups_per_connection_max: 2,
        group_name_max_bytes: 5,
        payload_max_bytes: 8,
        subscribers_max: 1,
        ..Limits::default()
    };
    let hub = Hub::new(limits, Vec::new());
    let (one, two) = (Seen::new(&hub), Seen::new(&hub));
    let (first, second) = (attach(&hub, &one), attach(&hub, &two));
    assert!(hub.attach(Arc::clone(&one) as _).is_err());
    assert_eq!(first.join("sixsix"), Err(Refused::Name(5)));
    assert_eq!(first.join(""), Err(Refused::Name(5)));
    assert_eq!(first.join("a"), Ok(()));
    assert_eq!(first.join("a"), Ok(()));
    assert_eq!(first.join("b"), Ok(()));
    let full = Refused::Full("groups_per_connection_max", 2);
    assert_eq!(first.join("c"), Err(full));
    assert_eq!(second.join("c"), Err(Refused::Full("groups_max", 2)));
    assert_eq!(
        hub.send("a", true, Bytes::from_static(b"123456789")),
        Err(Refused::TooLarge(9, 8))
    );
    let subscription = hub.subscribe("a", None).expect("there is a place");
    assert!(hub.subscribe("b", None).is_err());
    drop(subscription);
    assert!(hub.subscribe("b", None).is_ok());
    drop(first);
    assert_eq!(hub.join("a", &one.id), Err(Refused::Ended));
    assert_eq!(hub.join("c", &two.id), Ok(()));
}

#[test]
fn a_cursor_of_another_host_is_a_gap() {
    let histories = || vec![(Pattern::new("*"), 6)];
    let one = Hub::new(Limits::default(), histories());
    let two = Hub::new(Limits::default(), histories());
    let cursor = one.subscribe("g", None).expect("allowed").cursor();
    let known = one.subscribe("g", Some(cursor)).expect("allowed");
    assert!(!known.gap());
    assert!(two.subscribe("g", Some(cursor)).expect("allowed").gap());
    let future = Cursor {
        sequence: 9,
        ..cursor
    };
    assert!(one.subscribe("g", Some(future)).expect("allowed").gap());
    let without = Hub::new(Limits::default(), Vec::new());
    let cursor = without.subscribe("g", None).expect("allowed").cursor();
    assert!(without.subscribe("g", Some(cursor)).expect("allowed").gap());
}

#[test]
fn a_history_ends_some_time_after_its_last_subscriber() {
    let limits = Limits {
        history_idle: std::time::Duration::from_millis(30),
        ..Limits::default()
    };
    let hub = Hub::new(limits, vec![(Pattern::new("*"), 6)]);
    let cursor = hub.subscribe("g", None).expect("allowed").cursor();
    send(&hub, "g", 1);
    hub.sweep();
    let again = hub.subscribe("g", Some(cursor)).expect("allowed");
    assert!(!again.gap());
    drop(again);
    hub.sweep();
    std::thread::sleep(std::time::Duration::from_millis(40));
    hub.sweep();
    assert_eq!(get(&hub.counters().history_bytes), 0);
    assert_eq!(get(&hub.counters().groups), 0);
    assert!(hub.subscribe("g", Some(cursor)).expect("allowed").gap());
}

#[tokio::test]
async fn a_slow_subscriber_is_told_how_much_it_missed() {
    let limits = Limits {
        subscription_queue_max: 4,
        ..Limits::default()
    };
    let hub = Hub::new(limits, Vec::new());
    let mut subscription = hub.subscribe("g", None).expect("allowed");
    for step in 0..10 {
        send(&hub, "g", step);
    }
    assert!(matches!(subscription.next().await, Next::Missed(6)));
    let Next::Message(payload) = subscription.next().await else {
        panic!("no message");
    };
    assert_eq!(number(&payload.bytes), 6);
    assert_eq!(get(&hub.counters().missed_by_subscribers), 6);
    hub.shutdown().await;
    while let Some(next) = subscription.try_next() {
        if matches!(next, Next::Ended) {
            return;
        }
    }
    panic!("the subscription goes on");
}

/// The history has more than waits for one subscriber.
#[tokio::test]
async fn a_slow_subscriber_goes_on_from_the_history() {
    let limits = Limits {
        subscription_queue_max: 4,
        ..Limits::default()
    };
    let hub = Hub::new(limits, vec![(Pattern::new("*"), 20)]);
    let mut subscription = hub.subscribe("g", None).expect("allowed");
    let mut from = 0;
    for (sent, missed) in [(20, 0), (3, 0), (5, 0), (35, 15), (21, 1), (1, 0)] {
        for step in from..from + sent {
            send(&hub, "g", step);
        }
        let mut got = Vec::new();
        let mut told = 0;
        while let Some(next) = subscription.try_next() {
            match next {
                Next::Message(payload) => got.push(number(&payload.bytes)),
                Next::Missed(count) => told += count,
                Next::Ended => panic!("the hub goes on"),
            }
        }
        from += sent;
        let all: Vec<u64> = (from - sent + missed..from).collect();
        assert_eq!((told, got), (missed, all));
    }
    // In the same way when it waits.
    for step in from..from + 10 {
        send(&hub, "g", step);
    }
    for step in from..from + 10 {
        let Next::Message(payload) = subscription.next().await else {
            panic!("no message");
        };
        assert_eq!(number(&payload.bytes), step);
    }
    assert_eq!(get(&hub.counters().missed_by_subscribers), 16);
}

/// Threads send while others subscribe with cursors: between the history and what follows nothing is missing.
#[test]
fn no_message_falls_between_history_and_subscription() {
    let limits = Limits {
        subscription_queue_max: 1 << 15,
        history_group_max_bytes: 16 << 20,
        ..Limits::default()
    };
    let hub = Hub::new(limits, vec![(Pattern::new("*"), 1 << 15)]);
    let begin = hub.subscribe("g", None).expect("allowed").cursor();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20_000).for_each(|step| send(&hub, "g", step)));
        for _ in 0..50 {
            let mut subscription = hub.subscribe("g", Some(begin)).expect("allowed");
            assert!(!subscription.gap());
            for expected in 0..300 {
                let next = loop {
                    if let Some(next) = subscription.try_next() {
                        break next;
                    }
                };
                let Next::Message(payload) = next else {
                    panic!("{next:?}");
                };
                assert_eq!(number(&payload.bytes), expected);
            }
        }
    });
}

/// A receiver that calls the hub when it gets a message.
struct Leaver {
    id: String,
    hub: Arc<Hub>,
}

impl Receiver for Leaver {
    fn id(&self) -> &str {
        &self.id
    }

    fn user(&self) -> Option<String> {
        None
    }

    fn message(&self, _: &Arc<Payload>) {
        self.hub.leave("g", &self.id);
        self.hub.join("h", &self.id).expect("allowed");
    }

    fn notice(&self, _: &str, _: &Bytes) {}
}

#[test]
fn a_receiver_may_call_the_hub() {
    let hub = Hub::new(Limits::default(), Vec::new());
    let receivers = (0..500).map(|_| {
        let (id, hub) = (hub.new_id(), Arc::clone(&hub));
        Arc::new(Leaver { id, hub })
    });
    let attachments: Vec<_> = receivers
        .map(|receiver| hub.attach(receiver).expect("ids are new"))
        .inspect(|attachment| attachment.join("g").expect("allowed"))
        .collect();
    send(&hub, "g", 1);
    assert!(!hub.groups.read().contains_key("g"));
    assert_eq!(hub.groups.read()["h"].state.lock().roster.count, 500);
    drop(attachments);
    assert_eq!(get(&hub.counters().groups), 0);
}

/// 50,000 members join, get a message and leave while others send: none of that is quadratic.
#[test]
fn fifty_thousand_members() {
    let hub = Hub::new(Limits::default(), Vec::new());
    let began = Instant::now();
    let seen: Vec<_> = (0..50_000).map(|_| Seen::new(&hub)).collect();
    let attachments: Vec<_> = seen.iter().map(|seen| attach(&hub, seen)).collect();
    for attachment in &attachments {
        attachment.join("g").expect("allowed");
    }
    let joined = began.elapsed();
    let began = Instant::now();
    send(&hub, "g", 1);
    let sent = began.elapsed();
    assert!(seen.iter().all(|seen| seen.messages.lock().len() == 1));
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|step| send(&hub, "g", step)));
        drop(attachments);
    });
    let left = began.elapsed();
    println!(
        "50,000 members: joined in {joined:?}, one message {sent:?}, left while 20 messages were sent {left:?}"
    );
    assert_eq!(get(&hub.counters().groups), 0);
    assert!(joined + sent + left < std::time::Duration::from_secs(10));
}

#[test]
fn messages_between_hosts_are_read_as_they_were_written() {
    let head = Head {
        kind: Kind::Changes,
        host: u64::MAX,
        epoch: 3,
        sequence: 4,
    };
    let changes = Changes {
        full: true,
        version: 9,
        count: 70_000,
        changes: vec![
            Change::Joined("a".into(), Some("ü".into())),
            Change::Joined("".into(), None),
            Change::Left("b".into()),
        ],
    };
    let bytes = changes.write(Writer::new(head, 0)).done();
    let (read, mut body) = Reader::new(&bytes).expect("there is a head");
    assert_eq!((read, Changes::read(&mut body)), (head, Some(changes)));
    for cut in 0..bytes.len() {
        let (_, mut body) = match Reader::new(&bytes[..cut]) {
            Some(read) => read,
            None => continue,
        };
        assert!(Changes::read(&mut body).is_none_or(|cut| cut.changes.len() < 3));
    }
}

fn rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .expect("a number")
        << 10
}
