//! Turns `#[view]` functions into the exports of a component.
//!
//! `views!` lists the views of a crate. The list becomes a table with one entry for every view. A build reads only the
//! constant of its own mode from each view ([`View::SYNC`] or [`View::ASYNC`]), so a component has no code of the other
//! mode's views. Since every view has an entry, a view has the same number in both components of a crate.

use crate::bindings::amphi::view::types;
use crate::extract::Settings;
use crate::mode::{Async, Mode, Sync};
use crate::socket::SUBPROTOCOL;
use crate::socket::{Ending, Socket, converse};
use crate::stream::Producer;
use crate::{Context, Error, IntoResponse, Request, Response, Result, StatusCode};
use std::pin::Pin;

/// The future of an async view.
pub type Outcome = Pin<Box<dyn Future<Output = Result<Response>>>>;

/// The future of loading a body.
pub type Loading<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A sync view and its extractors, as one function.
pub type SyncView = fn(Context<Sync>, Request) -> Result<Response>;

/// An async view and its extractors, as one function.
pub type AsyncView = fn(Context<Async>, Request) -> Outcome;

/// Describes a view. `#[view]` adds a type with the name of the function, and implements this trait for that type.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a view",
    note = "add `#[view(get, \"/path\")]` to the function of this name"
)]
pub trait View {
    /// The function's name, with its module.
    const NAME: &'static str;
    /// What the host calls the function for.
    const KIND: Kind;
    /// Whether the host refuses statements that write.
    const READ_ONLY: bool = false;
    /// Isolation level of the view's transaction.
    const ISOLATION: Option<types::Isolation> = None;
    /// How many times the request may be run again after a conflict.
    const RETRIES: u32 = 0;
    /// Whether the view runs in a transaction. `None`: the app's configuration decides.
    const ATOMIC: Option<bool>;
    /// Whether the view reads the body of its request while it arrives.
    const STREAM_BODY: bool = false;
    /// Limit of the view's CPU time in milliseconds. `None`: the module's limit applies.
    const CPU_MS: Option<u32>;
    /// Limit of the view's wall-clock time in milliseconds. `None`: the module's limit applies.
    const TIMEOUT_MS: Option<u32>;
    /// The middleware that is listed in the view's attribute, the outermost first.
    const MIDDLEWARE: &'static [Layer] = &[];
    /// The functions with which the view's extractors check the module's settings.
    const CHECKS: &'static [SettingsCheck] = &[];
    /// The function, if it is a `fn`.
    const SYNC: Option<SyncView> = None;
    /// The function, if it is an `async fn`.
    const ASYNC: Option<AsyncView> = None;
}

/// The function [`FromRequest::check_settings`](crate::FromRequest::check_settings) of an extractor.
pub type SettingsCheck = fn(Settings<'_>) -> Result<()>;

/// Middleware that is listed in a view's attribute.
#[derive(Clone, Copy)]
pub struct Layer {
    /// The function's name, with its module.
    pub name: &'static str,
    /// Runs the middleware in a native test. In a component, the host calls the middleware.
    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) run: fn(&crate::host::Host, Request) -> Result<Response>,
}

impl Layer {
    /// The middleware `V`.
    pub const fn of<V: View>() -> Self {
        assert!(
            matches!(V::KIND, Kind::Middleware),
            "`middleware = […]` names functions with `#[middleware]`"
        );
        Self {
            name: V::NAME,
            #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
            run: crate::testing::run_alone::<V>,
        }
    }
}

/// What the host calls a function for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request to a route.
    Route {
        /// `GET`, `POST`, …
        method: &'static str,
        /// The path below the module's mount.
        pattern: &'static str,
    },
    /// A request whose chain contains this middleware.
    Middleware,
    /// An event on this topic, or on a topic that this pattern includes.
    Subscriber(&'static str),
    /// The events of a web socket.
    Socket {
        /// The path below the module's mount.
        pattern: &'static str,
        /// Other origins whose pages may open it; `*` stands for all.
        origins: &'static [&'static str],
    },
}

