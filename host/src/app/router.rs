//! The routing table of an app: finds the target for a method and a path.
//!
//! The router knows neither views nor HTTP bodies: the type of targets is a parameter.
//!
//! Paths and patterns are compared in decoded form (RFC 3986, 6.2.2), so `/caf%c3%a9`, `/caf%C3%A9` and `/café` are the
//! same. An encoded slash is data: it never separates segments. Nothing else is rewritten: as in axum and Django, dot
//! segments are segments like others, and `/a` and `/a/` are two paths. Each method has a tree of its own, so a pattern
//! without a target for the method never hides a less specific pattern that has one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use http::Method;
use percent_encoding::percent_decode_str;

/// A routing table.
pub struct Router<T> {
    /// The patterns of each method, as indexes into `patterns`. The tree of HEAD has the patterns of GET, too.
    trees: BTreeMap<String, matchit::Router<usize>>,
    /// The index in `patterns` of each decoded pattern.
    known: HashMap<String, usize>,
    patterns: Vec<Pattern<T>>,
}

/// How much a pattern matches, for comparing patterns: for each segment 0 if it is literal, 1 for a parameter, 2 for
/// the rest of the path.
fn width(pattern: &str) -> Vec<u8> {
    let segments = pattern.split('/').map(|segment| match segment {
        segment if segment.contains("{*") => 2,
        segment => u8::from(segment.contains('{')),
    });
    segments.collect()
}

/// The method of routes for every method. A route for the request's own method comes first, unless its pattern is wider
/// ([`width`]).
const ANY: &str = "*";

struct Pattern<T> {
    /// The pattern as it was added, not decoded.
    written: String,
    /// The targets, by method.
    targets: BTreeMap<String, T>,
}

/// The result of routing a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a, T> {
    /// A target, with the decoded path parameters.
    Found(&'a T, Vec<(String, String)>),
    /// No pattern matches the path.
    NotFound,
    /// Patterns match the path, but none has the method.
    MethodNotAllowed(Allowed<'a, T>),
    /// `OPTIONS` without a target of its own: the host answers.
    Options(Allowed<'a, T>),
    /// The decoded path is not UTF-8, or contains the character U+10FFFF.
    NotText,
}

/// The methods of a path, each with its target. Displayed as the value of the `allow` header.
#[derive(Debug, PartialEq, Eq)]
pub struct Allowed<'a, T>(Vec<(&'a str, &'a T)>);

impl<'a, T> Allowed<'a, T> {
    /// The targets of all the methods.
    pub fn targets(&self) -> impl Iterator<Item = &'a T> {
        self.0.iter().map(|(_, target)| *target)
    }

    /// Leaves out methods whose targets `keep` does not accept.
    #[must_use]
    pub fn only(self, keep: impl Fn(&T) -> bool) -> Self {
        Allowed((self.0.into_iter().filter(|(_, target)| keep(target))).collect())
    }
}

impl<T> fmt::Display for Allowed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
        if !names.contains(&"OPTIONS") {
            names.push("OPTIONS");
        }
        names.sort_unstable();
        f.write_str(&names.join(", "))
    }
}

/// Why a route cannot be added: its pattern is not valid, or it clashes with another route.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteError {
    /// A sentence, without the name of the view.
    pub sentence: String,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for RouteError {}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Router {
            trees: BTreeMap::new(),
            known: HashMap::new(),
            patterns: Vec::new(),
        }
    }
}

/// The most parameters of a pattern: matchit names parameters by the letters of the alphabet, and panics when a pattern
/// has more parameters than that.
const BRACES_MAX: usize = 25;

