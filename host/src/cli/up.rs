//! `amphi up`: builds and serves an app, and does so again whenever a source file changes, without dropping a request.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::Serving;
use super::block_on::block_on;
use super::build::{self, NotCompiled, Purpose};
use super::serve::Running;
use crate::app::file_id::FileId;
use crate::app::host::Host;
use crate::app::load::{Migrations, load};
use crate::config::{Config, Source, Storage};
use crate::database::migration;

/// Editors write a file in several steps, so a build starts when no file has changed for `QUIET`, or after
/// `LONGEST_WAIT`.
const QUIET: Duration = Duration::from_millis(150);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How often a folder that is gone is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(super) fn run(serving: Serving) -> anyhow::Result<()> {
    let mut config = serving.config()?;
    // Once: what they write would be another change.
    build::run_commands(&config)?;
    let built = build::build(&mut config, Purpose::Development)?;
    block_on(async {
        let (changed, changes) = mpsc::channel(1);
        let watching = Watching::start(&config, &built.packages, changed)?;
        let print = fingerprint(&config);
        let running = Running::start(config.clone(), Migrations::Apply, true).await?;
        tracing::info!("watching for changes; Ctrl-C ends");
        let host = Arc::clone(&running.host);
        let rebuilding = Rebuilding {
            serving,
            host,
            started: config,
        };
        tokio::spawn(follow(rebuilding, changes, watching, print));
        running.serve().await
    })
}

/// Rebuilds and swaps the app after each change. If that fails, the error is logged, and the app stays as it was.
async fn follow(
    rebuilding: Rebuilding,
    mut changes: mpsc::Receiver<()>,
    mut watching: Watching,
    mut print: u64,
) {
    let rebuilding = Arc::new(rebuilding);
    while watching.changed(&mut changes).await {
        quiet(&mut changes, QUIET, LONGEST_WAIT).await;
        // Renew the watches before the build reads the files, so that later changes are noticed, also in folders that
        // were made again.
        watching.renew();
        let again = Arc::clone(&rebuilding);
        let rebuilt = tokio::task::spawn_blocking(move || again.run(print));
        match rebuilt.await {
            Ok(Ok((new_print, config, packages))) => {
                print = new_print;
                rebuilding.host.broken.store(None);
                watching.add(&config, &packages);
            }
            Ok(Err(error)) => {
                // The change that repairs the app may be in a package that is not watched yet.
                let again = Arc::clone(&rebuilding);
                let packages = tokio::task::spawn_blocking(move || again.packages());
                if let Ok(Ok((config, packages))) = packages.await {
                    watching.add(&config, &packages);
                }
                tracing::error!("{error:#}; the app goes on as it was");
                let compiler = error.downcast_ref().map(NotCompiled::plain);
                let text = format!("{error:#}\n\n{}", compiler.unwrap_or_default());
                rebuilding.host.broken.store(Some(Arc::new(text)));
            }
            Err(error) => {
                tracing::error!(%error, "rebuilding broke off; the app goes on as it was")
            }
        }
    }
}

/// Waits until nothing has changed for `quiet`, but no longer than `longest`.
async fn quiet(changes: &mut mpsc::Receiver<()>, quiet: Duration, longest: Duration) {
    let more =
        async { while let Ok(Some(())) = tokio::time::timeout(quiet, changes.recv()).await {} };
    let _ = tokio::time::timeout(longest, more).await;
}

/// What every rebuild starts from.
struct Rebuilding {
    serving: Serving,
    host: Arc<Host>,
    /// The configuration that sockets, pools and loops were made for.
    started: Config,
}

impl Rebuilding {
    /// The configuration, and the folders of the local packages, whether or not they compile.
    fn packages(&self) -> anyhow::Result<(Config, Vec<PathBuf>)> {
        let config = self.serving.config()?;
        let packages = build::packages(&config)?;
        Ok((config, packages))
    }

