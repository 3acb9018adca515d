//! The host-side life of one request: who it is, until when it may run, what it knows and what it holds.
//!
//! A scope is opened in one place (`request.rs`; `events.rs` for events), shared by everything that works for the
//! request, and gone when the last of them is. What it holds is released by dropping, so there is no exit path
//! that forgets it (R13): the transaction rolls back, connections and the worker go back to their pools, events
//! that were held and temporary files are removed.
//!
//! Order of acquisition: place among the async instances, sync worker, database connection. Whoever holds a later
//! one never waits for an earlier one, so scopes wait for capacity, never for each other (R4).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::budget::{self, Account, Room};
use crate::config::{Limits, PARTS_MAX};
use crate::database::Journal;
use crate::deadline::Deadline;
use crate::error::shown;
use crate::gate::Refused;
use crate::metrics::{Held, METRICS};
use crate::middleware::USER;
use crate::trace::Trace;
use crate::transaction::Transaction;
use crate::view::View;
use crate::workers::{Exclusion, Lease, Workers};

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

/// Context values by name. Whoever shares them has them as they were then.
pub type Values = HashMap<Arc<str>, Value>;

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
    pub worker: Sticky,
    /// Whether its statements are recorded.
    pub journal: Journal,
}

impl Setup {
    /// From now on, with nothing special.
    pub fn now() -> Setup {
        Setup {
            arrived: Instant::now(),
            worker: Sticky::none(),
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
    /// Results of queries that the host holds for it.
    pub results: Results,
    hops: AtomicUsize,
    /// Its sync worker.
    pub worker: Sticky,
    /// Guest functions that run for it at this moment, and whether any has.
    parts: AtomicUsize,
    begun: AtomicBool,
    /// Bytes that calls in flight keep.
    calls: AtomicU64,
    /// Events that it has published.
    events: AtomicUsize,
    values: Mutex<Arc<Values>>,
    _open: Held,
}

/// A context value.
#[derive(Debug, Clone)]
pub struct Value {
    /// What was set.
    pub text: Arc<str>,
    /// Whether the host has set it: guests cannot change it then (R14).
    pub reserved: bool,
    /// What it takes, as long as the request, or an event of its, has it.
    _room: Option<Arc<Room>>,
}

impl Value {
    /// A value that no guest can change.
    pub fn reserved(text: &str) -> Value {
        Value {
            text: text.into(),
            reserved: true,
            _room: None,
        }
    }
}

/// Why a value was not set.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSet {
    /// Too many values, or this one is too large.
    TooLarge(String),
    /// The host has set it.
    Reserved(String),
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
            values: Mutex::new(Arc::clone(&origin.values)),
            origin: Arc::clone(origin),
            deadline: Arc::new(Deadline::new(setup.arrived + view.timeout)),
            transaction: Transaction::new(view.transaction),
            journal: setup.journal,
            outbound: OnceLock::new(),
            sent: AtomicBool::new(false),
            view: Arc::clone(view),
            limits: limits.clone(),
            results: Results::default(),
            hops: AtomicUsize::new(0),
            worker: setup.worker,
            parts: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            events: AtomicUsize::new(0),
            _open: Held::new(&METRICS.scopes),
        })
    }

    /// Places for outbound requests in flight.
    pub fn outbound(&self) -> Arc<Semaphore> {
        let places = || Arc::new(Semaphore::new(self.limits.outbound_max));
        Arc::clone(self.outbound.get_or_init(places))
    }

    /// A value that some part of this request has set.
    pub fn value(&self, name: &str) -> Option<String> {
        let value = self
            .values
            .lock()
            .get(name)
            .map(|value| Arc::clone(&value.text));
        value.map(|text| text.as_ref().to_owned())
    }

    /// All values as they are now.
    pub fn values(&self) -> Arc<Values> {
        Arc::clone(&self.values.lock())
    }

    /// Sets a value for the later parts of this request.
    ///
    /// # Errors
    /// A sentence, when there are too many values, this one is too large, or the host has set it.
    pub fn set_value(&self, name: &str, text: &str) -> Result<(), NotSet> {
        let max = self.limits.context_value_max_bytes;
        if name.len() + text.len() > max {
            return Err(NotSet::TooLarge(format!(
                "the context value `{}` has {} bytes with its name; `context_value_max_bytes` is {max}",
                shown(name),
                name.len() + text.len()
            )));
        }
        let mut values = self.values.lock();
        let known = values.get(name);
        if name == USER || known.is_some_and(|value| value.reserved) {
            return Err(NotSet::Reserved(format!(
                "the context value `{name}` is the host's, and views cannot set it: choose another name"
            )));
        }
        if known.is_none() && values.len() >= self.limits.context_values_max {
            return Err(NotSet::TooLarge(format!(
                "the request has {} context values already, as many as `context_values_max` allows",
                values.len()
            )));
        }
        let room = self
            .origin
            .account
            .draw((name.len() + text.len()) as u64 + VALUE_BYTES);
        let room = room.map_err(|why| NotSet::TooLarge(why.to_string()))?;
        let value = Value {
            text: text.into(),
            reserved: false,
            _room: Some(Arc::new(room)),
        };
        Arc::make_mut(&mut values).insert(name.into(), value);
        Ok(())
    }

    /// Takes the place of one more guest function, unless too many run within each other already.
    pub fn enter_part(self: &Arc<Self>) -> Option<Part> {
        let taken = (self.parts).fetch_update(SeqCst, SeqCst, |parts| {
            Some(parts + 1).filter(|parts| *parts <= PARTS_MAX)
        });
        self.begun.store(true, SeqCst);
        taken.ok().map(|_| Part(Arc::clone(self)))
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
/// The same for a context value.
const VALUE_BYTES: u64 = 128;

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
pub struct Part(Arc<Scope>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.parts.fetch_sub(1, SeqCst);
    }
}

