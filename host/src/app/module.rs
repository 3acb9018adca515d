//! Modules: loads a component from its file, checks it, links it and asks it for its views; or says in a sentence what
//! is wrong with it.
//!
//! A component's mode is read from the type of its `handle` (R1). Its imports are checked against its mode and its
//! grants before it is linked, because wrong imports are common mistakes, and the linker would only report a type
//! error.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{Error as WasiError, WasiBody};

use crate::config::{self, Atomic};
use crate::contract::types;
use crate::guest::bindings::{AsyncViewsPre, SyncViewsPre};
use crate::guest::capability::{
    Faces, capability, interface, link_async, link_handler, link_incoming_handler,
    link_next_handler, link_sync,
};
use crate::guest::run::{
    AsyncComponent, Engines, GuestResult, Handler, Incoming, IncomingHandler, MayStream,
    SyncComponent,
};
use crate::guest::store::{Guest, Services, Shared, UsualMemory, Work};
use crate::http::body::RequestBody;
use crate::http::message::text;
use crate::http::proxies::FORWARDED_PROTO;
use crate::scope::{Origin, Scope, Setup};
use crate::telemetry::error::Failure;
use crate::view::{Kind, Mode, Options, Topics, View};

/// The most retries of a request after conflicts, whatever its view asks for.
const RETRIES_MAX: u32 = 10;
/// The time limit on `describe`, which lists a component's views.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(5);

/// A component that is linked and ready to be called.
pub struct Module {
    /// What its instances share.
    pub shared: Arc<Shared>,
    /// Its views.
    pub views: Vec<Arc<View>>,
    component: Prepared,
}

enum Prepared {
    Sync(Arc<SyncComponent>),
    Async(Arc<AsyncComponent>),
    IncomingHandler(Arc<IncomingHandler>),
    Handler(Arc<Handler>),
}

/// Which functions of a component the host calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// Those of the contract: `describe` and `handle`.
    Views,
    /// That of `wasi:http`: one view for every method and path below the module's mount.
    WasiHttp,
}

/// What a component's types say, before anything is granted to it.
pub struct Inspection {
    /// Sync or async.
    pub mode: Mode,
    /// Whether it is a component of the contract or of `wasi:http`.
    pub world: World,
    /// The names of all its imports.
    pub imports: Vec<String>,
    /// Whether it calls a handler of `wasi:http`.
    calls_handler: bool,
    component: Component,
}

impl Inspection {
    /// Whether it is middleware of `wasi:http`: a handler that calls a handler.
    fn is_plain_middleware(&self) -> bool {
        self.world == World::WasiHttp && self.calls_handler
    }
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
        let shared = shared(services, grants);
        let views = component.views(&shared, &inspection).with_context(place)?;
        Ok(Module {
            shared,
            views,
            component,
        })
    }

    /// Calls a view of a sync module on this thread. `streams`: whether the call of a plain component may go on after
    /// its head.
    ///
    /// # Errors
    /// A trap or a limit, explained.
    ///
    /// # Panics
    /// When the module is async.
    pub fn call_sync(
        self: &Arc<Self>,
        work: Work,
        request: types::Request,
        streams: MayStream,
    ) -> Result<GuestResult, Failure> {
        match &self.component {
            Prepared::Sync(component) => {
                component.call(work, |work| self.guest(work, true), &request)
            }
            Prepared::IncomingHandler(component) => {
                let request = wasi_request(request, &work)?;
                let guest = |work| self.guest(work, false);
                component.call(work, guest, request, streams)
            }
            Prepared::Async(_) | Prepared::Handler(_) => {
                unreachable!("the view says that it is async")
            }
        }
    }

    /// Calls a view of an async module on this loop. `streams`: as for [`Module::call_sync`].
    ///
    /// # Errors
    /// A trap or a limit, explained.
    ///
    /// # Panics
    /// When the module is sync.
    pub async fn call_async(
        self: &Arc<Self>,
        work: Work,
        request: types::Request,
        streams: MayStream,
    ) -> Result<GuestResult, Failure> {
        match &self.component {
            Prepared::Async(component) => {
                let guest = |work| self.guest(work, false);
                component.call(work, guest, request).await
            }
            Prepared::Handler(component) => {
                let request = wasi_request(request, &work)?;
                let guest = |work| self.guest(work, false);
                let call = component.call(work, guest, request, streams);
                // Boxed, so that the other kind of call does not take its room.
                Box::pin(call).await
            }
            Prepared::Sync(_) | Prepared::IncomingHandler(_) => {
                unreachable!("the view says that it is sync")
            }
        }
    }

    fn guest(&self, work: Work, blocks: bool) -> Guest {
        Guest::new(work, blocks, &self.shared)
    }

    /// Whether its component is one of `wasi:http`.
    pub fn is_plain(&self) -> bool {
        matches!(
            self.component,
            Prepared::IncomingHandler(_) | Prepared::Handler(_)
        )
    }

    /// Drops kept instances that are too old.
    pub fn sweep(&self) {
        match &self.component {
            Prepared::Sync(component) => component.sweep(),
            Prepared::Async(component) => component.sweep(),
            Prepared::IncomingHandler(component) => component.sweep(),
            Prepared::Handler(component) => component.sweep(),
        }
    }
}

