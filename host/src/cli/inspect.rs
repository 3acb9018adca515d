//! `amphi inspect`: shows a component's mode, imports and views, or what an artifact has and asks for, before it is
//! deployed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use super::package::{Looked, look};
use super::routes::{self, print, table};
use super::source::is_artifact;
use crate::app::module::{self, World};
use crate::artifact::{Artifact, CONFIG_FILE, Kind, signature};
use crate::channels::{Hub, Limits};
use crate::config::{Access, HttpGrant, Module, Needs, SecretNeed, Server};
use crate::database::Databases;
use crate::guest::capability::config::INSPECTED;
use crate::guest::capability::http::client::Client;
use crate::guest::run::Engines;
use crate::guest::store::Services;
use crate::telemetry::log::escaped_line;

#[derive(Args)]
pub(super) struct Arguments {
    /// A component, or an artifact (FILE.amphi).
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let file = &arguments.file;
    if is_artifact(file) {
        return print(&artifact(file)?);
    }
    let engines = Engines::for_looking()?;
    let inspection = module::inspect(&engines, file).with_context(|| file.display().to_string())?;
    let imports = imports(&inspection.imports, "\n         ");
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
    let views = super::block_on::block_on(async {
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

fn imports(imports: &[String], between: &str) -> String {
    match imports.is_empty() {
        true => "nothing".to_owned(),
        false => {
            let imports: Vec<String> = imports.iter().map(|import| escaped_line(import)).collect();
            imports.join(between)
        }
    }
}

/// What an artifact has, asks for and needs. Its contents are compared with their digests, and its components are
/// loaded as a host would.
fn artifact(file: &Path) -> anyhow::Result<String> {
    let artifact = Artifact::open(file)?;
    artifact.verify()?;
    let Looked {
        portable,
        app,
        folder,
    } = look(&artifact)?;
    let signers = match signature::names(&artifact.signatures) {
        names if names.is_empty() => "nobody".to_owned(),
        names => format!("{} (not checked)", names.join(", ")),
    };
    let mut text = format!(
        "artifact {}\napp      {}\nsigned   by {signers}\n",
        artifact.digest(),
        escaped_line(&portable.name)
    );
    let mut lines = |title: &str, lines: Vec<String>| {
        let mut title = title;
        for line in lines {
            text += &format!("{title:<8} {}\n", escaped_line(&line));
            title = "";
        }
    };
    lines("needs", needs(&portable.needs));
    let modules = &app.config.modules;
    lines("grants", modules.iter().flat_map(grants).collect());
    text += &format!("\n{}\n", routes::list(&app));
    let config = &artifact.manifest.config;
    let config = (CONFIG_FILE, config.size, config.digest);
    let files = artifact.manifest.files.iter();
    let files = files.map(|file| (&*file.path, file.size, file.digest));
    let row = |(path, size, digest): (&str, u64, _)| {
        [path.to_owned(), format!("{size}"), format!("{digest}")]
    };
    let rows = std::iter::once(config).chain(files).map(row).collect();
    text += &table(["FILE", "BYTES", "DIGEST"], rows);
    let engines = Engines::for_looking()?;
    for file in &artifact.manifest.files {
        if file.kind == Kind::Component {
            let component = folder.path().join("app").join(&file.path);
            let inspection = module::inspect(&engines, &component)?;
            let imports = imports(&inspection.imports, "\n  ");
            text += &format!(
                "\n{} is {} and imports\n  {imports}\n",
                escaped_line(&file.path),
                inspection.mode
            );
        }
    }
    Ok(text)
}

fn needs(needs: &Needs) -> Vec<String> {
    let databases = needs.databases.iter();
    let mut lines: Vec<String> = databases
        .map(|(name, kind)| format!("the database `{name}`, {kind}"))
        .collect();
    for (module, secrets) in &needs.secrets {
        lines.extend(secrets.iter().map(|(key, need)| match need {
            SecretNeed::Given => format!("the secret `{key}` of module `{module}`"),
            SecretNeed::Generated => {
                format!("the secret `{key}` of module `{module}`, which the host can make")
            }
        }));
    }
    for (module, directories) in &needs.directories {
        lines.extend(directories.iter().map(|(guest, access)| match access {
            Access::Read => format!("a folder for `{guest}` of module `{module}`, to read"),
            Access::Write => format!("a folder for `{guest}` of module `{module}`, to write in"),
        }));
    }
    let users = needs.users.iter();
    lines.extend(users.map(|name| format!("users for `{name}`")));
    lines.extend(needs.nats.then(|| "a NATS server".to_owned()));
    lines
}

/// The grants that a module asks for.
fn grants(module: &Module) -> Vec<String> {
    let http = module.http.iter().map(|grant| match grant {
        HttpGrant::Own => "self".to_owned(),
        HttpGrant::Any => "*".to_owned(),
        HttpGrant::Origin(origin) => origin.clone(),
    });
    let networks = module.http_private.iter().map(ToString::to_string);
    let topics = |topics: &[crate::view::Topics]| -> Vec<String> {
        topics.iter().map(|it| it.as_str().to_owned()).collect()
    };
    let all = [
        ("databases", module.databases.clone()),
        ("http", http.collect()),
        ("http_private", networks.collect()),
        ("publish", topics(&module.publish)),
        ("subscribe", topics(&module.subscribe)),
        ("channels", topics(&module.channels)),
        (
            "subrequests",
            module
                .subrequests
                .then(|| "true".to_owned())
                .into_iter()
                .collect(),
        ),
        ("memory_mb", vec![module.limits.memory_mb.to_string()]),
    ];
    let asked = all.into_iter().filter(|(_, asked)| !asked.is_empty());
    asked
        .map(|(key, asked)| format!("{}: {key} {}", module.name, asked.join(", ")))
        .collect()
}
