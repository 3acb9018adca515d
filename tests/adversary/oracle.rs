//! The oracle: a model of the rules without threads, connections or time.
//!
//! The model walks through a program in the order of its text. For each row, event and increment it determines from the
//! results of the steps whether the change must be there, must not be there, or may be either: see `Fate`. It has three
//! rules.
//!
//! * A row is there if its statement succeeded and every level around it was kept. A level is a block, the transaction of an
//!   atomic request, or the transaction of an atomic sub-request that was called outside of any transaction.
//! * A level was kept if it reported success, and if nothing happened in it that rolls it back.
//! * Where steps of one async part run at the same time, a statement beside a block may run inside that block. Then the
//!   model requires only what holds in both cases. Blocks of other parts do not matter, with one exception: a view that is
//!   called beside a block.

use super::checks;
use super::levels::{Fate, Levels, Links, fate_of, is_broken, is_good, own};
use super::program::{Client, Does, Part, Program, Request, Step};
use super::run::{Reply, Seen, Told};

/// One broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    pub fault: Fault,
    pub text: String,
}

/// The kind of a broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A row is missing that must be there, or there that must not be.
    Rows,
    /// An event was not delivered that must be, or delivered that must not be.
    Events,
    /// A context value was read that nobody had set, or that had been replaced.
    Context,
    /// An answer or an error without a cause in the program.
    Answer,
    /// A request or statement was refused for lack of capacity, although capacity was free or would have been in time.
    Capacity,
    /// A request took longer than its program explains.
    Time,
    /// A request went on long after its client had disconnected.
    Disconnect,
    /// Sync parts of one request ran on several workers.
    Worker,
    /// A resource was not released, the host panicked, or it ended.
    Host,
}

impl Fault {
    /// Whether a busy machine can cause the same observation. Such a fault counts only if it is seen again.
    pub fn is_about_time(self) -> bool {
        matches!(
            self,
            Fault::Capacity | Fault::Time | Fault::Disconnect | Fault::Host
        )
    }
}

/// Whether a step runs in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Around {
    Nothing,
    /// A block of the same part runs at the same time, so that the step may be in it.
    Perhaps,
    Transaction,
}

/// The position of a step: what is around it and beside it.
#[derive(Debug, Clone, Copy)]
struct Place {
    fate: Fate,
    around: Around,
    read_only: bool,
    is_async: bool,
    /// Whether the steps of its list run at the same time.
    at_once: bool,
    /// Whether a block of the same part may be open beside it. Statements go to the innermost open block.
    beside: bool,
}

struct Judge<'a> {
    levels: Levels<'a>,
    found: Vec<Violation>,
    /// Lower and upper bound of the increments of the shared counter.
    counted: (i64, i64),
}

/// Judges the observations of a program: all violations.
pub fn judge(program: &Program, seen: &Seen) -> Vec<Violation> {
    let levels = Levels {
        seen,
        shape: &program.shape,
    };
    let mut judge = Judge {
        levels,
        found: Vec::new(),
        counted: (0, 0),
    };
    for (number, request) in program.requests.iter().enumerate() {
        judge.request(request, &seen.replies[number]);
    }
    let (least, most) = judge.counted;
    if !(least..=most).contains(&seen.counted) {
        judge.wrong(
            Fault::Rows,
            format!(
                "the counter grew by {}, and not by {least} to {most}",
                seen.counted
            ),
        );
    }
    let mut found = judge.found;
    found.extend(checks::all(program, seen));
    found.extend(seen.left.iter().map(|text| Violation {
        fault: Fault::Host,
        text: text.clone(),
    }));
    found
}

impl<'a> Judge<'a> {
    fn wrong(&mut self, fault: Fault, text: String) {
        self.found.push(Violation { fault, text });
    }

    fn request(&mut self, request: &'a Request, reply: &Reply) {
        let links = Links::new(&request.part, self.levels.shape, true);
        let is_atomic = request.part.view.kind.is_atomic();
        let place = Place {
            fate: Fate::Kept,
            around: Around::Nothing,
            read_only: request.part.view.kind.is_read_only(),
            is_async: false,
            at_once: false,
            beside: false,
        };
        if !is_atomic {
            return self.link(&links, 0, place);
        }
        let troubles = self.levels.troubles(&links, 0);
        let good = match (reply.status, reply.transaction.as_deref()) {
            (Some(status), _) => Some(status < 500 && reply.is_told),
            // No client has an answer, so only the log tells the outcome.
            (None, Some("committed")) => Some(true),
            (None, Some("rolled back")) => Some(false),
            (None, _) => None,
        };
        if good == Some(true)
            && troubles.poisoned
            && !troubles.failed
            && !troubles.rollback
            && !troubles.perhaps
        {
            self.wrong(
                Fault::Answer,
                format!(
                    "{:?} although a statement of its transaction failed",
                    reply.status
                ),
            );
        }
        let fate = fate_of(good, troubles);
        self.link(
            &links,
            0,
            Place {
                fate,
                around: Around::Transaction,
                ..place
            },
        );
    }

