//! The transaction of a scope (R7–R11).
//!
//! It belongs to the scope, not to a thread or a task: sync and async views get the same one. While it is
//! active, every statement of the scope goes to its one connection, one after the other in the order they were
//! issued (R8); there is no way around it, so nothing a view joins or spawns can escape it.
//!
//! It has levels. An atomic scope has one from the start, and each `begin` adds one: the outermost level is the
//! transaction itself, those within it are savepoints. A level is a matter of the host's until a statement needs
//! it: only then does the database see it, in the same message as the statement. A statement that fails poisons
//! the level it ran in: nothing more runs there until that level is undone, on every kind of database alike.
//!
//! The connection stays inside the state's lock, and whoever runs a statement takes the lock along to where it
//! runs. So a caller that is cancelled leaves a statement that finishes, never a torn state, and when the scope is
//! gone the lease's drop rolls back.
//!
//! What a scope sends to others is held with the level that it was sent in (R10). Which level that is follows from
//! the order of the guest's calls alone, so that sending never waits; see `effects`.

mod effects;
mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::database::{Database, Error, Face, Isolation, Lease, Outcome, Statement};
use crate::deadline::{Deadline, Ended};

pub use effects::Effect;
use effects::Effects;
use state::{State, ended};

/// How a scope's transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fate {
    /// There was none.
    #[default]
    None,
    /// Its changes are in the database.
    Committed,
    /// Its changes are undone.
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

/// What kind of transaction a scope has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Everything the scope does belongs to one transaction.
    pub atomic: bool,
    /// Statements that write are refused, in transactions and outside.
    pub read_only: bool,
    /// What its transactions see of others; none: what the database does by itself.
    pub isolation: Option<Isolation>,
}

/// The transaction of a scope, whether or not it has begun.
pub struct Transaction {
    options: Options,
    /// Reasons for statements to take their turn here: that the view is atomic, each level and each pin of the
    /// guest's, from its call on until it has ended. Changed in the order of the guest's calls.
    claims: AtomicUsize,
    last_level: AtomicU64,
    /// Set when the scope has ended: nothing more can be done in it, within a transaction or outside.
    over: AtomicBool,
    /// What the guest dropped without an end, perhaps while a statement ran; seen to before anything else.
    left: Mutex<Vec<Left>>,
    effects: Arc<Effects>,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// One `begin` of the guest's: the transaction itself, or a savepoint in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(u64);

impl Level {
    /// The level that an atomic scope has from the start.
    const SCOPE: Level = Level(0);
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level_{}", self.0)
    }
}

/// A reason for the scope's statements to go to one connection. Given back with [`Transaction::unpin`].
#[derive(Debug)]
pub struct Pin(());

enum Left {
    Level(Level),
    Pin,
}

impl Transaction {
    /// Nothing has begun yet.
    pub fn new(options: Options) -> Transaction {
        let effects = Arc::new(Effects::new(options.atomic));
        Transaction {
            options,
            claims: AtomicUsize::new(options.atomic.into()),
            last_level: AtomicU64::new(0),
            over: AtomicBool::new(false),
            left: Mutex::default(),
            state: Arc::new(tokio::sync::Mutex::new(State::new(options, &effects))),
            effects,
        }
    }

    /// What kind of transaction this is.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Whether a statement that is issued now would be part of a transaction, or go to a pinned connection.
    pub fn is_active(&self) -> bool {
        self.claims.load(SeqCst) > 0
    }

    /// Waits for the turn of a statement that is issued now. None: it belongs to no transaction and no pinned
    /// connection.
    ///
    /// # Errors
    /// When no connection can be had, the level is poisoned, or the transaction is on another database.
    pub async fn turn(&self, on: (&Database, &Arc<Deadline>)) -> Result<Option<Turn>, Error> {
        if self.claims.load(SeqCst) == 0 {
            return self.outside();
        }
        let (database, deadline) = on;
        let mut state = self.locked(deadline).await?;
        if !state.takes(database)? {
            return self.outside();
        }
        if let Database::Postgres(_) = database {
            state.connect(database, deadline).await?;
        }
        // That of a file is waited for by whoever runs the statement.
        Ok(Some(Turn {
            state,
            database: database.clone(),
            deadline: Arc::clone(deadline),
        }))
    }

