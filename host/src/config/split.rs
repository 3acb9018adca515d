//! Takes the app's part out of an `amphi.toml`: the beginning of an artifact.

use toml::{Table, Value};

use super::portable::{
    Access, COMPONENTS, DatabaseKind, MIGRATIONS, Needs, Portable, PortableError, STATIC,
    SecretNeed, found, invalid, is_of_place, of_middleware, tables,
};
use super::{Config, Storage};

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
        // A table without keys would be another text, and so another digest.
        table.retain(|_, value| value.as_table().is_none_or(|table| !table.is_empty()));
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
}

fn inner(table: &Table, name: &str) -> Table {
    let found = table.get(name).and_then(Value::as_table);
    found.cloned().unwrap_or_default()
}

fn take(table: &mut Table, path: &[&str]) -> Option<Value> {
    match path {
        [] => None,
        [name] => table.remove(*name),
        [name, rest @ ..] => take(table.get_mut(*name)?.as_table_mut()?, rest),
    }
}
