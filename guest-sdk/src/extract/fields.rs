//! Deserializes the fields of a form or a query into the view's type.
//!
//! The type of a field decides how its values are read. When a name occurs several times, a list takes all values and
//! any other type takes the last. Under `#[serde(flatten)]`, serde does not say which type it wants
//! (`deserialize_any`). So all fields are deserialized again with another reading of the value that did not fit (a
//! text, a number or truth value, a list), until all values fit.

use super::upload::Upload;
use super::value::{Failure, Seen, Value};
use serde::de::value::{BorrowedStrDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;
use std::cell::Cell;
use std::collections::HashMap;

/// Limit for the number of attempts to read values under `flatten`.
const TRIES_MAX: usize = 100;

/// The content of a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Text(String),
    File(Upload),
}

/// Deserializes all fields into a `T`. The error names the field that does not fit.
pub(super) fn read<T: DeserializeOwned>(pairs: &[(String, Content)]) -> Result<T, String> {
    let fields = Fields::new(pairs);
    // The failure to report: if possible, one about a value that was read as a text, which is how the client wrote it.
    let mut as_text = None;
    for _ in 0..TRIES_MAX {
        let failure = match T::deserialize(&fields) {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        let sentence = fields.named(&failure);
        let Failure::Type(seen, _) = &failure else {
            return Err(sentence);
        };
        if matches!(seen, Seen::Text(_)) || as_text.is_none() {
            as_text = Some(sentence);
        }
        if !fields.try_other(seen) {
            break;
        }
    }
    Err(as_text.unwrap_or_default())
}

struct Fields<'de> {
    pairs: &'de [(String, Content)],
    groups: Vec<Group<'de>>,
}

/// All contents of the fields with one name.
struct Group<'de> {
    name: &'de str,
    contents: Vec<&'de Content>,
    /// How the value was read in this attempt; `None` if serde said which type it wants.
    given: Cell<Option<Reading>>,
    /// How many readings have failed: the index of the current one in `readings`.
    tried: Cell<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    Text,
    Typed,
    Texts,
    TypedList,
}

impl<'de> Fields<'de> {
    fn new(pairs: &'de [(String, Content)]) -> Self {
        let mut groups: Vec<Group<'de>> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (name, content) in pairs {
            let index = *known.entry(name).or_insert(groups.len());
            match groups.get_mut(index) {
                Some(group) => group.contents.push(content),
                None => groups.push(Group {
                    name,
                    contents: vec![content],
                    given: Cell::new(None),
                    tried: Cell::new(0),
                }),
            }
        }
        Self { pairs, groups }
    }

    /// Finds a field that has the value `seen` and a reading that has not been tried, and selects this reading for the
    /// next attempt. Returns whether there is such a field.
    fn try_other(&self, seen: &Seen) -> bool {
        let mut candidates = self.groups.iter().filter(|group| group.was(seen));
        candidates.any(|group| {
            let next = group.tried.get() + 1;
            let is_there = next < group.readings().len();
            group
                .tried
                .set(if is_there { next } else { group.tried.get() });
            is_there
        })
    }

    /// The text of the failure, with the name of the field.
    fn named(&self, failure: &Failure) -> String {
        let text = failure.to_string();
        match failure {
            Failure::Type(seen, _) => match self.groups.iter().find(|group| group.was(seen)) {
                Some(group) => of_field(group.name, text),
                None => text,
            },
            _ => text,
        }
    }
}

fn of_field(name: &str, text: String) -> String {
    match text.contains(&format!("`{name}`")) {
        true => text,
        false => format!("`{name}`: {text}"),
    }
}

