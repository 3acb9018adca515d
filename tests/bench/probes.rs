//! Measures the rows of the table that are not plain rates of requests: times, latencies, memory, and the gain by a
//! second event loop.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rows::Sample;
use crate::servers::{Data, Server, get};
use crate::statistics::p99;
use crate::wrk::{Requests, Send};

/// Clients that measure a latency, each on a connection of its own.
const CLIENTS: usize = 64;
/// Requests of each of these clients.
const REQUESTS: u32 = 100;
/// Time between two requests of a client. Together the clients send 2,000 requests per second, which leaves the machine
/// mostly idle.
const PACE: Duration = Duration::from_millis(32);
/// Clients that send one request each, all at the same time.
const CROWD: usize = 1_000;

/// A view makes ten calls of 100 ms at the same time: duration of the request, and of the slowest call, in ms.
pub(crate) fn ten_calls(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    let since = Instant::now();
    let slowest: f64 = get(amphi.address, "/async/calls")?.parse()?;
    Ok(Sample::pair(ms(since.elapsed()), slowest / 1000.0))
}

/// A thousand requests at the same time, whose view sleeps for 100 ms: time until the last answer, in ms.
pub(crate) fn crowd(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let clients = connected(amphi.address, CROWD).await?;
        let since = Instant::now();
        all_ask(clients, "/async/sleep").await?;
        Ok(Sample::alone(ms(since.elapsed())))
    })
}

/// 99th percentile of the latency of the async hello view while another async view computes without end, and without
/// that load, in ms.
pub(crate) fn spinning(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let without = latency(amphi.address, "/async").await?;
        let spin = async {
            loop {
                let mut client = Client::connect(amphi.address).await?;
                // Amphi ends the view at its CPU limit.
                ensure!(
                    client.ask("/async/spin").await.is_err(),
                    "the view that spins has answered"
                );
            }
        };
        let with = beside(spin, latency(amphi.address, "/async")).await?;
        Ok(Sample::pair(with, without))
    })
}

/// 99th percentile of the latency of the async hello view while every sync worker waits, and without that load, in ms.
pub(crate) fn blocked(_: &Data, amphi: &Server) -> anyhow::Result<Sample> {
    block_on(async {
        let without = latency(amphi.address, "/async").await?;
        // By default there are 64 workers at most. The other 16 requests wait for one.
        let clients = connected(amphi.address, 80).await?;
        let measure = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            latency(amphi.address, "/async").await
        };
        let with = beside(all_wait(clients, "/sync/wait"), measure).await?;
        Ok(Sample::pair(with, without))
    })
}

/// Requests that the server could answer per second if it had its cores for itself: cores divided by the CPU time of a
/// request, for two event loops on two cores and for one on one core. The load generator runs on the same cores, so that a
/// plain rate would measure the load generator, too.
pub(crate) fn loops(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let rate = |loops: usize, cpus| {
        let server = data.pinned(loops, cpus)?;
        let requests = Requests {
            url: server.url("/async"),
            send: Send::Get,
            cookie: None,
            server: server.process(),
            folder: data.folder(),
        };
        let load = requests.measure(4)?;
        anyhow::Ok(loops as f64 * 1e6 / load.cpu_us)
    };
    Ok(Sample::pair(rate(2, "0,1")?, rate(1, "0")?))
}

/// Memory that the server needs for each request whose async view waits, in KB.
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

/// 99th percentile of the latency of the async hello view beside a load, and without it, in ms.
pub(crate) fn latency_beside(
    address: SocketAddr,
    load: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<Sample> {
    block_on(async {
        let without = latency(address, "/async").await?;
        let measure = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            latency(address, "/async").await
        };
        Ok(Sample::pair(beside(load, measure).await?, without))
    })
}

/// Time from the start of `amphi serve` to its first answer, in ms. The compiled components are in wasmtime's cache.
pub(crate) fn start(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    Ok(Sample::alone(ms(data.time_to_start()?)))
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Does `work` while `other` runs. It is an error when `other` ends first.
async fn beside<T>(
    other: impl Future<Output = anyhow::Result<()>>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        ended = other => Err(ended.err().context("the load beside the measurement ended")?),
    }
}

/// A client with one connection, which it keeps.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

async fn connected(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Client>> {
    try_join_all((0..count).map(|_| Client::connect(address))).await
}

/// Each client sends one request, all at the same time.
async fn all_ask(clients: Vec<Client>, path: &str) -> anyhow::Result<()> {
    let asking = clients
        .into_iter()
        .map(async |mut client| client.ask(path).await);
    try_join_all(asking).await.map(drop)
}

/// Each client sends one request, all at the same time, to a view that waits for longer than the measurement takes. An
/// answer is an error.
async fn all_wait(clients: Vec<Client>, path: &str) -> anyhow::Result<()> {
    all_ask(clients, path).await?;
    bail!("{path} has answered, although its view waits")
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

    /// Sends a request, and waits for an answer with status 200.
    async fn ask(&mut self, path: &str) -> anyhow::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.read.clear();
        // The body of every answer that is asked for here ends with `World!`.
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

/// 99th percentile of the latency of a path, in ms. Each client sends its requests at fixed times.
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
                // A request that is late because the client waited for its previous answer is measured from when it was
                // due. Any other request is measured from when it is sent, so that the timer's delay of up to 1 ms does
                // not count.
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
    p99(&mut took).map(ms).context("no request was answered")
}
