//! Bodies that stream: how fast, and with how much memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::probes::{latency_beside, ms};
use crate::rows::Sample;
use crate::servers::{Data, Server, get};

/// Bytes of a body that is measured.
const BYTES: u64 = 1 << 30;
/// The size of a client's pieces.
const PIECE: usize = 64 << 10;
/// How a chunked body ends.
const END: &[u8] = b"0\r\n\r\n";
/// How often the memory of a server is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Where a server has its stream down, and takes one up.
#[derive(Clone, Copy)]
struct Paths {
    down: &'static str,
    up: &'static str,
}

const NATIVE: Paths = Paths {
    down: "/stream/down",
    up: "/stream/up",
};
const SYNC: Paths = Paths {
    down: "/sync/big?mb=1024",
    up: "/sync/upload",
};
const ASYNC: Paths = Paths {
    down: "/async/big?mb=1024",
    up: "/async/upload",
};
const WASI_0_2: Paths = Paths {
    down: "/p2/big?mb=1024",
    up: "/p2/upload",
};
const WASI_0_3: Paths = Paths {
    down: "/p3/big?mb=1024",
    up: "/p3/upload",
};

/// Receives a body, and passes its pieces on. Returns the number of bytes, with the head.
fn receive(address: SocketAddr, path: &str, mut each: impl FnMut(&[u8])) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
    )?;
    let (mut buffer, mut received, mut last) = (vec![0; 4 * PIECE], 0, Vec::new());
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        let piece = &buffer[..read];
        each(piece);
        received += read as u64;
        last.extend_from_slice(&piece[read.saturating_sub(END.len())..]);
        last.drain(..last.len().saturating_sub(END.len()));
    }
    ensure!(last == END, "{path}: the body is not whole");
    Ok(received)
}

/// Receives a body, at least [`BYTES`] of it. Returns MB per second.
fn down(address: SocketAddr, path: &str) -> anyhow::Result<f64> {
    let since = Instant::now();
    let received = receive(address, path, |_| {})?;
    ensure!(received >= BYTES, "{path}: only {received} bytes");
    Ok(BYTES as f64 / 1e6 / since.elapsed().as_secs_f64())
}

/// Sends a body of [`BYTES`]. Returns MB per second.
fn up(address: SocketAddr, path: &str) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    let since = Instant::now();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {BYTES}\r\nconnection: close\r\n\r\n"
    )?;
    let piece = vec![b'x'; PIECE];
    for _ in 0..BYTES / PIECE as u64 {
        stream.write_all(&piece)?;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let counted = answer.contains(&BYTES.to_string());
    ensure!(counted, "{path}: {answer}");
    Ok(BYTES as f64 / 1e6 / since.elapsed().as_secs_f64())
}

type Direction = fn(SocketAddr, &str) -> anyhow::Result<f64>;

/// MB per second, Amphi's and the native server's.
fn speed(data: &Data, direction: Direction, ours: &str, native: &str) -> anyhow::Result<Sample> {
    let other = data.native()?;
    let other = direction(other.address, native)?;
    let server = data.streams()?;
    Ok(Sample::pair(direction(server.address, ours)?, other))
}

/// How much memory a server takes for a stream down and one up beyond what a small request takes, in MB.
fn memory(data: &Data, paths: Paths) -> anyhow::Result<Sample> {
    let server = data.streams()?;
    let small = paths.down.replace("1024", "1");
    get(server.address, &small)?;
    more_memory(&server, || {
        down(server.address, paths.down)?;
        up(server.address, paths.up).map(drop)
    })
}

/// The most memory that a server takes while `work` runs, less what it has before, in MB.
fn more_memory(
    server: &Server,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Sample> {
    let before = server.memory()?;
    let done = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = before;
            while !done.load(Ordering::Relaxed) {
                most = most.max(server.memory()?);
                thread::sleep(LOOK);
            }
            anyhow::Ok(most)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let most = looking.join().expect("looking does not panic");
        worked.and(most)
    })?;
    Ok(Sample::alone((most - before) as f64 / 1e6))
}

macro_rules! probes {
    ($($down:ident, $up:ident, $memory:ident: $paths:ident;)*) => {$(
        pub(crate) fn $down(data: &Data, _: &Server) -> anyhow::Result<Sample> {
            speed(data, down, $paths.down, NATIVE.down)
        }

        pub(crate) fn $up(data: &Data, _: &Server) -> anyhow::Result<Sample> {
            speed(data, up, $paths.up, NATIVE.up)
        }

        pub(crate) fn $memory(data: &Data, _: &Server) -> anyhow::Result<Sample> {
            memory(data, $paths)
        }
    )*};
}

probes! {
    down_sync, up_sync, memory_sync: SYNC;
    down_async, up_async, memory_async: ASYNC;
    down_wasi_0_2, up_wasi_0_2, memory_wasi_0_2: WASI_0_2;
    down_wasi_0_3, up_wasi_0_3, memory_wasi_0_3: WASI_0_3;
}

/// A million rows as CSV from a database, in both modes one after the other: how much memory they take, in MB.
fn csv(data: &Data, database: &str) -> anyhow::Result<Sample> {
    let server = data.streams()?;
    get(server.address, "/sync/big?mb=1")?;
    more_memory(&server, || {
        for mode in ["sync", "async"] {
            let path = format!("/{mode}/csv/{database}");
            let since = Instant::now();
            // Each row has one semicolon, and nothing else has any.
            let mut rows = 0;
            let count = |piece: &[u8]| rows += piece.iter().filter(|byte| **byte == b';').count();
            let bytes = receive(server.address, &path, count)?;
            let took = since.elapsed();
            ensure!(rows == 1_000_000, "{path}: {rows} rows");
            eprintln!("{path}: {rows} rows, {bytes} bytes in {took:.1?}");
        }
        Ok(())
    })
}

pub(crate) fn csv_sqlite(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    csv(data, "sqlite")
}

pub(crate) fn csv_postgres(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    csv(data, "postgres")
}

/// 99th percentile of the latency of the async hello view while 32 clients take nothing of a stream, and without them,
/// in ms.
pub(crate) fn stalled(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let server = data.streams()?;
    let address = server.address;
    latency_beside(address, async move {
        let mut readers = Vec::new();
        for number in 0..32 {
            let paths = [SYNC, ASYNC, WASI_0_2, WASI_0_3][number % 4];
            let mut stream = TcpStream::connect(address)?;
            write!(stream, "GET {} HTTP/1.1\r\nhost: bench\r\n\r\n", paths.down)?;
            readers.push(stream);
        }
        // Longer than the measurement, which drops them.
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(readers);
        Ok(())
    })
}

/// Time from a request to the first line of a stream whose lines are a second apart, in ms: that of the slower mode.
pub(crate) fn first_byte(data: &Data, _: &Server) -> anyhow::Result<Sample> {
    let server = data.streams()?;
    let first = |path: &str| {
        let mut stream = TcpStream::connect(server.address)?;
        let since = Instant::now();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&answer).contains("line 0") {
            let read = stream.read(&mut buffer)?;
            ensure!(read > 0, "{path}: no line");
            answer.extend_from_slice(&buffer[..read]);
        }
        anyhow::Ok(ms(since.elapsed()))
    };
    let slowest = [
        "/sync/lines?count=600&ms=1000",
        "/async/lines?count=600&ms=1000",
    ]
    .into_iter()
    .map(first)
    .collect::<anyhow::Result<Vec<f64>>>()?;
    Ok(Sample::alone(slowest.into_iter().fold(0.0, f64::max)))
}
