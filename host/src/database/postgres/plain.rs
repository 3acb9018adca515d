//! Plain reads: those that leave nothing in a session, so that the connection need not be cleaned after them (R11).
//!
//! By its words, a read may name one table and call nothing (`guard`). Only the server knows what that table is. The
//! server is asked in a clean session, right before the read and in the same round trip, so that names mean the same in
//! the question and in the read. The answer counts only if the name leads to the very table (by its oid) that the
//! server named for the statement's columns when it prepared the statement. The answer holds for one second, and only
//! while no definition may have changed:
//!
//! * A statement may change definitions if its first word is not that of a read or of a change of rows (`select`,
//!   `insert` and the like). While the database has functions that users have written, every statement may, because it
//!   may call them. From before such a statement is sent until its connection is clean, no read counts as plain, and no
//!   older answer counts afterwards.
//! * The host does not see changes by other programs. After such a change, older answers hold for at most one second.
//!
//! In every doubtful case the connection is cleaned.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an answer of the server holds.
const HOLDS: Duration = Duration::from_secs(1);

/// The question to the server, about the table `$1` (name) and `$2` (oid). First column: whether reading the table runs
/// no code that users have written. Second column: whether the database has functions that may change definitions.
///
/// The first column is true when all of this holds. The table has rows of its own: it is no view, nothing inherits from
/// it, and it has no policies and no rules. The types of its columns have output functions of the server's or of an
/// extension's. Whatever the server evaluates while it plans the read (indexes, constraints, statistics) uses only the
/// server's own functions. Every operator and cast in the database is the server's or an extension's. All names have
/// their schema, because a role's search path may put another schema first.
pub(super) const CHECK: &str = "select exists (
        select from pg_catalog.pg_class c
        where c.oid operator(pg_catalog.=) pg_catalog.to_regclass($1) and c.oid operator(pg_catalog.=) $2::pg_catalog.oid
            and c.relkind operator(pg_catalog.=) 'r'::pg_catalog.\"char\"
            and c.relpersistence operator(pg_catalog.<>) 't'::pg_catalog.\"char\"
            and c.relam operator(pg_catalog.=) '2'::pg_catalog.oid
            and not c.relrowsecurity and not c.relhasrules and not c.relhassubclass)
    and not exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid operator(pg_catalog.=) a.atttypid
        left join pg_catalog.pg_type e on e.oid operator(pg_catalog.=) t.typelem
        where a.attrelid operator(pg_catalog.=) $2::pg_catalog.oid and not a.attisdropped
            and (a.attgenerated operator(pg_catalog.=) 'v'::pg_catalog.\"char\"
                or not (t.typtype operator(pg_catalog.=) 'b'::pg_catalog.\"char\"
                    or t.typtype operator(pg_catalog.=) 'e'::pg_catalog.\"char\")
                or not (e.typtype operator(pg_catalog.=) 'b'::pg_catalog.\"char\"
                    or e.typtype operator(pg_catalog.=) 'e'::pg_catalog.\"char\")))
    and not exists (
        select from pg_catalog.pg_depend d
        left join pg_catalog.pg_type t on d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_type'::pg_catalog.regclass
            and t.oid operator(pg_catalog.=) d.refobjid
        where ((d.classid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
                and exists (select from pg_catalog.pg_index i where i.indrelid operator(pg_catalog.=) $2::pg_catalog.oid
                    and i.indexrelid operator(pg_catalog.=) d.objid))
            or (d.classid operator(pg_catalog.=) 'pg_catalog.pg_constraint'::pg_catalog.regclass
                and exists (select from pg_catalog.pg_constraint k where k.conrelid operator(pg_catalog.=) $2::pg_catalog.oid
                    and k.oid operator(pg_catalog.=) d.objid)))
            and d.refclassid operator(pg_catalog.<>) 'pg_catalog.pg_class'::pg_catalog.regclass
            and d.refclassid operator(pg_catalog.<>) 'pg_catalog.pg_constraint'::pg_catalog.regclass
            and d.refclassid operator(pg_catalog.<>) 'pg_catalog.pg_collation'::pg_catalog.regclass
            and t.typtype is distinct from 'e'::pg_catalog.\"char\")
    and not exists (
        select from pg_catalog.pg_statistic_ext s where s.stxrelid operator(pg_catalog.=) $2::pg_catalog.oid)
    and not exists (
        select from pg_catalog.pg_operator o
        left join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) o.oprcode
        left join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass
            and d.objid operator(pg_catalog.=) o.oid and d.deptype operator(pg_catalog.=) 'e'::pg_catalog.\"char\"
        where o.oid operator(pg_catalog.>=) '16384'::pg_catalog.oid
            and (d.objid is null or p.prolang operator(pg_catalog.>) '13'::pg_catalog.oid))
    and not exists (
        select from pg_catalog.pg_cast c
        join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) c.castfunc
        left join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) 'pg_catalog.pg_cast'::pg_catalog.regclass
            and d.objid operator(pg_catalog.=) c.oid and d.deptype operator(pg_catalog.=) 'e'::pg_catalog.\"char\"
        where c.oid operator(pg_catalog.>=) '16384'::pg_catalog.oid
            and (d.objid is null or p.prolang operator(pg_catalog.>) '13'::pg_catalog.oid)),
    exists (
        select from pg_catalog.pg_proc p
        where p.oid operator(pg_catalog.>=) '16384'::pg_catalog.oid
            and (p.prolang operator(pg_catalog.>) '13'::pg_catalog.oid
                or p.provolatile operator(pg_catalog.=) 'v'::pg_catalog.\"char\"))";

/// The answer to [`CHECK`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Checked {
    pub(super) is_plain: bool,
    pub(super) has_functions: bool,
}

/// The table that [`CHECK`] asks about.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) oid: u32,
}

/// What the host knows about changes of a database's definitions.
#[derive(Default)]
pub(super) struct Definitions(Mutex<State>);

#[derive(Default)]
struct State {
    /// Counts the times that definitions may have changed.
    generation: u64,
    /// The number of connections that may be changing definitions right now.
    changing: usize,
    /// The number of these connections that send [`CHECK`] with their read. They do not keep each other from using the
    /// server's answers: a connection whose read turns out not to be plain makes all answers invalid when it is
    /// unregistered.
    asking: usize,
    /// When the database was last known to have no functions that may change definitions. None: that is not known.
    without_functions: Option<Instant>,
}

/// Proof that a read leaves nothing in the session. See [`Plain::holds`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    generation: u64,
    since: Instant,
}

