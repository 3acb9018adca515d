//! `amphi routes`: lists an app's routes.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::app::{App, module};
use crate::config::{self, Config};
use crate::database::Databases;
use crate::guest::run::Engines;
use crate::telemetry::log::escaped_line;

pub(super) fn run(folder: &Path) -> anyhow::Result<()> {
    let mut config = Config::load_for(folder, config::Purpose::Check)?;
    let is_built = |artifacts: &Path| {
        let files = |module| module::files(module, artifacts);
        config.modules.iter().all(|module| files(module).is_ok())
    };
    // If only `amphi up` has built the app so far, its components are used.
    let development = config.artifacts().join("development");
    if !is_built(&config.artifacts()) && is_built(&development) {
        config.artifacts_in = Some(development);
    }
    let app = check(config)?;
    print(&list(&app))
}

/// The table of an app's routes.
pub(super) fn list(app: &App) -> String {
    let mut rows: Vec<[String; 6]> = (app.views.iter())
        .map(|view| {
            let atomic = if view.transaction.atomic {
                "atomic"
            } else {
                "-"
            };
            [
                view.method().to_owned(),
                view.pattern().to_owned(),
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
    table(["METHOD", "PATH", "MODULE", "VIEW", "MODE", "ATOMIC"], rows)
}

/// Loads an app's modules and routes without serving it or touching its databases.
pub(super) fn check(config: Config) -> anyhow::Result<App> {
    let engines = Engines::for_looking()?;
    super::block_on::block_on(async {
        tokio::task::spawn_blocking(move || {
            App::load(config, &engines, Databases::new(), false, None)
        })
        .await?
    })
}

/// Formats a table whose columns are as wide as their widest text. Texts can come from a component, so characters that
/// control a terminal are escaped.
pub(super) fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned))
        .chain(
            rows.into_iter()
                .map(|row| row.map(|text| escaped_line(&text))),
        )
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let lengths = rows.iter().map(|row| row[column].chars().count());
        lengths.max().unwrap_or(0)
    });
    let mut table = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(text, width)| format!("{text:<width$}  "));
        table.push_str(cells.collect::<String>().trim_end());
        table.push('\n');
    }
    table
}

/// Writes to standard output. A reader that closes the pipe early is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}
