//! The error pages.

use crate::api::Problem;
use crate::layout;
use amphi_sdk::prelude::*;
use maud::html;

#[view(get, "/error/{status}")]
pub fn page(cx: &Context, Path(status): Path<u16>) -> Result<Response> {
    // The host sets the `error.…` values when a request has failed. A client that requests this path itself gets a 404.
    let Some(message) = cx.get("error.message") else {
        return Err(Error::not_found("There is no such page."));
    };
    if cx
        .get("error.path")
        .is_some_and(|path| path.starts_with("/api/"))
    {
        return Problem {
            status,
            detail: message,
        }
        .into_response();
    }
    let (title, text) = match status {
        404 => (
            "Not found",
            "There is nothing here. It may have been deleted, or is somebody else's.",
        ),
        500.. => (
            "Our fault",
            "Something went wrong here. Please try again later.",
        ),
        _ => ("That did not work", message.as_str()),
    };
    layout::page(
        cx,
        None,
        title,
        html! {
            h1 { (title) }
            p { (text) }
            p { a href="/" { "All to-dos" } }
        },
    )
    .into_response()
}
