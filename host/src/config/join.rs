//! Puts an artifact's part of a configuration and a place's part together, into the configuration that `amphi.toml` would
//! be: the ordinary checker then has the last word.
//!
//! Before that, what the artifact asks for is compared with what the place has and allows. Everything that is missing is
//! said at once, each with the line that would allow it.

use std::path::Path;

use toml::{Table, Value};

use super::place::{Allowed, Place};
use super::portable::{Access, DatabaseKind, JoinError, Needs, Portable, SecretNeed, tables};
use super::{Config, HttpGrant, Module, Purpose};
use crate::view::Topics;

/// Limits that are none when they are 0.
const ENDLESS_AT_0: [&str; 3] = [
    "messages_per_second",
    "messages_per_second_max",
    "idle_timeout_ms",
];
/// The hash of random bytes that nobody has kept: where users are needed and nobody signs in.
const NOBODY: &str = "$2y$10$xloi1cj4sCgK/rytgaL3QuvyhambtBSTv/H.SXG5veSf9yz.qF8tK";

impl Portable {
    /// The configuration for looking at an app without a place: what a place gives is made up. `folder`: where the
    /// artifact's files are.
    ///
    /// # Errors
    /// When the app's part is not valid.
    pub fn alone(&self, folder: &Path) -> Result<Config, JoinError> {
        let made_up = made_up(&self.needs, folder);
        self.parse_with(&made_up, folder, Purpose::Check, "")
    }

    /// The configuration of the app in a place. `folder`: where the artifact's files are.
    ///
    /// # Errors
    /// When the place does not have or allow what the app asks for, or both together are not valid.
    pub fn at(&self, place: &Place, folder: &Path, purpose: Purpose) -> Result<Config, JoinError> {
        let asked = self.alone(folder)?;
        let name = match &place.file {
            Some(file) => format!("the place {}", file.display()),
            None => "a place without an amphi-host.toml".to_owned(),
        };
        let mut missing = Vec::new();
        if let Some(app) = place.deploy.app.as_ref().filter(|app| **app != self.name) {
            missing.push(format!(
                "it is called `{}`: `app` of `[deploy]` allows `{app}` alone",
                self.name
            ));
        }
        let own = match &place.allowed {
            Some(allowed) => {
                self.lacking(&place.table, &mut missing);
                allowed.compare(&asked, &self.table, &mut missing);
                needed(&self.needs, &place.table)
            }
            None => self.in_folder(&place.state, &asked, &mut missing),
        };
        if !missing.is_empty() {
            return Err(JoinError::Refused(missing, name));
        }
        self.parse_with(&own, folder, purpose, &name)
    }

    /// Puts the parts together and checks the whole. `place`: for messages.
    fn parse_with(
        &self,
        own: &Table,
        folder: &Path,
        purpose: Purpose,
        place: &str,
    ) -> Result<Config, JoinError> {
        let mut whole = self.table.clone();
        merge(&mut whole, own);
        let text = toml::to_string(&whole).expect("it was read from TOML");
        let file = folder.join("amphi.toml");
        Config::parse_for(&file, &text, purpose).map_err(|mut error| {
            // The lines are those of the text that was just made, which nobody can look at.
            error.location = None;
            if !place.is_empty() {
                error.message = format!("with {place}: {}", error.message);
            }
            JoinError::Invalid(error)
        })
    }

