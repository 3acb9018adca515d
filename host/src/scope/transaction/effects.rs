//! Effects: what the members of a transaction send to others. An effect is held until the commit of the level that it
//! was sent in (R10). This module also keeps what must be noted without waiting for the transaction's lock: which
//! levels the guests have begun, and which transactions must roll back.
//!
//! The levels here are those that guests have begun and not yet asked to end, in the order of the guests' calls. The
//! levels in `state` follow when the calls get their turn; then the effects that are held here are released, dropped,
//! or handed on to the enclosing level.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;

use super::{Fate, Level};
use crate::config::LEVELS_MAX;
use crate::database::{Error, ErrorKind, Permit};

/// An action that others will see. It must neither fail nor wait.
pub type Effect = Box<dyn FnOnce() + Send>;

/// What an effect does, for the comparison of two versions of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Kind and target, as a report names them: "event `orders.paid` published".
    pub what: String,
    /// A hash of what is sent.
    pub payload: u64,
}

/// The most effects of a request that are described. Further ones are only counted.
const DESCRIBED_MAX: usize = 1_000;

impl Described {
    /// A description. `payload`: what is sent.
    pub fn new(what: String, payload: &[u8]) -> Described {
        let payload = siphasher::sip::SipHasher13::new().hash(payload);
        Described { what, payload }
    }
}

/// What has happened in the transactions of a scope.
#[derive(Default)]
pub(super) struct History {
    conflict: AtomicBool,
    unavailable: AtomicBool,
    /// Set when a statement was cut off because its request had ended.
    cut_off: AtomicBool,
    /// Set when something was done that a rollback does not undo.
    lasting: AtomicBool,
    /// Number of commits, and of statements that commit by themselves, that run now, perhaps without a caller.
    running: AtomicUsize,
    /// Number of open levels in all transactions.
    levels: AtomicUsize,
    /// Number of connections that are held for results in pieces and for pins.
    kept: AtomicUsize,
    fate: Mutex<Fate>,
    /// The effects that others have seen, or would have, where they are described.
    described: Option<Mutex<Vec<Described>>>,
    /// The statements in transactions that have changed rows, where effects are described.
    wrote: Mutex<Vec<Described>>,
    /// Whether effects are never run: the transaction is a copy's.
    withholds: bool,
}

impl History {
    /// The history of a scope whose effects are described. `withholds`: and never run.
    pub(super) fn describing(withholds: bool) -> Arc<History> {
        Arc::new(History {
            described: Some(Mutex::default()),
            withholds,
            ..History::default()
        })
    }

    /// Whether effects are described.
    pub(super) fn describes(&self) -> bool {
        self.described.is_some()
    }

    /// The effects that were run, or would have been, in their order.
    pub(super) fn described(&self) -> Vec<Described> {
        let described = self.described.as_ref();
        described.map_or_else(Vec::new, |described| described.lock().clone())
    }

    /// Notes a statement that has changed rows.
    pub(super) fn writes(&self, statement: Described) {
        let mut wrote = self.wrote.lock();
        if wrote.len() < DESCRIBED_MAX {
            wrote.push(statement);
        }
    }

    /// The statements that have changed rows, in their order.
    pub(super) fn wrote(&self) -> Vec<Described> {
        self.wrote.lock().clone()
    }

    /// Runs an effect, unless effects are withheld.
    fn run(&self, (effect, what): (Effect, Option<Described>)) {
        if let (Some(described), Some(what)) = (&self.described, what) {
            let mut described = described.lock();
            if described.len() < DESCRIBED_MAX {
                described.push(what);
            }
        }
        // A copy's effects are dropped: nobody must see anything of them.
        if !self.withholds {
            effect();
        }
    }

    /// Notes that something was done that a rollback does not undo.
    pub(super) fn lasts(&self) {
        self.lasting.store(true, SeqCst);
    }

    /// Whether anything was done that a rollback does not undo.
    pub(super) fn is_lasting(&self) -> bool {
        self.lasting.load(SeqCst)
    }

    /// The same, or something that runs may come to last.
    pub(super) fn is_lasting_or_runs(&self) -> bool {
        // `running` is loaded before `lasting`: a commit that ends between these two loads has set `lasting` already.
        self.running.load(SeqCst) > 0 || self.lasting.load(SeqCst)
    }

    /// Whether there was a conflict with another transaction, and nothing of this scope is or may become lasting.
    pub(super) fn can_begin_again(&self) -> bool {
        self.conflict.load(SeqCst) && !self.is_lasting_or_runs()
    }

