//! Questions, their answers and the votes. Views of both modes can call the functions under `#[both]`.

use crate::forms::Draft;
use amphi_sdk::prelude::*;
use time::OffsetDateTime;
use time::macros::format_description;

/// How long a question counts as new.
const NEW: time::Duration = time::Duration::days(1);

#[derive(Clone, Debug, FromRow)]
pub struct Question {
    pub id: i64,
    pub text: String,
    /// Visitors see the question from this moment on.
    pub pub_date: OffsetDateTime,
}

/// An answer that visitors can choose.
#[derive(Clone, Debug, FromRow)]
pub struct Choice {
    pub id: i64,
    pub text: String,
    pub votes: i64,
}

impl Question {
    pub fn is_published(&self, now: OffsetDateTime) -> bool {
        self.pub_date <= now
    }

    /// Whether the question was published within the last day. A question that is not published yet is not new.
    pub fn is_new(&self, now: OffsetDateTime) -> bool {
        self.is_published(now) && now - self.pub_date < NEW
    }

    pub fn published_on(&self) -> String {
        shown(self.pub_date)
    }
}

/// Formats a time for the pages.
pub fn shown(moment: OffsetDateTime) -> String {
    let format = format_description!(
        version = 2,
        "[day padding:none] [month repr:long] [year], [hour]:[minute] UTC"
    );
    moment
        .to_offset(time::UtcOffset::UTC)
        .format(format)
        .expect("every moment has these parts")
}

fn no_question() -> Error {
    Error::not_found("There is no such question.")
}

/// The most recently published questions.
#[both]
pub async fn latest(cx: &Context, now: OffsetDateTime, limit: u32) -> Result<Vec<Question>> {
    cx.db()
        .query(
            "select id, text, pub_date from questions where pub_date <= $1
             order by pub_date desc, id desc limit $2",
            (now, limit),
        )
        .await
}

/// A question that visitors may see.
#[both]
pub async fn published(cx: &Context, id: i64, now: OffsetDateTime) -> Result<Question> {
    cx.db()
        .query_one(
            "select id, text, pub_date from questions where id = $1 and pub_date <= $2",
            (id, now),
        )
        .await?
        .ok_or_else(no_question)
}

/// A question, published or not, for staff.
#[both]
pub async fn find(cx: &Context, id: i64) -> Result<Question> {
    cx.db()
        .query_one(
            "select id, text, pub_date from questions where id = $1",
            (id,),
        )
        .await?
        .ok_or_else(no_question)
}

#[both]
pub async fn choices(cx: &Context, question: i64) -> Result<Vec<Choice>> {
    cx.db()
        .query(
            "select id, text, votes from choices where question_id = $1 order by id",
            (question,),
        )
        .await
}

/// Counts one vote. Returns whether the question has this answer. The database itself adds the vote to the number, so
/// that two simultaneous votes do not overwrite each other.
#[both]
pub async fn vote(cx: &Context, question: i64, choice: i64) -> Result<bool> {
    let changed = cx
        .db()
        .execute(
            "update choices set votes = votes + 1 where id = $1 and question_id = $2",
            (choice, question),
        )
        .await?;
    Ok(changed == 1)
}

#[both]
pub async fn insert(cx: &Context, draft: &Draft) -> Result<i64> {
    let id: i64 = cx
        .db()
        .query_one(
            "insert into questions (text, pub_date) values ($1, $2) returning id",
            (&draft.text, draft.pub_date),
        )
        .await?
        .ok_or_else(|| Error::internal("the database returned no id for the new question"))?;
    write_choices(cx, id, draft).await?;
    Ok(id)
}

/// Changes a question. Answers that stay keep their votes.
#[both]
pub async fn change(cx: &Context, id: i64, draft: &Draft) -> Result<()> {
    let changed = cx
        .db()
        .execute(
            "update questions set text = $2, pub_date = $3 where id = $1",
            (id, &draft.text, draft.pub_date),
        )
        .await?;
    if changed == 0 {
        return Err(no_question());
    }
    write_choices(cx, id, draft).await
}

#[both]
async fn write_choices(cx: &Context, question: i64, draft: &Draft) -> Result<()> {
    for &id in &draft.removed {
        cx.db()
            .execute(
                "delete from choices where id = $1 and question_id = $2",
                (id, question),
            )
            .await?;
    }
    for (id, text) in &draft.kept {
        let changed = cx
            .db()
            .execute(
                "update choices set text = $3 where id = $1 and question_id = $2",
                (*id, question, text),
            )
            .await?;
        if changed == 0 {
            return Err(Error::conflict(
                "Somebody has removed one of the answers meanwhile. Please open the question again.",
            ));
        }
    }
    for text in &draft.added {
        cx.db()
            .execute(
                "insert into choices (question_id, text) values ($1, $2)",
                (question, text),
            )
            .await?;
    }
    Ok(())
}

/// Deletes a question. The database deletes its answers and votes as well (`on delete cascade`).
#[both]
pub async fn delete(cx: &Context, id: i64) -> Result<()> {
    let deleted = cx
        .db()
        .execute("delete from questions where id = $1", (id,))
        .await?;
    match deleted {
        0 => Err(no_question()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_new_for_a_day() {
        let now = OffsetDateTime::now_utc();
        let question = |pub_date| Question {
            id: 1,
            text: "?".into(),
            pub_date,
        };
        let second = time::Duration::SECOND;
        for (pub_date, published, new) in [
            (now - NEW, true, false),
            (now - NEW + second, true, true),
            (now, true, true),
            (now + second, false, false),
            (now + time::Duration::days(30), false, false),
        ] {
            let question = question(pub_date);
            assert_eq!(question.is_published(now), published, "{pub_date}");
            assert_eq!(question.is_new(now), new, "{pub_date}");
        }
    }
}