impl<'de> Group<'de> {
    fn last(&self) -> &'de Content {
        self.contents
            .last()
            .expect("a group is made with its first content")
    }

    fn readings(&self) -> [Reading; 4] {
        use Reading::{Text, Texts, Typed, TypedList};
        match self.contents.len() {
            1 => [Text, Typed, Texts, TypedList],
            _ => [Texts, TypedList, Text, Typed],
        }
    }

    fn reading(&self) -> Reading {
        let readings = self.readings();
        readings[self.tried.get().min(readings.len() - 1)]
    }

    /// Whether serde may have seen `seen` as a value of this field, with the reading of this attempt.
    fn was(&self, seen: &Seen) -> bool {
        let text = |content: &&Content, wanted: &str| matches!(content, Content::Text(text) if text == wanted);
        let typed = |content: &&Content, seen: &Seen| match (content, seen) {
            (Content::Text(text), Seen::Text(wanted)) => {
                matches!(typed(text), Typed::Text(text) if text == wanted)
            }
            (Content::Text(text), Seen::Typed(wanted)) => {
                !matches!(typed(text), Typed::Text(_)) && typed(text).shown() == *wanted
            }
            _ => false,
        };
        match (self.given.get(), seen) {
            (Some(Reading::Text), Seen::Text(wanted)) => text(&self.last(), wanted),
            (Some(Reading::Typed), _) => typed(&self.last(), seen),
            (Some(Reading::Texts | Reading::TypedList), Seen::List) => true,
            (Some(Reading::Texts), Seen::Text(wanted)) => {
                self.contents.iter().any(|content| text(content, wanted))
            }
            (Some(Reading::TypedList), _) => {
                self.contents.iter().any(|content| typed(content, seen))
            }
            _ => false,
        }
    }
}

/// A text as a value of the type that it looks like: `7` as an integer, `on` as a truth value.
enum Typed<'de> {
    Nothing,
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'de str),
}

fn typed(text: &str) -> Typed<'_> {
    let digits = text.contains(|c: char| c.is_ascii_digit());
    match text {
        "" => Typed::Nothing,
        "true" | "on" => Typed::Bool(true),
        "false" | "off" => Typed::Bool(false),
        _ => (text.parse().map(Typed::Unsigned))
            .or_else(|_| text.parse().map(Typed::Signed))
            .ok()
            .or_else(|| text.parse().ok().filter(|_| digits).map(Typed::Float))
            .unwrap_or(Typed::Text(text)),
    }
}

impl Typed<'_> {
    fn shown(&self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

impl<'de> Deserializer<'de> for &Fields<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_map(Entries {
            rest: self.groups.iter(),
            value: None,
        })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let pairs = self.pairs.iter().map(|(name, content)| {
            let value = Single {
                name,
                content,
                reading: Reading::Text,
            };
            Pair(name, value)
        });
        visitor.visit_seq(SeqDeserializer::new(pairs))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
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

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        tuple_struct map struct enum identifier ignored_any
    }
}

/// A field as one element of a list of pairs: its name and its content.
struct Pair<'de>(&'de str, Single<'de>);

impl<'de> IntoDeserializer<'de, Failure> for Pair<'de> {
    type Deserializer = MapEntry<'de>;

    fn into_deserializer(self) -> MapEntry<'de> {
        MapEntry(self)
    }
}

struct MapEntry<'de>(Pair<'de>);

impl<'de> Deserializer<'de> for MapEntry<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let Pair(name, value) = self.0;
        visitor.visit_seq(NameAndValue(Some(name), Some(value)))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct NameAndValue<'de>(Option<&'de str>, Option<Single<'de>>);

impl<'de> SeqAccess<'de> for NameAndValue<'de> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        if let Some(name) = self.0.take() {
            return seed
                .deserialize(BorrowedStrDeserializer::new(name))
                .map(Some);
        }
        let value = self.1.take();
        value.map(|value| seed.deserialize(value)).transpose()
    }
}

/// The fields in order, as a map for serde.
struct Entries<'g, 'de> {
    rest: std::slice::Iter<'g, Group<'de>>,
    value: Option<&'g Group<'de>>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        self.value = self.rest.next();
        let name = self.value.map(|group| group.name);
        name.map(|name| seed.deserialize(BorrowedStrDeserializer::new(name)))
            .transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Failure> {
        let group = self
            .value
            .take()
            .expect("serde asks for a key before its value");
        seed.deserialize(group).map_err(|failure| match failure {
            Failure::Value(text) => Failure::Value(of_field(group.name, text)),
            other => other,
        })
    }
}

