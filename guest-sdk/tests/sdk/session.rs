//! Sessions, and forms with a token of the session (CSRF), in both modes.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, TestRequest, TestResponse, get, post};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Change {
    name: String,
    value: String,
}

#[view(post, "/set")]
fn set(session: Session, Form(change): Form<Change>) -> Result<()> {
    session.set(&change.name, &change.value)
}

#[view(post, "/set/slowly")]
async fn set_slowly(cx: &Context, session: Session, Form(change): Form<Change>) -> Result<()> {
    cx.sleep(Duration::from_millis(1)).await;
    session.set(&change.name, &change.value)
}

#[view(get, "/{name}")]
fn show(session: Session, Path(name): Path<String>) -> Json<Option<String>> {
    Json(session.get(&name))
}

#[view(post, "/clear")]
fn clear(session: Session) {
    session.clear();
}

#[view(post, "/fail/{status}")]
fn fail(session: Session, Path(status): Path<u16>) -> Result<StatusCode> {
    session.set("a", "lost")?;
    if status == 0 {
        return Err(Error::not_found("nothing here"));
    }
    Ok(StatusCode::from_u16(status)?)
}

#[view(post, "/form")]
async fn form(Protected(Form(fields)): Protected<Form<Vec<(String, String)>>>) -> String {
    format!("{fields:?}")
}

/// Answers with the form again, so the view needs a token itself (`csrf`).
#[view(post, "/form/again")]
fn form_again(
    csrf: Csrf,
    Protected(Form(fields)): Protected<Form<Vec<(String, String)>>>,
) -> String {
    format!("{}{fields:?}", csrf.field())
}

#[view(post, "/json")]
fn json(Protected(Json(number)): Protected<Json<i64>>) -> String {
    number.to_string()
}

#[view(get, "/page")]
async fn page(csrf: Csrf) -> String {
    csrf.token().to_owned()
}

#[middleware]
fn counted(session: Session, request: Request, next: Next) -> Result<Response> {
    session.set("count", &(session.get("count").unwrap_or(0) + 1))?;
    next.run(request)
}

/// Asks for a token, like middleware that adds a form to every page.
#[middleware]
fn with_token(_: Csrf, request: Request, next: Next) -> Result<Response> {
    next.run(request)
}

#[view(get, "/cached/{how}")]
fn cached(session: Session, Path(how): Path<String>) -> Result<impl IntoResponse> {
    let (policy, value) = how.split_once(' ').unwrap_or((&how, ""));
    if !value.is_empty() {
        session.set("a", value)?;
    }
    Ok(([("cache-control", policy.to_owned())], "a page"))
}

fn change(name: &str, value: &str) -> TestRequest {
    post("/set").form(&[("name", name), ("value", value)])
}

/// The cookie that a response sets: `name=value`, which a request can send back, and the attributes.
fn cookie(response: &TestResponse) -> (String, String) {
    let text = response.header("set-cookie").expect("it sets a cookie");
    let (pair, attributes) = text.split_once("; ").expect("it has attributes");
    (pair.to_owned(), attributes.to_owned())
}

#[test]
fn a_session_goes_to_the_browser_and_comes_back() {
    let app = App::new();
    let responses = [
        app.call::<set>(change("a", "é")),
        app.call::<set_slowly>(post("/set/slowly").form(&[("name", "a"), ("value", "é")])),
    ];
    for response in responses {
        let (pair, attributes) = cookie(&response);
        assert_eq!(
            attributes,
            "HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=1209600"
        );
        assert_eq!(response.header("vary"), Some("cookie"));
        let shown = app.call::<show>(get("/a").header("cookie", &pair));
        assert_eq!(shown.text(), "\"é\"");
        // The session has not changed, so no cookie is sent.
        assert_eq!(shown.header("set-cookie"), None);
        let forged = format!("{pair}x");
        let shown = app.call::<show>(get("/a").header("cookie", forged));
        assert_eq!(shown.text(), "null");
    }
}

#[test]
fn browsers_send_it_over_https_except_in_development() {
    let is_secure = |app: &App| {
        cookie(&app.call::<set>(change("a", "b")))
            .1
            .contains("Secure")
    };
    let app = App::new;
    assert!(is_secure(&app()));
    assert!(!is_secure(&app().setting("amphi.development", "true")));
    assert!(!is_secure(&app().setting("session_secure", "false")));
    let strict = app().setting("amphi.development", "true");
    assert!(is_secure(&strict.setting("session_secure", "true")));
}

#[test]
fn of_several_cookies_the_one_that_is_good_counts() {
    let app = App::new();
    let (pair, _) = cookie(&app.call::<set>(change("a", "b")));
    let bad = "session=bad";
    for cookies in [
        format!("{bad}; {pair}"),
        format!("{pair}; {bad}"),
        format!("{bad}; {pair}x; {pair}; {bad}"),
    ] {
        let shown = app.call::<show>(get("/a").header("cookie", &cookies));
        assert_eq!(shown.text(), "\"b\"", "{cookies}");
    }
    let shown = app.call::<show>(get("/a").header("cookie", format!("{bad}; {bad}")));
    assert_eq!(shown.text(), "null");
}

