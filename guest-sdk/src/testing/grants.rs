//! The grants that the app's `amphi.toml` gives to the crate under test, and the limits of its requests. Tests enforce both
//! as the host does.

use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The name of the context value that holds the user's name. Only the host sets this value.
pub(super) const USER: &str = "user";
/// How many folders are searched for the `amphi.toml`: the crate's own folder and the folders above it.
const FOLDERS_UP: usize = 4;

/// The grants and limits of a module.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants {
    /// The module in the configuration. `None` when no `amphi.toml` has a module of this crate: then everything is
    /// granted.
    module: Option<Configured>,
    /// `allowed_origins` of the app, in the form that the host gives to modules: one text with spaces between the
    /// origins.
    allowed_origins: String,
    pub(super) limits: Limits,
    /// The folders on this machine, by the paths that views use for them.
    pub(super) directories: HashMap<String, PathBuf>,
    /// Which views run in a transaction if their attribute does not say so itself.
    pub(super) atomic: Atomic,
}

/// A module of an `amphi.toml`.
#[derive(Clone, Debug)]
struct Configured {
    name: String,
    table: Module,
}

/// Those limits of a request that a view can exceed. The defaults are those of the host.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    pub(super) context_values_max: usize,
    pub(super) context_value_max_bytes: usize,
    pub(super) response_max_bytes: usize,
    pub(super) rows_max_bytes: usize,
    pub(super) events_max: usize,
    pub(super) headers_max_bytes: usize,
    pub(super) timeout_ms: u64,
    /// From the table `[events]`; the limits above are from `[limits]`.
    #[serde(skip)]
    pub(super) payload_max_bytes: usize,
    /// From the table `[channels]`.
    #[serde(skip)]
    pub(super) message_max_bytes: usize,
    /// From the table `[server]`.
    #[serde(skip)]
    pub(super) body_max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            context_values_max: 64,
            context_value_max_bytes: 8 << 10,
            response_max_bytes: 8 << 20,
            rows_max_bytes: 8 << 20,
            events_max: 1_000,
            headers_max_bytes: 64 << 10,
            timeout_ms: 30_000,
            payload_max_bytes: 64 << 10,
            message_max_bytes: 64 << 10,
            body_max_bytes: 8 << 20,
        }
    }
}

/// The value of `atomic` in the table of the app or of a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Atomic {
    /// Only views whose method can change something: all methods except GET, HEAD, OPTIONS and TRACE.
    #[default]
    UnsafeMethods,
    All,
    None,
}

impl Atomic {
    pub(super) fn applies_to(self, method: &str) -> bool {
        match self {
            Self::UnsafeMethods => !matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE"),
            Self::All => true,
            Self::None => false,
        }
    }
}

impl From<&toml::Value> for Atomic {
    fn from(value: &toml::Value) -> Self {
        match value.as_bool() {
            Some(true) => Self::All,
            Some(false) => Self::None,
            None => Self::UnsafeMethods,
        }
    }
}

/// The parts of an `amphi.toml` that tests use. Unknown keys are ignored; the host checks them.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    app: toml::Table,
    #[serde(default)]
    server: toml::Table,
    #[serde(default)]
    events: toml::Table,
    #[serde(default)]
    channels: toml::Table,
    #[serde(default)]
    limits: toml::Table,
    #[serde(default)]
    modules: BTreeMap<String, Module>,
}

#[derive(Clone, Debug, Deserialize)]
struct Module {
    path: PathBuf,
    #[serde(default)]
    databases: Vec<String>,
    #[serde(default)]
    http: Vec<String>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    subrequests: bool,
    #[serde(default)]
    directories: Vec<Directory>,
    #[serde(default)]
    settings: toml::Table,
    #[serde(default)]
    limits: toml::Table,
    atomic: Option<toml::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Directory {
    guest: String,
}

impl Grants {
    /// Finds the first `amphi.toml`, in the crate's folder or above, that has the crate under test as a module.
    pub(super) fn find() -> Self {
        let Some(crate_folder) = std::env::var_os("CARGO_MANIFEST_DIR") else {
            return Self::default();
        };
        let crate_folder = PathBuf::from(crate_folder);
        (crate_folder.ancestors().take(FOLDERS_UP))
            .find_map(|folder| Self::of(&folder.join("amphi.toml"), &crate_folder))
            .unwrap_or_default()
    }

