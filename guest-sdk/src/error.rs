//! The error type of views.
//!
//! Views use `?` on everything: on calls of the context, on extractors, on the errors of other crates. All of these
//! become an [`Error`], which has a status, a message for the client and a detail for the log. There is only one error
//! type, so that `try_join!` and `atomic` need no type annotations. Code that reacts to a failure of the database or of
//! an outbound request asks the error for its kind.

use crate::host::{
    BodyError, ChannelError, ConversationError, DatabaseError, EventError, HttpError, ViewError,
};
use crate::{database, http};
use ::http::StatusCode;
use std::fmt;

/// The result of a view, and of everything that it calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a view failed: a status, a message for the client and a detail for the log. The host turns the error into a
/// response and rolls the view's transaction back.
///
/// With `?`, any `std::error::Error` becomes a 500. Its text goes to the log only.
///
/// ```
/// use amphi_sdk::{Error, StatusCode};
///
/// let error = Error::not_found("no entry 7");
/// assert_eq!((error.status(), error.message()), (StatusCode::NOT_FOUND, "no entry 7"));
///
/// fn parse(text: &str) -> amphi_sdk::Result<u32> {
///     Ok(text.parse()?)
/// }
/// let error = parse("seven").expect_err("no number");
/// assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
/// assert_eq!(error.detail(), Some("invalid digit found in string"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    status: StatusCode,
    message: String,
    detail: Option<String>,
    kind: Option<Kind>,
    violation: Option<Box<database::Violation>>,
}

/// Which capability failed, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Database(database::ErrorKind),
    Http(http::ErrorKind),
}

