//! Files that are attached to to-dos.

use crate::pages::percent;
use crate::store;
use crate::users::{User, signed_in};
use amphi_sdk::prelude::*;

#[derive(FromRow)]
pub struct File {
    pub id: i64,
    pub name: String,
    pub size: i64,
}

pub fn of(cx: &sync::Context, todo: i64) -> Result<Vec<File>> {
    cx.db().query(
        "select id, name, size from files where todo_id = $1 order by id",
        (todo,),
    )
}

#[derive(Deserialize)]
pub struct NewFile {
    file: Upload,
}

#[view(post, "/todos/{id}/files", atomic, middleware = [signed_in])]
pub fn upload(
    cx: &Context,
    user: User,
    Path(id): Path<i64>,
    Protected(Form(new)): Protected<Form<NewFile>>,
) -> Result<Redirect> {
    let todo = store::find(cx, user.id, id)?;
    let file = new.file;
    if file.bytes.is_empty() {
        return Err(Error::unprocessable("The file is empty."));
    }
    if file.file_name.contains(char::is_control) {
        return Err(Error::unprocessable(
            "The name of a file has no control characters.",
        ));
    }
    // The sender of the form chooses this text, and `download` sends it in a header: so only printable ASCII is kept.
    let content_type = match file.content_type {
        is if is.bytes().all(|byte| matches!(byte, b' '..=b'~')) => is,
        _ => "application/octet-stream".to_owned(),
    };
    cx.db().execute(
        "insert into files (todo_id, name, content_type, size, bytes) values ($1, $2, $3, $4, $5)",
        (
            id,
            &file.file_name,
            &content_type,
            file.bytes.len(),
            &file.bytes,
        ),
    )?;
    store::publish(cx, "todos.attached", user.id, &todo)?;
    Ok(Redirect::see_other(format!("/todos/{id}")))
}

#[view(get, "/files/{id}", middleware = [signed_in])]
pub fn download(cx: &Context, user: User, Path(id): Path<i64>) -> Result<Response> {
    let found: Option<(String, String, Vec<u8>)> = cx.db().query_one(
        "select files.name, files.content_type, files.bytes from files join todos on todos.id = files.todo_id
         where files.id = $1 and todos.user_id = $2",
        (id, user.id),
    )?;
    let (name, content_type, bytes) =
        found.ok_or_else(|| Error::not_found("There is no such file."))?;
    bytes
        .with_header("content-type", content_type)
        .with_header(
            "content-disposition",
            format!("attachment; filename*=UTF-8''{}", percent(&name)),
        )
        .into_response()
}
