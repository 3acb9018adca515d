//! Requests of tests.

use crate::body::{Content, Source};
use crate::csrf;
use crate::session::{Settings, Values};
use crate::view::Kind;
use crate::{Headers, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::Serialize;
use std::collections::HashMap;

/// A request to a view, from [`get`], [`post`] and their siblings.
#[derive(Clone, Debug)]
pub struct TestRequest {
    method: String,
    path: String,
    query: String,
    headers: Headers,
    body: Vec<u8>,
    /// The values of the request's session.
    session: Values,
    /// The CSRF token that `form` and `multipart` write into the form.
    token: Option<String>,
}

/// A GET request for a path, which may have a query.
pub fn get(path: &str) -> TestRequest {
    TestRequest::new("GET", path)
}

/// A GET request for this path.
impl From<&str> for TestRequest {
    fn from(path: &str) -> Self {
        get(path)
    }
}

/// A POST request.
pub fn post(path: &str) -> TestRequest {
    TestRequest::new("POST", path)
}

/// A PUT request.
pub fn put(path: &str) -> TestRequest {
    TestRequest::new("PUT", path)
}

/// A PATCH request.
pub fn patch(path: &str) -> TestRequest {
    TestRequest::new("PATCH", path)
}

/// A DELETE request.
pub fn delete(path: &str) -> TestRequest {
    TestRequest::new("DELETE", path)
}

/// A request of any method.
pub fn request(method: &str, path: &str) -> TestRequest {
    TestRequest::new(method, path)
}

/// A form with files, for [`TestRequest::multipart`].
#[derive(Clone, Debug, Default)]
pub struct Multipart(Vec<u8>);

/// The boundary between the parts of a form.
const BOUNDARY: &str = "the-boundary-of-a-test";

impl Multipart {
    /// A form without fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn text(self, name: &str, value: &str) -> Self {
        self.part(&format!("name=\"{}\"", escaped(name)), value.as_bytes())
    }

    /// Adds a file.
    pub fn file(
        self,
        name: &str,
        file_name: &str,
        content_type: &str,
        bytes: impl AsRef<[u8]>,
    ) -> Self {
        let head = format!(
            "name=\"{}\"; filename=\"{}\"\r\ncontent-type: {content_type}",
            escaped(name),
            escaped(file_name)
        );
        self.part(&head, bytes.as_ref())
    }

    fn part(mut self, head: &str, content: &[u8]) -> Self {
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; {head}\r\n\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(content);
        self.0.extend_from_slice(b"\r\n");
        self
    }
}

/// Escapes a name as browsers do.
fn escaped(name: &str) -> String {
    name.replace('"', "%22")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

impl TestRequest {
    fn new(method: &str, path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        Self {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            headers: Headers::new(),
            body: Vec::new(),
            session: Values::new(),
            token: None,
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Adds a value to the [`Session`](crate::Session) of the request.
    ///
    /// # Panics
    ///
    /// When the value cannot be serialized.
    pub fn session<T: Serialize + ?Sized>(mut self, name: &str, value: &T) -> Self {
        let value = serde_json::to_value(value).expect("a value of a test can be written as JSON");
        self.session.insert(name.into(), value);
        self
    }

    /// Adds a CSRF token to the request's session, and to a header: for views that take
    /// [`Protected`](crate::Protected).
    pub fn csrf(self) -> Self {
        let (token, given) = csrf::pair();
        self.session(csrf::FIELD, &token)
            .header(csrf::HEADER, given)
            .header("sec-fetch-site", "same-origin")
    }

    /// Like [`csrf`](Self::csrf), but with the token in the first field of the form instead of a header. Call
    /// [`form`](Self::form) or [`multipart`](Self::multipart) after this.
    pub fn csrf_field(self) -> Self {
        let (token, given) = csrf::pair();
        let request = self.session(csrf::FIELD, &token);
        Self {
            token: Some(given),
            ..request.header("sec-fetch-site", "same-origin")
        }
    }

    /// Sends these bytes.
    pub fn with_body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the value as a form (`application/x-www-form-urlencoded`).
    pub fn form<T: Serialize + ?Sized>(self, value: &T) -> Self {
        let mut body = serde_html_form::to_string(value).expect("a form of a test can be written");
        if let Some(token) = &self.token {
            body = format!("{}={token}&{body}", csrf::FIELD);
        }
        self.header("content-type", "application/x-www-form-urlencoded")
            .with_body(body)
    }

    /// Sends a form with files.
    pub fn multipart(self, form: Multipart) -> Self {
        let mut body = match &self.token {
            Some(token) => Multipart::new().text(csrf::FIELD, token).0,
            None => Vec::new(),
        };
        body.extend(form.0);
        body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        self.header("content-type", content_type).with_body(body)
    }

    /// Sends the value as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        let body = serde_json::to_vec(value).expect("a request of a test can be written as JSON");
        self.header("content-type", "application/json")
            .with_body(body)
    }

    pub(super) fn session_values(&self) -> &Values {
        &self.session
    }

    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The request as the host would pass it to the view of this name.
    pub(super) fn into_request(
        self,
        (view, kind): (&str, Kind),
        arrives: bool,
        spool_over: Option<usize>,
        settings: &HashMap<String, String>,
    ) -> Request {
        let Self {
            method,
            path,
            query,
            mut headers,
            body,
            session,
            token: _,
        } = self;
        if !session.is_empty() {
            let cookie = Settings::read(|name| settings.get(name).cloned())
                .and_then(|settings| settings.cookie(session))
                .unwrap_or_else(|error| panic!("the session of the request: {error}"));
            headers.append("cookie", format!("{}={}", cookie.name(), cookie.value()));
        }
        assert!(
            kind.answers(&method) || kind == Kind::Middleware,
            "`{view}` answers {}, and this request is {method}",
            kind.method()
        );
        let params = params(kind.pattern(), &path).unwrap_or_else(|| {
            panic!(
                "`{view}` answers {}, and this request is for {path}",
                kind.pattern()
            )
        });
        let content = match spool_over {
            _ if arrives && !body.is_empty() => {
                Content::Host(Source::Arriving(Some(body.len() as u64)))
            }
            Some(limit) if body.len() > limit => Content::Host(Source::Spooled(body.len() as u64)),
            _ => Content::Bytes(body),
        };
        Request {
            method,
            path: normalized(&path),
            query,
            headers,
            params,
            content,
        }
    }
}

/// The characters that are encoded in a segment of a path: all except those that RFC 3986, 3.3 allows there.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// The path, encoded in the one fixed way in which the host gives it to views, however the client encoded it.
pub(super) fn normalized(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        let bytes: Vec<u8> = percent_decode_str(segment).collect();
        percent_encode(&bytes, PLAIN).to_string()
    });
    segments.collect::<Vec<_>>().join("/")
}

