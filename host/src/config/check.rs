//! From what was written to what is meant: bounds, grants, paths, secrets. Every mistake is told with its place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::{
    Atomic, Config, ConfigError, Database, Directory, HttpGrant, Limits, MEMORY_BYTES_MAX, Module,
    Place, Server, Source, StaticFiles, raw,
};

/// What `value_max_bytes` can be: SQLite itself stores no larger value.
const VALUE_BYTES: RangeInclusive<u64> = 65_536..=1_000_000_000;

pub(super) struct Checker<'a> {
    file: &'a Path,
    text: &'a str,
    folder: &'a Path,
}

impl<'a> Checker<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Checker<'a> {
        Checker {
            file,
            text,
            folder: file.parent().unwrap_or(Path::new(".")),
        }
    }

    fn error<T>(&self, at: &Spanned<T>, message: String) -> ConfigError {
        self.error_at(at.span().start, message)
    }

    fn error_at(&self, offset: usize, message: String) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            place: Some(Place::of(self.text, offset)),
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
        self.server(&raw.server)?;
        self.pools(&raw)?;
        self.limits(raw.limits.span().start, raw.limits.get_ref())?;
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
        let defaults = Defaults {
            atomic: app_atomic.unwrap_or(Atomic::UnsafeMethods),
            limits: raw.limits.get_ref(),
        };
        let modules = (raw.modules.into_iter())
            .map(|(name, module)| self.module(name, module, &databases, &defaults))
            .collect::<Result<Vec<_>, _>>()?;
        if modules.is_empty() && static_files.is_none() {
            return Err(self.error_at(0, "the app has neither a module nor static files: add `[modules.NAME]` with `path = \".\"`".into()));
        }
        Ok(Config {
            file: self.file.to_owned(),
            name: raw.app.name,
            server: raw.server.into_inner(),
            listen,
            admin,
            sync_views: raw.sync_views.into_inner(),
            async_views: raw.async_views.into_inner(),
            databases,
            static_files,
            modules,
        })
    }

    fn address(&self, address: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
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

    fn server(&self, server: &Spanned<Server>) -> Result<(), ConfigError> {
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
        if s.headers_max_bytes < 8192 {
            return Err(self.error(
                server,
                format!(
                    "`headers_max_bytes` is {}: the least is 8192",
                    s.headers_max_bytes
                ),
            ));
        }
        for (name, value) in [
            ("connections_max", s.connections_max),
            ("headers_max", s.headers_max),
            ("http2_streams_max", s.http2_streams_max as usize),
        ] {
            self.at_least_one(server.span().start, name, value)?;
        }
        Ok(())
    }

    fn pools(&self, raw: &raw::Config) -> Result<(), ConfigError> {
        let (sync, at) = (raw.sync_views.get_ref(), raw.sync_views.span().start);
        self.at_least_one(at, "workers", sync.workers)?;
        self.at_least_one(at, "workers_max", sync.workers_max)?;
        if sync.workers > sync.workers_max {
            return Err(self.error_at(at, format!(
                "`workers` ({}) is over `workers_max` ({}): raise the maximum or start with fewer", sync.workers, sync.workers_max
            )));
        }
        let (r#async, at) = (raw.async_views.get_ref(), raw.async_views.span().start);
        self.at_least_one(at, "loops", r#async.loops)?;
        self.at_least_one(at, "in_flight_max", r#async.in_flight_max)
    }

    fn at_least_one(&self, offset: usize, name: &str, value: usize) -> Result<(), ConfigError> {
        if value == 0 {
            return Err(self.error_at(
                offset,
                format!("`{name}` is 0, so nothing could ever run: the least is 1"),
            ));
        }
        Ok(())
    }

    fn limits(&self, offset: usize, limits: &Limits) -> Result<(), ConfigError> {
        for (name, value) in [
            ("cpu_ms", limits.cpu_ms),
            ("timeout_ms", limits.timeout_ms),
            ("memory_mb", limits.memory_mb),
        ] {
            self.at_least_one(offset, name, value as usize)?;
        }
        if limits.memory_mb << 20 > MEMORY_BYTES_MAX as u64 {
            return Err(self.error_at(
                offset,
                format!(
                    "`memory_mb` is {}: the most is {}",
                    limits.memory_mb,
                    MEMORY_BYTES_MAX >> 20
                ),
            ));
        }
        if limits.cpu_ms > limits.timeout_ms {
            return Err(self.error_at(offset, format!(
                "`cpu_ms` ({}) is over `timeout_ms` ({}): a view cannot compute for longer than it may run; lower the first or raise the second",
                limits.cpu_ms, limits.timeout_ms,
            )));
        }
        Ok(())
    }

    fn database(&self, name: String, raw: raw::Database) -> Result<Database, ConfigError> {
        let migrations = raw
            .migrations
            .map(|folder| self.folder(&folder, "migrations"))
            .transpose()?;
        if raw.readers.get_ref() == &0 {
            return Err(self.error(
                &raw.readers,
                "`readers` is 0: views could not read; the least is 1".into(),
            ));
        }
        let value_max_bytes = *raw.value_max_bytes.get_ref();
        if !VALUE_BYTES.contains(&value_max_bytes) {
            return Err(self.error(
                &raw.value_max_bytes,
                format!(
                    "`value_max_bytes` is {value_max_bytes}: the least is {}, the most is {}",
                    VALUE_BYTES.start(),
                    VALUE_BYTES.end()
                ),
            ));
        }
        Ok(Database {
            name,
            sqlite: self.folder.join(raw.sqlite),
            migrations,
            readers: raw.readers.into_inner(),
            busy_timeout: Duration::from_millis(raw.busy_timeout_ms),
            acquire_timeout: Duration::from_millis(raw.acquire_timeout_ms),
            value_max_bytes,
        })
    }

    fn folder(&self, folder: &Spanned<PathBuf>, what: &str) -> Result<PathBuf, ConfigError> {
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
        defaults: &Defaults<'_>,
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
        let source = self.source(&raw.path)?;
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
            if settings.insert(key.clone(), value).is_some() {
                return Err(self.error(
                    &secret,
                    format!("`{key}` is both a setting and a secret of module `{name}`: keep one"),
                ));
            }
        }
        let limits = match raw.limits {
            None => defaults.limits.clone(),
            Some(over) => {
                let limits = over.get_ref().over(defaults.limits);
                self.limits(over.span().start, &limits)?;
                limits
            }
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
            directories,
            blocking_wasi: raw.blocking_wasi,
            ungranted_imports: raw.ungranted_imports,
            settings,
            atomic: atomic.unwrap_or(defaults.atomic),
            limits,
            name,
        })
    }

    fn source(&self, path: &Spanned<PathBuf>) -> Result<Source, ConfigError> {
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
        Err(self.error(
            path,
            format!(
                "{} is neither a `.wasm` file nor a folder with a Cargo.toml",
                full.display()
            ),
        ))
    }

    fn http_grant(&self, grant: &Spanned<String>) -> Result<HttpGrant, ConfigError> {
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

    fn directory(&self, raw: &Spanned<Directory>) -> Result<Directory, ConfigError> {
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

    fn setting(&self, value: &Spanned<toml::Value>) -> Result<String, ConfigError> {
        match value.get_ref() {
            toml::Value::String(text) => Ok(text.clone()),
            toml::Value::Integer(number) => Ok(number.to_string()),
            toml::Value::Float(number) => Ok(number.to_string()),
            toml::Value::Boolean(flag) => Ok(flag.to_string()),
            _ => Err(self.error(value, "a setting is a text, a number or true/false; put anything larger into one text, e.g. as JSON".into())),
        }
    }

    fn secret(&self, secret: &Spanned<raw::Secret>) -> Result<String, ConfigError> {
        match secret.get_ref() {
            raw::Secret { env: Some(name), file: None } => std::env::var(name).map_err(|_| {
                self.error(secret, format!("the environment variable {name} is not set, or is not UTF-8: set it before starting"))
            }),
            raw::Secret { env: None, file: Some(path) } => {
                let path = self.folder.join(path);
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| self.error(secret, format!("the secret's file {} cannot be read: {error}", path.display())))?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            _ => Err(self.error(secret, "a secret comes from one place: { env = \"NAME\" } or { file = \"path\" }".into())),
        }
    }
}

/// What modules get that do not say otherwise.
struct Defaults<'a> {
    atomic: Atomic,
    limits: &'a Limits,
}
