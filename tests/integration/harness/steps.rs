//! JSON of the steps that the guest `rules` can do. The guest's own `steps.rs` says what each step does, and what the
//! step tells: the value that it adds to the answer.

use serde_json::{Value, json};

/// Runs a statement.
pub fn execute(sql: &str) -> Value {
    json!({"do": "execute", "sql": sql})
}

/// Runs a statement with parameters.
pub fn execute_with(sql: &str, params: Value) -> Value {
    json!({"do": "execute", "sql": sql, "params": params})
}

/// Adds a row.
pub fn insert(tag: &str) -> Value {
    execute_with("insert into rows (tag) values ($1)", json!([tag]))
}

/// A statement that breaks a constraint.
pub fn broken() -> Value {
    execute("insert into rows (tag) values (null)")
}

/// Runs a query.
pub fn query(sql: &str) -> Value {
    json!({"do": "query", "sql": sql})
}

/// Runs a query with parameters.
pub fn query_with(sql: &str, params: Value) -> Value {
    json!({"do": "query", "sql": sql, "params": params})
}

/// A step whose failure makes the guest function fail.
pub fn must(step: Value) -> Value {
    json!({"do": "must", "step": step})
}

/// Steps in an atomic block.
pub fn atomic(steps: Value) -> Value {
    json!({"do": "atomic", "steps": steps})
}

/// Steps with a pinned session.
pub fn pinned(steps: Value) -> Value {
    json!({"do": "pinned", "steps": steps})
}

/// Steps that async views do at the same time, and sync views one after the other.
pub fn join(steps: Value) -> Value {
    json!({"do": "join", "steps": steps})
}

/// Reads a counter, and writes it back plus one.
pub fn increment() -> Value {
    json!({"do": "increment", "name": "one"})
}

/// Has the transaction rolled back at its end.
pub fn rollback() -> Value {
    json!({"do": "rollback"})
}

/// Sets a value of the context.
pub fn set(name: &str, value: &str) -> Value {
    json!({"do": "set", "name": name, "value": value})
}

/// Tells a value of the context.
pub fn get(name: &str) -> Value {
    json!({"do": "get", "name": name})
}

/// Tells what else the context knows, such as `route`.
pub fn about(what: &str) -> Value {
    json!({"do": "about", "what": what})
}

/// Tells a header of the request.
pub fn header(name: &str) -> Value {
    json!({"do": "header", "name": name})
}

/// Publishes an event whose subscribers do these steps.
pub fn publish(topic: &str, steps: Value) -> Value {
    json!({"do": "publish", "topic": topic, "steps": steps})
}

/// Calls another view.
pub fn view(path: &str, steps: Value) -> Value {
    json!({"do": "view", "path": path, "steps": steps})
}

/// Sends a request.
pub fn fetch(url: &str) -> Value {
    json!({"do": "fetch", "url": url})
}

/// In middleware: runs the rest of the chain.
pub fn next() -> Value {
    json!({"do": "next"})
}

/// Writes a line into the log.
pub fn log(text: &str) -> Value {
    json!({"do": "log", "text": text})
}

/// Waits.
pub fn nap(ms: u64) -> Value {
    json!({"do": "nap", "ms": ms})
}

/// Tells how many calls the instance has had.
pub fn calls() -> Value {
    json!({"do": "calls"})
}

/// Adds a line to a file.
pub fn append(path: &str, line: &str) -> Value {
    json!({"do": "append", "path": path, "line": line})
}

/// Reads this many rows of a result, and leaves the rest unread.
pub fn open(sql: &str, rows: usize) -> Value {
    json!({"do": "open", "sql": sql, "rows": rows})
}

/// Answers with this status.
pub fn status(code: u16) -> Value {
    json!({"do": "status", "code": code})
}

/// Ends the guest function: `error`, `refuse`, `panic` or `loop`.
pub fn end(how: &str) -> Value {
    json!({"do": "end", "how": how})
}
