//! An app as it is served: its routing table and everything that its requests share. A reload builds a new app; each
//! request finishes with the app that it started with.

pub mod chain;
mod database_files;
pub mod events;
pub mod file_id;
pub mod host;
pub mod load;
pub mod module;
pub mod rollout;
pub mod router;
pub mod stats;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use http::Method;

use crate::app::chain::{Chain, Link};
use crate::app::database_files::DatabaseFiles;
use crate::app::module::Module;
use crate::app::router::Router;
use crate::app::stats::Stats;
use crate::channels::{Hub, Limits, Pattern};
use crate::config::{Config, GuestMiddleware};
use crate::database::Databases;
use crate::guest::capability::http::client::Client;
use crate::guest::run::Engines;
use crate::guest::store::Services;
use crate::http::middleware::Builtin;
use crate::http::static_files::StaticFiles;
use crate::threads::workers::CALL_SLOTS_MAX;
use crate::view::{Kind, Topics, View};

/// The one parameter that the pattern of the error view may have.
pub const STATUS: &str = "status";

/// An app, ready to be served.
pub struct App {
    /// Its checked configuration.
    pub config: Config,
    /// Its routes.
    pub router: Router<Target>,
    /// The services that its requests share.
    pub services: Arc<Services>,
    /// All views, middleware and subscribers, in the order of their modules.
    pub views: Vec<Arc<View>>,
    /// The chain of the error view: it has no middleware.
    pub errors: Option<Arc<Chain>>,
    /// What has become of its requests.
    pub stats: Stats,
    /// The files that its databases have opened.
    files: DatabaseFiles,
    modules: Vec<Arc<Module>>,
    subscribers: Vec<(Topics, Arc<Chain>)>,
}

/// The target of a route.
pub enum Target {
    /// A view, with its middleware.
    View(Arc<Routed>),
    /// A view of a web socket, with the middleware around its handshake.
    Socket(Arc<Routed>),
    /// The folder of static files.
    Static(Arc<StaticFiles>),
}

/// The chains of a view.
pub struct Routed {
    /// For requests of clients: the middleware of the app, the middleware of the module, the view.
    pub chain: Arc<Chain>,
    /// For sub-requests: `chain` without the middleware of the app, because the function that makes the sub-request
    /// already runs within that middleware.
    pub inner: Arc<Chain>,
    /// For the events of a web socket: the view without middleware.
    pub alone: Arc<Chain>,
}

impl Routed {
    /// The built-in middleware of the view's module.
    pub fn builtins(&self) -> &[Arc<Builtin>] {
        &self.chain.view().module.shared.grants.builtins
    }
}

impl Target {
    /// The built-in middleware of the target's module; none for static files.
    pub fn builtins(&self) -> &[Arc<Builtin>] {
        match self {
            Target::View(routed) | Target::Socket(routed) => routed.builtins(),
            Target::Static(_) => &[],
        }
    }

    /// The name of the target's module; none for static files.
    pub fn module(&self) -> Option<&str> {
        match self {
            Target::View(routed) | Target::Socket(routed) => {
                Some(&routed.chain.view().module.shared.grants.name)
            }
            Target::Static(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::View(routed) | Target::Socket(routed) => {
                write!(f, "the view {}", routed.chain.view().view)
            }
            Target::Static(_) => f.write_str("the static files"),
        }
    }
}

impl App {
    /// Loads the modules and adds their routes. `databases`: the open databases of the app. `development`: the app is
    /// served by `amphi up`. `previous`: the app that this one replaces, if any, whose outbound connections are taken
    /// over. Blocks while modules compile.
    ///
    /// # Errors
    /// When a module or a route is wrong. The text names the module or the view.
    pub fn load(
        config: Config,
        engines: &Engines,
        databases: Databases,
        development: bool,
        previous: Option<&App>,
    ) -> anyhow::Result<App> {
        let client = match previous {
            Some(app) => Arc::clone(&app.services.http),
            None => Arc::new(Client::new().context("the client for outbound requests")?),
        };
        if let Some(why) = client.without_https() {
            for module in config.modules.iter().filter(|module| module.wants_https()) {
                tracing::warn!(
                    module = module.name,
                    "its requests over https will fail: {why}"
                );
            }
        }
        for module in &config.modules {
            client
                .prepare(module)
                .context("the client for outbound requests")?;
        }
        let services = Arc::new(Services {
            databases,
            http: client,
            hub: hub(&config, previous),
            development,
            allowed_origins: config.allowed_origins.join(" "),
            body_limits: config.server.body_limits(),
            trusted_headers: (config.builtins.iter())
                .chain(config.modules.iter().flat_map(|module| &module.builtins))
                .filter_map(|builtin| builtin.trusted_header())
                .collect(),
        });
        let mut app = App {
            router: Router::default(),
            views: Vec::new(),
            errors: None,
            stats: Stats::default(),
            files: DatabaseFiles::default(),
            modules: Vec::new(),
            subscribers: Vec::new(),
            services,
            config,
        };
        app.add_static_files()?;
        app.add_modules(engines)?;
        Ok(app)
    }