impl Kind {
    /// The method of requests to the function. `GET` for middleware, which runs for all methods; `SOCKET` stands for those
    /// of a socket's events.
    pub const fn method(self) -> &'static str {
        match self {
            Kind::Route { method, .. } => method,
            Kind::Middleware => "GET",
            Kind::Subscriber(_) => "EVENT",
            Kind::Socket { .. } => "SOCKET",
        }
    }

    /// Whether the host passes requests of this method to the function.
    pub fn answers(self, method: &str) -> bool {
        match self.method() {
            "*" => true,
            "GET" if method == "HEAD" => true,
            "SOCKET" => method == "GET",
            known => known == method,
        }
    }

    /// The path pattern of requests to the function.
    pub const fn pattern(self) -> &'static str {
        match self {
            Kind::Route { pattern, .. } | Kind::Socket { pattern, .. } => pattern,
            Kind::Middleware => "{*path}",
            Kind::Subscriber(topic) => topic,
        }
    }
}

impl From<Kind> for types::ViewKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Route { method, pattern } => types::ViewKind::Route(types::Route {
                method: method.into(),
                pattern: pattern.into(),
            }),
            Kind::Middleware => types::ViewKind::Middleware,
            Kind::Subscriber(topic) => types::ViewKind::Subscriber(topic.into()),
            Kind::Socket { pattern, origins } => types::ViewKind::Socket(types::SocketRoute {
                pattern: pattern.into(),
                origins: origins.iter().map(|&origin| origin.into()).collect(),
            }),
        }
    }
}

/// An entry of the table. `view` is `None` if the view is not of the mode that is built.
pub struct Entry<V> {
    info: Info,
    view: Option<V>,
}

/// The description of a view: the constants of [`View`].
struct Info {
    name: &'static str,
    kind: Kind,
    atomic: Option<bool>,
    read_only: bool,
    isolation: Option<types::Isolation>,
    retries: u32,
    cpu_ms: Option<u32>,
    timeout_ms: Option<u32>,
    stream_body: bool,
    middleware: &'static [Layer],
    checks: &'static [SettingsCheck],
}

impl<F> Entry<F> {
    /// The entry of `V`. `view` is the constant `SYNC` or `ASYNC` of `V`, depending on the mode that is built.
    pub const fn new<V: View>(view: Option<F>) -> Self {
        let info = Info {
            name: V::NAME,
            kind: V::KIND,
            atomic: V::ATOMIC,
            read_only: V::READ_ONLY,
            isolation: V::ISOLATION,
            retries: V::RETRIES,
            cpu_ms: V::CPU_MS,
            timeout_ms: V::TIMEOUT_MS,
            stream_body: V::STREAM_BODY,
            middleware: V::MIDDLEWARE,
            checks: V::CHECKS,
        };
        Self { info, view }
    }
}

/// The export `describe`: the descriptions of all views of this mode.
///
/// # Panics
///
/// When an extractor of a view refuses the module's settings, which it reads with `setting`. The host reports the
/// panic's text and does not load the module.
pub fn describe<V>(table: &[Entry<V>], setting: Option<Settings<'_>>) -> Vec<types::ViewInfo> {
    let listed = (0..).zip(table).filter(|(_, entry)| entry.view.is_some());
    let checked = listed.inspect(|(_, Entry { info, .. })| {
        let mut checks = info.checks.iter();
        let refused = setting.and_then(|setting| checks.find_map(|check| check(setting).err()));
        if let Some(error) = refused {
            panic!("the view `{}` cannot run: {}", info.name, error.reason());
        }
    });
    checked
        .map(|(id, Entry { info, .. })| types::ViewInfo {
            id,
            name: info.name.into(),
            kind: info.kind.into(),
            atomic: info.atomic,
            read_only: info.read_only,
            isolation: info.isolation,
            retries: info.retries,
            cpu_ms: info.cpu_ms,
            timeout_ms: info.timeout_ms,
            stream_body: info.stream_body,
            middleware: (info.middleware.iter())
                .map(|layer| layer.name.into())
                .collect(),
        })
        .collect()
}

