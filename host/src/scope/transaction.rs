//! Transactions, and which of them a statement belongs to (R7–R11).
//!
//! Each guest function that runs for a scope is a [`Member`] of one [`Transaction`]. Its statements, blocks and events
//! go through its membership, so that nothing has to be guessed from what happens to be open. A request starts with one
//! transaction, which middleware and the view share. A view that is called as a sub-request joins the transaction of
//! its caller while the caller is in one of its levels, and has a transaction of its own otherwise.
//!
//! A transaction has levels. The transaction of an atomic view has one level from the start, and each `begin` adds one:
//! the outermost level is the transaction itself, the levels within it are savepoints. A member belongs to the level
//! that it was called in and to those that it began itself. Its statements run in the innermost of these levels; while
//! a level of another member is open on top, they wait for the end of that level. So the failure of one member undoes
//! nothing of another member, and no member commits what another one has rolled back.
//!
//! Within a transaction every statement goes to one connection, one after the other, in the order of the guest's calls
//! (R8). There is no way around the transaction, so concurrent work of a view (joined or spawned futures) is part of
//! it, too. A level exists only in the host until a statement needs it: the database sees it in the same message as
//! that statement. A statement that fails poisons its level: on every kind of database, nothing more runs there until
//! the level is rolled back.
//!
//! The connection is part of the locked state, and whoever runs a statement takes the lock along to the thread that
//! runs the statement. So the statement of a cancelled caller still runs to its end. Dropping the transaction drops the
//! lease of its connection, which rolls back.
//!
//! A version of an app that is only tried out gets a copy of a request ([`Transaction::copy`]). A copy's transaction is
//! never committed, whatever its view declares: all that its functions do is within a savepoint, its effects are never
//! run, and nothing of it runs outside. When it has ended, the savepoint is rolled back, and the request may go on in
//! the same transaction of the database ([`Transaction::share`]), so that both have seen the same state.
//!
//! Effects are held with the level that they were sent in (R10). Which level that is follows from the order of the
//! guest's calls alone, so that sending never waits; see `effects`.

mod effects;
mod state;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};

use futures::FutureExt as _;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::{MutexGuard, Notify, OwnedMutexGuard};

use crate::config::LEVELS_MAX;
use crate::database::{
    Access, Database, Error, ErrorKind, Face, Isolation, Lease, Outcome, Statement,
};
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::METRICS;
use crate::threads::deadline::{Deadline, Ended, Need};
use crate::view::Options;

pub use effects::{Described, Effect, StreamPermit};
use effects::{Effects, History, Reason};
pub use state::Parked;
use state::{Place, State, ended, left_behind};

/// How the last transaction of a scope ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// No transaction has ended.
    #[default]
    None,
    /// The changes are in the database.
    Committed,
    /// The changes are undone.
    RolledBack,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::None => "none",
            Fate::Committed => "committed",
            Fate::RolledBack => "rolled back",
        })
    }
}

/// A transaction of a scope. The database may not have seen it yet.
pub struct Transaction {
    options: Options,
    /// Number of pins of its connection. A pin counts from the guest's call on, even while it waits for the connection.
    pins: AtomicUsize,
    /// The name of the database whose connection is pinned, or will be when a waiting pin gets it.
    pinned: Mutex<Option<String>>,
    last_id: AtomicU64,
    /// Set when the transaction has ended: its members can do nothing more, neither in a level nor outside of the
    /// levels.
    over: AtomicBool,
    /// Set when a member has failed: the transaction of an atomic view then rolls back, whatever callers make of the
    /// failure.
    failed: AtomicBool,
    /// Levels and pins that the guest dropped without ending them, perhaps while a statement ran. Handled before
    /// anything else is done under the lock.
    left: Mutex<Vec<Left>>,
    effects: Arc<Effects>,
    state: Arc<tokio::sync::Mutex<State>>,
    /// Wakes members that wait for the end of another member's level.
    changed: Notify,
    /// The transaction of the caller, if this transaction is that of a view which was called outside of any level.
    around: Option<Arc<Transaction>>,
    /// The copy of a request has one.
    copy: Option<Copied>,
}

/// What the transaction of a copy has in addition.
struct Copied {
    /// Whether the copied view is read-only, even if the transaction is not.
    read_only: bool,
    /// Whether the request would have no transaction from the start: its first level is there for the copy only.
    is_loose: bool,
    /// The first thing that the copy wanted to do and cannot.
    withheld: Mutex<Option<Withheld>>,
}

/// What the copy of a request cannot do, because no rollback would undo it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withheld {
    /// To send an outbound request.
    Outbound,
    /// To pin a connection.
    Pin,
}

/// Whether the database was the same for a copy and for the request that it is a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Both saw the same state.
    Same,
    /// Another transaction was committed between them.
    Changed,
    /// The request did not use the transaction that the copy has left.
    Apart,
}

/// A level: the transaction itself, or a savepoint in it. Each `begin` of a guest makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(u64);

impl Level {
    /// The level that the transaction of an atomic view has from the start.
    const WHOLE: Level = Level(0);
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level_{}", self.0)
    }
}