/// Over plain http, browsers do not keep a `Secure` cookie. The form then arrives without a session, and the error says
/// why.
#[test]
fn a_session_that_browsers_cannot_keep_is_told() {
    let form_of = |app: App, headers: &[(&str, &str)]| {
        let request = |path: &str| {
            let request = post(path).form(&[("csrf_token", "AAAA")]);
            (headers.iter()).fold(request, |request, (name, value)| {
                request.header(*name, *value)
            })
        };
        // The error is the same when the view has made a token before the check (`form_again`).
        let refused = [
            app.call::<form>(request("/form")),
            app.call::<form_again>(request("/form/again")),
        ];
        let told = refused.map(|refused| {
            let error = refused.error().expect("there is no session");
            assert_eq!(error.status(), StatusCode::FORBIDDEN);
            let detail = error.detail().unwrap_or_default();
            detail.contains("session_secure = false")
        });
        assert_eq!(told[0], told[1]);
        told[0]
    };
    assert!(form_of(App::new(), &[]));
    assert!(!form_of(App::new(), &[("x-forwarded-proto", "https")]));
    assert!(!form_of(App::new(), &[("cookie", "session=over")]));
    assert!(!form_of(App::new().setting("session_secure", "false"), &[]));
}

#[test]
fn the_session_ends_when_it_is_cleared() {
    let app = App::new();
    let response = app.call::<clear>(post("/clear").session("a", "b"));
    let (pair, attributes) = cookie(&response);
    assert_eq!(pair, "session=");
    assert!(attributes.ends_with("Max-Age=0"), "{attributes}");
    assert_eq!(app.call::<clear>(post("/clear")).header("set-cookie"), None);
}

#[test]
fn a_view_that_fails_has_changed_nothing() {
    let app = App::new();
    for (path, kept) in [
        ("/fail/0", false),
        ("/fail/500", false),
        ("/fail/422", true),
    ] {
        let response = app.call::<fail>(post(path));
        assert_eq!(response.header("set-cookie").is_some(), kept, "{path}");
    }
}

#[test]
fn keys_change_without_losing_sessions() {
    const OLD: &str = "old old old old old old old old old";
    const NEW: &str = "new new new new new new new new new";
    let old = App::new().setting("session_key", OLD);
    let (pair, _) = cookie(&old.call::<set>(change("a", "kept")));
    let ask = |app: &App| app.call::<show>(get("/a").header("cookie", &pair));

    let new = App::new().setting("session_key", NEW);
    assert_eq!(ask(&new).text(), "null");
    let both = App::new()
        .setting("session_key", NEW)
        .setting("session_key_previous", OLD);
    let response = ask(&both);
    assert_eq!(response.text(), "\"kept\"");
    let (signed_anew, _) = cookie(&response);
    let shown = new.call::<show>(get("/a").header("cookie", signed_anew));
    assert_eq!(shown.text(), "\"kept\"");
}

#[test]
fn what_is_wrong_with_the_configuration_is_said() {
    for (name, value, part) in [
        ("session_key", "short", "has 5 characters"),
        ("session_key_previous", "", "`session_key_previous` has 0"),
        ("session_days", "0", "write a number from 1 to 400"),
        ("session_secure", "yes", "write true or false"),
    ] {
        let response = App::new().setting(name, value).call::<show>(get("/a"));
        let error = response.error().expect("it is wrong");
        assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let detail = error.detail().unwrap_or_default();
        assert!(detail.contains(part), "{name}: {detail}");
    }
    let response = App::default().call::<show>(get("/a"));
    let detail = response.error().and_then(Error::detail);
    assert!(
        detail.is_some_and(|text| text.contains("generate = true")),
        "{detail:?}"
    );
}

#[test]
fn a_session_has_room_for_a_cookie_alone() {
    let app = App::new();
    let fits = app.call::<set>(change("a", &"x".repeat(2800)));
    let (pair, _) = cookie(&fits);
    assert!(pair.len() <= 4096, "{}", pair.len());
    let response = app.call::<set>(change("a", &"x".repeat(3000)));
    let detail = response.error().and_then(Error::detail);
    assert!(
        detail.is_some_and(|text| text.contains("its cookie has room for")),
        "{detail:?}"
    );
}

#[test]
fn middleware_and_view_share_one_cookie() {
    let app = App::new().around::<set>();
    let request = change("a", "b")
        .session("count", &4)
        .session("other", "kept");
    let response = app.call::<counted>(request);
    let cookies = response.response().headers.get_all("set-cookie").count();
    assert_eq!(cookies, 1);
    assert_eq!(response.session::<i64>("count"), Some(5));
    assert_eq!(response.session::<String>("a").as_deref(), Some("b"));
    assert_eq!(response.session::<String>("other").as_deref(), Some("kept"));
    let ended = App::new()
        .around::<clear>()
        .call::<counted>(post("/clear").session("other", "lost"));
    let left: BTreeMap<_, _> = ["count", "other"]
        .map(|name| (name, ended.session::<serde_json::Value>(name)))
        .into();
    assert_eq!(left["other"], None);
    assert_eq!(left["count"], Some(1.into()));
}

