//! What the rules allow: a model of them without threads, connections or time.
//!
//! The model goes through a program as it was written and asks, for each row, event and count, what may have become of
//! it, given what the steps noted: see [`Fate`]. Three rules are all of it.
//!
//! * A row is there when its statement said so and every level around it was kept. Levels are the transaction of an
//!   atomic request, that of an atomic sub-request which was called outside of any, and the blocks of the parts.
//! * A level was kept when it said so, and nothing that makes it roll back has happened in it.
//! * Where steps of one async part run at once, a statement beside a block may be in that block: then only what is
//!   true in both cases is asked for. No other part's blocks count (a view that is called beside a block excepted).

use super::checks;
use super::program::{Client, Does, Part, Program, Request, Shape, Step};
use super::run::{Note, Reply, Seen, Told};

/// What is wrong.
#[derive(Debug, Clone)]
pub struct Violation {
    pub fault: Fault,
    pub text: String,
}

/// What kind of promise was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A row that has to be there is not, or the other way round.
    Rows,
    /// The same for events.
    Events,
    /// A value of the context that nobody set, or that had been replaced.
    Context,
    /// An answer or an error that nothing explains.
    Answer,
    /// Somebody was refused what was free, or would have been free in time.
    Capacity,
    /// It took longer than there was a reason for.
    Time,
    /// A request went on long after its client had left.
    Disconnect,
    /// Sync parts of one request ran on several workers.
    Worker,
    /// Something is still held, the host panicked, or it is gone.
    Host,
}

impl Fault {
    /// Whether a busy machine alone can make it look so: believed when it is seen again.
    pub fn is_about_time(self) -> bool {
        matches!(
            self,
            Fault::Capacity | Fault::Time | Fault::Disconnect | Fault::Host
        )
    }
}

/// What became of what was done in a level, or in several within each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Undone,
    /// It ended while nobody was there to tell, or it is not known whether it was around.
    Unknown,
}

impl Fate {
    /// Within both.
    fn and(self, other: Fate) -> Fate {
        match (self, other) {
            (Fate::Undone, _) | (_, Fate::Undone) => Fate::Undone,
            (Fate::Kept, Fate::Kept) => Fate::Kept,
            _ => Fate::Unknown,
        }
    }

    /// Within this, and perhaps within others.
    fn perhaps(self, others: impl IntoIterator<Item = Fate>) -> Fate {
        let kept = others.into_iter().all(|other| other == Fate::Kept);
        if kept { self } else { self.and(Fate::Unknown) }
    }
}

/// Whether there is a transaction around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Around {
    Nothing,
    /// A block beside it, in the same part.
    Perhaps,
    Transaction,
}

/// Where a step is.
#[derive(Debug, Clone, Copy)]
struct Place {
    fate: Fate,
    around: Around,
    read_only: bool,
    is_async: bool,
    /// Whether the steps of its list run at once.
    at_once: bool,
}

/// The parts of a request or sub-request: its middleware from the outside, then its view. None passes everything on.
pub(super) struct Links<'a>(Vec<(bool, Option<&'a [Step]>)>);

/// What has happened in a transaction that makes it roll back.
#[derive(Debug, Default, Clone, Copy)]
struct Troubles {
    failed: bool,
    /// A statement has failed.
    poisoned: bool,
    rollback: bool,
    /// Something may have failed in it, or in a block within it.
    perhaps: bool,
}

struct Judge<'a> {
    seen: &'a Seen,
    shape: &'a Shape,
    found: Vec<Violation>,
    /// How often the counter was counted up, at least and at most.
    counted: (i64, i64),
}

