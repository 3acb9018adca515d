//! `amphi up`: build, serve, and again whenever a source file changes, without dropping a request.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::serve::{Running, block_on, load};
use super::{Serving, build};
use crate::config::{Config, Source};
use crate::request::Host;

/// Editors write a file in several steps: wait until it is quiet for this long.
const QUIET: Duration = Duration::from_millis(150);

pub(super) fn run(serving: Serving) -> anyhow::Result<()> {
    let config = serving.config()?;
    let packages = build::build(&config)?;
    block_on(async {
        let (changed, changes) = mpsc::channel(1);
        let watching = Watching::start(&config, &packages, changed)?;
        let print = fingerprint(&config);
        let running = Running::start(config).await?;
        tracing::info!("watching for changes; Ctrl-C ends");
        tokio::spawn(follow(
            serving,
            Arc::clone(&running.host),
            changes,
            watching,
            print,
        ));
        running.serve().await
    })
}

/// Rebuilds and swaps after each change. What fails is logged, and the app goes on as it was.
async fn follow(
    serving: Serving,
    host: Arc<Host>,
    mut changes: mpsc::Receiver<()>,
    mut watching: Watching,
    mut print: u64,
) {
    let serving = Arc::new(serving);
    while changes.recv().await.is_some() {
        while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {}
        let (serving, host) = (Arc::clone(&serving), Arc::clone(&host));
        let rebuilt = tokio::task::spawn_blocking(move || rebuild(&serving, &host, print));
        match rebuilt.await {
            Ok(Ok((new_print, config, packages))) => {
                print = new_print;
                watching.add(&config, &packages);
            }
            Ok(Err(error)) => tracing::error!("{error:#}; the app goes on as it was"),
            Err(error) => {
                tracing::error!(%error, "rebuilding broke off; the app goes on as it was")
            }
        }
    }
}

fn rebuild(
    serving: &Serving,
    host: &Host,
    before: u64,
) -> anyhow::Result<(u64, Config, Vec<PathBuf>)> {
    let since = Instant::now();
    let config = serving.config()?;
    let packages = build::build(&config)?;
    let print = fingerprint(&config);
    if print != before {
        let old = host.app.load_full();
        let app = load(config.clone(), &host.engines, Some(&old))?;
        if app.config.listen != old.config.listen {
            tracing::warn!("`listen` has changed: that needs a restart");
        }
        host.app.store(Arc::new(app));
        tracing::info!(took = ?since.elapsed(), "swapped: new requests get the new views, those in flight finish with the old ones");
    }
    Ok((print, config, packages))
}

/// What makes an app differ from what is served: its configuration, components and migrations.
fn fingerprint(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut add = |path: &Path| std::fs::read(path).ok().hash(&mut hasher);
    add(&config.file);
    let artifacts = config.artifacts();
    for file in config
        .modules
        .iter()
        .filter_map(|module| crate::module::files(module, &artifacts).ok())
        .flatten()
    {
        add(&file);
    }
    for folder in config
        .databases
        .values()
        .filter_map(|database| database.migrations.as_ref())
    {
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        files.iter().for_each(|file| add(file));
    }
    hasher.finish()
}

/// The watched folders, and the watcher that lives as long as this.
struct Watching {
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
}

impl Watching {
    fn start(
        config: &Config,
        packages: &[PathBuf],
        changed: mpsc::Sender<()>,
    ) -> anyhow::Result<Watching> {
        // What the app itself writes or what is read anew anyway must not set off a build.
        let mut ignored: Vec<PathBuf> = config
            .databases
            .values()
            .map(|database| database.sqlite.clone())
            .collect();
        ignored.extend(config.static_files.iter().map(|files| files.dir.clone()));
        ignored.extend(
            config
                .modules
                .iter()
                .flat_map(|module| &module.directories)
                .map(|dir| dir.host.clone()),
        );
        let notice = move |event: notify::Result<notify::Event>| {
            let relevant = |path: &Path| {
                let text = path.to_string_lossy();
                let hidden = path
                    .components()
                    .any(|part| part.as_os_str() == "target" || part.as_os_str() == ".git");
                !hidden
                    && !ignored
                        .iter()
                        .any(|own| text.starts_with(&*own.to_string_lossy()))
            };
            // Compilers read files, too.
            if event.is_ok_and(|event| {
                !event.kind.is_access() && event.paths.iter().any(|path| relevant(path))
            }) {
                // A build that is to come sees this change too.
                let _ = changed.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notice).context("watching for changes")?;
        let mut watching = Watching {
            watcher,
            watched: BTreeSet::new(),
        };
        watching.add(config, packages);
        Ok(watching)
    }

    /// Watches the folders of the app and of its local packages: themselves, and what is below them but `target`.
    fn add(&mut self, config: &Config, packages: &[PathBuf]) {
        let wasm = config
            .modules
            .iter()
            .filter_map(|module| match &module.source {
                Source::Wasm(file) => file.parent().map(Path::to_owned),
                Source::Crate(_) => None,
            });
        let folders: Vec<PathBuf> = packages
            .iter()
            .cloned()
            .chain([config.folder().to_owned()])
            .chain(wasm)
            .collect();
        for folder in folders {
            self.watch(&folder, RecursiveMode::NonRecursive);
            let below = std::fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            let hidden = |path: &Path| {
                path.file_name()
                    .is_none_or(|name| name == "target" || name.to_string_lossy().starts_with('.'))
            };
            for folder in below.filter(|path| path.is_dir() && !hidden(path)) {
                self.watch(&folder, RecursiveMode::Recursive);
            }
        }
    }

    fn watch(&mut self, folder: &Path, mode: RecursiveMode) {
        if !self.watched.insert(folder.to_owned()) {
            return;
        }
        if let Err(error) = self.watcher.watch(folder, mode) {
            tracing::warn!(folder = %folder.display(), %error, "a folder cannot be watched: changes in it go unnoticed");
        }
    }
}