impl Prepared {
    /// Asks the component for its views, and checks them. A component of `wasi:http` has one, and is only instantiated.
    fn views(
        &self,
        shared: &Arc<Shared>,
        inspection: &Inspection,
    ) -> anyhow::Result<Vec<Arc<View>>> {
        let grants = &shared.grants;
        let mode = inspection.mode;
        let view = Arc::new(View::unrouted(
            &grants.name,
            "describe",
            mode,
            DESCRIBE_LIMIT,
        ));
        let scope = Scope::open(&Origin::host(), &view, &grants.limits, Setup::now());
        let member = Arc::new(scope.transaction.first_member());
        let blocks = mode == Mode::Sync && inspection.world == World::Views;
        let work = Work::new(scope, view, member);
        let guest = Guest::new(work, blocks, shared);
        let wait = tokio::runtime::Handle::current();
        let described = match self {
            Prepared::Sync(component) => component.describe(guest),
            Prepared::Async(component) => wait.block_on(component.describe(guest)),
            Prepared::IncomingHandler(component) => {
                let tried = wait.block_on(component.try_out(guest));
                tried.map(|()| plain_views(grants, inspection))
            }
            Prepared::Handler(component) => {
                let tried = wait.block_on(component.try_out(guest));
                tried.map(|()| plain_views(grants, inspection))
            }
        };
        // The stack frames of the failure are left out: after a panic they show nothing but the panic handler.
        let described = described.map_err(|failure| {
            let Failure { detail, .. } = failure;
            let seconds = DESCRIBE_LIMIT.as_secs();
            let what = match inspection.world {
                World::Views => "`describe`",
                World::WasiHttp => "its start",
            };
            anyhow!("{what} failed: {detail} (it has {seconds} s)")
        })?;
        views(&described, grants, mode)
    }
}