/// A pin: while there is one, all statements of the members go to one connection. Given back with
/// [`Transaction::unpin`].
#[derive(Debug)]
pub struct Pin(());

enum Left {
    /// A level, with `Member::claims` of the member that began the level.
    Level(Level, Arc<AtomicUsize>),
    Pin,
    /// The whole transaction: its view was given up.
    All,
}

impl Transaction {
    /// The first transaction of a scope. No database has seen it yet.
    pub fn new(options: Options) -> Arc<Transaction> {
        Transaction::within(None, options, Arc::default())
    }

    /// As [`Transaction::new`], for a request that is compared with a copy of it: its effects are described.
    pub fn compared(options: Options) -> Arc<Transaction> {
        Transaction::within(None, options, History::describing(false))
    }

    /// The transaction of a copy of a request. It begins in the database as `options` say, has a level from the start,
    /// and is never committed. `read_only`: the copied view may not write, even if the transaction may.
    pub fn copy(options: Options, read_only: bool) -> Arc<Transaction> {
        let is_loose = !options.atomic;
        let options = Options {
            atomic: true,
            ..options
        };
        let copy = Some(Copied {
            read_only,
            is_loose,
            withheld: Mutex::default(),
        });
        Transaction::made(None, options, History::describing(true), copy)
    }

    fn within(
        around: Option<Arc<Transaction>>,
        options: Options,
        history: Arc<History>,
    ) -> Arc<Transaction> {
        Transaction::made(around, options, history, None)
    }

    fn made(
        around: Option<Arc<Transaction>>,
        options: Options,
        history: Arc<History>,
        copy: Option<Copied>,
    ) -> Arc<Transaction> {
        let effects = Arc::new(Effects::new(options.atomic, history));
        Arc::new(Transaction {
            options,
            pins: AtomicUsize::new(0),
            pinned: Mutex::default(),
            last_id: AtomicU64::new(0),
            over: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            left: Mutex::default(),
            state: Arc::new(tokio::sync::Mutex::new(State::new(
                options,
                &effects,
                copy.is_some(),
            ))),
            effects,
            changed: Notify::new(),
            around,
            copy,
        })
    }

    /// The membership of the function that the transaction was made for.
    pub fn first_member(self: &Arc<Self>) -> Member {
        self.first_member_called_by(None)
    }

    fn first_member_called_by(self: &Arc<Self>, caller: Option<&Member>) -> Member {
        let base = self.options.atomic.then_some(Level::WHOLE);
        let copy_reads = self.copy.as_ref().is_some_and(|copy| copy.read_only);
        let read_only = self.options.read_only || copy_reads;
        Member::new(self, base, read_only, None, caller)
    }

    /// Whether the transaction is that of a copy of a request.
    pub fn is_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// Notes that a copy wants to do something that it cannot. False when this is no copy: then it may.
    pub fn withholds(&self, what: Withheld) -> bool {
        match &self.copy {
            Some(copy) => {
                copy.withheld.lock().get_or_insert(what);
                true
            }
            None => false,
        }
    }

    /// The first thing that the copy wanted to do and cannot.
    pub fn withheld(&self) -> Option<Withheld> {
        self.copy.as_ref().and_then(|copy| *copy.withheld.lock())
    }

    /// The effects that were run, or, of a copy, would have been; in their order.
    pub fn described(&self) -> Vec<Described> {
        self.effects.history.described()
    }

    /// The statements in transactions that have changed rows, if effects are described; in their order.
    pub fn wrote(&self) -> Vec<Described> {
        self.effects.history.wrote()
    }

    /// The transaction of the database that a copy has left, with nothing of the copy in it. None: the copy has used no
    /// database, or its transaction is lost. To be called when the transaction has been finished.
    pub async fn parked(self: &Arc<Self>) -> Option<Parked> {
        self.lock().await.take_parked()
    }

    /// Lets the transaction go on in that of a copy, when its first statement is for the same database. Not for a
    /// transaction that has run a statement already. False when that cannot be; then it begins as ever.
    pub async fn share(self: &Arc<Self>, parked: Parked, deadline: &Arc<Deadline>) -> bool {
        self.lock().await.share(parked, deadline)
    }

    /// Whether a statement has failed in the outermost level, so that nothing more runs there.
    pub async fn is_poisoned(self: &Arc<Self>) -> bool {
        self.lock().await.is_poisoned()
    }

