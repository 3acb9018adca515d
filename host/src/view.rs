//! What the host knows about a view: plain facts, which it reads from the view's component when it loads the component.

use std::fmt;
use std::time::Duration;

use crate::contract::types::Isolation;

/// Where a view's code runs, and how its host calls wait. It is read from the component's types (R1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Runs on a sync worker; a host call blocks the worker's thread.
    Sync,
    /// Runs on an event loop; a host call yields to the loop.
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
        /// `GET`, `POST`, …; `*` stands for every method that no other view has for the pattern.
        method: http::Method,
        /// The path pattern, with the module's mount before it.
        pattern: String,
    },
    /// A request whose chain contains the middleware.
    Middleware,
    /// An event on one of these topics.
    Subscriber(Topics),
    /// A web socket.
    Socket {
        /// The path pattern, with the module's mount before it.
        pattern: String,
        /// Origins whose pages may open it, beside the app's own.
        origins: Vec<String>,
    },
}

/// What a view asks of its transactions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The whole call of the view is one transaction.
    pub atomic: bool,
    /// Statements that write are refused, inside and outside of transactions.
    pub read_only: bool,
    /// The isolation of the view's transactions. None: the database's default.
    pub isolation: Option<Isolation>,
}

/// One guest function that the host can call.
#[derive(Debug, Clone)]
pub struct View {
    /// The module's name in the configuration.
    pub module: String,
    /// The function's name.
    pub name: String,
    /// The number by which the component knows the function.
    pub id: u32,
    /// What makes the host call it.
    pub kind: Kind,
    /// Sync or async.
    pub mode: Mode,
    /// What the view asks of its transactions.
    pub transaction: Options,
    /// Middleware of its own module that the view names itself, the outermost first.
    pub middleware: Vec<String>,
    /// Whether the view begins when the head of a request is there, and reads the body while it arrives.
    pub stream_body: bool,
    /// How often a request for the view may be run again after a conflict, at most.
    pub retries: u32,
    /// The CPU budget of one call.
    pub cpu: Duration,
    /// The time until the response, counted from when the whole request has arrived.
    pub timeout: Duration,
}

impl View {
    /// A stand-in for a view, for the time in which the host calls `describe` of a component. No request reaches it.
    /// `limit`: the time limit and the CPU budget.
    pub fn unrouted(module: &str, name: &str, mode: Mode, limit: Duration) -> View {
        View {
            module: module.to_owned(),
            name: name.to_owned(),
            id: 0,
            kind: Kind::Middleware,
            mode,
            transaction: Options::default(),
            middleware: Vec::new(),
            stream_body: false,
            retries: 0,
            cpu: limit,
            timeout: limit,
        }
    }

    /// The pattern of a route, or the topics of a subscriber; empty for middleware.
    pub fn pattern(&self) -> &str {
        match &self.kind {
            Kind::Route { pattern, .. } | Kind::Socket { pattern, .. } => pattern,
            Kind::Middleware => "",
            Kind::Subscriber(topics) => topics.as_str(),
        }
    }

    /// The method of a route; `EVENT` for a subscriber, `SOCKET` for a web socket, `-` for middleware.
    pub fn method(&self) -> &str {
        match &self.kind {
            Kind::Route { method, .. } => method.as_str(),
            Kind::Middleware => "-",
            Kind::Subscriber(_) => "EVENT",
            Kind::Socket { .. } => "SOCKET",
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.module, self.name)
    }
}

/// One topic (`orders.paid`), or all topics with the same beginning (`orders.*`, `*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics(String);

impl Topics {
    /// Reads a topic, or a pattern of topics.
    ///
    /// # Errors
    /// A sentence, when the text is neither.
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

    /// Whether `topic` is one of these topics.
    pub fn contain(&self, topic: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => topic.starts_with(beginning) && topic.len() > beginning.len(),
            None => self.0 == topic,
        }
    }

    /// Whether all topics of `other` are among these topics.
    pub fn cover(&self, other: &Topics) -> bool {
        match other.0.strip_suffix('*') {
            Some(beginning) => {
                (self.0.strip_suffix('*')).is_some_and(|own| beginning.starts_with(own))
            }
            None => self.contain(&other.0),
        }
    }

    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether the text is one topic: words, separated by dots.
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
