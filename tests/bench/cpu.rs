//! CPU time from `/proc`: what a server has used, and how busy the machine is.
//!
//! Rates depend on what else runs on the machine and on its host; the CPU time of a server per request depends on that
//! far less. A server's CPU time is that of its process and of all processes below it, so that the workers of gunicorn,
//! granian and uvicorn count.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

/// CPU time (user and system) that a process and its descendants have used since they began.
pub(crate) fn used_by(process: u32) -> anyhow::Result<Duration> {
    let mut processes = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end before its file is read.
        if let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) {
            processes.insert(id, Process::parse(&stat)?);
        }
    }
    let ticks = ticks_of_tree(&processes, process)
        .with_context(|| format!("there is no process {process}"))?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Process {
    parent: u32,
    /// User and system time, in clock ticks: of all its threads, and of its children that have ended.
    ticks: u64,
}

impl Process {
    fn parse(stat: &str) -> anyhow::Result<Process> {
        // The second field, the program's name in parentheses, may contain spaces and parentheses.
        let after_name = stat.rsplit_once(')').map(|(_, fields)| fields);
        let fields: Vec<&str> = after_name.unwrap_or_default().split_whitespace().collect();
        let fields = fields.get(..15).context("an unknown form of stat")?;
        // By proc_pid_stat(5), field 4 is the parent, and fields 14 to 17 are utime, stime, cutime and cstime. `fields`
        // begins with field 3. The manual page has the times of children as signed, but they cannot be negative.
        let ticks = fields[11..15].iter().map(|ticks| ticks.parse::<u64>());
        Ok(Process {
            parent: fields[1].parse()?,
            ticks: ticks.sum::<Result<_, _>>()?,
        })
    }
}

/// Clock ticks of a process and its descendants; `None` when there is no such process. The ticks of a process that has
/// ended move to its parent, so that no work is lost between two readings, and none counts twice.
fn ticks_of_tree(processes: &BTreeMap<u32, Process>, root: u32) -> Option<u64> {
    let children = processes
        .iter()
        .filter(|(id, process)| process.parent == root && **id != root);
    let own = processes.get(&root)?.ticks;
    Some(
        own + children
            .filter_map(|(id, _)| ticks_of_tree(processes, *id))
            .sum::<u64>(),
    )
}

/// CPU time of the whole machine (all CPUs together) since it started, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machine {
    total: u64,
    idle: u64,
    /// Time in which this machine, a virtual one, could have run, but its host ran another virtual machine.
    stolen: u64,
}

impl Machine {
    /// The CPU times up to now.
    pub(crate) fn now() -> anyhow::Result<Machine> {
        Machine::parse(&std::fs::read_to_string("/proc/stat")?)
    }

    fn parse(stat: &str) -> anyhow::Result<Machine> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
        let ticks = line.context("no CPU times in /proc/stat")?;
        let ticks: Vec<u64> =
            (ticks.split_whitespace().map(str::parse)).collect::<Result<_, _>>()?;
        // By proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; the times of guests that follow are
        // part of the first two.
        let ticks = ticks.get(..8).context("an unknown form of /proc/stat")?;
        Ok(Machine {
            total: ticks.iter().sum(),
            idle: ticks[3] + ticks[4],
            stolen: ticks[7],
        })
    }

    /// Share of the time since `earlier` in which something ran, from 0 to 1.
    pub(crate) fn busy_since(&self, earlier: &Machine) -> f64 {
        1.0 - self.share(self.idle - earlier.idle, earlier)
    }

    /// Share of the time since `earlier` that went to other virtual machines, from 0 to 1.
    pub(crate) fn stolen_since(&self, earlier: &Machine) -> f64 {
        self.share(self.stolen - earlier.stolen, earlier)
    }

    fn share(&self, part: u64, earlier: &Machine) -> f64 {
        part as f64 / (self.total - earlier.total).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    #[test]
    fn stat_is_read_behind_any_name() {
        let stat = "71 (a (b) 1 2 c) S 70 71 71 0 -1 4194560 9 8 7 6 100 20 3 4 20 0 1 0 5 6 7";
        let process = Process {
            parent: 70,
            ticks: 127,
        };
        assert_eq!(Process::parse(stat).expect("this is stat"), process);
    }

    #[test]
    fn other_forms_of_stat_are_errors() {
        for stat in ["", "71 (a) S 70", "71 (a) S 70 1 1 0 -1 0 0 0 0 0 x 0 0 0"] {
            assert!(Process::parse(stat).is_err(), "{stat}");
        }
    }

    #[test]
    fn workers_count_and_strangers_do_not() {
        let process = |parent, ticks| Process { parent, ticks };
        let processes = BTreeMap::from([
            (1, process(0, 1_000_000)),
            (10, process(1, 1)),
            (11, process(10, 20)),
            (12, process(10, 300)),
            (13, process(12, 4_000)),
            (20, process(1, 50_000)),
        ]);
        assert_eq!(ticks_of_tree(&processes, 10), Some(4_321));
        assert_eq!(ticks_of_tree(&processes, 13), Some(4_000));
        assert_eq!(ticks_of_tree(&processes, 99), None);
    }

    /// The server of this test is a shell that only waits. Its worker is a child process that computes.
    #[test]
    fn the_time_of_a_real_worker_is_read() {
        let since = Instant::now();
        let mut server = Command::new("sh")
            .args(["-c", "sh -c 'while :; do :; done' & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let mut worker = String::new();
        let mut output = std::io::BufReader::new(server.stdout.take().expect("it is piped"));
        std::io::BufRead::read_line(&mut output, &mut worker).expect("it prints its worker");
        let id = server.id();
        let mut used = Duration::ZERO;
        while used < Duration::from_millis(100) && since.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
            used = used_by(id).expect("it runs");
        }
        let elapsed = since.elapsed();
        let _ = Command::new("kill").arg(worker.trim()).status();
        server.wait().expect("it ends after its worker");
        assert!(used >= Duration::from_millis(100), "{used:?}");
        // One process that computes uses one CPU at most. The 50 ms are for the rounding of ticks.
        assert!(
            used <= elapsed + Duration::from_millis(50),
            "{used:?} in {elapsed:?}"
        );
        assert!(used_by(id).is_err(), "it has ended");
    }

    #[test]
    fn the_machines_times_become_shares() {
        let stat = |user, idle, iowait, steal| {
            let text =
                format!("cpu  {user} 1 2 {idle} {iowait} 3 4 {steal} 99 98\ncpu0 1 2 3\nintr 5\n");
            Machine::parse(&text).expect("this is /proc/stat")
        };
        let (before, after) = (stat(100, 200, 10, 5), stat(160, 220, 15, 20));
        assert_eq!(after.busy_since(&before), 0.75);
        assert_eq!(after.stolen_since(&before), 0.15);
        assert_eq!(before.stolen_since(&before), 0.0);
        assert!(Machine::parse("cpu 1 2\n").is_err());
        Machine::now().expect("this machine has /proc/stat");
    }
}
