//! The rows of the table: what is measured, against what, and which figure is the target.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

use crate::page::{self, Compared, REUSED};
use crate::peers::{self, Running};
use crate::probes;
use crate::servers::{Data, Server};
use crate::wrk::{Load, Requests, Send};
use crate::{sockets, streams};
use Target::{AtMost, Beside, RatioAtLeast, RatioAtMost, SameWork};

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    measurement: Measurement,
}

/// Which figure a row has to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Amphi's figure divided by the other one is at least this.
    RatioAtLeast(f64),
    /// Amphi's figure divided by the other one is at most this.
    RatioAtMost(f64),
    /// Amphi's figure is at most this.
    AtMost(f64),
    /// There is no target. Both servers do the same work, and the ratio says how much faster one does it.
    SameWork,
    /// There is no target and no ratio, since the servers do different work. Their figures are only shown side by side.
    Beside,
}

enum Measurement {
    /// Requests per second of Amphi and of another server.
    Rates(Endpoint, Endpoint),
    /// Any other measurement, which this function makes.
    Probe(fn(&Data, &Server) -> anyhow::Result<Sample>),
}

/// A server, and the request that is sent to it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Endpoint {
    server: ServerName,
    path: &'static str,
    send: Send,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ServerName {
    Amphi,
    /// Amphi with the guestbook.
    Guestbook,
    Native,
    Peer(&'static str),
}

/// The result of one measurement of one server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// The figure, in the unit of the row.
    pub(crate) value: f64,
    /// CPU time of the server for each request, in µs, where the value is a rate.
    pub(crate) cpu_us: Option<f64>,
}

/// One measurement: Amphi's figure, and the other one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) ours: Figure,
    pub(crate) other: Option<Figure>,
}

impl From<Load> for Figure {
    fn from(load: Load) -> Figure {
        Figure {
            value: load.rate,
            cpu_us: Some(load.cpu_us),
        }
    }
}

impl From<f64> for Figure {
    fn from(value: f64) -> Figure {
        Figure {
            value,
            cpu_us: None,
        }
    }
}

impl Sample {
    pub(crate) fn pair(ours: impl Into<Figure>, other: impl Into<Figure>) -> Sample {
        Sample {
            ours: ours.into(),
            other: Some(other.into()),
        }
    }

    pub(crate) fn alone(ours: f64) -> Sample {
        Sample {
            ours: ours.into(),
            other: None,
        }
    }
}

/// The result of a row: a sample for each round, or why there is none.
pub(crate) type Outcome = anyhow::Result<Vec<Sample>>;

const fn amphi(path: &'static str) -> Endpoint {
    get(ServerName::Amphi, path)
}

const fn native(path: &'static str) -> Endpoint {
    get(ServerName::Native, path)
}

const fn peer(name: &'static str) -> Endpoint {
    get(ServerName::Peer(name), "/")
}

const fn get(server: ServerName, path: &'static str) -> Endpoint {
    let send = Send::Get;
    Endpoint { server, path, send }
}

const fn post(endpoint: Endpoint, bytes: usize) -> Endpoint {
    Endpoint {
        send: Send::Post(bytes),
        ..endpoint
    }
}

const fn visit(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        send: Send::Visit,
        ..endpoint
    }
}

const fn echo(server: ServerName, path: &'static str) -> Endpoint {
    let send = Send::Echo;
    Endpoint { server, path, send }
}

const fn rates(name: &'static str, ours: Endpoint, other: Endpoint, target: Target) -> Row {
    Row {
        name,
        unit: "/s",
        target,
        measurement: Measurement::Rates(ours, other),
    }
}

const fn probe(
    name: &'static str,
    unit: &'static str,
    target: Target,
    probe: fn(&Data, &Server) -> anyhow::Result<Sample>,
) -> Row {
    Row {
        name,
        unit,
        target,
        measurement: Measurement::Probe(probe),
    }
}

const SYNC: Endpoint = amphi("/sync");
const ASYNC: Endpoint = amphi("/async");
const WASI_0_2: Endpoint = amphi("/wasi-0.2/");
const WASI_0_3: Endpoint = amphi("/wasi-0.3/");
const HELLO: Endpoint = native("/");
const MEGABYTE: usize = 1 << 20;
const ECHO_SYNC: Endpoint = echo(ServerName::Amphi, "/sync/echo-socket");
const ECHO_ASYNC: Endpoint = echo(ServerName::Amphi, "/async/echo-socket");
const ECHO_NATIVE: Endpoint = echo(ServerName::Native, "/socket/echo");
const PAGE: Endpoint = visit(get(ServerName::Guestbook, "/"));
const PAGE_REUSED: Endpoint = visit(get(ServerName::Guestbook, REUSED));

