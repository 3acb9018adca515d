//! The macros of `amphi-sdk`. Use them through that crate, which documents them.

mod attribute;
mod pattern;
mod row;
mod view;

use proc_macro::TokenStream;

/// Makes a function a view: `#[view(get, "/entries/{id}")]`.
///
/// The first argument is the method (`get`, `post`, `put`, `patch` or `delete`), the second the path
/// below the module's mount. `{name}` stands for one segment, `{*name}` at the end for all that remain.
/// Then, optionally:
///
/// | option | meaning |
/// |---|---|
/// | `atomic`, `atomic = false` | whether the view runs in a transaction; unsaid, the app decides |
/// | `cpu_ms = 200` | CPU time the view may use |
/// | `timeout_ms = 2000` | wall-clock time the view may take |
///
/// A `fn` becomes a sync view and an `async fn` an async one. The first parameter may be
/// `cx: &Context`, which then means the context of that mode. Every other parameter is an extractor (a
/// type with `FromRequest`), and what the function returns must have `IntoResponse`.
///
/// The function itself stays as it is, so tests and other code can call it. Next to it the macro puts a
/// type of the same name, by which `views!` and the test helpers know the view.
#[proc_macro_attribute]
pub fn view(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(attribute.into(), function.into()).into()
}

/// Reads a struct from a row of a query, each field from the column of its name.
///
/// `#[row(column = "other")]` on a field names another column. The types of the fields need `FromValue`.
#[proc_macro_derive(FromRow, attributes(row))]
pub fn from_row(item: TokenStream) -> TokenStream {
    row::expand(item.into()).into()
}
