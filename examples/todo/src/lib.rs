//! A to-do list: pages, a JSON API, files, an export and an audit log.

mod api;
mod audit;
mod errors;
mod files;
mod layout;
mod pages;
mod store;
#[cfg(test)]
mod tests;
mod users;

use amphi_sdk::views;

views![
    users::signed_in,
    users::sign_up_form,
    users::sign_up,
    users::log_in_form,
    users::log_in,
    users::log_out,
    users::account,
    users::add_token,
    users::revoke_token,
    pages::list,
    pages::detail,
    pages::create,
    pages::edit,
    pages::tick,
    pages::delete,
    pages::export,
    files::upload,
    files::download,
    audit::show,
    audit::record,
    api::challenge,
    api::list,
    api::create,
    api::detail,
    api::change,
    api::delete,
    errors::page
];
