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
pub(super) fn of_middleware(name: &str, table: &Table) -> &'static [&'static str] {
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
                f.write_str("this configuration cannot be that of an artifact:")?;
                (sentences.iter()).try_for_each(|sentence| write!(f, "\n  - {sentence}"))
            }
        }
    }
}

impl std::error::Error for PortableError {}

/// Why an artifact cannot run in a place.
#[derive(Debug)]
pub enum JoinError {
    /// The place does not have or allow what the artifact asks for: all of it, and the name of the place.
    Refused(Vec<String>, String),
    /// Together they are no valid configuration.
    Invalid(ConfigError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JoinError::Invalid(error) => error.fmt(f),
            JoinError::Refused(sentences, place) => {
                write!(f, "the app asks for what {place} does not give:")?;
                (sentences.iter()).try_for_each(|sentence| write!(f, "\n  - {sentence}"))
            }
        }
    }
}

impl std::error::Error for JoinError {}

impl Portable {
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

pub(super) fn invalid(file: &Path, text: &str, error: &toml::de::Error) -> PortableError {
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

/// The paths of all keys that are at most three tables deep.
pub(super) fn found(table: &Table) -> Vec<Vec<String>> {
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
