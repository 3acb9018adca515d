//! The errors of the server and of the connection to it.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};

use super::super::error::{Error, ErrorKind, Violation};
use crate::telemetry::error::cut;

/// The most bytes that are kept of a constraint's name. PostgreSQL's names have at most 63 bytes.
const NAME_MAX: usize = 256;

/// The error of a statement on the database `name`.
pub(super) fn of_statement(name: &str, error: &tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) => Error {
            violation: violation(said),
            ..Error::new(kind(said.code()), sentence(said))
        },
        None if is_lost(error) => Error::new(
            ErrorKind::Unavailable,
            format!("the connection to the database `{name}` was lost: {error}"),
        ),
        None => Error::new(ErrorKind::Other, text(error)),
    }
}

/// Whether the server refused a prepared statement because definitions have changed since the preparation: a table has
/// other columns (`cached plan must not change result type`, which the server translates to its language), or a type,
/// such as an enumeration, was dropped.
pub(super) fn is_stale(error: &tokio_postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|said| match said.code().code() {
            "0A000" => said.routine() == Some("RevalidateCachedQuery"),
            // internal_error. The server does not translate the texts of these errors.
            "XX000" => said.message().starts_with("cache lookup failed for "),
            // undefined_object
            "42704" => said.message().starts_with("type with OID "),
            _ => false,
        })
}

/// Whether an error may come from inside a statement, such as from a procedure that it calls. The server reports a
/// context with such an error. With an error that comes before the statement runs, the server reports a context only if
/// a parameter is wrong.
pub(super) fn is_within(error: &tokio_postgres::Error) -> bool {
    let place = error.as_db_error().and_then(DbError::where_);
    place.is_some_and(|place| {
        place.contains('\n') || !place.starts_with("unnamed portal parameter $")
    })
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
        // foreign_key_violation, restrict_violation
        "23503" | "23001" => ErrorKind::ForeignKey,
        "23505" => ErrorKind::Unique,
        "23502" => ErrorKind::NotNull,
        "23514" => ErrorKind::Check,
        // string_data_right_truncation, numeric_value_out_of_range, invalid_datetime_format, datetime_field_overflow,
        // invalid_text_representation, invalid_binary_representation, untranslatable and invalid characters
        "22001" | "22003" | "22007" | "22008" | "22P02" | "22P03" | "22P05" | "22021" => {
            ErrorKind::DataType
        }
        "0A000" => ErrorKind::Statement,
        other => match &other[..2] {
            "08" => ErrorKind::Unavailable,
            "21" | "22" | "26" | "42" => ErrorKind::Statement,
            "23" => ErrorKind::Constraint,
            _ => ErrorKind::Other,
        },
    }
}

/// The constraint that refused a change, if one did.
fn violation(said: &DbError) -> Option<Violation> {
    kind(said.code()).is_constraint().then(|| Violation {
        constraint: said.constraint().map(|name| cut(name.to_owned(), NAME_MAX)),
        columns: match said.column() {
            Some(column) => vec![column.to_owned()],
            None => said.detail().map(key_columns).unwrap_or_default(),
        },
    })
}

/// The columns that a detail such as `Key (a, "B c")=(1, 2) already exists.` names. Empty if the key has expressions.
fn key_columns(detail: &str) -> Vec<String> {
    let key = (detail.strip_prefix("Key ("))
        .and_then(|rest| rest.split_once(")="))
        .map_or("", |(key, _)| key);
    let column = |name: &str| match name.strip_prefix('"') {
        Some(quoted) => Some(quoted.strip_suffix('"')?.replace("\"\"", "\"")),
        None => (name
            .chars()
            .all(|c| c.is_alphanumeric() || c == '_' || c == '$'))
        .then(|| name.to_owned()),
    };
    let columns: Option<Vec<_>> = key.split(", ").map(column).collect();
    columns.filter(|_| !key.is_empty()).unwrap_or_default()
}

/// The server's error as one sentence.
pub(in super::super) fn sentence(said: &DbError) -> String {
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

/// The number of the parameter that the server could not read, if the error is about a parameter.
fn parameter(said: &DbError) -> Option<&str> {
    let (_, rest) = said.where_()?.split_once("portal parameter $")?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_a_key_are_found() {
        for (detail, columns) in [
            ("Key (name)=(ann) already exists.", &["name"][..]),
            ("Key (a, \"B c\")=(1, ')=') already exists.", &["a", "B c"]),
            ("Key (lower(name))=(ann) already exists.", &[]),
            ("Failing row contains (null).", &[]),
            ("Key (", &[]),
        ] {
            assert_eq!(key_columns(detail), columns, "{detail}");
        }
    }
}
