//! What a scope sends to others, held until what it was sent in is committed (R10); and what it wants of its
//! transaction without waiting for it.
//!
//! The levels here are those that the guest has begun and not yet asked to end, in the order of its calls. The
//! state's levels follow when the calls get their turn; then what is held here is released, dropped, or handed on
//! to the level around.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use parking_lot::Mutex;

use super::Level;
use crate::database::{Error, ErrorKind};

/// Something that others will see. It must not fail and not wait.
pub type Effect = Box<dyn FnOnce() + Send>;

pub(super) struct Effects {
    issued: Mutex<Issued>,
    conflict: AtomicBool,
    unavailable: AtomicBool,
    /// Something was done that a roll-back does not undo.
    lasting: AtomicBool,
}

struct Issued {
    levels: Vec<Level>,
    held: Vec<(Level, Effect)>,
    /// The transaction whose outermost level this is must be rolled back.
    rollback: Option<Level>,
    /// The scope is over: what comes late is dropped.
    ended: bool,
}

impl Effects {
    pub(super) fn new(atomic: bool) -> Effects {
        Effects {
            issued: Mutex::new(Issued {
                levels: atomic.then_some(Level::SCOPE).into_iter().collect(),
                held: Vec::new(),
                rollback: None,
                ended: false,
            }),
            conflict: AtomicBool::new(false),
            unavailable: AtomicBool::new(false),
            lasting: AtomicBool::new(false),
        }
    }

    /// Holds the effect, or has it at once when no transaction is active.
    pub(super) fn add(&self, effect: Effect) {
        let mut issued = self.issued.lock();
        match issued.levels.last().copied() {
            _ if issued.ended => {}
            Some(level) => issued.held.push((level, effect)),
            None => {
                drop(issued);
                self.lasts();
                effect();
            }
        }
    }

    pub(super) fn begin(&self, level: Level) {
        self.issued.lock().levels.push(level);
    }

    /// The guest has asked for the level's end.
    pub(super) fn leave(&self, level: Level) {
        self.issued.lock().levels.retain(|other| *other != level);
    }

    pub(super) fn set_rollback(&self) {
        let mut issued = self.issued.lock();
        issued.rollback = issued.levels.first().copied().or(issued.rollback);
    }

    /// Whether the transaction with this outermost level must be rolled back.
    pub(super) fn must_roll_back(&self, outermost: Level) -> bool {
        self.issued.lock().rollback == Some(outermost)
    }

    /// The level is kept as a part of the one around it.
    pub(super) fn hand_on(&self, level: Level, around: Level) {
        for (held_in, _) in &mut self.issued.lock().held {
            if *held_in == level {
                *held_in = around;
            }
        }
    }

    /// The level is committed.
    pub(super) fn release(&self, level: Level) {
        let held = std::mem::take(&mut self.issued.lock().held);
        let (released, kept): (Vec<_>, Vec<_>) = (held.into_iter()).partition(|(l, _)| *l == level);
        self.issued.lock().held.splice(0..0, kept);
        for (_, effect) in released {
            effect();
        }
    }

    /// What was done in these levels is undone.
    pub(super) fn forget(&self, levels: &[Level]) {
        let held = std::mem::take(&mut self.issued.lock().held);
        let kept: Vec<_> = (held.into_iter())
            .filter(|(level, _)| !levels.contains(level))
            .collect();
        self.issued.lock().held.splice(0..0, kept);
    }

    /// The scope has ended: nothing is held any more.
    pub(super) fn clear(&self) {
        let mut issued = self.issued.lock();
        issued.ended = true;
        issued.levels.clear();
        drop(std::mem::take(&mut issued.held));
    }

    /// Something was done that a roll-back does not undo.
    pub(super) fn lasts(&self) {
        self.lasting.store(true, SeqCst);
    }

    /// Whether another transaction was in the way, and nothing of this scope has lasted.
    pub(super) fn can_begin_again(&self) -> bool {
        self.conflict.load(SeqCst) && !self.lasting.load(SeqCst)
    }

    /// Whether a database could not be reached.
    pub(super) fn unavailable(&self) -> bool {
        self.unavailable.load(SeqCst)
    }

    pub(super) fn note(&self, error: &Error) {
        match error.kind {
            ErrorKind::Conflict => self.conflict.store(true, SeqCst),
            ErrorKind::Unavailable => self.unavailable.store(true, SeqCst),
            _ => {}
        }
    }
}
