//! The two modes of a view, as types.
//!
//! A type that differs between the modes has the mode as a type parameter. `Context<Sync>` and `Context<Async>` have
//! the same methods. The methods that wait are plain functions of `Context<Sync>` and `async` functions of
//! `Context<Async>`. A function that never waits can take either context: `fn title<M: Mode>(cx: &Context<M>)`.

use crate::{Context, host};
use std::fmt::Debug;
use std::pin::Pin;

/// The mode of a `fn` view: calls block.
#[derive(Clone, Copy, Debug)]
pub enum Sync {}

/// The mode of an `async fn` view: calls are awaited.
#[derive(Clone, Copy, Debug)]
pub enum Async {}

/// [`Sync`] or [`Async`].
pub trait Mode: Sealed + Copy + Debug + 'static {
    /// The result of a function under [`both`](macro@crate::both): `T` in a sync view, a future of `T` in an async view.
    type Output<'a, T: 'a>;

    /// Whether calls in this mode are awaited.
    #[doc(hidden)]
    const WAITS: bool;

    /// Makes an `Output` from a value that is already there.
    #[doc(hidden)]
    fn ready<'a, T: 'a>(value: T) -> Self::Output<'a, T>;

    /// Applies `make` to the value of an `Output`.
    #[doc(hidden)]
    fn map<'a, T: 'a, U: 'a>(output: Self::Output<'a, T>, make: fn(T) -> U) -> Self::Output<'a, U>;

    /// Runs the closure of this mode, `sync` or `asynch`. A component contains only the closures of its own mode.
    #[doc(hidden)]
    fn choose<'a, A: 'a, T: 'a>(
        cx: &'a Context<Self>,
        arguments: A,
        sync: impl FnOnce(&'a Context<Sync>, A) -> T,
        asynch: impl FnOnce(&'a Context<Async>, A) -> Pin<Box<dyn Future<Output = T> + 'a>>,
    ) -> Self::Output<'a, T>;
}

impl Mode for Sync {
    type Output<'a, T: 'a> = T;

    const WAITS: bool = false;

    fn ready<'a, T: 'a>(value: T) -> T {
        value
    }

    fn map<'a, T: 'a, U: 'a>(output: T, make: fn(T) -> U) -> U {
        make(output)
    }

    fn choose<'a, A: 'a, T: 'a>(
        cx: &'a Context<Self>,
        arguments: A,
        sync: impl FnOnce(&'a Context<Sync>, A) -> T,
        _: impl FnOnce(&'a Context<Async>, A) -> Pin<Box<dyn Future<Output = T> + 'a>>,
    ) -> T {
        sync(cx, arguments)
    }
}

impl Mode for Async {
    type Output<'a, T: 'a> = Pin<Box<dyn Future<Output = T> + 'a>>;

    const WAITS: bool = true;

    fn ready<'a, T: 'a>(value: T) -> Pin<Box<dyn Future<Output = T> + 'a>> {
        Box::pin(std::future::ready(value))
    }

    fn map<'a, T: 'a, U: 'a>(
        output: Pin<Box<dyn Future<Output = T> + 'a>>,
        make: fn(T) -> U,
    ) -> Pin<Box<dyn Future<Output = U> + 'a>> {
        Box::pin(async move { make(output.await) })
    }

    fn choose<'a, A: 'a, T: 'a>(
        cx: &'a Context<Self>,
        arguments: A,
        _: impl FnOnce(&'a Context<Sync>, A) -> T,
        asynch: impl FnOnce(&'a Context<Async>, A) -> Pin<Box<dyn Future<Output = T> + 'a>>,
    ) -> Pin<Box<dyn Future<Output = T> + 'a>> {
        asynch(cx, arguments)
    }
}

/// The types of the handles to the host's resources, in one mode.
pub trait Sealed {
    #[doc(hidden)]
    type Rows;
    #[doc(hidden)]
    type Transaction;
    #[doc(hidden)]
    type Pinned;
    #[doc(hidden)]
    type ResponseStream;
    #[doc(hidden)]
    type Upload;
}

impl Sealed for Sync {
    type Rows = host::sync::Rows;
    type Transaction = host::sync::Transaction;
    type Pinned = host::sync::Pinned;
    type ResponseStream = host::sync::ResponseStream;
    type Upload = host::sync::Upload;
}

impl Sealed for Async {
    type Rows = host::asynch::Rows;
    type Transaction = host::asynch::Transaction;
    type Pinned = host::asynch::Pinned;
    type ResponseStream = host::asynch::ResponseStream;
    type Upload = host::asynch::Upload;
}
