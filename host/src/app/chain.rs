//! The configured chain of a view: middleware around it, in any mix of modes.

use std::fmt;
use std::sync::Arc;

use crate::app::module::Module;
use crate::view::{Mode, View};

/// One guest function of a chain.
#[derive(Clone)]
pub struct Link {
    /// The function.
    pub view: Arc<View>,
    /// Its component.
    pub module: Arc<Module>,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.view.mode, self.view)
    }
}

/// Middleware, the outermost first, and the view at the end.
pub struct Chain {
    /// The guest functions, in the order in which a request meets them.
    pub links: Vec<Link>,
}

/// Where a chain runs, with everything that it can call for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The whole chain is one job of one worker.
    Worker,
    /// The chain is one async view, on the loop.
    Loop,
    /// Each link where its mode wants it.
    PerLink,
}

impl Chain {
    /// A chain through `middleware` to `view`.
    pub fn new(middleware: impl IntoIterator<Item = Link>, view: Link) -> Chain {
        let links = middleware.into_iter().chain([view]).collect();
        Chain { links }
    }

    /// The view at the end of the chain.
    pub fn view(&self) -> &Link {
        self.links.last().expect("a chain ends with a view")
    }

    /// The number of guest functions.
    #[allow(clippy::len_without_is_empty, reason = "a chain is never empty")]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Where it runs.
    pub fn placement(&self) -> Placement {
        match self.links.len() {
            _ if self.calls_others() => Placement::PerLink,
            _ if self.links.iter().all(|link| link.view.mode == Mode::Sync) => Placement::Worker,
            1 => Placement::Loop,
            _ => Placement::PerLink,
        }
    }

    /// Whether any link is async, or may call for an async view.
    pub fn needs_permit(&self) -> bool {
        self.calls_others() || self.links.iter().any(|link| link.view.mode == Mode::Async)
    }

    /// Whether any link is sync, or may call for a sync view.
    pub fn needs_worker(&self) -> bool {
        self.calls_others() || self.links.iter().any(|link| link.view.mode == Mode::Sync)
    }

    fn calls_others(&self) -> bool {
        self.links.iter().any(|link| link.module.grants.subrequests)
    }
}
