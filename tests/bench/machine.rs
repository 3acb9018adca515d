//! Writes the paragraph about the machine and the run that stands above the table, so that nobody has to add it by
//! hand.

use std::process::Command;
use std::time::Duration;

use crate::cpu::Machine;
use crate::wrk;

/// A run of fewer rounds is only a trial: one disturbed round would move the median.
const ROUNDS_MIN: usize = 5;
/// A machine that is busier than this before the first row disturbs what is measured.
const BUSY_MAX: f64 = 0.05;

/// One run of the benchmark: its settings, and the machine's load before it.
pub(crate) struct Run {
    rounds: usize,
    seconds: u32,
    before: Machine,
    /// Share of the CPU that was in use before the first measurement, from 0 to 1.
    busy_before: f64,
}

impl Run {
    /// Measures for three seconds how busy the machine is. The run begins after these three seconds.
    pub(crate) fn begin(rounds: usize, seconds: u32) -> anyhow::Result<Run> {
        let idle = Machine::now()?;
        std::thread::sleep(Duration::from_secs(3));
        let before = Machine::now()?;
        Ok(Run {
            rounds,
            seconds,
            before,
            busy_before: before.busy_since(&idle),
        })
    }

    /// A paragraph about the machine and the run. To be called when the run is over.
    pub(crate) fn describe(&self) -> anyhow::Result<String> {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let cpu = cpu.map_or("unknown CPU", |name| {
            name.trim_start_matches(['\t', ' ', ':'])
        });
        let text = format!(
            "{}, commit {}, {}. {} cores of {cpu}, Linux {}. {} rounds of {} s, {} with {} connections on the same \
             cores; medians (min – max). CPU is the server's user and system time per request, of all its processes. \
             {:.1} % of the CPU was in use before the first row; other virtual machines took {:.1} % during the run.",
            printed("date", &["-u", "+%F %R UTC"]),
            printed(
                "git",
                &[
                    "-C",
                    env!("CARGO_MANIFEST_DIR"),
                    "describe",
                    "--always",
                    "--dirty"
                ]
            ),
            printed("rustc", &["--version"]),
            std::thread::available_parallelism()?,
            printed("uname", &["-r"]),
            self.rounds,
            self.seconds,
            wrk::version()?,
            wrk::CONNECTIONS,
            self.busy_before * 100.0,
            Machine::now()?.stolen_since(&self.before) * 100.0,
        );
        let reasons = reasons_not_to_publish(self.rounds, self.busy_before, cfg!(debug_assertions));
        Ok(match reasons.as_slice() {
            [] => text,
            reasons => format!(
                "**A trial, not to be published: {}.** {text}",
                reasons.join("; ")
            ),
        })
    }
}

/// The reasons why the figures of a run say little about the servers. Empty for a good run.
fn reasons_not_to_publish(rounds: usize, busy_before: f64, debug_build: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if rounds < ROUNDS_MIN {
        reasons.push(format!("fewer than {ROUNDS_MIN} rounds"));
    }
    if busy_before > BUSY_MAX {
        reasons.push("the machine was busy before the first row".to_owned());
    }
    if debug_build {
        reasons.push("a debug build".to_owned());
    }
    reasons
}

/// What a command prints; `unknown` when it fails.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_run_on_a_quiet_machine_is_to_be_published() {
        assert_eq!(reasons_not_to_publish(5, 0.01, false), [""; 0]);
        assert_eq!(
            reasons_not_to_publish(4, 0.5, true),
            [
                "fewer than 5 rounds",
                "the machine was busy before the first row",
                "a debug build"
            ]
        );
    }

    #[test]
    fn what_is_unknown_is_said() {
        assert_eq!(printed("no-such-program", &[]), "unknown");
        assert_eq!(printed("false", &[]), "unknown");
        assert_eq!(printed("echo", &["a", "b"]), "a b");
    }
}
