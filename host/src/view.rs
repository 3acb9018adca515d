//! What the host knows about a view: plain facts, read from its module when that is loaded.

use std::fmt;
use std::time::Duration;

use crate::contract::types::Isolation;

/// Where a view's code runs and how its host calls wait (R1: read from the component's types).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// On a sync worker; host calls block it.
    Sync,
    /// On an event loop; host calls yield to it.
    Async,
}

impl Mode {
    /// `sync` or `async`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Sync => "sync",
            Mode::Async => "async",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What makes the host call a guest function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A request to its route.
    Route {
        /// `GET`, `POST`, …; `*` for every method that no other view of the pattern has.
        method: http::Method,
        /// The path pattern with the module's mount.
        pattern: String,
    },
    /// A request whose chain names it.
    Middleware,
    /// An event on a topic.
    Subscriber(Topics),
}

/// What a view asks of its transaction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Everything the view does belongs to one transaction.
    pub atomic: bool,
    /// Statements that write are refused, in transactions and outside.
    pub read_only: bool,
    /// What its transactions see of others; none: what the database does by itself.
    pub isolation: Option<Isolation>,
}

/// One guest function that the host can call.
#[derive(Debug, Clone)]
pub struct View {
    /// The module's name in the configuration.
    pub module: String,
    /// The guest function.
    pub name: String,
    /// What the component calls it.
    pub id: u32,
    /// What makes the host call it.
    pub kind: Kind,
    /// Sync or async.
    pub mode: Mode,
    /// What kind of transaction it has.
    pub transaction: Options,
    /// Middleware of its module that it names itself, the outermost first.
    pub middleware: Vec<String>,
    /// How often its request may be run again after a conflict.
    pub retries: u32,
    /// CPU budget.
    pub cpu: Duration,
    /// Time from accepting the request to its response.
    pub timeout: Duration,
}

impl View {
    /// A view that nothing calls, for looking at a component.
    pub fn unrouted(module: &str, name: &str, mode: Mode, limit: Duration) -> View {
        View {
            module: module.to_owned(),
            name: name.to_owned(),
            id: 0,
            kind: Kind::Middleware,
            mode,
            transaction: Options::default(),
            middleware: Vec::new(),
            retries: 0,
            cpu: limit,
            timeout: limit,
        }
    }

    /// The route's pattern or the topic; empty for middleware.
    pub fn pattern(&self) -> &str {
        match &self.kind {
            Kind::Route { pattern, .. } => pattern,
            Kind::Middleware => "",
            Kind::Subscriber(topics) => topics.as_str(),
        }
    }

    /// The route's method, or what stands in its place: `EVENT`, or `-` for middleware.
    pub fn method(&self) -> &str {
        match &self.kind {
            Kind::Route { method, .. } => method.as_str(),
            Kind::Middleware => "-",
            Kind::Subscriber(_) => "EVENT",
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.module, self.name)
    }
}

/// One topic (`orders.paid`), or all that begin alike (`orders.*`, `*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics(String);

impl Topics {
    /// Reads a topic, or a pattern of topics.
    ///
    /// # Errors
    /// With a sentence, when it is neither.
    pub fn parse(text: &str) -> Result<Topics, String> {
        let fixed = text.strip_suffix(".*").unwrap_or(text);
        if text == "*" || is_topic(fixed) {
            Ok(Topics(text.to_owned()))
        } else {
            Err(format!(
                "`{text}` is not a topic: write words of letters, digits, `-` and `_` with dots between, such as `orders.paid`, or `orders.*` for all that begin so"
            ))
        }
    }

    /// Whether it is this topic, or one of these.
    pub fn contain(&self, topic: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => topic.starts_with(beginning) && topic.len() > beginning.len(),
            None => self.0 == topic,
        }
    }

    /// Whether all of `other` are among these.
    pub fn cover(&self, other: &Topics) -> bool {
        match other.0.strip_suffix('*') {
            Some(beginning) => {
                (self.0.strip_suffix('*')).is_some_and(|own| beginning.starts_with(own))
            }
            None => self.contain(&other.0),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether this is one topic: words with dots between.
pub fn is_topic(text: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    text.split('.').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_contain_and_cover() {
        let topics = |text| Topics::parse(text).expect("these are topics");
        assert!(topics("orders.*").contain("orders.paid"));
        assert!(topics("orders.*").contain("orders.paid.late"));
        assert!(!topics("orders.*").contain("orders"));
        assert!(!topics("orders.*").contain("ordersX"));
        assert!(topics("*").contain("anything"));
        assert!(topics("orders.*").cover(&topics("orders.paid")));
        assert!(topics("*").cover(&topics("orders.*")));
        assert!(topics("orders.*").cover(&topics("orders.eu.*")));
        assert!(!topics("orders.eu.*").cover(&topics("orders.*")));
        assert!(!topics("orders.paid").cover(&topics("orders.*")));
        for wrong in ["", ".", "a..b", "a b", "a*", "*.a", "a.*.b"] {
            assert!(Topics::parse(wrong).is_err(), "{wrong}");
        }
    }
}
