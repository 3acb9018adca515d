//! Statements, their limits and their outcomes.

use tokio::sync::mpsc;

use super::error::Error;
pub use crate::contract::database_types::{Row, Table, Value};

/// One statement of a guest.
#[derive(Debug, Clone)]
pub struct Statement {
    /// The SQL of a single statement. Its parameters are `$1`, `$2`, … (for SQLite also `?`).
    pub sql: String,
    /// The values of its parameters.
    pub params: Vec<Value>,
    /// The most bytes of its rows. None: rows are not wanted, only the number of changed rows.
    pub rows_max: Option<u64>,
}

/// The outcome of a statement.
#[derive(Debug)]
pub struct Outcome {
    /// The rows, if they were wanted.
    pub table: Table,
    /// The number of changed rows.
    pub changed: u64,
}

/// The stage at which a statement failed.
#[derive(Debug)]
pub enum Failed {
    /// The host refused the statement: nothing was sent to the database, not even the statements before it.
    Refused(Error),
    /// The database failed a statement that the host runs before the guest's statement.
    Before(Error),
    /// The database failed the guest's statement.
    Statement(Error),
}

impl Failed {
    /// The error, whatever the stage.
    pub fn into_error(self) -> Error {
        match self {
            Failed::Refused(error) | Failed::Before(error) | Failed::Statement(error) => error,
        }
    }
}

/// The columns of a result, and its rows piece by piece.
pub struct Stream {
    /// Column names.
    pub columns: Vec<String>,
    /// The pieces of the result. An error is the last item.
    pub pieces: mpsc::Receiver<Result<Vec<Row>, Error>>,
}

/// Limits on a statement outside of any transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// A statement that writes is refused.
    pub read_only: bool,
    /// The only reading connection is pinned by the caller of this view, which waits for the view: so the statement
    /// must not wait for that connection.
    pub no_reader: bool,
    /// The same for the only writing connection.
    pub no_writer: bool,
}

/// The result of a statement, if possible in pieces.
pub enum Streamed {
    /// The result comes in pieces.
    Pieces(Stream),
    /// The statement writes, so the host has read the result as a whole.
    Whole(Table),
}

/// A piece of a streamed result ends at either limit, whichever is reached first.
pub(super) const PIECE_ROWS: usize = 256;
pub(super) const PIECE_BYTES: u64 = 64 << 10;
/// About how many bytes a row takes in addition to its texts and blobs: for the row itself, and for each value.
pub(super) const ROW_BYTES: u64 = 24;
pub(super) const VALUE_BYTES: u64 = 32;
/// The most prepared statements that are kept for one connection.
pub(super) const STATEMENTS_KEPT: usize = 64;
/// The most bytes of one statement's text.
pub(super) const STATEMENT_BYTES_MAX: usize = 256 << 10;

/// The beginning of a statement on one line, for messages.
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
