//! Programs: requests that run at the same time against one server. Each request is a tree of guest functions, and each
//! function is a list of steps. A view together with the middleware around it is a *part*.
//!
//! Every step has a number that is unique within the program. The row that a step inserts and the context value that it
//! sets carry the number. The guest logs when the step begins, and its result (what the step *tells*). So the oracle
//! knows the step of each row.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::harness::{Kind, Mode};

/// A query with more rows than the SDK fetches in one call.
const SOME_ROWS: &str = "with recursive c (n) as (select 1 union all select n + 1 from c where n < 600) select n from c";

/// Requests that run at the same time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The seed that the program was generated from.
    pub seed: u64,
    pub shape: Shape,
    pub requests: Vec<Request>,
}

/// The server that a program runs on: its capacities, and its middleware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub workers: u32,
    pub workers_max: u32,
    pub loops: u32,
    pub in_flight_max: u32,
    /// Connections to PostgreSQL.
    pub connections: u32,
    /// Reading connections of SQLite.
    pub readers: u32,
    /// Middleware of the app, the outermost first.
    pub app: Vec<Around>,
    /// Middleware of the module, within that of the app. Sub-requests run this middleware only.
    pub module: Vec<Around>,
}

/// A middleware of the guest `rules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    pub is_async: bool,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// When the request is sent, counted from the program's start.
    pub delay_ms: u64,
    pub client: Client,
    pub part: Part,
}

/// What a client does after it has sent its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Client {
    /// Waits for the response, on a connection that is shared with other requests.
    Stays,
    /// Sends a second request without waiting for the first response (pipelining), then waits for the first response.
    Pipelines,
    /// Closes the connection after this many milliseconds.
    Leaves { after_ms: u64 },
    /// Sends an empty line after the request, and closes the connection after this many milliseconds.
    LeavesBehindLine { after_ms: u64 },
    /// Sends a second request after the first, and closes the connection after this many milliseconds.
    LeavesBehindRequest { after_ms: u64 },
    /// Closes its direction of the connection after the request, and waits for a response.
    HalfCloses,
}

/// A view with the middleware around it. Middleware that is not in `around` only runs the rest of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub view: View,
    /// Steps of middleware, by its position in the configured list: for a request the app's list and then the module's, for a
    /// sub-request the module's.
    pub around: Vec<(usize, Vec<Step>)>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub is_async: bool,
    pub kind: ViewKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ViewKind {
    Plain,
    Atomic,
    Read,
    ReadAtomic,
    /// Atomic, with 10 ms of CPU time.
    Limited,
    /// Atomic, with a time limit of 250 ms.
    Brief,
    Repeatable,
    Serializable,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub id: u32,
    /// Whether a failure of the step makes its function fail.
    pub must: bool,
    pub does: Does,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Does {
    /// Inserts the row of this step.
    Insert,
    /// A statement that breaks a constraint.
    Broken,
    /// Adds one to a counter that all requests share.
    Bump,
    /// Counts the rows in the database that the step with this number has inserted.
    See(u32),
    Nap {
        ms: u64,
    },
    Block(Vec<Step>),
    /// A block that is dropped before it ends; in a sync view, a block that fails.
    Dropped(Vec<Step>),
    Pin(Vec<Step>),
    /// Reads a result of many rows in pieces: one row before each step, then the others (`drain`) or no more.
    Stream {
        steps: Vec<Step>,
        drain: bool,
    },
    Join(Vec<Step>),
    Race(Vec<Step>),
    Call(Box<Part>),
    /// An event whose subscribers do these steps.
    Publish(Vec<Step>),
    /// Sets the context value with this name.
    Set(String),
    Get(String),
    /// In middleware: runs the rest of the chain.
    Next,
    /// An outbound request to the same server, for a path that it does not have.
    Fetch,
    Leak(String),
    Status(u16),
    Rollback,
    End(String),
}

impl ViewKind {
    pub const ALL: [ViewKind; 8] = [
        ViewKind::Plain,
        ViewKind::Atomic,
        ViewKind::Read,
        ViewKind::ReadAtomic,
        ViewKind::Limited,
        ViewKind::Brief,
        ViewKind::Repeatable,
        ViewKind::Serializable,
    ];

    pub fn is_atomic(self) -> bool {
        !matches!(self, ViewKind::Plain | ViewKind::Read)
    }

    pub fn is_read_only(self) -> bool {
        matches!(self, ViewKind::Read | ViewKind::ReadAtomic)
    }

    /// Whether a limit of the view may end it at any time.
    pub fn is_limited(self) -> bool {
        matches!(self, ViewKind::Limited | ViewKind::Brief)
    }

    fn path(self) -> &'static str {
        match self {
            ViewKind::Plain => "run",
            ViewKind::Atomic => "run/atomic",
            ViewKind::Read => "read",
            ViewKind::ReadAtomic => "read/atomic",
            ViewKind::Limited => "limited",
            ViewKind::Brief => "brief",
            ViewKind::Repeatable => "repeatable",
            ViewKind::Serializable => "serializable",
        }
    }
}

