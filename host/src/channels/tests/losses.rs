//! What several hosts lose, and that each lost message is counted.

use std::time::Duration;

use tokio::time::sleep;

use super::super::*;
use super::across::{Server, member, until, until_members};
use super::send;

/// The queue to other hosts is too small: what it does not take is counted by the sender and noticed by the other host.
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
    let mut server = Server::start_at(server.port, &[]);
    let restored = until_members(&one, "room.1", 3).await;
    sleep(Duration::from_secs(1)).await;
    server.kill();
    let server = Server::start_at(server.port, &[]);
    sleep(Duration::from_secs(3)).await;
    stop.store(1, Ordering::Relaxed);
    let (sent, longest) = load.await.expect("the load does not panic");
    let until_counted = until("all counted", 15, async || {
        get(&two.counters().received) + get(&two.counters().gaps) == sent
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

/// One of two hosts loses its connection again and again: each message has arrived or is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_under_load() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let (_, _here) = member(&one, "room.1", None);
    let (_, _there) = member(&two, "room.1", None);
    until_members(&one, "room.1", 2).await;
    until_members(&two, "room.1", 2).await;
    let hubs = [Arc::clone(&one), Arc::clone(&two)];
    let breaking = tokio::spawn(async move {
        for turn in 0..10 {
            sleep(Duration::from_millis(300)).await;
            let network = hubs[turn % 2].network.get().expect("connected");
            network
                .client
                .force_reconnect()
                .await
                .expect("the client runs");
        }
    });
    for step in 0..20_000 {
        send(&one, "room.1", step);
        if step % 5 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    breaking.await.expect("the task does not panic");
    let counters = two.counters();
    until("all counted", 15, async || {
        get(&counters.received) + get(&counters.gaps) == 20_000
    })
    .await;
    println!(
        "breaking: {} received, {} missing, {} unsure",
        get(&counters.received),
        get(&counters.gaps),
        get(&one.counters().unsure)
    );
    sleep(Duration::from_secs(4)).await;
    assert_eq!(get(&counters.received) + get(&counters.gaps), 20_000);
    assert_eq!(get(&one.counters().reconnects), 5);
    until_members(&one, "room.1", 2).await;
    until_members(&two, "room.1", 2).await;
}
