//! Tests that the oracle finds each kind of fault.

use std::time::Duration;

use super::generate;
use super::oracle::{Fault, judge};
use super::program::{Client, Does, Part, Program, Request, Shape, Step, View, ViewKind};
use super::run::{Note, Reply, Seen, Told};
use super::shrink::smaller;

fn step(id: u32, does: Does) -> Step {
    Step {
        id,
        must: false,
        does,
    }
}

fn part(kind: ViewKind, steps: Vec<Step>) -> Part {
    let view = View {
        is_async: true,
        kind,
    };
    Part {
        view,
        around: Vec::new(),
        steps,
    }
}

/// A program of one request, and what is seen of a run in which its steps tell the given values, in this order, and the
/// response is 200.
fn ran(part: Part, told: &[(u32, &str)]) -> (Program, Seen) {
    let shape = Shape {
        workers: 1,
        workers_max: 1,
        loops: 1,
        in_flight_max: 1,
        connections: 1,
        readers: 1,
        app: Vec::new(),
        module: Vec::new(),
    };
    let request = Request {
        delay_ms: 0,
        client: Client::Stays,
        part,
    };
    let mut seen = Seen::default();
    for (line, (id, text)) in told.iter().enumerate() {
        let told = match text.strip_prefix("failed ") {
            Some(kind) => Told::Failed(kind.to_owned(), String::new()),
            None => Told::Ok((*text).to_owned()),
        };
        let note = Note {
            began: (2 * line, 1.0),
            ended: Some((2 * line + 1, 1.0, told)),
            part: "view".to_owned(),
            worker: None,
        };
        seen.notes.entry(*id).or_default().push(note);
    }
    let reply = Reply {
        status: Some(200),
        is_told: true,
        ..Reply::default()
    };
    seen.replies.push(reply);
    let program = Program {
        seed: 0,
        shape,
        requests: vec![request],
    };
    (program, seen)
}

fn faults((program, seen): &(Program, Seen)) -> Vec<Fault> {
    judge(program, seen)
        .iter()
        .map(|violation| violation.fault)
        .collect()
}

#[test]
fn a_row_that_was_kept_is_there_and_no_other() {
    let inserts = |kind| part(kind, vec![step(1, Does::Insert)]);
    let mut kept = ran(inserts(ViewKind::Plain), &[(1, "1")]);
    assert_eq!(faults(&kept), [Fault::Rows], "it is not there");
    kept.1.rows.insert(1, 1);
    assert_eq!(faults(&kept), []);
    kept.1.rows.insert(1, 2);
    assert_eq!(faults(&kept), [Fault::Rows], "it is there twice");

    let mut failed = ran(inserts(ViewKind::Atomic), &[(1, "1")]);
    failed.0.requests[0]
        .part
        .steps
        .push(step(2, Does::End("error".to_owned())));
    failed
        .1
        .notes
        .extend(ran(inserts(ViewKind::Plain), &[(2, "failed 500")]).1.notes);
    failed.1.replies[0].status = Some(500);
    assert_eq!(faults(&failed), []);
    failed.1.rows.insert(1, 1);
    assert_eq!(faults(&failed), [Fault::Rows], "its request has failed");
}

/// A pin of the caller is not a transaction. So an atomic view that is called while the pin is held has a transaction
/// of its own.
#[test]
fn an_atomic_view_that_fails_leaves_no_row_whoever_calls_it() {
    let called = part(
        ViewKind::Atomic,
        vec![
            step(1, Does::Insert),
            step(2, Does::End("refuse".to_owned())),
        ],
    );
    let pinned = Does::Pin(vec![step(3, Does::Call(Box::new(called)))]);
    let told = [(4, "[]"), (3, "failed 409"), (1, "1"), (2, "failed 409")];
    let mut seen = ran(part(ViewKind::Plain, vec![step(4, pinned)]), &told);
    assert_eq!(faults(&seen), []);
    seen.1.rows.insert(1, 1);
    assert_eq!(faults(&seen), [Fault::Rows]);
}

