//! A guestbook with pages, a JSON API and a dashboard.
//!
//! The sync views are in `pages` and `api`: they read and write the database, one statement after the
//! other. The async view in `dashboard` asks twelve slow endpoints at the same time.

mod api;
mod dashboard;
mod entries;
mod layout;
mod pages;

use amphi_sdk::views;

views![
    pages::list,
    pages::detail,
    pages::sign,
    api::list,
    api::create,
    dashboard::show
];
