//! Forms: the types of their fields, uploaded files, and forms that are refused.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, Multipart as Files, TestRequest, post};
use std::collections::HashMap;

#[derive(Debug, Deserialize, PartialEq)]
struct Paging {
    page: u32,
    size: Option<u8>,
    ratio: f64,
    #[serde(default)]
    tag: Vec<String>,
    #[serde(default)]
    number: Vec<u8>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Search {
    text: String,
    exact: bool,
    #[serde(flatten)]
    paging: Paging,
    /// Values that look like numbers stay texts here.
    #[serde(flatten)]
    rest: HashMap<String, String>,
}

#[view(post, "/search")]
fn search(Form(search): Form<Search>) -> String {
    format!("{search:?}")
}

fn urlencoded(body: &str) -> TestRequest {
    post("/search")
        .header("content-type", "application/x-www-form-urlencoded")
        .with_body(body)
}

fn said(body: &str) -> (u16, String) {
    let response = App::new().call::<search>(urlencoded(body));
    (response.status().as_u16(), response.text().to_owned())
}

#[test]
fn flattened_fields_are_of_all_types() {
    let (status, text) =
        said("text=7&exact=on&page=7&size=&ratio=1.50&tag=7&tag=8&number=9&code=7");
    assert_eq!(
        (status, text.as_str()),
        (
            200,
            "Search { text: \"7\", exact: true, paging: Paging { page: 7, size: None, ratio: 1.5, tag: [\"7\", \"8\"], \
             number: [9] }, rest: {\"code\": \"7\"} }"
        )
    );
}

#[test]
fn of_a_repeated_field_the_last_counts() {
    let (_, text) = said("text=a&text=b&exact=false&exact=true&page=1&page=2&ratio=1");
    assert!(
        text.contains("text: \"b\", exact: true, paging: Paging { page: 2"),
        "{text}"
    );
    let (_, text) = said("text=a&exact=false&page=1&ratio=1");
    assert!(
        text.contains("exact: false"),
        "the box is not ticked: {text}"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    for (body, words) in [
        (
            "text=a&exact=perhaps&page=1&ratio=1",
            &["`exact`", "perhaps", "`true` or `false`"][..],
        ),
        ("text=a&exact=on&page=one&ratio=1", &["`page`", "one"]),
        ("text=a&exact=on&page=1&ratio=1&size=700", &["700"]),
        ("exact=on&page=1&ratio=1", &["`text` is missing"]),
        ("text=a&exact=on&ratio=1", &["`page` is missing"]),
    ] {
        let (status, text) = said(body);
        assert_eq!(status, 422, "{body}: {text}");
        for word in words {
            assert!(text.contains(word), "{body}: {text}");
        }
    }
    let many = "a=1&".repeat(1001);
    let response = App::new().call::<search>(urlencoded(&many));
    assert_eq!(response.status().as_u16(), 413);
    let app = App::new().setting("form_fields_max", "2000");
    assert_eq!(app.call::<search>(urlencoded(&many)).status().as_u16(), 422);
}

#[derive(Deserialize)]
struct NewPhoto {
    title: String,
    stars: u8,
    photo: Upload,
    cover: Option<Upload>,
    #[serde(default)]
    more: Vec<Upload>,
}

#[view(post, "/photos")]
fn add(Protected(Form(new)): Protected<Form<NewPhoto>>) -> String {
    let NewPhoto {
        title,
        stars,
        photo,
        cover,
        more,
    } = new;
    format!(
        "{title} {stars} {photo:?} {} {}",
        cover.is_some(),
        more.len()
    )
}

#[view(post, "/photos/pieces")]
async fn add_in_pieces(cx: &Context, Protected(form): Protected<Multipart>) -> Result<String> {
    let mut said = String::new();
    let mut parts = cx.parts(form);
    while let Some(part) = parts.next().await? {
        if part.name == "skipped" {
            continue;
        }
        let length = parts.bytes(1_000_000).await?.len();
        said += &format!("{}={length} ", part.name);
    }
    Ok(said)
}

fn photo() -> Files {
    Files::new()
        .text("title", "The \"sea\"")
        .text("stars", "5")
        .file(
            "photo",
            "C:\\pictures\\sea.png",
            "image/png",
            b"\x89PNG\r\n--",
        )
        .file("cover", "", "application/octet-stream", b"")
}

#[test]
fn a_form_with_files_passes_with_the_token_in_it() {
    for app in [App::new(), App::new().spool_over(10)] {
        let form = photo()
            .file("more", "a", "a/b", b"1")
            .file("more", "b", "a/b", b"2");
        let response = app.call::<add>(post("/photos").csrf_field().multipart(form));
        assert_eq!(
            response.text(),
            "The \"sea\" 5 Upload { file_name: \"sea.png\", content_type: \"image/png\", bytes: 8 } false 2"
        );
        let response = app.call::<add>(post("/photos").multipart(photo()));
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let response = app.call::<add>(post("/photos").csrf_field().form(&[
            ("title", "x"),
            ("stars", "1"),
            ("photo", "y"),
        ]));
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(
            response.text().contains("`photo` is not a file")
                && response.text().contains("enctype"),
            "{}",
            response.text()
        );
        let without = Files::new().text("title", "x").text("stars", "1");
        let response = app.call::<add>(post("/photos").csrf_field().multipart(without));
        assert!(
            response.text().contains("`photo` is missing"),
            "{}",
            response.text()
        );
        let twisted = photo().file("title", "a", "b/c", b"");
        let response = app.call::<add>(post("/photos").csrf_field().multipart(twisted));
        assert!(
            response.text().contains("`title` is a file"),
            "{}",
            response.text()
        );
    }
}

#[test]
fn a_large_form_is_read_in_pieces() {
    let large = vec![b'-'; 700_000];
    let form = || {
        Files::new()
            .file("large", "a", "a/b", &large)
            .file("skipped", "b", "a/b", &large)
            .text("note", "\r\n\r\n")
    };
    let app = App::new().spool_over(100);
    let response = app.call::<add_in_pieces>(post("/photos/pieces").csrf_field().multipart(form()));
    assert_eq!(response.text(), "large=700000 note=4 ");
    // The token may be in a header instead. In a form, it has to be within the first 64 KiB.
    let response = app.call::<add_in_pieces>(post("/photos/pieces").csrf().multipart(form()));
    assert_eq!(response.status(), StatusCode::OK);
    let late = form().text("csrf_token", "x");
    let response = app.call::<add_in_pieces>(post("/photos/pieces").multipart(late));
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(
        response
            .error()
            .and_then(|error| error.detail())
            .is_some_and(|detail| detail.contains("first 64 KiB")),
        "{:?}",
        response.error()
    );
    let too_large = Files::new().file("large", "a", "a/b", vec![0; 1_000_001]);
    let response =
        app.call::<add_in_pieces>(post("/photos/pieces").csrf_field().multipart(too_large));
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(response.text().contains("`large`"), "{}", response.text());
}
