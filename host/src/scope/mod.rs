//! What one attempt of a request has on the host: identity, time limit, context, transaction, worker.
//!
//! A scope is opened in one place (`request/attempt.rs`) and shared by everything that works for the attempt. It is
//! dropped when nothing uses it any more. Dropping it releases whatever it holds, so no exit path can forget anything
//! (R13): the transaction rolls back, connections and the worker go back to their pools, held events and temporary
//! files are removed.
//!
//! Resources are acquired in one order: guest memory, a place among the async instances, a sync worker, a database
//! connection.
//! Whoever holds a later one never waits for an earlier one, so scopes wait for capacity, never for each other (R4).

pub mod context;
pub mod conversation;
pub mod outbound;
pub mod socket;
pub mod transaction;
pub mod worker_lease;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::timestamp::context::{ContextV7, ThreadLocalContext};
use uuid::{Timestamp, Uuid};

use crate::budget::{self, Account, Room};
use crate::config::Limits;
use crate::database::Journal;
use crate::http::trace_context::Trace;
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Deadline;
use crate::threads::workers::CALL_SLOTS_MAX;
use crate::view::View;
use context::{Context, Values};
use conversation::{Conversation, Works};
use outbound::Outbound;
use socket::Socket;
use transaction::Transaction;
use worker_lease::WorkerLease;

/// Where a request comes from. Known before the request is routed, and handed on to the events that the request
/// publishes (R14).
#[derive(Clone)]
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
    /// The web socket that the request opens, or whose event it is.
    pub socket: Option<Arc<Socket>>,
}

impl Origin {
    /// The origin of work that the host itself starts.
    pub fn host() -> Arc<Origin> {
        Arc::new(Origin {
            id: new_id(),
            trace: Trace::begin(),
            peer: (Ipv4Addr::LOCALHOST, 0).into(),
            depth: 0,
            values: Arc::default(),
            account: budget::process().unpaid(),
            socket: None,
        })
    }
}

/// What an attempt gives to its scope.
pub struct Setup {
    /// When the request had arrived in full. The time limit counts from then.
    pub arrived: Instant,
    /// The lease of a sync worker, for a scope that may need one of its own.
    pub worker: WorkerLease,
    /// Records the statements of the request, in development.
    pub journal: Journal,
    /// The transaction, if it is another one than the view declares.
    pub transaction: Option<Arc<Transaction>>,
}

impl Setup {
    /// A setup whose time limit counts from now, without a worker and without a record of statements.
    pub fn now() -> Setup {
        Setup {
            arrived: Instant::now(),
            worker: WorkerLease::none(),
            journal: Journal::off(),
            transaction: None,
        }
    }
}

