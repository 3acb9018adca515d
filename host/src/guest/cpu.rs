//! CPU time of a guest: what its thread computes for it, not what it waits, and not what a busy machine takes away.
//!
//! The kernel's clock for that is a system call that takes its scheduler's lock. So it is read once in [`EXACT`] for
//! each thread: whatever takes less time than that is taken for CPU time as a whole, and of anything longer the
//! thread's clock has the last word.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::ClockId;

/// Nanoseconds by the wall clock after which the thread's own clock is read: as far as one count can be wrong.
const EXACT: u64 = 250_000;

thread_local! {
    /// The wall clock and the thread's own when the latter was last read.
    static READ: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// The CPU time that one guest has used. Changed by the thread that runs it.
#[derive(Debug, Default)]
pub struct CpuTime {
    used_ns: AtomicU64,
    /// The wall clock when counting began; 0 when it does not count.
    since_ns: AtomicU64,
    /// CPU time that the thread had used before that, at least.
    floor_ns: AtomicU64,
}

impl CpuTime {
    /// Counts until the result is dropped.
    pub fn count(&self) -> Counting<'_> {
        self.start();
        Counting(self)
    }

    /// Does not count while `work` runs: host calls are limited otherwise.
    pub fn pause<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop();
        let _counting = Resume(self);
        work()
    }

    /// What was used so far.
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

/// CPU time is counted while this exists.
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

/// CPU time that this thread has used, `now` by the wall clock.
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
