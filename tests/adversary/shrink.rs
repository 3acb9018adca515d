//! Makes smaller variants of a failing program. The hunt looks for one among them that still fails in the same way.

use super::generate::{inner_mut, lists_mut};
use super::levels::own;
use super::program::{Client, Does, Part, Program, Step, ViewKind};

/// All variants of a program that have one thing less. The variants with the most removed come first.
pub fn smaller(program: &Program) -> Vec<Program> {
    let mut all = Vec::new();
    for number in 0..program.requests.len() {
        if program.requests.len() > 1 {
            let mut less = program.clone();
            less.requests.remove(number);
            all.push(less);
        }
    }
    for (number, request) in program.requests.iter().enumerate() {
        let with = |change: &dyn Fn(&mut super::program::Request)| {
            let mut less = program.clone();
            change(&mut less.requests[number]);
            less
        };
        all.extend(
            parts(&request.part)
                .into_iter()
                .map(|part| with(&|request| request.part = part.clone())),
        );
        match request.client {
            Client::Stays => {}
            Client::Leaves { .. } | Client::HalfCloses | Client::Pipelines => {
                all.push(with(&|request| request.client = Client::Stays))
            }
            Client::LeavesBehindLine { after_ms } | Client::LeavesBehindRequest { after_ms } => {
                all.push(with(&|request| {
                    request.client = Client::Leaves { after_ms }
                }));
            }
        }
        if request.delay_ms > 0 {
            all.push(with(&|request| request.delay_ms = 0));
        }
    }
    if !program.shape.app.is_empty() || !program.shape.module.is_empty() {
        let mut less = program.clone();
        for request in &mut less.requests {
            without_middleware(&mut request.part);
        }
        less.shape.app.clear();
        less.shape.module.clear();
        all.push(less);
    }
    all.retain(|less| less != program);
    all
}

/// Removes the steps of all middleware. The recursion is as deep as calls are nested.
fn without_middleware(part: &mut Part) {
    part.around.clear();
    let mut open: Vec<&mut Step> = part.steps.iter_mut().collect();
    while let Some(step) = open.pop() {
        match &mut step.does {
            Does::Call(part) => without_middleware(part),
            does => open.extend(inner_mut(does).into_iter().flatten()),
        }
    }
}

fn parts(part: &Part) -> Vec<Part> {
    let mut all = Vec::new();
    for at in 0..part.around.len() {
        let mut less = part.clone();
        less.around.remove(at);
        all.push(less);
    }
    // Each called view in place of its caller.
    let calls = part.lists().flat_map(|steps| own(steps));
    all.extend(calls.filter_map(|step| match &step.does {
        Does::Call(within) => Some(Part {
            around: Vec::new(),
            ..(**within).clone()
        }),
        _ => None,
    }));
    let lists = part.lists().count();
    for at in 0..lists {
        let steps = part.lists().nth(at).expect("it was counted");
        for steps in lists_of(steps) {
            let mut less = part.clone();
            *lists_mut(&mut less).nth(at).expect("it is the same part") = steps;
            all.push(less);
        }
    }
    let simple = match part.view.kind {
        ViewKind::Plain | ViewKind::Atomic => None,
        kind if kind.is_atomic() => Some(ViewKind::Atomic),
        _ => Some(ViewKind::Plain),
    };
    if let Some(kind) = simple {
        let mut less = part.clone();
        less.view.kind = kind;
        all.push(less);
    }
    all
}

/// Variants of a list with one thing less: without a step, with a step's nested steps in its place, or with a smaller
/// step. The recursion is as deep as the program is nested.
fn lists_of(steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let replaced = |by: &[Step]| [&steps[..at], by, &steps[at + 1..]].concat();
        if !matches!(step.does, Does::Next) && !own_next(step) {
            all.push(replaced(&[]));
        }
        if !step.inner().is_empty() {
            all.push(replaced(step.inner()));
        }
        all.extend(single(step).into_iter().map(|step| replaced(&[step])));
    }
    all
}

fn own_next(step: &Step) -> bool {
    own(step.inner()).any(|step| step.does == Does::Next)
}

fn single(step: &Step) -> Vec<Step> {
    let with = |does: Does| Step {
        does,
        ..step.clone()
    };
    let mut all = Vec::new();
    if step.must {
        all.push(Step {
            must: false,
            ..step.clone()
        });
    }
    match &step.does {
        Does::Nap { ms } if *ms > 1 => all.push(with(Does::Nap { ms: ms / 2 })),
        Does::Call(part) => all.extend(
            parts(part)
                .into_iter()
                .map(|part| with(Does::Call(Box::new(part)))),
        ),
        Does::Stream { drain: true, steps } => all.push(with(Does::Stream {
            drain: false,
            steps: steps.clone(),
        })),
        _ => {}
    }
    for steps in lists_of(step.inner()) {
        let mut less = step.clone();
        if let Some(inner) = inner_mut(&mut less.does) {
            *inner = steps;
        }
        all.push(less);
    }
    all
}
