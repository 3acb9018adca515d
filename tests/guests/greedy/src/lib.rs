//! Views that ask the host for more than they may have, each as a sync view below `/sync` and as an async view below
//! `/async`. What they ask for is in `deeds`.

use amphi_sdk::views;

mod async_views;
mod deeds;
mod sync_views;

views![
    sync_views::ask,
    sync_views::hold,
    sync_views::fetch,
    sync_views::heard,
    async_views::ask,
    async_views::hold,
    async_views::fetch,
    async_views::heard,
    async_views::sleep,
];
