//! A whole list of middleware: its effects on a request, and then on the response.

use std::sync::LazyLock;

use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, header};

use super::request_head::vary;
use super::*;
use crate::budget::{self, Account};
use crate::http::proxies::{Addresses, Proxies};
use http_body_util::{Either, Full};

fn header_auth() -> Builtin {
    let network = Proxies::parse("127.0.0.1").expect("a network");
    Builtin::HeaderAuth(HeaderAuth {
        header: HeaderName::from_static("x-forwarded-user"),
        from: Proxies::new(vec![network], Addresses::default()),
        required: true,
    })
}

fn page() -> Response<ResponseBody> {
    Response::new(Either::Left(Full::default()))
}

fn request(user: Option<&str>) -> Parts {
    let mut request = Request::builder();
    if let Some(user) = user {
        request = request.header("x-forwarded-user", user);
    }
    request.body(()).expect("a request").into_parts().0
}

static ACCOUNT: LazyLock<Arc<Account>> = LazyLock::new(|| budget::process().unpaid());

fn head(request: &Parts) -> RequestHead<'_> {
    RequestHead {
        request,
        id: "7",
        peer: ([127, 0, 0, 1], 1).into(),
        client: [127, 0, 0, 1].into(),
        user: None,
        account: &ACCOUNT,
    }
}

#[tokio::test]
async fn whoever_has_seen_a_request_sees_its_answer() {
    let list = [Builtin::RequestId, header_auth(), Builtin::RequestId].map(Arc::new);
    let known = request(Some("ann"));
    let entry = on_request(&list, head(&known)).await;
    assert!(entry.answer.is_none());
    assert_eq!(entry.seen, 3);
    assert_eq!(entry.values, [("user".to_owned(), "ann".to_owned())]);
    let mut response = page();
    on_response(&list[..entry.seen], head(&known), &mut response);
    assert_eq!(response.headers()[REQUEST_ID], "7");

    let unknown = request(None);
    let entry = on_request(&list, head(&unknown)).await;
    assert_eq!(entry.seen, 2);
    let refused = entry.answer.expect("an answer").expect_err("a refusal");
    assert_eq!(refused.failure.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers[header::CACHE_CONTROL], "no-store");
}

#[tokio::test]
async fn without_middleware_nothing_changes() {
    let request = request(Some("ann"));
    let entry = on_request(&[], head(&request)).await;
    assert!(entry.answer.is_none() && entry.values.is_empty());
    let mut response = page();
    on_response(&[], head(&request), &mut response);
    assert!(response.headers().is_empty());
}

#[test]
fn vary_names_each_header_once() {
    let mut headers = HeaderMap::new();
    vary(&mut headers, &header::ORIGIN);
    vary(&mut headers, &header::ORIGIN);
    vary(&mut headers, &header::ACCEPT);
    let values: Vec<_> = headers.get_all(header::VARY).iter().collect();
    assert_eq!(values, ["origin", "accept"]);
    let mut all = HeaderMap::from_iter([(header::VARY, HeaderValue::from_static("*"))]);
    vary(&mut all, &header::ORIGIN);
    assert_eq!(all.len(), 1);
}
