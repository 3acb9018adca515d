//! The command line: the arguments of each command. One file per command does the work.

pub mod build;
mod file_id;
mod inspect;
mod migrate;
mod new;
mod routes;
mod rustc;
mod serve;
mod up;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, overlap};
use crate::telemetry::log::{self, LogFormat};
use crate::telemetry::stderr;

pub use rustc::run as run_as_rustc;

/// Amphi serves web views, sync and async, compiled to sandboxed WebAssembly components.
#[derive(Parser)]
#[command(
    name = "amphi",
    version,
    after_help = "Example: amphi new demo && cd demo && amphi up"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a small app that builds and runs at once.
    #[command(after_help = "Example: amphi new demo && cd demo && amphi up")]
    New(new::Arguments),
    /// Compile an app's guest crates to components, once for each mode that has views, and check them.
    #[command(after_help = "Example: amphi build examples/guestbook")]
    Build(Folder),
    /// Build and serve an app; rebuild and swap it when a source file changes. For development.
    #[command(after_help = "Example: amphi up examples/guestbook --listen 127.0.0.1:8080")]
    Up(Serving),
    /// Serve an app that has been built. For production.
    #[command(after_help = "Example: amphi serve /srv/shop --listen 0.0.0.0:80 --log-format json")]
    Serve(Serving),
    /// Apply the migrations that an app's databases do not have yet.
    #[command(after_help = "Example: amphi migrate /srv/shop && amphi serve /srv/shop")]
    Migrate(Folder),
    /// List an app's routes: method, path, module, view, mode, atomic.
    #[command(after_help = "Example: amphi routes examples/guestbook")]
    Routes(Folder),
    /// Show a component's mode, views and imports.
    #[command(after_help = "Example: amphi inspect target/amphi/shop.sync.wasm")]
    Inspect(inspect::Arguments),
}

#[derive(Args)]
struct Folder {
    /// Folder with an amphi.toml.
    #[arg(default_value = ".")]
    folder: PathBuf,
}

#[derive(Args)]
struct Serving {
    #[command(flatten)]
    folder: Folder,
    /// Listen here instead of where the configuration says; may be given more than once.
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// How the log on standard error looks. The variable AMPHI_LOG filters it, e.g. `warn` or `debug`.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

impl Serving {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(&self.folder.folder)?;
        if !self.listen.is_empty() {
            config.listen.clone_from(&self.listen);
            if let Some(overlap) = overlap(&config.listen, config.admin) {
                bail!("--listen: {overlap}");
            }
        }
        Ok(config)
    }
}

/// Runs the command line of this process: what `main` does.
pub fn run() -> ExitCode {
    if let Some(code) = run_as_rustc() {
        return code;
    }
    run_with(std::env::args_os())
}

/// Runs a command line given as arguments, the name of the program first.
pub fn run_with(arguments: impl IntoIterator<Item: Into<OsString> + Clone>) -> ExitCode {
    let arguments = Arguments::parse_from(arguments);
    log::start(match &arguments.command {
        Command::Up(serving) | Command::Serve(serving) => serving.log_format,
        _ => LogFormat::Text,
    });
    let done = match arguments.command {
        Command::New(arguments) => new::run(&arguments),
        Command::Build(folder) => build::run(&folder.folder),
        Command::Up(serving) => up::run(serving),
        Command::Serve(serving) => serve::run(&serving),
        Command::Migrate(folder) => migrate::run(&folder.folder),
        Command::Routes(folder) => routes::run(&folder.folder),
        Command::Inspect(arguments) => inspect::run(&arguments),
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The message can contain names that come from a component, so characters that control a terminal are
            // escaped.
            let error = log::escaped(&format!("{error:#}"));
            stderr::say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    };
    stderr::flush(stderr::LAST_WAIT);
    code
}
