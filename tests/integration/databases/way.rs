//! A slow connection to the database server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use amphi::database::{Access, ErrorKind, Face, Value};
use amphi::scope::transaction::{Fate, Transaction};
use amphi::threads::deadline::{Deadline, Ended};
use amphi::view::Options;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::pin_on;
use super::{Fixture, atomic, query, show};
use crate::harness::eventually;
use crate::harness::postgres::{Database, Postgres};

/// The code in a connection's first message that asks to cancel a statement on another connection.
const CANCEL: [u8; 4] = 80_877_102_u32.to_be_bytes();

/// A proxy between host and server that can hold the server's answers back.
struct Way {
    on_server: Database,
    port: u16,
    /// Whether the server's answers are held back.
    holds: watch::Sender<bool>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    cancels: AtomicUsize,
}

impl Way {
    async fn new() -> Way {
        let on_server = Postgres::shared().database().await;
        let url: tokio_postgres::Config = on_server.url().parse().expect("a URL");
        let server = url.get_ports()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let (holds, held) = watch::channel(false);
        let counts = Arc::<Counts>::default();
        let counting = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, held.clone(), Arc::clone(&counting)));
            }
        });
        Way {
            on_server,
            port,
            holds,
            counts,
        }
    }

    /// A database that the host reaches through this proxy.
    async fn fixture(&self, connections: usize) -> Fixture {
        let server: tokio_postgres::Config = self.on_server.url().parse().expect("a URL");
        let (user, name) = (server.get_user(), server.get_dbname());
        let url = format!(
            "postgres://{}@127.0.0.1:{}/{}?sslmode=disable",
            user.expect("it has one"),
            self.port,
            name.expect("it has one")
        );
        Fixture::on(&url, connections).await
    }

    fn connections(&self) -> usize {
        self.counts.connections.load(SeqCst)
    }

    fn cancels(&self) -> usize {
        self.counts.cancels.load(SeqCst)
    }
}

async fn pass(
    client: TcpStream,
    server: u16,
    mut held: watch::Receiver<bool>,
    counts: Arc<Counts>,
) {
    let mut first = [0; 8];
    while client
        .peek(&mut first)
        .await
        .is_ok_and(|read| (1..8).contains(&read))
    {}
    match first[4..] == CANCEL {
        true => counts.cancels.fetch_add(1, SeqCst),
        false => counts.connections.fetch_add(1, SeqCst),
    };
    let server = TcpStream::connect(("127.0.0.1", server)).await;
    let (mut from_server, mut to_server) = server.expect("it listens").into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let there = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    };
    let back = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            let _ = held.wait_for(|holds| !holds).await;
            if to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::join!(there, back);
}

/// A cancellation must not hit the `begin`: otherwise the statement after the `begin` would run outside the
/// transaction, and commit.
#[tokio::test]
async fn r9_nothing_is_cancelled_before_its_transaction_has_begun() {
    let way = Way::new().await;
    let fixture = way.fixture(1).await;
    fixture.table("create table t (a integer)", &[]).await;
    let sql = "insert into t select 1 from pg_sleep($1)";
    fixture.table(sql, &[Value::Integer(0)]).await;
    let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(30)));
    let transaction = atomic();
    let turn = transaction
        .turn((&fixture.database, &deadline), std::future::ready(Ok(())))
        .await;
    let turn = turn.expect("it is free").expect("it is atomic");
    way.holds.send_replace(true);
    let inserting = turn.run(Face::Async, query(sql, &[Value::Integer(60)]));
    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        deadline.cancel(Ended::Disconnected);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let cancels = way.cancels();
        way.holds.send_replace(false);
        cancels
    };
    let (inserted, cancels) = tokio::join!(inserting, meanwhile);
    assert_eq!(cancels, 0, "sent before the transaction has begun");
    assert_eq!(
        inserted.expect_err("it is cancelled").kind,
        ErrorKind::Aborted
    );
    assert_eq!(way.cancels(), 1);
    let fate = transaction.transaction().finish(Face::Async, false).await;
    assert_eq!(fate.expect("it ends"), Fate::RolledBack);
    let count = fixture.one("select count(*) from t", &[]).await;
    assert_eq!(show(&count), "integer 1");
}

/// A connection that is being opened counts towards `connections`, even if the request that waited for it has given up.
#[tokio::test]
async fn r13_a_connection_that_is_being_made_has_its_place() {
    let way = Way::new().await;
    let fixture = way.fixture(1).await;
    let transaction = Transaction::new(Options::default()).first_member();
    let pin = pin_on(&transaction, fixture.on_it())
        .await
        .expect("it is free");
    transaction.transaction().unpin(pin);
    eventually("the pinned connection is closed", async || {
        match way.on_server.sessions().await {
            0 => Ok(()),
            sessions => Err(sessions),
        }
    })
    .await;
    assert_eq!(way.connections(), 1);
    way.holds.send_replace(true);
    for _ in 0..3 {
        let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_millis(200)));
        let select = query("select 1", &[]);
        let ran = fixture
            .database
            .run(Face::Async, &deadline, Access::default(), select);
        let error = ran.await.expect_err("the server does not answer");
        assert_eq!(error.kind, ErrorKind::Aborted, "{}", error.message);
    }
    assert_eq!(way.connections(), 2);
    way.holds.send_replace(false);
    // The connection is used as soon as it is open.
    assert_eq!(show(&fixture.one("select 1", &[]).await), "integer 1");
    assert_eq!(way.connections(), 2);
}
