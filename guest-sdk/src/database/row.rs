//! Rows of a result as Rust types.

use super::value::describe;
use super::{FromValue, Value};
use crate::host::Values;
use crate::{Error, Json, Result};
use serde::de::DeserializeOwned;

/// A type that can be read from a row.
///
/// `#[derive(FromRow)]` on a struct reads each field from the column of the same name. A tuple is read by position, and a
/// single value, such as an `i64`, from the only column.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(FromRow)]
/// struct Entry {
///     id: i64,
///     #[row(column = "display_name")]
///     name: Option<String>,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a row",
    note = "derive `FromRow` for a struct with named fields, or read into a tuple, or a single value such as `i64`"
)]
pub trait FromRow: Sized {
    /// Takes the values of this type from the row.
    fn from_row(row: &mut Row<'_>) -> Result<Self>;
}

/// One row of a result. Each value can be taken once: [`take`](Row::take) moves it out.
#[derive(Debug)]
pub struct Row<'a> {
    columns: &'a [String],
    values: Values,
}

impl<'a> Row<'a> {
    pub(super) fn new(columns: &'a [String], values: Values) -> Self {
        Self { columns, values }
    }

    /// The names of the columns.
    pub fn columns(&self) -> &'a [String] {
        self.columns
    }

    /// Moves the value of a column out of the row.
    pub fn take<T: FromValue>(&mut self, column: &str) -> Result<T> {
        self.take_for(column, "this view")
    }

    /// Called by `derive(FromRow)`. `place` describes, in error messages, the field that gets the value.
    #[doc(hidden)]
    pub fn take_for<T: FromValue>(&mut self, column: &str, place: &str) -> Result<T> {
        match self.columns.iter().position(|name| name == column) {
            Some(index) => self.take_at(index, place),
            None => Err(missing(self.columns, column, place)),
        }
    }

    fn take_at<T: FromValue>(&mut self, index: usize, place: &str) -> Result<T> {
        let value = self
            .values
            .get_mut(index)
            .map(|value| std::mem::replace(value, Value::Null));
        T::from_value(value.unwrap_or(Value::Null)).map_err(|value| {
            mismatch(
                self.columns.get(index).map_or("?", String::as_str),
                place,
                T::EXPECTED,
                &value,
            )
        })
    }

    fn expect_columns(&self, count: usize) -> Result<()> {
        if self.columns.len() == count {
            return Ok(());
        }
        Err(Error::internal(format!(
            "the query has {} columns ({}), and the view reads {count} by position",
            self.columns.len(),
            self.columns.join(", ")
        )))
    }
}

// `missing` and `mismatch` are not generic, so a component has one copy of the error texts, and not one for every type.

#[cold]
fn missing(columns: &[String], column: &str, place: &str) -> Error {
    Error::internal(format!(
        "the query has no column `{column}`, which {place} needs; it has: {}",
        columns.join(", ")
    ))
}

#[cold]
fn mismatch(column: &str, place: &str, expected: &str, value: &Value) -> Error {
    let way_out = if *value == Value::Null {
        "; `Option` takes null"
    } else {
        ""
    };
    Error::internal(format!(
        "column `{column}` has {} where {place} expects {expected}{way_out}",
        describe(value)
    ))
}

macro_rules! tuples {
    ($count:literal: $($name:ident $index:literal)*) => {
        impl<$($name: FromValue),*> FromRow for ($($name,)*) {
            fn from_row(row: &mut Row<'_>) -> Result<Self> {
                row.expect_columns($count)?;
                Ok(($(row.take_at::<$name>($index, concat!("part ", $index, " of the tuple"))?,)*))
            }
        }
    };
}

tuples!(1: A 0);
tuples!(2: A 0 B 1);
tuples!(3: A 0 B 1 C 2);
tuples!(4: A 0 B 1 C 2 D 3);
tuples!(5: A 0 B 1 C 2 D 3 E 4);
tuples!(6: A 0 B 1 C 2 D 3 E 4 F 5);
tuples!(7: A 0 B 1 C 2 D 3 E 4 F 5 G 6);
tuples!(8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7);
tuples!(9: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8);
tuples!(10: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9);
tuples!(11: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10);
tuples!(12: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11);

macro_rules! single_values {
    ($($type:ty),*) => {$(
        impl FromRow for $type {
            fn from_row(row: &mut Row<'_>) -> Result<Self> {
                row.expect_columns(1)?;
                row.take_at(0, "the view")
            }
        }
    )*};
}

single_values!(
    bool,
    i8,
    i16,
    i32,
    i64,
    isize,
    u8,
    u16,
    u32,
    u64,
    usize,
    f32,
    f64,
    String,
    Vec<u8>,
    Value
);

impl<T: DeserializeOwned> FromRow for Json<T> {
    fn from_row(row: &mut Row<'_>) -> Result<Self> {
        row.expect_columns(1)?;
        row.take_at(0, "the view")
    }
}

impl<T: FromValue> FromRow for Option<T> {
    fn from_row(row: &mut Row<'_>) -> Result<Self> {
        row.expect_columns(1)?;
        row.take_at(0, "the view")
    }
}
