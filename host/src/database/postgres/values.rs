//! Converts values that the server sends to values of the contract: see `row` in `database.wit`.
//!
//! Results arrive in the binary format. A type that is not listed here is refused before the statement runs, with the
//! advice to cast it to text. An array becomes JSON text. In this text, truth values are `true` and `false`, integers
//! and floating-point numbers are numbers, JSON is as it is, and every other value is a string: the text that the value
//! is outside of an array.

use std::fmt::Write as _;

use fallible_iterator::FallibleIterator as _;
use postgres_protocol::types as binary;
use time::{Date, Duration, Month, PrimitiveDateTime, Time};
use tokio_postgres::types::{FromSql, Kind, Type};

use super::super::error::{Error, ErrorKind};
use super::super::statement::Value;
use super::numeric;

/// The bytes of a value, whatever its type.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> Result<Raw<'a>, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// How a type is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Bytes,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampUtc,
    Interval,
    Json,
    JsonBinary,
    Void,
}

fn reading(ty: &Type) -> Option<Reading> {
    Some(match *ty {
        Type::BOOL => Reading::Bool,
        Type::INT2 => Reading::Int2,
        Type::INT4 => Reading::Int4,
        Type::INT8 => Reading::Int8,
        Type::OID => Reading::Oid,
        Type::FLOAT4 => Reading::Float4,
        Type::FLOAT8 => Reading::Float8,
        Type::NUMERIC => Reading::Numeric,
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::CHAR
        | Type::XML
        | Type::UNKNOWN => Reading::Text,
        Type::BYTEA => Reading::Bytes,
        Type::UUID => Reading::Uuid,
        Type::DATE => Reading::Date,
        Type::TIME => Reading::Time,
        Type::TIMESTAMP => Reading::Timestamp,
        Type::TIMESTAMPTZ => Reading::TimestampUtc,
        Type::INTERVAL => Reading::Interval,
        Type::JSON => Reading::Json,
        Type::JSONB => Reading::JsonBinary,
        Type::VOID => Reading::Void,
        _ => match ty.kind() {
            Kind::Enum(_) => Reading::Text,
            Kind::Domain(inner) => return reading(inner),
            Kind::Simple if ty.name() == "citext" => Reading::Text,
            _ => return None,
        },
    })
}

/// The type that a domain is based on, through all domains in between. Other types are returned unchanged.
pub(super) fn base(ty: &Type) -> &Type {
    match ty.kind() {
        Kind::Domain(inner) => base(inner),
        _ => ty,
    }
}

/// The element type of an array. Domains over arrays count as arrays.
pub(super) fn element(ty: &Type) -> Option<&Type> {
    match base(ty).kind() {
        Kind::Array(element) => Some(element),
        _ => None,
    }
}

/// How much more work the conversion of a value of this type may be than its length suggests: a `numeric` is printed
/// with all its zeros. `is_heavy` adds these weights up.
pub(super) fn weight(ty: &Type) -> usize {
    match element(ty).map(reading) {
        Some(Some(Reading::Numeric)) => 100,
        Some(_) => 0,
        None => usize::from(reading(ty) == Some(Reading::Numeric)),
    }
}

/// Checks that values of this type can be read. The error says what to do instead.
pub(super) fn check(column: &str, ty: &Type) -> Result<(), Error> {
    let known = match element(ty) {
        Some(element) => reading(element).is_some(),
        None => reading(ty).is_some(),
    };
    match known {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Statement,
            format!(
                "the column `{column}` has the type `{}`, which has no form in the contract: cast it to text (`{column}::text`)",
                ty.name()
            ),
        )),
    }
}

/// Converts a value that is not null. A value may be much longer as printed than as sent: `10::numeric ^ 100000` is
/// sent in ten bytes. So the limit of `max` bytes is checked while the value is printed. None: the value is longer.
pub(super) fn read(ty: &Type, raw: &[u8], max: u64) -> Result<Option<Value>, Error> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let value = match element(ty) {
        Some(element) => array(element, raw, max).map(Value::Text),
        None => reading(ty).and_then(|reading| scalar(reading, raw)),
    };
    match value {
        Some(Value::Text(text)) if text.len() > max => Ok(None),
        Some(value) => Ok(Some(value)),
        None => Err(Error::new(
            ErrorKind::Other,
            format!(
                "a value of the type `{}` is outside of what can be read: cast it to text (`::text`)",
                ty.name()
            ),
        )),
    }
}