    /// Counts something that runs and that a rollback would not undo, until the result is dropped.
    pub(super) fn runs(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, SeqCst);
        Running(Arc::clone(self))
    }

    /// Whether a database could not be reached.
    pub(super) fn unavailable(&self) -> bool {
        self.unavailable.load(SeqCst)
    }

    /// Whether a statement was cut off because its request had ended.
    pub(super) fn cut_off(&self) -> bool {
        self.cut_off.load(SeqCst)
    }

    pub(super) fn note(&self, error: &Error) {
        match error.kind {
            ErrorKind::Conflict => self.conflict.store(true, SeqCst),
            ErrorKind::Unavailable => self.unavailable.store(true, SeqCst),
            ErrorKind::Aborted => self.cut_off.store(true, SeqCst),
            _ => {}
        }
    }

    /// Counts a connection that is held for a result in pieces or for a pin, until the result is dropped.
    pub(super) fn keeps(self: &Arc<Self>, permit: Permit) -> StreamPermit {
        self.kept.fetch_add(1, SeqCst);
        StreamPermit {
            history: Arc::clone(self),
            _permit: permit,
        }
    }

    /// Whether the scope holds any connection for results in pieces or for pins. If so, it must not wait for another
    /// one (R4).
    pub(super) fn keeps_any(&self) -> bool {
        self.kept.load(SeqCst) > 0
    }

    pub(super) fn fate(&self) -> Fate {
        *self.fate.lock()
    }

    pub(super) fn set_fate(&self, fate: Fate) {
        *self.fate.lock() = fate;
    }
}

/// Something that runs and that a rollback would not undo, counted until dropped.
pub(super) struct Running(Arc<History>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

/// The permit of a connection that is held for a result in pieces or for a pin.
pub struct StreamPermit {
    history: Arc<History>,
    _permit: Permit,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.history.kept.fetch_sub(1, SeqCst);
    }
}

pub(super) struct Effects {
    issued: Mutex<Issued>,
    pub(super) history: Arc<History>,
}

struct Issued {
    levels: Vec<OpenLevel>,
    held: Vec<(Level, (Effect, Option<Described>))>,
    /// The outermost levels of transactions that must roll back, and why.
    rollbacks: Vec<(Level, Reason)>,
    /// Set when the transaction is over: later effects are refused.
    ended: bool,
}

/// A level whose end the guest has not asked for.
struct OpenLevel {
    level: Level,
    /// The member that began the level. None for the level that the transaction of an atomic view has from the start.
    owner: Option<u64>,
    /// The level that the member was in when it began this one.
    around: Option<Level>,
    /// Number of members that were called in the level and have not ended.
    members: usize,
}

/// Why a transaction is rolled back although it was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A guest called `set-rollback`.
    SetRollback,
    /// A view that was called in it has failed.
    MemberFailed,
    /// A view that was called in it was given up by its caller.
    MemberGivenUp,
}

impl Issued {
    /// Marks the transaction of a level for rollback: the outermost level that is around this level. Levels of other
    /// members that are not around this level may be open or wait for their turn, and are not marked.
    fn mark(&mut self, level: Level, reason: Reason) {
        if !self.levels.iter().any(|begun| begun.level == level) {
            return;
        }
        let mut outermost = level;
        let around = |of: Level| {
            let begun = self.levels.iter().find(|begun| begun.level == of);
            let around = begun.and_then(|begun| begun.around);
            around.filter(|around| self.levels.iter().any(|begun| begun.level == *around))
        };
        while let Some(next) = around(outermost) {
            outermost = next;
        }
        let marked = self
            .rollbacks
            .iter_mut()
            .find(|(level, _)| *level == outermost);
        match marked {
            Some((_, known)) if reason != Reason::SetRollback => *known = reason,
            Some(_) => {}
            None => self.rollbacks.push((outermost, reason)),
        }
    }
}

impl Effects {
    pub(super) fn new(atomic: bool, history: Arc<History>) -> Effects {
        let whole = OpenLevel {
            level: Level::WHOLE,
            owner: None,
            around: None,
            members: 0,
        };
        Effects {
            issued: Mutex::new(Issued {
                levels: atomic.then_some(whole).into_iter().collect(),
                held: Vec::new(),
                rollbacks: Vec::new(),
                ended: false,
            }),
            history,
        }
    }

    /// Holds the effect with its level, or runs the effect immediately when there is no level. False: the effect is
    /// refused, because the transaction is over, or because the level has ended before a member that was called in it.
    pub(super) fn add(&self, level: Option<Level>, effect: (Effect, Option<Described>)) -> bool {
        let mut issued = self.issued.lock();
        match level {
            _ if issued.ended => false,
            Some(level) if issued.levels.iter().any(|begun| begun.level == level) => {
                issued.held.push((level, effect));
                true
            }
            Some(_) => false,
            None => {
                drop(issued);
                self.history.lasts();
                self.history.run(effect);
                true
            }
        }
    }

