//! Rust types as database values, and back.

use super::Value;
use crate::{Error, Json, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A type that can be a parameter of a statement.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a statement",
    note = "integers, floats, `bool`, `&str`, `String`, `&[u8]`, `Vec<u8>`, `Json`, `Option` of these and `Value` can"
)]
pub trait ToValue {
    /// The value for the database. An error when no type of the database can hold it.
    fn to_value(self) -> Result<Value>;
}

/// A type that can be read from a column.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a column",
    note = "integers, floats, `bool`, `String`, `Vec<u8>`, `Json`, `Option` of these and `Value` can"
)]
pub trait FromValue: Sized {
    /// The kind of value that [`from_value`](Self::from_value) accepts, for error messages.
    const EXPECTED: &'static str;

    /// Converts the value, or returns it unchanged when it is of another kind.
    fn from_value(value: Value) -> Result<Self, Value>;
}

macro_rules! to_value {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl ToValue for $type {
            fn to_value(self) -> Result<Value> {
                Ok(Value::$variant(self.into()))
            }
        }
    )*};
}

to_value! {
    i8 => Integer, i16 => Integer, i32 => Integer, i64 => Integer,
    u8 => Integer, u16 => Integer, u32 => Integer, bool => Integer,
    f32 => Real, f64 => Real,
    &str => Text, String => Text, &String => Text,
    &[u8] => Blob, Vec<u8> => Blob,
}

impl ToValue for &Vec<u8> {
    fn to_value(self) -> Result<Value> {
        self.as_slice().to_value()
    }
}

macro_rules! integers {
    (wide: $($wide:ty),*; all: $($type:ty),*) => {
        $(impl ToValue for $wide {
            fn to_value(self) -> Result<Value> {
                i64::try_from(self)
                    .map(Value::Integer)
                    .map_err(|_| Error::internal(format!("{self} is too large for a database integer")))
            }
        })*
        $(impl FromValue for $type {
            const EXPECTED: &'static str = concat!("an integer of type ", stringify!($type));

            fn from_value(value: Value) -> Result<Self, Value> {
                match value {
                    Value::Integer(number) => number.try_into().map_err(|_| value),
                    other => Err(other),
                }
            }
        })*
    };
}

integers!(wide: u64, usize, isize; all: i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

impl FromValue for bool {
    const EXPECTED: &'static str = "a truth value (integer 0 or 1)";

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            other => Err(other),
        }
    }
}

impl FromValue for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Real(number) => Ok(number),
            // A database may return a whole number as an integer.
            Value::Integer(number) => Ok(number as f64),
            other => Err(other),
        }
    }
}

impl FromValue for f32 {
    const EXPECTED: &'static str = f64::EXPECTED;

    fn from_value(value: Value) -> Result<Self, Value> {
        f64::from_value(value).map(|number| number as f32)
    }
}

impl FromValue for String {
    const EXPECTED: &'static str = "a text";

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Text(text) => Ok(text),
            other => Err(other),
        }
    }
}

impl FromValue for Vec<u8> {
    const EXPECTED: &'static str = "a blob";

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Blob(bytes) => Ok(bytes),
            other => Err(other),
        }
    }
}

impl FromValue for Value {
    const EXPECTED: &'static str = "anything";

    fn from_value(value: Value) -> Result<Self, Value> {
        Ok(value)
    }
}

impl ToValue for Value {
    fn to_value(self) -> Result<Value> {
        Ok(self)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(self) -> Result<Value> {
        self.map_or(Ok(Value::Null), ToValue::to_value)
    }
}

/// Any type that serde can serialize, for columns of JSON and for arrays.
impl<T: Serialize> ToValue for Json<T> {
    fn to_value(self) -> Result<Value> {
        serde_json::to_string(&self.0)
            .map(Value::Text)
            .map_err(|error| {
                Error::internal(format!("a parameter cannot be written as JSON: {error}"))
            })
    }
}

impl<T: DeserializeOwned> FromValue for Json<T> {
    const EXPECTED: &'static str = "JSON that fits the type in `Json`";

    fn from_value(value: Value) -> Result<Self, Value> {
        let Value::Text(text) = &value else {
            return Err(value);
        };
        serde_json::from_str(text).map(Json).map_err(|_| value)
    }
}

/// Describes a value in error messages.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Integer(number) => format!("the integer {number}"),
        Value::Real(number) => format!("the number {number}"),
        Value::Text(_) => "a text".into(),
        Value::Blob(_) => "a blob".into(),
    }
}
