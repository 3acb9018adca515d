//! Converts values of the contract to parameters of the types that the server expects.
//!
//! All values except for bytes are sent as text, and the server reads the text as the type that it expects: so a
//! parameter can have any type of the server's. If the text does not fit, the server's error names the parameter.
//! Arrays are JSON in the contract, and are sent as array literals.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserializer as _;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::super::error::{Error, ErrorKind};
use super::super::statement::Value;
use super::values::{base, element};

/// A parameter as it is sent.
#[derive(Debug)]
pub(super) enum Param<'a> {
    Null,
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

/// Converts the parameters of a statement that expects these `types`. There must be as many `values` as types. `long`:
/// the literals of long arrays, which were converted on another thread, by the index of the parameter. A literal is
/// None if the array could not be converted.
pub(super) fn params<'a>(
    values: &'a [Value],
    types: &[Type],
    mut long: BTreeMap<usize, Option<String>>,
) -> Result<Vec<Param<'a>>, Error> {
    (values.iter().zip(types).enumerate())
        .map(|(index, (value, ty))| {
            if matches!(value, Value::Text(text) if *base(ty) != Type::BYTEA && text.contains('\0')) {
                return Err(Error::new(
                    ErrorKind::Statement,
                    format!(
                        "parameter {} has the NUL character (`\\0`) in it, which PostgreSQL takes in no text: leave it out, or keep it in a `bytea`",
                        index + 1
                    ),
                ));
            }
            let param = match long.remove(&index) {
                Some(literal) => literal.map(|literal| Param::Text(literal.into())),
                None => param(value, ty),
            };
            param.ok_or_else(|| {
                Error::new(
                    ErrorKind::DataType,
                    format!(
                        "parameter {} is {}, and the statement wants {}",
                        index + 1,
                        described(value),
                        wanted(ty)
                    ),
                )
            })
        })
        .collect()
}

fn param<'a>(value: &'a Value, ty: &Type) -> Option<Param<'a>> {
    let ty = base(ty);
    Some(match value {
        Value::Null => Param::Null,
        Value::Blob(bytes) if *ty == Type::BYTEA => Param::Bytes(bytes),
        Value::Text(text) if *ty == Type::BYTEA => Param::Bytes(text.as_bytes()),
        Value::Text(text) if *ty == Type::UUID && uuid::Uuid::try_parse(text).is_err() => {
            return None;
        }
        Value::Text(text) => match element(ty) {
            Some(element) => Param::Text(array(text, element)?.into()),
            None => Param::Text(text.into()),
        },
        Value::Integer(number) if fits(ty) => Param::Text(number.to_string().into()),
        Value::Real(number) if fits(ty) => Param::Text(
            match number {
                _ if number.is_finite() => number.to_string(),
                _ if number.is_nan() => "NaN".to_owned(),
                _ if *number > 0.0 => "Infinity".to_owned(),
                _ => "-Infinity".to_owned(),
            }
            .into(),
        ),
        _ => return None,
    })
}

/// Whether a number can be sent for this type.
fn fits(ty: &Type) -> bool {
    let ty = base(ty);
    *ty != Type::BYTEA && *ty != Type::UUID && element(ty).is_none()
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Integer(number) => format!("the integer {number}"),
        Value::Real(number) => format!("the real {number}"),
        Value::Text(text) if text.chars().count() <= 40 => format!("the text `{text}`"),
        Value::Text(text) => {
            let start: String = text.chars().take(40).collect();
            format!("the text `{start}…`")
        }
        Value::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    }
}

fn wanted(ty: &Type) -> String {
    match element(ty) {
        Some(element) => format!(
            "an array of `{}` as JSON text, such as `[1, null]`",
            element.name()
        ),
        None => format!("a value of the type `{}`", ty.name()),
    }
}

/// The most dimensions that the server's arrays can have.
const DIMENSIONS_MAX: usize = 6;

/// Converts a JSON array to an array literal of the server: `[1, null, ["a"]]` to `{1,NULL,{"a"}}`.
pub(super) fn array(json: &str, element: &Type) -> Option<String> {
    let mut literal = String::new();
    let of_json = matches!(*base(element), Type::JSON | Type::JSONB);
    let list = List {
        of_json,
        dimension: 1,
        literal: &mut literal,
    };
    list.write(json)?;
    Some(literal)
}

/// A JSON array that is converted to a literal while it is parsed, item by item.
struct List<'l> {
    of_json: bool,
    dimension: usize,
    literal: &'l mut String,
}

