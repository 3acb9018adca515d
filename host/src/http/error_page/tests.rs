//! The contents of error responses, and what they hide from clients.

use std::time::Duration;

use futures::FutureExt as _;
use http::Request;
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::*;

const BROWSER: &str = "text/html,application/xhtml+xml,*/*;q=0.8";

fn request(accept: &str) -> Parts {
    let request = Request::builder()
        .uri("/cart?item=tea&access_token=hunter2&p%61ssword=hunter2&p%2561ss=hunter2&pa%73s+word=hunter2")
        .header(header::REFERER, "/cart?p%61ssword=hunter2&item=tea")
        .header(header::ACCEPT, accept)
        .header(header::COOKIE, "session=hunter2")
        .header(header::AUTHORIZATION, "Bearer hunter2")
        .header("x-csrf-token", "hunter2")
        .header("x-plain", "<b>plain</b>");
    request.body(()).expect("a request").into_parts().0
}

fn failure() -> Failure {
    Failure {
        call_path: vec!["async auth::login".into(), "sync shop::cart".into()],
        frames: vec![Frame {
            function: "shop::price".into(),
            file: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs").into()),
            line: Some(2),
            column: Some(5),
        }],
        ..Failure::view("the view panicked at src/lib.rs:2:5: <no price>")
    }
}

fn report() -> Report {
    let statement = |sql: &str, outcome| Statement {
        database: "default".into(),
        sql: sql.into(),
        duration: Duration::from_micros(310),
        outcome,
    };
    Report {
        view: Some("shop::cart".into()),
        statements: vec![
            statement("insert into carts (item) values (?)", Ok(1)),
            statement("select <nonsense>", Err("near \"<\": syntax error".into())),
        ],
        statements_omitted: 3,
        transaction: Some("rolled back".into()),
        values: vec![
            ("user".into(), "ann".into()),
            ("session_key".into(), "hunter2".into()),
        ],
    }
}

fn shown(failure: &Failure, accept: &str, report: Option<&Report>) -> (Response<()>, String) {
    let request = request(accept);
    let failed = Failed {
        failure,
        id: "0199",
        request: &request,
        report,
    };
    let (parts, body) = failed.response().into_parts();
    let body = body
        .collect()
        .now_or_never()
        .expect("it is there")
        .expect("it is whole");
    let text = String::from_utf8(body.to_bytes().to_vec()).expect("it is text");
    (Response::from_parts(parts, ()), text)
}

#[test]
fn in_production_clients_learn_what_to_ask_for_and_no_more() {
    for accept in [BROWSER, "application/json", "*/*"] {
        let (response, text) = shown(&failure(), accept, None);
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        assert_eq!(response.headers()[header::VARY], "accept");
        assert!(text.contains("0199"), "{text}");
        assert!(
            text.contains("The server could not answer this request."),
            "{text}"
        );
        for inner in ["price", "shop", "auth", "carts", "hunter2", "ann", "src"] {
            let style = text.find("</style>").unwrap_or(0);
            assert!(!text[style..].contains(inner), "{inner} in {text}");
        }
    }
}

#[test]
fn each_client_gets_its_form() {
    let content_type = |accept| {
        let (response, _) = shown(&failure(), accept, None);
        response.headers()[header::CONTENT_TYPE].clone()
    };
    assert_eq!(content_type(BROWSER), "text/html; charset=utf-8");
    assert_eq!(content_type("application/json"), "application/problem+json");
    assert_eq!(content_type("*/*"), "text/plain; charset=utf-8");
    let (_, text) = shown(&Failure::client(StatusCode::NOT_FOUND, "No."), "*/*", None);
    assert_eq!(text, "404 Not Found\nNo.\nRequest 0199\n");
    let (_, json) = shown(&failure(), "application/json", None);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        json,
        json!({
            "type": "about:blank", "title": "Internal Server Error", "status": 500,
            "detail": "The server could not answer this request.", "request": "0199",
        })
    );
}

#[test]
fn who_is_to_try_again_is_told_when() {
    let busy = Failure::limit(StatusCode::SERVICE_UNAVAILABLE, "all are in use");
    let (response, _) = shown(&busy, BROWSER, None);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
}

#[test]
fn r17_in_development_everything_is_there() {
    let (_, page) = shown(&failure(), BROWSER, Some(&report()));
    for part in [
        "The view failed",
        "&lt;no price&gt;",
        "shop::price",
        "src/lib.rs:2:5",
        "The library exists for the binary",
        "async auth::login",
        "sync shop::cart",
        "insert into carts",
        "1 row in 310.0µs",
        "syntax error",
        "and 3 more",
        "rolled back",
        "item=tea",
        "&lt;b&gt;plain&lt;/b&gt;",
        "ann",
        "0199",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let (_, text) = shown(&failure(), "*/*", Some(&report()));
    assert!(
        text.contains("call path: async auth::login → sync shop::cart"),
        "{text}"
    );
    let (_, json) = shown(&failure(), "application/json", Some(&report()));
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["development"]["frames"][0]["line"], 2);
    assert_eq!(
        json["development"]["statements"][1]["error"],
        "near \"<\": syntax error"
    );
}

#[test]
fn r17_secrets_are_hidden_and_nothing_runs() {
    for accept in [BROWSER, "application/json", "*/*"] {
        let (response, page) = shown(&failure(), accept, Some(&report()));
        assert!(!page.contains("hunter2"), "{page}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str();
        assert!(
            policy
                .expect("it is text")
                .starts_with("default-src 'none'")
        );
        if accept == BROWSER {
            for unescaped in [
                "<b>plain",
                "<nonsense>",
                "<no price>",
                "<script",
                "http://",
                "https://",
            ] {
                assert!(!page.contains(unescaped), "{unescaped} in {page}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn r17_no_text_becomes_markup(text in "[<>&\"'a/=]{1,20}") {
        let mut failure = failure();
        let evil = format!("<x{text}");
        failure.detail.clone_from(&evil);
        failure.frames[0].function.clone_from(&evil);
        failure.call_path[0].clone_from(&evil);
        let mut report = report();
        report.statements[0].sql.clone_from(&evil);
        report.values[0] = (evil.clone(), evil.clone());
        report.transaction = Some(evil.clone());
        report.view = Some(evil);
        let (_, page) = shown(&failure, BROWSER, Some(&report));
        prop_assert!(!page.contains("<x"));
    }
}
