//! Modules: loads a component from its file, checks it, links it and asks it for its views; or says in a sentence what
//! is wrong with it.
//!
//! A component's mode is read from the type of its `handle` (R1). Its imports are checked against its mode and its
//! grants before it is linked, because wrong imports are common mistakes, and the linker would only report a type
//! error.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};

use crate::config;
use crate::contract::types;
use crate::guest::bindings::{AsyncViewsPre, SyncViewsPre};
use crate::guest::capability::{Faces, capability, interface, link_async, link_sync};
use crate::guest::run::{AsyncComponent, Engines, GuestResult, SyncComponent};
use crate::guest::store::{Guest, Services, Work};
use crate::scope::{Origin, Scope, Setup};
use crate::telemetry::error::Failure;
use crate::view::{Kind, Mode, Options, Topics, View};

/// The most retries of a request after conflicts, whatever its view asks for.
const RETRIES_MAX: u32 = 10;
/// The time limit on `describe`, which lists a component's views.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(5);

/// A component that is linked and ready to be called.
pub struct Module {
    /// The configuration of its module: name, grants and limits.
    pub grants: Arc<config::Module>,
    /// Its views.
    pub views: Vec<Arc<View>>,
    services: Arc<Services>,
    component: Prepared,
}

enum Prepared {
    Sync(SyncComponent),
    Async(AsyncComponent),
}

/// What a component's types say, before anything is granted to it.
pub struct Inspection {
    /// Sync or async.
    pub mode: Mode,
    /// The names of all its imports.
    pub imports: Vec<String>,
    component: Component,
}

impl Module {
    /// Loads the component in `file` with the given grants, and asks it for its views. Blocks while the component
    /// compiles.
    ///
    /// # Errors
    /// When the file is not a component, is for another world, imports something that its mode or grants do not allow,
    /// or describes a view that is not valid. The sentence names what is wrong.
    pub fn load(
        engines: &Engines,
        services: &Arc<Services>,
        grants: &Arc<config::Module>,
        file: &Path,
    ) -> anyhow::Result<Module> {
        let place = || format!("module `{}` ({})", grants.name, file.display());
        let inspection = inspect(engines, file).with_context(place)?;
        check_grants(&inspection, grants).with_context(place)?;
        let component = prepare(engines, &inspection, grants).with_context(place)?;
        let views = component
            .views(services, grants, inspection.mode)
            .with_context(place)?;
        Ok(Module {
            grants: Arc::clone(grants),
            services: Arc::clone(services),
            views,
            component,
        })
    }

    /// Calls a view of a sync module on this thread.
    ///
    /// # Errors
    /// A trap or a limit, explained.
    ///
    /// # Panics
    /// When the module is async.
    pub fn call_sync(&self, work: Work, request: &types::Request) -> Result<GuestResult, Failure> {
        match &self.component {
            Prepared::Sync(component) => component.call(work, |work| self.guest(work), request),
            Prepared::Async(_) => unreachable!("the view says that it is async"),
        }
    }

    /// Calls a view of an async module on this loop.
    ///
    /// # Errors
    /// A trap or a limit, explained.
    ///
    /// # Panics
    /// When the module is sync.
    pub async fn call_async(
        &self,
        work: Work,
        request: types::Request,
    ) -> Result<GuestResult, Failure> {
        match &self.component {
            Prepared::Async(component) => {
                let guest = |work| self.guest(work);
                component.call(work, guest, request).await
            }
            Prepared::Sync(_) => unreachable!("the view says that it is sync"),
        }
    }

    fn guest(&self, work: Work) -> Guest {
        Guest::new(work, &self.grants, &self.services)
    }

    /// Drops kept instances that are too old.
    pub fn sweep(&self) {
        match &self.component {
            Prepared::Sync(component) => component.sweep(),
            Prepared::Async(component) => component.sweep(),
        }
    }
}

impl Prepared {
    /// Asks the component for its views, and checks them.
    fn views(
        &self,
        services: &Arc<Services>,
        grants: &Arc<config::Module>,
        mode: Mode,
    ) -> anyhow::Result<Vec<Arc<View>>> {
        // The stack frames of the failure are left out: after a panic they show nothing but the panic handler.
        let described = self.describe(services, grants, mode).map_err(|failure| {
            let Failure { detail, .. } = failure;
            let seconds = DESCRIBE_LIMIT.as_secs();
            anyhow!("`describe` failed: {detail} (it has {seconds} s)")
        })?;
        views(&described, grants, mode)
    }

    fn describe(
        &self,
        services: &Arc<Services>,
        grants: &Arc<config::Module>,
        mode: Mode,
    ) -> Result<Vec<types::ViewInfo>, Failure> {
        let view = Arc::new(View::unrouted(
            &grants.name,
            "describe",
            mode,
            DESCRIBE_LIMIT,
        ));
        let scope = Scope::open(&Origin::host(), &view, &grants.limits, Setup::now());
        let member = Arc::new(scope.transaction.first_member());
        let guest = Guest::new(Work::new(scope, view, member), grants, services);
        match self {
            Prepared::Sync(component) => component.describe(guest),
            Prepared::Async(component) => {
                tokio::runtime::Handle::current().block_on(component.describe(guest))
            }
        }
    }
}

