//! The lists of middleware, and the options of built-in middleware.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use toml::{Spanned, Value};

use super::{Checker, TIME_MS, TIME_MS_OR_NONE, is_page_origin};
use crate::config::GuestMiddleware;
use crate::config::error::{ConfigError, nearest};
use crate::http::middleware::Builtin;
use crate::http::middleware::basic_auth::{self, BasicAuth, Password};
use crate::http::middleware::compression::{Compression, Encoding, FileCache};
use crate::http::middleware::cors::{self, Cors, Origins};
use crate::http::middleware::header_auth::HeaderAuth;
use crate::http::middleware::rate_limit::{self, By, RateLimit};
use crate::http::middleware::security_headers::{Choices, Framing, SecurityHeaders};
use crate::http::proxies::{Addresses, Proxies};

type Table = BTreeMap<String, Spanned<Value>>;

const NAMES: [&str; 7] = [
    "request-id",
    "security-headers",
    "compression",
    "cors",
    "basic-auth",
    "header-auth",
    "rate-limit",
];
/// The range of `hsts_max_age_s` in seconds, up to two years, which the lists of https-only sites in browsers
/// recommend.
const SECONDS: RangeInclusive<u64> = 0..=63_072_000;
/// The range of the options that limit how many requests wait, and how many passwords are remembered.
const MANY: RangeInclusive<u64> = 0..=1_000_000;

/// The built-in middleware that lists can name, with its options: from a table of `amphi.toml`, or the defaults.
#[derive(Default)]
pub(super) struct Builtins {
    by_name: BTreeMap<String, Arc<Builtin>>,
    modules: Vec<String>,
}

impl Checker<'_> {
    /// Makes the built-in middleware that lists can name. `tables`: the tables `[middleware.NAME]` with options.
    pub(super) fn builtins(
        &self,
        tables: BTreeMap<String, Spanned<Table>>,
        modules: Vec<String>,
        proxies: &Proxies,
    ) -> Result<Builtins, ConfigError> {
        let mut by_name = BTreeMap::new();
        for (name, table) in tables {
            let builtin = self.options(&name, table).builtin(proxies)?;
            by_name.insert(name, Arc::new(builtin));
        }
        for name in NAMES {
            if !by_name.contains_key(name) {
                let table = Spanned::new(0..0, Table::new());
                // An error means that this middleware needs options. Without its table, lists cannot name it.
                if let Ok(builtin) = self.options(name, table).builtin(proxies) {
                    by_name.insert(name.to_owned(), Arc::new(builtin));
                }
            }
        }
        Ok(Builtins { by_name, modules })
    }

    /// The middleware that a list names: the built-in middleware, and the guest functions.
    pub(super) fn middleware(
        &self,
        raw: &[Spanned<String>],
        known: &Builtins,
    ) -> Result<(Vec<Arc<Builtin>>, Vec<GuestMiddleware>), ConfigError> {
        let (mut builtins, mut guests) = (Vec::new(), Vec::new());
        for entry in raw {
            let name = entry.get_ref().as_str();
            match name.split_once("::") {
                Some((module, function)) => {
                    guests.push(self.guest(entry, module, function, known)?)
                }
                None => {
                    let builtin = (known.by_name.get(name))
                        .ok_or_else(|| self.error(entry, unknown(name, known)))?;
                    if let Some(GuestMiddleware { module, function }) = guests.last() {
                        return Err(self.error(entry, format!(
                            "`{name}` is built in, so it is around all guests: put it before `{module}::{function}`"
                        )));
                    }
                    builtins.push(Arc::clone(builtin));
                }
            }
        }
        Ok((builtins, guests))
    }

    /// The view that `errors` names.
    pub(super) fn errors(
        &self,
        entry: &Spanned<String>,
        known: &Builtins,
    ) -> Result<GuestMiddleware, ConfigError> {
        let name = entry.get_ref().as_str();
        let Some((module, function)) = name.split_once("::") else {
            return Err(self.error(entry, format!(
                "`errors` is `{name}`: write the view that makes the pages as `module::function`"
            )));
        };
        self.guest(entry, module, function, known)
    }

    fn guest(
        &self,
        entry: &Spanned<String>,
        module: &str,
        function: &str,
        known: &Builtins,
    ) -> Result<GuestMiddleware, ConfigError> {
        if !known.modules.iter().any(|name| name == module) {
            let names: Vec<&str> = known.modules.iter().map(String::as_str).collect();
            return Err(self.error(
                entry,
                format!(
                    "there is no module `{module}` for `{module}::{function}`{}: the app has {}",
                    meant(module, &names),
                    names.join(", "),
                ),
            ));
        }
        Ok(GuestMiddleware {
            module: module.to_owned(),
            function: function.to_owned(),
        })
    }

    fn options<'a>(&'a self, name: &str, table: Spanned<Table>) -> Options<'a> {
        Options {
            checker: self,
            name: name.to_owned(),
            at: table.span().start,
            given: table.into_inner(),
            known: vec!["use"],
        }
    }
}

