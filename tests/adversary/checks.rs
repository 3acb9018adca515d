//! Checks everything in a program's requests except rows and events: context values, workers, time and disconnects; and
//! that every error and every response that is not a success has a reason.

use std::collections::BTreeSet;
use std::time::Duration;

use super::oracle::{Fault, Violation, is_answered};
use super::program::{Client, Does, Program, Request, Step, ViewKind};
use super::run::{Note, Reply, Seen, Told};

/// How much longer than its sleeps a program may take. A request that waits for capacity is refused only after a longer
/// time, so such a refusal also counts as a request that takes too long.
const MARGIN: Duration = Duration::from_millis(3000);
/// How long the host may take to end a function that computes without end, on a busy machine.
const LOOP_MS: u64 = 1000;
/// Part of the error that a request gets when it holds a connection, wants another one and none is left.
const NO_ROOM: &str = "connections for pins and results: all";
/// How long a request may go on after its client has disconnected.
const LEFT_MARGIN_S: f64 = 1.2;

/// One request as a flat list: all steps of its functions and of the views that it calls, each with what it noted in
/// the log.
struct Flat<'a> {
    steps: Vec<(&'a Step, Option<&'a Note>)>,
    kinds: Vec<ViewKind>,
    /// Whether several of its steps may run at once.
    joins: bool,
}

pub(super) fn all(program: &Program, seen: &Seen) -> Vec<Violation> {
    let mut found = Vec::new();
    let naps: u64 = program.requests.iter().map(Request::naps_ms).sum();
    let loops: u64 = program.requests.iter().map(Request::loops).sum();
    let limit = Duration::from_millis(naps + LOOP_MS * loops) + MARGIN;
    for (number, (request, reply)) in program.requests.iter().zip(&seen.replies).enumerate() {
        let flat = Flat::new(request, seen);
        let mut texts = Vec::new();
        flat.context(&mut texts);
        flat.workers(&mut texts);
        flat.errors(program, request.client, &mut texts);
        flat.answer(request.client, reply, &mut texts);
        flat.disconnect(reply, &mut texts);
        if reply.took > limit && reply.left_at.is_none() {
            let text = format!("took {:?}, with at most {naps} ms to sleep", reply.took);
            texts.push((Fault::Time, text));
        }
        let violation = |(fault, text)| Violation {
            fault,
            text: format!("request {number}: {text}"),
        };
        found.extend(texts.into_iter().map(violation));
    }
    found
}

