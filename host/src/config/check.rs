//! Makes a checked [`Config`] from the configuration as written (`raw`): checks bounds, grants and paths. Every mistake
//! is reported with its place in the file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::database::Address;
use super::error::{ConfigError, Location};
use super::{
    Atomic, Channels, Config, Database, Directory, HttpGrant, Limits, MEMORY_BYTES_MAX, Module,
    Purpose, Reuse, Server, Source, StaticFiles, Storage, component, raw,
};
use crate::http::authority::Host;
use crate::http::proxies::{Addresses, Proxies};
use crate::view::{Mode, Topics};
use middleware::Builtins;

mod middleware;

/// Ranges of times in milliseconds, up to a day. `TIME_MS_OR_NONE` is for times that may be 0.
pub(super) const TIME_MS: RangeInclusive<u64> = 1..=86_400_000;
pub(super) const TIME_MS_OR_NONE: RangeInclusive<u64> = 0..=86_400_000;
/// The range of limits in bytes for which the host reserves nothing: it only compares sizes with them.
const BYTES: RangeInclusive<u64> = 1..=1 << 40;
/// The range of limits on messages to and from connections.
const MESSAGE_BYTES: RangeInclusive<u64> = 1..=64 << 20;
/// At least 4096, because a result without rows counts some bytes, too.
const ROWS_BYTES: RangeInclusive<u64> = 4096..=1 << 40;
/// The range of numbers of kept instances. Each takes a slot of the pooling allocator, just as a running instance.
const KEPT: RangeInclusive<u64> = 0..=10_000;
const MEMORY_MB: RangeInclusive<u64> = 1..=(MEMORY_BYTES_MAX >> 20) as u64;
/// The range of `call_max_bytes`. A guest cannot pass more bytes than its memory can have.
const CALL_BYTES: RangeInclusive<u64> = 65_536..=MEMORY_BYTES_MAX as u64;
/// At least 64: with less, a response of the default size would not fit in the share of one request.
const BUDGET_MB: RangeInclusive<u64> = 64..=1 << 20;
/// At least 4096, room for lines of usual length.
const LOG_QUEUE_BYTES: RangeInclusive<u64> = 4096..=1 << 30;
/// At least 8192, which the HTTP/1 parser needs. At most 16 MiB, which the parser may keep for each connection.
const HEADERS_BYTES: RangeInclusive<u64> = 8192..=16 << 20;
/// The range of `headers_max_bytes` in `[limits]`. Each header counts 32 bytes beside its text, so the upper end allows
/// at most 32,768 headers, and a `HeaderMap` has no room for more.
const VIEW_HEADERS_BYTES: RangeInclusive<u64> = 1024..=1 << 20;
/// `HeaderMap` panics at 24,577 different names. The bound leaves room for headers that the host adds.
const HEADERS: RangeInclusive<u64> = 1..=10_000;
/// The URL parser accepts no longer URLs.
const URI_BYTES: RangeInclusive<u64> = 1..=65_534;

/// The least number of characters of a key that signs sessions. The SDK has the same limit.
const SESSION_KEY_MIN: usize = 32;
/// The name of the SDK's session cookie, unless the settings of a module give it another one.
const SESSION_NAME: &str = "session";

