//! The state behind a transaction's lock: the connection, the levels, the pins.

use std::sync::Arc;

use super::effects::{Described, Effects, Reason, StreamPermit};
use super::{Compared, Fate, Level, Options};
use crate::database::{Database, Error, ErrorKind, Failed, Lease, Outcome, Statement, short};
use crate::telemetry::metrics::{GaugeGuard, METRICS};
use crate::threads::deadline::Deadline;

pub(super) struct State {
    options: Options,
    effects: Arc<Effects>,
    open: Option<Open>,
    /// The levels, the outermost first. They stay when the transaction is lost, so that statements which the guest
    /// still believes to be in it do not run outside.
    levels: Vec<OpenLevel>,
    pins: Pins,
    /// Why the whole transaction was rolled back without the guest asking for it.
    lost: Option<Error>,
    /// Whether the transaction is that of a copy, and is never committed.
    is_copy: bool,
    /// Of a copy that has ended: its transaction in the database. Of a request: the one that a copy of it has left,
    /// until the first statement.
    parked: Option<Parked>,
    /// What has become of a transaction that a copy has left for this one.
    shared: Option<Compared>,
}

/// A transaction of the database that a copy has begun and that its request may go on in.
pub struct Parked(Open);

/// The savepoint that contains all that a copy does.
const COPY: &str = "amphi_copy";

/// The one connection of the transaction or of its pins.
struct Open {
    lease: Lease,
    database: Database,
    /// Statements of the host that end levels. They are sent before the next statement.
    pending: Vec<String>,
    /// Set while the database knows of the transaction.
    begun: Option<GaugeGuard>,
    /// The state of the database when the copy's transaction began, if the next statements may see a later one.
    seen: Option<String>,
}

/// A level that was begun and has not ended.
struct OpenLevel {
    level: Level,
    /// The member that began the level. None for the level that the transaction of an atomic view has from the start.
    owner: Option<u64>,
    /// The name of the database that the level was begun on.
    database: Option<String>,
    /// Whether the database knows of the level.
    known: bool,
    /// The error of the first statement that failed in the level.
    failed: Option<Error>,
}

#[derive(Default)]
struct Pins {
    count: usize,
    held: Option<GaugeGuard>,
    /// The permit, where the number of pinned connections is limited.
    kept: Option<StreamPermit>,
    /// Why the pinned connection was lost.
    lost: Option<Error>,
}

/// A level that was taken off the stack, and its depth there.
pub(super) struct Taken {
    begun: OpenLevel,
    depth: usize,
}

/// Where a statement of a member belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To the innermost level, or to the pinned connection.
    Here,
    /// To neither a level nor the pinned connection.
    Outside,
    /// To a level that has a level of another member on top: the statement waits.
    Later,
}

impl State {
    pub(super) fn new(options: Options, effects: &Arc<Effects>, is_copy: bool) -> State {
        let mut state = State {
            options,
            effects: Arc::clone(effects),
            open: None,
            levels: Vec::new(),
            pins: Pins::default(),
            lost: None,
            is_copy,
            parked: None,
            shared: None,
        };
        if options.atomic {
            state.levels.push(OpenLevel::new(Level::WHOLE, None, None));
        }
        state
    }

    /// The database that the connection belongs to.
    pub(super) fn database(&self) -> Option<Database> {
        self.open.as_ref().map(|open| open.database.clone())
    }

    /// Whether any level is open.
    pub(super) fn has_levels(&self) -> bool {
        !self.levels.is_empty()
    }

