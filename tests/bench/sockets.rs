//! Web sockets: the clients that measure them, and the native server that Amphi is compared with, which has Amphi's own
//! codec.

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amphi::http::websocket::{Decoder, Encoded, Event, Handshake, Message};
use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::cpu;
use crate::probes::{latency_beside, ms};
use crate::rows::Sample;
use crate::servers::{Data, Server};
use crate::wrk::Load;

/// Sockets that echo.
const ECHOING: usize = 64;
/// Idle sockets, unless the limit on open files allows fewer.
const IDLE: usize = 20_000;
/// Sockets that are opened at the same time.
const OPENING: usize = 128;
/// Messages to all sockets, one after the other.
const BROADCASTS: u64 = 20;
/// How long a crowd may take for a message.
const PATIENCE: Duration = Duration::from_secs(60);

/// What clients say. The host's frames with it have a head of two bytes.
const MESSAGE: &[u8] = b"a small message!";
const MASK: [u8; 4] = [7, 11, 13, 17];
const FINAL_TEXT: u8 = 0x81;
const FINAL_PING: u8 = 0x89;
const FINAL_PONG: u8 = 0x8a;
const MASKED: u8 = 0x80;

/// A frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, MASKED | payload.len() as u8];
    frame.extend(MASK);
    frame.extend((payload.iter().zip(MASK.iter().cycle())).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Opens a web socket, from an address of this machine.
async fn open(
    address: SocketAddr,
    path: &str,
    from: Ipv4Addr,
    deflate: bool,
) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let mut stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    let extensions = match deflate {
        true => "sec-websocket-extensions: permessage-deflate\r\n",
        false => "",
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: bench\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{extensions}\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 101 "), "{path}: {head}");
    ensure!(
        deflate == head.contains("permessage-deflate"),
        "{path}: compression was not negotiated as asked: {head}"
    );
    Ok(stream)
}

/// Has a message echoed again and again on each of [`ECHOING`] sockets: for one second, so that caches and pools are
/// filled, and then for `seconds`, which are measured. `server`: the id of the process that answers.
pub(crate) fn echo(url: &str, server: u32, seconds: u32) -> anyhow::Result<Load> {
    let (address, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .context("not a URL of a server here")?;
    let (address, path) = (address.parse()?, format!("/{path}"));
    runtime()?.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..ECHOING {
            clients.push(open(address, &path, Ipv4Addr::LOCALHOST, false).await?);
        }
        let echoes = Arc::new(AtomicU64::new(0));
        let mut running = JoinSet::new();
        for client in clients {
            running.spawn(echo_on(client, Arc::clone(&echoes)));
        }
        let measure = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (since, before) = (Instant::now(), cpu::used_by(server)?);
            let first = echoes.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            let (took, used) = (since.elapsed(), cpu::used_by(server)? - before);
            let count = echoes.load(Ordering::Relaxed) - first;
            ensure!(count > 0, "{url}: nothing was echoed");
            Ok(Load {
                rate: count as f64 / took.as_secs_f64(),
                cpu_us: used.as_secs_f64() * 1e6 / count as f64,
            })
        };
        tokio::select! {
            load = measure => load,
            Some(ended) = running.join_next() => bail!("{url}: a socket ended: {:?}", ended?),
        }
    })
}

