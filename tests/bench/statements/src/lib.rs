//! Makes the development server tell which statements a page has run.

use amphi_sdk::prelude::*;

/// Fails after the page has been made: an answer to a failure lists the statements of its request, in development.
#[middleware]
fn list(_: &Context, request: Request, next: Next) -> Result<Response> {
    next.run(request)?;
    Err(Error::internal("the statements are listed"))
}

views![list];
