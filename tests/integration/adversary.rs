//! A bounded number of the adversary's programs: the same ones each time, and some that nobody has seen before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amphi_tests::adversary::hunt::{Hunt, hunt};

use crate::harness::Kind;

/// Programs of the same seeds each time.
const SAME: u64 = 240;
/// How long both together may take; a slow machine runs fewer programs.
const TIME: Duration = Duration::from_secs(60);

both_databases! {
    async fn random_programs_keep_the_rules(kind: Kind) {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64);
        for seed in [20_261_128, clock] {
            let work = move || {
                hunt(Hunt {
                    kind,
                    seed,
                    programs: SAME,
                    time: TIME / 2,
                    lanes: 2,
                    failures_max: 1,
                    shrink_time: TIME,
                    only: Vec::new(),
                    without: Vec::new(),
                })
            };
            let hunted = tokio::task::spawn_blocking(work).await.expect("it does not panic");
            let failures: Vec<String> = hunted.failures.iter().map(ToString::to_string).collect();
            assert!(failures.is_empty(), "{}", failures.join("\n"));
            assert!(hunted.programs > 0);
        }
    }
}