/// Stands for an encoded slash in a decoded path. This code point is not a character, so paths do not contain it.
const SLASH: char = '\u{10ffff}';

/// A path or pattern, decoded. An encoded slash becomes [`SLASH`], so that it does not separate segments. `None` when
/// the text is not valid UTF-8.
fn decoded(path: &str) -> Option<String> {
    let segments = path.split('/').map(|segment| {
        let text = percent_decode_str(segment).decode_utf8().ok()?;
        Some(text.replace('/', &SLASH.to_string()))
    });
    Some(segments.collect::<Option<Vec<_>>>()?.join("/"))
}

/// The names and values of the parameters, if the path matches the pattern. Both are decoded before they are compared,
/// as in the host.
pub(super) fn params(pattern: &str, path: &str) -> Option<Vec<(String, String)>> {
    matched(&decoded(pattern)?, &decoded(path)?)
}

fn matched(pattern: &str, path: &str) -> Option<Vec<(String, String)>> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return (pattern == path).then(Vec::new);
    };
    let (name, after) = rest
        .split_once('}')
        .expect("`#[view]` has checked the pattern");
    let path = path.strip_prefix(before)?;
    let (name, value) = match name.strip_prefix('*') {
        Some(name) => (name, path),
        // A parameter extends to the fixed text that follows it in the same segment of the pattern, or else to the
        // segment's end.
        None => {
            let segment = &path[..path.find('/').unwrap_or(path.len())];
            let fixed = &after[..after.find(['/', '{']).unwrap_or(after.len())];
            (
                name,
                if fixed.is_empty() {
                    segment
                } else {
                    &segment[..segment.find(fixed)?]
                },
            )
        }
    };
    if value.is_empty() {
        return None;
    }
    let mut all = vec![(name.to_owned(), value.replace(SLASH, "/"))];
    all.extend(matched(after, &path[value.len()..])?);
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::params;

    fn of(pattern: &str, path: &str) -> Option<String> {
        let params = params(pattern, path)?;
        Some(
            params
                .iter()
                .map(|(name, value)| format!("{name}={value};"))
                .collect(),
        )
    }

    #[test]
    fn parameters_are_found_as_the_host_finds_them() {
        assert_eq!(of("/a", "/a").as_deref(), Some(""));
        assert_eq!(of("/a", "/b"), None);
        assert_eq!(of("/a/{id}", "/a/7").as_deref(), Some("id=7;"));
        assert_eq!(of("/a/{id}", "/a/7/8"), None);
        assert_eq!(of("/a/{id}", "/a/"), None);
        assert_eq!(
            of("/a/{id}/b/{x}", "/a/1%202/b/%2F").as_deref(),
            Some("id=1 2;x=/;")
        );
        assert_eq!(of("/f/{*rest}", "/f/a/b").as_deref(), Some("rest=a/b;"));
        assert_eq!(of("/{name}.html", "/a.html").as_deref(), Some("name=a;"));
        assert_eq!(of("/{name}.html", "/a.txt"), None);
        // All encodings of a path match the same patterns. An encoded slash does not separate segments.
        for path in ["/caf\u{e9}/7", "/caf%C3%A9/7", "/%63af%c3%a9/%37"] {
            for pattern in ["/caf\u{e9}/{id}", "/caf%c3%a9/{id}"] {
                assert_eq!(
                    of(pattern, path).as_deref(),
                    Some("id=7;"),
                    "{pattern} {path}"
                );
            }
        }
        assert_eq!(of("/a/b", "/a%2Fb"), None);
        assert_eq!(of("/a/{id}", "/a/b%2fc").as_deref(), Some("id=b/c;"));
        assert_eq!(of("/a/{id}", "/a/%ff"), None);
        assert_eq!(super::normalized("/%61/b%2fc%40\u{e9}"), "/a/b%2Fc@%C3%A9");
    }
}
