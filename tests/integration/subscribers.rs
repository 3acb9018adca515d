//! Ten thousand clients of event streams and polls at one time, which come and go while ten thousand messages are sent.
//!
//! Each message goes to one of 500 groups, of ten streams and ten polls each: ten thousand messages to all clients would be
//! a hundred million deliveries.

use std::time::Duration;

use fastrand::Rng;
use futures::future::join_all;
use futures::{StreamExt as _, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::channels::{Event, Stream, poll, tells};
use crate::harness::socket::app;
use crate::harness::{Mode, Reply, SOON, Server};

/// How many clients of each kind there are, if the process may open so many files.
const CLIENTS: usize = 5_000;
/// How many of them share a group.
const IN_A_GROUP: usize = 10;
/// How many messages a group gets, and how many of them at once.
const MESSAGES: usize = 20;
const AT_ONCE: usize = 5;
/// How many requests are sent at the same time.
const REQUESTS: usize = 100;

/// One client.
#[derive(Clone, Copy)]
struct Client {
    number: usize,
    mode: Mode,
    group: usize,
}

impl Client {
    /// Half of the clients of each group are answered by sync views.
    fn new(number: usize) -> Client {
        Client {
            number,
            mode: [Mode::Sync, Mode::Async][number % 2],
            group: number / IN_A_GROUP,
        }
    }

    fn events(&self) -> String {
        format!("/{}/events/room.g{}", self.mode, self.group)
    }

    fn poll(&self, after: &str) -> String {
        let (mode, group) = (self.mode, self.group);
        format!("/{mode}/poll/room.g{group}?ms=60000&after={after}")
    }

    /// Reads all messages of the group, and comes back after each tenth or so to where it was.
    async fn listen(self, server: &Server, mut stream: Stream) -> Stream {
        let mut random = Rng::with_seed(self.number as u64);
        let mut heard = Vec::new();
        while heard.len() < MESSAGES {
            if random.u8(..10) == 0 {
                let last = stream.last.clone();
                drop(stream);
                sleep(Duration::from_millis(random.u64(..200))).await;
                stream = Stream::open(&server.client, server, &self.events(), Some(&last)).await;
            }
            let event = timeout(8 * SOON, stream.next()).await;
            let event = event.unwrap_or_else(|_| panic!("no more than {heard:?}"));
            let Event { name, data } = event.expect("the stream goes on");
            assert_eq!(name, "", "the history has all: {data} after {heard:?}");
            heard.push(data);
        }
        assert_eq!(heard, messages(), "client {}", self.number);
        stream
    }

    /// As [`Client::listen`], by polls. Some of them are given up, and asked again.
    async fn ask(self, server: &Server, begin: &str) {
        let mut random = Rng::with_seed(self.number as u64);
        let (mut heard, mut cursor) = (Vec::new(), begin.to_owned());
        while heard.len() < MESSAGES {
            let path = self.poll(&cursor);
            let patience = match random.u8(..10) {
                0 => Duration::from_millis(random.u64(..2_000)),
                _ => 8 * SOON,
            };
            if let Ok(mut polled) = timeout(patience, poll(&server.client, server, &path)).await {
                assert!(!polled.gap, "the history has all that follows {heard:?}");
                heard.append(&mut polled.messages);
                cursor = polled.cursor;
            }
        }
        assert_eq!(heard, messages(), "client {}", self.number);
    }
}

/// What each group gets.
fn messages() -> Vec<String> {
    let bursts = 0..MESSAGES / AT_ONCE;
    bursts.flat_map(burst).collect()
}

fn burst(number: usize) -> impl Iterator<Item = String> {
    (0..AT_ONCE).map(move |message| format!("{number} {message}"))
}

/// Has a view send a burst to a group.
async fn send(server: &Server, number: usize, group: usize) {
    let mode = [Mode::Sync, Mode::Async][(number + group) % 2];
    let post = json!({ "text": number.to_string(), "count": AT_ONCE }).to_string();
    let sent = server.request("POST", &format!("/{mode}/post/room.g{group}"));
    let sent = Reply::of(sent.header("content-type", "application/json").body(post)).await;
    assert!(sent.status < 300, "{sent:?}");
}

/// The number of clients of each kind for which this process and the server may open files.
fn clients() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let hard = maximum.or(current);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: hard,
            maximum,
        },
    );
    let limit = if raised.is_ok() { hard } else { current };
    // The server keeps a quarter for other files, and so does this process.
    let room = limit.unwrap_or(u64::MAX).saturating_sub(1_000) / 4 * 3 / 2;
    let room = usize::try_from(room).unwrap_or(CLIENTS) / IN_A_GROUP * IN_A_GROUP;
    room.min(CLIENTS)
}

