//! The entries of the guestbook: their types, the checks of a new entry, and the database statements. Functions under
//! `#[both]` are written once, and views of both modes call them.

use amphi_sdk::prelude::*;

const NAME_MAX: usize = 60;
const MESSAGE_MAX: usize = 1000;

/// An entry, as the database stores it.
#[derive(Debug, FromRow, Serialize)]
pub struct Entry {
    pub id: i64,
    pub name: String,
    pub message: String,
    /// The time in UTC, e.g. `2031-05-04T16:20:00Z`.
    pub signed_at: String,
}

/// What a visitor sends. A missing field is read as an empty text, which `check` refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NewEntry {
    pub name: String,
    pub message: String,
}

/// What is wrong with a `NewEntry`, for each field.
#[derive(Debug, Default, Serialize)]
pub struct Problems {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl NewEntry {
    /// Removes surrounding white space, and turns each `\r\n` into `\n`.
    pub fn tidy(self) -> Self {
        Self {
            name: self.name.trim().to_owned(),
            message: self.message.trim().replace("\r\n", "\n"),
        }
    }

    /// Checks both fields. The error has a message for each field that is not acceptable.
    pub fn check(&self) -> Result<(), Problems> {
        let problems = Problems {
            name: problem(&self.name, NAME_MAX, "Please tell us your name."),
            message: problem(&self.message, MESSAGE_MAX, "Please write a message."),
        };
        match problems {
            Problems {
                name: None,
                message: None,
            } => Ok(()),
            problems => Err(problems),
        }
    }
}

fn problem(text: &str, max: usize, when_empty: &str) -> Option<String> {
    match text.chars().count() {
        0 => Some(when_empty.to_owned()),
        length if length > max => Some(format!(
            "At most {max} characters, please: these are {length}."
        )),
        _ if text.chars().any(|c| c.is_control() && c != '\n') => {
            Some("Please leave out the control characters.".to_owned())
        }
        _ => None,
    }
}

/// How many entries there are.
#[both]
pub async fn count(cx: &Context) -> Result<u32> {
    Ok(cx
        .db()
        .query_one("select count(*) from entries", ())
        .await?
        .unwrap_or(0))
}

/// The newest entries, at most `limit`, without the first `offset` of them.
#[both]
pub async fn newest(cx: &Context, limit: u32, offset: u32) -> Result<Vec<Entry>> {
    cx.db()
        .query(
            "select id, name, message, signed_at from entries order by id desc limit $1 offset $2",
            (limit, offset),
        )
        .await
}

/// The entry with this id, if there is one.
#[both]
pub async fn find(cx: &Context, id: i64) -> Result<Option<Entry>> {
    cx.db()
        .query_one(
            "select id, name, message, signed_at from entries where id = $1",
            (id,),
        )
        .await
}

/// Stores an entry that has been checked.
#[both]
pub async fn insert(cx: &Context, new: &NewEntry) -> Result<Entry> {
    cx.db()
        .query_one(
            "insert into entries (name, message) values ($1, $2) returning id, name, message, signed_at",
            (&new.name, &new.message),
        )
        .await?
        .ok_or_else(|| Error::internal("the database returned no row for the new entry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, message: &str) -> (bool, bool) {
        let new = NewEntry {
            name: name.into(),
            message: message.into(),
        };
        match new.tidy().check() {
            Ok(()) => (false, false),
            Err(problems) => (problems.name.is_some(), problems.message.is_some()),
        }
    }

    #[test]
    fn entries_are_checked() {
        assert_eq!(problems("Ann", "Hello\r\nthere"), (false, false));
        assert_eq!(problems("", " \n "), (true, true));
        assert_eq!(problems(&"é".repeat(60), &"x".repeat(1000)), (false, false));
        assert_eq!(problems(&"é".repeat(61), &"x".repeat(1001)), (true, true));
        assert_eq!(problems("A\0", "x"), (true, false));
    }
}
