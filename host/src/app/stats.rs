//! What became of the requests of one app: counts and latencies, by which two versions are compared.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// The parts of each doubling of a latency. A quantile is therefore at most an eighth too high.
const PARTS: usize = 8;
/// Latencies are kept in microseconds, up to 2³² of them: more than an hour.
const BUCKETS: usize = 32 * PARTS;

/// The counts of an app, from when it was loaded.
#[derive(Debug)]
pub struct Stats {
    errors: AtomicU64,
    /// The number of responses by their latency.
    latencies: [AtomicU64; BUCKETS],
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            errors: AtomicU64::new(0),
            latencies: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// The counts at one moment, or between two of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Responses with a status of 5xx, and streams that have failed.
    pub errors: u64,
    latencies: Vec<u64>,
}

impl Stats {
    /// Counts a response, whose head came so long after the request.
    pub fn answered(&self, status: StatusCode, after: Duration) {
        if status.is_server_error() {
            self.failed();
        }
        self.latencies[bucket(after)].fetch_add(1, Relaxed);
    }

    /// Counts a failure that has no response of its own.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// The counts now.
    pub fn now(&self) -> Counts {
        Counts {
            errors: self.errors.load(Relaxed),
            latencies: (self.latencies.iter())
                .map(|number| number.load(Relaxed))
                .collect(),
        }
    }
}

impl Counts {
    /// What was counted since `before`, which is an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, before: &Counts) -> Counts {
        let earlier = before.latencies.iter().copied();
        let earlier = earlier.chain(std::iter::repeat(0));
        Counts {
            errors: self.errors.saturating_sub(before.errors),
            latencies: (self.latencies.iter().zip(earlier))
                .map(|(now, then)| now.saturating_sub(then))
                .collect(),
        }
    }

    /// Adds what another host has counted, who may say anything.
    pub fn add(&mut self, other: &Counts) {
        let most = u64::from(u32::MAX);
        self.errors += other.errors.min(most);
        self.latencies.resize(BUCKETS, 0);
        for (own, other) in self.latencies.iter_mut().zip(&other.latencies) {
            *own += (*other).min(most);
        }
    }

    /// The number of responses.
    pub fn requests(&self) -> u64 {
        self.latencies.iter().sum()
    }

    /// The part of the responses that are errors: 0 to 1.
    pub fn error_rate(&self) -> f64 {
        let requests = self.requests().max(1);
        (self.errors as f64 / requests as f64).min(1.0)
    }

    /// The latency that this part of the responses does not exceed (0.5: the median), or up to an eighth more. None
    /// without responses.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let all = self.requests();
        let wanted = ((all as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.latencies.iter().position(|number| {
            seen += number;
            seen >= wanted
        })?;
        Some(greatest(found))
    }
}

/// The bucket of a latency: its power of two, in `PARTS`.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    if micros < PARTS as u64 {
        return micros as usize;
    }
    let power = micros.ilog2();
    let part = (micros >> (power - PARTS.ilog2())) as usize - PARTS;
    let power = (power - PARTS.ilog2()) as usize + 1;
    (power * PARTS + part).min(BUCKETS - 1)
}

/// The latency at which a bucket ends. Not the greatest in it: so ends of buckets relate as their latencies do, and 15 ms
/// is 150 percent of 10 ms.
fn greatest(bucket: usize) -> Duration {
    let (power, part) = (bucket / PARTS, (bucket % PARTS) as u64);
    Duration::from_micros(match power {
        0 => part,
        power => (part + PARTS as u64 + 1) << (power - 1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_latency_is_at_most_an_eighth_too_high(micros in 0_u64..1 << 32) {
            let shown = greatest(bucket(Duration::from_micros(micros))).as_micros() as u64;
            prop_assert!(shown >= micros && shown <= micros + micros / 8, "{micros}: {shown}");
        }
    }

    #[test]
    fn counts_of_hosts_are_added() {
        let counts = |millis: &[u64]| {
            let stats = Stats::default();
            for millis in millis {
                stats.answered(StatusCode::OK, Duration::from_millis(*millis));
            }
            stats.failed();
            stats.now()
        };
        let mut all = counts(&[1, 2, 3]);
        all.add(&counts(&[3, 4]));
        let expected = counts(&[1, 2, 3, 3, 4]).latencies;
        assert_eq!((all.latencies.clone(), all.errors), (expected, 2));
        all.add(&Counts::default());
        // What no host has written.
        let forged = r#"{"errors": 18446744073709551615, "latencies": [18446744073709551615"#;
        let forged = format!(
            "{forged}{}]}}",
            ", 18446744073709551615".repeat(BUCKETS * 2)
        );
        let forged: Counts = serde_json::from_str(&forged).expect("it is JSON");
        all.add(&forged);
        all.add(&forged);
        assert!(all.quantile(1.0).is_some() && all.error_rate() <= 1.0);
        assert_eq!(all.latencies.len(), BUCKETS);
    }

    #[test]
    fn counts_are_those_of_a_window() {
        let stats = Stats::default();
        stats.answered(StatusCode::OK, Duration::from_millis(1));
        let before = stats.now();
        assert_eq!(stats.now().since(&before).quantile(0.5), None);
        for number in 1..=100 {
            let status = match number {
                1..=3 => StatusCode::BAD_GATEWAY,
                _ => StatusCode::NOT_FOUND,
            };
            stats.answered(status, Duration::from_millis(number));
        }
        stats.answered(StatusCode::OK, Duration::MAX);
        let counts = stats.now().since(&before);
        assert_eq!((counts.requests(), counts.errors), (101, 3));
        let between = |part, low, high| {
            let found = counts.quantile(part).expect("there are some").as_millis();
            assert!((low..=high).contains(&found), "{part}: {found}");
        };
        between(0.5, 51, 58);
        between(0.99, 100, 113);
        between(1.0, 4_000_000, u128::MAX);
    }
}