    /// Whether the transaction went on in that of a copy, and what has happened in the database between both.
    pub async fn was_shared(self: &Arc<Self>) -> Compared {
        self.lock().await.was_shared()
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, SeqCst) + 1
    }

    /// Whether a statement or commit of the scope conflicted with another transaction, and nothing was committed or
    /// sent to others before: then the whole request may succeed when it is run again.
    pub fn conflict(&self) -> bool {
        self.effects.history.can_begin_again()
    }

    /// Whether a database could not be reached, or the connection to it was lost.
    pub fn unavailable(&self) -> bool {
        self.effects.history.unavailable()
    }

    /// Whether a statement was cut off because its request had ended.
    pub fn cut_off(&self) -> bool {
        self.effects.history.cut_off()
    }

    /// Whether others may know of something that the scope has done: a commit, a statement outside of transactions, or an
    /// effect.
    pub fn lasting(&self) -> bool {
        self.effects.history.is_lasting()
    }

    /// The same, or something runs that may come to last: a commit, or a statement outside of transactions, whose caller
    /// has not waited for its end.
    pub fn may_last(&self) -> bool {
        self.effects.history.is_lasting_or_runs()
    }

    /// Whether a member has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }

    /// Whether a caller of this transaction's view, direct or not, has pinned a connection of the kind that `read_only`
    /// asks for. The caller waits for this view, so this view must not wait for that connection.
    fn is_pinned_around(&self, database: &Database, read_only: bool) -> bool {
        let around = std::iter::successors(self.around.as_deref(), |this| this.around.as_deref());
        around
            .filter(|around| around.pins.load(SeqCst) > 0)
            .filter(|around| !database.has_readers() || around.options.read_only == read_only)
            .any(|around| around.pinned.lock().as_ref() == Some(&database.config().name))
    }

    /// Whether a caller has pinned the only connection of the kind that `read_only` asks for.
    fn waits_for_caller(&self, database: &Database, read_only: bool) -> bool {
        database.connections(read_only) == 1 && self.is_pinned_around(database, read_only)
    }

    /// Ends a pin. The connection is given back immediately if nothing runs on it and no level needs it.
    pub fn unpin(&self, Pin(()): Pin) {
        self.leave(Left::Pin);
    }

    /// Ends the transaction. With `keep`, the transaction of an atomic view is committed. Otherwise everything that is
    /// still open is rolled back.
    ///
    /// # Errors
    /// When the transaction was to be committed and cannot be. Then no effect is released, and nothing is committed
    /// (R9); if the connection is lost during the commit, it is unknown whether the database has committed.
    pub async fn finish(self: &Arc<Self>, face: Face, keep: bool) -> Result<Fate, Error> {
        let mut state = self.lock().await;
        self.over.store(true, SeqCst);
        let finished = match state.database() {
            Some(database) => {
                let writes = state.writes();
                let finishing = async move { state.finish(keep).await };
                database.carry(face, writes, finishing).await
            }
            None => state.finish(keep).await,
        };
        finished.map(|()| self.effects.history.fate())
    }

    /// Ends the transaction of a function that has ended or was given up. What is still open in it is rolled back.
    pub fn give_up(&self) {
        if self.over.swap(true, SeqCst) {
            return;
        }
        self.effects.end();
        // A statement or commit that runs now goes on to its end, and a commit still releases its effects.
        self.leave(Left::All);
    }

    async fn locked(self: &Arc<Self>, deadline: &Deadline) -> Result<Locked, Error> {
        let state = deadline.bound(self.lock()).await?;
        match self.over.load(SeqCst) {
            true => Err(Ended::Answered.into()),
            false => Ok(state),
        }
    }

    async fn lock(self: &Arc<Self>) -> Locked {
        let mut locked = Locked {
            state: None,
            changes: true,
            transaction: Arc::clone(self),
        };
        let mut state = Arc::clone(&self.state).lock_owned().await;
        self.see_to_left(&mut state);
        locked.state = Some(state);
        locked
    }

    /// Handles the levels and pins that the guest dropped. If the lock is taken, the owner of the lock handles them
    /// when it gives the lock back.
    fn see_to_the_rest(&self) {
        // In a loop, because the guest may drop something after `see_to_left` and before the lock is given back.
        while !self.left.lock().is_empty() {
            let Ok(mut state) = self.state.try_lock() else {
                return;
            };
            self.see_to_left(&mut state);
        }
    }

    fn leave(&self, left: Left) {
        self.left.lock().push(left);
        self.see_to_the_rest();
        self.changed.notify_waiters();
    }

    fn see_to_left(&self, state: &mut State) {
        for left in std::mem::take(&mut *self.left.lock()) {
            // `claims` counts a level from the guest's call of `begin` on, so also one that never began.
            match left {
                Left::Level(level, claims) => {
                    claims.fetch_sub(1, SeqCst);
                    state.abandon(level);
                }
                Left::Pin => {
                    self.pins.fetch_sub(1, SeqCst);
                    state.unpin();
                }
                Left::All => {
                    state.give_up();
                    self.effects.clear();
                }
            }
        }
    }
}

/// The lock of a transaction's state, or a wait for the lock. Dropping either handles the levels and pins that the
/// guest dropped meanwhile. Dropping a wait must do so, because tokio hands the lock to the next waiter before it polls
/// the waiter: a waiter that is dropped in between had the lock.
///
/// Dropping the lock also wakes members that wait for a level, since the state may have changed. That includes locks
/// that are dropped by work in the background whose caller is gone.
struct Locked {
    state: Option<OwnedMutexGuard<State>>,
    /// Whether dropping the lock wakes the members that wait. A member that only looked and goes on waiting unsets
    /// this: otherwise waiting members would wake each other without end.
    changes: bool,
    transaction: Arc<Transaction>,
}

impl Deref for Locked {
    type Target = State;

