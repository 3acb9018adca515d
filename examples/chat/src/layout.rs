//! The HTML that all pages share.

use maud::{DOCTYPE, Markup, html};

use crate::messages::Line;

/// Renders a whole page. `script` is a file of `static`, for a page with messages.
pub fn page(title: &str, script: Option<&str>, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/static/style.css";
                link rel="icon" href="/static/icon.svg" type="image/svg+xml";
                @if let Some(script) = script {
                    script src="/static/lines.js" defer {}
                    script src={ "/static/" (script) } defer {}
                }
            }
            body { (content) }
        }
    }
}

/// The messages of a room. The scripts add further ones.
pub fn lines(lines: &[Line]) -> Markup {
    html! {
        ol #lines aria-live="polite" {
            @for line in lines {
                li data-id=(line.id) {
                    b { (line.name) }
                    time datetime=(line.written_at) { (line.written_at.get(11..16).unwrap_or_default()) }
                    p { (line.text) }
                }
            }
        }
    }
}
