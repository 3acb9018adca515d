//! `cors`: decides which pages of other origins may use the app (the CORS protocol of the Fetch standard).
//!
//! Browsers enforce the rules: before some requests they send a preflight, which is answered here, and they check the
//! headers of responses.

use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{Either, Full};

use super::request_head::vary;
use crate::http::message::ResponseBody;

/// The options.
#[derive(Debug, PartialEq, Eq)]
pub struct Cors {
    /// The origins whose pages may use the app.
    pub origins: Origins,
    /// The allowed methods, separated by commas.
    pub methods: HeaderValue,
    /// The request headers that pages may send in addition to the safelisted ones. Empty: no others.
    pub headers: HeaderValue,
    /// The response headers that pages may read in addition to the safelisted ones. Empty: no others.
    pub expose: HeaderValue,
    /// Whether browsers may send cookies and other credentials.
    pub credentials: bool,
    /// How long browsers remember the answer to a preflight, in seconds.
    pub max_age_s: u64,
}

/// The allowed origins.
#[derive(Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any origin. Never with credentials.
    Any,
    /// Only these.
    These(Vec<String>),
}

impl Cors {
    /// Answers a preflight. None: the request is no preflight and goes on, and `after` adds headers to its response.
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

    /// Adds the headers that allow the page to read the response, also to the answer to a preflight. If a view has set
    /// `access-control-allow-origin`, only `vary` is added.
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

    /// The value of `access-control-allow-origin`, if the request's origin is allowed.
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

/// Joins names to the value of a header, separated by commas.
pub fn list<T: AsRef<str>>(names: &[T]) -> Option<HeaderValue> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// Whether a name can be the name of a header. `*` stands for all headers, in requests without credentials.
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

    /// Whether the middleware answers this request itself, and the headers that it sets.
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
