//! From `#[view]` functions to the exports of a component.
//!
//! `views!` lists the views of a crate. The list becomes a table with one place for every view; a build
//! reads only the constant of its own mode from each ([`View::SYNC`] or [`View::ASYNC`]), so the views of
//! the other mode are never compiled in, and both components of a crate number their views alike.

use crate::bindings::amphi::view::types;
use crate::extract::Settings;
use crate::mode::{Async, Mode, Sync};
use crate::{Context, IntoResponse, Request, Response, Result};
use std::pin::Pin;

/// The future of an async view.
pub type Outcome = Pin<Box<dyn Future<Output = Result<Response>>>>;

/// The future of a body that is on its way.
pub type Loading<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A sync view, with its extractors.
pub type SyncView = fn(Context<Sync>, Request) -> Result<Response>;

/// An async view, with its extractors.
pub type AsyncView = fn(Context<Async>, Request) -> Outcome;

/// What `#[view]` implements for the type it puts next to a function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no view",
    note = "put `#[view(get, \"/path\")]` on the function of this name"
)]
pub trait View {
    /// The function, with its module.
    const NAME: &'static str;
    /// What makes the host call it.
    const KIND: Kind;
    /// Whether statements that write are refused.
    const READ_ONLY: bool = false;
    /// What its transaction sees of others.
    const ISOLATION: Option<types::Isolation> = None;
    /// How often it may run again after a conflict.
    const RETRIES: u32 = 0;
    /// Whether it runs in a transaction; none: as the app says.
    const ATOMIC: Option<bool>;
    /// CPU budget.
    const CPU_MS: Option<u32>;
    /// Time limit.
    const TIMEOUT_MS: Option<u32>;
    /// The middleware that is around it alone, the outermost first.
    const MIDDLEWARE: &'static [Layer] = &[];
    /// What its extractors check of the module's settings.
    const CHECKS: &'static [SettingsCheck] = &[];
    /// The view, if it is a `fn`.
    const SYNC: Option<SyncView> = None;
    /// The view, if it is an `async fn`.
    const ASYNC: Option<AsyncView> = None;
}

/// [`FromRequest::check_settings`](crate::FromRequest::check_settings) of an extractor.
pub type SettingsCheck = fn(Settings<'_>) -> Result<()>;

/// Middleware that a view names.
#[derive(Clone, Copy)]
pub struct Layer {
    /// The function, with its module.
    pub name: &'static str,
    /// In a component, the host calls it.
    #[cfg(all(feature = "testing", not(target_arch = "wasm32")))]
    pub(crate) run: fn(&crate::host::Host, Request) -> Result<Response>,
}

impl Layer {
    /// That of `V`.
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

/// What makes the host call a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request to a route.
    Route {
        /// `GET`, `POST`, …
        method: &'static str,
        /// The path below the module's mount.
        pattern: &'static str,
    },
    /// A chain that names it.
    Middleware,
    /// An event on a topic.
    Subscriber(&'static str),
}

impl Kind {
    /// What a request to it has as its method.
    pub const fn method(self) -> &'static str {
        match self {
            Kind::Route { method, .. } => method,
            Kind::Middleware => "GET",
            Kind::Subscriber(_) => "EVENT",
        }
    }

    /// Whether a request of this method can come to it.
    pub fn answers(self, method: &str) -> bool {
        match self.method() {
            "*" => true,
            "GET" if method == "HEAD" => true,
            known => known == method,
        }
    }

    /// What a request to it has as its path, with parameters.
    pub const fn pattern(self) -> &'static str {
        match self {
            Kind::Route { pattern, .. } => pattern,
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
        }
    }
}

/// A place in the table: empty when the view is of the other mode.
pub struct Entry<V> {
    info: Info,
    view: Option<V>,
}

/// What a view says about itself.
struct Info {
    name: &'static str,
    kind: Kind,
    atomic: Option<bool>,
    read_only: bool,
    isolation: Option<types::Isolation>,
    retries: u32,
    cpu_ms: Option<u32>,
    timeout_ms: Option<u32>,
    middleware: &'static [Layer],
    checks: &'static [SettingsCheck],
}

impl<F> Entry<F> {
    /// The place of `V`, with `view` from its constant of the mode being built.
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
            middleware: V::MIDDLEWARE,
            checks: V::CHECKS,
        };
        Self { info, view }
    }
}

/// Whether there is anything to build.
pub const fn has_views<V>(table: &[Entry<V>]) -> bool {
    let mut index = 0;
    while index < table.len() {
        if table[index].view.is_some() {
            return true;
        }
        index += 1;
    }
    false
}