/// A call that is refused before any of its functions begins is up to its caller. One that fails later is not, even with
/// the same words.
#[test]
fn a_call_that_was_refused_undoes_nothing() {
    let called = part(ViewKind::Plain, vec![step(1, Does::Insert)]);
    let steps = vec![step(2, Does::Insert), step(3, Does::Call(Box::new(called)))];
    let told = [(2, "1"), (3, "failed 500")];
    let mut seen = ran(part(ViewKind::Atomic, steps), &told);
    seen.1.rows.insert(2, 1);
    assert_eq!(faults(&seen), [Fault::Rows], "the call has failed");
    let text = "more than 16 guest functions would run within each other or at once";
    let refused = Told::Failed("500".to_owned(), text.to_owned());
    let note = &mut seen.1.notes.get_mut(&3).expect("it was called")[0];
    note.ended.as_mut().expect("it was answered").2 = refused;
    assert_eq!(faults(&seen), []);
    let began = ran(part(ViewKind::Plain, Vec::new()), &[(1, "failed 500")]);
    seen.1.notes.extend(began.1.notes);
    assert_eq!(faults(&seen), [Fault::Rows], "it has begun");
}

/// A commit that is on its way when the client leaves goes on to its end, and the caller is told at once that the client has
/// gone. A view that has not returned is never committed.
#[test]
fn a_commit_that_the_caller_did_not_wait_for_is_allowed() {
    let called = part(
        ViewKind::Atomic,
        vec![step(1, Does::Insert), step(2, Does::Insert)],
    );
    let call = step(3, Does::Call(Box::new(called)));
    let told = [(3, "failed 503"), (1, "1"), (2, "1")];
    let mut seen = ran(part(ViewKind::Plain, vec![call]), &told);
    seen.1.rows = [(1, 1), (2, 1)].into();
    assert_eq!(faults(&seen), [Fault::Rows; 2], "the view has failed");
    let gone = Told::Failed("503".to_owned(), "the client has gone".to_owned());
    let note = &mut seen.1.notes.get_mut(&3).expect("it was called")[0];
    note.ended.as_mut().expect("it was answered").2 = gone;
    assert_eq!(faults(&seen), []);
    seen.1.notes.get_mut(&2).expect("it began")[0].ended = None;
    assert_eq!(faults(&seen), [Fault::Rows; 2], "it has not returned");
}

/// A block whose commit is on its way when the client leaves may be committed, although its function is told that it was
/// aborted. A block with steps left to do is never committed.
#[test]
fn a_block_that_was_being_committed_when_the_client_left_may_be_kept() {
    let inner = vec![step(1, Does::Insert), step(2, Does::Insert)];
    let block = step(3, Does::Block(inner));
    let told = [(3, "failed Poisoned"), (1, "1"), (2, "1")];
    let mut seen = ran(part(ViewKind::Plain, vec![block]), &told);
    seen.1.rows = [(1, 1), (2, 1)].into();
    // Another check may ask why the block failed.
    let of_rows = |seen: &_| {
        let faults = faults(seen).into_iter();
        faults.filter(|fault| *fault == Fault::Rows).count()
    };
    assert_eq!(of_rows(&seen), 2, "the block has failed");
    let gone = Told::Failed("Aborted".to_owned(), "the client has gone".to_owned());
    let note = &mut seen.1.notes.get_mut(&3).expect("it began")[0];
    note.ended.as_mut().expect("it was answered").2 = gone;
    assert_eq!(of_rows(&seen), 0);
    seen.1.notes.get_mut(&2).expect("it began")[0].ended = None;
    assert_eq!(of_rows(&seen), 2, "a step was left to do");
}

/// A statement that is joined with a block of the same function may or may not be in the block. Only the fate of the
/// block's own rows is certain.
#[test]
fn beside_a_block_either_is_allowed() {
    let block = step(
        1,
        Does::Block(vec![step(2, Does::Insert), step(3, Does::Broken)]),
    );
    let join = step(4, Does::Join(vec![block, step(5, Does::Insert)]));
    let told = [
        (4, "[]"),
        (1, "failed Poisoned"),
        (2, "1"),
        (3, "failed NotNull"),
        (5, "1"),
    ];
    let mut seen = ran(part(ViewKind::Plain, vec![join]), &told);
    assert_eq!(faults(&seen), []);
    seen.1.rows.insert(5, 1);
    assert_eq!(faults(&seen), []);
    seen.1.rows.insert(2, 1);
    assert_eq!(faults(&seen), [Fault::Rows]);
}

