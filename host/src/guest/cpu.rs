//! CPU time of a guest: the time that its thread computes for it, without waits and without the time in which the
//! kernel runs other threads.
//!
//! Reading the thread's CPU clock is a system call that takes a lock of the kernel's scheduler. So each thread reads it
//! at most once in `EXACT`. An interval shorter than `EXACT` counts as CPU time as a whole; for a longer one, the
//! thread's CPU clock decides.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::ClockId;

/// The precision of a count, in nanoseconds. If an interval is shorter than this by the wall clock, all of it counts.
/// For a longer interval, the thread's CPU clock is read.
const EXACT: u64 = 250_000;

thread_local! {
    /// The wall clock and the thread's CPU clock, both at the time when the CPU clock was last read.
    static READ: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The CPU time that one guest has used. Only the thread that runs the guest changes it.
#[derive(Debug, Default)]
pub struct CpuTime {
    used_ns: AtomicU64,
    /// The wall clock when counting began; 0 while nothing is counted.
    since_ns: AtomicU64,
    /// A lower bound of the thread's CPU clock when counting began: read at that time, or less than `EXACT` earlier.
    floor_ns: AtomicU64,
    /// Whether the guest has been preempted, and waits to compute on.
    wants_turn: AtomicBool,
}

/// A preempted guest that waits for its turn, until dropped.
pub struct WantsTurn<'a>(&'a CpuTime);

impl Drop for WantsTurn<'_> {
    fn drop(&mut self) {
        self.0.wants_turn.store(false, Relaxed);
    }
}

impl CpuTime {
    /// Notes that the guest has been preempted, until the result is dropped.
    pub fn wants_turn(&self) -> WantsTurn<'_> {
        self.wants_turn.store(true, Relaxed);
        WantsTurn(self)
    }

    /// Whether the guest has been preempted and waits for its turn. It has to be polled until it has computed on: others
    /// wait behind it.
    pub fn is_preempted(&self) -> bool {
        self.wants_turn.load(Relaxed)
    }

    /// Counts CPU time until the result is dropped.
    pub fn count(&self) -> Counting<'_> {
        self.start();
        Counting(self)
    }

    /// Pauses counting while `work` runs: a guest's CPU budget does not pay for host calls, which have limits of their
    /// own.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop();
        let _counting = Resume(self);
        work()
    }

    /// The time used so far, including the interval that is being counted.
    pub fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Relaxed) + self.running_ns())
    }

    fn running_ns(&self) -> u64 {
        let since = self.since_ns.load(Relaxed);
        if since == 0 {
            return 0;
        }
        let now = now_ns(ClockId::Monotonic);
        match now.saturating_sub(since) {
            short if short < EXACT => short,
            long => long.min(read_thread_clock(now).saturating_sub(self.floor_ns.load(Relaxed))),
        }
    }

    fn start(&self) {
        let now = now_ns(ClockId::Monotonic);
        let floor = match READ.get() {
            (read, cpu) if now.saturating_sub(read) < EXACT => cpu,
            _ => read_thread_clock(now),
        };
        self.floor_ns.store(floor, Relaxed);
        self.since_ns.store(now, Relaxed);
    }

    fn stop(&self) {
        self.used_ns.fetch_add(self.running_ns(), Relaxed);
        self.since_ns.store(0, Relaxed);
    }
}

/// Counts CPU time while this value exists.
pub struct Counting<'a>(&'a CpuTime);

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Resume<'a>(&'a CpuTime);

impl Drop for Resume<'_> {
    fn drop(&mut self) {
        self.0.start();
    }
}

/// Reads the CPU time that this thread has used, and stores it in `READ` together with `now`, the wall clock.
fn read_thread_clock(now: u64) -> u64 {
    let cpu = now_ns(ClockId::ThreadCPUTime);
    READ.set((now, cpu));
    cpu
}

fn now_ns(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(time: Duration) {
        let start = now_ns(ClockId::ThreadCPUTime);
        while now_ns(ClockId::ThreadCPUTime) - start
            < u64::try_from(time.as_nanos()).expect("a short time")
        {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn computing_counts_and_waiting_does_not() {
        let cpu = CpuTime::default();
        let (work, little) = (Duration::from_millis(20), Duration::from_millis(5));
        {
            let _counting = cpu.count();
            compute(work);
            assert!(cpu.used() >= work);
            cpu.pause(|| compute(work));
            std::thread::sleep(work);
        }
        compute(work);
        assert!(
            cpu.used() >= work && cpu.used() < work + little,
            "{:?}",
            cpu.used()
        );
        let _counting = cpu.count();
        compute(work);
        assert!(cpu.used() >= 2 * work);
    }

    #[test]
    fn short_counts_add_up() {
        let cpu = CpuTime::default();
        for _ in 0..1_000 {
            let _counting = cpu.count();
            compute(Duration::from_micros(20));
        }
        assert!(cpu.used() >= Duration::from_millis(20), "{:?}", cpu.used());
    }
}