    fn add_static_files(&mut self) -> anyhow::Result<()> {
        let Some(files) = &self.config.static_files else {
            return Ok(());
        };
        let opened = StaticFiles::open(&files.dir, files.hidden)
            .with_context(|| format!("the static files in {}", files.dir.display()))?;
        let pattern = format!("{}/{{*path}}", files.mount);
        Ok(self
            .router
            .add(&Method::GET, &pattern, Target::Static(Arc::new(opened)))?)
    }

    fn add_modules(&mut self, engines: &Engines) -> anyhow::Result<()> {
        let artifacts = self.config.artifacts();
        let mut modules = Vec::new();
        for grants in self.config.modules.clone() {
            let files = module::files(&grants, &artifacts)?;
            let grants = Arc::new(grants);
            for file in files {
                modules.push(Arc::new(Module::load(
                    engines,
                    &self.services,
                    &grants,
                    &file,
                )?));
            }
        }
        let links = || {
            modules.iter().flat_map(|module| {
                module.views.iter().map(|view| Link {
                    view: Arc::clone(view),
                    module: Arc::clone(module),
                })
            })
        };
        let middleware: Vec<Link> = links()
            .filter(|link| link.view.kind == Kind::Middleware)
            .collect();
        let outer = named(&self.config.middleware, &middleware, "[app]")?;
        for link in links() {
            self.views.push(Arc::clone(&link.view));
            match &link.view.kind {
                Kind::Middleware => {}
                Kind::Subscriber(topics) => {
                    let chain = Arc::new(Chain::new([], link.clone()));
                    self.subscribers.push((topics.clone(), chain));
                }
                Kind::Route { pattern, .. } | Kind::Socket { pattern, .. } => {
                    let grants = &link.module.shared.grants;
                    let place = format!("[modules.{}]", grants.name);
                    let mut own = named(&grants.middleware, &middleware, &place)?;
                    own.extend(named_by_view(&link.view, &middleware)?);
                    self.add_route(pattern, &outer, own, &link)?;
                }
            }
        }
        if let Some(wanted) = &self.config.errors {
            let all: Vec<Link> = links().collect();
            self.errors = Some(Arc::new(Chain::new([], error_view(wanted, &all)?)));
        }
        self.modules = modules;
        Ok(())
    }

    fn add_route(
        &mut self,
        pattern: &str,
        outer: &[Link],
        own: Vec<Link>,
        link: &Link,
    ) -> anyhow::Result<()> {
        let inner = Arc::new(Chain::new(own.clone(), link.clone()));
        let chain = match outer.is_empty() {
            true => Arc::clone(&inner),
            false => Arc::new(Chain::new(outer.iter().cloned().chain(own), link.clone())),
        };
        if chain.len() > CALL_SLOTS_MAX {
            bail!(
                "{}: {} guest functions on the way, middleware and view, are more than the {CALL_SLOTS_MAX} that can run within each other",
                link.view,
                chain.len()
            );
        }
        let mut patterns = vec![pattern.to_owned()];
        // A component of `wasi:http` gets every request below its mount, and those to the mount itself.
        if link.module.is_plain() {
            let mount = &link.module.shared.grants.mount;
            patterns.push(format!("{mount}/"));
            patterns.extend((!mount.is_empty()).then(|| mount.clone()));
        }
        // The root of a mounted module has two paths, one with a trailing slash and one without.
        if pattern == link.module.shared.grants.mount && !pattern.is_empty() {
            patterns.push(format!("{pattern}/"));
        }
        let alone = Arc::new(Chain::new([], link.clone()));
        let routed = Arc::new(Routed {
            chain,
            inner,
            alone,
        });
        for pattern in patterns {
            let routed = Arc::clone(&routed);
            // A web socket is opened by GET.
            let (method, target) = match &link.view.kind {
                Kind::Route { method, .. } => (method, Target::View(routed)),
                _ => (&Method::GET, Target::Socket(routed)),
            };
            self.router.add(method, &pattern, target).map_err(|error| {
                anyhow!("the view {} cannot have its route: {error}", link.view)
            })?;
        }
        Ok(())
    }

