//! `amphi.toml`: the text is read into the types of `raw.rs`, from which `check.rs` makes a [`Config`].
//!
//! Every limit that can be configured has its name, default and unit in this folder and nowhere else. A mistake is
//! reported with file, line, column and what to write instead. Nothing is guessed, and no key is ignored.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::http::middleware::Builtin;
use crate::http::proxies::Proxies;
use crate::threads::workers::CALL_SLOTS_MAX;
use crate::view::{Mode, Topics};

mod check;
mod database;
mod deploy;
mod error;
mod join;
mod place;
mod portable;
mod postgres_url;
mod raw;
mod secret;
mod split;
mod trusted_key;

/// The most linear memory that an instance can be given, in bytes: `memory_mb = 1024`.
pub const MEMORY_BYTES_MAX: usize = 1 << 30;

/// The most transactions, savepoints and pins that one request can have open at the same time.
pub const LEVELS_MAX: usize = 64;

/// How many sub-requests a request is expected to have in flight at the same time, for the sizes of the pools of
/// instances.
const SUBREQUESTS_AT_ONCE: usize = 4;

use error::{Location, with_suggestion};

pub use database::{Database, PostgresServer, SqliteFile, Storage, Synchronous};
pub use deploy::{AdminAddress, Deploy, FleetConfig, Health, Scope, Token};
pub use error::ConfigError;
pub use place::{ADMIN_SOCKET, Place};
pub use portable::{Access, DatabaseKind, JoinError, Needs, Portable, PortableError, SecretNeed};
pub use raw::{AsyncViews, Channels, Events, Limits, Server, Sockets, SyncViews};
pub use trusted_key::{TrustedKey, key_id};

/// A checked configuration. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Config {
    /// The path of the `amphi.toml`.
    pub file: PathBuf,
    /// The app's name, for logs.
    pub name: String,
    /// Sockets, HTTP limits and timeouts.
    pub server: Server,
    /// The addresses to listen on. At least one.
    pub listen: Vec<SocketAddr>,
    /// The address that serves metrics and health, if any.
    pub admin: Option<SocketAddr>,
    /// The pool of sync workers and its queue.
    pub sync_views: SyncViews,
    /// The async loops and their queue.
    pub async_views: AsyncViews,
    /// The queue of events.
    pub events: Events,
    /// The limits of web sockets.
    pub sockets: Sockets,
    /// The groups of connections.
    pub channels: Channels,
    /// Databases by name.
    pub databases: BTreeMap<String, Database>,
    /// The folder of static files, if any.
    pub static_files: Option<StaticFiles>,
    /// Proxies whose headers are trusted when they name the client's address, the request's id or the user.
    pub proxies: Proxies,
    /// Origins whose pages may send forms to the app, beside the app's own.
    pub allowed_origins: Vec<String>,
    /// Built-in middleware of the whole app, the outermost first.
    pub builtins: Vec<Arc<Builtin>>,
    /// Middleware of guests around all views, the outermost first.
    pub middleware: Vec<GuestMiddleware>,
    /// The view that makes the error pages.
    pub errors: Option<GuestMiddleware>,
    /// Modules, in the order of their names.
    pub modules: Vec<Module>,
    /// The folder to load components from, if it is not the usual one: `amphi build` checks new components before it
    /// moves them there, and those of `amphi up` stay where they are.
    pub artifacts_in: Option<PathBuf>,
    /// How commands name the app, for messages that tell people what to run.
    pub named: String,
}

/// A guest function that the configuration names: middleware, or the view for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMiddleware {
    /// The module's name.
    pub module: String,
    /// The function's name.
    pub function: String,
}

/// A folder whose files are served as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticFiles {
    /// The folder.
    pub dir: PathBuf,
    /// The URL path that the files are served under.
    pub mount: String,
    /// Whether files and folders with a leading dot are served, too.
    pub hidden: bool,
}