const GUNICORN: Endpoint = peer("Django on gunicorn");
const GRANIAN: Endpoint = peer("Django on granian");
const UVICORN: Endpoint = peer("Django on uvicorn");
const PAGE_GUNICORN: Endpoint = visit(peer("Django's page on gunicorn"));
const PAGE_GRANIAN: Endpoint = visit(peer("Django's page on granian"));
const PAGE_UVICORN: Endpoint = visit(peer("Django's page on uvicorn"));

/// All rows. Consecutive rows that send the same request to the same server share the measurement of that server.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    rates("hello, sync / native hyper", SYNC, HELLO, RatioAtLeast(0.65)),
    rates("hello, async / native hyper", ASYNC, HELLO, RatioAtLeast(0.50)),
    rates("hello, sync, reuse / native hyper", amphi("/reused/sync"), HELLO, RatioAtLeast(0.80)),
    rates("hello, async, reuse / native hyper", amphi("/reused/async"), HELLO, RatioAtLeast(0.80)),
    rates("hello, sync / `wasmtime serve` 0.2, default", SYNC, peer("wasmtime serve, WASI 0.2"), RatioAtLeast(3.0)),
    rates("hello, sync / `wasmtime serve` 0.2, tuned", SYNC, peer("wasmtime serve, WASI 0.2, tuned"), RatioAtLeast(3.0)),
    rates("hello, wasi:http 0.2 / `wasmtime serve` 0.2, tuned", WASI_0_2, peer("wasmtime serve, WASI 0.2, tuned"), RatioAtLeast(1.5)),
    rates("hello, wasi:http 0.3 / `wasmtime serve` 0.3, tuned, fresh instances", WASI_0_3, peer("wasmtime serve, WASI 0.3, tuned, fresh"), RatioAtLeast(1.5)),
    rates("hello, wasi:http 0.2 / hello, sync", WASI_0_2, SYNC, SameWork),
    rates("hello, wasi:http 0.3 / hello, async", WASI_0_3, ASYNC, SameWork),
    rates("hello, async / `wasmtime serve` 0.3, default", ASYNC, peer("wasmtime serve, WASI 0.3"), RatioAtLeast(1.5)),
    rates("hello, async / `wasmtime serve` 0.3, tuned", ASYNC, peer("wasmtime serve, WASI 0.3, tuned"), RatioAtLeast(1.0)),
    rates("hello, async / `wasmtime serve` 0.3, tuned, fresh instances", ASYNC, peer("wasmtime serve, WASI 0.3, tuned, fresh"), RatioAtLeast(1.5)),
    rates("hello, sync / workerd", SYNC, peer("workerd"), RatioAtLeast(2.0)),
    rates("hello, async / workerd", ASYNC, peer("workerd"), RatioAtLeast(2.0)),
    rates("hello, sync / Django on gunicorn, 2 × cores + 1 sync workers", SYNC, GUNICORN, Beside),
    rates("hello, sync / Django on granian, WSGI, a worker per core", SYNC, GRANIAN, Beside),
    rates("hello, async / Django on uvicorn, ASGI, a worker per core", ASYNC, UVICORN, Beside),
    rates("guestbook's page, fresh instances / Django on gunicorn, 2 × cores + 1 sync workers", PAGE, PAGE_GUNICORN, SameWork),
    rates("guestbook's page, fresh instances / Django on granian, WSGI, a worker per core", PAGE, PAGE_GRANIAN, SameWork),
    rates("guestbook's page, fresh instances / Django on uvicorn, ASGI, a worker per core", PAGE, PAGE_UVICORN, SameWork),
    rates("guestbook's page, reuse / Django on gunicorn, 2 × cores + 1 sync workers", PAGE_REUSED, PAGE_GUNICORN, SameWork),
    rates("guestbook's page, reuse / Django on granian, WSGI, a worker per core", PAGE_REUSED, PAGE_GRANIAN, SameWork),
    rates("guestbook's page, reuse / Django on uvicorn, ASGI, a worker per core", PAGE_REUSED, PAGE_UVICORN, SameWork),
    rates("SQLite, read a row, sync / hyper + rusqlite", amphi("/sync/items/500"), native("/items/500"), RatioAtLeast(0.75)),
    rates("SQLite, update a row, sync / hyper + rusqlite", post(amphi("/sync/items/500"), 0), post(native("/items/500"), 0), RatioAtLeast(0.85)),
    rates("SQLite, update a row, async / hyper + rusqlite", post(amphi("/async/items/500"), 0), post(native("/items/500"), 0), RatioAtLeast(0.85)),
    rates("PostgreSQL, read a row, async / hyper + tokio-postgres", amphi("/async/postgres/500"), native("/postgres/500"), RatioAtLeast(0.75)),
    rates("1 MB echoed, sync / native hyper", post(amphi("/sync/echo"), MEGABYTE), post(native("/echo"), MEGABYTE), RatioAtLeast(0.5)),
    rates("1 MB echoed, async / native hyper", post(amphi("/async/echo"), MEGABYTE), post(native("/echo"), MEGABYTE), RatioAtLeast(0.5)),
    rates("1 MB answered, sync / native hyper", amphi("/sync/large"), native("/large"), RatioAtLeast(0.5)),
    rates("1 MB answered, async / native hyper", amphi("/async/large"), native("/large"), RatioAtLeast(0.5)),
    rates("64 sockets echo messages, sync / native, same codec", ECHO_SYNC, ECHO_NATIVE, SameWork),
    rates("64 sockets echo messages, async / native, same codec", ECHO_ASYNC, ECHO_NATIVE, SameWork),
    rates("64 sockets echo messages, sync / Django Channels on uvicorn, a sync consumer", ECHO_SYNC, echo(ServerName::Peer("Channels, sync"), "/"), SameWork),
    rates("64 sockets echo messages, async / Django Channels on uvicorn, an async consumer", ECHO_ASYNC, echo(ServerName::Peer("Channels, async"), "/"), SameWork),
    probe("a message to 20,000 sockets of a sync view / native, same codec", "/s", RatioAtLeast(0.7), sockets::broadcast_sync),
    probe("a message to 20,000 sockets of an async view / native, same codec", "/s", RatioAtLeast(0.7), sockets::broadcast_async),
    probe("memory of an idle socket of a sync view", "KB", AtMost(8.0), sockets::memory_sync),
    probe("memory of an idle socket of an async view", "KB", AtMost(8.0), sockets::memory_async),
    probe("memory of an idle socket that has negotiated deflate", "KB", AtMost(8.0), sockets::memory_deflate),
    probe("p99 of hello, async, while a socket floods / without", "ms", RatioAtMost(1.5), sockets::flood),
    probe("1 GiB down, sync / native hyper", "MB/s", RatioAtLeast(0.5), streams::down_sync),
    probe("1 GiB down, async / native hyper", "MB/s", RatioAtLeast(0.5), streams::down_async),
    probe("1 GiB down, wasi:http 0.2 / native hyper", "MB/s", RatioAtLeast(0.5), streams::down_wasi_0_2),
    probe("1 GiB down, wasi:http 0.3 / native hyper", "MB/s", RatioAtLeast(0.5), streams::down_wasi_0_3),
    probe("1 GiB up, sync / native hyper", "MB/s", RatioAtLeast(0.5), streams::up_sync),
    probe("1 GiB up, async / native hyper", "MB/s", RatioAtLeast(0.5), streams::up_async),
    probe("1 GiB up, wasi:http 0.2 / native hyper", "MB/s", RatioAtLeast(0.5), streams::up_wasi_0_2),
    probe("1 GiB up, wasi:http 0.3 / native hyper", "MB/s", RatioAtLeast(0.5), streams::up_wasi_0_3),
    probe("memory for 1 GiB down and up, sync", "MB", AtMost(16.0), streams::memory_sync),
    probe("memory for 1 GiB down and up, async", "MB", AtMost(16.0), streams::memory_async),
    probe("memory for 1 GiB down and up, wasi:http 0.2", "MB", AtMost(16.0), streams::memory_wasi_0_2),
    probe("memory for 1 GiB down and up, wasi:http 0.3", "MB", AtMost(16.0), streams::memory_wasi_0_3),
    probe("memory for 1,000,000 rows as CSV, SQLite", "MB", AtMost(16.0), streams::csv_sqlite),
    probe("memory for 1,000,000 rows as CSV, PostgreSQL", "MB", AtMost(16.0), streams::csv_postgres),
    probe("p99 of hello, async, while 32 clients take nothing of streams / without", "ms", RatioAtMost(1.2), streams::stalled),
    probe("first line of a stream of ten minutes", "ms", AtMost(50.0), streams::first_byte),
    probe("ten 100 ms calls at once / the slowest of them", "ms", RatioAtMost(1.1), probes::ten_calls),
    probe("1,000 requests at once that sleep for 100 ms", "ms", AtMost(500.0), probes::crowd),
    probe("p99 of hello, async, while a view computes / without", "ms", AtMost(4.0), probes::spinning),
    probe("p99 of hello, async, while all workers wait / without", "ms", RatioAtMost(1.2), probes::blocked),
    probe("two loops on two cores / one on one, client deducted", "/s", RatioAtLeast(1.8), probes::loops),
    probe("memory of a waiting async request", "KB", AtMost(48.0), probes::memory),
    probe("`amphi serve` to its first answer, compiled before", "ms", AtMost(100.0), probes::start),
];

