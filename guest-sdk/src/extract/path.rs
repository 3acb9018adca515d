//! Path parameters.

use super::FromRequest;
use crate::context::Context;
use crate::mode::Mode;
use crate::{Error, Request, Result};
use serde::de::DeserializeOwned;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use std::fmt;

/// The parameters of the path: one value, a tuple in the order of the pattern, or a struct by name. A
/// value that does not fit is refused with 400.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/entries/{id}")]
/// fn entry(Path(id): Path<u64>) -> String {
///     format!("entry {id}")
/// }
///
/// #[view(get, "/{year}/{name}")]
/// fn archive(Path((year, name)): Path<(u16, String)>) -> String {
///     format!("{name} of {year}")
/// }
/// # use amphi_sdk::testing::{App, get};
/// # assert_eq!(App::new().call::<entry>(get("/entries/7")).text(), "entry 7");
/// # assert_eq!(App::new().call::<entry>(get("/entries/x")).status().as_u16(), 400);
/// # assert_eq!(App::new().call::<archive>(get("/2001/a%20b")).text(), "a b of 2001");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Path<T> {
    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        match T::deserialize(Params(&request.params)) {
            Ok(value) => Ok(Self(value)),
            Err(Failure::Value(text)) => {
                Err(Error::bad_request(format!("the path does not fit: {text}")))
            }
            Err(Failure::Shape(text)) => Err(Error::internal(format!(
                "the view's `Path` does not fit its pattern, which has {} parameters: {text}",
                request.params.len()
            ))),
        }
    }
}

/// Why parameters could not be read, and so whose fault it is.
#[derive(Debug)]
enum Failure {
    /// The client's: a value is not what the view wants.
    Value(String),
    /// The view's: it wants other parameters than its pattern has.
    Shape(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(text) | Self::Shape(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Value(text.to_string())
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Self::Shape(format!("it wants {expected}, not {length}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Shape(format!("it wants one named `{field}`"))
    }
}

/// All parameters.
struct Params<'de>(&'de [(String, String)]);

impl<'de> Params<'de> {
    fn single(&self) -> Result<Param<'de>, Failure> {
        match self.0 {
            [(name, value)] => Ok(Param { name, value }),
            _ => Err(Failure::Shape("it wants one".into())),
        }
    }

    fn all(&self) -> impl ExactSizeIterator<Item = Param<'de>> + use<'de> {
        self.0.iter().map(|(name, value)| Param { name, value })
    }
}

macro_rules! single {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.single()?.$method(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Params<'de> {
    type Error = Failure;

    single! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_seq(SeqDeserializer::new(self.all()))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if self.0.len() != length {
            return Err(Failure::Shape(format!("it wants {length}")));
        }
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_map(MapDeserializer::new(
            self.all().map(|param| (param.name, param)),
        ))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.single()?.deserialize_enum(name, variants, visitor)
    }
}

/// One parameter.
struct Param<'de> {
    name: &'de str,
    value: &'de str,
}

impl<'de> IntoDeserializer<'de, Failure> for Param<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $what:literal)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.value.parse() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(Failure::Value(format!("`{}` is {:?}, not {}", self.name, self.value, $what))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Param<'de> {
    type Error = Failure;

    parsed! {
        deserialize_bool visit_bool "`true` or `false`"
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

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_borrowed_str(self.value)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
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
        visitor.visit_enum(self.value.into_deserializer())
    }

    forward_to_deserialize_any! {
        str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