async fn echo_on(mut client: TcpStream, echoes: Arc<AtomicU64>) -> anyhow::Result<()> {
    let asked = frame(FINAL_TEXT, MESSAGE);
    let mut answer = [0; 2 + MESSAGE.len()];
    loop {
        client.write_all(&asked).await?;
        client.read_exact(&mut answer).await?;
        ensure!(
            answer[0] == FINAL_TEXT && answer[2..] == *MESSAGE,
            "another message: {answer:?}"
        );
        echoes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Many sockets that only read, and answer pings.
struct Crowd {
    messages: Arc<Messages>,
    clients: JoinSet<anyhow::Result<()>>,
}

/// Messages that a crowd has received.
#[derive(Default)]
struct Messages {
    count: AtomicU64,
    awaited: AtomicU64,
    arrived: Notify,
}

impl Crowd {
    /// Opens sockets. Each crowd comes from an address of its own: the ports of one that has left are not free at once.
    async fn open(
        address: SocketAddr,
        path: &str,
        count: usize,
        deflate: bool,
    ) -> anyhow::Result<Crowd> {
        static CROWDS: AtomicU64 = AtomicU64::new(0);
        let number = CROWDS.fetch_add(1, Ordering::Relaxed);
        let from = Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1);
        let mut crowd = Crowd {
            messages: Arc::default(),
            clients: JoinSet::new(),
        };
        let (mut opening, mut begun) = (FuturesUnordered::new(), 0);
        while crowd.clients.len() < count {
            while begun < count && opening.len() < OPENING {
                begun += 1;
                opening.push(open(address, path, from, deflate));
            }
            let next = tokio::time::timeout(PATIENCE, opening.next()).await;
            let opened = next.context("a socket does not open")?;
            let client = opened.context("all are opened")??;
            crowd
                .clients
                .spawn(listen(client, Arc::clone(&crowd.messages)));
        }
        Ok(crowd)
    }

    /// Has one of the crowd say something to all of them, and waits until all have heard it. Returns how long it took.
    async fn broadcast(&mut self, speaker: &mut TcpStream) -> anyhow::Result<Duration> {
        let messages = &self.messages;
        let all = messages.count.load(Ordering::Relaxed) + self.clients.len() as u64;
        messages.awaited.store(all, Ordering::Release);
        let since = Instant::now();
        speaker.write_all(&frame(FINAL_TEXT, MESSAGE)).await?;
        tokio::select! {
            () = messages.arrived.notified() => Ok(since.elapsed()),
            Some(ended) = self.clients.join_next() => bail!("a socket ended: {:?}", ended?),
            () = tokio::time::sleep(PATIENCE) => bail!(
                "{} of {all} messages arrived within {PATIENCE:?}", messages.count.load(Ordering::Relaxed)
            ),
        }
    }
}

/// What one client has read of a frame.
#[derive(Default)]
struct Reader {
    first: Option<u8>,
    length: Option<u8>,
}

impl Reader {
    /// Counts the frames that end in `bytes`: messages and pings.
    fn read(&mut self, mut bytes: &[u8]) -> (u64, u64) {
        let (mut messages, mut pings) = (0, 0);
        while let Some((&byte, rest)) = bytes.split_first() {
            let Some(first) = self.first else {
                (self.first, bytes) = (Some(byte), rest);
                continue;
            };
            let missing = match self.length {
                None => {
                    bytes = rest;
                    byte
                }
                Some(missing) => missing,
            };
            let there = bytes.len().min(missing.into());
            bytes = &bytes[there..];
            self.length = Some(missing - there as u8);
            if self.length == Some(0) {
                messages += u64::from(first == FINAL_TEXT);
                pings += u64::from(first == FINAL_PING);
                *self = Reader::default();
            }
        }
        (messages, pings)
    }
}

thread_local! {
    /// Shared by the sockets of a thread, so that an idle one has no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

fn try_read(stream: &TcpStream, then: impl FnOnce(&mut [u8])) -> io::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
        Ok(read) => {
            then(&mut buffer[..read]);
            Ok(read)
        }
        Err(error) => Err(error),
    })
}

async fn listen(mut client: TcpStream, messages: Arc<Messages>) -> anyhow::Result<()> {
    let mut reader = Reader::default();
    loop {
        client.readable().await?;
        let mut counted = (0, 0);
        match try_read(&client, |bytes| counted = reader.read(bytes)) {
            Ok(0) => bail!("the server closed it"),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            _ => {}
        }
        for _ in 0..counted.1 {
            client.write_all(&frame(FINAL_PONG, b"")).await?;
        }
        let before = messages.count.fetch_add(counted.0, Ordering::AcqRel);
        if counted.0 > 0 && before + counted.0 == messages.awaited.load(Ordering::Acquire) {
            messages.arrived.notify_one();
        }
    }
}

/// [`IDLE`], or as many sockets as the limit on open files allows: Amphi keeps a quarter of the files for bodies.
fn idle() -> anyhow::Result<usize> {
    let limit = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, raised)?;
    let files = limit.unwrap_or(u64::MAX).saturating_sub(1_000);
    let count = usize::try_from(files / 4 * 3)?.min(IDLE);
    if count < IDLE {
        eprintln!(
            "{count} sockets instead of {IDLE}: a process may not open more files (`ulimit -Hn`)"
        );
    }
    Ok(count)
}

/// Deliveries per second of a message to all sockets, until the last has it: Amphi and the native server.
fn broadcast(data: &Data, path: &str) -> anyhow::Result<Sample> {
    let measure = |server: Server, path: &str| {
        runtime()?.block_on(async {
            let mut crowd = Crowd::open(server.address, path, idle()?, false).await?;
            let mut speaker = open(server.address, path, Ipv4Addr::LOCALHOST, false).await?;
            crowd.broadcast(&mut speaker).await?;
            let before = cpu::used_by(server.process())?;
            let mut took = Duration::ZERO;
            for _ in 0..BROADCASTS {
                took += crowd.broadcast(&mut speaker).await?;
            }
            let used = cpu::used_by(server.process())? - before;
            let deliveries = (crowd.clients.len() as u64 * BROADCASTS) as f64;
            eprintln!("{path}: {:.1} ms to the last", ms(took) / BROADCASTS as f64);
            anyhow::Ok(Load {
                rate: deliveries / took.as_secs_f64(),
                cpu_us: used.as_secs_f64() * 1e6 / deliveries,
            })
        })
    };
    let native = measure(data.native()?, "/socket/broadcast")?;
    Ok(Sample::pair(measure(data.sockets()?, path)?, native))
}

pub(crate) fn broadcast_sync(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    broadcast(data, "/sync/broadcast")
}

pub(crate) fn broadcast_async(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    broadcast(data, "/async/broadcast")
}