/// Measures rows.
pub(crate) struct Bench<'a> {
    pub(crate) data: Data,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    /// Where peers are installed.
    pub(crate) folder: &'a Path,
    /// The peers that ran, with their versions.
    pub(crate) versions: BTreeMap<&'static str, String>,
    /// What the comparison of the guestbook's pages has shown, if there was one.
    pub(crate) page: Option<String>,
}

/// The servers that some rows need.
struct Servers<'a> {
    /// Amphi with the benchmark's views, if a row needs it.
    amphi: Option<Server>,
    native: Option<Server>,
    /// Amphi with the guestbook, if a row needs it.
    guestbook: Option<Server>,
    /// The peers that these rows need, by their names.
    peers: Vec<(&'static str, anyhow::Result<Running>)>,
    /// The visitors of the guestbooks, if a row needs them.
    visitors: Option<anyhow::Result<Compared>>,
    data: &'a Data,
}

impl Bench<'_> {
    /// Measures these rows. Rows A, B and C that share a measurement are measured in turn: A B C, A B C and so on.
    pub(crate) fn measure(&mut self, rows: &[&'static Row]) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for rows in rows.chunk_by(|one, next| one.shares_with(next)) {
            outcomes.extend(self.measure_in_turn(rows)?);
        }
        Ok(outcomes)
    }

    fn measure_in_turn(&mut self, rows: &[&'static Row]) -> anyhow::Result<Vec<Outcome>> {
        let servers = Servers::start(&self.data, self.folder, rows)?;
        for (name, peer) in &servers.peers {
            match peer {
                Ok(peer) => drop(self.versions.insert(name, peer.version.clone())),
                Err(why) => eprintln!("{name}: skipped: {why:#}"),
            }
        }
        if let Some(Ok(compared)) = &servers.visitors {
            eprintln!("{}", compared.summary);
            self.page = Some(compared.summary.clone());
        }
        let mut outcomes: Vec<Outcome> = rows.iter().map(|_| Ok(Vec::new())).collect();
        for round in 1..=self.rounds {
            let mut figures: Vec<(Endpoint, Figure)> = Vec::new();
            let mut figure = |endpoint: Endpoint| {
                if let Some((_, known)) = figures.iter().find(|(known, _)| *known == endpoint) {
                    return Ok(*known);
                }
                let load = servers.requests(endpoint)?.measure(self.seconds)?;
                figures.push((endpoint, load.into()));
                anyhow::Ok(load.into())
            };
            for (row, outcome) in rows.iter().zip(&mut outcomes) {
                let Ok(samples) = outcome else { continue };
                eprintln!("round {round}: {}", row.name);
                let sample = match row.measurement {
                    Measurement::Rates(ours, other) => {
                        figure(other).and_then(|other| Ok(Sample::pair(figure(ours)?, other)))
                    }
                    Measurement::Probe(probe) => {
                        started(&servers.amphi).and_then(|amphi| probe(&self.data, amphi))
                    }
                };
                match sample {
                    Ok(sample) => samples.push(sample),
                    Err(why) => *outcome = Err(why),
                }
            }
        }
        Ok(outcomes)
    }
}