/// The component files of a module: the configured one, or those that `amphi build` has put into `artifacts`.
///
/// # Errors
/// When the module is a crate that has not been built.
pub fn files(module: &config::Module, artifacts: &Path) -> anyhow::Result<Vec<PathBuf>> {
    match &module.source {
        config::Source::Wasm(file) => Ok(vec![file.clone()]),
        config::Source::Crate(folder) => {
            let built: Vec<PathBuf> = ([Mode::Sync, Mode::Async].iter())
                .map(|mode| artifact(artifacts, &module.name, *mode))
                .filter(|file| file.is_file())
                .collect();
            if built.is_empty() {
                bail!(
                    "module `{}`: the crate {} has not been built: run `amphi build` (what `amphi up` builds is for `amphi up` alone)",
                    module.name,
                    folder.display()
                );
            }
            Ok(built)
        }
    }
}

/// The file of the component that `amphi build` compiles from a module, for one mode.
pub fn artifact(artifacts: &Path, module: &str, mode: Mode) -> PathBuf {
    artifacts.join(format!("{module}.{mode}.wasm"))
}

/// Compiles the component in `file` (or takes it from the cache), and reads its mode and its imports.
///
/// # Errors
/// When the file is not a component, has no views, or has imports or exports of the other mode.
pub fn inspect(engines: &Engines, file: &Path) -> anyhow::Result<Inspection> {
    let bytes = std::fs::read(file).context("cannot be read")?;
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => {}
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => bail!(
            "this is a core WebAssembly module, not a component: build it for the target `wasm32-wasip2`, or wrap it with `wasm-tools component new`"
        ),
        _ => bail!("this is not a WebAssembly component"),
    }
    // The sync engine refuses async functions: so a component that it accepts is sync, and only one that it refuses can
    // be async.
    let (component, engine) = match Component::new(&engines.sync, &bytes) {
        Ok(component) => (component, &engines.sync),
        Err(_) => {
            let component = Component::new(&engines.r#async, &bytes);
            (
                component
                    .map_err(anyhow::Error::from)
                    .context("the component is not valid")?,
                &engines.r#async,
            )
        }
    };
    let component_type = component.component_type();
    let imports: Vec<String> = component_type
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut exports = Vec::new();
    let mut handle = None;
    for (name, item) in component_type.exports(engine) {
        exports.push(format!("`{name}`"));
        if let ("handle", ComponentItem::ComponentFunc(function)) = (name, &item.ty) {
            handle = Some(function.async_());
        }
    }
    let Some(is_async) = handle else {
        bail!(
            "the component has no views: it exports {}, and not the `handle` of amphi:view's worlds `sync-views` and `async-views`",
            if exports.is_empty() {
                "nothing".into()
            } else {
                exports.join(", ")
            },
        );
    };
    let mode = if is_async { Mode::Async } else { Mode::Sync };
    check_mode(mode, &imports)?;
    if mode == Mode::Sync && !Engine::same(engine, &engines.sync) {
        bail!(
            "its `handle` is sync, but something else in it is async, so it cannot run on a sync worker: build it against the world `sync-views`"
        );
    }
    Ok(Inspection {
        mode,
        imports,
        component,
    })
}

fn check_mode(mode: Mode, imports: &[String]) -> anyhow::Result<()> {
    for import in imports {
        let Some((capability, is_async)) = interface(import).and_then(capability) else {
            continue;
        };
        let name = capability.name;
        match (mode, &capability.faces) {
            (Mode::Async, Faces::PerMode { .. }) if !is_async => bail!(
                "the component is async and imports `{import}`, which blocks: it would stop everything else the view has in flight. Use `amphi:view/{name}-async` (build against the world `async-views`), or make the views sync"
            ),
            (Mode::Sync, Faces::AsyncOnly(_)) => bail!(
                "the component is sync and imports `{import}`, which only async views can wait for: make the views async (the world `async-views`), or sleep with WASI's clock"
            ),
            (Mode::Sync, Faces::PerMode { .. }) if is_async => bail!(
                "the component is sync and imports `{import}`, whose functions are async: use `amphi:view/{name}` (build against the world `sync-views`), or make the views async"
            ),
            _ => {}
        }
    }
    Ok(())
}

fn check_grants(inspection: &Inspection, grants: &config::Module) -> anyhow::Result<()> {
    if grants.ungranted_imports {
        return Ok(());
    }
    for import in &inspection.imports {
        let imported = interface(import).and_then(capability);
        let Some(missing) = imported.and_then(|(it, _)| (it.missing_grant)(grants)) else {
            continue;
        };
        bail!(
            "the component imports `{import}`, which module `{}` is not granted: add {missing} to `[modules.{0}]`, or take the call out of the views (a toolchain that imports everything regardless needs `ungranted_imports = true`; each call is denied then)",
            grants.name
        );
    }
    Ok(())
}

