//! `amphi migrate`: brings an app's databases up to date.

use std::path::Path;

use super::serve::block_on;
use crate::config::Config;
use crate::database::migration;

pub(super) fn run(folder: &Path) -> anyhow::Result<()> {
    let config = Config::load(folder)?;
    let applied = block_on(async {
        tokio::task::spawn_blocking(move || {
            migration::migrate_all(&config, |database, migration| {
                println!("{database}: {migration}");
            })
        })
        .await?
    })?;
    if applied == 0 {
        println!("nothing to do: every database is up to date");
    }
    Ok(())
}