    fn deref(&self) -> &State {
        self.state.as_ref().expect("it was waited for")
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut State {
        self.state.as_mut().expect("it was waited for")
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let had_it = self.state.take().is_some();
        self.transaction.see_to_the_rest();
        if had_it && self.changes {
            self.transaction.changed.notify_waiters();
        }
    }
}

/// The membership of a guest function in a transaction: its statements, blocks and events belong there.
pub struct Member {
    transaction: Arc<Transaction>,
    id: u64,
    /// The level that the function was called in; none: outside of any level.
    base: Option<Level>,
    read_only: bool,
    /// The least isolation that the function asks of a transaction that it joins.
    isolation: Option<Isolation>,
    /// Number of levels that the function has begun. A level counts from the guest's call on until it has ended.
    claims: Arc<AtomicUsize>,
    /// Number of calls of the function on a database that are in flight.
    calls: AtomicUsize,
    /// The ids of the jobs and exclusions that the function is called from, and of its own exclusions: whatever it
    /// calls is called from these ([`crate::threads::handoff`]).
    from: Mutex<Vec<u64>>,
    /// Held by the call of the function that is the next to take the state's lock. Later calls wait for `order`, and so
    /// keep their order, while that call waits for the end of another member's level.
    order: tokio::sync::Mutex<()>,
    life: Arc<Life>,
}

/// Whether a function may still do something. A function that was given up takes along all functions that it has called,
/// directly or not: they may run on another thread, or be waited for by one that does not know yet.
struct Life {
    /// `WAITS`, `RUNS`, `GOES_ON` or `IS_OVER`.
    state: AtomicU8,
    caller: Option<Arc<Life>>,
}

impl Life {
    fn is_over(&self) -> bool {
        for life in std::iter::successors(Some(self), |life| life.caller.as_deref()) {
            match life.state.load(SeqCst) {
                IS_OVER => return true,
                // Whether its callers have ended does not matter to it any more.
                GOES_ON => return false,
                _ => {}
            }
        }
        false
    }
}

const WAITS: u8 = 0;
const RUNS: u8 = 1;
/// The function has ended, or nobody waits for it any more.
const IS_OVER: u8 = 2;
/// The function has answered, and goes on to produce the body of the response. Its callers do not wait for it.
const GOES_ON: u8 = 3;

impl Member {
    fn new(
        transaction: &Arc<Transaction>,
        base: Option<Level>,
        read_only: bool,
        isolation: Option<Isolation>,
        caller: Option<&Member>,
    ) -> Member {
        if let Some(base) = base {
            transaction.effects.join(base);
        }
        Member {
            id: transaction.next_id(),
            transaction: Arc::clone(transaction),
            base,
            read_only,
            isolation,
            claims: Arc::default(),
            calls: AtomicUsize::new(0),
            from: Mutex::default(),
            order: tokio::sync::Mutex::default(),
            life: Arc::new(Life {
                state: AtomicU8::new(WAITS),
                caller: caller.map(|caller| Arc::clone(&caller.life)),
            }),
        }
    }

    /// The membership of the next link of the chain, which the function calls now.
    pub fn next(&self) -> Member {
        let next = Member::new(
            &self.transaction,
            self.level(),
            self.read_only,
            self.isolation,
            Some(self),
        );
        next.called_from(self.from());
        next
    }

    /// The membership of a view that the function calls now. The view joins this transaction if the function is in one
    /// of the transaction's levels. Otherwise the view gets a new transaction.
    ///
    /// # Errors
    /// When the function was given up. Its levels are gone then, and what the view does would be outside of them.
    pub fn call(&self, view: Options) -> Result<Member, Ended> {
        let read_only = self.read_only || view.read_only;
        let caller = Some(self);
        let level = self.level();
        // Looked at after the level: whoever gives a function up says so before its levels are dropped.
        self.check_alive()?;
        let called = match level {
            Some(level) => {
                let isolation = view.isolation;
                Member::new(&self.transaction, Some(level), read_only, isolation, caller)
            }
            None => {
                let options = Options { read_only, ..view };
                let around = Some(Arc::clone(&self.transaction));
                let history = Arc::clone(&self.transaction.effects.history);
                Transaction::within(around, options, history).first_member_called_by(caller)
            }
        };
        called.called_from(self.from());
        Ok(called)
    }

    /// Whether the transaction was made for this function: its first member has the id 1.
    pub fn owns_transaction(&self) -> bool {
        self.id == 1
    }

    /// The ids of the jobs and exclusions that the function is called from.
    pub fn from(&self) -> Vec<u64> {
        self.from.lock().clone()
    }

    /// Adds ids to those that the function is called from.
    pub fn called_from(&self, ids: impl IntoIterator<Item = u64>) {
        self.from.lock().extend(ids);
    }

    /// Removes an id from those that the function is called from.
    pub fn not_called_from(&self, id: u64) {
        self.from.lock().retain(|other| *other != id);
    }

    /// The transaction.
    pub fn transaction(&self) -> &Arc<Transaction> {
        &self.transaction
    }

