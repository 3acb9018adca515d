//! The HTML that all pages share.

use crate::users::User;
use amphi_sdk::prelude::*;
use maud::{DOCTYPE, Markup, html};

pub fn page<M: Mode>(
    cx: &Context<M>,
    user: Option<(&User, &Csrf)>,
    title: &str,
    content: Markup,
) -> Markup {
    let site = cx.config("title").unwrap_or_default();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (site) }
                link rel="stylesheet" href="/static/style.css";
                link rel="icon" href="data:,";
            }
            body {
                header {
                    a.brand href="/" { (site) }
                    @if let Some((user, csrf)) = user {
                        nav {
                            a href="/audit" { "Log" }
                            a href="/export.csv" { "CSV" }
                            a href="/account" { (user.email) }
                            form.inline action="/logout" method="post" { (csrf.field()) button { "Log out" } }
                        }
                    }
                }
                main { (content) }
            }
        }
    }
}

pub fn field(id: &str, label: &str, input: Markup) -> Markup {
    html! { div.field { label for=(id) { (label) } (input) } }
}
