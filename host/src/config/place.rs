//! `amphi-host.toml`: the place that an artifact runs in.
//!
//! A place has the keys of `amphi.toml` that differ from machine to machine, in the same tables, with the folder that the
//! host keeps its versions in (`state`), what it allows an artifact at most (`[grants]`, and the limits in the tables that
//! `amphi.toml` has them in), and which artifacts it takes (`[deploy]`). It is checked by the functions that check
//! `amphi.toml`, before an artifact is looked at.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use toml::{Spanned, Table, Value};

use super::check::Checker;
use super::database::Address;
use super::deploy::{AdminAddress, Deploy};
use super::error::{ConfigError, Location, with_suggestion};
use super::portable::{is_of_place, tables};
use super::{Database, HttpGrant, Limits, Purpose, Storage, overlap, raw};
use crate::http::proxies::Proxies;
use crate::view::Topics;

/// The socket of the admin API in the folder of a place that has no file.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// A place, checked.
#[derive(Debug, Clone)]
pub struct Place {
    /// The `amphi-host.toml`. None: the place is a folder that the host has made for one artifact.
    pub file: Option<PathBuf>,
    /// The folder of versions, and what else the host keeps.
    pub state: PathBuf,
    /// Which artifacts it takes, and who may change what runs.
    pub deploy: Deploy,
    /// What it allows. None: everything but folders and networks that are not public.
    pub(super) allowed: Option<Allowed>,
    /// Its own keys, as `amphi.toml` has them. Paths are absolute.
    pub(super) table: Table,
}

/// What a place allows an artifact at most.
#[derive(Debug, Clone)]
pub(super) struct Allowed {
    pub(super) http: Vec<HttpGrant>,
    pub(super) http_private: Vec<IpNet>,
    pub(super) publish: Vec<Topics>,
    pub(super) subscribe: Vec<Topics>,
    pub(super) channels: Vec<Topics>,
    /// The greatest numbers, in the tables that `amphi.toml` has them in.
    pub(super) limits: Table,
}

impl Place {
    /// Reads a place from its file.
    ///
    /// # Errors
    /// When there is no such file, or when its contents are wrong.
    pub fn load(file: &Path, purpose: Purpose) -> Result<Place, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.to_owned(),
            location: None,
            message: format!("cannot be read: {error}; `--place` names an amphi-host.toml"),
        })?;
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        Place::parse(&file, &text, purpose)
    }

    /// Checks the text of a place. Relative paths start at the folder of `file`.
    ///
    /// # Errors
    /// As [`Place::load`].
    pub fn parse(file: &Path, text: &str, purpose: Purpose) -> Result<Place, ConfigError> {
        let invalid = |error: toml::de::Error| ConfigError {
            file: file.to_owned(),
            location: error.span().map(|span| Location::of(text, span.start)),
            message: with_suggestion(error.message()),
        };
        let raw: raw::Place = toml::from_str(text).map_err(invalid)?;
        let table: Table = text.parse().map_err(invalid)?;
        Checker::new(file, text, purpose).place(raw, table)
    }

    /// The place of an artifact that is served without an `amphi-host.toml`: a folder of its own, which has its databases
    /// and secrets, too.
    pub fn of_its_own(state: &Path) -> Place {
        let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        Place {
            file: None,
            deploy: Deploy {
                listen: Some(AdminAddress::Unix(state.join(ADMIN_SOCKET))),
                ..Deploy::default()
            },
            state,
            allowed: None,
            table: Table::new(),
        }
    }
}

