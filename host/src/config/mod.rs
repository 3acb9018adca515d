//! `amphi.toml`: what the user wrote (`raw`) becomes a checked [`Config`].
//!
//! Every limit of the host has its name, default and unit here and nowhere else. A mistake is reported with
//! file, line, column and what to write instead; nothing is guessed and no key is ignored.

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
use crate::view::Topics;

mod check;
mod database;
mod error;
mod postgres_url;
mod raw;
mod secret;

/// The most linear memory an instance can be given: `memory_mb = 1024`.
pub const MEMORY_BYTES_MAX: usize = 1 << 30;

/// The most transactions, savepoints and pins that one request can have open at once.
pub const LEVELS_MAX: usize = 64;

/// How many sub-requests there is room for on average, in requests that make some.
const SUBREQUESTS_AT_ONCE: usize = 4;

use error::{Location, with_suggestion};

pub use database::{Database, PostgresServer, SqliteFile, Storage, Synchronous};
pub use error::ConfigError;
pub use raw::{AsyncViews, Events, Limits, Server, SyncViews};

/// A checked configuration. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Config {
    /// The `amphi.toml` itself.
    pub file: PathBuf,
    /// The app's name, for logs.
    pub name: String,
    /// Sockets, HTTP limits and timeouts.
    pub server: Server,
    /// Where to listen. At least one.
    pub listen: Vec<SocketAddr>,
    /// Where metrics and health are served, if anywhere.
    pub admin: Option<SocketAddr>,
    /// The pool of sync workers and its queue.
    pub sync_views: SyncViews,
    /// The async loops and their queue.
    pub async_views: AsyncViews,
    /// Events on their way.
    pub events: Events,
    /// Databases by name.
    pub databases: BTreeMap<String, Database>,
    /// The folder of static files, if any.
    pub static_files: Option<StaticFiles>,
    /// Who is trusted to name clients, requests and users.
    pub proxies: Proxies,
    /// Origins whose pages may send the app forms, beside its own.
    pub allowed_origins: Vec<String>,
    /// Built-in middleware around everything, the outermost first.
    pub builtins: Vec<Arc<Builtin>>,
    /// Guests' middleware around all views, the outermost first.
    pub middleware: Vec<GuestMiddleware>,
    /// The view that makes the pages for failures.
    pub errors: Option<GuestMiddleware>,
    /// Modules, in the order of their names.
    pub modules: Vec<Module>,
    /// Where components are that have not yet been put in their place.
    pub artifacts_in: Option<PathBuf>,
}

/// A guest function that is middleware, or the view for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMiddleware {
    /// Its module's name.
    pub module: String,
    /// The function's.
    pub function: String,
}

/// A folder served as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticFiles {
    /// The folder.
    pub dir: PathBuf,
    /// The URL path it appears under.
    pub mount: String,
    /// Whether files and folders whose names begin with a dot are served, too.
    pub hidden: bool,
}

/// One deployed module: its code, where it is mounted, what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name in the configuration.
    pub name: String,
    /// Where its code comes from.
    pub source: Source,
    /// The URL path its patterns are below; empty for the root.
    pub mount: String,
    /// Databases it may use.
    pub databases: Vec<String>,
    /// Origins it may send requests to.
    pub http: Vec<HttpGrant>,
    /// Networks that those may lead to although they are not public.
    pub http_private: Vec<IpNet>,
    /// Built-in middleware around its views and their failures, the outermost first, within that of the app.
    pub builtins: Vec<Arc<Builtin>>,
    /// Guests' middleware around its views, the outermost first, within that of the app.
    pub middleware: Vec<GuestMiddleware>,
    /// Topics it may publish events on.
    pub publish: Vec<Topics>,
    /// Topics whose events its subscribers may get.
    pub subscribe: Vec<Topics>,
    /// Whether it may call the app's other views within a request.
    pub subrequests: bool,
    /// Folders it sees through WASI.
    pub directories: Vec<Directory>,
    /// Whether its async component may make blocking WASI calls (they hold up that request, not the loop).
    pub blocking_wasi: bool,
    /// Whether it may import capabilities it is not granted. Each call is denied then; without this, the module
    /// is refused. For toolchains whose components import the whole world whatever the code uses.
    pub ungranted_imports: bool,
    /// What the `config` capability answers: settings and secrets.
    pub settings: BTreeMap<String, String>,
    /// How instances are kept for further requests; none: each request has a fresh one (R16).
    pub reuse: Option<Reuse>,
    /// Which views that do not say so themselves run in a transaction.
    pub atomic: Atomic,
    /// What one request may use.
    pub limits: Limits,
}

/// How long an instance is kept for further requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reuse {
    /// Until it has served so many.
    pub requests_max: u32,
    /// Until it is so old.
    pub age_max: Duration,
    /// While its memories together are no larger.
    pub memory_max_bytes: u64,
}