    /// Judges the steps of the link at `at`, and of the links that it calls.
    fn link(&mut self, links: &Links<'a>, at: usize, place: Place) {
        let Some((at, is_async, steps)) = links.from(at) else {
            return;
        };
        let leaks = is_async && own(steps).any(|step| step.does == Does::Leak("begin".to_owned()));
        // Steps after a leaked block may run inside it.
        let place = match leaks {
            true => Place {
                fate: place.fate.perhaps([Fate::Unknown]),
                around: place.around.max(Around::Perhaps),
                ..place
            },
            false => place,
        };
        self.steps(
            steps,
            links,
            at,
            Place {
                is_async,
                at_once: leaks,
                beside: leaks,
                ..place
            },
        );
    }

    fn steps(&mut self, steps: &'a [Step], links: &Links<'a>, at: usize, place: Place) {
        for step in steps {
            self.step(step, steps, links, at, place);
        }
    }

    fn step(
        &mut self,
        step: &'a Step,
        beside: &'a [Step],
        links: &Links<'a>,
        at: usize,
        place: Place,
    ) {
        match &step.does {
            Does::Insert => self.row(step, place),
            Does::Bump => {
                let (least, most) = self.bounds(step, place);
                self.counted = (self.counted.0 + least, self.counted.1 + most);
            }
            Does::See(id) if !place.at_once && !place.beside => self.look(step, *id, beside),
            Does::Block(steps) => {
                let fate = place.fate.and(self.block(step, place));
                self.steps(
                    steps,
                    links,
                    at,
                    Place {
                        fate,
                        around: Around::Transaction,
                        at_once: false,
                        ..place
                    },
                );
            }
            Does::Dropped(steps) => {
                let place = Place {
                    fate: Fate::Undone,
                    around: Around::Transaction,
                    at_once: false,
                    ..place
                };
                self.steps(steps, links, at, place);
            }
            Does::Pin(steps) | Does::Stream { steps, .. } => self.steps(
                steps,
                links,
                at,
                Place {
                    at_once: false,
                    ..place
                },
            ),
            Does::Join(steps) | Does::Race(steps) if place.is_async => {
                for (index, step) in steps.iter().enumerate() {
                    let others = steps
                        .iter()
                        .enumerate()
                        .filter(|(other, _)| *other != index);
                    let blocks: Vec<Fate> = others
                        .flat_map(|(_, other)| own(std::slice::from_ref(other)))
                        .filter_map(|step| self.levels.level(step))
                        .collect();
                    let (around, beside) = match blocks.is_empty() {
                        true => (place.around, place.beside),
                        false => (place.around.max(Around::Perhaps), true),
                    };
                    let place = Place {
                        fate: place.fate.perhaps(blocks),
                        around,
                        at_once: true,
                        beside,
                        ..place
                    };
                    self.step(step, steps, links, at, place);
                }
            }
            Does::Join(steps) | Does::Race(steps) => self.steps(steps, links, at, place),
            Does::Call(part) => self.call(step, part, place),
            Does::Publish(steps) => self.event(step, steps, place),
            Does::Next => self.link(links, at + 1, place),
            _ => {}
        }
    }

    fn call(&mut self, step: &'a Step, part: &'a Part, place: Place) {
        let links = Links::new(part, self.levels.shape, false);
        let read_only = place.read_only || part.view.kind.is_read_only();
        let place = Place {
            read_only,
            at_once: false,
            ..place
        };
        if place.around == Around::Transaction || !part.view.kind.is_atomic() {
            return self.link(&links, 0, place);
        }
        // The view has its own transaction, or a savepoint if it was called in a block. If it fails, both undo its changes.
        let good = self.levels.told(step).map(is_good);
        let fate = place
            .fate
            .and(fate_of(good, self.levels.troubles(&links, 0)));
        self.link(
            &links,
            0,
            Place {
                fate,
                around: Around::Transaction,
                ..place
            },
        );
    }

    /// The fate of a block, by its result and by what happened in it.
    fn block(&mut self, step: &'a Step, place: Place) -> Fate {
        let fate = self.levels.level(step).unwrap_or(Fate::Unknown);
        let inner = step.inner();
        let failed = |step: &Step| self.levels.told(step).is_some_and(|told| !is_good(told));
        // Looks at the steps directly in this block, which run in turn. A failed call inside a transaction rolls back that
        // transaction, so it need not have failed this block.
        let why = inner.iter().find(|step| match step.does {
            Does::Broken => self.levels.told(step).is_some_and(is_broken) && !place.beside,
            Does::Call(_) => failed(step) && place.around == Around::Nothing,
            _ => false,
        });
        if let (Fate::Kept, Some(why)) = (fate, why) {
            let text = format!(
                "the block {} was kept although step {} failed in it",
                step.id, why.id
            );
            self.wrong(Fault::Answer, text);
        }
        // In a request that is not atomic, a rollback that a step asked for may have applied to this block.
        match fate {
            Fate::Kept if self.levels.asks_for_rollback(inner) => Fate::Unknown,
            fate => fate,
        }
    }

