//! Programs that run beside the tests, and end with the test process, which may be killed: a shell starts the program, and
//! reads from a pipe whose other end only the test process has.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to start.
const START: Duration = Duration::from_secs(60);

const WATCH: &str = r#"
log=$1
shift
"$@" >>"$log" 2>&1 </dev/null &
server=$!
read -r line
kill -s KILL "$server"
wait "$server" 2>/dev/null
"#;

/// A running program, killed when dropped.
pub(super) struct Watched {
    shell: Child,
}

impl Watched {
    /// Starts a program whose output goes to the file `log`, and waits until `is_ready` finds something in it. An error is
    /// the text of the log.
    pub(super) fn start<T>(
        log: &Path,
        program: &Path,
        arguments: &[&str],
        is_ready: impl Fn(&str) -> Option<T>,
    ) -> Result<(Watched, T), String> {
        // What an earlier program has said is not this one's.
        let _ = fs::remove_file(log);
        let shell = Command::new("sh")
            .args(["-c", WATCH, "watch"])
            .arg(log)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            // Ctrl-C at a terminal must reach the tests alone.
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        let watched = Watched { shell };
        let since = Instant::now();
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            if let Some(found) = is_ready(&text) {
                return Ok((watched, found));
            }
            if since.elapsed() > START || text.contains("level=fatal") {
                return Err(text);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // The shell may have ended before.
        let _ = self.shell.wait();
    }
}

/// What Debian's packages start is a service of the system: it is not started in the first place.
pub(super) const NO_SERVICES: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm "$policy"' EXIT
fi
"#;