#[test]
fn what_sets_a_session_is_for_no_other_browser() {
    let app = App::new();
    let policy = |response: &TestResponse| {
        let all = response.response().headers.get_all("cache-control");
        all.map(str::to_owned).collect::<Vec<_>>().join("|")
    };
    // These views set no `cache-control`. Their responses are private, whether they set the cookie or only read the
    // session.
    assert_eq!(policy(&app.call::<page>(get("/page"))), "private");
    assert_eq!(policy(&app.call::<show>(get("/a"))), "private");
    let known = app.call::<show>(get("/a").session("a", "b"));
    assert_eq!(policy(&known), "private");
    for (said, sent) in [
        ("public", "private"),
        ("Public, max-age=60", "max-age=60, private"),
        ("max-age=60, S-MaxAge=600", "max-age=60, private"),
        ("no-cache", "no-cache, private"),
        ("private, max-age=60", "private, max-age=60"),
        (
            "private=\"x\", no-cache",
            "private=\"x\", no-cache, private",
        ),
        ("no-store", "no-store"),
    ] {
        let path = |value: &str| format!("/cached/{}{value}", said.replace(' ', ""));
        let sets = app.call::<cached>(get(&path("%20b")));
        assert!(sets.header("set-cookie").is_some());
        assert_eq!(policy(&sets), sent, "{said}");
        // A response that does not set the cookie keeps the `cache-control` of its view.
        let reads = app.call::<cached>(get(&path("")));
        assert_eq!(policy(&reads), said.replace(' ', ""), "{said}");
    }
    let around = App::new().around::<page>();
    let response = around.call::<counted>(get("/page"));
    assert_eq!(policy(&response), "private");
}

/// On a first visit, the middleware and the view both make a token. The form is on the view's page, so the view's token
/// has to stay valid.
#[test]
fn middleware_with_a_token_leaves_the_form_of_the_view_valid() {
    let app = App::new().around::<page>();
    let shown = app.call::<with_token>(get("/page"));
    let (session, _) = cookie(&shown);
    let sent = App::new().call::<form>(
        post("/form")
            .header("cookie", session)
            .header("x-csrf-token", shown.text())
            .form(&[("a", "1")]),
    );
    assert_eq!(sent.status(), StatusCode::OK, "{:?}", sent.error());
    // If the view makes no token, the session keeps the token of the middleware.
    let response = App::new()
        .around::<set>()
        .call::<with_token>(change("a", "b"));
    assert!(response.session::<String>("csrf_token").is_some());
    assert_eq!(response.session::<String>("a").as_deref(), Some("b"));
}

#[test]
fn a_form_needs_the_token_of_its_session() {
    let app = App::new();
    let shown = app.call::<page>(get("/page"));
    let (token, (session, _)) = (shown.text().to_owned(), cookie(&shown));
    let again = app.call::<page>(get("/page").header("cookie", &session));
    assert_ne!(again.text(), token, "each page has another disguise");
    assert_eq!(again.header("set-cookie"), None);

    let body = |token: &str| format!("a=1&csrf_token={token}&b=2");
    let send = |token: &str, headers: &[(&str, &str)]| {
        let mut request = post("/form")
            .header("content-type", "application/x-www-form-urlencoded")
            .with_body(body(token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        app.call::<form>(request)
    };
    for token in [&token, again.text()] {
        let response = send(token, &[("cookie", &session)]);
        assert_eq!(response.text(), r#"[("a", "1"), ("b", "2")]"#);
    }
    let (stranger, _) = cookie(&app.call::<page>(get("/page")));
    for (token, headers, part) in [
        (token.as_str(), &[][..], "the session has no token"),
        (
            &token,
            &[("cookie", &*stranger)],
            "not the one of this session",
        ),
        ("", &[("cookie", &*session)], "not the one of this session"),
        (
            &token,
            &[("cookie", &*session), ("sec-fetch-site", "cross-site")],
            "cross-site",
        ),
        (
            &token,
            &[
                ("cookie", &*session),
                ("origin", "https://b.c"),
                ("host", "a.b"),
            ],
            "https://b.c",
        ),
    ] {
        let response = send(token, headers);
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{headers:?}");
        let detail = response.error().and_then(Error::detail).unwrap_or_default();
        assert!(detail.contains(part), "{detail}");
    }
}

#[test]
fn scripts_send_the_token_as_a_header() {
    let app = App::new();
    let response = app.call::<json>(post("/json").csrf().json(&7));
    assert_eq!(response.text(), "7");
    let response = app.call::<json>(post("/json").json(&7));
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let detail = response.error().and_then(Error::detail).unwrap_or_default();
    assert!(detail.contains("`x-csrf-token`"), "{detail}");
}

#[test]
fn a_large_form_is_read_for_its_token() {
    let app = App::new().spool_over(100);
    let long = "x".repeat(1000);
    let response = app.call::<form>(post("/form").csrf().form(&[("a", &long)]));
    assert_eq!(response.status(), StatusCode::OK);
}