/// The export `describe` of a component. The settings are not checked when the host only inspects the component.
#[cfg(target_arch = "wasm32")]
pub fn describe_component<V>(table: &[Entry<V>]) -> Vec<types::ViewInfo> {
    let host = crate::host::Host;
    let is_inspected = host.config("amphi.inspected").is_some();
    describe(table, (!is_inspected).then_some(&|name| host.config(name)))
}

/// The export `handle` of a sync component.
#[cfg(target_arch = "wasm32")]
pub fn handle(
    table: &[Entry<SyncView>],
    view: u32,
    request: types::Request,
) -> Result<types::Response, types::Error> {
    let view = find(table, view);
    // An instance that is used again may still have the stream of a response that was not sent.
    drop(crate::host::kept());
    answer(view(Context::new(crate::host::Host), request.into()))
}

/// The export `handle` of an async component.
#[cfg(target_arch = "wasm32")]
pub async fn handle_async(
    table: &[Entry<AsyncView>],
    view: u32,
    request: types::Request,
) -> Result<types::Response, types::Error> {
    let view = find(table, view);
    drop(crate::host::kept());
    answer(view(Context::new(crate::host::Host), request.into()).await)
}

/// The export `produce` of a sync component.
#[cfg(target_arch = "wasm32")]
pub fn produce() -> Result<(), types::Error> {
    match crate::host::kept() {
        Some(Producer::Sync(work)) => work().map_err(raw),
        _ => unreachable!("{NO_STREAM}"),
    }
}

/// The export `produce` of an async component.
#[cfg(target_arch = "wasm32")]
pub async fn produce_async() -> Result<(), types::Error> {
    match crate::host::kept() {
        Some(Producer::Async(work)) => work().await.map_err(raw),
        _ => unreachable!("{NO_STREAM}"),
    }
}

#[cfg(target_arch = "wasm32")]
const NO_STREAM: &str = "the host calls `produce` once, after `handle` has returned a stream";

#[cfg(target_arch = "wasm32")]
fn find<V: Copy>(table: &[Entry<V>], view: u32) -> V {
    table
        .get(view as usize)
        .and_then(|entry| entry.view)
        .expect("the host calls only views that `describe` has listed")
}

#[cfg(target_arch = "wasm32")]
fn answer(outcome: Result<Response>) -> Result<types::Response, types::Error> {
    outcome
        .map(|response| response.into_raw(&crate::host::Host))
        .map_err(raw)
}

#[cfg(target_arch = "wasm32")]
fn raw(error: crate::Error) -> types::Error {
    let (status, message, detail) = error.into_parts();
    types::Error {
        status: status.as_u16(),
        message,
        detail,
    }
}

/// The last step of the function that `#[view]` makes: turns the view's result into a response.
pub fn respond<M: Mode, R: IntoResponse>(cx: &Context<M>, output: R) -> Result<Response> {
    let mut response = output.into_response()?;
    cx.session.write(&mut response)?;
    Ok(response)
}

/// The last step of the function that `#[socket]` makes: turns the result of an event into a response. `opens` says whether
/// the event is the opening: only then does a client get the response.
pub fn respond_to_event<M: Mode, R: IntoResponse>(
    cx: &Context<M>,
    opens: bool,
    output: R,
) -> Result<Response> {
    let mut response = output.into_response()?;
    if response.is_stream() {
        return Err(Error::internal(
            "the response of a socket has no body that streams: send messages with `cx.socket().send(…)`",
        ));
    }
    cx.session.write(&mut response)?;
    if !opens {
        return match response.headers.get("set-cookie") {
            None => Ok(response),
            Some(_) => Err(Error::internal(
                "a socket can set cookies, and change the session, only when it opens: later events have no response that carries them",
            )),
        };
    }
    if response.status == StatusCode::NO_CONTENT {
        response.status = StatusCode::OK;
    }
    if let Some(chosen) = cx.subprotocol.take()
        && response.status.is_success()
    {
        response.headers.set(SUBPROTOCOL, chosen);
    }
    Ok(response)
}

