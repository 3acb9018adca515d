//! One budget of memory for everything that the host keeps for requests: heads, bodies, events, calls, results,
//! responses that are being sent, and the state of compressors.
//!
//! Accounts form a tree: the process (`memory_budget_mb`), each connection, each request. Memory is drawn from an
//! account and from all accounts above it, so neither one request nor one connection can use up the memory of all.
//! Nothing waits for memory. A draw that does not fit is refused immediately. The caller then answers 503, writes to a
//! file instead, or goes on without the memory. Memory is given back when a [`Room`], or the account itself, is dropped
//! (R13).
//!
//! A request prepays [`REQUEST_BYTES`] from the account above. As long as its draws stay within these bytes, they
//! change only the request's own counter, so most requests cost the counters above one addition and one subtraction.
//! The linear memory of guests is not part of the budget; it has limits of its own (`memory_mb`, and the number of
//! instances).

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::StatusCode;

use crate::telemetry::error::Failure;
use crate::telemetry::metrics::METRICS;

/// The bytes that every request prepays: for its head, its scope, its future, and small things that are kept for the
/// request.
pub const REQUEST_BYTES: u64 = 16 << 10;
/// One connection, all its requests together, may use a quarter of the budget; one request an eighth.
const CONNECTION_SHARE: u64 = 4;
const REQUEST_SHARE: u64 = 8;
/// All events together may use an eighth.
const EVENTS_SHARE: u64 = 8;
/// When more than half of the budget is used, request bodies go to files, even those that are small enough for memory.
const TIGHT: (u64, u64) = (1, 2);
/// [`Account::keep`] does not count content of fewer bytes.
const KEPT_MIN: usize = 1 << 10;

/// A limit on memory, and the bytes that are drawn from it.
pub struct Account {
    used: AtomicI64,
    /// The bytes that were drawn from the account above when this account was made.
    prepaid: u64,
    max: AtomicU64,
    whose: Whose,
    above: Option<Arc<Account>>,
}

/// Whose account it is, for the text of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Process,
    Connection,
    Request,
    Events,
}

static PROCESS: LazyLock<Arc<Account>> = LazyLock::new(|| Account::root(u64::MAX));

/// The account of the process.
pub fn process() -> &'static Arc<Account> {
    &PROCESS
}

/// Why memory was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhausted {
    whose: Whose,
    max: u64,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = self.max >> 20;
        match self.whose {
            Whose::Process => write!(
                f,
                "the host keeps {mb} MB for requests already, all that `memory_budget_mb` of `[server]` allows: try again when other requests have ended, or raise it"
            ),
            Whose::Connection => write!(
                f,
                "the requests of this connection would keep more than {mb} MB on the host, a quarter of `memory_budget_mb` of `[server]`"
            ),
            Whose::Events => write!(
                f,
                "events that are held or wait keep {mb} MB already, an eighth of `memory_budget_mb` of `[server]`"
            ),
            Whose::Request => write!(
                f,
                "this request would keep more than {mb} MB on the host, an eighth of `memory_budget_mb` of `[server]`: keep less at once, or raise it"
            ),
        }
    }
}

impl From<Exhausted> for Failure {
    fn from(why: Exhausted) -> Failure {
        Failure::limit(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
    }
}

impl Account {
    /// The account at the top of a tree.
    pub fn root(max: u64) -> Arc<Account> {
        Arc::new(Account {
            used: AtomicI64::new(0),
            prepaid: 0,
            max: AtomicU64::new(max),
            whose: Whose::Process,
            above: None,
        })
    }

    fn below(self: &Arc<Self>, whose: Whose, share: u64, prepaid: u64) -> Arc<Account> {
        let most = self.root_of().max.load(Relaxed) / share;
        Arc::new(Account {
            used: AtomicI64::new(0),
            prepaid,
            // An account can always use what it has prepaid.
            max: AtomicU64::new(most.max(prepaid)),
            whose,
            above: Some(Arc::clone(self)),
        })
    }

    fn root_of(self: &Arc<Self>) -> &Arc<Account> {
        let mut root = self;
        while let Some(above) = &root.above {
            root = above;
        }
        root
    }

    /// Sets the limit. Memory that is drawn already stays drawn.
    pub fn set_max(&self, bytes: u64) {
        self.max.store(bytes, Relaxed);
    }

    /// The bytes that are drawn.
    pub fn used(&self) -> u64 {
        u64::try_from(self.used.load(Relaxed)).unwrap_or(0)
    }

    /// An account for the requests of one connection.
    pub fn connection(self: &Arc<Self>) -> Arc<Account> {
        self.below(Whose::Connection, CONNECTION_SHARE, 0)
    }

