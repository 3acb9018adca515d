//! The pages of the to-do list.

use crate::files;
use crate::layout::{field, page};
use crate::store::{self, Changes, NewTodo, PER_PAGE, Todo};
use crate::users::{User, signed_in};
use amphi_sdk::prelude::*;
use maud::{Markup, html};

#[derive(Default, Deserialize)]
pub struct Listing {
    pub page: Option<u32>,
    #[serde(default)]
    pub q: String,
}

#[view(get, "/", middleware = [signed_in])]
pub fn list(
    cx: &Context,
    user: User,
    csrf: Csrf,
    Query(listing): Query<Listing>,
) -> Result<Markup> {
    list_page(cx, &user, &csrf, &listing, &NewTodo::default(), None)
}

#[view(post, "/todos", atomic, middleware = [signed_in])]
pub fn create(
    cx: &Context,
    user: User,
    csrf: Csrf,
    Protected(Form(new)): Protected<Form<NewTodo>>,
) -> Result<Response> {
    match new.clone().checked() {
        Ok(new) => {
            store::insert(cx, user.id, &new)?;
            Redirect::see_other("/").into_response()
        }
        Err(problem) => {
            let page = list_page(cx, &user, &csrf, &Listing::default(), &new, Some(problem))?;
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}

fn list_page(
    cx: &sync::Context,
    user: &User,
    csrf: &Csrf,
    listing: &Listing,
    new: &NewTodo,
    problem: Option<&str>,
) -> Result<Markup> {
    let count = store::count(cx, user.id, &listing.q)?;
    let last = count.div_ceil(PER_PAGE).max(1);
    let number = listing.page.unwrap_or(1).clamp(1, last);
    let todos = store::search(cx, user.id, &listing.q, PER_PAGE, (number - 1) * PER_PAGE)?;
    let query = percent(&listing.q);
    Ok(page(
        cx,
        Some((user, csrf)),
        "To do",
        html! {
            form action="/todos" method="post" {
                (csrf.field())
                input name="title" value=(new.title) aria-label="What is to be done" placeholder="What is to be done?" required;
                button { "Add" }
            }
            @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
            form action="/" method="get" {
                input name="q" value=(listing.q) aria-label="Search" placeholder="Search";
                button { "Search" }
            }
            p { (count) @if count == 1 { " to-do" } @else { " to-dos" } }
            ul.todos {
                @for todo in &todos {
                    li.done[todo.done] {
                        form.inline action={ "/todos/" (todo.id) "/tick" } method="post" {
                            (csrf.field())
                            button aria-label="Tick" { @if todo.done { "☑" } @else { "☐" } }
                        }
                        a href={ "/todos/" (todo.id) } { (todo.title) }
                    }
                }
            }
            @if last > 1 {
                nav.pager aria-label="Pages" {
                    @if number > 1 { a rel="prev" href={ "/?page=" (number - 1) "&q=" (query) } { "← Newer" } } @else { span {} }
                    span { "Page " (number) " of " (last) }
                    @if number < last { a rel="next" href={ "/?page=" (number + 1) "&q=" (query) } { "Older →" } } @else { span {} }
                }
            }
        },
    ))
}

/// Percent-encodes all but letters, digits and `-._~`, for values in URLs and for names of files in headers.
pub fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[view(get, "/todos/{id}", middleware = [signed_in])]
pub fn detail(cx: &Context, user: User, csrf: Csrf, Path(id): Path<i64>) -> Result<Markup> {
    let todo = store::find(cx, user.id, id)?;
    detail_page(cx, &user, &csrf, &todo, None)
}

/// The form of a to-do. A browser does not send `done` when its box is not ticked.
#[derive(Deserialize)]
pub struct Edit {
    title: String,
    note: String,
    #[serde(default)]
    done: bool,
}

#[view(post, "/todos/{id}", atomic, middleware = [signed_in])]
pub fn edit(
    cx: &Context,
    user: User,
    csrf: Csrf,
    Path(id): Path<i64>,
    Protected(Form(edit)): Protected<Form<Edit>>,
) -> Result<Response> {
    let todo = store::find(cx, user.id, id)?;
    let changes = Changes {
        title: Some(edit.title.clone()),
        note: Some(edit.note.clone()),
        done: Some(edit.done),
    };
    match changes.checked() {
        Ok(changes) => {
            store::change(cx, user.id, id, changes)?;
            Redirect::see_other(format!("/todos/{id}")).into_response()
        }
        Err(problem) => {
            // The page with the problem shows what the user has typed.
            let typed = Todo {
                title: edit.title,
                note: edit.note,
                done: edit.done,
                ..todo
            };
            let page = detail_page(cx, &user, &csrf, &typed, Some(problem))?;
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}

#[view(post, "/todos/{id}/tick", atomic, middleware = [signed_in])]
pub fn tick(cx: &Context, user: User, Path(id): Path<i64>, _: Protected) -> Result<Redirect> {
    store::tick(cx, user.id, id)?;
    Ok(Redirect::see_other("/"))
}

#[view(post, "/todos/{id}/delete", atomic, middleware = [signed_in])]
pub fn delete(cx: &Context, user: User, Path(id): Path<i64>, _: Protected) -> Result<Redirect> {
    store::delete(cx, user.id, id)?;
    Ok(Redirect::see_other("/"))
}

fn detail_page(
    cx: &sync::Context,
    user: &User,
    csrf: &Csrf,
    todo: &Todo,
    problem: Option<&str>,
) -> Result<Markup> {
    let files = files::of(cx, todo.id)?;
    Ok(page(
        cx,
        Some((user, csrf)),
        &todo.title,
        html! {
            h1 { (todo.title) }
            @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
            form.stack action={ "/todos/" (todo.id) } method="post" {
                (csrf.field())
                (field("title", "Title", html! { input #title name="title" value=(todo.title) required; }))
                (field("note", "Note", html! { textarea #note name="note" rows="4" { (todo.note) } }))
                label { input name="done" type="checkbox" checked[todo.done]; " Done" }
                button { "Save" }
            }
            h2 { "Files" }
            ul { @for file in &files { li { a href={ "/files/" (file.id) } { (file.name) } " (" (file.size) " bytes)" } } }
            form action={ "/todos/" (todo.id) "/files" } method="post" enctype="multipart/form-data" {
                (csrf.field())
                input name="file" type="file" aria-label="File" required;
                button { "Attach" }
            }
            form action={ "/todos/" (todo.id) "/delete" } method="post" { (csrf.field()) button { "Delete this to-do" } }
        },
    ))
}

#[view(get, "/export.csv", middleware = [signed_in])]
pub async fn export(cx: &Context, user: User) -> Result<Response> {
    store::csv(cx, user.id)
        .await?
        .with_header("content-type", "text/csv; charset=utf-8")
        .with_header("content-disposition", "attachment; filename=\"todos.csv\"")
        .into_response()
}
