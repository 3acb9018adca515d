//! Values, rows and parameters, converted between the contract and SQLite.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Statement, ToSql};

use super::super::error::{Error, ErrorKind};
use super::super::statement::{ROW_BYTES, Row, VALUE_BYTES, Value, short};

/// The names of a result's columns, and about how many bytes the names take. None: they take more than `max_bytes`.
pub(super) fn columns(statement: &Statement<'_>, max_bytes: u64) -> Option<(Vec<String>, u64)> {
    let names = || statement.column_names();
    // The names are measured before they are copied: a name may be as long as the statement that made the table.
    let bytes = names().map(|name| ROW_BYTES + name.len() as u64).sum();
    (bytes <= max_bytes).then(|| (names().map(str::to_owned).collect(), bytes))
}

/// A row, and about how many bytes the row takes. None: it takes more than `max_bytes`.
pub(super) fn read_row(
    row: &rusqlite::Row<'_>,
    width: usize,
    max_bytes: u64,
) -> Result<Option<(Row, u64)>, Error> {
    let mut values = Vec::with_capacity(width);
    let mut bytes = ROW_BYTES + VALUE_BYTES * width as u64;
    for index in 0..width {
        let value = row
            .get_ref(index)
            .map_err(|error| Error::new(ErrorKind::Other, error.to_string()))?;
        // The value is measured before it is copied.
        if let ValueRef::Text(content) | ValueRef::Blob(content) = value {
            bytes += content.len() as u64;
        }
        if bytes > max_bytes {
            return Ok(None);
        }
        values.push(match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Real(number),
            ValueRef::Text(text) => {
                Value::Text(String::from_utf8(text.to_vec()).map_err(|_| {
                    let sentence = format!(
                        "column {index} holds text that is not UTF-8: read it as `cast(… as blob)`"
                    );
                    Error::new(ErrorKind::Other, sentence)
                })?)
            }
            ValueRef::Blob(blob) => Value::Blob(blob.to_vec()),
        });
    }
    Ok(Some((values, bytes)))
}

/// The number of the value that each parameter of a statement takes, counted from 1: `?` takes the next value, `?N` and
/// `$N` the N-th.
pub(super) fn slots(statement: &Statement<'_>) -> Result<Vec<usize>, Error> {
    let slot = |index: usize| {
        let Some(name) = statement.parameter_name(index) else {
            return Ok(index);
        };
        let number = name.get(1..).and_then(|number| number.parse().ok());
        match (name.as_bytes()[0], number) {
            (b'?' | b'$', Some(number @ 1..=32_766)) => Ok(number),
            _ => Err(Error::new(
                ErrorKind::Statement,
                format!(
                    "the parameter `{}` has a name: number them (`$1`, `$2` …)",
                    short(name)
                ),
            )),
        }
    };
    (1..=statement.parameter_count()).map(slot).collect()
}

pub(super) struct Bound<'a>(pub(super) &'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Real(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(blob) => ValueRef::Blob(blob),
        }))
    }
}
