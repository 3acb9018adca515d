//! Method and path to a target: the app's routing table.
//!
//! Knows neither views nor HTTP bodies: a target is whatever the caller puts in.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use http::Method;
use percent_encoding::percent_decode_str;

/// A routing table.
pub struct Router<T> {
    paths: matchit::Router<usize>,
    /// Where in `targets` each pattern is.
    patterns: HashMap<String, usize>,
    targets: Vec<Methods<T>>,
}

/// In the place of a method: every one that has no target of its own.
const ANY: &str = "*";

/// The targets of one pattern, by method.
type Methods<T> = BTreeMap<String, T>;

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a, T> {
    /// To this target, with the decoded path parameters.
    Found(&'a T, Vec<(String, String)>),
    /// Nowhere: no pattern matches the path.
    NotFound,
    /// A pattern matches, but not with this method; the methods that do, for the `allow` header.
    MethodNotAllowed(String),
    /// `OPTIONS`, which the host answers; the methods there are.
    Options(String),
    /// A path parameter is not UTF-8 when decoded.
    NotUtf8(String),
}

/// Two things want the same route, or a pattern is not one.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteError {
    /// The sentence that says so, without the name of who wanted it.
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
            paths: matchit::Router::new(),
            patterns: HashMap::new(),
            targets: Vec::new(),
        }
    }
}

impl<T: fmt::Display> Router<T> {
    /// Adds a route. `pattern` is a whole path with `{name}` for one segment and `{*rest}` for the remaining ones.
    ///
    /// # Errors
    /// When the pattern is malformed, or overlaps another one ambiguously, or the method is taken.
    pub fn add(&mut self, method: &Method, pattern: &str, target: T) -> Result<(), RouteError> {
        let conflict = |sentence: String| Err(RouteError { sentence });
        if let Some(known) = self.patterns.get(pattern) {
            let methods = &mut self.targets[*known];
            if let Some(taken) = methods.get(method.as_str()) {
                return conflict(format!("{method} {pattern} is already served by {taken}"));
            }
            methods.insert(method.as_str().to_owned(), target);
            return Ok(());
        }
        match self.paths.insert(pattern, self.targets.len()) {
            Ok(()) => {}
            Err(matchit::InsertError::Conflict { with }) => {
                return conflict(format!(
                    "the pattern {pattern} matches the same paths as {with}: use the same parameter names, or paths that differ"
                ));
            }
            Err(error) => return conflict(format!("the pattern {pattern} is malformed: {error}")),
        }
        self.patterns.insert(pattern.to_owned(), self.targets.len());
        self.targets
            .push(Methods::from([(method.as_str().to_owned(), target)]));
        Ok(())
    }
}

impl<T> Router<T> {
    /// Finds the target for a request. `path` is still percent-encoded.
    pub fn route(&self, method: &Method, path: &str) -> Route<'_, T> {
        let Ok(matched) = self.paths.at(path) else {
            return Route::NotFound;
        };
        let methods = &self.targets[*matched.value];
        let target = match methods.get(method.as_str()) {
            None if method == Method::HEAD && methods.contains_key("GET") => methods.get("GET"),
            None if methods.contains_key(ANY) => methods.get(ANY),
            None if method == Method::OPTIONS => return Route::Options(allow(methods)),
            target => target,
        };
        let Some(target) = target else {
            return Route::MethodNotAllowed(allow(methods));
        };
        let mut params = Vec::with_capacity(matched.params.len());
        for (name, value) in matched.params.iter() {
            match percent_decode_str(value).decode_utf8() {
                Ok(value) => params.push((name.to_owned(), value.into_owned())),
                Err(_) => return Route::NotUtf8(name.to_owned()),
            }
        }
        Route::Found(target, params)
    }
}

fn allow<T>(methods: &Methods<T>) -> String {
    let mut names: Vec<&str> = methods.keys().map(String::as_str).collect();
    if methods.contains_key("GET") && !methods.contains_key("HEAD") {
        names.push("HEAD");
    }
    if !methods.contains_key("OPTIONS") {
        names.push("OPTIONS");
    }
    names.sort_unstable();
    names.join(", ")
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
            router.route(&Method::POST, "/"),
            Route::MethodNotAllowed("GET, HEAD, OPTIONS".into())
        );
        assert_eq!(
            router.route(&Method::OPTIONS, "/entries/7"),
            Route::Options("DELETE, GET, HEAD, OPTIONS".into())
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
        assert_eq!(
            router.route(&Method::GET, "/a/%ff/b/c"),
            Route::NotUtf8("x".into())
        );
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
            .add(&Method::POST, "/entries/{name}", "third".into())
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
        // A literal segment beside a parameter is no clash.
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
