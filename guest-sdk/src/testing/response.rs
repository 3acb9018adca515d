//! Responses of tests.

use super::call::error_response;
use crate::bindings::amphi::view::types;
use crate::session::{Settings, Values};
use crate::{Error, Headers, Response, Result, StatusCode};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::time::Duration;

/// The response that the client would get, and the view's error if there was one.
#[derive(Clone, Debug)]
pub struct TestResponse {
    response: Response,
    error: Option<Error>,
    /// The values of the session after this response.
    session: Values,
    /// Why the body breaks off.
    broken: Option<Error>,
    trailers: Headers,
    subscription: Option<Subscription>,
}

/// What the client waits for, when a view has answered with an [`EventStream`](crate::EventStream) or a
/// [`Poll`](crate::Poll).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The group.
    pub group: String,
    /// The id of the last message that the client has.
    pub after: Option<String>,
    /// How long a `Poll` waits. `None` for an `EventStream`.
    pub poll: Option<Duration>,
}

impl From<types::Subscription> for Subscription {
    fn from(subscription: types::Subscription) -> Self {
        let types::Subscription { group, form, after } = subscription;
        let poll = match form {
            types::SubscriptionForm::EventStream => None,
            types::SubscriptionForm::Poll(ms) => Some(Duration::from_millis(ms.into())),
        };
        Self { group, after, poll }
    }
}

impl TestResponse {
    /// `session` holds the values that the session had in the request.
    pub(super) fn new(
        outcome: Result<Response>,
        view: &str,
        session: Values,
        settings: &HashMap<String, String>,
    ) -> Self {
        match outcome {
            Ok(response) => Self {
                session: Settings::read(|name| settings.get(name).cloned())
                    .ok()
                    .and_then(|settings| settings.set_in(&response))
                    .unwrap_or(session),
                response,
                error: None,
                broken: None,
                trailers: Headers::new(),
                subscription: None,
            },
            Err(error) => {
                // The test harness prints this when the test fails.
                eprintln!("the view `{view}` gave an error: {error}");
                Self {
                    response: error_response(&error),
                    error: Some(error),
                    session,
                    broken: None,
                    trailers: Headers::new(),
                    subscription: None,
                }
            }
        }
    }

    /// The response after its body has been written. `ended` says whether the function that wrote it came to its end.
    pub(super) fn after(
        self,
        view: &str,
        ended: Result<()>,
        trailers: Vec<(String, String)>,
    ) -> Self {
        let broken = ended.err();
        if let Some(error) = &broken {
            eprintln!("the body that the view `{view}` streams broke off: {error}");
        }
        Self {
            broken,
            trailers: trailers.into(),
            ..self
        }
    }

    pub(super) fn with_subscription(self, subscription: Option<Subscription>) -> Self {
        Self {
            subscription,
            ..self
        }
    }

    /// What the client waits for, when the view has answered with an [`EventStream`](crate::EventStream) or a
    /// [`Poll`](crate::Poll). The body is empty then.
    pub fn subscription(&self) -> Option<&Subscription> {
        self.subscription.as_ref()
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers.get(name)
    }

    /// A value that the [`Session`](crate::Session) has after this response.
    pub fn session<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        T::deserialize(self.session.get(name)?).ok()
    }

    /// The whole response.
    pub fn response(&self) -> &Response {
        &self.response
    }

    /// The error that the view returned, if it returned one.
    pub fn error(&self) -> Option<&Error> {
        self.error.as_ref()
    }

    /// The error with which the function of a [`Stream`](crate::Stream) ended. The client sees a body that breaks off.
    /// [`body`](Self::body) is what was written before.
    pub fn broken(&self) -> Option<&Error> {
        self.broken.as_ref()
    }

    /// The value of a field that was sent after the body.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.get(name)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.response.body
    }

    /// The body as text.
    ///
    /// # Panics
    ///
    /// When the body is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.body())
            .unwrap_or_else(|error| panic!("the body is not valid UTF-8: {error}"))
    }

    /// The body, read as JSON.
    ///
    /// # Panics
    ///
    /// When the body is not valid JSON, or does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(self.body()).unwrap_or_else(|error| {
            panic!("the body is not the JSON wanted: {error}: {}", self.text())
        })
    }
}