/// Where a module's components come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A crate that `amphi build` compiles, once for each mode that has views.
    Crate(PathBuf),
    /// A component as it is.
    Wasm(PathBuf),
}

/// A folder that a module sees through WASI.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// The folder on the host.
    pub host: PathBuf,
    /// Its name in the guest.
    pub guest: String,
    /// Whether the guest may change it.
    #[serde(default)]
    pub write: bool,
}

/// Where a module may send requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpGrant {
    /// This same app, by path.
    Own,
    /// Anywhere.
    Any,
    /// One origin: scheme, host and port.
    Origin(String),
}

/// Which views run in a transaction when they do not say so themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomic {
    /// Those whose method is not GET, HEAD, OPTIONS or TRACE (the safe methods of RFC 9110).
    UnsafeMethods,
    /// All.
    All,
    /// None.
    None,
}

/// What a configuration is read for. That decides which secrets have to be there: an app can be built where nobody has those
/// of production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve the app: all secrets are needed, and those with `generate = true` are made when they are missing.
    Serve,
    /// To migrate its databases: their URLs are needed.
    Migrate,
    /// To build or show it: no secret is needed.
    Check,
}

impl Config {
    /// Reads and checks the configuration in `folder` (or the file itself), to serve the app.
    ///
    /// # Errors
    /// When there is no such file, or with everything that [`ConfigError`] can say about its contents.
    pub fn load(folder: &Path) -> Result<Config, ConfigError> {
        Config::load_for(folder, Purpose::Serve)
    }

    /// The same for another purpose.
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

    /// Checks the configuration `text`, whose relative paths start at the folder of `file`.
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

    /// The folder of the `amphi.toml`.
    pub fn folder(&self) -> &Path {
        self.file.parent().expect("the file's path is absolute")
    }

    /// The settings that differ from those the host has `started` with, and that only another start takes up.
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
        ];
        (differing.into_iter())
            .filter_map(|(name, differs)| differs.then_some(name))
            .collect()
    }

    /// How many guest functions can run at once in one request: the longest chain, and views that call others.
    pub fn calls_at_once(&self) -> usize {
        let own = |module: &Module| module.middleware.len();
        let middleware = self.middleware.len() + self.modules.iter().map(own).max().unwrap_or(0);
        let others = match self.modules.iter().any(|module| module.subrequests) {
            true => SUBREQUESTS_AT_ONCE,
            false => 0,
        };
        (1 + middleware + others).min(CALL_SLOTS_MAX)
    }

    /// The folder that `amphi build` puts components in.
    pub fn artifacts(&self) -> PathBuf {
        let usual = || self.folder().join("target").join("amphi");
        self.artifacts_in.clone().unwrap_or_else(usual)
    }
}

/// Which of the addresses cannot be listened on, because another one is the same or has it within, in a sentence.
/// `[::]` and `0.0.0.0` go together: then the first takes IPv6 alone.
pub fn overlap(listen: &[SocketAddr], admin: Option<SocketAddr>) -> Option<String> {
    let own = listen.iter().map(|address| ("listen", *address));
    let all: Vec<_> = own.chain(admin.map(|admin| ("admin", admin))).collect();
    let within = |inner: SocketAddr, outer: SocketAddr| {
        let same_port = inner.port() == outer.port() && inner.port() != 0;
        let both_any = inner.ip().is_unspecified() && outer.ip().is_unspecified();
        let covers = match (outer.ip(), inner.ip()) {
            (outer, inner) if outer == inner => true,
            (IpAddr::V4(outer), IpAddr::V4(_)) => outer.is_unspecified(),
            // Both protocols arrive at `[::]`, unless `0.0.0.0` is listened on as well.
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
    /// A module that is granted nothing, for looking at a component.
    pub fn without_grants(name: &str, file: &Path) -> Module {
        Module {
            name: name.to_owned(),
            source: Source::Wasm(file.to_owned()),
            mount: String::new(),
            databases: Vec::new(),
            http: Vec::new(),
            http_private: Vec::new(),
            builtins: Vec::new(),
            middleware: Vec::new(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            subrequests: false,
            directories: Vec::new(),
            blocking_wasi: false,
            ungranted_imports: false,
            settings: BTreeMap::new(),
            reuse: None,
            atomic: Atomic::UnsafeMethods,
            limits: Limits::default(),
        }
    }

    /// Whether it is granted an origin that is reached over https.
    pub fn wants_https(&self) -> bool {
        self.http.iter().any(|grant| match grant {
            HttpGrant::Own => false,
            HttpGrant::Any => true,
            HttpGrant::Origin(origin) => origin.starts_with("https:"),
        })
    }
}

impl Atomic {
    /// Whether a view with this method is atomic by default.
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