    /// The chains of the subscribers to `topic`.
    pub fn subscribers(&self, topic: &str) -> impl Iterator<Item = &Arc<Chain>> {
        let wanted = self
            .subscribers
            .iter()
            .filter(move |(topics, _)| topics.contain(topic));
        wanted.map(|(_, chain)| chain)
    }

    /// The modules whose instances have at least this much memory, in kB, and are fresh for each request: their names and
    /// the memory.
    pub fn fresh_with(&self, kb: usize) -> impl Iterator<Item = (&str, usize)> {
        let modules = self.modules.iter();
        let fresh = modules.filter(|module| module.shared.grants.reuse.is_none());
        let sizes =
            fresh.map(|module| (&*module.shared.grants.name, module.shared.usual_memory.kb()));
        sizes.filter(move |(_, size)| *size >= kb)
    }

    /// Drops kept instances that are too old.
    pub fn sweep(&self) {
        for module in &self.modules {
            module.sweep();
        }
    }

    /// The number of views of each mode, for the log.
    pub fn count(&self) -> BTreeMap<&'static str, usize> {
        let mut count = BTreeMap::new();
        for view in &self.views {
            *count.entry(view.mode.as_str()).or_default() += 1;
        }
        count
    }
}

/// The groups of connections: those of the app before, since a reload ends no connection (R23).
fn hub(config: &Config, previous: Option<&App>) -> Arc<Hub> {
    if let Some(app) = previous {
        return Arc::clone(&app.services.hub);
    }
    let channels = &config.channels;
    let limits = Limits {
        groups_max: channels.groups_max,
        groups_per_connection_max: channels.groups_per_connection_max,
        payload_max_bytes: channels.payload_max_bytes,
        subscribers_max: channels.subscribers_max,
        history_max_bytes: channels.history_max_bytes,
        ..Limits::default()
    };
    let histories = channels.history.iter();
    let histories = histories.map(|(groups, messages)| (Pattern::new(groups), *messages));
    Hub::new(limits, histories.collect())
}

/// Whether a function is the one that the configuration names.
fn is_meant(wanted: &GuestMiddleware, link: &Link) -> bool {
    let GuestMiddleware { module, function } = wanted;
    let name = &link.view.name;
    link.view.module == *module && (name == function || name.rsplit("::").next() == Some(function))
}

/// Finds the view that `errors` names, and checks its method and its pattern.
fn error_view(wanted: &GuestMiddleware, all: &[Link]) -> anyhow::Result<Link> {
    let GuestMiddleware { module, function } = wanted;
    let name = format!("{module}::{function}");
    let is_page = |link: &&Link| matches!(&link.view.kind, Kind::Route { method, .. } if *method == Method::GET);
    let found = all
        .iter()
        .filter(is_page)
        .find(|link| is_meant(wanted, link));
    let link = found.ok_or_else(|| {
        anyhow!("`errors` of `[app]` names `{name}`, which no module has as a view for GET: write one, e.g. `#[view(get, \"/error/{{status}}\")]`, and list it in `views!`")
    })?;
    let pattern = link.view.pattern();
    let parameters = pattern.replace(&format!("{{{STATUS}}}"), "");
    if parameters.contains('{') {
        bail!(
            "`errors` of `[app]` names `{name}`, whose pattern is `{pattern}`: it can have the parameter `{{{STATUS}}}` and no other"
        );
    }
    Ok(link.clone())
}

/// The middleware that the view itself names. All of it is in the module of the view.
fn named_by_view(view: &View, known: &[Link]) -> anyhow::Result<Vec<Link>> {
    let find = |wanted: &String| {
        let is_it = |link: &&Link| link.view.module == view.module && link.view.name == *wanted;
        known.iter().find(is_it).cloned().ok_or_else(|| {
            anyhow!("the view {view} has the middleware `{wanted}`, which its module does not: list it in `views!`")
        })
    };
    view.middleware.iter().map(find).collect()
}

/// The middleware that a list in `amphi.toml` names. `place`: the table that the list is in, for errors.
fn named(list: &[GuestMiddleware], known: &[Link], place: &str) -> anyhow::Result<Vec<Link>> {
    let find = |wanted: &GuestMiddleware| {
        let GuestMiddleware { module, function } = wanted;
        let is_it = |link: &&Link| is_meant(wanted, link);
        known.iter().find(is_it).cloned().ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|link| link.view.to_string()).collect();
            let there = match names.is_empty() {
                true => "no module has any: `#[middleware]` goes on the function, `views!` lists it, and `amphi build` has to have run since".to_owned(),
                false => format!("there is: {}; is it in `views!`, and has `amphi build` run since?", names.join(", ")),
            };
            anyhow!("`middleware` of `{place}` names `{module}::{function}`, which no module has ({there})")
        })
    };
    list.iter().map(find).collect()
}
