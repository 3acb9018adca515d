//! The log of changes to the to-dos. A subscriber writes to the log after each commit.

use crate::layout::page;
use crate::store::Change;
use crate::users::{User, signed_in};
use amphi_sdk::prelude::*;
use maud::{Markup, html};
use time::OffsetDateTime;

#[subscriber("todos.*")]
pub fn record(cx: &Context, event: Event) -> Result<()> {
    let change: Change = event.json()?;
    cx.db().execute(
        "insert into audit (at, user_id, action, todo_id, title) values ($1, $2, $3, $4, $5)",
        (
            OffsetDateTime::now_utc(),
            change.user_id,
            event.topic,
            change.todo_id,
            change.title,
        ),
    )?;
    Ok(())
}

#[derive(FromRow)]
struct Line {
    at: OffsetDateTime,
    action: String,
    todo_id: i64,
    title: String,
}

#[view(get, "/audit", middleware = [signed_in])]
pub async fn show(cx: &Context, user: User, csrf: Csrf) -> Result<Markup> {
    let lines: Vec<Line> = cx
        .db()
        .query(
            "select at, action, todo_id, title from audit where user_id = $1 order by id desc limit 100",
            (user.id,),
        )
        .await?;
    Ok(page(
        cx,
        Some((&user, &csrf)),
        "Log",
        html! {
            h1 { "Log" }
            ul { @for line in &lines { li { (line.at) " " (line.action) " " (line.todo_id) ": " (line.title) } } }
        },
    ))
}