pub(super) struct Checker<'a> {
    pub(super) file: &'a Path,
    text: &'a str,
    pub(super) folder: &'a Path,
    pub(super) purpose: Purpose,
    /// Files that clients must never get, each with a description.
    private: RefCell<Vec<(&'static str, PathBuf)>>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str, purpose: Purpose) -> Checker<'a> {
        Checker {
            purpose,
            file,
            text,
            folder: file.parent().unwrap_or(Path::new(".")),
            private: RefCell::new(vec![("the configuration", file.to_owned())]),
        }
    }

    /// Notes a file that must not be in a folder that is served.
    pub(super) fn keep_private(&self, what: &'static str, file: &Path) {
        self.private.borrow_mut().push((what, file.to_owned()));
    }

    /// Refuses a served folder that contains a private file.
    fn served(&self, folder: &Path, at: usize) -> Result<(), ConfigError> {
        let real = real(folder);
        let private = self.private.borrow();
        let Some((what, file)) = private
            .iter()
            .find(|(_, file)| self::real(file).starts_with(&real))
        else {
            return Ok(());
        };
        Err(self.error_at(at, format!(
            "the folder {} of `[static]` is served to everybody, and {what} {} is in it: move the one or the other",
            folder.display(), file.display(),
        )))
    }

    pub(super) fn error<T>(&self, at: &Spanned<T>, message: String) -> ConfigError {
        self.error_at(at.span().start, message)
    }

    pub(super) fn error_at(&self, offset: usize, message: String) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            location: Some(Location::of(self.text, offset)),
            message,
        }
    }

    pub(super) fn config(&self, raw: raw::Config) -> Result<Config, ConfigError> {
        let listen = (raw.server.get_ref().listen.iter())
            .map(|a| self.address(a))
            .collect::<Result<Vec<_>, _>>()?;
        if listen.is_empty() {
            return Err(self.error(
                &raw.server,
                "`listen` is empty: give at least one address, e.g. \"127.0.0.1:3000\"".into(),
            ));
        }
        let admin = raw
            .server
            .get_ref()
            .admin
            .as_ref()
            .map(|a| self.address(a))
            .transpose()?;
        if let Some(overlap) = super::overlap(&listen, admin) {
            return Err(self.error(&raw.server, overlap));
        }
        self.server(&raw.server)?;
        self.pools(&raw.sync_views, &raw.async_views, &raw.events, &raw.sockets)?;
        self.channels(&raw.channels)?;
        let limits = self.limits(&raw.limits, &Limits::default())?;
        let served_at = (raw.static_files.as_ref()).map_or(0, |files| files.dir.span().start);
        let databases = (raw.databases.into_iter())
            .map(|(name, database)| Ok((name.clone(), self.database(name, database)?)))
            .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
        let static_files = raw
            .static_files
            .map(|files| self.static_files(files))
            .transpose()?;
        let app_atomic = raw
            .app
            .atomic
            .as_ref()
            .map(|atomic| self.atomic(atomic))
            .transpose()?;
        let proxies = self.proxies(raw.server.get_ref())?;
        let names = raw.modules.keys().cloned().collect();
        let known = self.builtins(raw.middleware, names, &proxies)?;
        let (builtins, middleware) = self.middleware(&raw.app.middleware, &known)?;
        let errors = (raw.app.errors.as_ref())
            .map(|name| self.errors(name, &known))
            .transpose()?;
        let defaults = Defaults {
            builtins: known,
            atomic: app_atomic.unwrap_or(Atomic::UnsafeMethods),
            limits,
        };
        let allowed_origins = (raw.app.allowed_origins.iter())
            .map(|text| self.page_origin(text))
            .collect::<Result<_, _>>()?;
        let key_at: Vec<_> = (raw.modules.values())
            .map(|module| session_key_at(module.get_ref()))
            .collect();
        let modules = (raw.modules.into_iter())
            .map(|(name, module)| self.module(name, module, &databases, &defaults))
            .collect::<Result<Vec<_>, _>>()?;
        self.session_cookies(&modules, &key_at)?;
        for database in databases.values() {
            if let Storage::Sqlite(file) = &database.storage {
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let mut path = file.file.clone().into_os_string();
                    path.push(suffix);
                    self.keep_private("the database", Path::new(&path));
                }
            }
        }
        let nats = match &raw.channels.get_ref().address {
            Some(address) => Some(match address.get_ref() {
                Address::Url(url) => url.clone(),
                Address::Elsewhere(secret) => self.secret_url(address, secret)?,
            }),
            None => None,
        };
        if let Some(files) = &static_files {
            self.served(&files.dir, served_at)?;
        }
        if modules.is_empty() && static_files.is_none() {
            return Err(self.error_at(0, "the app has neither a module nor static files: add `[modules.NAME]` with `path = \".\"`".into()));
        }
        Ok(Config {
            proxies,
            allowed_origins,
            builtins,
            middleware,
            errors,
            file: self.file.to_owned(),
            name: raw.app.name,
            server: raw.server.into_inner(),
            listen,
            admin,
            sync_views: raw.sync_views.into_inner(),
            async_views: raw.async_views.into_inner(),
            events: raw.events.into_inner(),
            sockets: raw.sockets.into_inner(),
            channels: Channels {
                nats,
                ..raw.channels.into_inner()
            },
            databases,
            static_files,
            modules,
            artifacts_in: None,
            named: self.folder.display().to_string(),
        })
    }

    pub(super) fn address(&self, address: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
        address.get_ref().parse().map_err(|_| {
            self.error(
                address,
                format!(
                    "`{}` is not an address: write IP:PORT, e.g. \"127.0.0.1:3000\" or \"[::]:80\"",
                    address.get_ref()
                ),
            )
        })
    }

    pub(super) fn server(&self, server: &Spanned<Server>) -> Result<(), ConfigError> {
        let s = server.get_ref();
        let ordered = [
            ("body_inline_bytes", s.body_inline_bytes),
            ("body_memory_bytes", s.body_memory_bytes),
            ("body_max_bytes", s.body_max_bytes),
        ];
        for pair in ordered.windows(2) {
            if pair[0].1 > pair[1].1 {
                return Err(self.error(server, format!(
                    "`{}` ({}) is over `{}` ({}): a body goes to the guest at once up to the first, is kept in memory up to the second and in a file up to the third, so they must not decrease",
                    pair[0].0, pair[0].1, pair[1].0, pair[1].1,
                )));
            }
        }
        let at = server.span().start;
        for name in &s.development_hosts {
            if !Host::parse(name.as_bytes()).is_some_and(|host| host.is_called(name)) {
                return Err(self.error_at(at, format!(
                    "`development_hosts` has `{name}`, which is no host: write a name without scheme and port, e.g. \"shop.test\""
                )));
            }
        }
        self.within(at, "connections_max", s.connections_max, 1..=1_000_000)?;
        self.within(at, "headers_max_bytes", s.headers_max_bytes, HEADERS_BYTES)?;
        self.within(at, "headers_max", s.headers_max, HEADERS)?;
        self.within(at, "uri_max_bytes", s.uri_max_bytes, URI_BYTES)?;
        self.within(at, "memory_budget_mb", s.memory_budget_mb, BUDGET_MB)?;
        self.within(at, "guest_memory_mb", s.guest_memory_mb, BUDGET_MB)?;
        self.within(at, "http2_streams_max", s.http2_streams_max, 1..=10_000)?;
        self.within(at, "header_timeout_ms", s.header_timeout_ms, TIME_MS)?;
        self.within(at, "body_timeout_ms", s.body_timeout_ms, TIME_MS)?;
        self.within(at, "write_timeout_ms", s.write_timeout_ms, TIME_MS)?;
        self.within(at, "drain_timeout_ms", s.drain_timeout_ms, TIME_MS_OR_NONE)?;
        self.within(at, "log_queue_bytes", s.log_queue_bytes, LOG_QUEUE_BYTES)
    }

    pub(super) fn pools(
        &self,
        sync: &Spanned<raw::SyncViews>,
        r#async: &Spanned<raw::AsyncViews>,
        events: &Spanned<raw::Events>,
        sockets: &Spanned<raw::Sockets>,
    ) -> Result<(), ConfigError> {
        let (sync, at) = (sync.get_ref(), sync.span().start);
        self.within(at, "workers", sync.workers, 1..=10_000)?;
        self.within(at, "workers_max", sync.workers_max, 1..=10_000)?;
        self.within(at, "queue_max", sync.queue_max, 0..=1_000_000)?;
        self.within(at, "queue_timeout_ms", sync.queue_timeout_ms, TIME_MS)?;
        self.within(at, "instances_kept_max", sync.instances_kept_max, KEPT)?;
        if sync.workers > sync.workers_max {
            return Err(self.error_at(at, format!(
                "`workers` ({}) is over `workers_max` ({}): raise the maximum or start with fewer", sync.workers, sync.workers_max
            )));
        }
        let (r#async, at) = (r#async.get_ref(), r#async.span().start);
        self.within(at, "loops", r#async.loops, 1..=1024)?;
        self.within(at, "in_flight_max", r#async.in_flight_max, 1..=100_000)?;
        self.within(at, "sockets_max", r#async.sockets_max, 0..=100_000)?;
        self.within(at, "queue_max", r#async.queue_max, 0..=1_000_000)?;
        self.within(at, "queue_timeout_ms", r#async.queue_timeout_ms, TIME_MS)?;
        self.within(at, "instances_kept_max", r#async.instances_kept_max, KEPT)?;
        let (events, at) = (events.get_ref(), events.span().start);
        self.within(at, "queue_max", events.queue_max, 1..=1_000_000)?;
        self.within(at, "in_flight_max", events.in_flight_max, 1..=10_000)?;
        self.within(at, "payload_max_bytes", events.payload_max_bytes, BYTES)?;
        let (sockets, at) = (sockets.get_ref(), sockets.span().start);
        self.within(
            at,
            "message_max_bytes",
            sockets.message_max_bytes,
            MESSAGE_BYTES,
        )?;
        self.within(at, "mailbox_max", sockets.mailbox_max, 1..=10_000)?;
        let capacity = sockets.capacity_timeout_ms;
        self.within(at, "capacity_timeout_ms", capacity, TIME_MS)?;
        self.within(
            at,
            "outbox_max_bytes",
            sockets.outbox_max_bytes,
            MESSAGE_BYTES,
        )?;
        let rate = sockets.messages_per_second;
        self.within(at, "messages_per_second", rate, 0..=1_000_000)?;
        self.within(at, "ping_ms", sockets.ping_ms, TIME_MS)?;
        self.within(
            at,
            "idle_timeout_ms",
            sockets.idle_timeout_ms,
            TIME_MS_OR_NONE,
        )
    }

    pub(super) fn channels(&self, channels: &Spanned<raw::Channels>) -> Result<(), ConfigError> {
        let (channels, at) = (channels.get_ref(), channels.span().start);
        self.within(at, "groups_max", channels.groups_max, 1..=10_000_000)?;
        let groups = channels.groups_per_connection_max;
        self.within(at, "groups_per_connection_max", groups, 1..=10_000)?;
        self.within(
            at,
            "payload_max_bytes",
            channels.payload_max_bytes,
            MESSAGE_BYTES,
        )?;
        self.within(
            at,
            "subscribers_max",
            channels.subscribers_max,
            0..=1_000_000,
        )?;
        self.within(at, "history_max_bytes", channels.history_max_bytes, BYTES)?;
        for (groups, messages) in &channels.history {
            Topics::parse(groups).map_err(|sentence| self.error_at(at, sentence))?;
            self.within(at, groups, *messages, 1..=100_000)?;
        }
        Ok(())
    }

    /// Refuses a number that is out of `range`, with its place in the file. Without this check, the host would fail
    /// with it later.
    pub(super) fn within(
        &self,
        offset: usize,
        name: &str,
        value: impl TryInto<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<(), ConfigError> {
        // No number of the host is wider than 64 bits.
        let value = value.try_into().unwrap_or(u64::MAX);
        let bound = if value < *range.start() {
            format!("the least is {}", range.start())
        } else if value > *range.end() {
            format!("the most is {}", range.end())
        } else {
            return Ok(());
        };
        Err(self.error_at(offset, format!("`{name}` is {value}: {bound}")))
    }

    /// The limits that a table names, and for the rest those of `over`.
    pub(super) fn limits(
        &self,
        own: &Spanned<raw::OwnLimits>,
        over: &Limits,
    ) -> Result<Limits, ConfigError> {
        let (own, at) = (own.get_ref(), own.span().start);
        let mut limits = own.over(over);
        self.within(at, "cpu_ms", limits.cpu_ms, TIME_MS)?;
        self.within(at, "timeout_ms", limits.timeout_ms, TIME_MS)?;
        self.within(at, "memory_mb", limits.memory_mb, MEMORY_MB)?;
        self.within(at, "response_max_bytes", limits.response_max_bytes, BYTES)?;
        self.within(
            at,
            "stream_max_bytes",
            limits.stream_max_bytes,
            1..=u64::MAX,
        )?;
        self.within(at, "stream_timeout_ms", limits.stream_timeout_ms, TIME_MS)?;
        self.within(at, "stream_cpu_ms", limits.stream_cpu_ms, TIME_MS)?;
        self.within(at, "call_max_bytes", limits.call_max_bytes, CALL_BYTES)?;
        self.within(at, "events_max", limits.events_max, 0..=1_000_000)?;
        self.within(
            at,
            "headers_max_bytes",
            limits.headers_max_bytes,
            VIEW_HEADERS_BYTES,
        )?;
        self.within(at, "headers_max", limits.headers_max, HEADERS)?;
        self.within(at, "rows_max_bytes", limits.rows_max_bytes, ROWS_BYTES)?;
        self.within(at, "outbound_max", limits.outbound_max, 1..=10_000)?;
        self.within(at, "outbound_depth_max", limits.outbound_depth_max, 1..=100)?;
        let outbound_bytes = limits.outbound_response_max_bytes;
        self.within(at, "outbound_response_max_bytes", outbound_bytes, BYTES)?;
        self.within(
            at,
            "reuse_requests_max",
            limits.reuse_requests_max,
            1..=u32::MAX.into(),
        )?;
        self.within(at, "reuse_age_max_ms", limits.reuse_age_max_ms, TIME_MS)?;
        self.within(
            at,
            "reuse_memory_max_mb",
            limits.reuse_memory_max_mb,
            MEMORY_MB,
        )?;
        if own.cpu_ms.is_none() {
            limits.cpu_ms = limits.cpu_ms.min(limits.timeout_ms);
        }
        if limits.cpu_ms > limits.timeout_ms {
            return Err(self.error_at(at, format!(
                "`cpu_ms` ({}) is over `timeout_ms` ({}): a view cannot compute for longer than it may run; lower the first or raise the second",
                limits.cpu_ms, limits.timeout_ms,
            )));
        }
        Ok(limits)
    }

    pub(super) fn folder(
        &self,
        folder: &Spanned<PathBuf>,
        what: &str,
    ) -> Result<PathBuf, ConfigError> {
        let path = self.folder.join(folder.get_ref());
        if path.is_dir() {
            return Ok(path);
        }
        Err(self.error(
            folder,
            format!(
                "there is no folder {} for `{what}`: make it, or take the line out",
                path.display()
            ),
        ))
    }

    fn mount(&self, mount: &Spanned<String>) -> Result<String, ConfigError> {
        let text = mount.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
        if !text.starts_with('/') || !text.chars().all(plain) || text.contains("//") {
            return Err(self.error(mount, format!(
                "`{text}` cannot be a mount: write a path such as \"/\" or \"/shop\" (letters, digits, `-`, `_`, `.`, `~`)"
            )));
        }
        Ok(text.trim_end_matches('/').to_owned())
    }

    fn static_files(&self, raw: raw::StaticFiles) -> Result<StaticFiles, ConfigError> {
        Ok(StaticFiles {
            dir: self.folder(&raw.dir, "static files")?,
            mount: self.mount(&raw.mount)?,
            hidden: raw.hidden,
        })
    }

    fn atomic(&self, raw: &Spanned<raw::Atomic>) -> Result<Atomic, ConfigError> {
        match raw.get_ref() {
            raw::Atomic::Flag(true) => Ok(Atomic::All),
            raw::Atomic::Flag(false) => Ok(Atomic::None),
            raw::Atomic::Word(word) if word == "unsafe-methods" => Ok(Atomic::UnsafeMethods),
            raw::Atomic::Word(word) => Err(self.error(
                raw,
                format!(
                    "`{word}` is not a value of `atomic`: write \"unsafe-methods\", true or false"
                ),
            )),
        }
    }

    fn module(
        &self,
        name: String,
        raw: Spanned<raw::Module>,
        databases: &BTreeMap<String, Database>,
        defaults: &Defaults,
    ) -> Result<Module, ConfigError> {
        let at = raw.span().start;
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            return Err(self.error_at(
                at,
                format!("`{name}` cannot be a module's name: use letters, digits, `-` and `_`"),
            ));
        }
        let raw = raw.into_inner();
        let source = self.source(&name, &raw.path)?;
        let build = self.build_command(raw.build.as_ref(), &source)?;
        for database in &raw.databases {
            if !databases.contains_key(database.get_ref()) {
                let known: Vec<&str> = databases.keys().map(String::as_str).collect();
                return Err(self.error(database, format!(
                    "module `{name}` is granted the database `{0}`, which the app does not have (it has: {1}): add `[databases.{0}]`",
                    database.get_ref(), if known.is_empty() { "none".into() } else { known.join(", ") },
                )));
            }
        }
        let http = raw
            .http
            .iter()
            .map(|grant| self.http_grant(grant))
            .collect::<Result<_, _>>()?;
        let http_private = (raw.http_private.iter())
            .map(|text| {
                Proxies::parse(text.get_ref()).map_err(|sentence| self.error(text, sentence))
            })
            .collect::<Result<_, _>>()?;
        let (builtins, middleware) = self.middleware(&raw.middleware, &defaults.builtins)?;
        let publish = self.topics(&raw.publish)?;
        let channels = self.topics(&raw.channels)?;
        let subscribe = self.topics(&raw.subscribe)?;
        let directories = raw
            .directories
            .iter()
            .map(|dir| self.directory(dir))
            .collect::<Result<_, _>>()?;
        let mut settings: BTreeMap<String, String> = (raw.settings.iter())
            .map(|(key, value)| Ok((key.clone(), self.setting(value)?)))
            .collect::<Result<_, ConfigError>>()?;
        for (key, secret) in raw.secrets {
            let value = self.secret(&secret)?;
            if self.purpose == Purpose::Serve {
                self.session_key(&secret, &key, &value)?;
            }
            if settings.insert(key.clone(), value).is_some() {
                return Err(self.error(
                    &secret,
                    format!("`{key}` is both a setting and a secret of module `{name}`: keep one"),
                ));
            }
        }
        for (key, value) in &raw.settings {
            self.session_key(value, key, &settings[key])?;
        }
        let limits = match raw.limits {
            None => defaults.limits.clone(),
            Some(own) => self.limits(&own, &defaults.limits)?,
        };
        let atomic = raw
            .atomic
            .as_ref()
            .map(|atomic| self.atomic(atomic))
            .transpose()?;
        Ok(Module {
            source,
            mount: self.mount(&raw.mount)?,
            databases: raw.databases.into_iter().map(Spanned::into_inner).collect(),
            http,
            http_private,
            builtins,
            middleware,
            publish,
            channels,
            subscribe,
            subrequests: raw.subrequests,
            directories,
            blocking_wasi: raw.blocking_wasi,
            build,
            stream_bodies: raw.stream_bodies,
            commit_at_head: raw.commit_at_head,
            ungranted_imports: raw.ungranted_imports,
            settings,
            atomic: atomic.unwrap_or(defaults.atomic),
            reuse: (raw.instances == raw::Instances::Reuse).then(|| Reuse {
                requests_max: limits.reuse_requests_max,
                age_max: Duration::from_millis(limits.reuse_age_max_ms),
                memory_max_bytes: limits.reuse_memory_max_mb << 20,
            }),
            limits,
            name,
        })
    }

    fn build_command(
        &self,
        command: Option<&Spanned<String>>,
        source: &Source,
    ) -> Result<Option<String>, ConfigError> {
        let Some(command) = command else {
            return Ok(None);
        };
        if !matches!(source, Source::Wasm(_)) {
            let sentence = "`build` is for components that another build system makes: `path` names a crate, which `amphi build` builds itself";
            return Err(self.error(command, sentence.to_owned()));
        }
        Ok(Some(command.get_ref().clone()))
    }

    fn source(&self, name: &str, path: &Spanned<PathBuf>) -> Result<Source, ConfigError> {
        let full = self.folder.join(path.get_ref());
        if full
            .extension()
            .is_some_and(|extension| extension == "wasm")
        {
            return Ok(Source::Wasm(full));
        }
        if full.join("Cargo.toml").is_file() {
            return Ok(Source::Crate(full));
        }
        let modes = [Mode::Sync, Mode::Async];
        let mut built = modes.map(|mode| component(&full, name, mode)).into_iter();
        if built.any(|file| file.is_file()) {
            return Ok(Source::Built(full));
        }
        Err(self.error(
            path,
            format!(
                "{} is neither a `.wasm` file nor a folder with a Cargo.toml or with `{name}.sync.wasm` or `{name}.async.wasm`",
                full.display()
            ),
        ))
    }

    pub(super) fn http_grant(&self, grant: &Spanned<String>) -> Result<HttpGrant, ConfigError> {
        let text = grant.get_ref().as_str();
        match text {
            "self" => return Ok(HttpGrant::Own),
            "*" => return Ok(HttpGrant::Any),
            _ => {}
        }
        let url = reqwest::Url::parse(text).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.path() == "/"
                && url.query().is_none()
                && url.username().is_empty()
        });
        match url {
            Some(url) => Ok(HttpGrant::Origin(url.origin().ascii_serialization())),
            None => Err(self.error(grant, format!(
                "`{text}` cannot be granted: write an origin such as \"https://api.example.com\" or \"http://127.0.0.1:8080\", \"self\" for this app, or \"*\" for any"
            ))),
        }
    }

    fn page_origin(&self, text: &Spanned<String>) -> Result<String, ConfigError> {
        let origin = text.get_ref();
        match is_page_origin(origin) {
            true => Ok(origin.clone()),
            false => Err(self.error(text, format!(
                "`{origin}` is not an origin as browsers send it: write scheme, host and, if it is not the usual one, port, e.g. \"https://shop.example.com\""
            ))),
        }
    }

    pub(super) fn proxies(&self, server: &Server) -> Result<Proxies, ConfigError> {
        let parse = |text: &Spanned<String>| {
            Proxies::parse(text.get_ref()).map_err(|sentence| self.error(text, sentence))
        };
        let networks: Vec<_> =
            (server.trusted_proxies.iter().map(parse)).collect::<Result<_, _>>()?;
        let addresses = match server.client_address.get_ref().as_str() {
            "x-forwarded-for" => Addresses::XForwardedFor,
            "forwarded" => Addresses::Forwarded,
            other => {
                return Err(self.error(&server.client_address, format!(
                    "`{other}` is not a value of `client_address`: write \"x-forwarded-for\" or \"forwarded\", whichever header the proxies set"
                )));
            }
        };
        Ok(Proxies::new(networks, addresses))
    }

    pub(super) fn topics(&self, raw: &[Spanned<String>]) -> Result<Vec<Topics>, ConfigError> {
        let parse = |text: &Spanned<String>| {
            Topics::parse(text.get_ref()).map_err(|sentence| self.error(text, sentence))
        };
        raw.iter().map(parse).collect()
    }

    pub(super) fn directory(&self, raw: &Spanned<Directory>) -> Result<Directory, ConfigError> {
        let dir = raw.get_ref();
        let host = self.folder.join(&dir.host);
        if !host.is_dir() {
            return Err(self.error(
                raw,
                format!(
                    "there is no folder {}: make it, or take the grant out",
                    host.display()
                ),
            ));
        }
        Ok(Directory {
            host,
            ..dir.clone()
        })
    }

    /// Refuses a key for sessions that is too short. So the mistake shows when the host starts, not when the first
    /// session is used.
    pub(super) fn session_key<T>(
        &self,
        at: &Spanned<T>,
        name: &str,
        key: &str,
    ) -> Result<(), ConfigError> {
        let length = key.chars().count();
        let is_key = ["session_key", "session_key_previous"].contains(&name);
        if !is_key || length >= SESSION_KEY_MIN {
            return Ok(());
        }
        Err(self.error(at, format!(
            "`{name}` has {length} characters, and needs at least {SESSION_KEY_MIN} that nobody can guess: `openssl rand -hex 32` makes some, and so does {{ file = \"session.key\", generate = true }} where there is no such file yet"
        )))
    }

    /// Refuses modules that set a session cookie of the same name with different keys. A browser keeps one cookie of a
    /// name, and each module takes a cookie with another key for forged: the modules would end each other's sessions.
    /// `key_at`: the position of each module's key in the file.
    fn session_cookies(
        &self,
        modules: &[Module],
        key_at: &[Option<usize>],
    ) -> Result<(), ConfigError> {
        if self.purpose != Purpose::Serve {
            // The keys may be made up (`secret.rs`), so comparing them says nothing about the real ones.
            return Ok(());
        }
        let mut known: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for (module, at) in modules.iter().zip(key_at) {
            let (Some(at), Some(key)) = (at, module.settings.get("session_key")) else {
                continue;
            };
            let named = module.settings.get("session_name");
            let cookie = named.map_or(SESSION_NAME, String::as_str);
            let (other, other_key) = *known.entry(cookie).or_insert((&module.name, key));
            if other_key != key {
                return Err(self.error_at(*at, format!(
                    "the modules `{other}` and `{}` keep their sessions in one cookie, `{cookie}`, with different keys, so each would end the other's: give them the same `session_key` to share sessions, or one of them another `session_name` in its `settings`",
                    module.name
                )));
            }
        }
        Ok(())
    }

    pub(super) fn setting(&self, value: &Spanned<toml::Value>) -> Result<String, ConfigError> {
        match value.get_ref() {
            toml::Value::String(text) => Ok(text.clone()),
            toml::Value::Integer(number) => Ok(number.to_string()),
            toml::Value::Float(number) => Ok(number.to_string()),
            toml::Value::Boolean(flag) => Ok(flag.to_string()),
            _ => Err(self.error(value, "a setting is a text, a number or true/false; put anything larger into one text, e.g. as JSON".into())),
        }
    }
}

/// The position of the key of a module's sessions in the file.
fn session_key_at(module: &raw::Module) -> Option<usize> {
    let secret = (module.secrets.get("session_key")).map(|secret| secret.span().start);
    let setting = || (module.settings.get("session_key")).map(|setting| setting.span().start);
    secret.or_else(setting)
}

/// Whether browsers send this text as the origin of a page: a scheme, a host, and a port unless it is the scheme's
/// default. Apps in a web view have schemes of their own (`capacitor://localhost`).
pub(super) fn is_page_origin(text: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(text) else {
        return false;
    };
    let origin = url.origin();
    if origin.is_tuple() {
        return origin.ascii_serialization() == text;
    }
    // The URL standard defines no origin for other schemes. Browsers send one in the following form.
    let host = url.host_str().filter(|host| !host.is_empty());
    let port = url.port().map(|port| format!(":{port}"));
    let port = port.unwrap_or_default();
    host.is_some_and(|host| format!("{}://{host}{port}", url.scheme()) == text)
}

/// The path with all links resolved. The file need not exist.
fn real(path: &Path) -> PathBuf {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), ..) => real,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

/// What modules get from the rest of the configuration: defaults, and the built-in middleware that they can name.
struct Defaults {
    atomic: Atomic,
    limits: Limits,
    builtins: Builtins,
}
