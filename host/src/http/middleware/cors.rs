//! `cors`: which pages of other origins may use the app, as the Fetch standard has it.
//!
//! Browsers enforce it: they ask beforehand (a preflight, answered here) and look at the headers of answers.

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{Either, Full};

use super::request_head::vary;
use crate::http::message::ResponseBody;

/// Who may do what.
#[derive(Debug, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages.
    pub origins: Origins,
    /// The methods they may use, with commas between.
    pub methods: HeaderValue,
    /// The headers they may send, beside those everybody may; empty: none.
    pub headers: HeaderValue,
    /// The headers they may read, beside those everybody may; empty: none.
    pub expose: HeaderValue,
    /// Whether cookies are sent along.
    pub credentials: bool,
    /// How long browsers remember the answer to a preflight, in seconds.
    pub max_age_s: u64,
}

/// Pages of which origins.
#[derive(Debug, PartialEq, Eq)]
pub enum Origins {
    /// Of any; never with credentials.
    Any,
    /// Of these.
    These(Vec<String>),
}

impl Cors {
    /// Answers a preflight. Other requests are told by the headers of their answers.
    pub(super) fn before(&self, request: &Parts) -> Option<Response<ResponseBody>> {
        let asked = |name| request.headers.contains_key(name);
        let preflight = request.method == Method::OPTIONS
            && asked(header::ORIGIN)
            && asked(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight {
            return None;
        }
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.allowed(&request.headers).is_some() {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            if !self.headers.is_empty() {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.clone());
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age_s.into());
        }
        Some(response)
    }

    /// Says whether the page that asked may read the answer, a preflight's too.
    pub(super) fn after(&self, request: &Parts, headers: &mut HeaderMap) {
        if self.origins != Origins::Any {
            vary(headers, &header::ORIGIN);
        }
        let decided = headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        let Some(origin) = self.allowed(&request.headers).filter(|_| !decided) else {
            return;
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        let preflight = headers.contains_key(header::ACCESS_CONTROL_ALLOW_METHODS);
        if !self.expose.is_empty() && !preflight {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.clone());
        }
    }

    /// What is told to a page that may read the answer.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::These(origins) => {
                (origins.iter().any(|known| known == origin)).then(|| origin.clone())
            }
        }
    }
}

/// Names with commas between, for a header.
pub fn list<T: AsRef<str>>(names: &[T]) -> Option<HeaderValue> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// Whether this can be named as a header; `*` is for all, without credentials.
pub fn is_header(name: &str) -> bool {
    name == "*" || HeaderName::from_bytes(name.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const OURS: &str = "https://app.example.com";

    fn cors(origins: Origins) -> Cors {
        let list = |names: &[&str]| list(names).expect("these are valid");
        Cors {
            origins,
            methods: list(&["GET", "PUT"]),
            headers: list(&["content-type", "x-csrf-token"]),
            expose: list(&["x-request-id"]),
            credentials: true,
            max_age_s: 600,
        }
    }

    fn these() -> Cors {
        cors(Origins::These(vec![OURS.to_owned()]))
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method);
        let request = (headers.iter()).fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).expect("a request").into_parts().0
    }

    /// What the answer to this request says: of the middleware's own, or of a view's.
    fn answer(cors: &Cors, request: &Parts) -> (bool, HeaderMap) {
        let answer = cors.before(request);
        let own = answer.is_some();
        let mut headers = answer
            .map(|response| response.headers().clone())
            .unwrap_or_default();
        cors.after(request, &mut headers);
        (own, headers)
    }

    #[test]
    fn a_preflight_is_answered_without_the_app() {
        let asked = [
            ("origin", OURS),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-csrf-token"),
        ];
        let (own, headers) = answer(&these(), &request("OPTIONS", &asked));
        assert!(own);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], OURS);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_METHODS], "GET, PUT");
        assert_eq!(
            headers[header::ACCESS_CONTROL_ALLOW_HEADERS],
            "content-type, x-csrf-token"
        );
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(headers[header::ACCESS_CONTROL_MAX_AGE], "600");
        assert_eq!(headers[header::VARY], "origin");
    }

    #[test]
    fn pages_of_other_origins_are_told_nothing() {
        let other = ("origin", "https://app.example.com.evil.example");
        let asked = [other, ("access-control-request-method", "PUT")];
        for asked in [request("OPTIONS", &asked), request("GET", &asked[..1])] {
            let (_, headers) = answer(&these(), &asked);
            let names: Vec<_> = headers.keys().collect();
            assert_eq!(names, [header::VARY]);
        }
    }

    #[test]
    fn what_is_no_preflight_reaches_the_app() {
        let (own, headers) = answer(&these(), &request("OPTIONS", &[("origin", OURS)]));
        assert!(!own);
        assert_eq!(
            headers[header::ACCESS_CONTROL_EXPOSE_HEADERS],
            "x-request-id"
        );
        let (own, headers) = answer(&these(), &request("GET", &[]));
        assert!(!own);
        assert_eq!(headers[header::VARY], "origin", "for what is cached");
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn any_origin_needs_no_vary() {
        let mut any = cors(Origins::Any);
        any.credentials = false;
        let (_, headers) = answer(&any, &request("GET", &[("origin", "null")]));
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!headers.contains_key(header::VARY));
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }

    #[test]
    fn what_a_view_has_decided_stays() {
        let mut headers = HeaderMap::new();
        let view = HeaderValue::from_static("https://view.example.com");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, view.clone());
        headers.insert(header::VARY, HeaderValue::from_static("Accept, Origin"));
        these().after(&request("GET", &[("origin", OURS)]), &mut headers);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], view);
        assert_eq!(headers.get_all(header::VARY).iter().count(), 1);
        assert_eq!(headers.len(), 2);
    }
}
