//! Levels (transactions and atomic blocks): what happened in each level, and whether the work in it was kept.

use super::program::{Does, Part, Shape, Step};
use super::run::{Note, Seen, Told};

/// What became of the work in a level, or in several nested levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Undone,
    /// The level ended after its function was given up, so no note tells how; or it is uncertain whether the work was
    /// in the level.
    Unknown,
}

impl Fate {
    /// The fate of work that is in two levels: `self` and `other` are the fates of the levels.
    pub(super) fn and(self, other: Fate) -> Fate {
        match (self, other) {
            (Fate::Undone, _) | (_, Fate::Undone) => Fate::Undone,
            (Fate::Kept, Fate::Kept) => Fate::Kept,
            _ => Fate::Unknown,
        }
    }

    /// The fate of work that is in a level with the fate `self`, and perhaps also in levels with the fates `others`.
    pub(super) fn perhaps(self, others: impl IntoIterator<Item = Fate>) -> Fate {
        let kept = others.into_iter().all(|other| other == Fate::Kept);
        if kept { self } else { self.and(Fate::Unknown) }
    }
}

/// The functions of a request or sub-request: its middleware from the outermost on, then its view. For each function,
/// whether it is async, and its steps. A middleware without steps (`None`) only runs the rest of the chain.
pub(super) struct Links<'a>(Vec<(bool, Option<&'a [Step]>)>);

/// What happened in a transaction that makes the transaction roll back.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Troubles {
    pub(super) failed: bool,
    /// A statement failed.
    pub(super) poisoned: bool,
    pub(super) rollback: bool,
    /// Perhaps something failed in the transaction: nothing tells, or it may have failed only in a block within it.
    pub(super) perhaps: bool,
}

/// The position of the steps that are checked.
#[derive(Debug, Clone, Copy)]
struct Inside {
    is_async: bool,
    in_block: bool,
    /// The fate of the blocks around the steps, all of them within the transaction.
    blocks: Fate,
}

/// Finds out what became of a program's levels, from the notes of its run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels<'a> {
    pub(super) seen: &'a Seen,
    pub(super) shape: &'a Shape,
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

    /// The first function from `at` on that has steps: its place in the chain, whether it is async, and its steps.
    pub(super) fn from(&self, at: usize) -> Option<(usize, bool, &'a [Step])> {
        let mut rest = self.0.iter().enumerate().skip(at);
        rest.find_map(|(at, (is_async, steps))| Some((at, *is_async, (*steps)?)))
    }
}

