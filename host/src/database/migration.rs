//! Migrations: a folder of `V1__name.sql`, `V2__…`, each applied once, in order, in a transaction that also
//! records it. Hosts that start at once wait for each other: on PostgreSQL for a lock of the server's, on SQLite
//! for a lock file beside the database.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, bail};
use refinery::{Migration, Runner, Target};
use rusqlite::Connection;

use super::postgres;
use crate::config::{Config, Database, PostgresServer, SqliteFile, Storage};

/// The table in which refinery records what is applied.
const HISTORY: &str = "refinery_schema_history";

/// Applies the migrations that are new to every database, tells of each (its database and its name), and returns
/// how many there were. There is no way back: do it last, when nothing else can fail. Blocks; on a thread of a
/// runtime.
///
/// # Errors
/// When a file's name or SQL is wrong, or differs from what was applied under that name before; the text names the
/// database. What was applied until then stays.
pub fn migrate_all(config: &Config, tell: impl Fn(&str, &str)) -> anyhow::Result<usize> {
    let mut count = 0;
    for (name, database) in &config.databases {
        let applied = migrate(database, &mut |migration| {
            count += 1;
            tell(name, migration);
        });
        applied.with_context(|| format!("database `{name}`: migrations"))?;
    }
    Ok(count)
}

/// Whether everything is applied, for a host that applies nothing itself. Blocks; on a thread of a runtime.
///
/// # Errors
/// When something is not, with what to do; or when that cannot be told.
pub fn check_all(config: &Config) -> anyhow::Result<()> {
    for (name, database) in &config.databases {
        let pending =
            pending(database).with_context(|| format!("database `{name}`: migrations"))?;
        if !pending.is_empty() {
            bail!(
                "database `{name}` lacks {} of its migrations ({}): apply them with `amphi migrate {}`",
                pending.len(),
                pending.join(", "),
                config.folder().display()
            );
        }
    }
    Ok(())
}

fn migrate(database: &Database, tell: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let Some(files) = files(database)? else {
        return Ok(());
    };
    match &database.storage {
        Storage::Sqlite(sqlite) => migrate_sqlite(sqlite, &files, tell),
        Storage::Postgres(server) => {
            tokio::runtime::Handle::current().block_on(migrate_postgres(server, &files, tell))
        }
    }
}

/// The migrations in the database's folder, in order. None: it has no folder.
fn files(database: &Database) -> anyhow::Result<Option<Vec<Migration>>> {
    let Some(folder) = &database.migrations else {
        return Ok(None);
    };
    let mut files = refinery::load_sql_migrations(folder)
        .with_context(|| format!("reading {}", folder.display()))?;
    files.sort();
    Ok(Some(files))
}

/// Each in a transaction of its own, with its record: `up_to` one after the other.
fn runner(files: &[Migration], up_to: &Migration) -> Runner {
    Runner::new(files)
        .set_grouped(true)
        .set_target(Target::Version(up_to.version()))
}

fn migrate_sqlite(
    sqlite: &SqliteFile,
    files: &[Migration],
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    if let Some(folder) = sqlite.file.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
    }
    let _lock = locked(&sqlite.file)?;
    let mut connection = Connection::open(&sqlite.file)?;
    connection.busy_timeout(sqlite.busy_timeout)?;
    for file in files {
        let run = runner(files, file).run(&mut connection);
        let report = run.with_context(|| file.to_string())?;
        for applied in report.applied_migrations() {
            tell(&applied.to_string());
        }
    }
    Ok(())
}

/// Until the file is closed, nobody else migrates this database.
fn locked(database: &Path) -> anyhow::Result<File> {
    let mut path = database.as_os_str().to_owned();
    path.push("-migrating");
    let path = Path::new(&path);
    let lock =
        File::create(path).with_context(|| format!("making the lock file {}", path.display()))?;
    lock.lock()
        .with_context(|| format!("waiting for the lock of {}", path.display()))?;
    Ok(lock)
}

async fn migrate_postgres(
    server: &PostgresServer,
    files: &[Migration],
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let mut session = postgres::connect_alone(server).await?;
    // Let go when the connection closes, whatever happens. The number is nobody else's: "amphi" in ASCII.
    session
        .batch_execute("select pg_advisory_lock(418447911017)")
        .await
        .context("waiting for another host that migrates")?;
    for file in files {
        let run = runner(files, file).run_async(&mut *session).await;
        let report = run.with_context(|| file.to_string())?;
        for applied in report.applied_migrations() {
            tell(&applied.to_string());
        }
    }
    Ok(())
}

fn pending(database: &Database) -> anyhow::Result<Vec<String>> {
    let Some(files) = files(database)? else {
        return Ok(Vec::new());
    };
    let runner = Runner::new(&files);
    let applied = match &database.storage {
        Storage::Sqlite(sqlite) if !sqlite.file.is_file() => Vec::new(),
        Storage::Sqlite(sqlite) => {
            let mut connection = Connection::open(&sqlite.file)?;
            connection.busy_timeout(sqlite.busy_timeout)?;
            match connection.table_exists(None, HISTORY)? {
                true => runner.get_applied_migrations(&mut connection)?,
                false => Vec::new(),
            }
        }
        Storage::Postgres(server) => {
            tokio::runtime::Handle::current().block_on(applied_postgres(server, &runner))?
        }
    };
    let missing = |file: &&Migration| applied.iter().all(|done| done.version() != file.version());
    Ok(files
        .iter()
        .filter(missing)
        .map(ToString::to_string)
        .collect())
}

async fn applied_postgres(
    server: &PostgresServer,
    runner: &Runner,
) -> anyhow::Result<Vec<Migration>> {
    let mut session = postgres::connect_alone(server).await?;
    let known = session
        .query_one("select to_regclass($1) is not null", &[&HISTORY])
        .await?;
    match known.get(0) {
        true => Ok(runner.get_applied_migrations_async(&mut *session).await?),
        false => Ok(Vec::new()),
    }
}
