//! What browsers open.

use amphi_sdk::prelude::*;
use maud::{Markup, html};

use crate::layout::{lines, page};
use crate::messages::{self, NAME_MAX, group};

/// The most messages of a page.
const LINES_MAX: u32 = 50;

#[derive(Deserialize)]
pub struct Entering {
    name: String,
    room: String,
}

/// Which socket view handles the page's connection.
#[derive(Deserialize)]
pub struct Choice {
    mode: Option<String>,
}

#[view(get, "/")]
pub fn home(cx: &Context, session: Session, csrf: Csrf) -> Result<Markup> {
    let name: String = session.get("name").unwrap_or_default();
    home_page(cx, &csrf, &name, None)
}

/// Keeps the name in the session, and leads to the room.
#[view(post, "/")]
pub fn enter(
    cx: &Context,
    session: Session,
    csrf: Csrf,
    Protected(Form(entering)): Protected<Form<Entering>>,
) -> Result<Response> {
    let (name, room) = (entering.name.trim(), entering.room.trim().to_lowercase());
    let named = !name.contains('\0') && (1..=NAME_MAX).contains(&name.chars().count());
    if !named || group(&room).is_err() {
        let problem = "A name has up to 30 characters; a room up to 30 letters, digits and -.";
        let content = home_page(cx, &csrf, name, Some(problem))?;
        return (StatusCode::UNPROCESSABLE_ENTITY, content).into_response();
    }
    session.set("name", name)?;
    Redirect::see_other(format!("/rooms/{room}")).into_response()
}

fn home_page(cx: &sync::Context, csrf: &Csrf, name: &str, problem: Option<&str>) -> Result<Markup> {
    let rooms = messages::rooms(cx)?;
    let content = html! {
        main.home {
            h1 { "Chat" }
            form method="post" action="/" {
                (csrf.field())
                label { "Your name" input name="name" value=(name) maxlength=(NAME_MAX) required autocomplete="nickname"; }
                label { "Room" input name="room" value="lobby" maxlength="30" required; }
                @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
                button { "Enter" }
            }
            @if !rooms.is_empty() {
                h2 { "Rooms" }
                ul.rooms {
                    @for (room, count) in &rooms {
                        li {
                            a href={ "/rooms/" (room) } { (room) }
                            span { (count) (if *count == 1 { " message" } else { " messages" }) }
                            a href={ "/rooms/" (room) "/watch" } { "watch" }
                        }
                    }
                }
            }
        }
    };
    Ok(page("Chat", None, content))
}

/// A room, for somebody with a name.
#[view(get, "/rooms/{room}")]
pub fn room(
    cx: &Context,
    session: Session,
    Path(room): Path<String>,
    Query(choice): Query<Choice>,
) -> Result<Response> {
    group(&room)?;
    let Some(name) = session.get::<String>("name") else {
        return Redirect::see_other("/").into_response();
    };
    let (mode, other) = match choice.mode.as_deref() {
        Some("async") => ("async", "sync"),
        _ => ("sync", "async"),
    };
    let newest = messages::newest(cx, &room, LINES_MAX)?;
    let content = html! {
        main.room data-socket={ "/rooms/" (room) "/" (mode) } data-members={ "/rooms/" (room) "/members" } {
            header {
                a href="/" aria-label="All rooms" { "←" }
                h1 { (room) }
                p #members aria-live="polite" {}
            }
            (lines(&newest))
            p #typing aria-live="polite" {}
            form #say {
                input #text aria-label="Message" placeholder={ "Message as " (name) } maxlength="1000" autocomplete="off" autofocus;
                button { "Send" }
            }
            footer {
                span #state { "connecting" }
                " · events go to the " (mode) " view · "
                a href={ "?mode=" (other) } { "use the " (other) " one" }
            }
        }
    };
    page(&room, Some("room.js"), content).into_response()
}

/// The same messages for everybody, by an event stream.
#[view(get, "/rooms/{room}/watch")]
pub fn watch(cx: &Context, Path(room): Path<String>) -> Result<Markup> {
    group(&room)?;
    let newest = messages::newest(cx, &room, LINES_MAX)?;
    let content = html! {
        main.room data-events={ "/rooms/" (room) "/events" } {
            header {
                a href="/" aria-label="All rooms" { "←" }
                h1 { (room) }
                p { "watching" }
            }
            (lines(&newest))
            footer { span #state { "connecting" } " · an event stream, for which no view runs" }
        }
    };
    Ok(page(&room, Some("watch.js"), content))
}

/// Messages as server-sent events. The host sends them; this view only says which.
#[view(get, "/rooms/{room}/events")]
pub fn events(Path(room): Path<String>, LastEventId(last): LastEventId) -> Result<EventStream> {
    Ok(EventStream::of(group(&room)?).after(last))
}

/// The names of those in a room.
#[view(get, "/rooms/{room}/members")]
pub async fn members(cx: &Context, Path(room): Path<String>) -> Result<Json<Vec<String>>> {
    Ok(Json(messages::present(cx, &room).await?))
}