impl<'a> Levels<'a> {
    /// The note of a step. Only the steps of events have several, one for each subscriber.
    pub(super) fn note(&self, step: &Step) -> Option<&'a Note> {
        self.seen.notes.get(&step.id)?.first()
    }

    pub(super) fn told(&self, step: &Step) -> Option<&'a Told> {
        self.note(step)?.ended.as_ref().map(|(_, _, told)| told)
    }

    /// What happened in the transaction of the functions from `at` on.
    pub(super) fn troubles(&self, links: &Links<'a>, at: usize) -> Troubles {
        let mut troubles = Troubles::default();
        if let Some((at, is_async, steps)) = links.from(at) {
            let inside = Inside {
                is_async,
                in_block: false,
                blocks: Fate::Kept,
            };
            self.troubles_of(steps, links, at, inside, &mut troubles);
        }
        troubles
    }

    fn troubles_of(
        &self,
        steps: &'a [Step],
        links: &Links<'a>,
        at: usize,
        inside: Inside,
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
                        self.troubles_of(steps, links, at, Inside { is_async, ..inside }, all);
                    }
                }
                Does::Call(part) => {
                    let refused = told.is_some_and(|told| self.is_refused(told, part));
                    let sure = inside.blocks == Fate::Kept && !refused;
                    all.failed |= failed && sure;
                    all.perhaps |= told.is_none() || failed && !sure;
                    let links = Links::new(part, self.shape, false);
                    if let Some((at, is_async, steps)) = links.from(0) {
                        self.troubles_of(steps, &links, at, Inside { is_async, ..inside }, all);
                    }
                }
                Does::Broken if told.is_some_and(is_broken) && !inside.in_block => {
                    all.poisoned = true
                }
                Does::Rollback => all.rollback = true,
                Does::Leak(what) if what == "begin" && inside.is_async => all.perhaps = true,
                Does::Block(steps) | Does::Dropped(steps) => {
                    let blocks = inside.blocks.and(self.level(step).unwrap_or(Fate::Unknown));
                    self.troubles_of(
                        steps,
                        links,
                        at,
                        Inside {
                            in_block: true,
                            blocks,
                            ..inside
                        },
                        all,
                    )
                }
                // Steps that are joined with a block may have run within the block.
                Does::Join(steps) | Does::Race(steps)
                    if inside.is_async && own(steps).any(is_block) =>
                {
                    self.troubles_of(
                        steps,
                        links,
                        at,
                        Inside {
                            in_block: true,
                            blocks: inside.blocks.and(Fate::Unknown),
                            ..inside
                        },
                        all,
                    );
                    all.perhaps = true;
                }
                _ => self.troubles_of(step.inner(), links, at, inside, all),
            }
        }
    }

    /// Whether a call that failed may have been refused before any of its functions began.
    fn is_refused(&self, told: &Told, part: &Part) -> bool {
        let Told::Failed(kind, text) = told else {
            return false;
        };
        // A call that is refused because of the number of functions has the status of such a failure within its chain.
        let is_too_many = text.contains("guest functions would run within each other");
        let has_begun = || {
            let mut steps = part.lists().flat_map(|steps| own(steps));
            steps.any(|step| self.note(step).is_some())
        };
        kind == "503" || kind == "508" || is_too_many && !has_begun()
    }

    /// Whether the view of a call may have returned: its last step is done.
    pub(super) fn has_returned(&self, part: &Part) -> bool {
        let last = part.steps.last();
        last.is_none_or(|last| self.told(last).is_some())
    }

    /// Whether nothing of a block was left to do but its commit.
    fn is_done(&self, steps: &[Step]) -> bool {
        steps.last().is_none_or(|last| {
            let told = self.told(last);
            told.is_some_and(|told| is_good(told) || !last.must)
        })
    }

    pub(super) fn asks_for_rollback(&self, steps: &'a [Step]) -> bool {
        own(steps).any(|step| match &step.does {
            Does::Rollback | Does::Next => true,
            Does::Call(part) => part.lists().any(|steps| self.asks_for_rollback(steps)),
            _ => false,
        })
    }

    /// The fate of the level that a step opens, according to the step's note. None if the step opens no level.
    pub(super) fn level(&self, step: &Step) -> Option<Fate> {
        match &step.does {
            Does::Block(steps) => Some(match self.told(step) {
                Some(Told::Ok(_)) => Fate::Kept,
                // The client left while the block was being committed: its function waits no longer.
                Some(told) if was_aborted(told) && self.is_done(steps) => Fate::Unknown,
                Some(Told::Failed(..)) => Fate::Undone,
                // The function ended within the block. If all steps were done, the block may have been committed.
                None if steps.last().is_some_and(|last| self.told(last).is_none()) => Fate::Undone,
                None => Fate::Unknown,
            }),
            Does::Dropped(_) => Some(Fate::Undone),
            Does::Leak(what) if what == "begin" => Some(Fate::Undone),
            _ => None,
        }
    }
}

/// All steps of one function, nested ones included, without those of views that it calls.
pub(super) fn own(steps: &[Step]) -> impl Iterator<Item = &Step> {
    let mut open: Vec<&Step> = steps.iter().collect();
    std::iter::from_fn(move || {
        let step = open.pop()?;
        open.extend(step.inner());
        Some(step)
    })
}

pub(super) fn is_block(step: &Step) -> bool {
    matches!(step.does, Does::Block(_) | Does::Dropped(_))
}

/// Whether a step succeeded. A step that calls a view or runs the rest of a chain tells a status (`[200,…` or `200`),
/// and succeeds if the status is not 5xx.
pub(super) fn is_good(told: &Told) -> bool {
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

/// Whether a call was answered before it had ended, because the client of the request has gone.
pub(super) fn is_cut_off(told: &Told) -> bool {
    matches!(told, Told::Failed(kind, text) if kind == "503" && text.contains("the client has gone"))
}

/// Whether the host stopped waiting for the database, because the client of the request has gone.
fn was_aborted(told: &Told) -> bool {
    matches!(told, Told::Failed(kind, text) if kind == "Aborted" && text.contains("the client has gone"))
}

/// Whether the database itself refused a statement: then the statement's level takes no more statements. A statement
/// that the host refused changes nothing for its level.
pub(super) fn is_broken(told: &Told) -> bool {
    matches!(told, Told::Failed(kind, _) if kind == "NotNull")
}

pub(super) fn fate_of(good: Option<bool>, troubles: Troubles) -> Fate {
    match good {
        Some(false) => Fate::Undone,
        _ if troubles.failed || troubles.rollback => Fate::Undone,
        _ if troubles.poisoned && !troubles.perhaps => Fate::Undone,
        Some(true) if !troubles.perhaps => Fate::Kept,
        Some(true) | None => Fate::Unknown,
    }
}
