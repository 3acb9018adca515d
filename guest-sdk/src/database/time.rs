//! Dates and times of the crate `time`, as ISO 8601 texts. PostgreSQL accepts and returns such texts for its own types.
//!
//! A parameter is written with six digits after the decimal point, as many as PostgreSQL stores, and in UTC if its type
//! has an offset from UTC. So the texts in SQLite sort by time. Columns may hold shorter texts, such as SQLite's
//! `current_timestamp`.

use super::{FromValue, ToValue, Value};
use crate::{Error, Result};
use time::format_description::BorrowedFormatItem as Item;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

const DATE: &[Item<'_>] = format_description!(version = 2, "[year]-[month]-[day]");
const TIME: &[Item<'_>] =
    format_description!(version = 2, "[hour]:[minute]:[second].[subsecond digits:6]");
const DATE_TIME: &[Item<'_>] = format_description!(
    version = 2,
    "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]"
);
const TIME_READ: &[Item<'_>] = format_description!(
    version = 2,
    "[hour]:[minute][optional [:[second][optional [.[subsecond]]]]]"
);

fn text<T>(formatted: Result<String, time::error::Format>, of: T) -> Result<Value>
where
    T: std::fmt::Debug,
{
    let text = formatted
        .map_err(|error| Error::internal(format!("{of:?} cannot be a parameter: {error}")))?;
    // The crate `time` writes a sign before years of more than four digits.
    Ok(Value::Text(text.trim_start_matches('+').to_owned()))
}

impl ToValue for Date {
    fn to_value(self) -> Result<Value> {
        text(self.format(DATE), self)
    }
}

impl ToValue for Time {
    fn to_value(self) -> Result<Value> {
        text(self.format(TIME), self)
    }
}

impl ToValue for PrimitiveDateTime {
    fn to_value(self) -> Result<Value> {
        text(self.format(DATE_TIME), self)
    }
}

/// Written in UTC, with a `Z`.
impl ToValue for OffsetDateTime {
    fn to_value(self) -> Result<Value> {
        let utc = self.to_offset(UtcOffset::UTC);
        let formatted = utc.format(DATE_TIME);
        text(formatted.map(|text| text + "Z"), self)
    }
}

impl FromValue for Date {
    const EXPECTED: &'static str = "a date, as `2026-11-21`";

    fn from_value(value: Value) -> Result<Self, Value> {
        read(value, |text| Date::parse(text, DATE).ok())
    }
}

impl FromValue for Time {
    const EXPECTED: &'static str = "a time, as `04:05:06.789`";

    fn from_value(value: Value) -> Result<Self, Value> {
        read(value, |text| Time::parse(text, TIME_READ).ok())
    }
}

impl FromValue for PrimitiveDateTime {
    const EXPECTED: &'static str = "a date with a time, as `2026-11-21T04:05:06.789`";

    fn from_value(value: Value) -> Result<Self, Value> {
        read(value, date_time)
    }
}

/// A text without a zone is read as UTC, which is what SQLite's `current_timestamp` returns.
impl FromValue for OffsetDateTime {
    const EXPECTED: &'static str = "a point in time, as `2026-11-21T04:05:06.789Z`";

    fn from_value(value: Value) -> Result<Self, Value> {
        read(value, |text| {
            let utc = text.strip_suffix('Z').unwrap_or(text);
            let utc = date_time(utc).map(PrimitiveDateTime::assume_utc);
            utc.or_else(|| OffsetDateTime::parse(&text.replacen(' ', "T", 1), &Rfc3339).ok())
        })
    }
}

fn read<T>(value: Value, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Value> {
    let parsed = match &value {
        Value::Text(text) => parse(text),
        _ => None,
    };
    parsed.ok_or(value)
}

/// Reads a date and a time with a `T` or, as SQLite writes it, a space between them.
fn date_time(text: &str) -> Option<PrimitiveDateTime> {
    let (date, time) = text.split_once(['T', ' '])?;
    let date = Date::parse(date, DATE).ok()?;
    Some(date.with_time(Time::parse(time, TIME_READ).ok()?))
}
