//! Which versions a place serves, and which it has served: the record that a host begins with.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::artifact::Digest;

/// What a place serves. After a crash, the record is the former one or the new one, never a part of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Grows with every change, and every attempt at one. A change names the generation that it is made to, so that nobody
    /// changes what somebody else has just changed, and no request for a change can be made twice.
    #[serde(default)]
    pub generation: u64,
    /// The version that is served.
    pub active: Active,
    /// The version that is tried beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// The versions that were active before, the last one first. Their number is limited by `keep` of `[deploy]`.
    #[serde(default)]
    pub earlier: Vec<Earlier>,
}

/// A version that is active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// The version.
    pub digest: Digest,
    /// What it was deployed from: a file, a folder or a reference.
    pub from: String,
    /// Since when, in seconds since 1970.
    #[serde(default)]
    pub since: u64,
}

/// A version that was active.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// The version.
    #[serde(flatten)]
    pub version: Active,
    /// Whether it was left by going back: a roll-back that names no version passes over it.
    #[serde(default)]
    pub rolled_back: bool,
}

/// A version that is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The version.
    #[serde(flatten)]
    pub version: Active,
    /// How it is tried.
    pub trial: Trial,
}

/// How a version is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Who gets it: `5%`, `5% by address`, `header:x-canary=1`, `shadow`.
    pub audience: String,
    /// By what it is judged without anybody's help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// Headers that may differ in a shadow's answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_headers: Vec<String>,
    /// Fields of JSON that may differ in a shadow's answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_fields: Vec<String>,
    /// Whether a shadow's statements that write may differ, e.g. because times or random values are among their parameters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored_writes: bool,
    /// How long a shadow may take for one request, in milliseconds, if not as long as ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_timeout_ms: Option<u64>,
    /// How many requests a shadow may get at once, if not as many as ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_at_once: Option<usize>,
}

/// When a candidate becomes active, or is given up, by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// How long it is watched before it becomes active, in seconds.
    pub window_s: u64,
    /// How many requests it has to have answered by then, at least.
    pub requests_min: u64,
    /// The most errors that it may have beyond those of the active version, in hundredths of a percent of its requests.
    pub errors_max: u32,
    /// The greatest 99th percentile of its latencies, in percent of the active version's.
    pub p99_max_percent: u32,
}

impl Active {
    /// A version that is active from now on.
    pub fn now(digest: Digest, from: impl Into<String>) -> Active {
        Active {
            digest,
            from: from.into(),
            since: seconds(),
        }
    }
}

/// The time, in seconds since 1970.
pub fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Record {
    /// The record of the first version.
    pub fn first(active: Active) -> Record {
        Record {
            generation: 1,
            active,
            candidate: None,
            earlier: Vec::new(),
        }
    }

    /// The record after a version has become active. `rolled_back`: the version before is left because it is not wanted.
    #[must_use]
    pub fn activated(&self, active: Active, rolled_back: bool, keep: usize) -> Record {
        let before = Earlier {
            version: self.active.clone(),
            rolled_back,
        };
        let mut earlier: Vec<Earlier> = [before].into_iter().chain(self.earlier.clone()).collect();
        let mut seen = vec![active.digest];
        earlier.retain(|earlier| {
            let is_new = !seen.contains(&earlier.version.digest);
            seen.push(earlier.version.digest);
            is_new
        });
        earlier.truncate(keep);
        Record {
            generation: self.generation,
            active,
            candidate: None,
            earlier,
        }
    }

    /// The record with another candidate, or without one.
    #[must_use]
    pub fn trying(&self, candidate: Option<Candidate>) -> Record {
        Record {
            candidate,
            ..self.clone()
        }
    }

    /// The same record in the next generation.
    #[must_use]
    pub fn counted(&self) -> Record {
        Record {
            generation: self.generation + 1,
            ..self.clone()
        }
    }

    /// The version that a roll-back goes to which names none.
    pub fn before(&self) -> Option<&Active> {
        let mut wanted = self.earlier.iter().filter(|earlier| !earlier.rolled_back);
        wanted.next().map(|earlier| &earlier.version)
    }

    /// All versions that it names, the active one first.
    pub fn versions(&self) -> impl Iterator<Item = &Active> {
        let candidate = self.candidate.iter().map(|candidate| &candidate.version);
        let earlier = self.earlier.iter().map(|earlier| &earlier.version);
        [&self.active].into_iter().chain(candidate).chain(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u8) -> Active {
        Active {
            digest: Digest::of(&[number]),
            from: number.to_string(),
            since: 0,
        }
    }

    fn earlier(record: &Record) -> String {
        let names = record.earlier.iter().map(|earlier| {
            let mark = if earlier.rolled_back { "x" } else { "" };
            format!("{}{mark}", earlier.version.from)
        });
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn going_back_does_not_come_back_to_what_was_left() {
        let record = Record::first(version(1));
        assert_eq!(record.before(), None);
        let record = record.activated(version(2), false, 8);
        let record = record.activated(version(3), false, 8);
        assert_eq!(earlier(&record), "2 1");
        let back = record.activated(version(2), true, 8);
        assert_eq!(earlier(&back), "3x 1");
        assert_eq!(back.before(), Some(&version(1)));
        let back = back.activated(version(1), true, 8);
        assert_eq!((earlier(&back).as_str(), back.before()), ("2x 3x", None));
        // A version that is deployed again is like any other.
        let again = back.activated(version(3), false, 8);
        assert_eq!(earlier(&again), "1 2x");
        assert_eq!((again.generation, again.counted().generation), (1, 2));
        let kept = again.activated(version(4), false, 1);
        assert_eq!(earlier(&kept), "3");
    }
}
