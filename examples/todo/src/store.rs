//! To-dos and how they are stored, for the views of both modes. All functions see the to-dos of one user only.

use amphi_sdk::prelude::*;
use time::OffsetDateTime;

pub const PER_PAGE: u32 = 10;

#[derive(Clone, Debug, FromRow, Serialize)]
pub struct Todo {
    pub id: i64,
    pub title: String,
    pub note: String,
    pub done: bool,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A to-do that a user wants to add.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NewTodo {
    pub title: String,
    #[serde(default)]
    pub note: String,
}

/// The payload of the events on the topics `todos.…`.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub struct Change {
    pub user_id: i64,
    pub todo_id: i64,
    pub title: String,
}

/// The fields of a to-do that a user changes. A field that is `None` stays as it is.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Changes {
    pub title: Option<String>,
    pub note: Option<String>,
    pub done: Option<bool>,
}

impl NewTodo {
    /// Checks the to-do and tidies its texts. The error says what is wrong.
    pub fn checked(self) -> Result<Self, &'static str> {
        Ok(Self {
            title: title(&self.title)?,
            note: note(&self.note)?,
        })
    }
}

impl Changes {
    /// Checks the changes and tidies their texts. The error says what is wrong.
    pub fn checked(self) -> Result<Self, &'static str> {
        Ok(Self {
            title: self.title.as_deref().map(title).transpose()?,
            note: self.note.as_deref().map(note).transpose()?,
            done: self.done,
        })
    }
}

fn title(text: &str) -> Result<String, &'static str> {
    let title = text.trim();
    match title.chars().count() {
        0 => Err("Please say what there is to do."),
        201.. => Err("A title has at most 200 characters."),
        _ if title.contains(char::is_control) => Err("A title has no control characters."),
        _ => Ok(title.to_owned()),
    }
}

fn note(text: &str) -> Result<String, &'static str> {
    let note = text.trim().replace("\r\n", "\n");
    if note.chars().count() > 10_000 {
        Err("A note has at most 10,000 characters.")
    } else if note.contains('\0') {
        // PostgreSQL refuses zero characters in texts.
        Err("A note has no zero characters.")
    } else {
        Ok(note)
    }
}

/// A pattern for LIKE with the escape character `!`. The database lowers the text and the pattern, so both change
/// alike: SQLite lowers ASCII letters only. Zero characters are dropped: PostgreSQL refuses them, and no to-do has any.
fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for c in search.trim().chars().filter(|&c| c != '\0') {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern + "%"
}

#[both]
pub async fn count(cx: &Context, user: i64, search: &str) -> Result<u32> {
    let count = cx
        .db()
        .query_one(
            "select count(*) from todos where user_id = $1
             and (lower(title) like lower($2) escape '!' or lower(note) like lower($2) escape '!')",
            (user, pattern(search)),
        )
        .await?;
    Ok(count.unwrap_or(0))
}

#[both]
pub async fn search(
    cx: &Context,
    user: i64,
    search: &str,
    limit: u32,
    offset: u32,
) -> Result<Vec<Todo>> {
    cx.db()
        .query(
            "select id, title, note, done, created_at from todos where user_id = $1
             and (lower(title) like lower($2) escape '!' or lower(note) like lower($2) escape '!')
             order by id desc limit $3 offset $4",
            (user, pattern(search), limit, offset),
        )
        .await
}

#[both]
pub async fn find(cx: &Context, user: i64, id: i64) -> Result<Todo> {
    cx.db()
        .query_one(
            "select id, title, note, done, created_at from todos where user_id = $1 and id = $2",
            (user, id),
        )
        .await?
        .ok_or_else(none)
}

fn none() -> Error {
    Error::not_found("There is no such to-do.")
}

#[both]
pub async fn insert(cx: &Context, user: i64, new: &NewTodo) -> Result<Todo> {
    let todo: Option<Todo> = cx
        .db()
        .query_one(
            "insert into todos (user_id, title, note, created_at) values ($1, $2, $3, $4)
             returning id, title, note, done, created_at",
            (user, &new.title, &new.note, OffsetDateTime::now_utc()),
        )
        .await?;
    let todo = todo.ok_or_else(|| Error::internal("no row for the new to-do"))?;
    publish(cx, "todos.created", user, &todo)?;
    Ok(todo)
}

/// Changes a to-do with a single statement, so that neither of two simultaneous changes is lost.
#[both]
pub async fn change(cx: &Context, user: i64, id: i64, changes: Changes) -> Result<Todo> {
    let todo: Option<Todo> = cx
        .db()
        .query_one(
            "update todos set title = coalesce($3, title), note = coalesce($4, note), done = coalesce($5, done)
             where user_id = $1 and id = $2
             returning id, title, note, done, created_at",
            (user, id, changes.title, changes.note, changes.done),
        )
        .await?;
    let todo = todo.ok_or_else(none)?;
    publish(cx, "todos.changed", user, &todo)?;
    Ok(todo)
}

/// Ticks a to-do, or takes the tick away.
#[both]
pub async fn tick(cx: &Context, user: i64, id: i64) -> Result<()> {
    let todo: Option<Todo> = cx
        .db()
        .query_one(
            "update todos set done = not done where user_id = $1 and id = $2
             returning id, title, note, done, created_at",
            (user, id),
        )
        .await?;
    publish(cx, "todos.changed", user, &todo.ok_or_else(none)?)
}

#[both]
pub async fn delete(cx: &Context, user: i64, id: i64) -> Result<()> {
    let todo: Option<Todo> = cx
        .db()
        .query_one(
            "delete from todos where user_id = $1 and id = $2
             returning id, title, note, done, created_at",
            (user, id),
        )
        .await?;
    publish(cx, "todos.deleted", user, &todo.ok_or_else(none)?)
}

/// Publishes an event for the audit log. All views that call this are `atomic`, so a rollback discards the event.
pub fn publish<M: Mode>(cx: &Context<M>, topic: &str, user_id: i64, todo: &Todo) -> Result<()> {
    cx.publish(
        topic,
        &Change {
            user_id,
            todo_id: todo.id,
            title: todo.title.clone(),
        },
    )
}

/// All to-dos of a user, as CSV, read row by row.
#[both]
pub async fn csv(cx: &Context, user: i64) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(Vec::new());
    writer.write_record(["id", "title", "note", "done", "created_at"])?;
    let mut rows = cx
        .db()
        .rows::<Todo>(
            "select id, title, note, done, created_at from todos where user_id = $1 order by id",
            (user,),
        )
        .await?;
    while let Some(todo) = rows.try_next().await? {
        writer.serialize(todo)?;
    }
    Ok(writer.into_inner()?)
}
