//! The to-dos as JSON, for programs with a token.

use crate::pages::Listing;
use crate::store::{self, Changes, NewTodo, PER_PAGE, Todo};
use crate::users::Client;
use amphi_sdk::prelude::*;

#[derive(Serialize)]
struct Page {
    count: u32,
    page: u32,
    todos: Vec<Todo>,
}

/// An error response in the format of RFC 9457. It is always JSON, whatever the `accept` header of the request says.
#[derive(Serialize)]
pub struct Problem {
    pub status: u16,
    pub detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Result<Response> {
        let status = StatusCode::from_u16(self.status)?;
        (status, Json(self))
            .with_header("content-type", "application/problem+json")
            .into_response()
    }
}

/// Adds `www-authenticate` to a 401, as RFC 9110 requires.
#[middleware]
pub fn challenge(_: &Context, request: Request, next: Next) -> Result<Response> {
    match next.run(request) {
        Err(error) if error.status() == StatusCode::UNAUTHORIZED => Problem {
            status: 401,
            detail: error.message().to_owned(),
        }
        .with_header("www-authenticate", "Bearer")
        .into_response(),
        other => other,
    }
}

#[view(get, "/api/todos", middleware = [challenge])]
pub fn list(cx: &Context, client: Client, Query(listing): Query<Listing>) -> Result<Response> {
    let page = listing.page.unwrap_or(1).max(1);
    let offset = (page - 1).saturating_mul(PER_PAGE);
    Json(Page {
        count: store::count(cx, client.user_id, &listing.q)?,
        page,
        todos: store::search(cx, client.user_id, &listing.q, PER_PAGE, offset)?,
    })
    .into_response()
}

#[view(post, "/api/todos", atomic, middleware = [challenge])]
pub fn create(cx: &Context, client: Client, Json(new): Json<NewTodo>) -> Result<Response> {
    let new = new.checked().map_err(Error::unprocessable)?;
    let todo = store::insert(cx, client.user_id, &new)?;
    let location = format!("/api/todos/{}", todo.id);
    (StatusCode::CREATED, Json(todo))
        .with_header("location", location)
        .into_response()
}

#[view(get, "/api/todos/{id}", middleware = [challenge])]
pub fn detail(cx: &Context, client: Client, Path(id): Path<i64>) -> Result<Json<Todo>> {
    Ok(Json(store::find(cx, client.user_id, id)?))
}

#[view(patch, "/api/todos/{id}", atomic, middleware = [challenge])]
pub fn change(
    cx: &Context,
    client: Client,
    Path(id): Path<i64>,
    Json(changes): Json<Changes>,
) -> Result<Json<Todo>> {
    let changes = changes.checked().map_err(Error::unprocessable)?;
    Ok(Json(store::change(cx, client.user_id, id, changes)?))
}

#[view(delete, "/api/todos/{id}", atomic, middleware = [challenge])]
pub fn delete(cx: &Context, client: Client, Path(id): Path<i64>) -> Result<StatusCode> {
    store::delete(cx, client.user_id, id)?;
    Ok(StatusCode::NO_CONTENT)
}
