//! The steps that a guest function does, as JSON in the request.
//!
//! A view finds its steps in the body, a middleware in the header `x-NAME`, a subscriber in the event's payload. The function
//! answers with a list of JSON values, one for each step: what the step *tells*; see [`Step`].

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use amphi_sdk::database::Row;
use amphi_sdk::prelude::*;
use amphi_sdk::{FromRow, Value};
use serde_json::Value as Json;

/// A query with more rows than the SDK fetches in one call.
pub const SOME_ROWS: &str = "with recursive c (n) as (select 1 union all select n + 1 from c where n < 600) select n from c";

/// One step. A step that fails tells its error, as in `"Conflict: …"`, and the function goes on; [`Step::Must`] makes the
/// function fail with the step.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Runs a statement; tells the number of rows it changed.
    Execute {
        sql: String,
        #[serde(default)]
        params: Vec<Json>,
    },
    /// Runs a statement; tells its rows.
    Query {
        sql: String,
        #[serde(default)]
        params: Vec<Json>,
    },
    /// Opens a result, reads at most `rows` rows and drops the result; tells how many rows it read.
    Open { sql: String, rows: usize },
    /// Reads a counter, and writes it back plus one.
    Increment { name: String },
    /// Does the steps in a transaction or savepoint; tells what the last of them tells.
    Atomic { steps: Vec<Step> },
    /// Does the steps while a connection is pinned; tells what they tell.
    Pinned { steps: Vec<Step> },
    /// Does the steps: an async function all at the same time, a sync function in turn. Tells what they tell.
    Join { steps: Vec<Step> },
    /// Does the step. If the step fails, the function fails.
    Must { step: Box<Step> },
    /// Does the step `times` times, or until it fails.
    Repeat { times: u32, step: Box<Step> },
    /// Asks for the transaction to be rolled back at its end.
    Rollback,
    /// Sets a value of the context.
    Set { name: String, value: String },
    /// Tells a value of the context.
    Get { name: String },
    /// Tells what the context knows of the request: `request-id`, `route`, `peer`, `traceparent` or `remaining`.
    About { what: String },
    /// Tells all values of a header of the request, with commas between them.
    Header { name: String },
    /// Publishes an event. Its subscribers do these steps.
    Publish { topic: String, steps: Vec<Step> },
    /// Calls a view of this app, which does these steps; tells the status and the body of its response.
    View { path: String, steps: Vec<Step> },
    /// Sends an outbound request; tells the status of the response.
    Fetch { url: String },
    /// In middleware: runs the rest of the chain; tells the status of its response.
    Next,
    /// Writes a line into the log.
    Log { text: String },
    /// Waits for `ms` milliseconds.
    Nap { ms: u64 },
    /// Sets a value of the context, lets other requests run and reads the value, `times` times. Tells whether it always
    /// read what it had set.
    Keep {
        name: String,
        value: String,
        times: u32,
    },
    /// Tells how many steps of this kind this instance has done.
    Calls,
    /// Makes the function answer with this status.
    Status { code: u16 },
    /// Makes the view answer with this status, and with these headers in addition to its own.
    Answer {
        code: u16,
        headers: Vec<(String, String)>,
    },
    /// Ends the function in the way that `how` names: `error`, `refuse`, `panic` or `loop`.
    End { how: String },
    /// Does the step, and writes its beginning and its result into the log: `note 7 began`, `note 7 told 1`.
    Note { id: String, step: Box<Step> },
    /// Like [`Step::View`], with headers for the request.
    Call {
        path: String,
        headers: BTreeMap<String, String>,
        steps: Vec<Step>,
    },
    /// Opens a result, and does the steps, each after reading one row. Then reads the other rows (with `drain`) or
    /// drops the result. Tells how many rows it read.
    Stream {
        sql: String,
        steps: Vec<Step>,
        drain: bool,
    },
    /// Does the steps in a transaction or savepoint, and drops the transaction or savepoint before its end.
    Dropped { steps: Vec<Step> },
    /// Opens a pin (`pin`), a result (`rows`) or a transaction (`begin`), and leaves it open until the function ends.
    Leak { what: String },
    /// In async functions: begins `step`. If it still runs 20 ms later, does `steps` in a transaction or savepoint,
    /// then awaits `step` there. In sync functions: does `steps`, then `step`, in one. Tells what `step` tells.
    Late { step: Box<Step>, steps: Vec<Step> },
    /// Adds a line to a file.
    Append { path: String, line: String },
    /// In async functions: does the steps at the same time. When one has ended, the others are dropped. In sync
    /// functions: does the first step alone.
    Race { steps: Vec<Step> },
}

/// Reads steps from JSON. An empty text has no steps.
pub fn parse(json: &[u8]) -> Result<Vec<Step>> {
    match json {
        [] => Ok(Vec::new()),
        json => Ok(serde_json::from_slice(json)?),
    }
}

/// The steps of a middleware: those in its header or, without this header, one that runs the rest of the chain.
pub fn of_middleware(request: &Request, name: &str) -> Result<Vec<Step>> {
    match request.headers.get(&header(name)) {
        Some(json) => parse(json.as_bytes()),
        None => Ok(vec![Step::Must {
            step: Box::new(Step::Next),
        }]),
    }
}

/// The name of a middleware's header. In the request it has the middleware's steps, in the response what they told.
pub fn header(name: &str) -> String {
    format!("x-{name}")
}

/// What a step tells: its value, or its error as text.
pub fn told(result: Result<Json>) -> Json {
    result.unwrap_or_else(|error| failure(&error).into())
}

