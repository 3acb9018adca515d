//! The contract's values as parameters of the type that the server expects.
//!
//! All but bytes travel as text, which the server reads as what it wants, so that every type it has can be given;
//! if it cannot, its sentence says which parameter and why. Arrays are written as JSON and sent as its literals.

use std::borrow::Cow;

use serde_json::value::RawValue;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use super::super::{Error, ErrorKind, Value};
use super::values::element;

/// A parameter as it is sent.
#[derive(Debug)]
pub(super) enum Param<'a> {
    Null,
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

/// The parameters of a statement that expects `types`; as many as it has.
pub(super) fn params<'a>(values: &'a [Value], types: &[Type]) -> Result<Vec<Param<'a>>, Error> {
    (values.iter().zip(types).enumerate())
        .map(|(index, (value, ty))| {
            if matches!(value, Value::Text(text) if *ty != Type::BYTEA && text.contains('\0')) {
                return Err(Error::new(
                    ErrorKind::Statement,
                    format!(
                        "parameter {} has the NUL character (`\\0`) in it, which PostgreSQL takes in no text: leave it out, or keep it in a `bytea`",
                        index + 1
                    ),
                ));
            }
            param(value, ty).ok_or_else(|| {
                Error::new(
                    ErrorKind::Statement,
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

/// Whether a number can be given for this type at all.
fn fits(ty: &Type) -> bool {
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

/// A JSON array as an array literal of the server's: `[1, null, ["a"]]` as `{1,NULL,{"a"}}`.
fn array(json: &str, element: &Type) -> Option<String> {
    let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    let of_json = matches!(*element, Type::JSON | Type::JSONB);
    let mut literal = String::new();
    list(&items, of_json, &mut literal)?;
    Some(literal)
}

fn list(items: &[&RawValue], of_json: bool, literal: &mut String) -> Option<()> {
    literal.push('{');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            literal.push(',');
        }
        let text = item.get().trim();
        match text.as_bytes().first()? {
            b'n' => literal.push_str("NULL"),
            _ if of_json => quote(text, literal),
            b'[' => list(
                &serde_json::from_str::<Vec<&RawValue>>(text).ok()?,
                of_json,
                literal,
            )?,
            b'"' => quote(&serde_json::from_str::<String>(text).ok()?, literal),
            b'{' => quote(text, literal),
            _ => literal.push_str(text),
        }
    }
    literal.push('}');
    Some(())
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
        for wrong in ["", "1", "{1,2}", "[1", "{\"a\":1}"] {
            assert_eq!(array(wrong, &Type::INT4), None, "{wrong}");
        }
    }

    #[test]
    fn what_does_not_fit_is_described() {
        let error = |value: Value, ty: Type| {
            let error = params(&[Value::Null, value], &[Type::INT4, ty]).expect_err("it is wrong");
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
