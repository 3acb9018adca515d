//! Which reads leave nothing in a session, so that their connection need not be cleaned after them (R11).
//!
//! By its words a read may name one table and call nothing (`guard`); what the table is, the server alone knows. It is
//! asked in a clean session, right ahead of the read and in the same round trip: names mean there what they mean in
//! the read. The table is taken for what it is only when its name leads to the very table that the server described
//! the statement's columns with when it was prepared. The answer holds for a second, and only as long as nobody may
//! have changed a definition:
//!
//! * A statement that is more than `select` and its like by its first word may change definitions, and so may each
//!   that calls something while the database has functions that somebody has written. From before such a statement
//!   until its connection is clean, no read is believed to have left nothing, and no older answer holds afterwards.
//! * Other programs are not seen; what they change is noticed within the second.
//!
//! Whenever in doubt, the connection is cleaned.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(1);

/// Whether reading a table (`$1` its name, `$2` its oid) runs nothing that somebody has written, and whether the
/// database has functions that may change definitions. It is a table with rows of its own: no view, nothing
/// inherited, no policies and rules. Its columns have types whose output is the server's or an extension's. Nothing
/// that is looked at while a read is planned (indexes, constraints, statistics) depends on anything but the server's.
/// No operator and no cast can be meant that is neither the server's nor an extension's. Every name has its schema,
/// because a role's search path may put somebody's ahead.
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

/// What [`CHECK`] has told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checked {
    pub(super) is_plain: bool,
    pub(super) has_functions: bool,
}

/// Which table a read has to be checked for.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) oid: u32,
}

/// What the host knows of the changes of a database's definitions.
#[derive(Default)]
pub(super) struct Definitions(Mutex<State>);

#[derive(Default)]
struct State {
    /// Counts what may have changed.
    generation: u64,
    /// How many connections may be changing something right now.
    changing: usize,
    /// Those of them that have only asked about their read, and not been answered. They do not keep each other from learning:
    /// an answer that turns out to allow changes ends all others.
    asking: usize,
    /// When there were no functions that change definitions, if that is known.
    without_functions: Option<Instant>,
}

/// That a read is known to leave nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain {
    generation: u64,
    since: Instant,
}

/// From when a read is sent until it has ended; see [`Definitions::watch`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    generation: u64,
    /// Nobody else may change something.
    quiet: bool,
    /// Nobody else may, but for those who have only asked.
    learns: bool,
    since: Instant,
}

impl Definitions {
    /// Begins to watch for changes. `own` is whether the watcher's own connection counts as changing something.
    pub(super) fn watch(&self, own: bool) -> Watch {
        let state = self.0.lock();
        Watch {
            generation: state.generation,
            quiet: state.changing == usize::from(own),
            learns: state.changing == state.asking,
            since: Instant::now(),
        }
    }

    /// Whether nothing can have changed meanwhile.
    pub(super) fn is_unchanged(&self, watch: &Watch, own: bool) -> bool {
        let state = self.0.lock();
        watch.quiet && state.changing == usize::from(own) && state.generation == watch.generation
    }

    /// Whether what a statement calls may change definitions.
    pub(super) fn may_call(&self) -> bool {
        let known = self.0.lock().without_functions;
        known.is_none_or(|at| at.elapsed() > HOLDS)
    }

    /// Takes note of an answer, and says until when a read is plain by it.
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

    /// From now on something may be changed, by one connection more, which `asks` first whether that is so.
    pub(super) fn begin(&self, asks: bool) {
        let mut state = self.0.lock();
        state.changing += 1;
        state.asking += usize::from(asks);
    }

    /// That connection has nothing open any more. `changed`: whether it may have changed something at all.
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
    /// Whether it holds at the begin of a watch.
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
        // Somebody changes something while a read is on its way: before, during, after.
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
        // Another one asks at the same time: both learn, and neither is believed to have left nothing.
        definitions.begin(true);
        let other = definitions.watch(true);
        assert!(definitions.learn(&own, NO_FUNCTIONS).is_some());
        assert!(definitions.learn(&other, NO_FUNCTIONS).is_some());
        assert!(!definitions.is_unchanged(&own, true) && !definitions.is_unchanged(&other, true));
        definitions.end(true, false);
        definitions.end(true, false);
        assert!(plain.holds(&definitions.watch(false)));
        // Whose answer was another one ends what the others have learnt.
        definitions.begin(true);
        definitions.end(true, true);
        assert!(!plain.holds(&definitions.watch(false)));
    }
}
