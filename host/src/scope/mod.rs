//! The host-side life of one request: who it is, until when it may run, what it knows and what it holds.
//!
//! A scope is opened in one place (`request.rs`; `events.rs` for events), shared by everything that works for the
//! request, and gone when the last of them is. What it holds is released by dropping, so there is no exit path
//! that forgets it (R13): the transaction rolls back, connections and the worker go back to their pools, events
//! that were held and temporary files are removed.
//!
//! Order of acquisition: place among the async instances, sync worker, database connection. Whoever holds a later
//! one never waits for an earlier one, so scopes wait for capacity, never for each other (R4).

pub mod context;
pub mod transaction;
pub mod worker_lease;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::budget::{self, Account, Room};
use crate::config::Limits;
use crate::database::Journal;
use crate::http::trace_context::Trace;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Deadline;
use crate::threads::workers::CALL_SLOTS_MAX;
use crate::view::View;
use context::{Context, Values};
use transaction::Transaction;
use worker_lease::WorkerLease;

/// Whose request it is: known before it is routed, and handed on to the events it publishes (R14).
#[derive(Debug, Clone)]
pub struct Origin {
    /// Names the request in logs and to its views.
    pub id: String,
    /// Its place in a distributed trace.
    pub trace: Trace,
    /// The client.
    pub peer: SocketAddr,
    /// Within how many requests of this app it was sent.
    pub depth: u32,
    /// Values that its scope starts with.
    pub values: Arc<Values>,
    /// What is kept for it is drawn from here.
    pub account: Arc<Account>,
}

impl Origin {
    /// The host itself asks.
    pub fn host() -> Arc<Origin> {
        Arc::new(Origin {
            id: new_id(),
            trace: Trace::begin(),
            peer: (Ipv4Addr::LOCALHOST, 0).into(),
            depth: 0,
            values: Arc::default(),
            account: budget::process().unpaid(),
        })
    }
}

/// What a scope starts with.
pub struct Setup {
    /// When the request was there in full: its time runs from then.
    pub arrived: Instant,
    /// Whether it may come to need a worker for itself.
    pub worker: WorkerLease,
    /// Whether its statements are recorded.
    pub journal: Journal,
}

impl Setup {
    /// From now on, with nothing special.
    pub fn now() -> Setup {
        Setup {
            arrived: Instant::now(),
            worker: WorkerLease::none(),
            journal: Journal::off(),
        }
    }
}

/// The life of one request.
pub struct Scope {
    /// Whose request it is.
    pub origin: Arc<Origin>,
    /// The view that it was routed to.
    pub view: Arc<View>,
    /// What it may use: the limits of that view's module.
    pub limits: Limits,
    /// Until when it may run, and whether it still may (R15).
    pub deadline: Arc<Deadline>,
    /// The transaction of its view (R7).
    pub transaction: Arc<Transaction>,
    /// What it does with its databases, when that is recorded.
    pub journal: Journal,
    outbound: OnceLock<Arc<Semaphore>>,
    /// Set when an outbound request has been sent: the request cannot be run again.
    pub sent: AtomicBool,
    /// Set when a part that may write files has used WASI: likewise.
    pub files: AtomicBool,
    /// Results of queries that the host holds for it.
    pub results: Results,
    hops: AtomicUsize,
    /// Its sync worker.
    pub worker: WorkerLease,
    /// Guest functions that run for it at this moment, and whether any has.
    parts: AtomicUsize,
    begun: AtomicBool,
    /// Bytes that calls in flight keep.
    calls: AtomicU64,
    /// Events that it has published.
    events: AtomicUsize,
    /// What its parts tell each other, by name (R14).
    pub context: Context,
    _open: GaugeGuard,
}