/// The last step of the function that `#[socket]` makes for an async function that keeps the conversation: the response to
/// the opening, with the function as what the host runs when the handshake is complete.
pub fn conversation<F, R>(
    cx: &Context<Async>,
    function: impl FnOnce(Context<Async>, Socket) -> F + 'static,
) -> Result<Response>
where
    F: Future<Output = R> + 'static,
    R: Ending + 'static,
{
    let own = cx.clone();
    let producer = Producer::Async(Box::new(move || {
        let socket = Socket::new(&own.host);
        Box::pin(async move { converse(&own.clone(), function(own, socket)).await })
    }));
    let mut response = Response::streaming(producer);
    cx.session.write(&mut response)?;
    if let Some(chosen) = cx.subprotocol.take() {
        response.headers.set(SUBPROTOCOL, chosen);
    }
    Ok(response)
}

/// The response to an event of a connection that was opened by another version of the function, which was called for each
/// event. It tells the host that the function keeps conversations now.
pub fn of_other_form() -> Response {
    Response::streaming(Producer::Async(Box::new(|| Box::pin(async { Ok(()) }))))
}

/// Loads the body into memory: the first step of the function that `#[view]` makes, if an extractor reads the whole
/// body.
pub fn load_body(cx: &Context<Sync>, request: &mut Request) -> Result<()> {
    crate::body::load(&cx.host, request)
}

/// [`load_body`] for an async view. `None` when the body is in memory already.
pub fn load_body_async<'a>(
    cx: &'a Context<Async>,
    request: &'a mut Request,
) -> Option<Loading<'a>> {
    request
        .is_with_host()
        .then(|| -> Loading<'a> { Box::pin(crate::body::load_async(&cx.host, request)) })
}

/// Reads the beginning of the body: the first step of the function that `#[view]` makes, if an extractor needs only the
/// beginning.
pub fn begin_body(cx: &Context<Sync>, request: &mut Request) -> Result<()> {
    crate::body::begin(&cx.host, request)
}

/// [`begin_body`] for an async view. `None` when the body is in memory already.
pub fn begin_body_async<'a>(
    cx: &'a Context<Async>,
    request: &'a mut Request,
) -> Option<Loading<'a>> {
    request
        .is_with_host()
        .then(|| -> Loading<'a> { Box::pin(crate::body::begin_async(&cx.host, request)) })
}

/// Removes the crate from a path: `guestbook::entries::list` becomes `entries::list`.
pub const fn without_crate(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut index = 0;
    while index + 1 < bytes.len() {
        if bytes[index] == b':' && bytes[index + 1] == b':' {
            return path.split_at(index + 2).1;
        }
        index += 1;
    }
    path
}

/// Lists the views of a crate. The documentation is at the native version of this macro.
#[cfg(target_arch = "wasm32")]
#[macro_export]
macro_rules! views {
    ($($view:path),* $(,)?) => {
        // `amphi build` passes `--cfg amphi_mode` only to the crate that calls `views!`. So the dependencies of that
        // crate are compiled only once, for both modes.
        #[cfg(amphi_mode = "sync")]
        $crate::__export_sync_views!($($view),*);
        #[cfg(amphi_mode = "async")]
        $crate::__export_async_views!($($view),*);
        #[cfg(not(any(amphi_mode = "sync", amphi_mode = "async")))]
        ::core::compile_error!("a component has the views of one mode: build it with `amphi build`, which makes one for each");
    };
}

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_sync_views {
    ($($view:path),*) => {
        const _: () = {
            use $crate::__private as private;

            const TABLE: &[private::Entry<private::SyncView>] =
                &[$(private::Entry::new::<$view>(<$view as private::View>::SYNC)),*];
            $crate::__list_views!($($view),*);

            struct Views;

            impl private::bindings::sync_views::Guest for Views {
                fn describe() -> ::std::vec::Vec<private::types::ViewInfo> {
                    private::describe_component(TABLE)
                }

                fn handle(
                    view: u32,
                    request: private::types::Request,
                ) -> ::core::result::Result<private::types::Response, private::types::Error> {
                    private::handle(TABLE, view, request)
                }

                fn produce() -> ::core::result::Result<(), private::types::Error> {
                    private::produce()
                }
            }

            private::bindings::sync_views::export_sync!(Views with_types_in $crate::__private::bindings::sync_views);
        };
    };
}

