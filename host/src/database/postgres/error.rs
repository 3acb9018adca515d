//! What the server, or the way to it, says went wrong.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};

use super::super::{Error, ErrorKind};

/// The error of a statement on the database `name`.
pub(super) fn of_statement(name: &str, error: &tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) => Error::new(kind(said.code()), sentence(said)),
        None if is_lost(error) => Error::new(
            ErrorKind::Unavailable,
            format!("the connection to the database `{name}` was lost: {error}"),
        ),
        None => Error::new(ErrorKind::Other, text(error)),
    }
}

fn is_lost(error: &tokio_postgres::Error) -> bool {
    let of_socket = |source: &(dyn std::error::Error + 'static)| source.is::<std::io::Error>();
    error.is_closed() || error.source().is_some_and(of_socket)
}

fn text(error: &tokio_postgres::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn kind(state: &SqlState) -> ErrorKind {
    match state.code() {
        // serialization_failure, deadlock_detected, lock_not_available
        "40001" | "40P01" | "55P03" => ErrorKind::Conflict,
        // read_only_sql_transaction
        "25006" => ErrorKind::Denied,
        "25P02" => ErrorKind::Poisoned,
        "57014" => ErrorKind::Aborted,
        // too_many_connections, admin_shutdown, crash_shutdown, cannot_connect_now, idle timeouts
        "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => {
            ErrorKind::Unavailable
        }
        // "cached plan must not change result type": the next try prepares anew
        "0A000" => ErrorKind::Statement,
        other => match &other[..2] {
            "08" => ErrorKind::Unavailable,
            "21" | "22" | "26" | "42" => ErrorKind::Statement,
            "23" => ErrorKind::Constraint,
            _ => ErrorKind::Other,
        },
    }
}

fn sentence(said: &DbError) -> String {
    let mut sentence = said.message().to_owned();
    if let Some(number) = parameter(said) {
        sentence = format!("parameter {number} does not fit: {sentence}");
    }
    if said.message() == "cannot insert multiple commands into a prepared statement" {
        "one call runs one statement: give the others calls of their own".clone_into(&mut sentence);
    }
    for more in [said.detail(), said.hint()].into_iter().flatten() {
        sentence.push_str("; ");
        sentence.push_str(more);
    }
    sentence
}

/// Which parameter the server could not read, if that is what failed.
fn parameter(said: &DbError) -> Option<&str> {
    let (_, rest) = said.where_()?.split_once("portal parameter $")?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some(&rest[..end])
}
