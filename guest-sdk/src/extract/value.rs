//! Deserializes one text of a request (a path parameter, or a field of a form or query) into the type that the view
//! declares.

use serde::de::{self, Deserializer, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use std::fmt;

/// Why a value could not be read. The variant says whose fault it is.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's fault: a value does not fit the view's type.
    Value(String),
    /// In a path, the view's fault: the type in `Path<…>` does not fit the parameters of the view's path pattern.
    Shape(String),
    /// A field of this name is missing.
    Missing(&'static str),
    /// The view's type asked for a value of any type (`deserialize_any`), got the `Seen` value, and does not accept it.
    Type(Seen, String),
}

/// The value that the view's type got when it asked for a value of any type.
#[derive(Debug, PartialEq)]
pub(super) enum Seen {
    Text(String),
    /// A number or a truth value, as Rust formats it.
    Typed(String),
    List,
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(text) | Self::Shape(text) | Self::Type(_, text) => f.write_str(text),
            Self::Missing(name) => write!(f, "`{name}` is missing"),
        }
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Value(text.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let text = format!("invalid type: {unexpected}, expected {expected}");
        let seen = match unexpected {
            Unexpected::Str(text) => Seen::Text(text.to_owned()),
            Unexpected::Unsigned(number) => Seen::Typed(number.to_string()),
            Unexpected::Signed(number) => Seen::Typed(number.to_string()),
            Unexpected::Float(number) => Seen::Typed(number.to_string()),
            Unexpected::Bool(value) => Seen::Typed(value.to_string()),
            Unexpected::Seq => Seen::List,
            _ => Seen::Other,
        };
        Self::Type(seen, text)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Self::Shape(format!("it wants {expected}, not {length}"))
    }
}

/// A text, and the name of its parameter or field.
#[derive(Clone, Copy)]
pub(super) struct Value<'de> {
    pub(super) name: &'de str,
    pub(super) text: &'de str,
}

impl Value<'_> {
    fn is_not(self, what: impl fmt::Display) -> Failure {
        /// An error message shows at most this many characters of the text.
        const SHOWN: usize = 100;
        let shown: String = self.text.chars().take(SHOWN).collect();
        let rest = if shown.len() < self.text.len() {
            "…"
        } else {
            ""
        };
        Failure::Value(format!("`{}` is {shown:?}{rest}, not {what}", self.name))
    }

    /// Whether this text is read as `None`: the text is empty, and `T` is an `Option` of one of the types in
    /// [`PARSED`].
    pub(super) fn is_none_of<T>(self) -> bool {
        let inner = std::any::type_name::<T>()
            .strip_prefix("core::option::Option<")
            .and_then(|inner| inner.strip_suffix('>'));
        self.text.is_empty() && inner.is_some_and(|inner| PARSED.contains(&inner))
    }
}

impl<'de> IntoDeserializer<'de, Failure> for Value<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $what:literal)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.text.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(self.is_not($what)),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Value<'de> {
    type Error = Failure;

    parsed! {
        deserialize_i8 visit_i8 "an integer from -128 to 127"
        deserialize_i16 visit_i16 "an integer from -32768 to 32767"
        deserialize_i32 visit_i32 "an integer of 32 bits"
        deserialize_i64 visit_i64 "an integer of 64 bits"
        deserialize_i128 visit_i128 "an integer of 128 bits"
        deserialize_u8 visit_u8 "an integer from 0 to 255"
        deserialize_u16 visit_u16 "an integer from 0 to 65535"
        deserialize_u32 visit_u32 "a positive integer of 32 bits"
        deserialize_u64 visit_u64 "a positive integer of 64 bits"
        deserialize_u128 visit_u128 "a positive integer of 128 bits"
        deserialize_f32 visit_f32 "a number"
        deserialize_f64 visit_f64 "a number"
        deserialize_char visit_char "one character"
    }

    /// Browsers send `on` for a checkbox without a `value`.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.text {
            "true" | "on" | "1" => visitor.visit_bool(true),
            "false" | "off" | "0" => visitor.visit_bool(false),
            _ => Err(self.is_not("`true` or `false`")),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.text)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.is_none_of::<V::Value>() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_enum(IntoDeserializer::<Failure>::into_deserializer(self.text))
    }

    forward_to_deserialize_any! {
        str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Types for which an empty text is never a valid value.
const PARSED: [&str; 15] = [
    "bool", "i8", "i16", "i32", "i64", "i128", "isize", "u8", "u16", "u32", "u64", "u128", "usize",
    "f32", "f64",
];
