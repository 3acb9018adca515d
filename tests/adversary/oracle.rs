//! The oracle: a model of the rules without threads, connections or time.
//!
//! The model walks through a program. For each row, event and count, it says what may have become of it (see `Fate`),
//! given what the steps noted in the log. It consists of three rules.
//!
//! * A row exists if its statement succeeded and every level around it was kept. Levels are the transaction of an atomic
//!   request, the transaction of an atomic sub-request that was called outside any, and the functions' atomic blocks.
//! * A level was kept if its end succeeded and nothing happened in it that makes it roll back.
//! * Where steps of one async function run at the same time, a statement may be in a block that comes before it in
//!   their list. Then the model demands only what holds whether or not the statement was in the block. A statement is
//!   never in a block that comes after it, nor in a block of another function, unless that function calls the
//!   statement's view.

use super::checks;
use super::levels::{Fate, Levels, Links, fate_of, is_broken, is_cut_off, is_good, own};
use super::program::{Client, Does, Part, Program, Request, Step};
use super::run::{Reply, Seen, Told};

/// A broken promise, with a sentence about it.
#[derive(Debug, Clone)]
pub struct Violation {
    pub fault: Fault,
    pub text: String,
}

/// The kind of promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A row that must exist does not exist, or a row exists that must not.
    Rows,
    /// An event that must be delivered was not delivered, or one was delivered that must not be.
    Events,
    /// A step read a context value that was never set, or that had been replaced before.
    Context,
    /// A response or an error that nothing explains.
    Answer,
    /// A request was refused for lack of capacity, although capacity was free or would have become free in time.
    Capacity,
    /// A request took longer than the steps of its program explain.
    Time,
    /// A request went on long after its client had disconnected.
    Disconnect,
    /// Sync functions of one request ran on several workers.
    Worker,
    /// The host still holds something at the end, has panicked, or is gone.
    Host,
}

impl Fault {
    /// Whether a busy machine can cause this fault. Such a fault counts only if it happens again.
    pub fn is_about_time(self) -> bool {
        matches!(
            self,
            Fault::Capacity | Fault::Time | Fault::Disconnect | Fault::Host
        )
    }
}

/// Whether a step is in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Around {
    Nothing,
    /// Perhaps: a block of the same function is open at the same time.
    Perhaps,
    Transaction,
}

/// The position of a step.
#[derive(Debug, Clone, Copy)]
struct Place {
    fate: Fate,
    around: Around,
    read_only: bool,
    is_async: bool,
    /// Whether the steps of its list run at the same time.
    at_once: bool,
    /// Whether a block of the same function may be open at the same time. If one is, statements go to the innermost
    /// open block.
    beside: bool,
}

struct Judge<'a> {
    levels: Levels<'a>,
    found: Vec<Violation>,
    /// How often the counter was increased, at least and at most.
    counted: (i64, i64),
}

/// Compares what was seen of a program's run with the model. Returns all faults.
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
            // The client got no answer: only the log tells how the request ended.
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

    /// Walks through the steps of the function at `at`, and of those after it in the chain.
    fn link(&mut self, links: &Links<'a>, at: usize, place: Place) {
        let Some((at, is_async, steps)) = links.from(at) else {
            return;
        };
        let leaks = is_async && own(steps).any(|step| step.does == Does::Leak("begin".to_owned()));
        // Steps after a block that was left open are in that block.
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
                let list = step;
                let in_turn = matches!(&list.does, Does::Join(_));
                for (index, step) in steps.iter().enumerate() {
                    // A statement is issued before the blocks that come after it in the list begin.
                    let issued = in_turn && matches!(step.does, Does::Insert | Does::Bump);
                    let others = steps
                        .iter()
                        .enumerate()
                        .filter(|(other, _)| *other < index || (*other > index && !issued));
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
        // The view has a transaction of its own, unless it was perhaps called in a block. If the view fails, its rows
        // are rolled back in either case.
        let good = match self.levels.told(step) {
            // The client left while the transaction of a view that had returned was being committed: the caller waits no
            // longer.
            Some(told) if is_cut_off(told) && self.levels.has_returned(part) => None,
            told => told.map(is_good),
        };
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

    /// What became of a block.
    fn block(&mut self, step: &'a Step, place: Place) -> Fate {
        let fate = self.levels.level(step).unwrap_or(Fate::Unknown);
        let inner = step.inner();
        let failed = |step: &Step| self.levels.told(step).is_some_and(|told| !is_good(told));
        // Only steps directly in the block count: they run in turn, so they were certainly in the block. If there is a
        // transaction around the block, a failed call may have ended that transaction instead of the block.
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
        // In a request that is not atomic, `set-rollback` may apply to this block.
        match fate {
            Fate::Kept if self.levels.asks_for_rollback(inner) => Fate::Unknown,
            fate => fate,
        }
    }

    /// How often the change that a statement made can be in the database, at least and at most: 0 or 1.
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
            // A statement of a function that was given up may have run.
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

    /// Checks that a function sees the row that it has inserted before. `id` is the step that inserted the row.
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

/// Whether a client of this kind must get a response.
pub(super) fn is_answered(client: Client) -> bool {
    client.leaves_after_ms().is_none() && client != Client::HalfCloses
}