impl<'a> Servers<'a> {
    fn start(data: &'a Data, folder: &Path, rows: &[&Row]) -> anyhow::Result<Servers<'a>> {
        let wanted = |name: ServerName| rows.iter().any(|row| row.needs(name));
        let start = |name, start: fn(&Data) -> anyhow::Result<Server>| {
            wanted(name).then(|| start(data)).transpose()
        };
        let guestbook = start(ServerName::Guestbook, Data::guestbook)?;
        let mut peers = Vec::new();
        for peer in peers::ALL {
            if wanted(ServerName::Peer(peer.name)) {
                eprintln!("{}: starting it", peer.name);
                peers.push((peer.name, peer.start(folder, &data.django_database())));
            }
        }
        let django: Vec<(&str, &str)> = (peers.iter())
            .filter_map(|(name, peer)| Some((*name, peer.as_ref().ok()?.url.as_str())))
            .collect();
        let visitors = guestbook
            .as_ref()
            .map(|guestbook| page::compare(data, guestbook, &django, folder));
        Ok(Servers {
            amphi: start(ServerName::Amphi, Data::amphi)?,
            native: start(ServerName::Native, Data::native)?,
            guestbook,
            peers,
            visitors,
            data,
        })
    }

    /// The requests that measure an endpoint.
    fn requests(&self, endpoint: Endpoint) -> anyhow::Result<Requests<'_>> {
        let path = endpoint.path;
        let own = |server| started(server).map(|server| (server.url(path), server.process()));
        let (url, server) = match endpoint.server {
            ServerName::Amphi => own(&self.amphi)?,
            ServerName::Native => own(&self.native)?,
            ServerName::Guestbook => own(&self.guestbook)?,
            ServerName::Peer(name) => {
                let peer = self.peers.iter().find(|(known, _)| *known == name);
                let (_, peer) = peer.with_context(|| format!("there is no peer `{name}`"))?;
                let peer = peer.as_ref().map_err(|why| anyhow::anyhow!("{why:#}"))?;
                (peer.url.clone(), peer.process())
            }
        };
        let cookie = match endpoint.send {
            Send::Get | Send::Post(_) | Send::Echo => None,
            Send::Visit => {
                let compared = self.visitors.as_ref().context("nobody visits")?;
                let compared = compared
                    .as_ref()
                    .map_err(|why| anyhow::anyhow!("{why:#}"))?;
                Some(match endpoint.server {
                    ServerName::Guestbook => compared.amphi_cookie.as_str(),
                    _ => compared.django_cookie.as_str(),
                })
            }
        };
        Ok(Requests {
            url,
            send: endpoint.send,
            cookie,
            server,
            folder: self.data.folder(),
        })
    }
}