    /// Where a statement on this database belongs, of a member that was called in the level `base`.
    pub(super) fn place(
        &self,
        member: u64,
        base: Option<Level>,
        database: &Database,
    ) -> Result<Place, Error> {
        let is_own = |begun: &OpenLevel| begun.owner == Some(member) || Some(begun.level) == base;
        if self.levels.last().is_some_and(is_own) {
            return self.admits(database).map(|()| Place::Here);
        }
        if let Some(base) = base
            && !self.levels.iter().any(|begun| begun.level == base)
        {
            // The level `base` has ended, or it waits to begin. The statement must not wait for that, because the level
            // may wait for the worker that this very view is on.
            return Err(match self.effects.is_open(base) {
                true => not_begun(),
                false => left_behind(),
            });
        }
        let within = self.levels.iter().any(is_own);
        if let Some(why) = self.lost.as_ref().filter(|_| within) {
            return Err(gone(why));
        }
        if within {
            return Ok(Place::Later);
        }
        // The statement may belong to the pinned connection, on which another member may have begun a transaction.
        match (self.is_pinned_on(database)?, self.levels.is_empty()) {
            (false, _) => Ok(Place::Outside),
            (true, true) => Ok(Place::Here),
            (true, false) => Ok(Place::Later),
        }
    }

    fn is_pinned_on(&self, database: &Database) -> Result<bool, Error> {
        match (&self.open, &self.pins.lost) {
            _ if self.pins.count == 0 => Ok(false),
            (Some(open), _) => Ok(open.database.config().name == database.config().name),
            (None, Some(why)) => Err(Error::new(
                why.kind,
                format!("the pinned connection is no more: {}", why.message),
            )),
            (None, None) => Ok(false),
        }
    }

