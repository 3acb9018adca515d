//! What is known of a request that failed, beside its failure: the material of the error page in development. Plain
//! facts; whoever has them fills them in.

use std::time::Duration;

/// What is known of a request that failed.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The view it was routed to, as `module::view`.
    pub view: Option<String>,
    /// The statements that it has run, in their order.
    pub statements: Vec<Statement>,
    /// How many more there were than are listed.
    pub statements_omitted: u64,
    /// What became of its transaction, if it had one: `rolled back`.
    pub transaction: Option<String>,
    /// The values of its context.
    pub values: Vec<(String, String)>,
}

/// A function that was running when a guest failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its name in the source.
    pub function: String,
    /// The file, as the compiler saw it.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
}

impl Frame {
    /// `src/lib.rs:16:59`, as far as it is known.
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
    /// The database.
    pub database: String,
    /// Enough of it to recognise it by.
    pub sql: String,
    /// From asking for it to its outcome, the wait for a connection with it.
    pub duration: Duration,
    /// How many rows it gave or changed, or why it failed.
    pub outcome: Result<u64, String>,
}