#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_async_views {
    ($($view:path),*) => {
        const _: () = {
            use $crate::__private as private;

            const TABLE: &[private::Entry<private::AsyncView>] =
                &[$(private::Entry::new::<$view>(<$view as private::View>::ASYNC)),*];
            $crate::__list_views!($($view),*);

            struct Views;

            impl private::bindings::async_views::Guest for Views {
                fn describe() -> ::std::vec::Vec<private::types::ViewInfo> {
                    private::describe_component(TABLE)
                }

                async fn handle(
                    view: u32,
                    request: private::types::Request,
                ) -> ::core::result::Result<private::types::Response, private::types::Error> {
                    private::handle_async(TABLE, view, request).await
                }

                async fn produce() -> ::core::result::Result<(), private::types::Error> {
                    private::produce_async().await
                }
            }

            private::bindings::async_views::export_async!(Views with_types_in $crate::__private::bindings::async_views);
        };
    };
}

/// Lists the views of a crate, once, at its root: `views![list, entries::detail];`.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/")]
/// fn home() -> Html<&'static str> {
///     Html("<h1>Hello</h1>")
/// }
///
/// mod entries {
///     use amphi_sdk::prelude::*;
///
///     #[view(get, "/entries")]
///     pub async fn list() -> &'static str {
///         "none"
///     }
/// }
///
/// views![home, entries::list];
/// # fn main() {}
/// ```
///
/// `amphi build` makes the components from this list. In a native build, the macro only checks that each name in the
/// list is a view.
#[cfg(not(target_arch = "wasm32"))]
#[macro_export]
macro_rules! views {
    ($($view:path),* $(,)?) => {
        const _: () = {
            $(_ = <$view as $crate::__private::View>::NAME;)*
        };
    };
}

/// Writes a line about a view into a custom section of the component. `amphi build` reads the section to find views
/// that are missing in `views!`.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __declare_view {
    ($name:literal) => {
        const _: () = {
            const LINE: &str = ::core::concat!(
                "view ",
                ::core::module_path!(),
                "::",
                $name,
                " ",
                ::core::file!(),
                ":",
                ::core::line!(),
                "\n"
            );
            #[used]
            #[unsafe(link_section = "amphi-views")]
            static IN_COMPONENT: [u8; LINE.len()] = $crate::__private::bytes(LINE);
        };
    };
}

/// Does nothing in a native build: there, the compiler warns about a view that is never used.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __declare_view {
    ($name:literal) => {};
}

/// Writes lines about the list of `views!` into the section `amphi-views`: one about the modes that have views, and one
/// for each listed view.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __list_views {
    ($($view:path),*) => {
        const _: () = {
            const LINE: &str = $crate::__private::modes(
                false $(|| <$view as $crate::__private::View>::SYNC.is_some())*,
                false $(|| <$view as $crate::__private::View>::ASYNC.is_some())*,
            );
            #[used]
            #[unsafe(link_section = "amphi-views")]
            static IN_COMPONENT: [u8; LINE.len()] = $crate::__private::bytes(LINE);
        };
        $(const _: () = {
            const NAME: &str = <$view as $crate::__private::View>::NAME;
            #[used]
            #[unsafe(link_section = "amphi-views")]
            static IN_COMPONENT: [u8; 8 + NAME.len()] = $crate::__private::listed(NAME);
        };)*
    };
}

