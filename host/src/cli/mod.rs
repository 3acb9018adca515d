//! The command line: the arguments of each command. One file per command does the work.

mod block_on;
pub mod build;
mod deploy;
mod inspect;
mod migrate;
mod new;
mod package;
mod place;
mod pull;
mod push;
mod routes;
mod rustc;
mod serve;
mod sign;
mod source;
mod status;
mod token;
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
    /// Serve an app that has been built: from its folder, from an artifact, or what a place has served before. For
    /// production.
    #[command(
        after_help = "Examples: amphi serve /srv/shop --listen 0.0.0.0:80 --log-format json\n          amphi serve shop.amphi\n          amphi serve --place /etc/amphi/shop.toml oci://registry.example.com/team/shop:1.0"
    )]
    Serve(serve::Arguments),
    /// Apply the migrations that an app's databases do not have yet.
    #[command(
        after_help = "Examples: amphi migrate /srv/shop && amphi serve /srv/shop\n          amphi migrate --place /etc/amphi/shop.toml shop.amphi"
    )]
    Migrate(source::Placed),
    /// List an app's routes: method, path, module, view, mode, atomic.
    #[command(after_help = "Example: amphi routes examples/guestbook")]
    Routes(Folder),
    /// Show a component's mode, views and imports, or what is in an artifact and what it asks for.
    #[command(
        after_help = "Examples: amphi inspect target/amphi/shop.sync.wasm\n          amphi inspect shop.amphi"
    )]
    Inspect(inspect::Arguments),
    /// Make one immutable file of an app that has been built: an artifact, which is named by its digest.
    #[command(
        after_help = "Example: amphi build && amphi package -o shop.amphi --sign release.key"
    )]
    Package(package::Arguments),
    /// Sign an artifact, or make the keys for it.
    #[command(
        after_help = "Examples: amphi sign --new-key release\n          amphi sign shop.amphi --key release.key"
    )]
    Sign(sign::Arguments),
    /// Send an artifact, with its signatures, to a registry.
    #[command(
        allow_missing_positional = true,
        after_help = "Example: amphi push shop.amphi registry.example.com/team/shop:1.0"
    )]
    Push(push::Arguments),
    /// Fetch an artifact from a registry.
    #[command(after_help = "Example: amphi pull registry.example.com/team/shop:1.0 -o shop.amphi")]
    Pull(pull::Arguments),
    /// Have a running place serve another version: at once, to some clients first, or in the shadow of the active one.
    #[command(
        after_help = "Examples: amphi deploy shop.amphi --to http://127.0.0.1:7070 --health /\n          amphi deploy oci://registry.example.com/team/shop:1.1 --to amphi-host.toml --canary 5% --auto"
    )]
    Deploy(deploy::Arguments),
    /// Make a place's candidate the active version.
    #[command(after_help = "Example: amphi promote --to http://127.0.0.1:7070")]
    Promote(status::Promoting),
    /// Give a place's candidate up, or go back to a version before.
    #[command(after_help = "Example: amphi rollback --to http://127.0.0.1:7070")]
    Rollback(status::RollingBack),
    /// Show what runs at a place: versions, requests, errors, latencies.
    #[command(after_help = "Example: amphi status --to http://127.0.0.1:7070")]
    Status(status::Showing),
    /// List the versions that a place has.
    #[command(after_help = "Example: amphi versions --to http://127.0.0.1:7070")]
    Versions(status::Showing),
    /// Print the last lines of a place's log, and those that come.
    #[command(after_help = "Example: amphi logs --follow --to http://127.0.0.1:7070")]
    Logs(status::Logs),
    /// Make a token for a place's admin API.
    #[command(after_help = "Example: amphi token ci --scope deploy")]
    Token(token::Arguments),
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
        listen(&mut config, &self.listen)?;
        Ok(config)
    }
}

/// Listens on the addresses of the command line, if there are any.
fn listen(config: &mut Config, addresses: &[SocketAddr]) -> anyhow::Result<()> {
    if !addresses.is_empty() {
        config.listen = addresses.to_vec();
        if let Some(overlap) = overlap(&config.listen, config.admin) {
            bail!("--listen: {overlap}");
        }
    }
    Ok(())
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
        Command::Up(serving) => serving.log_format,
        Command::Serve(arguments) => arguments.log_format,
        _ => LogFormat::Text,
    });
    let done = match arguments.command {
        Command::New(arguments) => new::run(&arguments),
        Command::Build(folder) => build::run(&folder.folder),
        Command::Up(serving) => up::run(serving),
        Command::Serve(serving) => serve::run(&serving),
        Command::Migrate(placed) => migrate::run(&placed),
        Command::Routes(folder) => routes::run(&folder.folder),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Push(arguments) => push::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Deploy(arguments) => deploy::run(&arguments),
        Command::Promote(arguments) => status::promote(&arguments),
        Command::Rollback(arguments) => status::roll_back(&arguments),
        Command::Status(arguments) => status::status(&arguments),
        Command::Versions(arguments) => status::versions(&arguments),
        Command::Logs(arguments) => status::logs(&arguments),
        Command::Token(arguments) => token::run(&arguments),
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