    /// The level that a call made now belongs to: the innermost level of the function.
    fn level(&self) -> Option<Level> {
        self.transaction.effects.level_of(self.id).or(self.base)
    }

    /// Whether statements that write are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// A permit for a result that is read in pieces outside of any transaction, on a connection of its own. None: too
    /// many connections are in use for such results and pins.
    pub fn keep_stream(&self, database: &Database) -> Option<StreamPermit> {
        let history = &self.transaction.effects.history;
        let permit = database.stream_permit()?;
        Some(history.keeps(permit))
    }

    /// What the function's statements may do on this database outside of any transaction.
    pub fn access(&self, database: &Database) -> Access {
        Access {
            read_only: self.read_only,
            no_reader: self.transaction.waits_for_caller(database, true),
            no_writer: self.transaction.waits_for_caller(database, false),
        }
    }

    /// Whether a statement that is issued now belongs to a transaction or to a pinned connection.
    pub fn is_active(&self) -> bool {
        self.base.is_some()
            || self.claims.load(SeqCst) > 0
            || self.transaction.pins.load(SeqCst) > 0
    }

    /// Marks the function as begun. False when the function was given up before: then it must not begin, because its
    /// transaction may be committed already.
    #[must_use]
    pub fn begins(&self) -> bool {
        let begins = || {
            let state = &self.life.state;
            state.compare_exchange(WAITS, RUNS, SeqCst, SeqCst).is_ok()
        };
        self.is_awaited() && begins()
    }

    /// Whether the function has ended, or nobody waits for it any more, or for a function that called it.
    pub fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// Whether the function that called this one, and those that called that one, still wait.
    pub fn is_awaited(&self) -> bool {
        let caller = self.life.caller.as_ref();
        caller.is_none_or(|caller| !caller.is_over())
    }

    /// An error when the function, or its transaction, is over: then it can do nothing more.
    fn check_alive(&self) -> Result<(), Ended> {
        match self.is_over() || self.transaction.over.load(SeqCst) {
            false => Ok(()),
            true => Err(Ended::Answered),
        }
    }

    /// Notes that nobody waits for the function any more. If the function runs, it may be in the middle of its work, so
    /// the transaction that it was called in rolls back.
    pub fn give_up(&self) {
        let is_over = |was| (was != GOES_ON).then_some(IS_OVER);
        let Ok(was) = (self.life.state).fetch_update(SeqCst, SeqCst, is_over) else {
            return;
        };
        let reason = (was == RUNS).then_some(Reason::MemberGivenUp);
        if let Some(base) = self.base.filter(|_| was != IS_OVER) {
            self.transaction.effects.part(base, reason);
        }
    }

    /// Notes that the function has answered and goes on, to produce the body of its response. It leaves the level that
    /// it was called in: what it does from now on is outside of that level, and nobody can give it up. If it failed, the
    /// transaction rolls back (R9).
    ///
    /// # Errors
    /// When the function was given up, or its level has ended before: then nothing that it did is kept.
    pub fn goes_on(&self, failed: bool) -> Result<(), Error> {
        let Member {
            transaction, base, ..
        } = self;
        let state = &self.life.state;
        let runs = state.compare_exchange(RUNS, GOES_ON, SeqCst, SeqCst);
        runs.map_err(|_| Error::from(Ended::Answered))?;
        if failed {
            transaction.failed.store(true, SeqCst);
        }
        let reason = failed.then_some(Reason::MemberFailed);
        match base.is_none_or(|base| transaction.effects.part(base, reason)) {
            true => Ok(()),
            false => Err(left_behind()),
        }
    }

    /// Counts a call of the function on a database that is in flight, until the result is dropped.
    pub fn in_flight(&self) -> InFlight<'_> {
        self.calls.fetch_add(1, SeqCst);
        InFlight(self)
    }

    /// Whether the function has a transaction, a savepoint or a pin open, or a call on a database in flight: others of
    /// the request may have to wait for it.
    pub fn holds_any(&self) -> bool {
        let pins = self.transaction.pins.load(SeqCst);
        pins > 0 || self.claims.load(SeqCst) > 0 || self.calls.load(SeqCst) > 0
    }

    /// Whether the function was called in a level of a transaction; of a copy: in one that the request would have, too.
    pub fn is_in_level(&self) -> bool {
        let copy = self.transaction.copy.as_ref();
        let is_loose = copy.is_some_and(|copy| copy.is_loose);
        self.base
            .is_some_and(|base| !is_loose || base != Level::WHOLE)
    }

    /// Whether the function is in a transaction or savepoint, its caller's or its own: what it sends is held then.
    pub fn holds_effects(&self) -> bool {
        self.is_in_level() || self.claims.load(SeqCst) > 0
    }

    /// Notes that the function has ended. If it failed, the transaction rolls back (R9).
    ///
    /// # Errors
    /// When the level that the function was called in has ended before: then nothing that the function did is kept.
    pub fn end(&self, failed: bool) -> Result<(), Error> {
        let Member {
            transaction, base, ..
        } = self;
        if failed {
            transaction.failed.store(true, SeqCst);
        }
        let was = self.life.state.swap(IS_OVER, SeqCst);
        let Some(base) = base.filter(|_| was != IS_OVER) else {
            return Ok(());
        };
        let reason = failed.then_some(Reason::MemberFailed);
        match transaction.effects.part(base, reason) || transaction.over.load(SeqCst) {
            true => Ok(()),
            false => Err(left_behind()),
        }
    }

