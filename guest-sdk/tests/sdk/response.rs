//! What views may return.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, get};

fn head(output: impl IntoResponse) -> (u16, Option<String>, String) {
    let response = output.into_response().expect("it is a response");
    let content_type = response.headers.get("content-type").map(str::to_owned);
    (
        response.status.as_u16(),
        content_type,
        String::from_utf8_lossy(&response.body).into_owned(),
    )
}

#[test]
fn types_choose_status_and_content_type() {
    let text = |status: u16, content_type: &str, body: &str| {
        (status, Some(content_type.to_owned()), body.to_owned())
    };
    assert_eq!(
        head(Html("<p>")),
        text(200, "text/html; charset=utf-8", "<p>")
    );
    assert_eq!(head(Text("a")), text(200, "text/plain; charset=utf-8", "a"));
    assert_eq!(head("a"), text(200, "text/plain; charset=utf-8", "a"));
    assert_eq!(head(Json([1])), text(200, "application/json", "[1]"));
    assert_eq!(
        head(vec![65_u8]),
        text(200, "application/octet-stream", "A")
    );
    assert_eq!(head(()), (204, None, String::new()));
    assert_eq!(head(StatusCode::IM_A_TEAPOT), (418, None, String::new()));
    assert_eq!(
        head((StatusCode::CREATED, "a")),
        text(201, "text/plain; charset=utf-8", "a")
    );
    assert_eq!(
        head(([("content-type", "text/css")], "a")),
        text(200, "text/css", "a")
    );
    assert_eq!(
        head((StatusCode::ACCEPTED, [("content-type", "text/css")], "a")),
        text(202, "text/css", "a")
    );
    assert_eq!(
        head(maud::html! { p { "<" } }),
        text(200, "text/html; charset=utf-8", "<p>&lt;</p>")
    );
}

#[test]
fn headers_are_set_and_cookies_added() {
    let response = Redirect::permanent("/there")
        .with_header("Cache-Control", "no-store")
        .with_cookie(Cookie::new("a", "1"))
        .with_cookie(Cookie::new("b", "2"))
        .with_header("cache-control", "private")
        .into_response()
        .expect("it is a response");
    let headers: Vec<_> = response.headers.iter().collect();
    assert_eq!(
        headers,
        [
            ("location", "/there"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("cache-control", "private")
        ]
    );
}

#[test]
fn errors_keep_their_detail_from_the_client() {
    #[view(get, "/secret")]
    fn secret() -> Result<()> {
        Err(Error::new(StatusCode::BAD_GATEWAY, "the vault").with_detail("is empty"))
    }

    #[view(get, "/io")]
    fn io() -> std::result::Result<(), std::io::Error> {
        Err(std::io::Error::other("disk"))
    }

    #[view(get, "/odd")]
    fn odd() -> Result<()> {
        Err(Error::new(StatusCode::OK, "fine"))
    }

    let app = App::new();
    let response = app.call::<secret>(get("/secret"));
    assert_eq!(
        (response.status().as_u16(), response.text()),
        (502, "Bad Gateway")
    );
    assert_eq!(
        response.error().map(ToString::to_string).as_deref(),
        Some("502 Bad Gateway: the vault (is empty)")
    );
    let response = app.call::<io>(get("/io"));
    assert_eq!(
        (
            response.status().as_u16(),
            response.error().and_then(Error::detail)
        ),
        (500, Some("disk"))
    );
    assert_eq!(app.call::<odd>(get("/odd")).status().as_u16(), 500);
}
