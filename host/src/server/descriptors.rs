//! File descriptors: how many client connections the process has room for beside everything else that needs a
//! descriptor.
//!
//! Each connection takes one descriptor. While it is answered, it may take a second one, for a body in a temporary file
//! or a static file. Without free descriptors, databases and files would fail while connections are still accepted, so
//! some descriptors are reserved for them.

use std::cmp::{max, min};

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Storage};

/// Descriptors for outbound connections, components, the log and the like.
const OTHERS: u64 = 128;
/// Descriptors that an event loop needs for waiting (epoll and the like).
const LOOP: u64 = 8;
/// Descriptors of an SQLite connection: the database, its write-ahead log, the log's index and a file for sorting.
const SQLITE: u64 = 4;
/// The fewest connections with which the server starts, unless `connections_max` is lower.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the process's limit on open files, as far as the app needs it and the system allows. Returns the number of
/// connections that there is room for: `connections_max`, or fewer, with a warning.
///
/// # Errors
/// When there is no room for connections beside databases and files.
pub(super) fn connections(config: &Config, admin_max: usize) -> anyhow::Result<usize> {
    let wanted = config.server.connections_max as u64;
    let others = others(config) + admin_max as u64;
    let limit = raise(others + wanted * 2);
    let Some(room) = room(limit, others, wanted) else {
        bail!(
            "the process may open {limit} files, and the app needs {} beside those for connections and bodies: raise the limit (`ulimit -n`, or `LimitNOFILE=` of a systemd unit)",
            others + CONNECTIONS_MIN * 4 / 3
        );
    };
    if room < wanted {
        tracing::warn!(
            connections_max = wanted,
            connections = room,
            files = limit,
            "there will be fewer connections than `connections_max`, because the process may open no more files: raise the limit (`ulimit -n`, or `LimitNOFILE=` of a systemd unit), or lower `connections_max`"
        );
    }
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

/// The number of connections that there is room for when the process may have `limit` descriptors and needs `others`
/// for everything else. A quarter of the rest is left for bodies and static files. None: there is room for too few
/// connections.
fn room(limit: u64, others: u64, wanted: u64) -> Option<u64> {
    let left = limit.saturating_sub(others);
    let room = min(wanted, left - left / 4);
    (room >= min(wanted, CONNECTIONS_MIN)).then_some(room)
}

/// The descriptors for everything but client connections and their requests.
fn others(config: &Config) -> u64 {
    let databases = config.databases.values().map(|it| match &it.storage {
        // Two more than `readers`: the connection that writes, and the reader that is added so that results read in
        // pieces never take all.
        Storage::Sqlite(file) => (file.readers as u64 + 2) * SQLITE,
        Storage::Postgres(server) => server.connections as u64,
    });
    let loops = config.async_views.loops as u64 * LOOP;
    OTHERS
        + databases.sum::<u64>()
        + loops
        + (config.listen.len() + config.modules.len() * 4) as u64
}

/// Raises the limit to `wanted` if it is lower. Returns the limit.
fn raise(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None means that there is no limit.
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let raised = max(soft, min(wanted, hard));
    let new = Rlimit {
        current: Some(raised),
        maximum,
    };
    match raised > soft && setrlimit(Resource::Nofile, new).is_ok() {
        true => raised,
        false => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_back_and_too_few_are_refused() {
        assert_eq!(room(1_000_000, 200, 10_000), Some(10_000));
        assert_eq!(room(1024, 200, 10_000), Some(618));
        assert_eq!(room(1024, 200, 500), Some(500));
        assert_eq!(room(222, 200, 10_000), Some(17));
        assert_eq!(room(210, 200, 10_000), None);
        assert_eq!(room(100, 200, 10_000), None);
        assert_eq!(room(201, 200, 1), Some(1));
    }
}
