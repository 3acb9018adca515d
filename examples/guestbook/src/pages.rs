//! The pages of the guestbook: sync views over the database.

use crate::entries::{self, Entry, NewEntry, Problems};
use crate::layout::{Section, page};
use amphi_sdk::prelude::*;
use maud::{Markup, html};

const PER_PAGE: u32 = 8;

#[derive(Deserialize)]
pub struct Paging {
    page: Option<u32>,
}

#[view(get, "/")]
pub fn list(
    cx: &Context,
    Query(paging): Query<Paging>,
    session: Session,
    csrf: Csrf,
) -> Result<Markup> {
    // The form is filled in with the name that this browser last signed with.
    let new = NewEntry {
        name: session.get("name").unwrap_or_default(),
        ..NewEntry::default()
    };
    let number = paging.page.unwrap_or(1);
    entries_page(cx, number, &csrf, &new, &Problems::default())
}

#[view(get, "/entries/{id}")]
pub fn detail(cx: &Context, Path(id): Path<i64>) -> Result<Response> {
    let Some(entry) = entries::find(cx, id)? else {
        let content = html! {
            h1 { "No such entry" }
            p { "There is no entry " (id) ". " a href="/" { "All entries" } }
        };
        return (
            StatusCode::NOT_FOUND,
            page(cx, Section::Entries, "No such entry", content),
        )
            .into_response();
    };
    let content = html! {
        p.back { a href="/" { "← All entries" } }
        h1 { "Entry " (entry.id) }
        (card(&entry))
    };
    page(
        cx,
        Section::Entries,
        &format!("{} wrote", entry.name),
        content,
    )
    .into_response()
}

/// Runs in a transaction, which commits before the response goes out. `Protected` refuses forms that other sites have
/// sent.
#[view(post, "/entries", atomic)]
pub fn sign(
    cx: &Context,
    session: Session,
    csrf: Csrf,
    Protected(Form(new)): Protected<Form<NewEntry>>,
) -> Result<Response> {
    let new = new.tidy();
    if let Err(problems) = new.check() {
        return (
            StatusCode::UNPROCESSABLE_ENTITY,
            entries_page(cx, 1, &csrf, &new, &problems),
        )
            .into_response();
    }
    let entry = entries::insert(cx, &new)?;
    session.set("name", &entry.name)?;
    log::info!("signed", entry = entry.id);
    Redirect::see_other(format!("/#entry-{}", entry.id)).into_response()
}

fn entries_page(
    cx: &sync::Context,
    number: u32,
    csrf: &Csrf,
    new: &NewEntry,
    problems: &Problems,
) -> Result<Markup> {
    let count = entries::count(cx)?;
    let last = count.div_ceil(PER_PAGE).max(1);
    let number = number.clamp(1, last);
    let entries = entries::newest(cx, PER_PAGE, (number - 1) * PER_PAGE)?;
    let content = html! {
        h1 { "Leave a word" }
        (form(csrf, new, problems))
        h2 { (count) @if count == 1 { " entry" } @else { " entries" } }
        @for entry in &entries { (card(entry)) }
        @if entries.is_empty() { p.empty { "Nobody has signed yet. Be the first." } }
        @if last > 1 { (pager(number, last)) }
    };
    Ok(page(cx, Section::Entries, "Entries", content))
}

fn form(csrf: &Csrf, new: &NewEntry, problems: &Problems) -> Markup {
    html! {
        form.sign action="/entries" method="post" {
            (csrf.field())
            (field("name", "Your name", problems.name.as_deref(), html! {
                input #name name="name" value=(new.name) autocomplete="name"
                    aria-invalid=[problems.name.as_ref().map(|_| "true")]
                    aria-describedby=[problems.name.as_ref().map(|_| "name-problem")];
            }))
            (field("message", "Your message", problems.message.as_deref(), html! {
                textarea #message name="message" rows="4"
                    aria-invalid=[problems.message.as_ref().map(|_| "true")]
                    aria-describedby=[problems.message.as_ref().map(|_| "message-problem")] { (new.message) }
            }))
            button { "Sign" }
        }
    }
}

fn field(name: &str, label: &str, problem: Option<&str>, input: Markup) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            (input)
            @if let Some(problem) = problem {
                p.problem id={ (name) "-problem" } { (problem) }
            }
        }
    }
}

