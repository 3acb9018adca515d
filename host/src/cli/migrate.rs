//! `amphi migrate`: applies the migrations that an app's databases do not have yet.

use std::cell::RefCell;

use super::block_on::block_on;
use super::routes::print;
use super::source::Placed;
use crate::config::Purpose;
use crate::database::migration;

pub(super) fn run(placed: &Placed) -> anyhow::Result<()> {
    let config = placed.resolve(Purpose::Migrate)?.config;
    let (applied, printed) = block_on(async {
        tokio::task::spawn_blocking(move || {
            // Migrations go on even if their names cannot be printed. The first error of printing is returned at the
            // end.
            let printed = RefCell::new(Ok(()));
            let applied = migration::migrate_all(&config, |database, migration| {
                let said = print(&format!("{database}: {migration}\n"));
                let before = printed.replace(Ok(()));
                *printed.borrow_mut() = before.and(said);
            });
            applied.map(|applied| (applied, printed.into_inner()))
        })
        .await?
    })?;
    if applied == 0 {
        return print("nothing to do: every database is up to date\n");
    }
    printed
}