impl Error {
    /// An error with this status, from 400 to 599. The client gets the message when the status is below 500, and a generic
    /// text otherwise.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let error = Self {
            status,
            message: message.into(),
            detail: None,
            kind: None,
            violation: None,
        };
        if status.is_client_error() || status.is_server_error() {
            return error;
        }
        let detail = format!("an error needs a status from 400 to 599, but the view gave {status}");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            ..error
        }
        .with_detail(detail)
    }

    /// 400: the request is malformed.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401: the client has to sign in.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 403: the client is not allowed to do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: there is nothing at this path.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: the request conflicts with existing data.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 422: the request is well-formed, but its values are not acceptable.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    /// 500. `detail` says in the log what happened; the client gets a generic text.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::failure(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    /// Puts a text in front of the detail, which only the log shows.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        self.detail = Some(match self.detail {
            Some(known) => format!("{detail}: {known}"),
            None => detail,
        });
        self
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The message for the client. The host sends it when the status is below 500.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The detail, which only the log shows.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The kind of failure, when this error comes from a database.
    pub fn database_kind(&self) -> Option<database::ErrorKind> {
        match self.kind {
            Some(Kind::Database(kind)) => Some(kind),
            _ => None,
        }
    }

    /// The constraint that refused a change, and its columns. SQLite and PostgreSQL do not report the same names; see
    /// [`Violation`](database::Violation).
    ///
    /// ```
    /// use amphi_sdk::database::ErrorKind;
    /// # use amphi_sdk::testing::App;
    /// # let app = App::new().execute_batch("create table users (name text unique, email text unique); insert into users values ('ann', 'a@example.com')");
    /// # let cx = app.context();
    /// let added = cx.db().execute("insert into users values ($1, $2)", ("bob", "a@example.com"));
    /// let error = added.expect_err("she has it");
    /// assert_eq!(error.database_kind(), Some(ErrorKind::Unique));
    /// assert_eq!(error.violation().map(|violation| &*violation.columns), Some(&["email".to_owned()][..]));
    /// assert_eq!(error.status(), 409);
    /// ```
    pub fn violation(&self) -> Option<&database::Violation> {
        self.violation.as_deref()
    }

    /// The kind of failure, when this error comes from an outbound request.
    pub fn http_kind(&self) -> Option<http::ErrorKind> {
        match self.kind {
            Some(Kind::Http(kind)) => Some(kind),
            _ => None,
        }
    }

    /// The text for developers: the detail, or the message when there is no detail.
    pub(crate) fn reason(&self) -> &str {
        self.detail.as_deref().unwrap_or(&self.message)
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn into_parts(self) -> (StatusCode, String, Option<String>) {
        (self.status, self.message, self.detail)
    }

    /// An error with a status of 500 or above, with the standard text of that status as its message.
    fn failure(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::new(
            status,
            status.canonical_reason().unwrap_or("error").to_lowercase(),
        )
        .with_detail(detail)
    }

    /// The status says whose fault a failure is. The client is at fault for 409 (a conflict with existing data) and 400
    /// (a value that cannot be stored). 503 stands for a temporary failure, and 504 for a request that is over. For all
    /// other failures, the view is at fault: 500.
    pub(crate) fn from_database(error: DatabaseError) -> Self {
        use database::ErrorKind;
        let detail = format!("database: {}", error.message);
        let status = match error.kind {
            ErrorKind::Unique | ErrorKind::ForeignKey | ErrorKind::Constraint => {
                StatusCode::CONFLICT
            }
            ErrorKind::NotNull | ErrorKind::Check | ErrorKind::DataType => StatusCode::BAD_REQUEST,
            ErrorKind::Conflict | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Aborted => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Denied
            | ErrorKind::Statement
            | ErrorKind::Poisoned
            | ErrorKind::TooLarge
            | ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = match error.kind {
            ErrorKind::Unique => Some("there is such an entry already"),
            ErrorKind::ForeignKey => {
                Some("this refers to something that is not there, or is still referred to")
            }
            ErrorKind::Constraint => Some("this contradicts data that is already there"),
            ErrorKind::NotNull => Some("a value is missing"),
            ErrorKind::Check | ErrorKind::DataType => Some("a value is not allowed"),
            _ => None,
        };
        Self {
            kind: Some(Kind::Database(error.kind)),
            violation: error.violation.map(Box::new),
            ..match message {
                Some(message) => Self::new(status, message).with_detail(detail),
                None => Self::failure(status, detail),
            }
        }
    }

    /// `what` is the text for the outbound request in the detail, e.g. `GET /weather`.
    pub(crate) fn from_http(error: HttpError, what: &str) -> Self {
        use http::ErrorKind;
        let (kind, status, text) = match error {
            HttpError::Denied(text) => (ErrorKind::Denied, StatusCode::INTERNAL_SERVER_ERROR, text),
            HttpError::Invalid(text) => {
                (ErrorKind::Invalid, StatusCode::INTERNAL_SERVER_ERROR, text)
            }
            HttpError::Timeout => (
                ErrorKind::Timeout,
                StatusCode::GATEWAY_TIMEOUT,
                "no answer in time".into(),
            ),
            HttpError::Connection(text) => (ErrorKind::Connection, StatusCode::BAD_GATEWAY, text),
            HttpError::TooLarge(text) => (ErrorKind::TooLarge, StatusCode::BAD_GATEWAY, text),
            HttpError::Unavailable(text) => (
                ErrorKind::Unavailable,
                StatusCode::SERVICE_UNAVAILABLE,
                text,
            ),
            HttpError::Aborted => (
                ErrorKind::Aborted,
                StatusCode::GATEWAY_TIMEOUT,
                "this request itself is over".into(),
            ),
        };
        Self {
            kind: Some(Kind::Http(kind)),
            ..Self::failure(status, format!("{what}: {text}"))
        }
    }

    /// The error that another guest function has returned.
    pub(crate) fn from_view(error: ViewError) -> Self {
        let status = StatusCode::from_u16(error.status);
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: error.message,
            detail: error.detail,
            kind: None,
            violation: None,
        }
    }

    pub(crate) fn from_event(error: EventError) -> Self {
        match error {
            EventError::Denied(text) | EventError::TooLarge(text) => Self::internal(text),
            EventError::Full(text) => Self::failure(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }

    pub(crate) fn from_channel(error: ChannelError) -> Self {
        match error {
            ChannelError::Denied(text) | ChannelError::TooLarge(text) => Self::internal(text),
            ChannelError::Full(text) => Self::failure(StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }

    pub(crate) fn from_conversation(error: ConversationError) -> Self {
        match error {
            // The host knows this status: a function that ends with it has not failed.
            ConversationError::Ended => Self {
                status: StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                ..Self::bad_request("the connection has ended")
            },
            ConversationError::Refused(text) => Self::internal(text),
        }
    }

    pub(crate) fn from_body(error: BodyError) -> Self {
        match error {
            BodyError::Io(text) => Self::internal(format!("reading the request body: {text}")),
            BodyError::Aborted => Self::failure(StatusCode::GATEWAY_TIMEOUT, "the request is over"),
        }
    }

    pub(crate) fn from_writer(error: BodyError) -> Self {
        match error {
            BodyError::Io(text) => Self::internal(format!("writing the response body: {text}")),
            BodyError::Aborted => Self::failure(
                StatusCode::GATEWAY_TIMEOUT,
                "the client has gone, or a limit has ended the stream",
            ),
        }
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut detail = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            detail = format!("{detail}: {cause}");
            source = cause.source();
        }
        Self::internal(detail)
    }
}

/// `Error` itself does not implement `std::error::Error`: if it did, Rust would not allow the `From` above, which lets
/// `?` convert every type that implements `std::error::Error`.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}
