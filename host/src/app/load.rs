//! Makes an app of its configuration, beside the one that is served: its databases, its modules, its migrations.

use super::App;
use super::database_files::DatabaseFiles;
use crate::config::Config;
use crate::database::{self, migration};
use crate::guest::run::Engines;

/// What is done about migrations that a database does not have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrations {
    /// They are applied.
    Apply,
    /// The app is refused.
    Check,
}

/// Opens the databases, loads the modules and then applies migrations: an app that cannot be served leaves its
/// databases as they were. Databases of the `previous` app that have not changed stay open. `development`: the app is
/// served by `amphi up`. Blocks.
///
/// # Errors
/// When a module, a route, a database or a migration is wrong, or, with [`Migrations::Check`], when a migration has not
/// been applied. The text names it.
pub fn load(
    config: Config,
    engines: &Engines,
    previous: Option<&App>,
    migrations: Migrations,
    development: bool,
) -> anyhow::Result<App> {
    if migrations == Migrations::Check {
        migration::check_all(&config)?;
    }
    let open = previous.map(|app| app.files.still_there(&app.services.databases));
    let databases = database::open_all(&config, &open.unwrap_or_default())?;
    let mut app = App::load(config, engines, databases, development, previous)?;
    if migrations == Migrations::Apply {
        migration::migrate_all(&app.config, |database, migration| {
            tracing::info!(database, migration, "migration applied");
        })?;
    }
    // A migration may have made the file of a database.
    app.files = DatabaseFiles::of(&app.services.databases);
    Ok(app)
}
