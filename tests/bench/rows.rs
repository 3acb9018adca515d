//! The table: what is measured against what, and how much is wanted.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

use crate::peers::{self, Running};
use crate::probes;
use crate::servers::{Data, Server};
use crate::wrk::{self, Send};

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    what: What,
}

/// What is wanted.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Of Amphi's figure divided by the other.
    AtLeast(f64),
    /// Of the same.
    AtMost(f64),
    /// Of Amphi's figure itself.
    NoMore(f64),
}

enum What {
    /// Requests a second of Amphi, and of another server.
    Rates(Ask, Ask),
    /// Anything else.
    Probe(fn(&Data, &Server) -> anyhow::Result<Sample>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Ask {
    who: Who,
    path: &'static str,
    send: Send,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Amphi,
    Native,
    Peer(&'static str),
}

/// One measurement: Amphi's figure, and the other.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) ours: f64,
    pub(crate) other: Option<f64>,
}

impl Sample {
    pub(crate) fn pair(ours: f64, other: f64) -> Sample {
        Sample {
            ours,
            other: Some(other),
        }
    }

    pub(crate) fn alone(ours: f64) -> Sample {
        Sample { ours, other: None }
    }
}

/// What came of a row: a sample for each round, or why there is none.
pub(crate) type Outcome = anyhow::Result<Vec<Sample>>;

const fn amphi(path: &'static str) -> Ask {
    ask(Who::Amphi, path)
}

const fn native(path: &'static str) -> Ask {
    ask(Who::Native, path)
}

const fn peer(name: &'static str) -> Ask {
    ask(Who::Peer(name), "/")
}

const fn ask(who: Who, path: &'static str) -> Ask {
    let send = Send::Get;
    Ask { who, path, send }
}

const fn post(ask: Ask, bytes: usize) -> Ask {
    Ask {
        send: Send::Post(bytes),
        ..ask
    }
}

const fn rates(name: &'static str, ours: Ask, other: Ask, least: f64) -> Row {
    Row {
        name,
        unit: "/s",
        target: Target::AtLeast(least),
        what: What::Rates(ours, other),
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
        what: What::Probe(probe),
    }
}

const SYNC: Ask = amphi("/sync");
const ASYNC: Ask = amphi("/async");
const HELLO: Ask = native("/");
const MEGABYTE: usize = 1 << 20;

/// All rows. Neighbours that ask the same of the same server share those measurements.
#[rustfmt::skip]
pub(crate) const ROWS: &[Row] = &[
    rates("hello, sync / native hyper", SYNC, HELLO, 0.65),
    rates("hello, async / native hyper", ASYNC, HELLO, 0.50),
    rates("hello, sync, reuse / native hyper", amphi("/reused/sync"), HELLO, 0.80),
    rates("hello, async, reuse / native hyper", amphi("/reused/async"), HELLO, 0.80),
    rates("hello, sync / `wasmtime serve` 0.2, default", SYNC, peer("wasmtime serve, WASI 0.2"), 3.0),
    rates("hello, sync / `wasmtime serve` 0.2, tuned", SYNC, peer("wasmtime serve, WASI 0.2, tuned"), 3.0),
    rates("hello, async / `wasmtime serve` 0.3, default", ASYNC, peer("wasmtime serve, WASI 0.3"), 1.5),
    rates("hello, async / `wasmtime serve` 0.3, tuned", ASYNC, peer("wasmtime serve, WASI 0.3, tuned"), 1.0),
    rates("hello, async / `wasmtime serve` 0.3, tuned, fresh instances", ASYNC, peer("wasmtime serve, WASI 0.3, tuned, fresh"), 1.5),
    rates("hello, sync / workerd", SYNC, peer("workerd"), 2.0),
    rates("hello, async / workerd", ASYNC, peer("workerd"), 2.0),
    rates("hello, sync / Django on granian", SYNC, peer("Django on granian"), 30.0),
    rates("hello, async / Django on granian", ASYNC, peer("Django on granian"), 30.0),
    rates("hello, sync / Django on uvicorn", SYNC, peer("Django on uvicorn"), 30.0),
    rates("SQLite, read a row, sync / hyper + rusqlite", amphi("/sync/items/500"), native("/items/500"), 0.75),
    rates("SQLite, update a row, sync / hyper + rusqlite", post(amphi("/sync/items/500"), 0), post(native("/items/500"), 0), 0.85),
    rates("SQLite, update a row, async / hyper + rusqlite", post(amphi("/async/items/500"), 0), post(native("/items/500"), 0), 0.85),
    rates("PostgreSQL, read a row, async / hyper + tokio-postgres", amphi("/async/postgres/500"), native("/postgres/500"), 0.75),
    rates("1 MB echoed, sync / native hyper", post(amphi("/sync/echo"), MEGABYTE), post(native("/echo"), MEGABYTE), 0.5),
    rates("1 MB echoed, async / native hyper", post(amphi("/async/echo"), MEGABYTE), post(native("/echo"), MEGABYTE), 0.5),
    rates("1 MB answered, sync / native hyper", amphi("/sync/large"), native("/large"), 0.5),
    rates("1 MB answered, async / native hyper", amphi("/async/large"), native("/large"), 0.5),
    probe("ten 100 ms calls at once / the slowest of them", "ms", Target::AtMost(1.1), probes::ten_calls),
    probe("1,000 requests at once that sleep for 100 ms", "ms", Target::NoMore(500.0), probes::crowd),
    probe("p99 of hello, async, while a view computes / without", "ms", Target::NoMore(4.0), probes::spinning),
    probe("p99 of hello, async, while all workers wait / without", "ms", Target::AtMost(1.2), probes::blocked),
    probe("two loops on two cores / one on one, client deducted", "/s", Target::AtLeast(1.8), probes::loops),
    probe("memory of a waiting async request", "KB", Target::NoMore(48.0), probes::memory),
    probe("`amphi serve` to its first answer, compiled before", "ms", Target::NoMore(100.0), probes::start),
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
}

impl Bench<'_> {
    /// Measures these rows; those that compare with the same servers in turn, A B C A B C ….
    pub(crate) fn measure(&mut self, rows: &[&'static Row]) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for rows in rows.chunk_by(|one, next| one.shares_with(next)) {
            outcomes.extend(self.measure_in_turn(rows)?);
        }
        Ok(outcomes)
    }

    fn measure_in_turn(&mut self, rows: &[&'static Row]) -> anyhow::Result<Vec<Outcome>> {
        let (amphi, native) = (self.data.amphi()?, self.data.native()?);
        let mut peers: Vec<(&str, anyhow::Result<Running>)> = Vec::new();
        for peer in peers::ALL {
            let wanted = |row: &&Row| matches!(row.what, What::Rates(_, other) if other.who == Who::Peer(peer.name));
            if rows.iter().any(wanted) {
                eprintln!("{}: starting it", peer.name);
                let running = peer.start(self.folder);
                match &running {
                    Ok(running) => drop(self.versions.insert(peer.name, running.version.clone())),
                    Err(why) => eprintln!("{}: skipped: {why:#}", peer.name),
                }
                peers.push((peer.name, running));
            }
        }
        let url = |ask: Ask| match ask.who {
            Who::Amphi => Ok(amphi.url(ask.path)),
            Who::Native => Ok(native.url(ask.path)),
            Who::Peer(name) => match peers.iter().find(|(known, _)| *known == name) {
                Some((_, Ok(running))) => Ok(running.url.clone()),
                Some((_, Err(why))) => Err(anyhow::anyhow!("{why:#}")),
                None => Err(anyhow::anyhow!("there is no peer `{name}`")),
            },
        };
        let mut outcomes: Vec<Outcome> = rows.iter().map(|_| Ok(Vec::new())).collect();
        for round in 1..=self.rounds {
            let mut rates: Vec<(Ask, f64)> = Vec::new();
            let mut rate = |ask: Ask| {
                if let Some((_, known)) = rates.iter().find(|(known, _)| *known == ask) {
                    return Ok(*known);
                }
                let url = url(ask)?;
                // Whatever it keeps is there then.
                wrk::run(&url, ask.send, 1, self.data.folder())?;
                let rate = wrk::run(&url, ask.send, self.seconds, self.data.folder())?;
                rates.push((ask, rate));
                anyhow::Ok(rate)
            };
            for (row, outcome) in rows.iter().zip(&mut outcomes) {
                let Ok(samples) = outcome else { continue };
                eprintln!("round {round}: {}", row.name);
                let sample = match row.what {
                    What::Rates(ours, other) => {
                        rate(other).and_then(|other| Ok(Sample::pair(rate(ours)?, other)))
                    }
                    What::Probe(probe) => probe(&self.data, &amphi),
                };
                match sample.context(row.name) {
                    Ok(sample) => samples.push(sample),
                    Err(why) => *outcome = Err(why),
                }
            }
        }
        Ok(outcomes)
    }
}

impl Row {
    /// Whether they ask the same of some server.
    fn shares_with(&self, next: &Row) -> bool {
        match (&self.what, &next.what) {
            (What::Rates(ours, other), What::Rates(next_ours, next_other)) => {
                ours == next_ours || other == next_other
            }
            _ => false,
        }
    }
}
