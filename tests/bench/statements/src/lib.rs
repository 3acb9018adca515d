//! A middleware that makes Amphi's development server tell which statements a page has run.

use amphi_sdk::prelude::*;

/// Fails after the page has been made: under `amphi up`, the answer to a request that fails lists the request's
/// statements.
#[middleware]
fn list(_: &Context, request: Request, next: Next) -> Result<Response> {
    next.run(request)?;
    Err(Error::internal("the statements are listed"))
}

views![list];