    /// A statement belongs to no transaction. When the scope is over, there is none any more for it to belong to.
    fn outside(&self) -> Result<Option<Turn>, Error> {
        match self.over.load(SeqCst) {
            false => Ok(None),
            true => Err(Ended::Answered.into()),
        }
    }

    /// Begins a transaction, or a savepoint in the one there is, on this database.
    ///
    /// # Errors
    /// When the level it would be in is poisoned, or the transaction is on another database.
    pub async fn begin(&self, on: (&Database, &Arc<Deadline>)) -> Result<Level, Error> {
        let (database, deadline) = on;
        self.push(Some(database), deadline).await
    }

    /// Begins a level on whichever database is used first in it.
    ///
    /// # Errors
    /// When the level it would be in is poisoned.
    pub async fn enter(&self, deadline: &Arc<Deadline>) -> Result<Level, Error> {
        self.push(None, deadline).await
    }

    async fn push(
        &self,
        database: Option<&Database>,
        deadline: &Arc<Deadline>,
    ) -> Result<Level, Error> {
        let beginning = Waiting::to_begin(self);
        let mut state = self.locked(deadline).await?;
        state.push(beginning.level, database)?;
        Ok(beginning.done())
    }

    /// Keeps what was done since `level` began; for good, when it is the transaction itself.
    ///
    /// # Errors
    /// When something in it has failed, or the database cannot commit. What was done in it is undone then.
    pub async fn commit(&self, face: Face, level: Level) -> Result<(), Error> {
        self.end(face, level, true).await
    }

    /// Undoes what was done since `level` began.
    ///
    /// # Errors
    /// When it has ended already, or the database fails.
    pub async fn rollback(&self, face: Face, level: Level) -> Result<(), Error> {
        self.end(face, level, false).await
    }

    async fn end(&self, face: Face, level: Level, keep: bool) -> Result<(), Error> {
        let waiting = Waiting::to_end(self, level);
        let mut state = Arc::clone(&self.state).lock_owned().await;
        waiting.done();
        self.see_to_left(&mut state);
        let taken = state.take(level);
        if taken.is_some() {
            self.claims.fetch_sub(1, SeqCst);
        }
        let taken = taken.ok_or_else(ended)?;
        match state.database() {
            Some(database) => {
                let writes = state.writes();
                let ending = async move { state.end(taken, keep).await };
                database.carry(face, writes, ending).await
            }
            // No database has seen any of it.
            None => state.end(taken, keep).await,
        }
    }

    /// Undoes what was done since `level` began, at once if nothing runs, else before the next statement.
    pub fn abandon(&self, level: Level) {
        self.effects.leave(level);
        self.leave(Left::Level(level));
    }

    /// Sends all statements of the scope on this database to one connection, until [`Transaction::unpin`]. Those
    /// that change the session are let through meanwhile.
    ///
    /// # Errors
    /// When no connection can be had, or the scope has one of another database.
    pub async fn pin(&self, on: (&Database, &Arc<Deadline>)) -> Result<Pin, Error> {
        let (database, deadline) = on;
        let pinning = Pinning::new(self);
        let mut state = self.locked(deadline).await?;
        state.admits(database)?;
        state.connect(database, deadline).await?;
        state.pin();
        Ok(pinning.done())
    }

    /// Lets the connection go, at once if nothing runs on it and no transaction needs it.
    pub fn unpin(&self, Pin(()): Pin) {
        self.leave(Left::Pin);
    }

    /// Does something that others will see: now, or, within a transaction, when that commits (R10). It is dropped
    /// when what it was done in is rolled back.
    pub fn effect(&self, effect: Effect) {
        self.effects.add(effect);
    }

    /// Whatever happens, the transaction that is active will be rolled back.
    pub fn set_rollback(&self) {
        self.effects.set_rollback();
    }

    /// Whether a statement or a commit met another transaction in its way, and nothing was committed or told to
    /// others before: all of it may succeed when tried again from the start.
    pub fn conflict(&self) -> bool {
        self.effects.can_begin_again()
    }

    /// Whether a database could not be reached, or the connection to it was lost.
    pub fn unavailable(&self) -> bool {
        self.effects.unavailable()
    }

