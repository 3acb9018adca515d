//! What a part of a request does: a list of steps, as JSON in the request.
//!
//! A view has its steps in its body, a middleware in the header `x-` and its name, a subscriber in the payload.
//! Each step that has something to tell adds one value to what the part tells; see [`Step`].

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use amphi_sdk::database::Row;
use amphi_sdk::prelude::*;
use amphi_sdk::{FromRow, Value};
use serde_json::Value as Json;

/// More rows than are read at once.
pub const SOME_ROWS: &str = "with recursive c (n) as (select 1 union all select n + 1 from c where n < 600) select n from c";

/// One step. What it comes to is told, also when it fails: `"Conflict: …"`. To fail with it, there is
/// [`Step::Must`].
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
    /// Opens a result and leaves it when that many rows are read; tells how many there were.
    Open { sql: String, rows: usize },
    /// Reads a counter and writes it back with one more.
    Increment { name: String },
    /// Steps in a transaction or savepoint; what the last one tells.
    Atomic { steps: Vec<Step> },
    /// Steps with a pinned session; what they tell.
    Pinned { steps: Vec<Step> },
    /// Steps all at once where that can be, else in turn; what they tell.
    Join { steps: Vec<Step> },
    /// A step whose failure is the part's own.
    Must { step: Box<Step> },
    /// A step again and again, until it fails.
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
    /// Middleware: the rest of the chain; tells its status.
    Next,
    /// Writes a line into the log.
    Log { text: String },
    /// Waits.
    Nap { ms: u64 },
    /// Sets a value of the context again and again and lets others run; tells whether it was always there.
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
    /// Ends the part: `error`, `refuse`, `panic`, `loop`.
    End { how: String },
    /// A step about which the log is told when it begins and what it comes to: `note 7 began`, `note 7 told 1`.
    Note { id: String, step: Box<Step> },
    /// [`Step::View`] with headers.
    Call {
        path: String,
        headers: BTreeMap<String, String>,
        steps: Vec<Step>,
    },
    /// Opens a result and does the steps, each after one more row; then reads the rest, or leaves it; tells how many
    /// rows it read.
    Stream {
        sql: String,
        steps: Vec<Step>,
        drain: bool,
    },
    /// Steps in a transaction or savepoint that is dropped without an end.
    Dropped { steps: Vec<Step> },
    /// Leaves something open until the part ends, out of reach: `pin`, `rows`, `begin`.
    Leak { what: String },
    /// A step that begins before a transaction or savepoint and is waited for within, after the steps there; else all in
    /// turn; what the step tells.
    Late { step: Box<Step>, steps: Vec<Step> },
    /// Adds a line to a file.
    Append { path: String, line: String },
    /// Steps at once where that can be, the others dropped when one has ended; else the first alone.
    Race { steps: Vec<Step> },
}

/// Steps from JSON; none from nothing.
pub fn parse(json: &[u8]) -> Result<Vec<Step>> {
    match json {
        [] => Ok(Vec::new()),
        json => Ok(serde_json::from_slice(json)?),
    }
}

/// The steps of a middleware: those of its header, or else to pass everything on.
pub fn of_middleware(request: &Request, name: &str) -> Result<Vec<Step>> {
    match request.headers.get(&header(name)) {
        Some(json) => parse(json.as_bytes()),
        None => Ok(vec![Step::Must {
            step: Box::new(Step::Next),
        }]),
    }
}

/// The header of a middleware: its steps in the request, what it tells in the response.
pub fn header(name: &str) -> String {
    format!("x-{name}")
}

/// What a step came to, as it is told.
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

/// Tells the log that a step begins.
pub fn note_begin(id: &str) {
    log::info!("note {id} began");
}

/// Tells the log what a step came to, the beginning of it.
pub fn note_end(id: &str, result: &Result<Json>) {
    let text = match result {
        Ok(json) => format!("told {json}"),
        Err(error) => format!("failed {}", failure(error)),
    };
    let text: String = text.chars().take(200).collect();
    log::info!("note {id} {text}");
}

/// The steps that never wait. None: it is not one of them.
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

/// Whether a failure of this step is the part's own.
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

/// A row of any columns.
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

/// What a view answers.
pub fn answer(status: StatusCode, told: &[Json]) -> Result<Response> {
    let mut response = amphi_sdk::Json(told).into_response()?;
    response.status = status;
    Ok(response)
}

/// What a middleware answers: the response of the rest if there is one, with what it tells itself, and its name after
/// those that were passed before.
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

/// What another view answered, as it is told.
pub fn answered(response: &Response) -> Json {
    let text = || String::from_utf8_lossy(&response.body).into();
    let body: Json = serde_json::from_slice(&response.body).unwrap_or_else(|_| text());
    Json::from(vec![response.status.as_u16().into(), body])
}
