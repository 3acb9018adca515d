//! A chat with rooms: web sockets, who is there, a history in the database, and a page that only watches.
//!
//! `sockets` handles the events of connections, once in a sync view and once in an async one, which do the same. `pages`
//! has what browsers open, `messages` the statements.

mod layout;
mod messages;
mod pages;
mod sockets;

use amphi_sdk::views;

views![
    pages::home,
    pages::enter,
    pages::room,
    pages::watch,
    pages::events,
    pages::members,
    sockets::sync_room,
    sockets::async_room
];
