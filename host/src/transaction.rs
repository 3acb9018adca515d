//! The transaction of a scope (R7–R9).
//!
//! It belongs to the scope, not to a thread or a task: sync and async views get the same one. While it is
//! active, every statement of the scope goes to its one connection, one after the other in the order they were
//! issued (R8); there is no way around it, so nothing a view joins or spawns can escape it. An `atomic` view's
//! transaction is active from the start and begins at the first statement. A view can also begin one itself;
//! within a transaction, that makes a savepoint.
//!
//! The connection stays inside the state's lock, and whoever runs a statement takes the lock along to the thread
//! that runs it. So a caller that is cancelled leaves a statement that finishes, never a torn state, and when the
//! scope is gone the lease's drop rolls back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::database::sqlite::{Lease, Tried};
use crate::database::{Error, ErrorKind, Face, Sqlite, Table, Value};
use crate::deadline::Deadline;
use crate::metrics::{Held, METRICS};

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

/// The transaction of a scope, whether or not it has begun.
pub struct Transaction {
    atomic: bool,
    /// Reasons for statements to belong to a transaction: that the view is atomic, and each level that the guest
    /// begins, from its call on until the level has ended. Changed in the order of the guest's calls.
    claims: AtomicUsize,
    last_level: AtomicU64,
    /// Levels that the guest dropped without an end, perhaps while a statement ran; undone before anything else.
    abandoned: Mutex<Vec<Level>>,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// One `begin` of the guest's: the transaction itself, or a savepoint in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(u64);

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// The guest's levels, the outermost first. They stay when the transaction is lost, so that nothing that the
    /// guest still believes to be in it runs outside.
    levels: Vec<Level>,
    fate: Fate,
    /// Why the transaction was undone without the guest's asking for it.
    lost: Option<Error>,
}

struct Open {
    lease: Lease,
    database: String,
    _held: Held,
}

impl Transaction {
    /// Nothing has begun yet. `atomic`: everything the scope does belongs to one transaction.
    pub fn new(atomic: bool) -> Transaction {
        Transaction {
            atomic,
            claims: AtomicUsize::new(atomic.into()),
            last_level: AtomicU64::new(0),
            abandoned: Mutex::default(),
            state: Arc::default(),
        }
    }

    /// Waits for the turn of a statement that is issued now. None: it belongs to no transaction.
    ///
    /// # Errors
    /// When no connection can be had, the transaction is lost, or it is on another database.
    pub async fn turn(
        &self,
        face: Face,
        on: (&Arc<Sqlite>, &Arc<Deadline>),
    ) -> Result<Option<Turn>, Error> {
        match self.claims.load(SeqCst) {
            0 => Ok(None),
            _ => self.begun(face, on, self.atomic).await,
        }
    }

    /// Begins a transaction, or a savepoint in the one there is.
    ///
    /// # Errors
    /// As [`Transaction::turn`].
    pub async fn begin(
        &self,
        face: Face,
        on: (&Arc<Sqlite>, &Arc<Deadline>),
    ) -> Result<Level, Error> {
        let beginning = Waiting::to_begin(self);
        let level = beginning.level;
        let turn = self.begun(face, on, true).await?;
        let mut turn = turn.expect("it was asked to begin");
        let outermost = !self.atomic && turn.0.levels.is_empty();
        face.run(move || {
            if !outermost {
                turn.run(|lease| lease.host(&format!("savepoint {level}")))?;
            }
            turn.0.levels.push(level);
            Ok::<(), Error>(())
        })
        .await?;
        Ok(beginning.done())
    }

    /// Keeps what was done since `level` began; for good, when it is the transaction itself.
    ///
    /// # Errors
    /// When the transaction is lost, or the database cannot commit (everything is undone then).
    pub async fn commit(&self, face: Face, level: Level) -> Result<(), Error> {
        let (mut turn, outermost) = self.leave(level).await?;
        face.run(move || match outermost {
            true => turn.0.end(true),
            false => turn.run(|lease| lease.host(&format!("release {level}"))),
        })
        .await
    }

