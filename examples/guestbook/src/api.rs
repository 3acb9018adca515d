//! The guestbook as JSON.

use crate::entries::{self, Entry, NewEntry, Problems};
use amphi_sdk::prelude::*;

const LIMIT_DEFAULT: u32 = 20;
const LIMIT_MAX: u32 = 100;

#[derive(Deserialize)]
pub struct Range {
    limit: Option<u32>,
    offset: Option<u32>,
}

#[derive(Serialize)]
struct Entries {
    count: u32,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Refusal {
    problems: Problems,
}

#[view(get, "/api/entries")]
pub fn list(cx: &Context, Query(range): Query<Range>) -> Result<Response> {
    let limit = range.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let entries = entries::newest(cx, limit, range.offset.unwrap_or(0))?;
    Json(Entries {
        count: entries::count(cx)?,
        entries,
    })
    .into_response()
}

#[view(post, "/api/entries", atomic)]
pub fn create(cx: &Context, Json(new): Json<NewEntry>) -> Result<Response> {
    let new = new.tidy();
    if let Err(problems) = new.check() {
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(Refusal { problems })).into_response();
    }
    let entry = entries::insert(cx, &new)?;
    let location = format!("/entries/{}", entry.id);
    (StatusCode::CREATED, Json(entry))
        .with_header("location", location)
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::testing::{App, get, post};
    use serde_json::{Value, json};

    fn app() -> App {
        App::new().migrations("migrations")
    }

    #[test]
    fn entries_are_listed_newest_first() {
        let answer: Value = app().call::<list>(get("/api/entries?limit=1")).json();
        assert_eq!(answer["count"], 2);
        assert_eq!(answer["entries"][0]["id"], 2);
        assert_eq!(answer["entries"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn an_entry_is_created() {
        let app = app();
        let response = app
            .call::<create>(post("/api/entries").json(&json!({ "name": "Eve", "message": "Hi" })));
        assert_eq!(
            (response.status(), response.header("location")),
            (StatusCode::CREATED, Some("/entries/3"))
        );
        assert_eq!(response.json::<Value>()["name"], "Eve");
        assert_eq!(app.query::<i64>("select count(*) from entries", ()), [3]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let app = app();
        let response = app.call::<create>(post("/api/entries").json(&json!({ "name": "Eve" })));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(
            response.json::<Value>(),
            json!({ "problems": { "message": "Please write a message." } })
        );
        let response = app.call::<create>(post("/api/entries").json(&json!({ "name": 1 })));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let response = app.call::<create>(post("/api/entries").with_body("{"));
        assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
}
