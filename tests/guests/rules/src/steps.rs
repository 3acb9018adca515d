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
    /// Opens a result, reads at most so many rows and drops it; tells how many rows it read.
    Open { sql: String, rows: usize },
    /// Reads a counter, and writes it back plus one.
    Increment { name: String },
    /// Steps in a transaction or savepoint; tells what the last step tells.
    Atomic { steps: Vec<Step> },
    /// Steps while a connection is pinned; tells what they tell.
    Pinned { steps: Vec<Step> },
    /// Steps that an async function does at once, and a sync one in turn; tells what they tell.
    Join { steps: Vec<Step> },
    /// A step whose failure makes the function fail.
    Must { step: Box<Step> },
    /// A step so many times, or until it fails.
    Repeat { times: u32, step: Box<Step> },
    /// Has the transaction rolled back at the end.
    Rollback,
    /// Sets a value of the context.
    Set { name: String, value: String },
    /// Tells a value of the context.
    Get { name: String },
    /// Tells what else the context knows: `request-id`, `route`, `peer`, `traceparent`, `remaining`.
    About { what: String },
    /// Tells a header of the request, all values of it with commas between.
    Header { name: String },
    /// Publishes an event, whose subscribers do these steps.
    Publish { topic: String, steps: Vec<Step> },
    /// Calls a view of this app; tells its status and what it answers.
    View { path: String, steps: Vec<Step> },
    /// Sends a request; tells the status.
    Fetch { url: String },
    /// In middleware: runs the rest of the chain; tells the status of its response.
    Next,
    /// Writes a line into the log.
    Log { text: String },
    /// Waits.
    Nap { ms: u64 },
    /// Sets a value of the context again and again, lets other requests run, and reads it; tells whether it always read
    /// what it had set.
    Keep {
        name: String,
        value: String,
        times: u32,
    },
    /// Tells how many calls this instance has had.
    Calls,
    /// Answers with this status.
    Status { code: u16 },
    /// Answers with this status and these headers as well.
    Answer {
        code: u16,
        headers: Vec<(String, String)>,
    },
    /// Ends the function: `error`, `refuse`, `panic`, `loop`.
    End { how: String },
    /// A step whose beginning and result are written into the log: `note 7 began`, `note 7 told 1`.
    Note { id: String, step: Box<Step> },
    /// [`Step::View`] with headers.
    Call {
        path: String,
        headers: BTreeMap<String, String>,
        steps: Vec<Step>,
    },
    /// Opens a result, and does the steps, each after reading one row; then reads the other rows (`drain`) or drops the
    /// result; tells how many rows it read.
    Stream {
        sql: String,
        steps: Vec<Step>,
        drain: bool,
    },
    /// Steps in a transaction or savepoint that is dropped before it ends.
    Dropped { steps: Vec<Step> },
    /// Forgets something without closing it, so that it stays open until the function ends: `pin`, `rows`, `begin`.
    Leak { what: String },
    /// In async functions: `step` begins before a transaction or savepoint, and is awaited within it, after `steps`. In sync
    /// functions: all in turn. Tells what `step` tells.
    Late { step: Box<Step>, steps: Vec<Step> },
    /// Adds a line to a file.
    Append { path: String, line: String },
    /// In async functions: steps at once; when one has ended, the others are dropped. In sync functions: the first step
    /// alone.
    Race { steps: Vec<Step> },
}

/// Steps from JSON; none from an empty text.
pub fn parse(json: &[u8]) -> Result<Vec<Step>> {
    match json {
        [] => Ok(Vec::new()),
        json => Ok(serde_json::from_slice(json)?),
    }
}

/// The steps of a middleware: those in its header, or else to run the rest of the chain.
pub fn of_middleware(request: &Request, name: &str) -> Result<Vec<Step>> {
    match request.headers.get(&header(name)) {
        Some(json) => parse(json.as_bytes()),
        None => Ok(vec![Step::Must {
            step: Box::new(Step::Next),
        }]),
    }
}

/// The header of a middleware: in the request its steps, in the response what it told.
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

/// Does a step that never waits, in either mode. None if the step is another one.
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

/// A row of any number of columns.
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

/// The response of a view: what it told.
pub fn answer(status: StatusCode, told: &[Json]) -> Result<Response> {
    let mut response = amphi_sdk::Json(told).into_response()?;
    response.status = status;
    Ok(response)
}

/// The response of a middleware: that of the rest of the chain, if the rest ran. A header has what the middleware told, and
/// `x-passed` has the names of the middleware that the response passed, the innermost first.
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

/// What a call of another view tells: status and body of its response.
pub fn answered(response: &Response) -> Json {
    let text = || String::from_utf8_lossy(&response.body).into();
    let body: Json = serde_json::from_slice(&response.body).unwrap_or_else(|_| text());
    Json::from(vec![response.status.as_u16().into(), body])
}