/// Memory of a socket on which nothing happens, in KB. The number of threads must not depend on the sockets.
fn memory(data: &Data, path: &str, deflate: bool) -> anyhow::Result<Sample> {
    let server = data.sockets()?;
    runtime()?.block_on(async {
        // Allocators and pools have what they need for opening many at once.
        let warm = Crowd::open(server.address, path, 1_000, deflate).await?;
        drop(warm);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, threads) = (server.memory()?, server.threads()?);
        let crowd = Crowd::open(server.address, path, idle()?, deflate).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let after = server.memory()?;
        let now = server.threads()?;
        ensure!(
            now <= threads,
            "{now} threads with the sockets, {threads} before"
        );
        let each = after.saturating_sub(before) as f64 / crowd.clients.len() as f64;
        Ok(Sample::alone(each / 1024.0))
    })
}

pub(crate) fn memory_sync(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    memory(data, "/sync/broadcast", false)
}

pub(crate) fn memory_async(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    memory(data, "/async/broadcast", false)
}

pub(crate) fn memory_deflate(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    memory(data, "/sync/broadcast", true)
}

/// 99th percentile of the latency of the async hello view while a socket of a view of the same mode writes as fast as
/// the host reads, and without that load, in ms.
pub(crate) fn flood(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let server = data.sockets()?;
    let address = server.address;
    // A thread of its own, so that the other client does not wait for what this one does.
    let (end, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let flooding = runtime().map_err(anyhow::Error::from);
        // Nobody waits for it when the measurement is over.
        let _ = end.send(flooding.and_then(|runtime| runtime.block_on(flooding_socket(address))));
    });
    latency_beside(address, async { ended.await? })
}

/// Writes as fast as the host reads, until the host ends.
async fn flooding_socket(address: SocketAddr) -> anyhow::Result<()> {
    let client = open(address, "/async/echo-socket", Ipv4Addr::LOCALHOST, false).await?;
    let (mut read, mut write) = client.into_split();
    let many = frame(FINAL_TEXT, MESSAGE).repeat(100);
    let writing = async {
        loop {
            write.write_all(&many).await?;
        }
    };
    let mut buffer = vec![0; 64 << 10];
    let reading = async {
        while read.read(&mut buffer).await? > 0 {}
        anyhow::Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// The members of the native server's only group: what waits for each client.
#[derive(Default)]
pub(crate) struct Group(Mutex<Vec<UnboundedSender<Bytes>>>);

/// Opens a socket of the native server, which echoes messages, or sends them to the group.
pub(crate) fn serve(
    mut request: Request<Incoming>,
    group: Arc<Group>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade.context("no upgrade")?;
    let (parts, _) = request.into_parts();
    let handshake =
        Handshake::check(&parts, false).map_err(|refusal| anyhow::anyhow!(refusal.reason))?;
    let in_group = parts.uri.path().ends_with("broadcast").then_some(group);
    tokio::spawn(async move {
        let upgraded = upgrade.await?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>();
        let parts = parts.ok().context("another connection")?;
        serve_socket(parts.io.into_inner(), in_group).await
    });
    Ok(handshake.response(None).map(|()| Full::default()))
}

async fn serve_socket(mut stream: TcpStream, group: Option<Arc<Group>>) -> anyhow::Result<()> {
    let (sender, mut frames) = unbounded_channel();
    if let Some(group) = &group {
        let mut members = group.0.lock().unwrap_or_else(PoisonError::into_inner);
        members.push(sender.clone());
    }
    let mut decoder = Decoder::new(1 << 16, false);
    let mut out = BytesMut::new();
    loop {
        tokio::select! {
            Some(frame) = frames.recv() => stream.write_all(&frame).await?,
            ready = stream.readable() => {
                ready?;
                let read = try_read(&stream, |bytes| {
                    let mut input = bytes;
                    while let Ok(Some(event)) = decoder.next(&mut input) {
                        let Event::Message(message) = event else { continue };
                        respond(&message, group.as_deref(), &mut out);
                    }
                });
                match read {
                    Ok(0) => return Ok(()),
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                    _ => {}
                }
                if !out.is_empty() {
                    stream.write_all(&out.split()).await?;
                }
            }
        }
    }
}

fn respond(message: &Message, group: Option<&Group>, out: &mut BytesMut) {
    let encoded = Encoded::new(message);
    let Some(group) = group else {
        return out.extend_from_slice(encoded.frame(false));
    };
    let mut members = group.0.lock().unwrap_or_else(PoisonError::into_inner);
    members.retain(|member| member.send(encoded.frame(false).clone()).is_ok());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_wherever_they_are_cut() {
        let bytes = [b"\x81\x02hi", &b"\x89\x00\x81\x00\x81\x01x"[..]].concat();
        for size in 1..=bytes.len() {
            let mut reader = Reader::default();
            let counted = bytes.chunks(size).map(|chunk| reader.read(chunk));
            let sum = counted.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
            assert_eq!(sum, (3, 1), "in pieces of {size}");
        }
    }
}