/// The state of definitions when a read is sent, to be compared when it has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    generation: u64,
    /// No other connection was registered as one that may change definitions.
    quiet: bool,
    /// All registered connections are counted in [`State::asking`], so an answer of the server can be used.
    learns: bool,
    since: Instant,
}

impl Definitions {
    /// Starts a watch. `own`: the watcher's own connection is registered as one that may change definitions.
    pub(super) fn watch(&self, own: bool) -> Watch {
        let state = self.0.lock();
        Watch {
            generation: state.generation,
            quiet: state.changing == usize::from(own),
            learns: state.changing == state.asking,
            since: Instant::now(),
        }
    }

    /// Whether no definition can have changed since the watch began.
    pub(super) fn is_unchanged(&self, watch: &Watch, own: bool) -> bool {
        let state = self.0.lock();
        watch.quiet && state.changing == usize::from(own) && state.generation == watch.generation
    }

    /// Whether a function that a statement calls may change definitions.
    pub(super) fn may_call(&self) -> bool {
        let known = self.0.lock().without_functions;
        known.is_none_or(|at| at.elapsed() > HOLDS)
    }

    /// Takes note of the server's answer. Returns the proof that the read is plain, if the read is plain.
    pub(super) fn learn(&self, watch: &Watch, checked: Checked) -> Option<Plain> {
        let mut state = self.0.lock();
        let unchanged =
            watch.learns && state.changing == state.asking && state.generation == watch.generation;
        if !unchanged {
            return None;
        }
        state.without_functions = (!checked.has_functions).then_some(watch.since);
        checked.is_plain.then_some(Plain {
            generation: watch.generation,
            since: watch.since,
        })
    }

    /// Registers one more connection that may change definitions. `asks`: it asks the server first whether its read is
    /// plain.
    pub(super) fn begin(&self, asks: bool) {
        let mut state = self.0.lock();
        state.changing += 1;
        state.asking += usize::from(asks);
    }

    /// Unregisters a connection, when nothing is open on it any more. `changed`: it may have changed definitions.
    pub(super) fn end(&self, asks: bool, changed: bool) {
        let mut state = self.0.lock();
        state.changing -= 1;
        state.asking -= usize::from(asks);
        if changed {
            state.generation += 1;
            state.without_functions = None;
        }
    }
}

impl Plain {
    /// Whether the proof holds for a read whose watch begins now.
    pub(super) fn holds(&self, watch: &Watch) -> bool {
        watch.quiet
            && self.generation == watch.generation
            && watch.since.duration_since(self.since) < HOLDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FUNCTIONS: Checked = Checked {
        is_plain: true,
        has_functions: false,
    };

    #[test]
    fn r11_an_answer_holds_until_something_may_have_changed() {
        let definitions = Definitions::default();
        assert!(definitions.may_call(), "nothing is known yet");
        let watch = definitions.watch(false);
        let plain = definitions
            .learn(&watch, NO_FUNCTIONS)
            .expect("it is plain");
        assert!(plain.holds(&definitions.watch(false)) && !definitions.may_call());
        // Another connection may change something after the read `during` has begun and before the read `within`
        // begins.
        let during = definitions.watch(false);
        definitions.begin(false);
        assert!(!plain.holds(&definitions.watch(false)));
        assert!(!definitions.is_unchanged(&during, false));
        let within = definitions.watch(false);
        assert!(definitions.learn(&within, NO_FUNCTIONS).is_none());
        definitions.end(false, true);
        assert!(
            !definitions.is_unchanged(&during, false) && !definitions.is_unchanged(&within, false)
        );
        assert!(definitions.learn(&within, NO_FUNCTIONS).is_none());
        assert!(!plain.holds(&definitions.watch(false)) && definitions.may_call());
    }

    #[test]
    fn r11_a_check_that_changed_nothing_itself_ends_no_other_answer() {
        let definitions = Definitions::default();
        let watch = definitions.watch(false);
        let plain = definitions
            .learn(&watch, NO_FUNCTIONS)
            .expect("it is plain");
        definitions.begin(true);
        let own = definitions.watch(true);
        // Another connection asks at the same time: both learn, and neither read counts as plain.
        definitions.begin(true);
        let other = definitions.watch(true);
        assert!(definitions.learn(&own, NO_FUNCTIONS).is_some());
        assert!(definitions.learn(&other, NO_FUNCTIONS).is_some());
        assert!(!definitions.is_unchanged(&own, true) && !definitions.is_unchanged(&other, true));
        definitions.end(true, false);
        definitions.end(true, false);
        assert!(plain.holds(&definitions.watch(false)));
        // A connection whose read is not plain makes invalid what the others have learnt.
        definitions.begin(true);
        definitions.end(true, true);
        assert!(!plain.holds(&definitions.watch(false)));
    }
}