    /// Undoes what was done since `level` began.
    ///
    /// # Errors
    /// When the transaction is lost, or the database fails.
    pub async fn rollback(&self, face: Face, level: Level) -> Result<(), Error> {
        let (mut turn, outermost) = self.leave(level).await?;
        face.run(move || match outermost {
            true => turn.0.end(false),
            false => turn.run(|lease| undo(lease, level)),
        })
        .await
    }

    /// Undoes what was done since `level` began, at once if nothing runs, else before the next statement.
    pub fn abandon(&self, level: Level) {
        self.abandoned.lock().push(level);
        if let Ok(mut state) = self.state.try_lock() {
            self.undo_abandoned(&mut state);
        }
    }

    /// Ends the scope's transaction: commits it, or undoes it with everything still open in it.
    ///
    /// # Errors
    /// When it cannot be committed, or was lost before; nothing is committed then (R9).
    pub async fn finish(&self, face: Face, commit: bool) -> Result<Fate, Error> {
        let mut turn = Turn(Arc::clone(&self.state).lock_owned().await);
        self.undo_abandoned(&mut turn.0);
        self.claims.store(0, SeqCst);
        // A transaction that the view began itself and did not commit is undone.
        let commit = commit && self.atomic;
        if turn.0.open.is_none() {
            return match turn.0.lost.take() {
                Some(why) if commit => Err(why),
                _ => Ok(turn.0.fate),
            };
        }
        face.run(move || {
            // So is a savepoint within one that is committed.
            if let Some(level) = turn.0.levels.first().copied().filter(|_| commit) {
                turn.run(|lease| undo(lease, level))?;
            }
            turn.0.end(commit)?;
            Ok(turn.0.fate)
        })
        .await
    }

    /// The state in turn, with its transaction begun. None: there is no transaction, and `begin` is not asked for.
    async fn begun(
        &self,
        face: Face,
        (database, deadline): (&Arc<Sqlite>, &Arc<Deadline>),
        begin: bool,
    ) -> Result<Option<Turn>, Error> {
        let mut state = deadline.bound(Arc::clone(&self.state).lock_owned()).await?;
        self.undo_abandoned(&mut state);
        let name = &database.config().name;
        match &state.open {
            Some(open) if &open.database == name => return Ok(Some(Turn(state))),
            Some(open) => {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "the transaction of this request is on the database `{}`, so a statement on `{name}` could not be part of it: use one database per transaction, or run the statement outside",
                        open.database
                    ),
                ));
            }
            None if self.atomic || !state.levels.is_empty() => {
                if let Some(why) = &state.lost {
                    return Err(gone(why));
                }
            }
            // It ended, or failed to begin, while this statement waited for its turn.
            None if !begin => return Ok(None),
            None => {}
        }
        let lease = database.writer(deadline).await?;
        let database = name.clone();
        face.run(move || {
            lease.host("begin immediate")?;
            let _held = Held::new(&METRICS.transactions);
            state.open = Some(Open {
                lease,
                database,
                _held,
            });
            Ok(Some(Turn(state)))
        })
        .await
    }

    /// Takes `level` off the stack; whether it was the transaction itself.
    async fn leave(&self, level: Level) -> Result<(Turn, bool), Error> {
        let waiting = Waiting::to_end(self, level);
        let mut state = Arc::clone(&self.state).lock_owned().await;
        waiting.done();
        self.undo_abandoned(&mut state);
        let depth = state.remove(level);
        if depth.is_some() {
            self.claims.fetch_sub(1, SeqCst);
        }
        if state.open.is_none() {
            let why = state.lost.clone();
            self.forget_loss(&mut state);
            return Err(why.map_or_else(ended, |why| gone(&why)));
        }
        match depth {
            None => Err(ended()),
            Some(depth) if depth < state.levels.len() => {
                state.lose(overlap());
                Err(overlap())
            }
            Some(depth) => Ok((Turn(state), depth == 0 && !self.atomic)),
        }
    }

    fn undo_abandoned(&self, state: &mut State) {
        for level in std::mem::take(&mut *self.abandoned.lock()) {
            // It has its claim even if it was never begun.
            self.claims.fetch_sub(1, SeqCst);
            let depth = state.remove(level);
            match (&state.open, depth) {
                (Some(_), Some(depth)) if depth < state.levels.len() => state.lose(overlap()),
                (Some(_), Some(0)) if !self.atomic => state.undo_all(),
                (Some(open), Some(_)) => {
                    if let Err(why) = undo(&open.lease, level) {
                        state.lose(why);
                    }
                }
                _ => {}
            }
            self.forget_loss(state);
        }
    }

    /// A view that is not atomic may begin again when everything it had begun has ended.
    fn forget_loss(&self, state: &mut State) {
        if !self.atomic && state.levels.is_empty() {
            state.lost = None;
        }
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
        Waiting {
            transaction,
            level,
            done: false,
        }
    }

    fn to_end(transaction: &Transaction, level: Level) -> Waiting<'_> {
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

