//! The chain of a view: the view itself and the guest middleware around the view, in any mix of modes.

use std::fmt;
use std::sync::Arc;

use crate::app::module::Module;
use crate::view::{Mode, View};

/// One guest function of a chain.
#[derive(Clone)]
pub struct Link {
    /// The function.
    pub view: Arc<View>,
    /// The component that has the function.
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

/// Where the guest functions of a chain run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The whole chain is one job of one worker.
    Worker,
    /// The chain is a single async view, and runs on the event loop.
    Loop,
    /// Each sync function runs on a worker, each async function on the event loop.
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

    /// Where the functions of this chain run. A chain that can make sub-requests is run per link, because the views
    /// that it calls may have any mode.
    pub fn placement(&self) -> Placement {
        match self.links.len() {
            _ if self.calls_others() => Placement::PerLink,
            _ if self.links.iter().all(|link| link.view.mode == Mode::Sync) => Placement::Worker,
            1 => Placement::Loop,
            _ => Placement::PerLink,
        }
    }

    /// Whether any link is async, or may call an async view by a sub-request.
    pub fn needs_permit(&self) -> bool {
        self.calls_others() || self.links.iter().any(|link| link.view.mode == Mode::Async)
    }

    /// Whether any link is sync, or may call a sync view by a sub-request.
    pub fn needs_worker(&self) -> bool {
        self.calls_others() || self.links.iter().any(|link| link.view.mode == Mode::Sync)
    }

    /// The memory that the instances of its functions usually have, all together, in kB.
    pub fn usual_memory_kb(&self) -> usize {
        let links = self.links.iter();
        links.map(|link| link.module.shared.usual_memory.kb()).sum()
    }

    fn calls_others(&self) -> bool {
        self.links
            .iter()
            .any(|link| link.module.shared.grants.subrequests)
    }
}