fn scalar(reading: Reading, raw: &[u8]) -> Option<Value> {
    Some(match reading {
        Reading::Bool => Value::Integer(binary::bool_from_sql(raw).ok()?.into()),
        Reading::Int2 => Value::Integer(binary::int2_from_sql(raw).ok()?.into()),
        Reading::Int4 => Value::Integer(binary::int4_from_sql(raw).ok()?.into()),
        Reading::Int8 => Value::Integer(binary::int8_from_sql(raw).ok()?),
        Reading::Oid => Value::Integer(binary::oid_from_sql(raw).ok()?.into()),
        Reading::Float4 => Value::Real(binary::float4_from_sql(raw).ok()?.into()),
        Reading::Float8 => Value::Real(binary::float8_from_sql(raw).ok()?),
        Reading::Bytes => Value::Blob(raw.to_vec()),
        Reading::Void => Value::Null,
        Reading::Numeric => Value::Text(numeric::text(raw)?),
        Reading::Text | Reading::Json => Value::Text(std::str::from_utf8(raw).ok()?.to_owned()),
        // One byte for the version of the format, then the text.
        Reading::JsonBinary => {
            let text = raw.strip_prefix(&[1])?;
            Value::Text(std::str::from_utf8(text).ok()?.to_owned())
        }
        Reading::Uuid => Value::Text(uuid::Uuid::from_slice(raw).ok()?.to_string()),
        Reading::Date => Value::Text(date(binary::date_from_sql(raw).ok()?)?),
        Reading::Time => Value::Text(clock(binary::time_from_sql(raw).ok()?)),
        Reading::Timestamp => Value::Text(timestamp(binary::timestamp_from_sql(raw).ok()?, "")?),
        Reading::TimestampUtc => {
            Value::Text(timestamp(binary::timestamp_from_sql(raw).ok()?, "Z")?)
        }
        Reading::Interval => Value::Text(interval(raw)?),
    })
}

/// The date from which the server counts days and times.
const EPOCH: Date = match Date::from_calendar_date(2000, Month::January, 1) {
    Ok(date) => date,
    Err(_) => panic!("it is a date"),
};

fn date(days: i32) -> Option<String> {
    match days {
        i32::MAX => Some("infinity".to_owned()),
        i32::MIN => Some("-infinity".to_owned()),
        _ => printed(EPOCH.checked_add(Duration::days(days.into()))?),
    }
}

/// None for years before the year 1, because there is no common form for them.
fn printed(date: Date) -> Option<String> {
    let (year, month, day) = date.to_calendar_date();
    (year > 0).then(|| format!("{year:04}-{:02}-{day:02}", u8::from(month)))
}

fn timestamp(micros: i64, zone: &str) -> Option<String> {
    match micros {
        i64::MAX => return Some("infinity".to_owned()),
        i64::MIN => return Some("-infinity".to_owned()),
        _ => {}
    }
    let epoch = PrimitiveDateTime::new(EPOCH, Time::MIDNIGHT);
    let at = epoch.checked_add(Duration::microseconds(micros))?;
    let (hour, minute, second, micro) = at.as_hms_micro();
    let of_day = i64::from(hour) * 3_600 + i64::from(minute) * 60 + i64::from(second);
    let clock = clock(of_day * 1_000_000 + i64::from(micro));
    Some(format!("{}T{clock}{zone}", printed(at.date())?))
}

/// `04:05:06.789`: without a fraction when it has none. The server also has `24:00:00`.
fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let mut text = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    );
    text.push_str(&fraction(micros % 1_000_000));
    text
}

fn fraction(micros: i64) -> String {
    match micros {
        0 => String::new(),
        _ => format!(".{micros:06}").trim_end_matches('0').to_owned(),
    }
}