    /// Reads the grants of the module whose `path` is this crate. `None` when the file does not exist or has no such
    /// module.
    fn of(file: &Path, crate_folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(file).ok()?;
        let config: Config =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let wanted = crate_folder.canonicalize().ok()?;
        let (name, table) = config.modules.iter().find(|(_, module)| {
            let path = file.with_file_name("").join(&module.path);
            path.canonicalize().is_ok_and(|path| path == wanted)
        })?;
        let number = |table: &toml::Table, key: &str, default: usize| {
            let value = table.get(key).and_then(toml::Value::as_integer);
            value.map_or(default, |value| usize::try_from(value).unwrap_or(default))
        };
        let mut limits = config.limits.clone();
        limits.extend(table.limits.clone());
        let limits: Limits = limits
            .try_into()
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let origins = config
            .app
            .get("allowed_origins")
            .and_then(toml::Value::as_array);
        let origins = origins
            .into_iter()
            .flatten()
            .filter_map(toml::Value::as_str);
        let atomic = table.atomic.as_ref().or_else(|| config.app.get("atomic"));
        Some(Self {
            limits: Limits {
                payload_max_bytes: number(
                    &config.events,
                    "payload_max_bytes",
                    limits.payload_max_bytes,
                ),
                message_max_bytes: number(
                    &config.channels,
                    "payload_max_bytes",
                    limits.message_max_bytes,
                ),
                body_max_bytes: number(&config.server, "body_max_bytes", limits.body_max_bytes),
                ..limits
            },
            directories: HashMap::new(),
            allowed_origins: origins.collect::<Vec<_>>().join(" "),
            atomic: atomic.map_or_else(Atomic::default, Atomic::from),
            module: Some(Configured {
                name: name.clone(),
                table: table.clone(),
            }),
        })
    }

    /// Grants everything from now on.
    pub(super) fn grant_all(&mut self) {
        self.module = None;
    }

    /// The settings of the configuration, as views read them.
    pub(super) fn settings(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let settings = self.module.iter().flat_map(|module| &module.table.settings);
        let settings = settings.map(|(name, value)| (name.clone(), setting(name, value)));
        let origins = Some(self.allowed_origins.clone()).filter(|origins| !origins.is_empty());
        settings.chain(origins.map(|origins| ("amphi.allowed_origins".to_owned(), origins)))
    }

    fn denied(&self, allowed: impl Fn(&Module) -> bool) -> Option<&str> {
        let module = self.module.as_ref()?;
        (!allowed(&module.table)).then_some(module.name.as_str())
    }

    pub(super) fn database(&self, name: &str) -> Result<(), String> {
        match self.denied(|module| module.databases.iter().any(|granted| granted == name)) {
            None => Ok(()),
            Some(module) => Err(format!(
                "module `{module}` may not use the database `{name}`: add it to `databases` of `[modules.{module}]`"
            )),
        }
    }

    pub(super) fn publish(&self, topic: &str) -> Result<(), String> {
        match self.denied(|module| {
            module
                .publish
                .iter()
                .any(|granted| contains(granted, topic))
        }) {
            None => Ok(()),
            Some(module) => Err(format!(
                "module `{module}` may not publish on `{topic}`: add it to `publish` of `[modules.{module}]`"
            )),
        }
    }

    pub(super) fn subscribe(&self, topic: &str) -> Result<(), String> {
        let covered = |module: &Module| {
            let beginning = topic.strip_suffix('*').unwrap_or(topic);
            (module.subscribe.iter())
                .any(|granted| granted == topic || contains(granted, beginning) || granted == "*")
        };
        match self.denied(covered) {
            None => Ok(()),
            Some(module) => Err(format!(
                "module `{module}` is not granted the topic `{topic}`: add `subscribe = [\"{topic}\"]` to `[modules.{module}]`"
            )),
        }
    }

    /// Checks whether views may use this group of connections.
    pub(super) fn channel(&self, group: &str) -> Result<(), String> {
        if !is_topic(group) {
            return Err(format!(
                "`{group}` is not a group: write words of letters, digits, `-` and `_` with dots between, such as `room.7`"
            ));
        }
        self.sends_to(group, |channels| {
            channels.iter().any(|granted| contains(granted, group))
        })
    }

    /// Checks whether views may send to single connections.
    pub(super) fn connections(&self) -> Result<(), String> {
        self.sends_to("connections", |channels| !channels.is_empty())
    }

    fn sends_to(&self, what: &str, allowed: impl Fn(&[String]) -> bool) -> Result<(), String> {
        match self.denied(|module| allowed(&module.channels)) {
            None => Ok(()),
            Some(module) => Err(format!(
                "module `{module}` may not send to `{what}`: add the group to `channels` of `[modules.{module}]`"
            )),
        }
    }

    pub(super) fn subrequest(&self) -> Result<(), String> {
        match self.denied(|module| module.subrequests) {
            None => Ok(()),
            Some(module) => Err(format!(
                "module `{module}` may not call other views: add `subrequests = true` to `[modules.{module}]`"
            )),
        }
    }

