//! The views of this app. A `fn` is a sync view and an `async fn` an async one; to turn one into the
//! other, add or remove `async` and `.await`.

use amphi_sdk::prelude::*;
use maud::{DOCTYPE, Markup, html};

#[derive(FromRow)]
struct Note {
    text: String,
}

#[derive(Deserialize)]
struct NewNote {
    text: String,
}

/// Shows the notes. A sync view calls the database and gets the result.
///
/// The session is kept in a signed cookie. The form has a token that other sites do not know.
#[view(get, "/")]
fn home(cx: &Context, session: Session, csrf: Csrf) -> Result<Markup> {
    let notes: Vec<Note> = cx
        .db()
        .query("select text from notes order by id desc limit 50", ())?;
    let content = html! {
        @if let Some(count) = session.get::<u32>("added") {
            p { "You have added " (count) @if count == 1 { " note." } @else { " notes." } }
        }
        form action="/notes" method="post" {
            (csrf.field())
            input name="text" aria-label="A note" required;
            button { "Add" }
        }
        p { (count(cx)?) " notes, of which these are the latest:" }
        ul {
            @for note in &notes { li { (note.text) } }
        }
        p { a href="/wait" { "See an async view wait" } }
    };
    Ok(page(cx, content))
}

/// Adds a note, in a transaction. `Protected` refuses a form without the token.
#[view(post, "/notes", atomic)]
fn add(
    cx: &Context,
    session: Session,
    Protected(Form(new)): Protected<Form<NewNote>>,
) -> Result<Redirect> {
    let text = new.text.trim();
    if text.is_empty() {
        return Err(Error::unprocessable("a note needs some text"));
    }
    cx.db()
        .execute("insert into notes (text) values ($1)", (text,))?;
    session.set("added", &(session.get("added").unwrap_or(0) + 1))?;
    log::info!("noted");
    Ok(Redirect::see_other("/"))
}

/// Waits for several things at the same time. Other requests go on meanwhile.
#[view(get, "/wait")]
async fn wait(cx: &Context) -> Result<Markup> {
    let ((), (), count) = join!(
        cx.sleep(Duration::from_millis(100)),
        cx.sleep(Duration::from_millis(100)),
        count(cx),
    );
    let count = count?;
    let content = html! {
        p { "Slept twice for 100 ms at once, and meanwhile counted the notes: " (count) "." }
        p { a href="/" { "Back" } }
    };
    Ok(page(cx, content))
}

/// Counts the notes, for views of both modes: a sync view calls this function as it is, an async view awaits it.
#[both]
async fn count(cx: &Context) -> Result<i64> {
    let count = cx.db().query_one("select count(*) from notes", ()).await?;
    Ok(count.unwrap_or(0))
}

/// Makes the page around `content`. This function never waits, so it takes the context of either mode.
fn page<M: Mode>(cx: &Context<M>, content: Markup) -> Markup {
    let title = cx.config("title").unwrap_or_default();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/static/style.css";
            }
            body {
                h1 { (title) }
                (content)
            }
        }
    }
}

views![home, add, wait];

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::testing::{App, get, post};

    fn app() -> App {
        App::new()
            .migrations("migrations")
            .setting("title", "Notes")
    }

    #[test]
    fn a_note_is_added_and_shown() {
        let app = app();
        let response = app.call::<add>(post("/notes").csrf().form(&[("text", "<b>Tea</b>")]));
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        assert_eq!(response.session::<u32>("added"), Some(1));
        assert!(
            app.call::<home>(get("/"))
                .text()
                .contains("&lt;b&gt;Tea&lt;/b&gt;")
        );
    }

    #[test]
    fn an_empty_note_is_refused() {
        let response = app().call::<add>(post("/notes").csrf().form(&[("text", " ")]));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }

    #[test]
    fn other_sites_add_nothing() {
        let response = app().call::<add>(post("/notes").form(&[("text", "Tea")]));
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn waiting_counts_the_notes() {
        assert!(
            app()
                .call::<wait>(get("/wait"))
                .text()
                .contains("the notes: 1.")
        );
    }
}
