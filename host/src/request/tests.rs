//! What goes to a guest and what may come back from one.

use proptest::prelude::*;

use super::*;
use crate::config::{Limits, Server};

fn scope() -> Arc<Scope> {
    let view = View {
        module: "shop".into(),
        name: "list".into(),
        id: 0,
        method: http::Method::GET,
        pattern: "/".into(),
        mode: Mode::Sync,
        atomic: false,
        cpu: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
    };
    let limits = Limits {
        response_max_bytes: 100,
        ..Limits::default()
    };
    Scope::open(
        scope::new_id(),
        ([127, 0, 0, 1], 1).into(),
        Instant::now(),
        Arc::new(view),
        limits,
    )
}

fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> types::Response {
    let headers = headers
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    types::Response {
        status,
        headers,
        body: body.to_vec(),
    }
}

#[track_caller]
fn assert_refused(response: types::Response, sentence: &str) {
    let failure = checked(response, &scope()).expect_err("it cannot be sent");
    assert_eq!(
        (failure.fault, failure.status),
        (Fault::View, StatusCode::INTERNAL_SERVER_ERROR)
    );
    assert!(failure.detail.contains(sentence), "{}", failure.detail);
    assert!(
        !failure.client_text.contains(sentence),
        "the client is not told"
    );
}

#[test]
fn a_response_that_cannot_be_sent_is_the_views_fault() {
    assert_refused(response(99, &[], b""), "status 99");
    assert_refused(response(101, &[], b""), "200 to 599");
    assert_refused(response(600, &[], b""), "status 600");
    assert_refused(response(200, &[("x y", "1")], b""), "\"x y\"");
    assert_refused(response(200, &[("", "1")], b""), "name is not valid");
    assert_refused(
        response(200, &[("x", "1\r\nset-cookie: a=b")], b""),
        "`x` has a value that is not valid",
    );
    assert_refused(
        response(200, &[("Connection", "close")], b""),
        "`connection`, which only the host can set",
    );
    assert_refused(
        response(200, &[("transfer-encoding", "chunked")], b""),
        "only the host",
    );
    assert_refused(response(200, &[], &[0; 101]), "`response_max_bytes` is 100");
}

#[test]
fn the_host_sets_the_length_and_keeps_the_rest() {
    let headers = [
        ("content-length", "7"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-name", "Zoë"),
    ];
    let sent = checked(response(201, &headers, b"four"), &scope()).expect("it can be sent");
    assert_eq!(sent.status(), StatusCode::CREATED);
    assert!(!sent.headers().contains_key(header::CONTENT_LENGTH));
    assert_eq!(sent.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(sent.headers()["x-name"].as_bytes(), "Zoë".as_bytes());
    assert_eq!(sent.body().size_hint().exact(), Some(4));
    let empty = checked(response(204, &[], b"lost"), &scope()).expect("it can be sent");
    assert_eq!(empty.body().size_hint().exact(), Some(0), "204 has no body");
}

#[test]
fn an_error_of_a_view_is_told_to_the_client_only_below_500() {
    let error = |status| types::Error {
        status,
        message: "no such entry".into(),
        detail: Some("id 7".into()),
    };
    let failure = view_error(error(404));
    assert_eq!(
        (failure.status, failure.fault),
        (StatusCode::NOT_FOUND, Fault::Client)
    );
    assert!(
        failure.detail.contains("no such entry: id 7") && failure.client_text == "no such entry"
    );
    let failure = view_error(error(503));
    assert_eq!(
        (failure.status, failure.fault),
        (StatusCode::SERVICE_UNAVAILABLE, Fault::View)
    );
    assert!(
        failure.detail.contains("no such entry: id 7") && !failure.client_text.contains("entry")
    );
    let nonsense = view_error(error(200));
    assert_eq!(nonsense.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[test]
fn header_values_become_text_without_loss() {
    assert_eq!(text("Zoë".as_bytes()), "Zoë");
    assert_eq!(text(b"Zo\xeb"), "Zoë", "ISO-8859-1, where it is not UTF-8");
}

async fn received(body: Vec<u8>, limits: &Server) -> Result<Vec<u8>, StatusCode> {
    match body::receive(Full::<Bytes>::from(body), limits).await {
        Ok(Received::Inline(bytes)) => Ok(bytes),
        Ok(Received::Kept(kept)) => {
            let mut all = Vec::new();
            loop {
                let piece = kept.read(all.len() as u64, 1000).expect("it can be read");
                if piece.is_empty() {
                    assert_eq!(all.len() as u64, kept.length());
                    return Ok(all);
                }
                all.extend(piece);
            }
        }
        Err(failure) => Err(failure.status),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_answers_is_sent_or_refused(
        status: u16,
        headers in prop::collection::vec(("\\PC{0,12}|[a-z-]{1,12}", "\\PC{0,12}|[ -~]{0,12}|.{0,4}"), 0..4),
        body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let answer = types::Response { status, headers: headers.clone(), body: body.clone() };
        if let Ok(sent) = checked(answer, &scope()) {
            prop_assert_eq!(sent.status().as_u16(), status);
            prop_assert!(sent.headers().len() <= headers.len());
        }
    }

    #[test]
    fn a_body_comes_back_as_it_was_wherever_it_was_kept(body in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut limits = Server::default();
        (limits.body_inline_bytes, limits.body_memory_bytes, limits.body_max_bytes) = (500, 1500, 3000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let back = runtime.block_on(received(body.clone(), &limits));
        if body.len() > 3000 {
            prop_assert_eq!(back, Err(StatusCode::PAYLOAD_TOO_LARGE));
        } else {
            prop_assert_eq!(back, Ok(body));
        }
    }
}
