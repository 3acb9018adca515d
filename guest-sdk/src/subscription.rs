//! Responses that the host writes as messages to a group come: no function runs meanwhile.

use crate::bindings::amphi::view::types::{Subscription, SubscriptionForm};
use crate::mode::Mode;
use crate::{Context, FromRequest, IntoResponse, Request, Response, Result};
use std::time::Duration;

/// What is sent to a group from now on, as Server-Sent Events: the response for `new EventSource("…")` of a browser.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// /// A browser that connects again names the last event that it has got, and gets those that it has missed.
/// #[view(get, "/rooms/{room}/events")]
/// fn events(Path(room): Path<String>, LastEventId(last): LastEventId) -> EventStream {
///     EventStream::of(format!("room.{room}")).after(last)
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let response = App::new().call::<events>(get("/rooms/7/events").header("last-event-id", "41"));
/// # let subscription = response.subscription().expect("it is one");
/// # assert_eq!((subscription.group.as_str(), subscription.after.as_deref()), ("room.7", Some("41")));
/// # assert_eq!(subscription.poll, None);
/// ```
///
/// The view decides who may listen, and to which group; then it has returned, and the connection holds nothing of the
/// module's. Each message of [`Channels::send`](crate::channels::Channels::send) becomes an event with an id. The module
/// needs a grant for the group: `channels = ["room.*"]`. Groups keep messages for later clients if `[channels]` says so:
/// `history = { "room.*" = 100 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a subscription does nothing until a view returns it"]
pub struct EventStream {
    group: String,
    after: Option<String>,
}

impl EventStream {
    /// The messages to this group.
    pub fn of(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            after: None,
        }
    }

    /// Begins with the messages after the one with this id, as far as the group's history reaches; see [`LastEventId`].
    /// `None`: only with those that are sent from now on.
    pub fn after(self, id: impl Into<Option<String>>) -> Self {
        Self {
            after: id.into(),
            ..self
        }
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Result<Response> {
        Ok(Response::subscription(Subscription {
            group: self.group,
            form: SubscriptionForm::EventStream,
            after: self.after,
        }))
    }
}

/// The messages to a group after one that the client has, as a JSON list, as soon as there is one: a long poll, for
/// clients that cannot keep a connection.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Since { after: Option<String> }
///
/// #[view(get, "/rooms/{room}/messages")]
/// async fn messages(Path(room): Path<String>, Query(Since { after }): Query<Since>) -> Poll {
///     Poll::of(format!("room.{room}"), after, Duration::from_secs(20))
/// }
/// # use amphi_sdk::testing::{App, get};
/// # let response = App::new().call::<messages>(get("/rooms/7/messages?after=41"));
/// # let subscription = response.subscription().expect("it is one");
/// # assert_eq!((subscription.group.as_str(), subscription.after.as_deref()), ("room.7", Some("41")));
/// # assert_eq!(subscription.poll, Some(Duration::from_secs(20)));
/// ```
///
/// When there is none within the time, the client gets 204. The module needs a grant for the group:
/// `channels = ["room.*"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a subscription does nothing until a view returns it"]
pub struct Poll {
    group: String,
    after: Option<String>,
    timeout: Duration,
}

impl Poll {
    /// The messages to this group after the one with the id `after`, as far as the group's history reaches; with `None`,
    /// those that are sent from now on. The host waits for them at most for `timeout`.
    pub fn of(
        group: impl Into<String>,
        after: impl Into<Option<String>>,
        timeout: Duration,
    ) -> Self {
        Self {
            group: group.into(),
            after: after.into(),
            timeout,
        }
    }
}

impl IntoResponse for Poll {
    fn into_response(self) -> Result<Response> {
        let ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        Ok(Response::subscription(Subscription {
            group: self.group,
            form: SubscriptionForm::Poll(ms),
            after: self.after,
        }))
    }
}

/// The id of the last event that a browser has got of an [`EventStream`], from the header `Last-Event-ID`. Browsers send
/// it when they connect again. `None` when the client connects for the first time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastEventId(pub Option<String>);

impl FromRequest for LastEventId {
    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        let id = request.headers.get("last-event-id");
        Ok(Self(id.filter(|id| !id.is_empty()).map(str::to_owned)))
    }
}