    /// What the app needs and a place does not have.
    fn lacking(&self, place: &Table, missing: &mut Vec<String>) {
        let at = |path: &[&str]| {
            let mut names = path.iter();
            let first = names.next().and_then(|name| place.get(*name));
            names.fold(first, |value, name| value?.get(*name))
        };
        let needs = &self.needs;
        for (name, kind) in &needs.databases {
            let (key, example) = match kind {
                DatabaseKind::Sqlite => ("sqlite", format!("\"data/{name}.db\"")),
                DatabaseKind::Postgres => ("postgres", "{ env = \"DATABASE_URL\" }".to_owned()),
            };
            if at(&["databases", name, key]).is_none() {
                missing.push(format!(
                    "the database `{name}`, {kind}: write `{key} = {example}` in `[databases.{name}]`"
                ));
            }
        }
        for (module, secrets) in &needs.secrets {
            for (key, need) in secrets {
                if at(&["modules", module, "secrets", key]).is_none() {
                    let from = match need {
                        SecretNeed::Given => format!("{{ env = \"{}\" }}", key.to_uppercase()),
                        SecretNeed::Generated => {
                            format!("{{ file = \"{key}\", generate = true }}")
                        }
                    };
                    missing.push(format!(
                        "the secret `{key}` of module `{module}`: write `{key} = {from}` in `[modules.{module}.secrets]`"
                    ));
                }
            }
        }
        for (module, directories) in &needs.directories {
            let given = at(&["modules", module, "directories"]).and_then(Value::as_array);
            for (guest, access) in directories {
                let found = given
                    .into_iter()
                    .flatten()
                    .find(|it| named(it) == Some(guest));
                let writes = found
                    .and_then(|it| it.get("write"))
                    .and_then(Value::as_bool);
                let (what, example) = match access {
                    Access::Read => ("to read", ""),
                    Access::Write => ("to write in", ", write = true"),
                };
                if found.is_none() || (*access == Access::Write && writes != Some(true)) {
                    missing.push(format!(
                        "a folder for `{guest}` of module `{module}`, {what}: write `directories = [{{ host = \"…\", guest = \"{guest}\"{example} }}]` in `[modules.{module}]`"
                    ));
                }
            }
        }
        for name in &needs.users {
            if at(&["middleware", name]).is_none() {
                missing.push(format!(
                    "users for `{name}`: write `file = \"users.htpasswd\"` in `[middleware.{name}]`"
                ));
            }
        }
        if needs.nats && at(&["channels", "nats"]).is_none() {
            missing.push(
                "a NATS server for its groups of connections: write `nats = \"nats://127.0.0.1:4222\"` in `[channels]`".to_owned(),
            );
        }
    }

    /// What an app gets in a folder of its own: databases, secrets that the host can make. The rest is missing.
    fn in_folder(&self, state: &Path, asked: &Config, missing: &mut Vec<String>) -> Table {
        let needs = &self.needs;
        let mut own = Table::new();
        for (name, kind) in &needs.databases {
            let file = state.join("data").join(format!("{name}.db"));
            match kind {
                DatabaseKind::Sqlite if is_plain(name) => {
                    put(
                        &mut own,
                        &["databases", name, "sqlite"],
                        file.display().to_string().into(),
                    );
                }
                DatabaseKind::Sqlite => missing.push(format!("the database `{name}`")),
                DatabaseKind::Postgres => missing.push(format!("the database `{name}`, {kind}")),
            }
        }
        for (module, secrets) in &needs.secrets {
            for (key, need) in secrets {
                match need {
                    SecretNeed::Generated if is_plain(key) && is_plain(module) => {
                        let file = state.join("secrets").join(format!("{module}.{key}"));
                        let secret = Table::from_iter([
                            ("file".to_owned(), file.display().to_string().into()),
                            ("generate".to_owned(), true.into()),
                        ]);
                        put(
                            &mut own,
                            &["modules", module, "secrets", key],
                            secret.into(),
                        );
                    }
                    _ => missing.push(format!("the secret `{key}` of module `{module}`")),
                }
            }
        }
        for (module, directories) in &needs.directories {
            for guest in directories.keys() {
                missing.push(format!("a folder for `{guest}` of module `{module}`"));
            }
        }
        for name in &needs.users {
            missing.push(format!("users for `{name}`"));
        }
        for module in &asked.modules {
            let private = module.http.iter().filter_map(|grant| match grant {
                HttpGrant::Origin(origin) if !is_named(origin) => Some(origin.clone()),
                _ => None,
            });
            let networks = module.http_private.iter().map(ToString::to_string);
            for target in private.chain(networks) {
                missing.push(format!(
                    "requests of module `{}` to {target}, which is not public",
                    module.name
                ));
            }
        }
        if !missing.is_empty() {
            missing.push(
                "(write an amphi-host.toml that gives all this, and name it with `--place`)"
                    .to_owned(),
            );
        }
        own
    }
}

