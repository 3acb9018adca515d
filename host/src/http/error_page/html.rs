//! The error page: short in production, with everything that is known in development.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Failed, HIDDEN, fault, is_secret, outcome, shown_target, source, without_secrets};
use crate::http::message::text;
use crate::telemetry::report::{Frame, Report};

const STYLE: &str = include_str!("style.css");
/// The most frames whose source is shown.
const SOURCES_MAX: usize = 8;

pub(super) fn page(failed: Failed<'_>) -> Markup {
    let title = format!("{} {}", failed.failure.status.as_u16(), failed.reason());
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @match failed.report {
                    None => main.short { (short(failed)) },
                    Some(report) => main { (long(failed, report)) },
                }
            }
        }
    }
}

fn heading(failed: Failed<'_>) -> Markup {
    html! { h1 { b { (failed.failure.status.as_u16()) } " " (failed.reason()) } }
}

fn short(failed: Failed<'_>) -> Markup {
    html! {
        div {
            (heading(failed))
            p { (failed.failure.client_text) }
            p.soft { "Request " code { (failed.id) } }
        }
    }
}

fn long(failed: Failed<'_>, report: &Report) -> Markup {
    let (failure, request) = (failed.failure, failed.request);
    html! {
        (heading(failed))
        p {
            code { (request.method) " " (shown_target(request)) }
            @if let Some(view) = &report.view { span.soft { " → " } code { (view) } }
        }
        p.why { b { (fault(failure)) ". " } (failure.detail) }
        @if failure.detail != failure.client_text {
            p.soft { "In production, the client is told: " (failure.client_text) }
        }
        @if !failure.frames.is_empty() {
            h2 { "Where " small { "the innermost function first" } }
            @for (index, frame) in failure.frames.iter().enumerate() {
                // A closure is often on the same line as the function around it: the source is shown once.
                @let shown = failure.frames[..index].iter().any(|before| same_line(before, frame));
                (card(frame, index < SOURCES_MAX && !shown))
            }
        }
        @if !failure.call_path.is_empty() {
            h2 { "Call path" }
            ol.call-path { @for part in &failure.call_path { li.code { (part) } } }
        }
        (statements(report))
        h2 { "Request" }
        dl.card.code {
            @for (name, value) in &request.headers {
                dt { (name) }
                dd { @if is_secret(name.as_str()) { span.soft { (HIDDEN) } } @else { (without_secrets(&text(value.as_bytes()))) } }
            }
        }
        @if !report.values.is_empty() {
            h2 { "Context" }
            dl.card.code {
                @for (name, value) in &report.values {
                    dt { (name) }
                    dd { @if is_secret(name) { span.soft { (HIDDEN) } } @else { (value) } }
                }
            }
        }
        footer {
            "Request " code { (failed.id) } ". This page is for development: `amphi serve` shows a short one."
        }
    }
}

fn same_line(a: &Frame, b: &Frame) -> bool {
    (&a.file, a.line) == (&b.file, b.line)
}

fn card(frame: &Frame, with_source: bool) -> Markup {
    let lines = match with_source {
        true => source::around(frame),
        false => Vec::new(),
    };
    html! {
        div.card {
            div.code {
                (frame.function)
                @if let Some(place) = frame.place() { span.place { (place) } }
            }
            @if !lines.is_empty() {
                pre.source tabindex="0" {
                    @for line in &lines {
                        span.here[line.here] { i { (line.number) } (line.text) }
                    }
                }
            }
        }
    }
}

fn statements(report: &Report) -> Markup {
    let none = report.statements.is_empty() && report.transaction.is_none();
    html! {
        @if !none {
            h2 {
                "Database "
                @if let Some(fate) = &report.transaction { small { "transaction: " (fate) } }
            }
            @for statement in &report.statements {
                div.card {
                    div {
                        div.code.sql { (statement.sql) }
                        span.soft { (statement.database) ": " }
                        span class=(if statement.outcome.is_ok() { "good" } else { "bad" }) { (outcome(statement)) }
                    }
                }
            }
            @if report.statements_omitted > 0 {
                p.soft { "and " (report.statements_omitted) " more" }
            }
        }
    }
}
