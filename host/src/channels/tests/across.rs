//! Several hubs with a nats-server of their own.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::sleep;

use super::super::remote::Remote;
use super::super::wire::Kind;
use super::super::*;
use super::{Seen, attach, bytes, number, send};

/// Installs Debian's package, if the program is not there.
static INSTALLED: LazyLock<()> = LazyLock::new(|| {
    let runs = |command: &mut Command| {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    if runs(Command::new("nats-server").arg("--version")) {
        return;
    }
    let script = "export DEBIAN_FRONTEND=noninteractive; sudo=; [ $(id -u) = 0 ] || sudo='sudo -n'; $sudo apt-get update && $sudo apt-get install --yes --no-install-recommends nats-server";
    assert!(
        runs(Command::new("sh").args(["-c", script])),
        "nats-server is not there, and could not be installed: apt-get install nats-server"
    );
});

/// A nats-server that ends with the test.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn start() -> Server {
        let free = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        Server::start_at(port, &[])
    }

    pub(super) fn start_at(port: u16, arguments: &[&str]) -> Server {
        LazyLock::force(&INSTALLED);
        let process = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(arguments)
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

    pub(super) fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    pub(super) async fn hub(&self, limits: Limits) -> Arc<Hub> {
        let hub = Hub::new(limits, vec![(Pattern::new("kept.*"), 10)]);
        let connected = hub.connect(config("", self.port)).await;
        connected.expect("the server is there");
        hub
    }
}

/// `user`: empty, or with `@` at its end.
fn config(user: &str, port: u16) -> NatsConfig {
    NatsConfig {
        urls: vec![format!("nats://{user}127.0.0.1:{port}")],
        prefix: "test".to_owned(),
        root_certificates: None,
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
pub(super) async fn until(
    what: &str,
    seconds: u64,
    mut holds: impl AsyncFnMut() -> bool,
) -> Duration {
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
pub(super) async fn until_members(hub: &Hub, group: &str, count: u64) -> Duration {
    until("members", 15, async || {
        hub.members(group).await.count == count
    })
    .await
}

pub(super) fn member(hub: &Arc<Hub>, group: &str, user: Option<&str>) -> (Arc<Seen>, Attachment) {
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
    // Until then its members are known, or it does not answer when asked for them.
    let forgotten = until("no hosts", 15, async || get(&one.counters().hosts) == 0).await;
    println!("a killed host was forgotten after {forgotten:?}");
    assert!(forgotten < Duration::from_secs(10));
    until_members(&one, "room.1", 1).await;
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

/// A host that is asked for a group without a record may make the record before it has answered. What it announces then
/// is newer than the answer, whichever arrives first: otherwise the other host would ignore its members for good.
#[tokio::test]
async fn an_answer_about_no_record_is_older_than_the_record() {
    let server = Server::start();
    let hub = server.hub(Limits::default()).await;
    let (clock, none) = hub.look_up("room.1");
    assert!(none.is_none());
    let (_, _here) = member(&hub, "room.1", None);
    let group = hub.look_up("room.1").1.expect("it has a member");
    let active = async || {
        let state = group.state.lock();
        state
            .link
            .as_ref()
            .is_some_and(|link| link.active.is_some())
    };
    until("active", 5, active).await;
    let announced = || hub.members_here(Some(&group.state.lock()), clock);
    let head = hub.head(Kind::Answer, (0, 0));
    for answer_comes_first in [true, false] {
        let mut known = Remote::default();
        if answer_comes_first {
            known.answered(head, hub.members_here(None, clock), 10, false);
        }
        known.announced(announced(), 10);
        if !answer_comes_first {
            known.answered(head, hub.members_here(None, clock), 10, false);
        }
        assert!(known.synced && known.count == 1, "{known:?}");
    }
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

#[tokio::test]
async fn a_user_and_a_token_are_taken_from_the_url() {
    let mut server = Server::start();
    server.kill();
    let port = server.port;
    let server = Server::start_at(port, &["--user", "ann", "--pass", "ge@heim"]);
    let hub = Hub::new(Limits::default(), Vec::new());
    let wrong = hub.connect(config("ann:falsch@", port)).await;
    let wrong = wrong.expect_err("the password is wrong").to_string();
    assert!(!wrong.contains("falsch"), "{wrong}");
    hub.connect(config("ann:ge%40heim@", port))
        .await
        .expect("the password is right");
    drop(server);
    let _server = Server::start_at(port, &["--auth", "geheim"]);
    let hub = Hub::new(Limits::default(), Vec::new());
    hub.connect(config("geheim@", port))
        .await
        .expect("the token is right");
}

/// Hosts that come, go, join and leave while another one sends miss nothing that was promised to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_begins_in_the_middle_has_no_gap() {
    let server = Server::start();
    let (one, two) = (
        server.hub(Limits::default()).await,
        server.hub(Limits::default()).await,
    );
    let sending = Arc::clone(&one);
    let load = tokio::spawn(async move {
        for step in 0..6_000 {
            send(&sending, "room.1", step);
            sleep(Duration::from_millis(1)).await;
        }
    });
    let mut others = Vec::new();
    for round in 0..4 {
        let (seen, here) = member(&two, "room.1", None);
        sleep(Duration::from_millis(300)).await;
        drop(here);
        let numbers = seen.numbers();
        assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]));
        assert!(numbers.len() > 50, "{}", numbers.len());
        sleep(Duration::from_millis(500 * round)).await;
        let three = server.hub(Limits::default()).await;
        let member = member(&three, "room.1", None);
        others.push((three, member));
    }
    load.await.expect("the load does not panic");
    sleep(Duration::from_secs(4)).await;
    for (hub, (seen, _)) in &others {
        assert_eq!(get(&hub.counters().gaps), 0);
        let numbers = seen.numbers();
        assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]));
        assert_eq!(numbers.last(), Some(&5_999));
        assert_eq!(hub.members("room.1").await.count, 4);
    }
    assert_eq!(get(&two.counters().gaps), 0);
}