/// Nothing within the history is missed or repeated, and who comes back from beyond it is told so. The clients hold a
/// connection each and nothing else, while two sync workers and one event loop answer all of them.
#[tokio::test]
async fn r18_r22_ten_thousand_subscribers_miss_nothing_in_silence() {
    let clients = clients();
    let limits = format!(
        r#"
        [server]
        connections_max = 12000
        [channels]
        history = {{ "room.*" = {MESSAGES} }}
        subscribers_max = 20000
        [sync_views]
        workers = 2
        workers_max = 2
        queue_timeout_ms = 30000
        [async_views]
        loops = 1
        queue_timeout_ms = 30000
        "#
    );
    let server = app(&limits).serve_alone().await;
    let begin = poll(&server.client, &server, "/sync/poll/room.g0?ms=0")
        .await
        .cursor;
    let everyone = || (0..clients).map(Client::new);
    let streams = stream::iter(everyone().map(async |client| {
        let path = client.events();
        (
            client,
            Stream::open(&server.client, &server, &path, Some(&begin)).await,
        )
    }));
    let streams: Vec<_> = streams.buffered(REQUESTS).collect().await;
    let listening = streams
        .into_iter()
        .map(|(client, stream)| client.listen(&server, stream));
    let asking = everyone().map(|client| client.ask(&server, &begin));
    let sending = async {
        // Those that have given up a poll are about to ask again.
        let most_wait = async || {
            let metrics = server.metrics().await;
            let waiting = |name| metrics.get(name) as usize > clients / 10 * 8;
            waiting("amphi_event_streams") && waiting("amphi_polls")
        };
        while !most_wait().await {
            sleep(Duration::from_millis(50)).await;
        }
        let mut random = Rng::with_seed(1);
        for number in 0..MESSAGES / AT_ONCE {
            let mut groups: Vec<usize> = (0..clients / IN_A_GROUP).collect();
            random.shuffle(&mut groups);
            for group in groups {
                send(&server, number, group).await;
            }
        }
    };
    let (streams, _, ()) = tokio::join!(join_all(listening), join_all(asking), sending);
    tells(&server, "subscribers", clients as u64).await;
    drop(streams);
    // More than the history keeps.
    let lost: Vec<String> = (1..=MESSAGES / AT_ONCE).flat_map(burst).collect();
    for group in 0..20.min(clients / IN_A_GROUP) {
        for number in 0..=MESSAGES / AT_ONCE {
            send(&server, number, group).await;
        }
        let client = Client::new(group * IN_A_GROUP + group % 2);
        let mut stream =
            Stream::open(&server.client, &server, &client.events(), Some(&begin)).await;
        let gap = stream.next().await.expect("it goes on");
        assert_eq!((&*gap.name, &*gap.data), ("gap", "unknown"));
        assert_eq!(stream.messages(MESSAGES).await, lost);
        let polled = poll(&server.client, &server, &client.poll(&begin)).await;
        assert!(polled.gap && polled.messages.is_empty());
        let polled = poll(&server.client, &server, &client.poll(&polled.cursor)).await;
        assert_eq!((polled.gap, polled.messages), (false, lost.clone()));
    }
    server.assert_baseline().await;
    tells(&server, "subscribers", 0).await;
}