    /// An account for one request, which prepays [`REQUEST_BYTES`].
    ///
    /// # Errors
    /// When there is no memory for another request.
    pub fn request(self: &Arc<Self>) -> Result<Arc<Account>, Exhausted> {
        self.take(REQUEST_BYTES)?;
        Ok(self.below(Whose::Request, REQUEST_SHARE, REQUEST_BYTES))
    }

    /// An account for one request, without a prepayment.
    pub fn unpaid(self: &Arc<Self>) -> Arc<Account> {
        self.below(Whose::Request, REQUEST_SHARE, 0)
    }

    /// The account of all events together. It has no account above it, because each event is also drawn from the
    /// account of the request that publishes the event.
    pub fn events(self: &Arc<Self>) -> Arc<Account> {
        let max = self.max.load(Relaxed) / EVENTS_SHARE;
        let mut events = Account::root(max);
        let account = Arc::get_mut(&mut events).expect("it has just been made");
        account.whose = Whose::Events;
        events
    }

    /// Whether so much memory is used that request bodies should go to files. The memory of the whole budget counts,
    /// and that of the account above this one.
    pub fn is_tight(self: &Arc<Self>) -> bool {
        let tight =
            |account: &Account| account.used() > account.max.load(Relaxed) / TIGHT.1 * TIGHT.0;
        tight(self.root_of()) || self.above.as_ref().is_some_and(|above| tight(above))
    }

    /// Draws memory until the returned [`Room`] is dropped.
    ///
    /// # Errors
    /// When this account, or one above it, has less left.
    pub fn draw(self: &Arc<Self>, bytes: u64) -> Result<Room, Exhausted> {
        self.charge(bytes)?;
        Ok(Room {
            account: Arc::clone(self),
            bytes,
        })
    }

    /// Draws memory until the account is dropped.
    ///
    /// # Errors
    /// As [`Account::draw`].
    pub fn charge(&self, bytes: u64) -> Result<(), Exhausted> {
        self.take(bytes).inspect_err(|_| {
            METRICS.refused.with_label_values(&["memory"]).inc();
        })
    }

    /// Draws the memory of `content` until the last part of the returned bytes is dropped, usually by hyper after
    /// sending.
    ///
    /// # Errors
    /// As [`Account::draw`].
    pub fn keep(self: &Arc<Self>, content: Vec<u8>) -> Result<Bytes, Exhausted> {
        if content.len() < KEPT_MIN {
            return Ok(content.into());
        }
        let room = self.draw(content.capacity() as u64)?;
        Ok(room.hold(content))
    }

    fn take(&self, bytes: u64) -> Result<(), Exhausted> {
        let bytes = signed(bytes);
        let before = self.used.fetch_add(bytes, Relaxed);
        let asked = self.over(before + bytes) - self.over(before);
        let max = self.max.load(Relaxed);
        let taken = match &self.above {
            _ if before + bytes > signed(max) => Err(Exhausted {
                whose: self.whose,
                max,
            }),
            Some(above) if asked > 0 => above.take(asked.unsigned_abs()),
            _ => Ok(()),
        };
        if taken.is_err() {
            let before = self.used.fetch_sub(bytes, Relaxed);
            let undone = self.over(before - bytes) - self.over(before);
            // The account above has not been charged with `asked`. If other threads have drawn or given back in
            // between, `asked` and `undone` do not add up to 0, and the account above is corrected by their sum.
            if let Some(above) = &self.above {
                above.adjust(asked + undone);
            }
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.adjust(-signed(bytes));
    }

    /// The bytes of `used` that are beyond the prepayment, and so drawn from the account above.
    fn over(&self, used: i64) -> i64 {
        (used - signed(self.prepaid)).max(0)
    }

    /// Changes the counter without checking the limit.
    fn adjust(&self, difference: i64) {
        if difference == 0 {
            return;
        }
        let before = self.used.fetch_add(difference, Relaxed);
        if let Some(above) = &self.above {
            above.adjust(self.over(before + difference) - self.over(before));
        }
    }
}

/// Converts a number of bytes to the type of the counters. They are signed because threads race: memory can be given
/// back to the account above before the draw of the same memory arrives there. In between, the counter is negative.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes)
        .unwrap_or(i64::MAX / 2)
        .min(i64::MAX / 2)
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(above) = &self.above {
            let over = self.over(self.used.load(Relaxed));
            above.adjust(-signed(self.prepaid) - over);
        }
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({:?}, {} bytes)", self.whose, self.used())
    }
}

/// Memory that is drawn from an account until this value is dropped.
#[derive(Debug)]
pub struct Room {
    account: Arc<Account>,
    bytes: u64,
}

impl Room {
    /// A room without memory.
    pub fn empty(account: &Arc<Account>) -> Room {
        Room {
            account: Arc::clone(account),
            bytes: 0,
        }
    }