fn failure(error: &Error) -> String {
    let kind = match (error.database_kind(), error.http_kind()) {
        (Some(kind), _) => format!("{kind:?}"),
        (_, Some(kind)) => format!("{kind:?}"),
        _ => error.status().as_u16().to_string(),
    };
    let text = error.detail().unwrap_or(error.message());
    let text = text.strip_prefix("database: ").unwrap_or(text);
    format!("{}: {text}", kind.trim_start_matches("ErrorKind::"))
}

/// Writes into the log that a step begins.
pub fn note_begin(id: &str) {
    log::info!("note {id} began");
}

/// Writes what a step told into the log, at most 200 characters of it.
pub fn note_end(id: &str, result: &Result<Json>) {
    let text = match result {
        Ok(json) => format!("told {json}"),
        Err(error) => format!("failed {}", failure(error)),
    };
    let text: String = text.chars().take(200).collect();
    log::info!("note {id} {text}");
}

/// Does a step that never waits, which is the same in both modes. None if the step is of another kind.
pub fn at_once<M: Mode>(cx: &Context<M>, headers: &Headers, step: &Step) -> Option<Result<Json>> {
    Some(match step {
        Step::Set { name, value } => cx.set(name, value).map(|()| Json::Null),
        Step::Get { name } => Ok(cx.get(name).into()),
        Step::About { what } => Ok(match what.as_str() {
            "request-id" => cx.request_id().into(),
            "route" => cx.route().into(),
            "peer" => cx.peer().into(),
            "traceparent" => cx.traceparent().into(),
            "remaining" => u64::try_from(cx.remaining().as_millis())
                .unwrap_or(u64::MAX)
                .into(),
            _ => Json::Null,
        }),
        Step::Header { name } => {
            let all: Vec<&str> = headers.get_all(name).collect();
            Ok(all.join(",").into())
        }
        Step::Publish { topic, steps } => cx.publish(topic, steps).map(|()| Json::Null),
        Step::Log { text } => {
            log::info!("{text}");
            Ok(Json::Null)
        }
        Step::Append { path, line } => Ok(append(path, line)
            .map_or_else(|error| error.to_string(), |()| "written".into())
            .into()),
        Step::Calls => {
            static CALLS: AtomicU32 = AtomicU32::new(0);
            Ok((CALLS.fetch_add(1, Relaxed) + 1).into())
        }
        Step::End { how } => Err(end(how)),
        _ => return None,
    })
}

fn append(path: &str, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}")
}

/// Whether a failure of this step makes the function fail.
pub fn is_final(step: &Step) -> bool {
    match step {
        Step::Must { .. } | Step::End { .. } => true,
        Step::Note { step, .. } => is_final(step),
        _ => false,
    }
}

fn end(how: &str) -> Error {
    match how {
        "error" => Error::internal("only the log may read this"),
        "refuse" => Error::conflict("the client may read this"),
        "panic" => panic!("on purpose"),
        "loop" => loop {
            black_box(());
        },
        other => Error::not_found(format!("no way to end called {other}")),
    }
}

/// Parameters of a statement.
pub fn values(params: &[Json]) -> Result<Vec<Value>> {
    let value = |json: &Json| {
        Ok(match json {
            Json::Null => Value::Null,
            Json::Bool(flag) => Value::Integer((*flag).into()),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Value::Integer(integer),
                None => Value::Real(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(_) => Value::Blob(serde_json::from_value(json.clone())?),
            Json::Object(_) => return Err(Error::bad_request("no value of a database")),
        })
    };
    params.iter().map(value).collect()
}

/// A row with any number of columns.
pub struct Cells(pub Vec<Json>);

impl FromRow for Cells {
    fn from_row(row: &mut Row<'_>) -> Result<Self> {
        let columns = row.columns();
        let cell = |column: &String| {
            Ok(match row.take(column)? {
                Value::Null => Json::Null,
                Value::Integer(integer) => integer.into(),
                Value::Real(real) => real.into(),
                Value::Text(text) => text.into(),
                Value::Blob(bytes) => bytes.into(),
            })
        };
        columns.iter().map(cell).collect::<Result<_>>().map(Cells)
    }
}

/// The response of a view. The body is what its steps told.
pub fn answer(status: StatusCode, told: &[Json]) -> Result<Response> {
    let mut response = amphi_sdk::Json(told).into_response()?;
    response.status = status;
    Ok(response)
}

/// The response of a middleware: the response of the rest of the chain, if the rest ran. The middleware's header has
/// what its steps told, and `x-passed` has the names of all middleware that the response passed, the innermost first.
pub fn passed_on(
    rest: Option<Response>,
    status: Option<StatusCode>,
    name: &str,
    told: &[Json],
) -> Result<Response> {
    let mut response = match rest {
        Some(response) => response,
        None => answer(StatusCode::OK, told)?,
    };
    response.status = status.unwrap_or(response.status);
    let text: String = serde_json::to_string(told)?
        .chars()
        .map(|c| if c.is_ascii() { c } else { '?' })
        .collect();
    response.headers.set(header(name), text);
    response.headers.append("x-passed", name);
    Ok(response)
}

/// What a step that calls another view tells: the status and the body of that view's response.
pub fn answered(response: &Response) -> Json {
    let text = || String::from_utf8_lossy(&response.body).into();
    let body: Json = serde_json::from_slice(&response.body).unwrap_or_else(|_| text());
    Json::from(vec![response.status.as_u16().into(), body])
}
