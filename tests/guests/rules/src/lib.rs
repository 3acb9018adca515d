//! Views, middleware and subscribers that do the steps that a test sends them.
//!
//! What both modes share is in `steps`. `sync_views` and `async_views` have the same functions, one file for each mode.

use amphi_sdk::views;

mod async_views;
mod steps;
mod sync_views;

views![
    sync_views::run,
    sync_views::run_atomic,
    sync_views::read,
    sync_views::read_atomic,
    sync_views::limited,
    sync_views::brief,
    sync_views::serializable,
    sync_views::repeatable,
    sync_views::retried,
    sync_views::first,
    sync_views::second,
    sync_views::third,
    sync_views::heard,
    async_views::run,
    async_views::run_atomic,
    async_views::read,
    async_views::read_atomic,
    async_views::limited,
    async_views::brief,
    async_views::serializable,
    async_views::repeatable,
    async_views::retried,
    async_views::first,
    async_views::second,
    async_views::third,
    async_views::heard,
];
