//! The app's part of a configuration: what an artifact carries.
//!
//! `amphi.toml` describes an app and one place that runs it. An artifact is for every place, so it has the app's keys
//! alone, and names what it needs of a place in a table `[needs]`. The keys of a place are those in [`is_of_place`];
//! `amphi-host.toml` has them in the same tables ([`super::place`]), and [`super::join`] puts both together again. Each
//! key is in one of the two files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::error::{ConfigError, Location, with_suggestion};
use super::{Config, Storage};

/// The folders of an artifact, as its configuration names them.
pub(super) const COMPONENTS: &str = "components";
pub(super) const STATIC: &str = "static";
pub(super) const MIGRATIONS: &str = "migrations";

/// The app's part of a configuration, and what it needs of a place.
#[derive(Debug, Clone)]
pub struct Portable {
    /// The app's name.
    pub name: String,
    /// What a place has to give.
    pub needs: Needs,
    /// Everything else, as in `amphi.toml`.
    pub(super) table: Table,
}

/// What an app needs of a place: the table `[needs]` of an artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needs {
    /// Databases by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub databases: BTreeMap<String, DatabaseKind>,
    /// Secrets by module and name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, BTreeMap<String, SecretNeed>>,
    /// Folders by module and the folder's name in the guest.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub directories: BTreeMap<String, BTreeMap<String, Access>>,
    /// Tables of `basic-auth`, whose users differ from place to place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Whether its groups of connections are to reach across hosts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nats: bool,
}

/// A kind of database: migrations and statements are for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseKind {
    /// A file of SQLite.
    Sqlite,
    /// A server of PostgreSQL.
    Postgres,
}

impl fmt::Display for DatabaseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DatabaseKind::Sqlite => "SQLite",
            DatabaseKind::Postgres => "PostgreSQL",
        })
    }
}

/// Where a secret may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretNeed {
    /// Somebody has to give it.
    Given,
    /// The host may make it up, once.
    Generated,
}

/// What a module does with a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// It reads.
    Read,
    /// It reads and writes.
    Write,
}

/// The keys of `[server]` that belong to a place.
const OF_SERVER: [&str; 10] = [
    "listen",
    "admin",
    "trusted_proxies",
    "client_address",
    "development_hosts",
    "connections_max",
    "memory_budget_mb",
    "guest_memory_mb",
    "drain_timeout_ms",
    "log_queue_bytes",
];
/// The keys of `[databases.NAME]` that belong to a place.
const OF_DATABASE: [&str; 8] = [
    "sqlite",
    "postgres",
    "readers",
    "busy_timeout_ms",
    "synchronous",
    "connections",
    "connect_timeout_ms",
    "ca_file",
];

/// Whether a key belongs to a place. `path`: the names of the tables that it is in, and its own.
pub(super) fn is_of_place(path: &[&str]) -> bool {
    match path {
        ["server", key] => OF_SERVER.contains(key),
        ["sync_views" | "async_views", _] | ["channels", "nats"] => true,
        ["databases", _, key] => OF_DATABASE.contains(key),
        ["modules", _, "secrets" | "directories"] => true,
        _ => false,
    }
}

/// The keys of a table of built-in middleware that belong to a place. The table names its kind, or is called so.
fn of_middleware(name: &str, table: &Table) -> &'static [&'static str] {
    let kind = table.get("use").and_then(Value::as_str).unwrap_or(name);
    match kind {
        "basic-auth" => &["file", "users"],
        "header-auth" => &["from"],
        _ => &[],
    }
}

/// Why a text is not the app's part of a configuration.
#[derive(Debug)]
pub enum PortableError {
    /// It is not valid by itself.
    Invalid(ConfigError),
    /// It has what no artifact can have: all of it.
    Refused(Vec<String>),
}

impl fmt::Display for PortableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortableError::Invalid(error) => error.fmt(f),
            PortableError::Refused(sentences) => {
                f.write_str("the configuration in the artifact is refused:")?;
                (sentences.iter()).try_for_each(|sentence| write!(f, "\n  - {sentence}"))
            }
        }
    }
}