    /// Notes that a guest begins a level within the level `around`. False when too many levels are open.
    pub(super) fn begin(&self, level: Level, owner: u64, around: Option<Level>) -> bool {
        let one_more = |open: usize| (open < LEVELS_MAX).then_some(open + 1);
        if (self.history.levels)
            .fetch_update(SeqCst, SeqCst, one_more)
            .is_err()
        {
            return false;
        }
        self.issued.lock().levels.push(OpenLevel {
            level,
            owner: Some(owner),
            around,
            members: 0,
        });
        true
    }

    /// Notes that a guest asks for the end of the level. Returns whether a member that was called in the level has not
    /// ended.
    pub(super) fn leave(&self, level: Level) -> bool {
        let mut issued = self.issued.lock();
        let Some(index) = (issued.levels.iter()).position(|begun| begun.level == level) else {
            return false;
        };
        self.history.levels.fetch_sub(1, SeqCst);
        let left = issued.levels.remove(index);
        // Levels that began in it may outlast it. From now on they are in the level around it: that one is marked when
        // something in them fails.
        for begun in &mut issued.levels {
            if begun.around == Some(level) {
                begun.around = left.around;
            }
        }
        left.members > 0
    }

    /// Whether a guest has begun the level and has not asked for its end. The level may still wait for its turn.
    pub(super) fn is_open(&self, level: Level) -> bool {
        let issued = self.issued.lock();
        issued.levels.iter().any(|begun| begun.level == level)
    }

    /// Notes that a member is called in this level.
    pub(super) fn join(&self, level: Level) {
        let mut issued = self.issued.lock();
        let begun = issued.levels.iter_mut().find(|begun| begun.level == level);
        begun.into_iter().for_each(|begun| begun.members += 1);
    }

    /// Notes that a member that was called in this level has ended. `failed`: the reason why the transaction must roll
    /// back. False when the level had ended before the member.
    pub(super) fn part(&self, level: Level, failed: Option<Reason>) -> bool {
        let mut issued = self.issued.lock();
        let Some(begun) = issued.levels.iter_mut().find(|begun| begun.level == level) else {
            return false;
        };
        begun.members -= 1;
        if let Some(reason) = failed {
            issued.mark(level, reason);
        }
        true
    }

    /// The innermost level that this member has begun.
    pub(super) fn level_of(&self, member: u64) -> Option<Level> {
        let issued = self.issued.lock();
        let own = issued
            .levels
            .iter()
            .rev()
            .find(|begun| begun.owner == Some(member));
        own.map(|begun| begun.level)
    }

    /// Marks the transaction of this level for rollback, as the guest asks for it.
    pub(super) fn set_rollback(&self, level: Level) {
        self.issued.lock().mark(level, Reason::SetRollback);
    }

    /// Why the transaction with this outermost level must be rolled back, if it must.
    pub(super) fn must_roll_back(&self, outermost: Level) -> Option<Reason> {
        let issued = self.issued.lock();
        let mut marks = issued.rollbacks.iter();
        let mark = marks.find(|(level, _)| *level == outermost);
        mark.map(|(_, reason)| *reason)
    }

    /// Gives the effects of a level that was released to the level around it.
    pub(super) fn hand_on(&self, level: Level, around: Level) {
        for (held_in, _) in &mut self.issued.lock().held {
            if *held_in == level {
                *held_in = around;
            }
        }
    }

    /// Releases the effects of a level that was committed, in the order in which they were sent.
    pub(super) fn release(&self, level: Level) {
        let held = std::mem::take(&mut self.issued.lock().held);
        let (released, kept): (Vec<_>, Vec<_>) = (held.into_iter()).partition(|(l, _)| *l == level);
        self.issued.lock().held.splice(0..0, kept);
        for (_, effect) in released {
            self.history.run(effect);
        }
    }

    /// Drops the effects of levels that were rolled back.
    pub(super) fn forget(&self, levels: &[Level]) {
        let held = std::mem::take(&mut self.issued.lock().held);
        let kept: Vec<_> = (held.into_iter())
            .filter(|(level, _)| !levels.contains(level))
            .collect();
        let mut issued = self.issued.lock();
        issued.held.splice(0..0, kept);
        issued
            .rollbacks
            .retain(|(level, _)| !levels.contains(level));
    }

    /// Refuses all further effects, because the transaction is over.
    pub(super) fn end(&self) {
        self.issued.lock().ended = true;
    }

    /// Refuses all further effects, and drops the held effects and all levels.
    pub(super) fn clear(&self) {
        let mut issued = self.issued.lock();
        issued.ended = true;
        let begun = issued.levels.iter().filter(|begun| begun.owner.is_some());
        if let begun @ 1.. = begun.count() {
            self.history.levels.fetch_sub(begun, SeqCst);
        }
        issued.levels.clear();
        let held = std::mem::take(&mut issued.held);
        drop(issued);
        drop(held);
    }
}