    fn run(&self, before: u64) -> anyhow::Result<(u64, Config, Vec<PathBuf>)> {
        let since = Instant::now();
        let mut config = self.serving.config()?;
        let built = build::build(&mut config, Purpose::Development)?;
        let print = fingerprint(&config);
        if print != before {
            let old = self.host.app.load_full();
            let app = load(
                config.clone(),
                &self.host.engines,
                Some(&old),
                Migrations::Apply,
                true,
            )?;
            for setting in config.needing_restart(&self.started) {
                tracing::warn!("`{setting}` has changed: that needs a restart");
            }
            self.host.swap(Arc::new(app));
            tracing::info!(took = ?since.elapsed(), "swapped: new requests get the new views, those in flight finish with the old ones");
        }
        Ok((print, config, built.packages))
    }
}

/// A hash of the configuration, components and migrations. If it is the same as before, there is nothing to swap.
fn fingerprint(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut add = |path: &Path| (path, std::fs::read(path).ok()).hash(&mut hasher);
    add(&config.file);
    let artifacts = config.artifacts();
    for file in config
        .modules
        .iter()
        .filter_map(|module| crate::app::module::files(module, &artifacts).ok())
        .flatten()
    {
        add(&file);
    }
    for folder in config
        .databases
        .values()
        .filter_map(|database| database.migrations.as_ref())
    {
        // Files that cannot be read are reported when the app is loaded.
        let files = migration::paths(folder).unwrap_or_default();
        files.iter().for_each(|file| add(file));
    }
    hasher.finish()
}

/// The watcher, which stops when this is dropped, and the folders that it watches.
struct Watching {
    watcher: RecommendedWatcher,
    /// The watched folders with their identities. The system watches a folder and not a path, so another folder with
    /// the same path needs a watch of its own.
    watched: BTreeMap<PathBuf, FileId>,
    /// Whether a folder that has to be watched is gone. The system does not report when the folder is back.
    is_incomplete: bool,
    concern: Arc<RwLock<Concern>>,
}

/// The files that start a build when they change.
#[derive(Default)]
struct Concern {
    /// Folders of the app, of packages and of components.
    folders: BTreeSet<PathBuf>,
    /// Folders inside of `folders` that do not count, because the app writes to them, or reads their files anew for
    /// each request.
    ignored: BTreeSet<PathBuf>,
    databases: BTreeSet<PathBuf>,
}