    /// Checks that a statement on this database can run in the innermost level.
    pub(super) fn admits(&self, database: &Database) -> Result<(), Error> {
        let wanted = &database.config().name;
        let open = self.open.as_ref().map(|open| &open.database.config().name);
        let begun = || self.levels.iter().find_map(|begun| begun.database.as_ref());
        match open.or_else(begun) {
            Some(on) if on != wanted && self.levels.is_empty() => Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "this request has pinned a connection of the database `{on}`, so it can have none of its own on `{wanted}`: let the first one go before"
                ),
            )),
            Some(on) if on != wanted => Err(Error::new(
                ErrorKind::Denied,
                format!(
                    "the transaction of this request is on the database `{on}`, so a statement on `{wanted}` could not be part of it: use one database per transaction, or run the statement outside"
                ),
            )),
            _ => self.healthy(),
        }
    }

    /// Checks that the innermost level takes statements.
    fn healthy(&self) -> Result<(), Error> {
        match (&self.lost, self.levels.last()) {
            (Some(why), Some(_)) => Err(gone(why)),
            (
                None,
                Some(OpenLevel {
                    failed: Some(why), ..
                }),
            ) => Err(poisoned(why)),
            _ => Ok(()),
        }
    }

    /// Whether the transaction needs a connection that can write.
    pub(super) fn writes(&self) -> bool {
        !self.options.read_only
    }

    /// The effects and the history.
    pub(super) fn effects(&self) -> Arc<Effects> {
        Arc::clone(&self.effects)
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.open.is_some()
    }

    /// Acquires a connection if there is none.
    pub(super) async fn connect(
        &mut self,
        database: &Database,
        deadline: &Arc<Deadline>,
    ) -> Result<(), Error> {
        self.adopt(database);
        if self.open.is_some() {
            return Ok(());
        }
        let lease = database.lease(deadline, self.options.read_only).await;
        let lease = lease.inspect_err(|error| self.effects.history.note(error))?;
        self.connected(lease, database);
        Ok(())
    }

    /// Stores the connection.
    pub(super) fn connected(&mut self, lease: Lease, database: &Database) {
        self.open = Some(Open {
            lease,
            database: database.clone(),
            pending: Vec::new(),
            begun: None,
            seen: None,
        });
    }

    /// Goes on in the transaction that a copy has left, if that is on the same database.
    pub(super) fn adopt(&mut self, database: &Database) {
        let Some(Parked(parked)) = self.parked.take().filter(|_| self.open.is_none()) else {
            return;
        };
        let whole = self
            .levels
            .first_mut()
            .filter(|it| it.level == Level::WHOLE);
        if let Some(whole) = whole
            && parked.database.is(database)
        {
            whole.known = true;
            self.shared = Some(Compared::Same);
            self.open = Some(parked);
        }
    }

    /// Keeps the transaction that a copy has left until the first statement.
    pub(super) fn share(&mut self, parked: Parked, deadline: &Arc<Deadline>) -> bool {
        let Parked(mut parked) = parked;
        let fits = self.options.atomic && self.open.is_none() && self.lost.is_none();
        if !fits || parked.lease.hand_on(deadline).is_err() {
            return false;
        }
        self.shared = Some(Compared::Apart);
        self.parked = Some(Parked(parked));
        true
    }

    pub(super) fn take_parked(&mut self) -> Option<Parked> {
        self.parked.take()
    }

    pub(super) fn is_poisoned(&self) -> bool {
        let outermost = self.levels.first();
        outermost.is_some_and(|outermost| outermost.failed.is_some())
    }

    pub(super) fn was_shared(&self) -> Compared {
        self.shared.unwrap_or(Compared::Apart)
    }

    /// Begins the transaction of a copy in the database, with the savepoint that contains all of the copy.
    async fn begin_copy(&mut self) -> Result<(), Error> {
        let Options {
            read_only,
            isolation,
            ..
        } = self.options;
        let open = self.open.as_mut().ok_or_else(ended)?;
        let begin = open.lease.begin(read_only, isolation);
        let begin = [begin, format!("savepoint {COPY}")];
        open.lease.host(&begin).await?;
        open.lease.set_in_transaction(true);
        open.seen = open.lease.seen(isolation).await?;
        open.begun = Some(GaugeGuard::new(&METRICS.transactions));
        if let Some(whole) = self.levels.first_mut() {
            whole.known = true;
        }
        Ok(())
    }

    /// Undoes all of a copy, and keeps its transaction.
    async fn park(&mut self, mut open: Open) {
        open.pending.clear();
        let undo = [format!("rollback to {COPY}"), format!("release {COPY}")];
        let undone = open.lease.host(&undo).await;
        let undone = match undone {
            Ok(()) => open.lease.forget_session().await,
            Err(why) => Err(why),
        };
        match undone {
            Ok(()) => self.parked = Some(Parked(open)),
            // Dropping the lease rolls back.
            Err(why) => self.effects.history.note(&why),
        }
    }

    pub(super) fn push(
        &mut self,
        level: Level,
        owner: u64,
        database: &Database,
    ) -> Result<(), Error> {
        self.admits(database)?;
        let database = database.config().name.clone();
        self.levels
            .push(OpenLevel::new(level, Some(owner), Some(database)));
        Ok(())
    }

    /// Runs a statement in the transaction or on the pinned connection. Levels that the database does not know yet
    /// begin in the same message. `read_only`: the statement may not write, even if the transaction may.
    pub(super) async fn run(
        &mut self,
        statement: &Statement,
        read_only: bool,
    ) -> Result<Outcome, Error> {
        let is_new = self.levels.first().is_some_and(|whole| !whole.known);
        if self.is_copy
            && is_new
            && let Err(why) = self.begin_copy().await
        {
            self.effects.history.note(&why);
            self.open = None;
            return Err(why);
        }
        let open = self.open.as_mut().ok_or_else(ended)?;
        let mut before = open.pending.clone();
        for (depth, begun) in self.levels.iter().enumerate().filter(|(_, b)| !b.known) {
            before.push(match depth {
                0 => {
                    let Options {
                        read_only,
                        isolation,
                        ..
                    } = self.options;
                    open.lease.begin(read_only, isolation)
                }
                _ => format!("savepoint {}", begun.level),
            });
        }
        open.lease.set_in_transaction(!self.levels.is_empty());
        let only_reads = read_only && !self.options.read_only;
        // A statement on a pinned connection, outside of a transaction, commits by itself.
        let _running = (self.levels.is_empty() && !self.options.read_only)
            .then(|| self.effects.history.runs());
        let ran = open.lease.run(&before, statement, only_reads).await;
        let (alive, within) = (open.lease.in_transaction(), !self.levels.is_empty());
        let why_ended = (!alive).then(|| open.lease.why_ended());
        if !matches!(&ran, Err(Failed::Refused(_) | Failed::Before(_))) {
            open.pending.clear();
            if only_reads && ran.is_ok() {
                open.pending.extend(open.lease.end_of_reading(within));
            }
            if within && open.begun.is_none() {
                open.begun = Some(GaugeGuard::new(&METRICS.transactions));
            }
            self.levels.iter_mut().for_each(|begun| begun.known = true);
            if !within && !self.options.read_only {
                self.effects.history.lasts();
            }
        }
        let failed = match ran {
            Ok(outcome) if alive || !within => {
                let history = &self.effects.history;
                if outcome.changed > 0 && history.describes() {
                    let values = format!("{:?} {}", statement.params, outcome.changed);
                    history.writes(Described::new(short(&statement.sql), values.as_bytes()));
                }
                return Ok(outcome);
            }
            // The transaction has ended, and the guest did not ask for that.
            Ok(_) => Failed::Statement(why_ended.unwrap_or_else(ended)),
            Err(failed) => failed,
        };
        if matches!(&failed, Failed::Before(error) if !is_undone(error)) {
            // The database may have run the statement although a statement before it failed, and so outside of the
            // transaction.
            self.effects.history.lasts();
        }
        let begun = self.levels.first().is_some_and(|outermost| outermost.known);
        match &failed {
            Failed::Before(error) if begun || self.pins.count > 0 => self.lose(error.clone()),
            // The transaction could not begin; perhaps it can with the next statement.
            Failed::Before(_) => self.open = None,
            Failed::Statement(error) if !alive && within => self.lose(error.clone()),
            Failed::Statement(error) if error.kind == ErrorKind::Unavailable => {
                self.lose(error.clone());
            }
            Failed::Refused(error) | Failed::Statement(error) => {
                if let Some(innermost) = self.levels.last_mut() {
                    innermost.failed.get_or_insert_with(|| error.clone());
                }
            }
        }
        let error = failed.into_error();
        self.effects.history.note(&error);
        Err(error)
    }

    /// Takes `level` off the stack.
    pub(super) fn take(&mut self, level: Level) -> Option<Taken> {
        let depth = self.levels.iter().position(|begun| begun.level == level)?;
        let begun = self.levels.remove(depth);
        Some(Taken { begun, depth })
    }

    /// Ends a level as the guest asks for it. `torn`: a view that was called in the level still runs.
    pub(super) async fn end(&mut self, taken: Taken, keep: bool, torn: bool) -> Result<(), Error> {
        let Taken { begun, depth } = taken;
        if let Some(why) = self.lost.clone() {
            self.effects.forget(&[begun.level]);
            self.forget_loss();
            // A rollback has nothing left to do.
            return if keep { Err(gone(&why)) } else { Ok(()) };
        }
        if depth < self.levels.len() || (torn && keep) {
            let why = if torn { torn_apart() } else { overlap() };
            self.overlap(begun, why.clone());
            return Err(why);
        }
        match self.levels.last().map(|around| around.level) {
            None => self.end_outermost(begun, keep).await,
            Some(around) => self.end_within(begun, around, keep).await,
        }
    }

    async fn end_within(
        &mut self,
        begun: OpenLevel,
        around: Level,
        keep: bool,
    ) -> Result<(), Error> {
        let level = begun.level;
        if keep && begun.failed.is_none() {
            self.effects.hand_on(level, around);
            if let Some(open) = self.open.as_mut().filter(|_| begun.known) {
                open.pending.push(format!("release {level}"));
            }
            return Ok(());
        }
        self.effects.forget(&[level]);
        if let Some(open) = self.open.as_mut().filter(|_| begun.known) {
            let mut statements = std::mem::take(&mut open.pending);
            statements.extend(undo(level));
            if let Err(why) = open.lease.host(&statements).await {
                self.effects.history.note(&why);
                self.lose(why.clone());
                return Err(why);
            }
        }
        match begun.failed {
            Some(why) if keep => Err(undone(&why)),
            _ => Ok(()),
        }
    }

    async fn end_outermost(&mut self, begun: OpenLevel, keep: bool) -> Result<(), Error> {
        let level = begun.level;
        let marked = self.effects.must_roll_back(level);
        let commit = keep && begun.failed.is_none() && marked.is_none();
        let closed = self.close(begun.known, commit).await;
        match commit && closed.is_ok() {
            true => self.effects.release(level),
            false => self.effects.forget(&[level]),
        }
        closed?;
        match (begun.failed, marked) {
            (Some(why), _) if keep => Err(undone(&why)),
            (None, Some(reason)) if keep => Err(marked_for_rollback(reason)),
            _ => Ok(()),
        }
    }

    /// Rolls back a level that the guest dropped. Runs nothing now: the rollback is sent before the next statement, or
    /// done by giving the connection back.
    pub(super) fn abandon(&mut self, level: Level) {
        self.effects.forget(&[level]);
        let Some(Taken { begun, depth }) = self.take(level) else {
            return;
        };
        if self.lost.is_some() {
            return self.forget_loss();
        }
        if depth < self.levels.len() {
            return self.overlap(begun, overlap());
        }
        if begun.known && self.levels.is_empty() {
            self.effects.history.set_fate(Fate::RolledBack);
        }
        match &mut self.open {
            Some(open) if begun.known && !self.levels.is_empty() => {
                open.pending.extend(undo(level));
            }
            Some(open) if self.levels.is_empty() && self.pins.count > 0 => {
                if begun.known {
                    open.begun = None;
                    open.pending = vec!["rollback".to_owned()];
                }
                self.keep_pinned();
            }
            // Dropping the lease rolls back.
            Some(_) if self.levels.is_empty() => self.open = None,
            _ => {}
        }
    }

    /// Keeps the connection until [`State::unpin`]; acquires one if there is none.
    pub(super) async fn pin(
        &mut self,
        database: &Database,
        deadline: &Arc<Deadline>,
    ) -> Result<(), Error> {
        // Within a transaction a pin needs no permit, because called views use the same connection. Outside, it needs
        // one, also when its connection replaces a pinned connection that was lost.
        let mut kept = None;
        if self.levels.is_empty() && self.pins.kept.is_none() {
            let history = self.effects.history.clone();
            let (read_only, at_once) = (self.options.read_only, history.keeps_any());
            let permit = database.pin_permit(deadline, read_only, at_once).await?;
            kept = permit.map(|permit| history.keeps(permit));
        }
        self.connect(database, deadline).await?;
        if kept.is_some() {
            self.pins.kept = kept;
        }
        if self.pins.held.is_none() {
            let gauge = METRICS
                .database_pinned
                .with_label_values(&[&database.config().name]);
            self.pins.held = Some(GaugeGuard::new(&gauge));
        }
        if let Some(open) = &mut self.open {
            open.lease.set_pinned(true);
        }
        self.pins.count += 1;
        Ok(())
    }

    pub(super) fn unpin(&mut self) {
        self.pins.count = self.pins.count.saturating_sub(1);
        if self.pins.count > 0 {
            return;
        }
        self.pins = Pins::default();
        if let Some(open) = &mut self.open {
            open.lease.set_pinned(false);
        }
        if self.levels.is_empty() {
            self.open = None;
        }
    }

    /// Ends everything: see [`super::Transaction::finish`].
    pub(super) async fn finish(&mut self, keep: bool) -> Result<(), Error> {
        let finished = self.finish_levels(keep && self.options.atomic).await;
        self.effects.clear();
        self.open = None;
        if !self.is_copy {
            self.parked = None;
        }
        self.pins = Pins::default();
        finished
    }

    /// Undoes everything: see [`super::Transaction::give_up`].
    pub(super) fn give_up(&mut self) {
        if self.levels.iter().any(|begun| begun.known) {
            self.effects.history.set_fate(Fate::RolledBack);
        }
        self.levels.clear();
        // Dropping the lease rolls back.
        self.open = None;
        self.parked = None;
        self.pins = Pins::default();
    }

    async fn finish_levels(&mut self, keep: bool) -> Result<(), Error> {
        let mut levels = std::mem::take(&mut self.levels).into_iter();
        if let Some(why) = self.lost.take() {
            return if keep { Err(gone(&why)) } else { Ok(()) };
        }
        let Some(outermost) = levels.next() else {
            return Ok(());
        };
        let marked = self.effects.must_roll_back(outermost.level);
        let commit = keep && outermost.failed.is_none() && marked.is_none();
        // Savepoints that the guest did not release are rolled back.
        let within: Vec<OpenLevel> = levels.collect();
        let first = within.first().filter(|begun| begun.known);
        if let (Some(open), Some(first)) = (&mut self.open, first) {
            open.pending.extend(undo(first.level));
        }
        let closed = self.close(outermost.known, commit).await;
        if commit && closed.is_ok() {
            self.effects.release(outermost.level);
        }
        closed?;
        match (outermost.failed, marked) {
            (Some(why), None) if keep => Err(undone(&why)),
            (_, Some(reason @ Reason::MemberGivenUp)) if keep => Err(marked_for_rollback(reason)),
            _ => Ok(()),
        }
    }

    /// Ends the transaction in the database, if the database knows of it, and gives the connection back unless it is
    /// pinned.
    async fn close(&mut self, known: bool, commit: bool) -> Result<(), Error> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if known {
            self.effects.history.set_fate(Fate::RolledBack);
            if self.is_copy {
                if commit {
                    // What would have become of it.
                    self.effects.history.set_fate(Fate::Committed);
                }
                self.park(open).await;
                return Ok(());
            }
            if let Some(seen) = open.seen.take() {
                match open.lease.changed_since(&seen).await {
                    Ok(false) => {}
                    // When the question itself fails, the transaction has failed, too, and a commit would roll back in
                    // silence.
                    Err(why) if commit => {
                        self.effects.history.note(&why);
                        return Err(why);
                    }
                    Ok(true) | Err(_) => self.shared = Some(Compared::Changed),
                }
            }
            let mut statements = std::mem::take(&mut open.pending);
            if commit {
                statements.push("commit".to_owned());
            } else {
                statements = vec!["rollback".to_owned()];
            }
            let _running = commit.then(|| self.effects.history.runs());
            let closed = open.lease.host(&statements).await;
            if let Err(why) = closed {
                self.effects.history.note(&why);
                if commit && !is_undone(&why) {
                    self.effects.history.lasts();
                }
                if self.pins.count > 0 {
                    self.pins.lost = Some(why.clone());
                }
                // Dropping the lease rolls back whatever may be left.
                return Err(why);
            }
            open.lease.set_in_transaction(false);
            open.begun = None;
            if commit {
                self.effects.history.set_fate(Fate::Committed);
                self.effects.history.lasts();
            }
        }
        if self.pins.count > 0 {
            self.open = Some(open);
            self.keep_pinned();
        }
        Ok(())
    }

    /// The last level has ended while a connection is pinned: the pin needs a permit from now on. Without one, the pin
    /// loses its connection.
    fn keep_pinned(&mut self) {
        let (Some(open), None) = (&self.open, &self.pins.kept) else {
            return;
        };
        match open.database.try_pin_permit(self.options.read_only) {
            Ok(permit) => {
                let history = &self.effects.history;
                self.pins.kept = permit.map(|permit| history.keeps(permit));
            }
            Err(why) => {
                self.open = None;
                self.pins.lost = Some(why);
            }
        }
    }

    /// Rolls back all levels, because a level ended before a level or a view within it did. Which statement belongs to
    /// which level cannot be told then.
    fn overlap(&mut self, ended: OpenLevel, why: Error) {
        let levels: Vec<Level> = (self.levels.iter().map(|begun| begun.level))
            .chain([ended.level])
            .collect();
        self.effects.forget(&levels);
        if ended.known {
            self.effects.history.set_fate(Fate::RolledBack);
        }
        self.lose(why);
    }

    fn lose(&mut self, why: Error) {
        self.open = None;
        if !self.levels.is_empty() {
            self.effects.history.set_fate(Fate::RolledBack);
            self.lost.get_or_insert_with(|| why.clone());
        }
        if self.pins.count > 0 {
            self.pins.lost.get_or_insert(why);
        }
    }

    /// Forgets a lost transaction once all its levels have ended, so that the view may begin a new one.
    fn forget_loss(&mut self) {
        if self.levels.is_empty() {
            self.lost = None;
        }
    }
}

