//! Rows of the table that are more than a rate: times, latencies, memory.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rows::Sample;
use crate::servers::{Data, Server, get};
use crate::wrk;

/// Connections of the clients here, and how many requests each makes for a latency.
const CLIENTS: usize = 64;
const REQUESTS: u32 = 100;
/// Each client asks once in this time: 2,000 requests a second, so that the machine is not busy with them alone.
const PACE: Duration = Duration::from_millis(32);
const CROWD: usize = 1_000;

/// Ten calls of 100 ms at once: the whole, and the slowest of them, in ms.
pub(crate) fn ten_calls(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    let since = Instant::now();
    let slowest: f64 = get(amphi.address, "/async/calls")?.parse()?;
    Ok(Sample::pair(ms(since.elapsed()), slowest / 1000.0))
}

/// A thousand requests at once, each of which sleeps for 100 ms: until the last answer, in ms.
pub(crate) fn crowd(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let clients = connected(amphi.address, CROWD).await?;
        let since = Instant::now();
        all_ask(clients, "/async/sleep").await?;
        Ok(Sample::alone(ms(since.elapsed())))
    })
}

/// The 99th percentile of hello's latency while another view computes, and without, in ms.
pub(crate) fn spinning(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let without = latency(amphi.address, "/async").await?;
        let spin = async {
            loop {
                let mut client = Client::connect(amphi.address).await?;
                // It is ended at its CPU limit.
                ensure!(client.ask("/async/spin").await.is_err(), "it does not spin");
            }
        };
        let with = beside(spin, latency(amphi.address, "/async")).await?;
        Ok(Sample::pair(with, without))
    })
}

/// The same while every sync worker waits.
pub(crate) fn blocked(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let without = latency(amphi.address, "/async").await?;
        // As many as there are workers by default, and some who wait for one.
        let clients = connected(amphi.address, 80).await?;
        let measure = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            latency(amphi.address, "/async").await
        };
        let with = beside(all_wait(clients, "/sync/wait"), measure).await?;
        Ok(Sample::pair(with, without))
    })
}

/// Answers for each second of the server's CPU time, times the cores it may use: two loops on two cores, and one on
/// one. The client runs on the same cores, and what it takes of them is left out this way.
pub(crate) fn loops(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let rate = |loops: usize, cpus| {
        let server = data.pinned(loops, cpus)?;
        let url = server.url("/async");
        wrk::run(&url, wrk::Send::Get, 1, data.folder())?;
        let (since, cpu) = (Instant::now(), server.cpu()?);
        let rate = wrk::run(&url, wrk::Send::Get, 4, data.folder())?;
        let answers = rate * since.elapsed().as_secs_f64();
        let used = server.cpu()?.saturating_sub(cpu);
        anyhow::Ok(answers / used.as_secs_f64() * loops as f64)
    };
    Ok(Sample::pair(rate(2, "0,1")?, rate(1, "0")?))
}

/// Memory that a request takes while its view waits, in KB.
pub(crate) fn memory(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let server = data.amphi()?;
    block_on(async {
        let clients = connected(server.address, CROWD).await?;
        get(server.address, "/async")?;
        let before = server.memory()?;
        let measure = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            server.memory()
        };
        let after = beside(all_wait(clients, "/async/wait"), measure).await?;
        let each = after.saturating_sub(before) as f64 / CROWD as f64;
        Ok(Sample::alone(each / 1024.0))
    })
}

/// From the start of `amphi serve` to its first answer, in ms. What it compiles is in the cache.
pub(crate) fn start(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    Ok(Sample::alone(ms(data.time_to_start()?)))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// The outcome of `work`, while something else goes on that never ends well.
async fn beside<T>(
    other: impl Future<Output = anyhow::Result<()>>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        failed = other => Err(failed.err().context("it ended")?),
    }
}

/// A connection that is kept.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

async fn connected(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Client>> {
    try_join_all((0..count).map(|_| Client::connect(address))).await
}

/// Each asks once, all at the same time.
async fn all_ask(clients: Vec<Client>, path: &str) -> anyhow::Result<()> {
    let asking = clients
        .into_iter()
        .map(async |mut client| client.ask(path).await);
    try_join_all(asking).await.map(drop)
}

/// The same of a view that does not answer in time.
async fn all_wait(clients: Vec<Client>, path: &str) -> anyhow::Result<()> {
    all_ask(clients, path).await?;
    bail!("{path} has answered, and it should wait")
}

impl Client {
    async fn connect(address: SocketAddr) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Client {
            stream,
            read: Vec::new(),
        })
    }

    /// Asks, and waits for a success.
    async fn ask(&mut self, path: &str) -> anyhow::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.read.clear();
        // All that is asked for here has a body, which ends with this.
        while !self.read.ends_with(b"World!") {
            let read = self.stream.read_buf(&mut self.read).await?;
            ensure!(read > 0, "the connection was closed");
            let head = self.read.get(..12).unwrap_or(b"HTTP/1.1 200");
            ensure!(
                head == b"HTTP/1.1 200",
                "{}",
                String::from_utf8_lossy(&self.read)
            );
        }
        Ok(())
    }
}

/// The 99th percentile in ms.
async fn latency(address: SocketAddr, path: &str) -> anyhow::Result<f64> {
    let clients = connected(address, CLIENTS).await?;
    let start = tokio::time::Instant::now() + PACE;
    let asking = clients
        .into_iter()
        .enumerate()
        .map(async |(number, mut client)| {
            let first = start + PACE.mul_f64(number as f64 / CLIENTS as f64);
            let mut took = Vec::new();
            for turn in 0..REQUESTS {
                let due = first + PACE * turn;
                let late = tokio::time::Instant::now() > due;
                tokio::time::sleep_until(due).await;
                // The timer's own millisecond does not count; a wait for the answer before does.
                let since = if late {
                    due
                } else {
                    tokio::time::Instant::now()
                };
                client.ask(path).await?;
                took.push(since.elapsed());
            }
            anyhow::Ok(took)
        });
    let mut took = try_join_all(asking).await?.concat();
    took.sort_unstable();
    Ok(ms(took[took.len() * 99 / 100]))
}