/// Links the component. This is done once, so that a new instance only needs memory.
fn prepare(
    engines: &Engines,
    inspection: &Inspection,
    grants: &config::Module,
) -> anyhow::Result<Prepared> {
    let known = |import: &str| import.starts_with("wasi:") || interface(import).is_some();
    if let Some(unknown) = inspection.imports.iter().find(|import| !known(import)) {
        bail!(
            "the component imports `{unknown}`, which Amphi does not provide: it has `amphi:view/*` and WASI 0.2 (clocks, random, stdio, granted folders)"
        );
    }
    let component = &inspection.component;
    let prepared = match inspection.mode {
        Mode::Sync => {
            let mut linker = Linker::new(&engines.sync);
            link_sync(&mut linker)?;
            linker
                .instantiate_pre(component)
                .and_then(SyncViewsPre::new)
                .map(|pre| Prepared::Sync(SyncComponent::new(engines, pre, grants.reuse.clone())))
        }
        Mode::Async => {
            let mut linker = Linker::new(&engines.r#async);
            link_async(&mut linker, grants.blocking_wasi)?;
            linker
                .instantiate_pre(component)
                .and_then(AsyncViewsPre::new)
                .map(|pre| Prepared::Async(AsyncComponent::new(engines, pre, grants.reuse.clone())))
        }
    };
    prepared.map_err(anyhow::Error::from).with_context(|| {
        format!(
            "the component does not fit the world `{}-views` of amphi:view@0.1.0",
            inspection.mode
        )
    })
}

fn views(
    described: &[types::ViewInfo],
    grants: &config::Module,
    mode: Mode,
) -> anyhow::Result<Vec<Arc<View>>> {
    if described.is_empty() {
        bail!("`describe` lists no view");
    }
    let mut ids = HashSet::new();
    let limits = &grants.limits;
    described
        .iter()
        .map(|info| {
            let name = &info.name;
            if !ids.insert(info.id) {
                bail!(
                    "`describe` gives the id {} to two views, one of them `{name}`",
                    info.id
                );
            }
            let kind = kind(&info.kind, name, grants)?;
            let lowered = |limit: Option<u32>, max: u64| {
                Duration::from_millis(limit.map_or(max, |limit| max.min(limit.into())))
            };
            let by_default = || match &kind {
                Kind::Route { method, .. } => grants.atomic.applies_to(method.as_str()),
                Kind::Middleware => false,
                Kind::Subscriber(_) => grants.atomic.applies_to("EVENT"),
            };
            Ok(Arc::new(View {
                module: grants.name.clone(),
                name: name.clone(),
                id: info.id,
                mode,
                transaction: Options {
                    atomic: info.atomic.unwrap_or_else(by_default),
                    read_only: info.read_only,
                    isolation: info.isolation,
                },
                kind,
                middleware: info.middleware.clone(),
                retries: info.retries.min(RETRIES_MAX),
                cpu: lowered(info.cpu_ms, limits.cpu_ms),
                timeout: lowered(info.timeout_ms, limits.timeout_ms),
            }))
        })
        .collect()
}

/// Checks the description of the function `name`, and returns its kind: what makes the host call the function.
fn kind(described: &types::ViewKind, name: &str, grants: &config::Module) -> anyhow::Result<Kind> {
    match described {
        types::ViewKind::Route(types::Route { method, pattern }) => {
            let is_method = |c: char| c.is_ascii_uppercase() || c == '-';
            if method != "*" && (method.is_empty() || !method.chars().all(is_method)) {
                bail!(
                    "view `{name}` has the method `{method}`: a method is written in capital letters, as GET, POST or PURGE; `*` is any"
                );
            }
            if !pattern.starts_with('/') {
                bail!("view `{name}` has the pattern `{pattern}`: a pattern starts with `/`");
            }
            Ok(Kind::Route {
                method: http::Method::from_bytes(method.as_bytes())
                    .context("the method was just checked")?,
                pattern: match (grants.mount.as_str(), pattern.as_str()) {
                    ("", pattern) => pattern.to_owned(),
                    (mount, "/") => mount.to_owned(),
                    (mount, pattern) => format!("{mount}{pattern}"),
                },
            })
        }
        types::ViewKind::Middleware => Ok(Kind::Middleware),
        types::ViewKind::Subscriber(text) => {
            let topics = Topics::parse(text)
                .map_err(|sentence| anyhow!("subscriber `{name}`: {sentence}"))?;
            if !grants.ungranted_imports
                && !grants
                    .subscribe
                    .iter()
                    .any(|granted| granted.cover(&topics))
            {
                bail!(
                    "`{name}` subscribes to `{text}`, which module `{}` is not granted: add `subscribe = [\"{text}\"]` to `[modules.{0}]`",
                    grants.name
                );
            }
            Ok(Kind::Subscriber(topics))
        }
    }
}

/// The views of an inspected component, for `amphi inspect`. The imports are not checked against `grants`.
///
/// # Errors
/// As [`Module::load`].
pub fn describe(
    engines: &Engines,
    services: &Arc<Services>,
    inspection: &Inspection,
    grants: &Arc<config::Module>,
) -> anyhow::Result<Vec<Arc<View>>> {
    prepare(engines, inspection, grants)?.views(services, grants, inspection.mode)
}
