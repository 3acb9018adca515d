//! Queries and forms. Both have the encoding `application/x-www-form-urlencoded`; a form with files is
//! `multipart/form-data`.

use super::fields::{self, Content};
use super::upload::Upload;
use super::{BodyUse, FromRequest};
use crate::context::Context;
use crate::mode::Mode;
use crate::multipart::{self, fields_max};
use crate::{Error, Request, Result, csrf};
use ::http::StatusCode;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;

/// The query: the part of the URL after the `?`. A query that does not fit the type is refused with 400.
///
/// A field of type `Vec` collects all values of its name. A field of type `Option` may be missing. [`Form`] describes how
/// other types are read.
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
    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        let pairs = decode(request.query.as_bytes(), fields_max(cx)?, "query")?;
        fields::read(&pairs)
            .map(Self)
            .map_err(|text| Error::bad_request(format!("the query does not fit: {text}")))
    }

    fn is_absent(request: &Request) -> bool {
        request.query.is_empty()
    }
}

/// The body of a form sent with POST, with or without files.
///
/// A request whose content type is not that of a form is refused with 415. A body that is malformed or not UTF-8 is
/// refused with 400. A form that does not fit the type is refused with 422 and a sentence that says which field does
/// not fit. To answer such requests yourself, take `Result<Form<T>>`.
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
///
/// # How fields are read
///
/// - When a name occurs several times, a `Vec` takes all values and any other type takes the last. So a hidden field
///   before a checkbox, with the same name, sends the value for a box that is not ticked.
/// - A ticked checkbox without a `value` sends `on`, which a `bool` reads as `true`.
/// - An `Option` of a number or a `bool` is `None` when its field is empty.
/// - `#[serde(flatten)]` works with fields of all types.
///
/// # Files
///
/// A form with `enctype="multipart/form-data"` may have files. Each file is a field of type
/// [`Upload`](crate::extract::Upload):
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(get, "/photos/new")]
/// fn new_photo(csrf: Csrf) -> Html {
///     Html(format!(
///         r#"<form method="post" action="/photos" enctype="multipart/form-data">{}
///         <input name="title"> <input name="photo" type="file"> <button>Send</button></form>"#,
///         csrf.field()
///     ))
/// }
///
/// #[derive(Deserialize)]
/// struct NewPhoto { title: String, photo: Upload }
///
/// #[view(post, "/photos")]
/// fn add_photo(cx: &Context, Protected(Form(new)): Protected<Form<NewPhoto>>) -> Result<String> {
///     if !new.photo.bytes.starts_with(b"\x89PNG") {
///         return Err(Error::unprocessable("`photo` is no PNG"));
///     }
///     cx.db().execute("insert into photos (title, bytes) values ($1, $2)", (&new.title, &new.photo.bytes))?;
///     Ok(format!("{}: {} bytes", new.title, new.photo.bytes.len()))
/// }
/// # use amphi_sdk::testing::{App, Multipart, post};
/// # let app = App::new().execute_batch("create table photos (title text, bytes blob)");
/// # let form = Multipart::new().text("title", "Sea").file("photo", "sea.png", "image/png", b"\x89PNG...");
/// # assert_eq!(app.call::<add_photo>(post("/photos").csrf_field().multipart(form)).text(), "Sea: 7 bytes");
/// ```
///
/// The whole form is in the view's memory. The server's `body_max_bytes` (8 MiB) limits its size, and the module's
/// setting `form_fields_max` (1,000) the number of its fields. For a form that is too large for the view's memory, take
/// [`Multipart`](crate::Multipart), which reads the form in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Form<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Form<T> {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(cx: &Context<M>, request: &mut Request) -> Result<Self> {
        let max = fields_max(cx)?;
        let encoded = |name: &str| name == "application/x-www-form-urlencoded";
        let pairs = if let Some(boundary) = multipart::boundary(&request.headers)? {
            with_files(&request.take_body(), &boundary, max)?
        } else if request.headers.content_type_is(encoded) {
            decode(request.body(), max, "form")?
        } else {
            return Err(Error::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be a form, and the content type say so: `application/x-www-form-urlencoded` or `multipart/form-data`",
            ));
        };
        fields::read(&pairs)
            .map(Self)
            .map_err(|text| Error::unprocessable(format!("the form does not fit: {text}")))
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}

/// The fields of a form or query, in order.
fn decode(encoded: &[u8], max: usize, what: &str) -> Result<Vec<(String, Content)>> {
    let text = |encoded: &[u8]| {
        text(encoded).ok_or_else(|| Error::bad_request(format!("the {what} is not valid UTF-8")))
    };
    let mut pairs = Vec::new();
    for (name, value) in encoded_fields(encoded) {
        if pairs.len() == max {
            return Err(multipart::too_many(max));
        }
        pairs.push((text(name)?, Content::Text(text(value)?)));
    }
    Ok(pairs)
}

/// The first value of this name in a query. `None` when there is none, or when it is not UTF-8.
pub(crate) fn query_value(query: &str, name: &str) -> Option<String> {
    let mut fields = encoded_fields(query.as_bytes());
    let (_, value) = fields.find(|(known, _)| text(known).as_deref() == Some(name))?;
    text(value)
}

/// The names and values of a form or query, still encoded.
fn encoded_fields(encoded: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let fields = encoded.split(|byte| *byte == b'&');
    (fields.filter(|field| !field.is_empty())).map(|field| {
        match field.iter().position(|byte| *byte == b'=') {
            Some(at) => (&field[..at], &field[at + 1..]),
            None => (field, &[][..]),
        }
    })
}

/// A name or value, decoded. `None` when it is not UTF-8.
fn text(encoded: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = (encoded.iter())
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    let decoded = percent_decode(&spaced).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// The fields of a form of the type `multipart/form-data`, in order.
fn with_files(body: &[u8], boundary: &str, max: usize) -> Result<Vec<(String, Content)>> {
    let mut pairs = Vec::new();
    for (part, bytes) in multipart::parse(body, boundary, max)? {
        let content = match part.file_name {
            // `Csrf::field` has added this field; the view's type does not have it.
            _ if part.name == csrf::FIELD => continue,
            // Browsers send an empty file when no file was chosen.
            Some(name) if name.is_empty() && bytes.is_empty() => continue,
            Some(file_name) => Content::File(Upload {
                file_name,
                content_type: part
                    .content_type
                    .unwrap_or_else(|| "application/octet-stream".to_owned()),
                bytes,
            }),
            None => {
                let text = String::from_utf8(bytes).map_err(|_| multipart::no_text(&part.name))?;
                Content::Text(text)
            }
        };
        pairs.push((part.name, content));
    }
    Ok(pairs)
}