impl<T: fmt::Display> Router<T> {
    /// Adds a route. `pattern` is a whole path with `{name}` for one segment and `{*rest}` for all remaining segments.
    ///
    /// # Errors
    /// When the pattern is malformed, matches the same paths as another one, or has a target for the method already.
    pub fn add(&mut self, method: &Method, pattern: &str, target: T) -> Result<(), RouteError> {
        let wrong = |sentence: String| RouteError { sentence };
        let decoded = decoded_pattern(pattern).ok_or_else(|| {
            wrong(format!(
                "the pattern {pattern} is malformed: it is no text when decoded"
            ))
        })?;
        if pattern.matches('{').count() > BRACES_MAX {
            return Err(wrong(format!(
                "the pattern {pattern} has more than {BRACES_MAX} parameters and braces"
            )));
        }
        let index = match self.known.get(&decoded) {
            Some(index) => *index,
            None => {
                self.patterns.push(Pattern {
                    written: pattern.to_owned(),
                    targets: BTreeMap::new(),
                });
                self.known.insert(decoded.clone(), self.patterns.len() - 1);
                self.patterns.len() - 1
            }
        };
        let targets = &self.patterns[index].targets;
        if let Some(taken) = targets.get(method.as_str()) {
            return Err(wrong(format!(
                "{method} {pattern} is already served by {taken}"
            )));
        }
        let also_head = (method == Method::GET).then_some("HEAD");
        for tree in [Some(method.as_str()), also_head].into_iter().flatten() {
            // The tree of HEAD has the pattern already when GET or HEAD was added before.
            let is_there =
                tree == "HEAD" && ["GET", "HEAD"].iter().any(|m| targets.contains_key(*m));
            if is_there {
                continue;
            }
            let tree = self.trees.entry(tree.to_owned()).or_default();
            match tree.insert(decoded.as_str(), index) {
                Ok(()) => {}
                Err(matchit::InsertError::Conflict { with }) => {
                    let other = self.known.get(&with).map(|index| &self.patterns[*index]);
                    let with = other.map_or(with.as_str(), |pattern| &pattern.written);
                    return Err(wrong(format!(
                        "the pattern {pattern} matches the same paths as {with}: use the same parameter names, or paths that differ"
                    )));
                }
                Err(error) => {
                    return Err(wrong(format!(
                        "the pattern {pattern} is malformed: {error}"
                    )));
                }
            }
        }
        let targets = &mut self.patterns[index].targets;
        targets.insert(method.as_str().to_owned(), target);
        Ok(())
    }
}

impl<T> Router<T> {
    /// Finds the target of a request. `path` is percent-encoded.
    pub fn route(&self, method: &Method, path: &str) -> Route<'_, T> {
        let Some(decoded) = decoded(path) else {
            return Route::NotText;
        };
        let (own, any) = (
            self.matched(method.as_str(), &decoded),
            self.matched(ANY, &decoded),
        );
        let is_wider = |index: usize, other: usize| {
            let [one, other] = [index, other].map(|index| width(&self.patterns[index].written));
            one > other
        };
        let found = match (own, any) {
            (Some(own), Some(any)) if is_wider(*own.1.value, *any.1.value) => Some(any),
            (own, any) => own.or(any),
        };
        if let Some((target, matched)) = found {
            let params = matched.params.iter();
            let params = params.map(|(name, value)| (name.to_owned(), value.replace(SLASH, "/")));
            return Route::Found(target, params.collect());
        }
        let allowed = (self.trees.keys())
            .filter_map(|method| Some((method.as_str(), self.matched(method, &decoded)?.0)));
        let allowed = Allowed(allowed.collect());
        if allowed.0.is_empty() {
            Route::NotFound
        } else if method == Method::OPTIONS {
            Route::Options(allowed)
        } else {
            Route::MethodNotAllowed(allowed)
        }
    }

    fn matched<'a, 'p>(
        &'a self,
        method: &str,
        decoded: &'p str,
    ) -> Option<(&'a T, matchit::Match<'a, 'p, &'a usize>)> {
        let matched = self.trees.get(method)?.at(decoded).ok()?;
        let targets = &self.patterns[*matched.value].targets;
        let get = || targets.get("GET").filter(|_| method == "HEAD");
        Some((targets.get(method).or_else(get)?, matched))
    }
}