/// One deployed module: its components, its mount, its grants and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name in the configuration.
    pub name: String,
    /// The command that makes its component, for a component that another build system makes.
    pub build: Option<String>,
    /// Its components.
    pub source: Source,
    /// The URL path before its patterns; empty for the root.
    pub mount: String,
    /// Databases that it is granted.
    pub databases: Vec<String>,
    /// Origins that it may send requests to.
    pub http: Vec<HttpGrant>,
    /// Networks that are not public and that its outbound requests may reach all the same.
    pub http_private: Vec<IpNet>,
    /// Built-in middleware around its views and their failures, the outermost first. It is within the app's middleware.
    pub builtins: Vec<Arc<Builtin>>,
    /// Middleware of guests around its views, the outermost first. It is within the app's middleware.
    pub middleware: Vec<GuestMiddleware>,
    /// Topics that it may publish events on.
    pub publish: Vec<Topics>,
    /// Groups of connections that it may send to and have connections join.
    pub channels: Vec<Topics>,
    /// Topics whose events its subscribers may receive.
    pub subscribe: Vec<Topics>,
    /// Whether its functions may call other views of the app within a request.
    pub subrequests: bool,
    /// Folders that it sees through WASI.
    pub directories: Vec<Directory>,
    /// Whether its async component may make blocking WASI calls. Such a call holds up the request that makes it, not
    /// the event loop.
    pub blocking_wasi: bool,
    /// Whether a component of `wasi:http` gets the bodies of requests while they arrive. An SDK's view says so itself.
    pub stream_bodies: bool,
    /// Whether the transaction of an atomic component of `wasi:http` is committed when the head of its response is there,
    /// and not when its call has ended. The body streams then, and what the component does after the head is outside of
    /// the transaction.
    pub commit_at_head: bool,
    /// Whether its components may import capabilities that are not granted: each call is then denied. Without this, the
    /// module is refused. This is for toolchains whose components import the whole WIT world, whatever the code uses.
    pub ungranted_imports: bool,
    /// Settings and secrets, as the `config` capability returns them.
    pub settings: BTreeMap<String, String>,
    /// The limits on instances that are kept for further requests; none: each request has a fresh instance (R16).
    pub reuse: Option<Reuse>,
    /// The rule for views that do not say themselves whether they are atomic.
    pub atomic: Atomic,
    /// The limits of one request.
    pub limits: Limits,
}

/// Limits on an instance that is kept for further requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reuse {
    /// The most requests that the instance serves.
    pub requests_max: u32,
    /// The greatest age of the instance.
    pub age_max: Duration,
    /// The most bytes of all memories of the instance together.
    pub memory_max_bytes: u64,
}

/// Where the components of a module come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A crate that `amphi build` compiles: once for each mode that it has views of.
    Crate(PathBuf),
    /// A component that is built already.
    Wasm(PathBuf),
    /// A folder with components that are built already, one for each mode that has views: see [`component`].
    Built(PathBuf),
}

/// The file of a module's component for one mode, in a folder of components.
pub fn component(folder: &Path, module: &str, mode: Mode) -> PathBuf {
    folder.join(format!("{module}.{mode}.wasm"))
}

/// A folder that a module sees through WASI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// The folder on the host.
    pub host: PathBuf,
    /// The folder's name in the guest.
    pub guest: String,
    /// Whether the guest may write in it.
    #[serde(default)]
    pub write: bool,
}

/// A destination that a module may send requests to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpGrant {
    /// The app itself, by path.
    Own,
    /// Any origin.
    Any,
    /// One origin: scheme, host and port.
    Origin(String),
}

/// Which views are atomic, of those that do not say it themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomic {
    /// Views whose method is not one of the safe methods of RFC 9110 (GET, HEAD, OPTIONS, TRACE).
    UnsafeMethods,
    /// All views.
    All,
    /// No views.
    None,
}