impl List<'_> {
    /// An array within an array is text that is parsed again: an item in dimension n is parsed n times, each time one call
    /// deeper. So the limit on dimensions bounds both stack and time.
    fn write(self, json: &str) -> Option<()> {
        if self.dimension > DIMENSIONS_MAX {
            return None;
        }
        let mut reader = serde_json::Deserializer::from_str(json);
        reader.deserialize_seq(self).ok()?;
        reader.end().ok()
    }

    fn item(&mut self, text: &str) -> Option<()> {
        match text.as_bytes().first()? {
            b'n' => self.literal.push_str("NULL"),
            _ if self.of_json => quote(text, self.literal),
            b'[' => {
                let within = List {
                    dimension: self.dimension + 1,
                    literal: self.literal,
                    ..*self
                };
                within.write(text)?;
            }
            b'"' => quote(&serde_json::from_str::<String>(text).ok()?, self.literal),
            b'{' => quote(text, self.literal),
            _ => self.literal.push_str(text),
        }
        Some(())
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.literal.push('{');
        let mut first = true;
        while let Some(item) = items.next_element::<&RawValue>()? {
            if !first {
                self.literal.push(',');
            }
            first = false;
            (self.item(item.get().trim()))
                .ok_or_else(|| serde::de::Error::custom("an item is no value of the server's"))?;
        }
        self.literal.push('}');
        Ok(())
    }
}

fn quote(text: &str, literal: &mut String) {
    literal.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            literal.push('\\');
        }
        literal.push(c);
    }
    literal.push('"');
}

impl ToSql for Param<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Param::Null => return Ok(IsNull::Yes),
            Param::Text(text) => out.extend_from_slice(text.as_bytes()),
            Param::Bytes(bytes) => out.extend_from_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Param::Text(_) => Format::Text,
            Param::Null | Param::Bytes(_) => Format::Binary,
        }
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_arrays_become_literals() {
        for (json, literal) in [
            ("[]", "{}"),
            ("[1, null, 2.50]", "{1,NULL,2.50}"),
            (r#"["a\"b\\", "ü,{}"]"#, r#"{"a\"b\\","ü,{}"}"#),
            ("[[1,2],[3,4]]", "{{1,2},{3,4}}"),
            ("[true,false]", "{true,false}"),
        ] {
            assert_eq!(array(json, &Type::TEXT).as_deref(), Some(literal));
        }
        assert_eq!(
            array(r#"[{"a":1},"x",[1]]"#, &Type::JSONB).as_deref(),
            Some(r#"{"{\"a\":1}","\"x\"","[1]"}"#)
        );
        for wrong in ["", "1", "{1,2}", "[1", "{\"a\":1}", "[1] 2", "[1,]"] {
            assert_eq!(array(wrong, &Type::INT4), None, "{wrong}");
        }
        let dimensions = |count: usize| "[".repeat(count) + "1" + &"]".repeat(count);
        assert!(array(&dimensions(6), &Type::INT4).is_some());
        assert_eq!(array(&dimensions(7), &Type::INT4), None);
    }

    #[test]
    fn r5_no_nesting_of_json_takes_stack_or_long() {
        let depth = 2_000_000;
        let since = std::time::Instant::now();
        let closed = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(array(&closed, &Type::INT4), None);
        assert_eq!(array(&"[".repeat(depth), &Type::INT4), None);
        assert_eq!(array(&"[[".repeat(depth), &Type::JSONB), None);
        assert!(
            array(&closed, &Type::JSONB).is_some(),
            "for the server to judge"
        );
        let objects = "{\"a\":".repeat(depth);
        assert_eq!(array(&format!("[{objects}"), &Type::JSONB), None);
        assert!(since.elapsed().as_secs() < 10, "{:?}", since.elapsed());
    }

    #[test]
    fn what_does_not_fit_is_described() {
        let error = |value: Value, ty: Type| {
            let error = params(&[Value::Null, value], &[Type::INT4, ty], BTreeMap::new())
                .expect_err("it is wrong");
            error.message
        };
        assert_eq!(
            error(Value::Text("abc".into()), Type::UUID),
            "parameter 2 is the text `abc`, and the statement wants a value of the type `uuid`"
        );
        assert_eq!(
            error(Value::Blob(vec![1, 2]), Type::TEXT),
            "parameter 2 is a blob of 2 bytes, and the statement wants a value of the type `text`"
        );
        assert!(error(Value::Integer(1), Type::INT4_ARRAY).contains("as JSON text"));
    }
}