impl Watching {
    fn start(
        config: &Config,
        packages: &[PathBuf],
        changed: mpsc::Sender<()>,
    ) -> anyhow::Result<Watching> {
        let concern = Arc::new(RwLock::new(Concern::default()));
        let known = Arc::clone(&concern);
        let notice = move |event: notify::Result<notify::Event>| {
            // Compilers read files, and reading a file is an event, too. Only changes count.
            if event.is_ok_and(|event| {
                let concern = known.read();
                !event.kind.is_access() && event.paths.iter().any(|path| concern.includes(path))
            }) {
                // If the channel is full, a build is about to start, which sees this change, too.
                let _ = changed.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(notice).context("watching for changes")?;
        let mut watching = Watching {
            watcher,
            watched: BTreeMap::new(),
            is_incomplete: false,
            concern,
        };
        watching.add(config, packages);
        Ok(watching)
    }

    /// Waits for a change. False: the watcher has ended, and no further change is reported.
    async fn changed(&mut self, changes: &mut mpsc::Receiver<()>) -> bool {
        loop {
            if !self.is_incomplete {
                return changes.recv().await.is_some();
            }
            if let Ok(change) = tokio::time::timeout(LOOK_AGAIN, changes.recv()).await {
                return change.is_some();
            }
            self.renew();
            if !self.is_incomplete {
                return true;
            }
        }
    }

    /// Watches the folders of the app and of its local packages.
    fn add(&mut self, config: &Config, packages: &[PathBuf]) {
        self.concern.write().add(config, packages);
        self.renew();
    }

    /// Watches all folders that exist and are not watched yet: each folder itself, and the folders in it, with all that
    /// is below them. Hidden folders and `target` are left out.
    fn renew(&mut self) {
        let folders = self.concern.read().folders.clone();
        self.is_incomplete = false;
        self.watched.retain(|folder, _| folder.is_dir());
        for folder in folders {
            if !folder.is_dir() {
                self.is_incomplete = true;
                continue;
            }
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
        let Some(id) = FileId::of(folder) else {
            return;
        };
        match self.watched.insert(folder.to_owned(), id) {
            Some(known) if known == id => return,
            Some(_) => {
                // Ends the watch of the former folder with this path. The watcher may have ended that watch already.
                let _ = self.watcher.unwatch(folder);
            }
            None => {}
        }
        if let Err(error) = self.watcher.watch(folder, mode) {
            tracing::warn!(folder = %folder.display(), %error, "a folder cannot be watched: changes in it go unnoticed");
        }
    }
}

impl Concern {
    fn add(&mut self, config: &Config, packages: &[PathBuf]) {
        self.folders
            .extend(packages.iter().map(|folder| real(folder)));
        self.folders.insert(real(config.folder()));
        for module in &config.modules {
            match &module.source {
                Source::Wasm(file) => self.folders.extend(file.parent().map(real)),
                Source::Built(folder) => drop(self.folders.insert(real(folder))),
                Source::Crate(_) => {}
            }
            let granted = module.directories.iter();
            self.ignored.extend(granted.map(|dir| real(&dir.host)));
        }
        let files = config.static_files.iter();
        self.ignored.extend(files.map(|files| real(&files.dir)));
        let files = (config.databases.values()).filter_map(|database| match &database.storage {
            Storage::Sqlite(sqlite) => Some(real(&sqlite.file)),
            Storage::Postgres(_) => None,
        });
        self.databases.extend(files);
    }

    /// Whether a change of `path` starts a build. Files in `target` and `.git` are no sources. Only the path below the
    /// watched folder counts, because the app itself may be in a folder with such a name.
    fn includes(&self, path: &Path) -> bool {
        let built =
            |part: Component<'_>| matches!(part.as_os_str().to_str(), Some("target" | ".git"));
        let source = |folder: &PathBuf| {
            path.strip_prefix(folder)
                .is_ok_and(|below| !below.components().any(built))
        };
        self.folders.iter().any(source)
            && !self.ignored.iter().any(|folder| path.starts_with(folder))
            && !self.databases.iter().any(|file| is_of_database(path, file))
    }
}

/// Whether a path is the file of a database, a file that SQLite or a migration keeps beside that file, or the folder
/// that the file is in.
fn is_of_database(path: &Path, database: &Path) -> bool {
    if database.parent() == Some(path) {
        return true;
    }
    let Some(rest) =
        (path.as_os_str().as_encoded_bytes()).strip_prefix(database.as_os_str().as_encoded_bytes())
    else {
        return false;
    };
    matches!(rest, b"" | b"-wal" | b"-shm" | b"-journal" | b"-migrating")
}

/// The path without links and `..`, for comparisons. The last parts of the path need not exist yet.
fn real(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> BTreeSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn sources_set_off_a_build_and_what_the_app_writes_does_not() {
        let concern = Concern {
            folders: paths(&["/target/.git/shop", "/target/.git/lib"]),
            ignored: paths(&["/target/.git/shop/static"]),
            databases: paths(&["/target/.git/shop/data/shop.db"]),
        };
        let includes = |path: &str| concern.includes(&Path::new("/target/.git").join(path));
        assert!(includes("shop/src/lib.rs"));
        assert!(includes("lib/src/lib.rs"));
        assert!(includes("shop/static.rs"));
        assert!(includes("shop/data/shop.db.rs"));
        assert!(includes("shop/data/shop.db-wal.rs"));
        assert!(includes("shop/targets/a"));
        assert!(
            !includes("shop/data"),
            "the folder that is made for the database"
        );
        assert!(!includes("shop/static/style.css"));
        assert!(!includes("shop/target/release/shop.d"));
        assert!(!includes("shop/src/target/x"));
        assert!(!includes("shop/.git/HEAD"));
        for beside in ["", "-wal", "-shm", "-journal"] {
            assert!(!includes(&format!("shop/data/shop.db{beside}")), "{beside}");
        }
        assert!(!includes("elsewhere/src/lib.rs"));
    }

    /// Version control can remove folders and make them anew, for example when it changes to another branch.
    #[tokio::test]
    async fn folders_that_are_made_anew_are_watched_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let app = folder.path().join("app");
        let library = folder.path().join("library");
        let make = |folder: &Path| {
            std::fs::create_dir_all(folder.join("src")).expect("making folders");
            std::fs::write(folder.join("src/lib.rs"), "").expect("writing a file");
        };
        make(&app);
        make(&library);
        std::fs::write(app.join("Cargo.toml"), "").expect("writing a file");
        let toml = "[app]\nname = \"a\"\n[modules.a]\npath = \".\"\n";
        let config = Config::parse(&app.join("amphi.toml"), toml).expect("it is right");
        let (changed, mut changes) = mpsc::channel(1);
        let packages = [app.clone(), library.clone()];
        let mut watching = Watching::start(&config, &packages, changed).expect("it watches");
        for path in [app.join("src"), library] {
            std::fs::remove_dir_all(&path).expect("removing a folder");
            make(path.strip_prefix(&app).map_or(&path, |_| &app));
            // Wait for the events of the removal and take all of them, so that the next event is that of the new file.
            let soon = Duration::from_secs(10);
            let noticed = tokio::time::timeout(soon, watching.changed(&mut changes)).await;
            assert_eq!(noticed, Ok(true), "{}", path.display());
            quiet(&mut changes, QUIET, LONGEST_WAIT).await;
            watching.renew();
            let file = path
                .ancestors()
                .take(1)
                .map(|path| path.join("new.rs"))
                .next();
            std::fs::write(file.expect("a file"), "").expect("writing a file");
            let noticed = tokio::time::timeout(soon, watching.changed(&mut changes)).await;
            assert_eq!(noticed, Ok(true), "a file in {}", path.display());
            quiet(&mut changes, QUIET, LONGEST_WAIT).await;
        }
    }

    /// A folder that is gone for a while: the system does not report that it is back.
    #[tokio::test]
    async fn a_folder_that_comes_back_later_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [app, library] = ["app", "library"].map(|name| folder.path().join(name));
        std::fs::create_dir_all(&app).expect("making a folder");
        std::fs::write(app.join("Cargo.toml"), "").expect("writing a file");
        let toml = "[app]\nname = \"a\"\n[modules.a]\npath = \".\"\n";
        let config = Config::parse(&app.join("amphi.toml"), toml).expect("it is right");
        let (changed, mut changes) = mpsc::channel(1);
        let packages = [app, library.clone()];
        let mut watching = Watching::start(&config, &packages, changed).expect("it watches");
        assert!(watching.is_incomplete);
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::fs::create_dir(&library).expect("making a folder");
        };
        let (noticed, ()) = tokio::join!(watching.changed(&mut changes), later);
        assert!(noticed && !watching.is_incomplete);
    }

    #[test]
    fn paths_are_compared_without_detours() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let here = folder.path().canonicalize().expect("it exists");
        std::fs::create_dir(here.join("a")).expect("making a folder");
        assert_eq!(real(&here.join("a/../new/x.db")), here.join("new/x.db"));
    }

    #[tokio::test]
    async fn a_stream_of_changes_does_not_put_off_the_build() {
        let (sender, mut changes) = mpsc::channel(1);
        let writing = tokio::spawn(async move {
            while sender.send(()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let since = Instant::now();
        let (short, longest) = (Duration::from_secs(5), Duration::from_millis(100));
        quiet(&mut changes, short, longest).await;
        assert!(since.elapsed() < short, "{:?}", since.elapsed());
        drop(changes);
        writing.await.expect("it ends");
    }
}
