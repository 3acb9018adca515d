//! What one request has on the host: identity, time limit, context, transaction, worker.
//!
//! A scope is opened in one place (`request/attempt.rs`), shared by everything that works for the request, and dropped
//! with the last of these. Dropping it releases whatever it holds, so no exit path can forget anything (R13): the
//! transaction rolls back, connections and the worker go back to their pools, held events and temporary files are
//! removed.
//!
//! Resources are acquired in one order: a place among the async instances, a sync worker, a database connection.
//! Whoever holds a later one never waits for an earlier one, so scopes wait for capacity, never for each other (R4).

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

/// Whose request it is. Known before the request is routed, and handed on to the events that it publishes (R14).
#[derive(Debug, Clone)]
pub struct Origin {
    /// The request's id, in logs and for its views.
    pub id: String,
    /// The position in a distributed trace.
    pub trace: Trace,
    /// The client's address.
    pub peer: SocketAddr,
    /// How many requests of this app the request is nested in.
    pub depth: u32,
    /// The values that the context starts with.
    pub values: Arc<Values>,
    /// The memory account that everything kept for the request is drawn from.
    pub account: Arc<Account>,
}

impl Origin {
    /// For what the host itself runs.
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

/// What an attempt gives to its scope.
pub struct Setup {
    /// When the request had arrived in full: its time limit starts there.
    pub arrived: Instant,
    /// Leases a worker for a scope that may need one of its own.
    pub worker: WorkerLease,
    /// Records statements, in development.
    pub journal: Journal,
}

impl Setup {
    /// The time limit starts now; no worker, nothing recorded.
    pub fn now() -> Setup {
        Setup {
            arrived: Instant::now(),
            worker: WorkerLease::none(),
            journal: Journal::off(),
        }
    }
}

/// What one request has. See the module.
pub struct Scope {
    /// Whose request it is.
    pub origin: Arc<Origin>,
    /// The view that the request was routed to.
    pub view: Arc<View>,
    /// The limits of that view's module.
    pub limits: Limits,
    /// The time limit and the cancellation (R15).
    pub deadline: Arc<Deadline>,
    /// The transaction of its view (R7).
    pub transaction: Arc<Transaction>,
    /// The statements of the request, when they are recorded.
    pub journal: Journal,
    outbound: OnceLock<Arc<Semaphore>>,
    /// Set when an outbound request has been sent: the request cannot be run again.
    pub sent: AtomicBool,
    /// Set when a function that may write files has used WASI: the request cannot be run again.
    pub files: AtomicBool,
    /// Results of queries that the host holds for it.
    pub results: Results,
    hops: AtomicUsize,
    /// Its sync worker.
    pub worker: WorkerLease,
    /// Number of call slots taken, and whether any ever was.
    call_slots: AtomicUsize,
    begun: AtomicBool,
    /// Bytes that host calls in flight keep.
    calls: AtomicU64,
    /// Number of published events.
    events: AtomicUsize,
    /// Values that the functions of the request tell each other (R14).
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
            call_slots: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            events: AtomicUsize::new(0),
            _open: GaugeGuard::new(&METRICS.scopes),
        })
    }

    /// The limit on outbound requests in flight.
    pub fn outbound(&self) -> Arc<Semaphore> {
        let places = || Arc::new(Semaphore::new(self.limits.outbound_max));
        Arc::clone(self.outbound.get_or_init(places))
    }

    /// Takes a slot for one more guest function, unless too many are nested already.
    pub fn take_call_slot(self: &Arc<Self>) -> Option<CallSlot> {
        let taken = (self.call_slots).fetch_update(SeqCst, SeqCst, |taken| {
            Some(taken + 1).filter(|taken| *taken <= CALL_SLOTS_MAX)
        });
        self.begun.store(true, SeqCst);
        taken.ok().map(|_| CallSlot(Arc::clone(self)))
    }

    /// Whether any guest function has taken a slot.
    pub fn has_begun(&self) -> bool {
        self.begun.load(SeqCst)
    }

    /// Counts what a host call keeps of its arguments until it ends. An async guest can have any number of calls in
    /// flight, and their arguments are no longer in the guest's own memory.
    ///
    /// # Errors
    /// When all calls in flight together would keep too much; the text says so.
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

    /// Counts one more event. Returns the number with it.
    pub fn count_event(&self) -> usize {
        self.events.fetch_add(1, SeqCst) + 1
    }

    /// Counts a change between a loop and a worker.
    pub fn hop(&self) {
        self.hops.fetch_add(1, SeqCst);
    }

    /// How often the request went from a loop to a worker or back for a link of its chain.
    pub fn hops(&self) -> usize {
        self.hops.load(SeqCst)
    }
}

/// About how many bytes of the host a call takes beside its arguments.
const CALL_BYTES: u64 = 4 << 10;

/// The bytes that a call in flight keeps, counted until dropped.
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

/// A slot for one guest function of a scope, until dropped.
pub struct CallSlot(Arc<Scope>);

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.0.call_slots.fetch_sub(1, SeqCst);
    }
}

/// Rows that are read ahead for results that views read in pieces.
#[derive(Default)]
pub struct Results {
    /// Their bytes.
    bytes: AtomicU64,
}

impl Results {
    /// Adds bytes of rows, unless the sum would be more than `max`.
    pub fn hold(&self, bytes: u64, max: u64) -> bool {
        let taken = self.bytes.fetch_update(SeqCst, SeqCst, |held| {
            Some(held + bytes).filter(|sum| *sum <= max)
        });
        taken.is_ok()
    }

    /// Takes bytes of rows away.
    pub fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, SeqCst);
    }
}

/// A new request id. Ids sort by time and are unique across hosts.
pub fn new_id() -> String {
    let mut text = Uuid::encode_buffer();
    Uuid::now_v7().simple().encode_lower(&mut text).to_owned()
}
