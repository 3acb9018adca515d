//! `amphi routes`: what an app answers.

use std::io::Write as _;
use std::path::Path;

use crate::app::App;
use crate::config::{AsyncViews, Config, SyncViews};
use crate::database::Databases;
use crate::run::Engines;

pub(super) fn run(folder: &Path) -> anyhow::Result<()> {
    let app = check(Config::load(folder)?)?;
    let mut rows: Vec<[String; 6]> = (app.views.iter())
        .map(|view| {
            let atomic = if view.atomic { "atomic" } else { "-" };
            [
                view.method.to_string(),
                view.pattern.clone(),
                view.module.clone(),
                view.name.clone(),
                view.mode.to_string(),
                atomic.to_owned(),
            ]
        })
        .collect();
    if let Some(files) = &app.config.static_files {
        let none = || "-".to_owned();
        rows.push([
            "GET".into(),
            format!("{}/{{*path}}", files.mount),
            none(),
            "(static files)".into(),
            none(),
            none(),
        ]);
    }
    rows.sort_by(|a, b| (&a[1], &a[0]).cmp(&(&b[1], &b[0])));
    table(
        ["METHOD", "PATH", "MODULE", "VIEW", "MODE", "ATOMIC"].map(str::to_owned),
        rows,
    )?;
    Ok(())
}

/// Loads an app's modules and routes without serving it or touching its databases.
pub(super) fn check(config: Config) -> anyhow::Result<App> {
    let engines = Engines::new(
        &SyncViews {
            workers_max: 1,
            ..config.sync_views.clone()
        },
        &AsyncViews {
            in_flight_max: 1,
            ..config.async_views.clone()
        },
    )?;
    super::serve::block_on(async {
        tokio::task::spawn_blocking(move || App::load(config, &engines, Databases::new(), None))
            .await?
    })
}

/// Prints columns as wide as their widest text.
pub(super) fn table<const N: usize>(
    head: [String; N],
    rows: Vec<[String; N]>,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let widths: [usize; N] = std::array::from_fn(|column| {
        std::iter::once(&head)
            .chain(&rows)
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    for row in std::iter::once(&head).chain(&rows) {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(text, width)| format!("{text:<width$}  "))
            .collect();
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
