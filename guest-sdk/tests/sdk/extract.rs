//! Extractors: what they read, and how they refuse a request.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, TestRequest, get, post};

#[derive(Debug, Deserialize, Serialize)]
struct Person {
    name: String,
    age: u8,
    #[serde(default)]
    tag: Vec<String>,
}

#[view(post, "/form")]
fn form(Form(person): Form<Person>) -> Json<Person> {
    Json(person)
}

#[view(post, "/json")]
async fn json(Json(person): Json<Person>) -> Json<Person> {
    Json(person)
}

#[view(get, "/query")]
fn query(Query(person): Query<Person>) -> Json<Person> {
    Json(person)
}

fn outcome<V: amphi_sdk::__private::View>(request: TestRequest) -> (u16, String) {
    let response = App::new().call::<V>(request);
    (response.status().as_u16(), response.text().to_owned())
}

fn form_request(body: &str) -> TestRequest {
    post("/form")
        .header(
            "Content-Type",
            "application/x-www-form-urlencoded; charset=utf-8",
        )
        .with_body(body)
}

#[test]
fn a_form_is_read_or_refused() {
    let (status, text) = outcome::<form>(form_request("name=A%20b+c&age=7&tag=x&tag=y"));
    assert_eq!(
        (status, text.as_str()),
        (200, r#"{"name":"A b c","age":7,"tag":["x","y"]}"#)
    );
    let (status, text) = outcome::<form>(form_request("name=A&age=700"));
    assert!(
        status == 422 && text.contains("the form does not fit"),
        "{status} {text}"
    );
    let (status, text) = outcome::<form>(form_request("age=7"));
    assert!(status == 422 && text.contains("name"), "{status} {text}");
    let (status, text) = outcome::<form>(form_request("name=%ff&age=7"));
    assert_eq!(
        (status, text.as_str()),
        (400, "the form is not valid UTF-8")
    );
    let (status, text) = outcome::<form>(post("/form").with_body("name=A&age=7"));
    assert!(
        status == 415 && text.contains("x-www-form-urlencoded"),
        "{status} {text}"
    );
}

#[test]
fn json_is_read_or_refused() {
    let request = |body: &str| {
        post("/json")
            .header("content-type", "application/json")
            .with_body(body)
    };
    assert_eq!(outcome::<json>(request(r#"{"name":"A","age":7}"#)).0, 200);
    let (status, text) = outcome::<json>(request(r#"{"name":"A","age":"#));
    assert!(
        status == 400 && text.contains("not valid JSON"),
        "{status} {text}"
    );
    let (status, text) = outcome::<json>(request(r#"{"name":"A"}"#));
    assert!(
        status == 422 && text.contains("missing field `age`"),
        "{status} {text}"
    );
    assert_eq!(outcome::<json>(request("\"\u{fffd}")).0, 400);
    assert_eq!(outcome::<json>(post("/json").with_body("{}")).0, 415);
    let vendor = post("/json")
        .header("content-type", "application/vnd.x+json")
        .with_body(r#"{"name":"A","age":7}"#);
    assert_eq!(outcome::<json>(vendor).0, 200);
}

#[test]
fn a_query_is_read_or_refused() {
    assert_eq!(
        outcome::<query>(get("/query?name=%C3%A9&age=1")).1,
        r#"{"name":"é","age":1,"tag":[]}"#
    );
    let (status, text) = outcome::<query>(get("/query?name=x&age=-1"));
    assert!(
        status == 400 && text.contains("the query does not fit"),
        "{status} {text}"
    );
    assert_eq!(
        outcome::<query>(get("/query?name=%ff&age=1")),
        (400, "the query is not valid UTF-8".into())
    );
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Blue,
    Green,
}

#[derive(Deserialize)]
struct Place {
    kind: Kind,
    number: u16,
}

#[view(get, "/{number}/{kind}")]
fn by_name(Path(place): Path<Place>) -> String {
    let kind = match place.kind {
        Kind::Blue => "blue",
        Kind::Green => "green",
    };
    format!("{kind} {}", place.number)
}

#[view(get, "/{a}/{b}")]
fn too_few(Path((a,)): Path<(String,)>) -> String {
    a
}

#[view(get, "/{a}")]
fn misnamed(Path(place): Path<Place>) -> String {
    place.number.to_string()
}

#[test]
fn a_path_is_read_or_refused() {
    assert_eq!(outcome::<by_name>(get("/7/green")), (200, "green 7".into()));
    let (status, text) = outcome::<by_name>(get("/x/green"));
    assert_eq!(
        (status, text.as_str()),
        (
            400,
            "the path does not fit: `number` is \"x\", not an integer from 0 to 65535"
        )
    );
    let (status, text) = outcome::<by_name>(get("/7/red"));
    assert!(status == 400 && text.contains("red"), "{status} {text}");
}

#[test]
fn a_path_that_does_not_fit_its_pattern_is_the_fault_of_the_view() {
    for response in [
        App::new().call::<too_few>(get("/x/y")),
        App::new().call::<misnamed>(get("/x")),
    ] {
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let error = response.error().expect("the view did not run");
        assert!(
            error
                .detail()
                .is_some_and(|text| text.contains("does not fit its pattern")),
            "{error}"
        );
    }
}

#[view(post, "/lenient")]
fn lenient(page: Option<Query<(String, u8)>>, person: Result<Form<Person>>) -> String {
    let page = page.is_some();
    match person {
        Ok(Form(person)) => format!("{page} {}", person.name),
        Err(error) => format!("{page} {}", error.status().as_u16()),
    }
}

#[view(post, "/maybe")]
fn maybe(person: Option<Form<Person>>) -> &'static str {
    if person.is_some() { "some" } else { "none" }
}

#[test]
fn a_view_may_deal_with_what_is_missing_or_wrong() {
    let person = [("name", "A"), ("age", "7")];
    assert_eq!(
        outcome::<lenient>(post("/lenient").form(&person)).1,
        "false A"
    );
    assert_eq!(
        outcome::<lenient>(post("/lenient").form(&[("name", "A")])).1,
        "false 422"
    );
    assert_eq!(outcome::<maybe>(post("/maybe")).1, "none");
    assert_eq!(outcome::<maybe>(post("/maybe").form(&person)).1, "some");
    assert_eq!(
        outcome::<maybe>(post("/maybe").form(&[("name", "A")])).0,
        422
    );
}

#[view(post, "/whole/{id}")]
async fn whole(headers: Headers, cookies: Cookies, request: Request) -> String {
    format!(
        "{} {} {} {:?} {:?} {:?} {}",
        request.method,
        request.path,
        request.query,
        request.param("id"),
        headers.get("X-Thing"),
        cookies.get("b"),
        String::from_utf8_lossy(request.body()),
    )
}

#[test]
fn a_request_is_seen_whole() {
    let request = post("/whole/a%2Fb?q=1")
        .header("X-Thing", "1")
        .header("Cookie", "a=1; b=2; malformed")
        .with_body("body");
    assert_eq!(
        outcome::<whole>(request).1,
        r#"POST /whole/a%2Fb q=1 Some("a/b") Some("1") Some("2") body"#
    );
}