impl Allowed {
    /// Adds what the app asks for and this does not allow.
    fn compare(&self, asked: &Config, table: &Table, missing: &mut Vec<String>) {
        for module in &asked.modules {
            self.module(module, missing);
        }
        let mut numbers = |path: &[&str], greatest: &str| {
            let find = |table: &Table, path: &[&str]| {
                let mut found = Some(table.clone());
                for name in path {
                    found = found.and_then(|it| it.get(*name)?.as_table().cloned());
                }
                found.unwrap_or_default()
            };
            let greatest: Vec<&str> = greatest.split('.').collect();
            let max = find(&self.limits, &greatest);
            over(&find(table, path), &max, path, &greatest, missing);
        };
        for name in ["server", "events", "sockets", "channels", "limits"] {
            numbers(&[name], name);
        }
        for module in &asked.modules {
            numbers(&["modules", &module.name, "limits"], "limits");
        }
        for name in asked.databases.keys() {
            numbers(&["databases", name], &format!("databases.{name}"));
        }
        for (name, value) in table
            .get("middleware")
            .and_then(Value::as_table)
            .into_iter()
            .flatten()
        {
            let cache = value.get("files_cache_mb").and_then(Value::as_integer);
            if cache.is_some_and(|mb| mb > FILES_CACHE_MB) {
                missing.push(format!(
                    "`files_cache_mb` of `[middleware.{name}]` is over {FILES_CACHE_MB}, the most in an artifact"
                ));
            }
        }
    }

    fn module(&self, module: &Module, missing: &mut Vec<String>) {
        let name = &module.name;
        let mut ask = |what: &str, asked: &str, key: &str| {
            missing.push(format!(
                "module `{name}` {what} `{asked}`: write `{key} = [\"{asked}\"]` in `[grants]`"
            ));
        };
        for grant in &module.http {
            match grant {
                HttpGrant::Own => {}
                HttpGrant::Any if self.http.contains(grant) => {}
                HttpGrant::Any => ask("sends requests to", "*", "http"),
                HttpGrant::Origin(origin) => {
                    let by_any = is_named(origin) && self.http.contains(&HttpGrant::Any);
                    if !by_any && !self.http.contains(grant) {
                        ask("sends requests to", origin, "http");
                    }
                }
            }
        }
        for network in &module.http_private {
            if !self
                .http_private
                .iter()
                .any(|allowed| allowed.contains(network))
            {
                ask("sends requests to", &network.to_string(), "http_private");
            }
        }
        let topics = [
            (
                "publishes events on",
                &module.publish,
                &self.publish,
                "publish",
            ),
            (
                "receives events of",
                &module.subscribe,
                &self.subscribe,
                "subscribe",
            ),
            (
                "uses the groups",
                &module.channels,
                &self.channels,
                "channels",
            ),
        ];
        for (what, asked, allowed, key) in topics {
            let is_allowed = |topics: &&Topics| !allowed.iter().any(|it| it.cover(topics));
            for topics in asked.iter().filter(is_allowed) {
                ask(what, topics.as_str(), key);
            }
        }
    }
}

/// The most megabytes of compressed files that an artifact can have kept, as by default.
const FILES_CACHE_MB: i64 = 16;

/// Adds the numbers that are over the greatest ones.
fn over(
    asked: &Table,
    greatest: &Table,
    path: &[&str],
    allowed_in: &[&str],
    missing: &mut Vec<String>,
) {
    for (key, value) in asked {
        let (Some(asked), Some(max)) = (
            value.as_integer(),
            greatest.get(key).and_then(Value::as_integer),
        ) else {
            continue;
        };
        let size = |number: i64| match number {
            0 if ENDLESS_AT_0.contains(&key.as_str()) => i64::MAX,
            number => number,
        };
        if size(asked) > size(max) {
            missing.push(format!(
                "`{key} = {asked}` of `[{}]`, where at most {max} is allowed: write `{key} = {asked}` in `[{}]`",
                path.join("."),
                allowed_in.join("."),
            ));
        }
    }
}

