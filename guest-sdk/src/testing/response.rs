//! The responses of tests.

use super::call::error_response;
use crate::{Error, Response, Result, StatusCode};
use serde::de::DeserializeOwned;

/// What the client would get, and the error behind it.
#[derive(Clone, Debug)]
pub struct TestResponse {
    response: Response,
    error: Option<Error>,
}

impl TestResponse {
    pub(super) fn new(outcome: Result<Response>, view: &str) -> Self {
        match outcome {
            Ok(response) => Self {
                response,
                error: None,
            },
            Err(error) => {
                // The test harness shows this when the test fails.
                eprintln!("the view `{view}` gave an error: {error}");
                Self {
                    response: error_response(&error),
                    error: Some(error),
                }
            }
        }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers.get(name)
    }

    /// The whole response.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The error the view gave, when it gave one.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.response.body
    }

    /// The body as a text.
    ///
    /// # Panics
    ///
    /// When it is none.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body())
            .unwrap_or_else(|error| panic!("the body is no text: {error}"))
    }

    /// The body, read as JSON.
    ///
    /// # Panics
    ///
    /// When it is no JSON, or does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(self.body()).unwrap_or_else(|error| {
            panic!("the body is not the JSON wanted: {error}: {}", self.text())
        })
    }
}
