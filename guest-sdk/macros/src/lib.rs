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
/// The first argument is the method: `get`, `post`, `put`, `patch`, `delete`, `head` or `options`; `any` for every method
/// that no other view of the path has; `method = "PURGE"` for another method. A view for `get` answers HEAD, too. The second
/// argument is the path below the module's mount. `{name}` stands for one segment, and `{*name}` at the end for all
/// remaining segments. Options may follow:
///
/// | option | meaning |
/// |---|---|
/// | `atomic`, `atomic = false` | whether the view runs in a transaction. Without this option, the app's configuration decides |
/// | `read_only` | the host refuses statements that write |
/// | `isolation = "serializable"` | isolation level of the view's transaction: `"read-committed"`, `"repeatable-read"` or `"serializable"` |
/// | `retries = 3` | how many times the request is run again from the start after a conflict with another transaction. A request is not run again when something of the request has left the host already (an outbound request, an event) |
/// | `cpu_ms = 200` | limit of the view's CPU time |
/// | `timeout_ms = 2000` | limit of the view's wall-clock time |
/// | `body = "stream"` | the view starts when the head of the request is there, and reads the body while it arrives: with `BodyReader`, or with `Multipart`. Without this option, the host receives the whole body first, so that a slow client holds nothing of the app's |
/// | `middleware = [staff]` | middleware of this crate that runs around this view, inside the middleware of the app and the module. The first in the list is the outermost |
///
/// A `fn` becomes a sync view and an `async fn` an async view. The first parameter may be `cx: &Context`: the context
/// of the view's mode. Every other parameter is an extractor, a type that implements `FromRequest`. The result must
/// implement `IntoResponse`.
///
/// The function itself does not change, so tests and other code can call it. The macro adds a type of the same name:
/// `views!` and the module `testing` refer to the view by this type.
#[proc_macro_attribute]
pub fn view(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::View, attribute.into(), function.into()).into()
}

/// Makes a function middleware: `#[middleware] fn timed(cx: &Context, request: Request, next: Next) -> Result<Response>`.
///
/// The function runs around each view for which the app's configuration, or the attribute of the view, names the
/// function as middleware. It calls `next.run(request)` once to run the rest of the chain (with `.await` in an
/// `async fn`), or returns a response without calling `next`. The options are `cpu_ms` and `timeout_ms`, as for
/// `#[view]`. Between the context and the request, the function can take extractors that do not read the body.
#[proc_macro_attribute]
pub fn middleware(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::Middleware, attribute.into(), function.into()).into()
}

/// Makes a function a subscriber: `#[subscriber("orders.*")] fn on_order(cx: &Context, event: Event) -> Result<()>`.
///
/// The first argument is a topic; `orders.*` means all topics that begin with `orders.`. The options are those of
/// `#[view]`, except `body` and `middleware`.
#[proc_macro_attribute]
pub fn subscriber(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::Subscriber, attribute.into(), function.into()).into()
}

/// Makes a function a web socket: `#[socket("/chat/{room}")] fn chat(cx: &Context, event: SocketEvent) -> Result<()>`.
///
/// Or, for an async function that keeps the conversation:
/// `#[socket("/game")] async fn game(cx: &Context, mut socket: Socket) -> Result<()>`.
///
/// The first argument is the path below the module's mount, as for `#[view]`. In the first form, the host calls the function when a client
/// opens the socket, for each message of the client, for what other views `notify` to a group of the connection, and when
/// the connection has ended. The last parameter is the event, `SocketEvent`; before it, the function can take the context
/// and extractors that do not read the body. The result is that of a view: `Result<()>` in most cases. Only at the opening
/// does the client get the response: with a status of 200 to 299 the socket opens, otherwise the client gets an answer with
/// that status. `()` stands for 200.
///
/// In the second form, the last parameter is the socket, and the function runs as long as its connection; the extractors
/// before it run when a client opens the socket. It returns `Result<()>` or nothing.
///
/// The options are those of `#[view]`, except `body`, and one more:
///
/// | option | meaning |
/// |---|---|
/// | `origins = ["https://app.example.com"]` | origins whose pages may open the socket, beside the app's own and `allowed_origins` of `[app]`; `"*"` stands for all. Browsers send the app's cookies from every page, so without this check each page of the web could open the socket in a user's name |
/// | `atomic` | as for `#[view]`: whether each event runs in a transaction of its own; in the second form, the opening |
/// | `middleware = [signed_in]` | as for `#[view]`; it runs around the opening |
#[proc_macro_attribute]
pub fn socket(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::expand(Role::Socket, attribute.into(), function.into()).into()
}

/// Makes one function callable from the views of both modes.
///
/// Write it as an async function whose first parameter is `cx: &Context`. A sync view calls it without `.await`, and an async
/// view with `.await`:
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
/// For sync views, the macro removes each `.await` from the function, and `async` from its closures
/// (`cx.atomic(async |tx| …)`). Code that waits for several things at the same time (`join!`), or that sleeps, has no
/// sync form and is an error. Functions under `#[both]` call each other with `.await`. They read a result row by row
/// with `rows.try_next().await?`.
///
/// The attribute cannot be put on a method, and cannot be combined with `#[view]`.
#[proc_macro_attribute]
pub fn both(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::without_arguments("both", attribute.into())
        .unwrap_or_else(|| both::expand(function.into()))
        .into()
}

/// Makes a function an extractor for views of both modes. Unlike `FromRequest::from_request`, the function can wait for
/// the host, for example for a database.
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
/// Write the function like one under [`both`](macro@both). After the context, it can take extractors that read the head
/// of the request (`Path`, `Query`, `Headers`, `Cookies`, `Session`, `Csrf`), or `request: &mut Request`. It cannot
/// take an extractor that this macro makes: put what two such extractors share into a function under
/// [`both`](macro@both), and call that function from both. The function returns `Result<T>`; `T` is the type that views
/// take, and must be a type of the same crate. A view may also take `Option<T>`, which is `None` when the extractor
/// refuses with 401, or `Result<T>`. The extractor runs once for each view and each middleware that takes it.
#[proc_macro_attribute]
pub fn extractor(attribute: TokenStream, function: TokenStream) -> TokenStream {
    view::without_arguments("extractor", attribute.into())
        .unwrap_or_else(|| both::expand_extractor(function.into()))
        .into()
}

/// Implements `FromRow` for a struct: each field is read from the column of the same name.
///
/// `#[row(column = "other")]` on a field names another column. The types of the fields must implement `FromValue`.
#[proc_macro_derive(FromRow, attributes(row))]
pub fn from_row(item: TokenStream) -> TokenStream {
    row::expand(item.into()).into()
}