#[test]
fn a_success_in_spite_of_a_failed_statement_is_none() {
    let broken = ran(
        part(ViewKind::Atomic, vec![step(1, Does::Broken)]),
        &[(1, "failed NotNull")],
    );
    assert_eq!(faults(&broken), [Fault::Answer]);
}

#[test]
fn events_are_heard_by_both_subscribers_or_by_none() {
    let publishes = |kind| {
        part(
            kind,
            vec![step(
                1,
                Does::Publish(vec![step(2, Does::Get("one".to_owned()))]),
            )],
        )
    };
    let heard = |kind, told: &[(u32, &str)]| faults(&ran(publishes(kind), told));
    assert_eq!(heard(ViewKind::Plain, &[(1, "null")]), [Fault::Events]);
    assert_eq!(
        heard(ViewKind::Plain, &[(1, "null"), (2, "null")]),
        [Fault::Events]
    );
    assert_eq!(
        heard(ViewKind::Atomic, &[(1, "null"), (2, "null"), (2, "null")]),
        []
    );
    let mut undone = ran(
        publishes(ViewKind::Atomic),
        &[(1, "null"), (2, "null"), (2, "null")],
    );
    undone.0.requests[0]
        .part
        .steps
        .push(step(3, Does::Rollback));
    undone
        .1
        .notes
        .extend(ran(publishes(ViewKind::Plain), &[(3, "null")]).1.notes);
    assert_eq!(faults(&undone), [Fault::Events]);
}

#[test]
fn values_are_those_that_were_set_last() {
    let name = || "one".to_owned();
    let steps = vec![
        step(1, Does::Set(name())),
        step(2, Does::Set(name())),
        step(3, Does::Get(name())),
    ];
    let got = |value| {
        faults(&ran(
            part(ViewKind::Plain, steps.clone()),
            &[(1, "null"), (2, "null"), (3, value)],
        ))
    };
    assert_eq!(got("\"p1.2\""), []);
    assert_eq!(got("\"p1.1\""), [Fault::Context]);
    assert_eq!(got("null"), [Fault::Context]);
}

#[test]
fn time_clients_and_workers_are_watched() {
    let naps = || {
        ran(
            part(ViewKind::Plain, vec![step(1, Does::Nap { ms: 10 })]),
            &[(1, "null")],
        )
    };
    let mut seen = naps();
    seen.1.replies[0].took = Duration::from_secs(5);
    assert_eq!(faults(&seen), [Fault::Time]);

    let mut seen = naps();
    seen.0.requests[0].client = Client::Leaves { after_ms: 1 };
    seen.1.replies[0] = Reply {
        left_at: Some(0.9),
        ..Reply::default()
    };
    assert_eq!(faults(&seen), []);
    seen.1
        .notes
        .entry(1)
        .and_modify(|notes| notes[0].began.1 = 3.0);
    if let Some((_, at, _)) = seen.1.notes.entry(1).or_default()[0].ended.as_mut() {
        *at = 3.0;
    }
    assert_eq!(faults(&seen), [Fault::Disconnect]);

    let mut seen = ran(
        part(
            ViewKind::Plain,
            vec![step(1, Does::Fetch), step(2, Does::Fetch)],
        ),
        &[(1, "404"), (2, "404")],
    );
    for id in [1, 2] {
        seen.1
            .notes
            .entry(id)
            .and_modify(|notes| notes[0].worker = Some(id.into()));
    }
    assert_eq!(faults(&seen), [Fault::Worker]);
}

#[test]
fn a_seed_is_one_program_and_each_smaller_one_is_smaller() {
    for seed in 0..200 {
        let program = generate::program(seed, &[]);
        assert_eq!(program, generate::program(seed, &[]), "seed {seed}");
        let json = serde_json::to_string(&program).expect("it is data");
        let read: Program = serde_json::from_str(&json).expect("it is what was written");
        assert_eq!(read, program, "seed {seed}");
    }
    // A program cannot be made smaller without end.
    let (mut program, mut times) = (generate::program(7, &[]), 0);
    while let Some(less) = smaller(&program).into_iter().next() {
        (program, times) = (less, times + 1);
        assert!(times < 2_000, "{program:?}");
    }
}