/// The component files of a module: the configured one, or those that `amphi build` has put into `artifacts`.
///
/// # Errors
/// When the module is a crate that has not been built, or its components are gone.
pub fn files(module: &config::Module, artifacts: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (folder, missing) = match &module.source {
        config::Source::Wasm(file) => return Ok(vec![file.clone()]),
        config::Source::Crate(source) => (
            artifacts,
            format!(
                "the crate {} has not been built: run `amphi build` (what `amphi up` builds is for `amphi up` alone)",
                source.display()
            ),
        ),
        config::Source::Built(folder) => (
            folder.as_path(),
            format!("its components in {} are gone", folder.display()),
        ),
    };
    let built: Vec<PathBuf> = ([Mode::Sync, Mode::Async].iter())
        .map(|mode| config::component(folder, &module.name, *mode))
        .filter(|file| file.is_file())
        .collect();
    if built.is_empty() {
        bail!("module `{}`: {missing}", module.name);
    }
    Ok(built)
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
    // A world may name the interface and a component not call it: then the import has types only.
    let calls_handler = component_type.imports(engine).any(|(name, item)| {
        let ComponentItem::ComponentInstance(instance) = item.ty else {
            return false;
        };
        let is_function = |ty| matches!(ty, ComponentItem::ComponentFunc(_));
        name.starts_with(HANDLER)
            && (instance.exports(engine)).any(|(_, export)| is_function(export.ty))
    });
    let imports: Vec<String> = component_type
        .imports(engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let mut exports = Vec::new();
    let (mut handle, mut plain) = (None, None);
    for (name, item) in component_type.exports(engine) {
        exports.push(format!("`{name}`"));
        if let ("handle", ComponentItem::ComponentFunc(function)) = (name, &item.ty) {
            handle = Some(function.async_());
        }
        // A component that has both is one of the later version.
        if name.starts_with(HANDLER) {
            plain = Some(true);
        } else if name.starts_with(INCOMING_HANDLER) {
            plain = plain.or(Some(false));
        }
    }
    let world = match handle {
        Some(_) => World::Views,
        None => World::WasiHttp,
    };
    let Some(is_async) = handle.or(plain) else {
        bail!(
            "the component has no views: it exports {}, and neither the `handle` of amphi:view's worlds `sync-views` and `async-views` nor `wasi:http/incoming-handler@0.2` or `wasi:http/handler@0.3`",
            if exports.is_empty() {
                "nothing".into()
            } else {
                exports.join(", ")
            },
        );
    };
    check_version(&imports)?;
    let mode = if is_async { Mode::Async } else { Mode::Sync };
    check_mode(mode, &imports)?;
    if mode == Mode::Sync && !Engine::same(engine, &engines.sync) {
        bail!(
            "what it exports for requests is sync, but something else in it is async, so it cannot run on a sync worker: build it against the world `sync-views`, or export `wasi:http/handler@0.3`"
        );
    }
    Ok(Inspection {
        mode,
        world,
        calls_handler,
        imports,
        component,
    })
}

/// The version of the contract. It changes with every record, variant and function of it.
const CONTRACT: &str = "0.3.0";

fn check_version(imports: &[String]) -> anyhow::Result<()> {
    let mut versions = imports.iter().filter_map(|import| {
        let (_, version) = import.strip_prefix("amphi:view/")?.split_once('@')?;
        Some((import, version))
    });
    if let Some((import, version)) = versions.find(|(_, version)| *version != CONTRACT) {
        bail!(
            "the component imports `{import}`: it was built for version {version} of the contract, and this host has version {CONTRACT}; build it with the SDK, or the WIT, of this host's version"
        );
    }
    Ok(())
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
    let known = |import: &str| {
        let package = import
            .strip_prefix("wasi:")
            .and_then(|it| it.split_once('/'));
        package.is_some_and(|(package, _)| WASI.contains(&package)) || interface(import).is_some()
    };
    if let Some(unknown) = inspection.imports.iter().find(|import| !known(import)) {
        bail!(
            "the component imports `{unknown}`, which Amphi does not provide: it has `amphi:view/*`, WASI (clocks, random, stdio, granted folders) and, for components of `wasi:http`, outbound requests"
        );
    }
    let component = &inspection.component;
    let reuse = grants.reuse.clone();
    let prepared = match (inspection.world, inspection.mode) {
        (World::WasiHttp, Mode::Sync) => {
            let mut linker = Linker::new(&engines.sync);
            link_incoming_handler(&mut linker)?;
            linker
                .instantiate_pre(component)
                .and_then(ProxyPre::new)
                .map(|pre| Prepared::IncomingHandler(IncomingHandler::new(engines, pre, reuse)))
        }
        (World::WasiHttp, Mode::Async) => {
            let mut linker = Linker::new(&engines.r#async);
            link_handler(&mut linker)?;
            if inspection.is_plain_middleware() {
                link_next_handler(&mut linker)?;
            }
            linker
                .instantiate_pre(component)
                .and_then(ServicePre::new)
                .map(|pre| Prepared::Handler(Handler::new(engines, pre, reuse)))
        }
        (World::Views, Mode::Sync) => {
            let mut linker = Linker::new(&engines.sync);
            link_sync(&mut linker)?;
            linker
                .instantiate_pre(component)
                .and_then(SyncViewsPre::new)
                .map(|pre| Prepared::Sync(SyncComponent::new(engines, pre, reuse)))
        }
        (World::Views, Mode::Async) => {
            let mut linker = Linker::new(&engines.r#async);
            link_async(&mut linker, grants.blocking_wasi)?;
            linker
                .instantiate_pre(component)
                .and_then(AsyncViewsPre::new)
                .map(|pre| Prepared::Async(AsyncComponent::new(engines, pre, reuse)))
        }
    };
    prepared
        .map_err(anyhow::Error::from)
        .with_context(|| match inspection.world {
            World::Views => format!(
                "the component does not fit the world `{}-views` of amphi:view@{CONTRACT}",
                inspection.mode
            ),
            World::WasiHttp => "the component wants more than Amphi provides to components of `wasi:http`, or another version of it".to_owned(),
        })
}

/// The packages of WASI that components may import. Sockets are there, and refused when they are used.
const WASI: [&str; 7] = [
    "cli",
    "clocks",
    "filesystem",
    "http",
    "io",
    "random",
    "sockets",
];

/// The exports of components of `wasi:http`, without the rest of their versions.
const INCOMING_HANDLER: &str = "wasi:http/incoming-handler@0.2.";
const HANDLER: &str = "wasi:http/handler@0.3.";

/// The functions of a component of `wasi:http`: middleware, or views.
fn plain_views(grants: &config::Module, inspection: &Inspection) -> Vec<types::ViewInfo> {
    if !inspection.is_plain_middleware() {
        return every_request(grants, &inspection.imports);
    }
    vec![types::ViewInfo {
        id: 0,
        name: "handler".to_owned(),
        kind: types::ViewKind::Middleware,
        atomic: None,
        read_only: false,
        isolation: None,
        retries: 0,
        cpu_ms: None,
        timeout_ms: None,
        stream_body: false,
        middleware: Vec::new(),
    }]
}

/// The views of a component of `wasi:http`, which gets every request. Where `atomic` depends on the method, there is one
/// for each of the safe methods. A component that imports nothing that a transaction would be for is atomic only if the
/// configuration says so of all views.
fn every_request(grants: &config::Module, imports: &[String]) -> Vec<types::ViewInfo> {
    let has_effects = imports.iter().any(|import| {
        let name = interface(import)
            .and_then(capability)
            .map(|(it, _)| it.name);
        matches!(name, Some("database" | "events" | "subrequest"))
    });
    let atomic = match grants.atomic {
        Atomic::UnsafeMethods if !has_effects => Some(false),
        _ => None,
    };
    let methods: &[&str] = match grants.atomic {
        Atomic::UnsafeMethods if has_effects => &["GET", "HEAD", "OPTIONS", "*"],
        _ => &["*"],
    };
    let numbered = methods.iter().zip(0..);
    numbered
        .map(|(method, id)| types::ViewInfo {
            id,
            name: "handler".to_owned(),
            kind: types::ViewKind::Route(types::Route {
                method: (*method).to_owned(),
                pattern: "/{*rest}".to_owned(),
            }),
            atomic,
            read_only: false,
            isolation: None,
            retries: 0,
            cpu_ms: None,
            timeout_ms: None,
            stream_body: grants.stream_bodies,
            middleware: Vec::new(),
        })
        .collect()
}

/// The request of a component of `wasi:http`. A header that is not UTF-8 has its bytes again, unless middleware has
/// changed it.
fn wasi_request(request: types::Request, work: &Work) -> Result<Incoming, Failure> {
    let refused = |error: http::Error| {
        let sentence = format!("a component cannot get this request: {error}");
        Failure::client(http::StatusCode::BAD_REQUEST, sentence)
    };
    let header = |wanted: &str| {
        let mut headers = request.headers.iter();
        let found = headers.find(|(name, _)| name == wanted);
        found.map(|(_, value)| &**value)
    };
    let path = match request.query.as_str() {
        "" => request.path.clone(),
        query => format!("{}?{query}", request.path),
    };
    let scheme = match header(FORWARDED_PROTO.as_str()) {
        Some("https") => "https",
        _ => "http",
    };
    let uri = http::Uri::builder()
        .scheme(scheme)
        // A request of HTTP/1.0 may name no host.
        .authority(header("host").unwrap_or("localhost"))
        .path_and_query(path);
    let uri = uri.build().map_err(refused)?;
    let headers = wasi_headers(&request.headers, work.binary.as_deref().unwrap_or_default())
        .map_err(refused)?;
    let built = http::Request::builder().method(&*request.method).uri(uri);
    let body = match (request.body, work.body.clone()) {
        (types::Body::Spooled(_) | types::Body::Arriving(_), Some(kept)) => {
            read_body(kept, work.view.mode, &work.scope)
        }
        (types::Body::Bytes(bytes), _) => Full::new(bytes.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
        (types::Body::Spooled(_) | types::Body::Arriving(_), None) => Full::default()
            .map_err(|never| match never {})
            .boxed_unsync(),
    };
    let mut built = built.body(body).map_err(refused)?;
    *built.headers_mut() = headers;
    Ok(built)
}

/// The headers of a component's request. Middleware decides how many there are, so too many are an error.
fn wasi_headers(
    headers: &[(String, String)],
    binary: &[(HeaderName, HeaderValue)],
) -> Result<HeaderMap, http::Error> {
    let mut all = HeaderMap::try_with_capacity(headers.len())?;
    for (name, value) in headers {
        let is_it = |(key, bytes): &&(HeaderName, HeaderValue)| {
            key == name.as_str() && text(bytes.as_bytes()) == *value
        };
        let (name, value) = match binary.iter().find(is_it) {
            Some(header) => header.clone(),
            None => (
                HeaderName::from_bytes(name.as_bytes())?,
                HeaderValue::from_str(value)?,
            ),
        };
        all.try_append(name, value)?;
    }
    Ok(all)
}

/// The most bytes of a kept body that a component gets at once.
const PIECE_BYTES: u32 = 64 << 10;

/// A body that the component reads piece by piece.
fn read_body(body: RequestBody, reader: Mode, scope: &Scope) -> WasiBody {
    let source = scope.body_source();
    let pieces = stream::try_unfold(Some((body, 0, source)), move |at| async move {
        let Some((body, offset, source)) = at else {
            return Ok(None);
        };
        let piece = match &body {
            RequestBody::Arriving(body) => body.read(reader, None, PIECE_BYTES).await,
            RequestBody::Spooled(body) => match body.read_memory(offset, PIECE_BYTES) {
                Some(piece) => Ok(piece.into()),
                None => {
                    let body = Arc::clone(body);
                    let read = move || body.read(offset, PIECE_BYTES);
                    let read = tokio::task::spawn_blocking(read).await;
                    read.map_err(io::Error::other).flatten().map(Bytes::from)
                }
            },
        };
        let failed = |error: io::Error| WasiError::InternalError(Some(error.to_string()));
        let piece = piece.map_err(failed)?;
        if piece.is_empty() {
            let trailers = body.trailers().await;
            return Ok(trailers.map(|trailers| (Frame::trailers(trailers), None)));
        }
        let next = offset + piece.len() as u64;
        Ok(Some((Frame::data(piece), Some((body, next, source)))))
    });
    StreamBody::new(pieces).boxed_unsync()
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
                Kind::Socket { .. } => grants.atomic.applies_to("SOCKET"),
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
                stream_body: info.stream_body,
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
            Ok(Kind::Route {
                method: http::Method::from_bytes(method.as_bytes())
                    .context("the method was just checked")?,
                pattern: mounted(pattern, name, grants)?,
            })
        }
        types::ViewKind::Socket(types::SocketRoute { pattern, origins }) => Ok(Kind::Socket {
            pattern: mounted(pattern, name, grants)?,
            origins: origins.clone(),
        }),
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

/// A view's pattern, with the module's mount before it.
fn mounted(pattern: &str, name: &str, grants: &config::Module) -> anyhow::Result<String> {
    if !pattern.starts_with('/') {
        bail!("view `{name}` has the pattern `{pattern}`: a pattern starts with `/`");
    }
    Ok(match (grants.mount.as_str(), pattern) {
        ("", pattern) => pattern.to_owned(),
        (mount, "/") => mount.to_owned(),
        (mount, pattern) => format!("{mount}{pattern}"),
    })
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
    let component = prepare(engines, inspection, grants)?;
    component.views(&shared(services, grants), inspection)
}

fn shared(services: &Arc<Services>, grants: &Arc<config::Module>) -> Arc<Shared> {
    Arc::new(Shared {
        grants: Arc::clone(grants),
        services: Arc::clone(services),
        usual_memory: UsualMemory::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Middleware can pass more headers on than a `HeaderMap` has room for.
    #[test]
    fn more_headers_than_there_is_room_for_are_an_error() {
        let header = |number| (format!("x-{number}"), "1".to_owned());
        let headers: Vec<_> = (0..40_000).map(header).collect();
        let few = wasi_headers(&headers[..100], &[]).expect("there is room");
        assert_eq!(
            (few.len(), &few["x-99"]),
            (100, &HeaderValue::from_static("1"))
        );
        wasi_headers(&headers, &[]).expect_err("there is no room");
    }

    #[test]
    fn a_header_that_is_not_text_has_its_bytes_unless_it_was_changed() {
        let bytes = HeaderValue::from_bytes(&[b'a', 0xff]).expect("a value");
        let binary = [(HeaderName::from_static("x-raw"), bytes.clone())];
        let as_text = text(bytes.as_bytes());
        let given = |value: &str| {
            let headers = [("x-raw".to_owned(), value.to_owned())];
            wasi_headers(&headers, &binary).expect("a head")["x-raw"].clone()
        };
        assert_eq!(given(&as_text), bytes);
        assert_eq!(given("other"), HeaderValue::from_static("other"));
    }
}
