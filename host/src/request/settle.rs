//! The end of a chain: its response is checked, the transaction ends, and the effects that the transaction held are
//! released (R9, R10).

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::dispatch::LinkResult;
use crate::contract::types;
use crate::database::Face;
use crate::guest::stop::Stop;
use crate::http::message::{HOP_BY_HOP, HeadSize, header_bytes};
use crate::scope::Scope;
use crate::scope::transaction::{Fate, not_kept};
use crate::telemetry::error::{Failure, Fault, shown};
use crate::threads::deadline::Ended;

/// What the client gets.
pub type CheckedResponse = Result<Response<Bytes>, Failure>;

/// Checks the response, then commits or rolls back the transaction. When the commit fails, so does the request: a
/// client never sees a success whose changes were not kept (R9).
pub(super) async fn settle(
    scope: &Scope,
    face: Face,
    outcome: LinkResult,
) -> (CheckedResponse, Fate) {
    let mut response = outcome.and_then(|response| checked(response, scope));
    if let (Ok(_), Some(why)) = (&response, scope.deadline.ended()) {
        response = Err((&Stop::from(why)).into());
    }
    if let Err(failure) = &mut response {
        blame_database(failure, scope);
        name_wait(failure, scope);
        // Cancels what the view left running, so that the rollback need not wait for it.
        scope.deadline.cancel(Ended::Failed);
    }
    let success = matches!(&response, Ok(response) if !response.status().is_server_error());
    let fate = match scope
        .transaction
        .finish(face, success && !scope.transaction.has_failed())
        .await
    {
        Ok(fate) => fate,
        Err(error) => {
            if success {
                response = Err(not_kept(&error));
            }
            Fate::RolledBack
        }
    };
    (response, fate)
}

/// Makes a failure of the view a failure of the host (503) if a database could not be reached: that is taken for the
/// reason.
fn blame_database(failure: &mut Failure, scope: &Scope) {
    if failure.fault == Fault::View && scope.transaction.unavailable() {
        *failure = Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            call_path: std::mem::take(&mut failure.call_path),
            ..Failure::host(format!(
                "a database could not be reached: {}",
                failure.detail
            ))
        };
    }
}

/// Adds to the failure of a time-out what functions of the request waited for when the time was over.
fn name_wait(failure: &mut Failure, scope: &Scope) {
    if failure.status == StatusCode::GATEWAY_TIMEOUT
        && scope.deadline.ended() == Some(Ended::TimedOut)
        && let Some(wanted) = scope.deadline.wanted()
    {
        failure.detail = format!("{}, and {wanted}", failure.detail);
    }
}

/// The response that the view made, if it can be sent.
///
/// # Errors
/// When its body is too large, or its status or a header is not valid.
pub fn checked(response: types::Response, scope: &Scope) -> CheckedResponse {
    let max = scope.limits.response_max_bytes;
    if response.body.len() as u64 > max {
        return Err(Failure::view(format!(
            "the response has {} bytes; `response_max_bytes` is {max}",
            response.body.len()
        )));
    }
    let head = HeadSize {
        headers: response.headers.len(),
        bytes: header_bytes(&response.headers),
    };
    let checked = head.check("response", scope.limits.head_max());
    checked.map_err(Failure::view)?;
    let status = StatusCode::from_u16(response.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| {
        Failure::view(format!(
            "the response has the status {}: a view answers with 200 to 599",
            response.status
        ))
    })?;
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = if bodiless { Vec::new() } else { response.body };
    // The memory for the body is drawn before the transaction is committed: when there is none, the request fails, and
    // the transaction must roll back (R9).
    let body = scope.origin.account.keep(body)?;
    let mut checked = Response::new(body);
    *checked.status_mut() = status;
    for (name, value) in response.headers {
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response has a header whose name is not valid: {:?}",
                shown(&name)
            ))
        })?;
        if HOP_BY_HOP.contains(&key) {
            return Err(Failure::view(format!(
                "the response has the header `{key}`, which only the host can set"
            )));
        }
        // The host sets the length itself, because a wrong length would break the connection for the next response.
        if key == header::CONTENT_LENGTH {
            continue;
        }
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
            Failure::view(format!(
                "the response header `{key}` has a value that is not valid: {:?}",
                shown(&value)
            ))
        })?;
        if checked.headers_mut().try_append(key, value).is_err() {
            return Err(Failure::view(
                "the response has more headers than can be kept",
            ));
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests;
