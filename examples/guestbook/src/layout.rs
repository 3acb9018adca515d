//! The HTML that all pages share.

use amphi_sdk::prelude::*;
use maud::{DOCTYPE, Markup, html};

/// Which part of the site a page belongs to.
#[derive(Clone, Copy, PartialEq)]
pub enum Section {
    Entries,
    Dashboard,
}

/// Renders a whole page. The function waits for nothing, so it takes the context of either mode.
pub fn page<M: Mode>(cx: &Context<M>, section: Section, title: &str, content: Markup) -> Markup {
    let site = cx.config("title").unwrap_or_else(|| "Guestbook".into());
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (site) }
                link rel="stylesheet" href="/static/style.css";
                link rel="icon" href="/static/icon.svg" type="image/svg+xml";
            }
            body {
                header.top {
                    a.brand href="/" { (site) }
                    nav {
                        (tab("/", "Entries", section == Section::Entries))
                        (tab("/dashboard", "Dashboard", section == Section::Dashboard))
                    }
                }
                main { (content) }
                footer {
                    p { "Sync and async views, each request in its own sandbox." }
                    p { "Also as JSON: " a href="/api/entries" { "/api/entries" } }
                }
            }
        }
    }
}

fn tab(href: &str, text: &str, current: bool) -> Markup {
    html! {
        a href=(href) aria-current=[current.then_some("page")] { (text) }
    }
}
