//! Events.

use crate::extract::BodyUse;
use crate::mode::Mode;
use crate::{Context, Error, FromRequest, Request, Result};
use serde::de::DeserializeOwned;

/// An event that a view has published. An event published in a transaction is delivered after the commit, so its
/// subscribers find in the database what the publisher wrote. A rollback discards the event.
///
/// ```
/// use amphi_sdk::prelude::*;
///
/// #[view(post, "/orders/{id}/paid", atomic)]
/// fn pay(cx: &Context, Path(id): Path<i64>) -> Result<()> {
///     cx.db().execute("update orders set paid = 1 where id = $1", (id,))?;
///     cx.publish("orders.paid", &id)
/// }
///
/// #[subscriber("orders.*")]
/// async fn on_order(event: Event) -> Result<()> {
///     let id: i64 = event.json()?;
///     log::info!("news of an order", topic = event.topic, id = id);
///     Ok(())
/// }
///
/// views![pay, on_order];
/// # fn main() {}
/// ```
///
/// The module that publishes needs `publish = ["orders.*"]` in `amphi.toml`, and the one that subscribes needs
/// `subscribe = ["orders.*"]`. When a subscriber fails, the host logs the failure and rolls the subscriber's transaction
/// back. The event is not delivered again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The topic, e.g. `orders.paid`.
    pub topic: String,
    /// The payload, as it was published.
    pub payload: Vec<u8>,
}

impl Event {
    /// The payload, read as JSON.
    ///
    /// # Errors
    /// When the payload is not valid JSON, or does not fit the type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Error::internal(format!("the event on `{}`: {error}", self.topic)))
    }
}

impl FromRequest for Event {
    const BODY: BodyUse = BodyUse::Whole;

    fn from_request<M: Mode>(_: &Context<M>, request: &mut Request) -> Result<Self> {
        Ok(Self {
            topic: std::mem::take(&mut request.path),
            payload: request.take_body(),
        })
    }
}
