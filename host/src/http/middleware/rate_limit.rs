//! `rate-limit`: limits how many requests one client, or one user, may send.
//!
//! Each client or user has a token bucket: it holds `burst` requests and regains one every `period`. Only one instant
//! is stored for a bucket, the time at which it will be full again (the generic cell rate algorithm), so a full bucket
//! needs no entry. The number of entries is bounded: beyond the bound, the entry that was used least recently is
//! dropped.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashlink::LruCache;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;

use super::request_head::Refused;
use crate::http::proxies::network_of;
use crate::telemetry::error::Failure;
use crate::telemetry::metrics::METRICS;

/// The buckets are split into this many maps, each with a lock of its own, so that event loops seldom wait for each
/// other.
const PARTS: usize = 16;

/// A limit, and the buckets of clients or users.
pub struct RateLimit {
    options: Options,
    buckets: [Mutex<LruCache<u64, Instant>>; PARTS],
    keys: RandomState,
}

/// The options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whose requests are counted together.
    pub by: By,
    /// The time after which one more request is allowed.
    pub period: Duration,
    /// The size of a bucket: the most requests that a client or user can send without a pause.
    pub burst: u32,
    /// The most buckets that are kept.
    pub keys_max: usize,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The requests of one client: of one IPv4 address, or of one /64 network of IPv6.
    Address,
    /// The requests of one user, whose name an earlier authentication middleware has found. Without a user, the
    /// requests of one client.
    User,
}

impl By {
    /// Each value by its name in the configuration.
    pub const ALL: [(&'static str, By); 2] = [("address", By::Address), ("user", By::User)];
}

impl RateLimit {
    /// A limit whose buckets are all full.
    pub fn new(options: Options) -> RateLimit {
        let part = options.keys_max.div_ceil(PARTS);
        RateLimit {
            buckets: std::array::from_fn(|_| Mutex::new(LruCache::new(part))),
            keys: RandomState::new(),
            options,
        }
    }

    /// Counts a request, or refuses it with 429 and `retry-after`.
    pub(super) fn before(&self, client: IpAddr, user: Option<&str>) -> Result<(), Box<Refused>> {
        let user = user.filter(|_| self.options.by == By::User);
        let key = match user {
            Some(user) => self.keys.hash_one(("user", user)),
            None => self.keys.hash_one(("address", network_of(client))),
        };
        let Err(wait) = self.take(key, Instant::now()) else {
            return Ok(());
        };
        METRICS.refused.with_label_values(&["rate-limit"]).inc();
        let whose = match user {
            Some(user) => format!("the user `{user}`"),
            None => client.to_string(),
        };
        let mut refused = Refused::with(
            StatusCode::TOO_MANY_REQUESTS,
            "These are too many requests. Try again in a moment.",
        );
        refused.failure = Failure {
            detail: format!(
                "`rate-limit`: {whose} has sent more than {} requests at once, with one more every {:?}",
                self.options.burst, self.options.period
            ),
            ..refused.failure
        };
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        let retry_after = HeaderValue::from(seconds);
        refused.headers.insert(header::RETRY_AFTER, retry_after);
        Err(refused)
    }

    /// Takes one request out of a bucket. An error is the time until an empty bucket has a request again.
    fn take(&self, key: u64, now: Instant) -> Result<(), Duration> {
        let Options { period, burst, .. } = self.options;
        let part = usize::try_from(key % PARTS as u64).expect("it is small");
        let mut buckets = self.buckets[part].lock();
        let full = buckets.get(&key).copied().unwrap_or(now).max(now);
        // Taking a request delays the time at which the bucket is full by one period. An empty bucket is full again
        // after `period * burst`, so that is the longest delay.
        let least = full + period;
        let wait = least.saturating_duration_since(now + period * burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        buckets.insert(key, least);
        Ok(())
    }
}

/// Compares the configuration, and not the buckets.
impl PartialEq for RateLimit {
    fn eq(&self, other: &RateLimit) -> bool {
        self.options == other.options
    }
}

impl Eq for RateLimit {}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimit").field(&self.options).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(by: By, burst: u32, keys_max: usize) -> RateLimit {
        RateLimit::new(Options {
            by,
            period: Duration::from_secs(2),
            burst,
            keys_max,
        })
    }

    #[test]
    fn a_bucket_empties_and_fills() {
        let limit = limit(By::Address, 3, 100);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(limit.take(1, at(0)), Ok(()));
        }
        assert_eq!(limit.take(1, at(0)), Err(Duration::from_secs(2)));
        assert_eq!(limit.take(1, at(1500)), Err(Duration::from_millis(500)));
        assert_eq!(limit.take(2, at(1500)), Ok(()), "of somebody else");
        assert_eq!(limit.take(1, at(2000)), Ok(()));
        assert!(limit.take(1, at(2000)).is_err());
        for _ in 0..3 {
            assert_eq!(
                limit.take(1, at(60_000)),
                Ok(()),
                "it holds no more than that"
            );
        }
        assert!(limit.take(1, at(60_000)).is_err());
    }

    #[test]
    fn users_and_addresses_are_told_apart() {
        let ann = |limit: &RateLimit, last: u8| {
            let refused = limit.before([10, 0, 0, last].into(), Some("ann")).err();
            refused.map(|refused| refused.headers[header::RETRY_AFTER].clone())
        };
        let by_user = limit(By::User, 1, 100);
        assert_eq!(ann(&by_user, 1), None);
        assert_eq!(ann(&by_user, 2).expect("it is the same user"), "2");
        by_user
            .before([10, 0, 0, 1].into(), None)
            .expect("nobody is somebody else");
        let by_address = limit(By::Address, 1, 100);
        assert_eq!((ann(&by_address, 1), ann(&by_address, 2)), (None, None));
        assert!(ann(&by_address, 1).is_some());
    }

    #[test]
    fn buckets_are_bounded() {
        let limit = limit(By::Address, 1, 160);
        let now = Instant::now();
        for key in 0..10_000 {
            assert_eq!(limit.take(key, now), Ok(()));
        }
        let kept: usize = limit.buckets.iter().map(|part| part.lock().len()).sum();
        assert_eq!(kept, 160);
    }
}
