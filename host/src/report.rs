//! What is known of a request that failed: the material of the error page in development. Plain facts; whoever has
//! them fills them in.

use std::time::Duration;

use serde::Serialize;

/// What is known of a request that failed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The view it was routed to, as `module::view`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// The guest functions on the way to where it failed, the outermost first, each with its mode: `sync shop::cart`.
    pub way: Vec<String>,
    /// The guest's stack, the innermost function first.
    pub frames: Vec<Frame>,
    /// The statements that it has run, in their order.
    pub statements: Vec<Statement>,
    /// How many more there were than are listed.
    pub statements_omitted: u64,
    /// What became of its transaction, if it had one: `rolled back`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fate: Option<String>,
    /// The values of its context.
    #[serde(skip)]
    pub values: Vec<(String, String)>,
}

/// A function that was running when a guest failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Its name in the source.
    pub function: String,
    /// The file, as the compiler saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The column, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

/// A statement that a request has run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    /// The database.
    pub database: String,
    /// The statement, cut where it is long.
    pub sql: String,
    /// How long it took.
    pub duration: Duration,
    /// The rows it gave or changed, or why it failed.
    pub outcome: Result<u64, String>,
}
