//! Programs that the tests run, and packages that they install.

use std::process::Command;

/// Comes before each script of [`install`].
const INSTALL: &str = "
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
";

/// Runs a command that has to succeed.
pub fn succeed(command: &mut Command) {
    run(command).unwrap_or_else(|said| panic!("{command:?} failed:\n{said}"));
}

/// Runs a command. An error is what the command has written to standard error.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Runs a script that installs packages with `apt-get`, as root. An error is what the script has written to standard
/// error.
pub fn install(script: &str) -> Result<(), String> {
    let mut command = match rustix::process::geteuid().is_root() {
        true => Command::new("sh"),
        false => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "sh"]);
            sudo
        }
    };
    run(command.arg("-c").arg([INSTALL, script].concat()))
}