/// Everything that is wrong with what was seen of a program.
pub fn judge(program: &Program, seen: &Seen) -> Vec<Violation> {
    let mut judge = Judge {
        seen,
        shape: &program.shape,
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

impl<'a> Links<'a> {
    pub(super) fn new(part: &'a Part, shape: &Shape, is_request: bool) -> Links<'a> {
        let around = shape.around(is_request).into_iter().enumerate();
        let mut links: Vec<_> = around
            .map(|(place, around)| {
                let known = part.around.iter().find(|(at, _)| *at == place);
                (around.is_async, known.map(|(_, steps)| &steps[..]))
            })
            .collect();
        links.push((part.view.is_async, Some(&part.steps)));
        Links(links)
    }

    /// The first link from `at` on that does something.
    fn from(&self, at: usize) -> Option<(usize, bool, &'a [Step])> {
        let mut rest = self.0.iter().enumerate().skip(at);
        rest.find_map(|(at, (is_async, steps))| Some((at, *is_async, (*steps)?)))
    }
}

impl<'a> Judge<'a> {
    fn wrong(&mut self, fault: Fault, text: String) {
        self.found.push(Violation { fault, text });
    }

    /// What is known of a step that is done once.
    fn note(&self, step: &Step) -> Option<&'a Note> {
        self.seen.notes.get(&step.id)?.first()
    }

    fn told(&self, step: &Step) -> Option<&'a Told> {
        self.note(step)?.ended.as_ref().map(|(_, _, told)| told)
    }

    fn request(&mut self, request: &'a Request, reply: &Reply) {
        let links = Links::new(&request.part, self.shape, true);
        let is_atomic = request.part.view.kind.is_atomic();
        let place = Place {
            fate: Fate::Kept,
            around: Around::Nothing,
            read_only: request.part.view.kind.is_read_only(),
            is_async: false,
            at_once: false,
        };
        if !is_atomic {
            return self.link(&links, 0, place);
        }
        let troubles = self.troubles(&links, 0);
        let good = match (reply.status, reply.transaction.as_deref()) {
            (Some(status), _) => Some(status < 500 && reply.is_told),
            // Nobody was told: the log alone knows.
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

    /// The steps of the link at `at`, and of what it passes on to.
    fn link(&mut self, links: &Links<'a>, at: usize, place: Place) {
        let Some((at, is_async, steps)) = links.from(at) else {
            return;
        };
        let leaks = is_async && own(steps).any(|step| step.does == Does::Leak("begin".to_owned()));
        // What comes after a block that was left open is in it.
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
            Does::See(id) if !place.at_once => self.look(step, *id, beside),
            Does::Block(steps) => {
                let fate = place.fate.and(self.block(step));
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
                        .filter_map(|step| self.level(step))
                        .collect();
                    let around = if blocks.is_empty() {
                        place.around
                    } else {
                        place.around.max(Around::Perhaps)
                    };
                    let place = Place {
                        fate: place.fate.perhaps(blocks),
                        around,
                        at_once: true,
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
        let links = Links::new(part, self.shape, false);
        let read_only = place.read_only || part.view.kind.is_read_only();
        let place = Place {
            read_only,
            at_once: false,
            ..place
        };
        if place.around == Around::Transaction || !part.view.kind.is_atomic() {
            return self.link(&links, 0, place);
        }
        // A transaction of its own, unless it was called in a block: undone when it fails in either case.
        let good = self.told(step).map(is_good);
        let fate = place.fate.and(fate_of(good, self.troubles(&links, 0)));
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

    /// What has happened to the transaction that these links are in.
    fn troubles(&self, links: &Links<'a>, at: usize) -> Troubles {
        let mut troubles = Troubles::default();
        if let Some((at, is_async, steps)) = links.from(at) {
            self.troubles_of(steps, links, at, (is_async, false), &mut troubles);
        }
        troubles
    }

    fn troubles_of(
        &self,
        steps: &'a [Step],
        links: &Links<'a>,
        at: usize,
        (is_async, in_block): (bool, bool),
        all: &mut Troubles,
    ) {
        for step in steps {
            let Some(note) = self.note(step) else {
                continue;
            };
            let told = note.ended.as_ref().map(|(_, _, told)| told);
            let failed = told.is_some_and(|told| !is_good(told));
            match &step.does {
                Does::Next => {
                    all.failed |= failed;
                    if let Some((at, is_async, steps)) = links.from(at + 1) {
                        self.troubles_of(steps, links, at, (is_async, in_block), all);
                    }
                }
                Does::Call(part) => {
                    // It may not even have begun when it was refused.
                    let refused = matches!(told, Some(Told::Failed(kind, _)) if kind == "503" || kind == "508");
                    all.failed |= failed && !in_block && !refused;
                    all.perhaps |= told.is_none() || failed && (in_block || refused);
                    let links = Links::new(part, self.shape, false);
                    if let Some((at, is_async, steps)) = links.from(0) {
                        self.troubles_of(steps, &links, at, (is_async, in_block), all);
                    }
                }
                Does::Broken if failed && !in_block => all.poisoned = true,
                Does::Rollback => all.rollback = true,
                Does::Leak(what) if what == "begin" && is_async => all.perhaps = true,
                Does::Block(steps) | Does::Dropped(steps) => {
                    self.troubles_of(steps, links, at, (is_async, true), all)
                }
                // Beside a block, it may have been in it.
                Does::Join(steps) | Does::Race(steps) if is_async && own(steps).any(is_block) => {
                    self.troubles_of(steps, links, at, (is_async, true), all);
                    all.perhaps = true;
                }
                _ => self.troubles_of(step.inner(), links, at, (is_async, in_block), all),
            }
        }
    }

    /// What became of a block.
    fn block(&mut self, step: &'a Step) -> Fate {
        let fate = self.level(step).unwrap_or(Fate::Unknown);
        let inner = step.inner();
        let failed = |step: &Step| self.told(step).is_some_and(|told| !is_good(told));
        // Those of a list that runs in turn, directly in this block.
        let broken = inner
            .iter()
            .find(|step| step.does == Does::Broken && failed(step));
        let call = inner
            .iter()
            .find(|step| matches!(step.does, Does::Call(_)) && failed(step));
        if let (Fate::Kept, Some(why)) = (fate, broken.or(call)) {
            self.wrong(
                Fault::Answer,
                format!(
                    "the block {} was kept although step {} failed in it",
                    step.id, why.id
                ),
            );
        }
        // Who asked for a rollback within a request that is not atomic may have meant this.
        let rollback = own(inner).any(|step| {
            step.does == Does::Rollback || matches!(step.does, Does::Call(_) | Does::Next)
        });
        if rollback && fate == Fate::Kept && self.asks_for_rollback(inner) {
            Fate::Unknown
        } else {
            fate
        }
    }

    fn asks_for_rollback(&self, steps: &'a [Step]) -> bool {
        own(steps).any(|step| match &step.does {
            Does::Rollback | Does::Next => true,
            Does::Call(part) => part.lists().any(|steps| self.asks_for_rollback(steps)),
            _ => false,
        })
    }

    /// The fate of the level that a step is, if it is one, by what it has noted.
    fn level(&self, step: &Step) -> Option<Fate> {
        match &step.does {
            Does::Block(steps) => Some(match self.told(step) {
                Some(Told::Ok(_)) => Fate::Kept,
                Some(Told::Failed(..)) => Fate::Undone,
                // It ended on the way: when all steps were done, perhaps while it was committed.
                None if steps.last().is_some_and(|last| self.told(last).is_none()) => Fate::Undone,
                None => Fate::Unknown,
            }),
            Does::Dropped(_) => Some(Fate::Undone),
            Does::Leak(what) if what == "begin" => Some(Fate::Undone),
            _ => None,
        }
    }

    /// How often the change of a statement is there, at least and at most.
    fn bounds(&mut self, step: &Step, place: Place) -> (i64, i64) {
        let Some(note) = self.note(step) else {
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
            // A statement that was given up may have been done.
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
        let count = self.seen.rows.get(&step.id).copied().unwrap_or(0);
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

    /// A part sees what it has inserted just before.
    fn look(&mut self, step: &Step, id: u32, beside: &'a [Step]) {
        let inserted = beside
            .iter()
            .find(|step| step.id == id)
            .and_then(|step| self.told(step));
        let (Some(inserted), Some(Told::Ok(seen))) = (inserted, self.told(step)) else {
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
        let heard = steps
            .first()
            .map_or(0, |step| self.seen.notes.get(&step.id).map_or(0, Vec::len));
        let (least, most) = match (self.told(step), place.fate) {
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
            let notes = self.seen.notes.get(&step.id).into_iter().flatten();
            let told = notes
                .filter(|note| matches!(note.ended, Some((_, _, Told::Ok(_)))))
                .count();
            let least = if fails { 0 } else { told };
            let count = self.seen.rows.get(&step.id).copied().unwrap_or(0);
            if !(least..=told).contains(&usize::try_from(count).unwrap_or(usize::MAX)) {
                self.wrong(Fault::Rows, format!("subscribers inserted the row of step {} {told} times, and it is there {count} times", step.id));
            }
        }
    }
}

/// All steps of one part, those within steps included, and nothing of what they call.
pub(super) fn own(steps: &[Step]) -> impl Iterator<Item = &Step> {
    let mut open: Vec<&Step> = steps.iter().collect();
    std::iter::from_fn(move || {
        let step = open.pop()?;
        open.extend(step.inner());
        Some(step)
    })
}

fn is_block(step: &Step) -> bool {
    matches!(step.does, Does::Block(_) | Does::Dropped(_))
}

/// Whether a call, or the rest of a chain, has not failed: `[200,…` or `200`. A step of another kind: whether it gave
/// no error.
fn is_good(told: &Told) -> bool {
    let Told::Ok(text) = told else { return false };
    let digits: String = text
        .trim_start_matches('[')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse::<u32>()
        .map_or(true, |status| !(500..600).contains(&status))
}

fn fate_of(good: Option<bool>, troubles: Troubles) -> Fate {
    match good {
        Some(false) => Fate::Undone,
        _ if troubles.failed || troubles.rollback => Fate::Undone,
        _ if troubles.poisoned && !troubles.perhaps => Fate::Undone,
        Some(true) if !troubles.perhaps => Fate::Kept,
        Some(true) | None => Fate::Unknown,
    }
}

/// Whether the answer of a request can be read at all.
pub(super) fn is_answered(client: Client) -> bool {
    client.leaves_after_ms().is_none() && client != Client::HalfCloses
}
