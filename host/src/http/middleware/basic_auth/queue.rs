//! The queue for password checks. It shares the turns fairly between client addresses.
//!
//! Checks take long on purpose, and anybody can ask for them. With a first-come queue, a client that sends enough wrong
//! passwords would lock everybody out. So the next turn goes to the address that has had the fewest turns. When the
//! queue is full, the newest request of the address with the most waiting requests has to leave. Requests of one
//! address may belong to many users (behind one router, or an untrusted proxy). Among the requests of one address, the
//! same two rules apply to the names in the requests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::sync::oneshot;

use crate::http::proxies::network_of;
use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// The most pairs of address and name whose turns are counted. Beyond that, all counts begin anew.
const TURNS_MAX: usize = 10_000;

/// Lets a bounded number of checks run at the same time. Further requests wait in a bounded queue.
pub(super) struct FairQueue {
    state: Arc<Mutex<State>>,
    checks_max: usize,
    queue_max: usize,
    timeout: Duration,
    gauge: IntGauge,
}

/// The client address and the name that a check is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asker {
    /// The client's address; for IPv6, the /64 network of the address.
    address: IpAddr,
    /// A hash of the name in the request.
    name: u64,
}

impl Asker {
    pub(super) fn new(address: IpAddr, name: u64) -> Asker {
        Asker {
            address: network_of(address),
            name,
        }
    }
}

#[derive(Default)]
struct State {
    running: usize,
    /// In the order of arrival.
    waiting: Vec<Waiter>,
    /// The number of turns that each address has had since the queue was last idle. Running checks are included.
    turns: HashMap<IpAddr, usize>,
    turns_by_name: HashMap<Asker, usize>,
    next_id: u64,
}

struct Waiter {
    id: u64,
    asker: Asker,
    turn: oneshot::Sender<Turn>,
}

/// The right to run one check. Dropping it starts the next check.
pub(super) struct Turn {
    state: Arc<Mutex<State>>,
    _running: GaugeGuard,
}

/// A request's entry in the queue. Dropping it removes the entry, also when the request is cancelled.
struct Entry<'a> {
    queue: &'a FairQueue,
    id: u64,
}

impl FairQueue {
    pub(super) fn new(checks_max: usize, queue_max: usize, timeout: Duration) -> FairQueue {
        FairQueue {
            state: Arc::default(),
            checks_max,
            queue_max,
            timeout,
            gauge: METRICS.queued.with_label_values(&["password checks"]),
        }
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// A sentence, when the queue is full and this request has to leave it or cannot enter it, or when the wait takes
    /// too long.
    pub(super) async fn enter(&self, asker: Asker) -> Result<Turn, String> {
        let (id, turn) = {
            let mut state = self.state.lock();
            if state.running < self.checks_max && state.waiting.is_empty() {
                return Ok(state.begin(&self.state, asker));
            }
            state
                .make_room(asker, self.queue_max)
                .map_err(|()| self.full())?;
            let (sender, turn) = oneshot::channel();
            let id = state.next_id;
            state.next_id += 1;
            let waiter = Waiter {
                id,
                asker,
                turn: sender,
            };
            state.waiting.push(waiter);
            (id, turn)
        };
        let _queued = GaugeGuard::new(&self.gauge);
        let _entry = Entry { queue: self, id };
        let since = Instant::now();
        let turn = tokio::time::timeout(self.timeout, turn).await;
        METRICS.queue_wait.observe(since.elapsed().as_secs_f64());
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            // The request had to leave the full queue in favour of an address or a name with fewer requests.
            Ok(Err(_)) => Err(self.full()),
            Err(_) => {
                METRICS
                    .refused
                    .with_label_values(&["password checks"])
                    .inc();
                let ms = self.timeout.as_millis();
                Err(format!(
                    "password checks: none of {} came free within {ms} ms (`queue_timeout_ms` of `basic-auth`)",
                    self.checks_max
                ))
            }
        }
    }

    fn full(&self) -> String {
        METRICS
            .refused
            .with_label_values(&["password checks"])
            .inc();
        format!(
            "password checks: {} requests wait already (`queue_max` of `basic-auth`), and none is of a client that has more of them",
            self.queue_max
        )
    }
}

impl State {
    fn begin(&mut self, shared: &Arc<Mutex<State>>, asker: Asker) -> Turn {
        self.running += 1;
        if self.turns_by_name.len() >= TURNS_MAX {
            self.turns.clear();
            self.turns_by_name.clear();
        }
        *self.turns.entry(asker.address).or_default() += 1;
        *self.turns_by_name.entry(asker).or_default() += 1;
        Turn {
            state: Arc::clone(shared),
            _running: GaugeGuard::new(&METRICS.password_checks),
        }
    }

    /// Takes the next request out of the queue: that of the address with the fewest turns. Among several such requests,
    /// the name with the fewest turns decides, then the order of arrival.
    fn next(&mut self) -> Option<Waiter> {
        let turns = |waiter: &Waiter| {
            let address = self.turns.get(&waiter.asker.address);
            let name = self.turns_by_name.get(&waiter.asker);
            (address.copied().unwrap_or(0), name.copied().unwrap_or(0))
        };
        let (index, _) =
            (self.waiting.iter().enumerate()).min_by_key(|(_, waiter)| turns(waiter))?;
        Some(self.waiting.remove(index))
    }