impl Row {
    /// Whether both rows send the same request to one of their servers, or both measure the guestbook's page. (The
    /// pages of all servers are compared with each other, so these servers run at the same time.)
    fn shares_with(&self, next: &Row) -> bool {
        match (&self.measurement, &next.measurement) {
            (Measurement::Rates(ours, other), Measurement::Rates(next_ours, next_other)) => {
                let visits = ours.send == Send::Visit && next_ours.send == Send::Visit;
                ours == next_ours || other == next_other || visits
            }
            _ => false,
        }
    }

    fn needs(&self, name: ServerName) -> bool {
        match self.measurement {
            Measurement::Rates(ours, other) => ours.server == name || other.server == name,
            Measurement::Probe(_) => name == ServerName::Amphi,
        }
    }
}

fn started(server: &Option<Server>) -> anyhow::Result<&Server> {
    server.as_ref().context("this server is not started")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_peers_that_there_are() {
        for row in ROWS {
            if let Measurement::Rates(_, other) = row.measurement
                && let ServerName::Peer(name) = other.server
            {
                let known = peers::ALL.iter().any(|peer| peer.name == name);
                assert!(known, "{}: there is no peer `{name}`", row.name);
            }
        }
        for peer in peers::ALL {
            let needed = ROWS
                .iter()
                .any(|row| row.needs(ServerName::Peer(peer.name)));
            assert!(needed, "no row needs `{}`", peer.name);
        }
    }

    #[test]
    fn all_rows_of_the_guestbook_are_measured_in_turn() {
        let visits = |row: &&Row| row.needs(ServerName::Guestbook);
        let chunks = ROWS.chunk_by(|one, next| one.shares_with(next));
        let with_guestbook = chunks.filter(|rows| rows.iter().any(|row| visits(&row)));
        let counts: Vec<(usize, usize)> = with_guestbook
            .map(|rows| (rows.len(), rows.iter().filter(visits).count()))
            .collect();
        assert_eq!(counts, [(6, 6)]);
    }
}