/// The purpose that a configuration is read for. It decides which secrets are needed: an app can be built where the
/// secrets of production are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve the app. All secrets are needed, and those with `generate = true` are made when they are missing.
    Serve,
    /// To migrate the app's databases. Only their URLs are needed.
    Migrate,
    /// To build or show the app. No secret is needed.
    Check,
}

impl Config {
    /// Reads and checks a configuration, in order to serve the app. `folder`: the folder with the `amphi.toml`, or the
    /// file itself.
    ///
    /// # Errors
    /// When there is no such file, or when its contents are wrong.
    pub fn load(folder: &Path) -> Result<Config, ConfigError> {
        Config::load_for(folder, Purpose::Serve)
    }

    /// Like [`Config::load`], for another purpose.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_for(folder: &Path, purpose: Purpose) -> Result<Config, ConfigError> {
        let file = if folder.is_dir() {
            folder.join("amphi.toml")
        } else {
            folder.to_owned()
        };
        let text = std::fs::read_to_string(&file).map_err(|error| ConfigError {
            file: file.clone(),
            location: None,
            message: format!("cannot be read: {error}; name a folder with an amphi.toml, or make one with `amphi new NAME`"),
        })?;
        let file = std::path::absolute(&file).unwrap_or(file);
        Config::parse_for(&file, &text, purpose)
    }

    /// Checks the configuration `text`. Relative paths start at the folder of `file`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        Config::parse_for(file, text, Purpose::Serve)
    }

    fn parse_for(file: &Path, text: &str, purpose: Purpose) -> Result<Config, ConfigError> {
        let raw: raw::Config = toml::from_str(text).map_err(|error| ConfigError {
            file: file.to_owned(),
            location: error.span().map(|span| Location::of(text, span.start)),
            message: with_suggestion(error.message()),
        })?;
        check::Checker::new(file, text, purpose).config(raw)
    }

    /// The folder that the `amphi.toml` is in.
    pub fn folder(&self) -> &Path {
        self.file.parent().expect("the file's path is absolute")
    }

    /// Names of the settings that differ from those that the host has `started` with, and that only a restart applies.
    pub fn needing_restart(&self, started: &Config) -> Vec<&'static str> {
        let (now, then) = (&self.server, &started.server);
        let differing = [
            ("listen", self.listen != started.listen),
            ("admin", self.admin != started.admin),
            (
                "connections_max",
                now.connections_max != then.connections_max,
            ),
            (
                "headers_max_bytes",
                now.headers_max_bytes != then.headers_max_bytes,
            ),
            ("headers_max", now.headers_max != then.headers_max),
            (
                "header_timeout_ms",
                now.header_timeout_ms != then.header_timeout_ms,
            ),
            (
                "guest_memory_mb",
                now.guest_memory_mb != then.guest_memory_mb,
            ),
            (
                "memory_budget_mb",
                now.memory_budget_mb != then.memory_budget_mb,
            ),
            (
                "write_timeout_ms",
                now.write_timeout_ms != then.write_timeout_ms,
            ),
            (
                "http2_streams_max",
                now.http2_streams_max != then.http2_streams_max,
            ),
            (
                "drain_timeout_ms",
                now.drain_timeout_ms != then.drain_timeout_ms,
            ),
            (
                "log_queue_bytes",
                now.log_queue_bytes != then.log_queue_bytes,
            ),
            ("[sync_views]", self.sync_views != started.sync_views),
            ("[async_views]", self.async_views != started.async_views),
            ("[events]", self.events != started.events),
            ("[channels]", self.channels != started.channels),
        ];
        (differing.into_iter())
            .filter_map(|(name, differs)| differs.then_some(name))
            .collect()
    }

    /// The number of guest functions of one request that the pools of instances have room for at the same time: those
    /// of the longest chain that the configuration names, and `SUBREQUESTS_AT_ONCE` if a module may make sub-requests.
    pub fn calls_at_once(&self) -> usize {
        let own = |module: &Module| module.middleware.len();
        let middleware = self.middleware.len() + self.modules.iter().map(own).max().unwrap_or(0);
        let others = match self.modules.iter().any(|module| module.subrequests) {
            true => SUBREQUESTS_AT_ONCE,
            false => 0,
        };
        (1 + middleware + others).min(CALL_SLOTS_MAX)
    }

    /// The folder that components are built into and loaded from.
    pub fn artifacts(&self) -> PathBuf {
        let usual = || self.folder().join("target").join("amphi");
        self.artifacts_in.clone().unwrap_or_else(usual)
    }
}

