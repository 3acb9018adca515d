//! Polls: visitors vote, and staff write the questions.

mod admin;
mod errors;
mod forms;
mod pages;
mod search;
mod staff;
mod store;
#[cfg(test)]
mod tests;

use amphi_sdk::prelude::*;

views![
    pages::index,
    pages::detail,
    pages::vote,
    pages::results,
    staff::staff_only,
    staff::log_in_form,
    staff::log_in,
    staff::log_out,
    admin::list,
    admin::add_form,
    admin::add,
    admin::edit_form,
    admin::edit,
    admin::delete_form,
    admin::delete,
    errors::page
];

/// The name of the site, which all pages show.
fn site<M: Mode>(cx: &Context<M>) -> String {
    cx.config("title").unwrap_or_else(|| "Polls".into())
}
