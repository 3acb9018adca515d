//! Queries and forms, which share their encoding.

use super::{BodyUse, FromRequest};
use crate::context::Context;
use crate::mode::Mode;
use crate::{Error, Request, Result};
use ::http::StatusCode;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;

/// The part of the URL after the `?`. What does not fit is refused with 400.
///
/// A field of type `Vec` takes a name that occurs several times, and one of type `Option` a missing one.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Page { page: Option<u32> }
///
/// #[view(get, "/entries")]
/// fn entries(Query(Page { page }): Query<Page>) -> String {
///     format!("page {}", page.unwrap_or(1))
/// }
/// # use amphi_sdk::testing::{App, get};
/// # assert_eq!(App::new().call::<entries>(get("/entries?page=2")).text(), "page 2");
/// # assert_eq!(App::new().call::<entries>(get("/entries?page=x")).status().as_u16(), 400);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        let query = request.query.as_bytes();
        check_utf8(query, "query")?;
        serde_html_form::from_bytes(query)
            .map(Self)
            .map_err(|error| Error::bad_request(format!("the query does not fit: {error}")))
    }

    fn is_absent(request: &Request) -> bool {
        request.query.is_empty()
    }
}

/// The body of a form that was sent with POST.
///
/// A request of another content type is refused with 415, one that is no UTF-8 with 400, and one that
/// does not fit the type with 422. To answer that yourself, take `Result<Form<T>>`.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct NewEntry { name: String, message: String }
///
/// #[view(post, "/entries", atomic)]
/// fn sign(cx: &Context, Form(new): Form<NewEntry>) -> Result<Redirect> {
///     cx.db().execute("insert into entries (name, message) values ($1, $2)", (new.name, new.message))?;
///     Ok(Redirect::see_other("/"))
/// }
/// # use amphi_sdk::testing::{App, post};
/// # let app = App::new().execute_batch("create table entries (name text, message text)");
/// # assert_eq!(app.call::<sign>(post("/entries").form(&[("name", "Ann"), ("message", "Hi")])).status().as_u16(), 303);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Form<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Form<T> {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        if !request
            .headers
            .content_type_is(|name| name == "application/x-www-form-urlencoded")
        {
            return Err(Error::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be a form, and the content type say so: `application/x-www-form-urlencoded`",
            ));
        }
        let body = request.body();
        check_utf8(body, "form")?;
        serde_html_form::from_bytes(body)
            .map(Self)
            .map_err(|error| Error::unprocessable(format!("the form does not fit: {error}")))
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}

/// The decoder below would put `U+FFFD` in the place of what is no UTF-8.
fn check_utf8(encoded: &[u8], what: &str) -> Result<()> {
    match percent_decode(encoded).decode_utf8() {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::bad_request(format!("the {what} is not valid UTF-8"))),
    }
}