fn ended() -> Error {
    Error::new(ErrorKind::Other, "the transaction has ended already")
}

fn gone(why: &Error) -> Error {
    Error::new(
        why.kind,
        format!(
            "the transaction of this request was rolled back, so nothing more can be done in it: {}",
            why.message
        ),
    )
}

/// Statements do not say which level they are for, so levels that overlap cannot be told apart.
fn overlap() -> Error {
    Error::new(
        ErrorKind::Denied,
        "two transactions of one request overlapped: one ended while another, begun later, was still open. All was rolled back. Let the inner one end first; do not join atomic blocks",
    )
}

/// The lock of a transaction's state: whoever has it runs the next statement.
pub struct Turn(OwnedMutexGuard<State>);

impl Turn {
    /// Runs a statement in the transaction and returns its rows.
    ///
    /// # Errors
    /// What the database says.
    pub async fn query(
        mut self,
        face: Face,
        sql: String,
        params: Vec<Value>,
        max_bytes: u64,
    ) -> Result<Table, Error> {
        face.run(move || {
            self.run(|lease| match lease.query(&sql, &params, max_bytes)? {
                Tried::Done(table) => Ok(table),
                Tried::Writes => unreachable!("a transaction has the connection that writes"),
            })
        })
        .await
    }

    /// Runs a statement in the transaction and returns how many rows it changed.
    ///
    /// # Errors
    /// What the database says.
    pub async fn execute(
        mut self,
        face: Face,
        sql: String,
        params: Vec<Value>,
    ) -> Result<u64, Error> {
        face.run(move || self.run(|lease| lease.execute(&sql, &params)))
            .await
    }

    fn run<T>(&mut self, statement: impl FnOnce(&Lease) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.0.open.as_ref().ok_or_else(ended)?;
        let result = statement(&open.lease);
        if !open.lease.in_transaction() {
            // SQLite undoes the whole transaction after some errors (disk full, interrupt …).
            self.0
                .lose(result.as_ref().err().cloned().unwrap_or_else(ended));
        }
        result
    }
}

impl State {
    /// Takes `level` off the stack; how deep it was.
    fn remove(&mut self, level: Level) -> Option<usize> {
        let depth = self.levels.iter().position(|other| *other == level)?;
        self.levels.remove(depth);
        Some(depth)
    }

    fn lose(&mut self, why: Error) {
        self.undo_all();
        self.lost.get_or_insert(why);
    }

    fn undo_all(&mut self) {
        self.open = None;
        self.fate = Fate::RolledBack;
    }

    fn end(&mut self, commit: bool) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.fate = Fate::RolledBack;
        let result = open.lease.host(if commit { "commit" } else { "rollback" });
        if commit && result.is_ok() {
            self.fate = Fate::Committed;
        }
        result
    }
}

fn undo(lease: &Lease, level: Level) -> Result<(), Error> {
    lease.host(&format!("rollback to {level}"))?;
    lease.host(&format!("release {level}"))
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level_{}", self.0)
    }
}

#[cfg(test)]
mod tests;
