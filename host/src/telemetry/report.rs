//! Facts about a failed request that its failure does not have, for the error page in development. They are plain data.
//! The code that knows a fact sets it.

use std::time::Duration;

/// Facts about a failed request.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The view that the request was routed to, as `module::view`.
    pub view: Option<String>,
    /// The statements that the request has run, in order.
    pub statements: Vec<Statement>,
    /// The number of further statements, which are not listed.
    pub statements_omitted: u64,
    /// The outcome of the request's transaction, if there was one: `rolled back`.
    pub transaction: Option<String>,
    /// The values of the request's context.
    pub values: Vec<(String, String)>,
}

/// A function in the backtrace of a guest that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// The name of the function in the source.
    pub function: String,
    /// The source file, by the path that the compiler recorded.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
}

impl Frame {
    /// The location in the source, as far as it is known: `src/lib.rs:16:59`.
    pub fn place(&self) -> Option<String> {
        let file = self.file.as_ref()?;
        Some(match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
            (Some(line), None) => format!("{file}:{line}"),
            _ => file.clone(),
        })
    }
}

/// A statement that a request has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The name of the database.
    pub database: String,
    /// The SQL, possibly cut: enough to recognise the statement.
    pub sql: String,
    /// The time from the guest's call to the outcome, with the wait for a connection.
    pub duration: Duration,
    /// The number of rows that it returned or changed, or why it failed.
    pub outcome: Result<u64, String>,
}
