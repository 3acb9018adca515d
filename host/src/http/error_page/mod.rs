//! The response for a failure: JSON for programs that ask for it, a page for browsers, plain text for all other
//! clients.
//!
//! In production, the response has only the failure's text for clients and the id of the request, by which the log can
//! be searched. In development ([`Report`] is there), it has everything that is known. The texts on the page come from
//! requests, guests and databases: they are escaped, and no script runs.

mod html;
mod source;

use std::sync::LazyLock;

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::http::accept::{Form, form};
use crate::http::message::ResponseBody;
use crate::telemetry::error::Failure;
use crate::telemetry::report::{Frame, Report, Statement};

/// The facts that the response is made from.
#[derive(Clone, Copy)]
pub struct Failed<'a> {
    /// The failure.
    pub failure: &'a Failure,
    /// The id of the request.
    pub id: &'a str,
    /// The head of the request.
    pub request: &'a Parts,
    /// Further facts, in development only.
    pub report: Option<&'a Report>,
}

impl Failed<'_> {
    /// Builds the response. In development, this reads the guests' source files, which blocks on the disk.
    pub fn response(self) -> Response<ResponseBody> {
        let (content_type, body) = match form(&self.request.headers) {
            Form::Json => ("application/problem+json", self.json().to_string()),
            Form::Html => ("text/html; charset=utf-8", html::page(self).into_string()),
            Form::Text => ("text/plain; charset=utf-8", self.text()),
        };
        let mut response = Response::new(Either::Left(Full::new(body.into())));
        *response.status_mut() = self.failure.status;
        let headers = response.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(header::CONTENT_TYPE, fixed(content_type));
        headers.insert(header::CACHE_CONTROL, fixed("no-store"));
        headers.insert(header::VARY, fixed("accept"));
        headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
        if self.failure.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, fixed("1"));
        }
        response
    }

    fn reason(self) -> &'static str {
        self.failure.status.canonical_reason().unwrap_or("Error")
    }

    fn text(self) -> String {
        let Failure {
            status,
            client_text,
            detail,
            ..
        } = self.failure;
        let reason = self.reason();
        let mut text = format!("{} {reason}\n{client_text}\n", status.as_u16());
        if let Some(report) = self.report {
            let mut line = |line: String| text.extend([&line, "\n"]);
            line(format!("\n{}: {detail}", fault(self.failure)));
            for frame in &self.failure.frames {
                let place = frame.place().unwrap_or_default();
                line(format!("  in {} {place}", frame.function));
            }
            if !self.failure.call_path.is_empty() {
                line(format!(
                    "  call path: {}",
                    self.failure.call_path.join(" → ")
                ));
            }
            for statement in &report.statements {
                let Statement { database, sql, .. } = statement;
                line(format!("  {database}: {sql} -- {}", outcome(statement)));
            }
            if let Some(fate) = &report.transaction {
                line(format!("  the transaction: {fate}"));
            }
            text.push('\n');
        }
        text.extend(["Request ", self.id, "\n"]);
        text
    }

    /// A problem document (RFC 9457). It has the further members `request` and, in development, `development`.
    fn json(self) -> Value {
        let failure = self.failure;
        let mut problem = json!({
            "type": "about:blank",
            "title": self.reason(),
            "status": failure.status.as_u16(),
            "detail": failure.client_text,
            "request": self.id,
        });
        if let Some(report) = self.report {
            let frame = |frame: &Frame| json!({ "function": frame.function, "file": frame.file, "line": frame.line, "column": frame.column });
            let statement = |statement: &Statement| {
                json!({
                    "database": statement.database,
                    "sql": statement.sql,
                    "duration_us": u64::try_from(statement.duration.as_micros()).unwrap_or(u64::MAX),
                    "rows": statement.outcome.as_ref().ok(),
                    "error": statement.outcome.as_ref().err(),
                })
            };
            problem["development"] = json!({
                "fault": failure.fault.as_str(),
                "why": failure.detail,
                "view": report.view,
                "call_path": failure.call_path,
                "frames": failure.frames.iter().map(frame).collect::<Vec<_>>(),
                "statements": report.statements.iter().map(statement).collect::<Vec<_>>(),
                "statements_omitted": report.statements_omitted,
                "transaction": report.transaction,
            });
        }
        problem
    }
}

/// The content security policy of the page. It allows the style in the page, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    )
});

/// Whose fault it was, as the beginning of a sentence.
fn fault(failure: &Failure) -> &'static str {
    use crate::telemetry::error::Fault;
    match failure.fault {
        Fault::Client => "The request is wrong",
        Fault::View => "The view failed",
        Fault::Limit => "A limit was reached",
        Fault::Host => "Amphi, or what it depends on, failed",
    }
}

fn outcome(statement: &Statement) -> String {
    let took = format!("{:.1?}", statement.duration);
    match &statement.outcome {
        Ok(1) => format!("1 row in {took}"),
        Ok(rows) => format!("{rows} rows in {took}"),
        Err(why) => format!("failed after {took}: {why}"),
    }
}

/// Whether a value with this name may be a secret. Such a value is hidden even in development, because developers show
/// the page to others.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "auth",
        "cookie",
        "credential",
        "csrf",
        "jwt",
        "key",
        "otp",
        "pass",
        "pwd",
        "secret",
        "session",
        "signature",
        "token",
    ]
    .iter()
    .any(|part| name.contains(part))
}

const HIDDEN: &str = "(hidden)";

/// The path and query of the request, with the values of secrets hidden.
fn shown_target(request: &Parts) -> String {
    let target = request.uri.path_and_query();
    without_secrets(target.map_or("", |target| target.as_str()))
}

/// A URL, or a text with one (as in `referer`), with the values of secrets in its query hidden.
fn without_secrets(url: &str) -> String {
    let Some((path, query)) = url.split_once('?') else {
        return url.to_owned();
    };
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if is_secret(&decoded(name)) || has_secret(&decoded(value)) => {
            format!("{name}={HIDDEN}")
        }
        _ => pair.to_owned(),
    };
    let pairs: Vec<String> = query.split('&').map(pair).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// Whether a value is itself a URL or a query with a secret in it.
fn has_secret(value: &str) -> bool {
    let names = value
        .split(['?', '&', ';', '#'])
        .filter_map(|pair| pair.split_once('='));
    names.map(|(name, _)| name).any(is_secret)
}

/// Decodes a name up to three times, because views may decode names more than once.
fn decoded(name: &str) -> String {
    let mut name = name.replace('+', " ");
    for _ in 0..3 {
        name = percent_decode_str(&name).decode_utf8_lossy().into_owned();
    }
    name
}

#[cfg(test)]
mod tests;