impl std::error::Error for PortableError {}

impl Portable {
    /// Takes the app's part out of the text of an `amphi.toml`, which `config` was read from. Returns also the names of the
    /// keys that are left to places.
    ///
    /// # Errors
    /// When something that would be in the artifact must not be there: a key that signs sessions.
    pub fn of(config: &Config, text: &str) -> Result<(Portable, Vec<String>), PortableError> {
        let mut table: Table = text
            .parse()
            .map_err(|error| invalid(&config.file, text, &error))?;
        let mut left = Vec::new();
        let mut needs = Needs {
            nats: config.channels.nats.is_some(),
            ..Needs::default()
        };
        for (name, database) in &config.databases {
            let kind = match database.storage {
                Storage::Sqlite(_) => DatabaseKind::Sqlite,
                Storage::Postgres(_) => DatabaseKind::Postgres,
            };
            needs.databases.insert(name.clone(), kind);
        }
        for (name, middleware) in tables(&mut table, "middleware") {
            let keys = of_middleware(&name, middleware);
            if !keys.is_empty() && keys != ["from"] {
                needs.users.push(name.clone());
            }
            for key in keys {
                if middleware.remove(*key).is_some() {
                    left.push(format!("middleware.{name}.{key}"));
                }
            }
        }
        let mut open = Vec::new();
        for (name, module) in tables(&mut table, "modules") {
            module.insert("path".to_owned(), COMPONENTS.into());
            module.remove("build");
            for (key, secret) in inner(module, "secrets") {
                let generate = secret.get("generate").and_then(Value::as_bool);
                let need = match generate {
                    Some(true) => SecretNeed::Generated,
                    _ => SecretNeed::Given,
                };
                needs
                    .secrets
                    .entry(name.clone())
                    .or_default()
                    .insert(key, need);
            }
            let directories = module.get("directories").and_then(Value::as_array);
            for directory in directories.into_iter().flatten() {
                let guest = directory.get("guest").and_then(Value::as_str);
                let access = match directory.get("write").and_then(Value::as_bool) {
                    Some(true) => Access::Write,
                    _ => Access::Read,
                };
                let known = needs.directories.entry(name.clone()).or_default();
                known.insert(guest.unwrap_or_default().to_owned(), access);
            }
            for key in ["session_key", "session_key_previous"] {
                if module.get("settings").and_then(|it| it.get(key)).is_some() {
                    open.push(format!(
                        "`{key}` of module `{name}` is a setting, so everybody who has the artifact would have it: move it to `secrets`"
                    ));
                }
            }
        }
        if !open.is_empty() {
            return Err(PortableError::Refused(open));
        }
        for path in found(&table) {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            if is_of_place(&names) {
                take(&mut table, &names);
                if !matches!(names[..], ["modules", ..]) {
                    left.push(names.join("."));
                }
            }
        }
        for (name, database) in tables(&mut table, "databases") {
            if database.contains_key(MIGRATIONS) {
                database.insert(MIGRATIONS.to_owned(), format!("{MIGRATIONS}/{name}").into());
            }
        }
        if let Some(served) = table.get_mut(STATIC).and_then(Value::as_table_mut) {
            served.insert("dir".to_owned(), STATIC.into());
        }
        let portable = Portable {
            name: config.name.clone(),
            needs,
            table,
        };
        Ok((portable, left))
    }

    /// The text that an artifact has.
    pub fn text(&self) -> String {
        let mut table = self.table.clone();
        let needs = Table::try_from(&self.needs).expect("the needs are plain data");
        table.insert("needs".to_owned(), needs.into());
        toml::to_string(&table).expect("it was read from TOML")
    }