impl View {
    pub fn path(self) -> String {
        format!("/{}/{}", mode(self.is_async), self.kind.path())
    }
}

impl Client {
    /// When the client disconnects, if it does.
    pub fn leaves_after_ms(self) -> Option<u64> {
        match self {
            Client::Leaves { after_ms }
            | Client::LeavesBehindLine { after_ms }
            | Client::LeavesBehindRequest { after_ms } => Some(after_ms),
            Client::Stays | Client::Pipelines | Client::HalfCloses => None,
        }
    }
}

impl Request {
    /// The request's delay, plus the sum of its sleeps or the time until its client disconnects, whichever is less.
    pub fn naps_ms(&self) -> u64 {
        let naps = self.steps().into_iter().map(|step| match step.does {
            Does::Nap { ms } => ms,
            _ => 0,
        });
        let naps = naps.sum();
        self.delay_ms
            + self
                .client
                .leaves_after_ms()
                .map_or(naps, |after_ms| after_ms.min(naps))
    }

    /// How many of its steps compute without end, until a limit ends them.
    pub fn loops(&self) -> u64 {
        let is_loop = |step: &&Step| step.does == Does::End("loop".to_owned());
        self.steps().into_iter().filter(is_loop).count() as u64
    }

    /// All steps of its functions and of the views that it calls, without those of subscribers.
    pub fn steps(&self) -> Vec<&Step> {
        let mut steps: Vec<&Step> = self.part.lists().flatten().collect();
        let mut at = 0;
        while let Some(step) = steps.get(at).copied() {
            steps.extend(step.inner());
            if let Does::Call(part) = &step.does {
                steps.extend(part.lists().flatten());
            }
            at += 1;
        }
        steps
    }
}

fn mode(is_async: bool) -> Mode {
    match is_async {
        true => Mode::Async,
        false => Mode::Sync,
    }
}

impl Around {
    pub fn header(&self) -> String {
        mode(self.is_async).header(&self.name)
    }
}

impl Shape {
    /// The keys that this shape adds to the `amphi.toml` of `rules`. All waits of the server time out earlier than the
    /// client gives up on a request.
    pub fn config(&self, kind: Kind) -> String {
        let names = |around: &[Around]| {
            let names = around
                .iter()
                .map(|around| mode(around.is_async).part(&around.name));
            Value::from(names.collect::<Vec<_>>())
        };
        let database = match kind {
            Kind::Sqlite => format!("databases.default.readers = {}", self.readers),
            Kind::Postgres => format!("databases.default.connections = {}", self.connections),
        };
        let Shape {
            workers,
            workers_max,
            loops,
            in_flight_max,
            ..
        } = self;
        format!(
            r#"
            app.middleware = {app}
            modules.rules.middleware = {module}
            # So that the log can be asked about each.
            server.trusted_proxies = ["127.0.0.1"]
            # A kept connection is not closed while a busy machine has its client wait.
            server.header_timeout_ms = 120000
            limits = {{ cpu_ms = 200, timeout_ms = 7000, log_max_bytes = 1000000 }}
            sync_views = {{ workers = {workers}, workers_max = {workers_max}, queue_timeout_ms = 4000 }}
            async_views = {{ loops = {loops}, in_flight_max = {in_flight_max}, queue_timeout_ms = 4000 }}
            databases.default.acquire_timeout_ms = 4000
            {database}
            "#,
            app = names(&self.app),
            module = names(&self.module),
        )
    }

