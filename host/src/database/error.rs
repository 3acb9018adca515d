//! Errors of databases, as guests get them.

use super::statement::short;
use crate::threads::deadline::Ended;
use crate::threads::gate::Refused;

pub use crate::contract::database_types::{Error, ErrorKind, Violation};

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            violation: None,
        }
    }

    pub(super) fn read_only(sql: &str) -> Error {
        Error::new(
            ErrorKind::Denied,
            format!(
                "the view is read-only, and this statement writes: {}",
                short(sql)
            ),
        )
    }

    pub(crate) fn pinned_by_caller(database: &str) -> Error {
        Error::new(
            ErrorKind::Denied,
            format!(
                "the view that calls this one keeps the connection to the database `{database}` pinned that this statement needs, and waits for this view: let the pin go before the call, or begin a transaction on it that this view joins"
            ),
        )
    }

    pub(super) fn too_large(max_bytes: u64, sql: &str) -> Error {
        Error::new(
            ErrorKind::TooLarge,
            format!(
                "the result has more than {max_bytes} bytes (`rows_max_bytes`): narrow it, or read it in pieces with `open` outside a transaction: {}",
                short(sql)
            ),
        )
    }

    pub(super) fn parameters(expected: usize, given: usize, sql: &str) -> Error {
        Error::new(
            ErrorKind::Statement,
            format!(
                "the statement has {expected} parameters, and {given} were given: {}",
                short(sql)
            ),
        )
    }
}

impl ErrorKind {
    /// Whether a constraint refused a change.
    pub fn is_constraint(self) -> bool {
        match self {
            ErrorKind::Unique
            | ErrorKind::ForeignKey
            | ErrorKind::NotNull
            | ErrorKind::Check
            | ErrorKind::DataType
            | ErrorKind::Constraint => true,
            ErrorKind::Denied
            | ErrorKind::Statement
            | ErrorKind::Conflict
            | ErrorKind::TooLarge
            | ErrorKind::Poisoned
            | ErrorKind::Unavailable
            | ErrorKind::Aborted
            | ErrorKind::Other => false,
        }
    }
}

impl From<Ended> for Error {
    fn from(why: Ended) -> Error {
        Error::new(
            ErrorKind::Aborted,
            match why {
                Ended::Disconnected => "request-aborted: the client has gone",
                Ended::TimedOut => "request-aborted: the request's time is over",
                Ended::Shutdown => "request-aborted: the host is shutting down",
                Ended::Failed => "request-aborted: the view has failed",
                Ended::Answered => "request-aborted: the request is answered already",
            },
        )
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Busy(sentence) => Error::new(ErrorKind::Unavailable, sentence),
            Refused::Ended(why) => why.into(),
        }
    }
}
