//! Statements, what is wanted of them, and what comes of them.

use tokio::sync::mpsc;

use super::error::Error;
pub use crate::contract::database_types::{Row, Table, Value};

/// One statement, and what is wanted of it.
#[derive(Debug, Clone)]
pub struct Statement {
    /// A single statement. Its parameters are `$1`, `$2` … (in SQLite also `?`).
    pub sql: String,
    /// The values of its parameters.
    pub params: Vec<Value>,
    /// Its rows, up to so many bytes. None: only how many it changed.
    pub rows_max: Option<u64>,
}

/// What a statement did.
#[derive(Debug)]
pub struct Outcome {
    /// Its rows, when they were wanted.
    pub table: Table,
    /// How many rows it changed.
    pub changed: u64,
}

/// How a statement came to nothing.
#[derive(Debug)]
pub enum Failed {
    /// The host refused it: the database has seen nothing of it, nor of what was to go before it.
    Refused(Error),
    /// What had to go before it failed.
    Before(Error),
    /// The database failed it.
    Statement(Error),
}

impl Failed {
    /// What happened, whatever the stage.
    pub fn into_error(self) -> Error {
        match self {
            Failed::Refused(error) | Failed::Before(error) | Failed::Statement(error) => error,
        }
    }
}

/// The columns of a result, and its rows as they are read.
pub struct Stream {
    /// Column names.
    pub columns: Vec<String>,
    /// Pieces of the result; an error is the last one.
    pub pieces: mpsc::Receiver<Result<Vec<Row>, Error>>,
}

/// What a statement outside of any transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// It is refused when it writes.
    pub read_only: bool,
    /// The only connection that reads is pinned by the caller of its view, which waits for the view.
    pub no_reader: bool,
    /// The same of the only one that writes.
    pub no_writer: bool,
}

/// A result that was asked for in pieces.
pub enum Streamed {
    /// It comes in pieces.
    Pieces(Stream),
    /// The statement writes, so that its result was read at once.
    Whole(Table),
}

/// A piece of a streamed result ends at whichever comes first.
pub(super) const PIECE_ROWS: usize = 256;
pub(super) const PIECE_BYTES: u64 = 64 << 10;
/// About how many bytes a row takes beside its texts and blobs: for itself, and for each value.
pub(super) const ROW_BYTES: u64 = 24;
pub(super) const VALUE_BYTES: u64 = 32;
/// Prepared statements kept per connection.
pub(super) const STATEMENTS_KEPT: usize = 64;
/// The most bytes of one statement's text.
pub(super) const STATEMENT_BYTES_MAX: usize = 256 << 10;

/// Enough of a statement to recognise it by.
pub(crate) fn short(sql: &str) -> String {
    let mut line = String::new();
    for word in sql.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word[..word.floor_char_boundary(200)]);
        if line.len() > 160 {
            line.truncate(line.floor_char_boundary(160));
            line.push_str(" …");
            break;
        }
    }
    line
}
