//! The macros of `amphi-sdk`. Use them through that crate, which documents them.

mod attribute;
mod pattern;
mod row;
mod view;

use proc_macro::TokenStream;
use view::Role;

/// Makes a function a view: `#[view(get, "/entries/{id}")]`.
///
/// The first argument is the method (`get`, `post`, `put`, `patch` or `delete`), the second the path
/// below the module's mount. `{name}` stands for one segment, `{*name}` at the end for all that remain.
/// Then, optionally:
///
/// | option | meaning |
/// |---|---|
/// | `atomic`, `atomic = false` | whether the view runs in a transaction; unsaid, the app decides |
/// | `read_only` | statements that write are refused |
/// | `isolation = "serializable"` | what its transaction sees of others: `"read-committed"`, `"repeatable-read"` or `"serializable"` |
/// | `retries = 3` | how often the request is run again from the start after a conflict with another transaction, if it has sent nothing |
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
    view::expand(Role::View, attribute.into(), function.into()).into()
}

/// Makes a function middleware: `#[middleware] fn timed(cx: &Context, request: Request, next: Next) -> Result<Response>`.
///
/// It runs around the views for which the app's configuration names it, and calls `next.run(request)` for the rest
/// (`.await` in an `async fn`), once, or answers by itself. Options: `cpu_ms`, `timeout_ms` as for `#[view]`. Between
/// context and request, it takes extractors that leave the body alone.
#[proc_macro_attribute]
pub fn middleware(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::Middleware, attribute.into(), function.into()).into()
}

/// Makes a function a subscriber: `#[subscriber("orders.*")] fn on_order(cx: &Context, event: Event) -> Result<()>`.
///
/// The first argument is a topic, or the beginning of topics with `.*` behind it. The options are those of `#[view]`.
#[proc_macro_attribute]
pub fn subscriber(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::Subscriber, attribute.into(), function.into()).into()
}

/// Reads a struct from a row of a query, each field from the column of its name.
///
/// `#[row(column = "other")]` on a field names another column. The types of the fields need `FromValue`.
#[proc_macro_derive(FromRow, attributes(row))]
pub fn from_row(item: TokenStream) -> TokenStream {
    row::expand(item.into()).into()
}