impl Scope {
    /// Opens the scope of a request that goes to `view`.
    pub fn open(
        origin: &Arc<Origin>,
        view: &Arc<View>,
        limits: &Limits,
        setup: Setup,
    ) -> Arc<Scope> {
        Arc::new(Scope {
            context: Context::starting_with(&origin.values),
            origin: Arc::clone(origin),
            deadline: Arc::new(Deadline::new(setup.arrived + view.timeout)),
            transaction: Transaction::new(view.transaction),
            journal: setup.journal,
            outbound: OnceLock::new(),
            sent: AtomicBool::new(false),
            files: AtomicBool::new(false),
            view: Arc::clone(view),
            limits: limits.clone(),
            results: Results::default(),
            hops: AtomicUsize::new(0),
            worker: setup.worker,
            parts: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            events: AtomicUsize::new(0),
            _open: GaugeGuard::new(&METRICS.scopes),
        })
    }

    /// Places for outbound requests in flight.
    pub fn outbound(&self) -> Arc<Semaphore> {
        let places = || Arc::new(Semaphore::new(self.limits.outbound_max));
        Arc::clone(self.outbound.get_or_init(places))
    }

    /// Takes the place of one more guest function, unless too many run within each other already.
    pub fn take_call_slot(self: &Arc<Self>) -> Option<CallSlot> {
        let taken = (self.parts).fetch_update(SeqCst, SeqCst, |parts| {
            Some(parts + 1).filter(|parts| *parts <= CALL_SLOTS_MAX)
        });
        self.begun.store(true, SeqCst);
        taken.ok().map(|_| CallSlot(Arc::clone(self)))
    }

    /// Whether any guest function has run for it.
    pub fn has_begun(&self) -> bool {
        self.begun.load(SeqCst)
    }

    /// Counts what a host call keeps of its arguments until it has ended: an async guest can have any number in
    /// flight, and what they keep is not in its own memory any more.
    ///
    /// # Errors
    /// A sentence, when all calls in flight together would keep too much.
    pub fn hold_call(self: &Arc<Self>, bytes: u64) -> Result<CallBytes, String> {
        let (bytes, max) = (bytes + CALL_BYTES, self.limits.memory_mb << 20);
        if self.calls.fetch_add(bytes, SeqCst) + bytes > max {
            self.calls.fetch_sub(bytes, SeqCst);
            return Err(format!(
                "the calls that this request has in flight would keep more than {} MB (`memory_mb`): wait for some before the next",
                self.limits.memory_mb
            ));
        }
        let mut counted = CallBytes {
            scope: Arc::clone(self),
            bytes,
            room: Room::empty(&self.origin.account),
        };
        let drawn = counted.room.grow_to(bytes);
        drawn.map(|()| counted).map_err(|why| why.to_string())
    }

    /// Counts one more event; how many there are with it.
    pub fn count_event(&self) -> usize {
        self.events.fetch_add(1, SeqCst) + 1
    }

    /// Counts a change between a loop and a worker.
    pub fn hop(&self) {
        self.hops.fetch_add(1, SeqCst);
    }

    /// How often it has gone from a loop to a worker or back for a part of its chain.
    pub fn hops(&self) -> usize {
        self.hops.load(SeqCst)
    }
}

/// About what a call takes of the host beside its arguments.
const CALL_BYTES: u64 = 4 << 10;

/// What a call in flight keeps, until dropped.
pub struct CallBytes {
    scope: Arc<Scope>,
    bytes: u64,
    room: Room,
}

impl Drop for CallBytes {
    fn drop(&mut self) {
        self.scope.calls.fetch_sub(self.bytes, SeqCst);
    }
}

/// A guest function that runs for a scope, until dropped.
pub struct CallSlot(Arc<Scope>);

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.0.parts.fetch_sub(1, SeqCst);
    }
}

/// Results that views read piece by piece: what they take of the host meanwhile.
#[derive(Default)]
pub struct Results {
    /// Bytes of rows that are read already.
    bytes: AtomicU64,
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
}

/// A new request id: sorts by time, unique across hosts.
pub fn new_id() -> String {
    let mut text = Uuid::encode_buffer();
    Uuid::now_v7().simple().encode_lower(&mut text).to_owned()
}
