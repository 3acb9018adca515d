//! Levels, which are transactions and blocks: what happened in them, and whether they were kept.

use super::program::{Does, Part, Shape, Step};
use super::run::{Note, Seen, Told};

/// Whether the changes made in a level, or in several nested levels, are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Undone,
    /// The level ended without reporting its result, or it is not known whether the change was made in it.
    Unknown,
}

impl Fate {
    /// The fate of a change that is inside both levels.
    pub(super) fn and(self, other: Fate) -> Fate {
        match (self, other) {
            (Fate::Undone, _) | (_, Fate::Undone) => Fate::Undone,
            (Fate::Kept, Fate::Kept) => Fate::Kept,
            _ => Fate::Unknown,
        }
    }

    /// The fate of a change that is inside this level, and possibly inside others.
    pub(super) fn perhaps(self, others: impl IntoIterator<Item = Fate>) -> Fate {
        let kept = others.into_iter().all(|other| other == Fate::Kept);
        if kept { self } else { self.and(Fate::Unknown) }
    }
}

/// The chain of a request or sub-request: its middleware, the outermost first, then its view. For each link: whether it is
/// async, and its steps; `None` for middleware that only calls the rest of the chain.
pub(super) struct Links<'a>(Vec<(bool, Option<&'a [Step]>)>);

/// Reasons for which a transaction rolls back.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Troubles {
    /// A part of it has failed.
    pub(super) failed: bool,
    /// A statement has failed.
    pub(super) poisoned: bool,
    /// A step has asked for a rollback.
    pub(super) rollback: bool,
    /// Something may have failed directly in the transaction, or only in a block inside it.
    pub(super) perhaps: bool,
}

/// The position, inside the transaction, of steps that may roll it back.
#[derive(Debug, Clone, Copy)]
struct Inside {
    is_async: bool,
    in_block: bool,
    /// The fate of the blocks between the transaction and the steps.
    blocks: Fate,
}

/// Answers questions about the levels of a program.
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

    /// The first link from `at` on that has steps.
    pub(super) fn from(&self, at: usize) -> Option<(usize, bool, &'a [Step])> {
        let mut rest = self.0.iter().enumerate().skip(at);
        rest.find_map(|(at, (is_async, steps))| Some((at, *is_async, (*steps)?)))
    }
}

impl<'a> Levels<'a> {
    /// What the log says of a step that runs once.
    pub(super) fn note(&self, step: &Step) -> Option<&'a Note> {
        self.seen.notes.get(&step.id)?.first()
    }

    pub(super) fn told(&self, step: &Step) -> Option<&'a Told> {
        self.note(step)?.ended.as_ref().map(|(_, _, told)| told)
    }

    /// Reasons to roll back the transaction that these links run in.
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
                    // A refused call may not have begun, so that its transaction may go on.
                    let refused = matches!(told, Some(Told::Failed(kind, _)) if kind == "503" || kind == "508");
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
                // Steps that run beside a block may have run inside it.
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

    pub(super) fn asks_for_rollback(&self, steps: &'a [Step]) -> bool {
        own(steps).any(|step| match &step.does {
            Does::Rollback | Does::Next => true,
            Does::Call(part) => part.lists().any(|steps| self.asks_for_rollback(steps)),
            _ => false,
        })
    }

    /// The fate of the level that this step opens, by the step's result. `None` for a step that opens none.
    pub(super) fn level(&self, step: &Step) -> Option<Fate> {
        match &step.does {
            Does::Block(steps) => Some(match self.told(step) {
                Some(Told::Ok(_)) => Fate::Kept,
                Some(Told::Failed(..)) => Fate::Undone,
                // The block did not report its end. If all its steps had ended, the block may have been committing.
                None if steps.last().is_some_and(|last| self.told(last).is_none()) => Fate::Undone,
                None => Fate::Unknown,
            }),
            Does::Dropped(_) => Some(Fate::Undone),
            Does::Leak(what) if what == "begin" => Some(Fate::Undone),
            _ => None,
        }
    }
}

/// All steps of one part, nested ones included. The steps of sub-requests are not among them.
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

/// Whether a step succeeded. The result of a call, or of the rest of a chain, begins with a status, as in `[200,…` or `200`:
/// it is good below 500. A step of another kind is good when it gave no error.
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

/// Whether the database refused a statement, which ends the statement's level. A statement that failed before it reached the
/// database ends no level.
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
