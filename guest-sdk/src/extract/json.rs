//! Bodies of JSON.

use super::{BodyUse, FromRequest};
use crate::context::Context;
use crate::mode::Mode;
use crate::{Error, Request, Result};
use ::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

/// JSON. As a parameter of a view, this is the body of the request; as its result, the body of the response.
///
/// A request of another content type is refused with 415, a body that is not valid JSON with 400, and JSON that does not fit
/// the type with 422.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(Deserialize, Serialize)]
/// struct Point { x: i32, y: i32 }
///
/// #[view(post, "/mirror")]
/// fn mirror(Json(point): Json<Point>) -> Json<Point> {
///     Json(Point { x: -point.x, y: point.y })
/// }
/// # use amphi_sdk::testing::{App, post};
/// # assert_eq!(App::new().call::<mirror>(post("/mirror").json(&Point { x: 1, y: 2 })).text(), r#"{"x":-1,"y":2}"#);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Json<T> {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        let is_json = |name: &str| {
            name == "application/json"
                || name.starts_with("application/") && name.ends_with("+json")
        };
        if !request.headers.content_type_is(is_json) {
            return Err(Error::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON, and the content type say so: `application/json`",
            ));
        }
        serde_json::from_slice(request.body())
            .map(Self)
            .map_err(|error| match error.classify() {
                Category::Data => Error::unprocessable(format!("the JSON does not fit: {error}")),
                Category::Syntax | Category::Eof | Category::Io => {
                    Error::bad_request(format!("the body is not valid JSON: {error}"))
                }
            })
    }

    fn is_absent(request: &Request) -> bool {
        !request.has_body()
    }
}