/// A sentence about two addresses that cannot both be listened on, because they are the same or one includes the other.
/// None if there are no such addresses. `[::]` and `0.0.0.0` with the same port are allowed together: `[::]` then
/// accepts IPv6 only.
pub fn overlap(listen: &[SocketAddr], admin: Option<SocketAddr>) -> Option<String> {
    let own = listen.iter().map(|address| ("listen", *address));
    let all: Vec<_> = own.chain(admin.map(|admin| ("admin", admin))).collect();
    let within = |inner: SocketAddr, outer: SocketAddr| {
        let same_port = inner.port() == outer.port() && inner.port() != 0;
        let both_any = inner.ip().is_unspecified() && outer.ip().is_unspecified();
        let covers = match (outer.ip(), inner.ip()) {
            (outer, inner) if outer == inner => true,
            (IpAddr::V4(outer), IpAddr::V4(_)) => outer.is_unspecified(),
            // `[::]` accepts IPv4, too, unless the server also listens on `0.0.0.0`.
            (IpAddr::V6(outer), IpAddr::V4(_)) => outer.is_unspecified() && !both_any,
            (IpAddr::V6(outer), IpAddr::V6(_)) => outer.is_unspecified(),
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        };
        same_port && covers
    };
    for (index, (name, address)) in all.iter().enumerate() {
        for (other_name, other) in &all[..index] {
            if within(*address, *other) || within(*other, *address) {
                return Some(match address == other {
                    true if name == other_name => {
                        format!("`listen` has {address} twice: once is enough")
                    }
                    true => format!(
                        "`admin` and `listen` are the same, {address}: give `admin` another port"
                    ),
                    false => format!(
                        "`{name}` {address} and `{other_name}` {other} overlap: one of them takes the connections of both, so leave one out or give it another port"
                    ),
                });
            }
        }
    }
    None
}

impl Module {
    /// A module without grants, for inspecting a component.
    pub fn without_grants(name: &str, file: &Path) -> Module {
        Module {
            name: name.to_owned(),
            build: None,
            source: Source::Wasm(file.to_owned()),
            mount: String::new(),
            databases: Vec::new(),
            http: Vec::new(),
            http_private: Vec::new(),
            builtins: Vec::new(),
            middleware: Vec::new(),
            publish: Vec::new(),
            channels: Vec::new(),
            subscribe: Vec::new(),
            subrequests: false,
            directories: Vec::new(),
            blocking_wasi: false,
            stream_bodies: false,
            commit_at_head: false,
            ungranted_imports: false,
            settings: BTreeMap::new(),
            reuse: None,
            atomic: Atomic::UnsafeMethods,
            limits: Limits::default(),
        }
    }

    /// Whether the module is granted an https origin.
    pub fn wants_https(&self) -> bool {
        self.http.iter().any(|grant| match grant {
            HttpGrant::Own => false,
            HttpGrant::Any => true,
            HttpGrant::Origin(origin) => origin.starts_with("https:"),
        })
    }
}

impl Atomic {
    /// Whether a view with this method is atomic by this rule.
    pub fn applies_to(self, method: &str) -> bool {
        match self {
            Atomic::UnsafeMethods => !matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE"),
            Atomic::All => true,
            Atomic::None => false,
        }
    }
}

#[cfg(test)]
mod tests;
