//! Runs a fixed number of the adversary's programs, generated from fixed seeds. To run new programs each time:
//! `cargo run -p amphi-tests --bin adversary`.

use std::time::Duration;

use amphi_tests::adversary::hunt::{Hunt, hunt, replay};

use crate::harness::Kind;

const PROGRAMS: u64 = 240;
const SEED: u64 = 20_261_128;
/// How long all programs may take together. A slow machine runs fewer programs in this time.
const TIME: Duration = Duration::from_secs(60);

async fn random_programs_keep_the_rules(kind: Kind) {
    let work = move || {
        hunt(Hunt {
            kind,
            seed: SEED,
            programs: PROGRAMS,
            time: TIME,
            lanes: 2,
            failures_max: 1,
            shrink_time: TIME,
            only: Vec::new(),
            without: Vec::new(),
        })
    };
    let hunted = tokio::task::spawn_blocking(work)
        .await
        .expect("it does not panic");
    let failures: Vec<String> = hunted.failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(hunted.programs > 0);
}
both_databases!(random_programs_keep_the_rules);

/// Programs that once found faults, with the names of their files.
const FOUND: [(&str, &str); 6] = [
    (
        "blocks_dropped_that_overlap",
        include_str!("../adversary/found/blocks_dropped_that_overlap.json"),
    ),
    (
        "call_in_a_level_that_waits_for_the_worker",
        include_str!("../adversary/found/call_in_a_level_that_waits_for_the_worker.json"),
    ),
    (
        "commit_that_the_caller_did_not_wait_for",
        include_str!("../adversary/found/commit_that_the_caller_did_not_wait_for.json"),
    ),
    (
        "given_up_before_the_commit",
        include_str!("../adversary/found/given_up_before_the_commit.json"),
    ),
    (
        "pin_dropped_while_others_wait",
        include_str!("../adversary/found/pin_dropped_while_others_wait.json"),
    ),
    (
        "pin_that_waits_beside_a_call",
        include_str!("../adversary/found/pin_that_waits_beside_a_call.json"),
    ),
];

async fn what_once_failed_keeps_the_rules(kind: Kind) {
    for (name, text) in FOUND {
        let program = serde_json::from_str(text).expect(name);
        let work = move || replay(kind, &program, 10);
        let ran = tokio::task::spawn_blocking(work)
            .await
            .expect("it does not panic");
        assert!(ran.violations.is_empty(), "{name}: {:#?}", ran.violations);
    }
}
both_databases!(what_once_failed_keeps_the_rules);
