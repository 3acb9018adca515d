//! A request, and the headers of requests and responses.

use crate::bindings::amphi::view::types;
use crate::body::{Content, Source};

/// The whole request: an extractor for views that need something that no other extractor reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The method in upper case, e.g. `GET`.
    pub method: String,
    /// The path, percent-encoded in one fixed way, however the client encoded it: only characters that a segment must
    /// not contain are encoded, with upper-case hex digits. To find out which route the request matched, use
    /// [`Context::route`](crate::Context::route) instead.
    pub path: String,
    /// The part after the `?`, still percent-encoded; empty when there is none.
    pub query: String,
    /// The headers.
    pub headers: Headers,
    /// The parameters of the view's path pattern: name and percent-decoded value.
    pub params: Vec<(String, String)>,
    pub(crate) content: Content,
}

impl Request {
    /// The parameter of this name in the view's path pattern.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// A new request without headers and body, for tests and for middleware.
    pub fn new(method: impl Into<String>, path: impl Into<String>) -> Self {
        let path = path.into();
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path.to_owned(), query.to_owned()),
            None => (path, String::new()),
        };
        Self {
            method: method.into(),
            path,
            query,
            headers: Headers::new(),
            params: Vec::new(),
            content: Content::Bytes(Vec::new()),
        }
    }

    /// Replaces the body.
    pub fn set_body(&mut self, body: impl Into<Vec<u8>>) {
        self.content = Content::Bytes(body.into());
    }

    /// The body. In middleware, a large body, or one that arrives, is still with the host. Then this is empty until
    /// [`Context::load`](crate::Context::load) has read the body.
    pub fn body(&self) -> &[u8] {
        match &self.content {
            Content::Bytes(bytes) => bytes,
            // The body is not in memory. This does not occur in a view with an extractor that reads the whole body: the
            // body is loaded before the extractors run.
            Content::Host(_) | Content::Begun(..) => &[],
        }
    }

    /// Moves the body out of the request, for extractors that consume it.
    pub fn take_body(&mut self) -> Vec<u8> {
        match std::mem::replace(&mut self.content, Content::Bytes(Vec::new())) {
            Content::Bytes(bytes) => bytes,
            Content::Host(_) | Content::Begun(..) => Vec::new(),
        }
    }

    pub(crate) fn is_with_host(&self) -> bool {
        !matches!(self.content, Content::Bytes(_))
    }

    /// The part of the body that is in memory.
    pub(crate) fn beginning(&self) -> &[u8] {
        match &self.content {
            Content::Bytes(bytes) | Content::Begun(bytes, _) => bytes,
            Content::Host(_) => &[],
        }
    }

    pub(crate) fn has_body(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => !bytes.is_empty(),
            Content::Host(source) => *source != Source::Arriving(Some(0)),
            Content::Begun(..) => true,
        }
    }
}

impl From<Request> for types::Request {
    fn from(request: Request) -> Self {
        Self {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: request.headers.into_inner(),
            params: request.params,
            body: match request.content {
                Content::Bytes(bytes) => types::Body::Bytes(bytes),
                Content::Host(source) | Content::Begun(_, source) => match source {
                    Source::Spooled(length) => types::Body::Spooled(length),
                    Source::Arriving(length) => types::Body::Arriving(length),
                },
            },
        }
    }
}

impl From<types::Request> for Request {
    fn from(request: types::Request) -> Self {
        let content = match request.body {
            types::Body::Bytes(bytes) => Content::Bytes(bytes),
            types::Body::Spooled(length) => Content::Host(Source::Spooled(length)),
            types::Body::Arriving(length) => Content::Host(Source::Arriving(length)),
        };
        Self {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: Headers(request.headers),
            params: request.params,
            content,
        }
    }
}

/// The headers of a request or response, in order. Names are in lower case. This is also an extractor: as a parameter
/// of a view, it has the headers of the request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of the first header of this name. The case of `name` does not matter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next()
    }

    /// The values of all headers of this name.
    pub fn get_all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All headers: name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Adds a header. Other headers of the same name stay.
    pub fn append(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let mut name = name.into();
        name.make_ascii_lowercase();
        self.0.push((name, value.into()));
    }

    /// Sets a header. It replaces all headers of the same name.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        self.0
            .retain(|(known, _)| !known.eq_ignore_ascii_case(&name));
        self.append(name, value);
    }

    /// Removes the headers for which `gone` is true. Returns whether there were any.
    pub(crate) fn remove_if(&mut self, gone: impl Fn(&str, &str) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|(name, value)| !gone(name, value));
        self.0.len() < before
    }

    pub(crate) fn into_inner(self) -> Vec<(String, String)> {
        self.0
    }

    /// Whether `accept` is true for the media type of `content-type` (without its parameters).
    pub(crate) fn content_type_is(&self, accept: impl Fn(&str) -> bool) -> bool {
        self.get("content-type")
            .and_then(|value| value.split(';').next())
            .is_some_and(|media_type| accept(media_type.trim().to_ascii_lowercase().as_str()))
    }
}

impl From<Vec<(String, String)>> for Headers {
    fn from(headers: Vec<(String, String)>) -> Self {
        let mut all = Self::new();
        for (name, value) in headers {
            all.append(name, value);
        }
        all
    }
}