impl OpenLevel {
    fn new(level: Level, owner: Option<u64>, database: Option<String>) -> OpenLevel {
        OpenLevel {
            level,
            owner,
            database,
            known: false,
            failed: None,
        }
    }
}

/// Whether this error means for sure that nothing was committed. For a commit that was cut off, that is unknown.
fn is_undone(why: &Error) -> bool {
    why.kind == ErrorKind::Conflict || why.kind.is_constraint()
}

fn undo(level: Level) -> [String; 2] {
    [format!("rollback to {level}"), format!("release {level}")]
}

pub(super) fn ended() -> Error {
    Error::new(ErrorKind::Other, "the transaction has ended already")
}

/// The error of a statement in a level in which another statement has failed.
fn poisoned(why: &Error) -> Error {
    Error::new(
        ErrorKind::Poisoned,
        format!(
            "a statement of this transaction has failed, so the database takes no more of them until the innermost savepoint, or the whole transaction, is rolled back. The first failure: {}",
            why.message
        ),
    )
}

/// The error of the commit of a level in which a statement has failed.
fn undone(why: &Error) -> Error {
    Error::new(
        ErrorKind::Poisoned,
        format!(
            "a statement of this transaction had failed, so it was rolled back instead of committed: {}",
            why.message
        ),
    )
}