fn unknown(name: &str, known: &Builtins) -> String {
    if NAMES.contains(&name) {
        let needs = match name {
            "cors" => "origins = [\"https://app.example.com\"]",
            "rate-limit" => "requests = 100",
            "basic-auth" => "file = \"users.htpasswd\"",
            _ => "from = [\"127.0.0.1\"]",
        };
        return format!("`{name}` needs to be told more: add `[middleware.{name}]` with `{needs}`");
    }
    let names: Vec<&str> = (NAMES.into_iter())
        .chain(known.by_name.keys().map(String::as_str))
        .collect();
    format!(
        "there is no middleware `{name}`{}: built in are {}; a `[middleware.{name}]` gives one of them options; a function of a guest is `module::function`",
        meant(name, &names),
        NAMES.join(", "),
    )
}

fn meant(unknown: &str, known: &[&str]) -> String {
    match nearest(unknown, known) {
        Some(name) => format!(" (did you mean `{name}`?)"),
        None => String::new(),
    }
}

/// The options of one table. Each option is removed when it is read, so those that are left in the end are unknown.
struct Options<'a> {
    checker: &'a Checker<'a>,
    name: String,
    at: usize,
    given: Table,
    known: Vec<&'static str>,
}

impl Options<'_> {
    fn builtin(mut self, proxies: &Proxies) -> Result<Builtin, ConfigError> {
        let own = self.name.clone();
        let place = self
            .given
            .get("use")
            .map_or(self.at, |given| given.span().start);
        let kind = self.text("use")?.unwrap_or(own);
        let builtin = match kind.as_str() {
            "request-id" => Builtin::RequestId,
            "security-headers" => Builtin::SecurityHeaders(self.security_headers()?),
            "compression" => Builtin::Compression(self.compression()?),
            "cors" => Builtin::Cors(self.cors()?),
            "basic-auth" => Builtin::BasicAuth(Box::new(self.basic_auth()?)),
            "header-auth" => Builtin::HeaderAuth(self.header_auth(proxies)?),
            "rate-limit" => Builtin::RateLimit(Box::new(self.rate_limit()?)),
            _ => {
                return Err(self.checker.error_at(place, format!(
                    "`[middleware.{}]` is to use `{kind}`, which there is not{}: write `use = \"…\"` with one of {}",
                    self.name, meant(&kind, &NAMES), NAMES.join(", "),
                )));
            }
        };
        match self.given.first_key_value() {
            None => Ok(builtin),
            Some((key, value)) => Err(self.checker.error(
                value,
                format!(
                    "`{key}` is no option of `{kind}`{}: it has {}",
                    meant(key, &self.known),
                    self.known.join(", "),
                ),
            )),
        }
    }

    fn security_headers(&mut self) -> Result<SecurityHeaders, ConfigError> {
        let referrer_policy = self.header_value("referrer_policy")?;
        Ok(SecurityHeaders::new(Choices {
            framing: self
                .word("framing", &Framing::ALL)?
                .unwrap_or(Framing::Deny),
            referrer_policy: referrer_policy
                .unwrap_or(HeaderValue::from_static("strict-origin-when-cross-origin")),
            csp: self.header_value("csp")?,
            hsts_max_age_s: self.number("hsts_max_age_s", 0, SECONDS)?,
            hsts_subdomains: self.flag("hsts_subdomains", false)?,
        }))
    }

    fn compression(&mut self) -> Result<Compression, ConfigError> {
        let at = self.place("encodings");
        let names = self.texts("encodings")?;
        let encodings = match &names {
            None => Encoding::ALL.map(|(_, encoding)| encoding).to_vec(),
            Some(names) => (names.iter())
                .map(|name| self.one_of(at, "encodings", name, &Encoding::ALL))
                .collect::<Result<_, _>>()?,
        };
        if encodings.is_empty() {
            return Err(self.checker.error_at(
                at,
                "`encodings` is empty: name one at least, or take the middleware out of its list"
                    .into(),
            ));
        }
        let min_bytes = self.number("min_bytes", 1024, 0..=1 << 40)?;
        let files_mb = self.number("files_cache_mb", 16, 0..=1 << 20)?;
        Ok(Compression {
            encodings,
            min_bytes,
            files: FileCache::new(files_mb << 20),
        })
    }

    fn cors(&mut self) -> Result<Cors, ConfigError> {
        let at = self.place("origins");
        let example = "[\"https://app.example.com\"], or [\"*\"] for all";
        let origins = self.texts("origins")?.filter(|origins| !origins.is_empty());
        let Some(origins) = origins else {
            return Err(self.checker.error_at(
                at,
                format!(
                    "`cors` has to know whose pages may use the app: write `origins = {example}`"
                ),
            ));
        };
        let credentials = self.flag("credentials", false)?;
        let any = origins.iter().any(|origin| origin == "*");
        if any && (credentials || origins.len() > 1) {
            return Err(self.checker.error_at(at, "`origins` is \"*\" and nothing else, and then without `credentials`: browsers allow no cookies there; name the origins".into()));
        }
        for origin in origins.iter().filter(|_| !any) {
            if !is_page_origin(origin) {
                return Err(self.checker.error_at(at, format!(
                    "`{origin}` is not an origin as browsers send it: write scheme, host and, if it is not the usual one, port, e.g. {example}"
                )));
            }
        }
        let (methods, headers, expose) = (
            self.texts("methods")?,
            self.texts("headers")?,
            self.texts("expose")?,
        );
        let methods = methods.unwrap_or_else(|| {
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
                .map(str::to_owned)
                .to_vec()
        });
        let headers = headers.unwrap_or_else(|| vec!["content-type".to_owned()]);
        let is_method = |name: &str| name == "*" || Method::from_bytes(name.as_bytes()).is_ok();
        Ok(Cors {
            methods: self.names("methods", &methods, credentials, is_method)?,
            headers: self.names("headers", &headers, credentials, cors::is_header)?,
            expose: self.names(
                "expose",
                &expose.unwrap_or_default(),
                credentials,
                cors::is_header,
            )?,
            credentials,
            max_age_s: self.number("max_age_s", 600, 0..=86_400)?,
            origins: match any {
                true => Origins::Any,
                false => Origins::These(origins),
            },
        })
    }

    fn names(
        &self,
        key: &'static str,
        names: &[String],
        credentials: bool,
        valid: impl Fn(&str) -> bool,
    ) -> Result<HeaderValue, ConfigError> {
        if let Some(wrong) = names.iter().find(|name| !valid(name)) {
            let sentence = format!("`{wrong}` cannot be one of `{key}`");
            return Err(self.checker.error_at(self.at, sentence));
        }
        if credentials && names.iter().any(|name| name == "*") {
            return Err(self.checker.error_at(self.at, format!(
                "`{key}` is \"*\", which browsers do not take for all together with `credentials`: name them"
            )));
        }
        Ok(cors::list(names).expect("names of methods and headers are valid in headers"))
    }

    fn basic_auth(&mut self) -> Result<BasicAuth, ConfigError> {
        let checker = self.checker;
        let mut users = BTreeMap::new();
        let at = self.place("file");
        if let Some(file) = self.text("file")? {
            let path = checker.folder.join(file);
            checker.keep_private("the users' file", &path);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                let sentence =
                    format!("the users' file {} cannot be read: {error}", path.display());
                checker.error_at(at, sentence)
            })?;
            users = basic_auth::parse_file(&text).map_err(|(line, sentence)| {
                checker.error_at(at, format!("{}:{line} {sentence}", path.display()))
            })?;
        }
        let at = self.place("users");
        for (name, hash) in self.table("users")? {
            let wrong = |sentence| checker.error_at(at, sentence);
            let password = (hash.as_str().ok_or_else(|| "is not a text".to_owned()))
                .and_then(Password::parse)
                .map_err(|why| wrong(format!("what is written for the user `{name}` {why}")))?;
            if name.contains(':') {
                return Err(wrong(format!(
                    "`{name}` cannot be a user's name: it has a `:`"
                )));
            }
            if users.insert(name.clone(), password).is_some() {
                return Err(wrong(format!(
                    "the user `{name}` is in the file, too: keep one"
                )));
            }
        }
        if users.is_empty() {
            return Err(checker.error_at(self.at, "`basic-auth` lets nobody in: name users in `file = \"users.htpasswd\"` (as `htpasswd -B` writes it), or in `users = { NAME = \"HASH\" }`".into()));
        }
        let realm = self.text("realm")?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let limits = basic_auth::Limits {
            checks_max: size(self.number("checks_max", cores, 1..=1024)?),
            queue_max: size(self.number("queue_max", 64, MANY)?),
            queue_timeout: Duration::from_millis(self.number(
                "queue_timeout_ms",
                5_000,
                TIME_MS,
            )?),
            remember_max: size(self.number("remember_max", 1_000, MANY)?),
            remember: Duration::from_millis(self.number(
                "remember_ms",
                300_000,
                TIME_MS_OR_NONE,
            )?),
        };
        Ok(BasicAuth::new(
            users,
            realm.as_deref().unwrap_or("Restricted"),
            limits,
        ))
    }

    fn header_auth(&mut self, proxies: &Proxies) -> Result<HeaderAuth, ConfigError> {
        let at = self.place("header");
        let header = self
            .text("header")?
            .unwrap_or_else(|| "x-forwarded-user".to_owned());
        let header = HeaderName::from_bytes(header.as_bytes()).map_err(|_| {
            let sentence = format!("`{header}` cannot be the name of a header");
            self.checker.error_at(at, sentence)
        })?;
        let at = self.place("from");
        let from = match self.texts("from")? {
            None => proxies.clone(),
            Some(networks) => {
                let networks: Result<Vec<_>, _> =
                    networks.iter().map(|text| Proxies::parse(text)).collect();
                let networks = networks.map_err(|sentence| self.checker.error_at(at, sentence))?;
                Proxies::new(networks, Addresses::default())
            }
        };
        if from.is_empty() {
            return Err(self.checker.error_at(at, "`header-auth` has to know who sets the header, because anybody could: name the proxies in `trusted_proxies` of `[server]`, or in `from` here".into()));
        }
        let required = self.flag("required", true)?;
        Ok(HeaderAuth {
            header,
            from,
            required,
        })
    }

    fn rate_limit(&mut self) -> Result<RateLimit, ConfigError> {
        let by = self.word("by", &By::ALL)?.unwrap_or(By::Address);
        let per_ms = self.number("per_ms", 60_000, TIME_MS)?;
        if !self.given.contains_key("requests") {
            return Err(self.checker.error_at(self.at, "`rate-limit` has to know how much is too much: write `requests = 100`, which is for each minute, or for each `per_ms`".into()));
        }
        let requests = self.number("requests", 0, 1..=1_000_000)?;
        let burst = self.number("burst", requests, 1..=1_000_000)?;
        let keys_max = self.number("keys_max", 100_000, 16..=10_000_000)?;
        Ok(RateLimit::new(rate_limit::Options {
            by,
            period: Duration::from_millis(per_ms) / u32::try_from(requests).expect("it is checked"),
            burst: u32::try_from(burst).expect("it is checked"),
            keys_max: usize::try_from(keys_max).expect("it is checked"),
        }))
    }

    fn place(&self, key: &str) -> usize {
        self.given
            .get(key)
            .map_or(self.at, |value| value.span().start)
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        what: &str,
        of: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.known.push(key);
        let Some(given) = self.given.remove(key) else {
            return Ok(None);
        };
        let at = given.span().start;
        match of(given.into_inner()) {
            Some(value) => Ok(Some(value)),
            None => Err(self.checker.error_at(at, format!("`{key}` is {what}"))),
        }
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.take(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    fn texts(&mut self, key: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        self.take(key, "a list of texts", |value| {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            value.as_array()?.iter().map(text).collect()
        })
    }

    fn table(&mut self, key: &'static str) -> Result<toml::Table, ConfigError> {
        let table = self.take(key, "a table", |value| value.as_table().cloned())?;
        Ok(table.unwrap_or_default())
    }

    fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        let flag = self.take(key, "true or false", |value| value.as_bool())?;
        Ok(flag.unwrap_or(default))
    }

    fn number(
        &mut self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let at = self.place(key);
        let what = format!("a number from {} to {}", range.start(), range.end());
        let number = self.take(key, &what, |value| u64::try_from(value.as_integer()?).ok())?;
        let number = number.unwrap_or(default);
        self.checker.within(at, key, number, range)?;
        Ok(number)
    }

    fn header_value(&mut self, key: &'static str) -> Result<Option<HeaderValue>, ConfigError> {
        let what = "a text that can stand in a header: one line of ASCII";
        self.take(key, what, |value| {
            HeaderValue::from_str(value.as_str()?).ok()
        })
    }

    fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let at = self.place(key);
        let Some(word) = self.text(key)? else {
            return Ok(None);
        };
        self.one_of(at, key, &word, words).map(Some)
    }

    fn one_of<T: Copy>(
        &self,
        at: usize,
        key: &str,
        word: &str,
        words: &[(&'static str, T)],
    ) -> Result<T, ConfigError> {
        let found = words.iter().find(|(known, _)| *known == word);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
            self.checker.error_at(
                at,
                format!(
                    "`{word}` is not a value of `{key}`{}: it takes {}",
                    meant(word, &known),
                    known.join(", "),
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests;
