//! The host-side life of one request: who it is, until when it may run, what it knows and what it holds.
//!
//! A scope is opened in one place (`request.rs`), shared by everything that works for the request, and gone
//! when the last of them is. What it holds is released by dropping, so there is no exit path that forgets it
//! (R13): the transaction rolls back, connections go back to their pool, temporary files are removed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::config::Limits;
use crate::deadline::Deadline;
use crate::metrics::{Held, METRICS};
use crate::transaction::Transaction;
use crate::view::View;

/// The life of one request.
pub struct Scope {
    /// Names the request in logs and to its views. Made by the host (R14).
    pub id: String,
    /// The client.
    pub peer: SocketAddr,
    /// The view that serves it.
    pub view: Arc<View>,
    /// What it may use.
    pub limits: Limits,
    /// Until when it may run, and whether it still may (R15).
    pub deadline: Arc<Deadline>,
    /// Its transaction, if it has one (R7).
    pub transaction: Transaction,
    /// Places for outbound requests in flight.
    pub outbound: Arc<Semaphore>,
    /// Results of queries that the host holds for it.
    pub results: Results,
    values: Mutex<HashMap<String, String>>,
    _open: Held,
}

impl Scope {
    /// Opens the scope of a request that arrived at `arrived` and goes to `view`.
    pub fn open(
        id: String,
        peer: SocketAddr,
        arrived: Instant,
        view: Arc<View>,
        limits: Limits,
    ) -> Arc<Scope> {
        Arc::new(Scope {
            id,
            peer,
            deadline: Arc::new(Deadline::new(arrived + view.timeout)),
            transaction: Transaction::new(view.atomic),
            outbound: Arc::new(Semaphore::new(limits.outbound_max)),
            view,
            limits,
            results: Results::default(),
            values: Mutex::default(),
            _open: Held::new(&METRICS.scopes),
        })
    }

    /// A value that some part of this request has set.
    pub fn value(&self, name: &str) -> Option<String> {
        self.values.lock().get(name).cloned()
    }

    /// Sets a value for the later parts of this request.
    ///
    /// # Errors
    /// A sentence, when there are too many values or this one is too large.
    pub fn set_value(&self, name: String, value: String) -> Result<(), String> {
        let max = self.limits.context_value_max_bytes;
        if name.len() + value.len() > max {
            return Err(format!(
                "the context value `{name}` has {} bytes with its name; `context_value_max_bytes` is {max}",
                name.len() + value.len()
            ));
        }
        let mut values = self.values.lock();
        if values.len() >= self.limits.context_values_max && !values.contains_key(&name) {
            return Err(format!(
                "the request has {} context values already, as many as `context_values_max` allows",
                values.len()
            ));
        }
        values.insert(name, value);
        Ok(())
    }
}

/// Results that views read piece by piece: what they take of the host meanwhile.
#[derive(Default)]
pub struct Results {
    /// Bytes of rows that are read already.
    bytes: AtomicU64,
    /// Results that a connection of their own feeds.
    streams: AtomicUsize,
}

impl Results {
    /// Takes room for rows, unless that would be more than `max` in all.
    pub fn hold(&self, bytes: u64, max: u64) -> bool {
        let taken = self.bytes.fetch_update(SeqCst, SeqCst, |held| {
            Some(held + bytes).filter(|sum| *sum <= max)
        });
        taken.is_ok()
    }

    /// Gives room back.
    pub fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, SeqCst);
    }

    /// Takes a connection for a stream, unless `max` are taken.
    pub fn open_stream(&self, max: usize) -> bool {
        let taken = self.streams.fetch_update(SeqCst, SeqCst, |streams| {
            Some(streams + 1).filter(|sum| *sum <= max)
        });
        taken.is_ok()
    }

    /// A stream has ended.
    pub fn close_stream(&self) {
        self.streams.fetch_sub(1, SeqCst);
    }
}

/// A new request id: sorts by time, unique across hosts.
pub fn new_id() -> String {
    Uuid::now_v7().simple().to_string()
}