/// An interval in ISO 8601, such as `P1Y2M3DT4H5M6.7S`.
fn interval(raw: &[u8]) -> Option<String> {
    let micros = i64::from_be_bytes(raw.get(..8)?.try_into().ok()?);
    let days = i32::from_be_bytes(raw.get(8..12)?.try_into().ok()?);
    let months = i32::from_be_bytes(raw.get(12..16)?.try_into().ok()?);
    let mut text = "P".to_owned();
    for (number, unit) in [(months / 12, 'Y'), (months % 12, 'M'), (days, 'D')] {
        if number != 0 {
            write!(text, "{number}{unit}").ok()?;
        }
    }
    let (sign, micros) = (if micros < 0 { "-" } else { "" }, micros.unsigned_abs());
    let seconds = micros / 1_000_000;
    if micros != 0 {
        text.push('T');
    }
    for (number, unit) in [(seconds / 3_600, 'H'), (seconds / 60 % 60, 'M')] {
        if number != 0 {
            write!(text, "{sign}{number}{unit}").ok()?;
        }
    }
    if micros % 60_000_000 != 0 {
        let fraction = fraction(i64::try_from(micros % 1_000_000).ok()?);
        write!(text, "{sign}{}{fraction}S", seconds % 60).ok()?;
    }
    if text == "P" {
        text.push_str("T0S");
    }
    Some(text)
}

/// The most dimensions that the server's arrays can have.
const DIMENSIONS_MAX: usize = 6;

/// An array as JSON. Printing stops after `max` bytes; the caller checks the length.
fn array(element: &Type, raw: &[u8], max: usize) -> Option<String> {
    let reading = reading(element)?;
    let array = binary::array_from_sql(raw).ok()?;
    let mut dimensions = Vec::new();
    let mut sizes = array.dimensions();
    while let Some(dimension) = sizes.next().ok()? {
        dimensions.push(usize::try_from(dimension.len).ok()?);
    }
    // Every item takes at least four bytes, so a header with more items than bytes is refused before anything is
    // printed.
    let items = (dimensions.iter()).try_fold(1, |all: usize, size| all.checked_mul(*size))?;
    if dimensions.len() > DIMENSIONS_MAX || items > raw.len() / 4 || dimensions.contains(&0) {
        return None;
    }
    let mut values = array.values();
    let mut text = String::new();
    let mut next = |text: &mut String| -> Option<()> {
        let value = values.next().ok()??;
        match value {
            _ if text.len() > max => {}
            Some(raw) => item(reading, raw, text)?,
            None => text.push_str("null"),
        }
        Some(())
    };
    nested(&dimensions, &mut next, &mut text)?;
    Some(text)
}

fn nested(
    dimensions: &[usize],
    next: &mut impl FnMut(&mut String) -> Option<()>,
    text: &mut String,
) -> Option<()> {
    let (count, inner) = match dimensions {
        [] => (0, dimensions),
        [count, inner @ ..] => (*count, inner),
    };
    text.push('[');
    for index in 0..count {
        if index > 0 {
            text.push(',');
        }
        match inner {
            [] => next(text)?,
            _ => nested(inner, next, text)?,
        }
    }
    text.push(']');
    Some(())
}

