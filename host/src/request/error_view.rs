//! Error pages that the app makes itself, with the view that `[app] errors` names.
//!
//! The view runs after the client's request has failed, in a scope of its own and without middleware. The client gets
//! an answer in any case: when the view fails, or the host has no room for more work, the client gets the built-in
//! page.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::access_log::Completion;
use super::attempt::Attempt;
use super::settle::CheckedBody;
use crate::app::STATUS;
use crate::contract::types;
use crate::http::accept::{Form, form};
use crate::http::message::{ResponseBody, contract_headers};
use crate::scope::Origin;
use crate::scope::context::Value;
use crate::telemetry::error::{Failure, Fault};

/// The names of the context values that tell the view what happened.
const ERROR_STATUS: &str = "error.status";
const ERROR_MESSAGE: &str = "error.message";
const ERROR_PATH: &str = "error.path";

/// The response to a request that has failed: the app's own page, or the built-in one.
pub(super) async fn respond(
    completion: &mut Completion<'_>,
    failure: Failure,
) -> Response<ResponseBody> {
    match Box::pin(page(completion, &failure)).await {
        Some(page) => {
            completion.note(failure);
            page
        }
        None => completion.failed(failure),
    }
}

/// The app's own page for this failure. None: the built-in page is to be sent.
async fn page(completion: &Completion<'_>, failure: &Failure) -> Option<Response<ResponseBody>> {
    let Completion {
        host, app, parts, ..
    } = *completion;
    let chain = app.errors.as_ref()?;
    // The built-in page is better in three cases: in development it says why the request failed; programs that ask for
    // JSON can read its problem document; and a host that had no room for the request (503) has none for another one.
    let is_told_better = (host.development && failure.fault != Fault::Client)
        || failure.status == StatusCode::SERVICE_UNAVAILABLE
        || form(&parts.headers) == Form::Json;
    if is_told_better {
        return None;
    }
    let status = failure.status.as_u16().to_string();
    let mut origin = Origin::clone(&completion.origin);
    let values = Arc::make_mut(&mut origin.values);
    for (name, text) in [
        (ERROR_STATUS, &*status),
        (ERROR_MESSAGE, &*failure.client_text),
        (ERROR_PATH, parts.uri.path()),
    ] {
        values.insert(name.into(), Value::reserved(text));
    }
    let view = &chain.view().view;
    let headers = match failure.status {
        // The request was refused because of its headers, so the view does not get them either.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Vec::new(),
        _ => {
            let asked = app.config.proxies.asked(completion.peer, &parts.headers);
            let mut headers = contract_headers(parts, &asked);
            // The request for the page has no body, and asks for the whole page without a condition (`if-…`, `range`).
            headers.retain(|(name, _)| !is_about_body(name));
            headers
        }
    };
    let pattern = view.pattern();
    let parameter = format!("{{{STATUS}}}");
    let params = match pattern.contains(&parameter) {
        true => vec![(STATUS.to_owned(), status.clone())],
        false => Vec::new(),
    };
    let request = types::Request {
        method: view.method().to_owned(),
        path: pattern.replace(&parameter, &status),
        query: String::new(),
        headers,
        params: Vec::new(),
        body: types::Body::Bytes(Vec::new()),
    };
    let ready = Attempt {
        host,
        app,
        origin: &Arc::new(origin),
        chain,
        params: params.into(),
        body: None,
        binary: None,
        streams: false,
    };
    let why = match ready.run(request).await.response {
        // A 5xx of the view means that the view failed, unless it is the status of the failure, which the page gets in
        // any case.
        Ok(response)
            if !response.status().is_server_error() || response.status() == failure.status =>
        {
            return Some(with_status(response, failure.status));
        }
        Ok(response) => format!(
            "it answered {}: let it answer without a status, the failure's is set",
            response.status()
        ),
        Err(failure) => failure.detail,
    };
    let request = &completion.origin.id;
    tracing::warn!(%view, request, "the view for errors failed, the client gets the built-in page: {why}");
    None
}

/// The response to the failed request: the page of the view, with the status of the failure.
fn with_status(response: Response<CheckedBody>, status: StatusCode) -> Response<ResponseBody> {
    let mut response = response.map(ResponseBody::from);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for name in [header::ETAG, header::LAST_MODIFIED] {
        headers.remove(name);
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    // Programs that ask for JSON get another response.
    headers.append(header::VARY, header::ACCEPT.into());
    response
}

fn is_about_body(name: &str) -> bool {
    name.starts_with("content-") || name.starts_with("if-") || name == "range" || name == "expect"
}