/// Takes the place of an encoded slash while paths are matched, so that only real slashes separate segments. U+10FFFF
/// is reserved for such internal uses (Unicode, 23.7: noncharacters). A path that contains it is refused.
const SLASH: char = '\u{10ffff}';

/// The decoded form of a path, for matching; none when that is not UTF-8 or contains [`SLASH`]. Most paths have nothing
/// to decode and are returned as they are.
fn decoded(path: &str) -> Option<Cow<'_, str>> {
    if !path.bytes().any(|byte| byte == b'%' || byte >= 0x80) {
        return Some(Cow::Borrowed(path));
    }
    let mut text = String::with_capacity(path.len());
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            text.push('/');
        }
        let segment = percent_decode_str(segment).decode_utf8().ok()?;
        if segment.contains(SLASH) {
            return None;
        }
        text.extend(segment.chars().map(|c| if c == '/' { SLASH } else { c }));
    }
    Some(Cow::Owned(text))
}

/// The decoded form of a pattern, with its parameters unchanged; none when that is not UTF-8.
fn decoded_pattern(pattern: &str) -> Option<String> {
    let mut text = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while !rest.is_empty() {
        let literal = &rest[..rest.find(['{', '}']).unwrap_or(rest.len())];
        // Decoding can yield braces. In a pattern, a doubled brace stands for the brace itself.
        let literal_decoded = decoded(literal)?.replace('{', "{{").replace('}', "}}");
        text.push_str(&literal_decoded);
        rest = &rest[literal.len()..];
        let kept = match rest.find('}') {
            _ if rest.starts_with("{{") || rest.starts_with("}}") => 2,
            Some(end) if rest.starts_with('{') => end + 1,
            // Malformed: kept as it is, since matchit reports it when the pattern is added.
            _ => rest.len(),
        };
        text.push_str(&rest[..kept]);
        rest = &rest[kept..];
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn router(routes: &[(Method, &str)]) -> Router<String> {
        let mut router = Router::default();
        for (method, pattern) in routes {
            router
                .add(method, pattern, format!("{method} {pattern}"))
                .expect("the routes do not clash");
        }
        router
    }

    /// Routes a request whose method the path does not have, and returns the methods that the path has.
    #[track_caller]
    fn not_allowed(router: &Router<String>, method: Method, path: &str) -> String {
        match router.route(&method, path) {
            Route::MethodNotAllowed(allowed) if method != Method::OPTIONS => allowed.to_string(),
            Route::Options(allowed) if method == Method::OPTIONS => allowed.to_string(),
            other => panic!("{method} {path}: {other:?}"),
        }
    }

    /// A router as simple as possible, to compare with: matches one pattern with the segments of a path. Returns the
    /// width of each segment of the pattern (see [`width`]) and the values of the parameters. The least widths fit
    /// best.
    fn fits(pattern: &str, path: &[String]) -> Option<(Vec<u8>, Vec<String>)> {
        let pattern: Vec<&str> = pattern.split('/').skip(1).collect();
        let (mut fit, mut params) = (Vec::new(), Vec::new());
        for (index, part) in pattern.iter().enumerate() {
            if part.starts_with("{*") {
                let rest = path.get(index..)?.join("/");
                params.push(rest.clone());
                fit.push(2);
                return (!rest.is_empty()).then_some((fit, params));
            }
            let segment = path.get(index)?;
            if part.starts_with('{') {
                params.push(segment.clone());
                fit.push(1);
                if segment.is_empty() {
                    return None;
                }
            } else {
                fit.push(0);
                if segment != part {
                    return None;
                }
            }
        }
        (path.len() == pattern.len()).then_some((fit, params))
    }

    /// A percent-encoded segment. `how` chooses the case of hex digits, and whether letters and digits are encoded,
    /// too.
    fn encoded(segment: &str, how: u8) -> String {
        let byte = |byte: u8| match how {
            0 => format!("%{byte:02X}"),
            1 => format!("%{byte:02x}"),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        segment.bytes().map(byte).collect()
    }

    #[test]
    fn methods_of_one_pattern_are_told_apart() {
        let router = router(&[
            (Method::GET, "/"),
            (Method::GET, "/entries/{id}"),
            (Method::DELETE, "/entries/{id}"),
        ]);
        let id = vec![("id".to_owned(), "7".to_owned())];
        assert_eq!(
            router.route(&Method::DELETE, "/entries/7"),
            Route::Found(&"DELETE /entries/{id}".into(), id.clone())
        );
        assert_eq!(
            router.route(&Method::HEAD, "/entries/7"),
            Route::Found(&"GET /entries/{id}".into(), id)
        );
        assert_eq!(
            not_allowed(&router, Method::POST, "/"),
            "GET, HEAD, OPTIONS"
        );
        assert_eq!(
            not_allowed(&router, Method::OPTIONS, "/entries/7"),
            "DELETE, GET, HEAD, OPTIONS"
        );
        assert_eq!(router.route(&Method::GET, "/entries/"), Route::NotFound);
    }

    #[test]
    fn any_method_comes_after_those_that_are_named() {
        let any = Method::from_bytes(b"*").expect("it is a token");
        let purge = Method::from_bytes(b"PURGE").expect("it is a token");
        let router = router(&[(Method::GET, "/"), (any.clone(), "/"), (any, "/all")]);
        for (method, path, target) in [
            (&Method::GET, "/", "GET /"),
            (&Method::HEAD, "/", "GET /"),
            (&Method::OPTIONS, "/", "* /"),
            (&purge, "/", "* /"),
            (&Method::HEAD, "/all", "* /all"),
        ] {
            let found = router.route(method, path);
            assert_eq!(
                found,
                Route::Found(&target.into(), Vec::new()),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn parameters_are_decoded() {
        let router = router(&[(Method::GET, "/a/{x}/b/{*rest}")]);
        let expected = vec![
            ("x".to_owned(), "ä/ö".to_owned()),
            ("rest".to_owned(), "c/d e".to_owned()),
        ];
        assert_eq!(
            router.route(&Method::GET, "/a/%C3%A4%2F%C3%B6/b/c/d%20e"),
            Route::Found(&"GET /a/{x}/b/{*rest}".into(), expected)
        );
        for path in ["/a/%ff/b/c", "/%ff", "/a/%f4%8f%bf%bf/b/c"] {
            assert_eq!(router.route(&Method::GET, path), Route::NotText, "{path}");
        }
    }

    /// RFC 3986, 6.2.2: the encoding of a path does not matter, in the pattern or in the request.
    #[test]
    fn literals_match_however_they_are_encoded() {
        for pattern in ["/grüße", "/gr%C3%BC%c3%9fe", "/%67rü%C3%9Fe"] {
            let router = router(&[(Method::GET, pattern)]);
            for path in [
                "/grüße",
                "/gr%C3%BC%C3%9Fe",
                "/gr%c3%bc%c3%9Fe",
                "/%67r%c3%bcße",
            ] {
                assert!(
                    matches!(router.route(&Method::GET, path), Route::Found(..)),
                    "{pattern} {path}"
                );
            }
            assert_eq!(router.route(&Method::GET, "/gruße"), Route::NotFound);
        }
        let router = router(&[
            (Method::GET, "/a-b_c.d~e"),
            (Method::GET, "/x:y+z"),
            (Method::GET, "/{{a}}/{id}"),
            (Method::GET, "/{id}%25"),
        ]);
        for path in [
            "/a%2Db%5fc%2ed%7Ee",
            "/x%3ay%2Bz",
            "/%7Ba}/1",
            "/100%25",
            "/%25%25",
        ] {
            let route = router.route(&Method::GET, path);
            assert!(matches!(route, Route::Found(..)), "{path}: {route:?}");
        }
        // An encoded slash does not separate segments, and what looks encoded after decoding is not decoded again.
        for path in ["/%2Fx:y+z", "/x%253ay+z", "/{a}%2F1", "/%2525a"] {
            assert_eq!(router.route(&Method::GET, path), Route::NotFound, "{path}");
        }
    }

    /// Whichever of two patterns is more specific, the methods of the other one stay reachable.
    #[test]
    fn a_pattern_does_not_hide_another_one_that_has_the_method() {
        let router = router(&[
            (Method::GET, "/entries/{id}"),
            (Method::POST, "/entries/import"),
            (Method::DELETE, "/entries/{name}"),
            (Method::PUT, "/{*rest}"),
            (Method::HEAD, "/{*rest}"),
        ]);
        let found = |method: Method, path: &str| match router.route(&method, path) {
            Route::Found(target, _) => target.clone(),
            other => format!("{other:?}"),
        };
        let import = "/entries/import";
        assert_eq!(found(Method::GET, import), "GET /entries/{id}");
        assert_eq!(found(Method::HEAD, import), "GET /entries/{id}");
        assert_eq!(found(Method::POST, import), "POST /entries/import");
        assert_eq!(found(Method::DELETE, import), "DELETE /entries/{name}");
        assert_eq!(found(Method::PUT, import), "PUT /{*rest}");
        assert_eq!(found(Method::HEAD, "/other"), "HEAD /{*rest}");
        assert_eq!(
            not_allowed(&router, Method::PATCH, import),
            "DELETE, GET, HEAD, OPTIONS, POST, PUT"
        );
        assert_eq!(
            not_allowed(&router, Method::POST, "/entries/7"),
            "DELETE, GET, HEAD, OPTIONS, PUT"
        );
    }

    /// As in axum and Django, nothing but the percent-encoding of a path is rewritten.
    #[test]
    fn slashes_and_dots_are_taken_as_they_are() {
        let router = router(&[
            (Method::GET, "/a/b"),
            (Method::GET, "/c/"),
            (Method::GET, "/f/{*rest}"),
        ]);
        for path in [
            "/a/b/",
            "/a//b",
            "//a/b",
            "/c",
            "/a/./b",
            "/x/../a/b",
            "/a/%2e/b",
            "",
            "a/b",
        ] {
            assert_eq!(router.route(&Method::GET, path), Route::NotFound, "{path}");
        }
        let rest = |path| match router.route(&Method::GET, path) {
            Route::Found(_, params) => params[0].1.clone(),
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(rest("/f/../x"), "../x");
        assert_eq!(rest("/f/%2e%2E%2fx"), "../x");
    }

    #[test]
    fn clashes_are_named() {
        let mut router = router(&[(Method::GET, "/entries/{id}"), (Method::GET, "/{page}")]);
        let again = router
            .add(&Method::GET, "/entries/{id}", "second".into())
            .expect_err("it is taken");
        assert_eq!(
            again.sentence,
            "GET /entries/{id} is already served by GET /entries/{id}"
        );
        let other = router
            .add(&Method::GET, "/entries/{name}", "third".into())
            .expect_err("it is ambiguous");
        assert!(
            other
                .sentence
                .contains("/entries/{name} matches the same paths as /entries/{id}"),
            "{other}"
        );
        let bad = router
            .add(&Method::POST, "/entries/{", "fourth".into())
            .expect_err("it is malformed");
        assert!(bad.sentence.contains("malformed"), "{bad}");
        let long = |count| (0..count).map(|n| format!("/{{p{n}}}")).collect::<String>();
        let many = router
            .add(&Method::POST, &long(26), "many".into())
            .expect_err("it has too many parameters");
        assert!(many.sentence.contains("more than 25"), "{many}");
        router
            .add(&Method::POST, &long(25), "as many as can be".into())
            .expect("it has just as many");
        // A literal segment does not conflict with a parameter in the same position.
        router
            .add(&Method::GET, "/entries/new", "fifth".into())
            .expect("literal segments go first");
        router
            .add(&Method::POST, "/{page}", "sixth".into())
            .expect("another method");
    }

    proptest! {
        #[test]
        fn any_path_is_answered(path in "(/[ -~]{0,12}){0,6}|\\PC{0,40}") {
            let router = router(&[(Method::GET, "/"), (Method::GET, "/a/{b}"), (Method::POST, "/a/{b}/{*c}")]);
            let _ = router.route(&Method::GET, &path);
            let _ = router.route(&Method::POST, &path);
        }

        #[test]
        fn a_segment_comes_back_as_it_was(segment in "\\PC{1,20}") {
            let router = router(&[(Method::GET, "/a/{b}")]);
            let encoded = percent_encoding::utf8_percent_encode(&segment, percent_encoding::NON_ALPHANUMERIC);
            let path = format!("/a/{encoded}");
            let found = router.route(&Method::GET, &path);
            let expected = vec![("b".to_owned(), segment)];
            prop_assert_eq!(found, Route::Found(&"GET /a/{b}".into(), expected));
        }

        /// Of the patterns that have the method, the one that fits best wins, and its parameters are right.
        #[test]
        fn it_routes_as_the_simplest_router_does(
            patterns in prop::collection::vec(
                (0..2_usize, prop::collection::vec("a|b|é|%|\\{x\\}|\\{x\\}", 1..4), any::<bool>()), 1..8),
            path in prop::collection::vec("a|b|é|%|/|c|", 1..5),
            how in 0..3_u8,
        ) {
            let methods = [Method::GET, Method::POST];
            let mut router = Router::default();
            let mut known = Vec::new();
            for (method, segments, rest) in patterns {
                let name = |(index, segment): (usize, &String)| match segment.as_str() {
                    "{x}" => format!("/{{x{index}}}"),
                    "%" => "/%25".to_owned(),
                    literal => format!("/{literal}"),
                };
                let mut pattern: String = segments.iter().enumerate().map(name).collect();
                if rest {
                    pattern.push_str("/{*rest}");
                }
                if router.add(&methods[method], &pattern, pattern.clone()).is_ok() {
                    known.push((method, pattern));
                }
            }
            let written: String = path.iter().map(|segment| format!("/{}", encoded(segment, how))).collect();
            for (index, method) in methods.iter().enumerate() {
                let fit = |(_, pattern): &&(usize, String)| fits(&pattern.replace("%25", "%"), &path);
                let own = known.iter().filter(|(method, _)| *method == index);
                let best = own.filter_map(|known| Some((fit(&known)?, &known.1))).min();
                match (router.route(method, &written), best) {
                    (Route::Found(target, params), Some(((_, values), pattern))) => {
                        prop_assert_eq!(target, pattern);
                        let params: Vec<String> = params.into_iter().map(|(_, value)| value).collect();
                        prop_assert_eq!(params, values);
                    }
                    (Route::MethodNotAllowed(_), None) => {
                        prop_assert!(known.iter().any(|known| fit(&known).is_some()));
                    }
                    (Route::NotFound, None) => {
                        prop_assert!(!known.iter().any(|known| fit(&known).is_some()));
                    }
                    (route, best) => prop_assert!(false, "{route:?} {best:?}"),
                }
            }
        }

        #[test]
        fn no_pattern_makes_it_panic(patterns in prop::collection::vec("/[a-z{}*/]{0,8}", 0..8), path in "/[a-z{}*/]{0,12}") {
            let mut router = Router::default();
            for pattern in patterns {
                let _ = router.add(&Method::GET, &pattern, pattern.clone());
            }
            let _ = router.route(&Method::GET, &path);
        }
    }
}
