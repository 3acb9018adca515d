//! The two modes of a view, as types.
//!
//! Everything that belongs to a mode carries one of these: `Context<Sync>` and `Context<Async>` have the
//! same methods, but those that wait are plain functions on the one and `async` on the other. Code that
//! never waits can take either: `fn title<M: Mode>(cx: &Context<M>)`.

use crate::host;
use std::fmt::Debug;

/// The mode of a `fn` view: calls block.
#[derive(Clone, Copy, Debug)]
pub enum Sync {}

/// The mode of an `async fn` view: calls are awaited.
#[derive(Clone, Copy, Debug)]
pub enum Async {}

/// [`Sync`] or [`Async`].
pub trait Mode: Sealed + Copy + Debug + 'static {}

impl Mode for Sync {}
impl Mode for Async {}

/// What a mode holds on the host's side.
pub trait Sealed {
    #[doc(hidden)]
    type Rows;
    #[doc(hidden)]
    type Transaction;
    #[doc(hidden)]
    type Pinned;
}

impl Sealed for Sync {
    type Rows = host::sync::Rows;
    type Transaction = host::sync::Transaction;
    type Pinned = host::sync::Pinned;
}

impl Sealed for Async {
    type Rows = host::asynch::Rows;
    type Transaction = host::asynch::Transaction;
    type Pinned = host::asynch::Pinned;
}