/// How far a scope is with its worker.
#[derive(Default)]
enum Leased {
    #[default]
    NotYet,
    Now(Arc<Lease>),
    /// Its last sync part has ended.
    Over,
}

/// The sync worker that a scope sticks to (R2, R4).
pub struct Sticky {
    /// None: the scope cannot come to need one, or its one job has it already.
    workers: Option<Workers>,
    lease: tokio::sync::Mutex<Leased>,
    /// The worker's number for the log; 0: none yet.
    number: AtomicUsize,
}

impl Sticky {
    /// No worker can be leased.
    pub fn none() -> Sticky {
        Sticky {
            workers: None,
            lease: tokio::sync::Mutex::default(),
            number: AtomicUsize::new(0),
        }
    }

    /// A worker is leased when it is first needed.
    pub fn leased_from(workers: &Workers) -> Sticky {
        Sticky {
            workers: Some(workers.clone()),
            ..Sticky::none()
        }
    }

    /// The scope's worker.
    ///
    /// # Errors
    /// When none can be had.
    ///
    /// # Panics
    /// When the scope was said to need none.
    pub async fn get(&self, deadline: &Deadline) -> Result<Arc<Lease>, Refused> {
        let mut state = self.lease.lock().await;
        if let Leased::Now(lease) = &*state {
            return Ok(Arc::clone(lease));
        }
        let workers = self.workers.as_ref();
        let workers = workers.expect("the chain was looked through for sync parts");
        let lease = Arc::new(workers.lease(deadline).await?);
        self.runs_on(lease.worker);
        *state = Leased::Now(Arc::clone(&lease));
        Ok(lease)
    }

    /// Gives the worker back: no sync part can follow.
    pub async fn release(&self) {
        *self.lease.lock().await = Leased::Over;
    }

    /// Takes the worker now if the scope may need one later: before it holds a connection that others wait for.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn reserve(&self, deadline: &Deadline) -> Result<(), Refused> {
        if self.workers.is_none() || matches!(*self.lease.lock().await, Leased::Over) {
            return Ok(());
        }
        self.get(deadline).await.map(drop)
    }

    /// Has the worker for a part that is called `from` jobs and exclusions of these ids: see [`Lease::exclude`]. None:
    /// the scope has no use for a worker any more.
    ///
    /// # Errors
    /// When no worker can be had, or the request ends.
    pub async fn exclude(
        &self,
        deadline: &Deadline,
        from: &[u64],
    ) -> Result<Option<Exclusion>, Refused> {
        if self.workers.is_none() || matches!(*self.lease.lock().await, Leased::Over) {
            return Ok(None);
        }
        let lease = self.get(deadline).await?;
        let excluded = lease.exclude(deadline, from).await;
        excluded.map(Some).map_err(Refused::Ended)
    }

    /// Notes the worker that the scope runs on.
    pub fn runs_on(&self, number: usize) {
        self.number.store(number, SeqCst);
    }

    /// The number of the worker, if any part has run on one.
    pub fn number(&self) -> Option<usize> {
        Some(self.number.load(SeqCst)).filter(|number| *number > 0)
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
