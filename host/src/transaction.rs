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
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

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
    /// Whether statements belong to the transaction. Changed in the order of the guest's calls.
    active: AtomicBool,
    /// Levels that the guest dropped without commit while a statement ran; undone before anything else.
    abandoned: Mutex<Vec<Level>>,
    state: Arc<tokio::sync::Mutex<State>>,
}

/// One `begin` of the guest's: the transaction itself, or a savepoint in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(u64);

#[derive(Default)]
struct State {
    open: Option<Open>,
    last_level: u64,
    fate: Fate,
}

struct Open {
    lease: Lease,
    database: String,
    levels: Vec<Level>,
    _held: Held,
}

impl Transaction {
    /// Nothing has begun yet. `atomic`: everything the scope does belongs to one transaction.
    pub fn new(atomic: bool) -> Transaction {
        Transaction {
            atomic,
            active: AtomicBool::new(atomic),
            abandoned: Mutex::default(),
            state: Arc::default(),
        }
    }

    /// Whether statements go to the transaction's connection now.
    pub fn is_active(&self) -> bool {
        self.active.load(SeqCst)
    }

    /// Runs a statement in the transaction and returns its rows.
    ///
    /// # Errors
    /// What the database says, or that the transaction is on another database.
    pub async fn query(
        &self,
        face: Face,
        on: (&Arc<Sqlite>, &Arc<Deadline>),
        sql: String,
        params: Vec<Value>,
        max_bytes: u64,
    ) -> Result<Table, Error> {
        let mut turn = self.begun(face, on).await?;
        face.run(move || {
            turn.run(|lease| match lease.query(&sql, &params, max_bytes)? {
                Tried::Done(table) => Ok(table),
                Tried::Writes => unreachable!("a transaction has the connection that writes"),
            })
        })
        .await
    }

    /// Runs a statement in the transaction and returns how many rows it changed.
    ///
    /// # Errors
    /// As [`Transaction::query`].
    pub async fn execute(
        &self,
        face: Face,
        on: (&Arc<Sqlite>, &Arc<Deadline>),
        sql: String,
        params: Vec<Value>,
    ) -> Result<u64, Error> {
        let mut turn = self.begun(face, on).await?;
        face.run(move || turn.run(|lease| lease.execute(&sql, &params)))
            .await
    }

    /// Begins a transaction, or a savepoint in the one there is.
    ///
    /// # Errors
    /// When no connection can be had, or the transaction is on another database.
    pub async fn begin(
        &self,
        face: Face,
        on: (&Arc<Sqlite>, &Arc<Deadline>),
    ) -> Result<Level, Error> {
        let was_active = self.active.swap(true, SeqCst);
        let mut turn = self
            .begun(face, on)
            .await
            .inspect_err(|_| self.active.store(was_active, SeqCst))?;
        let outermost = !self.atomic && turn.open()?.levels.is_empty();
        turn.0.last_level += 1;
        let level = Level(turn.0.last_level);
        face.run(move || {
            if !outermost {
                turn.run(|lease| lease.host(&format!("savepoint {level}")))?;
            }
            turn.open()?.levels.push(level);
            Ok(level)
        })
        .await
    }

    /// Keeps what was done since `level` began; for good, when it is the transaction itself.
    ///
    /// # Errors
    /// When an inner level is still open, or the database cannot commit (everything is undone then).
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
    /// When an inner level is still open, or the database fails.
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
    /// When the commit fails; nothing is committed then (R9).
    pub async fn finish(&self, face: Face, commit: bool) -> Result<Fate, Error> {
        let mut turn = Turn(Arc::clone(&self.state).lock_owned().await);
        self.active.store(false, SeqCst);
        self.undo_abandoned(&mut turn.0);
        if turn.0.open.is_none() {
            return Ok(turn.0.fate);
        }
        // A transaction that the view began itself and did not commit is undone.
        let commit = commit && self.atomic;
        face.run(move || {
            // So is a savepoint within one that is committed.
            if let Some(level) = turn.open()?.levels.first().copied().filter(|_| commit) {
                turn.run(|lease| undo(lease, level))?;
            }
            turn.0.end(commit)?;
            Ok(turn.0.fate)
        })
        .await
    }

    /// The state with its transaction begun, in turn.
    async fn begun(
        &self,
        face: Face,
        (database, deadline): (&Arc<Sqlite>, &Arc<Deadline>),
    ) -> Result<Turn, Error> {
        let mut state = deadline.bound(Arc::clone(&self.state).lock_owned()).await?;
        self.undo_abandoned(&mut state);
        let name = &database.config().name;
        match &state.open {
            Some(open) if &open.database == name => return Ok(Turn(state)),
            Some(open) => {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "the transaction of this request is on the database `{}`, so a statement on `{name}` could not be part of it: use one database per transaction, or run the statement outside",
                        open.database
                    ),
                ));
            }
            None if state.fate == Fate::RolledBack && self.atomic => {
                return Err(Error::new(
                    ErrorKind::Other,
                    "the transaction of this request was rolled back: nothing more can be done in it",
                ));
            }
            None => {}
        }
        let lease = database.writer(deadline).await?;
        let database = name.clone();
        face.run(move || {
            lease.host("begin immediate")?;
            state.open = Some(Open {
                lease,
                database,
                levels: Vec::new(),
                _held: Held::new(&METRICS.transactions),
            });
            Ok(Turn(state))
        })
        .await
    }

    /// Takes `level` off the stack; whether it was the transaction itself.
    async fn leave(&self, level: Level) -> Result<(Turn, bool), Error> {
        let mut state = Arc::clone(&self.state).lock_owned().await;
        self.undo_abandoned(&mut state);
        let gone = || {
            Error::new(
                ErrorKind::Other,
                "the transaction has ended already: it was rolled back after an error or by an outer one",
            )
        };
        let open = state.open.as_mut().ok_or_else(gone)?;
        match open.levels.last() {
            Some(last) if *last == level => open.levels.pop(),
            Some(_) if open.levels.contains(&level) => {
                return Err(Error::new(
                    ErrorKind::Other,
                    "a transaction within this one is still open: end the inner one first",
                ));
            }
            _ => return Err(gone()),
        };
        let outermost = !self.atomic && open.levels.is_empty();
        if outermost {
            self.active.store(false, SeqCst);
        }
        Ok((Turn(state), outermost))
    }

    fn undo_abandoned(&self, state: &mut State) {
        for level in std::mem::take(&mut *self.abandoned.lock()) {
            let Some(open) = &mut state.open else {
                continue;
            };
            let Some(depth) = open.levels.iter().position(|other| *other == level) else {
                continue;
            };
            open.levels.truncate(depth);
            let outermost = depth == 0 && !self.atomic;
            if outermost {
                self.active.store(false, SeqCst);
            }
            if outermost || undo(&open.lease, level).is_err() {
                state.undo_all();
            }
        }
    }
}

/// The lock of a transaction's state: whoever has it runs the next statement.
struct Turn(OwnedMutexGuard<State>);

impl Turn {
    fn open(&mut self) -> Result<&mut Open, Error> {
        self.0
            .open
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Other, "the transaction has ended already"))
    }

    fn run<T>(&mut self, statement: impl FnOnce(&Lease) -> Result<T, Error>) -> Result<T, Error> {
        let open = self.open()?;
        let result = statement(&open.lease);
        if !open.lease.in_transaction() {
            // SQLite undoes the whole transaction after some errors (disk full, interrupt …).
            self.0.undo_all();
        }
        result
    }
}

impl State {
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
