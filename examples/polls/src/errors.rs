//! The error page.

use crate::site;
use amphi_sdk::prelude::*;
use askama::Template;

#[derive(Template)]
#[template(path = "error.html")]
struct Page<'a> {
    site: String,
    title: &'a str,
    text: &'a str,
}

#[view(get, "/error/{status}")]
pub fn page(cx: &Context, Path(status): Path<u16>) -> Result<Html> {
    // The host sets this value when a request has failed. A client that requests this path itself gets a 404.
    let Some(message) = cx.get("error.message") else {
        return Err(Error::not_found("There is no such page."));
    };
    let (title, text) = match status {
        404 => (
            "Not found",
            "There is nothing here. The question may be gone, or not be published yet.",
        ),
        500.. => (
            "Our fault",
            "Something went wrong here. Please try again later.",
        ),
        _ => ("That did not work", message.as_str()),
    };
    let page = Page {
        site: site(cx),
        title,
        text,
    };
    Ok(Html(page.render()?))
}