macro_rules! last {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.single(Reading::Text).$method(visitor)
        }
    )*};
}

impl<'de> Group<'de> {
    fn single(&self, reading: Reading) -> Single<'de> {
        Single {
            name: self.name,
            content: self.last(),
            reading,
        }
    }

    fn list<V: Visitor<'de>>(&self, reading: Reading, visitor: V) -> Result<V::Value, Failure> {
        let all = self.contents.iter().map(|content| Single {
            name: self.name,
            content,
            reading,
        });
        visitor.visit_seq(SeqDeserializer::new(all))
    }
}

impl<'de> Deserializer<'de> for &Group<'de> {
    type Error = Failure;

    last! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_identifier deserialize_unit deserialize_map
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let reading = self.reading();
        self.given.set(Some(reading));
        match reading {
            Reading::Text | Reading::Typed => self.single(reading).deserialize_any(visitor),
            Reading::Texts => self.list(Reading::Text, visitor),
            Reading::TypedList => self.list(Reading::Typed, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.single(Reading::Text).value() {
            Ok(value) if value.is_none_of::<V::Value>() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.list(Reading::Text, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.list(Reading::Text, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.list(Reading::Text, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.single(Reading::Text)
            .deserialize_struct(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.single(Reading::Text)
            .deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }
}

/// One content of a field.
struct Single<'de> {
    name: &'de str,
    content: &'de Content,
    reading: Reading,
}

impl<'de> Single<'de> {
    fn value(&self) -> Result<Value<'de>, Failure> {
        match self.content {
            Content::Text(text) => Ok(Value {
                name: self.name,
                text,
            }),
            Content::File(_) => Err(Failure::Value(format!(
                "`{}` is a file: its type must be `Upload`",
                self.name
            ))),
        }
    }
}

impl<'de> IntoDeserializer<'de, Failure> for Single<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! of_text {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.value()?.$method(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Single<'de> {
    type Error = Failure;

    of_text! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8
        deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64
        deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf
        deserialize_identifier deserialize_unit
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let text = match self.content {
            Content::File(file) => return visitor.visit_map(parts(file)),
            Content::Text(text) => text,
        };
        if self.reading != Reading::Typed {
            return visitor.visit_borrowed_str(text);
        }
        match typed(text) {
            Typed::Nothing => visitor.visit_unit(),
            Typed::Unsigned(number) => visitor.visit_u64(number),
            Typed::Signed(number) => visitor.visit_i64(number),
            Typed::Float(number) => visitor.visit_f64(number),
            Typed::Bool(value) => visitor.visit_bool(value),
            Typed::Text(text) => visitor.visit_borrowed_str(text),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value() {
            Ok(value) if value.is_none_of::<V::Value>() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.content {
            Content::File(file) => visitor.visit_map(parts(file)),
            Content::Text(_) => Err(Failure::Value(format!(
                "`{}` is not a file: the form needs `enctype=\"multipart/form-data\"`, and the field `type=\"file\"`",
                self.name
            ))),
        }
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
        self.value()?.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! { unit_struct seq tuple tuple_struct ignored_any }
}

type Parts<'de> = MapDeserializer<'de, std::array::IntoIter<(&'static str, Part<'de>), 3>, Failure>;

/// The parts of a file, for the deserializer of [`Upload`].
fn parts(file: &Upload) -> Parts<'_> {
    let parts = [
        ("file_name", Part::Text(&file.file_name)),
        ("content_type", Part::Text(&file.content_type)),
        ("bytes", Part::Bytes(&file.bytes)),
    ];
    MapDeserializer::new(parts.into_iter())
}

enum Part<'de> {
    Text(&'de str),
    Bytes(&'de [u8]),
}

impl<'de> IntoDeserializer<'de, Failure> for Part<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Part<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self {
            Self::Text(text) => visitor.visit_borrowed_str(text),
            Self::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
