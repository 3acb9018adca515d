//! Decides by numbers whether a candidate becomes active or is given up.

use std::time::Duration;

use crate::app::stats::Counts;
use crate::deploy::Judge;

/// What is to be done with a candidate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is watched further.
    Wait,
    /// It becomes active.
    Promote(String),
    /// It is given up.
    GiveUp(String),
}

/// So many windows may pass until a candidate has answered enough requests.
const WINDOWS: u32 = 10;
/// A version tells something when it has answered a tenth of the requests that are wanted, and at least so many: by then a
/// candidate can be given up before its window is over, and its latencies are compared with those of the active version.
const EARLY: u64 = 10;
/// Latencies below this are equal: what is measured there is the machine's.
const EQUAL: Duration = Duration::from_millis(2);

/// Judges a candidate by its counts and those of the active version, both since the candidate is there.
pub(super) fn judge(
    judge: &Judge,
    passed: Duration,
    active: &Counts,
    candidate: &Counts,
) -> Verdict {
    let requests = candidate.requests();
    let window = Duration::from_secs(judge.window_s);
    let is_over = passed >= window;
    let is_enough = requests >= judge.requests_min;
    let few = EARLY.max(judge.requests_min / 10);
    if !is_over && requests < few {
        return Verdict::Wait;
    }
    let percent = |part: f64| format!("{:.2} %", part * 100.0);
    let allowed = active.error_rate() + f64::from(judge.errors_max) / 10_000.0;
    if candidate.error_rate() > allowed {
        return Verdict::GiveUp(format!(
            "{} of its {requests} requests failed; the active version's {} and {} more are allowed",
            percent(candidate.error_rate()),
            percent(active.error_rate()),
            percent(f64::from(judge.errors_max) / 10_000.0),
        ));
    }
    if !is_over {
        return Verdict::Wait;
    }
    if !is_enough {
        let needed = format!(
            "it has answered {requests} requests, and {} are needed to judge it",
            judge.requests_min
        );
        return match passed >= window * WINDOWS {
            true => Verdict::GiveUp(needed),
            false => Verdict::Wait,
        };
    }
    let others = active.quantile(0.99).filter(|_| active.requests() >= few);
    let (Some(own), Some(others)) = (candidate.quantile(0.99), others) else {
        return Verdict::Promote(format!(
            "{requests} requests without more errors; the active version has answered {}, too few to compare their latencies",
            active.requests()
        ));
    };
    let most = others.mul_f64(f64::from(judge.p99_max_percent) / 100.0);
    if own > most.max(EQUAL) {
        return Verdict::GiveUp(format!(
            "its 99th percentile is {own:.1?}; {most:.1?} are allowed, {} % of the active version's",
            judge.p99_max_percent
        ));
    }
    Verdict::Promote(format!(
        "{requests} requests, {} errors, 99th percentile {own:.1?} (active: {others:.1?})",
        percent(candidate.error_rate())
    ))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::app::stats::Stats;

    fn counts(requests: u64, errors: u64, millis: u64) -> Counts {
        let stats = Stats::default();
        for number in 0..requests {
            let status = match number < errors {
                true => StatusCode::INTERNAL_SERVER_ERROR,
                false => StatusCode::OK,
            };
            stats.answered(status, Duration::from_millis(millis));
        }
        stats.now()
    }

    #[test]
    fn candidates_are_judged_by_errors_and_latency() {
        let rules = Judge {
            window_s: 60,
            requests_min: 100,
            errors_max: 100,
            p99_max_percent: 150,
        };
        let verdict = |seconds, active: (u64, u64, u64), candidate: (u64, u64, u64)| {
            let passed = Duration::from_secs(seconds);
            let active = counts(active.0, active.1, active.2);
            let candidate = counts(candidate.0, candidate.1, candidate.2);
            match judge(&rules, passed, &active, &candidate) {
                Verdict::Wait => "wait",
                Verdict::Promote(_) => "promote",
                Verdict::GiveUp(_) => "give up",
            }
        };
        let good = (1_000, 0, 10);
        assert_eq!(verdict(1, good, (0, 0, 0)), "wait");
        assert_eq!(verdict(1, good, (9, 9, 10)), "wait");
        assert_eq!(verdict(1, good, (10, 10, 10)), "give up");
        assert_eq!(verdict(59, good, (500, 0, 10)), "wait");
        assert_eq!(verdict(60, good, (500, 0, 10)), "promote");
        assert_eq!(verdict(60, good, (500, 5, 10)), "promote");
        assert_eq!(verdict(60, good, (500, 6, 10)), "give up");
        // The active version fails, too.
        assert_eq!(verdict(60, (1_000, 100, 10), (500, 50, 10)), "promote");
        assert_eq!(verdict(60, good, (500, 0, 15)), "promote");
        assert_eq!(verdict(60, good, (500, 0, 20)), "give up");
        assert_eq!(verdict(60, (1_000, 0, 0), (500, 0, 1)), "promote");
        assert_eq!(verdict(60, good, (99, 0, 10)), "wait");
        assert_eq!(verdict(600, good, (99, 0, 10)), "give up");
        assert_eq!(verdict(60, (0, 0, 0), (500, 0, 10)), "promote");
        // Nearly everybody gets the candidate: the few others say nothing.
        assert_eq!(verdict(60, (9, 0, 1), (500, 0, 10)), "promote");
        assert_eq!(verdict(60, (10, 0, 1), (500, 0, 10)), "give up");
    }
}