/// One element as JSON.
fn item(reading: Reading, raw: &[u8], text: &mut String) -> Option<()> {
    let quoted = |text: &str| serde_json::to_string(text).ok();
    let json = match (reading, scalar(reading, raw)?) {
        (Reading::Bool, Value::Integer(truth)) => (truth != 0).to_string(),
        (Reading::Json | Reading::JsonBinary, Value::Text(json)) => json,
        (_, Value::Integer(number)) => number.to_string(),
        (_, Value::Real(number)) if number.is_finite() => serde_json::to_string(&number).ok()?,
        (_, Value::Real(number)) => quoted(&number.to_string())?,
        (_, Value::Text(content)) => quoted(&content)?,
        (_, Value::Blob(bytes)) => {
            let mut hex = "\\x".to_owned();
            for byte in bytes {
                write!(hex, "{byte:02x}").ok()?;
            }
            quoted(&hex)?
        }
        (_, Value::Null) => "null".to_owned(),
    };
    text.push_str(&json);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_form() {
        assert_eq!(date(0).as_deref(), Some("2000-01-01"));
        assert_eq!(date(9_821).as_deref(), Some("2026-11-21"));
        assert_eq!(date(i32::MAX).as_deref(), Some("infinity"));
        assert_eq!(date(i32::MAX - 1), None);
        assert_eq!(date(-800_000), None, "before the first year");
        assert_eq!(clock(14_706_789_000), "04:05:06.789");
        assert_eq!(clock(86_400_000_000), "24:00:00");
        let at = 9_821 * 86_400_000_000 + 14_706_789_012;
        assert_eq!(
            timestamp(at, "Z").as_deref(),
            Some("2026-11-21T04:05:06.789012Z")
        );
        assert_eq!(
            timestamp(-1, "").as_deref(),
            Some("1999-12-31T23:59:59.999999")
        );
    }

    fn array_of(dimensions: &[(i32, i32)], element: &Type, items: &[&[u8]]) -> Vec<u8> {
        let mut raw = Vec::new();
        let count = i32::try_from(dimensions.len()).expect("few");
        for number in [count, 0, i32::try_from(element.oid()).expect("it is small")] {
            raw.extend(number.to_be_bytes());
        }
        for (size, lower) in dimensions {
            raw.extend(size.to_be_bytes());
            raw.extend(lower.to_be_bytes());
        }
        for item in items {
            raw.extend(i32::try_from(item.len()).expect("short").to_be_bytes());
            raw.extend(*item);
        }
        raw
    }

    #[test]
    fn arrays_print_no_more_than_was_sent() {
        let one = &1_i32.to_be_bytes()[..];
        let raw = array_of(&[(2, 1), (1, 1)], &Type::INT4, &[one, one]);
        assert_eq!(array(&Type::INT4, &raw, 100).as_deref(), Some("[[1],[1]]"));
        assert_eq!(
            array(&Type::INT4, &array_of(&[], &Type::INT4, &[]), 100).as_deref(),
            Some("[]")
        );
        for dimensions in [
            &[(i32::MAX, 1), (0, 1)][..],
            &[(i32::MAX, 1); 6],
            &[(1, 1); 7],
            &[(-1, 1)],
            &[(3, 1)],
        ] {
            let raw = array_of(dimensions, &Type::INT4, &[one, one]);
            assert_eq!(array(&Type::INT4, &raw, 100), None, "{dimensions:?}");
        }
    }

    /// The number of this test has ten bytes as it is sent, and 131,072 digits as it is printed.
    #[test]
    fn values_that_are_longer_printed_than_sent_are_bounded() {
        let words = [1_i16, i16::MAX, 0, 0, 1];
        let number: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        assert!(matches!(read(&Type::NUMERIC, &number, 1_000), Ok(None)));
        assert!(matches!(
            read(&Type::NUMERIC, &number, 1_000_000),
            Ok(Some(_))
        ));
        let items = vec![&number[..]; 100_000];
        let raw = array_of(&[(100_000, 1)], &Type::NUMERIC, &items);
        let text = array(&Type::NUMERIC, &raw, 1 << 20).expect("it is one");
        assert!((1 << 20..2 << 20).contains(&text.len()), "{}", text.len());
        assert!(matches!(
            read(&Type::NUMERIC_ARRAY, &raw, 1 << 20),
            Ok(None)
        ));
    }

    #[test]
    fn intervals_are_iso() {
        let raw = |micros: i64, days: i32, months: i32| {
            let bytes = [
                &micros.to_be_bytes()[..],
                &days.to_be_bytes(),
                &months.to_be_bytes(),
            ];
            interval(&bytes.concat()).expect("it is one")
        };
        assert_eq!(raw(0, 0, 0), "PT0S");
        assert_eq!(raw(14_706_700_000, 3, 14), "P1Y2M3DT4H5M6.7S");
        assert_eq!(raw(-1_500_000, -1, 0), "P-1DT-1.5S");
        assert_eq!(raw(3_600_000_000, 0, 0), "PT1H");
    }
}