    /// All middleware around a request, or a sub-request.
    pub fn around(&self, is_request: bool) -> Vec<&Around> {
        let app = self.app.iter().filter(|_| is_request);
        app.chain(&self.module).collect()
    }
}

impl Part {
    /// The headers with the steps of its middleware. `run` is the name of this run of the program.
    pub fn headers(&self, shape: &Shape, is_request: bool, run: &str) -> Vec<(String, String)> {
        let all = shape.around(is_request);
        let known = self
            .around
            .iter()
            .filter_map(|(place, steps)| Some((all.get(*place)?, steps)));
        known
            .map(|(around, steps)| (around.header(), script(steps, shape, run).to_string()))
            .collect()
    }

    /// The lists of steps of its middleware and its view.
    pub fn lists(&self) -> impl Iterator<Item = &Vec<Step>> {
        self.around
            .iter()
            .map(|(_, steps)| steps)
            .chain([&self.steps])
    }
}

/// Steps as JSON for the guest.
pub fn script(steps: &[Step], shape: &Shape, run: &str) -> Value {
    steps.iter().map(|step| step.script(shape, run)).collect()
}

/// The text that marks the row, the context value and the notes of a step in a run.
pub fn tag(run: &str, id: u32) -> String {
    format!("{run}.{id}")
}

impl Step {
    /// The steps nested in this step, in the order in which they begin. Steps of a called view are not among them.
    pub fn inner(&self) -> &[Step] {
        match &self.does {
            Does::Block(steps)
            | Does::Dropped(steps)
            | Does::Pin(steps)
            | Does::Stream { steps, .. }
            | Does::Join(steps)
            | Does::Race(steps) => steps,
            _ => &[],
        }
    }

    fn script(&self, shape: &Shape, run: &str) -> Value {
        let own = tag(run, self.id);
        let within = |steps: &[Step]| script(steps, shape, run);
        let execute =
            |sql: &str, params: Value| json!({"do": "execute", "sql": sql, "params": params});
        let step = match &self.does {
            Does::Insert => execute("insert into rows (tag) values ($1)", json!([own])),
            Does::Broken => execute("insert into rows (tag) values (null)", json!([])),
            Does::Bump => execute(
                "update counters set n = n + 1 where name = 'one'",
                json!([]),
            ),
            Does::See(id) => {
                json!({"do": "query", "sql": "select count(*) from rows where tag = $1", "params": [tag(run, *id)]})
            }
            Does::Nap { ms } => json!({"do": "nap", "ms": ms}),
            Does::Block(steps) => json!({"do": "atomic", "steps": within(steps)}),
            Does::Dropped(steps) => json!({"do": "dropped", "steps": within(steps)}),
            Does::Pin(steps) => json!({"do": "pinned", "steps": within(steps)}),
            Does::Stream { steps, drain } => {
                json!({"do": "stream", "sql": SOME_ROWS, "steps": within(steps), "drain": drain})
            }
            Does::Join(steps) => json!({"do": "join", "steps": within(steps)}),
            Does::Race(steps) => json!({"do": "race", "steps": within(steps)}),
            Does::Call(part) => {
                let headers = part.headers(shape, false, run).into_iter();
                let headers: Map<String, Value> =
                    headers.map(|(name, value)| (name, value.into())).collect();
                json!({"do": "call", "path": part.view.path(), "headers": headers, "steps": within(&part.steps)})
            }
            Does::Publish(steps) => {
                json!({"do": "publish", "topic": "orders.new", "steps": within(steps)})
            }
            Does::Set(name) => json!({"do": "set", "name": name, "value": own}),
            Does::Get(name) => json!({"do": "get", "name": name}),
            Does::Next => json!({"do": "next"}),
            Does::Fetch => json!({"do": "fetch", "url": "/nowhere"}),
            Does::Leak(what) => json!({"do": "leak", "what": what}),
            Does::Status(code) => json!({"do": "status", "code": code}),
            Does::Rollback => json!({"do": "rollback"}),
            Does::End(how) => json!({"do": "end", "how": how}),
        };
        let step = match self.must {
            true => json!({"do": "must", "step": step}),
            false => step,
        };
        json!({"do": "note", "id": own, "step": step})
    }
}