    /// Waits for `ready`, then for the turn of a statement that is issued now. None: the statement belongs to no
    /// transaction and no pinned connection; `ready` may not have been polled then.
    ///
    /// # Errors
    /// When no connection can be had, the level is poisoned, the transaction is on another database, or `ready` fails.
    pub async fn turn(
        &self,
        on: (&Database, &Arc<Deadline>),
        ready: impl Future<Output = Result<(), Error>>,
    ) -> Result<Option<Turn>, Error> {
        self.check_alive()?;
        if !self.is_active() {
            return self.outside();
        }
        let (database, deadline) = on;
        // This wait comes before all others, so that calls which the guest makes later, perhaps of `begin`, take their
        // turn after this statement.
        let order = deadline.bound(self.order.lock()).await?;
        ready.await?;
        let place = |state: &State| state.place(self.id, self.base, database);
        let Some(mut state) = self.placed(deadline, order, place).await? else {
            self.check_alive()?;
            return self.outside();
        };
        if state.has_levels() {
            self.suits(database)?;
        }
        if !state.is_connected() {
            self.may_connect(database)?;
        }
        if let Database::Postgres(_) = database {
            state.connect(database, deadline).await?;
        }
        // For SQLite, `Turn::run` acquires the connection: for a write from a loop, the thread that writes must do
        // that.
        Ok(Some(Turn {
            state,
            database: database.clone(),
            deadline: Arc::clone(deadline),
            read_only: self.read_only,
        }))
    }

    /// The turn of a statement outside of transactions and pins: it needs none. A copy has no such statements, since its
    /// first level contains all of it: this is the second line of defence.
    fn outside(&self) -> Result<Option<Turn>, Error> {
        match self.transaction.is_copy() {
            true => Err(left_behind()),
            false => Ok(None),
        }
    }

    /// Waits for the lock of the state until no level of another member is open on top. None: the call belongs to no
    /// level and no pinned connection.
    async fn placed(
        &self,
        deadline: &Arc<Deadline>,
        _order: MutexGuard<'_, ()>,
        place: impl Fn(&State) -> Result<Place, Error>,
    ) -> Result<Option<Locked>, Error> {
        let mut waits = None;
        loop {
            // Registered before `place` looks at the state, so that no later change is missed.
            let changed = self.transaction.changed.notified();
            let mut state = self.transaction.locked(deadline).await?;
            match place(&state)? {
                Place::Here => return Ok(Some(state)),
                Place::Outside => return Ok(None),
                Place::Later => state.changes = false,
            }
            drop(state);
            waits.get_or_insert_with(|| deadline.waits_for(Need::Level));
            deadline.bound(changed).await?;
        }
    }