/// What one attempt of a request has: see the module's documentation.
pub struct Scope {
    /// Where the request comes from.
    pub origin: Arc<Origin>,
    /// The view that the request was routed to.
    pub view: Arc<View>,
    /// The limits of that view's module.
    pub limits: Limits,
    /// The time limit and the cancellation (R15).
    pub deadline: Arc<Deadline>,
    /// The transaction of the view (R7).
    pub transaction: Arc<Transaction>,
    /// The statements of the request, when they are recorded.
    pub journal: Journal,
    outbound: OnceLock<Arc<Outbound>>,
    conversation: OnceLock<Arc<Conversation>>,
    /// The CPU time that is left for producing the body of the response, in nanoseconds. 0: its head is not made yet.
    stream_cpu_ns: AtomicU64,
    /// Set when an outbound request has been sent: the request cannot be run again.
    pub sent: AtomicBool,
    /// Set when a function that may write files has used WASI: the request cannot be run again.
    pub files: AtomicBool,
    /// Counts the rows that the host has read ahead for the request.
    pub results: Results,
    hops: AtomicUsize,
    /// The sync worker of the scope.
    pub worker: WorkerLease,
    /// The number of call slots that are taken, and (in `begun`) whether any was ever taken.
    call_slots: AtomicUsize,
    begun: AtomicBool,
    /// Bytes that host calls in flight keep.
    calls: AtomicU64,
    /// Shared with the bodies that [`Scope::body_source`] counts.
    body_sources: Arc<()>,
    /// Number of published events.
    events: AtomicUsize,
    /// Values that the functions of the request tell each other (R14).
    pub context: Context,
    open: Mutex<Option<GaugeGuard>>,
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
            transaction: (setup.transaction).unwrap_or_else(|| Transaction::new(view.transaction)),
            journal: setup.journal,
            outbound: OnceLock::new(),
            conversation: OnceLock::new(),
            stream_cpu_ns: AtomicU64::new(0),
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
            body_sources: Arc::default(),
            events: AtomicUsize::new(0),
            open: Mutex::new(Some(GaugeGuard::new(&METRICS.scopes))),
        })
    }

    /// Notes that nothing is left to do in the scope, although it is kept for the access log: it counts as open no more.
    pub fn is_done(&self) {
        self.open.lock().take();
    }

    /// Notes that the head of the response is made: from now on the limits for streams apply.
    pub fn begin_stream(&self) {
        let cpu = Duration::from_millis(self.limits.stream_cpu_ms);
        self.stream_cpu_ns.store(nanoseconds(cpu), SeqCst);
        let time = Duration::from_millis(self.limits.stream_timeout_ms);
        self.deadline.restart(time);
    }

    /// Notes that the body of the response is finished. A function that goes on has as much time and CPU time for that
    /// as for its answer. `used`: the CPU time that it has used.
    pub fn end_stream(&self, used: Duration) {
        let cpu = nanoseconds(used + self.view.cpu);
        self.stream_cpu_ns.fetch_min(cpu, SeqCst);
        self.deadline.restart(self.view.timeout);
    }

    /// The CPU time for producing the body of the response. None: its head is not made yet.
    pub fn stream_cpu(&self) -> Option<Duration> {
        let ns = self.stream_cpu_ns.load(SeqCst);
        (ns > 0).then(|| Duration::from_nanos(ns))
    }

    /// Notes that the scope is that of a conversation, which has limits of its own from now on.
    pub fn begin_conversation(&self) -> &Arc<Conversation> {
        let begin = || Conversation::begin(&self.deadline, self.view.timeout);
        self.conversation.get_or_init(begin)
    }

    /// The conversation that the scope is for, if it is.
    pub fn conversation(&self) -> Option<&Arc<Conversation>> {
        self.conversation.get()
    }

    /// Notes that the request has something open that others may wait for, until the result is dropped: see
    /// [`Conversation::works`]. A request that is no conversation has one time limit for everything.
    pub fn works(&self, holds: bool) -> Option<Works> {
        let conversation = self.conversation.get();
        conversation.map(|conversation| conversation.works(holds))
    }

    /// The time that one call of the request may take, which is the time that is left to the request. A conversation has no
    /// end, so its calls have the time of a request, or what is left for what it has open (see `conversation.rs`).
    pub fn time_for_call(&self) -> Duration {
        let left = self.deadline.remaining();
        match self.conversation.get() {
            Some(_) => left.min(self.view.timeout),
            None => left,
        }
    }

    /// The permits for outbound requests.
    pub fn outbound(&self) -> Arc<Outbound> {
        let permits = || Outbound::new(self.limits.outbound_max);
        Arc::clone(self.outbound.get_or_init(permits))
    }

    /// Takes over the permits for outbound requests of `other`, a scope of the same request, whose open bodies go on here.
    pub fn share_outbound(&self, other: &Scope) {
        let shared = self.outbound.set(other.outbound());
        debug_assert!(shared.is_ok(), "nothing was sent in this scope yet");
    }

    /// Takes a slot for one more guest function. None: `CALL_SLOTS_MAX` functions of the request run or wait already.
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

    /// Counts the bytes of its arguments that a host call keeps, until the call ends. An async guest can have any
    /// number of calls in flight, and their arguments are no longer in the guest's own memory.
    ///
    /// # Errors
    /// When all calls in flight together would keep too much, or there is no memory for this call. The text says which.
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

    /// Counts a body that the host brings to a function of the request, until the result is dropped. A function that has
    /// handed such a body on may end before the body does.
    pub fn body_source(&self) -> Arc<()> {
        Arc::clone(&self.body_sources)
    }

    /// Whether there is a body that [`Scope::body_source`] counts.
    pub fn has_body_sources(&self) -> bool {
        Arc::strong_count(&self.body_sources) > 1
    }

    /// Counts one more published event. Returns the number of events, this one included.
    pub fn count_event(&self) -> usize {
        if let Some(conversation) = self.conversation.get()
            && conversation.renews_sent()
        {
            self.events.store(0, SeqCst);
        }
        self.events.fetch_add(1, SeqCst) + 1
    }

    /// Counts one change from a loop to a worker or back.
    pub fn hop(&self) {
        self.hops.fetch_add(1, SeqCst);
    }

    /// How often the request changed from a loop to a worker or back to run a guest function.
    pub fn hops(&self) -> usize {
        self.hops.load(SeqCst)
    }
}

/// About how many bytes of the host's memory a call takes besides its arguments.
const CALL_BYTES: u64 = 4 << 10;

/// The bytes that a call in flight keeps, counted until dropped.
pub struct CallBytes {
    scope: Arc<Scope>,
    bytes: u64,
    room: Room,
}

impl CallBytes {
    /// Gives back what is beyond `bytes`. The call itself still counts.
    pub fn cut_to(&mut self, bytes: u64) {
        if let Some(less @ 1..) = self.bytes.checked_sub(bytes + CALL_BYTES) {
            self.bytes -= less;
            let empty = Room::empty(&self.scope.origin.account);
            self.room = std::mem::replace(&mut self.room, empty).cut_to(self.bytes);
            self.scope.calls.fetch_sub(less, SeqCst);
        }
    }
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

/// Counts rows that are read ahead for results that views read in pieces.
#[derive(Default)]
pub struct Results {
    /// The bytes of these rows.
    bytes: AtomicU64,
}

impl Results {
    /// Adds bytes of rows. False, and nothing is added, when the sum would be more than `max`.
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

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

thread_local! {
    /// The ids of each thread, so that making one takes no lock.
    static IDS: ContextV7 = const { ContextV7::new() };
}

/// A new request id. Ids sort by time, to the millisecond, and are unique across hosts.
pub fn new_id() -> String {
    let id = Uuid::new_v7(Timestamp::now(ThreadLocalContext::new(&IDS)));
    let mut text = Uuid::encode_buffer();
    id.simple().encode_lower(&mut text).to_owned()
}
