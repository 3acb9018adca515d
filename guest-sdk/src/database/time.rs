//! Dates and times of the crate `time`: texts as ISO 8601 has them, which PostgreSQL takes and gives for its own types.
//!
//! What is written has six digits behind the point, as many as PostgreSQL keeps, and is in UTC where it has a zone: so
//! texts in SQLite sort as what they stand for. What is read may be shorter, as SQLite's `current_timestamp` is.

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
    // Years beyond four digits have a sign.
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

/// In UTC, with a `Z`.
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

/// One without a zone is in UTC, as SQLite's `current_timestamp` is.
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

/// Between date and time is a `T` or, as SQLite writes it, a blank.
fn date_time(text: &str) -> Option<PrimitiveDateTime> {
    let (date, time) = text.split_once(['T', ' '])?;
    let date = Date::parse(date, DATE).ok()?;
    Some(date.with_time(Time::parse(time, TIME_READ).ok()?))
}