impl<'a> Flat<'a> {
    fn new(request: &'a Request, seen: &'a Seen) -> Flat<'a> {
        let steps = request.steps();
        let calls = steps.iter().filter_map(|step| match &step.does {
            Does::Call(part) => Some(part.view.kind),
            _ => None,
        });
        let note = |step: &Step| seen.notes.get(&step.id).and_then(|notes| notes.first());
        Flat {
            kinds: calls.chain([request.part.view.kind]).collect(),
            joins: steps
                .iter()
                .any(|step| matches!(step.does, Does::Join(_) | Does::Race(_))),
            steps: steps.into_iter().map(|step| (step, note(step))).collect(),
        }
    }

    fn has(&self, is_it: impl Fn(&Does) -> bool) -> bool {
        self.steps.iter().any(|(step, _)| is_it(&step.does))
    }

    /// The steps that have begun.
    fn begun(&self) -> impl Iterator<Item = (&'a Step, &'a Note)> {
        self.steps
            .iter()
            .filter_map(|(step, note)| Some((*step, (*note)?)))
    }

    /// The steps that have failed, and how.
    fn failed(&self) -> impl Iterator<Item = (&'a Step, &'a str, &'a str)> {
        self.begun().filter_map(|(step, note)| match &note.ended {
            Some((_, _, Told::Failed(kind, text))) => Some((step, kind.as_str(), text.as_str())),
            _ => None,
        })
    }

    /// R14: each value that a step reads is the one that was set last, or one that is set at the same time.
    fn context(&self, texts: &mut Vec<(Fault, String)>) {
        let ended = |note: &Note| note.ended.as_ref().map_or(usize::MAX, |(line, ..)| *line);
        for (step, note) in self.begun() {
            let (Does::Get(name), Some((end, _, Told::Ok(value)))) = (&step.does, &note.ended)
            else {
                continue;
            };
            let sets: Vec<(&Step, &Note)> = self
                .begun()
                .filter(|(step, note)| step.does == Does::Set(name.clone()) && note.began.0 < *end)
                .collect();
            let is_last = |set: &Note| {
                let later =
                    |other: &Note| other.began.0 > ended(set) && ended(other) < note.began.0;
                !sets.iter().any(|(_, other)| later(other))
            };
            let none = value == "null" && !sets.iter().any(|(_, set)| ended(set) < note.began.0);
            let one = sets.iter().any(|(step, set)| {
                value.trim_matches('"').ends_with(&format!(".{}", step.id)) && is_last(set)
            });
            if !none && !one {
                texts.push((
                    Fault::Context,
                    format!("step {} gets {value} as {name}", step.id),
                ));
            }
        }
    }

    /// R2: all sync functions run on one worker.
    fn workers(&self, texts: &mut Vec<(Fault, String)>) {
        let workers: BTreeSet<i64> = self.begun().filter_map(|(_, note)| note.worker).collect();
        if workers.len() > 1 {
            texts.push((
                Fault::Worker,
                format!("its sync parts ran on the workers {workers:?}"),
            ));
        }
    }

    /// Every error of a step has a reason.
    fn errors(&self, program: &Program, client: Client, texts: &mut Vec<(Fault, String)>) {
        let limited = self.kinds.iter().any(|kind| kind.is_limited());
        let ends = self.has(|does| matches!(does, Does::End(_) | Does::Race(_)));
        let levels = self.kinds.iter().any(|kind| kind.is_atomic())
            || self.has(|does| {
                matches!(
                    does,
                    Does::Block(_)
                        | Does::Dropped(_)
                        | Does::Pin(_)
                        | Does::Stream { .. }
                        | Does::Leak(_)
                )
            });
        let calls = self.has(|does| matches!(does, Does::Call(_) | Does::Next));
        let reads_only = self.kinds.iter().any(|kind| kind.is_read_only());
        let broken = self.has(|does| matches!(does, Does::Broken));
        let others = program.requests.len() > 1;
        let undone = self.has(|does| {
            matches!(
                does,
                Does::Dropped(_) | Does::Leak(_) | Does::Rollback | Does::Race(_)
            )
        });
        let stricter = self
            .kinds
            .iter()
            .any(|kind| matches!(kind, ViewKind::Repeatable | ViewKind::Serializable));
        let pins = program
            .requests
            .iter()
            .flat_map(Request::steps)
            .filter(|step| {
                matches!(
                    step.does,
                    Does::Pin(_) | Does::Stream { .. } | Does::Leak(_)
                )
            });
        // A conflict that the database reports is a failed statement, and its level takes no more statements.
        let conflicts = self.failed().any(|(_, kind, _)| kind == "Conflict");
        let pins = pins.count();
        for (step, kind, text) in self.failed() {
            let explained = match kind {
                "NotNull" => broken,
                "Poisoned" => {
                    broken
                        || conflicts
                        || undone
                        || reads_only
                        || ends
                        || (self.joins || calls) && levels
                }
                "Conflict" => others || self.joins || calls,
                "Denied" => reads_only || undone || levels && (calls || self.joins) || stricter,
                "Aborted" => {
                    limited
                        || ends
                        || client.leaves_after_ms().is_some()
                        || client == Client::HalfCloses
                }
                "Other" => undone || self.joins || ends || reads_only || calls && levels,
                "Statement" => reads_only,
                // A request that holds a connection does not wait for another one while pins and results take all
                // others: it is refused immediately.
                "Unavailable" if text.contains(NO_ROOM) => pins > 1,
                "Unavailable" => {
                    texts.push((
                        Fault::Capacity,
                        format!("step {} was refused: {text}", step.id),
                    ));
                    true
                }
                status => status.parse::<u16>().is_ok(),
            };
            if !explained {
                texts.push((
                    Fault::Answer,
                    format!("step {} failed without a reason: {kind}: {text}", step.id),
                ));
            }
        }
    }

    /// Every response that is not a success has a reason.
    fn answer(&self, client: Client, reply: &Reply, texts: &mut Vec<(Fault, String)>) {
        let Some(status) = reply.status else {
            if is_answered(client) {
                texts.push((Fault::Answer, "no answer".to_owned()));
            }
            return;
        };
        let conflict = self
            .failed()
            .any(|(_, kind, text)| kind == "Conflict" || text.contains(NO_ROOM))
            || ["conflict", "could not serialize"]
                .iter()
                .any(|words| reply.why.to_lowercase().contains(words));
        let limited = self.kinds.iter().any(|kind| kind.is_limited())
            || self.has(|does| *does == Does::End("loop".to_owned()));
        let failed = self.failed().next().is_some()
            || self.begun().any(|(step, _)| {
                matches!(
                    step.does,
                    Does::End(_) | Does::Status(_) | Does::Race(_) | Does::Leak(_) | Does::Rollback
                )
            });
        match status {
            503 if !conflict => texts.push((Fault::Capacity, format!("503: {}", reply.why))),
            504 if !limited => texts.push((Fault::Time, format!("504: {}", reply.why))),
            200 if reply.is_told => {}
            status if !failed && !limited && !conflict && !self.blocks_overlap() => {
                texts.push((
                    Fault::Answer,
                    format!("{status} without a reason: {}", reply.why),
                ));
            }
            _ => {}
        }
    }

    /// Whether a block has ended while a block that began later was still open. Then the host rolls everything back
    /// (R8). If both blocks were dropped, no step tells an error.
    fn blocks_overlap(&self) -> bool {
        let block = |(step, note): (&Step, &Note)| {
            let is_block = matches!(step.does, Does::Block(_) | Does::Dropped(_));
            let ended = note.ended.as_ref().map_or(usize::MAX, |(line, ..)| *line);
            is_block.then_some((note.began.0, ended))
        };
        let blocks: Vec<(usize, usize)> = self.begun().filter_map(block).collect();
        let crosses = |one: &(usize, usize), other: &(usize, usize)| {
            one.0 < other.0 && other.0 < one.1 && one.1 < other.1
        };
        (blocks.iter()).any(|one| blocks.iter().any(|other| crosses(one, other)))
    }

    /// R15: the request ends soon after its client has disconnected.
    fn disconnect(&self, reply: &Reply, texts: &mut Vec<(Fault, String)>) {
        let Some(left_at) = reply.left_at else { return };
        let late = self.begun().filter_map(|(step, note)| {
            let last = note.ended.as_ref().map_or(note.began.1, |(_, at, _)| *at);
            (last > left_at + LEFT_MARGIN_S).then_some((step.id, last - left_at))
        });
        if let Some((id, after)) = late.max_by(|one, other| one.1.total_cmp(&other.1)) {
            texts.push((
                Fault::Disconnect,
                format!("step {id} goes on {after:.1} s after the client has left"),
            ));
        }
    }
}