    /// Makes room if the queue is full. Of the address with the most requests, it takes the name with the most requests
    /// and removes the newest request of that name. It is an error if the address of `asker` would then have at least
    /// as many requests as that address has now. If the two addresses are the same, the names are compared in the same
    /// way.
    fn make_room(&mut self, asker: Asker, max: usize) -> Result<(), ()> {
        if self.waiting.len() < max {
            return Ok(());
        }
        let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
        let mut by_name: HashMap<Asker, usize> = HashMap::new();
        for waiter in &self.waiting {
            *by_address.entry(waiter.asker.address).or_default() += 1;
            *by_name.entry(waiter.asker).or_default() += 1;
        }
        let weight = |asker: &Asker| {
            let address = by_address.get(&asker.address).copied().unwrap_or(0);
            (address, by_name.get(asker).copied().unwrap_or(0))
        };
        let heaviest = (self.waiting.iter().enumerate())
            .max_by_key(|(_, waiter)| weight(&waiter.asker))
            .map(|(index, waiter)| (index, waiter.asker));
        let Some((index, heaviest)) = heaviest else {
            return Err(());
        };
        let ((by_address, by_name), own) = (weight(&heaviest), weight(&asker));
        let lighter = match heaviest.address == asker.address {
            true => own.1 + 1 < by_name,
            false => own.0 + 1 < by_address,
        };
        match lighter {
            true => {
                // Drops the sender of the turn, so the request stops waiting.
                self.waiting.remove(index);
                Ok(())
            }
            false => Err(()),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.running -= 1;
        if let Some(Waiter { asker, turn, .. }) = state.next() {
            let next = state.begin(&self.state, asker);
            drop(state);
            // If the request is gone, `send` returns the turn. Dropping it starts the next check.
            let _ = turn.send(next);
        } else if state.running == 0 {
            state.turns.clear();
            state.turns_by_name.clear();
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.waiting.retain(|waiter| waiter.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(host: u8, name: u64) -> Asker {
        Asker::new([10, 0, 0, host].into(), name)
    }

    fn queue(queue_max: usize) -> Arc<FairQueue> {
        Arc::new(FairQueue::new(1, queue_max, Duration::from_secs(5)))
    }

    /// Starts to wait, and returns when the request is in the queue.
    async fn wait(
        queue: &Arc<FairQueue>,
        asker: Asker,
    ) -> tokio::task::JoinHandle<Result<Turn, String>> {
        let task = tokio::spawn({
            let queue = Arc::clone(queue);
            async move { queue.enter(asker).await }
        });
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test]
    async fn whoever_sends_many_waits_behind_whoever_sends_one() {
        let queue = queue(100);
        let first = queue.enter(asker(1, 1)).await.expect("it is free");
        let mut many = Vec::new();
        for _ in 0..50 {
            many.push(wait(&queue, asker(1, 1)).await);
        }
        let other = wait(&queue, asker(2, 2)).await;
        let same_address = wait(&queue, asker(1, 3)).await;
        drop(first);
        let turn = other.await.expect("no panic").expect("it is the next");
        assert!(many.iter().all(|task| !task.is_finished()));
        drop(turn);
        let turn = same_address
            .await
            .expect("no panic")
            .expect("then this one");
        drop(turn);
        for task in many {
            drop(task.await.expect("no panic").expect("all have their turn"));
        }
        let state = queue.state.lock();
        assert_eq!(
            (state.running, state.waiting.len(), state.turns.len()),
            (0, 0, 0)
        );
    }

    #[tokio::test]
    async fn a_full_queue_has_room_for_whoever_has_less_in_it() {
        let queue = queue(4);
        let first = queue.enter(asker(1, 1)).await.expect("it is free");
        let mut many = Vec::new();
        for _ in 0..4 {
            many.push(wait(&queue, asker(1, 1)).await);
        }
        let Err(sentence) = queue.enter(asker(1, 1)).await else {
            panic!("it is full");
        };
        assert!(sentence.contains("`queue_max`"), "{sentence}");
        let other = wait(&queue, asker(2, 2)).await;
        let newest = many.pop().expect("there are some");
        assert!(newest.await.expect("no panic").is_err(), "it has made room");
        let same_address = wait(&queue, asker(1, 3)).await;
        let newest = many.pop().expect("there are some");
        assert!(
            newest.await.expect("no panic").is_err(),
            "for another name, too"
        );
        drop(first);
        for task in [other, same_address].into_iter().chain(many) {
            drop(task.await.expect("no panic").expect("it has its turn"));
        }
    }

    #[tokio::test]
    async fn whoever_leaves_keeps_nothing() {
        let queue = queue(4);
        let first = queue.enter(asker(1, 1)).await.expect("it is free");
        let leaving = wait(&queue, asker(1, 1)).await;
        let staying = wait(&queue, asker(1, 1)).await;
        leaving.abort();
        assert!(leaving.await.is_err());
        assert_eq!(queue.state.lock().waiting.len(), 1);
        drop(first);
        drop(staying.await.expect("no panic").expect("it is the next"));
        assert_eq!(queue.state.lock().running, 0);
    }

    #[test]
    fn a_client_of_ipv6_is_its_network() {
        let asker = |text: &str| Asker::new(text.parse().expect("an address"), 0);
        assert_eq!(asker("2001:db8::1"), asker("2001:db8::2"));
        assert_ne!(asker("2001:db8::1"), asker("2001:db8:0:1::1"));
        assert_ne!(asker("::ffff:10.0.0.1"), asker("::ffff:10.0.0.2"));
    }
}