/// The export `describe`.
///
/// # Panics
///
/// When a setting or a secret of the module is missing without which one of its views could never run: the host says
/// it where the module is loaded.
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
            middleware: (info.middleware.iter())
                .map(|layer| layer.name.into())
                .collect(),
        })
        .collect()
}

/// The export `describe` of a component, with the settings that its host has for it, if it is there to run.
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
    answer(view(Context::new(crate::host::Host), request.into()).await)
}

#[cfg(target_arch = "wasm32")]
fn find<V: Copy>(table: &[Entry<V>], view: u32) -> V {
    table
        .get(view as usize)
        .and_then(|entry| entry.view)
        .expect("the host calls views that `describe` told it of")
}

#[cfg(target_arch = "wasm32")]
fn answer(outcome: Result<Response>) -> Result<types::Response, types::Error> {
    outcome.map(types::Response::from).map_err(|error| {
        let (status, message, detail) = error.into_parts();
        types::Error {
            status: status.as_u16(),
            message,
            detail,
        }
    })
}

/// Ends the glue of a view.
pub fn respond<M: Mode, R: IntoResponse>(cx: &Context<M>, output: R) -> Result<Response> {
    let mut response = output.into_response()?;
    cx.session.write(&mut response)?;
    Ok(response)
}

/// Begins the glue of a view whose extractor wants the whole body.
pub fn load_body(cx: &Context<Sync>, request: &mut Request) -> Result<()> {
    crate::body::load(&cx.host, request)
}

/// The same for an async view; none when the body is here already.
pub fn load_body_async<'a>(
    cx: &'a Context<Async>,
    request: &'a mut Request,
) -> Option<Loading<'a>> {
    request
        .is_spooled()
        .then(|| -> Loading<'a> { Box::pin(crate::body::load_async(&cx.host, request)) })
}

/// Begins the glue of a view whose extractor looks at the beginning of the body.
pub fn begin_body(cx: &Context<Sync>, request: &mut Request) -> Result<()> {
    crate::body::begin(&cx.host, request)
}

/// The same for an async view; none when the body is here already.
pub fn begin_body_async<'a>(
    cx: &'a Context<Async>,
    request: &'a mut Request,
) -> Option<Loading<'a>> {
    request
        .is_spooled()
        .then(|| -> Loading<'a> { Box::pin(crate::body::begin_async(&cx.host, request)) })
}

/// `guestbook::entries::list` as `entries::list`.
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
#[cfg(all(target_arch = "wasm32", feature = "sync"))]
#[macro_export]
macro_rules! views {
    ($($view:path),* $(,)?) => {
        const _: () = {
            use $crate::__private as private;

            const TABLE: &[private::Entry<private::SyncView>] =
                &[$(private::Entry::new::<$view>(<$view as private::View>::SYNC)),*];
            $crate::__list_views!(TABLE; $($view),*);

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
            }

            private::bindings::sync_views::export_sync!(Views with_types_in $crate::__private::bindings::sync_views);
        };
    };
}

/// Lists the views of a crate, once, at its root: `views![list, entries::detail];`.
#[cfg(all(target_arch = "wasm32", feature = "async"))]
#[macro_export]
macro_rules! views {
    ($($view:path),* $(,)?) => {
        const _: () = {
            use $crate::__private as private;

            const TABLE: &[private::Entry<private::AsyncView>] =
                &[$(private::Entry::new::<$view>(<$view as private::View>::ASYNC)),*];
            $crate::__list_views!(TABLE; $($view),*);

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
            }

            private::bindings::async_views::export_async!(Views with_types_in $crate::__private::bindings::async_views);
        };
    };
}

/// Lists the views of a crate, once, at its root: `views![list, entries::detail];`. Outside of a
/// component it only checks that they are views.
#[cfg(not(target_arch = "wasm32"))]
#[macro_export]
macro_rules! views {
    ($($view:path),* $(,)?) => {
        const _: () = {
            $(_ = <$view as $crate::__private::View>::NAME;)*
        };
    };
}

/// Leaves a line about a view in a section of the component, where `amphi build` finds what is in no list.
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

/// Outside of a component, the compiler says what is never used.
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __declare_view {
    ($name:literal) => {};
}

/// Leaves lines about the list, and whether it has views of the component's mode.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[macro_export]
macro_rules! __list_views {
    ($table:ident; $($view:path),*) => {
        const _: () = {
            const LINE: &str = if $crate::__private::has_views($table) { "some\n" } else { "none\n" };
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

/// A text as the bytes of a static.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(text.as_bytes());
    bytes
}

/// `listed NAME` as a line.
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
    use super::{Kind, View, describe, without_crate};
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
