//! `amphi inspect`: shows a component's mode, imports and views, before it is deployed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use super::routes::{print, table};
use crate::app::module::{self, World};
use crate::channels::{Hub, Limits};
use crate::config::{Module, Server};
use crate::database::Databases;
use crate::guest::capability::config::INSPECTED;
use crate::guest::capability::http::client::Client;
use crate::guest::run::Engines;
use crate::guest::store::Services;
use crate::telemetry::log::escaped_line;

#[derive(Args)]
pub(super) struct Arguments {
    /// A component.
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let file = &arguments.file;
    let engines = Engines::for_looking()?;
    let inspection = module::inspect(&engines, file).with_context(|| file.display().to_string())?;
    let imports: Vec<String> = inspection
        .imports
        .iter()
        .map(|import| escaped_line(import))
        .collect();
    let imports = match imports.join("\n         ") {
        none if none.is_empty() => "nothing".to_owned(),
        imports => imports,
    };
    let services = Arc::new(Services {
        databases: Databases::new(),
        http: Arc::new(Client::new()?),
        hub: Hub::new(Limits::default(), Vec::new()),
        development: false,
        allowed_origins: String::new(),
        body_limits: Server::default().body_limits(),
        trusted_headers: Vec::new(),
    });
    // The views are only listed and never called, so the component may import everything, and its settings are not
    // checked.
    let grants = Arc::new(Module {
        ungranted_imports: true,
        settings: [(INSPECTED.to_owned(), "true".to_owned())].into(),
        ..Module::without_grants("inspected", file)
    });
    let mode = inspection.mode;
    let world = match inspection.world {
        World::Views => "amphi:view",
        World::WasiHttp => "wasi:http",
    };
    let views = super::serve::block_on(async {
        tokio::task::spawn_blocking(move || {
            module::describe(&engines, &services, &inspection, &grants)
        })
        .await?
    });
    let views = views.with_context(|| file.display().to_string())?;
    let rows = views.iter().map(|view| {
        let atomic = if view.transaction.atomic {
            "atomic"
        } else {
            "-"
        };
        [
            view.method().to_owned(),
            view.pattern().to_owned(),
            view.name.clone(),
            mode.to_string(),
            atomic.to_owned(),
        ]
    });
    let views = table(["METHOD", "PATH", "VIEW", "MODE", "ATOMIC"], rows.collect());
    print(&format!(
        "mode     {mode}\nexports  {world}\nimports  {imports}\n\n{views}"
    ))
}
