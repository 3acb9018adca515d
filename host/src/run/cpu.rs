//! CPU time of a guest: what its thread computes for it, not what it waits, and not what a busy machine takes away.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The CPU time that one guest has used. Changed by the thread that runs it.
#[derive(Debug, Default)]
pub struct CpuTime {
    used_ns: AtomicU64,
    /// The thread's own CPU time when counting began; 0 when it does not count.
    since_ns: AtomicU64,
}

impl CpuTime {
    /// Counts until the result is dropped.
    pub fn count(&self) -> Counting<'_> {
        self.since_ns.store(thread_cpu_ns(), Relaxed);
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
        match self.since_ns.load(Relaxed) {
            0 => 0,
            since => thread_cpu_ns().saturating_sub(since),
        }
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
        self.0.since_ns.store(thread_cpu_ns(), Relaxed);
    }
}

/// CPU time that this thread has used.
fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(time: Duration) {
        let start = thread_cpu_ns();
        while thread_cpu_ns() - start < u64::try_from(time.as_nanos()).expect("a short time") {
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
}
