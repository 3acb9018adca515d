//! The parameters of a statement.

use super::{ToValue, Value};
use crate::Result;

/// The parameters of a statement, for `$1`, `$2` …: a tuple such as `(id, &name)`, with a comma when there is one
/// parameter, `(id,)`; `()` when there is none; or an array, vector or slice of values.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the parameters of a statement",
    label = "write a tuple: `(a, b)`, `(a,)` for one parameter, `()` for none",
    note = "each parameter must be an integer, float, `bool`, text, bytes, `Json`, an `Option` of these or a `Value`"
)]
pub trait Params {
    /// The values for the database. An error when no type of the database can hold one of them.
    fn into_values(self) -> Result<Vec<Value>>;
}

impl Params for () {
    fn into_values(self) -> Result<Vec<Value>> {
        Ok(Vec::new())
    }
}

impl<T: ToValue> Params for Vec<T> {
    fn into_values(self) -> Result<Vec<Value>> {
        self.into_iter().map(ToValue::to_value).collect()
    }
}

impl<T: ToValue, const N: usize> Params for [T; N] {
    fn into_values(self) -> Result<Vec<Value>> {
        self.into_iter().map(ToValue::to_value).collect()
    }
}

impl<T: ToValue + Clone> Params for &[T] {
    fn into_values(self) -> Result<Vec<Value>> {
        self.iter().cloned().map(ToValue::to_value).collect()
    }
}

macro_rules! tuples {
    ($($name:ident)*) => {
        impl<$($name: ToValue),*> Params for ($($name,)*) {
            #[allow(non_snake_case, reason = "the variables are named like their types")]
            fn into_values(self) -> Result<Vec<Value>> {
                let ($($name,)*) = self;
                Ok(vec![$($name.to_value()?),*])
            }
        }
    };
}

tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G H);
tuples!(A B C D E F G H I);
tuples!(A B C D E F G H I J);
tuples!(A B C D E F G H I J K);
tuples!(A B C D E F G H I J K L);
