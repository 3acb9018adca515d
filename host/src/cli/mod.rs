//! The command line: what each command takes, and nothing else. One file per command.

use clap::Parser;

/// Amphi serves sandboxed web views, sync and async, compiled to WebAssembly components.
#[derive(Parser)]
#[command(name = "amphi", version)]
pub struct Arguments {}

/// Runs the command line; what `main` does.
pub fn run() -> std::process::ExitCode {
    Arguments::parse();
    std::process::ExitCode::SUCCESS
}
