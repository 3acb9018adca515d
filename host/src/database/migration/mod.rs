//! Migrations: a folder of `V1__name.sql`, `V2__…`. Each file is applied once, in order. A file and its record are
//! written in one transaction, unless the file says `-- amphi: no-transaction`. Hosts that start at the same time wait
//! for each other: on PostgreSQL for an advisory lock, on SQLite for a lock file beside the database.
//!
//! `amphi migrate` and `amphi serve` compare files and records with the same function (`pending`), so neither asks for
//! something that the other refuses.

mod files;
mod postgres;
mod sqlite;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::config::{Config, Database, Storage};
use files::File;

/// The table of applied migrations.
const HISTORY: &str = "amphi_migrations";
/// The table of Amphi 0.1.0, which used the crate `refinery`. Its records are taken over.
const REFINERY_HISTORY: &str = "refinery_schema_history";

/// The record of an applied migration.
#[derive(Debug)]
struct Applied {
    version: i64,
    name: String,
    checksum: String,
    at: String,
}

/// Checks the files in a migrations folder: their names and directives.
///
/// # Errors
/// When a file is wrong, or cannot be read.
pub fn check_files(folder: &Path) -> anyhow::Result<()> {
    files::read(folder).map(drop)
}

/// The files in a migrations folder, in the order of their paths.
///
/// # Errors
/// When the folder, or a folder in it, cannot be read.
pub fn paths(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    files::find(folder, &mut paths)?;
    Ok(paths)
}

/// Applies the new migrations of every database, and returns their number. Calls `tell` after each, with the name of
/// the database and that of the migration. Migrations cannot be undone: call this last, when nothing else can fail.
/// Blocks. Must run on a thread of a runtime.
///
/// # Errors
/// When the name or SQL of a file is wrong, or the file differs from the one that was applied under its name. The text
/// names the database. Migrations that were applied before stay applied.
pub fn migrate_all(config: &Config, tell: impl Fn(&str, &str)) -> anyhow::Result<usize> {
    let mut count = 0;
    for (name, database) in &config.databases {
        let applied = migrate(database, &mut |migration| {
            count += 1;
            tell(name, &migration.to_string());
        });
        applied.with_context(|| format!("database `{name}`"))?;
    }
    Ok(count)
}

/// Checks that all migrations are applied, for a host that applies none itself. Blocks. Must run on a thread of a
/// runtime.
///
/// # Errors
/// When a migration is not applied; the text says what to do. Also when the records cannot be read.
pub fn check_all(config: &Config) -> anyhow::Result<()> {
    for (name, database) in &config.databases {
        let Some(folder) = &database.migrations else {
            continue;
        };
        let check = || {
            let files = files::read(folder)?;
            let applied = match &database.storage {
                Storage::Sqlite(sqlite) => sqlite::applied(sqlite)?,
                Storage::Postgres(server) => {
                    tokio::runtime::Handle::current().block_on(postgres::applied(server))?
                }
            };
            let pending = pending(&files, &applied)?;
            Ok(pending.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let pending: anyhow::Result<_> = check();
        let pending = pending.with_context(|| format!("database `{name}`"))?;
        if !pending.is_empty() {
            bail!(
                "database `{name}` lacks {} of its migrations ({}): apply them with `amphi migrate {}`",
                pending.len(),
                pending.join(", "),
                config.named
            );
        }
    }
    Ok(())
}

fn migrate(database: &Database, tell: &mut dyn FnMut(&File)) -> anyhow::Result<()> {
    let Some(folder) = &database.migrations else {
        return Ok(());
    };
    let files = files::read(folder)?;
    match &database.storage {
        Storage::Sqlite(sqlite) => sqlite::migrate(sqlite, &files, tell),
        Storage::Postgres(server) => {
            tokio::runtime::Handle::current().block_on(postgres::migrate(server, &files, tell))
        }
    }
}

/// The files that are not applied yet, in order.
///
/// Records above the newest file are no error: they belong to a newer deploy, and an older app may be served again.
///
/// # Errors
/// When files and records contradict each other.
fn pending<'f>(files: &'f [File], applied: &[Applied]) -> anyhow::Result<Vec<&'f File>> {
    let newest_file = files.last().map_or(-1, |file| file.version);
    for Applied { version, name, .. } in applied {
        let known = files.iter().any(|file| file.version == *version);
        if !known && *version < newest_file {
            bail!(
                "`V{version}__{name}` was applied to this database, and its file is missing: bring back V{version}__{name}.sql as it was"
            );
        }
    }
    let newest = applied.iter().max_by_key(|record| record.version);
    let mut pending = Vec::new();
    for file in files {
        let path = file.path.display();
        match applied.iter().find(|record| record.version == file.version) {
            Some(record) if record.name != file.name => bail!(
                "{path}: the migration with this number was applied as `V{}__{}`: give the file that name back, or, if it is another migration, a number of its own",
                record.version,
                record.name
            ),
            Some(record) if !file.has_checksum(&record.checksum) => bail!(
                "{path} was changed after it was applied ({}): bring it back as it was, and write what is to change into a new migration",
                record.at
            ),
            Some(_) => {}
            None => match newest.filter(|newest| newest.version > file.version) {
                Some(newest) => bail!(
                    "{path} is new, and its number comes before that of `V{}__{}`, which is applied already: migrations are applied in the order of their numbers, so rename it to V{}__{}.sql",
                    newest.version,
                    newest.name,
                    newest.version.max(newest_file).saturating_add(1),
                    file.name
                ),
                None => pending.push(file),
            },
        }
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: i64, name: &str) -> File {
        File {
            version,
            name: name.to_owned(),
            path: format!("V{version}__{name}.sql").into(),
            sql: format!("select {version};"),
            in_transaction: true,
        }
    }

    fn applied(version: i64, name: &str) -> Applied {
        Applied {
            version,
            name: name.to_owned(),
            checksum: file(version, name).checksum(),
            at: "2026-11-28".to_owned(),
        }
    }

    fn planned(files: &[File], records: &[Applied]) -> Result<Vec<i64>, String> {
        let pending = pending(files, records).map_err(|error| error.to_string())?;
        Ok(pending.iter().map(|file| file.version).collect())
    }

    #[test]
    fn what_is_new_and_in_order_is_pending() {
        let files = [file(1, "a"), file(2, "b"), file(3, "c")];
        assert_eq!(planned(&files, &[]), Ok(vec![1, 2, 3]));
        assert_eq!(planned(&files, &[applied(1, "a")]), Ok(vec![2, 3]));
        // An older app is served again: there is a record of a newer deploy that it has no file for.
        let records = [1, 2, 3, 4]
            .map(|version| applied(version, ["", "a", "b", "c", "d"][version as usize]));
        assert_eq!(planned(&files, &records), Ok(vec![]));
    }

    #[test]
    fn files_and_records_that_contradict_each_other_are_refused() {
        let files = [file(1, "a"), file(2, "b"), file(3, "c")];
        for (records, part) in [
            (
                vec![applied(1, "a"), applied(3, "c")],
                "rename it to V4__b.sql",
            ),
            (vec![applied(1, "a"), applied(2, "x")], "applied as `V2__x`"),
            (vec![applied(0, "z")], "`V0__z` was applied"),
            (
                vec![Applied {
                    checksum: "other".to_owned(),
                    ..applied(1, "a")
                }],
                "V1__a.sql was changed",
            ),
        ] {
            let refused = planned(&files, &records).expect_err(part);
            assert!(refused.contains(part), "{refused}");
        }
    }
}
