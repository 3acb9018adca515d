//! An app as it is served: its routing table and everything its requests share. A reload makes a new one;
//! requests finish with the one they started with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use http::Method;

use crate::capability::{Services, http::Client};
use crate::config::Config;
use crate::database::Databases;
use crate::module::{self, Module};
use crate::router::Router;
use crate::run::Engines;
use crate::static_files::StaticFiles;
use crate::view::View;

/// An app, ready to be served.
pub struct App {
    /// Its checked configuration.
    pub config: Config,
    /// Its routes.
    pub router: Router<Target>,
    /// What its requests share.
    pub services: Arc<Services>,
    /// All views, in the order of their modules.
    pub views: Vec<Arc<View>>,
}

/// Where a route leads.
pub enum Target {
    /// To a view.
    View(Arc<View>, Arc<Module>),
    /// To the static files.
    Static(Arc<StaticFiles>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::View(view, _) => write!(f, "the view {view}"),
            Target::Static(_) => f.write_str("the static files"),
        }
    }
}

impl App {
    /// Loads modules and lays out the routes, over databases that are open. `previous` is the app that this one
    /// replaces, if any. Blocks while modules compile.
    ///
    /// # Errors
    /// With a sentence that names the module or route that is wrong.
    pub fn load(
        config: Config,
        engines: &Engines,
        databases: Databases,
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
        let services = Arc::new(Services {
            databases,
            http: client,
        });
        let mut app = App {
            router: Router::default(),
            views: Vec::new(),
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
        let opened = StaticFiles::open(&files.dir)
            .with_context(|| format!("the static files in {}", files.dir.display()))?;
        let pattern = format!("{}/{{*path}}", files.mount);
        Ok(self
            .router
            .add(&Method::GET, &pattern, Target::Static(Arc::new(opened)))?)
    }

    fn add_modules(&mut self, engines: &Engines) -> anyhow::Result<()> {
        let artifacts = self.config.artifacts();
        for grants in self.config.modules.clone() {
            let files = module::files(&grants, &artifacts)?;
            let grants = Arc::new(grants);
            for file in files {
                let module = Arc::new(Module::load(engines, &self.services, &grants, &file)?);
                for view in &module.views {
                    self.add_view(view, &module)?;
                }
            }
        }
        Ok(())
    }

    fn add_view(&mut self, view: &Arc<View>, module: &Arc<Module>) -> anyhow::Result<()> {
        let mut patterns = vec![view.pattern.clone()];
        // The root of a mounted module is reached with and without the slash.
        if view.pattern == module.grants.mount && !view.pattern.is_empty() {
            patterns.push(format!("{}/", view.pattern));
        }
        for pattern in patterns {
            let target = Target::View(Arc::clone(view), Arc::clone(module));
            self.router
                .add(&view.method, &pattern, target)
                .map_err(|error| anyhow!("the view {view} cannot have its route: {error}"))?;
        }
        self.views.push(Arc::clone(view));
        Ok(())
    }

    /// The number of views of each mode, for a line in the log.
    pub fn count(&self) -> BTreeMap<&'static str, usize> {
        let mut count = BTreeMap::new();
        for view in &self.views {
            *count.entry(view.mode.as_str()).or_default() += 1;
        }
        count
    }
}
