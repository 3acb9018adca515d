//! The macros of `amphi-sdk`. Use them through that crate, which documents them.

mod attribute;
mod both;
mod pattern;
mod row;
mod view;

use proc_macro::TokenStream;
use view::Role;

/// Makes a function a view: `#[view(get, "/entries/{id}")]`.
///
/// The first argument is the method (`get`, `post`, `put`, `patch`, `delete`, `head` or `options`; `any` for every method
/// that no other view of the path has; `method = "PURGE"` for another one), the second the path
/// below the module's mount. `{name}` stands for one segment, `{*name}` at the end for all that remain.
/// A view for `get` answers HEAD, too. Then, optionally:
///
/// | option | meaning |
/// |---|---|
/// | `atomic`, `atomic = false` | whether the view runs in a transaction; unsaid, the app decides |
/// | `read_only` | statements that write are refused |
/// | `isolation = "serializable"` | what its transaction sees of others: `"read-committed"`, `"repeatable-read"` or `"serializable"` |
/// | `retries = 3` | how often the request is run again from the start after a conflict with another transaction, if it has sent nothing |
/// | `cpu_ms = 200` | CPU time the view may use |
/// | `timeout_ms = 2000` | wall-clock time the view may take |
/// | `middleware = [staff]` | middleware of this crate that is around this view, within that of the app and the module; the first is around the next |
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

/// Writes a function down once for the views of both modes.
///
/// Its text is that of an async function, whose first parameter is `cx: &Context`. A sync view calls it as it would a
/// sync one, and an async view awaits it:
///
/// ```ignore
/// #[both]
/// async fn newest(cx: &Context, limit: u32) -> Result<Vec<Entry>> {
///     cx.db().query("select id, name from entries order by id desc limit $1", (limit,)).await
/// }
///
/// #[view(get, "/")]
/// fn home(cx: &Context) -> Result<Json<Vec<Entry>>> {
///     Ok(Json(newest(cx, 10)?))
/// }
///
/// #[view(get, "/later")]
/// async fn later(cx: &Context) -> Result<Json<Vec<Entry>>> {
///     Ok(Json(newest(cx, 10).await?))
/// }
/// ```
///
/// For sync views the text is read without `.await`, and without the `async` of closures (`cx.atomic(async |tx| …)`).
/// What waits for several things at once (`join!`) or sleeps has no sync form, and is an error. Functions of both modes
/// call each other with `.await`; a result is read row by row with `rows.try_next().await?`.
///
/// A method takes no such attribute, and the function cannot be a view: what differs between a sync and an async view is
/// then in the view alone.
#[proc_macro_attribute]
pub fn both(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::without_arguments("both", attribute.into())
        .unwrap_or_else(|| both::expand(function.into()))
        .into()
}

/// Makes a function an extractor that asks the host: for what views of both modes take as a parameter and is in a
/// database, say.
///
/// ```ignore
/// struct User { id: i64, name: String }
///
/// #[extractor]
/// async fn user(cx: &Context, session: Session) -> Result<User> {
///     let id: i64 = session.get("user").ok_or_else(|| Error::unauthorized("sign in first"))?;
///     let name = cx.db().query_one("select name from users where id = $1", (id,)).await?;
///     let name = name.ok_or_else(|| Error::unauthorized("sign in first"))?;
///     Ok(User { id, name })
/// }
///
/// #[view(get, "/me")]
/// fn me(user: User) -> String {
///     format!("{} is number {}", user.name, user.id)
/// }
/// ```
///
/// It is written like a function of [`both`](macro@both) modes, and gives `Result<T>`: `T` is what views take, a type of this
/// crate. It takes extractors that read the head of the request (`Path`, `Query`, `Headers`, `Cookies`, `Session`, `Csrf`), or
/// `request: &mut Request`. It takes no extractor that is made by this macro: what two of them share is a function with
/// [`both`](macro@both) that both call. A view may take
/// `Option<T>`, which is none when the extractor refuses with 401, and `Result<T>`, too. Each view and each middleware that
/// takes it runs it anew.
#[proc_macro_attribute]
pub fn extractor(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::without_arguments("extractor", attribute.into())
        .unwrap_or_else(|| both::expand_extractor(function.into()))
        .into()
}

/// Reads a struct from a row of a query, each field from the column of its name.
///
/// `#[row(column = "other")]` on a field names another column. The types of the fields need `FromValue`.
#[proc_macro_derive(FromRow, attributes(row))]
pub fn from_row(item: TokenStream) -> TokenStream {
    row::expand(item.into()).into()
}