    /// The bytes that are drawn.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The account that the memory is drawn from.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Draws more memory, up to `bytes` in all.
    ///
    /// # Errors
    /// As [`Account::draw`]; the room is unchanged then.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Exhausted> {
        if let Some(more @ 1..) = bytes.checked_sub(self.bytes) {
            self.account.charge(more)?;
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Gives back what is beyond `bytes`.
    #[must_use]
    pub fn cut_to(mut self, bytes: u64) -> Room {
        if let Some(less @ 1..) = self.bytes.checked_sub(bytes) {
            self.bytes = bytes;
            self.account.give_back(less);
        }
        self
    }

    /// Ties the room to `content`: the memory is given back when the last part of the content is dropped.
    pub fn hold(self, content: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(HeldBytes {
            content,
            _room: self,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.give_back(self.bytes);
        }
    }
}

struct HeldBytes<T> {
    content: T,
    _room: Room,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for HeldBytes<T> {
    fn as_ref(&self) -> &[u8] {
        self.content.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn whose<T: fmt::Debug>(refused: Result<T, Exhausted>) -> Whose {
        refused.expect_err("there is not as much").whose
    }

    #[test]
    fn what_is_paid_in_advance_is_drawn_once() {
        let root = Account::root(64 * MB);
        let connection = root.connection();
        let request = connection.request().expect("there is room");
        assert_eq!(
            (root.used(), connection.used()),
            (REQUEST_BYTES, REQUEST_BYTES)
        );
        let small = request.draw(REQUEST_BYTES - 10).expect("it is paid");
        assert_eq!(root.used(), REQUEST_BYTES);
        let more = request.draw(110).expect("there is room");
        assert_eq!(root.used(), REQUEST_BYTES + 100);
        drop(small);
        assert_eq!(root.used(), REQUEST_BYTES);
        request.charge(MB).expect("there is room");
        assert_eq!(root.used(), MB + 110);
        drop(more);
        assert_eq!((root.used(), connection.used()), (MB, MB));
        drop(request);
        assert_eq!((root.used(), connection.used()), (0, 0));
    }

    #[test]
    fn no_request_and_no_connection_takes_everything() {
        let root = Account::root(64 * MB);
        let connection = root.connection();
        let requests: Vec<_> = (0..3)
            .map(|_| connection.request().expect("there is room"))
            .collect();
        assert_eq!(whose(requests[0].draw(9 * MB)), Whose::Request);
        let _first = requests[0].draw(8 * MB).expect("that is its share");
        assert_eq!(whose(requests[0].draw(1)), Whose::Request);
        let mut second = requests[1]
            .draw(7 * MB)
            .expect("that is less than its share");
        assert_eq!(whose(requests[2].draw(2 * MB)), Whose::Connection);
        assert!(requests[2].is_tight());
        let other = root.connection();
        let own = other.request().expect("other clients have theirs");
        let before = (root.used(), requests[1].used());
        assert_eq!(whose(second.grow_to(9 * MB)), Whose::Request);
        assert_eq!((root.used(), requests[1].used()), before);
        let _others = root.draw(48 * MB).expect("there is as much");
        assert_eq!(whose(own.draw(MB)), Whose::Process);
        assert_eq!(whose(own.draw(64 * MB)), Whose::Request);
    }

    #[test]
    fn memory_that_is_handed_on_counts_until_its_last_part_is_gone() {
        let root = Account::root(64 * MB);
        let request = root.request().expect("there is room");
        let mut body = request.keep(vec![1; MB as usize]).expect("there is room");
        drop(request);
        assert_eq!(root.used(), MB);
        let last = body.split_off(10);
        drop(body);
        assert_eq!((root.used(), last[0]), (MB, 1));
        drop(last);
        assert_eq!(root.used(), 0);
    }

    #[test]
    fn many_threads_leave_nothing_behind() {
        let root = Account::root(4 * MB);
        let connection = root.connection();
        let request = connection.request().expect("there is room");
        let threads: Vec<_> = (0..4_u64)
            .map(|seed| {
                let request = Arc::clone(&request);
                std::thread::spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    let mut refused = 0;
                    for _ in 0..20_000 {
                        let rooms: Vec<_> = (0..random.usize(1..6))
                            .map(|_| request.draw(random.u64(1..100_000)))
                            .collect();
                        refused += rooms.iter().filter(|room| room.is_err()).count();
                    }
                    refused
                })
            })
            .collect();
        let refused = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        assert!(
            refused.sum::<usize>() > 0,
            "the share should be too small at times"
        );
        assert_eq!(request.used(), 0);
        assert_eq!(
            (root.used(), connection.used()),
            (REQUEST_BYTES, REQUEST_BYTES)
        );
        drop(request);
        assert_eq!((root.used(), connection.used()), (0, 0));
    }
}
