//! Tests of `checked`: which responses of a guest are sent, and which are refused.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::Limits;
use crate::scope::{Origin, Setup};
use crate::view::{Mode, View};

fn scope() -> Arc<Scope> {
    let view = View::unrouted("shop", "list", Mode::Sync, Duration::from_secs(1));
    let limits = Limits {
        response_max_bytes: 100,
        ..Limits::default()
    };
    Scope::open(&Origin::host(), &Arc::new(view), &limits, Setup::now())
}

fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
    Reply {
        status,
        headers: headers.collect(),
        body: ReplyBody::Bytes(body.to_vec()),
        not_sent: None,
        trailers: None,
    }
}

fn sent(reply: Reply) -> CheckedResponse {
    checked(reply, &scope()).map(|(response, _)| response)
}

#[track_caller]
fn assert_refused(response: Reply, sentence: &str) {
    let failure = sent(response).map(|_| ()).expect_err("it cannot be sent");
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
    assert_refused(
        response(200, &[("x", "1"); 257], b""),
        "257 headers; `headers_max` of `[limits]` is 256",
    );
}

#[test]
fn the_host_sets_the_length_and_keeps_the_rest() {
    let headers = [
        ("content-length", "7"),
        ("Set-Cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-name", "Zoë"),
    ];
    let created = sent(response(201, &headers, b"four")).expect("it can be sent");
    assert_eq!(created.status(), StatusCode::CREATED);
    assert!(!created.headers().contains_key(header::CONTENT_LENGTH));
    assert_eq!(created.headers().get_all("set-cookie").iter().count(), 2);
    assert_eq!(created.headers()["x-name"].as_bytes(), "Zoë".as_bytes());
    assert_eq!(created.body().length(), Some(4));
    let empty = sent(response(204, &[], b"lost")).expect("it can be sent");
    assert_eq!(empty.body().length(), Some(0), "204 has no body");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_answers_is_sent_or_refused(
        status: u16,
        headers in prop::collection::vec(("\\PC{0,12}|[a-z-]{1,12}", "\\PC{0,12}|[ -~]{0,12}|.{0,4}"), 0..4),
        body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let texts: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        if let Ok(sent) = sent(response(status, &texts, &body)) {
            prop_assert_eq!(sent.status().as_u16(), status);
            prop_assert!(sent.headers().len() <= headers.len());
        }
    }
}