impl Checker<'_> {
    fn place(&self, raw: raw::Place, mut table: Table) -> Result<Place, ConfigError> {
        let server = raw.server.get_ref();
        let listen = (server.listen.iter())
            .map(|address| self.address(address))
            .collect::<Result<Vec<_>, _>>()?;
        let admin = (server.admin.as_ref())
            .map(|address| self.address(address))
            .transpose()?;
        if let Some(overlap) = overlap(&listen, admin) {
            return Err(self.error(&raw.server, overlap));
        }
        self.server(&raw.server)?;
        self.proxies(server)?;
        let limits = self.limits(&raw.limits, &Limits::default())?;
        let mut databases = Table::new();
        for (name, database) in raw.databases {
            let at = database.span().start;
            let database = self.database(name.clone(), database)?;
            if database.migrations.is_some() {
                return Err(self.error_at(at, format!(
                    "`migrations` of the database `{name}` belong to the app, whose artifact has them: take the line out"
                )));
            }
            databases.insert(name, greatest_of(&database).into());
        }
        let nats = match &raw.channels.get_ref().address {
            Some(address) => Some(match address.get_ref() {
                Address::Url(url) => url.clone(),
                Address::Elsewhere(secret) => self.secret_url(address, secret)?,
            }),
            None => None,
        };
        for module in raw.modules.values() {
            for setting in module.settings.values() {
                self.setting(setting)?;
            }
            for (key, secret) in &module.secrets {
                let value = self.secret(secret)?;
                if self.purpose == Purpose::Serve {
                    self.session_key(secret, key, &value)?;
                }
            }
            for directory in &module.directories {
                self.directory(directory)?;
            }
        }
        let allowed = Allowed {
            http: (raw.grants.http.iter())
                .map(|grant| self.http_grant(grant))
                .collect::<Result<_, _>>()?,
            http_private: (raw.grants.http_private.iter())
                .map(|text| {
                    let network = Proxies::parse(text.get_ref());
                    network.map_err(|sentence| self.error(text, sentence))
                })
                .collect::<Result<_, _>>()?,
            publish: self.topics(&raw.grants.publish)?,
            subscribe: self.topics(&raw.grants.subscribe)?,
            channels: self.topics(&raw.grants.channels)?,
            limits: greatest(
                &raw.server,
                &raw.events,
                &raw.sockets,
                &raw.channels,
                &limits,
                databases,
            ),
        };
        let deploy = self.deploy(&raw.deploy, nats)?;
        self.pools(&raw.sync_views, &raw.async_views, &raw.events, &raw.sockets)?;
        self.channels(&raw.channels)?;
        self.only_users(&raw.middleware)?;
        let state = self.folder.join(raw.state.get_ref());
        own_keys(&mut table, self.folder);
        Ok(Place {
            file: Some(self.file.to_owned()),
            state,
            deploy,
            allowed: Some(allowed),
            table,
        })
    }

    /// Refuses options of middleware that belong to the app.
    fn only_users(
        &self,
        middleware: &std::collections::BTreeMap<
            String,
            Spanned<std::collections::BTreeMap<String, Spanned<Value>>>,
        >,
    ) -> Result<(), ConfigError> {
        for (name, table) in middleware {
            for (key, value) in table.get_ref() {
                if !["file", "users", "from"].contains(&key.as_str()) {
                    return Err(self.error(value, format!(
                        "`{key}` of `[middleware.{name}]` belongs to the app: a place has the `file` and `users` of `basic-auth`, and `from` of `header-auth`"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// The greatest numbers that an artifact can ask for: those that the place names, and otherwise the defaults.
fn greatest(
    server: &Spanned<raw::Server>,
    events: &Spanned<raw::Events>,
    sockets: &Spanned<raw::Sockets>,
    channels: &Spanned<raw::Channels>,
    limits: &Limits,
    databases: Table,
) -> Table {
    let plain = "the tables of limits are plain data";
    let mut greatest = Table::new();
    let mut add = |name: &str, table: Result<Table, toml::ser::Error>| {
        greatest.insert(name.to_owned(), table.expect(plain).into());
    };
    add("server", Table::try_from(server.get_ref()));
    add("events", Table::try_from(events.get_ref()));
    add("sockets", Table::try_from(sockets.get_ref()));
    add("channels", Table::try_from(channels.get_ref()));
    add("limits", Table::try_from(limits));
    add("databases", Ok(databases));
    greatest
}

/// The same for a database: the numbers that the app may ask for.
fn greatest_of(database: &Database) -> Table {
    let number = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
    let mut table = Table::from_iter([
        ("queue_max".to_owned(), number(database.queue_max as u64)),
        (
            "value_max_bytes".to_owned(),
            number(database.value_max_bytes),
        ),
        (
            "acquire_timeout_ms".to_owned(),
            number(database.acquire_timeout.as_millis() as u64),
        ),
    ]);
    if let Storage::Sqlite(file) = &database.storage {
        let bytes = number(file.transaction_max_bytes);
        table.insert("transaction_max_bytes".to_owned(), bytes);
    }
    table
}

/// Leaves the keys of a place that `amphi.toml` has, too, and makes their paths absolute.
fn own_keys(table: &mut Table, folder: &Path) {
    let absolute = |value: Option<&mut Value>| {
        if let Some(Value::String(path)) = value {
            *path = folder.join(&*path).display().to_string();
        }
    };
    let in_file = |value: Option<&mut Value>| {
        absolute(value.and_then(|value| value.get_mut("file")));
    };
    table.retain(|name, _| !["state", "grants", "limits", "deploy"].contains(&name));
    for (name, inner) in table.iter_mut() {
        if let (Value::Table(inner), false) = (
            inner,
            ["databases", "modules", "middleware"].contains(&name.as_str()),
        ) {
            inner.retain(|key, _| is_of_place(&[name, key]));
        }
    }
    for (name, database) in tables(table, "databases") {
        database.retain(|key, _| is_of_place(&["databases", &name, key]));
        absolute(database.get_mut("sqlite"));
        absolute(database.get_mut("ca_file"));
        in_file(database.get_mut("postgres"));
    }
    for (_, module) in tables(table, "modules") {
        let secrets = module.get_mut("secrets").and_then(Value::as_table_mut);
        for (_, secret) in secrets.into_iter().flatten() {
            in_file(Some(secret));
        }
        let directories = module.get_mut("directories").and_then(Value::as_array_mut);
        for directory in directories.into_iter().flatten() {
            absolute(directory.get_mut("host"));
        }
    }
    for (_, middleware) in tables(table, "middleware") {
        absolute(middleware.get_mut("file"));
    }
    in_file(table.get_mut("channels").and_then(|it| it.get_mut("nats")));
}
