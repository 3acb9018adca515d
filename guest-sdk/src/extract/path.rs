//! Path parameters.

use super::FromRequest;
use super::value::{Failure, Value};
use crate::context::Context;
use crate::mode::Mode;
use crate::{Error, Request, Result};
use serde::de::DeserializeOwned;
use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Visitor};

/// The parameters of the path. `T` is the type of a single parameter, a tuple in the order of the pattern, or a struct
/// whose fields have the names of the parameters. A value that does not fit the type is refused with 400.
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
            Err(Failure::Value(text) | Failure::Type(_, text)) => {
                Err(Error::bad_request(format!("the path does not fit: {text}")))
            }
            Err(Failure::Missing(name)) => {
                Err(misfit(request, &format!("it wants one named `{name}`")))
            }
            Err(Failure::Shape(text)) => Err(misfit(request, &text)),
        }
    }
}

fn misfit(request: &Request, text: &str) -> Error {
    Error::internal(format!(
        "the view's `Path` does not fit its pattern, which has {} parameters: {text}",
        request.params.len()
    ))
}

/// All parameters of a path, as a deserializer.
struct Params<'de>(&'de [(String, String)]);

impl<'de> Params<'de> {
    fn single(&self) -> Result<Value<'de>, Failure> {
        match self.0 {
            [(name, text)] => Ok(Value { name, text }),
            _ => Err(Failure::Shape("it wants one".into())),
        }
    }

    fn all(&self) -> impl ExactSizeIterator<Item = Value<'de>> + use<'de> {
        self.0.iter().map(|(name, text)| Value { name, text })
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