    /// Checks that the isolation of the transaction is at least as strict as the function asks for.
    fn suits(&self, database: &Database) -> Result<(), Error> {
        let has = self.transaction.options.isolation;
        match (self.isolation, database) {
            // The request that it is a copy of decides on the isolation.
            _ if self.transaction.is_copy() => Ok(()),
            (Some(wanted), Database::Postgres(_)) if strictness(has) < strictness(Some(wanted)) => {
                Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "this view asks for the isolation `{}`, and was called within a transaction of the level `{}`: give the view that calls it the same `isolation`, or call it outside of the transaction",
                        isolation_name(Some(wanted)),
                        isolation_name(has)
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    fn may_connect(&self, database: &Database) -> Result<(), Error> {
        let Transaction { options, .. } = &*self.transaction;
        match self
            .transaction
            .waits_for_caller(database, options.read_only)
        {
            true => Err(Error::pinned_by_caller(&database.config().name)),
            false => Ok(()),
        }
    }

    /// Begins a level on this database, once `ready` is done. Whatever the function issues after this call belongs to
    /// the level, even while the level waits to begin.
    ///
    /// # Errors
    /// When the level around the new one is poisoned, the transaction is on another database, too many levels are open,
    /// or `ready` fails.
    pub async fn begin<R>(
        &self,
        (database, deadline): (&Database, &Arc<Deadline>),
        ready: impl Future<Output = Result<R, Error>>,
    ) -> Result<(Level, R), Error> {
        self.check_alive()?;
        let beginning = Waiting::to_begin(self)?;
        let order = deadline.bound(self.order.lock()).await?;
        let ready = ready.await?;
        let place = |state: &State| match state.place(self.id, self.base, database)? {
            // A level of another member uses the connection, so the new level waits for its end.
            Place::Outside if state.has_levels() => Ok(Place::Later),
            Place::Outside => Ok(Place::Here),
            place => Ok(place),
        };
        let state = self.placed(deadline, order, place).await?;
        let mut state = state.expect("`place` says here or later");
        state.push(beginning.level, self.id, database)?;
        Ok((beginning.done(), ready))
    }

    /// Commits a level. For the outermost level this commits the transaction. For a savepoint, its changes become part
    /// of the level around it.
    ///
    /// # Errors
    /// When something in the level has failed, or the database cannot commit. The level is rolled back then.
    pub async fn commit(&self, face: Face, level: Level) -> Result<(), Error> {
        if let Err(over) = self.check_alive() {
            self.abandon(level);
            return Err(over.into());
        }
        self.end_level(face, level, true).await
    }

    /// Rolls a level back.
    ///
    /// # Errors
    /// When the level has ended already, or the database fails.
    pub async fn rollback(&self, face: Face, level: Level) -> Result<(), Error> {
        self.end_level(face, level, false).await
    }

    async fn end_level(&self, face: Face, level: Level, keep: bool) -> Result<(), Error> {
        let (waiting, torn) = Waiting::to_end(self, level);
        let transaction = &self.transaction;
        let order = self.order.lock().await;
        let mut state = transaction.lock().await;
        drop(order);
        waiting.done();
        let taken = state.take(level);
        if taken.is_some() {
            self.claims.fetch_sub(1, SeqCst);
        }
        let taken = taken.ok_or_else(ended)?;
        match state.database() {
            Some(database) => {
                let writes = state.writes();
                let ending = async move { state.end(taken, keep, torn).await };
                database.carry(face, writes, ending).await
            }
            // There is no connection: the database has seen nothing of the transaction, or the transaction is lost.
            None => state.end(taken, keep, torn).await,
        }
    }

    /// Rolls back a level that the guest dropped. Does not wait: the database may roll back later, but before the next
    /// statement runs.
    pub fn abandon(&self, level: Level) {
        self.transaction.effects.leave(level);
        let claims = Arc::clone(&self.claims);
        self.transaction.leave(Left::Level(level, claims));
    }

    /// Pins a connection of this database, once `ready` is done. Until [`Transaction::unpin`], all statements of the
    /// transaction's members on this database go to that connection, and statements that change the session are
    /// allowed.
    ///
    /// # Errors
    /// When no connection can be had, the transaction has a connection of another database, or `ready` fails.
    pub async fn pin<R>(
        &self,
        (database, deadline): (&Database, &Arc<Deadline>),
        ready: impl Future<Output = Result<R, Error>>,
    ) -> Result<(Pin, R), Error> {
        if self.transaction.withholds(Withheld::Pin) {
            return Err(Error::new(
                ErrorKind::Denied,
                "this request is a copy, whose transaction is rolled back: it has no connection to pin",
            ));
        }
        let Options { read_only, .. } = self.transaction.options;
        if self.transaction.is_pinned_around(database, read_only) {
            return Err(Error::pinned_by_caller(&database.config().name));
        }
        let pinning = Pinning::new(&self.transaction)?;
        // The name is set before the pin has its connection, so that a view that is called meanwhile is refused the
        // connection. Otherwise the view would wait behind the pin, while the function that pins waits for the worker
        // that the view runs on.
        let name = || database.config().name.clone();
        self.transaction.pinned.lock().get_or_insert_with(name);
        let order = deadline.bound(self.order.lock()).await?;
        let ready = ready.await?;
        let mut state = self.transaction.locked(deadline).await?;
        drop(order);
        state.admits(database)?;
        state.pin(database, deadline).await?;
        *self.transaction.pinned.lock() = Some(name());
        Ok((pinning.done(), ready))
    }

    /// Does something that others will see: immediately outside of a transaction, otherwise when the transaction
    /// commits (R10). When its level is rolled back, the effect is dropped. False when the effect was refused, because
    /// the function or the transaction is over.
    #[must_use]
    pub fn effect(&self, effect: Effect, what: Option<Described>) -> bool {
        let level = self.level();
        self.check_alive().is_ok() && self.transaction.effects.add(level, (effect, what))
    }

    /// What an effect does, if the effects of the request are described.
    pub fn describe(&self, what: impl FnOnce() -> Described) -> Option<Described> {
        self.transaction.effects.history.describes().then(what)
    }

    /// Makes sure that the transaction which the function is in rolls back.
    pub fn set_rollback(&self) {
        if let Some(level) = self.level() {
            self.transaction.effects.set_rollback(level);
        }
    }

    /// Notes that a statement runs outside of the transaction, so no rollback undoes it. This is noted before the
    /// statement runs, because its caller may be gone afterwards.
    pub fn runs_outside(&self) {
        if !self.read_only {
            self.transaction.effects.history.lasts();
        }
    }

    /// Notes how a statement outside of the transaction ended.
    pub fn note_outside(&self, ran: Result<(), &Error>) {
        if let Err(error) = ran {
            self.transaction.effects.history.note(error);
        }
    }
}

/// A call on a database that is in flight, until dropped.
pub struct InFlight<'a>(&'a Member);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, SeqCst);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.give_up();
        let Transaction {
            around, options, ..
        } = &*self.transaction;
        // Only the transaction of a called view that is not atomic ends here. `settle` ends the first transaction of
        // the scope, and `SubrequestTransaction` that of a called atomic view.
        if self.owns_transaction() && around.is_some() && !options.atomic {
            self.transaction.give_up();
        }
    }
}