    /// Lower and upper bound of how often the change of a statement is there.
    fn bounds(&mut self, step: &Step, place: Place) -> (i64, i64) {
        let Some(note) = self.levels.note(step) else {
            return (0, 0);
        };
        match (&note.ended, place.fate) {
            (Some((_, _, Told::Ok(count))), fate) => {
                if count != "1" {
                    self.wrong(
                        Fault::Answer,
                        format!("step {} changed {count} rows", step.id),
                    );
                }
                if place.read_only {
                    self.wrong(
                        Fault::Rows,
                        format!("step {} wrote in a view that only reads", step.id),
                    );
                }
                match fate {
                    Fate::Kept => (1, 1),
                    Fate::Undone => (0, 0),
                    Fate::Unknown => (0, 1),
                }
            }
            // A cancelled statement may have been executed.
            (Some((_, _, Told::Failed(kind, _))), Fate::Kept | Fate::Unknown)
                if kind == "Aborted" =>
            {
                (0, 1)
            }
            (Some((_, _, Told::Failed(..))), _) | (None, Fate::Undone) => (0, 0),
            (None, Fate::Kept | Fate::Unknown) => (0, 1),
        }
    }

    fn row(&mut self, step: &Step, place: Place) {
        let (least, most) = self.bounds(step, place);
        let count = self.levels.seen.rows.get(&step.id).copied().unwrap_or(0);
        if count < least {
            self.wrong(
                Fault::Rows,
                format!(
                    "the row of step {} is not there, although it was kept",
                    step.id
                ),
            );
        }
        if count > most {
            self.wrong(
                Fault::Rows,
                format!(
                    "the row of step {} is there ({count}), although it was not kept",
                    step.id
                ),
            );
        }
    }

    /// A part must see the row that it inserted before.
    fn look(&mut self, step: &Step, id: u32, beside: &'a [Step]) {
        let inserted = beside
            .iter()
            .find(|step| step.id == id)
            .and_then(|step| self.levels.told(step));
        let (Some(inserted), Some(Told::Ok(seen))) = (inserted, self.levels.told(step)) else {
            return;
        };
        let expected = if matches!(inserted, Told::Ok(_)) {
            "[[1]]"
        } else {
            "[[0]]"
        };
        let aborted = matches!(inserted, Told::Failed(kind, _) if kind == "Aborted");
        if seen != expected && !aborted {
            self.wrong(
                Fault::Rows,
                format!(
                    "step {} sees {seen} of the row of step {id}, and not {expected}",
                    step.id
                ),
            );
        }
    }

    fn event(&mut self, step: &Step, steps: &'a [Step], place: Place) {
        const SUBSCRIBERS: usize = 2;
        let heard = steps.first().map_or(0, |step| {
            self.levels.seen.notes.get(&step.id).map_or(0, Vec::len)
        });
        let (least, most) = match (self.levels.told(step), place.fate) {
            (Some(Told::Ok(_)), Fate::Kept) => (SUBSCRIBERS, SUBSCRIBERS),
            (Some(Told::Ok(_)), Fate::Unknown) | (None, Fate::Kept | Fate::Unknown) => {
                (0, SUBSCRIBERS)
            }
            (_, Fate::Undone) | (Some(Told::Failed(..)), _) => (0, 0),
        };
        if !(least..=most).contains(&heard) {
            self.wrong(
                Fault::Events,
                format!(
                    "the event of step {} was heard by {heard}, and not by {least} to {most}",
                    step.id
                ),
            );
        }
        let fails = steps.iter().any(|step| matches!(step.does, Does::End(_)));
        for step in steps.iter().filter(|step| step.does == Does::Insert) {
            let notes = self.levels.seen.notes.get(&step.id).into_iter().flatten();
            let told = notes
                .filter(|note| matches!(note.ended, Some((_, _, Told::Ok(_)))))
                .count();
            let least = if fails { 0 } else { told };
            let count = self.levels.seen.rows.get(&step.id).copied().unwrap_or(0);
            if !(least..=told).contains(&usize::try_from(count).unwrap_or(usize::MAX)) {
                self.wrong(Fault::Rows, format!("subscribers inserted the row of step {} {told} times, and it is there {count} times", step.id));
            }
        }
    }
}

/// Whether this client must get an answer. One that shuts down its sending side counts as disconnected, and may get none.
pub(super) fn is_answered(client: Client) -> bool {
    client.leaves_after_ms().is_none() && client != Client::HalfCloses
}