/// The line of the section that says which modes have views.
pub const fn modes(sync: bool, asynch: bool) -> &'static str {
    match (sync, asynch) {
        (true, true) => "modes sync async\n",
        (true, false) => "modes sync\n",
        (false, true) => "modes async\n",
        (false, false) => "modes none\n",
    }
}

/// A text as an array of bytes, for a static.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(text.as_bytes());
    bytes
}

/// The line `listed NAME` of the section, as bytes.
pub const fn listed<const N: usize>(name: &str) -> [u8; N] {
    let mut line = [b'\n'; N];
    let (start, rest) = line.split_at_mut(7);
    start.copy_from_slice(b"listed ");
    let (middle, _) = rest.split_at_mut(name.len());
    middle.copy_from_slice(name.as_bytes());
    line
}

#[cfg(test)]
mod tests {
    use super::{Kind, View, describe, types, without_crate};
    use crate::prelude::*;
    use crate::view::Entry;

    #[view(post, "/a", atomic, cpu_ms = 20, timeout_ms = 300)]
    fn blocking() {}

    #[view(get, "/b/{id}", atomic = false)]
    async fn waiting() {}

    #[test]
    fn a_view_is_in_the_table_of_its_mode_alone() {
        let sync = describe(
            &[
                Entry::new::<blocking>(<blocking as View>::SYNC),
                Entry::new::<waiting>(<waiting as View>::SYNC),
            ],
            None,
        );
        let [info] = &sync[..] else {
            panic!("{sync:?}")
        };
        assert_eq!((info.id, info.name.as_str()), (0, "view::tests::blocking"));
        let (method, pattern) = ("POST", "/a");
        assert_eq!(info.kind, Kind::Route { method, pattern }.into());
        assert_eq!(
            (info.atomic, info.cpu_ms, info.timeout_ms),
            (Some(true), Some(20), Some(300))
        );

        let asynch = describe(
            &[
                Entry::new::<blocking>(<blocking as View>::ASYNC),
                Entry::new::<waiting>(<waiting as View>::ASYNC),
            ],
            None,
        );
        let [info] = &asynch[..] else {
            panic!("{asynch:?}")
        };
        assert_eq!((info.id, info.atomic), (1, Some(false)));
    }

    #[socket("/d/{id}", origins = "https://a.example", middleware = [around], retries = 2)]
    async fn events(_: SocketEvent) {}

    #[middleware]
    fn around(request: Request, next: Next) -> Result<Response> {
        next.run(request)
    }

    #[test]
    fn a_socket_is_described_with_its_origins() {
        let table = [Entry::new::<events>(<events as View>::ASYNC)];
        let [info] = &describe(&table, None)[..] else {
            panic!("there is one")
        };
        let types::ViewKind::Socket(route) = &info.kind else {
            panic!("{:?}", info.kind)
        };
        assert_eq!(
            (route.pattern.as_str(), &route.origins[..]),
            ("/d/{id}", &["https://a.example".to_owned()][..])
        );
        assert_eq!(
            (info.retries, &info.middleware[..]),
            (2, &["view::tests::around".to_owned()][..])
        );
    }

    #[view(post, "/c")]
    fn form(_: Option<Protected>) {}

    #[test]
    #[should_panic(
        expected = "`view::tests::form` cannot run: sessions need the secret `session_key`"
    )]
    fn what_a_view_needs_of_the_settings_is_checked_when_it_is_described() {
        describe(&[Entry::new::<form>(<form as View>::SYNC)], Some(&|_| None));
    }

    #[test]
    fn names_leave_out_the_crate() {
        assert_eq!(without_crate("app::list"), "list");
        assert_eq!(without_crate("app::entries::list"), "entries::list");
        assert_eq!(without_crate("list"), "list");
    }
}