    /// Takes note of a statement that was run outside of the transaction.
    pub fn note_outside(&self, ran: Result<(), &Error>) {
        if !self.options.read_only {
            self.effects.lasts();
        }
        if let Err(error) = ran {
            self.effects.note(error);
        }
    }

    /// Ends the scope's transaction: commits it, or undoes it with everything still open in it.
    ///
    /// # Errors
    /// When it was to be kept and cannot be: nothing is committed then (R9), and no effect released.
    pub async fn finish(&self, face: Face, keep: bool) -> Result<Fate, Error> {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        self.see_to_left(&mut state);
        // In this order: who finds no claim finds that it is over, too.
        self.over.store(true, SeqCst);
        self.claims.store(0, SeqCst);
        match state.database() {
            Some(database) => {
                let writes = state.writes();
                let finishing = async move { state.finish(keep).await };
                database.carry(face, writes, finishing).await
            }
            None => state.finish(keep).await,
        }
    }

    async fn locked(&self, deadline: &Deadline) -> Result<OwnedMutexGuard<State>, Error> {
        let mut state = deadline.bound(Arc::clone(&self.state).lock_owned()).await?;
        if self.over.load(SeqCst) {
            return Err(Ended::Answered.into());
        }
        self.see_to_left(&mut state);
        Ok(state)
    }

    fn leave(&self, left: Left) {
        self.left.lock().push(left);
        if let Ok(mut state) = self.state.try_lock() {
            self.see_to_left(&mut state);
        }
    }

    fn see_to_left(&self, state: &mut State) {
        for left in std::mem::take(&mut *self.left.lock()) {
            // It has its claim even if it was never begun.
            self.claims.fetch_sub(1, SeqCst);
            match left {
                Left::Level(level) => state.abandon(level),
                Left::Pin => state.unpin(),
            }
        }
    }
}

/// The lock of a transaction's state: whoever has it runs the next statement.
pub struct Turn {
    state: OwnedMutexGuard<State>,
    database: Database,
    deadline: Arc<Deadline>,
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
        } = self;
        let writes = state.writes();
        if let (Database::Sqlite(sqlite), Face::Async, true, false) =
            (&database, face, writes, state.is_connected())
        {
            let (sqlite, effects) = (Arc::clone(sqlite), state.effects());
            let begin = move |lease| {
                state.connected(Lease::Sqlite(Box::new(lease)), &database);
                let ran = state.run(&statement).now_or_never();
                ran.expect("SQLite blocks, it never yields")
            };
            let began = sqlite.write(&deadline, begin).await;
            return began.inspect_err(|error| effects.note(error))?;
        }
        state.connect(&database, &deadline).await?;
        let running = async move { state.run(&statement).await };
        database.carry(face, writes, running).await
    }
}

/// A level that waits to begin or to end. When its caller gives up waiting, it is abandoned.
struct Waiting<'a> {
    transaction: &'a Transaction,
    level: Level,
    done: bool,
}

impl Waiting<'_> {
    fn to_begin(transaction: &Transaction) -> Waiting<'_> {
        transaction.claims.fetch_add(1, SeqCst);
        let level = Level(transaction.last_level.fetch_add(1, SeqCst) + 1);
        transaction.effects.begin(level);
        Waiting {
            transaction,
            level,
            done: false,
        }
    }

    fn to_end(transaction: &Transaction, level: Level) -> Waiting<'_> {
        transaction.effects.leave(level);
        Waiting {
            transaction,
            level,
            done: false,
        }
    }

    fn done(mut self) -> Level {
        self.done = true;
        self.level
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.transaction.abandon(self.level);
        }
    }
}

/// A pin that waits for its connection.
struct Pinning<'a>(&'a Transaction, bool);

impl Pinning<'_> {
    fn new(transaction: &Transaction) -> Pinning<'_> {
        transaction.claims.fetch_add(1, SeqCst);
        Pinning(transaction, false)
    }

    fn done(mut self) -> Pin {
        self.1 = true;
        Pin(())
    }
}

impl Drop for Pinning<'_> {
    fn drop(&mut self) {
        if !self.1 {
            // It was never pinned: only its claim is given back.
            self.0.claims.fetch_sub(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests;
