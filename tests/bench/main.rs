//! A quick look at speed: hello from a fresh instance, sync and async, next to a native hyper server.
//!
//! `cargo run --release -p amphi-tests --bin bench`, with `wrk` on the path. All servers run at once and are
//! measured in turn, A B C A B C …, so that a machine whose speed drifts does not favour one. Further servers to
//! compare with are given as NAME=URL.

use std::convert::Infallible;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming, header};
use hyper_util::rt::TokioIo;

const CONNECTIONS: &str = "64";
const ROUNDS: usize = 5;
const SECONDS: &str = "3";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("native") => native(&arguments[1]),
        Some("amphi") => return amphi::cli::run_with(std::env::args().skip(1)),
        _ => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A server that is measured.
struct Peer {
    name: String,
    url: String,
    process: Option<Child>,
    rates: Vec<f64>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn compare(others: &[String]) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let folder = folder.to_str().context("the path is UTF-8")?;
    let itself = std::env::current_exe()?;
    let built = Command::new(&itself)
        .args(["amphi", "build", folder])
        .status()?;
    if !built.success() {
        bail!("the guests could not be built");
    }
    let (native, amphi) = (free_address()?, free_address()?);
    let start = |arguments: &[&str]| {
        let mut command = Command::new(&itself);
        command
            .args(arguments)
            .env("AMPHI_LOG", "warn")
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting a server")
    };
    let mut peers = vec![
        Peer::new(
            "native hyper",
            format!("http://{native}/"),
            Some(start(&["native", &native])?),
        ),
        Peer::new(
            "amphi sync",
            format!("http://{amphi}/sync"),
            Some(start(&["amphi", "serve", folder, "--listen", &amphi])?),
        ),
        Peer::new("amphi async", format!("http://{amphi}/async"), None),
    ];
    for other in others {
        let (name, url) = other
            .split_once('=')
            .with_context(|| format!("`{other}` is not NAME=URL"))?;
        peers.push(Peer::new(name, url.to_owned(), None));
    }
    for peer in &peers {
        peer.wait_until_it_answers()?;
    }
    for _ in 0..ROUNDS {
        for peer in &mut peers {
            let rate = measure(&peer.url)?;
            peer.rates.push(rate);
        }
    }
    print(&mut peers);
    Ok(())
}

impl Peer {
    fn new(name: &str, url: String, process: Option<Child>) -> Peer {
        Peer {
            name: name.to_owned(),
            url,
            process,
            rates: Vec::new(),
        }
    }

    fn wait_until_it_answers(&self) -> anyhow::Result<()> {
        let address = self
            .url
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap_or_default();
        let since = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            if since.elapsed() > Duration::from_secs(60) {
                bail!("{} does not answer at {}", self.name, self.url);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Requests per second, after a short warm-up.
fn measure(url: &str) -> anyhow::Result<f64> {
    wrk(url, "1")?;
    wrk(url, SECONDS)
}

fn wrk(url: &str, seconds: &str) -> anyhow::Result<f64> {
    let output = Command::new("wrk")
        .args(["-t2", "-c", CONNECTIONS, "-d", seconds, url])
        .output()
        .context("wrk could not be started: install it (Debian's package is `wrk`)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("{url}: not every request was answered:\n{text}");
    }
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok())
        .with_context(|| format!("{url}: wrk said\n{text}"))
}

fn print(peers: &mut [Peer]) {
    for peer in peers.iter_mut() {
        peer.rates.sort_by(f64::total_cmp);
    }
    let median = |peer: &Peer| peer.rates[peer.rates.len() / 2];
    let native = median(&peers[0]);
    println!("| server | requests/s, median | min | max | of native hyper |");
    println!("|---|---|---|---|---|");
    for peer in peers.iter() {
        let (rate, min, max) = (
            median(peer),
            peer.rates[0],
            peer.rates[peer.rates.len() - 1],
        );
        println!(
            "| {} | {rate:.0} | {min:.0} | {max:.0} | {:.2} |",
            peer.name,
            rate / native
        );
    }
}

/// The same answer from hyper alone, with one loop per core as Amphi has it.
fn native(address: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let loops = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let serving: Vec<_> = (0..loops)
            .map(|_| {
                let listener = listener.try_clone();
                scope.spawn(move || native_loop(listener?))
            })
            .collect();
        serving
            .into_iter()
            .try_for_each(|each| each.join().expect("a loop does not panic"))
    })
}

fn native_loop(listener: TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let hello =
                    service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(hello()) });
                // The client may go at any time.
                let _ = hyper::server::conn::http1::Builder::new()
                    .pipeline_flush(true)
                    .serve_connection(TokioIo::new(stream), hello)
                    .await;
            });
        }
    })
}

fn hello() -> Response<Full<Bytes>> {
    let response = Response::builder().header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    response
        .body(Full::new(Bytes::from_static(b"Hello, World!")))
        .expect("the headers are valid")
}