    /// Reads the text of an artifact, whose author may be an attacker. `file`: for messages.
    ///
    /// # Errors
    /// When it is not TOML, has a key that belongs to a place, or has a path that leads out of the artifact.
    pub fn parse(file: &Path, text: &str) -> Result<Portable, PortableError> {
        let mut table: Table = text.parse().map_err(|error| invalid(file, text, &error))?;
        let needs = table.remove("needs").unwrap_or(Value::Table(Table::new()));
        let needs: Needs = needs
            .try_into()
            .map_err(|error: toml::de::Error| invalid(file, text, &error))?;
        let mut refused = Vec::new();
        for path in found(&table) {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            if is_of_place(&names) || matches!(names[..], ["modules", _, "build"]) {
                refused.push(format!("`{}` belongs to a place", names.join(".")));
            }
        }
        for (name, middleware) in tables(&mut table, "middleware") {
            for key in of_middleware(&name, middleware) {
                if middleware.contains_key(*key) {
                    refused.push(format!("`middleware.{name}.{key}` belongs to a place"));
                }
            }
        }
        let mut has_path = |what: String, found: Option<&Value>, wanted: &str| {
            if found.and_then(Value::as_str) != Some(wanted) {
                refused.push(format!("`{what}` has to be \"{wanted}\" in an artifact"));
            }
        };
        for (name, module) in tables(&mut table, "modules") {
            has_path(
                format!("modules.{name}.path"),
                module.get("path"),
                COMPONENTS,
            );
        }
        for (name, database) in tables(&mut table, "databases") {
            if let Some(path) = database.get(MIGRATIONS) {
                let wanted = format!("{MIGRATIONS}/{name}");
                has_path(format!("databases.{name}.migrations"), Some(path), &wanted);
            }
        }
        if let Some(served) = table.get(STATIC) {
            has_path("static.dir".to_owned(), served.get("dir"), STATIC);
        }
        let known: Vec<String> = tables(&mut table, "databases")
            .map(|(name, _)| name)
            .collect();
        for name in known
            .iter()
            .filter(|name| !needs.databases.contains_key(*name))
        {
            refused.push(format!(
                "`[needs]` does not say what kind of database `{name}` is"
            ));
        }
        if !refused.is_empty() {
            return Err(PortableError::Refused(refused));
        }
        let name = table.get("app").and_then(|app| app.get("name"));
        Ok(Portable {
            name: name.and_then(Value::as_str).unwrap_or_default().to_owned(),
            needs,
            table,
        })
    }
}

fn invalid(file: &Path, text: &str, error: &toml::de::Error) -> PortableError {
    PortableError::Invalid(ConfigError {
        file: file.to_owned(),
        location: error.span().map(|span| Location::of(text, span.start)),
        message: with_suggestion(error.message()),
    })
}

/// The tables in a table, by their names.
pub(super) fn tables<'a>(
    table: &'a mut Table,
    name: &str,
) -> impl Iterator<Item = (String, &'a mut Table)> {
    let tables = table.get_mut(name).and_then(Value::as_table_mut);
    let each = tables.into_iter().flatten();
    each.filter_map(|(name, table)| Some((name.clone(), table.as_table_mut()?)))
}

fn inner(table: &Table, name: &str) -> Table {
    let found = table.get(name).and_then(Value::as_table);
    found.cloned().unwrap_or_default()
}

/// The paths of all keys that are at most three tables deep.
fn found(table: &Table) -> Vec<Vec<String>> {
    fn visit(table: &Table, path: &[String], into: &mut Vec<Vec<String>>) {
        for (name, value) in table {
            let mut path = path.to_vec();
            path.push(name.clone());
            if let (Value::Table(table), true) = (value, path.len() < 3) {
                visit(table, &path, into);
            }
            into.push(path);
        }
    }
    let mut into = Vec::new();
    visit(table, &[], &mut into);
    into
}

fn take(table: &mut Table, path: &[&str]) -> Option<Value> {
    match path {
        [] => None,
        [name] => table.remove(*name),
        [name, rest @ ..] => take(table.get_mut(*name)?.as_table_mut()?, rest),
    }
}