/// Whether the host of an origin is a name that is not the machine's own. Where such a name leads to is checked when a
/// request is sent.
fn is_named(origin: &str) -> bool {
    let url = reqwest::Url::parse(origin);
    url.is_ok_and(|url| {
        let name = url.domain().map(|name| name.trim_end_matches('.'));
        name.is_some_and(|name| name != "localhost" && !name.ends_with(".localhost"))
    })
}

/// Whether a name can be part of a file's name.
fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.len() < 100 && name.chars().all(plain)
}

/// Of a place's keys, those that an app needs: it gets no more than it asks for.
fn needed(needs: &Needs, place: &Table) -> Table {
    let mut own = place.clone();
    let mut keep = |table: &str, known: &dyn Fn(&str) -> bool| {
        if let Some(Value::Table(inner)) = own.get_mut(table) {
            inner.retain(|name, _| known(name));
        }
    };
    keep("databases", &|name| needs.databases.contains_key(name));
    keep("channels", &|_| needs.nats);
    for (name, module) in tables(&mut own, "modules") {
        if let Some(Value::Table(secrets)) = module.get_mut("secrets") {
            let asked = needs.secrets.get(&name);
            secrets.retain(|key, _| asked.is_some_and(|asked| asked.contains_key(key)));
        }
        if let Some(Value::Array(directories)) = module.get_mut("directories") {
            let asked = needs.directories.get(&name);
            let access = |it: &Value| Some(*asked?.get(named(it)?)?);
            directories.retain(|it| access(it).is_some());
            for directory in directories {
                let writes = access(directory) == Some(Access::Write);
                if let Some(directory) = directory.as_table_mut() {
                    directory.insert("write".to_owned(), writes.into());
                }
            }
        }
    }
    own
}

/// The name of a folder in the guest.
fn named(directory: &Value) -> Option<&str> {
    directory.get("guest").and_then(Value::as_str)
}

/// A place for looking only. Folders are left out: nothing of this machine is shown to a component that is looked at.
fn made_up(needs: &Needs, folder: &Path) -> Table {
    let mut own = Table::new();
    for (name, kind) in &needs.databases {
        let (key, value) = match kind {
            DatabaseKind::Sqlite => ("sqlite", folder.join("made-up.db").display().to_string()),
            DatabaseKind::Postgres => ("postgres", "postgres://localhost/made-up".to_owned()),
        };
        put(&mut own, &["databases", name, key], value.into());
    }
    for (module, secrets) in &needs.secrets {
        for key in secrets.keys() {
            // With `Purpose::Check`, a secret that is not there is made up.
            let secret = Table::from_iter([("file".to_owned(), "made-up".into())]);
            put(
                &mut own,
                &["modules", module, "secrets", key],
                secret.into(),
            );
        }
    }
    for name in &needs.users {
        put(
            &mut own,
            &["middleware", name, "users", "nobody"],
            NOBODY.into(),
        );
    }
    let proxies = Value::Array(vec!["127.0.0.1".into()]);
    put(&mut own, &["server", "trusted_proxies"], proxies);
    own
}

/// Puts a value into tables within tables, which are made.
fn put(table: &mut Table, path: &[&str], value: Value) {
    match path {
        [] => {}
        [name] => drop(table.insert((*name).to_owned(), value)),
        [name, rest @ ..] => {
            let inner = table.entry(*name).or_insert(Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// Adds the keys of `from`. Modules, databases and middleware that only a place names are left out: they belong to other
/// artifacts.
fn merge(into: &mut Table, from: &Table) {
    for (name, value) in from {
        let only_known = ["modules", "databases", "middleware"].contains(&name.as_str());
        match (into.get_mut(name), value) {
            (Some(Value::Table(into)), Value::Table(from)) if only_known => {
                for (name, value) in from {
                    if let (Some(Value::Table(into)), Value::Table(from)) =
                        (into.get_mut(name), value)
                    {
                        add(into, from);
                    }
                }
            }
            (None, _) if only_known => {}
            _ => add(into, &Table::from_iter([(name.clone(), value.clone())])),
        }
    }
}

fn add(into: &mut Table, from: &Table) {
    for (name, value) in from {
        match (into.get_mut(name), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => add(inner, value),
            _ => drop(into.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