    /// Checks whether a request may be sent to `url`, which is a URL or a path of the app itself.
    pub(super) fn http(&self, url: &str) -> Result<(), String> {
        let own = url.starts_with('/');
        let origin = match url.split_once("://") {
            Some((scheme, rest)) => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
                format!("{scheme}://{authority}")
            }
            None => url.to_owned(),
        };
        let grants = |granted: &String| match granted.as_str() {
            "*" => true,
            "self" => own,
            granted => !own && granted.trim_end_matches('/').eq_ignore_ascii_case(&origin),
        };
        let Some(module) = self.denied(|module| module.http.iter().any(grants)) else {
            return Ok(());
        };
        let missing = if own { "self" } else { &origin };
        Err(format!(
            "module `{module}` may not send requests to {url}: add \"{missing}\" to `http` of `[modules.{module}]`"
        ))
    }

    /// The folder on this machine that views reach by the path `guest`.
    pub(super) fn directory(&self, guest: &str) -> Result<PathBuf, String> {
        let known = |module: &Module| module.directories.iter().any(|dir| dir.guest == guest);
        if let Some(module) = self.denied(known) {
            return Err(format!(
                "module `{module}` has no folder `{guest}`: add `{{ host = \"…\", guest = \"{guest}\" }}` to `directories` of `[modules.{module}]`"
            ));
        }
        self.directories.get(guest).cloned().ok_or_else(|| {
            format!("the test has no folder `{guest}`: add `.directory(\"{guest}\", …)` to its app")
        })
    }
}

/// The text of a setting, as the host gives it to views: numbers are formatted by Rust, not copied from the TOML.
fn setting(name: &str, value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        _ => panic!(
            "the setting `{name}` of amphi.toml: a setting is a text, a number or true/false; put anything larger into one text, e.g. as JSON"
        ),
    }
}

/// Whether `granted`, a topic or a pattern of topics, includes this topic.
fn contains(granted: &str, topic: &str) -> bool {
    match granted.strip_suffix('*') {
        Some(beginning) => topic.starts_with(beginning) && topic.len() > beginning.len(),
        None => granted == topic,
    }
}

/// Whether this is a valid topic, by the same rule as in the host.
pub(super) fn is_topic(text: &str) -> bool {
    let of_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.len() <= 1 << 10
        && text
            .split('.')
            .all(|word| !word.is_empty() && word.chars().all(of_word))
}

#[cfg(test)]
mod tests {
    use super::Grants;

    fn grants(toml: &str) -> Grants {
        let folder = std::env::temp_dir().join(format!("amphi-grants-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        let file = folder.join("amphi.toml");
        std::fs::write(&file, toml).expect("the file can be written");
        Grants::of(&file, &folder).expect("it has the module")
    }

    /// All cases are in one test, because all of them write the same file.
    #[test]
    fn what_the_configuration_says_is_what_the_host_makes_of_it() {
        let text = "[app]\nname = \"a\"\nallowed_origins = [\"https://a.example\", \"app://b\"]\n\
                    [modules.a]\npath = \".\"\nsettings = { a = 1.0, b = 1e20, c = 1_000, d = true, e = \"x\", f = 0x10 }";
        let found = grants(text);
        let mut settings: Vec<_> = found.settings().collect();
        settings.sort();
        let texts: Vec<_> = settings
            .iter()
            .map(|(name, text)| format!("{name}={text}"))
            .collect();
        let host = [
            "a=1",
            "amphi.allowed_origins=https://a.example app://b",
            "b=100000000000000000000",
            "c=1000",
            "d=true",
            "e=x",
            "f=16",
        ];
        assert_eq!(texts, host);
        // The file does not set this limit, so it is the host's default.
        assert_eq!(found.limits.body_max_bytes, 8 << 20);
        assert!(found.channel("room.7").is_err() && found.connections().is_err());
        let found = grants(
            "[channels]\npayload_max_bytes = 7\n[modules.a]\npath = \".\"\nchannels = [\"room.*\", \"news\"]",
        );
        assert_eq!(found.limits.message_max_bytes, 7);
        assert_eq!(found.limits.payload_max_bytes, 64 << 10);
        for granted in ["room.7", "room.7.staff", "news"] {
            assert_eq!(found.channel(granted), Ok(()), "{granted}");
        }
        assert_eq!(found.connections(), Ok(()));
        let denied = found.channel("room").expect_err("it is another group");
        assert_eq!(
            denied,
            "module `a` may not send to `room`: add the group to `channels` of `[modules.a]`"
        );
        let found = grants("[modules.a]\npath = \".\"\nsettings = { a = [1] }");
        let refused = std::panic::catch_unwind(|| found.settings().count());
        refused.expect_err("the host does not start with such a setting");
    }
}