/// The error of anything in a transaction that is lost.
fn gone(why: &Error) -> Error {
    let kind = match why.kind {
        ErrorKind::Unavailable | ErrorKind::Conflict | ErrorKind::Aborted | ErrorKind::Denied => {
            why.kind
        }
        _ => ErrorKind::Poisoned,
    };
    Error::new(
        kind,
        format!(
            "the transaction of this request was rolled back, so nothing more can be done in it: {}",
            why.message
        ),
    )
}

/// The error of a statement of a member whose level has ended.
pub(super) fn left_behind() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the transaction that this view was called in has ended: whoever calls a view in a transaction waits for its answer before the transaction ends",
    )
}

/// The error of a statement of a member that was called in a level which has not begun yet.
fn not_begun() -> Error {
    Error::new(
        ErrorKind::Denied,
        "the transaction that this view was called in has not begun: whoever begins a transaction waits until it has begun before a view is called in it",
    )
}

/// The error of ending a level while a view that was called in it still runs.
fn torn_apart() -> Error {
    Error::new(
        ErrorKind::Denied,
        "a transaction ended while a view that was called in it was still running, so it was rolled back: wait for the view's answer first",
    )
}

/// The error of the commit of a transaction that is to be rolled back.
fn marked_for_rollback(reason: Reason) -> Error {
    match reason {
        Reason::SetRollback => Error::new(
            ErrorKind::Other,
            "the transaction was rolled back instead of committed, because `set-rollback` was called in it",
        ),
        Reason::MemberFailed => Error::new(
            ErrorKind::Poisoned,
            "the transaction was rolled back instead of committed, because a view that was called in it has failed",
        ),
        Reason::MemberGivenUp => Error::new(
            ErrorKind::Poisoned,
            "the transaction was rolled back instead of committed, because a view that was called in it was given up before it answered: wait for its answer, or call it outside of the transaction",
        ),
    }
}

/// The error of levels that overlap. Statements of a guest function do not say which level they are for, so it is
/// unknown to which of these levels they belong.
fn overlap() -> Error {
    Error::new(
        ErrorKind::Denied,
        "two transactions of one request overlapped: one ended while another, begun later, was still open. All was rolled back. Let the inner one end first; do not join atomic blocks",
    )
}
