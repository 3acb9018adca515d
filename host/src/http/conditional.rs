//! Conditional requests (RFC 9110, 13): a client whose copy of a response is current gets 304 without a body.

use std::time::SystemTime;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

/// Facts about the response that a 304 replaces. The 304 carries them as an extension for the middleware `compression`,
/// which must set the same headers on a 304 as on the full response.
#[derive(Debug, Clone)]
pub struct Unmodified {
    /// The media type of the response. None makes `compression` leave the 304 as it is.
    pub content_type: Option<HeaderValue>,
    /// The length of its body in bytes, if known.
    pub length: Option<u64>,
}

/// Whether the client's copy is current, given the `etag` and the time of modification of the response. If
/// `if-none-match` is there, only the tag counts, else `if-modified-since` (RFC 9110, 13.2.2).
pub fn is_known(headers: &HeaderMap, tag: Option<&str>, modified: Option<SystemTime>) -> bool {
    if headers.contains_key(header::IF_NONE_MATCH) {
        let values = headers.get_all(header::IF_NONE_MATCH).iter();
        let mut texts = values.filter_map(|value| value.to_str().ok());
        return texts.any(|text| match text.trim() {
            "*" => true,
            list => tag.is_some_and(|tag| tags(list).any(|known| known == opaque(tag))),
        });
    }
    let mut since = headers.get_all(header::IF_MODIFIED_SINCE).iter();
    let (Some(since), None, Some(modified)) = (since.next(), since.next(), modified) else {
        return false;
    };
    let since = (since.to_str().ok()).and_then(|date| httpdate::parse_http_date(date).ok());
    since.is_some_and(|since| seconds(modified) <= seconds(since))
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// A tag in its quotes, without the mark of weakness `W/`: `if-none-match` compares weak and strong tags alike (RFC
/// 9110, 8.8.3.2).
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// The tags of a list, in their quotes and without `W/`. A tag may contain commas. The first malformed tag ends the
/// list.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let next = opaque(rest.trim_start_matches([' ', '\t', ',']));
        let length = next.strip_prefix('"')?.find('"')? + 2;
        let (tag, after) = next.split_at(length);
        rest = after;
        Some(tag)
    })
}

/// Replaces a view's response by 304 if its `etag` or `last-modified` shows that the client's copy is current. `length`
/// is the length of the body in bytes, if known.
pub fn apply<B: Default>(
    (method, headers): (&Method, &HeaderMap),
    length: Option<u64>,
    response: &mut Response<B>,
) {
    let conditional = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
    if response.status() != StatusCode::OK
        || !matches!(*method, Method::GET | Method::HEAD)
        || !conditional.iter().any(|name| headers.contains_key(name))
    {
        return;
    }
    let text = |name: HeaderName| response.headers().get(name)?.to_str().ok();
    let modified = text(header::LAST_MODIFIED);
    let modified = modified.and_then(|date| httpdate::parse_http_date(date).ok());
    let tag = text(header::ETAG);
    // `if-none-match: *` matches any version of the response. A response with neither `etag` nor `last-modified` does
    // not show that the client has a current copy, so the response stays.
    if (tag.is_none() && modified.is_none()) || !is_known(headers, tag, modified) {
        return;
    }
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = B::default();
    let content_type = response.headers_mut().remove(header::CONTENT_TYPE);
    let is_encoded = response.headers().contains_key(header::CONTENT_ENCODING);
    for name in [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
    ] {
        response.headers_mut().remove(name);
    }
    let left_out = Unmodified {
        // `compression` leaves an encoded response as it is, so it must leave the 304 as it is, too.
        content_type: content_type.filter(|_| !is_encoded),
        length,
    };
    response.extensions_mut().insert(left_out);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    #[test]
    fn tags_are_compared_weakly() {
        let known = |values: &[&str], tag: &str| {
            is_known(&headers(header::IF_NONE_MATCH, values), Some(tag), None)
        };
        for (values, tag) in [
            (&["\"a\""][..], "\"a\""),
            (&["W/\"a\""], "\"a\""),
            (&["\"a\""], "W/\"a\""),
            (&["W/\"a\""], "W/\"a\""),
            (&["\"b\", W/\"a\""], "\"a\""),
            (&["\"b\",\"a\""], "\"a\""),
            (&["\"b\"", "\"a\""], "\"a\""),
            (&["\"a,b\""], "\"a,b\""),
            (&[" * "], "\"a\""),
            (&["\"\""], "\"\""),
        ] {
            assert!(known(values, tag), "{values:?} {tag}");
        }
        for (values, tag) in [
            (&["\"b\""][..], "\"a\""),
            (&["a"], "\"a\""),
            (&["\"a"], "\"a\""),
            (&["W/W/\"a\""], "\"a\""),
            (&["w/\"a\""], "\"a\""),
            (&["\"x,\"a\""], "\"a\""),
            (&[""], "\"a\""),
        ] {
            assert!(!known(values, tag), "{values:?} {tag}");
        }
    }

    #[test]
    fn dates_count_without_tags_only() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_500);
        let date = httpdate::fmt_http_date(then);
        let mut asked = headers(header::IF_MODIFIED_SINCE, &[&date]);
        assert!(is_known(&asked, None, Some(then)));
        assert!(!is_known(&asked, None, Some(then + Duration::from_secs(1))));
        assert!(!is_known(&asked, None, None));
        asked.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"a\""));
        assert!(!is_known(&asked, Some("\"b\""), Some(then)));
        assert!(!is_known(
            &headers(header::IF_MODIFIED_SINCE, &["soon"]),
            None,
            Some(then)
        ));
    }

    #[test]
    fn what_a_client_has_is_left_out() {
        let asked = headers(header::IF_NONE_MATCH, &["\"a\""]);
        let response = |status: u16| {
            Response::builder()
                .status(status)
                .header(header::ETAG, "\"a\"")
                .header(header::CONTENT_TYPE, "text/html")
                .header(header::CACHE_CONTROL, "no-cache")
                .body("page")
                .expect("a response")
        };
        let mut page = response(200);
        apply((&Method::GET, &asked), Some(4), &mut page);
        assert_eq!(
            (page.status(), *page.body()),
            (StatusCode::NOT_MODIFIED, "")
        );
        assert_eq!(page.headers()[header::ETAG], "\"a\"");
        assert_eq!(page.headers()[header::CACHE_CONTROL], "no-cache");
        assert!(!page.headers().contains_key(header::CONTENT_TYPE));
        let left_out = page.extensions().get::<Unmodified>().expect("it is told");
        assert_eq!(left_out.length, Some(4));
        for (method, status) in [(Method::POST, 200), (Method::GET, 404), (Method::GET, 206)] {
            let mut page = response(status);
            apply((&method, &asked), Some(4), &mut page);
            assert_eq!((page.status().as_u16(), *page.body()), (status, "page"));
        }
        let mut page = Response::new("page");
        let any = headers(header::IF_NONE_MATCH, &["*"]);
        apply((&Method::GET, &any), Some(4), &mut page);
        assert_eq!(page.status(), StatusCode::OK, "it has no validator");
    }

    proptest! {
        #[test]
        fn any_list_can_be_read(list in "[ -~]{0,60}") {
            prop_assert!(tags(&list).all(|tag| tag.len() >= 2 && tag.starts_with('"')));
        }
    }
}
