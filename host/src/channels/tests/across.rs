//! Several hubs with a nats-server of their own.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;

use super::super::*;
use super::{Seen, attach, bytes, number, send};

/// A nats-server that ends with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Server {
        let free = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        Server::start_at(port)
    }

    fn start_at(port: u16) -> Server {
        let process = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed");
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "it does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { process, port }
    }

    fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    async fn hub(&self, limits: Limits) -> Arc<Hub> {
        let hub = Hub::new(limits, vec![(Pattern::new("kept.*"), 10)]);
        let config = NatsConfig {
            urls: vec![format!("nats://127.0.0.1:{}", self.port)],
            prefix: "test".to_owned(),
            root_certificates: None,
        };
        hub.connect(config).await.expect("the server is there");
        hub
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test may have killed the server.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something holds.
async fn until(what: &str, seconds: u64, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds().await {
        let waited = began.elapsed();
        assert!(
            waited < Duration::from_secs(seconds),
            "{what}: not after {waited:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Waits until a hub knows so many members.
async fn until_members(hub: &Hub, group: &str, count: u64) -> Duration {
    until("members", 15, async || {
        hub.members(group).await.count == count
    })
    .await
}

fn member(hub: &Arc<Hub>, group: &str, user: Option<&str>) -> (Arc<Seen>, Attachment) {
    let seen = Seen::named(hub, user);
    let attachment = attach(hub, &seen);
    attachment.join(group).expect("allowed");
    (seen, attachment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_exchange_messages_members_and_notices() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let (ann, ann_here) = member(&one, "room.7", Some("ann"));
    let (bob, bob_here) = member(&two, "room.7", None);
    until_members(&one, "room.7", 2).await;
    until_members(&two, "room.7", 2).await;
    let members = two.members("room.7").await;
    let listed = members.list.iter().find(|member| member.id == ann.id);
    let listed = listed.expect("ann is a member");
    assert_eq!(
        (listed.user.as_deref(), &listed.host),
        (Some("ann"), &one.host())
    );
    assert!(members.complete);
    for step in 0..5_000 {
        send(&one, "room.7", step);
        if step % 500 == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }
    until("messages", 10, async || bob.messages.lock().len() == 5_000).await;
    let expected: Vec<u64> = (0..5_000).collect();
    assert_eq!((ann.numbers(), bob.numbers()), (expected.clone(), expected));
    two.notify("room.7", bytes(1)).expect("allowed");
    until("notices", 5, async || ann.notices.lock().len() == 1).await;
    assert_eq!(bob.notices.lock().len(), 1);
    assert_eq!(get(&one.counters().gaps) + get(&two.counters().gaps), 0);
    drop(bob_here);
    until_members(&one, "room.7", 1).await;
    drop(ann_here);
    until("no groups", 20, async || get(&one.counters().groups) == 0).await;
    until("no groups", 20, async || get(&two.counters().groups) == 0).await;
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_members_asks_the_others() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let (_, here) = member(&one, "room.1", None);
    until_members(&one, "room.1", 1).await;
    sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let members = two.members("room.1").await;
    println!("members of a group that is not here: {:?}", began.elapsed());
    assert_eq!((members.count, members.complete), (1, true));
    assert_eq!(two.members("no such").await.count, 0);
    one.abandon(one.network.get().expect("connected"));
    let members = two.members("room.1").await;
    assert_eq!((members.count, members.complete), (0, false));
    drop(here);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_is_forgotten_with_its_members() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let (_, _here) = member(&one, "room.1", None);
    let (_, _there) = member(&two, "room.1", None);
    until_members(&one, "room.1", 2).await;
    two.abandon(two.network.get().expect("connected"));
    let forgotten = until_members(&one, "room.1", 1).await;
    println!("a killed host was forgotten after {forgotten:?}");
    assert!(forgotten < Duration::from_secs(10));
    assert_eq!(get(&one.counters().hosts), 0);
    let three = server.hub(Limits::default()).await;
    let (_, _there) = member(&three, "room.1", None);
    until_members(&one, "room.1", 2).await;
    three.shutdown().await;
    let forgotten = until_members(&one, "room.1", 1).await;
    assert!(forgotten < Duration::from_secs(1), "{forgotten:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_for_one_connection_find_its_host() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let seen = Seen::new(&two);
    let here = attach(&two, &seen);
    until("hosts", 5, async || get(&one.counters().hosts) == 1).await;
    for step in 0..100 {
        assert_eq!(one.send_to(&seen.id, false, bytes(step)), Ok(true));
        assert_eq!(two.send_to(&seen.id, false, bytes(step)), Ok(true));
    }
    until("messages", 5, async || seen.messages.lock().len() == 200).await;
    drop(here);
    assert_eq!(one.send_to(&seen.id, false, bytes(1)), Ok(true));
    until("undeliverable", 5, async || {
        get(&two.counters().undeliverable) == 1
    })
    .await;
    assert_eq!(two.send_to(&seen.id, false, bytes(1)), Ok(false));
    assert_eq!(one.send_to("nobody", false, bytes(1)), Ok(false));
    assert_eq!(one.send_to("00-1", false, bytes(1)), Ok(false));
}

/// The queue to other hosts is too small: what it does not take is counted by the sender, and noticed by the other host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_queue_does_not_take_is_a_gap_elsewhere() {
    let server = Server::start();
    let small = Limits {
        outgoing_max: 8,
        ..Limits::default()
    };
    let (one, two) = (server.hub(small).await, server.hub(Limits::default()).await);
    let (bob, _here) = member(&two, "room.1", None);
    until("active", 5, async || one.members("room.1").await.count == 1).await;
    (0..2_000).for_each(|step| send(&one, "room.1", step));
    let lost = || get(&one.counters().lost_queue_full);
    assert!(lost() > 0);
    until("all counted", 10, async || {
        get(&two.counters().received) + get(&two.counters().gaps) == 2_000
    })
    .await;
    println!("of 2,000 messages the queue did not take {}", lost());
    assert_eq!(get(&two.counters().gaps), lost());
    let numbers = bob.numbers();
    assert!(numbers.is_sorted_by(|a, b| a < b));
}

/// A receiver that takes long.
struct Slow(String);

impl Receiver for Slow {
    fn id(&self) -> &str {
        &self.0
    }

    fn user(&self) -> Option<String> {
        None
    }

    fn message(&self, _: &Arc<Payload>) {
        std::thread::sleep(Duration::from_millis(2));
    }

    fn notice(&self, _: &str, _: &Bytes) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_slow_host_counts_what_it_dropped() {
    let server = Server::start();
    let small = Limits {
        incoming_max: 16,
        ..Limits::default()
    };
    let (one, two) = (server.hub(Limits::default()).await, server.hub(small).await);
    let slow = two
        .attach(Arc::new(Slow(two.new_id())))
        .expect("the id is new");
    slow.join("room.1").expect("allowed");
    until("active", 5, async || one.members("room.1").await.count == 1).await;
    (0..2_000).for_each(|step| send(&one, "room.1", step));
    until("all counted", 20, async || {
        get(&two.counters().received) + get(&two.counters().gaps) == 2_000
    })
    .await;
    let counters = two.counters();
    println!(
        "slow: {} received, {} missing, {} events",
        get(&counters.received),
        get(&counters.gaps),
        get(&counters.slow_consumer)
    );
    assert!(get(&counters.gaps) > 0 && get(&counters.slow_consumer) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_that_is_killed_under_load() {
    let mut server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let (_, _here) = member(&one, "room.1", None);
    let (bob, _there) = member(&two, "room.1", None);
    until_members(&one, "room.1", 2).await;
    until_members(&two, "room.1", 2).await;
    let (sending, stop) = (Arc::clone(&one), Arc::new(AtomicU64::new(0)));
    let stopped = Arc::clone(&stop);
    let load = tokio::task::spawn_blocking(move || {
        let (mut sent, mut longest) = (0, Duration::ZERO);
        while stopped.load(Ordering::Relaxed) == 0 {
            let began = Instant::now();
            send(&sending, "room.1", sent);
            longest = longest.max(began.elapsed());
            sent += 1;
            std::thread::sleep(Duration::from_micros(200));
        }
        (sent, longest)
    });
    sleep(Duration::from_secs(1)).await;
    server.kill();
    sleep(Duration::from_secs(4)).await;
    // Members who come and go meanwhile.
    let (_, _late) = member(&two, "room.1", None);
    let mut server = Server::start_at(server.port);
    let restored = until_members(&one, "room.1", 3).await;
    sleep(Duration::from_secs(1)).await;
    server.kill();
    let server = Server::start_at(server.port);
    sleep(Duration::from_secs(3)).await;
    stop.store(1, Ordering::Relaxed);
    let (sent, longest) = load.await.expect("the load does not panic");
    let until_counted = until("all counted", 15, async || {
        get(&two.counters().received) + get(&two.counters().gaps) >= sent
    })
    .await;
    let counters = one.counters();
    println!(
        "restart: {sent} sent (longest call {longest:?}), {} received, {} missing (known after {until_counted:?}); sender: {} lost while disconnected, {} unsure, {} failed, {} queue full; members again after {restored:?}",
        get(&two.counters().received),
        get(&two.counters().gaps),
        get(&counters.lost_disconnected),
        get(&counters.unsure),
        get(&counters.lost_failed),
        get(&counters.lost_queue_full),
    );
    assert!(longest < Duration::from_millis(500));
    assert!(get(&two.counters().gaps) > 0);
    assert!(get(&counters.lost_disconnected) > 0);
    assert_eq!(get(&counters.reconnects), 2);
    assert!(bob.numbers().is_sorted_by(|a, b| a < b));
    until_members(&two, "room.1", 3).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_groups() {
    const GROUPS: u64 = 10_000;
    let server = Server::start();
    let limits = || Limits {
        groups_per_connection_max: 20_000,
        ..Limits::default()
    };
    let (one, two) = (server.hub(limits()).await, server.hub(limits()).await);
    let before = super::rss();
    let (ann, bob) = (Seen::new(&one), Seen::new(&two));
    let (ann_here, bob_here) = (attach(&one, &ann), attach(&two, &bob));
    let began = Instant::now();
    for at in 0..GROUPS {
        ann_here.join(&format!("room.{at}")).expect("allowed");
        bob_here.join(&format!("room.{at}")).expect("allowed");
    }
    let joined = began.elapsed();
    for hub in [&one, &two] {
        until("all active and known", 30, async || {
            let groups = hub.all_groups();
            groups.iter().all(|group| {
                let state = group.state.lock();
                let hosts = state.link.iter().flat_map(|link| &link.hosts);
                hosts.map(|remote| remote.count).sum::<u64>() == 1
            })
        })
        .await;
    }
    let known = began.elapsed();
    let used = (super::rss() - before) / (2 * GROUPS as usize);
    println!(
        "10,000 groups on two hosts: joined in {joined:?}, all known after {known:?}, {used} bytes for each"
    );
    for at in 0..GROUPS {
        send(&one, &format!("room.{at}"), at);
        if at % 1_000 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    until("messages", 10, async || {
        bob.messages.lock().len() as u64 == GROUPS
    })
    .await;
    assert_eq!(get(&two.counters().gaps), 0);
    drop((ann_here, bob_here));
    until("no groups", 30, async || get(&one.counters().groups) == 0).await;
    until("no groups", 30, async || get(&two.counters().groups) == 0).await;
    assert_eq!(get(&one.counters().lost_queue_full), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_has_the_messages_of_other_hosts() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let subscription = two.subscribe("kept.1", None).expect("allowed");
    let cursor = subscription.cursor();
    let active = async || {
        let group = two.groups.read()["kept.1"].clone();
        let state = group.state.lock();
        state
            .link
            .as_ref()
            .is_some_and(|link| link.active.is_some())
    };
    until("active", 5, active).await;
    drop(subscription);
    (0..5).for_each(|step| send(&one, "kept.1", step));
    until("messages", 5, async || get(&two.counters().received) == 5).await;
    let mut again = two.subscribe("kept.1", Some(cursor)).expect("allowed");
    assert!(!again.gap());
    for expected in 0..5 {
        let Next::Message(payload) = again.next().await else {
            panic!("no message");
        };
        assert_eq!(number(&payload.bytes), expected);
    }
    assert!(
        one.subscribe("kept.1", Some(cursor))
            .expect("allowed")
            .gap()
    );
}

#[tokio::test]
async fn errors_show_no_password() {
    let hub = Hub::new(Limits::default(), Vec::new());
    for url in [
        "nats://ann:geheim@127.0.0.1:1",
        "nats:/ /ann:geheim@x",
        "http://ann:geheim@x",
    ] {
        let config = NatsConfig {
            urls: vec![url.to_owned()],
            prefix: "test".to_owned(),
            root_certificates: None,
        };
        let error = hub.connect(config).await.expect_err("nobody listens");
        let text = format!("{error:?}");
        println!("{text}");
        assert!(!text.contains("geheim"), "{text}");
    }
}