fn card(entry: &Entry) -> Markup {
    let initial: String = entry
        .name
        .chars()
        .take(1)
        .flat_map(char::to_uppercase)
        .collect();
    let hue = entry
        .name
        .bytes()
        .fold(0, |hue: u32, byte| (hue * 31 + u32::from(byte)) % 360);
    // `2031-05-04T16:20:00Z` is shown as `2031-05-04 16:20`: with a space, and the first 16 characters only.
    let signed_at = entry.signed_at.replace('T', " ");
    html! {
        article.card #{ "entry-" (entry.id) } {
            span.initial style={ "--hue: " (hue) } aria-hidden="true" { (initial) }
            div {
                header {
                    strong { (entry.name) }
                    a href={ "/entries/" (entry.id) } {
                        time datetime=(entry.signed_at) { (signed_at.get(..16).unwrap_or(&signed_at)) }
                    }
                }
                p.message { (entry.message) }
            }
        }
    }
}

fn pager(number: u32, last: u32) -> Markup {
    html! {
        nav.pager aria-label="Pages" {
            @if number > 1 { a rel="prev" href={ "/?page=" (number - 1) } { "← Newer" } } @else { span {} }
            span { "Page " (number) " of " (last) }
            @if number < last { a rel="next" href={ "/?page=" (number + 1) } { "Older →" } } @else { span {} }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_sdk::testing::{App, get, post};

    fn app() -> App {
        App::new()
            .migrations("migrations")
            .setting("title", "Test book")
    }

    #[test]
    fn the_list_escapes_what_guests_write() {
        let response = app().call::<list>(get("/"));
        assert_eq!(response.status(), StatusCode::OK);
        let page = response.text();
        assert!(page.contains("Test book"), "{page}");
        assert!(page.contains("&lt;b&gt;Bold&lt;/b&gt;"), "{page}");
        assert!(!page.contains("<b>Bold"), "{page}");
    }

    #[test]
    fn the_list_has_pages() {
        let app = app();
        for number in 1..=20 {
            let response = app.call::<sign>(
                post("/entries")
                    .csrf()
                    .form(&[("name", "Ann"), ("message", &format!("no. {number}"))]),
            );
            assert_eq!(response.status(), StatusCode::SEE_OTHER);
        }
        let first = app.call::<list>(get("/"));
        assert!(
            first.text().contains("no. 20") && !first.text().contains("no. 12<"),
            "{}",
            first.text()
        );
        assert!(first.text().contains("Page 1 of 3") && first.text().contains("/?page=2"));
        let last = app.call::<list>(get("/?page=3"));
        assert!(last.text().contains("Boris &amp; Zoë"), "{}", last.text());
        assert!(
            app.call::<list>(get("/?page=99"))
                .text()
                .contains("Page 3 of 3")
        );
        assert_eq!(
            app.call::<list>(get("/?page=x")).status(),
            StatusCode::BAD_REQUEST
        );
    }

    #[test]
    fn an_entry_has_its_page() {
        assert!(
            app()
                .call::<detail>(get("/entries/1"))
                .text()
                .contains("Ada")
        );
        assert_eq!(
            app().call::<detail>(get("/entries/99")).status(),
            StatusCode::NOT_FOUND
        );
        assert_eq!(
            app().call::<detail>(get("/entries/x")).status(),
            StatusCode::BAD_REQUEST
        );
    }

    #[test]
    fn signing_stores_an_entry_and_leads_to_it() {
        let app = app();
        let response = app.call::<sign>(
            post("/entries")
                .csrf()
                .form(&[("name", " Eve "), ("message", "Hi")]),
        );
        assert_eq!(response.header("location"), Some("/#entry-3"));
        assert_eq!(response.session::<String>("name").as_deref(), Some("Eve"));
        assert_eq!(
            app.query::<(String, String)>("select name, message from entries where id = 3", ()),
            [("Eve".to_owned(), "Hi".to_owned())]
        );
    }

    #[test]
    fn the_name_is_known_the_next_time() {
        let page = app().call::<list>(get("/").session("name", "Zoë"));
        assert!(page.text().contains(r#"value="Zoë""#), "{}", page.text());
    }

    #[test]
    fn other_sites_cannot_sign() {
        let app = app();
        let request = post("/entries").form(&[("name", "Eve"), ("message", "Hi")]);
        let response = app.call::<sign>(request);
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(app.query::<i64>("select count(*) from entries", ()), [2]);
    }

    #[test]
    fn a_refused_form_keeps_what_was_written() {
        let app = app();
        let response = app.call::<sign>(
            post("/entries")
                .csrf()
                .form(&[("name", ""), ("message", "<i>Hi")]),
        );
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(response.text().contains("Please tell us your name."));
        assert!(
            response.text().contains("&lt;i&gt;Hi</textarea>"),
            "{}",
            response.text()
        );
        assert_eq!(app.query::<i64>("select count(*) from entries", ()), [2]);
    }
}