fn strictness(isolation: Option<Isolation>) -> u8 {
    match isolation {
        None | Some(Isolation::ReadCommitted) => 0,
        Some(Isolation::RepeatableRead) => 1,
        Some(Isolation::Serializable) => 2,
    }
}

fn isolation_name(isolation: Option<Isolation>) -> &'static str {
    match isolation {
        None | Some(Isolation::ReadCommitted) => "read-committed",
        Some(Isolation::RepeatableRead) => "repeatable-read",
        Some(Isolation::Serializable) => "serializable",
    }
}

/// The turn of a statement: the lock of the transaction's state, and what running the statement needs.
pub struct Turn {
    state: Locked,
    database: Database,
    deadline: Arc<Deadline>,
    read_only: bool,
}

impl Turn {
    /// Runs a statement in the transaction, or on the pinned connection.
    ///
    /// # Errors
    /// When no connection can be had; what the database says.
    pub async fn run(self, face: Face, statement: Statement) -> Result<Outcome, Error> {
        let Turn {
            mut state,
            database,
            deadline,
            read_only,
        } = self;
        state.adopt(&database);
        let writes = state.writes();
        if let (Database::Sqlite(sqlite), Face::Async, true, false) =
            (&database, face, writes, state.is_connected())
        {
            let (sqlite, effects) = (Arc::clone(sqlite), state.effects());
            let begin = move |lease| {
                state.connected(Lease::Sqlite(Box::new(lease)), &database);
                let ran = state.run(&statement, read_only).now_or_never();
                ran.expect("SQLite blocks, it never yields")
            };
            let began = sqlite.write(&deadline, begin).await;
            return began.inspect_err(|error| effects.history.note(error))?;
        }
        state.connect(&database, &deadline).await?;
        let running = async move { state.run(&statement, read_only).await };
        database.carry(face, writes, running).await
    }
}

/// A level that waits to begin or to end. Dropping this value before `done` rolls the level back.
struct Waiting<'a> {
    member: &'a Member,
    level: Level,
    done: bool,
}

impl Waiting<'_> {
    fn to_begin(member: &Member) -> Result<Waiting<'_>, Error> {
        let level = Level(member.transaction.next_id());
        if !member
            .transaction
            .effects
            .begin(level, member.id, member.level())
        {
            METRICS
                .refused
                .with_label_values(&["transaction levels"])
                .inc();
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "this request has {LEVELS_MAX} transactions and savepoints open, the most there can be: end some (commit, roll back, or drop them) before the next"
                ),
            ));
        }
        member.claims.fetch_add(1, SeqCst);
        Ok(Waiting {
            member,
            level,
            done: false,
        })
    }

    /// The wait for the end of a level, and whether a view that was called in the level still runs.
    fn to_end(member: &Member, level: Level) -> (Waiting<'_>, bool) {
        let torn = member.transaction.effects.leave(level);
        let waiting = Waiting {
            member,
            level,
            done: false,
        };
        (waiting, torn)
    }

    fn done(mut self) -> Level {
        self.done = true;
        self.level
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.member.abandon(self.level);
        }
    }
}

/// A pin that waits for its connection. The flag says whether it has one.
struct Pinning<'a>(&'a Transaction, bool);

impl Pinning<'_> {
    fn new(transaction: &Transaction) -> Result<Pinning<'_>, Error> {
        let others = transaction.pins.fetch_add(1, SeqCst);
        if others == 0 {
            // Forgets the name that an earlier pin left behind.
            *transaction.pinned.lock() = None;
        }
        if others >= LEVELS_MAX {
            transaction.pins.fetch_sub(1, SeqCst);
            METRICS.refused.with_label_values(&["pins"]).inc();
            return Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "this request has pinned its connection {LEVELS_MAX} times, the most there can be: let some pins go before the next"
                ),
            ));
        }
        Ok(Pinning(transaction, false))
    }

    fn done(mut self) -> Pin {
        self.1 = true;
        Pin(())
    }
}

impl Drop for Pinning<'_> {
    fn drop(&mut self) {
        if !self.1 {
            // The pin never got a connection: only its count is given back.
            self.0.pins.fetch_sub(1, SeqCst);
        }
    }
}

/// The failure of a view that answered with a success although its transaction could not be committed.
pub fn not_kept(error: &Error) -> Failure {
    let sentence = format!(
        "the transaction could not be committed and was rolled back: {}",
        error.message
    );
    match error.kind {
        ErrorKind::Conflict | ErrorKind::Unavailable => Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            ..Failure::host(sentence)
        },
        ErrorKind::Other | ErrorKind::Aborted => Failure::host(sentence),
        ErrorKind::Denied
        | ErrorKind::Poisoned
        | ErrorKind::Statement
        | ErrorKind::Unique
        | ErrorKind::ForeignKey
        | ErrorKind::Constraint
        | ErrorKind::NotNull
        | ErrorKind::Check
        | ErrorKind::DataType
        | ErrorKind::TooLarge => Failure::view(sentence),
    }
}

#[cfg(test)]
mod tests;
